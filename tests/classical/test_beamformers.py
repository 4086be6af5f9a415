"""DAS, coherence factor and minimum variance against the adjoint, closed forms and point targets."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from invdiff import ComplexGaussianNoise, GaussianNoise, Measurement
from invdiff.classical import DAS, CoherenceFactor, MinimumVariance
from invdiff.classical.coherence_factor import coherence_weighted
from invdiff.classical.das import delay_and_sum
from invdiff.evaluation.ultrasound import point_widths
from invdiff.operators import (
    Envelope,
    Identity,
    Inpainting,
    PlaneWaveIQ,
    PlaneWaveRF,
    PlaneWaveScan,
    ViewAsComplex,
    gaussian_pulse,
    slab_mask,
)
from invdiff.operators.ultrasound import receive_weights

FC, FS = 5e6, 20e6
SCAN = PlaneWaveScan.covering(
    (41, 31), (8.0, 12.0), element_positions=np.linspace(-6, 6, 32), angles=(-0.1, 0.0, 0.1), sampling_frequency=FS,
    centre_frequency=FC,
)  # fmt: skip
POINT = torch.zeros(1, 41, 31)
POINT[0, 20, 15] = 1.0
METHODS = [DAS(), CoherenceFactor(), MinimumVariance()]


def scene(*, rf: bool = False) -> Measurement:
    if rf:
        A = PlaneWaveRF(SCAN, f_number=1.0, pulse=gaussian_pulse(FC, 3e6, FS))
        return Measurement(A(POINT), A, GaussianNoise(1e-3))
    B = PlaneWaveIQ(SCAN, f_number=1.0, pulse=gaussian_pulse(0.0, 3e6, FS))
    return Measurement(B(POINT + 0j), B, ComplexGaussianNoise(1e-3))


@pytest.mark.parametrize("rf", [False, True])
def test_das_is_the_adjoint_over_its_weights(rf: bool) -> None:
    m = scene(rf=rf)
    for f_number, aperture in ((1.0, "boxcar"), (1.5, "hann")):
        A = type(m.A)(SCAN, f_number, aperture)  # type: ignore[call-arg]
        weights = torch.from_numpy(receive_weights(SCAN, f_number, aperture)).float().sum(-1).reshape(1, 41, 31)
        image = DAS(f_number=f_number, aperture=aperture)(None, m).mean
        torch.testing.assert_close(image, A.H(m.y) / (3 * weights), rtol=0, atol=1e-5)


@pytest.mark.parametrize("rf", [False, True])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_a_point_is_where_it_is(method: DAS, rf: bool) -> None:
    m = scene(rf=rf)
    image = method(None, m).mean
    assert image.shape == (1, 41, 31)
    assert image.is_complex() is not rf
    envelope = Envelope((1, 41, 31), in_complex=not rf)(image)
    assert divmod(int(envelope.argmax()), 31) == (20, 15)


def test_lateral_resolution() -> None:
    """A point seen through an aperture D at depth z, and one level plane wave: sinc(D x / (wavelength z)), whose full
    width at half amplitude is 1.207 wavelength z / D. Windows widen it; the adaptive beamformers are sharper."""
    scan = replace(
        SCAN.subset([1]), image_shape=(21, 41), pixel_size=(0.1, 0.1), origin=(9.0, -2.0), n_samples=500,
        element_positions=tuple(np.linspace(-6, 6, 81)),
    )  # fmt: skip
    point = torch.zeros(1, 21, 41)
    point[0, 10, 20] = 1
    A = PlaneWaveIQ(scan, f_number=2.0, pulse=gaussian_pulse(0.0, 1e6, FS))
    m = Measurement(A(point + 0j), A, ComplexGaussianNoise(1e-3))

    def width(method: DAS) -> float:
        return point_widths(method(None, m).mean.abs(), scan, point > 0)[1]

    boxcar = width(DAS(aperture="boxcar"))
    assert boxcar == pytest.approx(1.207 * scan.wavelength * 2.0, rel=0.05)
    assert width(DAS()) > 1.2 * boxcar
    assert width(CoherenceFactor()) < 0.8 * boxcar
    assert width(MinimumVariance()) < 0.8 * boxcar


def test_masked_channels_do_not_count_as_silence() -> None:
    whole = scene()
    mask = slab_mask(whole.A.out_shape, 0, [1]) & slab_mask(whole.A.out_shape, 1, range(0, 32, 2))
    B = Inpainting(mask, in_complex=True) @ whole.A
    masked = Measurement(whole.y * mask, B, whole.noise)
    part = PlaneWaveIQ(replace(SCAN.subset([1]), element_positions=SCAN.element_positions[::2]), f_number=1.0)
    alone = Measurement(whole.y[[1], ::2].contiguous(), part, whole.noise)
    for method in METHODS:
        torch.testing.assert_close(method(None, masked).mean, method(None, alone).mean, rtol=1e-4, atol=1e-7)


def test_two_channel_images() -> None:
    m = scene()
    B = m.A @ ViewAsComplex((1, 41, 31))
    image, channels = DAS()(None, m).mean, DAS()(None, Measurement(m.y, B, m.noise)).mean
    torch.testing.assert_close(channels, torch.cat([image.real, image.imag]))


def test_coherence_factor_of_agreeing_and_of_random_channels() -> None:
    weights = torch.ones(2000, 16)
    agree = torch.full((2000, 16), 2 - 1j)
    torch.testing.assert_close(coherence_weighted(agree, weights), agree[:, 0])
    noise = torch.randn(2000, 16, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    das = delay_and_sum(noise, weights)
    factor = (coherence_weighted(noise, weights) / das).real
    assert float(factor.mean()) == pytest.approx(1 / 16, rel=0.05)  # |sum|^2 / (M sum ||^2), E = 1 / M exactly
    assert float(factor.max()) <= 1


def test_minimum_variance_passes_the_echo_and_rejects_an_interference() -> None:
    """Channels = echo + a plane wave across the aperture, at random phases between them."""
    weights = torch.ones(50, 32)
    weights[:, :4] = weights[:, 30:] = 0
    phase = 2 * math.pi * torch.rand(50, 1, generator=torch.Generator().manual_seed(0))
    echo = torch.full((50, 32), 1 + 1j) * weights
    wave = 10 * torch.exp(1j * (phase + 0.9 * torch.arange(32))) * weights
    exact = echo[:, 10]
    method = MinimumVariance(loading=1e-4)
    torch.testing.assert_close(method.combine(echo, weights), exact, rtol=1e-4, atol=1e-4)
    das, capon = delay_and_sum(echo + wave, weights), method.combine(echo + wave, weights)
    assert float((das - exact).abs().min()) > 0.1
    assert float((capon - exact).abs().max()) < 0.02


def test_minimum_variance_with_much_loading_averages_the_subarrays() -> None:
    s = torch.randn(20, 9, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    weights = torch.ones(20, 9)
    weights[:5, 6:] = 0  # a smaller aperture for some pixels
    weights[5] = 0  # and none at all
    image = MinimumVariance(subarray=0.5, loading=1e6).combine(s * weights, weights)
    torch.testing.assert_close(image[6:], s[6:].unfold(1, 4, 1).mean((1, 2)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(image[:5], s[:5, :6].unfold(1, 3, 1).mean((1, 2)), rtol=1e-4, atol=1e-5)
    assert image[5] == 0


def test_misuse_is_refused() -> None:
    m = Measurement(torch.ones(1, 4, 4), Identity((1, 4, 4)), GaussianNoise(0.1))
    for method in METHODS:
        with pytest.raises(TypeError, match="needs a plane-wave ultrasound operator"):
            method(None, m)
        with pytest.raises(ValueError, match="n_samples must be 1"):
            method(None, scene(), n_samples=2)
    with pytest.raises(ValueError, match="subarray must lie"):
        MinimumVariance(subarray=0.0)
    with pytest.raises(ValueError, match="loading must be positive"):
        MinimumVariance(loading=0.0)
    with pytest.raises(ValueError, match="aperture must be one of"):
        DAS(aperture="round")(None, scene())
