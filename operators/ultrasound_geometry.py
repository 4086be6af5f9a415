"""Geometry of plane-wave ultrasound: the array, the transmits, the record and the image grid.

Conventions: the elements lie on the line z = 0, z is depth (increasing away from the array), x is lateral; lengths
are in mm, times in s, frequencies in Hz, angles in rad, the speed of sound in m/s. Image rows run along z (axis -2),
columns along x (axis -1). A transmit is a plane wave that travels along ``(x, z) = (sin t, cos t)``: a positive angle
steers towards +x. Time 0 of a transmit is when its wave passes ``(x, z) = (0, 0)``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

MM = 1e-3  # m


@dataclass(frozen=True, kw_only=True)
class PlaneWaveScan:
    """A linear array, the plane waves it sends, the record it takes, and the image grid.

    Args:
        image_shape: (nz, nx) pixels.
        pixel_size: (dz, dx), mm.
        origin: (z, x) of the centre of pixel [0, 0], mm; z >= 0.
        element_positions: x of the elements, mm.
        angles: one steering angle per transmit, rad, below pi / 2 in magnitude.
        start_times: time of the first sample of each transmit, s; one number stands for all.
        n_samples: samples per transmit and element.
        sampling_frequency: of the record (of the complex samples, for IQ data), Hz.
        centre_frequency: of the pulse, Hz; for IQ data the frequency by which they were demodulated.
        sound_speed: m/s.

    Raises:
        ValueError: empty, non-finite or impossible arguments.

    Example:
        >>> from invdiff.operators import PlaneWaveScan
        >>> scan = PlaneWaveScan(
        ...     image_shape=(64, 32), pixel_size=(0.1, 0.3), origin=(5.0, -4.65), element_positions=(-0.3, 0.0, 0.3),
        ...     angles=(0.0,), start_times=0.0, n_samples=512, sampling_frequency=20e6, centre_frequency=5e6,
        ... )
        >>> f"{scan.wavelength:.3f} mm"  # 1540 m/s / 5 MHz
        '0.308 mm'
    """

    image_shape: tuple[int, int]
    pixel_size: tuple[float, float]
    origin: tuple[float, float]
    element_positions: tuple[float, ...]
    angles: tuple[float, ...]
    start_times: tuple[float, ...] | float
    n_samples: int
    sampling_frequency: float
    centre_frequency: float
    sound_speed: float = 1540.0

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)  # lists and arrays come from TOML and HDF5

        shape = tuple(int(n) for n in self.image_shape)
        if len(shape) != 2 or min(shape) < 1:
            raise ValueError(f"image_shape must be two positive integers (nz, nx), got {self.image_shape!r}.")
        put("image_shape", shape)
        for name, unit in (("pixel_size", "mm"), ("origin", "mm"), ("element_positions", "mm"), ("angles", "rad")):
            put(name, _finite(name, getattr(self, name), unit))
        times = _finite("start_times", self.start_times, "s")
        if len(times) not in (1, len(self.angles)):
            raise ValueError(
                f"start_times must hold one time per transmit ({len(self.angles)}), or one for all, got {len(times)}."
            )
        put("start_times", times if len(times) == len(self.angles) else times * len(self.angles))
        if len(self.pixel_size) != 2 or min(self.pixel_size) <= 0:
            raise ValueError(f"pixel_size must be (dz, dx), both positive, in mm, got {self.pixel_size}.")
        if len(self.origin) != 2 or self.origin[0] < 0:
            raise ValueError(f"origin must be (z, x) in mm with z >= 0, got {self.origin}.")
        if max(map(abs, self.angles)) >= math.pi / 2:
            raise ValueError("angles must lie between -pi/2 and pi/2; they are in rad, not in degrees.")
        if int(self.n_samples) != self.n_samples or self.n_samples < 1:
            raise ValueError(f"n_samples must be a positive integer, got {self.n_samples!r}.")
        put("n_samples", int(self.n_samples))
        for name, unit in (("sampling_frequency", "Hz"), ("centre_frequency", "Hz"), ("sound_speed", "m/s")):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive finite number in {unit}, got {value!r}.")
            put(name, float(value))

    @classmethod
    def covering(
        cls,
        image_shape: tuple[int, int],
        depth: tuple[float, float],
        *,
        element_positions: Iterable[float],
        angles: Iterable[float] = (0.0,),
        sampling_frequency: float,
        centre_frequency: float,
        sound_speed: float = 1540.0,
    ) -> PlaneWaveScan:
        """A grid as wide as the array between two depths (first and last row, mm), and a record, from the wave's
        passing the array's centre, that is long enough for the echo of every pixel at every element."""
        elements = np.asarray(tuple(element_positions), dtype=np.float64)
        tilts = tuple(float(t) for t in angles)
        (nz, nx), (near, far) = image_shape, depth
        if not 0 <= near < far:
            raise ValueError(f"depth must be (first, last) in mm with 0 <= first < last, got {depth!r}.")
        width = float(np.ptp(elements))
        steps = ((far - near) / max(nz - 1, 1), (width or 1.0) / max(nx - 1, 1))
        reach = max(far * math.cos(t) + float(np.abs(elements).max()) * abs(math.sin(t)) for t in tilts)
        longest = (reach + math.hypot(far, width)) * MM / sound_speed
        return cls(
            image_shape=image_shape, pixel_size=steps, origin=(near, float(elements.min())),
            element_positions=tuple(elements), angles=tilts, start_times=0.0,
            n_samples=math.ceil(longest * sampling_frequency) + 2, sampling_frequency=sampling_frequency,
            centre_frequency=centre_frequency, sound_speed=sound_speed,
        )  # fmt: skip

    @property
    def n_transmits(self) -> int:
        """Number of plane waves."""
        return len(self.angles)

    @property
    def n_elements(self) -> int:
        """Number of elements."""
        return len(self.element_positions)

    @property
    def pitch(self) -> float:
        """Mean distance between neighbouring elements, mm (of a single element: 0)."""
        x = self.element_positions
        return (max(x) - min(x)) / max(len(x) - 1, 1)

    @property
    def wavelength(self) -> float:
        """mm."""
        return self.sound_speed / self.centre_frequency / MM

    def subset(self, transmits: Iterable[int]) -> PlaneWaveScan:
        """The geometry of some of the transmits, in the order given."""
        kept = [int(i) for i in transmits]
        times = np.atleast_1d(self.start_times)
        return replace(
            self, angles=tuple(self.angles[i] for i in kept), start_times=tuple(float(times[i]) for i in kept)
        )

    def pixel_centres(self) -> tuple[np.ndarray, np.ndarray]:
        """``x`` (nx,) and ``z`` (nz,) of the pixel centres in mm, float64, both increasing."""
        (nz, nx), (dz, dx), (z, x) = self.image_shape, self.pixel_size, self.origin
        return x + dx * np.arange(nx), z + dz * np.arange(nz)

    def transmit_delays(self) -> np.ndarray:
        """Time from 0 until each wave reaches each pixel, s, float64, (n_transmits, nz * nx)."""
        x, z = self.pixel_centres()
        t = np.asarray(self.angles)[:, None, None]
        path = x * np.sin(t) + z[:, None] * np.cos(t)
        return path.reshape(len(self.angles), -1) * (MM / self.sound_speed)

    def receive_delays(self) -> np.ndarray:
        """Time from each pixel to each element, s, float64, (nz * nx, n_elements)."""
        x, z = self.pixel_centres()
        lateral = x[:, None] - np.asarray(self.element_positions)
        return np.hypot(lateral, z[:, None, None]).reshape(-1, self.n_elements) * (MM / self.sound_speed)


def _finite(name: str, values: object, unit: str) -> tuple[float, ...]:
    array = np.atleast_1d(np.asarray(values, dtype=np.float64))
    if array.ndim != 1 or not array.size:
        raise ValueError(f"{name} must be a list of numbers in {unit}, got shape {array.shape}.")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite numbers in {unit}; at least one is NaN or infinite.")
    return tuple(array.tolist())
