"""CGLS: conjugate gradients for least squares.

M. R. Hestenes and E. Stiefel, J. Res. Natl. Bur. Stand. 49, 409-436, 1952, section 10.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from invdiff.algorithms.draw import Callback, check_positive
from invdiff.classical.point import Whitened, point_estimate
from invdiff.measurement import Measurement
from invdiff.operators.linalg import cg
from invdiff.posterior import Posterior
from invdiff.priors.denoiser import Prior


@dataclass(frozen=True, kw_only=True)
class CGLS:
    """CGLS: least squares weighted by the noise's precision, from zero. Label: *point estimate*.

    Attributes:
        n_steps: iterations; stopping early regularises.

    Example:
        >>> from invdiff import GaussianNoise, Measurement
        >>> from invdiff.classical import CGLS
        >>> from invdiff.operators import Matrix
        >>> A = Matrix(torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]), (1, 1, 2), (3,))
        >>> x = CGLS(n_steps=2)(None, Measurement(torch.tensor([1.0, 4.0, 3.0]), A, GaussianNoise(0.1))).mean
        >>> x.round(decimals=3).tolist()  # least squares, in as many steps as unknowns
        [[[1.0, 2.0]]]
    """

    n_steps: int = 20
    bibtex: ClassVar[str] = """@article{hestenes1952methods,
  author  = {Hestenes, Magnus R. and Stiefel, Eduard},
  title   = {Methods of conjugate gradients for solving linear systems},
  journal = {Journal of Research of the National Bureau of Standards},
  volume  = {49},
  number  = {6},
  pages   = {409--436},
  year    = {1952}
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
        """Same call as an algorithm; ``prior`` is not used and ``n_samples`` must be 1."""
        K = Whitened(self, measurement)
        return point_estimate(
            self,
            lambda: cg(K.gram, K.H(K.data), item_ndim=len(K.in_shape), n_steps=self.n_steps, tolerance=1e-7),
            measurement,
            n_samples=n_samples,
            seed=seed,
        )
