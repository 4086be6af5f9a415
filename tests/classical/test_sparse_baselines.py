"""Total variation and L1-wavelets against closed forms, optimality conditions and other libraries."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from invdiff import ComplexGaussianNoise, GaussianNoise, Measurement, PoissonLogNoise
from invdiff.classical import CGLS, FBP, TV, L1Wavelet, ZeroFilled
from invdiff.classical.tv import differences, differences_adjoint
from invdiff.classical.wavelet import WAVELETS, inverse_wavelet_transform, wavelet_transform
from invdiff.operators import (
    CT,
    Blur,
    Fourier,
    Identity,
    MultiCoilMRI,
    ParallelBeam,
    birdcage_maps,
    gaussian_psf,
)


def seeded(n: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(n)


def discs(n: int) -> Tensor:
    """Three discs of different brightness, (1, n, n)."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, n)] * 2, indexing="ij")
    image = ((x**2 + y**2) < 0.7).float()
    image -= 0.6 * (((x - 0.3) ** 2 + (y + 0.2) ** 2) < 0.06)
    return (image + 0.5 * (((x + 0.3) ** 2 + (y - 0.3) ** 2) < 0.03))[None]


def total_variation(x: Tensor) -> Tensor:
    return differences(x, x.ndim - 1).abs().square().sum(0).sqrt().sum()


@pytest.mark.parametrize("shape", [(1, 5, 6), (2, 3, 4, 5)])
def test_differences_and_their_adjoint(shape: tuple[int, ...]) -> None:
    n = len(shape) - 1
    x = torch.randn(shape, generator=seeded(), dtype=torch.float64)
    d = torch.randn((n, *shape), generator=seeded(1), dtype=torch.float64)
    assert float((differences(x, n) * d).sum()) == pytest.approx(float((x * differences_adjoint(d, n)).sum()))
    torch.testing.assert_close(differences(x, n)[0][:, :-1], x[:, 1:] - x[:, :-1])
    assert not differences(x, n)[0][:, -1].any()


def test_tv_of_a_step_moves_both_sides_by_the_weight_over_their_length() -> None:
    # min sum (x - y)^2 / (2 sigma^2) + w |jump|: a plateau of n pixels moves by w sigma^2 / n
    y = torch.zeros(1, 6, 30, dtype=torch.float64)
    y[..., 10:] = 4.0
    m = Measurement(y, Identity((1, 6, 30)).to(dtype=torch.float64), GaussianNoise(0.5), image_scale=2.0)
    x = TV(weight=40.0, tolerance=1e-6)(None, m).mean
    w = 40.0 / 2.0
    expected = y.clone()
    expected[..., :10] += w * 0.25 / 10
    expected[..., 10:] -= w * 0.25 / 20
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-4)
    # beyond the weight at which they meet, the image is its mean
    flat = TV(weight=4000.0, tolerance=1e-6)(None, m).mean
    torch.testing.assert_close(flat, y.mean().expand_as(y), rtol=0, atol=1e-4)


def test_tv_denoising_is_at_least_as_good_a_minimum_as_scikit_images() -> None:
    from skimage.restoration import denoise_tv_chambolle

    y = (discs(24) + 0.2 * torch.randn(1, 24, 24, generator=seeded())).double()
    weight, m = 3.0, Measurement(y, Identity((1, 24, 24)).to(dtype=torch.float64), GaussianNoise(0.2))
    x = TV(weight=weight, tolerance=1e-5)(None, m).mean
    theirs = torch.from_numpy(denoise_tv_chambolle(y[0].numpy(), weight * 0.04, eps=1e-8, max_num_iter=4000))[None]

    def objective(u: Tensor) -> float:
        return float(m.nll(u) + weight * total_variation(u))

    assert objective(x) <= objective(theirs) * (1 + 1e-4)
    torch.testing.assert_close(x, theirs, rtol=0, atol=5e-3)


def test_tv_is_a_minimum_for_weighted_ct_data_with_non_negative_pixels() -> None:
    A = CT(ParallelBeam.covering((12, 12), 1.0, 9)).to(dtype=torch.float64)
    noise = PoissonLogNoise(300.0)
    y = noise.sample(A(0.2 * discs(12).double()), seeded())
    m = Measurement(y, A, noise, image_scale=0.2)
    x = TV(weight=2.0, non_negative=True, tolerance=1e-6, n_steps=20000)(None, m).mean

    def objective(u: Tensor) -> float:
        return float(0.5 * (noise.precision(y) * (A(u) - y).square()).sum() + 2.0 * total_variation(u / 0.2))

    best = objective(x)
    assert float(x.min()) == 0
    for seed in range(30):
        for size in (1e-1, 1e-2, 1e-3):
            step = size * 0.2 * torch.randn(x.shape, generator=seeded(seed), dtype=torch.float64)
            assert objective((x + step).clamp(min=0)) > best - 1e-6 * best
    # along the segment to the truth and to least squares it rises as well
    for other in (0.2 * discs(12).double(), CGLS(n_steps=50)(None, m).mean.clamp(min=0)):
        assert objective(0.999 * x + 0.001 * other) > best - 1e-6 * best


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_tv_converges_alike_in_all_units(scale: float) -> None:
    A = CT(ParallelBeam.covering((16, 16), 1.0, 10))
    m = Measurement.simulate(scale * discs(16), A, GaussianNoise(0.3 * scale), seed=0, image_scale=scale)
    residuals: list[float] = []
    tv = TV(weight=5.0, tolerance=1e-4)
    x = tv(None, m, callback=lambda i, n, x, residual: residuals.append(residual)).mean / scale
    assert residuals[-1] < 1e-4 < residuals[-2]
    assert len(residuals) < 1000
    one = Measurement(m.y / scale, A, GaussianNoise(0.3))
    torch.testing.assert_close(x, tv(None, one).mean, rtol=0, atol=2e-3)


def test_tv_takes_complex_images_and_volumes() -> None:
    phase = torch.polar(torch.ones(1), torch.tensor(0.7))
    y = discs(16) + 0.1 * torch.randn(1, 16, 16, generator=seeded())
    real = TV(weight=4.0, tolerance=1e-4)(None, Measurement(y, Identity((1, 16, 16)), GaussianNoise(0.1))).mean
    rotated = Measurement(Fourier((1, 16, 16))(phase * y), Fourier((1, 16, 16)), ComplexGaussianNoise(0.1))
    torch.testing.assert_close(TV(weight=4.0, tolerance=1e-4)(None, rotated).mean, phase * real, rtol=0, atol=2e-3)
    stack = y[:, None].expand(1, 3, 16, 16).contiguous()  # three equal slices: three times the slice's objective
    volume = TV(weight=4.0, tolerance=1e-4)(None, Measurement(stack, Identity((1, 3, 16, 16)), GaussianNoise(0.1))).mean
    torch.testing.assert_close(volume, real[:, None].expand(1, 3, 16, 16), rtol=0, atol=2e-3)


def test_tv_beats_fbp_and_least_squares_on_few_views() -> None:
    A = CT(ParallelBeam.covering((48, 48), 1.0, 12))
    x = discs(48)
    m = Measurement.simulate(x, A, GaussianNoise(0.2), seed=0)
    error = {
        name: float((r - x).norm())
        for name, r in {
            "tv": TV(weight=4.0, non_negative=True)(None, m).mean,
            "fbp": FBP(window="hann")(None, m).mean,
            "cgls": CGLS(n_steps=15)(None, m).mean,
        }.items()
    }
    assert error["tv"] < 0.5 * min(error["fbp"], error["cgls"])


@pytest.mark.parametrize("wavelet", WAVELETS)
@pytest.mark.parametrize("shape", [(1, 16, 24), (2, 8, 16, 4), (1, 2, 4)])
def test_the_wavelet_transform_is_orthogonal(wavelet: str, shape: tuple[int, ...]) -> None:
    n_dims, n_levels = len(shape) - 1, 1 if 2 in shape[1:] else 2
    x, c = (torch.randn(shape, generator=seeded(i), dtype=torch.float64) for i in (0, 1))
    Wx = wavelet_transform(x, wavelet, n_levels, n_dims)
    assert float(Wx.square().sum()) == pytest.approx(float(x.square().sum()), rel=1e-12)
    torch.testing.assert_close(inverse_wavelet_transform(Wx, wavelet, n_levels, n_dims), x, rtol=0, atol=1e-10)
    back = inverse_wavelet_transform(c, wavelet, n_levels, n_dims)
    assert float((Wx * c).sum()) == pytest.approx(float((x * back).sum()), rel=1e-10)


@pytest.mark.parametrize(("wavelet", "moments"), [("haar", 1), ("db2", 2), ("db4", 4)])
def test_details_of_polynomials_vanish(wavelet: str, moments: int) -> None:
    t = torch.linspace(-1, 1, 64, dtype=torch.float64)[None, :, None].expand(1, 64, 2)
    for degree in range(moments + 1):
        details = wavelet_transform(t**degree, wavelet, 1, 2)[0, 32 : 64 - moments, 0]  # away from the wrap
        assert (float(details.abs().max()) < 1e-10) == (degree < moments)


@pytest.mark.parametrize("wavelet", WAVELETS)
def test_coefficients_are_pywavelets_up_to_order_and_sign(wavelet: str) -> None:
    pywt = pytest.importorskip("pywt", reason="PyWavelets comes with scikit-image")
    x = torch.randn(1, 16, 32, generator=seeded(), dtype=torch.float64)
    # theirs starts half a filter earlier, ours with the pixel of the coefficient
    start = len(WAVELETS[wavelet]) // 2 - 1
    ours = wavelet_transform(x.roll((start, start), (1, 2)), wavelet, 1, 2)[0]
    a, (h, v, d) = pywt.dwt2(x[0].numpy(), wavelet, mode="periodization")
    for mine, theirs in ((ours[:8, :16], a), (ours[8:, :16], h), (ours[:8, 16:], v), (ours[8:, 16:], d)):
        np.testing.assert_allclose(np.sort(np.abs(mine.numpy()), None), np.sort(np.abs(theirs), None), atol=1e-10)


def test_l1_denoising_is_soft_thresholding() -> None:
    y = torch.randn(1, 16, 16, generator=seeded())
    m = Measurement(y, Identity((1, 16, 16)), GaussianNoise(0.5), image_scale=2.0)
    x = L1Wavelet(weight=3.0, wavelet="db2", n_levels=2, tolerance=1e-6)(None, m).mean
    c, got = (wavelet_transform(u, "db2", 2, 2) for u in (y, x))
    threshold = 3.0 / 2.0 * 0.25
    expected = torch.sgn(c) * (c.abs() - threshold).clamp(min=0)
    expected[:, :4, :4] = c[:, :4, :4]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


def mri(n: int, sigma: float) -> Measurement:
    mask = torch.rand(n, n, generator=seeded()) < 0.25
    mask[3 * n // 8 : 5 * n // 8, 3 * n // 8 : 5 * n // 8] = True
    A = MultiCoilMRI(birdcage_maps(4, (n, n)), mask)
    phase = torch.polar(torch.ones(n), torch.linspace(0, 1, n))
    return Measurement.simulate(discs(n) * phase, A, ComplexGaussianNoise(sigma), seed=0)


def test_l1_of_mri_satisfies_its_optimality_conditions() -> None:
    m = mri(32, 0.02)
    x = L1Wavelet(weight=20.0, wavelet="haar", n_levels=3, n_steps=3000, tolerance=1e-6)(None, m).mean
    c, g = (wavelet_transform(u, "haar", 3, 2) for u in (x, m.nll_grad(x)))
    details = torch.ones_like(c.real, dtype=torch.bool)
    details[:, :4, :4] = False
    zero = details & (c.abs() < 1e-6)
    assert 0.2 < float(zero.float().mean()) < 0.98
    # the gradient of the data term is 0 (approximation), -w c/|c| (active) or at most w (inactive)
    tolerance = 0.02 * 20.0
    assert float(g[~details].abs().max()) < tolerance
    assert float((g + 20.0 * torch.sgn(c))[details & ~zero & (c.abs() > 1e-3)].abs().max()) < tolerance
    assert float(g[zero].abs().max()) < 20.0 + tolerance


def test_l1_beats_zero_filling_and_least_squares() -> None:
    m = mri(64, 0.05)
    assert m.reference is not None
    error = {
        type(f).__name__: float((f(None, m).mean - m.reference).norm())
        for f in (L1Wavelet(weight=16.0, wavelet="haar"), ZeroFilled(), CGLS(n_steps=30))
    }
    assert error["L1Wavelet"] < 0.8 * min(error["ZeroFilled"], error["CGLS"])


def test_deblurring_beats_the_pseudo_inverse() -> None:
    x, A = discs(32), Blur(gaussian_psf(1.2, 7), (1, 32, 32))
    m = Measurement.simulate(x, A, GaussianNoise(0.05), seed=0)
    pinv = float((A.pinv(m.y) - x).norm())
    blurred = float((m.y - x).norm())
    assert pinv > 10 * blurred
    assert float((TV(weight=4.0)(None, m).mean - x).norm()) < 0.7 * blurred
    assert float((L1Wavelet(weight=4.0)(None, m).mean - x).norm()) < 0.9 * blurred


def test_misuse_is_refused() -> None:
    m = Measurement(torch.rand(1, 5, 6), Identity((1, 5, 6)), GaussianNoise(0.1))
    with pytest.raises(ValueError, match=r"even size, got \(5, 6\)"):
        L1Wavelet(weight=1.0)(None, m)
    with pytest.raises(ValueError, match="one of haar, db2, db4"):
        L1Wavelet(weight=1.0, wavelet="sym8")
    with pytest.raises(ValueError, match="weight must be positive"):
        TV(weight=0.0)
    with pytest.raises(ValueError, match="n_samples must be 1"):
        TV(weight=1.0)(None, m, n_samples=2)
    with pytest.raises(ValueError, match="multiples of 8"):
        wavelet_transform(torch.zeros(1, 12, 8), "haar", 3, 2)
    assert math.isclose(sum(WAVELETS["db4"]), math.sqrt(2))
