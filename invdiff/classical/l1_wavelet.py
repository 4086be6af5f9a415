"""L1-wavelet reconstruction, the compressed sensing of MRI, for any linear operator.

M. Lustig, D. Donoho and J. M. Pauly, Magn. Reson. Med. 58, 1182-1195, 2007. Solved by FISTA (A. Beck and M. Teboulle,
SIAM J. Imaging Sci. 2, 183-202, 2009), restarted where the momentum points uphill (B. O'Donoghue and E. Candes,
Found. Comput. Math. 15, 715-732, 2015).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invdiff.algorithms.draw import Callback, check_positive
from invdiff.classical.point import Whitened, point_estimate
from invdiff.classical.wavelet import WAVELETS, inverse_wavelet_transform, largest_level, wavelet_transform
from invdiff.measurement import Measurement
from invdiff.posterior import Posterior
from invdiff.priors.denoiser import Prior


@dataclass(frozen=True, kw_only=True)
class L1Wavelet:
    """L1-wavelet: minimises ``nll(x) + weight |details of W x / image_scale|_1``. Label: *point estimate*.

    W is a periodic orthogonal wavelet transform over the spatial dimensions, its approximation coefficients are free;
    the noise is replaced by its closest Gaussian. Choose ``weight`` on validation data, never on the test image.

    Attributes:
        weight: lambda; for noise of standard deviation sigma and an operator of norm 1, sensible values are of the
            order of image_scale / sigma.
        wavelet: "haar", "db2" or "db4" (Daubechies, 2, 4 and 8 taps).
        n_levels: levels of the transform, fewer where the image cannot be halved that often.
        n_steps: largest number of iterations, each one forward and one adjoint.
        tolerance: the iteration ends when the proximal gradient is this small relative to the gradient at 0.

    Example:
        >>> from invdiff import GaussianNoise, Measurement
        >>> from invdiff.classical import L1Wavelet
        >>> from invdiff.operators import Identity
        >>> step = torch.cat([torch.zeros(1, 16, 8), torch.ones(1, 16, 8)], -1)
        >>> m = Measurement.simulate(step, Identity((1, 16, 16)), GaussianNoise(0.1), seed=0)
        >>> x = L1Wavelet(weight=20.0, wavelet="haar")(None, m).mean
        >>> bool((x - step).norm() < 0.5 * (m.y - step).norm())
        True
    """

    weight: float
    wavelet: str = "db4"
    n_levels: int = 4
    n_steps: int = 500
    tolerance: float = 1e-4
    bibtex: ClassVar[str] = """@article{lustig2007sparse,
  author  = {Lustig, Michael and Donoho, David and Pauly, John M.},
  title   = {Sparse {MRI}: The application of compressed sensing for rapid {MR} imaging},
  journal = {Magnetic Resonance in Medicine},
  volume  = {58},
  number  = {6},
  pages   = {1182--1195},
  year    = {2007}
}"""

    def __post_init__(self) -> None:
        check_positive(self, "weight", "n_levels", "n_steps", "tolerance")
        if self.wavelet not in WAVELETS:
            raise ValueError(f"L1Wavelet: wavelet must be one of {', '.join(WAVELETS)}, got {self.wavelet!r}.")

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

        The callback gets the image ``x`` and the relative ``residual``.

        Raises:
            ValueError: an image of odd size.
        """
        K = Whitened(self, measurement)
        if largest_level(K.in_shape[1:]) == 0:
            raise ValueError(f"L1Wavelet needs images of even size, got {K.in_shape[1:]}. Pad or crop them.")
        return point_estimate(
            self, lambda: self._solve(K, measurement.image_scale, callback), measurement, n_samples=n_samples, seed=seed
        )

    def _solve(self, K: Whitened, image_scale: float, callback: Callback | None) -> Tensor:
        b, step_size = K.data, 1 / (1.02 * K.norm()) ** 2
        scale = float(torch.linalg.vector_norm(K.H(b)))
        x = z = torch.zeros_like(K.H(b))
        t = 1.0
        for step in range(self.n_steps):
            # x <- prox(z - step_size K^H (K z - b))
            x_old, x = x, self._prox(z - step_size * K.H(K(z) - b), step_size * self.weight / image_scale)
            residual = float(torch.linalg.vector_norm(z - x)) / step_size / max(scale, 1e-30)
            if callback is not None:
                callback(step, self.n_steps, x=x, residual=residual)
            if residual < self.tolerance:
                break
            uphill = float(((z - x).conj() * (x - x_old)).real.sum()) > 0
            t_old, t = t, 1.0 if uphill else (1 + (1 + 4 * t * t) ** 0.5) / 2
            z = x if uphill else x + (t_old - 1) / t * (x - x_old)
        return x

    def _prox(self, x: Tensor, threshold: float) -> Tensor:
        """Soft thresholding of the detail coefficients."""
        n_dims = x.ndim - 1
        n_levels = min(self.n_levels, largest_level(tuple(x.shape[1:])))
        c = wavelet_transform(x, self.wavelet, n_levels, n_dims)
        shrunk = torch.sgn(c) * (c.abs() - threshold).clamp(min=0)
        approximation = (slice(None), *(slice(n >> n_levels) for n in x.shape[1:]))
        shrunk[approximation] = c[approximation]
        return inverse_wavelet_transform(shrunk, self.wavelet, n_levels, n_dims)
