"""Calibration measures against values known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from invdiff.evaluation.calibration import (
    calibration_curve,
    coverage,
    energy_score,
    fair_crps,
    mmse_gap_db,
    mode_frequencies,
    rank_histogram,
    ranks,
    sbc_total_variation,
    sliced_wasserstein,
    spread_skill,
    tarp,
    total_variation,
    uncertainty_error_correlation,
)

N, S = 4000, 16


def randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def calibrated() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """y = x + n with x, n ~ N(0, 1): the posterior is N(y / 2, 1 / 2). Samples, truth, data; two pixels."""
    x = randn(N, 2, seed=0)
    y = x + randn(N, 2, seed=1)
    return y[:, None] / 2 + 0.5**0.5 * randn(N, S, 2, seed=2), x, y


def test_sliced_wasserstein_of_a_shift_and_of_a_scaling() -> None:
    x = randn(500, 3, seed=0)
    shift = torch.tensor([3.0, 0.0, 0.0], dtype=torch.float64)
    # E |<shift, u>| = |shift| / 2 for u uniform on the sphere in three dimensions
    assert sliced_wasserstein(x, x + shift, n_projections=5000) == pytest.approx(1.5, abs=0.04)
    one = torch.arange(1.0, 6.0)[:, None]
    assert sliced_wasserstein(one, 3 * one.flip(0)) == pytest.approx(6.0)  # mean of 2 |x|, order does not matter
    assert sliced_wasserstein(x, x.flip(0)) == pytest.approx(0, abs=1e-12)


def test_crps_is_the_pairwise_formula_and_that_of_a_gaussian(calibrated: tuple[torch.Tensor, ...]) -> None:
    samples, truth, _ = calibrated
    s, x = samples[:3], truth[:3]
    pairs = (s[:, :, None] - s[:, None]).abs().sum((1, 2)) / (2 * S * (S - 1))
    torch.testing.assert_close(fair_crps(s, x), (s - x[:, None]).abs().mean(1) - pairs)
    # expected CRPS of a calibrated N(m, sd^2) is sd / sqrt(pi)
    assert float(fair_crps(samples, truth).mean()) == pytest.approx((0.5 / math.pi) ** 0.5, rel=0.02)


def test_fair_crps_does_not_depend_on_the_number_of_samples(calibrated: tuple[torch.Tensor, ...]) -> None:
    samples, truth, _ = calibrated
    few = torch.stack([fair_crps(samples[:, i : i + 2], truth).mean() for i in range(0, S, 2)]).mean()
    assert float(few) == pytest.approx(float(fair_crps(samples, truth).mean()), rel=0.01)


def test_ranks_of_equal_values_are_uniform() -> None:
    # one law with an atom: half of the values are clipped to zero
    rank = ranks(randn(N, S, 2, seed=0).clamp(min=0), randn(N, 2, seed=1).clamp(min=0))
    assert coverage(rank, S, 0.9) == pytest.approx(15 / 17, abs=0.02)
    assert sbc_total_variation(rank, S) < 0.03
    assert coverage(ranks(torch.zeros(N, S), torch.zeros(N)), S, 0.9) == pytest.approx(15 / 17, abs=0.02)


def test_few_samples_have_intervals_too() -> None:
    rank = ranks(1e-3 * randn(N, 4, seed=0), randn(N, seed=1))
    assert coverage(rank, 4, 0.9) < 0.01  # far too narrow; nominal 3/5


def test_an_estimate_without_error_has_an_infinite_gain() -> None:
    assert mmse_gap_db(torch.zeros(2), torch.zeros(2), torch.ones(2)) == -math.inf


def test_fair_crps_sorts_any_number_of_samples() -> None:
    for n in (*range(2, 36), 100, 128, 129, 300):
        s, x = randn(2, n, 5, seed=n), randn(2, 5, seed=n + 1)
        pairs = (s[:, :, None] - s[:, None]).abs().sum((1, 2)) / (2 * n * (n - 1))
        torch.testing.assert_close(fair_crps(s, x), (s - x[:, None]).abs().mean(1) - pairs)
    same = torch.ones(2, 16, 5)  # ties
    assert bool((fair_crps(same, same[:, 0]) == 0).all())


def test_fair_crps_keeps_its_digits_under_a_large_offset() -> None:
    s, x = randn(3, S, 50, seed=3), randn(3, 50, seed=4)
    exact = fair_crps(s, x)
    far = fair_crps((s + 1024).float(), (x + 1024).float())  # float32 holds 1024 to 1.2e-4
    assert float((far - exact).abs().max()) < 1.2e-4
    assert float((far - exact).abs().mean()) < 3e-5


def test_scores_are_those_of_scoringrules(calibrated: tuple[torch.Tensor, ...]) -> None:
    scoringrules = pytest.importorskip("scoringrules")  # extra: metrics
    s, x = calibrated[0][:20], calibrated[1][:20]
    crps = scoringrules.crps_ensemble(x.numpy(), s.numpy(), m_axis=1, estimator="fair", backend="numpy")
    torch.testing.assert_close(fair_crps(s, x), torch.from_numpy(crps))
    energy = scoringrules.es_ensemble(x.numpy(), s.numpy(), estimator="fair", backend="numpy")
    torch.testing.assert_close(energy_score(s, x), torch.from_numpy(energy))


def test_energy_score_in_closed_form(calibrated: tuple[torch.Tensor, ...]) -> None:
    # (0, 0), (3, 4) around (0, 0): (0 + 5) / 2 - 5 / 2; one pixel: the CRPS
    s = torch.tensor([[[0.0, 0.0], [3.0, 4.0]]])
    assert energy_score(s, torch.zeros(1, 2)).tolist() == [0.0]
    assert energy_score(s, torch.tensor([[3.0, 0.0]])).tolist() == [1.0]  # (3 + 4) / 2 - 5 / 2
    assert energy_score(torch.full((1, 4, 3), 7.0), torch.full((1, 3), 7.0)).tolist() == [0.0]
    samples, truth, _ = calibrated
    torch.testing.assert_close(energy_score(samples[..., :1], truth[:, :1]), fair_crps(samples, truth)[:, 0])
    # draws from N(m, I / 2) in two dimensions: half of E |N(0, I)| = sqrt(pi / 2) / 2
    assert float(energy_score(samples, truth).mean()) == pytest.approx((math.pi / 2) ** 0.5 / 2, rel=0.02)


def test_calibrated_samples_pass_everything(calibrated: tuple[torch.Tensor, ...]) -> None:
    samples, truth, y = calibrated
    rank = ranks(samples, truth)
    assert spread_skill(samples, truth) == pytest.approx(1, abs=0.02)
    assert coverage(rank, S, 0.9) == pytest.approx(15 / 17, abs=0.02)
    assert coverage(rank, S, 0.5) == pytest.approx(9 / 17, abs=0.02)
    assert sbc_total_variation(rank, S) < 0.03
    assert tarp(samples, truth, y + randn(N, 2, seed=5))[2] < 1.36 / N**0.5
    assert mmse_gap_db(samples.mean(1), truth, y / 2) == pytest.approx(10 * math.log10(1 + 1 / S), abs=0.05)


def test_wrong_samples_have_the_numbers_theory_gives(calibrated: tuple[torch.Tensor, ...]) -> None:
    samples, truth, y = calibrated
    mean = y[:, None] / 2
    wide = mean + 2 * (samples - mean)  # twice the standard deviation
    assert spread_skill(wide, truth) == pytest.approx((17 / 16 * 4 / (1 + 4 / 16)) ** 0.5, rel=0.02)
    assert mmse_gap_db(mean[:, 0] + 0.5, truth, y / 2) == pytest.approx(10 * math.log10(1.5), abs=0.15)
    point = mean.expand(-1, S, -1)
    assert coverage(ranks(point, truth), S, 0.9) == 0
    assert sbc_total_variation(ranks(point, truth), S) == pytest.approx(15 / 17, abs=0.01)
    assert spread_skill(point, truth) == pytest.approx(0, abs=1e-6)


def test_prior_draws_are_caught_by_tarp_only_if_the_references_depend_on_the_data(
    calibrated: tuple[torch.Tensor, ...],
) -> None:
    _, truth, y = calibrated
    prior = randn(N, S, 2, seed=7)
    rank = ranks(prior, truth)
    assert spread_skill(prior, truth) == pytest.approx(1, abs=0.03)
    assert sbc_total_variation(rank, S) < 0.02
    assert tarp(prior, truth, randn(N, 2, seed=8))[2] < 0.03
    assert tarp(prior, truth, y)[2] > 0.1


def test_many_samples_are_binned() -> None:
    rank = torch.arange(1001)  # each once: uniform
    assert sbc_total_variation(rank, 1000) == pytest.approx(0, abs=1e-12)
    assert sbc_total_variation(torch.zeros(50, dtype=torch.long), 1000) == pytest.approx(1 - 51 / 1001, abs=1e-12)


def test_coverage_counts_by_ranks() -> None:
    assert coverage(torch.arange(17), 16, 0.9) == pytest.approx(15 / 17)
    assert coverage(torch.arange(1001), 1000, 0.9) == pytest.approx(901 / 1001)


def test_calibration_curve_counts_by_ranks(calibrated: tuple[torch.Tensor, ...]) -> None:
    levels, covered = calibration_curve(torch.arange(17), 16)  # each rank once: on the diagonal
    assert levels.tolist() == pytest.approx([(17 - 2 * a) / 17 for a in range(8, 0, -1)])
    assert covered.tolist() == pytest.approx(levels.tolist())
    levels, covered = calibration_curve(torch.tensor([0, 1, 2, 3]), 3)
    assert (levels.tolist(), covered.tolist()) == ([0.5], [0.5])
    samples, truth, _ = calibrated
    rank = ranks(samples, truth)
    levels, covered = calibration_curve(rank, S)
    assert covered.tolist() == [coverage(rank, S, float(level)) for level in levels]
    mean = samples.mean(1, keepdim=True)
    narrow = calibration_curve(ranks(mean + (samples - mean) / 2, truth), S)[1]
    wide = calibration_curve(ranks(mean + (samples - mean) * 2, truth), S)[1]
    assert bool((narrow < levels).all())
    assert bool((wide > levels).all())


def test_rank_histogram() -> None:
    observed, expected = rank_histogram(torch.tensor([0, 0, 1, 2]), 3)
    assert (observed.tolist(), expected.tolist()) == ([0.5, 0.25, 0.25, 0.0], [0.25] * 4)
    observed, expected = rank_histogram(torch.arange(1001), 1000, max_bins=10)
    assert len(observed) == 10
    torch.testing.assert_close(observed, expected)
    assert float(expected.sum()) == pytest.approx(1)


def test_error_correlation() -> None:
    std = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    assert uncertainty_error_correlation(std, -(std**3)) == pytest.approx(1)
    assert uncertainty_error_correlation(std, 1 / std) == pytest.approx(-1)
    # ranks 1 2 3 4 5 and 1.5 1.5 3 4.5 4.5: covariance 9, variances 10 and 9
    ties = torch.tensor([1.0, 1.0, 2.0, 3.0, 3.0])
    assert uncertainty_error_correlation(std, ties) == pytest.approx(9 / 90**0.5)
    with pytest.raises(ValueError, match="the same everywhere"):
        uncertainty_error_correlation(torch.ones(5), std)
    with pytest.raises(ValueError, match="same shape"):
        uncertainty_error_correlation(std, std[1:])


def test_error_correlation_of_exact_draws() -> None:
    """Error ``s z`` with log s ~ N(0, 1/4): Spearman's rho = 12 E[F(s) G(|s z|)] - 3 by quadrature, F and G the
    distribution functions of both."""
    nodes, weights = (torch.from_numpy(t) for t in np.polynomial.hermite_e.hermegauss(60))
    weights = weights / weights.sum()
    s = (nodes / 2).exp()
    z = 2**0.5 * torch.special.erfinv((torch.arange(1000, dtype=torch.float64) + 0.5) / 1000)  # of |z|, equally likely
    G = torch.erf((s[:, None] * z)[..., None] / s / 2**0.5) @ weights
    rho = 12 * float(weights @ (torch.special.ndtr(nodes)[:, None] * G).mean(1)) - 3
    assert rho == pytest.approx(0.46, abs=0.01)  # what the documentation says
    s = (randn(20000, seed=9) / 2).exp()
    assert uncertainty_error_correlation(s, s * randn(20000, seed=10)) == pytest.approx(rho, abs=0.02)


def test_tarp_ranks_are_those_of_the_tarp_package(calibrated: tuple[torch.Tensor, ...]) -> None:
    """Their curve is a histogram over equal bins of the ranks' own span, so it is compared at its S + 1 bins."""
    package = pytest.importorskip("tarp")  # extra: metrics
    samples, truth, y = calibrated
    references = y + randn(N, 2, seed=5)
    theirs, _ = package.get_tarp_coverage(
        samples.transpose(0, 1).numpy(), truth.numpy(), references=references.numpy(), norm=False, num_alpha_bins=S + 1
    )
    _, ours, _ = tarp(samples, truth, references)
    torch.testing.assert_close(ours, torch.from_numpy(theirs[1:-1]))


def test_tarp_levels() -> None:
    samples = torch.tensor([[[1.0], [2.0], [3.0]]])
    levels, expected, deviation = tarp(samples, torch.tensor([[2.5]]), torch.zeros(1, 1))
    assert levels.tolist() == [0.25, 0.5, 0.75]
    assert expected.tolist() == [0, 0, 1]  # the truth's rank is 2
    assert deviation == 0.5


def test_modes() -> None:
    modes = torch.tensor([[0.0, 0.0], [4.0, 0.0]])
    samples = torch.tensor([[[0.5, 1.0], [3.0, 1.0], [5.0, 0.0], [4.0, 0.0]]])
    frequencies = mode_frequencies(samples, modes)
    assert frequencies.tolist() == [[0.25, 0.75]]
    assert total_variation(frequencies, torch.tensor([[0.5, 0.5]])) == 0.25


def test_shapes_are_checked() -> None:
    s, x = torch.zeros(3, 4, 2), torch.zeros(3, 5)
    for f in (fair_crps, energy_score, spread_skill, ranks):
        with pytest.raises(ValueError, match="Expected samples"):
            f(s, x)
    with pytest.raises(ValueError, match="at least 2 samples"):
        fair_crps(torch.zeros(3, 1, 2), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="same size"):
        sliced_wasserstein(x, x[:2])
    with pytest.raises(ValueError, match="references"):
        tarp(s, torch.zeros(3, 2), x)
    with pytest.raises(ValueError, match="modes"):
        mode_frequencies(s, x)
    with pytest.raises(ValueError, match="level"):
        coverage(torch.zeros(3, dtype=torch.long), 4, 1.0)
    with pytest.raises(ValueError, match="same shape"):
        mmse_gap_db(x, x, x[:1])
