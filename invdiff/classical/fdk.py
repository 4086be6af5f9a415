"""Filtered back projection in three dimensions: the Feldkamp-Davis-Kress algorithm.

L. A. Feldkamp, L. C. Davis, J. W. Kress, "Practical cone-beam algorithm", J. Opt. Soc. Am. A 1, 612-619, 1984.
Exact in the plane of the source; away from it, values fall off with the cone angle. Arcs shorter than a turn carry the
fan-beam weights of :mod:`invdiff.classical.fbp` in every detector row. Of parallel beams it is filtered back projection
slice by slice.

It assumes noise-free, complete data; few or missing views give streaks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invdiff.algorithms.draw import Callback
from invdiff.classical.fbp import _check_window, ramp_filter, ray_weights
from invdiff.classical.point import point_estimate
from invdiff.measurement import Measurement
from invdiff.operators.ct3d import CT3D
from invdiff.operators.ct_geometry3d import ConeBeam, ParallelBeam3D
from invdiff.posterior import Posterior
from invdiff.priors.denoiser import Prior


@dataclass(frozen=True, kw_only=True)
class FDK:
    """Filtered back projection of a :class:`CT3D` measurement. Label: *point estimate*.

    Args:
        window: apodisation of the ramp filter, a key of ``invdiff.classical.fbp.WINDOWS``.

    Example:
        >>> from invdiff import GaussianNoise, Measurement
        >>> from invdiff.classical import FDK
        >>> from invdiff.operators import CT3D, ParallelBeam3D
        >>> beam = ParallelBeam3D(
        ...     image_shape=(3, 24, 24), voxel_size=1.0, angles=tuple(3.14159 * i / 40 for i in range(40)),
        ...     detector_shape=(3, 36), detector_spacing=1.0,
        ... )
        >>> A, x = CT3D(beam), torch.zeros(1, 3, 24, 24)
        >>> x[..., 6:18, 6:18] = 0.02
        >>> back = FDK()(None, Measurement(A(x), A, GaussianNoise(0.01))).mean
        >>> bool(abs(back[0, 1, 9:15, 9:15].mean() / 0.02 - 1) < 0.03)
        True
    """

    window: str = "ram-lak"

    bibtex: ClassVar[str] = """@article{feldkamp1984practical,
  author  = {Feldkamp, L. A. and Davis, L. C. and Kress, J. W.},
  title   = {Practical cone-beam algorithm},
  journal = {Journal of the Optical Society of America A},
  volume  = {1},
  number  = {6},
  pages   = {612--619},
  year    = {1984}
}"""

    def __post_init__(self) -> None:
        _check_window(self.window)

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
            TypeError: the measurement's operator is not a :class:`CT3D`.
            ValueError: ``n_samples`` is not 1.
        """
        A = measurement.A
        if not isinstance(A, CT3D):
            raise TypeError(f"FDK needs a CT3D operator (parallel or cone beam), got {A!r}. For CT, use FBP.")
        geometry = A.geometry
        return point_estimate(
            self, lambda: fdk(measurement.y, geometry, window=self.window), measurement, n_samples=n_samples, seed=seed
        )


def fdk(y: Tensor, geometry: ParallelBeam3D | ConeBeam, *, window: str = "ram-lak") -> Tensor:
    """Filtered back projection of cone-beam or parallel projections.

    Args:
        y: line integrals, (..., n_views, n_rows, n_columns), real.
        geometry: its views, in the same order. Every row must see the whole width of the object, or in a full turn one
            half of it and a little more (a detector displaced to one side); what lies above and below the detector
            counts as zero.
        window: key of ``invdiff.classical.fbp.WINDOWS``.

    Returns:
        Attenuation in 1/mm, (..., nz, ny, nx), dtype and device of ``y``.
    """
    _check_window(window)
    if not isinstance(geometry, ParallelBeam3D | ConeBeam):
        raise TypeError(f"geometry must be a ParallelBeam3D or a ConeBeam, got {type(geometry).__name__}.")
    expected = (geometry.n_views, *geometry.detector_shape)
    if tuple(y.shape[-3:]) != expected:
        raise ValueError(f"y must end in (n_views, n_rows, n_columns) = {expected}, got shape {tuple(y.shape)}.")

    plane = geometry.midplane
    fan = geometry.midplane if isinstance(geometry, ConeBeam) else None
    D = fan.source_origin if fan else math.inf
    shrink = 1 / fan.magnification if fan else 1.0  # the detector is moved to the rotation axis
    u = torch.from_numpy(plane.detector_positions()).to(y.device) * shrink
    v = torch.from_numpy(geometry.row_positions()).to(y.device) * shrink
    dv, du = (spacing * shrink for spacing in geometry.element_spacing)
    rays = torch.from_numpy(ray_weights(plane)[:, None]).to(y.device)
    rays = rays / torch.sqrt(1 + (u / D).square() + (v[:, None] / D).square())  # cosine of the angle of incidence
    # The filtered rows do not end with the detector; without their tails the volume's edges would not be zero.
    reach = D * math.tan(math.asin(plane.radius / D)) if fan else plane.radius
    n_pad = max(0, math.ceil((reach - float(min(-u[0], u[-1]))) / du)) + 1
    padded = torch.nn.functional.pad(y.double() * rays, (n_pad, n_pad))
    filtered = ramp_filter(padded, du, window).to(y.dtype)
    filtered = filtered.reshape(-1, *filtered.shape[-3:])

    z, y_axis, x_axis = (torch.from_numpy(a).to(y.device, y.dtype) for a in geometry.voxel_centres())
    n_rows, n_columns = filtered.shape[-2:]
    volume = y.new_zeros(len(filtered), *geometry.image_shape)
    for view, t in enumerate(geometry.angles):
        U = 1 - (x_axis * math.sin(t) - y_axis[:, None] * math.cos(t)) / D
        column = ((x_axis * math.cos(t) + y_axis[:, None] * math.sin(t)) / U - float(u[0])) / du + n_pad
        row = (z[:, None, None] / U - float(v[0])) / dv
        # grid_sample counts from -1, the detector's first edge, to 1, its last
        where = torch.stack([(2 * column.expand_as(row) + 1) / n_columns - 1, (2 * row + 1) / n_rows - 1], -1)
        where = where.flatten(0, 1).expand(len(filtered), -1, -1, -1)
        value = torch.nn.functional.grid_sample(filtered[:, None, view], where, align_corners=False)
        volume += value.view_as(volume) / U.square()
    return volume.reshape(*y.shape[:-3], *geometry.image_shape)
