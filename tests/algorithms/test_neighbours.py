"""What the equations of the neighbours imply, one truth each."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from invdiff import GaussianNoise, Measurement
from invdiff.algorithms import DDNM, DDRM, MCG, PSLD, TDS, DiffPIR, MCGTomography, PiGDM, PnPDM, REDDiff
from invdiff.algorithms.draw import Run
from invdiff.algorithms.guidance import Isotropic
from invdiff.algorithms.tds import _resample
from invdiff.operators import Identity, Inpainting, random_pixels
from invdiff.operators.base import LinearOperator
from invdiff.priors import Counted, GaussianPrior, KarrasGrid, StationaryCovariance
from invdiff.random import SampleStreams

SHAPE, F64 = (1, 8, 8), torch.float64
COVARIANCE = StationaryCovariance.power_law(SHAPE, exponent=3.0)
PRIOR = GaussianPrior(torch.zeros(SHAPE), COVARIANCE, dtype=F64)
WHITE = GaussianPrior(torch.zeros(SHAPE), StationaryCovariance(torch.full(SHAPE, 0.25)), dtype=F64)
MASK = random_pixels(SHAPE, 0.5, seed=0)
GRID = KarrasGrid(sigma_max=20.0, sigma_min=0.005)


def problem(sigma: float, A: LinearOperator | None = None, seed: int = 0) -> Measurement:
    x = PRIOR.sample(1, seed=7)[0].float()
    return Measurement.simulate(x, A or Inpainting(MASK), GaussianNoise(sigma), seed=seed).to(dtype=F64)


@pytest.mark.parametrize("algorithm", [DDRM(eta_b=1.0, grid=GRID), MCG(n_steps=50, clip=False)], ids=["ddrm", "mcg"])
def test_without_noise_the_data_are_reproduced(algorithm: DDRM) -> None:
    m = problem(1e-6)
    s = algorithm(PRIOR, m, n_samples=2).samples
    assert float((s - m.y)[:, MASK].abs().max()) < 4.5 * 0.005  # what is left is noise of the last level


def test_mcg_keeps_the_data_with_their_noise_to_the_last_digit() -> None:
    m = problem(0.3)
    s = MCG(n_steps=50, clip=False)(PRIOR, m, n_samples=2).samples
    assert float((s - m.y)[:, MASK].abs().max()) < 1e-9


def test_ddnm_follows_its_exactly_known_law() -> None:
    # a white prior and a mask: scalar recursions of the mean and the variance, from the paper's eq. (17) to (19) with
    # the released code's eta. Seen pixels hold the data, whose noise counts as the level's, until sigma exceeds that.
    sigma, eta, n, m = 0.1, 0.85, 2000, problem(0.1)
    S = [*GRID(30)]
    y = m.y
    mean, var = torch.zeros(SHAPE, dtype=F64), torch.full(SHAPE, S[0] ** 2, dtype=F64)
    for s, t in zip(S[:-1], S[1:], strict=True):
        g, old, new = 0.25 / (0.25 + s**2), (1 - eta**2) ** 0.5 * t, eta * t
        keep = g + old * (1 - g) / s
        if sigma <= t:
            seen = y, torch.full_like(y, t**2 - sigma**2)
        else:
            lam = old / sigma
            seen = (1 - lam) * g * mean + lam * y, ((1 - lam) * g) ** 2 * var + new**2
        mean, var = torch.where(MASK, seen[0], keep * mean), torch.where(MASK, seen[1], keep**2 * var + new**2)
    x = DDNM(n_steps=30, eta=eta, grid=GRID)(WHITE, m, n_samples=n).samples
    assert float(((x.mean(0) - mean) / (var / n).sqrt()).abs().max()) < 4.5
    assert float((x.var(0) / var - 1).abs().max()) < 5 * (2 / n) ** 0.5


def test_exact_class_samplers_match_a_white_gaussian_posterior() -> None:
    # white prior, mask: PiGDM's isotropic covariance is the true one, PnP-DM's split adds rho^2 to the noise
    m, sigma, n_samples = problem(0.2), 0.2, 400
    gain = 0.25 / (0.25 + sigma**2)
    exact = torch.where(MASK, gain * m.y, 0.0), torch.where(MASK, 0.25 * (1 - gain), 0.25)
    for algorithm in (
        PiGDM(n_steps=400, grid=GRID),
        PnPDM(n_iterations=80, rho_max=3.0, rho_min=0.04, decay=0.92, n_denoise=12),
        TDS(n_steps=150, n_particles=2, covariance=Isotropic(), grid=KarrasGrid(sigma_max=20.0, sigma_min=0.02)),
    ):
        s = algorithm(WHITE, m, n_samples=n_samples).samples
        bias = (s.mean(0) - exact[0]).square().mean() / exact[1].mean()
        assert float(bias) < 0.01 + 3 / n_samples, algorithm
        for where in (MASK, ~MASK):
            ratio = float(s.var(0)[where].mean() / exact[1][where].mean())
            assert 0.9 < ratio < 1.1, (algorithm, ratio)


def test_tds_resamples_without_bias() -> None:
    K, n = 8, 3000
    run = Run(Counted(PRIOR), problem(0.1), SampleStreams(0, range(n)), None, lambda *a, **k: None)
    w = torch.tensor([0.5, 0.2, 0.1, 0.1, 0.05, 0.03, 0.02, 0.0], dtype=F64)
    index, log_w = _resample(w.log().expand(n, K), run)
    counts = torch.bincount(index % K, minlength=K) / n
    torch.testing.assert_close(counts.double(), K * w, rtol=0.0, atol=0.05)
    assert bool((index // K == torch.arange(n).repeat_interleave(K)).all())
    assert bool((log_w == 0).all())
    even, kept = _resample(torch.zeros(n, K, dtype=F64), run)  # enough effective particles: nobody moves
    assert bool((even == torch.arange(n * K)).all())
    torch.testing.assert_close(kept, torch.full((n * K,), -math.log(K), dtype=F64))


def test_red_diff_ends_where_its_gradient_vanishes() -> None:
    # white prior: E D(mu + s z, s) = g(s) mu, so the stationary point of the last, small levels is y weighted with
    # M^-1 against lambda / N (1 - g); iterated here over the levels that the last steps see
    m = problem(0.1, Identity(SHAPE))
    s = REDDiff(n_steps=1000, lr=0.02, lam=0.25)(WHITE, m, n_samples=4).samples
    assert float((s - m.y).abs().mean()) < 0.1 * float(m.y.abs().mean())  # s -> 0: the regulariser fades, mu -> y
    strong = REDDiff(n_steps=1000, lr=0.02, lam=1e4)(WHITE, m, n_samples=4).samples
    assert float(strong.square().mean()) < 0.2 * float(m.y.square().mean())  # lambda -> infinity: the prior's mean


def test_a_point_estimate_has_no_spread_to_speak_of() -> None:
    m = problem(0.1)
    posterior = PRIOR.posterior(m)
    s = REDDiff(n_steps=300)(PRIOR, m, n_samples=30).samples
    assert float(s.var(0).mean()) < 0.5 * float(posterior.std().square().mean())


def test_mcg_for_tomography_ends_on_the_data() -> None:
    # the projection leaves what the last, small levels add: 99 % of the data's energy is explained, and what is not
    # seen stays a sample
    m = problem(0.01)
    s = MCGTomography(n_steps=150, sigma_max=20.0, sigma_min=0.01)(PRIOR, m, n_samples=4).samples
    assert float((s - m.y)[:, MASK].square().mean()) < 0.01 * float(m.y[MASK].square().mean())
    assert float(s.var(0)[~MASK].mean()) > 1e-3


def test_mcg_for_tomography_in_units_twice_as_large() -> None:
    # images twice as large: noise levels and w double, as in the preset, whose code has images in [0, 1]
    m = problem(0.1)
    twice = replace(m, A=0.5 * m.A, reference=None)
    large = GaussianPrior(
        torch.zeros(SHAPE), StationaryCovariance(4 * COVARIANCE.eigenvalues.reshape(SHAPE)), dtype=F64
    )
    a = MCGTomography(n_steps=40, sigma_max=10.0, sigma_min=0.01, guidance_scale=0.1)(PRIOR, m, n_samples=2)
    b = MCGTomography(n_steps=40, sigma_max=20.0, sigma_min=0.02, guidance_scale=0.2)(large, twice, n_samples=2)
    torch.testing.assert_close(2 * a.samples, b.samples, rtol=1e-6, atol=1e-6)
    preset = MCGTomography.released_code()
    assert (preset.sigma_max, preset.sigma_min, preset.guidance_scale) == (2 * 378, 2 * 0.01, 2 * 0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DDRM(eta=1.5), "eta must lie in"),
        (lambda: PnPDM(decay=1.0), "decay must be below 1"),
        (lambda: MCG(n_steps=1), "2 .. 1000"),
        (lambda: TDS(n_particles=0), "n_particles must be positive"),
        (lambda: PnPDM(n_iterations=3)(PRIOR, problem(0.1)), "Use more iterations or a smaller decay"),
    ],
)
def test_wrong_parameters_are_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    "algorithm",
    [DDRM.released_code(), DDNM.released_code(), PnPDM.released_code(), DiffPIR.released_code("inpainting"),
     TDS.released_code()],
    ids=lambda a: type(a).__name__,
)  # fmt: skip
def test_released_settings_halve_the_error_of_the_prior_mean_where_pixels_are_seen(algorithm: DDRM) -> None:
    m = problem(0.05)
    mean = algorithm(PRIOR, m, n_samples=4).mean
    assert m.reference is not None
    assert float((mean - m.reference)[MASK].norm()) < 0.5 * float(m.reference[MASK].norm())


def test_the_released_lambda_of_diffpir_in_its_own_units() -> None:
    # its data step, on images in [0, 1] with noise s01: argmin |y - x|^2 + lambda s01^2 / s^2 |x - x0|^2
    s01, s, lam, x0, y = 0.05, 0.3, 1.0, 0.2, 0.7
    rho = lam * s01**2 / s**2
    expected = 2 * (y + rho * x0) / (1 + rho) - 1
    A = Identity((1, 1, 1))
    m = Measurement(torch.full((1, 1, 1), 2 * y - 1, dtype=F64), A.to(dtype=F64), GaussianNoise(2 * s01))
    ours = m.prox(torch.full((1, 1, 1), 2 * x0 - 1, dtype=F64), s**2 / DiffPIR.released_code("deblurring").lam)
    assert float(ours) == pytest.approx(expected, abs=1e-12)


def test_presets_name_their_tasks() -> None:
    assert PSLD.released_code("ldm") == PSLD(n_steps=1000, eta=0.1, gamma=0.1)
    with pytest.raises(KeyError, match="there are deblurring"):
        DiffPIR.released_code("ct")
