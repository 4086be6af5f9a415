"""Geometries of two-dimensional CT: which ray each detector element of each view measures.

Conventions, for every geometry: the image grid is centred on the rotation axis; row 0 is the top (largest y),
column 0 the left (smallest x); lengths are in mm, angles in radians. At angle ``t`` the detector runs along
``(cos t, sin t)``, and the centre of element ``j`` sits at ``u_j = (j - (n_detectors - 1) / 2) *
detector_spacing + detector_offset`` on it. These are the conventions of the 'parallel' and 'fanflat'
geometries of the ASTRA toolbox.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

G = TypeVar("G", bound="_Beam")
F = TypeVar("F", bound="_Fan")
Vectors = tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True)
class _Grid:
    image_shape: tuple[int, int]
    pixel_size: float | tuple[float, float]

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.image_shape)  # lists and arrays come from TOML and HDF5
        if len(shape) != 2 or min(shape) < 1:
            raise ValueError(f"image_shape must be two positive integers (ny, nx), got {self.image_shape!r}.")
        self._put("image_shape", shape)
        spacing = _pixel_spacing(self.pixel_size)
        self._put("pixel_size", spacing[0] if spacing[0] == spacing[1] else spacing)

    def _put(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @property
    def pixel_spacing(self) -> tuple[float, float]:
        """Height and width of a pixel, (dy, dx), mm."""
        return _pixel_spacing(self.pixel_size)

    @property
    def radius(self) -> float:
        """Radius of the circle around the image, corners included, in mm."""
        return _radius(self.image_shape, self.pixel_size)

    def pixel_centres(self) -> tuple[np.ndarray, np.ndarray]:
        """``x`` (nx,), increasing, and ``y`` (ny,), decreasing from row 0: pixel centres in mm, float64."""
        (ny, nx), (dy, dx) = self.image_shape, self.pixel_spacing
        return (np.arange(nx) - (nx - 1) / 2) * dx, ((ny - 1) / 2 - np.arange(ny)) * dy

    def rays(self, supersampling: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Every ray as a point on it (mm) and a unit direction, both ``(x, y)``.

        Args:
            supersampling: rays per detector element, equally spaced over its width, to be averaged.

        Returns:
            origins, directions: float64, (n_views, n_detectors * supersampling, 2); the rays of one element
            are side by side.
        """
        raise TypeError(f"{type(self).__name__} does not define rays(); use one of the public geometries.")


@dataclass(frozen=True, kw_only=True)
class _Beam(_Grid):
    angles: tuple[float, ...]
    n_detectors: int
    detector_spacing: float
    detector_offset: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._put("angles", tuple(float(t) for t in np.atleast_1d(np.asarray(self.angles, dtype=np.float64))))
        if not self.angles:
            raise ValueError("angles must hold at least one view angle in radians, got none.")
        if not all(map(math.isfinite, self.angles)):
            raise ValueError("angles must be finite numbers in radians; at least one is NaN or infinite.")
        self._put("n_detectors", _positive_int("n_detectors", self.n_detectors))
        _positive_mm("detector_spacing", self.detector_spacing)
        self._put("detector_spacing", float(self.detector_spacing))
        if not math.isfinite(self.detector_offset):
            raise ValueError(f"detector_offset must be a finite length in mm, got {self.detector_offset!r}.")
        self._put("detector_offset", float(self.detector_offset))

    @property
    def n_views(self) -> int:
        """Number of view angles."""
        return len(self.angles)

    @property
    def centre(self) -> float:
        """The detector column, counted from 0 and in general not an integer, on which the rotation axis falls."""
        return (self.n_detectors - 1) / 2 - self.detector_offset / self.detector_spacing

    def with_centre(self: G, column: float) -> G:
        """The same scanner with its detector shifted so that the rotation axis falls on ``column`` (:attr:`centre`)."""
        if not math.isfinite(column):
            raise ValueError(f"column must be a finite number, counted in detector elements from 0, got {column!r}.")
        return replace(self, detector_offset=((self.n_detectors - 1) / 2 - column) * self.detector_spacing)

    def subset(self: G, indices: Iterable[int]) -> G:
        """The geometry of some of the views, in the order given."""
        return replace(self, angles=tuple(self.angles[int(i)] for i in indices))

    def detector_positions(self, supersampling: int = 1) -> np.ndarray:
        """``u`` in mm of the centres of ``supersampling`` equal parts of every element, float64
        (n_detectors * supersampling,), the parts of one element side by side."""
        n, k = self.n_detectors, _positive_int("supersampling", supersampling)
        return _parts(n, k) * self.detector_spacing + self.detector_offset

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
        pixel_size: side of a square pixel, or height and width (dy, dx) of an oblong one, mm.
        angles: view angles, rad.
        n_detectors: detector elements per view.
        detector_spacing: distance between their centres, mm.
        detector_offset: shift of the detector's middle along itself, mm; :meth:`with_centre` sets it from the
            column on which the rotation axis falls.

    Raises:
        ValueError: empty, non-finite or non-positive arguments.

    Example:
        >>> from invdiff.operators import CT, ParallelBeam
        >>> beam = ParallelBeam.covering((32, 32), 0.5, n_views=24)
        >>> CT(beam).out_shape[1] == beam.n_views == 24
        True
    """

    @classmethod
    def covering(
        cls,
        image_shape: tuple[int, int],
        pixel_size: float | tuple[float, float],
        n_views: int,
        *,
        detector_spacing: float | None = None,
    ) -> ParallelBeam:
        """Equispaced views over 180 degrees (end excluded) with a centred detector as long as the diagonal of the
        square around the image; one element per pixel (its shorter side) unless ``detector_spacing`` (mm) is given."""
        dy, dx = _pixel_spacing(pixel_size)
        spacing = min(dy, dx) if detector_spacing is None else detector_spacing
        _positive_mm("detector_spacing", spacing)
        side = max(image_shape[0] * dy, image_shape[1] * dx)
        return cls(
            image_shape=image_shape, pixel_size=pixel_size, angles=_equispaced(n_views, math.pi),
            n_detectors=math.ceil(math.sqrt(2) * side / spacing), detector_spacing=spacing,
        )  # fmt: skip

    def rays(self, supersampling: int = 1) -> tuple[np.ndarray, np.ndarray]:
        axis, normal = self._axes()
        origins = axis * self.detector_positions(supersampling)[:, None]
        return origins, np.broadcast_to(normal, origins.shape).copy()


@dataclass(frozen=True, kw_only=True)
class _Fan(_Beam):
    source_origin: float
    source_detector: float

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("source_origin", "source_detector"):
            _positive_mm(name, getattr(self, name))
            self._put(name, float(getattr(self, name)))
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
        cls: type[F],
        image_shape: tuple[int, int],
        pixel_size: float | tuple[float, float],
        n_views: int,
        *,
        source_origin: float,
        source_detector: float,
        detector_spacing: float | None = None,
    ) -> F:
        """Equispaced views over 360 degrees (end excluded) with a centred detector that sees the whole image; one
        element per pixel (its shorter side), scaled to the detector, unless ``detector_spacing`` (mm) is given."""
        magnification = source_detector / source_origin
        spacing = min(_pixel_spacing(pixel_size)) * magnification if detector_spacing is None else detector_spacing
        _positive_mm("detector_spacing", spacing)
        sine = _radius(image_shape, pixel_size) / source_origin
        half_width = source_detector * cls._position(math.asin(min(sine, 0.999)))  # the constructor refuses sine >= 1
        return cls(
            image_shape=image_shape, pixel_size=pixel_size, angles=_equispaced(n_views, 2 * math.pi),
            n_detectors=math.ceil(2 * half_width / spacing), detector_spacing=spacing,
            source_origin=source_origin, source_detector=source_detector,
        )  # fmt: skip

    @staticmethod
    def _position(fan_angle: float) -> float:
        """Position on the detector over ``source_detector``."""
        raise NotImplementedError

    def fan_angles(self, supersampling: int = 1) -> np.ndarray:
        """Angle between each ray and the ray through the rotation axis, rad, float64
        (n_detectors * supersampling,), increasing along the detector."""
        raise NotImplementedError

    @property
    def magnification(self) -> float:
        """Size on the detector over size at the rotation axis."""
        return self.source_detector / self.source_origin

    def short_scan(self: F, n_views: int, *, start: float = 0.0) -> F:
        """The same scanner over the shortest arc on which every line that it sees is measured at least once:
        ``n_views`` equispaced views over 180 degrees plus the fan angle, ends included, from ``start`` (rad)."""
        n = _positive_int("n_views", n_views)
        arc = math.pi + 2 * float(np.abs(self.fan_angles()).max())
        return replace(self, angles=tuple(np.linspace(start, start + arc, n)))

    def rays(self, supersampling: int = 1) -> tuple[np.ndarray, np.ndarray]:
        axis, normal = self._axes()
        gamma = self.fan_angles(supersampling)[:, None]
        directions = np.sin(gamma) * axis - np.cos(gamma) * normal
        return np.broadcast_to(self.source_origin * normal, directions.shape).copy(), directions

    rays.__doc__ = _Grid.rays.__doc__


@dataclass(frozen=True, kw_only=True)
class FanBeam(_Fan):
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

    Example:
        >>> from invdiff.operators import CT, FanBeam
        >>> beam = FanBeam(
        ...     image_shape=(9, 9), pixel_size=1.0, angles=(0.0, 0.1), n_detectors=9, detector_spacing=2.0,
        ...     source_origin=50.0, source_detector=100.0,
        ... )
        >>> beam.magnification
        2.0
        >>> round(float(CT(beam)(torch.full((1, 9, 9), 0.02))[0, 0, 4]), 4)  # the central ray: 9 mm of 0.02 / mm
        0.18
    """

    @staticmethod
    def _position(fan_angle: float) -> float:
        return math.tan(fan_angle)

    def fan_angles(self, supersampling: int = 1) -> np.ndarray:
        return np.arctan(self.detector_positions(supersampling) / self.source_detector)

    fan_angles.__doc__ = _Fan.fan_angles.__doc__


@dataclass(frozen=True, kw_only=True)
class CurvedFanBeam(_Fan):
    """A point source and a detector on an arc around it, rotating together: the rays are equally spaced in angle
    (third-generation clinical scanners).

    The source moves as in :class:`FanBeam`. Detector positions ``u`` are measured along the arc, so that the ray of
    ``u`` makes the angle ``u / source_detector`` with the ray through the rotation axis.

    Args:
        image_shape, pixel_size, angles, n_detectors, detector_offset: as in :class:`ParallelBeam`; the offset is
            measured along the arc.
        detector_spacing: distance between element centres along the arc, mm: ``source_detector`` times their
            angular spacing in rad.
        source_origin: distance from the source to the rotation axis, mm.
        source_detector: radius of the arc, mm.

    Raises:
        ValueError: empty, non-finite or non-positive arguments; a source or detector that would enter the image; a
            fan of 180 degrees or more.

    Example:
        >>> from invdiff.operators import CT, CurvedFanBeam
        >>> beam = CurvedFanBeam(
        ...     image_shape=(9, 9), pixel_size=1.0, angles=(0.0, 0.1), n_detectors=9, detector_spacing=2.0,
        ...     source_origin=50.0, source_detector=100.0,
        ... )
        >>> round(float(CT(beam)(torch.full((1, 9, 9), 0.02))[0, 0, 4]), 4)  # the central ray: 9 mm of 0.02 / mm
        0.18
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        half = float(np.abs(self.fan_angles()).max())
        if half >= math.pi / 2:
            raise ValueError(
                f"The outermost ray must stay within 90 degrees of the central one, got {math.degrees(half):.4g} "
                f"degrees. detector_spacing is in mm along the arc, not an angle."
            )

    @staticmethod
    def _position(fan_angle: float) -> float:
        return fan_angle

    def fan_angles(self, supersampling: int = 1) -> np.ndarray:
        return self.detector_positions(supersampling) / self.source_detector

    fan_angles.__doc__ = _Fan.fan_angles.__doc__


@dataclass(frozen=True, kw_only=True)
class VectorBeam(_Grid):
    """A flat detector and a source (or parallel rays) placed freely in every view: measured or calibrated scanners,
    wobbling axes, tomosynthesis, robots.

    These are the vectors of ASTRA's 'fanflat_vec' and 'parallel_vec', each view ``(x, y)`` in mm.

    Args:
        image_shape, pixel_size: as in :class:`ParallelBeam`.
        n_detectors: detector elements per view.
        detectors: (n_views, 2), middle of the detector.
        axes: (n_views, 2), step from one detector element to the next.
        sources: (n_views, 2), position of the point source; or
        directions: (n_views, 2), direction in which parallel rays travel, of any length. Exactly one of the two.

    Raises:
        ValueError: shapes that do not fit, non-finite numbers, zero vectors, both or neither of sources and
            directions, a source on the detector's line or inside the image.

    Example:
        >>> from invdiff.operators import CT, VectorBeam
        >>> beam = VectorBeam(
        ...     image_shape=(9, 9), pixel_size=1.0, n_detectors=9, detectors=((0.0, 20.0),), axes=((1.0, 0.0),),
        ...     directions=((0.0, 1.0),),
        ... )
        >>> round(float(CT(beam)(torch.full((1, 9, 9), 0.02))[0, 0, 4]), 4)  # 9 mm of 0.02 / mm
        0.18
    """

    n_detectors: int
    detectors: Vectors
    axes: Vectors
    sources: Vectors | None = None
    directions: Vectors | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._put("n_detectors", _positive_int("n_detectors", self.n_detectors))
        if (self.sources is None) == (self.directions is None):
            raise ValueError("Give either sources (a fan beam) or directions (a parallel beam), and not both.")
        for name in ("detectors", "axes", "sources", "directions"):
            if getattr(self, name) is None:
                continue
            array = np.asarray(getattr(self, name), dtype=np.float64)
            if array.ndim != 2 or array.shape[1] != 2 or not len(array) or not np.isfinite(array).all():
                raise ValueError(f"{name} must be finite numbers (n_views, 2) in mm, got shape {array.shape}.")
            if len(array) != len(np.asarray(self.detectors)):
                raise ValueError(f"{name} has {len(array)} views, detectors has {len(np.asarray(self.detectors))}.")
            self._put(name, tuple((float(x), float(y)) for x, y in array))
        axes = np.asarray(self.axes)
        if self.sources is not None:
            sources = np.asarray(self.sources)
            distance = float(np.hypot(*sources.T).min())
            if distance <= self.radius:
                raise ValueError(
                    f"Every source must stay outside the image: expected more than {self.radius:.4g} mm from its "
                    f"middle, got {distance:.4g} mm."
                )
            across = np.asarray(self.detectors) - sources
        else:
            across = np.asarray(self.directions)
        area = np.abs(across[:, 0] * axes[:, 1] - across[:, 1] * axes[:, 0])
        if not (area > 1e-9 * np.hypot(*across.T) * np.hypot(*axes.T)).all():
            raise ValueError(
                "In every view the rays must cross the detector: a direction or step is zero, or parallel."
            )

    @classmethod
    def of(cls, beam: ParallelBeam | FanBeam) -> VectorBeam:
        """The vectors of a parallel or flat fan beam: a start for perturbing them."""
        if not isinstance(beam, ParallelBeam | FanBeam):
            raise TypeError(f"Only a ParallelBeam or a FanBeam has a flat detector, got {type(beam).__name__}.")
        axis, normal = (a[:, 0] for a in beam._axes())
        middle = beam.detector_offset * axis
        if isinstance(beam, FanBeam):
            middle = middle - (beam.source_detector - beam.source_origin) * normal
        return cls(
            image_shape=beam.image_shape, pixel_size=beam.pixel_size, n_detectors=beam.n_detectors,
            detectors=middle.tolist(), axes=(beam.detector_spacing * axis).tolist(),
            sources=(beam.source_origin * normal).tolist() if isinstance(beam, FanBeam) else None,
            directions=normal.tolist() if isinstance(beam, ParallelBeam) else None,
        )  # fmt: skip

    @property
    def n_views(self) -> int:
        """Number of views."""
        return len(self.detectors)

    def subset(self, indices: Iterable[int]) -> VectorBeam:
        """The geometry of some of the views, in the order given."""
        indices = [int(i) for i in indices]

        def pick(vectors: Vectors | None) -> Any:
            return None if vectors is None else tuple(vectors[i] for i in indices)

        return replace(
            self, detectors=pick(self.detectors), axes=pick(self.axes), sources=pick(self.sources),
            directions=pick(self.directions),
        )  # fmt: skip

    def rays(self, supersampling: int = 1) -> tuple[np.ndarray, np.ndarray]:
        parts = _parts(self.n_detectors, _positive_int("supersampling", supersampling))[:, None]
        elements = np.asarray(self.detectors)[:, None] + np.asarray(self.axes)[:, None] * parts
        if self.sources is None:
            origins, directions = elements, np.broadcast_to(np.asarray(self.directions)[:, None], elements.shape)
        else:
            origins = np.broadcast_to(np.asarray(self.sources)[:, None], elements.shape).copy()
            directions = elements - origins
        return origins, directions / np.linalg.norm(directions, axis=-1, keepdims=True)

    rays.__doc__ = _Grid.rays.__doc__


ParallelBeam.rays.__doc__ = _Grid.rays.__doc__


def _positive_mm(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive finite length in mm, got {value!r}.")


def _positive_int(name: str, value: int) -> int:
    if int(value) != value or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}.")
    return int(value)


def _pixel_spacing(pixel_size: float | Sequence[float]) -> tuple[float, float]:
    spacing = np.asarray(pixel_size, dtype=np.float64)
    if spacing.shape not in ((), (2,)) or not (np.isfinite(spacing) & (spacing > 0)).all():
        raise ValueError(f"pixel_size must be a positive finite length in mm, or two (dy, dx), got {pixel_size!r}.")
    dy, dx = np.broadcast_to(spacing, 2).tolist()
    return dy, dx


def _radius(image_shape: Sequence[int], pixel_size: float | Sequence[float]) -> float:
    (ny, nx), (dy, dx) = image_shape, _pixel_spacing(pixel_size)
    return 0.5 * math.hypot(ny * dy, nx * dx)


def _parts(n: int, k: int) -> np.ndarray:
    """Centres of ``k`` equal parts of each of ``n`` elements, in elements from the detector's middle."""
    return (np.arange(n * k) - (n * k - 1) / 2) / k


def _equispaced(n_views: int, span: float) -> tuple[float, ...]:
    n = _positive_int("n_views", n_views)
    return tuple(span * i / n for i in range(n))
