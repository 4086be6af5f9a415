"""OSTR: maximum likelihood for transmission counts by separable paraboloidal surrogates and ordered subsets.

H. Erdogan and J. A. Fessler, "Ordered subsets algorithms for transmission tomography", Phys. Med. Biol. 44, 2835-2851,
1999. The optimum curvature is that of H. Erdogan and J. A. Fessler, "Monotonic algorithms for transmission tomography",
IEEE Trans. Med. Imaging 18, 801-814, 1999.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invdiff.algorithms.draw import Callback, check_positive
from invdiff.classical.point import point_estimate, require_linear, require_non_negative
from invdiff.classical.view_subsets import view_subsets
from invdiff.measurement import Measurement
from invdiff.noise import PoissonLogNoise
from invdiff.operators.base import LinearOperator
from invdiff.posterior import Posterior
from invdiff.priors.denoiser import Prior

SMALL = 1e-3  # line integral below which the curvature is taken at 0


@dataclass(frozen=True, kw_only=True)
class OSTR:
    """OSTR: ``x <- [x - grad nll(x) / d]_+``, non-negative, over subsets of the views. Label: *point estimate*.

    It climbs the Poisson likelihood of photon counts ``I ~ Poisson(n_photons exp(-A x) + r)``, which a
    :class:`~invdiff.noise.PoissonLogNoise` has (r: its electronic noise's variance), so that dark rays count little.
    ``d = A^H (c A 1)`` separates the paraboloids of curvature c per ray: with one subset the smallest c that keeps them
    above the likelihood, and every step climbs (SPS); with several, ``c = (I - r)^2 / I`` once and for all, and a
    subset's gradient stands for the whole one, up to ``n_subsets`` times faster at first.

    Attributes:
        n_steps: passes through the data; stopping early regularises.
        n_subsets: of the views (dimension 1 of the data); 1 for operators without views.

    Example:
        >>> from invdiff import Measurement, PoissonLogNoise
        >>> from invdiff.classical import OSTR
        >>> from invdiff.operators import CT, ParallelBeam
        >>> A, x = CT(ParallelBeam.covering((16, 16), 1.0, n_views=16)), torch.zeros(1, 16, 16)
        >>> x[0, 5:11, 5:11] = 0.02
        >>> m = Measurement(A(x), A, PoissonLogNoise(1e5))
        >>> image = OSTR(n_steps=5, n_subsets=4)(None, m).mean
        >>> bool(image.min() >= 0), bool(m.residual(image).norm() < 0.1 * m.y.norm())
        (True, True)
    """

    n_steps: int = 10
    n_subsets: int = 8
    bibtex: ClassVar[str] = """@article{erdogan1999ordered,
  author  = {Erdo{\\u{g}}an, Hakan and Fessler, Jeffrey A.},
  title   = {Ordered subsets algorithms for transmission tomography},
  journal = {Physics in Medicine and Biology},
  volume  = {44},
  number  = {11},
  pages   = {2835--2851},
  year    = {1999}
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
            TypeError: an operator that is not linear, is complex, has negative weights, or has no views to divide;
                noise other than PoissonLogNoise.
            ValueError: more subsets than views.
        """
        A, noise, y = require_linear(self, measurement), measurement.noise, measurement.y
        if not isinstance(noise, PoissonLogNoise):
            raise TypeError(f"OSTR needs photon counts (PoissonLogNoise), got {noise!r}. SIRT and CGLS do not.")
        rows, columns = require_non_negative(self, A)
        subsets = view_subsets(self, A, self.n_subsets)

        def descend(x: Tensor, A_s: LinearOperator, y_s: Tensor, share: float, d: Tensor | None) -> Tensor:
            l_s = A_s(x)
            if d is None:
                d = A_s.H(rows * curvature(noise, l_s, y_s))
            step = A_s.H(noise.nll_grad(l_s, y_s)) / share / d.clamp(min=torch.finfo(d.dtype).tiny)
            return torch.where(d > 0, (x - step).clamp(min=0), x)

        def reconstruct() -> Tensor:
            x = torch.where(columns > 0, y.sum().clamp(min=0) / rows.sum(), torch.zeros_like(columns))
            d = A.H(rows * noise.precision(y)) if self.n_subsets > 1 else None
            for step in range(self.n_steps):
                for A_s, views in subsets:
                    y_s = y[:, views] if self.n_subsets > 1 else y
                    x = descend(x, A_s, y_s, y_s.numel() / y.numel(), d)
                if callback is not None:
                    callback(step, self.n_steps, x=x)
            return x

        return point_estimate(self, reconstruct, measurement, n_samples=n_samples, seed=seed)


def curvature(noise: PoissonLogNoise, Ax: Tensor, y: Tensor) -> Tensor:
    """The least curvature of a parabola that touches ``nll`` at l >= 0 and lies above it for all l >= 0: it meets it at
    0, ``c = 2 (nll(0) - nll(l) + l nll'(l)) / l^2``, or is that of ``nll`` itself at 0; not negative."""
    l64, y64 = Ax.double(), y.double()
    r, counts = noise.electronic**2, noise.counts(y64)
    at_zero = noise.n_photons * (1 - (counts + r) * r / (noise.n_photons + r) ** 2)
    rise = noise.nll(torch.zeros_like(l64), y64) - noise.nll(l64, y64) + l64 * noise.nll_grad(l64, y64)
    c = torch.where(l64 > SMALL, 2 * rise / l64.clamp(min=SMALL).square(), at_zero)
    return c.clamp(min=0).to(Ax.dtype)
