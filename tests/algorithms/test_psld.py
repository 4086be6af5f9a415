"""PSLD with an orthonormal encoder and a Gaussian prior of latents: its step by hand."""

from __future__ import annotations

import pytest
import torch

from invdiff import GaussianNoise, Measurement
from invdiff.algorithms.dps import DPS
from invdiff.algorithms.psld import PSLD
from invdiff.operators import Blur, Identity, Inpainting, gaussian_psf, random_pixels
from invdiff.operators.base import LinearOperator, Operator
from invdiff.priors import GaussianPrior, StationaryCovariance, linear_betas
from invdiff.priors.latent import LatentPrior
from invdiff.random import SampleStreams

F64 = torch.float64
IMAGE, LATENT = (1, 12, 12), (2, 6, 6)
W = torch.linalg.qr(torch.randn(144, 72, generator=torch.Generator().manual_seed(7), dtype=F64))[0].T
COVARIANCE = StationaryCovariance.power_law(LATENT, std=0.5, exponent=2.0)
PRIOR = LatentPrior(
    lambda x: (x.flatten(1) @ W.T).unflatten(1, LATENT),
    lambda z: (z.flatten(1) @ W).unflatten(1, IMAGE),
    GaussianPrior(torch.zeros(LATENT), COVARIANCE, dtype=F64),
    image_shape=IMAGE,
)
MASKED = Inpainting(random_pixels(IMAGE, 0.5, seed=0))
BLURRED = 3.0 * (MASKED @ Blur(gaussian_psf(0.8, 5), IMAGE))


def problem(A: LinearOperator, sigma: float = 0.05, seed: int = 1) -> Measurement:
    noise = torch.randn(LATENT, generator=torch.Generator().manual_seed(seed), dtype=F64)
    z = COVARIANCE.inverse(COVARIANCE.eigenvalues.sqrt() * COVARIANCE.forward(noise))
    return Measurement.simulate(PRIOR.decode(z[None])[0], A.to(dtype=F64), GaussianNoise(sigma), seed=seed)


@pytest.mark.parametrize("A", [MASKED, BLURRED], ids=["orthonormal rows", "blur"])
def test_the_update_is_the_gradient_worked_out_by_hand(A: LinearOperator) -> None:
    # z0 = G z / sqrt(ab), r = y - A W^T z0, d = z0 - W (W^T z0 + A^T r / |A|^2) = -W A^T r / |A|^2, M = W A^T A W^T:
    # grad_z |r| = -G W A^T r / |r| / sqrt(ab), grad_z |d| = G M d / |A|^2 / |d| / sqrt(ab)
    m, n, eta, gamma = problem(A), 12, 0.4, 0.3
    L = m.A.norm() ** 2  # type: ignore[attr-defined]
    ab = torch.cumprod(1 - linear_betas(1000), 0)[torch.linspace(0, 999, n).round().long()].tolist()
    streams = SampleStreams(5, range(3))
    z = (1 - ab[-1]) ** 0.5 * streams.randn(LATENT, dtype=F64)

    def unit(r: torch.Tensor) -> torch.Tensor:
        return r / r.flatten(1).norm(dim=1)[:, None, None, None]

    for t in reversed(range(n)):
        lam, s2 = COVARIANCE.eigenvalues, (1 - ab[t]) / ab[t]

        def G(x: torch.Tensor, shrink: torch.Tensor = lam / (lam + s2)) -> torch.Tensor:
            return COVARIANCE.inverse(shrink * COVARIANCE.forward(x))

        def back(r: torch.Tensor) -> torch.Tensor:
            return PRIOR.encode(m.A.H(r))  # type: ignore[attr-defined]

        z0 = G(z) / ab[t] ** 0.5
        r = m.y - m.A(PRIOR.decode(z0))
        d = -back(r) / L
        g = (-eta * G(back(unit(r))) + gamma * G(back(m.A(PRIOR.decode(unit(d))))) / L) / ab[t] ** 0.5
        prev = ab[t - 1] if t else 1.0
        beta = 1 - ab[t] / prev
        mean = prev**0.5 * beta / (1 - ab[t]) * z0 + (ab[t] / prev) ** 0.5 * (1 - prev) / (1 - ab[t]) * z
        fresh = streams.randn(LATENT, dtype=F64) if t else 0.0
        z = mean + ((1 - prev) / (1 - ab[t]) * beta) ** 0.5 * fresh - g
    p = PSLD(n_steps=n, eta=eta, gamma=gamma)(PRIOR, m, n_samples=3, seed=5)
    torch.testing.assert_close(p.samples, PRIOR.decode(z), rtol=1e-8, atol=1e-8)
    assert p.nfe == n


def test_without_gluing_it_is_dps_on_latents() -> None:
    m = problem(BLURRED)
    a = PSLD(n_steps=20, eta=0.3, gamma=0.0)(PRIOR, m, n_samples=2, seed=1)
    b = DPS(n_steps=20, guidance_scale=0.3, clip=False)(PRIOR, m, n_samples=2, seed=1)
    torch.testing.assert_close(a.samples, b.samples, rtol=1e-9, atol=1e-9)


def test_its_mean_beats_the_priors() -> None:
    m = problem(MASKED, sigma=0.02)
    p = PSLD(n_steps=200, eta=0.5, gamma=0.1)(PRIOR, m, n_samples=8, seed=0)
    assert (p.mean - m.reference).square().mean() < 0.6 * m.reference.square().mean()  # type: ignore[union-attr]


def test_a_batch_equals_its_samples() -> None:
    m = problem(MASKED)
    whole = PSLD(n_steps=20)(PRIOR, m, n_samples=3, seed=4)
    decoded: list[int] = []

    def decoder(z: torch.Tensor) -> torch.Tensor:
        decoded.append(len(z))
        return PRIOR.decode(z)

    counting = LatentPrior(PRIOR.encode, decoder, PRIOR.denoiser, image_shape=IMAGE)
    parts = PSLD(n_steps=20)(counting, m, n_samples=3, seed=4, batch_size=1)
    assert max(decoded) == 1  # the samples at the end, too
    torch.testing.assert_close(whole.samples, parts.samples, rtol=1e-9, atol=1e-9)


def test_what_it_cannot_use_is_refused() -> None:
    class Squared(Operator):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x**2

    A = Squared(IMAGE, IMAGE, dtype=F64)
    m = Measurement(torch.zeros(IMAGE, dtype=F64), A, GaussianNoise(0.1))
    with pytest.raises(TypeError, match="PSLD needs a linear operator"):
        PSLD()(PRIOR, m)
    latent = Measurement(torch.zeros(LATENT, dtype=F64), Identity(LATENT).to(dtype=F64), GaussianNoise(0.1))
    with pytest.raises(TypeError, match="PSLD needs a LatentPrior"):
        PSLD()(PRIOR.denoiser, latent)
    with pytest.raises(ValueError, match=r"n_steps must lie in 2 \.\. 1000"):
        PSLD(n_steps=1001)
    with pytest.raises(ValueError, match="eta and gamma must not be negative"):
        PSLD(gamma=-0.1)
