"""What every non-linear operator must satisfy, over one list, and what each one is."""

from __future__ import annotations

from pathlib import Path

import pytest
import scipy.signal
import torch
from torch import Tensor

from invdiff import GaussianNoise, Measurement
from invdiff.operators import (
    OPERATORS,
    Affine,
    Blur,
    Clip,
    Envelope,
    LinearOperator,
    LogCompression,
    Modulus,
    Operator,
    Quantize,
    coded_phase_retrieval,
    dot,
    gaussian_psf,
    octanary_masks,
    phase_retrieval,
)

SHAPE = (2, 5, 6)
BLUR = Blur(gaussian_psf(1.0, 3), SHAPE)
SMOOTH: dict[str, Operator] = {
    "Affine": Affine(BLUR, torch.ones(SHAPE)),
    "Modulus": Modulus(SHAPE),
    "Clip": Clip(SHAPE),
    "Clip after Blur": Clip(SHAPE, 1.5, 0.0, 1.0) @ BLUR,
    "phase_retrieval": phase_retrieval(SHAPE, 2),
    "envelope of RF": Envelope((1, 6, 3), floor=0.1),
    "envelope of RF, odd": Envelope((2, 5, 3), floor=0.1),
    "envelope of IQ": Envelope((1, 4, 3), in_complex=True, floor=0.1),
    "log compression": LogCompression((1, 4, 3), reference=2.0, dynamic_range=40.0),
    "B-mode": LogCompression((1, 6, 3)) @ Envelope((1, 6, 3), floor=1e-3),
    "coded_phase_retrieval": coded_phase_retrieval(octanary_masks(2, (5, 4), seed=0)),
}
CASES: dict[str, Operator] = {**SMOOTH, "Quantize": Quantize(SHAPE, 0.25), "8 bit": Quantize(SHAPE, 1 / 255) @ BLUR}


def rand(shape: tuple[int, ...], is_complex: bool, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=g, dtype=torch.float64)
    return torch.complex(x, torch.randn(shape, generator=g, dtype=torch.float64)) if is_complex else x


@pytest.mark.parametrize("name", SMOOTH)
def test_vjp_agrees_with_finite_differences(name: str) -> None:
    A = SMOOTH[name].to(dtype=torch.float64)
    x, d = rand((2, *A.in_shape), A.in_complex, 1), rand((2, *A.in_shape), A.in_complex, 2)
    v = rand((2, *A.out_shape), A.out_complex, 3)
    h = 1e-6
    directional = float(dot(A(x + h * d) - A(x - h * d), v)) / (2 * h)
    assert float(dot(A.vjp(x, v), d)) == pytest.approx(directional, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("name", SMOOTH)
def test_gradcheck(name: str) -> None:
    A = SMOOTH[name].to(dtype=torch.float64)
    assert torch.autograd.gradcheck(A, (rand(A.in_shape, A.in_complex, 1).requires_grad_(),))


@pytest.mark.parametrize("name", CASES)
def test_vjp_is_the_backward(name: str) -> None:
    A = CASES[name].to(dtype=torch.float64)
    x, v = rand((2, *A.in_shape), A.in_complex, 1), rand((2, *A.out_shape), A.out_complex, 3)
    torch.testing.assert_close(A.vjp(x, v), torch.func.vjp(A, x)[1](v)[0])
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(A(x), x, v)
    torch.testing.assert_close(A.vjp(x.detach(), v), gradient)


@pytest.mark.parametrize("name", CASES)
def test_broadcasts_over_leading_dimensions(name: str) -> None:
    A = CASES[name]
    x = rand((3, 2, *A.in_shape), A.in_complex, 1).to(torch.complex64 if A.in_complex else torch.float32)
    y = A(x)
    assert y.shape == (3, 2, *A.out_shape)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y[2, 1], A(x[2, 1]))
    torch.testing.assert_close(torch.vmap(A)(x), y)


@pytest.mark.parametrize("name", CASES)
def test_survives_being_saved_in_a_measurement(name: str, tmp_path: Path) -> None:
    A = CASES[name]
    x = rand(A.in_shape, A.in_complex, 1).to(torch.complex64 if A.in_complex else torch.float32)
    m = Measurement(A(x), A, GaussianNoise(0.1))
    m.save(tmp_path / "m.h5")
    loaded = Measurement.load(tmp_path / "m.h5")
    torch.testing.assert_close(loaded.A(x), A(x), rtol=0, atol=0)


def test_every_nonlinear_operator_is_on_the_list() -> None:
    def parts(A: Operator) -> set[str]:
        return {type(A).__name__}.union(*(parts(v) for v in vars(A).values() if isinstance(v, Operator)))

    covered = set().union(*(parts(A) for A in CASES.values()))
    assert not {n for n, cls in OPERATORS.items() if not issubclass(cls, LinearOperator)} - covered


def test_oversampled_magnitudes_are_the_autocorrelation() -> None:
    x = rand((1, 8, 6), False, 0)
    A = phase_retrieval((1, 8, 6), 4).to(dtype=torch.float64)
    y = A(x)
    assert y.shape == (1, 16, 14)
    assert float(y.square().sum()) == pytest.approx(float(x.square().sum()))  # Parseval
    # Wiener-Khinchin: with lags up to 7 and 5 inside 16 x 14, nothing wraps around
    r = torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(y[0].square())).real) * (16 * 14)
    expected = torch.from_numpy(scipy.signal.correlate2d(x[0].numpy(), x[0].numpy()))
    torch.testing.assert_close(r[1:, 2:-1], expected, rtol=0, atol=1e-10)


def test_oversampled_magnitudes_have_the_trivial_ambiguities_and_masks_remove_all_but_the_sign() -> None:
    x = torch.zeros(1, 8, 8, dtype=torch.float64)
    x[0, 1:5, 2:6] = rand((4, 4), False, 0)
    twins = {"negative": -x, "moved": x.roll((2, 1), (1, 2)), "inverted": x.flip((1, 2))}
    plain = phase_retrieval((1, 8, 8), 4).to(dtype=torch.float64)
    coded = coded_phase_retrieval(octanary_masks(3, (8, 8), seed=0)).to(dtype=torch.float64)
    for name, twin in twins.items():
        torch.testing.assert_close(plain(twin), plain(x))
        assert torch.allclose(coded(twin), coded(x)) == (name == "negative")


def test_coded_magnitudes_determine_the_image_near_a_good_start() -> None:
    x = rand((1, 12, 10), False, 0)
    A = coded_phase_retrieval(octanary_masks(6, (12, 10), seed=1)).to(dtype=torch.float64)
    y, u = A(x), x + 0.3 * rand((1, 12, 10), False, 5)
    for _ in range(300):  # amplitude flow: gradient descent on 1/2 |A(u) - y|^2
        u = u - 0.1 * A.vjp(u, A(u) - y)
    torch.testing.assert_close(u, x, rtol=0, atol=1e-6)


def test_octanary_masks_have_their_distribution() -> None:
    m = octanary_masks(40, (32, 32), seed=0)
    assert m.dtype == torch.complex64
    assert float(m.abs().square().mean()) == pytest.approx(1, abs=0.02)  # 0.8 / 2 + 0.2 * 3
    assert float(m.mean().abs()) < 0.02
    assert float((m.abs() > 1).float().mean()) == pytest.approx(0.2, abs=0.01)


def test_the_modulus_has_gradient_zero_at_zero() -> None:
    A = Modulus((2,))
    assert torch.equal(A.vjp(torch.zeros(2, dtype=torch.complex64), torch.ones(2)), torch.zeros(2).to(torch.complex64))


def test_clipping_saturates_and_its_gradient_vanishes_there() -> None:
    A, x = Clip((4,)), torch.tensor([-0.9, -0.2, 0.3, 0.8])
    torch.testing.assert_close(A(x), torch.tensor([-1.0, -0.4, 0.6, 1.0]))
    torch.testing.assert_close(A.vjp(x, torch.ones(4)), torch.tensor([0.0, 2.0, 2.0, 0.0]))


def test_quantisation_gives_exact_levels_and_a_straight_through_gradient() -> None:
    A = Quantize((1, 300, 300), 0.25)
    x = rand((1, 300, 300), False, 0).float()
    y = A(x)
    assert bool((y / 0.25 == torch.round(y / 0.25)).all())  # bit for bit
    assert float((y - x).abs().max()) <= 0.125
    assert float((y - x).std()) == pytest.approx(0.25 / 12**0.5, rel=0.02)
    v = rand((1, 300, 300), False, 1).float()
    assert torch.equal(A.vjp(x, v), v)


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="low < high"):
        Clip((1,), low=1.0, high=0.0)
    with pytest.raises(ValueError, match="step must be positive"):
        Quantize((1,), 0.0)
    with pytest.raises(ValueError, match="margin must be at least 1"):
        phase_retrieval((1, 4, 4), 0)
    with pytest.raises(ValueError, match="n must be at least 1"):
        octanary_masks(0, (4, 4), seed=0)
