"""Periodic orthogonal wavelet transform (S. Mallat, IEEE Trans. PAMI 11, 674-693, 1989) of the last dimensions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Low-pass filters of sum sqrt(2): I. Daubechies, Comm. Pure Appl. Math. 41, 909-996, 1988; the number counts the
# vanishing moments, half the taps.
_R = math.sqrt(3)
WAVELETS: dict[str, tuple[float, ...]] = {
    "haar": (1 / math.sqrt(2), 1 / math.sqrt(2)),
    "db2": tuple(c / (4 * math.sqrt(2)) for c in (1 + _R, 3 + _R, 3 - _R, 1 - _R)),
    "db4": (
        0.2303778133088965, 0.7148465705529157, 0.6308807679298589, -0.027983769416859854,
        -0.18703481171909309, 0.030841381835560764, 0.0328830116668852, -0.010597401785069032,
    ),
}  # fmt: skip


def largest_level(shape: tuple[int, ...]) -> int:
    """How often all the dimensions can be halved."""
    return min((n & -n).bit_length() - 1 for n in shape)


def wavelet_transform(x: Tensor, wavelet: str, n_levels: int, n_dims: int) -> Tensor:
    """Coefficients, shape of ``x``: in the first ``2^-n_levels`` of each of the last ``n_dims`` dimensions the
    approximation, behind it the details, coarse to fine. An isometry; :func:`inverse_wavelet_transform` is its inverse.

    Raises:
        ValueError: unknown wavelet, or a dimension that is not a multiple of ``2^n_levels``.
    """
    low, high = _filters(x, wavelet, n_levels, n_dims)
    c = x.clone()
    for level in range(n_levels):
        block = _corner(c, level, n_dims)
        value = block.clone()
        for dim in range(x.ndim - n_dims, x.ndim):
            # a[k] = sum_j h[j] x[2 k + j], periodic; the same with g for the details
            shifted = [value.roll(-j, dim) for j in range(len(low))]
            parts = [torch.stack([f[j] * s for j, s in enumerate(shifted)]).sum(0) for f in (low, high)]
            even = torch.arange(0, value.shape[dim], 2, device=x.device)
            value = torch.cat([part.index_select(dim, even) for part in parts], dim)
        block.copy_(value)
    return c


def inverse_wavelet_transform(c: Tensor, wavelet: str, n_levels: int, n_dims: int) -> Tensor:
    """The image whose coefficients are ``c``: the inverse and the adjoint of :func:`wavelet_transform`."""
    low, high = _filters(c, wavelet, n_levels, n_dims)
    x = c.clone()
    for level in reversed(range(n_levels)):
        block = _corner(x, level, n_dims)
        value = block.clone()
        for dim in range(c.ndim - n_dims, c.ndim):
            even = torch.arange(0, value.shape[dim], 2, device=c.device)
            spread = [torch.zeros_like(value).index_copy(dim, even, half) for half in value.chunk(2, dim)]
            taps = [f[j] * s.roll(j, dim) for f, s in zip((low, high), spread, strict=True) for j in range(len(low))]
            value = torch.stack(taps).sum(0)
        block.copy_(value)
    return x


def _filters(x: Tensor, wavelet: str, n_levels: int, n_dims: int) -> tuple[list[float], list[float]]:
    if wavelet not in WAVELETS:
        raise ValueError(f"wavelet must be one of {', '.join(WAVELETS)}, got {wavelet!r}.")
    shape = tuple(x.shape[x.ndim - n_dims :])
    if not 0 <= n_levels <= largest_level(shape):
        raise ValueError(f"{n_levels} levels need sizes that are multiples of {2**n_levels}, got {shape}.")
    low = list(WAVELETS[wavelet])
    return low, [(-1) ** j * h for j, h in enumerate(reversed(low))]


def _corner(c: Tensor, level: int, n_dims: int) -> Tensor:
    for dim in range(c.ndim - n_dims, c.ndim):
        c = c.narrow(dim, 0, c.shape[dim] >> level)
    return c
