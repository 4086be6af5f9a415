"""Transitions that draw ``x0`` from ``N(x0; m, S^2 I) p(y | x0)``, the inner problem of DAPS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from invdiff.algorithms.draw import check_positive
from invdiff.measurement import Measurement
from invdiff.operators.base import Affine
from invdiff.random import SampleStreams


class Kernel(Protocol):
    """Moves ``x0`` (samples, \\*shape), started at ``m``, towards the conditional at level ``S``."""

    def check(self, measurement: Measurement, sigmas: list[float]) -> None:
        """Raise before any work if the kernel cannot run on this problem."""
        ...

    def __call__(
        self, m: Tensor, S: float, measurement: Measurement, streams: SampleStreams, progress: float
    ) -> Tensor:
        """``progress`` runs from 0 to 1 over the annealing levels."""
        ...


@dataclass(frozen=True, kw_only=True)
class Conditional:
    """The conditional itself, drawn by perturbing and solving; for linear operators and (near) Gaussian noise.

    Closed form where the operator has one, else conjugate gradients from ``m``. Runs with other micro-batches
    agree to ``tolerance`` then: rounding grows in the steps up to where they stop.

    Attributes:
        n_cg: most conjugate gradient steps; the wide first levels use them all, the last need a few.
        tolerance: relative residual to stop at. Looser is somewhat faster but fits the data worse where photon
            counts span orders of magnitude (1e-3 gave chi2 4 instead of 1 on a chest slice).
    """

    n_cg: int = 25
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        check_positive(self, "n_cg", "tolerance")

    def check(self, measurement: Measurement, sigmas: list[float]) -> None:
        if not isinstance(measurement.A, Affine):
            raise TypeError(
                f"The kernel Conditional needs a linear operator, got {measurement.A!r}. Use kernel=Langevin()."
            )

    def __call__(
        self, m: Tensor, S: float, measurement: Measurement, streams: SampleStreams, progress: float
    ) -> Tensor:
        return measurement.conditional(m, S**2, streams, n_steps=self.n_cg, tolerance=self.tolerance)


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
    """

    n_steps: int = 100
    step_size: float = 1e-4
    step_decay: float = 0.01
    tau: float | None = None

    def __post_init__(self) -> None:
        check_positive(self, "n_steps", "step_size", "step_decay")

    def check(self, measurement: Measurement, sigmas: list[float]) -> None:
        """The iteration is unstable where step_size times curvature exceeds 2 (known for linear operators)."""
        if not isinstance(measurement.A, Affine):
            return
        precision = measurement.noise.precision(measurement.y)
        weight = (
            float(precision if isinstance(precision, float) else precision.max())
            if self.tau is None
            else 2 / self.tau**2
        )
        data = weight * measurement.A.linear.norm() ** 2
        for i, S in enumerate(sigmas):
            eta = self._eta(i / len(sigmas))
            if eta * (data + 1 / S**2) > 2.02:  # 1 % for the estimate of the norm
                raise ValueError(
                    f"Langevin diverges: step_size={eta:.3g} at level sigma={S:.3g} times the curvature "
                    f"{data + 1 / S**2:.3g} exceeds 2. Use "
                    f"step_size <= {2 / (data + 1 / S**2) * self.step_size / eta:.3g}, or kernel=Conditional()."
                )

    def _eta(self, progress: float) -> float:
        return self.step_size * (1 + progress * (self.step_decay - 1))

    def __call__(
        self, m: Tensor, S: float, measurement: Measurement, streams: SampleStreams, progress: float
    ) -> Tensor:
        eta, x = self._eta(progress), m.clone()
        for _ in range(self.n_steps):
            if self.tau is None:
                grad = measurement.nll_grad(x)
            else:
                grad = measurement.A.vjp(x, -2 / self.tau**2 * measurement.residual(x))
            z = streams.randn(x.shape[1:], dtype=x.dtype, device=x.device)
            x.add_((m - x).div_(S**2).sub_(grad), alpha=eta).add_(z, alpha=(2 * eta) ** 0.5)
        return x


KERNELS: dict[str, type] = {"conditional": Conditional, "langevin": Langevin}
