"""Inpainting: some pixels are seen, the others are not."""

from __future__ import annotations

import torch
from torch import Tensor

from invdiff.operators.base import LinearOperator
from invdiff.operators.svd import SVD


class Inpainting(LinearOperator):
    """``y = mask * x``; the unseen pixels are zero in y and carry no data (``observed = mask``).

    Args:
        mask: bool, (channel, y, x): True where a pixel is measured.
    """

    has_closed_form_prox = True

    def __init__(self, mask: Tensor) -> None:
        if mask.dtype != torch.bool or mask.ndim < 2:
            raise TypeError(
                f"mask must be a bool tensor (channel, y, x), got {mask.dtype} of shape {tuple(mask.shape)}."
            )
        super().__init__(mask.shape, mask.shape)
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
        return SVD(self.mask.to(self.dtype), lambda x: x, lambda c: c, lambda y: y * self.mask)


def random_pixels(shape: tuple[int, ...], fraction: float, *, seed: int) -> Tensor:
    """Mask (\\*shape) with exactly ``floor(fraction * pixels)`` pixels seen in all channels alike."""
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction of seen pixels must lie in (0, 1], got {fraction}.")
    n = shape[-2] * shape[-1]
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros(n, dtype=torch.bool)
    mask[order[: int(fraction * n)]] = True
    return mask.reshape(shape[-2:]).expand(shape).clone()
