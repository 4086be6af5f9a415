"""Analytic priors against dense linear algebra and Monte Carlo: they are the truth for everything else."""

from __future__ import annotations

import math

import pytest
import torch

from invdiff import ComplexGaussianNoise, GaussianNoise, Measurement
from invdiff.operators import (
    Blur,
    Inpainting,
    MultiCoilMRI,
    RealAsComplex,
    birdcage_maps,
    equispaced_mask,
    gaussian_psf,
    random_pixels,
)
from invdiff.priors import DenseCovariance, GaussianMixturePrior, GaussianPrior, StationaryCovariance, analytic

SHAPE = (1, 4, 6)
D = 24
F64 = torch.float64


def matrix(seed: int = 0) -> torch.Tensor:
    M = torch.randn(D, D, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return M @ M.T / D + 0.1 * torch.eye(D)


def mixture(covariance: object = None) -> GaussianMixturePrior:
    means = 2 * torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=F64)
    covariance = covariance or DenseCovariance(matrix(), SHAPE)
    return GaussianMixturePrior(means, torch.tensor([0.2, 0.5, 0.3]), covariance, dtype=F64)  # type: ignore[arg-type]


def dense_covariance(covariance: object) -> torch.Tensor:
    e = torch.eye(D, dtype=F64).reshape(D, *SHAPE)
    c = covariance.eigenvalues * covariance.forward(e)  # type: ignore[attr-defined]
    return covariance.inverse(c).reshape(D, D)  # type: ignore[attr-defined]


def test_stationary_covariance_is_circulant_with_the_stated_variance() -> None:
    covariance = StationaryCovariance.power_law(SHAPE, std=0.7, exponent=3.0)
    C = dense_covariance(covariance)
    torch.testing.assert_close(C, C.T)
    torch.testing.assert_close(C.diagonal(), torch.full((D,), 0.49, dtype=F64))
    kernel = C[0].reshape(4, 6)  # row of pixel (1, 2) is the row of pixel (0, 0), shifted
    torch.testing.assert_close(C[1 * 6 + 2].reshape(4, 6), kernel.roll((1, 2), (0, 1)))


@pytest.mark.parametrize("sigma", [0.05, 0.5, 3.0])
def test_denoiser_is_tweedies_formula(sigma: float) -> None:
    # E[x0 | x] = x + sigma^2 grad log p_sigma(x), the density from torch.distributions
    prior = mixture()
    C = matrix() + sigma**2 * torch.eye(D)
    components = torch.distributions.MultivariateNormal(prior.means.flatten(1), C)
    p = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.tensor([0.2, 0.5, 0.3])), components
    )
    x = prior.sample(5, seed=0) + sigma
    flat = x.flatten(1).requires_grad_(True)
    log_p = p.log_prob(flat)
    (score,) = torch.autograd.grad(log_p.sum(), flat)
    torch.testing.assert_close(prior(x, sigma), x + sigma**2 * score.reshape(x.shape))
    torch.testing.assert_close(prior.log_density(x, sigma), log_p.detach())


def test_prior_samples_have_the_prior_moments() -> None:
    prior, n = mixture(), 20_000
    x = prior.sample(n, seed=0).flatten(1)
    w = torch.tensor([0.2, 0.5, 0.3], dtype=F64)
    m = prior.means.flatten(1)
    mean = w @ m
    C = matrix() + (m - mean).T @ torch.diag(w) @ (m - mean)
    assert float(((x.mean(0) - mean) / (C.diagonal() / n).sqrt()).abs().max()) < 4.5
    assert float((torch.cov(x.T) - C).abs().max()) < 6 * float(C.diagonal().max()) * (2 / n) ** 0.5


def problems() -> dict[str, Measurement]:
    x = mixture().sample(1, seed=9)[0].float()
    mask = Inpainting(random_pixels(SHAPE, 0.3, seed=0)) @ Blur(gaussian_psf(0.8, 3), SHAPE)
    mri = MultiCoilMRI(birdcage_maps(2, SHAPE[1:]), equispaced_mask(6, acceleration=3, center_fraction=0.2))
    return {
        "masked blur": Measurement.simulate(x, mask, GaussianNoise(0.3), seed=0),
        "mri": Measurement.simulate(x, mri @ RealAsComplex(SHAPE), ComplexGaussianNoise(0.3), seed=0),
    }


@pytest.mark.parametrize("name", ["masked blur", "mri"])
@pytest.mark.parametrize("limit", [4096, 0], ids=["cholesky", "conjugate gradients"])
def test_exact_posterior_is_bayes_rule(name: str, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # by the information form (precision matrices), where the code uses the covariance form
    monkeypatch.setattr(analytic, "DENSE_LIMIT", limit)
    m, prior = problems()[name].to(dtype=F64), mixture()
    posterior = prior.posterior(m)
    e = torch.eye(D, dtype=F64).reshape(D, *SHAPE)
    rows = m.A(e)[:, m.A.observed.expand(m.A.out_shape)]
    y = m.y[m.A.observed.expand(m.A.out_shape)]
    if rows.is_complex():
        rows, y = torch.view_as_real(rows).flatten(1), torch.view_as_real(y).flatten()
    A = rows.T
    P0 = torch.linalg.inv(matrix())
    P = P0 + A.T @ A / 0.09
    C = torch.linalg.inv(P)
    means = torch.stack([C @ (P0 @ mu + A.T @ y / 0.09) for mu in prior.means.flatten(1)])
    S = A @ matrix() @ A.T + 0.09 * torch.eye(len(y), dtype=F64)
    evidence = torch.distributions.MultivariateNormal(prior.means.flatten(1) @ A.T, S).log_prob(y)
    weights = torch.softmax(torch.tensor([0.2, 0.5, 0.3], dtype=F64).log() + evidence, 0)
    torch.testing.assert_close(posterior.weights, weights)
    torch.testing.assert_close(posterior.means.flatten(1), means, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(posterior.covariance_of_component(), C, rtol=1e-6, atol=1e-7)
    n = 4000
    x = posterior.sample(n, seed=0)
    assert float(((x.mean(0) - posterior.mean) / posterior.std() * math.sqrt(n)).abs().max()) < 4.5
    torch.testing.assert_close(x.std(0), posterior.std(), rtol=0.07, atol=0)


def test_exact_draws_fit_the_data_as_the_truth_does() -> None:
    # chi2 = 1 in expectation over (x, y): the identity every exact sampler satisfies
    prior = GaussianPrior(torch.zeros(SHAPE), StationaryCovariance.power_law(SHAPE, std=0.5), dtype=torch.float32)
    A = Inpainting(random_pixels(SHAPE, 0.5, seed=0))
    values = []
    for i in range(200):
        m = Measurement.simulate(prior.sample(1, seed=i)[0], A, GaussianNoise(0.2), seed=i)
        values.append(m.chi2(prior.posterior(m).sample(1, seed=i, item="x")).mean())
    chi2 = torch.stack(values)
    assert float(chi2.mean()) == pytest.approx(1, abs=4 * float(chi2.std()) / 200**0.5)


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="non-negative and symmetric"):
        StationaryCovariance(torch.arange(24.0).reshape(SHAPE))
    with pytest.raises(ValueError, match="not positive semi-definite"):
        DenseCovariance(-torch.eye(D), SHAPE)
    with pytest.raises(ValueError, match="Need means"):
        GaussianMixturePrior(torch.zeros(2, 1, 5, 5), torch.ones(2), DenseCovariance(matrix(), SHAPE))
