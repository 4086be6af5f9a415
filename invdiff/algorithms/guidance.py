"""The likelihood of a noisy state, ``p(y | u)`` for ``u = x0 + s z``, in the Gaussian approximation.

``p(x0 | u) ~ N(D(u, s), V)`` gives ``p(y | u) ~ N(A D(u, s), Sigma)`` with ``Sigma = A V A^H + R``, R the noise's
covariance. What ``V`` is taken to be is the difference between the objects here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from invdiff.algorithms.draw import Run, check_positive
from invdiff.operators.linalg import cg


class PosteriorCovariance(Protocol):
    """A model of ``V = Cov[x0 | u]``."""

    def weigh(self, u: Tensor, x0: Tensor, s: float, run: Run) -> tuple[Tensor, Tensor]:
        """``A^H Sigma^-1 (y - A x0)``, like ``x0``, and -2 log p(y | u) up to a constant of the level, (n,)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Isotropic:
    """``V = r^2 I`` with ``r^2 = s^2 sd^2 / (s^2 + sd^2)``: exact for a white Gaussian prior of variance sd^2.

    Attributes:
        sigma_data: sd, in model units. PiGDM has 1 (its ``s^2 / (1 + s^2)``).
        n_cg, tolerance: conjugate gradients, where the operator has no closed form.
    """

    sigma_data: float = 0.5
    n_cg: int = 50
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        check_positive(self, "sigma_data", "n_cg", "tolerance")

    def variance(self, s: float) -> float:
        """r^2 at noise level ``s``."""
        return s**2 * self.sigma_data**2 / (s**2 + self.sigma_data**2)

    def weigh(self, u: Tensor, x0: Tensor, s: float, run: Run) -> tuple[Tensor, Tensor]:
        """By the proximal point x* of x0 where that has a closed form, ``A^H Sigma^-1 (y - A x0) = (x* - x0) / r^2``;
        else by conjugate gradients on the whitened data. The data's misfit at x*, which says the same, is lost to
        rounding where the noise is small."""
        m = run.measurement
        A, precision, r2 = m.linear, m.noise.precision(m.y), self.variance(s)
        assert A is not None
        with torch.no_grad():
            if A.has_closed_form_prox and isinstance(precision, float):
                x = m.prox(x0.detach(), r2)
                move, misfit = (t.abs().square().flatten(1).sum(1) for t in (x - x0, m.residual(x)))
                return (x - x0) / r2, move / r2 + precision * misfit
            r = m.residual(x0.detach())
            w = m.solve_covariance(r, r2, n_steps=self.n_cg, tolerance=self.tolerance)
            return A.H(w), (w.conj() * r).real.flatten(1).sum(1)


@dataclass(frozen=True, kw_only=True)
class Tweedie:
    """``V = s^2 dD/du``, the second-order Tweedie formula: exact moments for any prior (Boys et al. 2023, TMPD).

    Needs products with the network's Jacobian (taken as symmetric, which it is for an exact denoiser): one
    backpropagation per datum up to ``dense_limit`` data, else one per conjugate gradient step.

    Attributes:
        dense_limit: largest number of (real) data for which Sigma is built and factorised.
        n_cg, tolerance: conjugate gradients beyond it; log det Sigma is left out then.
    """

    dense_limit: int = 16
    n_cg: int = 20
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        check_positive(self, "n_cg", "tolerance")

    def weigh(self, u: Tensor, x0: Tensor, s: float, run: Run) -> tuple[Tensor, Tensor]:
        m = run.measurement
        A, precision = m.linear, m.noise.precision(m.y)
        assert A is not None
        r = m.residual(x0.detach())

        def apply(w: Tensor) -> Tensor:  # Sigma w
            (Jw,) = torch.autograd.grad(x0, u, A.H(w), retain_graph=True)
            v = s**2 * A(Jw)
            if A.observed is not None:
                v = v * A.observed
            return v + w / precision

        n_data = math.prod(A.out_shape)
        if n_data > self.dense_limit or A.out_complex:
            with torch.enable_grad():
                w = cg(apply, r, item_ndim=len(A.out_shape), n_steps=self.n_cg, tolerance=self.tolerance)
            return A.H(w), (w.conj() * r).real.flatten(1).sum(1)
        eye = torch.eye(n_data, dtype=r.dtype, device=r.device).reshape(n_data, 1, *A.out_shape)
        Sigma = torch.stack([apply(e.expand_as(r)).flatten(1) for e in eye], 2)
        L = torch.linalg.cholesky((Sigma + Sigma.mT) / 2)
        w = torch.cholesky_solve(r.flatten(1)[..., None], L)[..., 0]
        log_det = 2 * L.diagonal(dim1=1, dim2=2).log().sum(1)
        return A.H(w.reshape(r.shape)), (w * r.flatten(1)).sum(1) + log_det


COVARIANCES: dict[str, type] = {"isotropic": Isotropic, "tweedie": Tweedie}


def likelihood_score(u: Tensor, s: float, run: Run, covariance: PosteriorCovariance) -> tuple[Tensor, Tensor, Tensor]:
    """``x0 = D(u, s)``, ``g = grad_u log p(y | u) = J^T A^H Sigma^-1 (y - A x0)``, ``log p(y | u)`` up to a constant.

    ``Sigma`` is held fixed in the gradient. Everything returned is detached.
    """
    with torch.enable_grad():
        u = u.detach().requires_grad_(True)
        x0 = run.denoise(u, s)
        score, deviance = covariance.weigh(u, x0, s, run)
        (g,) = torch.autograd.grad(x0, u, score)
    return x0.detach(), g, -0.5 * deviance


@torch.no_grad()
def without_overshoot(g: Tensor, x0: Tensor, s: float, s_next: float, run: Run) -> Tensor:
    """The score ``g``, shortened per sample where a step from level ``s`` to ``s_next`` would overshoot the data and
    the iteration explode.

    The step moves by the share ``1 - s'^2 / s^2`` of ``s^2 g``; that may not be more than the step of least weighted
    residual along it. More is asked where the V of Sigma is too narrow (an isotropic one, for the large structures
    of an image). With ``V = s^2 J`` and white noise nothing is ever shortened.
    """
    m, A = run.measurement, run.measurement.linear
    assert A is not None
    r, step = m.residual(x0), s**2 * A(g)
    p = m.noise.precision(m.y) * (1.0 if A.observed is None else A.observed)
    along = (p * (r.conj() * step).real).flatten(1).sum(1)
    square = (p * step.abs().square()).flatten(1).sum(1)
    share = 1 - (s_next / s) ** 2
    length = (along / square.clamp(min=torch.finfo(square.dtype).tiny) / share).clamp(0, 1)
    return length.reshape(-1, *[1] * (g.ndim - 1)) * g
