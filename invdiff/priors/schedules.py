"""Noise levels: grids of sigma for samplers, and the exact sigma of a discrete variance-preserving schedule."""

from __future__ import annotations

import torch
from torch import Tensor


def karras_sigmas(n: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """``n + 1`` levels from ``sigma_max`` down to ``sigma_min``, polynomial in the level's index, float64.

    ``sigma_i = (sigma_max^(1/rho) + i/n (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho``
    (Karras et al. 2022, arXiv 2206.00364, eq. 5, with both ends included).
    """
    if n < 1 or not 0 < sigma_min < sigma_max:
        raise ValueError(f"Need n >= 1 and 0 < sigma_min < sigma_max, got n={n}, {sigma_min=}, {sigma_max=}.")
    t = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    return (sigma_max ** (1 / rho) + t * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho


def linear_betas(n: int = 1000, first: float = 1e-4, last: float = 0.02) -> Tensor:
    """The DDPM schedule (Ho et al. 2020): beta linear in the step, float64."""
    return torch.linspace(first, last, n, dtype=torch.float64)


def sqrt_linear_betas(n: int = 1000, first: float = 0.0015, last: float = 0.0195) -> Tensor:
    """The latent-diffusion schedule (Rombach et al. 2022): sqrt(beta) linear in the step, float64."""
    return torch.linspace(first**0.5, last**0.5, n, dtype=torch.float64) ** 2


class DiscreteSchedule:
    """The sigma-index map of a DDPM, from its own betas.

    ``sigma_t = sqrt((1 - abar_t) / abar_t)`` with ``abar_t = prod_(s<=t) (1 - beta_s)``, t = 0 .. n-1. Between
    the integers the index is linear in log sigma, so ``index(sigma_t) = t`` exactly.
    """

    def __init__(self, betas: Tensor) -> None:
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
