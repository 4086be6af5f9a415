"""CG-SENSE: iterative least squares for undersampled multi-coil MRI.

Pruessmann, Weiger, Boernert, Boesiger: "Advances in sensitivity encoding with arbitrary k-space trajectories",
Magnetic Resonance in Medicine 46 (2001).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from invdiff.algorithms.draw import Callback, check_positive
from invdiff.classical.point import point_estimate, require_linear
from invdiff.measurement import Measurement
from invdiff.operators.linalg import cg
from invdiff.posterior import Posterior
from invdiff.priors.denoiser import Prior


@dataclass(frozen=True, kw_only=True)
class CGSense:
    """Conjugate gradients on ``(A^H A + weight I) x = A^H y`` from zero. Label: *point estimate*.

    Attributes:
        n_steps: iterations; stopping early regularises.
        weight: Tikhonov weight, for an operator of norm 1. None: the noise variance over the mean square of the
            zero-filled image (the Wiener weight of a white image of that power).

    Example:
        >>> from invdiff import ComplexGaussianNoise, Measurement
        >>> from invdiff.classical import CGSense
        >>> from invdiff.operators import MultiCoilMRI, RealAsComplex, birdcage_maps, equispaced_mask
        >>> mask = equispaced_mask(16, acceleration=2, center_fraction=0.25)
        >>> A = MultiCoilMRI(birdcage_maps(4, (16, 16)), mask) @ RealAsComplex((1, 16, 16))
        >>> x = torch.rand(1, 16, 16)
        >>> m = Measurement.simulate(x, A, ComplexGaussianNoise(1e-4), seed=0)
        >>> bool((CGSense(n_steps=30)(None, m).mean - x).norm() < 0.02 * x.norm())  # every second line
        True
    """

    n_steps: int = 15
    weight: float | None = None
    bibtex: ClassVar[str] = """@article{pruessmann2001advances,
  author  = {Pruessmann, Klaas P. and Weiger, Markus and B{\\"o}rnert, Peter and Boesiger, Peter},
  title   = {Advances in sensitivity encoding with arbitrary k-space trajectories},
  journal = {Magnetic Resonance in Medicine},
  volume  = {46},
  number  = {4},
  pages   = {638--651},
  year    = {2001}
}"""

    def __post_init__(self) -> None:
        check_positive(self, "n_steps")
        if self.weight is not None and not self.weight >= 0:
            raise ValueError(f"CGSense: weight must not be negative, got {self.weight}.")

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
        A = require_linear(self, measurement)
        precision = measurement.noise.precision(measurement.y)
        if self.weight is None and not isinstance(precision, float):
            raise TypeError(
                f"CGSense needs white Gaussian noise to choose a weight, got {measurement.noise!r}. Set one."
            )

        def reconstruct() -> Tensor:
            b = A.H(measurement.y)
            weight = 1 / (precision * float(b.abs().square().mean())) if self.weight is None else self.weight
            return cg(lambda x: A.gram(x) + weight * x, b, item_ndim=len(A.in_shape), n_steps=self.n_steps)

        return point_estimate(self, reconstruct, measurement, n_samples=n_samples, seed=seed)
