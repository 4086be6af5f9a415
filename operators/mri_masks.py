"""Cartesian undersampling masks: which columns, or which points of two phase-encoding directions, are measured.

The column masks follow the fastMRI conventions (Zbontar et al. 2018, arXiv:1811.08839): a fully sampled share
``center_fraction`` of the columns, 0.08 for 4-fold and 0.04 for 8-fold acceleration, and the rest undersampled so
that ``acceleration`` counts the centre too, except where a function says otherwise. The centre of ``n`` columns is
column ``n // 2``, as everywhere.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def random_mask(width: int, *, acceleration: float, center_fraction: float, seed: int) -> Tensor:
    """Random columns around a fully sampled centre, the fastMRI "random" mask (Zbontar et al. 2018).

    Args:
        seed: of the columns.
        width: number of columns.
        acceleration: total columns are about ``width / acceleration``.
        center_fraction: share of central columns that are always sampled (0.08 for 4x, 0.04 for 8x there).

    Returns:
        bool, (width,).

    Example:
        >>> from invdiff.operators import random_mask
        >>> mask = random_mask(320, acceleration=4, center_fraction=0.08, seed=0)
        >>> bool(mask[148:172].all()), bool(50 < mask.sum() < 110)  # about 80
        (True, True)
    """
    mask = _center(width, center_fraction)
    n_outer = _n_outer(mask, acceleration, "center_fraction")
    probability = n_outer / max(width - int(mask.sum()), 1)
    return mask | (torch.rand(width, generator=torch.Generator().manual_seed(seed)) < probability)


def equispaced_mask(width: int, *, acceleration: int, center_fraction: float, offset: int = 0) -> Tensor:
    """Every ``acceleration``-th column from ``offset``, plus a fully sampled centre; bool, (width,).

    The centre comes on top, so more than ``width / acceleration`` columns are sampled
    (:func:`equispaced_fraction_mask` keeps to that number).

    Args:
        width: columns.
        acceleration: distance of the columns.
        center_fraction: share of central columns that are always sampled, in [0, 1].
        offset: first column, from 0.

    Example:
        >>> from invdiff.operators import equispaced_mask
        >>> equispaced_mask(12, acceleration=4, center_fraction=0.25).nonzero().flatten().tolist()
        [0, 4, 5, 6, 7, 8]
    """
    mask = _center(width, center_fraction)
    mask[offset::acceleration] = True
    return mask


def equispaced_fraction_mask(width: int, *, acceleration: float, center_fraction: float, seed: int) -> Tensor:
    """Equispaced columns and a fully sampled centre, ``width / acceleration`` columns in all (to one or two).

    The fastMRI "equispaced_fraction" mask: with ``n_low`` columns in the centre the others are spaced by
    ``R (n - n_low) / (n - n_low R)``, rounded, from an offset drawn from ``seed``. Returns bool, (width,).

    Args:
        width: columns.
        acceleration: R, total over sampled columns.
        center_fraction: share of central columns that are always sampled, in [0, 1].
        seed: of the offset.

    Example:
        >>> from invdiff.operators import equispaced_fraction_mask
        >>> mask = equispaced_fraction_mask(320, acceleration=4, center_fraction=0.08, seed=0)
        >>> abs(int(mask.sum()) - 80) <= 2, bool(mask[148:172].all())
        (True, True)
    """
    mask = _center(width, center_fraction)
    n_outer = _n_outer(mask, acceleration, "center_fraction")
    if n_outer < 1:
        return mask
    spacing = (width - int(mask.sum())) / n_outer
    offset = spacing * float(torch.rand((), generator=torch.Generator().manual_seed(seed)))
    mask[np.arange(offset, width - 0.5, spacing).round().astype(np.int64)] = True
    return mask


def magic_mask(width: int, *, acceleration: int, center_fraction: float, offset: int = 0) -> Tensor:
    """Equispaced columns whose mirror images fall between them; the fastMRI "magic" mask. bool, (width,).

    Defazio, "Offset sampling improves deep learning based accelerated MRI reconstructions by exploiting symmetry",
    arXiv:1912.01101 (2019). Outside the fully sampled centre the positive frequencies k = p mod R and the negative
    ones -k = p + 2 mod R are sampled, so that the conjugate symmetry of a nearly real image doubles the data, which
    an equispaced mask through the centre wastes. The centre comes on top, as in :func:`equispaced_mask`.

    Args:
        width: columns.
        center_fraction: share of central columns that are always sampled, in [0, 1].
        acceleration: R, above 2; 4 gives mirror images halfway between.
        offset: which p: offset + 1 if it is even, offset + 2 with the roles of the two sides exchanged if odd.

    Raises:
        ValueError: acceleration 2 or less, for which both sides would sample the same frequencies.

    Example:
        >>> from invdiff.operators import magic_mask
        >>> columns = magic_mask(16, acceleration=4, center_fraction=0.0).nonzero().flatten() - 8
        >>> sorted(set(columns.tolist()) & set((-columns).tolist()))  # no frequency is sampled with its mirror image
        []
    """
    if acceleration <= 2:
        raise ValueError(f"acceleration must be an integer above 2, got {acceleration}.")
    k = torch.arange(width) - width // 2
    positive, negative = (offset + 1, offset + 3) if offset % 2 == 0 else (offset + 2, offset)
    residue = torch.where(k >= 0, k - positive, -k - negative)
    return _center(width, center_fraction) | (residue % acceleration == 0)


def poisson_disc_mask(
    shape: tuple[int, int],
    *,
    acceleration: float,
    calibration: tuple[int, int] = (24, 24),
    growth: float = 2.0,
    seed: int,
) -> Tensor:
    """Variable-density Poisson disc: random points that keep a distance which grows away from the centre.

    Vasanawala et al., "Practical parallel imaging compressed sensing MRI", ISBI 2011. No two points p, q outside the
    calibration region are closer than the smaller of r(p), r(q), and no further point would fit, where
    ``r(k) = r_0 (1 + growth rho(k))`` and rho is the distance from the centre in half widths. r_0 is searched for
    the acceleration, which is met to 3 %.

    Args:
        shape: (y, x), the two phase-encoding directions.
        acceleration: total number of grid points over sampled points, calibration region included.
        calibration: (y, x) size of the fully sampled centre; (0, 0) for none.
        growth: 0 gives a uniform density, but then only the few densities that the grid's distances allow.
        seed: of the points.

    Returns:
        bool, shape ``shape``.

    Raises:
        ValueError: the centre alone takes more points, or the acceleration cannot be met.

    Example:
        >>> from invdiff.operators import poisson_disc_mask
        >>> mask = poisson_disc_mask((32, 32), acceleration=4, calibration=(8, 8), seed=0)
        >>> abs(1024 / int(mask.sum()) - 4) < 0.12, bool(mask[12:20, 12:20].all())
        (True, True)
    """
    center = _center_block(shape, calibration)
    goal = int(center.sum()) + _n_outer(center, acceleration, "calibration")
    if acceleration == 1:
        return torch.ones(shape, dtype=torch.bool)
    order = torch.randperm(shape[0] * shape[1], generator=torch.Generator().manual_seed(seed)).numpy()
    slope = 1 + growth * _rho(shape).numpy()
    lo, hi = 0.5, float(max(shape))
    best = center
    for _ in range(25):
        middle = math.sqrt(lo * hi)
        mask = center | torch.from_numpy(_poisson_disc(order, middle * slope))
        n = int(mask.sum())
        if abs(n - goal) < abs(int(best.sum()) - goal):
            best = mask
        if abs(n - goal) <= 0.005 * goal:
            break
        lo, hi = (middle, hi) if n > goal else (lo, middle)
    if abs(int(best.sum()) - goal) > 0.03 * goal:
        raise ValueError(
            f"No radius gives acceleration={acceleration} on {shape}: the closest samples {int(best.sum())} points "
            f"for {goal:.0f}. Change acceleration, growth or the shape."
        )
    return best


def gaussian_mask(
    shape: tuple[int, int],
    *,
    acceleration: float,
    calibration: tuple[int, int] = (24, 24),
    std: float = 0.35,
    seed: int,
) -> Tensor:
    """Points drawn without replacement with the density of a 2-D Gaussian, and a fully sampled centre.

    Args:
        shape: (y, x), the two phase-encoding directions.
        acceleration: total number of grid points over sampled points, met exactly (to rounding).
        calibration: (y, x) size of the fully sampled centre; (0, 0) for none.
        std: of the Gaussian, in half widths of k-space.
        seed: of the points.

    Returns:
        bool, shape ``shape``.

    Example:
        >>> from invdiff.operators import gaussian_mask
        >>> int(gaussian_mask((32, 32), acceleration=4, calibration=(8, 8), seed=0).sum())
        256
    """
    if not std > 0:
        raise ValueError(f"std must be positive, got {std}.")
    mask = _center_block(shape, calibration)
    n_outer = round(_n_outer(mask, acceleration, "calibration"))
    # the n smallest of Exp(1) / weight are a draw of n without replacement in proportion to the weights
    draw = -torch.log1p(-torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    key = draw.log() + _rho(shape).square() / (2 * std**2)
    key[mask] = math.inf
    mask.view(-1)[key.view(-1).argsort()[:n_outer]] = True
    return mask


def _poisson_disc(order: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Grid points taken in ``order`` unless a taken point p lies closer than radius[p]; bool, shape of radius."""
    ny, nx = radius.shape
    free, taken = np.ones((ny, nx), bool), np.zeros((ny, nx), bool)
    reach = np.arange(-math.ceil(radius.max()), math.ceil(radius.max()) + 1)
    squares = reach**2
    middle = len(reach) // 2
    for index in order:
        y, x = divmod(int(index), nx)
        if not free[y, x]:
            continue
        taken[y, x] = True
        r = radius[y, x]
        n = math.ceil(r)
        y0, y1, x0, x1 = max(y - n, 0), min(y + n + 1, ny), max(x - n, 0), min(x + n + 1, nx)
        dy = squares[middle + y0 - y : middle + y1 - y]
        dx = squares[middle + x0 - x : middle + x1 - x]
        free[y0:y1, x0:x1] &= dy[:, None] + dx >= r * r
    return taken


def _rho(shape: tuple[int, int]) -> Tensor:
    """Distance from the centre in half widths: 1 in the middle of each edge."""
    y, x = ((torch.arange(n, dtype=torch.float64) - n // 2) / (n / 2) for n in shape)
    return torch.hypot(y[:, None], x)


def _center(width: int, fraction: float) -> Tensor:
    if not 0 <= fraction <= 1:
        raise ValueError(f"center_fraction must lie in [0, 1], got {fraction}.")
    n = round(width * fraction)
    mask = torch.zeros(width, dtype=torch.bool)
    start = (width - n + 1) // 2
    mask[start : start + n] = True
    return mask


def _center_block(shape: tuple[int, int], size: tuple[int, int]) -> Tensor:
    (ny, nx), (h, w) = shape, size
    if not (0 <= h <= ny and 0 <= w <= nx):
        raise ValueError(f"calibration={size} must fit into the shape {shape}.")
    mask = torch.zeros(shape, dtype=torch.bool)
    y, x = ny // 2 - h // 2, nx // 2 - w // 2
    mask[y : y + h, x : x + w] = True
    return mask


def _n_outer(center: Tensor, acceleration: float, name: str) -> float:
    """How many samples the acceleration leaves for outside the centre."""
    n_low, n = int(center.sum()), center.numel()
    if not 1 <= acceleration or n / acceleration < n_low:
        raise ValueError(
            f"acceleration={acceleration} must be at least 1 and leave room for the centre: it allows "
            f"{n / max(acceleration, 1e-9):.1f} of {n} samples, but the centre alone takes {n_low}. Lower acceleration "
            f"or {name}."
        )
    return n / acceleration - n_low
