"""SIRT: simultaneous iterative reconstruction for tomography.

P. Gilbert, J. Theor. Biol. 36, 105-117, 1972; in the form and with the analysis of J. Gregor and T. Benson, IEEE Trans.
Med. Imaging 27, 918-924, 2008.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invdiff.algorithms.draw import Callback, check_positive
from invdiff.classical.point import point_estimate, require_linear, require_non_negative
from invdiff.measurement import Measurement
from invdiff.posterior import Posterior
from invdiff.priors.denoiser import Prior


@dataclass(frozen=True, kw_only=True)
class SIRT:
    """SIRT: ``x <- x + C A^H R (y - A x)`` from zero. Label: *point estimate*.

    R and C divide by the row and the column sums of A, so that no step length is needed. It converges to the least
    squares solution weighted by R.

    Attributes:
        n_steps: iterations; stopping early regularises.
        non_negative: set negative pixels to zero after every step.

    Example:
        >>> from invdiff import GaussianNoise, Measurement
        >>> from invdiff.classical import SIRT
        >>> from invdiff.operators import CT, ParallelBeam
        >>> A = CT(ParallelBeam.covering((16, 16), 1.0, n_views=12))
        >>> x = torch.zeros(1, 16, 16)
        >>> x[0, 5:11, 5:11] = 0.02
        >>> m = Measurement(A(x), A, GaussianNoise(0.01))
        >>> bool(m.residual(SIRT(n_steps=50)(None, m).mean).norm() < 0.05 * m.y.norm())
        True
    """

    n_steps: int = 200
    non_negative: bool = False
    bibtex: ClassVar[str] = """@article{gregor2008computational,
  author  = {Gregor, Jens and Benson, Thomas},
  title   = {Computational analysis and improvement of {SIRT}},
  journal = {IEEE Transactions on Medical Imaging},
  volume  = {27},
  number  = {7},
  pages   = {918--924},
  year    = {2008}
}"""

    def __post_init__(self) -> None:
        check_positive(self, "n_steps")

    def __call__(
        self,
        prior: Prior | None,
        measurement: Measurement,
        *,
        n_samples: int = 1,
        seed: int = 0,
        batch_size: int | None = None,
        callback: Callback | None = None,
    ) -> Posterior:
        """Same call as an algorithm; ``prior`` is not used and ``n_samples`` must be 1.

        Raises:
            TypeError: an operator that is not linear, is complex, or has negative weights.
        """
        A = require_linear(self, measurement)
        rows, columns = require_non_negative(self, A)

        def reconstruct() -> Tensor:
            R, C = (torch.where(s > 1e-6 * s.max(), 1 / s, torch.zeros_like(s)) for s in (rows, columns))
            x = torch.zeros_like(columns)
            for step in range(self.n_steps):
                x = x + C * A.H(R * (measurement.y - A(x)))
                x = x.clamp(min=0) if self.non_negative else x
                if callback is not None:
                    callback(step, self.n_steps, x=x)
            return x

        return point_estimate(self, reconstruct, measurement, n_samples=n_samples, seed=seed)
