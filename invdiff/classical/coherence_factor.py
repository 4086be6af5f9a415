"""Delay and sum, weighted by the coherence factor.

R. Mallart and M. Fink, J. Acoust. Soc. Am. 96, 3721-3732, 1994 (the focusing criterion); K. W. Hollman,
K. W. Rigby and M. O'Donnell, IEEE Ultrasonics Symposium 1999, 1257-1260 (as a weight).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from invdiff.algorithms.draw import Callback
from invdiff.classical.beamforming import beamform
from invdiff.classical.das import delay_and_sum
from invdiff.measurement import Measurement
from invdiff.posterior import Posterior
from invdiff.priors.denoiser import Prior


@dataclass(frozen=True, kw_only=True)
class CoherenceFactor:
    """DAS times ``|sum s|^2 / (M sum |s|^2)`` over the M elements of the aperture. Label: *point estimate*.

    The factor is 1 where all elements agree and 1 / M on average for noise. It darkens clutter and also speckle, so
    contrast measures of its images flatter it.

    Args:
        f_number: of the receive aperture; None: the operator's.

    Example:
        >>> from invdiff import GaussianNoise, Measurement
        >>> from invdiff.classical import DAS, CoherenceFactor
        >>> from invdiff.operators import PlaneWaveRF, PlaneWaveScan
        >>> scan = PlaneWaveScan.covering(
        ...     (9, 9), (8.0, 10.0), element_positions=[0.3 * i - 2.25 for i in range(16)], angles=(-0.1, 0.0, 0.1),
        ...     sampling_frequency=20e6, centre_frequency=5e6,
        ... )
        >>> A = PlaneWaveRF(scan)
        >>> m = Measurement(torch.randn(A.out_shape), A, GaussianNoise(1.0))  # noise alone: incoherent
        >>> das = DAS(aperture="boxcar")(None, m).mean
        >>> bool(CoherenceFactor()(None, m).mean.norm() < 0.3 * das.norm())
        True
    """

    f_number: float | None = None

    bibtex: ClassVar[str] = """@inproceedings{hollman1999coherence,
  author    = {Hollman, Kyle W. and Rigby, K. W. and O'Donnell, Matthew},
  title     = {Coherence factor of speckle from a multi-row probe},
  booktitle = {IEEE Ultrasonics Symposium},
  pages     = {1257--1260},
  year      = {1999}
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
        """Same call as an algorithm; ``prior`` is not used and ``n_samples`` must be 1.

        Raises:
            TypeError: the measurement's operator is not a plane-wave one.
        """
        return beamform(
            self, coherence_weighted, measurement, f_number=self.f_number, aperture="boxcar", n_samples=n_samples,
            seed=seed,
        )  # fmt: skip


def coherence_weighted(channels: Tensor, weights: Tensor) -> Tensor:
    """DAS times the coherence factor, (n_pixels, n_elements) to (n_pixels,)."""
    mean = delay_and_sum(channels, weights)
    power = delay_and_sum(channels.abs().square(), weights)
    return mean * mean.abs().square() / power.clamp(min=1e-30)  # |sum|^2 / (M sum ||^2) = |mean|^2 / mean ||^2
