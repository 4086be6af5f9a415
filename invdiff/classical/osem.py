"""OSEM: maximum likelihood for emission counts, accelerated by ordered subsets.

H. M. Hudson and R. S. Larkin, IEEE Trans. Med. Imaging 13, 601-609, 1994, section II. With one subset it is MLEM:
L. A. Shepp and Y. Vardi, IEEE Trans. Med. Imaging 1, 113-122, 1982; K. Lange and R. Carson, J. Comput. Assist. Tomogr.
8, 306-316, 1984.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invdiff.algorithms.draw import Callback, check_positive
from invdiff.classical.point import point_estimate, require_linear, require_non_negative
from invdiff.classical.richardson_lucy import em_step
from invdiff.classical.view_subsets import view_subsets
from invdiff.measurement import Measurement
from invdiff.posterior import Posterior
from invdiff.priors.denoiser import Prior


@dataclass(frozen=True, kw_only=True)
class OSEM:
    """OSEM: ``x <- x A_s^H(y_s / A_s x) / A_s^H 1`` over subsets s of the views. Label: *point estimate*.

    Data are taken as emission counts, ``y ~ Poisson(A x)``: negative ones count as zero. Of line integrals, as
    transmission CT has them, it makes the non-negative image of least Kullback-Leibler divergence, a common use that
    is not their likelihood; that is :class:`OSTR`'s. With one subset it is MLEM: every step climbs the likelihood and
    keeps the total, ``sum(A x) = sum(y)``. With several, it is up to ``n_subsets`` times faster at first, and ends in a
    cycle near the maximum.

    Attributes:
        n_steps: passes through the data; stopping early regularises.
        n_subsets: of the views (dimension 1 of the data); 1 for operators without views.

    Example:
        >>> from invdiff import GaussianNoise, Measurement
        >>> from invdiff.classical import OSEM
        >>> from invdiff.operators import CT, ParallelBeam
        >>> A, x = CT(ParallelBeam.covering((16, 16), 1.0, n_views=16)), torch.zeros(1, 16, 16)
        >>> x[0, 5:11, 5:11] = 0.02
        >>> m = Measurement(A(x), A, GaussianNoise(0.01))
        >>> image = OSEM(n_steps=5, n_subsets=4)(None, m).mean
        >>> bool(image.min() >= 0), bool(m.residual(image).norm() < 0.1 * m.y.norm())
        (True, True)
    """

    n_steps: int = 5
    n_subsets: int = 8
    bibtex: ClassVar[str] = """@article{hudson1994accelerated,
  author  = {Hudson, H. Malcolm and Larkin, Richard S.},
  title   = {Accelerated image reconstruction using ordered subsets of projection data},
  journal = {IEEE Transactions on Medical Imaging},
  volume  = {13},
  number  = {4},
  pages   = {601--609},
  year    = {1994}
}

@article{shepp1982maximum,
  author  = {Shepp, L. A. and Vardi, Y.},
  title   = {Maximum likelihood reconstruction for emission tomography},
  journal = {IEEE Transactions on Medical Imaging},
  volume  = {1},
  number  = {2},
  pages   = {113--122},
  year    = {1982}
}"""

    def __post_init__(self) -> None:
        check_positive(self, "n_steps", "n_subsets")

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
            TypeError: an operator that is not linear, is complex, has negative weights, or has no views to divide.
            ValueError: no data above zero; more subsets than views.
        """
        A = require_linear(self, measurement)
        rows, columns = require_non_negative(self, A)
        y = measurement.y.clamp(min=0)
        if not y.any():
            raise ValueError("OSEM needs counts or intensities, got no data above zero.")
        subsets = view_subsets(self, A, self.n_subsets)

        def reconstruct() -> Tensor:
            parts = [(A, y, columns)]
            if self.n_subsets > 1:
                parts = [(A_s, y[:, views], A_s.H(torch.ones_like(y[:, views]))) for A_s, views in subsets]
            x = torch.where(columns > 0, y.sum() / rows.sum(), torch.zeros_like(columns))
            for step in range(self.n_steps):
                for part in parts:
                    x = em_step(x, *part)
                if callback is not None:
                    callback(step, self.n_steps, x=x)
            return x

        return point_estimate(self, reconstruct, measurement, n_samples=n_samples, seed=seed)
