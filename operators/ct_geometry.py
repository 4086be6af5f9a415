"""Geometries of two-dimensional CT: which ray each detector element of each view measures.

Conventions, for every geometry: the image grid is centred on the rotation axis; row 0 is the top (largest y),
column 0 the left (smallest x); lengths are in mm, angles in radians. At angle ``t`` the detector runs along
``(cos t, sin t)``, and the centre of element ``j`` sits at ``u_j = (j - (n_detectors - 1) / 2) *
detector_spacing + detector_offset`` on it. These are the conventions of the 'parallel' and 'fanflat'
geometries of the ASTRA toolbox.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

G = TypeVar("G", bound="_Beam")


@dataclass(frozen=True, kw_only=True)
class _Beam:
    image_shape: tuple[int, int]
    pixel_size: float
    angles: tuple[float, ...]
    n_detectors: int
    detector_spacing: float
    detector_offset: float = 0.0

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)  # lists and arrays come from TOML and HDF5

        shape = tuple(int(n) for n in self.image_shape)
        if len(shape) != 2 or min(shape) < 1:
            raise ValueError(f"image_shape must be two positive integers (ny, nx), got {self.image_shape!r}.")
        put("image_shape", shape)
        put("angles", tuple(float(t) for t in np.atleast_1d(np.asarray(self.angles, dtype=np.float64))))
        if not self.angles:
            raise ValueError("angles must hold at least one view angle in radians, got none.")
        if not all(map(math.isfinite, self.angles)):
            raise ValueError("angles must be finite numbers in radians; at least one is NaN or infinite.")
        if int(self.n_detectors) != self.n_detectors or self.n_detectors < 1:
            raise ValueError(f"n_detectors must be a positive integer, got {self.n_detectors!r}.")
        put("n_detectors", int(self.n_detectors))
        for name in ("pixel_size", "detector_spacing"):
            _positive_mm(name, getattr(self, name))
            put(name, float(getattr(self, name)))
        if not math.isfinite(self.detector_offset):
            raise ValueError(f"detector_offset must be a finite length in mm, got {self.detector_offset!r}.")
        put("detector_offset", float(self.detector_offset))

    @property
    def n_views(self) -> int:
        """Number of view angles."""
        return len(self.angles)

    @property
    def radius(self) -> float:
        """Radius of the circle around the image, corners included, in mm."""
        return 0.5 * self.pixel_size * math.hypot(*self.image_shape)

    def subset(self: G, indices: Iterable[int]) -> G:
        """The geometry of some of the views, in the order given."""
        return replace(self, angles=tuple(self.angles[int(i)] for i in indices))

    def detector_positions(self, supersampling: int = 1) -> np.ndarray:
        """``u`` in mm of the centres of ``supersampling`` equal parts of every element, float64
        (n_detectors * supersampling,), the parts of one element side by side."""
        if int(supersampling) != supersampling or supersampling < 1:
            raise ValueError(f"supersampling must be a positive integer, got {supersampling!r}.")
        n = self.n_detectors * int(supersampling)
        return (np.arange(n) - (n - 1) / 2) * (self.detector_spacing / supersampling) + self.detector_offset

    def pixel_centres(self) -> tuple[np.ndarray, np.ndarray]:
        """``x`` (nx,), increasing, and ``y`` (ny,), decreasing from row 0: pixel centres in mm, float64."""
        ny, nx = self.image_shape
        return (np.arange(nx) - (nx - 1) / 2) * self.pixel_size, ((ny - 1) / 2 - np.arange(ny)) * self.pixel_size

    def rays(self, supersampling: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Every ray as a point on it (mm) and a unit direction, both ``(x, y)``.

        Args:
            supersampling: rays per detector element, equally spaced over its width, to be averaged.

        Returns:
            origins, directions: float64, (n_views, n_detectors * supersampling, 2); the rays of one element
            are side by side.
        """
        raise TypeError(f"{type(self).__name__} does not define rays(); use ParallelBeam or FanBeam.")

    def _axes(self) -> tuple[np.ndarray, np.ndarray]:
        """Detector axis (cos t, sin t) and its normal (sin t, -cos t), each (n_views, 1, 2)."""
        cos, sin = np.cos(self.angles), np.sin(self.angles)
        return np.stack([cos, sin], -1)[:, None], np.stack([sin, -cos], -1)[:, None]


@dataclass(frozen=True, kw_only=True)
class ParallelBeam(_Beam):
    """Parallel rays: the ray of detector position ``u`` at angle ``t`` passes through ``u (cos t, sin t)``
    with direction ``(sin t, -cos t)``.

    Args:
        image_shape: (ny, nx) pixels.
        pixel_size: side of a (square) pixel, mm.
        angles: view angles, rad.
        n_detectors: detector elements per view.
        detector_spacing: distance between their centres, mm.
        detector_offset: shift of the detector's middle along itself, mm.

    Raises:
        ValueError: empty, non-finite or non-positive arguments.
    """

    @classmethod
    def covering(
        cls, image_shape: tuple[int, int], pixel_size: float, n_views: int, *, detector_spacing: float | None = None
    ) -> ParallelBeam:
        """Equispaced views over 180 degrees (end excluded) with a centred detector as long as the image's
        diagonal; one element per pixel unless ``detector_spacing`` (mm) is given."""
        _positive_mm("pixel_size", pixel_size)
        spacing = pixel_size if detector_spacing is None else detector_spacing
        _positive_mm("detector_spacing", spacing)
        return cls(
            image_shape=image_shape, pixel_size=pixel_size, angles=_equispaced(n_views, math.pi),
            n_detectors=math.ceil(math.sqrt(2) * max(image_shape) * pixel_size / spacing),
            detector_spacing=spacing,
        )  # fmt: skip

    def rays(self, supersampling: int = 1) -> tuple[np.ndarray, np.ndarray]:
        axis, normal = self._axes()
        origins = axis * self.detector_positions(supersampling)[:, None]
        return origins, np.broadcast_to(normal, origins.shape).copy()


@dataclass(frozen=True, kw_only=True)
class FanBeam(_Beam):
    """A point source and a flat detector, rotating together.

    At angle ``t`` the source is at ``source_origin * (sin t, -cos t)``; the detector, behind the rotation axis
    at ``source_detector`` from the source, runs along ``(cos t, sin t)``.

    Args:
        image_shape, pixel_size, angles, n_detectors, detector_offset: as in :class:`ParallelBeam`.
        detector_spacing: distance between element centres on the detector itself (not scaled to the axis), mm.
        source_origin: distance from the source to the rotation axis, mm.
        source_detector: distance from the source to the detector, mm.

    Raises:
        ValueError: empty, non-finite or non-positive arguments; a source or detector that would enter the image.
    """

    source_origin: float
    source_detector: float

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("source_origin", "source_detector"):
            _positive_mm(name, getattr(self, name))
            object.__setattr__(self, name, float(getattr(self, name)))
        if self.source_origin <= self.radius:
            raise ValueError(
                f"The source must stay outside the image: expected source_origin > {self.radius:.4g} mm, the "
                f"radius of the circle around the image, got {self.source_origin:.4g} mm. Check the units (mm), "
                f"or reduce image_shape * pixel_size."
            )
        if self.source_detector <= self.source_origin:
            raise ValueError(
                f"The detector must lie behind the rotation axis: expected source_detector > source_origin = "
                f"{self.source_origin:.4g} mm, got {self.source_detector:.4g} mm. source_detector is measured "
                f"from the source; if you have the distance from axis to detector, add source_origin to it."
            )

    @classmethod
    def covering(
        cls,
        image_shape: tuple[int, int],
        pixel_size: float,
        n_views: int,
        *,
        source_origin: float,
        source_detector: float,
        detector_spacing: float | None = None,
    ) -> FanBeam:
        """Equispaced views over 360 degrees (end excluded) with a centred detector that sees the whole image;
        one element per pixel, scaled to the detector, unless ``detector_spacing`` (mm) is given."""
        _positive_mm("pixel_size", pixel_size)
        magnification = source_detector / source_origin
        spacing = pixel_size * magnification if detector_spacing is None else detector_spacing
        _positive_mm("detector_spacing", spacing)
        sine = 0.5 * pixel_size * math.hypot(*image_shape) / source_origin
        half_width = source_detector * math.tan(math.asin(min(sine, 0.999)))  # the constructor refuses sine >= 1
        return cls(
            image_shape=image_shape, pixel_size=pixel_size, angles=_equispaced(n_views, 2 * math.pi),
            n_detectors=math.ceil(2 * half_width / spacing), detector_spacing=spacing,
            source_origin=source_origin, source_detector=source_detector,
        )  # fmt: skip

    @property
    def magnification(self) -> float:
        """Size on the detector over size at the rotation axis."""
        return self.source_detector / self.source_origin

    def rays(self, supersampling: int = 1) -> tuple[np.ndarray, np.ndarray]:
        axis, normal = self._axes()
        to_element = axis * self.detector_positions(supersampling)[:, None] - self.source_detector * normal
        origins = np.broadcast_to(self.source_origin * normal, to_element.shape).copy()
        return origins, to_element / np.linalg.norm(to_element, axis=-1, keepdims=True)

    rays.__doc__ = _Beam.rays.__doc__


ParallelBeam.rays.__doc__ = _Beam.rays.__doc__


def _positive_mm(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive finite length in mm, got {value!r}.")


def _equispaced(n_views: int, span: float) -> tuple[float, ...]:
    if int(n_views) != n_views or n_views < 1:
        raise ValueError(f"n_views must be a positive integer, got {n_views!r}.")
    return tuple(span * i / n_views for i in range(int(n_views)))
