"""Filtered back projection for parallel beams and for fan beams with a flat or curved detector.

Source: A. C. Kak and M. Slaney, Principles of Computerized Tomographic Imaging, IEEE Press 1988, section 3.3
(parallel beam, band-limited ramp, eq. 61), 3.4.1 (equiangular rays) and 3.4.2 (equally spaced collinear detectors,
eqs. 130-146). Fan-beam arcs shorter than a turn: D. L. Parker, Med. Phys. 9, 254-257, 1982, in the form for arcs
longer than the shortest of M. D. Silver, Med. Phys. 27, 773-774, 2000; arcs too short for those are weighted as in
F. Noo, M. Defrise, R. Clackdoyle and H. Kudo, Phys. Med. Biol. 47, 2525-2546, 2002. Detectors displaced to one side:
G. Wang, Med. Phys. 29, 1634-1636, 2002.

It assumes noise-free, complete data; few or missing views give streaks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from invdiff.algorithms.draw import Callback
from invdiff.classical.point import point_estimate
from invdiff.measurement import Measurement
from invdiff.operators.ct import CT
from invdiff.operators.ct_geometry import CurvedFanBeam, FanBeam, ParallelBeam
from invdiff.posterior import Posterior
from invdiff.priors.denoiser import Prior

# Apodisation by frequency, as a fraction of the Nyquist frequency.
WINDOWS: dict[str, Callable[[Tensor], Tensor]] = {
    "ram-lak": torch.ones_like,
    "shepp-logan": lambda f: torch.sinc(f / 2),
    "cosine": lambda f: torch.cos(math.pi * f / 2),
    "hamming": lambda f: 0.54 + 0.46 * torch.cos(math.pi * f),
    "hann": lambda f: 0.5 + 0.5 * torch.cos(math.pi * f),
}
TAPER = math.radians(10)  # width over which the ends of a fan-beam arc fade out
# A gap between views counts as not measured if it is both this many usual steps wide and this wide (rad).
MISSING_STEPS, MISSING_GAP = 4.0, math.radians(10)


@dataclass(frozen=True, kw_only=True)
class FBP:
    """Filtered back projection of a :class:`CT` measurement. Label: *point estimate*.

    Args:
        window: apodisation of the ramp filter, a key of ``WINDOWS``; "ram-lak" is the pure ramp (sharpest,
            noisiest), "hann" the smoothest.

    Example:
        >>> from invdiff import GaussianNoise, Measurement
        >>> from invdiff.classical import FBP
        >>> from invdiff.datasets import ellipse_image, ellipse_sinogram
        >>> from invdiff.operators import CT, ParallelBeam
        >>> beam = ParallelBeam.covering((32, 32), 1.0, n_views=60)
        >>> disc = torch.tensor([[0.02, 10.0, 10.0, 0.0, 0.0, 0.0]]).numpy()  # 0.02 / mm, radius 10 mm
        >>> x = FBP()(None, Measurement(ellipse_sinogram(disc, beam), CT(beam), GaussianNoise(0.01))).mean
        >>> bool(abs(x[0, 13:19, 13:19].mean() / 0.02 - 1) < 0.02)
        True
    """

    window: str = "ram-lak"

    bibtex: ClassVar[str] = """@book{kak1988principles,
  author    = {Kak, Avinash C. and Slaney, Malcolm},
  title     = {Principles of Computerized Tomographic Imaging},
  publisher = {IEEE Press},
  year      = {1988}
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
            TypeError: the measurement's operator is not a :class:`CT`, or its views are free (``VectorBeam``).
            ValueError: ``n_samples`` is not 1.
        """
        A = measurement.A
        if not isinstance(A, CT):
            raise TypeError(f"FBP needs a CT operator (parallel or fan beam), got {A!r}.")
        geometry = _with_fbp(A.geometry)
        return point_estimate(
            self, lambda: fbp(measurement.y, geometry, window=self.window), measurement, n_samples=n_samples, seed=seed
        )


def fbp(y: Tensor, geometry: ParallelBeam | FanBeam | CurvedFanBeam, *, window: str = "ram-lak") -> Tensor:
    """Filtered back projection.

    Angles need not be equispaced: each view counts by the trapezoidal rule. A parallel beam measures a line
    again half a turn later, and a fan beam measures most lines twice in a turn; both are accounted for, and so
    is a view given twice. A contiguous part of the turn is reconstructed as far as it determines the image. In a
    full turn, the detector may be displaced to one side (half-fan), so that it sees only that half of the object and
    a little of the other (:func:`displaced_weights`).

    Args:
        y: line integrals, (..., n_views, n_detectors), real.
        geometry: its views, in the same order. A detector offset is taken into account. But for half-fans, every view
            must see the whole object: what lies beyond the detector counts as zero.
        window: key of ``WINDOWS``.

    Returns:
        Attenuation in 1/mm, (..., ny, nx), dtype and device of ``y``.
    """
    _check_window(window)
    _with_fbp(geometry)
    expected = (geometry.n_views, geometry.n_detectors)
    if tuple(y.shape[-2:]) != expected:
        raise ValueError(f"y must end in (n_views, n_detectors) = {expected}, got shape {tuple(y.shape)}.")

    fan = geometry if isinstance(geometry, FanBeam | CurvedFanBeam) else None
    arc = fan.source_origin if isinstance(fan, CurvedFanBeam) else math.inf  # radius of the detector
    shrink = 1 / fan.magnification if fan else 1.0  # the detector is moved to the rotation axis
    u = torch.from_numpy(geometry.detector_positions()).to(y.device) * shrink
    spacing = geometry.detector_spacing * shrink
    rays = torch.from_numpy(ray_weights(geometry)).to(y.device)
    reach = geometry.radius  # of the image, on the detector
    if fan:
        rays = rays * torch.from_numpy(np.cos(fan.fan_angles())).to(y.device)
        edge = math.asin(fan.radius / fan.source_origin)
        reach = fan.source_origin * (math.tan(edge) if arc == math.inf else edge)
    # The filtered views do not end with the detector; without their tails the image's corners would not be zero.
    n_pad = max(0, math.ceil((reach - float(min(-u[0], u[-1]))) / spacing)) + 1
    padded = torch.nn.functional.pad(y.double() * rays, (n_pad, n_pad))
    filtered = ramp_filter(padded, spacing, window, arc=arc).to(y.dtype)

    x_axis, y_axis = (torch.from_numpy(a).to(y.device, y.dtype) for a in geometry.pixel_centres())
    image = y.new_zeros(*y.shape[:-2], *geometry.image_shape)
    for view, t in enumerate(geometry.angles):
        along = x_axis * math.cos(t) + y_axis[:, None] * math.sin(t)
        distance = torch.ones((), dtype=y.dtype, device=y.device)  # squared, to the source, over source_origin
        if fan:
            U = 1 - (x_axis * math.sin(t) - y_axis[:, None] * math.cos(t)) / fan.source_origin
            along, distance = along / U, U.square()
            if arc < math.inf:
                distance = distance * (1 + (along / arc).square())
                along = arc * torch.atan(along / arc)
        position = (along - float(u[0])) / spacing + n_pad
        left = position.floor()
        fraction, index = position - left, left.long()
        row = filtered[..., view, :]
        image += torch.lerp(row[..., index], row[..., index + 1], fraction) / distance
    return image


def ramp_filter(y: Tensor, spacing: float, window: str, *, arc: float = math.inf) -> Tensor:
    """Convolve the last dimension with the band-limited ramp, sampled in space so that its mean is right.

    h(0) = 1 / (4 spacing^2), h(n) = -1 / (pi d)^2 for odd n, 0 for even n, with the distance d = n spacing; for samples
    on an arc around the source, of radius ``arc``, d = arc sin(n spacing / arc). Zero-padded to a power of two of at
    least twice the length, so that the circular convolution is a linear one.
    """
    length = 1 << (2 * y.shape[-1] - 1).bit_length()
    n = torch.fft.fftfreq(length, 1 / length, dtype=y.dtype, device=y.device)
    d = n * spacing if arc == math.inf else arc * torch.sin(n * spacing / arc)
    h = torch.where((n.long() % 2 == 0) | (n.abs() >= y.shape[-1]), 0.0, -1 / (math.pi * d).square())
    h[0] = 1 / (4 * spacing**2)
    response = torch.fft.rfft(h).real * WINDOWS[window](torch.linspace(0, 1, length // 2 + 1).to(h))
    return spacing * torch.fft.irfft(torch.fft.rfft(y, length) * response, length)[..., : y.shape[-1]]


def ray_weights(geometry: ParallelBeam | FanBeam | CurvedFanBeam) -> np.ndarray:
    """What each ray counts, rad: the weight of its view times its share in its line, (n_views, n_detectors or 1)."""
    angles, period = np.asarray(geometry.angles), 2 * math.pi
    if isinstance(geometry, ParallelBeam):
        across, edge = geometry.detector_positions(), geometry.radius
    else:
        across, edge = geometry.fan_angles(), math.asin(geometry.radius / geometry.source_origin)
    share = np.ones((1, 1))
    if _is_displaced(across, edge) and not _gaps(angles, period)[2].any():
        share = displaced_weights(across)[None]
    elif isinstance(geometry, ParallelBeam):
        period = math.pi
    else:
        share = redundancy_weights(angles, across)
    return share * view_weights(angles, period)[:, None]


def view_weights(angles: np.ndarray, period: float) -> np.ndarray:
    """Trapezoidal weight of each view, rad: half the distance to its two neighbours around ``period``.

    The widest gap counts as not measured, and its ends get nothing from it, if it is more than ``MISSING_STEPS``
    times the median step and more than ``MISSING_GAP``. Equal angles share their weight.
    """
    order, gaps, missing = _gaps(angles, period)
    gaps = np.where(missing, 0.0, gaps)
    weights = np.empty(len(angles))
    weights[order] = (gaps + np.roll(gaps, 1)) / 2
    return weights


def redundancy_weights(angles: np.ndarray, gamma: np.ndarray) -> np.ndarray:
    """Share of each fan-beam ray in its line, (n_views, n_detectors), in [0, 1].

    The ray at view ``t`` and fan angle ``gamma`` is measured again, backwards, at ``t + pi - 2 gamma``. The two
    shares add up to 1: one half each in a full turn; Parker's in an arc of at least 180 degrees plus the fan angle;
    in a shorter one ``c / (c + c')`` with a smooth ``c`` that fades towards the ends of the arc, and 1 where the line
    is measured once.
    """
    order, gaps, missing = _gaps(angles, 2 * math.pi)
    if not missing.any():
        return np.full((len(angles), len(gamma)), 0.5)
    gap = int(np.argmax(missing))
    start, length = angles[order[(gap + 1) % len(angles)]], 2 * math.pi - gaps[gap]
    s = (angles - start + 1e-9) % (2 * math.pi)
    if length >= math.pi + 2 * np.abs(gamma).max() - 1e-9:
        return parker_weights(np.clip(s, 0, length), gamma, length)

    def c(s: np.ndarray) -> np.ndarray:
        depth = np.clip(np.minimum(s, length - s) / TAPER, 0, 1)
        return np.where(s <= length + 2e-9, 1e-6 + np.sin(math.pi / 2 * depth) ** 2, 0.0)

    own = c(s)[:, None]
    return own / (own + c((s[:, None] + math.pi - 2 * gamma) % (2 * math.pi)))


def displaced_weights(across: np.ndarray) -> np.ndarray:
    """Share of each ray in its line, (n_detectors,), in a full turn with the detector displaced to one side.

    Lines within the short side's reach T of the axis are measured twice, from opposite sides, and share
    ``(1 +- sin(pi/2 s/T)) / 2``; those beyond are measured once. Source: Wang 2002.

    Args:
        across: fan angles in rad, or for parallel beams detector positions in mm, (n_detectors,), 0 on the axis.
    """
    long_side = 1.0 if across.max() > -across.min() else -1.0
    short = min(across.max(), -across.min())
    return (1 + np.sin(math.pi / 2 * np.clip(long_side * across / short, -1, 1))) / 2


def _is_displaced(across: np.ndarray, edge: float) -> bool:
    """Whether the image reaches beyond one end of the detector, which is clearly nearer to the axis than the other."""
    short, long = sorted((-float(across.min()), float(across.max())))
    return 0 < short < min(edge, 0.9 * long)


def parker_weights(s: np.ndarray, gamma: np.ndarray, arc: float) -> np.ndarray:
    """Parker's share of the ray at ``s`` (n_views,) after the start of an arc and fan angle ``gamma`` (n_detectors,).

    Source: Parker 1982, eq. 12, with the overscan angle of Silver 2000, ``(arc - pi) / 2``, for the half fan angle.

    Args:
        s: in [0, arc], rad.
        gamma: rad.
        arc: length of the arc, at least ``pi + 2 max |gamma|`` and less than ``2 pi``.
    """
    s, over = s[:, None], (arc - math.pi) / 2
    first = np.maximum(over + gamma, 0) + 1e-9  # the lines of s < 2 first are measured again later in the arc
    last = np.maximum(over - gamma, 0) + 1e-9  # those of s > arc - 2 last have been measured before
    rise, fall = (np.clip((d + 1e-9) / (2 * e), 0, 1) for d, e in ((s, first), (arc - s, last)))
    return np.sin(math.pi / 2 * rise) ** 2 * np.sin(math.pi / 2 * fall) ** 2


def _gaps(angles: np.ndarray, period: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Order of the angles around ``period``, the gap after each, and which gap (at most one) is not measured."""
    wrapped = np.mod(angles, period)
    wrapped[period - wrapped < 1e-9] = 0.0
    order = np.argsort(wrapped, kind="stable")
    gaps = np.diff(wrapped[order], append=wrapped[order[0]] + period)
    steps = np.sort(gaps[gaps > 1e-9])
    widest = np.arange(len(gaps)) == np.argmax(gaps)
    usual = steps[(len(steps) - 1) // 2]
    return order, gaps, widest & (gaps > max(MISSING_STEPS * usual, MISSING_GAP))


def _with_fbp(geometry: object) -> ParallelBeam | FanBeam | CurvedFanBeam:
    if not isinstance(geometry, ParallelBeam | FanBeam | CurvedFanBeam):
        raise TypeError(
            f"FBP needs a geometry that rotates: ParallelBeam, FanBeam or CurvedFanBeam, got {type(geometry).__name__}."
        )
    return geometry


def _check_window(window: str) -> None:
    if window not in WINDOWS:
        raise ValueError(f"window must be one of {', '.join(WINDOWS)}, got {window!r}.")
