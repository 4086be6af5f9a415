"""Noise levels: grids of sigma for samplers, and the exact sigma of a discrete variance-preserving schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def karras_sigmas(n: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """``n + 1`` levels from ``sigma_max`` down to ``sigma_min``, polynomial in the level's index, float64.

    ``sigma_i = (sigma_max^(1/rho) + i/n (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho``
    (Karras et al. 2022, arXiv 2206.00364, eq. 5, with both ends included).

    Example:
        >>> from invdiff.priors import karras_sigmas
        >>> [f"{float(s):.3f}" for s in karras_sigmas(2, 0.002, 80.0)]
        ['80.000', '2.515', '0.002']
    """
    if n < 1 or not 0 < sigma_min < sigma_max:
        raise ValueError(f"Need n >= 1 and 0 < sigma_min < sigma_max, got n={n}, {sigma_min=}, {sigma_max=}.")
    t = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    return (sigma_max ** (1 / rho) + t * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho


def linear_betas(n: int = 1000, first: float = 1e-4, last: float = 0.02) -> Tensor:
    """The DDPM schedule (Ho et al. 2020): beta linear in the step, float64.

    Args:
        n: steps.
        first, last: beta of the first and of the last one, in (0, 1).

    Example:
        >>> from invdiff.priors import linear_betas
        >>> [round(float(b), 5) for b in linear_betas(1000)[[0, 999]]]
        [0.0001, 0.02]
    """
    return torch.linspace(first, last, n, dtype=torch.float64)


def sqrt_linear_betas(n: int = 1000, first: float = 0.0015, last: float = 0.0195) -> Tensor:
    """The latent-diffusion schedule (Rombach et al. 2022): sqrt(beta) linear in the step, float64.

    Args:
        n: steps.
        first, last: beta of the first and of the last one, in (0, 1).

    Example:
        >>> from invdiff.priors import sqrt_linear_betas
        >>> [round(float(b), 5) for b in sqrt_linear_betas(1000)[[0, 999]]]
        [0.0015, 0.0195]
    """
    return torch.linspace(first**0.5, last**0.5, n, dtype=torch.float64) ** 2


class DiscreteSchedule:
    """The sigma-index map of a DDPM, from its own betas.

    ``sigma_t = sqrt((1 - abar_t) / abar_t)`` with ``abar_t = prod_(s<=t) (1 - beta_s)``, t = 0 .. n-1. Between
    the integers the index is linear in log sigma, so ``index(sigma_t) = t`` exactly.

    Example:
        >>> from invdiff.priors import DiscreteSchedule, linear_betas
        >>> schedule = DiscreteSchedule(linear_betas(1000))
        >>> round(float(schedule.index(schedule.sigmas[[500]])), 6)
        500.0
    """

    def __init__(self, betas: Tensor | Sequence[float]) -> None:
        betas = torch.as_tensor(betas, dtype=torch.float64)
        if betas.ndim != 1 or len(betas) < 2 or not bool(((betas > 0) & (betas < 1)).all()):
            raise ValueError("betas must be a vector of at least two numbers in (0, 1).")
        self.betas = betas
        self.alphas_bar = torch.cumprod(1 - betas, 0)
        self.sigmas = ((1 - self.alphas_bar) / self.alphas_bar).sqrt()
        self._log = self.sigmas.log()

    def index(self, sigma: Tensor) -> Tensor:
        """Fractional step of each ``sigma`` (float64), clamped to [0, n - 1]."""
        log = sigma.to(torch.float64).log()
        hi = torch.searchsorted(self._log, log.clamp(self._log[0], self._log[-1])).clamp(1, len(self._log) - 1)
        lo = hi - 1
        t = lo + (log - self._log[lo]) / (self._log[hi] - self._log[lo])
        return t.clamp(0, len(self._log) - 1)


class ContinuousVP:
    """The sigma-index map of the continuous variance-preserving process of EDM's ``VPPrecond`` (Karras et al. 2022).

    ``sigma(t) = sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1)``, t in (0, 1]; the index is ``steps t``.
    """

    def __init__(self, beta_d: float = 19.9, beta_min: float = 0.1, steps: int = 999) -> None:
        self.beta_d, self.beta_min, self.steps = beta_d, beta_min, steps

    def index(self, sigma: Tensor) -> Tensor:
        """Index of each ``sigma``, float64."""
        log = torch.log1p(sigma.to(torch.float64).square())
        return self.steps * ((self.beta_min**2 + 2 * self.beta_d * log).sqrt() - self.beta_min) / self.beta_d


class NoiseVariance:
    """The noise level by the variance of the noise in a variance-preserving state, ``sigma^2 / (1 + sigma^2)``."""

    def index(self, sigma: Tensor) -> Tensor:
        """That variance for each ``sigma``, float64."""
        s2 = sigma.to(torch.float64).square()
        return s2 / (1 + s2)


def ddpm_sigmas(n: int) -> list[float]:
    """``n`` levels of the linear DDPM schedule, evenly spaced in its 1000 steps, from 157 down to 0.01, then 0.

    Example:
        >>> from invdiff.priors import ddpm_sigmas
        >>> levels = ddpm_sigmas(1000)
        >>> len(levels), f"{levels[0]:.1f}", f"{levels[-2]:.2f}", levels[-1]
        (1001, '157.4', '0.01', 0.0)
    """
    schedule = DiscreteSchedule(linear_betas(1000))
    return [*schedule.sigmas[torch.linspace(999, 0, n).round().long()].tolist(), 0.0]


@dataclass(frozen=True, kw_only=True)
class DDPMGrid:
    """Noise levels evenly spaced in the steps of the linear DDPM schedule: the grid of DDIM with 1000 steps.

    Levels above ``sigma_max`` are left out and replaced by finer ones below it.

    Example:
        >>> from invdiff.priors import DDPMGrid
        >>> levels = DDPMGrid()(50)
        >>> len(levels), f"{levels[0]:.1f}", f"{levels[-2]:.2f}", levels[-1]
        (51, '157.4', '0.01', 0.0)
    """

    sigma_max: float = 158.0

    def __call__(self, n: int) -> list[float]:
        """``n`` positive levels, descending, then 0."""
        schedule = DiscreteSchedule(linear_betas(1000))
        last = float(schedule.index(torch.tensor([self.sigma_max]))[0])
        t = torch.linspace(last, 0, n, dtype=torch.float64) if n > 1 else torch.tensor([last], dtype=torch.float64)
        return [*_interpolate(t, schedule._log).exp().tolist(), 0.0]


@dataclass(frozen=True, kw_only=True)
class QuadraticDDPMGrid:
    """Levels of the linear DDPM schedule at the steps ``999 - 999 sqrt(i / (n - 1))``: large strides at high noise,
    small ones at low noise (the "quad" spacing of DiffPIR's released code).

    Example:
        >>> from invdiff.priors import QuadraticDDPMGrid
        >>> levels = QuadraticDDPMGrid()(10)
        >>> len(levels), bool(levels[0] - levels[1] > levels[-3] - levels[-2]), levels[-1]
        (11, True, 0.0)
    """

    def __call__(self, n: int) -> list[float]:
        """``n`` positive levels, descending, then 0."""
        schedule = DiscreteSchedule(linear_betas(1000))
        t = 999 - 999 * torch.linspace(0, 1, n, dtype=torch.float64).sqrt()
        return [*_interpolate(t, schedule._log).exp().tolist(), 0.0]


@dataclass(frozen=True, kw_only=True)
class KarrasGrid:
    """Noise levels of Karras et al. 2022 (arXiv 2206.00364, eq. 5), ``sigma_min`` being the last positive one.

    Args:
        sigma_max, sigma_min: the first and the last positive level.
        rho: 7 gives most levels to low noise.

    Example:
        >>> from invdiff.priors import KarrasGrid
        >>> [f"{s:.3f}" for s in KarrasGrid()(3)]
        ['80.000', '2.515', '0.002', '0.000']
    """

    sigma_max: float = 80.0
    sigma_min: float = 0.002
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(f"Need 0 < sigma_min < sigma_max, got {self}.")

    def __call__(self, n: int) -> list[float]:
        """``n`` positive levels, descending, then 0."""
        if n == 1:
            return [self.sigma_max, 0.0]
        return [*karras_sigmas(n - 1, self.sigma_min, self.sigma_max, self.rho).tolist(), 0.0]


@dataclass(frozen=True, kw_only=True)
class CosineGrid:
    """Noise levels ``tan(pi t / 2)`` for t evenly spaced: the cosine schedule (Nichol and Dhariwal 2021, s = 0).

    Args:
        sigma_max, sigma_min: the first and the last positive level.

    Example:
        >>> from invdiff.priors import CosineGrid
        >>> [round(s, 4) for s in CosineGrid(sigma_max=100.0, sigma_min=0.01)(3)]  # halfway: tan(pi / 4)
        [100.0, 1.0, 0.01, 0.0]
    """

    sigma_max: float = 80.0
    sigma_min: float = 0.002

    def __call__(self, n: int) -> list[float]:
        """``n`` positive levels, descending, then 0."""
        first, last = math.atan(self.sigma_max), math.atan(self.sigma_min)
        t = torch.linspace(first, last, n, dtype=torch.float64) if n > 1 else torch.tensor([first])
        return [*t.tan().tolist(), 0.0]


Grid = DDPMGrid | QuadraticDDPMGrid | KarrasGrid | CosineGrid
GRIDS: dict[str, type] = {
    "ddpm": DDPMGrid, "quadratic-ddpm": QuadraticDDPMGrid, "karras": KarrasGrid, "cosine": CosineGrid,
}  # fmt: skip


def _interpolate(t: Tensor, values: Tensor) -> Tensor:
    lo = t.floor().long().clamp(0, len(values) - 2)
    return values[lo] + (t - lo) * (values[lo + 1] - values[lo])
