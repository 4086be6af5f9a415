"""Image quality in ultrasound, on the envelope before log compression.

``inside`` and ``outside`` are bool masks that broadcast to the envelope; :func:`disc_mask` makes them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from invdiff.operators.ultrasound_geometry import PlaneWaveScan

N_BINS = 256


def contrast_ratio(envelope: Tensor, inside: Tensor, outside: Tensor) -> float:
    """``20 log10(mean inside / mean outside)`` in dB: negative for a cyst.

    Args:
        envelope: (1, z, x), not in dB.
        inside, outside: bool, of the same shape.

    Example:
        >>> from invdiff.evaluation.ultrasound import contrast_ratio
        >>> inside = torch.tensor([[True, True, False, False]])
        >>> round(contrast_ratio(torch.tensor([[0.1, 0.1, 1.0, 1.0]]), inside, ~inside), 4)  # dB
        -20.0
    """
    a, b = (_region(envelope, m, name).mean() for m, name in ((inside, "inside"), (outside, "outside")))
    if not (a > 0 and b > 0):
        raise ValueError("The contrast ratio needs a positive mean envelope in both regions.")
    return 20 * math.log10(float(a / b))


def cnr(envelope: Tensor, inside: Tensor, outside: Tensor) -> float:
    """Contrast-to-noise ratio ``|mean in - mean out| / sqrt(var in + var out)``, without unit.

    Args:
        envelope: (1, z, x), not in dB.
        inside, outside: bool, of the same shape.

    Example:
        >>> from invdiff.evaluation.ultrasound import cnr
        >>> inside = torch.arange(4000).reshape(1, 4000) < 2000
        >>> envelope = torch.randn(1, 4000) + 10 + 3 * inside  # 3 / sqrt(1 + 1)
        >>> bool(abs(cnr(envelope, inside, ~inside) - 3 / 2**0.5) < 0.1)
        True
    """
    a, b = _region(envelope, inside, "inside"), _region(envelope, outside, "outside")
    return float((a.mean() - b.mean()).abs() / (a.var() + b.var()).sqrt())


def gcnr(envelope: Tensor, inside: Tensor, outside: Tensor) -> float:
    """Generalised contrast-to-noise ratio: 1 minus the overlap of the two histograms, 0 (equal) to 1 (separable).

    256 equal bins over the range of both regions together. A monotonic map of the envelope (log compression, dynamic
    range) does not change the overlap of the densities, only their binning. With few pixels per region empty bins
    raise the value. A. Rodriguez-Molares et al., IEEE Trans. Ultrason. Ferroelectr. Freq. Control 67, 745-759, 2020.

    Args:
        envelope: (1, z, x).
        inside, outside: bool, of the same shape.

    Example:
        >>> from invdiff.evaluation.ultrasound import gcnr
        >>> inside = torch.tensor([[True, True, False, False]])
        >>> gcnr(torch.tensor([[0.0, 0.1, 0.9, 1.0]]), inside, ~inside)  # separable
        1.0
    """
    a, b = _region(envelope, inside, "inside"), _region(envelope, outside, "outside")
    low, high = float(min(a.min(), b.min())), float(max(a.max(), b.max()))
    if low == high:
        return 0.0
    p, q = (torch.histc(r, N_BINS, low, high) / r.numel() for r in (a, b))
    return 1 - float(torch.minimum(p, q).sum())


def speckle_snr(envelope: Tensor, region: Tensor) -> float:
    """Mean over standard deviation: ``sqrt(pi / (4 - pi)) = 1.91`` for fully developed (Rayleigh) speckle.

    Args:
        envelope: (1, z, x), not in dB.
        region: bool, of the same shape.

    Example:
        >>> from invdiff.evaluation.ultrasound import speckle_snr
        >>> speckle = torch.randn(1, 100, 100, dtype=torch.complex64).abs()
        >>> bool(abs(speckle_snr(speckle, torch.ones(1, 100, 100, dtype=torch.bool)) - 1.91) < 0.1)
        True
    """
    r = _region(envelope, region, "region")
    return float(r.mean() / r.std())


def fwhm(profile: Tensor, spacing: float, peak: int | None = None) -> float:
    """Full width at half maximum (-6 dB) of a peak, in the unit of ``spacing``, linear between samples.

    Args:
        spacing: distance of the samples.
        profile: (n,), envelope, not in dB.
        peak: index of the peak; None: the highest value.

    Raises:
        ValueError: the profile is not positive at its peak, or does not fall to half of it on both sides.

    Example:
        >>> from invdiff.evaluation.ultrasound import fwhm
        >>> fwhm(torch.tensor([0.0, 0.5, 1.0, 0.5, 0.0]), 0.1)  # mm, from half to half
        0.2
    """
    values = profile.detach().cpu().double()
    if values.ndim != 1:
        raise ValueError(f"profile must have one dimension, got shape {tuple(profile.shape)}.")
    peak = int(values.argmax()) if peak is None else peak
    half = float(values[peak]) / 2
    if not half > 0:
        raise ValueError(f"The profile must be positive at its peak, got {2 * half:g} at index {peak}.")
    edges = []
    for step in (-1, 1):
        i = peak
        while 0 <= i < len(values) and float(values[i]) > half:
            i += step
        if not 0 <= i < len(values):
            raise ValueError("The profile does not fall to half of its peak on both sides; take a longer one.")
        inner, outer = float(values[i - step]), float(values[i])
        edges.append(i - step * (half - outer) / (inner - outer))
    return (edges[1] - edges[0]) * spacing


def point_widths(envelope: Tensor, scan: PlaneWaveScan, region: Tensor) -> tuple[float, float]:
    """Axial and lateral :func:`fwhm` in mm, through the highest pixel of ``region``.

    Args:
        scan: whose pixel size it has.
        region: bool, (1, nz, nx).
        envelope: (..., nz, nx), one image.

    Example:
        >>> from invdiff.evaluation.ultrasound import point_widths
        >>> from invdiff.operators import PlaneWaveScan
        >>> scan = PlaneWaveScan.covering(
        ...     (11, 11), (8.0, 9.0), element_positions=(-1.0, 0.0, 1.0), angles=(0.0,), sampling_frequency=20e6,
        ...     centre_frequency=5e6,
        ... )
        >>> z = torch.arange(11.0) - 5
        >>> point = torch.exp(-(z[:, None] ** 2) / 2 - z**2 / 8)  # 1 and 2 pixels of standard deviation
        >>> axial, lateral = point_widths(point, scan, torch.ones(1, 11, 11, dtype=torch.bool))
        >>> dz, dx = scan.pixel_size
        >>> bool(abs(axial / dz - 2.355) < 0.1), bool(abs(lateral / dx - 4.71) < 0.1)
        (True, True)
    """
    image = envelope.reshape(scan.image_shape)
    highest = torch.where(region.to(image.device).reshape(scan.image_shape), image, -math.inf).argmax()
    row, column = divmod(int(highest), scan.image_shape[1])
    dz, dx = scan.pixel_size
    return fwhm(image[:, column], dz, row), fwhm(image[row], dx, column)


def disc_mask(scan: PlaneWaveScan, centre: tuple[float, float], radius: float, *, hole: float = 0.0) -> Tensor:
    """Pixels between ``hole`` and ``radius`` (mm) from ``centre``, (z, x) in mm, as a bool (1, nz, nx).

    Args:
        scan: whose image grid is meant.
        centre: (z, x), mm.
        radius, hole: outer and inner radius, mm.

    Raises:
        ValueError: no pixel lies there.

    Example:
        >>> from invdiff.evaluation.ultrasound import disc_mask
        >>> from invdiff.operators import PlaneWaveScan
        >>> scan = PlaneWaveScan.covering(
        ...     (41, 41), (8.0, 12.0), element_positions=(-2.0, 0.0, 2.0), angles=(0.0,), sampling_frequency=20e6,
        ...     centre_frequency=5e6,
        ... )
        >>> dz, dx = scan.pixel_size
        >>> area = float(disc_mask(scan, (10.0, 0.0), 1.5).sum()) * dz * dx
        >>> bool(abs(area / (3.1416 * 1.5**2) - 1) < 0.05)
        True
    """
    x, z = (torch.from_numpy(a) for a in scan.pixel_centres())
    distance = torch.hypot(z[:, None] - centre[0], x - centre[1])
    mask = (distance <= radius) & (distance >= hole)
    if not mask.any():
        raise ValueError(f"No pixel lies between {hole} and {radius} mm from {centre}.")
    return mask[None]


def _region(envelope: Tensor, mask: Tensor, name: str) -> Tensor:
    if envelope.is_complex() or bool((envelope < 0).any()):
        raise ValueError("The measures take an envelope (real, not negative, not in dB). Use operators.Envelope.")
    if mask.dtype != torch.bool:
        raise TypeError(f"{name} must be a bool mask, got {mask.dtype}.")
    values = envelope.detach().cpu().double()[mask.cpu().expand(envelope.shape)]
    if values.numel() < 2:
        raise ValueError(f"{name} must hold at least 2 pixels, it holds {values.numel()}.")
    return values
