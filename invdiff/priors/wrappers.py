"""Priors around priors: larger images by tiles, volumes by slices, noise levels kept in range, a calibrated score.

Each is a prior like any other, composed around one: ``Slices(Calibrated.load(prior, "offsets.safetensors"), 40)``. A
latent prior is wrapped at its denoiser.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invdiff.priors.denoiser import Prior
from invdiff.priors.latent import LatentPrior


class Wrapper(Prior):
    """A prior of images of ``shape`` that asks ``prior``; units, noise range, precision and device are that one's."""

    def __init__(self, prior: Prior, shape: Sequence[int]) -> None:
        if isinstance(prior, LatentPrior):
            name = type(self).__name__
            raise TypeError(
                f"{name} around a LatentPrior would no longer be one; wrap its denoiser: LatentPrior(p.encoder, "
                f"p.decoder, {name}(p.denoiser, ...), image_shape=...)."
            )
        super().__init__(
            tuple(shape), sigma_min=prior.sigma_min, sigma_max=prior.sigma_max, info=prior.info, dtype=prior.dtype,
            device=prior.device,
        )  # fmt: skip
        self.prior = prior

    def error(self, sigma: float) -> float:
        return self.prior.error(sigma)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.prior!r}, shape={self.shape})"


class Tiled(Wrapper):
    """Images larger than the prior's own, denoised tile by tile and blended.

    The tiles lie evenly; where they overlap, their weights rise from their border as ``sin^2`` over ``overlap`` pixels
    and sum to one. So a denoiser that looks at single pixels is unchanged, and one that looks ``r << overlap`` pixels
    far is nearly so; what a network knows of larger structures ends at its tile.

    Args:
        prior: of images (channel, y, x).
        shape: of the large images, (channel, y, x), each side at least the prior's.
        overlap: of neighbouring tiles in pixels, at least; less than the prior's sides. Default: a quarter of the
            shorter one.
        batch_size: tiles given to the prior at a time, per image; default: one.

    Example:
        >>> from invdiff.priors import GaussianPrior, StationaryCovariance, Tiled
        >>> prior = GaussianPrior(torch.zeros(1, 8, 8), StationaryCovariance(torch.ones(1, 8, 8)))
        >>> large = Tiled(prior, (1, 12, 20), overlap=4)
        >>> x = torch.randn(1, 1, 12, 20)
        >>> torch.allclose(large(x, 1.0), x / 2, atol=1e-5)  # this prior looks at single pixels: no seams
        True
    """

    def __init__(
        self, prior: Prior, shape: Sequence[int], *, overlap: int | None = None, batch_size: int = 1
    ) -> None:  # fmt: skip
        super().__init__(prior, shape)
        if len(prior.shape) != 3 or len(self.shape) != 3 or self.shape[0] != prior.shape[0]:
            raise ValueError(f"Tiled makes (channel, y, x) images from a prior of such, got {prior.shape} to {shape}.")
        sides, tile = self.shape[1:], prior.shape[1:]
        overlap = min(tile) // 4 if overlap is None else int(overlap)
        if not 0 <= overlap < min(tile):
            raise ValueError(f"overlap must lie in 0 .. {min(tile) - 1}, less than the prior's sides, got {overlap}.")
        if any(n < t for n, t in zip(sides, tile, strict=True)):
            raise ValueError(f"Images of {sides} are smaller than the prior's {tile}; use a prior of that size.")
        self.overlap, self.batch_size = overlap, int(batch_size)
        starts = [_starts(n, t, overlap) for n, t in zip(sides, tile, strict=True)]
        self.corners = [(y, x) for y in starts[0] for x in starts[1]]
        profile = [_profile(t, overlap) for t in tile]
        weight = torch.outer(*profile)
        total = torch.zeros(sides, dtype=torch.float64)
        for y, x in self.corners:
            total[y : y + tile[0], x : x + tile[1]] += weight
        self.weights = [
            (weight / total[y : y + tile[0], x : x + tile[1]]).to(prior.device, prior.dtype) for y, x in self.corners
        ]

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        ny, nx = self.prior.shape[1:]
        out = torch.zeros_like(x)
        for first in range(0, len(self.corners), self.batch_size):
            some = range(first, min(first + self.batch_size, len(self.corners)))
            corners = [self.corners[i] for i in some]
            tiles = torch.cat([x[..., a : a + ny, b : b + nx] for a, b in corners])
            clean = self.prior.denoise(tiles, sigma.repeat(len(corners))).split(len(x))
            for i, (a, b), tile in zip(some, corners, clean, strict=True):
                # placed by padding, so that it differentiates without writing into a tensor in use
                around = (b, x.shape[-1] - b - nx, a, x.shape[-2] - a - ny)
                out = out + torch.nn.functional.pad(self.weights[i] * tile, around)
        return out

    def to(self, *, device: torch.device | str) -> Tiled:
        """The same on another device."""
        return Tiled(_moved(self.prior, device), self.shape, overlap=self.overlap, batch_size=self.batch_size)


class Slices(Wrapper):
    """Volumes (channel, z, y, x) as independent slices of a prior of images (channel, y, x).

    The prior says nothing about how slices hang together; that is left to the data or to a term along z.

    Args:
        n_slices: of a volume.
        batch_size: slices given to the prior at a time; default: all of all volumes.

    Example:
        >>> from invdiff.priors import GaussianPrior, Slices, StationaryCovariance
        >>> prior = GaussianPrior(torch.zeros(1, 4, 4), StationaryCovariance(torch.ones(1, 4, 4)))
        >>> volume = Slices(prior, 3)
        >>> x = torch.randn(2, 1, 3, 4, 4)
        >>> volume.shape, torch.allclose(volume(x, 1.0)[:, :, 1], prior(x[:, :, 1], 1.0))
        ((1, 3, 4, 4), True)
    """

    def __init__(self, prior: Prior, n_slices: int, *, batch_size: int | None = None) -> None:
        if len(prior.shape) != 3 or n_slices < 1 or (batch_size is not None and batch_size < 1):
            raise ValueError(
                f"Slices needs a prior of images (channel, y, x) and at least one slice at a time, got {prior.shape}, "
                f"{n_slices=}, {batch_size=}."
            )
        c, ny, nx = prior.shape
        super().__init__(prior, (c, n_slices, ny, nx))
        self.batch_size = batch_size

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        n = self.shape[1]
        slices, levels = x.transpose(1, 2).flatten(0, 1), sigma.repeat_interleave(n)
        size = self.batch_size or len(slices)
        parts = [self.prior.denoise(a, s) for a, s in zip(slices.split(size), levels.split(size), strict=True)]
        return torch.cat(parts).unflatten(0, (-1, n)).transpose(1, 2)

    def to(self, *, device: torch.device | str) -> Slices:
        """The same on another device."""
        return Slices(_moved(self.prior, device), self.shape[1], batch_size=self.batch_size)


class ClippedSigma(Wrapper):
    """Noise levels outside ``[sigma_min, sigma_max]`` never reach the prior.

    Below, the prior is asked at ``sigma_min``. Above, it is asked at ``sigma_max`` about the image scaled down to that
    much noise, ``x sigma_max / sigma``: an image of the noise that it was trained on. For images of variance v
    the answer is then up to ``|x| v / (sigma_max sigma)`` off, little where sigma_max is many times their deviation.

    Args:
        sigma_min, sigma_max: default: the prior's own.

    Example:
        >>> from invdiff.priors import ClippedSigma, GaussianPrior, StationaryCovariance
        >>> prior = GaussianPrior(torch.zeros(1, 2, 2), StationaryCovariance(torch.ones(1, 2, 2)))
        >>> x = torch.randn(3, 1, 2, 2)
        >>> torch.allclose(ClippedSigma(prior, sigma_min=0.1)(x, 0.01), prior(x, 0.1))
        True
    """

    def __init__(self, prior: Prior, *, sigma_min: float | None = None, sigma_max: float | None = None) -> None:
        super().__init__(prior, prior.shape)
        self.lo, self.hi = float(sigma_min or prior.sigma_min), float(sigma_max or prior.sigma_max)
        if not 0 < self.lo < self.hi:
            raise ValueError(f"Need 0 < sigma_min < sigma_max, got {self.lo} and {self.hi}.")

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        level = sigma.clamp(self.lo, self.hi)
        shrink = (level / sigma).clamp(max=1).reshape(-1, *[1] * (x.ndim - 1))
        return self.prior.denoise(x * shrink, level)

    def to(self, *, device: torch.device | str) -> ClippedSigma:
        """The same on another device."""
        return ClippedSigma(_moved(self.prior, device), sigma_min=self.lo, sigma_max=self.hi)


class Calibrated(Wrapper):
    """A prior whose mean error, per noise level and pixel, is subtracted.

    The score of noisy images averages to zero over them at every noise level, that is ``E[D(x0 + s n, s)] = E[x0]``
    (Pang et al., "On calibrating diffusion probabilistic models", NeurIPS 2023, arXiv 2302.10688). A network's does
    not quite; :meth:`fit` measures by how much. Between the levels the offset is linear in log sigma, outside constant.

    Args:
        sigmas: noise levels, ascending.
        offsets: mean of ``D(x0 + s n, s) - x0`` at each, (level, \\*prior.shape).

    Example:
        >>> from invdiff.priors import Calibrated, GaussianPrior, StationaryCovariance
        >>> prior = GaussianPrior(torch.zeros(1, 2, 2), StationaryCovariance(torch.ones(1, 2, 2)))
        >>> better = Calibrated(prior, [0.1, 1.0], torch.full((2, 1, 2, 2), 0.25))  # what it is wrong by
        >>> x = torch.randn(3, 1, 2, 2)
        >>> torch.allclose(better(x, 1.0), prior(x, 1.0) - 0.25)
        True
    """

    def __init__(self, prior: Prior, sigmas: Sequence[float], offsets: Tensor) -> None:
        super().__init__(prior, prior.shape)
        levels = torch.as_tensor(sigmas, dtype=torch.float64)
        if levels.ndim != 1 or bool((levels <= 0).any()) or bool((levels.diff() <= 0).any()):
            raise ValueError(f"sigmas must be positive and ascending, got {sigmas}.")
        if tuple(offsets.shape) != (len(levels), *prior.shape):
            raise ValueError(f"offsets must be {(len(levels), *prior.shape)}, got {tuple(offsets.shape)}.")
        self.sigmas, self.offsets = levels.tolist(), offsets.to(prior.device, prior.dtype)

    @classmethod
    def fit(
        cls, prior: Prior, images: Tensor, sigmas: Sequence[float], *, n_noise: int = 1, seed: int = 0,
        batch_size: int = 16,
    ) -> Calibrated:  # fmt: skip
        """Measure the offsets.

        Args:
            images: clean ones in model units, (n, \\*prior.shape), as the prior was trained on. The offset of a
                pixel is known to about the denoising error over sqrt(n * n_noise).
            n_noise: noise draws per image.
        """
        if not len(images) or tuple(images.shape[1:]) != prior.shape:
            raise ValueError(f"images must be (n, {', '.join(map(str, prior.shape))}), got {tuple(images.shape)}.")
        g = torch.Generator().manual_seed(seed)
        offsets = torch.zeros(len(sigmas), *prior.shape, dtype=torch.float64)
        with torch.no_grad():
            for i, s in enumerate(sigmas):
                for _ in range(n_noise):
                    for x in images.split(batch_size):
                        noise = torch.randn(x.shape, generator=g, dtype=torch.float64).to(prior.device, prior.dtype)
                        x = x.to(prior.device, prior.dtype)
                        offsets[i] += (prior(x + s * noise, s) - x).double().sum(0).cpu()
        return cls(prior, sigmas, offsets / (n_noise * len(images)))

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        levels = torch.tensor(self.sigmas, dtype=torch.float64, device=x.device).log()
        at = sigma.double().log().clamp(levels[0], levels[-1])
        if len(levels) == 1:
            return self.prior.denoise(x, sigma) - self.offsets[0]
        hi = torch.searchsorted(levels, at).clamp(1, len(levels) - 1)
        t = ((at - levels[hi - 1]) / (levels[hi] - levels[hi - 1])).to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        return self.prior.denoise(x, sigma) - torch.lerp(self.offsets[hi - 1], self.offsets[hi], t)

    def save(self, path: str | Path) -> None:
        """Write the offsets, with the digest of the prior they belong to, as one safetensors file, atomically."""
        from invdiff.storage import atomic_path, write_tensors

        content = {"offsets": self.offsets, "sigmas": torch.tensor(self.sigmas, dtype=torch.float64)}
        with atomic_path(Path(path)) as tmp:
            write_tensors(tmp, content, {"format": "invdiff-calibration-1", "prior": self.prior.info.sha256})

    @classmethod
    def load(cls, prior: Prior, path: str | Path) -> Calibrated:
        """What :meth:`save` wrote. Raises ValueError if it belongs to another prior."""
        from invdiff.priors.checkpoints import read_safetensors

        content, metadata = read_safetensors(Path(path))
        if metadata.get("format") != "invdiff-calibration-1":
            raise ValueError(f"{Path(path).name} holds no calibration of a prior (Calibrated.save writes them).")
        if metadata.get("prior") != prior.info.sha256:
            raise ValueError(f"{Path(path).name} was measured with another prior than {prior.info.name!r}.")
        return cls(prior, content["sigmas"].tolist(), content["offsets"])

    def to(self, *, device: torch.device | str) -> Calibrated:
        """The same on another device."""
        return Calibrated(_moved(self.prior, device), self.sigmas, self.offsets)


def _moved(prior: Any, device: torch.device | str) -> Any:
    return prior.to(device=device)


def _starts(n: int, tile: int, overlap: int) -> list[int]:
    """First pixels of the fewest tiles that cover n pixels with at least this overlap."""
    count = 1 if n == tile else math.ceil((n - overlap) / (tile - overlap))
    return [round(i * (n - tile) / max(count - 1, 1)) for i in range(count)]


def _profile(tile: int, overlap: int) -> Tensor:
    i = torch.arange(tile, dtype=torch.float64)
    edge = torch.minimum(i, tile - 1 - i) + 0.5
    return torch.sin(math.pi / 2 * (edge / max(overlap, 1)).clamp(max=1)) ** 2
