"""ReSample with an orthonormal encoder and a Gaussian prior of latents, where every step has a closed form."""

from __future__ import annotations

import pytest
import torch

from invdiff import GaussianNoise, Measurement
from invdiff.algorithms.resample import ReSample, consistent, ddim, resample
from invdiff.operators import Blur, Identity, Inpainting, gaussian_psf, random_pixels
from invdiff.operators.base import Operator
from invdiff.priors import DDPMGrid, GaussianPrior, StationaryCovariance
from invdiff.priors.latent import LatentPrior, of_images
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
FAST = dict(n_steps=30, resample_every=5, n_travel=3, n_pixel=300, n_latent=300, lr_pixel=0.02, lr_latent=0.02)
NFE = 30 + 4 * 3  # consistency at idx = 20, 15, 10, 5, three steps ahead each


class Half(Operator):
    """Keeps the first rows of an image, cubed a little: not linear."""

    def __init__(self) -> None:
        super().__init__(IMAGE, (1, 6, 12))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :, :6] + 0.1 * x[:, :, :6] ** 3


MASKED = Inpainting(random_pixels(IMAGE, 0.5, seed=0)) @ Blur(gaussian_psf(0.8, 5), IMAGE)


def problem(A: Operator = MASKED, sigma: float = 0.05, seed: int = 1) -> tuple[Measurement, torch.Tensor]:
    z = COVARIANCE.inverse(
        COVARIANCE.eigenvalues.sqrt()
        * COVARIANCE.forward(torch.randn(LATENT, generator=torch.Generator().manual_seed(seed), dtype=F64))
    )
    x = PRIOR.decode(z[None])[0]
    return Measurement.simulate(x, A.to(dtype=F64), GaussianNoise(sigma), seed=seed), z


def test_resampling_is_the_product_of_two_gaussians() -> None:
    g = torch.Generator().manual_seed(0)
    z0, z = torch.randn(2, 3, generator=g, dtype=F64)
    ab, variance = 0.6, 0.7
    precision = 1 / (1 - ab) + 1 / variance
    mean = (ab**0.5 * z0 / (1 - ab) + z / variance) / precision
    torch.testing.assert_close(resample(z0, z, ab, variance, torch.zeros(3).double()), mean)
    draws = resample(z0, z, ab, variance, torch.randn(40000, 3, generator=g, dtype=F64))
    torch.testing.assert_close(draws.mean(0), mean, rtol=0, atol=0.012)
    torch.testing.assert_close(draws.var(0), torch.full((3,), 1 / precision, dtype=F64), rtol=0.03, atol=0)
    # a wide second factor leaves the first: the forward process from z0
    torch.testing.assert_close(resample(z0, z, ab, 1e12, z), ab**0.5 * z0 + (1 - ab) ** 0.5 * z)
    torch.testing.assert_close(resample(z0, z, ab, 1e-12, z), z, rtol=0, atol=1e-5)


def test_without_data_it_is_the_probability_flow_of_the_prior() -> None:
    # D(u, s) = lam / (lam + s^2) u per Hartley coefficient, so each DDIM step is a factor
    m, _ = problem()
    lam, S = COVARIANCE.eigenvalues, DDPMGrid()(20)
    factor = torch.ones(LATENT, dtype=F64)
    for s, s_next in zip(S[:-1], S[1:], strict=True):
        shrink = lam / (lam + s**2)
        factor = factor * (shrink + s_next / s * (1 - shrink))
    z = SampleStreams(3, range(2)).randn(LATENT, dtype=F64)
    expected = PRIOR.decode(COVARIANCE.inverse(factor * S[0] * COVARIANCE.forward(z)))
    p = ReSample(n_steps=20, guidance_scale=0.0, resample_every=20, tolerance=1e9)(PRIOR, m, n_samples=2, seed=3)
    torch.testing.assert_close(p.samples, expected, rtol=1e-8, atol=1e-8)
    assert p.nfe == 20


def test_the_guidance_is_the_gradient_of_the_norm_with_the_noise_held() -> None:
    # z0_hat = (z - sqrt(1 - ab) eps) / sqrt(ab): grad_z |r| = -W A^T r / |r| / sqrt(ab)
    m, _ = problem()
    S, zeta = DDPMGrid()(20), 0.3
    states = []
    ReSample(n_steps=20, guidance_scale=zeta, resample_every=20, tolerance=1e9)(
        PRIOR, m, n_samples=2, seed=3, callback=lambda step, n, **s: states.append(s["x0"])
    )
    ab = [1 / (1 + s**2) for s in S]
    z = SampleStreams(3, range(2)).randn(LATENT, dtype=F64) * S[0] * ab[0] ** 0.5
    for i in range(3):
        z0 = PRIOR(z / ab[i] ** 0.5, S[i])
        torch.testing.assert_close(states[i], z0)
        r = m.residual(PRIOR.decode(z0))
        g = PRIOR.encode(m.A.H(r)) / r.flatten(1).norm(dim=1)[:, None, None, None] / ab[i] ** 0.5  # type: ignore[attr-defined]
        z = ddim(z, z0, ab[i], ab[i + 1]) + zeta * ab[i] * g


def test_with_consistency_met_at_once_the_whole_chain_is_known() -> None:
    # a large tolerance makes the consistency the identity: z0(y) is z0_hat three steps ahead
    m, _ = problem()
    n, gamma = 12, 3.0
    ab = [1 / (1 + s**2) for s in DDPMGrid()(n)]
    streams = SampleStreams(3, range(2))
    z = (1 - ab[0]) ** 0.5 * streams.randn(LATENT, dtype=F64)

    def z0_hat(z: torch.Tensor, i: int) -> torch.Tensor:
        return PRIOR(z / ab[i] ** 0.5, ((1 - ab[i]) / ab[i]) ** 0.5)

    def step(z: torch.Tensor, i: int) -> torch.Tensor:
        z0 = z0_hat(z, i)
        return ab[i + 1] ** 0.5 * z0 + ((1 - ab[i + 1]) / (1 - ab[i])) ** 0.5 * (z - ab[i] ** 0.5 * z0)

    for i in range(n):
        z = step(z, i)
        if i in (3, 7):  # idx = 8 and 4: multiples of 4 up to 12 - 12 // 3
            z0 = z0_hat(step(step(z, i + 1), i + 2), i + 3)
            b = ab[i + 1]
            g = gamma * (1 - b) / (1 - ab[i]) * (1 - ab[i] / b)
            precision = 1 / (1 - b) + 1 / g
            fresh = streams.randn(LATENT, dtype=F64)
            z = (b**0.5 * z0 / (1 - b) + z / g) / precision + precision**-0.5 * fresh
    algorithm = ReSample(n_steps=n, guidance_scale=0.0, gamma=gamma, resample_every=4, n_travel=3, tolerance=1e9)
    p = algorithm(PRIOR, m, n_samples=2, seed=3)
    torch.testing.assert_close(p.samples, PRIOR.decode(z), rtol=1e-8, atol=1e-8)
    assert p.nfe == n + 6


def test_pixels_come_before_latents() -> None:
    # idx = 20, 15, 10 on pixels (each encodes once), idx = 5 on latents
    encoded: list[int] = []

    def encode(x: torch.Tensor) -> torch.Tensor:
        encoded.append(len(steps))
        return PRIOR.encoder(x)

    steps: list[int] = []
    prior = LatentPrior(encode, PRIOR.decoder, PRIOR.denoiser, image_shape=IMAGE)
    ReSample(**FAST)(prior, problem()[0], callback=lambda step, n, **_: steps.append(step))  # type: ignore[arg-type]
    assert encoded == [9, 14, 19]  # steps done before


@pytest.mark.parametrize("A", [MASKED, Half()], ids=["linear", "nonlinear"])
def test_consistency_stops_at_the_noise_level_sample_by_sample(A: Operator) -> None:
    m, z = problem(A)
    latent = PRIOR.in_model_units(m)
    start = z + torch.tensor([0.0, 0.1, 0.5], dtype=F64)[:, None, None, None]
    before = latent.chi2(start)
    assert before[0] < 1.3 < before[1] < before[2]
    out = consistent(latent, start, lr=0.01, n_steps=500)
    assert (latent.chi2(out) <= 1).all()
    assert (latent.chi2(out) > 0.7).all()  # and not far below
    for i in range(3):
        torch.testing.assert_close(consistent(latent, start[i : i + 1], lr=0.01, n_steps=500)[0], out[i])
    done = consistent(latent, out, lr=0.01, n_steps=500)
    assert torch.equal(done, out)
    x = PRIOR.decode(start)
    assert (of_images(latent).chi2(consistent(of_images(latent), x, lr=0.01, n_steps=500)) <= 1).all()


def test_patience_ends_what_does_not_improve() -> None:
    # data outside the range of the decoder: chi2 cannot reach 1
    m = Measurement(torch.full(IMAGE, 5.0, dtype=F64), Identity(IMAGE).to(dtype=F64), GaussianNoise(0.1))
    latent, calls = PRIOR.in_model_units(m), []
    counted = latent.A.inner.decode  # type: ignore[attr-defined]

    def decode(z: torch.Tensor) -> torch.Tensor:
        calls.append(len(z))
        return counted(z)

    latent.A.inner.decode = decode  # type: ignore[attr-defined]
    consistent(latent, torch.zeros(1, *LATENT, dtype=F64), lr=2.0, n_steps=5000, patience=50)
    assert 51 <= len(calls) < 5000


@pytest.mark.parametrize("A", [MASKED, Half()], ids=["linear", "nonlinear"])
def test_it_finds_the_image(A: Operator) -> None:
    m, _ = problem(A, sigma=0.02)
    p = ReSample(**FAST)(PRIOR, m, n_samples=6, seed=0)  # type: ignore[arg-type]
    assert p.nfe == NFE
    assert (m.chi2(p.samples) <= 1).all()
    error = (p.mean - m.reference).square().mean()
    assert error < 0.6 * m.reference.square().mean()  # type: ignore[union-attr]
    assert p.std.mean() > 0.01


def test_a_batch_equals_its_samples() -> None:
    m, _ = problem()
    whole = ReSample(**FAST)(PRIOR, m, n_samples=3, seed=4)  # type: ignore[arg-type]
    parts = ReSample(**FAST)(PRIOR, m, n_samples=3, seed=4, batch_size=1)  # type: ignore[arg-type]
    torch.testing.assert_close(whole.samples, parts.samples, rtol=1e-6, atol=1e-6)
    assert whole.nfe == parts.nfe


@pytest.mark.parametrize(
    ("n", "every", "travel", "split"), [(30, 5, 3, 3), (31, 4, 6, 3), (20, 3, 1, 2), (10, 50, 5, 3), (12, 1, 4, 4)]
)
def test_evaluations_are_those_documented(n: int, every: int, travel: int, split: int) -> None:
    expected = n + sum(min(travel, idx) for idx in range(every, n - n // split + 1, every) if idx < n)
    algorithm = ReSample(n_steps=n, resample_every=every, n_travel=travel, split=split, n_pixel=1, n_latent=1)
    assert algorithm(PRIOR, problem()[0], n_samples=2).nfe == expected


def test_the_default_costs_665() -> None:
    a = ReSample()
    at = [i for i in range(1, a.n_steps - a.n_steps // a.split + 1) if i % a.resample_every == 0]
    assert a.n_steps + sum(min(a.n_travel, i) for i in at) == 665
    assert sum(i < a.n_steps // a.split for i in at) == 16
    assert ReSample.released_code() == ReSample(tolerance=0.01)


def test_a_warm_start_keeps_its_stages() -> None:
    m, _ = problem()
    p = ReSample(**FAST)(PRIOR, m, n_samples=2, start=m.reference, start_sigma=0.3)  # type: ignore[arg-type]
    assert p.nfe < NFE
    assert (m.chi2(p.samples) <= 1).all()


def test_other_priors_and_values_are_refused_before_any_work() -> None:
    m = Measurement(torch.zeros(LATENT, dtype=F64), Identity(LATENT).to(dtype=F64), GaussianNoise(0.1))
    with pytest.raises(TypeError, match=r"ReSample needs a LatentPrior .* use DPS or DAPS"):
        ReSample()(PRIOR.denoiser, m)
    with pytest.raises(ValueError, match="resample_every must be positive, got 0"):
        ReSample(resample_every=0)
    with pytest.raises(ValueError, match="guidance_scale must not be negative"):
        ReSample(guidance_scale=-1.0)
