"""Calibration measures against values known in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from invdiff.evaluation.calibration import (
    coverage,
    fair_crps,
    mmse_gap_db,
    mode_frequencies,
    ranks,
    sbc_total_variation,
    sliced_wasserstein,
    spread_skill,
    tarp,
    total_variation,
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
    for f in (fair_crps, spread_skill, ranks):
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
