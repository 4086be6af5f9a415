"""Multi-coil Cartesian MRI in two and three dimensions: ``y = M F S x``."""

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

    Complex images (1, [z,] y, x) to k-space (coil, [z,] y, x), zero where not sampled. For a real (magnitude) prior
    with the image phase absorbed in the maps, use ``MultiCoilMRI(maps, mask) @ RealAsComplex((1, y, x))``; for a
    two-channel prior, ``@ ViewAsComplex((1, y, x))``. The norm is at most 1 when ``sum |maps|^2 <= 1``.

    Args:
        maps: coil sensitivities, (coil, y, x) or, for a volume, (coil, z, y, x), complex64.
        mask: sampled positions, bool, ([z,] y, x) or broadcastable to it (``(x,)``: whole columns).
    """

    def __init__(self, maps: Tensor, mask: Tensor) -> None:
        if maps.ndim not in (3, 4) or not maps.is_complex():
            raise TypeError(f"maps must be complex, (coil, [z,] y, x), got {maps.dtype} of shape {tuple(maps.shape)}.")
        if mask.dtype != torch.bool:
            raise TypeError(f"mask must be a bool tensor, got {mask.dtype}.")
        shape = maps.shape[1:]
        try:
            sampled = mask.expand(shape)
        except RuntimeError:
            raise ValueError(f"mask {tuple(mask.shape)} does not broadcast to the images' {tuple(shape)}.") from None
        super().__init__((1, *shape), maps.shape, in_complex=True, out_complex=True, device=maps.device)
        self.maps, self.mask = maps.to(torch.complex64), mask
        self.observed = sampled[None]
        # centred FFT = phase * FFT(phase * x): (k - c)(n - c) = kn - ck - cn + c^2, for any size
        phase = torch.ones((), dtype=torch.complex128)
        constant = torch.ones((), dtype=torch.complex128)
        for n in shape:
            along = _centre_phase(n)
            phase, constant = phase[..., None] * along, constant * along[n // 2].conj()
        self._in = (self.maps * phase.to(maps.device)).to(torch.complex64)
        self._out = (sampled * (phase * constant).to(maps.device)).to(torch.complex64)
        self._in_conj, self._out_conj = self._in.conj().resolve_conj(), self._out.conj().resolve_conj()
        self._dims = tuple(range(-len(shape), 0))
        self._scale = 1 / math.sqrt(math.prod(shape))  # of the orthonormal FFT: on one image, not on every coil

    def forward(self, x: Tensor) -> Tensor:
        return self._out * torch.fft.fftn(self._in * (self._scale * x), dim=self._dims, norm="backward")

    def adjoint(self, y: Tensor) -> Tensor:
        coils = torch.fft.ifftn(self._out_conj * y, dim=self._dims, norm="forward")
        return self._scale * (self._in_conj * coils).sum(1, keepdim=True)


def _centre_phase(n: int) -> Tensor:
    """exp(2 pi i c k / n) with c = n // 2 (+-1 for even n), complex128."""
    k = torch.arange(n, dtype=torch.float64)
    return torch.polar(torch.ones_like(k), 2 * math.pi * ((n // 2) * k % n) / n)
