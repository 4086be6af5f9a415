"""Two-dimensional X-ray CT."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invdiff.operators.base import LinearOperator
from invdiff.operators.ct_geometry import FanBeam, ParallelBeam
from invdiff.operators.ct_matrix import SparsePair, joseph_matrix

SAME_ANGLE = 1e-9  # rad


class CT(LinearOperator):
    """Line integrals of an attenuation image (X-ray transform), by Joseph's method.

    Images ``(..., 1, ny, nx)`` are linear attenuation coefficients in 1/mm, sinograms ``(..., 1, n_views,
    n_detectors)`` are line integrals, without unit. The projector is a stored sparse matrix with its stored
    transpose, so the adjoint is exact. Views that are mirror images or quarter turns of each other share one
    part of the matrix (:class:`_Symmetry`). Memory is about ``32 * n_views * n_detectors * n`` bytes for an
    ``n x n`` image, divided by 4 (parallel) or 8 (fan) where equispaced views and a centred detector allow
    the sharing. Weights are computed in float64 and stored in float32; ``.to(dtype=torch.float64)`` widens the
    same weights.

    Args:
        geometry: :class:`ParallelBeam` or :class:`FanBeam`.
        supersampling: rays averaged per detector element. With 1, a ray is infinitely thin; use more when the
            elements, scaled to the rotation axis, are not much smaller than a pixel.

    Raises:
        TypeError: geometry is neither of the two.
    """

    adjoint_as_backward = True

    def __init__(self, geometry: ParallelBeam | FanBeam, supersampling: int = 1) -> None:
        if not isinstance(geometry, ParallelBeam | FanBeam):
            raise TypeError(f"geometry must be a ParallelBeam or a FanBeam, got {type(geometry).__name__}.")
        super().__init__((1, *geometry.image_shape), (1, geometry.n_views, geometry.n_detectors))
        self.geometry, self.supersampling = geometry, supersampling
        self._symmetry = _Symmetry(geometry)
        origins, directions = self._symmetry.stored.rays(supersampling)
        self._pair = SparsePair(
            joseph_matrix(origins, directions, geometry.image_shape, geometry.pixel_size, supersampling=supersampling)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self._symmetry.gather_views(self._pair.apply(self._symmetry.copies(x)))

    def adjoint(self, y: Tensor) -> Tensor:
        return self._symmetry.sum_copies(self._pair.apply_transpose(self._symmetry.scatter_views(y)))


class _Symmetry:
    """Which views are quarter turns or mirror images of which others.

    Let R be a turn by 90 degrees and F the mirror x -> -x. Turning the image back is turning the scanner, so
    view ``t + 90 degrees`` of an image x is view ``t`` of x o R, and view ``-t`` is view ``t`` of x o F with the
    detector reversed. For parallel beams view ``t + 180 degrees`` is view ``t`` with the detector reversed. So
    for a square image and a centred detector every angle reduces to one in [0, 45] degrees, and equispaced
    views share few. One product with the views stored, for the few turned and mirrored copies of the image as
    columns, then gives all views; the matrix, whose size sets the speed, shrinks.

    Where this would not at least halve the matrix, all views are stored and there is one copy, the image.
    """

    def __init__(self, geometry: ParallelBeam | FanBeam) -> None:
        n_views, n_detectors = geometry.n_views, geometry.n_detectors
        parallel = isinstance(geometry, ParallelBeam)
        angles = np.asarray(geometry.angles)
        turns = np.round(angles / (math.pi / 2)).astype(np.int64)
        rest = angles - turns * (math.pi / 2)
        mirrored = rest < -SAME_ANGLE
        reversed_ = mirrored ^ (turns // 2 % 2 == 1) if parallel else mirrored
        turns = turns % (2 if parallel else 4)
        _, first, view = np.unique(np.round(np.abs(rest) / SAME_ANGLE), return_index=True, return_inverse=True)
        kinds, kind = np.unique(2 * turns + mirrored, return_inverse=True)

        ny, nx = geometry.image_shape
        useful = 2 * len(first) <= n_views and len(first) * len(kinds) <= 1.5 * n_views
        if ny == nx and geometry.detector_offset == 0 and useful:
            self.stored = type(geometry)(**{**vars(geometry), "angles": tuple(np.abs(rest)[first])})
            self.kinds = [(int(k) // 2, bool(k % 2)) for k in kinds]  # quarter turns, mirrored
            element = np.where(reversed_[:, None], np.arange(n_detectors)[::-1], np.arange(n_detectors))
            row = (view[:, None] * n_detectors + element) * len(kinds) + kind[:, None]
            self._row: Tensor | None = torch.from_numpy(row.ravel())
        else:
            self.stored, self.kinds, self._row = geometry, [(0, False)], None
        self._in_shape, self._out_shape = (1, ny, nx), (1, n_views, n_detectors)
        self._n_rows = len(self.stored.angles) * n_detectors

    def copies(self, x: Tensor) -> Tensor:
        """(batch, 1, ny, nx) to columns (ny * nx, batch * n_kinds)."""
        if self._row is None:
            return x.reshape(len(x), -1).T
        turned = [torch.rot90(x, -turns, (-2, -1)) if turns else x for turns, _ in self.kinds]
        copies = [t.flip(-1) if mirrored else t for t, (_, mirrored) in zip(turned, self.kinds, strict=True)]
        columns = torch.stack(copies, -1).reshape(len(x), -1, len(copies))
        return columns.transpose(0, 1).reshape(columns.shape[1], -1)

    def sum_copies(self, columns: Tensor) -> Tensor:
        """The transpose of :meth:`copies`."""
        if self._row is None:
            return columns.T.reshape(-1, *self._in_shape)
        images = columns.reshape(len(columns), -1, len(self.kinds)).transpose(0, 1)
        total = None
        for image, (turns, mirrored) in zip(images.unbind(-1), self.kinds, strict=True):
            copy_ = image.reshape(-1, *self._in_shape)
            copy_ = copy_.flip(-1) if mirrored else copy_
            copy_ = torch.rot90(copy_, turns, (-2, -1)) if turns else copy_
            total = copy_ if total is None else total + copy_
        return total

    def gather_views(self, columns: Tensor) -> Tensor:
        """(n_rows, batch * n_kinds) to (batch, 1, n_views, n_detectors)."""
        if self._row is not None:
            columns = columns.reshape(self._n_rows, -1, len(self.kinds)).transpose(1, 2)
            columns = columns.reshape(self._n_rows * len(self.kinds), -1).index_select(0, self._row)
        return columns.T.reshape(-1, *self._out_shape)

    def scatter_views(self, y: Tensor) -> Tensor:
        """The transpose of :meth:`gather_views`: entries that are no view's are zero."""
        y = y.reshape(len(y), -1).T
        if self._row is None:
            return y
        columns = y.new_zeros(self._n_rows * len(self.kinds), y.shape[1]).index_copy_(0, self._row, y)
        return columns.reshape(self._n_rows, len(self.kinds), -1).transpose(1, 2).reshape(self._n_rows, -1)

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Any:
        """A copy on another device."""
        new = copy.copy(self)
        new._row = None if self._row is None else self._row.to(device=device)
        return new
