"""Transitions that draw ``x0`` from ``N(x0; m, S^2 I) p(y | x0)``, the inner problem of DAPS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from invdiff.algorithms.draw import Run, check_positive
from invdiff.measurement import Measurement
from invdiff.operators.linalg import power_iteration


class Kernel(Protocol):
    """Moves ``x0`` (samples, \\*shape), started at ``m``, towards the conditional at level ``S``.

    Example:
        >>> class ClosedForm:  # for data that see some pixels as they are
        ...     def check(self, measurement, sigmas):
        ...         pass
        ...     def __call__(self, m, S, run, progress):
        ...         data = run.measurement
        ...         weight = data.A.observed / data.noise.sigma**2
        ...         variance = 1 / (1 / S**2 + weight)
        ...         return variance * (m / S**2 + weight * data.y) + variance**0.5 * run.randn()
        >>> from invdiff import GaussianNoise, Measurement
        >>> from invdiff.algorithms import DAPS
        >>> from invdiff.operators import Inpainting, random_pixels
        >>> from invdiff.priors import GaussianPrior, StationaryCovariance
        >>> prior = GaussianPrior(torch.zeros(1, 4, 4), StationaryCovariance(torch.full((1, 4, 4), 0.25)))
        >>> seen = random_pixels((1, 4, 4), 0.5, seed=0)
        >>> m = Measurement(0.6 * seen, Inpainting(seen), GaussianNoise(0.1))
        >>> p = DAPS(n_anneal=20, kernel=ClosedForm())(prior, m, n_samples=32)
        >>> bool((p.mean[seen] - 0.6).abs().max() < 0.2)
        True
    """

    def check(self, measurement: Measurement, sigmas: list[float]) -> None:
        """Raise before any work if the kernel cannot run on this problem."""
        ...

    def __call__(self, m: Tensor, S: float, run: Run, progress: float) -> Tensor:
        """``progress`` runs from 0 at the first annealing level to 1 at the last (1 if there is only one)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Conditional:
    """The conditional itself, drawn by perturbing and solving; for linear operators and (near) Gaussian noise.

    Closed form where the operator has one (masks, blurs, MRI of whole lines of k-space), else conjugate gradients from
    ``m``. Runs with other micro-batches agree to ``tolerance`` then: rounding grows in the steps up to where they stop.

    Attributes:
        n_cg: conjugate gradient steps at the last level; they grow with the square of the progress from one at the
            first, whose errors the noise of the next level covers: a third of the cost, the same result
            (benchmarks/results/inner_solver.txt). None: 40 for white noise; else, as for photon counts, the steps are
            taken on the data, and 1 plus the root of ``Measurement.conditioning`` stands for the last level's number
            at each level: on a chest at most 7 steps for 30 views and 15 for 180, fewer where the noise prevails.
        tolerance: relative residual to stop at before.

    Example:
        >>> from invdiff import GaussianNoise, Measurement
        >>> from invdiff.algorithms import DAPS
        >>> from invdiff.algorithms.kernels import Conditional
        >>> from invdiff.operators import Inpainting, random_pixels
        >>> from invdiff.priors import GaussianPrior, StationaryCovariance
        >>> prior = GaussianPrior(torch.zeros(1, 4, 4), StationaryCovariance(torch.full((1, 4, 4), 0.25)))
        >>> seen = random_pixels((1, 4, 4), 0.5, seed=0)
        >>> m = Measurement(0.6 * seen, Inpainting(seen), GaussianNoise(0.1))
        >>> p = DAPS(n_anneal=20, kernel=Conditional())(prior, m, n_samples=32)
        >>> bool((p.mean[seen] - 0.6).abs().max() < 0.2)
        True
    """

    n_cg: int | None = None
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        check_positive(self, "tolerance", *([] if self.n_cg is None else ["n_cg"]))

    def check(self, measurement: Measurement, sigmas: list[float]) -> None:
        if measurement.linear is None:
            raise TypeError(
                f"The kernel Conditional needs a linear operator, got {measurement.A!r}. Use kernel=Langevin()."
            )

    def __call__(self, m: Tensor, S: float, run: Run, progress: float) -> Tensor:
        data = run.measurement
        white = isinstance(data.noise.precision(data.y), float)
        n_cg = self.n_cg or (40 if white else 1 + data.conditioning(S**2) ** 0.5)
        n_steps = 1 + round((n_cg - 1) * progress**2)
        return data.conditional(m, S**2, run.streams, n_steps=n_steps, tolerance=self.tolerance)


@dataclass(frozen=True, kw_only=True)
class Langevin:
    """Unadjusted Langevin steps, the kernel of the DAPS paper.

    ``x <- x + eta [(m - x)/S^2 - grad l(x)] + sqrt(2 eta) z``.

    Attributes:
        n_steps: N, steps per annealing level.
        step_size: eta at the first level.
        step_decay: eta at the last level over eta at the first, linear in between.
        tau: None: l is the measurement's negative log-likelihood. A number: ``l = |A x - y|^2 / tau^2`` as in the
            released code (no 1/2: a likelihood of standard deviation tau / sqrt 2, whatever the noise).
        clip: largest magnitude of each entry of the gradient of ``tau^2 l``; the released code has 1 in latent
            space (None: none).

    Example:
        >>> from invdiff import GaussianNoise, Measurement
        >>> from invdiff.algorithms import DAPS
        >>> from invdiff.algorithms.kernels import Langevin
        >>> from invdiff.operators import Inpainting, random_pixels
        >>> from invdiff.priors import GaussianPrior, StationaryCovariance
        >>> prior = GaussianPrior(torch.zeros(1, 4, 4), StationaryCovariance(torch.full((1, 4, 4), 0.25)))
        >>> seen = random_pixels((1, 4, 4), 0.5, seed=0)
        >>> m = Measurement(0.6 * seen, Inpainting(seen), GaussianNoise(0.1))
        >>> p = DAPS(n_anneal=20, kernel=Langevin(n_steps=20, step_size=1e-3, step_decay=0.1))(prior, m, n_samples=32)
        >>> bool((p.mean[seen] - 0.6).abs().max() < 0.2)
        True
    """

    n_steps: int = 100
    step_size: float = 1e-4
    step_decay: float = 0.01
    tau: float | None = None
    clip: float | None = None

    def __post_init__(self) -> None:
        check_positive(self, "n_steps", "step_size", "step_decay")
        _check_clip(self)

    def check(self, measurement: Measurement, sigmas: list[float]) -> None:
        """The iteration is unstable where step_size times curvature exceeds 2 (known for linear operators)."""
        _check_stable(self, measurement, sigmas, 2.0)

    def __call__(self, m: Tensor, S: float, run: Run, progress: float) -> Tensor:
        eta, x, grad = _decayed(self, progress), m.clone(), _data_gradient(self, run.measurement)
        for _ in range(self.n_steps):
            x.add_((m - x).div_(S**2).sub_(grad(x)), alpha=eta).add_(run.randn(), alpha=(2 * eta) ** 0.5)
        return x


@dataclass(frozen=True, kw_only=True)
class HMC:
    """Hamiltonian steps with friction and without rejection, the second kernel of the DAPS paper.

    ``v <- mu v + sqrt(eta) score + sqrt(2 (1 - mu)) z``, ``x <- x + sqrt(eta) v`` from ``v ~ N(0, I)``, with
    ``score = (m - x)/S^2 - grad l(x)``. With mu = 0 each step is a Langevin step of size eta; for
    any mu the stationary law is the target up to terms of order eta.

    Attributes:
        n_steps, step_size, step_decay, tau, clip: as for :class:`Langevin`.
        momentum: mu, in [0, 1).

    Example:
        >>> from invdiff import GaussianNoise, Measurement
        >>> from invdiff.algorithms import DAPS
        >>> from invdiff.algorithms.kernels import HMC
        >>> from invdiff.operators import Inpainting, random_pixels
        >>> from invdiff.priors import GaussianPrior, StationaryCovariance
        >>> prior = GaussianPrior(torch.zeros(1, 4, 4), StationaryCovariance(torch.full((1, 4, 4), 0.25)))
        >>> seen = random_pixels((1, 4, 4), 0.5, seed=0)
        >>> m = Measurement(0.6 * seen, Inpainting(seen), GaussianNoise(0.1))
        >>> p = DAPS(n_anneal=20, kernel=HMC(n_steps=20, step_size=1e-3))(prior, m, n_samples=32)
        >>> bool((p.mean[seen] - 0.6).abs().max() < 0.2)
        True
    """

    n_steps: int = 50
    step_size: float = 1e-4
    step_decay: float = 0.01
    momentum: float = 0.5
    tau: float | None = None
    clip: float | None = None

    def __post_init__(self) -> None:
        check_positive(self, "n_steps", "step_size", "step_decay")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"HMC: momentum must lie in [0, 1), got {self.momentum}.")
        _check_clip(self)

    def check(self, measurement: Measurement, sigmas: list[float]) -> None:
        """Unstable where step_size times curvature exceeds 2 (1 + momentum) (known for linear operators)."""
        _check_stable(self, measurement, sigmas, 2 * (1 + self.momentum))

    def __call__(self, m: Tensor, S: float, run: Run, progress: float) -> Tensor:
        eta, x, grad = _decayed(self, progress), m.clone(), _data_gradient(self, run.measurement)
        v = run.randn()
        for _ in range(self.n_steps):
            score = (m - x) / S**2 - grad(x)
            v = self.momentum * v + eta**0.5 * score + (2 * (1 - self.momentum)) ** 0.5 * run.randn()
            x = x + eta**0.5 * v
        return x


@dataclass(frozen=True, kw_only=True)
class Metropolis:
    """Random-walk Metropolis-Hastings with proposals ``x + sqrt(eta) z``: exact in the limit, and gradient-free.

    The released code accepts with ``exp(-|A x - y|^2 / (2 tau^2))`` here but not in its other kernels; this one
    uses the measurement's own likelihood. Each sample accepts on its own.

    Attributes:
        n_steps: proposals per annealing level.
        step_size: eta at the first level, the variance of a proposal.
        step_decay: eta at the last level over eta at the first, linear in between.

    Example:
        >>> from invdiff import GaussianNoise, Measurement
        >>> from invdiff.algorithms import DAPS
        >>> from invdiff.algorithms.kernels import Metropolis
        >>> from invdiff.operators import Inpainting, random_pixels
        >>> from invdiff.priors import GaussianPrior, StationaryCovariance
        >>> prior = GaussianPrior(torch.zeros(1, 4, 4), StationaryCovariance(torch.full((1, 4, 4), 0.25)))
        >>> seen = random_pixels((1, 4, 4), 0.5, seed=0)
        >>> m = Measurement(0.6 * seen, Inpainting(seen), GaussianNoise(0.1))
        >>> p = DAPS(n_anneal=20, kernel=Metropolis(n_steps=50, step_size=1e-2))(prior, m, n_samples=32)
        >>> bool((p.mean[seen] - 0.6).abs().max() < 0.2)
        True
    """

    n_steps: int = 1000
    step_size: float = 1e-3
    step_decay: float = 0.01

    def __post_init__(self) -> None:
        check_positive(self, "n_steps", "step_size", "step_decay")

    def check(self, measurement: Measurement, sigmas: list[float]) -> None:
        """Nothing to refuse: any operator, any step."""

    def __call__(self, m: Tensor, S: float, run: Run, progress: float) -> Tensor:
        eta, x = _decayed(self, progress), m

        def energy(x: Tensor) -> Tensor:
            return (x - m).flatten(1).square().sum(1) / (2 * S**2) + run.measurement.nll(x)

        now = energy(x)
        for _ in range(self.n_steps):
            proposal = x + eta**0.5 * run.randn()
            new = energy(proposal)
            accept = run.streams.rand((1,))[:, 0].to(now).log() < now - new
            x = torch.where(accept.reshape(-1, *[1] * (x.ndim - 1)), proposal, x)
            now = torch.where(accept, new, now)
        return x


def _decayed(kernel: Langevin | HMC | Metropolis, progress: float) -> float:
    return kernel.step_size * (1 + progress * (kernel.step_decay - 1))


def _check_clip(kernel: Langevin | HMC) -> None:
    if kernel.clip is not None and kernel.tau is None:
        raise ValueError(f"{type(kernel).__name__}: clip={kernel.clip} is of the gradient of tau^2 l; give tau too.")


def _data_gradient(kernel: Langevin | HMC, measurement: Measurement) -> Callable[[Tensor], Tensor]:
    tau, clip = kernel.tau, kernel.clip

    def grad(x: Tensor) -> Tensor:
        if tau is None:
            return measurement.nll_grad(x)
        g = measurement.A.vjp(x, -2 * measurement.residual(x))
        return (g if clip is None else g.clamp(-clip, clip)) / tau**2

    return grad


def _check_stable(kernel: Langevin | HMC, measurement: Measurement, sigmas: list[float], limit: float) -> None:
    A = measurement.linear
    if A is None:
        return
    precision = measurement.noise.precision(measurement.y)
    if kernel.tau is not None:
        data = 2 / kernel.tau**2 * A.norm() ** 2
    elif isinstance(precision, float):
        data = precision * A.norm() ** 2
    else:
        x = torch.randn(A.in_shape, generator=torch.Generator().manual_seed(0), dtype=A.dtype).to(A.device)
        data = power_iteration(lambda x: A.H(precision * A(x)), x)
    for i, S in enumerate(sigmas):
        progress = i / (len(sigmas) - 1) if len(sigmas) > 1 else 1.0
        eta, curvature = _decayed(kernel, progress), data + 1 / S**2
        if eta * curvature > 1.01 * limit:  # 1 % for the estimate of the norm
            raise ValueError(
                f"{type(kernel).__name__} diverges: step_size={eta:.3g} at level sigma={S:.3g} times the curvature "
                f"{curvature:.3g} exceeds {limit:g}. Use "
                f"step_size <= {limit / curvature * kernel.step_size / eta:.3g}, or kernel=Conditional()."
            )


KERNELS: dict[str, type] = {
    "conditional": Conditional,
    "hmc": HMC,
    "langevin": Langevin,
    "metropolis": Metropolis,
}
