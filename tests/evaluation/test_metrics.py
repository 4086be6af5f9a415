"""Image metrics against closed forms, the formulas of the challenges, and other libraries."""

from __future__ import annotations

import doctest
import importlib
import math

import numpy as np
import pytest
import torch

from invdiff.evaluation import (
    fastmri_nmse,
    fastmri_psnr,
    fastmri_ssim,
    gmsd,
    haarpsi,
    hu_error,
    lodopab_psnr,
    lodopab_psnr_fr,
    lodopab_ssim,
    lodopab_ssim_fr,
    mcc,
    ms_ssim,
    nmse,
    psnr,
    ssim,
)
from invdiff.evaluation.metrics import LODOPAB_MU_MAX


def rand(*shape: int, seed: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X = rand(1, 32, 32, seed=0)
RANGED = (psnr, ssim, ms_ssim, haarpsi, gmsd)


def volume() -> tuple[torch.Tensor, torch.Tensor]:
    """Three slices of decreasing brightness with 5 % noise, and their truth."""
    truth = torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64)[:, None, None] * rand(3, 24, 20, seed=1)
    return truth + 0.05 * (rand(3, 24, 20, seed=2) - 0.5), truth


def test_psnr_of_a_constant_error() -> None:
    # mean square error 0.01 on a range of 2: 10 log10(4 / 0.01)
    assert psnr(X + 0.1, X, data_range=2.0) == pytest.approx(10 * math.log10(400), abs=1e-9)
    assert psnr(X + 0.1, X, data_range=torch.tensor(2.0)) == pytest.approx(10 * math.log10(400), abs=1e-9)
    assert psnr(X, X, data_range=1.0) == math.inf


def test_the_two_maxima_of_a_volume_differ_by_what_theory_says() -> None:
    truth = torch.ones(2, 8, 8)
    truth[1] = 0.1
    x = truth + 0.01  # against 1: 40 dB; against 0.1: 20 dB
    assert psnr(x, truth, data_range="volume_max") == pytest.approx(40, abs=1e-4)
    assert psnr(x, truth, data_range="slice_max") == pytest.approx(30, abs=1e-4)
    # constant planes: SSIM is the luminance term of each, with each plane's own C1 or a common one
    term = [(2 * m * (m + 0.01) + c) / (m**2 + (m + 0.01) ** 2 + c) for m, c in ((1, 1e-4), (0.1, 1e-4), (0.1, 1e-6))]
    assert ssim(x, truth, data_range="volume_max") == pytest.approx((term[0] + term[1]) / 2, abs=1e-6)
    assert ssim(x, truth, data_range="slice_max") == pytest.approx((term[0] + term[2]) / 2, abs=1e-6)


def test_nmse_and_hu_error() -> None:
    assert nmse(1.1 * X, X) == pytest.approx(0.01)
    mu = torch.full((1, 2, 2), 0.0193, dtype=torch.float64)
    error = torch.tensor([[[0.0193, -0.0193], [0.0, 0.0]]], dtype=torch.float64) / 10  # 100, -100, 0, 0 HU
    assert hu_error(mu + error, mu, water=0.0193) == pytest.approx((0, 50, 5000**0.5))
    mask = torch.tensor([[[True, False], [True, False]]])
    assert hu_error(mu + error, mu, water=0.0193, mask=mask) == pytest.approx((50, 50, 5000**0.5))
    with pytest.raises(ValueError, match="mask must be boolean"):
        hu_error(mu, mu, water=0.0193, mask=mask[0])
    with pytest.raises(ValueError, match="water must be"):
        hu_error(mu, mu, water=0)
    with pytest.raises(ValueError, match="zero everywhere"):
        nmse(mu, 0 * mu)


def test_ssim_of_a_scaled_constant_has_its_closed_form() -> None:
    # constant images: only the luminance term is left, (2ab + C1) / (a^2 + b^2 + C1), C1 = (0.01 * range)^2
    a, b = torch.full((1, 176, 176), 0.5), torch.full((1, 176, 176), 0.8)
    c1 = 0.01**2
    luminance = (2 * 0.4 + c1) / (0.25 + 0.64 + c1)
    assert ssim(a, b, data_range=1.0) == pytest.approx(luminance, abs=1e-6)
    assert ms_ssim(a, b, data_range=1.0) == pytest.approx(luminance**0.1333, abs=1e-6)  # at the last scale only
    assert ssim(X, X, data_range=1.0) == pytest.approx(1)
    assert ms_ssim(X, X, data_range=1.0, weights=(0.5, 0.5)) == pytest.approx(1)


def test_structure_of_an_inverted_image_is_nil() -> None:
    # x = 1 - r has covariance -var: the structure term is (C2 - 2 var) / (C2 + 2 var) < 0 in every window
    assert ssim(1 - X, X, data_range=1.0) < -0.5
    assert ms_ssim(1 - X, X, data_range=1.0, weights=(0.5, 0.5)) == 0


def test_ssim_is_that_of_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    x, truth = volume()
    ours = ssim(x[:1], truth[:1], data_range=0.7)
    assert ours == pytest.approx(
        metrics.structural_similarity(x[0].numpy(), truth[0].numpy(), data_range=0.7), abs=1e-9
    )


def test_fastmri_measures_are_the_formulas_of_its_evaluation() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    x, truth = volume()
    p, gt = x.numpy(), truth.numpy()
    top = gt.max()
    assert fastmri_psnr(x, truth) == pytest.approx(10 * np.log10(top**2 / np.mean((gt - p) ** 2)), abs=1e-6)
    assert fastmri_psnr(x, truth) == pytest.approx(metrics.peak_signal_noise_ratio(gt, p, data_range=top), abs=1e-6)
    assert fastmri_nmse(x, truth) == pytest.approx(np.linalg.norm(gt - p) ** 2 / np.linalg.norm(gt) ** 2, abs=1e-6)
    slices = [metrics.structural_similarity(g, q, data_range=top) for g, q in zip(gt, p, strict=True)]
    assert fastmri_ssim(x, truth) == pytest.approx(np.mean(slices), abs=1e-6)
    with pytest.raises(ValueError, match="whole volume"):
        fastmri_psnr(x[None], truth[None])


def test_lodopab_measures_are_the_formulas_of_its_challenge() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    x, truth = (LODOPAB_MU_MAX * t for t in volume())  # 1/mm
    p, gt = x.numpy(), truth.numpy()
    spans = [g.max() - g.min() for g in gt]
    mse = [np.mean((g - q) ** 2) for g, q in zip(gt, p, strict=True)]
    similar = [metrics.structural_similarity(g, q, data_range=s) for g, q, s in zip(gt, p, spans, strict=True)]
    assert lodopab_psnr(x, truth) == pytest.approx(np.mean(20 * np.log10(spans) - 10 * np.log10(mse)), abs=1e-6)
    assert lodopab_ssim(x, truth) == pytest.approx(np.mean(similar), abs=1e-6)
    # fixed range: 1.0 of the images divided by mu_max
    p, gt = p / LODOPAB_MU_MAX, gt / LODOPAB_MU_MAX
    fixed = [metrics.structural_similarity(g, q, data_range=1.0) for g, q in zip(gt, p, strict=True)]
    mse = [np.mean((g - q) ** 2) for g, q in zip(gt, p, strict=True)]
    assert lodopab_psnr_fr(x, truth) == pytest.approx(np.mean(-10 * np.log10(mse)), abs=1e-6)
    assert lodopab_ssim_fr(x, truth) == pytest.approx(np.mean(fixed), abs=1e-6)


def spots(*values: float) -> list[torch.Tensor]:
    """Images (1, 64, 64) that are one pixel of each value once halved, on a scale of 0 .. 255."""
    x = torch.zeros(len(values), 1, 64, 64, dtype=torch.float64)
    x[:, :, 32:34, 32:34] = torch.tensor(values, dtype=torch.float64)[:, None, None, None]
    return list(x)


def test_haarpsi_of_a_pixel_has_its_closed_form() -> None:
    # A pixel of value v has coefficients of magnitude 2^-s v at the 4^s places whose square of side 2^s holds it.
    v, w = 200.0, 80.0
    s1, s2 = ((2 * v * w * q + 30) / ((v**2 + w**2) * q + 30) for q in (1 / 4, 1 / 16))

    def sigmoid(t: float) -> float:
        return 1 / (1 + math.exp(-4.2 * t))

    p = (4 * sigmoid((s1 + s2) / 2) + 12 * sigmoid((1 + s2) / 2) + 48 * sigmoid(1)) / 64
    expected = (math.log(p / (1 - p)) / 4.2) ** 2
    assert haarpsi(*spots(v, w), data_range=255) == pytest.approx(expected, abs=1e-9)
    assert haarpsi(*(s / 255 for s in spots(v, w)), data_range=1.0) == pytest.approx(expected, abs=1e-9)
    assert haarpsi(X, X, data_range=1.0) == pytest.approx(1)
    assert haarpsi(0 * X, 0 * X, data_range=1.0) == pytest.approx(1)


def test_gmsd_of_a_pixel_has_its_closed_form() -> None:
    # Prewitt magnitudes around a pixel of value v: sqrt(2) v / 3 at four corners, v / 3 at four sides, 0 elsewhere
    v = 120.0
    corner, side = 170 / (2 * v**2 / 9 + 170), 170 / (v**2 / 9 + 170)
    n = 32 * 32
    mean = (4 * corner + 4 * side + n - 8) / n
    expected = ((4 * corner**2 + 4 * side**2 + n - 8) / n - mean**2) ** 0.5
    assert gmsd(*spots(v, 0.0), data_range=255) == pytest.approx(expected, abs=1e-9)
    assert gmsd(X, X, data_range=1.0) == pytest.approx(0, abs=1e-9)


def test_perceptual_measures_are_those_of_piq() -> None:
    piq = pytest.importorskip("piq")  # extra: metrics
    truth = rand(1, 1, 192, 208, seed=3).cumsum(2).cumsum(3)
    truth = truth / truth.max()
    x = (truth + 0.1 * (rand(*truth.shape, seed=4) - 0.5)).clamp(0, 1)
    a, b = x[0], truth[0]
    assert haarpsi(a, b, data_range=1.0) == pytest.approx(float(piq.haarpsi(x, truth)), abs=1e-6)
    assert gmsd(a, b, data_range=1.0) == pytest.approx(float(piq.gmsd(x, truth)), abs=1e-6)
    theirs = piq.multi_scale_ssim(x, truth, kernel_size=11, kernel_sigma=1.5, data_range=1.0)
    assert ms_ssim(a, b, data_range=1.0) == pytest.approx(float(theirs), abs=1e-6)


@pytest.mark.parametrize("measure", RANGED)
def test_misuse_is_refused(measure) -> None:
    x = rand(2, 192, 192, seed=5)
    with pytest.raises(TypeError, match="data_range"):
        measure(x, x)
    for wrong in (None, True, "max", 0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="data_range must be"):
            measure(x, x, data_range=wrong)
    with pytest.raises(ValueError, match="same shape"):
        measure(x, x[:, 1:], data_range=1.0)
    with pytest.raises(ValueError, match='data_range="slice_max" is 0.0 here'):
        measure(x, x * torch.tensor([1.0, 0.0])[:, None, None], data_range="slice_max")
    with pytest.raises(ValueError, match="Pass magnitudes"):
        measure(x + 0j, x + 0j, data_range=1.0)
    broken = x.clone()
    broken[0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="x has 1 values that are not finite"):
        measure(broken, x, data_range=1.0)
    if measure is not psnr:
        with pytest.raises(ValueError, match="of at least"):
            measure(x[:, :3], x[:, :3], data_range=1.0)


@pytest.mark.parametrize("name", ["metrics", "calibration", "conformal"])
def test_examples_in_the_documentation_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"invdiff.evaluation.{name}"))
    assert result.attempted > 0
    assert result.failed == 0


def test_mcc_is_the_correlation_of_the_two_indicator_functions() -> None:
    a, b = rand(20, 20, seed=1) > 0.3, rand(20, 20, seed=2) > 0.6
    b |= a & (rand(20, 20, seed=3) > 0.5)
    assert mcc(a, b) == pytest.approx(np.corrcoef(a.flatten().numpy(), b.flatten().numpy())[0, 1], rel=1e-12)
    assert mcc(torch.ones(3, 3, dtype=torch.bool), b[:3, :3]) == 0
    with pytest.raises(TypeError, match="boolean"):
        mcc(a.float(), b)
