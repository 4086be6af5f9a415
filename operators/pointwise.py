"""Operators that leave every pixel in its place: the identity, and real images read as complex ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from invdiff.operators.base import LinearOperator
from invdiff.operators.svd import SVD


class Identity(LinearOperator):
    """``y = x``: denoising.

    Args:
        shape: of one image, any.

    Example:
        >>> from invdiff.operators import Identity
        >>> A, x = Identity((1, 2, 2)), torch.rand(3, 1, 2, 2)
        >>> torch.equal(A(x), x)
        True
    """

    has_closed_form_prox = True

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__(shape, shape)
        self.shape = tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        return y

    def prox(self, z: Tensor, y: Tensor, weight: Tensor | float) -> Tensor:
        return (z + weight * y) / (1 + weight)

    def pinv(self, y: Tensor) -> Tensor:
        return y

    def svd(self) -> SVD:
        return SVD(torch.ones(self.shape, dtype=self.dtype, device=self.device), *[lambda x: x] * 3)


class RealAsComplex(LinearOperator):
    """A real image ``(channel, ...)`` as a complex one with zero phase; the adjoint takes the real part.

    Args:
        shape: of the image, (channel, ...).

    Example:
        >>> from invdiff.operators import RealAsComplex
        >>> A = RealAsComplex((1, 1, 1))
        >>> A(torch.tensor([[[2.0]]])).tolist(), A.H(torch.tensor([[[3 + 4j]]])).tolist()
        ([[[(2+0j)]]], [[[3.0]]])
    """

    reads_as_complex = True

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__(shape, shape, out_complex=True)
        self.shape = tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        return torch.complex(x, torch.zeros_like(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return y.real.contiguous()


class ViewAsComplex(LinearOperator):
    """Two real channels (real, imaginary), as priors see a complex image, to one complex channel.

    Args:
        shape: shape of the complex image, ``(1, [z,] y, x)``; the input is ``(2, [z,] y, x)``.

    Example:
        >>> from invdiff.operators import ViewAsComplex
        >>> A = ViewAsComplex((1, 1, 1))
        >>> A.in_shape, A(torch.tensor([[[3.0]], [[4.0]]])).tolist()
        ((2, 1, 1), [[[(3+4j)]]])
    """

    reads_as_complex = True

    def __init__(self, shape: Sequence[int]) -> None:
        if shape[0] != 1:
            raise ValueError(f"ViewAsComplex makes one complex channel, got shape {tuple(shape)}.")
        super().__init__((2, *shape[1:]), shape, out_complex=True)
        self.shape = tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        return torch.complex(x[:, :1], x[:, 1:])

    def adjoint(self, y: Tensor) -> Tensor:
        return torch.cat([y.real, y.imag], dim=1)
