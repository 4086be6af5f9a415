"""Plane-wave ultrasound against loops, arrival times and each other."""

from __future__ import annotations

import cmath
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from invdiff import ComplexGaussianNoise, GaussianNoise, Measurement
from invdiff.operators import (
    Blur,
    Identity,
    Inpainting,
    PlaneWaveIQ,
    PlaneWaveRF,
    PlaneWaveScan,
    ViewAsComplex,
    find_plane_wave,
    gaussian_pulse,
    pulse_psf,
    slab_mask,
)
from invdiff.operators.ultrasound import receive_weights

SCAN = PlaneWaveScan(
    image_shape=(7, 6), pixel_size=(0.5, 0.4), origin=(2.0, -1.1), element_positions=(-1.5, -0.4, 0.5, 1.6),
    angles=(0.0, 0.25, -0.15), start_times=(1e-6, 0.8e-6, 1.2e-6), n_samples=70, sampling_frequency=10e6,
    centre_frequency=4e6, sound_speed=1500.0,
)  # fmt: skip
X = torch.randn(1, 7, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
PULSE = gaussian_pulse(4e6, 3e6, 10e6)


def double(A: Any) -> Any:
    return A.to(dtype=torch.float64)


def loop(scan: PlaneWaveScan, x: np.ndarray, f_number: float, *, iq: bool) -> np.ndarray:
    """Pixel by pixel, element by element, in metres."""
    y = np.zeros((len(scan.angles), scan.n_elements, scan.n_samples), complex)
    (dz, dx), (z0, x0) = scan.pixel_size, scan.origin
    pitch = (scan.element_positions[-1] - scan.element_positions[0]) / (scan.n_elements - 1)
    for k, (angle, start) in enumerate(zip(scan.angles, scan.start_times, strict=True)):  # type: ignore[arg-type]
        for i in range(scan.image_shape[0]):
            for j in range(scan.image_shape[1]):
                z, lateral = (z0 + i * dz) / 1e3, (x0 + j * dx) / 1e3
                for e, position in enumerate(scan.element_positions):
                    distance = abs(lateral - position / 1e3)
                    if distance > max(z / (2 * f_number), pitch / 2e3):
                        continue
                    delay = lateral * math.sin(angle) + z * math.cos(angle)
                    delay = (delay + math.sqrt(distance**2 + z**2)) / scan.sound_speed
                    echo = complex(x[i, j])
                    if iq:
                        echo *= cmath.exp(-2j * math.pi * scan.centre_frequency * delay)
                    position_in_record = (delay - start) * scan.sampling_frequency
                    n = math.floor(position_in_record)
                    for sample, share in ((n, n + 1 - position_in_record), (n + 1, position_in_record - n)):
                        if 0 <= sample < scan.n_samples:
                            y[k, e, sample] += share * echo
    return y


@pytest.mark.parametrize("memory_budget", [2**30, 1])
@pytest.mark.parametrize("n_samples", [70, 30])
def test_rf_is_a_loop_over_pixels_and_elements(memory_budget: int, n_samples: int) -> None:
    scan = replace(SCAN, n_samples=n_samples)  # with 30 samples, deep echoes come after the record's end
    y = double(PlaneWaveRF(scan, f_number=0.8, memory_budget=memory_budget))(X)
    expected = loop(scan, X[0].numpy(), 0.8, iq=False).real
    assert (expected != 0).any(-1).all()
    np.testing.assert_allclose(y.numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("memory_budget", [2**30, 1])
def test_iq_is_a_loop_over_pixels_and_elements(memory_budget: int) -> None:
    x = torch.complex(X, X.flip(-1))
    y = double(PlaneWaveIQ(SCAN, f_number=0.8, memory_budget=memory_budget))(x)
    np.testing.assert_allclose(y.numpy(), loop(SCAN, x[0].numpy(), 0.8, iq=True), rtol=0, atol=1e-6)


def test_a_point_echoes_at_the_time_of_flight() -> None:
    """A point 20 mm deep, 3 mm off axis, a wave tilted by 0.2 rad, elements at -5, 0, 7 mm."""
    scan = PlaneWaveScan(
        image_shape=(1, 1), pixel_size=(0.1, 0.1), origin=(20.0, 3.0), element_positions=(-5.0, 0.0, 7.0),
        angles=(0.2,), start_times=5e-6, n_samples=1000, sampling_frequency=40e6, centre_frequency=5e6,
        sound_speed=1540.0,
    )  # fmt: skip
    A = double(PlaneWaveRF(scan, f_number=0.0))
    y = A(torch.ones(1, 1, 1, dtype=torch.float64))[0]
    arrival = 5e-6 + (y * torch.arange(1000)).sum(-1) / y.sum(-1) / 40e6  # linear interpolation keeps the centroid
    path = 20e-3 * math.cos(0.2) + 3e-3 * math.sin(0.2)
    expected = [(path + math.hypot(20e-3, 3e-3 - e)) / 1540 for e in (-5e-3, 0.0, 7e-3)]
    np.testing.assert_allclose(arrival.numpy(), expected, rtol=0, atol=1e-6 / 40e6)
    torch.testing.assert_close(y.sum(-1), torch.ones(3, dtype=torch.float64))


def test_iq_data_are_demodulated_rf_data() -> None:
    """RF with a narrow pulse, demodulated by hand, against the IQ model of the same scene with the pulse's envelope."""
    fs, fc, band = 40e6, 5e6, 1.5e6
    scan = PlaneWaveScan(
        image_shape=(3, 2), pixel_size=(0.31, 0.5), origin=(8.0, 0.1), element_positions=(-1.0, 0.0, 1.0),
        angles=(0.1,), start_times=8e-6, n_samples=256, sampling_frequency=fs, centre_frequency=fc,
    )  # fmt: skip
    x = torch.rand(1, 3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rf = double(PlaneWaveRF(scan, pulse=gaussian_pulse(fc, band, fs), f_number=0.0))(x)
    iq = double(PlaneWaveIQ(scan, pulse=gaussian_pulse(0.0, band, fs), f_number=0.0))(x + 0j)
    t = 8e-6 + torch.arange(256, dtype=torch.float64) / fs
    spectrum = torch.fft.fft(rf * torch.exp(-2j * math.pi * fc * t)) * (torch.fft.fftfreq(256).abs() * fs < fc)
    demodulated = torch.fft.ifft(spectrum)
    scale = (demodulated.conj() * iq).sum() / demodulated.abs().square().sum()
    assert abs(cmath.phase(complex(scale))) < 0.01  # the two pulses are normalised each to 1: only the phase is fixed
    # linear interpolation of a 5 MHz pulse at 40 MHz is wrong by a few per cent, of its envelope by less
    assert float((scale * demodulated - iq).norm() / iq.norm()) < 0.05


@pytest.mark.parametrize("length", [PULSE.numel(), PULSE.numel() - 1, 90])
def test_the_pulse_is_a_linear_convolution(length: int) -> None:
    pulse = torch.randn(length, generator=torch.Generator().manual_seed(2))
    A = double(PlaneWaveRF(SCAN, pulse=pulse))
    echoes, y = A.delays(X), A(X)
    for k, e in ((0, 1), (2, 3)):
        full = np.convolve(echoes[k, e].numpy(), pulse.double().numpy())
        np.testing.assert_allclose(y[k, e].numpy(), full[length // 2 : length // 2 + 70], rtol=0, atol=1e-5)


def test_delays_keep_their_precision_deep_in_the_record() -> None:
    """Position 80 000 samples: float32 delays would be off by 4e-3 of a sample."""
    scan = replace(SCAN, image_shape=(1, 2), origin=(299.9, 0.1), sampling_frequency=200e6, n_samples=81000)
    x = torch.tensor([[[1.0, 0.0]]], dtype=torch.float64)
    for budget in (2**30, 1):
        y = double(PlaneWaveRF(scan, memory_budget=budget))(x)[1, 2]
        path = 299.9e-3 * math.cos(0.25) + 0.1e-3 * math.sin(0.25) + math.hypot(299.9e-3, 0.4e-3)
        expected = (path / 1500 - 0.8e-6) * 200e6
        assert float((y * torch.arange(81000)).sum()) == pytest.approx(expected, abs=2e-2)
        assert float(y[math.floor(expected)]) == pytest.approx(1 - expected % 1, abs=1e-6)


def test_more_angles_are_the_same_rows() -> None:
    whole, part = PlaneWaveRF(SCAN), PlaneWaveRF(SCAN.subset([2, 0]))
    torch.testing.assert_close(part(X.float()), whole(X.float())[[2, 0]])


def test_the_budget_chooses_the_form_without_changing_the_result() -> None:
    x = torch.complex(X, X.flip(-2)).to(torch.complex64).expand(12, 1, 7, 6)
    stored, gathered = (PlaneWaveIQ(SCAN, aperture="hamming", memory_budget=b) for b in (2**20, 1))
    assert type(stored._delays) is not type(gathered._delays)
    y = stored(x)
    torch.testing.assert_close(gathered(x), y, rtol=0, atol=1e-5)
    torch.testing.assert_close(gathered.H(y), stored.H(y), rtol=0, atol=1e-4)


def test_aperture() -> None:
    scan = replace(SCAN, element_positions=tuple(np.linspace(-5, 5, 101)), origin=(10.0, 0.0), image_shape=(1, 1))
    half = 10.0 / (2 * 2.0)
    distance = np.abs(np.asarray(scan.element_positions))
    for name, at_edge in (("boxcar", 1.0), ("hamming", 0.08), ("hann", 0.0)):
        weights = receive_weights(scan, 2.0, name)[0]
        assert weights[50] == 1.0
        assert not weights[distance > half + 1e-9].any()
        assert weights[np.isclose(distance, half)] == pytest.approx([at_edge, at_edge], abs=1e-9)
    shallow = receive_weights(replace(scan, origin=(0.0, 0.0)), 2.0, "hann")[0]
    assert shallow.nonzero()[0].tolist() == [50]  # a pixel on the array is heard by the element beneath it


def test_masks_take_away_transmits_elements_and_lines() -> None:
    A = PlaneWaveRF(SCAN)
    mask = slab_mask(A.out_shape, 0, [0, 2]) & slab_mask(A.out_shape, 1, [1, 3])
    masked = Inpainting(mask) @ A
    y = masked(X.float())
    assert masked.observed is not None
    assert int(masked.observed.sum()) == 2 * 2 * 70
    torch.testing.assert_close(y[[0, 2]][:, [1, 3]], A(X.float())[[0, 2]][:, [1, 3]])
    assert not y[1].any()
    assert not y[:, 0].any()
    assert slab_mask((1, 4, 5), -1, [0, 3]).sum() == 8
    with pytest.raises(ValueError, match="from 0 to 2"):
        slab_mask(A.out_shape, 0, [3])


def test_the_operator_is_found_in_a_composition() -> None:
    A = PlaneWaveIQ(SCAN)
    mask = Inpainting(slab_mask(A.out_shape, 0, [0]), in_complex=True)
    assert find_plane_wave(mask @ A @ ViewAsComplex((1, 7, 6))) is A
    assert find_plane_wave(Identity((1, 7, 6))) is None


def test_gaussian_pulse_has_its_band() -> None:
    fs = 100e6
    h = gaussian_pulse(5e6, 3e6, fs).double()
    assert float(h.norm()) == pytest.approx(1)
    spectrum = torch.fft.rfft(h, 2**14).abs()
    f = torch.fft.rfftfreq(2**14) * fs
    spectrum = spectrum / spectrum[(f - 5e6).abs().argmin()]
    for edge in (3.5e6, 6.5e6):
        assert float(spectrum[(f - edge).abs().argmin()]) == pytest.approx(0.5, abs=0.01)


def test_convolutional_psf() -> None:
    scan = PlaneWaveScan.covering(
        (160, 41), (10.0, 16.0), element_positions=np.linspace(-5, 5, 32), sampling_frequency=2e7, centre_frequency=5e6
    )
    psf = pulse_psf(scan, 3e6, f_number=1.0)
    assert psf.shape[0] % 2 == psf.shape[1] % 2 == 1
    assert float(psf.norm()) == pytest.approx(1)
    row = psf[psf.shape[0] // 2]
    assert float(row.max()) == float(psf.max())
    # axially the pulse has two waves per wavelength of depth
    spectrum = torch.fft.rfft(psf[:, psf.shape[1] // 2].double(), 4096).abs()
    waves_per_mm = float(spectrum.argmax()) / 4096 / scan.pixel_size[0]
    assert waves_per_mm == pytest.approx(2 / scan.wavelength, rel=0.02)
    assert Blur(psf, (1, 160, 41)).in_shape == (1, 160, 41)
    with pytest.raises(ValueError, match="a quarter of the wavelength"):
        pulse_psf(SCAN, 3e6)


def test_covering_records_every_echo() -> None:
    scan = PlaneWaveScan.covering(
        (20, 9), (1.0, 30.0), element_positions=np.linspace(-6, 6, 8), angles=(-0.3, 0.0, 0.3),
        sampling_frequency=20e6, centre_frequency=5e6,
    )  # fmt: skip
    y = double(PlaneWaveRF(scan, f_number=0.0))(torch.ones(1, 20, 9, dtype=torch.float64))
    # waves tilted away reach the edge of the array before the centre, so only the level one is whole
    assert float(y[1].sum()) == pytest.approx(20 * 9 * 8, rel=1e-6)
    assert scan.pixel_centres()[1][[0, -1]] == pytest.approx([1.0, 30.0])
    assert scan.pixel_centres()[0][[0, -1]] == pytest.approx([-6.0, 6.0])


@pytest.mark.parametrize("iq", [False, True])
def test_a_measurement_is_saved_and_loaded(tmp_path: Path, iq: bool) -> None:
    A = (PlaneWaveIQ if iq else PlaneWaveRF)(SCAN, f_number=1.2, aperture="hann", pulse=gaussian_pulse(0.0, 3e6, 10e6))
    x = X.float() + 0j if iq else X.float()
    m = Measurement.simulate(x, A, (ComplexGaussianNoise if iq else GaussianNoise)(0.01), seed=0)
    m.save(tmp_path / "m.h5")
    again = Measurement.load(tmp_path / "m.h5")
    assert again.A.scan == SCAN  # type: ignore[attr-defined]
    torch.testing.assert_close(again.A(x), A(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_shape": (0, 3)}, "two positive integers"),
        ({"pixel_size": (0.1, -0.1)}, "both positive"),
        ({"pixel_size": (0.1,)}, "both positive"),
        ({"origin": (-1.0, 0.0)}, "z >= 0"),
        ({"element_positions": ()}, "list of numbers in mm"),
        ({"element_positions": (0.0, math.nan)}, "finite numbers in mm"),
        ({"angles": (10.0, 20.0, 30.0)}, "not in degrees"),
        ({"start_times": (0.0, 1e-6)}, "one time per transmit"),
        ({"n_samples": 0}, "positive integer"),
        ({"sound_speed": 0.0}, "positive finite number in m/s"),
    ],
)
def test_impossible_geometries_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SCAN, **changes)


def test_misuse_is_refused() -> None:
    with pytest.raises(TypeError, match="must be a PlaneWaveScan"):
        PlaneWaveRF("scan")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="aperture must be one of boxcar"):
        PlaneWaveRF(SCAN, aperture="square")
    with pytest.raises(ValueError, match="f_number must be"):
        PlaneWaveRF(SCAN, f_number=-1.0)
    with pytest.raises(TypeError, match="a real 1-D tensor"):
        PlaneWaveRF(SCAN, pulse=torch.ones(3, dtype=torch.complex64))
    with pytest.raises(ValueError, match="bandwidth > 0"):
        gaussian_pulse(1e6, 0.0, 1e7)
