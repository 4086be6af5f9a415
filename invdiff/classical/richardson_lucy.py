"""Richardson-Lucy deconvolution: maximum likelihood for Poisson counts.

W. H. Richardson, J. Opt. Soc. Am. 62, 55-59, 1972; L. B. Lucy, Astron. J. 79, 745-754, 1974. For a tomographic operator
the same iteration is called MLEM (L. A. Shepp and Y. Vardi, IEEE Trans. Med. Imaging 1, 113-122, 1982).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invdiff.algorithms.draw import Callback, check_positive
from invdiff.classical.point import point_estimate, require_linear, require_non_negative
from invdiff.measurement import Measurement
from invdiff.operators.base import LinearOperator
from invdiff.posterior import Posterior
from invdiff.priors.denoiser import Prior


@dataclass(frozen=True, kw_only=True)
class RichardsonLucy:
    """Richardson-Lucy, or MLEM: ``x <- x A^H(y / A x) / A^H 1`` from a constant image. Label: *point estimate*.

    It climbs the Poisson likelihood of counts (or intensities) y and keeps the image non-negative; negative data,
    as Gaussian noise makes them, count as zero.

    Attributes:
        n_steps: iterations; stopping early regularises.

    Example:
        >>> from invdiff import GaussianNoise, Measurement
        >>> from invdiff.classical import RichardsonLucy
        >>> from invdiff.operators import Blur, gaussian_psf
        >>> A, points = Blur(gaussian_psf(1.0, 7), (1, 16, 16)), torch.zeros(1, 16, 16)
        >>> points[0, 4, 4] = points[0, 10, 12] = 100.0
        >>> m = Measurement(A(points), A, GaussianNoise(1.0))
        >>> x = RichardsonLucy(n_steps=50)(None, m).mean
        >>> bool(x.min() >= 0), bool(x[0, 4, 4] > 2 * m.y[0, 4, 4]), round(float(x.sum()))  # intensity is kept
        (True, True, 200)
    """

    n_steps: int = 30
    bibtex: ClassVar[str] = """@article{richardson1972bayesian,
  author  = {Richardson, William Hadley},
  title   = {Bayesian-based iterative method of image restoration},
  journal = {Journal of the Optical Society of America},
  volume  = {62},
  number  = {1},
  pages   = {55--59},
  year    = {1972}
}

@article{lucy1974iterative,
  author  = {Lucy, L. B.},
  title   = {An iterative technique for the rectification of observed distributions},
  journal = {The Astronomical Journal},
  volume  = {79},
  number  = {6},
  pages   = {745--754},
  year    = {1974}
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
            ValueError: no data above zero.
        """
        A = require_linear(self, measurement)
        rows, columns = require_non_negative(self, A)
        y = measurement.y.clamp(min=0)
        if not y.any():
            raise ValueError("RichardsonLucy needs counts or intensities, got no data above zero.")

        def reconstruct() -> Tensor:
            x = torch.where(columns > 0, y.sum() / rows.sum(), torch.zeros_like(columns))
            for step in range(self.n_steps):
                x = em_step(x, A, y, columns)
                if callback is not None:
                    callback(step, self.n_steps, x=x)
            return x

        return point_estimate(self, reconstruct, measurement, n_samples=n_samples, seed=seed)


def em_step(x: Tensor, A: LinearOperator, y: Tensor, columns: Tensor) -> Tensor:
    """``x A^H(y / A x) / A^H 1``; pixels without data (``columns``, A^H 1, zero) stay."""
    Ax = A(x)
    ratio = torch.where(Ax > 0, y / Ax.clamp(min=torch.finfo(y.dtype).tiny), torch.zeros_like(y))
    return torch.where(columns > 0, x * A.H(ratio).clamp(min=0) / columns, x)
