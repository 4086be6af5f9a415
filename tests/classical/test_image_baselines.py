"""Wiener, Richardson-Lucy, SIRT and CGLS against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from invdiff import ComplexGaussianNoise, GaussianNoise, Measurement, PoissonLogNoise
from invdiff.classical import CGLS, SIRT, RichardsonLucy, Wiener
from invdiff.operators import (
    CT,
    Blur,
    Inpainting,
    LinearOperator,
    Matrix,
    MultiCoilMRI,
    ParallelBeam,
    RealAsComplex,
    birdcage_maps,
    equispaced_mask,
    gaussian_psf,
    motion_psf,
    random_pixels,
)

SHAPE = (1, 12, 10)


def seeded(n: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(n)


def dense(A: LinearOperator) -> Tensor:
    A = A.to(dtype=torch.float64)
    n = math.prod(A.in_shape)
    return A(torch.eye(n, dtype=torch.float64).unflatten(-1, A.in_shape)).flatten(1).T


def discs(n: int) -> Tensor:
    """Three discs of different brightness, (1, n, n)."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, n)] * 2, indexing="ij")
    image = ((x**2 + y**2) < 0.7).float()
    image -= 0.6 * (((x - 0.3) ** 2 + (y + 0.2) ** 2) < 0.06)
    return (image + 0.5 * (((x + 0.3) ** 2 + (y - 0.3) ** 2) < 0.03))[None]


def gaussian_posterior_mean(m: Measurement, prior_covariance: Tensor, mean: Tensor) -> Tensor:
    M, C = dense(m.A), prior_covariance  # type: ignore[arg-type]
    P = torch.eye(len(M), dtype=torch.float64) * m.noise.precision(m.y)
    r = m.y.double().flatten() - M @ mean
    return mean + torch.linalg.solve(torch.linalg.inv(C) + M.T @ P @ M, M.T @ P @ r)


def fitted_mean(m: Measurement) -> Tensor:
    M, y = dense(m.A), m.y.double().flatten()  # type: ignore[arg-type]
    A1 = M.sum(1)
    return (A1 @ y / (A1 @ A1)).expand(M.shape[1])


@pytest.mark.parametrize(
    "A", [Blur(motion_psf(5, seed=0), SHAPE), Inpainting(random_pixels(SHAPE, 0.5, seed=0))], ids=repr
)
def test_wiener_of_a_white_image_is_the_gaussian_posterior_mean(A: LinearOperator) -> None:
    m = Measurement.simulate(3 + torch.randn(SHAPE, generator=seeded()), A, GaussianNoise(0.3), seed=1)
    expected = gaussian_posterior_mean(m, 1.7 * torch.eye(120, dtype=torch.float64), fitted_mean(m))
    got = Wiener(power=1.7)(None, m).mean
    torch.testing.assert_close(got.flatten().double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "A", [Blur(motion_psf(5, seed=0), SHAPE), Inpainting(random_pixels(SHAPE, 0.5, seed=0))], ids=repr
)
def test_wiener_with_a_spectrum_is_the_gaussian_posterior_mean(A: LinearOperator) -> None:
    m = Measurement.simulate(3 + torch.randn(SHAPE, generator=seeded()), A, GaussianNoise(0.3), seed=1)
    fy, fx = torch.fft.fftfreq(12, dtype=torch.float64), torch.fft.fftfreq(10, dtype=torch.float64)
    power = 1 / (0.02 + fy[:, None] ** 2 + fx**2)
    # a stationary image with E|FFT x|^2 = power has the circulant covariance F^H diag(power) F
    F = torch.fft.fft2(torch.eye(120, dtype=torch.float64).reshape(120, 12, 10), norm="ortho").flatten(1).T
    C = (F.conj().T @ (power.flatten()[:, None] * F)).real
    expected = gaussian_posterior_mean(m, C, fitted_mean(m))
    got = Wiener(power=power[:, :6])(None, m).mean
    torch.testing.assert_close(got.flatten().double(), expected, rtol=0, atol=1e-3)


def test_wiener_finds_the_size_of_a_falling_spectrum() -> None:
    n, c = 64, 3e-3
    f = torch.fft.fftfreq(n)
    S = c / (1 / n**2 + f[:, None] ** 2 + f**2)
    x = torch.fft.ifft2(S.sqrt() * torch.fft.fft2(torch.randn((1, n, n), generator=seeded()))).real
    # white noise as a prior deblurs a little worse, and cannot interpolate at all
    for A, gain in (
        (Blur(gaussian_psf(1.5, 9), (1, n, n)), 1.0),
        (Inpainting(random_pixels((1, n, n), 0.3, seed=0)), 0.8),
    ):
        m = Measurement.simulate(5 + x, A, GaussianNoise(0.1), seed=1)
        known, guessed = ((Wiener(power=p)(None, m).mean - 5 - x).norm() for p in (S[:, : n // 2 + 1], None))
        white = (Wiener(power=float(x.var()))(None, m).mean - 5 - x).norm()
        assert float(guessed) < 1.03 * float(known)  # the size may be off by tens of percent without harm
        assert float(guessed) < gain * float(white)


def test_wiener_finds_the_size_from_what_is_observed() -> None:
    # noise is on the observed entries alone; subtracted from all, none of the image would be left
    x = torch.nn.functional.interpolate(0.3 * torch.randn((1, 1, 8, 8), generator=seeded()), size=48, mode="bicubic")[0]
    lines = equispaced_mask(48, acceleration=6, center_fraction=0.08)
    for A, noise in (
        (Inpainting(random_pixels((1, 48, 48), 0.1, seed=0)), GaussianNoise(0.1)),
        (MultiCoilMRI(birdcage_maps(4, (48, 48)), lines) @ RealAsComplex((1, 48, 48)), ComplexGaussianNoise(0.1)),
    ):
        m = Measurement.simulate(1 + x, A, noise, seed=1)
        assert float((Wiener()(None, m).mean - 1 - x).norm()) < 0.6 * float((x - x.mean()).norm())


def test_wiener_takes_any_linear_operator() -> None:
    x = torch.rand((1, 16, 12), generator=seeded())
    A = MultiCoilMRI(birdcage_maps(4, (16, 12)), equispaced_mask(12, acceleration=1, center_fraction=0.0))
    m = Measurement.simulate(x, A @ RealAsComplex((1, 16, 12)), ComplexGaussianNoise(1e-4), seed=0)
    torch.testing.assert_close(Wiener()(None, m).mean, x, rtol=0, atol=1e-2)


def test_wiener_refuses_what_it_cannot_do() -> None:
    A = MultiCoilMRI(birdcage_maps(2, (12, 10)), torch.ones(12, 10, dtype=torch.bool))
    with pytest.raises(TypeError, match="or a number as power"):
        Wiener()(None, Measurement(torch.zeros(A.out_shape, dtype=torch.complex64), A, ComplexGaussianNoise(0.1)))
    with pytest.raises(ValueError, match=r"power must have shape \(12, 6\)"):
        Wiener(power=torch.ones(12, 10))(
            None, Measurement(torch.rand(SHAPE), Blur(motion_psf(3, seed=0), SHAPE), GaussianNoise(0.1))
        )
    with pytest.raises(ValueError, match="must not be negative"):
        Wiener(power=-1.0)


def test_richardson_lucy_keeps_the_counts_and_climbs_their_likelihood() -> None:
    A = Blur(gaussian_psf(1.2, 7), (1, 24, 24))
    y = torch.poisson(200 * A(discs(24)).clamp(min=0), generator=seeded())
    m = Measurement(y, A, GaussianNoise(10.0))
    seen: list[Tensor] = []
    RichardsonLucy(n_steps=40)(None, m, callback=lambda i, n, x: seen.append(x))
    sums = torch.stack([A(x).sum() for x in seen])
    torch.testing.assert_close(sums, y.sum().expand(40), rtol=1e-4, atol=0)
    # log p(y | x) = sum y log(A x) - A x never falls (Shepp and Vardi)
    likelihood = [float((torch.xlogy(y, A(x).clamp(min=1e-20)) - A(x)).double().sum()) for x in seen]
    assert all(b >= a - 1e-6 * abs(a) for a, b in zip(likelihood, likelihood[1:], strict=False))
    assert min(float(x.min()) for x in seen) >= 0


def test_richardson_lucy_leaves_a_constant_image_alone_and_sharpens_others() -> None:
    A = Blur(gaussian_psf(1.5, 9), (1, 32, 32))
    flat = torch.full((1, 32, 32), 3.7)
    torch.testing.assert_close(RichardsonLucy()(None, Measurement(A(flat), A, GaussianNoise(0.01))).mean, flat)
    x = 0.1 + discs(32)
    m = Measurement(A(x), A, GaussianNoise(0.01), reference=x)
    errors: dict[int, float] = {}
    for n in (1, 10, 100):
        errors[n] = float((RichardsonLucy(n_steps=n)(None, m).mean - x).norm())
    assert errors[100] < errors[10] < errors[1]
    assert errors[100] < float((m.y - x).norm())


def test_richardson_lucy_refuses_signs() -> None:
    signed = Matrix(torch.randn(6, 4, generator=seeded()), (1, 2, 2), (1, 6))
    with pytest.raises(TypeError, match="without negative weights"):
        RichardsonLucy()(None, Measurement(torch.ones(1, 6), signed, GaussianNoise(0.1)))
    A = Blur(motion_psf(3, seed=0), SHAPE)
    with pytest.raises(ValueError, match="no data above zero"):
        RichardsonLucy()(None, Measurement(-torch.ones(SHAPE), A, GaussianNoise(0.1)))
    with pytest.raises(ValueError, match="n_samples must be 1"):
        RichardsonLucy()(None, Measurement(torch.ones(SHAPE), A, GaussianNoise(0.1)), n_samples=2)


def scan(n: int, n_views: int, sigma: float) -> Measurement:
    geometry = ParallelBeam.covering((n, n), 1.0, n_views)
    return Measurement.simulate(discs(n), CT(geometry), GaussianNoise(sigma), seed=0)


def test_cgls_finds_the_pseudo_inverse() -> None:
    m = scan(10, 20, 0.1)
    exact = torch.linalg.pinv(dense(m.A)) @ m.y.double().flatten()  # type: ignore[arg-type]
    got = CGLS(n_steps=400)(None, m.to(dtype=torch.float64)).mean
    torch.testing.assert_close(got.flatten(), exact, rtol=0, atol=1e-5)


def test_cgls_begins_with_steepest_descent() -> None:
    m = scan(10, 20, 0.1)
    g = m.A.H(m.y)  # type: ignore[attr-defined]
    expected = g * g.square().sum() / m.A(g).square().sum()
    torch.testing.assert_close(CGLS(n_steps=1)(None, m).mean, expected)


def test_cgls_weights_the_data_by_their_precision() -> None:
    y = 0.2 * scan(10, 20, 0.1).y
    m = Measurement(y, CT(ParallelBeam.covering((10, 10), 1.0, 20)), PoissonLogNoise(100.0)).to(dtype=torch.float64)
    A, w = m.A, 100 * torch.exp(-m.y)
    x = CGLS(n_steps=1000)(None, m).mean
    assert isinstance(A, CT)
    gradient, start = A.H(w * (A(x) - m.y)), A.H(w * m.y)
    assert float(gradient.norm()) < 1e-6 * float(start.norm())
    assert float(A.H(A(x) - m.y).norm()) > 1e-4 * float(A.H(m.y).norm())  # not the unweighted solution


def test_sirt_finds_the_row_weighted_least_squares_solution() -> None:
    M = torch.rand(20, 6, generator=seeded()) + 3 * torch.eye(6).repeat(4, 1)[:20]  # well conditioned
    A = Matrix(M, (1, 2, 3), (1, 20)).to(dtype=torch.float64)
    m = Measurement(torch.rand(1, 20, generator=seeded(1), dtype=torch.float64), A, GaussianNoise(0.1))
    M = M.double()
    R = 1 / M.sum(1)
    exact = torch.linalg.solve(M.T @ (R[:, None] * M), M.T @ (R * m.y[0]))
    torch.testing.assert_close(SIRT(n_steps=300)(None, m).mean.flatten(), exact, rtol=0, atol=1e-6)


def test_sirt_leaves_out_rays_that_miss_the_image() -> None:
    A = CT(ParallelBeam(image_shape=(6, 6), pixel_size=1.0, angles=(0.1, 1.0), n_detectors=31, detector_spacing=1.0))
    m = Measurement(torch.ones(A.out_shape), A, GaussianNoise(0.1))  # also where no pixel is hit
    x = SIRT(n_steps=50)(None, m).mean
    assert bool(torch.isfinite(x).all())
    hit = A(torch.ones(A.in_shape)) > 0
    torch.testing.assert_close(SIRT(n_steps=50)(None, Measurement(m.y * hit, A, GaussianNoise(0.1))).mean, x)


def test_sirt_can_keep_the_image_non_negative() -> None:
    m = scan(16, 8, 0.5)
    assert float(SIRT(n_steps=100)(None, m).mean.min()) < 0
    assert float(SIRT(n_steps=100, non_negative=True)(None, m).mean.min()) == 0


def test_stopping_early_beats_the_pseudo_inverse_on_noisy_data() -> None:
    m = scan(32, 30, 1.0)
    assert m.reference is not None

    def error(x: Tensor) -> float:
        return float((x - m.reference).norm())

    pinv = error(m.A.pinv(m.y))  # type: ignore[attr-defined]
    assert error(CGLS(n_steps=6)(None, m).mean) < 0.8 * pinv
    assert error(SIRT(n_steps=40, non_negative=True)(None, m).mean) < 0.8 * pinv
    assert error(Wiener()(None, m).mean) < 0.8 * pinv
