"""Convolution with a point spread function."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from invdiff.operators.base import LinearOperator
from invdiff.operators.svd import SVD


class Blur(LinearOperator):
    """Circular convolution of every channel with one PSF, by FFT; closed-form prox and pseudo-inverse.

    Args:
        psf: (y, x), centred at ``(y // 2, x // 2)``, no larger than the image; sum 1 keeps the mean.
        shape: image shape, (channel, y, x).
    """

    has_closed_form_prox = True

    def __init__(self, psf: Tensor, shape: tuple[int, int, int]) -> None:
        ky, kx = psf.shape
        if ky > shape[-2] or kx > shape[-1]:
            raise ValueError(f"The PSF {tuple(psf.shape)} is larger than the image {tuple(shape[-2:])}.")
        super().__init__(shape, shape)
        self.psf, self.shape = psf.to(torch.float32), tuple(shape)
        padded = F.pad(self.psf.double(), (0, shape[-1] - kx, 0, shape[-2] - ky)).roll((-(ky // 2), -(kx // 2)), (0, 1))
        self._transfer = torch.fft.rfft2(padded).to(torch.complex64)

    def _filter(self, x: Tensor, factor: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x) * factor, s=self.shape[-2:])

    def forward(self, x: Tensor) -> Tensor:
        return self._filter(x, self._transfer)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._filter(y, self._transfer.conj())

    def prox(self, z: Tensor, y: Tensor, weight: Tensor | float) -> Tensor:
        """Closed form in Fourier space (``weight`` a number)."""
        h = self._transfer
        spectrum = (torch.fft.rfft2(z) + weight * h.conj() * torch.fft.rfft2(y)) / (1 + weight * h.abs().square())
        return torch.fft.irfft2(spectrum, s=self.shape[-2:])

    def pinv(self, y: Tensor, cutoff: float = 1e-4) -> Tensor:
        """Inverse filter at frequencies where ``|transfer| > cutoff``, zero at the others."""
        h = self._transfer
        return self._filter(y, torch.where(h.abs() > cutoff, 1 / h, torch.zeros_like(h)))

    def svd(self, cutoff: float = 1e-4) -> SVD:
        """Frequencies are the singular vectors (half spectrum, complex); s = |transfer|, zero below ``cutoff``."""
        h = self._transfer
        s = h.abs()
        s = torch.where(s > cutoff, s, torch.zeros_like(s)).expand(*self.shape[:-1], h.shape[-1])
        phase = torch.where(h.abs() > cutoff, h.conj() / h.abs().clamp(min=cutoff), torch.zeros_like(h))
        return SVD(
            s,
            lambda x: torch.fft.rfft2(x, norm="ortho"),
            lambda c: torch.fft.irfft2(c, s=self.shape[-2:], norm="ortho"),
            lambda y: phase * torch.fft.rfft2(y, norm="ortho"),
        )


class Pad(LinearOperator):
    """Extend an image by ``margin`` pixels on each side, as ``torch.nn.functional.pad`` does.

    Args:
        shape: (channel, y, x).
        margin: pixels on each side.
        mode: "reflect", "replicate", "circular" or "constant".
    """

    def __init__(self, shape: tuple[int, int, int], margin: int, mode: str = "reflect") -> None:
        c, ny, nx = shape
        super().__init__(shape, (c, ny + 2 * margin, nx + 2 * margin))
        self.shape, self.margin, self.mode = tuple(shape), margin, mode

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (self.margin,) * 4, mode=self.mode)


class Crop(LinearOperator):
    """Cut ``margin`` pixels off each side of a (channel, y, x) image."""

    def __init__(self, shape: tuple[int, int, int], margin: int) -> None:
        c, ny, nx = shape
        if 2 * margin >= min(ny, nx):
            raise ValueError(f"A margin of {margin} leaves nothing of an image of {ny} x {nx}.")
        super().__init__(shape, (c, ny - 2 * margin, nx - 2 * margin))
        self.shape, self.margin = tuple(shape), margin

    def forward(self, x: Tensor) -> Tensor:
        m = self.margin
        return x[..., m : x.shape[-2] - m, m : x.shape[-1] - m]

    def adjoint(self, y: Tensor) -> Tensor:
        return F.pad(y, (self.margin,) * 4)


def reflect_blur(psf: Tensor, shape: tuple[int, int, int]) -> LinearOperator:
    """Blur with mirrored borders, the convention of the deblurring benchmarks: ``Crop @ Blur @ Pad``."""
    c, ny, nx = shape
    margin = max(psf.shape) // 2
    padded = (c, ny + 2 * margin, nx + 2 * margin)
    A = Crop(padded, margin) @ Blur(psf, padded) @ Pad(shape, margin)
    assert isinstance(A, LinearOperator)
    return A


def gaussian_psf(sigma: float, size: int) -> Tensor:
    """A Gaussian PSF, (size, size), ``sigma`` in pixels, sum 1."""
    if sigma <= 0 or size < 1:
        raise ValueError(f"Need sigma > 0 and size >= 1, got {sigma=}, {size=}.")
    t = torch.arange(size, dtype=torch.float64) - size // 2
    g = torch.exp(-(t**2) / (2 * sigma**2))
    return torch.outer(g, g) / g.sum() ** 2
