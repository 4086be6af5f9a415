"""CT without a stored matrix: the ASTRA toolbox's CPU projectors, for geometries too large for one.

W. van Aarle et al., "Fast and flexible X-ray tomography using the ASTRA toolbox", Opt. Express 24, 25129-25147, 2016.
ASTRA is an optional dependency under the GPLv3; it is imported only when an operator of this kind is made.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invdiff.operators.ct_geometry import FanBeam, ParallelBeam, VectorBeam


class AstraPair:
    """Line integrals and their transpose, computed afresh at every call; each projector is the exact transpose of
    itself on a CPU.

    Parallel rays are weighted by Joseph's method, as in the matrix, fans by the length of ray in each pixel (Siddon).
    ASTRA computes in float32 whatever the tensors' precision, on the CPU. It holds no lock while it computes: images,
    or parts of the views of a single image, run in ``torch.get_num_threads()`` threads with one projector each.

    Args:
        geometry: square pixels, flat detector.
        supersampling: rays averaged per detector element.

    Raises:
        TypeError: a geometry that ASTRA has no CPU projector for.
        ImportError: ASTRA is not installed.
    """

    def __init__(self, geometry: ParallelBeam | FanBeam | VectorBeam, supersampling: int) -> None:
        if not isinstance(geometry, ParallelBeam | FanBeam | VectorBeam):
            raise TypeError(f"ASTRA has no CPU projector for a {type(geometry).__name__}")
        if not isinstance(geometry.pixel_size, float):
            raise TypeError(f"ASTRA has no CPU projector for pixels that are not square ({geometry.pixel_size} mm)")
        import astra  # noqa: F401

        self.beam = geometry if isinstance(geometry, VectorBeam) else VectorBeam.of(geometry)
        self.supersampling = supersampling

    def apply(self, x: Tensor) -> Tensor:
        """(batch, ny, nx) to (batch, n_views, n_detectors)."""
        k, beam = self.supersampling, self.beam
        images = np.ascontiguousarray(x.numpy(), dtype=np.float32)
        fine = np.zeros((len(images), beam.n_views, beam.n_detectors * k), np.float32)

        def project(i: int, first: int, last: int) -> None:
            with _Projector(beam, k, first, last) as projector:
                projector.astra.projector.direct_FP(projector.id, images[i], out=fine[i, first:last])

        self._in_threads(project, len(images))
        return torch.from_numpy(fine.reshape(*fine.shape[:2], -1, k).mean(-1)).to(x.dtype)

    def apply_transpose(self, y: Tensor) -> Tensor:
        """(batch, n_views, n_detectors) to (batch, ny, nx)."""
        k, beam = self.supersampling, self.beam
        views = np.repeat(np.asarray(y.numpy(), dtype=np.float32) / k, k, axis=-1)

        def backproject(i: int, first: int, last: int) -> np.ndarray:
            image = np.zeros(beam.image_shape, np.float32)
            with _Projector(beam, k, first, last) as projector:
                projector.astra.projector.direct_BP(projector.id, views[i, first:last], out=image)
            return image

        parts = np.stack(self._in_threads(backproject, len(views)))
        return torch.from_numpy(parts.reshape(len(views), -1, *beam.image_shape).sum(1)).to(y.dtype)

    def _in_threads(self, function: Any, n_images: int) -> list[Any]:
        """``function(image, first view, last view)`` over all images, each in as many parts as keep threads busy."""
        n_threads = torch.get_num_threads()
        n_parts = min(max(1, n_threads // max(1, n_images)), self.beam.n_views)
        edges = np.linspace(0, self.beam.n_views, n_parts + 1).astype(int).tolist()
        tasks = [(i, first, last) for i in range(n_images) for first, last in zip(edges, edges[1:], strict=False)]
        with ThreadPoolExecutor(n_threads) as pool:
            return list(pool.map(lambda task: function(*task), tasks))

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> AstraPair:
        """Itself, on the CPU in any precision. Raises ValueError for another device."""
        if device is not None and torch.device(device).type != "cpu":
            raise ValueError(
                "This CT operator is too large for its memory_budget and works without a matrix, on the CPU only. "
                "Raise memory_budget so that the matrix is stored, then move it."
            )
        return self


class _Projector:
    """An ASTRA projector of the views ``first`` to ``last``, freed on leaving."""

    def __init__(self, beam: VectorBeam, supersampling: int, first: int, last: int) -> None:
        import astra

        self.astra = astra
        rays = beam.directions if beam.sources is None else beam.sources
        axes = np.asarray(beam.axes) / supersampling
        vectors = np.ascontiguousarray(
            np.concatenate([np.asarray(rays), np.asarray(beam.detectors), axes], 1)[first:last]
        )
        kind, method = ("parallel_vec", "linear") if beam.sources is None else ("fanflat_vec", "line_fanflat")
        (ny, nx), (dy, dx) = beam.image_shape, beam.pixel_spacing
        volume = astra.create_vol_geom(ny, nx, -nx * dx / 2, nx * dx / 2, -ny * dy / 2, ny * dy / 2)
        views = astra.create_proj_geom(kind, beam.n_detectors * supersampling, vectors)
        self.id = astra.create_projector(method, views, volume)

    def __enter__(self) -> _Projector:
        return self

    def __exit__(self, *_: object) -> None:
        self.astra.projector.delete(self.id)
