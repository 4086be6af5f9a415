"""Ultrasound measures against closed forms of Rayleigh speckle and Gaussian profiles."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from invdiff.evaluation.ultrasound import (
    cnr,
    contrast_ratio,
    disc_mask,
    fwhm,
    gcnr,
    point_widths,
    speckle_snr,
)
from invdiff.operators import PlaneWaveScan

N = 400
MEAN, STD = math.sqrt(math.pi / 2), math.sqrt(2 - math.pi / 2)  # of a Rayleigh variable of scale 1
INSIDE = (torch.arange(N) < N // 2).expand(1, N, N)


def speckle(inside: float, outside: float) -> torch.Tensor:
    """Envelope of circular Gaussian speckle, two scales side by side."""
    n = torch.randn(1, N, N, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    return n.abs() * 2**0.5 * torch.where(INSIDE, inside, outside)


def test_fully_developed_speckle_has_an_snr_of_1_91() -> None:
    assert math.sqrt(math.pi / (4 - math.pi)) == pytest.approx(1.91, abs=0.005)
    assert speckle_snr(speckle(1.0, 1.0), INSIDE) == pytest.approx(MEAN / STD, rel=0.01)


@pytest.mark.parametrize("scale", [0.5, 0.1, 2.0])
def test_contrast_of_two_speckle_regions(scale: float) -> None:
    envelope = speckle(scale, 1.0)
    assert contrast_ratio(envelope, INSIDE, ~INSIDE) == pytest.approx(20 * math.log10(scale), abs=0.1)
    expected = abs(scale - 1) * MEAN / (STD * math.hypot(scale, 1))
    assert cnr(envelope, INSIDE, ~INSIDE) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("scale", [0.7, 0.4, 0.1])
def test_gcnr_of_two_speckle_regions(scale: float) -> None:
    """The Rayleigh densities cross at t; the overlap is what each has on its far side."""
    t2 = 2 * math.log(1 / scale**2) / (1 / scale**2 - 1)
    expected = math.exp(-t2 / 2) - math.exp(-t2 / (2 * scale**2))
    assert gcnr(speckle(scale, 1.0), INSIDE, ~INSIDE) == pytest.approx(expected, abs=0.02)


def test_gcnr_at_its_ends() -> None:
    envelope = torch.rand(1, N, N, generator=torch.Generator().manual_seed(0))
    assert gcnr(envelope, INSIDE, ~INSIDE) < 0.05
    assert gcnr(envelope + 2.0 * INSIDE, INSIDE, ~INSIDE) == pytest.approx(1.0)
    assert gcnr(torch.ones(1, N, N), INSIDE, ~INSIDE) == 0.0


@pytest.mark.parametrize("shift", [0.0, 0.37])
def test_width_of_a_gaussian(shift: float) -> None:
    x = torch.arange(101, dtype=torch.float64) * 0.1
    profile = torch.exp(-((x - 5 - shift) ** 2) / (2 * 0.8**2))
    expected = 2 * math.sqrt(2 * math.log(2)) * 0.8
    # the highest sample is below the peak by at most (0.05 / 0.8)^2 / 2
    assert fwhm(profile, 0.1) == pytest.approx(expected, rel=3e-3)
    two = profile + 3 * torch.exp(-((x - 1) ** 2) / (2 * 0.2**2))
    assert fwhm(two, 0.1, peak=int(profile.argmax())) == pytest.approx(expected, rel=3e-3)
    with pytest.raises(ValueError, match="does not fall"):
        fwhm(profile[:52], 0.1)
    with pytest.raises(ValueError, match="positive at its peak"):
        fwhm(torch.zeros(5), 0.1)


def test_widths_of_a_point_and_discs() -> None:
    scan = PlaneWaveScan(
        image_shape=(81, 61), pixel_size=(0.05, 0.1), origin=(10.0, -3.0), element_positions=(0.0,), angles=(0.0,),
        start_times=0.0, n_samples=1, sampling_frequency=1e6, centre_frequency=1e6,
    )  # fmt: skip
    x, z = (torch.from_numpy(a) for a in scan.pixel_centres())
    point = torch.exp(-((z[:, None] - 12) ** 2) / (2 * 0.2**2) - (x - 1) ** 2 / (2 * 0.5**2))[None]
    bright = point + 9 * torch.exp(-((z[:, None] - 13.5) ** 2) / 0.01 - (x + 2.0) ** 2 / 0.01)[None]
    axial, lateral = point_widths(bright, scan, disc_mask(scan, (12.0, 1.0), 0.5))
    assert (axial, lateral) == pytest.approx((0.2 * 2.35482, 0.5 * 2.35482), rel=5e-3)
    ring = disc_mask(scan, (12.0, 0.0), 1.5, hole=1.0)
    assert float(ring.sum()) * 0.05 * 0.1 == pytest.approx(math.pi * (1.5**2 - 1.0**2), rel=0.02)
    with pytest.raises(ValueError, match="No pixel"):
        disc_mask(scan, (50.0, 0.0), 1.0)


def test_misuse_is_refused() -> None:
    envelope = speckle(1.0, 1.0)
    with pytest.raises(ValueError, match="take an envelope"):
        cnr(20 * torch.log10(envelope), INSIDE, ~INSIDE)
    with pytest.raises(ValueError, match="at least 2 pixels"):
        gcnr(envelope, torch.zeros_like(INSIDE), ~INSIDE)
    with pytest.raises(TypeError, match="bool mask"):
        speckle_snr(envelope, INSIDE.float())
    with pytest.raises(ValueError, match="positive mean"):
        contrast_ratio(envelope * INSIDE, INSIDE, ~INSIDE)
    assert np.isfinite(speckle_snr(envelope, INSIDE))
