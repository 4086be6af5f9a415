"""An operator given as a matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from invdiff.operators.base import LinearOperator


class Matrix(LinearOperator):
    """``y = M x`` on flattened (row-major) images: small operators, random ones, measured ones.

    Args:
        matrix: real, (prod(out_shape), prod(in_shape)), stored in float32.
        in_shape: shape of one image.
        out_shape: shape of one measurement.

    Raises:
        ValueError: the matrix does not have that shape, or is not finite.
        TypeError: the matrix is complex.

    Example:
        >>> from invdiff.operators import Matrix
        >>> A = Matrix(torch.tensor([[1.0, 1.0], [1.0, -1.0], [0.0, 2.0]]), (1, 1, 2), (3,))
        >>> A(torch.tensor([[[3.0, 1.0]]])).tolist()
        [4.0, 2.0, 2.0]
    """

    def __init__(self, matrix: Tensor, in_shape: Sequence[int], out_shape: Sequence[int]) -> None:
        expected = (math.prod(out_shape), math.prod(in_shape))
        if matrix.is_complex():
            raise TypeError("Matrix takes a real matrix, got a complex one. Stack its real and imaginary rows.")
        if tuple(matrix.shape) != expected:
            raise ValueError(
                f"A map from {tuple(in_shape)} to {tuple(out_shape)} is a {expected} matrix, got {tuple(matrix.shape)}."
            )
        if not torch.isfinite(matrix).all():
            raise ValueError("The matrix has non-finite entries (NaN or inf).")
        super().__init__(in_shape, out_shape)
        self.matrix = matrix.to(torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) @ self.matrix.T).unflatten(1, self.out_shape)

    def adjoint(self, y: Tensor) -> Tensor:
        return (y.flatten(1) @ self.matrix).unflatten(1, self.in_shape)
