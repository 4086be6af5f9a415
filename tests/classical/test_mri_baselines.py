"""Zero-filled and CG-SENSE against closed forms."""

from __future__ import annotations

import pytest
import torch

from invdiff import ComplexGaussianNoise, GaussianNoise, Measurement
from invdiff.classical import CGSense, ZeroFilled
from invdiff.operators import MultiCoilMRI, Operator, RealAsComplex, birdcage_maps, equispaced_mask, ifft2c

SHAPE = (1, 16, 12)
X = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))
MAPS = birdcage_maps(4, SHAPE[1:])


def scan(acceleration: int) -> Measurement:
    mask = equispaced_mask(12, acceleration=acceleration, center_fraction=0.0)
    return Measurement.simulate(X, MultiCoilMRI(MAPS, mask) @ RealAsComplex(SHAPE), ComplexGaussianNoise(1e-6), seed=0)


def test_zero_filled_is_the_coil_combined_inverse_fft() -> None:
    m = scan(2)
    expected = (MAPS.conj() * ifft2c(m.y)).sum(0, keepdim=True).real
    torch.testing.assert_close(ZeroFilled()(None, m).mean, expected)


def test_zero_filled_of_full_data_is_the_image() -> None:
    torch.testing.assert_close(ZeroFilled()(None, scan(1)).mean, X, rtol=0, atol=1e-4)


def test_cg_sense_unfolds_noise_free_data_that_zero_filling_cannot() -> None:
    m = scan(2)
    error = [float((f(None, m).mean - X).abs().max()) for f in (ZeroFilled(), CGSense(n_steps=200, weight=0.0))]
    assert error[0] > 0.2
    assert error[1] < 0.01


def test_the_default_weight_is_the_wiener_weight() -> None:
    m = Measurement(scan(2).y, scan(2).A, ComplexGaussianNoise(0.1))
    b = m.A.H(m.y)  # type: ignore[attr-defined]
    weight = 0.01 / float(b.square().mean())
    torch.testing.assert_close(CGSense()(None, m).mean, CGSense(weight=weight)(None, m).mean)


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="n_samples must be 1"):
        ZeroFilled()(None, scan(2), n_samples=2)
    with pytest.raises(ValueError, match="weight must not be negative"):
        CGSense(weight=-1.0)

    class Square(Operator):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x**2

    with pytest.raises(TypeError, match="needs a linear operator"):
        CGSense()(None, Measurement(X, Square(SHAPE, SHAPE), GaussianNoise(0.1)))
