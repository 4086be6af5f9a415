"""Few-step samplers of a denoiser, in VE units: DDIM, DPM-Solver++(2M), Heun.

A solver takes any denoiser, so a conditional one makes it a posterior sampler. Fewer than about 50 evaluations
change the variance of what is sampled, by a known amount for Gaussians (tests/algorithms/test_solvers.py): look
before you trust a spread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from invdiff.algorithms.draw import Run, check_unit_interval, draw
from invdiff.measurement import Measurement
from invdiff.noise import GaussianNoise
from invdiff.operators.pointwise import Identity
from invdiff.posterior import Posterior
from invdiff.priors.denoiser import Prior
from invdiff.priors.schedules import Grid, KarrasGrid

Denoise = Callable[[Tensor, float], Tensor]


class Solver(Protocol):
    """Integrates from ``u`` at level ``sigmas[0]`` down to ``sigmas[-1] = 0``.

    Example:
        >>> class Euler:
        ...     def __call__(self, D, u, sigmas, run):
        ...         for s, s_next in zip(sigmas[:-1], sigmas[1:]):
        ...             u = u + (s_next - s) * (u - D(u, s)) / s
        ...         return u
        >>> from invdiff.algorithms.solvers import sample_prior
        >>> from invdiff.priors import GaussianPrior, StationaryCovariance
        >>> prior = GaussianPrior(torch.zeros(1, 4, 4), StationaryCovariance(torch.full((1, 4, 4), 0.25)))
        >>> p = sample_prior(prior, 64, n_steps=50, solver=Euler())
        >>> p.nfe, bool((p.std.mean() - 0.5).abs() < 0.1)
        (50.0, True)
    """

    def __call__(self, D: Denoise, u: Tensor, sigmas: Sequence[float], run: Run) -> Tensor: ...


def ddim_step(u: Tensor, x0: Tensor, s: float, s_next: float, eta: float, run: Run) -> Tensor:
    """``u' = x0 + sqrt(s'^2 - v) (u - x0) / s + sqrt(v) z`` with ``v = eta^2 s'^2 (s^2 - s'^2) / s^2``.

    eta = 0: DDIM; eta = 1: the ancestral sampler (Song et al. 2021, arXiv 2010.02502, eq. 12 and 16, in VE units).

    Args:
        u, x0: state and denoised image, (n, \\*shape).
        s, s_next: noise levels now and next (s'), s > s_next >= 0.
        eta: in [0, 1].
        run: draws z; not used where v = 0.

    Example:
        >>> from invdiff.algorithms.solvers import ddim_step
        >>> float(ddim_step(torch.tensor(3.0), torch.tensor(1.0), 2.0, 1.0, 0.0, None))  # x0 + s' / s (u - x0)
        2.0
    """
    v = eta**2 * s_next**2 * (s**2 - s_next**2) / s**2
    u = x0 + (s_next**2 - v) ** 0.5 / s * (u - x0)
    return u + v**0.5 * run.randn() if v > 0 else u


def ddpm_step(v: Tensor, x0: Tensor, s: float, s_next: float, run: Run) -> Tensor:
    """The ancestral step of the variance-preserving state ``v = u / sqrt(1 + s^2)`` (Ho et al. 2020, eq. 6 and 7):
    ``sqrt(abar') beta / (1 - abar) x0 + sqrt(alpha) (1 - abar') / (1 - abar) v + sqrt(beta~) z``, no noise at s' = 0.

    With ``abar = 1 / (1 + s^2)``, ``alpha = abar / abar'``, ``beta = 1 - alpha``,
    ``beta~ = (1 - abar') / (1 - abar) beta``.

    Args:
        v, x0: state and denoised image, (n, \\*shape).
        s, s_next: noise levels now and next (s'), s > s_next >= 0.
        run: draws z; not used at s' = 0.

    Example:
        >>> from invdiff.algorithms.solvers import ddpm_step
        >>> round(float(ddpm_step(torch.tensor(3.0), torch.tensor(1.0), 2.0, 0.0, None)), 6)  # at s' = 0: x0
        1.0
    """
    ab, ab_next = 1 / (1 + s**2), 1 / (1 + s_next**2)
    alpha = ab / ab_next
    v = ab_next**0.5 * (1 - alpha) / (1 - ab) * x0 + alpha**0.5 * (1 - ab_next) / (1 - ab) * v
    return v + ((1 - ab_next) / (1 - ab) * (1 - alpha)) ** 0.5 * run.randn() if s_next > 0 else v


def matched_step(u: Tensor, x0: Tensor, s: float, s_next: float, sigma_data: float, run: Run) -> Tensor:
    """The ancestral step with the variance it has for a white Gaussian prior of standard deviation sd:
    ``u' = x0 + (s'/s)^2 (u - x0) + sqrt(v) z`` with ``v = (sd^2 + s'^2) (s^2 - s'^2) / (sd^2 + s^2)``, 0 at s' = 0.

    DDIM's eta = 1 is sd = 0: in few steps it loses variance wherever the prior is wider than the steps (Bao et
    al. 2022, Analytic-DPM, arXiv 2201.06503).

    Args:
        u, x0: state and denoised image, (n, \\*shape).
        s, s_next: noise levels now and next (s'), s > s_next >= 0.
        sigma_data: sd, model units.
        run: draws z; not used at s' = 0.

    Example:
        >>> from invdiff.algorithms.solvers import matched_step
        >>> float(matched_step(torch.tensor(3.0), torch.tensor(1.0), 2.0, 0.0, 0.5, None))  # at s' = 0: x0
        1.0
    """
    u = x0 + (s_next / s) ** 2 * (u - x0)
    if s_next == 0:
        return u
    v = (sigma_data**2 + s_next**2) * (s**2 - s_next**2) / (sigma_data**2 + s**2)
    return u + v**0.5 * run.randn()


@dataclass(frozen=True, kw_only=True)
class DDIM:
    """Denoising diffusion implicit model: first order, one evaluation per step. ``eta`` as in :func:`ddim_step`.

    Example:
        >>> from invdiff.algorithms.solvers import DDIM, sample_prior
        >>> from invdiff.priors import GaussianPrior, StationaryCovariance
        >>> prior = GaussianPrior(torch.zeros(1, 4, 4), StationaryCovariance(torch.full((1, 4, 4), 0.25)))
        >>> p = sample_prior(prior, 64, n_steps=50, solver=DDIM(eta=0.5))
        >>> p.nfe, bool((p.std.mean() - 0.5).abs() < 0.1)
        (50.0, True)
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        check_unit_interval(self, "eta")

    def __call__(self, D: Denoise, u: Tensor, sigmas: Sequence[float], run: Run) -> Tensor:
        for s, s_next in zip(sigmas[:-1], sigmas[1:], strict=True):
            u = ddim_step(u, D(u, s), s, s_next, self.eta, run)
        return u


@dataclass(frozen=True, kw_only=True)
class DPMSolver2M:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2): second order, one evaluation per step.

    With ``lambda = -log s``: the denoised image is extrapolated linearly in lambda; the last step is DDIM's.

    Example:
        >>> from invdiff.algorithms.solvers import DPMSolver2M, sample_prior
        >>> from invdiff.priors import GaussianPrior, StationaryCovariance
        >>> prior = GaussianPrior(torch.zeros(1, 4, 4), StationaryCovariance(torch.full((1, 4, 4), 0.25)))
        >>> p = sample_prior(prior, 64, n_steps=50, solver=DPMSolver2M())
        >>> p.nfe, bool((p.std.mean() - 0.5).abs() < 0.1)
        (50.0, True)
    """

    def __call__(self, D: Denoise, u: Tensor, sigmas: Sequence[float], run: Run) -> Tensor:
        previous, h_previous = None, 0.0
        for s, s_next in zip(sigmas[:-1], sigmas[1:], strict=True):
            x0 = D(u, s)
            if s_next == 0:
                return x0
            h = math.log(s / s_next)
            d = x0 if previous is None else x0 + h / (2 * h_previous) * (x0 - previous)
            u = s_next / s * u + (1 - s_next / s) * d
            previous, h_previous = x0, h
        return u


@dataclass(frozen=True, kw_only=True)
class Heun:
    """Heun's method of Karras et al. 2022 (arXiv 2206.00364, algorithm 1): second order, ``2 n - 1`` evaluations.

    Example:
        >>> from invdiff.algorithms.solvers import Heun, sample_prior
        >>> from invdiff.priors import GaussianPrior, StationaryCovariance
        >>> prior = GaussianPrior(torch.zeros(1, 4, 4), StationaryCovariance(torch.full((1, 4, 4), 0.25)))
        >>> p = sample_prior(prior, 64, n_steps=50, solver=Heun())
        >>> p.nfe, bool((p.std.mean() - 0.5).abs() < 0.1)
        (99.0, True)
    """

    def __call__(self, D: Denoise, u: Tensor, sigmas: Sequence[float], run: Run) -> Tensor:
        for s, s_next in zip(sigmas[:-1], sigmas[1:], strict=True):
            d = (u - D(u, s)) / s
            v = u + (s_next - s) * d
            if s_next > 0:
                v = u + (s_next - s) * (d + (v - D(v, s_next)) / s_next) / 2
            u = v
        return u


SOLVERS: dict[str, type] = {"ddim": DDIM, "dpm-solver-2m": DPMSolver2M, "heun": Heun}


def sample_prior(
    prior: Prior,
    n_samples: int,
    *,
    n_steps: int = 50,
    solver: Solver | None = None,
    grid: Grid | None = None,
    seed: int = 0,
    item: str = "prior",
) -> Posterior:
    """Unconditional samples of a prior, in relative units (1 is ``prior.info.quantity``).

    Args:
        prior: to sample.
        n_samples: at least 1.
        n_steps: noise levels of the grid.
        solver: default :class:`Heun`.
        grid: default :class:`~invdiff.priors.KarrasGrid`.
        seed, item: select the random streams.

    Example:
        >>> from invdiff.algorithms.solvers import sample_prior
        >>> from invdiff.priors import GaussianPrior, StationaryCovariance
        >>> prior = GaussianPrior(torch.zeros(1, 4, 4), StationaryCovariance(torch.full((1, 4, 4), 0.25)))
        >>> p = sample_prior(prior, 64, seed=0)
        >>> tuple(p.samples.shape), bool(p.mean.mean().abs() < 0.1), bool((p.std.mean() - 0.5).abs() < 0.1)
        ((64, 1, 4, 4), True, True)
    """
    solver, levels = solver or Heun(), (grid or KarrasGrid())(n_steps)

    def loop(run: Run) -> Tensor:
        u, S = run.start(levels)
        return solver(run.denoise, u, S, run)

    shape = getattr(prior, "image_shape", prior.shape)  # a latent prior has both
    A = Identity(shape).to(dtype=prior.dtype, device=prior.device)
    nothing = Measurement(torch.zeros(shape, dtype=prior.dtype, device=prior.device), A, GaussianNoise(1.0), item=item)
    with torch.no_grad():
        return draw(
            solver, loop, prior, nothing, n_samples=n_samples, seed=seed, batch_size=None, start=None,
            start_sigma=None, callback=None,
        )  # fmt: skip
