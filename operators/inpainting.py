"""Inpainting: some pixels are seen, the others are not."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from invdiff.operators.base import LinearOperator
from invdiff.operators.svd import SVD


class Inpainting(LinearOperator):
    """``y = mask * x``; the unseen pixels are zero in y and carry no data (``observed = mask``).

    Args:
        mask: bool, (channel, y, x): True where a pixel is measured.
        in_complex: whether images, and so data, are complex.

    Example:
        >>> from invdiff.operators import Inpainting
        >>> A = Inpainting(torch.tensor([[[True, False]]]))
        >>> A(torch.tensor([[[2.0, 3.0]]])).tolist()
        [[[2.0, 0.0]]]
    """

    has_closed_form_prox = True

    def __init__(self, mask: Tensor, in_complex: bool = False) -> None:
        if mask.dtype != torch.bool or mask.ndim < 2:
            raise TypeError(
                f"mask must be a bool tensor (channel, y, x), got {mask.dtype} of shape {tuple(mask.shape)}."
            )
        super().__init__(mask.shape, mask.shape, in_complex=in_complex, out_complex=in_complex)
        self.mask = self.observed = mask

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask

    def adjoint(self, y: Tensor) -> Tensor:
        return y * self.mask

    def prox(self, z: Tensor, y: Tensor, weight: Tensor | float) -> Tensor:
        """Closed form: a weighted mean at seen pixels, ``z`` elsewhere."""
        return torch.where(self.mask, (z + weight * y) / (1 + weight), z)

    def pinv(self, y: Tensor) -> Tensor:
        """``A^+ = A^H``."""
        return y * self.mask

    def svd(self) -> SVD:
        """Pixels are the singular vectors; s is 1 where seen, else 0."""
        if self.in_complex:
            return super().svd()
        return SVD(self.mask.to(self.dtype), lambda x: x, lambda c: c, lambda y: y * self.mask)


def random_pixels(shape: tuple[int, ...], fraction: float, *, seed: int) -> Tensor:
    """Mask (\\*shape) with exactly ``floor(fraction * pixels)`` pixels seen in all channels alike.

    Args:
        shape: of the mask, (channel, y, x).
        fraction: of the pixels that are seen, in (0, 1].
        seed: of their choice.

    Example:
        >>> from invdiff.operators import random_pixels
        >>> int(random_pixels((1, 10, 10), 0.25, seed=0).sum())
        25
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction of seen pixels must lie in (0, 1], got {fraction}.")
    n = shape[-2] * shape[-1]
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros(n, dtype=torch.bool)
    mask[order[: int(fraction * n)]] = True
    return mask.reshape(shape[-2:]).expand(shape).clone()


def box_mask(shape: tuple[int, ...], size: tuple[int, int], *, seed: int, margin: int = 0) -> Tensor:
    """Mask (\\*shape) that hides one box of ``size`` (y, x) pixels, at least ``margin`` pixels off the border.

    Where the box lies is drawn from ``seed``, uniformly, and is the same in all channels.

    Example:
        >>> from invdiff.operators import box_mask
        >>> int((~box_mask((1, 16, 16), (4, 5), seed=0)).sum())
        20
    """
    room = [n - 2 * margin - k for n, k in zip(shape[-2:], size, strict=True)]
    if min(room) < 0 or min(size) < 1 or margin < 0:
        raise ValueError(f"A box of {tuple(size)} with a margin of {margin} does not fit in {tuple(shape[-2:])}.")
    generator = torch.Generator().manual_seed(seed)
    top, left = (margin + int(torch.randint(r + 1, (), generator=generator)) for r in room)
    mask = torch.ones(shape, dtype=torch.bool)
    mask[..., top : top + size[0], left : left + size[1]] = False
    return mask


def brush_mask(shape: tuple[int, ...], fraction: float, *, seed: int, width: float | None = None) -> Tensor:
    """Mask (\\*shape) with free-form brush strokes over it, until at most ``fraction`` of the pixels are seen.

    Strokes of up to six straight pieces with round ends, of random place, direction, bend, length and width; the
    idea of J. Yu et al., "Free-form image inpainting with gated convolution", ICCV 2019. The strokes are the same in
    all channels.

    Args:
        seed: of the strokes.
        fraction: largest fraction of pixels seen; the last piece may hide a little more.
        width: largest width of the brush in pixels (default: an eighth of the image's shorter side).

    Example:
        >>> from invdiff.operators import brush_mask
        >>> mask = brush_mask((1, 32, 32), 0.7, seed=0)
        >>> bool(mask.float().mean() <= 0.7)
        True
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction of seen pixels must lie in (0, 1), got {fraction}.")
    if width is not None and not width >= 1:
        raise ValueError(f"width must be at least 1 pixel, got {width}.")
    ny, nx = shape[-2:]
    width = max(1.0, min(ny, nx) / 8) if width is None else width
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(float(ny)), torch.arange(float(nx)), indexing="ij")
    seen = torch.ones(ny, nx, dtype=torch.bool)
    piece = 0
    while seen.float().mean() > fraction:
        top, left, direction, bend, length, thickness = torch.rand(6, generator=generator).tolist()
        if piece % 6 == 0:
            py, px, heading = top * (ny - 1), left * (nx - 1), 2 * math.pi * direction
        heading += 2 * bend - 1
        reach = length * min(ny, nx) / 3
        dy, dx = reach * math.sin(heading), reach * math.cos(heading)
        # distance of every pixel to the segment from (py, px) to (py + dy, px + dx)
        along = (((y - py) * dy + (x - px) * dx) / max(reach**2, 1e-12)).clamp(0, 1)
        distance = torch.hypot(y - py - along * dy, x - px - along * dx)
        seen &= distance > width * (1 + thickness) / 4
        py, px, piece = min(max(py + dy, 0.0), ny - 1.0), min(max(px + dx, 0.0), nx - 1.0), piece + 1
    return seen.expand(shape).clone()
