"""The CT projector as a sparse matrix: Joseph's weights for any list of rays, and the matrix-transpose pair.

Joseph's method (P. M. Joseph, IEEE Trans. Med. Imaging 1, 192-196, 1982): a ray crosses every image column
(or every row, if it is steeper) once; there the image is interpolated linearly between the two nearest
pixels, times the length of ray per column.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

CSR_MAX_COLUMNS = 8  # from here on embedding_bag is faster on a CPU
CHUNK_BYTES = 8 * 2**20  # columns are multiplied in chunks that stay in the processor's cache
STEPS_PER_BLOCK = 2**21  # pixels along rays weighted at a time: bounds the builder's temporary memory (200 MB)


def joseph_matrix(
    origins: np.ndarray,
    directions: np.ndarray,
    image_shape: tuple[int, int],
    pixel_size: float | tuple[float, float],
    *,
    supersampling: int = 1,
    dtype: type = np.float32,
) -> scipy.sparse.csr_array:
    """Weights of every pixel in every ray (average of ``supersampling`` consecutive rays), in mm.

    Args:
        origins: any point on each ray, ``(x, y)`` in mm, (..., 2), float64; image centre at (0, 0).
        directions: unit vectors, same shape.
        image_shape: (ny, nx); row 0 is the top.
        pixel_size: mm, or (dy, dx).
        supersampling: number of consecutive rays averaged into one row.
        dtype: of the values, np.float32 or np.float64; the computation is in float64.

    Returns:
        CSR matrix of shape (n_rays / supersampling, ny * nx), int32 indices, sorted within each row.

    Raises:
        ValueError: shapes that do not fit, or more non-zeros than int32 can index.
    """
    origins, directions = origins.reshape(-1, 2), directions.reshape(-1, 2)
    if origins.shape != directions.shape or len(origins) % supersampling:
        raise ValueError(
            f"origins and directions must have equal shapes (n_rays, 2) with n_rays a multiple of "
            f"supersampling={supersampling}, got {origins.shape} and {directions.shape}."
        )
    block = max(1, STEPS_PER_BLOCK // (max(image_shape) * supersampling)) * supersampling
    n_pixels = image_shape[0] * image_shape[1]
    spacing = pixel_size if isinstance(pixel_size, tuple) else (pixel_size, pixel_size)
    counts, indices, values = [np.zeros(1, np.int64)], [], []
    for start in range(0, len(origins), block):
        rays = slice(start, start + block)
        ray, pixel, weight = _weights(origins[rays], directions[rays], image_shape, spacing)
        n_rows = len(origins[rays]) // supersampling
        count = np.bincount(ray // supersampling, minlength=n_rows)
        part = scipy.sparse.csr_array(
            (weight / supersampling, pixel.astype(np.int32), np.concatenate([[0], np.cumsum(count)])),
            shape=(n_rows, n_pixels),
        )
        part.sum_duplicates()  # neighbouring sub-rays meet the same pixels; it also sorts
        counts.append(np.diff(part.indptr))
        indices.append(part.indices.astype(np.int32))
        values.append(part.data.astype(dtype))
    indptr = np.cumsum(np.concatenate(counts))
    if indptr[-1] > np.iinfo(np.int32).max:
        raise ValueError(
            f"The matrix would hold {indptr[-1]:.3g} non-zeros, more than int32 can index. Use fewer views, "
            f"detectors or pixels, or split the views into several operators."
        )
    return scipy.sparse.csr_array(
        (np.concatenate(values), np.concatenate(indices), indptr.astype(np.int32)),
        shape=(len(origins) // supersampling, n_pixels),
    )


def _weights(
    origins: np.ndarray, directions: np.ndarray, image_shape: tuple[int, int], spacing: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ray, pixel, weight) of every non-zero, ordered by ray."""
    (ny, nx), (dy, dx) = image_shape, spacing
    # in pixel indices: column = x / dx + (nx - 1) / 2, row = (ny - 1) / 2 - y / dy
    column, row = origins[:, 0] / dx + (nx - 1) / 2, (ny - 1) / 2 - origins[:, 1] / dy
    d_column, d_row = directions[:, 0] / dx, -directions[:, 1] / dy
    flat = np.abs(d_column) >= np.abs(d_row)  # step over columns, interpolate between rows; else the reverse
    p0, s0 = np.where(flat, column, row), np.where(flat, row, column)
    dp, ds = np.where(flat, d_column, d_row), np.where(flat, d_row, d_column)
    n_p, n_s = np.where(flat, nx, ny), np.where(flat, ny, nx)
    stride_p, stride_s = np.where(flat, 1, nx), np.where(flat, nx, 1)

    # steps p at which -1 < s(p) < n_s, with s(p) = a + slope * p
    slope = ds / dp
    a = s0 - slope * p0
    with np.errstate(divide="ignore", invalid="ignore"):
        enter, leave = (-1 - a) / slope, (n_s - a) / slope
    level = np.abs(slope) < 1e-12
    inside = (a > -1) & (a < n_s)
    enter, leave = np.minimum(enter, leave), np.maximum(enter, leave)
    enter = np.where(level, np.where(inside, 0, np.inf), enter)
    leave = np.where(level, np.where(inside, np.inf, -np.inf), leave)
    first = np.clip(np.ceil(enter), 0, n_p).astype(np.int64)
    last = np.clip(np.floor(leave), -1, n_p - 1).astype(np.int64)
    count = np.maximum(last - first + 1, 0)

    ray = np.repeat(np.arange(len(a)), count)
    p = np.arange(len(ray)) - np.repeat(np.cumsum(count) - count - first, count)
    s = a[ray] + slope[ray] * p
    lower = np.floor(s).astype(np.int64)
    fraction = s - lower
    length = (1 / np.abs(dp))[ray]
    base, stride, size = p * stride_p[ray], stride_s[ray], n_s[ray]
    neighbours = np.stack([lower, lower + 1], 1)
    weight = np.stack([(1 - fraction) * length, fraction * length], 1)
    pixel = base[:, None] + stride[:, None] * neighbours
    keep = (neighbours >= 0) & (neighbours < size[:, None]) & (weight > 0)
    return np.broadcast_to(ray[:, None], keep.shape)[keep], pixel[keep], weight[keep]


class SparsePair:
    """A sparse matrix and its transpose, both stored, applied to columns.

    torch's own transpose of a CSR matrix converts it at every product, which is about a hundred times slower
    than a product with the stored transpose. The two hold the same values, so the pair is an exact adjoint
    up to the order of summation.

    Args:
        matrix: scipy CSR matrix, float32 or float64.
    """

    def __init__(self, matrix: scipy.sparse.csr_array) -> None:
        self.shape: tuple[int, int] = tuple(matrix.shape)
        self._forward = _csr(matrix)
        self._transpose = _csr(matrix.T.tocsr())

    def apply(self, x: Tensor) -> Tensor:
        """``A x``: (n_columns_of_A, B) or (n_columns_of_A,) to (n_rows, B) or (n_rows,)."""
        return _product(self._forward, x)

    def apply_transpose(self, y: Tensor) -> Tensor:
        """``A^T y``: (n_rows, B) or (n_rows,) to (n_columns_of_A, B) or (n_columns_of_A,)."""
        return _product(self._transpose, y)

    @property
    def nbytes(self) -> int:
        """Memory of both matrices."""
        parts = [t for m in (self._forward, self._transpose) for t in (m.crow_indices(), m.col_indices(), m.values())]
        return sum(t.numel() * t.element_size() for t in parts)

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> SparsePair:
        """A copy in another precision (the weights are rounded or widened) and/or on another device."""
        new = copy.copy(self)
        new._forward, new._transpose = (_move(m, dtype, device) for m in (self._forward, self._transpose))
        return new


def _product(matrix: Tensor, x: Tensor) -> Tensor:
    if x.device.type == "cpu":
        if x.ndim == 2 and x.shape[1] == 1:
            return _product(matrix, x[:, 0])[:, None]
        n_columns = 1 if x.ndim == 1 else x.shape[1]
        if n_columns > CSR_MAX_COLUMNS:
            n_chunks = -(-n_columns * x.shape[0] * x.element_size() // CHUNK_BYTES)
            return torch.cat([_bag(matrix, part) for part in x.chunk(n_chunks, 1)], 1)
        if not torch.backends.mkl.is_available():  # torch multiplies CSR matrices on a CPU through MKL only
            return _bag(matrix, x) if x.ndim == 2 else _bag(matrix, x[:, None])[:, 0]
    return matrix @ x.contiguous()  # a transposed view takes a quarter longer


def _bag(matrix: Tensor, x: Tensor) -> Tensor:
    return torch.nn.functional.embedding_bag(
        matrix.col_indices(), x.contiguous(), matrix.crow_indices(),
        mode="sum", per_sample_weights=matrix.values(), include_last_offset=True,
    )  # fmt: skip


def _csr(matrix: scipy.sparse.csr_array) -> Tensor:
    crow, column, values = map(torch.from_numpy, (matrix.indptr, matrix.indices, matrix.data))
    return _tensor(crow.int(), column.int(), values, tuple(matrix.shape))


def _tensor(crow: Tensor, column: Tensor, values: Tensor, shape: Any) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
        return torch.sparse_csr_tensor(crow, column, values, shape, check_invariants=True)


def _move(m: Tensor, dtype: torch.dtype | None, device: torch.device | str | None) -> Tensor:
    crow, column = m.crow_indices().to(device=device), m.col_indices().to(device=device)
    return _tensor(crow, column, m.values().to(dtype=dtype, device=device), m.shape)
