"""Multi-coil Cartesian MRI in two and three dimensions: ``y = M F S x``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from invdiff.operators.base import LinearOperator
from invdiff.operators.svd import affordable

BLOCK_BYTES = 2 * 2**20  # of coil images, transformed at a time by one thread of a CPU
MOST_LINES = 0.4  # fraction of lines up to which moving them is faster than transforming all


def fft2c(x: Tensor) -> Tensor:
    """Centred orthonormal FFT of the last two dimensions: zero frequency at ``(ny // 2, nx // 2)``.

    Args:
        x: complex, (..., y, x).

    Example:
        >>> from invdiff.operators import fft2c
        >>> k = fft2c(torch.ones(4, 4) + 0j)
        >>> round(float(k[2, 2].real), 4), round(float(k.abs().sum()), 4)  # all of it at zero frequency
        (4.0, 4.0)
    """
    return torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(x, (-2, -1)), norm="ortho"), (-2, -1))


def ifft2c(k: Tensor) -> Tensor:
    """Inverse of :func:`fft2c`.

    Args:
        k: complex, (..., y, x).

    Example:
        >>> from invdiff.operators import fft2c, ifft2c
        >>> x = torch.randn(3, 4, 5) + 0j
        >>> torch.allclose(ifft2c(fft2c(x)), x, atol=1e-6)
        True
    """
    return torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(k, (-2, -1)), norm="ortho"), (-2, -1))


class MultiCoilMRI(LinearOperator):
    """Coil sensitivities, centred orthonormal FFT, sampling mask.

    Complex images (1, [z,] y, x) to k-space (coil, [z,] y, x), zero where not sampled. For a real (magnitude) prior
    with the image phase absorbed in the maps, use ``MultiCoilMRI(maps, mask) @ RealAsComplex((1, y, x))``; for a
    two-channel prior, ``@ ViewAsComplex((1, y, x))``. The norm is at most 1 when ``sum |maps|^2 <= 1``.

    The shifts of the centred transform are phases, multiplied into the maps and the mask. Where the mask drops most
    lines of k-space whole, the transform along the lines is computed for the others only. Where it keeps or drops them
    all whole, as masks of columns do, proximal points and singular values have a closed form, line by line
    (:func:`~invdiff.operators.svd.line_svd`).

    Args:
        maps: coil sensitivities, (coil, y, x) or, for a volume, (coil, z, y, x), complex64.
        mask: sampled positions, bool, ([z,] y, x) or broadcastable to it (``(x,)``: whole columns).

    Example:
        >>> from invdiff.operators import MultiCoilMRI, birdcage_maps, equispaced_mask
        >>> maps = birdcage_maps(4, (8, 8))
        >>> A = MultiCoilMRI(maps, equispaced_mask(8, acceleration=2, center_fraction=0.25))
        >>> A.out_shape, A.norm() <= 1
        ((4, 8, 8), True)
        >>> full, x = MultiCoilMRI(maps, torch.ones(8, dtype=torch.bool)), torch.rand(1, 8, 8) + 0j
        >>> torch.allclose(full.H(full(x)), x, atol=1e-5)  # nothing is left out, and sum |maps|^2 = 1
        True
    """

    adjoint_as_backward = True

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
        self._scale = 1 / math.sqrt(math.prod(shape))  # of the orthonormal FFT: on one image, not on every coil
        varies = _varies(sampled)
        axis = varies[0] if varies else -1
        if len(varies) <= 1 and affordable(self.in_shape, axis):
            self.coupled_axis, self.has_closed_form_prox = axis, True
        self._first, self._last = _passes(sampled, varies)
        self._kept: Tensor | None = None
        if self._last:
            self._kept = self._lines(sampled).flatten(1).any(1).nonzero()[:, 0]
            self._out = self._lines(self._out).index_select(0, self._kept)
        self._in_conj, self._out_conj = self._in.conj().resolve_conj(), self._out.conj().resolve_conj()

    def forward(self, x: Tensor) -> Tensor:
        x = self._scale * x
        y = (torch.empty if self._kept is None else torch.zeros)(
            len(x), *self.out_shape, dtype=x.dtype, device=x.device
        )
        for images, coils in self._blocks(x):
            k = torch.fft.fftn(self._in[coils] * x[images], dim=self._first, norm="backward")
            if self._kept is None:
                torch.mul(k, self._out, out=y[images, coils])
            else:
                lines = self._lines(k).index_select(2, self._kept)
                lines = torch.fft.fftn(lines, dim=self._last, norm="backward").mul_(self._out)
                self._lines(y[images, coils]).index_copy_(2, self._kept, lines)
        return y

    def adjoint(self, y: Tensor) -> Tensor:
        x = torch.zeros(len(y), *self.in_shape, dtype=y.dtype, device=y.device)
        for images, coils in self._blocks(x):
            k = y[images, coils]
            if self._kept is None:
                k = self._out_conj * k
            else:
                lines = self._lines(k).index_select(2, self._kept).mul_(self._out_conj)
                k = torch.zeros_like(k, memory_format=torch.contiguous_format)
                self._lines(k).index_copy_(2, self._kept, torch.fft.ifftn(lines, dim=self._last, norm="forward"))
            k = torch.fft.ifftn(k, dim=self._first, norm="forward")
            x[images] += k.mul_(self._in_conj[coils]).sum(1, keepdim=True)
        return x.mul_(self._scale)

    def line_gram(self, lines: slice) -> Tensor:
        """With the mask m along one axis only, the other transforms cancel in ``A^H A``: it mixes the pixels i and j of
        a line by ``sum_c conj(S_ci) S_cj sum_k m_k exp(2 pi i (k - c)(i - j) / n) / n``."""
        axis = self.coupled_axis
        if axis is None:
            return super().line_gram(lines)
        n = self.in_shape[axis]
        i = torch.arange(n, dtype=torch.float64, device=self.device)
        mask = self.mask.expand(self.in_shape[1:]).movedim(axis, -1).reshape(-1, n)[0].double()
        phase = torch.outer(i - n // 2, i) * (2 * math.pi / n)
        F = torch.polar(torch.ones_like(phase), phase)  # (k, i)
        coils = self.maps.movedim(axis, -1).reshape(len(self.maps), -1, n)[:, lines].movedim(0, 1).to(torch.complex128)
        return (F.T @ (mask[:, None] * F.conj()) / n) * (coils.mH @ coils)

    def _lines(self, k: Tensor) -> Tensor:
        """A view (..., line, *along the line) of (..., [z,] y, x): the lines that the mask keeps or drops whole."""
        n = len(self._first)
        if self._first[-1] == -1:
            return k.flatten(-n).movedim(-1, -1 - len(self._last))
        return k.flatten(-n - len(self._last), -1 - len(self._last))

    def _blocks(self, x: Tensor) -> list[tuple[slice, slice]]:
        """Images and coils to transform at a time: on a CPU, few enough to stay in its caches."""
        n_images, n_coils = max(1, len(x)), len(self.maps)
        if x.device.type == "cpu":
            fit = torch.get_num_threads() * max(1, BLOCK_BYTES // (math.prod(self.in_shape) * x.element_size()))
            n_images, n_coils = max(1, fit // n_coils), min(fit, n_coils)
        return [
            (slice(i, i + n_images), slice(c, c + n_coils))
            for i in range(0, len(x), n_images)
            for c in range(0, len(self.maps), n_coils)
        ]


def _varies(sampled: Tensor) -> tuple[int, ...]:
    """Dimensions along which the mask is not constant, from the end."""
    dims = range(-sampled.ndim, 0)
    return tuple(d for d in dims if bool((sampled != sampled.narrow(d, 0, 1)).any()))


def _passes(sampled: Tensor, first: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Dimensions to transform before samples are dropped, and after.

    Along dimensions in which the mask is constant, whole lines are dropped and need no transform: with a quarter of
    the columns, the second pass of a two-dimensional FFT takes a quarter of its time. That pays where few lines are
    left, and where they can be numbered without moving data: the other dimensions come first or last.
    """
    dims = tuple(range(-sampled.ndim, 0))
    last = tuple(range(len(first) - len(dims), 0))
    few = float(sampled.double().mean()) <= MOST_LINES
    return (first, last) if first and few and first in (dims[: len(first)], dims[-len(first) :]) else (dims, ())


def _centre_phase(n: int) -> Tensor:
    """exp(2 pi i c k / n) with c = n // 2 (+-1 for even n), complex128."""
    k = torch.arange(n, dtype=torch.float64)
    return torch.polar(torch.ones_like(k), 2 * math.pi * ((n // 2) * k % n) / n)
