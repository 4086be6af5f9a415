"""Plug-and-play: its fixed point under an exact Gaussian denoiser, and whose denoiser it takes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from invdiff import GaussianNoise, Measurement
from invdiff.classical import PnP
from invdiff.operators import Blur, Clip, gaussian_psf
from invdiff.priors import GaussianPrior, StationaryCovariance
from invdiff.priors.interop import from_deepinv

SHAPE = (1, 12, 12)
STD, SIGMA = 0.3, 0.05


def gaussian(std: float = STD) -> GaussianPrior:
    covariance = StationaryCovariance.power_law(SHAPE, std=std, exponent=2.0)
    return GaussianPrior(torch.full(SHAPE, 0.2), covariance, value_range=(0.0, 1.0))


def blurred() -> Measurement:
    x = (gaussian().sample(1, seed=0)[0] + 1) / 2
    return Measurement.simulate(x, Blur(gaussian_psf(1.0, 5), SHAPE), GaussianNoise(0.02), seed=0)


def stationary_mean(m: Measurement, level: float, lam: float) -> torch.Tensor:
    """argmin nll(x) + lam/2 |x - mu|^2 in the norm of (C + level^2)^-1, in image units, by a dense solve."""
    P, n = gaussian(), 144
    eye = torch.eye(n).reshape(n, *SHAPE)
    D = (P.denoise(eye, torch.full((n,), level)) - P.denoise(0 * eye, torch.full((n,), level))).flatten(1).T.double()
    K = torch.eye(n, dtype=torch.float64) - D  # level^2 (C + level^2)^-1
    problem = P.in_model_units(m)
    A = problem.linear(eye).flatten(1).T.double()  # type: ignore[misc]
    w = 1 / 0.02**2
    r = problem.linear_data.flatten().double() - A @ P.means[0].flatten().double()
    u = torch.linalg.solve(w * A.T @ A + lam / level**2 * K, w * A.T @ r)
    return P.to_image((u + P.means[0].flatten().double()).reshape(SHAPE), m)


@pytest.mark.parametrize("lam", [1.0, 0.23])
def test_at_a_fixed_level_it_converges_to_the_posterior_mean_of_the_widened_prior(lam: float) -> None:
    m, states = blurred(), []
    method = PnP(n_steps=400, sigma_first=SIGMA, sigma_last=SIGMA, lam=lam)
    z = method(gaussian(), m, callback=lambda k, n, x, z, **_: states.append(x)).mean
    x = gaussian().to_image(states[-1][0], m)
    torch.testing.assert_close(x.double(), stationary_mean(m, SIGMA, lam), rtol=0, atol=2e-4)
    # and the denoised image is D(x)
    D = gaussian().denoise(states[-1], torch.full((1,), SIGMA))[0]
    torch.testing.assert_close(z, gaussian().to_image(D, m), rtol=0, atol=1e-5)


def test_it_takes_any_callable_denoiser_in_the_units_it_was_made_for() -> None:
    m, P = blurred(), gaussian()

    def theirs(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return (P.denoise(2 * x - 1, 2 * sigma.flatten().expand(len(x))) + 1) / 2  # images in [0, 1]

    prior = from_deepinv(theirs, SHAPE, sigma_min=0.001, sigma_max=50 / 255)
    got, expected = PnP()(prior, m), PnP()(P, m)
    torch.testing.assert_close(got.mean, expected.mean, rtol=0, atol=1e-5)
    assert (got.nfe, got.n_samples) == (8, 1)


def test_a_denoiser_of_deepinv() -> None:
    models = pytest.importorskip("deepinv.models", reason="needs invdiff[deepinv]")
    prior = from_deepinv(models.MedianFilter(), SHAPE, sigma_min=0.001, sigma_max=50 / 255)
    m = blurred()
    assert float(m.chi2(PnP()(prior, m).mean)) < float(m.chi2(torch.zeros(SHAPE)))


def test_errors_come_before_any_work() -> None:
    m, P = blurred(), gaussian()
    with pytest.raises(TypeError, match="PnP needs a denoiser"):
        PnP()(None, m)
    with pytest.raises(ValueError, match="n_samples must be 1"):
        PnP()(P, m, n_samples=2)
    with pytest.raises(ValueError, match="denoises levels of 0.002 to 0.2"):
        PnP()(from_deepinv(lambda x, s: x, SHAPE, sigma_min=0.001, sigma_max=0.1), m)
    with pytest.raises(ValueError, match="must not exceed sigma_first"):
        PnP(sigma_first=0.1, sigma_last=0.2)
    A = Clip(SHAPE)
    with pytest.raises(TypeError, match="needs a linear operator"):
        PnP()(P, replace(m, A=A, y=torch.zeros(A.out_shape), reference=None))
