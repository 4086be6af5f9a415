"""Plane-wave ultrasound: from reflectivity to the channel data of every element, RF or IQ.

Model (e.g. Montaldo et al., IEEE Trans. Ultrason. Ferroelectr. Freq. Control 56, 489-506, 2009): every pixel echoes
each plane wave; the echo of pixel p reaches element e at the time the wave needs to p plus the time from p to e.
Single scattering, one speed of sound, no attenuation. Masks on transmits, elements or scan lines are
``Inpainting(slab_mask(...)) @ A``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import ClassVar

import numpy as np
import scipy.fft
import torch
from torch import Tensor

from invdiff.operators.base import LinearOperator, Operator
from invdiff.operators.memory import default_budget
from invdiff.operators.ultrasound_delays import DelayMatrix, StoredDelays
from invdiff.operators.ultrasound_geometry import MM, PlaneWaveScan

# Receive weight by lateral distance, as a fraction of half the aperture.
APERTURES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "boxcar": np.ones_like,
    "hamming": lambda u: 0.54 + 0.46 * np.cos(np.pi * u),
    "hann": lambda u: 0.5 + 0.5 * np.cos(np.pi * u),
}


class _PlaneWave(LinearOperator):
    adjoint_as_backward = True
    iq: ClassVar[bool]

    def __init__(
        self,
        scan: PlaneWaveScan,
        f_number: float = 1.75,
        aperture: str = "boxcar",
        pulse: Tensor | None = None,
        memory_budget: int | None = None,
    ) -> None:
        iq = self.iq
        if not isinstance(scan, PlaneWaveScan):
            raise TypeError(f"scan must be a PlaneWaveScan, got {type(scan).__name__}.")
        if memory_budget is not None and not memory_budget > 0:
            raise ValueError(f"memory_budget must be a positive number of bytes, got {memory_budget!r}.")
        weights = receive_weights(scan, f_number, aperture)
        if pulse is not None and (pulse.ndim != 1 or not len(pulse) or pulse.is_complex() > iq):
            kind = "a real or complex" if iq else "a real"
            raise TypeError(f"pulse must be {kind} 1-D tensor, got {pulse.dtype} of shape {tuple(pulse.shape)}.")
        super().__init__(
            (1, *scan.image_shape), (scan.n_transmits, scan.n_elements, scan.n_samples), in_complex=iq, out_complex=iq
        )
        self.scan, self.f_number, self.aperture, self.memory_budget = scan, float(f_number), aperture, memory_budget
        self.pulse = None if pulse is None else pulse.to(torch.complex64 if pulse.is_complex() else torch.float32)
        # two samples per echo, 8 bytes each, in the matrix and in its transpose, for IQ in two parts
        n_bytes = int(np.count_nonzero(weights)) * scan.n_transmits * 2 * 8 * 2 * (1 + iq)
        stored = n_bytes <= (memory_budget or default_budget()) and n_bytes // 16 < np.iinfo(np.int32).max
        self._delays = (DelayMatrix if stored else StoredDelays)(scan, weights, iq=iq)
        self._transfer = None if pulse is None else _transfer(pulse, scan.n_samples, iq)

    def forward(self, x: Tensor) -> Tensor:
        return self._convolve(self._delays.apply(x.flatten(1).T).movedim(-1, 0), adjoint=False)

    def adjoint(self, y: Tensor) -> Tensor:
        y = self._convolve(y, adjoint=True)
        return self._delays.apply_adjoint(y.movedim(0, -1)).T.reshape(-1, *self.in_shape)

    def _convolve(self, y: Tensor, *, adjoint: bool) -> Tensor:
        """With the pulse along time, linearly: what would leave the record is cut off."""
        h = self._transfer
        if h is None:
            return y
        h = h.conj() if adjoint else h
        n = self.scan.n_samples
        if self.in_complex:
            return torch.fft.ifft(torch.fft.fft(y, len(h)) * h)[..., :n]
        length = 2 * (len(h) - 1)
        return torch.fft.irfft(torch.fft.rfft(y, length) * h, length)[..., :n]

    @property
    def delays(self) -> LinearOperator:
        """The same operator without the pulse."""
        if self.pulse is None:
            return self
        new = self.to()
        new.pulse = new._transfer = None
        return new


class PlaneWaveRF(_PlaneWave):
    """Radio-frequency channel data of plane-wave transmits: delays, linear interpolation, pulse.

    Real reflectivity ``(..., 1, z, x)`` to real samples ``(..., transmit, element, sample)``, both in relative units
    (sampled like ``scan``): without a pulse, a pixel of 1 adds 1, shared by two samples, to each element of its
    receive aperture. The norm therefore grows with elements and with pixels per sample; :meth:`norm` gives it.

    Delays are computed in float64; the weights are stored in float32 as a sparse matrix with its transpose, so the
    adjoint is exact. They take 64 bytes per (transmit, pixel, element of the aperture), twice that for IQ. Beyond
    ``memory_budget`` the delays are stored instead, which takes 12 bytes (IQ: 16) per (pixel, element) for all
    transmits together and is slower.

    Args:
        scan: geometry.
        f_number: depth over width of the receive aperture: element e hears pixel p where
            ``|x_e - x_p| <= z_p / (2 f_number)``, and within half a pitch. 0: every element hears every pixel.
        aperture: weights across the aperture, a key of :data:`APERTURES`.
        pulse: two-way pulse, sampled at ``scan.sampling_frequency``, its middle at index ``len // 2``; see
            :func:`gaussian_pulse`. What it moves beyond the record's ends is lost. None: an impulse.
        memory_budget: bytes that the matrix and its transpose may take. None: a quarter of the machine's memory.

    Raises:
        TypeError, ValueError: scan, pulse, f_number or aperture are not such.

    Example:
        >>> from invdiff.operators import PlaneWaveRF, PlaneWaveScan
        >>> scan = PlaneWaveScan(
        ...     image_shape=(1, 1), pixel_size=(0.1, 0.1), origin=(7.7, 0.0), element_positions=(-0.3, 0.0, 0.3),
        ...     angles=(0.0,), start_times=0.0, n_samples=256, sampling_frequency=20e6, centre_frequency=5e6,
        ... )
        >>> echo = PlaneWaveRF(scan, f_number=0)(torch.ones(1, 1, 1))
        >>> int(echo[0, 1].argmax())  # 2 * 7.7 mm / 1540 m/s * 20 MHz, below the middle element
        200
    """

    iq = False


class PlaneWaveIQ(_PlaneWave):
    """Demodulated (IQ) channel data of plane-wave transmits.

    As :class:`PlaneWaveRF` with complex reflectivity and complex samples: an echo delayed by ``tau`` has the phase
    ``exp(-2 pi i f tau)``, with f the demodulation frequency ``scan.centre_frequency`` and tau counted from time 0 of
    the transmit (not from the first sample). The pulse is the pulse's envelope. For a two-channel prior,
    ``@ ViewAsComplex((1, nz, nx))``.

    Args:
        scan, f_number, aperture, pulse, memory_budget: as in :class:`PlaneWaveRF`; the pulse may be complex.

    Example:
        >>> from invdiff.operators import PlaneWaveIQ, PlaneWaveScan, dot
        >>> scan = PlaneWaveScan(
        ...     image_shape=(4, 2), pixel_size=(0.3, 0.3), origin=(7.0, -0.15), element_positions=(-0.3, 0.0, 0.3),
        ...     angles=(0.0, 0.1), start_times=0.0, n_samples=256, sampling_frequency=20e6, centre_frequency=5e6,
        ... )
        >>> A = PlaneWaveIQ(scan, f_number=0)
        >>> x, y = torch.randn(1, 4, 2) + 0j, torch.randn(2, 3, 256) + 0j
        >>> A.out_shape, torch.allclose(dot(A(x), y), dot(x, A.H(y)), atol=1e-3)
        ((2, 3, 256), True)
    """

    iq = True


PlaneWave = PlaneWaveRF | PlaneWaveIQ


def find_plane_wave(A: Operator) -> PlaneWave | None:
    """The plane-wave operator in a composition, e.g. behind a mask or after :class:`ViewAsComplex`, if any.

    Args:
        A: any operator.

    Example:
        >>> from invdiff.operators import Inpainting, PlaneWaveRF, PlaneWaveScan, find_plane_wave, slab_mask
        >>> scan = PlaneWaveScan(
        ...     image_shape=(2, 2), pixel_size=(0.3, 0.3), origin=(7.0, -0.15), element_positions=(-0.3, 0.0, 0.3),
        ...     angles=(0.0,), start_times=0.0, n_samples=256, sampling_frequency=20e6, centre_frequency=5e6,
        ... )
        >>> A = PlaneWaveRF(scan)
        >>> find_plane_wave(Inpainting(slab_mask(A.out_shape, 1, [0, 2])) @ A) is A
        True
    """
    if isinstance(A, PlaneWave):
        return A
    for name in ("outer", "inner"):
        part = getattr(A, name, None)
        if isinstance(part, Operator) and (found := find_plane_wave(part)) is not None:
            return found
    return None


def receive_weights(scan: PlaneWaveScan, f_number: float, aperture: str) -> np.ndarray:
    """Weight of each element in the receive aperture of each pixel, float64, (nz * nx, n_elements).

    Args:
        f_number, aperture: as in :class:`PlaneWaveRF`.
    """
    if not (math.isfinite(f_number) and f_number >= 0):
        raise ValueError(f"f_number must be a finite number >= 0, got {f_number!r}.")
    if aperture not in APERTURES:
        raise ValueError(f"aperture must be one of {', '.join(APERTURES)}, got {aperture!r}.")
    x, z = scan.pixel_centres()
    lateral = np.abs(x[:, None] - np.asarray(scan.element_positions))
    if f_number == 0:
        half = np.full_like(z, np.inf)
    else:
        half = np.maximum(z / (2 * f_number), max(scan.pitch, 1e-6) / 2)
    u = lateral / half[:, None, None]
    near = lateral <= 1.0001 * scan.pitch / 2  # a window must not silence the only element above a pixel
    return np.where(near, 1.0, np.where(u <= 1 + 1e-9, APERTURES[aperture](u), 0.0)).reshape(-1, scan.n_elements)


def gaussian_pulse(frequency: float, bandwidth: float, sampling_frequency: float) -> Tensor:
    """``exp(-t^2 / (2 s^2)) cos(2 pi frequency t)``, cut at 4 s, of unit energy; for IQ data take ``frequency=0``.

    Args:
        frequency: Hz.
        bandwidth: full width of the two-way spectrum at half amplitude (-6 dB), Hz.
        sampling_frequency: Hz.

    Returns:
        Tensor of odd length, centred.

    Example:
        >>> from invdiff.operators import gaussian_pulse
        >>> pulse = gaussian_pulse(5e6, 3e6, 40e6)
        >>> len(pulse) % 2, round(float(pulse.square().sum()), 5), int(pulse.argmax()) == len(pulse) // 2
        (1, 1.0, True)
    """
    if not (frequency >= 0 and bandwidth > 0 and sampling_frequency > 0):
        raise ValueError(
            f"Need frequency >= 0, bandwidth > 0 and sampling_frequency > 0 in Hz, got {frequency=}, {bandwidth=}, "
            f"{sampling_frequency=}."
        )
    s = math.sqrt(2 * math.log(2)) / (math.pi * bandwidth)
    reach = math.ceil(4 * s * sampling_frequency)
    t = torch.arange(-reach, reach + 1, dtype=torch.float64) / sampling_frequency
    h = torch.exp(-(t**2) / (2 * s**2)) * torch.cos(2 * math.pi * frequency * t)
    return (h / h.norm()).float()


def pulse_psf(scan: PlaneWaveScan, bandwidth: float, *, f_number: float = 1.75) -> Tensor:
    """PSF of a beamformed RF image, for the convolutional model ``Blur(psf, (1, nz, nx))``.

    Axially a Gaussian pulse at two waves per wavelength of depth (out and back), laterally the main lobe of an
    aperture of that f-number, as a Gaussian of full width ``1.2 wavelength f_number`` at half amplitude (the width
    of a sinc, at the image's own depth everywhere). Unit energy, centred, odd sizes, no larger than the image.

    Args:
        scan: its pixel size, wavelength and speed of sound.
        bandwidth: Hz, as in :func:`gaussian_pulse`.
        f_number: of the receive aperture.

    Raises:
        ValueError: the rows are too far apart for the waves (more than a quarter of the wavelength).

    Example:
        >>> from invdiff.operators import PlaneWaveScan, pulse_psf
        >>> scan = PlaneWaveScan(
        ...     image_shape=(64, 32), pixel_size=(0.03, 0.1), origin=(5.0, -1.55), element_positions=(-0.3, 0.0, 0.3),
        ...     angles=(0.0,), start_times=0.0, n_samples=512, sampling_frequency=20e6, centre_frequency=5e6,
        ... )
        >>> psf = pulse_psf(scan, 3e6)
        >>> round(float(psf.square().sum()), 4), [n % 2 for n in psf.shape]
        (1.0, [1, 1])
    """
    dz, dx = scan.pixel_size
    if dz > scan.wavelength / 4:
        raise ValueError(
            f"An RF image needs rows at most a quarter of the wavelength apart, {scan.wavelength / 4:.4g} mm; "
            f"got {dz:.4g} mm. Use more rows, or an IQ image with the PSF of its envelope."
        )
    per_mm = 2 * MM / scan.sound_speed  # s of delay per mm of depth
    axial = gaussian_pulse(scan.centre_frequency, bandwidth, 1 / (dz * per_mm))
    s = 1.2 * scan.wavelength * f_number / (2 * math.sqrt(2 * math.log(2)))
    reach = math.ceil(3 * s / dx)
    lateral = torch.exp(-((torch.arange(-reach, reach + 1) * dx) ** 2) / (2 * s**2))
    psf = torch.outer(*(_crop(h, n) for h, n in zip((axial, lateral), scan.image_shape, strict=True)))
    return psf / psf.norm()


def slab_mask(shape: Iterable[int], dim: int, kept: Iterable[int]) -> Tensor:
    """Bool mask (\\*shape), True at the indices ``kept`` along ``dim``.

    On channel data ``A.out_shape``, ``dim=0`` keeps transmits and ``dim=1`` elements; on an image, ``dim=-1`` keeps
    scan lines. Masks combine with ``&``; use them as ``Inpainting(mask) @ A``, for IQ data with ``in_complex=True``.

    Example:
        >>> from invdiff.operators import slab_mask
        >>> slab_mask((3, 1, 2), 0, [0, 2]).tolist()
        [[[True, True]], [[False, False]], [[True, True]]]
    """
    mask = torch.zeros(tuple(shape), dtype=torch.bool)
    n = mask.shape[dim]
    indices = [int(i) for i in kept]
    if not indices or not all(0 <= i < n for i in indices):
        raise ValueError(f"kept must hold indices from 0 to {n - 1}, at least one, got {indices}.")
    return mask.index_fill_(dim, torch.tensor(indices), True)


def _transfer(pulse: Tensor, n_samples: int, iq: bool) -> Tensor:
    """Fourier transform of the pulse with its middle at 0, at a length that keeps its ends off the record."""
    before = len(pulse) // 2
    length = scipy.fft.next_fast_len(n_samples + max(before, len(pulse) - 1 - before) + 1)
    length += length % 2  # an even length is known from its half spectrum
    length = max(length, len(pulse) + len(pulse) % 2)
    h = torch.zeros(length, dtype=torch.complex128 if pulse.is_complex() else torch.float64)
    h[: len(pulse)] = pulse
    h = h.roll(-before)
    return (torch.fft.fft(h) if iq else torch.fft.rfft(h)).to(torch.complex64)


def _crop(h: Tensor, n: int) -> Tensor:
    """The middle of an odd-length ``h``, at most ``n`` long and still odd."""
    excess = max(0, (len(h) - (n - 1 + n % 2) + 1) // 2)
    return h[excess : len(h) - excess]
