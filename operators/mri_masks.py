"""Cartesian undersampling masks: which phase-encoding columns are measured."""

from __future__ import annotations

import torch
from torch import Tensor


def random_mask(width: int, *, acceleration: float, center_fraction: float, seed: int) -> Tensor:
    """Random columns around a fully sampled centre, the fastMRI "random" mask (Zbontar et al. 2018).

    Args:
        width: number of columns.
        acceleration: total columns are about ``width / acceleration``.
        center_fraction: share of central columns that are always sampled (0.08 for 4x, 0.04 for 8x there).

    Returns:
        bool, (width,).
    """
    mask = _center(width, center_fraction)
    n_low = int(mask.sum())
    probability = (width / acceleration - n_low) / (width - n_low)
    if not 0 <= probability <= 1:
        raise ValueError(
            f"acceleration={acceleration} allows {width / acceleration:.1f} of {width} columns, but the centre "
            f"alone takes {n_low}. Lower acceleration or center_fraction."
        )
    return mask | (torch.rand(width, generator=torch.Generator().manual_seed(seed)) < probability)


def equispaced_mask(width: int, *, acceleration: int, center_fraction: float, offset: int = 0) -> Tensor:
    """Every ``acceleration``-th column from ``offset``, plus a fully sampled centre; bool, (width,)."""
    mask = _center(width, center_fraction)
    mask[offset::acceleration] = True
    return mask


def _center(width: int, fraction: float) -> Tensor:
    if not 0 <= fraction <= 1:
        raise ValueError(f"center_fraction must lie in [0, 1], got {fraction}.")
    n = round(width * fraction)
    mask = torch.zeros(width, dtype=torch.bool)
    start = (width - n + 1) // 2
    mask[start : start + n] = True
    return mask
