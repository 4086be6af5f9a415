"""Envelope, log compression and haze against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from invdiff import GaussianNoise, Measurement
from invdiff.operators import Affine, Envelope, Haze, Identity, LogCompression
from invdiff.operators.ultrasound_image import analytic


def test_envelope_of_a_modulated_wave_is_its_amplitude() -> None:
    z = torch.arange(64, dtype=torch.float64)
    amplitude = 1 + 0.5 * torch.cos(2 * math.pi * 2 * z / 64)  # two periods; the carrier has 16
    wave = (amplitude * torch.cos(2 * math.pi * 16 * z / 64 + 0.3)).reshape(1, 64, 1)
    envelope = Envelope((1, 64, 1), floor=1e-9).to(dtype=torch.float64)
    torch.testing.assert_close(envelope(wave)[0, :, 0], amplitude)
    torch.testing.assert_close(analytic(wave).real, wave)


def test_envelope_at_zero_is_the_floor_with_zero_gradient() -> None:
    A = Envelope((1, 4, 1), in_complex=True, floor=0.01)
    x = torch.zeros(1, 4, 1, dtype=torch.complex64)
    torch.testing.assert_close(A(x), torch.full((1, 4, 1), 0.01))
    assert not A.vjp(x, torch.ones(1, 4, 1)).any()


def test_decibels() -> None:
    A = LogCompression((1, 4, 1), reference=2.0, dynamic_range=60.0).to(dtype=torch.float64)
    y = A(torch.tensor([2.0, 0.2, 0.02, 0.0], dtype=torch.float64).reshape(1, 4, 1)).flatten()
    torch.testing.assert_close(y, torch.tensor([0.0, -20.0, -40.0, -60.0], dtype=torch.float64), rtol=0, atol=0.05)
    ten_above = A(torch.full((1, 4, 1), 2 * 10 ** (-50 / 20), dtype=torch.float64))
    assert float(ten_above[0, 0, 0]) == pytest.approx(-50 + 10 * math.log10(1.1), abs=1e-9)


def test_haze_is_the_mixture_and_splits_with_a_known_haze() -> None:
    tissue, haze = torch.rand(1, 4, 3), torch.rand(1, 4, 3)
    joint, known = Haze((1, 4, 3), 0.25), Affine(0.75 * Identity((1, 4, 3)), 0.25 * haze)
    y = joint(torch.cat([tissue, haze]))
    torch.testing.assert_close(y, 0.75 * tissue + 0.25 * haze)
    torch.testing.assert_close(known(tissue), y)
    torch.testing.assert_close(joint(joint.pinv(y)), y)


def test_closed_form_prox_of_haze() -> None:
    A = Haze((1, 4, 3), 0.25).to(dtype=torch.float64)
    z, y = torch.rand(2, 4, 3, dtype=torch.float64), torch.rand(1, 4, 3, dtype=torch.float64)
    x = A.prox(z, y, 0.7)
    torch.testing.assert_close(x - z + 0.7 * A.H(A(x) - y), torch.zeros_like(z))


def test_a_measurement_through_b_mode_has_a_gradient() -> None:
    A = LogCompression((1, 6, 3)) @ Envelope((1, 6, 3), floor=1e-3)
    m = Measurement.simulate(torch.rand(A.in_shape), A, GaussianNoise(1.0), seed=0)
    assert torch.isfinite(m.nll_grad(torch.rand(3, *A.in_shape))).all()


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match=r"level must lie in \[0, 1\]"):
        Haze((1, 4, 3), 1.5)
    with pytest.raises(ValueError, match="that of one image"):
        Haze((2, 4, 3), 0.5)
    with pytest.raises(ValueError, match="floor must be positive"):
        Envelope((1, 4, 3), floor=0.0)
    with pytest.raises(ValueError, match="dynamic_range must be positive"):
        LogCompression((1, 4, 3), dynamic_range=0.0)
