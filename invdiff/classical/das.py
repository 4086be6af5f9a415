"""Delay and sum, the standard beamformer of ultrasound, with coherent compounding of plane waves.

G. Montaldo, M. Tanter, J. Bercoff, N. Benech and M. Fink, IEEE Trans. Ultrason. Ferroelectr. Freq. Control 56,
489-506, 2009.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from invdiff.algorithms.draw import Callback
from invdiff.classical.beamforming import beamform
from invdiff.measurement import Measurement
from invdiff.posterior import Posterior
from invdiff.priors.denoiser import Prior


@dataclass(frozen=True, kw_only=True)
class DAS:
    """Delay and sum: the adjoint of the delay operator, over its weights. Label: *point estimate*.

    The weighted mean, over the receive aperture and over transmits, of each element's record at the time of the
    pixel's echo: an RF or IQ image in the units of the data. Its envelope is the B-mode image.

    Args:
        f_number: of the receive aperture; None: the operator's.
        aperture: window across the aperture, a key of :data:`invdiff.operators.ultrasound.APERTURES`.

    Example:
        >>> from invdiff import GaussianNoise, Measurement
        >>> from invdiff.classical import DAS
        >>> from invdiff.operators import PlaneWaveRF, PlaneWaveScan
        >>> scan = PlaneWaveScan.covering(
        ...     (9, 9), (8.0, 10.0), element_positions=[0.3 * i - 2.25 for i in range(16)], angles=(-0.1, 0.0, 0.1),
        ...     sampling_frequency=20e6, centre_frequency=5e6,
        ... )
        >>> A, point = PlaneWaveRF(scan), torch.zeros(1, 9, 9)
        >>> point[0, 5, 3] = 1.0
        >>> image = DAS()(None, Measurement(A(point), A, GaussianNoise(0.01))).mean
        >>> divmod(int(image.abs().argmax()), 9)  # the point is where it was
        (5, 3)
    """

    f_number: float | None = None
    aperture: str = "hann"

    bibtex: ClassVar[str] = """@article{montaldo2009coherent,
  author  = {Montaldo, Gabriel and Tanter, Micka{\\"e}l and Bercoff, J{\\'e}r{\\'e}my and Benech, Nicolas and Fink, Mathias},
  title   = {Coherent plane-wave compounding for very high frame rate ultrasonography and transient elastography},
  journal = {IEEE Transactions on Ultrasonics, Ferroelectrics, and Frequency Control},
  volume  = {56},
  number  = {3},
  pages   = {489--506},
  year    = {2009}
}"""  # noqa: E501

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
            self, delay_and_sum, measurement, f_number=self.f_number, aperture=self.aperture, n_samples=n_samples,
            seed=seed,
        )  # fmt: skip


def delay_and_sum(channels: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean over elements, (n_pixels, n_elements) to (n_pixels,); 0 where no element hears the pixel."""
    return (channels * weights).sum(-1) / weights.sum(-1).clamp(min=1e-12)
