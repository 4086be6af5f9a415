"""Two-dimensional X-ray CT."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invdiff.operators.base import LinearOperator
from invdiff.operators.ct_astra import AstraPair
from invdiff.operators.ct_cache import cached_joseph_matrix
from invdiff.operators.ct_geometry import CurvedFanBeam, FanBeam, ParallelBeam, VectorBeam
from invdiff.operators.ct_matrix import SparsePair, joseph_matrix
from invdiff.operators.memory import default_budget

Geometry = ParallelBeam | FanBeam | CurvedFanBeam | VectorBeam
PAIR_BYTES = 16  # per weight: value and index, in the matrix and in its transpose
MAX_WEIGHTS = 2**31 - 1  # that int32 can index
SAME_ANGLE = 1e-9  # rad
MAX_BATCH_BYTES = 512 * 2**20  # largest full matrix (with its transpose) that is kept beside a folded one


class CT(LinearOperator):
    """Line integrals of an attenuation image (X-ray transform), by Joseph's method.

    Images ``(..., 1, ny, nx)`` are linear attenuation coefficients in 1/mm, sinograms ``(..., 1, n_views,
    n_detectors)`` are line integrals, without unit. The projector is a stored sparse matrix with its stored
    transpose, so the adjoint is exact; together they take about ``32 * n_views * n_detectors * n`` bytes for an
    ``n x n`` image. Where the views are turned or mirrored copies of each other (equispaced, with a centred
    detector and a square image), single images use a matrix up to 8 times smaller, which is faster
    (:class:`_Folded`); batches use the full one, unless it is too large. Where neither fits the memory budget,
    projections are computed without a matrix (:class:`invdiff.operators.ct_astra.AstraPair`): slower, float32, an
    exact adjoint still. Large matrices are kept on disk (:mod:`invdiff.operators.ct_cache`).

    Weights are computed in float64 and stored in float32; ``.to(dtype=torch.float64)`` widens the same weights.

    Args:
        geometry: :class:`ParallelBeam`, :class:`FanBeam`, :class:`CurvedFanBeam` or :class:`VectorBeam`.
        supersampling: rays averaged per detector element. With 1, a ray is infinitely thin; use more when the
            elements, scaled to the rotation axis, are not much smaller than a pixel.
        memory_budget: bytes that the stored matrices may take in float32; building them takes about half as much
            again. None: a quarter of the memory.

    Raises:
        TypeError: geometry is none of these.
        MemoryError: the matrices do not fit the budget, and there is no projector without a matrix for the geometry.
            The message says what would fit.

    Example:
        >>> from math import pi
        >>> from invdiff.operators import CT, ParallelBeam
        >>> beam = ParallelBeam(
        ...     image_shape=(8, 8), pixel_size=1.0, angles=(0.0, pi / 2), n_detectors=8, detector_spacing=1.0
        ... )
        >>> y = CT(beam)(torch.full((1, 8, 8), 0.02))
        >>> tuple(y.shape), round(float(y[0, 0, 4]), 4)  # 8 mm of 0.02 / mm
        ((1, 2, 8), 0.16)
    """

    adjoint_as_backward = True

    def __init__(self, geometry: Geometry, supersampling: int = 1, memory_budget: int | None = None) -> None:
        if not isinstance(geometry, Geometry):
            names = "a ParallelBeam, FanBeam, CurvedFanBeam or VectorBeam"
            raise TypeError(f"geometry must be {names}, got {type(geometry).__name__}.")
        if memory_budget is not None and not memory_budget > 0:
            raise ValueError(f"memory_budget must be a positive number of bytes, got {memory_budget!r}.")
        super().__init__((1, *geometry.image_shape), (1, geometry.n_views, geometry.n_detectors))
        self.geometry, self.supersampling, self.memory_budget = geometry, supersampling, memory_budget
        self._folded: _Folded | None = None
        self._pair: SparsePair | None = None
        self._astra: AstraPair | None = None
        budget = min(memory_budget or default_budget(), PAIR_BYTES * MAX_WEIGHTS)
        full = _pair_bytes(geometry, supersampling, budget)
        symmetry = None if isinstance(geometry, VectorBeam) else _Symmetry(geometry)
        if symmetry and symmetry.shrinks and full / symmetry.factor <= budget:
            assert not isinstance(geometry, VectorBeam)
            self._folded = _Folded(symmetry, geometry, supersampling)
            full = symmetry.factor * self._folded.pair.nbytes
            if full <= MAX_BATCH_BYTES and full + self._folded.pair.nbytes <= budget:
                self._pair = _matrix_pair(geometry, supersampling)
        elif full <= budget:
            self._pair = _matrix_pair(geometry, supersampling)
        else:
            self._astra = _without_matrix(geometry, supersampling, full, budget)

    @property
    def stored_bytes(self) -> int:
        """Memory of the matrices; 0 if projections are computed without."""
        pairs = (self._pair, None if self._folded is None else self._folded.pair)
        return sum(pair.nbytes for pair in pairs if pair is not None)

    def forward(self, x: Tensor) -> Tensor:
        if self._astra is not None:
            return self._astra.apply(x[:, 0])[:, None]
        if self._folded is not None and (len(x) == 1 or self._pair is None):
            return torch.cat([self._folded.apply(i) for i in x.reshape(len(x), -1)]).reshape(-1, *self.out_shape)
        assert self._pair is not None
        return self._pair.apply(x.reshape(len(x), -1).T).T.reshape(-1, *self.out_shape)

    def adjoint(self, y: Tensor) -> Tensor:
        if self._astra is not None:
            return self._astra.apply_transpose(y[:, 0])[:, None]
        if self._folded is not None and (len(y) == 1 or self._pair is None):
            images = [self._folded.apply_transpose(i) for i in y.reshape(len(y), -1)]
            return torch.cat(images).reshape(-1, *self.in_shape)
        assert self._pair is not None
        return self._pair.apply_transpose(y.reshape(len(y), -1).T).T.reshape(-1, *self.in_shape)


def _matrix_pair(geometry: Geometry, supersampling: int) -> SparsePair:
    rays = geometry.rays(supersampling)
    return SparsePair(
        cached_joseph_matrix(*rays, geometry.image_shape, geometry.pixel_size, supersampling=supersampling)
    )


def _pair_bytes(geometry: Geometry, supersampling: int, budget: int) -> float:
    """Memory of the matrix and its transpose: an upper bound if that fits the budget, else scaled up from 16 views."""
    bound = 2.0 * PAIR_BYTES * geometry.n_views * geometry.n_detectors * supersampling * max(geometry.image_shape)
    if bound <= budget:
        return bound
    few = np.unique(np.linspace(0, geometry.n_views - 1, 16).astype(int))
    rays = geometry.subset(few.tolist()).rays(supersampling)
    part = joseph_matrix(*rays, geometry.image_shape, geometry.pixel_size, supersampling=supersampling)
    return PAIR_BYTES * part.nnz * geometry.n_views / len(few)


def _without_matrix(geometry: Geometry, supersampling: int, needed: float, budget: int) -> AstraPair:
    try:
        return AstraPair(geometry, supersampling)  # type: ignore[arg-type]
    except (TypeError, ImportError) as error:
        reason = str(error)
        if isinstance(error, ImportError):
            reason = "projecting without them needs the ASTRA toolbox (pip install 'invdiff[astra]', GPLv3)"
        share = budget / needed
        ny, nx = (int(n * share) for n in geometry.image_shape)  # rays per view and views stay
        raise MemoryError(
            f"The projector's matrices would take {needed / 1e9:.3g} GB, more than the memory_budget of "
            f"{budget / 1e9:.3g} GB, and {reason}. What fits: memory_budget={math.ceil(1.05 * needed)}, or "
            f"{int(share * geometry.n_views)} of the {geometry.n_views} views, or {ny} x {nx} larger pixels."
        ) from None


class _Symmetry:
    """Which rays are turned or mirrored copies of which others.

    Let R be a turn by 90 degrees and F the mirror x -> -x. Turning the image back is turning the scanner, so
    view ``t + 90 degrees`` of an image x is view ``t`` of x o R, and view ``-t`` is view ``t`` of x o F with the
    detector reversed. So for a square image and a centred detector every angle reduces to one in [0, 45] degrees,
    and equispaced views share few. For parallel beams, half a turn reverses the detector: its upper half sees of x
    what its lower half sees of x o R o R.

    Attributes:
        angles: the angles to store, rad.
        n_elements: how many detector elements of each, from the first.
        kinds: copies of the image needed, as (quarter turns, mirrored).
        row, kind: (n_views, n_detectors), the stored ray that each ray is, and for which kind of image.
        factor: number of rays over number of stored rays.
        shrinks: whether storing the few pays.
    """

    def __init__(self, geometry: ParallelBeam | FanBeam | CurvedFanBeam) -> None:
        angles, n_detectors = np.asarray(geometry.angles), geometry.n_detectors
        quarter = np.round(angles / (math.pi / 2)).astype(np.int64)
        rest = angles - quarter * (math.pi / 2)
        mirrored = (rest < -SAME_ANGLE)[:, None]
        _, first, view = np.unique(np.round(np.abs(rest) / SAME_ANGLE), return_index=True, return_inverse=True)
        element = np.where(mirrored, np.arange(n_detectors)[::-1], np.arange(n_detectors))
        turns = np.broadcast_to(quarter[:, None], element.shape)
        self.n_elements = n_detectors
        if isinstance(geometry, ParallelBeam):
            self.n_elements = (n_detectors + 1) // 2
            turns = turns + 2 * (element >= self.n_elements)
            element = np.minimum(element, n_detectors - 1 - element)
        codes, kind = np.unique(2 * (turns % 4) + mirrored, return_inverse=True)

        self.angles = tuple(np.abs(rest)[first])
        self.kinds = [(int(code) // 2, bool(code % 2)) for code in codes]
        self.row = view[:, None] * self.n_elements + element
        self.kind = kind.reshape(element.shape)
        self.factor = element.size / (len(first) * self.n_elements)
        ny, nx = geometry.image_shape
        fits = ny == nx and isinstance(geometry.pixel_size, float) and geometry.detector_offset == 0
        self.shrinks = fits and self.factor >= 2 and len(self.kinds) <= 1.5 * self.factor


class _Folded:
    """The projector of one image as a product of the stored rays with a few copies of the image as columns.

    Args:
        symmetry: of the geometry; it must fit.
        geometry, supersampling: as in :class:`CT`.
    """

    def __init__(
        self, symmetry: _Symmetry, geometry: ParallelBeam | FanBeam | CurvedFanBeam, supersampling: int
    ) -> None:
        rays = replace(geometry, angles=symmetry.angles).rays(supersampling)
        origins, directions = (r[:, : symmetry.n_elements * supersampling] for r in rays)
        self.pair = SparsePair(
            cached_joseph_matrix(
                origins, directions, geometry.image_shape, geometry.pixel_size, supersampling=supersampling
            )
        )
        self.n_kinds = len(symmetry.kinds)
        pixels = np.arange(self.pair.shape[1]).reshape(geometry.image_shape)
        turned = [(np.rot90(pixels, -turns), mirrored) for turns, mirrored in symmetry.kinds]
        pixel = np.stack([(t[:, ::-1] if mirrored else t).ravel() for t, mirrored in turned], -1)
        back = np.argsort(pixel, axis=0) * self.n_kinds + np.arange(self.n_kinds)
        self._pixel = torch.from_numpy(pixel.ravel())  # of the image, for each (pixel, kind)
        self._back = torch.from_numpy(back.ravel())  # (pixel, kind), for each (pixel of the image, kind)
        self._ray = torch.from_numpy((symmetry.row * self.n_kinds + symmetry.kind).ravel())  # (row, kind), for each ray
        self._repeats = len(self._ray.unique()) < len(self._ray)  # lines that are measured more than once

    def apply(self, x: Tensor) -> Tensor:
        """(n_pixels,) to (n_rays,)."""
        copies = x.index_select(0, self._pixel).view(-1, self.n_kinds)
        return self.pair.apply(copies).view(-1).index_select(0, self._ray)

    def apply_transpose(self, y: Tensor) -> Tensor:
        """(n_rays,) to (n_pixels,), the transpose of :meth:`apply`, step by step."""
        rays = y.new_zeros(self.pair.shape[0] * self.n_kinds)
        put = rays.index_add_ if self._repeats else rays.index_copy_  # adding is slower
        put(0, self._ray, y)
        copies = self.pair.apply_transpose(rays.view(-1, self.n_kinds))
        return copies.view(-1).index_select(0, self._back).view(-1, self.n_kinds) @ y.new_ones(self.n_kinds)

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Any:
        """A copy in another precision and/or on another device."""
        new = copy.copy(self)
        new.pair = self.pair.to(dtype=dtype, device=device)
        new._pixel, new._back, new._ray = (i.to(device=device) for i in (self._pixel, self._back, self._ray))
        return new
