"""Minimum-variance (Capon) beamforming with sub-array averaging and diagonal loading.

J. F. Synnevag, A. Austeng and S. Holm, "Adaptive beamforming applied to medical ultrasound imaging", IEEE Trans.
Ultrason. Ferroelectr. Freq. Control 54, 1606-1613, 2007; J. Capon, Proc. IEEE 57, 1408-1418, 1969.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invdiff.algorithms.draw import Callback
from invdiff.classical.beamforming import beamform
from invdiff.measurement import Measurement
from invdiff.posterior import Posterior
from invdiff.priors.denoiser import Prior

CHUNK = 2**22  # entries of the covariance matrices handled at a time


@dataclass(frozen=True, kw_only=True)
class MinimumVariance:
    """Per pixel, the weights of least output power that pass the focused echo unchanged. Label: *point estimate*.

    ``w = R^-1 1 / (1^T R^-1 1)`` with R the covariance of the focused channels over the sub-arrays of length L that
    slide along the receive aperture, plus ``loading tr(R) / L`` on its diagonal; the image is ``w^H`` on the mean
    sub-array. Sharper than DAS; without averaging over depth (none here) it makes speckle darker and rougher.

    Args:
        f_number: of the receive aperture; None: the operator's.
        subarray: L as a fraction of the elements of the aperture, in (0, 0.5] for R to be invertible by itself.
        loading: Delta of the paper times L, >= 0; more is closer to DAS (on the triangle that the sub-arrays make).

    Example:
        >>> from invdiff import GaussianNoise, Measurement
        >>> from invdiff.classical import MinimumVariance
        >>> from invdiff.operators import PlaneWaveRF, PlaneWaveScan
        >>> scan = PlaneWaveScan.covering(
        ...     (9, 9), (8.0, 10.0), element_positions=[0.3 * i - 2.25 for i in range(16)], angles=(-0.1, 0.0, 0.1),
        ...     sampling_frequency=20e6, centre_frequency=5e6,
        ... )
        >>> A, point = PlaneWaveRF(scan), torch.zeros(1, 9, 9)
        >>> point[0, 5, 3] = 1.0
        >>> image = MinimumVariance()(None, Measurement(A(point), A, GaussianNoise(0.01))).mean
        >>> divmod(int(image.abs().argmax()), 9)
        (5, 3)
    """

    f_number: float | None = None
    subarray: float = 0.5
    loading: float = 0.01

    bibtex: ClassVar[str] = """@article{synnevag2007adaptive,
  author  = {Synnev{\\aa}g, Johan-Fredrik and Austeng, Andreas and Holm, Sverre},
  title   = {Adaptive beamforming applied to medical ultrasound imaging},
  journal = {IEEE Transactions on Ultrasonics, Ferroelectrics, and Frequency Control},
  volume  = {54},
  number  = {8},
  pages   = {1606--1613},
  year    = {2007}
}"""

    def __post_init__(self) -> None:
        if not 0 < self.subarray <= 1:
            raise ValueError(f"MinimumVariance: subarray must lie in (0, 1], got {self.subarray!r}.")
        if not self.loading > 0:
            raise ValueError(f"MinimumVariance: loading must be positive, got {self.loading!r}.")

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
            TypeError: the measurement's operator is not a plane-wave one.
        """
        return beamform(
            self, self.combine, measurement, f_number=self.f_number, aperture="boxcar", n_samples=n_samples, seed=seed
        )

    def combine(self, channels: Tensor, weights: Tensor) -> Tensor:
        """Channels (n_pixels, n_elements), zero where ``weights`` is, to (n_pixels,)."""
        image = channels.new_zeros(len(channels))
        heard = weights != 0
        first, count = heard.to(torch.uint8).argmax(-1), heard.sum(-1)
        for n in count.unique().tolist():  # pixels whose apertures hold equally many elements, side by side
            if n == 0:
                continue
            length = max(1, int(self.subarray * n))
            for pixels in (count == n).nonzero()[:, 0].split(max(1, CHUNK // length**2)):
                aperture = channels[pixels].gather(1, first[pixels, None] + torch.arange(n, device=first.device))
                image[pixels] = self._capon(aperture.unfold(1, length, 1))
        return image

    def _capon(self, s: Tensor) -> Tensor:
        """Sub-arrays (n_pixels, n_subarrays, length) to (n_pixels,)."""
        R = s.mT @ s.conj() / s.shape[1]
        trace = R.diagonal(dim1=1, dim2=2).real.mean(-1)
        eye = torch.eye(s.shape[2], dtype=R.dtype, device=R.device)
        R = R / trace.clamp(min=1e-30)[:, None, None] + self.loading * eye  # the scale of R does not matter to w
        ones = torch.ones(len(s), s.shape[2], 1, dtype=R.dtype, device=R.device)
        w = torch.cholesky_solve(ones, torch.linalg.cholesky(R))[..., 0]
        return (w.conj() * s.mean(1)).sum(-1) / w.sum(-1).conj()
