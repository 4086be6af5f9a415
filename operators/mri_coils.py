"""Coil sensitivities."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def birdcage_maps(n_coils: int, shape: tuple[int, int], *, radius: float = 1.5) -> Tensor:
    """Sensitivities of coils on a ring around the image: magnitude 1/distance, phase of the azimuth.

    Args:
        n_coils: coils, equispaced on a circle.
        shape: (y, x).
        radius: of the circle, in half image widths (> 1: outside the image).

    Returns:
        complex64, (n_coils, y, x), with ``sum |S|^2 = 1`` in every pixel.
    """
    if radius <= 1:
        raise ValueError(f"The coils must lie outside the image: radius > 1, got {radius}.")
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, n, dtype=torch.float64) for n in shape), indexing="ij")
    angle = 2 * math.pi * torch.arange(n_coils, dtype=torch.float64)[:, None, None] / n_coils
    dx, dy = x - radius * angle.cos(), y - radius * angle.sin()
    maps = torch.polar(1 / torch.hypot(dx, dy), torch.atan2(dx, -dy) + angle)
    return (maps / maps.abs().square().sum(0).sqrt()).to(torch.complex64)
