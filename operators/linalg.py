"""Iterative linear algebra in which every sample has its own coefficients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def cg(
    H: Callable[[Tensor], Tensor],
    b: Tensor,
    *,
    item_ndim: int,
    start: Tensor | None = None,
    preconditioner: Callable[[Tensor], Tensor] | None = None,
    n_steps: int = 100,
    tolerance: float = 1e-5,
) -> Tensor:
    """Conjugate gradients for ``H x = b`` with ``H`` Hermitian positive semi-definite.

    Each item (the trailing ``item_ndim`` dimensions) has its own step lengths and stops on its own once its
    residual is below ``tolerance * |b|``, so a batch gives what its items give one by one. With a preconditioner M the
    norm is the one in which the steps are taken, ``|r| = (r^H M r)^(1/2)``.

    Args:
        H: the linear map, acting on tensors shaped like ``b``.
        b: right-hand side, (..., item dimensions), real or complex.
        start: first iterate (default: zero).
        preconditioner: M, an approximate inverse of ``H``, itself Hermitian positive definite (default: the identity).
        n_steps: largest number of iterations; reaching it is not an error (the iterate is the best so far).
        tolerance: relative residual at which an item stops.

    Raises:
        FloatingPointError: ``b`` is not finite, or the iteration met a negative curvature direction
            (``H`` is not positive semi-definite).
    """
    dims = tuple(range(b.ndim - item_ndim, b.ndim))

    def inner(u: Tensor, v: Tensor) -> Tensor:
        return (u.conj() * v).real.sum(dims, keepdim=True)

    if not torch.isfinite(b).all():
        raise FloatingPointError("The right-hand side of the conjugate gradients is not finite.")
    M = preconditioner or (lambda v: v)
    x = torch.zeros_like(b) if start is None else start.expand_as(b).clone()
    r = b.clone() if start is None else b - H(x)
    z = M(r)
    p, rz = z, inner(r, z)
    goal = tolerance**2 * (rz if start is None else inner(b, M(b)))
    for step in range(n_steps):
        active = rz > goal
        if not active.any():
            break
        Hp = H(p)
        curvature = inner(p, Hp)
        if (active & (curvature < 0)).any():
            raise FloatingPointError(
                "Conjugate gradients met p^H H p < 0: the operator is not positive semi-definite "
                "(is its adjoint exact?)."
            )
        alpha = torch.where(active & (curvature > 0), rz / curvature, 0.0)  # step length, 0 for finished items
        x = x + alpha * p
        if step == n_steps - 1:
            break
        r = r - alpha * Hp
        z = M(r)
        rz_next = inner(r, z)
        p = z + torch.where(active, rz_next / rz, 0.0) * p
        rz = torch.where(active & (curvature > 0), rz_next, torch.zeros_like(rz))
    return x


def cg_on_data(
    B: Callable[[Tensor], Tensor],
    BH: Callable[[Tensor], Tensor],
    b: Tensor,
    *,
    item_ndim: int,
    preconditioner: Callable[[Tensor], Tensor] | None = None,
    n_steps: int = 100,
    tolerance: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """Conjugate gradients for ``(1 + B B^H) q = b``: the solution q, and ``B^H q``.

    Like :func:`cg` from zero, with 2 n - 1 products for n steps and ``B^H q`` in place of 2 n + 1: a step p has the
    curvature ``|p|^2 + |B^H p|^2``, so the last one needs no ``B``, and the ``B^H p`` add up to ``B^H q``.

    Args:
        B, BH: the linear map and its adjoint; ``BH`` takes tensors shaped like ``b``, (..., item dimensions), and keeps
            the leading dimensions.
        b, item_ndim, preconditioner, n_steps, tolerance: as for :func:`cg`.

    Raises:
        FloatingPointError: ``b`` is not finite.
    """
    lead = b.ndim - item_ndim

    def inner(u: Tensor, v: Tensor) -> Tensor:
        return (u.conj() * v).real.flatten(lead).sum(-1)

    def scaled(a: Tensor, v: Tensor) -> Tensor:
        return a.reshape(*a.shape, *[1] * (v.ndim - lead)) * v

    if not torch.isfinite(b).all():
        raise FloatingPointError("The right-hand side of the conjugate gradients is not finite.")
    M = preconditioner or (lambda v: v)
    q, image, r = torch.zeros_like(b), None, b
    p = M(r)
    rz = inner(r, p)
    goal = tolerance**2 * rz
    for step in range(n_steps):
        active = rz > goal
        if not active.any():
            break
        g = BH(p)
        alpha = torch.where(active, rz / (inner(p, p) + inner(g, g)), 0.0)  # step length, 0 for finished items
        q = q + scaled(alpha, p)
        image = scaled(alpha, g) if image is None else image + scaled(alpha, g)
        if step == n_steps - 1:
            break
        r = r - scaled(alpha, p + B(g))
        z = M(r)
        rz, previous = torch.where(active, inner(r, z), 0.0), rz
        p = z + scaled(torch.where(active, rz / previous, 0.0), p)
    return q, BH(q) if image is None else image


def power_iteration(H: Callable[[Tensor], Tensor], x: Tensor, *, n_steps: int = 30) -> float:
    """Largest eigenvalue of a Hermitian positive semi-definite map (Rayleigh quotient after ``n_steps``).

    Args:
        H: the map, acting on tensors shaped like ``x``.
        x: where to start; not orthogonal to the leading eigenvector, as a random image is not.
    """
    value = 0.0
    for _ in range(n_steps):
        x = x / torch.linalg.vector_norm(x)
        Hx = H(x)
        value = float((x.conj() * Hx).real.sum())
        if value <= 0.0:
            return 0.0
        x = Hx
    return value
