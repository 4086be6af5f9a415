"""Where the pixels of a reconstruction lie, and small choices that readers of sinograms share."""

from __future__ import annotations

from typing import Any

import numpy as np


def centred_affine(
    shape: tuple[int, ...], pixel_size: float | tuple[float, float], thickness: float = 1.0
) -> np.ndarray:
    """The 4 x 4 affine of a (y, x) grid centred on the origin with row 0 at the largest y, from (x, y, z) index to mm.

    This is the grid of the CT geometries (:mod:`invdiff.operators.ct_geometry`). ``pixel_size`` is a side or (dy, dx).
    """
    (ny, nx), (dy, dx) = shape, np.broadcast_to(pixel_size, 2).tolist()
    affine = np.diag([dx, -dy, thickness, 1.0])
    affine[:2, 3] = -(nx - 1) / 2 * dx, (ny - 1) / 2 * dy
    return affine


def placement(
    shape: tuple[int, ...], pixel_size: float | tuple[float, float], thickness: float = 1.0
) -> dict[str, Any]:
    """The entries "affine" and "voxel_size_mm" of a Measurement's metadata, as plain lists, for a centred grid."""
    return placed(centred_affine(shape, pixel_size, thickness))


def placed(affine: np.ndarray) -> dict[str, Any]:
    """The same for any affine from (x, y, z) index to mm in RAS."""
    return {
        "affine": np.asarray(affine, dtype=np.float64).tolist(),
        "voxel_size_mm": np.linalg.norm(np.asarray(affine)[:3, :3], axis=0).tolist(),
    }


def equispaced(n: int, wanted: int) -> np.ndarray:
    """``wanted`` of ``n`` indices, as equally spaced as they can be, the first one 0."""
    if not 1 <= wanted <= n:
        raise ValueError(f"views must lie between 1 and {n}, the number available, got {wanted}.")
    return np.arange(wanted) * n // wanted


def average_to(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A (y, x) image on a grid of another size over the same area, each pixel the mean over its own area."""
    rows, columns = (_overlaps(n, m) for n, m in zip(image.shape, shape, strict=True))
    return (rows @ image.astype(np.float64) @ columns.T).astype(np.float32)


def _overlaps(n: int, m: int) -> np.ndarray:
    """(m, n): the share of each of ``n`` equal parts of a unit length in each of ``m``, rows of sum 1."""
    lower = np.maximum(np.arange(n)[None] / n, np.arange(m)[:, None] / m)
    upper = np.minimum(np.arange(1, n + 1)[None] / n, np.arange(1, m + 1)[:, None] / m)
    return np.clip(upper - lower, 0, None) * m


def coarsest_rebin(n_detectors: int, spacing: float, pixel_size: float) -> int:
    """The most neighbouring detector elements to average for which they stay at most 1/1.5 of a pixel wide."""
    divisors = (k for k in range(1, n_detectors + 1) if n_detectors % k == 0)
    return max((k for k in divisors if k * spacing <= pixel_size / 1.5), default=1)
