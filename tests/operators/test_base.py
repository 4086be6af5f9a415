"""The operator algebra and its error messages."""

import pytest
import torch

from invdiff.operators import (
    Affine,
    Blur,
    Identity,
    Inpainting,
    LinearOperator,
    Operator,
    RealAsComplex,
    gaussian_psf,
    random_pixels,
)

SHAPE = (1, 6, 5)
BLUR = Blur(gaussian_psf(1.0, 3), SHAPE)
MASK = Inpainting(random_pixels(SHAPE, 0.5, seed=0))


class Square(Operator):
    """A non-linear operator."""

    def __init__(self) -> None:
        super().__init__(SHAPE, SHAPE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x**2


class Gradient(LinearOperator):
    """Written without an adjoint: autograd derives it."""

    def __init__(self) -> None:
        super().__init__(SHAPE, (1, 5, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[..., 1:, :] - x[..., :-1, :]


def test_the_adjoint_is_an_involution() -> None:
    assert BLUR.H.H is BLUR


def test_algebra_agrees_with_arithmetic() -> None:
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    A = 2.0 * (MASK @ BLUR) - Identity(SHAPE)
    torch.testing.assert_close(A(x), 2 * MASK(BLUR(x)) - x)
    torch.testing.assert_close((-BLUR)(x), -BLUR(x))


def test_nonlinear_composition_has_the_chain_rule() -> None:
    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    v = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    A = MASK @ Square() @ BLUR
    assert not isinstance(A, LinearOperator)
    torch.testing.assert_close(A.vjp(x, v), BLUR.H(2 * BLUR(x) * MASK.H(v)))


def test_derived_adjoint_of_a_difference_is_its_transpose() -> None:
    y = torch.tensor([[[1.0] * 5, [0.0] * 5, [0.0] * 5, [0.0] * 5, [2.0] * 5]])
    expected = torch.zeros(SHAPE)
    expected[0, 0], expected[0, 1], expected[0, 4], expected[0, 5] = -1, 1, -2, 2
    torch.testing.assert_close(Gradient().H(y), expected)


def test_affine_shifts_the_output() -> None:
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    A = Affine(BLUR, torch.ones(SHAPE))
    torch.testing.assert_close(A(x), BLUR(x) + 1)
    torch.testing.assert_close(Affine(MASK, torch.ones(SHAPE))(x), MASK(x + 1))  # nothing where nothing is observed
    torch.testing.assert_close(A.vjp(x, x), BLUR.H(x))


def test_nothing_is_learned_through_a_factor_of_zero() -> None:
    x, y = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0)), torch.ones(SHAPE)
    A = 0.0 * BLUR
    torch.testing.assert_close(A.prox(x, y, 2.0), x)
    assert not A.pinv(y).any()


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        (lambda: BLUR @ RealAsComplex(SHAPE), "Cannot compose"),
        (lambda: BLUR @ Identity((1, 4, 4)), "Cannot compose"),
        (lambda: BLUR @ Identity(SHAPE).to(dtype=torch.float64), "Cannot compose"),
        (lambda: BLUR + Identity((1, 4, 4)), "Cannot add"),
        (lambda: 1j * BLUR, "complex number"),
        (lambda: BLUR.to(dtype=torch.complex64), "real precision"),
    ],
)
def test_misfits_are_refused(expression: object, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        expression()  # type: ignore[operator]


def test_shape_error_shows_expected_and_got() -> None:
    with pytest.raises(
        ValueError, match=r"expected trailing dimensions \(1, 6, 5\), got a tensor of shape \(1, 5, 6\)"
    ):
        BLUR(torch.zeros(1, 5, 6))
