"""Multi-coil Cartesian MRI: ``y = M F S x``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from invdiff.operators.base import LinearOperator


def fft2c(x: Tensor) -> Tensor:
    """Centred orthonormal FFT of the last two dimensions: zero frequency at ``(ny // 2, nx // 2)``."""
    return torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(x, (-2, -1)), norm="ortho"), (-2, -1))


def ifft2c(k: Tensor) -> Tensor:
    """Inverse of :func:`fft2c`."""
    return torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(k, (-2, -1)), norm="ortho"), (-2, -1))


class MultiCoilMRI(LinearOperator):
    """Coil sensitivities, centred orthonormal FFT, sampling mask.

    Complex images (1, y, x) to k-space (coil, y, x), zero where not sampled. For a real (magnitude) prior with
    the image phase absorbed in the maps, use ``MultiCoilMRI(maps, mask) @ RealAsComplex((1, y, x))``; for a
    two-channel prior, ``@ ViewAsComplex((1, y, x))``. The norm is at most 1 when ``sum |maps|^2 <= 1``.

    Args:
        maps: coil sensitivities, (coil, y, x), complex64.
        mask: sampled positions, bool, (y, x) or broadcastable to it (``(x,)``: whole columns).
    """

    def __init__(self, maps: Tensor, mask: Tensor) -> None:
        if maps.ndim != 3 or not maps.is_complex():
            raise TypeError(f"maps must be complex, (coil, y, x), got {maps.dtype} of shape {tuple(maps.shape)}.")
        if mask.dtype != torch.bool:
            raise TypeError(f"mask must be a bool tensor, got {mask.dtype}.")
        ny, nx = maps.shape[-2:]
        try:
            sampled = mask.expand(ny, nx)
        except RuntimeError:
            raise ValueError(f"mask {tuple(mask.shape)} does not broadcast to the images' ({ny}, {nx}).") from None
        super().__init__((1, ny, nx), maps.shape, in_complex=True, out_complex=True, device=maps.device)
        self.maps, self.mask = maps.to(torch.complex64), mask
        self.observed = sampled[None]
        # centred FFT = phase * FFT(phase * x): (k - c)(n - c) = kn - ck - cn + c^2, for any size
        phase = _centre_phase(ny)[:, None] * _centre_phase(nx)
        constant = _centre_phase(ny)[ny // 2].conj() * _centre_phase(nx)[nx // 2].conj()
        self._in = (self.maps * phase).to(torch.complex64)
        self._out = (sampled * phase * constant).to(torch.complex64)

    def forward(self, x: Tensor) -> Tensor:
        return self._out * torch.fft.fft2(self._in * x, norm="ortho")

    def adjoint(self, y: Tensor) -> Tensor:
        coils = torch.fft.ifft2(self._out.conj() * y, norm="ortho")
        return (self._in.conj() * coils).sum(-3, keepdim=True)


def _centre_phase(n: int) -> Tensor:
    """exp(2 pi i c k / n) with c = n // 2 (+-1 for even n), complex128."""
    k = torch.arange(n, dtype=torch.float64)
    return torch.polar(torch.ones_like(k), 2 * math.pi * ((n // 2) * k % n) / n)
