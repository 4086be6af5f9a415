"""Singular value decomposition as an ability of operators: ``A = U diag(s) V^H``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from invdiff.operators.base import COMPLEX, LinearComposition, LinearOperator

DENSE_LIMIT = 8192  # smaller side of an operator (real components) up to which its SVD is computed densely
LINES_LIMIT = 1.2e10  # pixels times squared length of a line, what eigenvectors of all lines cost (320 x 320: 1e10)
LINES_CUTOFF = 1e-4  # singular values below this fraction of the largest count as zero: single precision loses them


@dataclass(frozen=True)
class SVD:
    """``A = U diag(s) V^H`` through its transforms; columns of V that are missing span (part of) the null space.

    Attributes:
        singular_values: s, non-negative; its shape is the coefficients' shape.
        coefficients: image (..., \\*in_shape) to ``V^H x``.
        image: coefficients to ``V c``.
        data_coefficients: data (..., \\*out_shape) to ``U^H y`` where s > 0 (zero elsewhere).

    The coefficients may be complex (Fourier operators); multiplying them by real factors that depend on s only,
    and going back, gives real images.

    Example:
        >>> from invdiff.operators import BlockDownsample
        >>> A = BlockDownsample((1, 4, 4), 2)
        >>> svd = A.svd()
        >>> svd.singular_values.unique().tolist()
        [0.5]
        >>> x = torch.rand(1, 4, 4)
        >>> torch.allclose(svd.project(x), A.pinv(A(x)), atol=1e-6)
        True
    """

    singular_values: Tensor
    coefficients: Callable[[Tensor], Tensor]
    image: Callable[[Tensor], Tensor]
    data_coefficients: Callable[[Tensor], Tensor]

    def scaled(self, scale: float) -> SVD:
        """The decomposition of ``scale * A``."""
        sign, inner = math.copysign(1.0, scale), self.data_coefficients
        return replace(
            self, singular_values=abs(scale) * self.singular_values, data_coefficients=lambda y: sign * inner(y)
        )

    def truncated(self, cutoff: float) -> SVD:
        """The decomposition with singular values below ``cutoff`` times the largest set to zero."""
        s = self.singular_values
        return replace(self, singular_values=torch.where(s >= cutoff * s.max(), s, torch.zeros_like(s)))

    def pinv(self, y: Tensor) -> Tensor:
        """``A^+ y``."""
        return self.image(_divide(self.data_coefficients(y), self.singular_values))

    def prox(self, z: Tensor, y: Tensor, weight: Tensor | float) -> Tensor:
        """``argmin_x 1/2 |x - z|^2 + weight/2 |A x - y|^2``."""
        s = self.singular_values
        misfit = self.data_coefficients(y) - s * self.coefficients(z)
        return z + self.image(weight * s / (1 + weight * s**2) * misfit)

    def project(self, x: Tensor) -> Tensor:
        """``A^+ A x``, the part of an image that the data see."""
        return self.image(self.coefficients(x) * (self.singular_values > 0))


def decompose(A: LinearOperator) -> SVD:
    """By lines where the normal operator couples the pixels of single lines only, else densely."""
    if A.coupled_axis is not None:
        return line_svd(A, A.coupled_axis)
    if A.svd_by_lines and isinstance(A, LinearComposition) and A.outer.coupled_axis is not None:
        inner, lines = A.inner, line_svd(A.outer, A.outer.coupled_axis)  # of complex images in two channels
        return replace(
            lines, coefficients=lambda x: lines.coefficients(inner(x)), image=lambda c: inner.H(lines.image(c))
        )
    return dense_svd(A)


def affordable(shape: tuple[int, ...], axis: int) -> bool:
    """Whether :func:`line_svd` is, for images of this shape: seconds, and a gigabyte at most."""
    return math.prod(shape) * shape[axis] ** 2 <= LINES_LIMIT and math.prod(shape) * shape[axis] * 8 <= 2**29


def line_svd(A: LinearOperator, axis: int, cutoff: float = LINES_CUTOFF) -> SVD:
    """By the eigenvectors of ``A^H A`` line by line, in float64.

    MRI whose mask drops whole lines of k-space is such an operator, whatever its coils: along the lines everything is
    measured, so that pixels mix across them only, and a picture of n x n pixels is n problems of n unknowns.

    Args:
        A: of real or complex images, with :meth:`~LinearOperator.line_gram` along ``axis``.
        axis: dimension of the image, from the end.
        cutoff: singular values below this fraction of the largest count as zero.
    """
    n, ndim = A.in_shape[axis], len(A.in_shape)
    n_lines = math.prod(A.in_shape) // n
    squares, vectors = [], []
    for first in range(0, n_lines, 16):
        values, V = torch.linalg.eigh(A.line_gram(slice(first, first + 16)))
        squares.append(values.to(A.dtype))
        vectors.append(V.to(COMPLEX[A.dtype] if A.in_complex else A.dtype))
    s, V = torch.cat(squares).clamp(min=0).sqrt(), torch.cat(vectors)
    s = torch.where(s > cutoff * s.max(), s, 0.0)
    VH = V.mH.contiguous()
    moved = torch.empty(A.in_shape, device="meta").movedim(axis, -1).shape

    def coefficients(x: Tensor) -> Tensor:
        lines = x.movedim(axis, -1).reshape(-1, len(s), n).permute(1, 2, 0)
        return (VH @ lines).permute(2, 0, 1).reshape(*x.shape[: x.ndim - ndim], *s.shape)

    def image(c: Tensor) -> Tensor:
        lines = V @ c.reshape(-1, *s.shape).permute(1, 2, 0)
        return lines.permute(2, 0, 1).reshape(*c.shape[:-2], *moved).movedim(-1, axis)

    def data_coefficients(y: Tensor) -> Tensor:
        return _divide(coefficients(A.H(y)), s)

    return SVD(s, coefficients, image, data_coefficients)


def dense_svd(A: LinearOperator, cutoff: float = 1e-6) -> SVD:
    """By the eigenvalues of ``A^T A`` or ``A A^T``, whichever is smaller, in float64.

    Args:
        cutoff: singular values below this fraction of the largest count as zero.

    Raises:
        TypeError: the operator takes complex images, or its smaller side exceeds ``DENSE_LIMIT``.
    """
    n_in, n_out = math.prod(A.in_shape), math.prod(A.out_shape) * (2 if A.out_complex else 1)
    if A.in_complex:
        raise TypeError(f"The SVD is defined for operators on real images; compose {A!r} with ViewAsComplex.")
    if min(n_in, n_out) > DENSE_LIMIT:
        raise TypeError(
            f"{A!r} has no closed-form SVD and is too large for a dense one ({min(n_in, n_out)} > {DENSE_LIMIT}). "
            "Use an algorithm that needs only A and its adjoint (DDS, DiffPIR, DAPS, PiGDM)."
        )
    exact = A.to(dtype=torch.float64)

    def pack(y: Tensor) -> Tensor:
        y = torch.view_as_real(y).flatten(-2) if y.is_complex() else y
        return y.flatten(y.ndim - len(A.out_shape))

    def unpack(v: Tensor) -> Tensor:
        if A.out_complex:
            v = torch.view_as_complex(v.unflatten(-1, (-1, 2)).contiguous())
        return v.unflatten(-1, A.out_shape)

    def rows(n: int, apply: Callable[[Tensor], Tensor]) -> Tensor:
        eye = torch.eye(n, dtype=torch.float64, device=A.device)
        return torch.cat([apply(e) for e in eye.split(256)])

    if n_in <= n_out:
        G = rows(n_in, lambda e: exact.gram(e.unflatten(-1, A.in_shape)).flatten(1))
    else:
        G = rows(n_out, lambda e: pack(exact(exact.H(unpack(e)))))
    values, vectors = torch.linalg.eigh((G + G.T) / 2)
    s = values.clamp(min=0).sqrt()
    keep = s > cutoff * s.max()
    s, W = s[keep].to(A.dtype), vectors[:, keep].to(A.dtype)

    def coefficients(x: Tensor) -> Tensor:
        return x.flatten(x.ndim - len(A.in_shape)) @ W if n_in <= n_out else pack(A(x)) @ W / s

    def image(c: Tensor) -> Tensor:
        return (c @ W.T).unflatten(-1, A.in_shape) if n_in <= n_out else A.H(unpack((c / s) @ W.T))

    def data_coefficients(y: Tensor) -> Tensor:
        return A.H(y).flatten(y.ndim - len(A.out_shape)) @ W / s if n_in <= n_out else pack(y) @ W

    return SVD(s, coefficients, image, data_coefficients)


def _divide(c: Tensor, s: Tensor) -> Tensor:
    return torch.where(s > 0, c / s.clamp(min=torch.finfo(s.dtype).tiny), torch.zeros_like(c))
