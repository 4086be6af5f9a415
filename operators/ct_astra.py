"""CT without a stored matrix, by the ASTRA toolbox's projectors: on a CPU for geometries too large for a matrix, and as
a choice of its own, which is there for its CUDA projectors.

W. van Aarle et al., "Fast and flexible X-ray tomography using the ASTRA toolbox", Opt. Express 24, 25129-25147, 2016.
ASTRA is an optional dependency under the GPLv3; it is imported only when an operator of this kind is made.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invdiff.operators.base import LinearOperator
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
                "Raise memory_budget so that the matrix is stored, then move it, or use AstraCT (inexact adjoint)."
            )
        return self


class AstraCT(LinearOperator):
    """Line integrals by the ASTRA toolbox, without a matrix: on a CPU with an exact adjoint, on a GPU without.

    Images and sinograms are as those of :class:`invdiff.operators.CT`, which is the better choice wherever its matrix
    fits. ``A.to(device="cuda")`` uses ASTRA's CUDA projectors, on the first GPU. Their back projector follows pixels,
    not rays, and only approximates the adjoint; :attr:`mismatch` and ``repr`` tell by how much. Gradient steps bear
    that; conjugate gradients and what rests on them (``prox``, ``pinv``, ADMM, DDNM, PiGDM) need not converge. The CUDA
    projectors have never been run: no GPU was at hand.

    ASTRA computes in float32 whatever the tensors' precision. On a CPU, parallel rays are weighted by Joseph's method
    and fans by Siddon's, on a GPU all by Joseph's.

    Args:
        geometry: :class:`ParallelBeam`, :class:`FanBeam` or :class:`VectorBeam` with square pixels.
        supersampling: rays averaged per detector element.

    Raises:
        TypeError: a geometry that ASTRA has no projector for.
        ImportError: ASTRA is not installed (``pip install 'invdiff[astra]'``, GPLv3).

    Example:
        >>> from invdiff.operators import AstraCT, ParallelBeam
        >>> beam = ParallelBeam.covering((32, 32), 1.0, 20)
        >>> A = AstraCT(beam).to(device="cuda")  # doctest: +SKIP
        >>> beam.n_views
        20
    """

    adjoint_as_backward = True

    def __init__(self, geometry: ParallelBeam | FanBeam | VectorBeam, supersampling: int = 1) -> None:
        self._pair = _AnyDevice(geometry, supersampling)
        super().__init__((1, *geometry.image_shape), (1, geometry.n_views, geometry.n_detectors))
        self.geometry, self.supersampling = geometry, supersampling

    def forward(self, x: Tensor) -> Tensor:
        return self._pair.apply(x[:, 0])[:, None]

    def adjoint(self, y: Tensor) -> Tensor:
        return self._pair.apply_transpose(y[:, 0])[:, None]

    @property
    def mismatch(self) -> float:
        """``|1 - <x, A.H A x> / |A x|^2|`` for one random image on the operator's device; 0 for an exact adjoint."""
        cached = vars(self).get("_mismatch")
        if cached is None or cached[0] != self.device:
            x = torch.randn(self.in_shape, generator=torch.Generator().manual_seed(0)).to(self.device, self.dtype)
            y = self(x)
            ratio = (x.double() * self.H(y).double()).sum() / y.double().square().sum()
            cached = self._mismatch = (self.device, abs(1 - float(ratio)))
        return cached[1]

    def __repr__(self) -> str:
        return f"{super().__repr__()} by ASTRA on {self.device}, adjoint off by {self.mismatch:.1e}"


class _AnyDevice(AstraPair):
    """The pair on a CPU; for tensors on a GPU, which ASTRA reads and writes in place (DLPack), its CUDA projectors."""

    def apply(self, x: Tensor) -> Tensor:
        if not x.is_cuda:
            return super().apply(x)
        k, beam = self.supersampling, self.beam
        images = x.detach().float().contiguous()
        fine = images.new_zeros(len(x), beam.n_views, beam.n_detectors * k)
        with _Projector(beam, k, 0, beam.n_views, cuda=True) as projector:
            torch.cuda.synchronize()  # ASTRA does not know torch's streams
            for image, views in zip(images, fine, strict=True):
                projector.astra.projector.direct_FP(projector.id, image, out=views)
        return fine.unflatten(-1, (-1, k)).mean(-1).to(x.dtype)

    def apply_transpose(self, y: Tensor) -> Tensor:
        if not y.is_cuda:
            return super().apply_transpose(y)
        k, beam = self.supersampling, self.beam
        fine = (y.detach().float() / k).repeat_interleave(k, -1).contiguous()
        images = fine.new_zeros(len(y), *beam.image_shape)
        with _Projector(beam, k, 0, beam.n_views, cuda=True) as projector:
            torch.cuda.synchronize()
            for views, image in zip(fine, images, strict=True):
                projector.astra.projector.direct_BP(projector.id, views, out=image)
        return images.to(y.dtype)

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> AstraPair:
        return self


class _Projector:
    """An ASTRA projector of the views ``first`` to ``last``, freed on leaving."""

    def __init__(self, beam: VectorBeam, supersampling: int, first: int, last: int, *, cuda: bool = False) -> None:
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
        self.id = astra.create_projector("cuda" if cuda else method, views, volume)

    def __enter__(self) -> _Projector:
        return self

    def __exit__(self, *_: object) -> None:
        self.astra.projector.delete(self.id)
