"""From ultrasound channel data to a measurement: what every reader of plane-wave files does once it has the samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from invdiff.datasets.geometry import placed
from invdiff.measurement import Measurement
from invdiff.noise import ComplexGaussianNoise, GaussianNoise
from invdiff.operators.pointwise import ViewAsComplex
from invdiff.operators.ultrasound import PlaneWaveIQ, PlaneWaveRF, gaussian_pulse, receive_weights
from invdiff.operators.ultrasound_geometry import MM, PlaneWaveScan

LIMITS = {  # what a file may say: beyond it lies nothing physical, but arithmetic that overflows
    "sampling frequency (Hz)": (1e3, 1e10), "centre frequency (Hz)": (1e3, 1e10), "sound speed (m/s)": (100, 1e4),
}  # fmt: skip
MAX_COUNT = 1024  # transmits, and elements: with the pixels they decide how much memory the operator takes
PARTS = 16  # of the record, to look for the quietest


def plane_wave_measurement(
    samples: np.ndarray,
    *,
    element_positions: np.ndarray,
    angles: np.ndarray,
    start_times: np.ndarray,
    sampling_frequency: float,
    centre_frequency: float,
    sound_speed: float,
    phase_times: np.ndarray | float | None = None,
    bandwidth: float | None = None,
    image_shape: tuple[int, int] = (256, 256),
    depth: tuple[float, float] | None = None,
    f_number: float = 1.75,
    item: str = "",
    metadata: dict[str, Any] | None = None,
) -> Measurement:
    """A frame of channel data as a measurement of reflectivity, in the units of the samples.

    The noise is white Gaussian with ``sigma`` from :func:`noise_level`. What the model does not hold (directivity,
    attenuation, multiple scattering, the true pulse) is far above it in strong echoes, so that chi2 stays above 1.

    Args:
        samples: (transmit, element, sample), real (RF) or complex (IQ).
        element_positions: x, m.
        angles: rad.
        start_times: of the first sample, per transmit, s after the wave passes (0, 0).
        sampling_frequency, centre_frequency, sound_speed: Hz, Hz, m/s; for IQ the demodulation frequency.
        phase_times: for IQ: the first sample again, per transmit, s, on the clock t of the carrier
            ``exp(-2 pi i f t)`` that the data were demodulated with. None: that of ``start_times``.
        bandwidth: of the two-way pulse as a fraction of the centre frequency, full width at -6 dB: the operator
            contains that Gaussian pulse. None: it has none, and the image contains the pulse.
        image_shape: (nz, nx); the image is as wide as the array.
        depth: (first, last) row, mm. None: what the record covers straight ahead.
        f_number: of the receive aperture.
        item, metadata: see :class:`invdiff.Measurement`.

    Returns:
        Measurement of a real image (1, nz, nx) with a PlaneWaveRF, or of real and imaginary part (2, nz, nx) with
        ``PlaneWaveIQ @ ViewAsComplex``. ``image_scale`` is the 99.5th percentile of the magnitude of the delay-and-sum
        image. The affine places the array on the x axis (left to right), looking down (towards -z, inferior).

    Raises:
        ValueError: shapes or numbers that do not make sense.
    """
    y = np.asarray(samples)
    elements, tilts, starts = (
        np.atleast_1d(np.asarray(a, np.float64)) for a in (element_positions, angles, start_times)
    )
    expected = (tilts.size, elements.size)
    if y.ndim != 3 or y.shape[:2] != expected or tilts.ndim != 1 or elements.ndim != 1 or 0 in y.shape:
        raise ValueError(f"expected samples (transmit, element, sample) starting {expected}, got {y.shape}.")
    if max(expected) > MAX_COUNT:
        raise ValueError(f"expected at most {MAX_COUNT} transmits and elements, got {expected}. Choose some (angles).")
    values = (sampling_frequency, centre_frequency, sound_speed)
    for (name, (low, high)), value in zip(LIMITS.items(), values, strict=True):
        if not low <= value <= high:
            raise ValueError(f"the {name} must lie between {low:g} and {high:g}, got {value:g}.")
    if not ((np.abs(elements).max() < 1 and np.ptp(elements) > 0) or elements.size == 1):
        raise ValueError("the elements must lie within 1 m of the middle of the array, apart from each other.")
    clock = starts if phase_times is None else np.atleast_1d(np.asarray(phase_times, np.float64))
    if not (np.abs(starts).max() < 1 and np.abs(clock).max() < 1):
        raise ValueError("the times of the first samples must be finite and below 1 s.")
    if bandwidth is not None and not 0.01 <= bandwidth <= 2:
        raise ValueError(f"bandwidth must be a fraction of the centre frequency from 0.01 to 2, got {bandwidth:g}.")
    with np.errstate(over="ignore"):
        y = y.astype(np.complex64 if np.iscomplexobj(y) else np.float32)
    if not np.isfinite(y).all():
        raise ValueError(f"the samples have {int((~np.isfinite(y)).sum())} non-finite value(s) in {y.size}.")
    iq = np.iscomplexobj(y)
    if iq:  # the operator's carrier starts when the wave passes (0, 0)
        carrier = np.exp(-2j * np.pi * centre_frequency * (starts - clock)).astype(np.complex64)
        y = y * carrier[:, None, None]

    if depth is None:
        reach = sound_speed / 2 / MM * (starts.max() + np.array([0, (y.shape[-1] - 1) / sampling_frequency]))
        depth = (max(float(reach[0]), 0.0), float(reach[1]))
    if not (len(depth) == 2 and 0 <= depth[0] < depth[1] < 1e4):
        raise ValueError(f"depth must be (first, last) in mm, 0 <= first < last, got {tuple(depth)}.")
    x = elements / MM
    steps = [
        (b - a) / max(n - 1, 1) for a, b, n in zip((depth[0], x.min()), (depth[1], x.max()), image_shape, strict=True)
    ]
    scan = PlaneWaveScan(
        image_shape=image_shape, pixel_size=(steps[0], steps[1] or 1.0), origin=(depth[0], x.min()),
        element_positions=tuple(x), angles=tuple(tilts), start_times=tuple(np.broadcast_to(starts, tilts.shape)),
        n_samples=y.shape[-1], sampling_frequency=sampling_frequency, centre_frequency=centre_frequency,
        sound_speed=sound_speed,
    )  # fmt: skip
    pulse = None
    if bandwidth is not None:
        carrier = 0.0 if iq else centre_frequency
        pulse = gaussian_pulse(carrier, bandwidth * centre_frequency, sampling_frequency)
    sigma = noise_level(y)
    wave = (PlaneWaveIQ if iq else PlaneWaveRF)(scan, f_number=f_number, pulse=pulse)
    data = torch.from_numpy(y)
    heard = torch.from_numpy(receive_weights(scan, f_number, "boxcar")).sum(-1).reshape(wave.in_shape) * len(tilts)
    magnitude = (wave.delays.H(data) / heard.clamp(min=1)).abs()
    (dz, dx), (z0, x0) = scan.pixel_size, scan.origin
    return Measurement(
        y=data,
        A=wave @ ViewAsComplex(wave.in_shape) if iq else wave,
        noise=ComplexGaussianNoise(sigma) if iq else GaussianNoise(sigma),
        image_scale=float(np.quantile(magnitude.numpy(), 0.995)),
        item=item,
        metadata={
            **placed(np.array([[dx, 0, 0, x0], [0, 0, 1, 0], [0, -dz, 0, -z0], [0, 0, 0, 1]])),
            "noise": f"root mean square of the quietest of {PARTS} parts of the record",
            **(metadata or {}),
        },
    )


def noise_level(samples: np.ndarray) -> float:
    """Standard deviation of the noise (of each component, if complex), in the units of the samples.

    The root mean square, over all elements and transmits, of the quietest of 16 consecutive parts of the record: an
    upper bound, since weak echoes remain in it. Parts that are constant (blanked, padded) are left out.

    Args:
        samples: (transmit, element, sample).

    Raises:
        ValueError: fewer than 16 samples, or nothing but constants.
    """
    if samples.shape[-1] < PARTS:
        raise ValueError(
            f"The noise is estimated from {PARTS} parts of the record; it has {samples.shape[-1]} samples."
        )
    parts = [p for p in np.array_split(samples, PARTS, -1) if (p != p[..., :1]).any()]
    if not parts:
        raise ValueError("The samples are constant: there is no noise to estimate, and nothing to image.")
    power = min(float(np.mean(np.square(np.abs(p), dtype=np.float64))) for p in parts)
    level = math.sqrt(power / (2 if np.iscomplexobj(samples) else 1))
    if not (math.isfinite(level) and level > 0):
        raise ValueError("The samples are too large or too small to compute with in single precision.")
    return level


def chosen(angles: int | Sequence[int] | None, n_transmits: int) -> np.ndarray:
    """Indices of the transmits asked for: None: all; a number: that many, equispaced from the first
    to the last (1: the middle one); or the indices.

    Raises:
        ValueError: not among the transmits.
    """
    if angles is None:
        return np.arange(n_transmits)
    if isinstance(angles, int):
        if not 1 <= angles <= n_transmits:
            raise ValueError(f"angles must lie between 1 and {n_transmits}, the number of transmits, got {angles}.")
        if angles == 1:
            return np.array([n_transmits // 2])
        return np.round(np.linspace(0, n_transmits - 1, angles)).astype(int)
    indices = np.asarray(angles)
    if indices.ndim != 1 or indices.dtype.kind not in "iu" or not indices.size:
        raise ValueError(f"angles must be a number of transmits or a list of their indices, got {angles!r}.")
    if indices.min() < 0 or indices.max() >= n_transmits or len(set(indices.tolist())) < len(indices):
        raise ValueError(f"angles must be different indices from 0 to {n_transmits - 1}, got {angles!r}.")
    return indices


def frame(index: int, n_frames: int) -> int:
    """``index``, if the file has it."""
    if not 0 <= index < n_frames:
        raise ValueError(f"index must be a frame from 0 to {n_frames - 1}, got {index!r}.")
    return int(index)


def linear_array(positions: np.ndarray, name: str) -> np.ndarray:
    """x of the elements in m, of their positions (element, 3).

    Raises:
        ValueError: not such an array, or one that is curved, turned or two-dimensional.
    """
    if positions.ndim != 2 or positions.shape[1] != 3 or not len(positions):
        raise ValueError(f"{name}: element positions must be (element, 3) in m, got shape {positions.shape}.")
    if np.abs(positions[:, 1:]).max() > 1e-6:
        raise ValueError(f"{name}: the elements do not lie on a line along x at z = 0; only linear arrays are read.")
    return positions[:, 0].astype(np.float64)


def plane_wave_of(
    delays: np.ndarray, elements: np.ndarray, sound_speed: float, centre_frequency: float, name: str
) -> tuple[float, float]:
    """Steering angle (rad) of transmit delays, and when their wave passes x = 0, in s on the delays' clock.

    Args:
        delays: when each element fires, s, (element,).
        elements: x, m.

    Raises:
        ValueError: the delays are not a plane wave's, to a twentieth of a period.
    """
    columns = np.stack([elements, np.ones_like(elements)], 1)
    (slope, passes), *_ = np.linalg.lstsq(columns, delays, rcond=None)
    error = float(np.abs(columns @ [slope, passes] - delays).max())
    if not (error * centre_frequency < 0.05 and abs(slope * sound_speed) < 1):
        raise ValueError(
            f"{name}: the transmit delays are not those of a plane wave (off by up to {error:.3g} s). "
            f"Focused and diverging transmits are not supported."
        )
    return math.asin(slope * sound_speed), float(passes)


def demodulate(
    rf: np.ndarray, sampling_frequency: float, centre_frequency: float, start_time: float
) -> tuple[np.ndarray, float]:
    """IQ samples of band-pass sampled RF, (..., sample): half as many, complex, at half the sampling frequency.

    The centre frequency must lie in the middle of a Nyquist zone, ``f_s = 4 f_c / (2 k + 1)`` (to 5 %), so that the
    zone holds the whole band; nothing is lost, and white noise stays white, with the same standard deviation in
    each component. The phase is that of ``exp(-2 pi i f_c t)`` with t counted as ``start_time`` is.

    Raises:
        ValueError: another sampling frequency.
    """
    zone = 2 * centre_frequency / sampling_frequency % 1
    if abs(zone - 0.5) > 0.05:
        raise ValueError(
            f"band-pass sampled RF needs a sampling frequency of 4 f / (2 k + 1) for the centre frequency f, got "
            f"{sampling_frequency:g} Hz for {centre_frequency:g} Hz."
        )
    n = rf.shape[-1] // 2 * 2
    t = start_time + np.arange(n) / sampling_frequency
    spectrum = np.fft.fft(2 * rf[..., :n] * np.exp(-2j * np.pi * centre_frequency * t))
    kept = np.concatenate([spectrum[..., : (n // 2 + 1) // 2], spectrum[..., n - n // 4 :]], -1)
    return (np.fft.ifft(kept) / 2).astype(np.complex64), sampling_frequency / 2
