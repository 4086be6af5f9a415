"""Three-dimensional X-ray CT with parallel and cone beams."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from invdiff.operators.base import LinearOperator
from invdiff.operators.ct_geometry3d import ConeBeam, ParallelBeam3D
from invdiff.operators.ct_matrix import SparsePair
from invdiff.operators.memory import default_budget

PAIR_BYTES = 16  # per weight: value and index, in the matrix and in its transpose
MAX_WEIGHTS = 2**31 - 1  # that int32 can index
STEPS_PER_BLOCK = 2**20  # planes crossed by rays, weighted at a time: bounds the temporary memory (about 150 MB)


class CT3D(LinearOperator):
    """Line integrals of an attenuation volume, by Joseph's method in three dimensions.

    Volumes ``(..., 1, nz, ny, nx)`` are linear attenuation coefficients in 1/mm, projections ``(..., 1, n_views,
    n_rows, n_columns)`` are line integrals, without unit. A ray crosses every plane of voxels across its main axis
    once; there the volume is interpolated bilinearly between four voxels, times the length of ray per plane.

    Small operators are a stored sparse matrix with its stored transpose; for those that do not fit the memory budget,
    the weights are computed at every call, some rays at a time, and the adjoint adds up the same weights. Either way
    the adjoint is exact. It is all torch and works on any device, made for volumes up to about 128 voxels across.

    Args:
        geometry: :class:`ParallelBeam3D` or :class:`ConeBeam`.
        memory_budget: bytes that the stored matrices may take in float32. None: a quarter of the memory.

    Raises:
        TypeError: geometry is neither of the two.

    Example:
        >>> from invdiff.operators import CT3D, ParallelBeam3D
        >>> beam = ParallelBeam3D(
        ...     image_shape=(4, 8, 8), voxel_size=1.0, angles=(0.0,), detector_shape=(4, 8), detector_spacing=1.0
        ... )
        >>> y = CT3D(beam)(torch.full((1, 4, 8, 8), 0.02))
        >>> tuple(y.shape), round(float(y[0, 0, 2, 4]), 4)  # 8 mm of 0.02 / mm
        ((1, 1, 4, 8), 0.16)
    """

    adjoint_as_backward = True

    def __init__(self, geometry: ParallelBeam3D | ConeBeam, memory_budget: int | None = None) -> None:
        if not isinstance(geometry, ParallelBeam3D | ConeBeam):
            raise TypeError(f"geometry must be a ParallelBeam3D or a ConeBeam, got {type(geometry).__name__}.")
        if memory_budget is not None and not memory_budget > 0:
            raise ValueError(f"memory_budget must be a positive number of bytes, got {memory_budget!r}.")
        super().__init__((1, *geometry.image_shape), (1, geometry.n_views, *geometry.detector_shape))
        self.geometry, self.memory_budget = geometry, memory_budget
        budget = min(memory_budget or default_budget(), PAIR_BYTES * MAX_WEIGHTS)
        self._pair: SparsePair | None = None
        if _pair_bytes(geometry, budget) <= budget:
            self._pair = SparsePair(joseph_matrix_3d(geometry))

    def forward(self, x: Tensor) -> Tensor:
        volumes = x.reshape(len(x), -1)
        if self._pair is not None:
            return self._pair.apply(volumes.T).T.reshape(-1, *self.out_shape)
        y = x.new_zeros(len(x), self.out_shape[1] * self.out_shape[2] * self.out_shape[3])
        for rays, voxel, weight in blocks(self.geometry, dtype=x.dtype, device=x.device):
            for volume, out in zip(volumes, y, strict=True):
                out[rays] = (volume[voxel] * weight).sum((1, 2))
        return y.reshape(-1, *self.out_shape)

    def adjoint(self, y: Tensor) -> Tensor:
        projections = y.reshape(len(y), -1)
        if self._pair is not None:
            return self._pair.apply_transpose(projections.T).T.reshape(-1, *self.in_shape)
        x = y.new_zeros(len(y), self.in_shape[1] * self.in_shape[2] * self.in_shape[3])
        for rays, voxel, weight in blocks(self.geometry, dtype=y.dtype, device=y.device):
            for data, volume in zip(projections, x, strict=True):
                volume.index_add_(0, voxel.flatten(), (data[rays, None, None] * weight).flatten())
        return x.reshape(-1, *self.in_shape)


def blocks(
    geometry: ParallelBeam3D | ConeBeam, *, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """All weights, some rays at a time.

    Yields:
        rays (n,): numbers of the rays of the block, in the order (view, row, column);
        voxel (n, n_planes, 4): numbers of the voxels that each ray meets, int64, and
        weight (n, n_planes, 4): mm, zero for neighbours outside the volume.
    """
    nz, ny, nx = geometry.image_shape
    dz, dy, dx = geometry.voxel_spacing
    size, stride = np.array([nx, ny, nz]), np.array([1, nx, nx * ny])
    to_index, middle = np.array([1 / dx, -1 / dy, 1 / dz]), (size - 1) / 2  # index = coordinate * to_index + middle
    n_rays = geometry.detector_shape[0] * geometry.detector_shape[1]
    for view in range(geometry.n_views):
        origins, directions = (r.reshape(-1, 3) * to_index for r in geometry.subset([view]).rays())
        origins += middle
        main = np.abs(directions).argmax(1)
        for axis in range(3):
            chosen = np.flatnonzero(main == axis)
            for part in np.array_split(chosen, -(-len(chosen) * size[axis] // STEPS_PER_BLOCK) or 1):
                if len(part):
                    voxel, weight = _weights(origins[part], directions[part], axis, size, stride, dtype, device)
                    yield torch.from_numpy(part + view * n_rays).to(device), voxel, weight


def _weights(
    origins: np.ndarray,
    directions: np.ndarray,
    axis: int,
    size: np.ndarray,
    stride: np.ndarray,
    dtype: torch.dtype,
    device: torch.device | str,
) -> tuple[Tensor, Tensor]:
    """Of rays with one main axis, given in voxel indices (x, y, z); directions in indices per mm."""
    along = directions[:, axis]
    plane = torch.arange(size[axis], device=device)
    voxel = (plane * int(stride[axis]))[:, None]
    weight = torch.from_numpy(1 / np.abs(along)).to(device, dtype)[:, None, None]
    for other in range(3):
        if other == axis:
            continue
        slope = directions[:, other] / along
        start = origins[:, other] - slope * origins[:, axis]
        start, slope = (torch.from_numpy(a).to(device, dtype)[:, None] for a in (start, slope))
        position = start + slope * plane
        lower = position.floor()
        fraction = position - lower
        neighbours = torch.stack([lower, lower + 1], -1).long()
        inside = (neighbours >= 0) & (neighbours < int(size[other]))
        share = torch.stack([1 - fraction, fraction], -1) * inside
        voxel = (voxel[..., None] + (neighbours * inside * int(stride[other]))[..., None, :]).flatten(-2)
        weight = (weight[..., None] * share[..., None, :]).flatten(-2)
    return voxel, weight


def joseph_matrix_3d(geometry: ParallelBeam3D | ConeBeam) -> scipy.sparse.csr_array:
    """The weights as a CSR matrix (n_rays, n_voxels), computed in float64 and kept in float32."""
    n_rays = geometry.n_views * geometry.detector_shape[0] * geometry.detector_shape[1]
    counts = np.zeros(n_rays, np.int64)
    parts = []
    for rays, voxel, weight in blocks(geometry, dtype=torch.float64):
        keep = weight.flatten(1) > 0
        counts[rays.numpy()] = keep.sum(1).numpy()
        parts.append((rays, voxel.flatten(1)[keep].int().numpy(), weight.flatten(1)[keep].float().numpy()))
    indptr = np.concatenate([[0], np.cumsum(counts)])
    indices, values = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.float32)
    for rays, voxels, weights in parts:
        n = counts[rays.numpy()]
        place = np.repeat(indptr[rays.numpy()] - (np.cumsum(n) - n), n) + np.arange(len(voxels))
        indices[place], values[place] = voxels, weights
    matrix = scipy.sparse.csr_array(
        (values, indices, indptr.astype(np.int32)), shape=(n_rays, int(np.prod(geometry.image_shape)))
    )
    matrix.sort_indices()
    return matrix


def _pair_bytes(geometry: ParallelBeam3D | ConeBeam, budget: int) -> float:
    """Memory of the matrix and its transpose: an upper bound if that fits the budget, else scaled up from 4 views."""
    n_rays = geometry.n_views * geometry.detector_shape[0] * geometry.detector_shape[1]
    bound = 4.0 * PAIR_BYTES * n_rays * max(geometry.image_shape)
    if bound <= budget:
        return bound
    few = geometry.subset(np.unique(np.linspace(0, geometry.n_views - 1, 4).astype(int)).tolist())
    n_weights = sum(int((weight > 0).sum()) for _, _, weight in blocks(few, dtype=torch.float32))
    return PAIR_BYTES * n_weights * geometry.n_views / few.n_views
