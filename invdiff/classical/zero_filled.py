"""Zero-filled reconstruction: the adjoint of the MRI operator, unsampled k-space left at zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from invdiff.algorithms.draw import Callback
from invdiff.classical.point import point_estimate, require_linear
from invdiff.measurement import Measurement
from invdiff.posterior import Posterior
from invdiff.priors.denoiser import Prior


@dataclass(frozen=True, kw_only=True)
class ZeroFilled:
    """``x = A^H y``: inverse FFT and coil combination with the conjugate maps. Label: *point estimate*.

    Example:
        >>> from invdiff import ComplexGaussianNoise, Measurement
        >>> from invdiff.classical import ZeroFilled
        >>> from invdiff.operators import MultiCoilMRI, RealAsComplex, birdcage_maps
        >>> A = MultiCoilMRI(birdcage_maps(4, (8, 8)), torch.ones(8, dtype=torch.bool)) @ RealAsComplex((1, 8, 8))
        >>> x = torch.rand(1, 8, 8)
        >>> torch.allclose(ZeroFilled()(None, Measurement(A(x), A, ComplexGaussianNoise(0.1))).mean, x, atol=1e-5)
        True
    """

    bibtex: ClassVar[str] = """@article{roemer1990nmr,
  author  = {Roemer, P. B. and Edelstein, W. A. and Hayes, C. E. and Souza, S. P. and Mueller, O. M.},
  title   = {The {NMR} phased array},
  journal = {Magnetic Resonance in Medicine},
  volume  = {16},
  number  = {2},
  pages   = {192--225},
  year    = {1990}
}"""

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
        return point_estimate(self, lambda: A.H(measurement.y), measurement, n_samples=n_samples, seed=seed)
