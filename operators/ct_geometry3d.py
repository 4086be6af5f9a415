"""Geometries of three-dimensional CT with a flat detector.

The conventions of :mod:`invdiff.operators.ct_geometry`, and: the rotation axis is z, slice 0 of a volume ``(z, y, x)``
has the smallest z, and so has row 0 of the detector. Element ``(i, j)`` sits at ``v_i`` along z and at ``u_j`` along
``(cos t, sin t, 0)``, each as in two dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from invdiff.operators.ct_geometry import FanBeam, ParallelBeam, _equispaced, _positive_int

G = TypeVar("G", bound="_Beam3D")


@dataclass(frozen=True, kw_only=True)
class _Beam3D:
    image_shape: tuple[int, int, int]
    voxel_size: float | tuple[float, float, float]
    angles: tuple[float, ...]
    detector_shape: tuple[int, int]
    detector_spacing: float | tuple[float, float]
    detector_offset: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)  # lists and arrays come from TOML and HDF5

        for name, axes in (("image_shape", "nz, ny, nx"), ("detector_shape", "n_rows, n_columns")):
            shape = tuple(getattr(self, name))
            if len(shape) != axes.count(",") + 1:
                raise ValueError(f"{name} must be positive integers ({axes}), got {getattr(self, name)!r}.")
            put(name, tuple(_positive_int(name, n) for n in shape))
        for name, axes in (("voxel_size", "dz, dy, dx"), ("detector_spacing", "dv, du")):
            lengths = _lengths(name, getattr(self, name), axes)
            put(name, lengths[0] if len(set(lengths)) == 1 else lengths)
        offset = tuple(float(v) for v in self.detector_offset)
        if len(offset) != 2 or not all(map(math.isfinite, offset)):
            raise ValueError(f"detector_offset must be two finite lengths (v, u) in mm, got {self.detector_offset!r}.")
        put("detector_offset", offset)
        put("angles", self.midplane.angles)  # it checks what is two-dimensional

    @property
    def midplane(self) -> Any:
        """The two-dimensional geometry of the plane z = 0, measured by the detector row at v = 0."""
        raise NotImplementedError

    @property
    def voxel_spacing(self) -> tuple[float, float, float]:
        """(dz, dy, dx), mm."""
        dz, dy, dx = _lengths("voxel_size", self.voxel_size, "dz, dy, dx")
        return dz, dy, dx

    @property
    def element_spacing(self) -> tuple[float, float]:
        """(dv, du): distance between detector rows and between columns, mm."""
        dv, du = _lengths("detector_spacing", self.detector_spacing, "dv, du")
        return dv, du

    @property
    def n_views(self) -> int:
        """Number of view angles."""
        return len(self.angles)

    def subset(self: G, indices: Iterable[int]) -> G:
        """The geometry of some of the views, in the order given."""
        return replace(self, angles=tuple(self.angles[int(i)] for i in indices))

    def with_centre(self: G, column: float) -> G:
        """The same scanner with its detector shifted so that the rotation axis falls on ``column``, counted from 0."""
        u = self.midplane.with_centre(column).detector_offset
        return replace(self, detector_offset=(self.detector_offset[0], u))

    def voxel_centres(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """``z`` (nz,) and ``x`` (nx,), increasing, and ``y`` (ny,), decreasing, in the order z, y, x: mm, float64."""
        x, y = self.midplane.pixel_centres()
        nz, dz = self.image_shape[0], self.voxel_spacing[0]
        return (np.arange(nz) - (nz - 1) / 2) * dz, y, x

    def row_positions(self) -> np.ndarray:
        """``v`` in mm of the detector rows, float64 (n_rows,)."""
        n = self.detector_shape[0]
        return (np.arange(n) - (n - 1) / 2) * self.element_spacing[0] + self.detector_offset[0]

    def rays(self) -> tuple[np.ndarray, np.ndarray]:
        """Every ray as a point on it (mm) and a unit direction, both ``(x, y, z)``, float64
        (n_views, n_rows, n_columns, 3)."""
        raise NotImplementedError

    def _frame(self) -> tuple[np.ndarray, np.ndarray]:
        """The elements relative to the detector's unshifted middle, (n_views, n_rows, n_columns, 3), and the normal
        (sin t, -cos t, 0), (n_views, 1, 1, 3)."""
        axis, normal = (np.pad(a, ((0, 0), (0, 0), (0, 1)))[:, None] for a in self.midplane._axes())
        elements = axis * self.midplane.detector_positions()[:, None] + np.zeros((1, self.detector_shape[0], 1, 3))
        elements[..., 2] = self.row_positions()[:, None]
        return elements, normal


@dataclass(frozen=True, kw_only=True)
class ParallelBeam3D(_Beam3D):
    """Parallel rays at right angles to the rotation axis (synchrotron): every slice is a :class:`ParallelBeam`.

    Args:
        image_shape: (nz, ny, nx) voxels.
        voxel_size: side of a cubic voxel, or (dz, dy, dx), mm.
        angles: view angles, rad.
        detector_shape: (n_rows, n_columns).
        detector_spacing: distance between detector elements, or between rows and between columns (dv, du), mm.
        detector_offset: shift of the detector's middle along z and along its rows, (v, u), mm.

    Raises:
        ValueError: empty, non-finite or non-positive arguments.

    Example:
        >>> from invdiff.operators import CT3D, ParallelBeam3D
        >>> beam = ParallelBeam3D(
        ...     image_shape=(4, 8, 8), voxel_size=1.0, angles=(0.0, 0.5, 1.0), detector_shape=(4, 12),
        ...     detector_spacing=1.0,
        ... )
        >>> CT3D(beam).out_shape
        (1, 3, 4, 12)
    """

    @property
    def midplane(self) -> ParallelBeam:
        return ParallelBeam(**_midplane(self))

    midplane.__doc__ = _Beam3D.midplane.__doc__

    def rays(self) -> tuple[np.ndarray, np.ndarray]:
        elements, normal = self._frame()
        return elements, np.broadcast_to(normal, elements.shape).copy()

    rays.__doc__ = _Beam3D.rays.__doc__


@dataclass(frozen=True, kw_only=True)
class ConeBeam(_Beam3D):
    """A point source and a flat panel, rotating together around z: in the plane z = 0, a :class:`FanBeam`.

    Args:
        image_shape, voxel_size, angles, detector_shape, detector_offset: as in :class:`ParallelBeam3D`.
        detector_spacing: on the detector itself (not scaled to the axis), one number or (dv, du), mm.
        source_origin: distance from the source to the rotation axis, mm.
        source_detector: distance from the source to the detector, mm.

    Raises:
        ValueError: empty, non-finite or non-positive arguments; a source or detector that would enter the volume.

    Example:
        >>> from invdiff.operators import CT3D, ConeBeam
        >>> beam = ConeBeam(
        ...     image_shape=(5, 9, 9), voxel_size=1.0, angles=(0.0,), detector_shape=(5, 9), detector_spacing=2.0,
        ...     source_origin=50.0, source_detector=100.0,
        ... )
        >>> y = CT3D(beam)(torch.full((1, 5, 9, 9), 0.02))
        >>> round(float(y[0, 0, 2, 4]), 4)  # the central ray: 9 mm of 0.02 / mm
        0.18
    """

    source_origin: float
    source_detector: float

    @classmethod
    def covering(
        cls,
        image_shape: tuple[int, int, int],
        voxel_size: float | tuple[float, float, float],
        n_views: int,
        *,
        source_origin: float,
        source_detector: float,
    ) -> ConeBeam:
        """Equispaced views over 360 degrees (end excluded) with a centred detector that sees the whole volume, one
        element per voxel, scaled to the detector."""
        dz, dy, dx = _lengths("voxel_size", voxel_size, "dz, dy, dx")
        nz, ny, nx = image_shape
        fan = FanBeam.covering((ny, nx), (dy, dx), 1, source_origin=source_origin, source_detector=source_detector)
        dv = dz * fan.magnification
        highest = nz * dz / 2 * source_detector / (source_origin - fan.radius)  # of the nearest corner
        return cls(
            image_shape=image_shape, voxel_size=voxel_size, angles=_equispaced(n_views, 2 * math.pi),
            detector_shape=(math.ceil(2 * highest / dv), fan.n_detectors), detector_spacing=(dv, fan.detector_spacing),
            source_origin=source_origin, source_detector=source_detector,
        )  # fmt: skip

    @property
    def midplane(self) -> FanBeam:
        return FanBeam(**_midplane(self), source_origin=self.source_origin, source_detector=self.source_detector)

    midplane.__doc__ = _Beam3D.midplane.__doc__

    def rays(self) -> tuple[np.ndarray, np.ndarray]:
        elements, normal = self._frame()
        to_element = elements - self.source_detector * normal
        origins = np.broadcast_to(self.source_origin * normal, elements.shape).copy()
        return origins, to_element / np.linalg.norm(to_element, axis=-1, keepdims=True)

    rays.__doc__ = _Beam3D.rays.__doc__


def _midplane(beam: _Beam3D) -> dict[str, Any]:
    return {
        "image_shape": beam.image_shape[1:], "pixel_size": beam.voxel_spacing[1:], "angles": beam.angles,
        "n_detectors": beam.detector_shape[1], "detector_spacing": beam.element_spacing[1],
        "detector_offset": beam.detector_offset[1],
    }  # fmt: skip


def _lengths(name: str, value: float | Sequence[float], axes: str) -> tuple[float, ...]:
    n = axes.count(",") + 1
    array = np.asarray(value, dtype=np.float64)
    if array.shape not in ((), (n,)) or not (np.isfinite(array) & (array > 0)).all():
        raise ValueError(f"{name} must be a positive finite length in mm, or {n} of them ({axes}), got {value!r}.")
    return tuple(np.broadcast_to(array, n).tolist())
