"""From k-space to a measurement: what every MRI reader does once it has found the samples.

Cartesian k-space (coil, y, x) is centred, zero frequency at ``(ny // 2, nx // 2)``, and in the units of the
orthonormal FFT, as in fastMRI, BART and sigpy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from invdiff.measurement import Measurement
from invdiff.noise import ComplexGaussianNoise
from invdiff.operators.mri import MultiCoilMRI, ifft2c
from invdiff.operators.mri_coils import espirit_maps
from invdiff.operators.pointwise import RealAsComplex, ViewAsComplex

CALIBRATION_WIDTH = 24  # at most this much of the centre is used for coil maps and phase, in each direction


def kspace_measurement(
    kspace: np.ndarray | Tensor,
    *,
    mask: np.ndarray | Tensor | None = None,
    maps: np.ndarray | Tensor | None = None,
    crop: float = 0.0,
    sigma: float | None = None,
    magnitude: bool = True,
    item: str = "",
    reference: np.ndarray | Tensor | None = None,
    metadata: dict[str, Any] | None = None,
) -> Measurement:
    """A slice of Cartesian k-space as a measurement of one image, in the units of the file.

    Args:
        kspace: complex, (coil, y, x), or (y, x) for a single coil; values where nothing is sampled are dropped.
        mask: sampled positions, (y, x) or broadcastable, non-zero where sampled. None: where any coil is not 0.
        maps: coil sensitivities, complex, (coil, y, x). None: ESPIRiT from the fully sampled centre; 1 for one coil.
        crop: those maps are zero where ESPIRiT's eigenvalue is below this. 0 keeps all: where maps are zero the data
            say nothing, and a prior fills the air with an image. About 0.8 (BART's default) suits classical methods,
            for which it is knowledge of the object's outline.
        sigma: noise of each component. None: :func:`noise_level`.
        magnitude: True: the image is real, (1, y, x), and its phase is part of the operator: estimated from the centre
            of k-space (:func:`low_resolution_phase`), so that the phase is smooth. False: (2, y, x), real and
            imaginary part, and no phase is assumed.
        item, metadata: see :class:`invdiff.Measurement`.
        reference: the image, (y, x), real for a magnitude, complex otherwise.

    Returns:
        Measurement with the operator ``MultiCoilMRI @ RealAsComplex`` or ``@ ViewAsComplex``; ``image_scale`` is the
        99.5th percentile of the zero-filled magnitude where it exceeds a tenth of its maximum.

    Raises:
        ValueError: shapes that do not fit, non-finite values, or too little data for what is to be estimated.

    Example:
        >>> from invdiff.datasets import kspace_measurement
        >>> from invdiff.operators import birdcage_maps, fft2c
        >>> maps, x = birdcage_maps(4, (16, 16)), torch.ones(1, 16, 16) + 0j
        >>> m = kspace_measurement(fft2c(maps * x), maps=maps, sigma=0.01, magnitude=False)
        >>> m.A.in_shape, round(m.image_scale, 3)  # real and imaginary part
        ((2, 16, 16), 1.0)
    """
    y = _complex(kspace, "kspace", "(coil, y, x)")
    n_coils, *shape = y.shape
    sampled = (y != 0).any(0) if mask is None else torch.as_tensor(np.asarray(mask)) != 0
    try:
        sampled = sampled.expand(shape)
    except RuntimeError:
        raise ValueError(f"mask {tuple(sampled.shape)} does not broadcast to k-space's {tuple(shape)}.") from None
    y = y * sampled
    if not bool((y != 0).any()):
        raise ValueError("k-space is zero wherever it is sampled.")
    if sigma is None:
        sigma = noise_level(y, sampled)

    if maps is not None:
        coils = _complex(maps, "maps", "(coil, y, x)")
        if coils.shape != y.shape:
            raise ValueError(f"maps must have k-space's shape {tuple(y.shape)}, got {tuple(coils.shape)}.")
    elif n_coils == 1:
        coils = torch.ones_like(y)
    else:
        coils = espirit_maps(y, calibration_size(sampled), crop=crop)

    image_shape = (1, *shape)
    if magnitude:
        coils = coils * low_resolution_phase(y, coils)
    A = MultiCoilMRI(coils, sampled) @ (RealAsComplex(image_shape) if magnitude else ViewAsComplex(image_shape))
    zero_filled = MultiCoilMRI(coils, sampled).H(y).abs()
    if not float(zero_filled.max()) > 0:
        raise ValueError("The zero-filled image is zero: the coil maps are zero where the signal is.")
    truth = None
    if reference is not None:
        truth = torch.as_tensor(np.asarray(reference))[None]
        if truth.is_complex() == magnitude:
            raise ValueError(f"reference must be {'real' if magnitude else 'complex'} for magnitude={magnitude}.")
        truth = truth.float() if magnitude else torch.cat([truth.real, truth.imag]).float()
    return Measurement(
        y=y,
        A=A,
        noise=ComplexGaussianNoise(float(sigma)),
        image_scale=float(np.quantile(zero_filled[zero_filled > 0.1 * zero_filled.max()].numpy(), 0.995)),
        reference=truth,
        item=item,
        metadata={"n_coils": n_coils, "acceleration": sampled.numel() / int(sampled.sum()), **(metadata or {})},
    )


def item_index(index: int | None, n_items: int) -> int:
    """``index``, or the middle item for None; ValueError outside of 0 .. n_items - 1."""
    index = n_items // 2 if index is None else index
    if not 0 <= index < n_items:
        raise ValueError(f"index must lie between 0 and {n_items - 1}, got {index}.")
    return index


def crop_readout(kspace: Tensor, width: int, dim: int) -> Tensor:
    """k-space of the central ``width`` pixels along a fully sampled direction, without loss inside of them.

    This is how readout oversampling is removed: transform along ``dim``, keep the centre, transform back.
    """

    def along(transform: Any, x: Tensor) -> Tensor:
        return torch.fft.fftshift(transform(torch.fft.ifftshift(x, dim), dim=dim, norm="ortho"), dim)

    n = kspace.shape[dim]
    return along(torch.fft.fft, along(torch.fft.ifft, kspace).narrow(dim, n // 2 - width // 2, width))


def readout_phases(position: int, width: int, n: int) -> np.ndarray:
    """Complex (n,): k-space along a readout times these, added up, is the image at one position of its line.

    This is one row of the centred orthonormal inverse FFT over ``n`` samples, at pixel ``position`` of the ``width``
    central ones. So a scan with two phase-encoding directions falls apart into two-dimensional ones, one for every
    position along its readout, and the noise of each has the level of the samples.
    """
    pixel = position - width // 2  # of the centre
    return np.exp(2j * np.pi * pixel * (np.arange(n) - n // 2) / n) / np.sqrt(n)


def noise_level(kspace: Tensor, mask: Tensor) -> float:
    """Standard deviation of each component of the noise, from the corners and edges of k-space.

    The tenth of the sampled positions that lie farthest from the centre (in half widths) hold little signal. There, per
    coil, 1.4826 times the median absolute value of real and imaginary parts is a standard deviation that strong signal
    in a minority of positions does not move; the result is the root mean square over coils. What signal remains makes
    it an upper bound: sharp edges at high signal-to-noise ratio raise it several times. Exact zeros (padding) are left
    out.

    Args:
        kspace: (coil, y, x). mask: bool, (y, x).

    Raises:
        ValueError: fewer than 16 samples to estimate from, or no noise.
    """
    ny, nx = mask.shape
    y, x = ((torch.arange(n) - n // 2).abs() / (n / 2) for n in (ny, nx))
    distance = torch.hypot(y[:, None], x)[mask]
    samples = kspace[:, mask][:, distance >= torch.from_numpy(np.quantile(distance.numpy(), 0.9, keepdims=True))]
    samples = samples[:, (samples != 0).any(0)]
    if samples.shape[1] < 16:
        raise ValueError(f"Only {samples.shape[1]} samples at the edge of k-space: too few for the noise. Give sigma.")
    sigma = 1.4826 * torch.view_as_real(samples).abs().flatten(1).median(1).values
    level = float(sigma.square().mean().sqrt())
    if not level > 0:
        raise ValueError("The edge of k-space is zero: no noise to estimate. Give sigma.")
    return level


def calibration_size(mask: Tensor, largest: int = CALIBRATION_WIDTH) -> tuple[int, int]:
    """(y, x) size of a fully sampled block around the centre, at most ``largest`` in each direction.

    Raises:
        ValueError: smaller than 8 in one direction, too small for coil maps.
    """
    ny, nx = mask.shape

    def full(h: int, w: int) -> bool:
        y, x = ny // 2 - h // 2, nx // 2 - w // 2
        return bool(mask[y : y + h, x : x + w].all())

    side = max((s for s in range(min(largest, ny, nx) + 1) if full(s, s)), default=0)
    height = max(h for h in range(side, min(largest, ny) + 1) if full(h, side))
    width = max(w for w in range(side, min(largest, nx) + 1) if full(height, w))
    if min(height, width) < 8:
        raise ValueError(
            f"The fully sampled centre of k-space is {height} x {width}; estimating coil maps takes 8 x 8 or more. "
            f"Give the maps."
        )
    return height, width


def low_resolution_phase(kspace: Tensor, maps: Tensor) -> Tensor:
    """``exp(i phase)``, (y, x), of the image combined from the centre of k-space (Hann window).

    The window is as wide as :data:`CALIBRATION_WIDTH`. Undersampled positions in it are left zero.
    """
    window = torch.ones(())
    for n in kspace.shape[1:]:
        k = (torch.arange(n) - n // 2) / (min(CALIBRATION_WIDTH, n) / 2)
        window = window[..., None] * torch.where(k.abs() < 1, 0.5 + 0.5 * torch.cos(torch.pi * k), 0)
    image = (maps.conj() * ifft2c(window * kspace)).sum(0)
    return torch.where(image.abs() > 0, image / image.abs(), 1).to(torch.complex64)


def _complex(value: np.ndarray | Tensor, name: str, layout: str) -> Tensor:
    """A finite complex64 tensor (coil, y, x)."""
    array = np.asarray(value)
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or array.dtype.kind != "c" or 0 in array.shape:
        raise ValueError(f"{name} must be a complex array {layout}, got {array.dtype} of shape {array.shape}.")
    with np.errstate(over="ignore"):
        array = array.astype(np.complex64)
    if not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).sum())
        raise ValueError(f"{name} has {bad} non-finite value(s) (NaN or inf) in {array.size}.")
    largest = float(np.abs(array).max())
    if not (largest == 0 or 1e-15 < largest < 1e15):
        raise ValueError(f"{name} has values up to {largest:.3g}, whose squares leave single precision. Rescale it.")
    return torch.from_numpy(array)
