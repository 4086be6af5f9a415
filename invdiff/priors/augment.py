"""Random training images from stacks of slices: geometry, then intensity. All draws from one generator."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from invdiff.datasets.slices import Stack


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How a training image is made from a slice.

    Attributes:
        size: pixels per side.
        pixel_size: (smallest, largest) output pixel in mm, log-uniform.
        rotation: largest angle in degrees.
        n_slices: up to this many adjacent slices are averaged, equally likely numbers: thicker slices.
        gain: intensities are multiplied by exp(U(-gain, gain)).
        gamma: and raised to the power exp(U(-gamma, gamma)).
        remap: probability of a random piecewise linear contrast (0 stays 0), for scanners whose contrast varies.
        bias: amplitude of a smooth multiplicative bias field.
        phase: the image becomes complex, its phase a random constant and a smooth random field of this standard
            deviation (rad); two channels, real and imaginary part.
    """

    size: int = 128
    pixel_size: tuple[float, float] = (1.0, 2.0)
    rotation: float = 15.0
    n_slices: int = 1
    gain: float = 0.0
    gamma: float = 0.0
    remap: float = 0.0
    bias: float = 0.0
    phase: float = 0.0

    @property
    def channels(self) -> int:
        """Of a training image."""
        return 2 if self.phase > 0 else 1


class SliceSampler:
    """Draws batches in model units [-1, 1] from stacks whose codes 0 .. 65535 span the value range.

    With a random phase the model unit is the largest magnitude, so that ``value_range`` becomes (-hi, hi).

    Volumes are equally likely, whatever their number of slices. Each image is interpolated from the coarsest
    stored resolution that is finer than the wanted pixel, which is at least 0.8 of the finest stored one.
    """

    def __init__(self, stacks: list[Stack], augmentation: Augmentation, value_range: tuple[float, float]) -> None:
        if augmentation.phase > 0 and value_range[0] != 0:
            raise ValueError(f"A phase needs magnitudes, values from 0 up, got the range {value_range}.")
        self.augmentation, self.stored = augmentation, value_range
        self.value_range = (-value_range[1], value_range[1]) if augmentation.phase > 0 else value_range
        self.volumes = [
            sorted((s for s in stacks if s.volume == name), key=lambda s: s.pixel_size)
            for name in sorted({s.volume for s in stacks})
        ]

    def batch(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, channels, size, size) float32."""
        return torch.stack([self._one(generator) for _ in range(n)])

    def _one(self, generator: torch.Generator) -> Tensor:
        a = self.augmentation
        levels = self.volumes[int(torch.randint(len(self.volumes), (), generator=generator))]
        target = math.exp(_uniform(generator, math.log(a.pixel_size[0]), math.log(a.pixel_size[1])))
        target = max(target, 0.8 * levels[0].pixel_size)
        stack = ([s for s in levels if s.pixel_size <= 1.01 * target] or levels[:1])[-1]
        image = torch.from_numpy(self._slice(stack.codes, generator)) / 65535
        x = self._warp(image, a.size * target / stack.pixel_size, generator)
        if self.stored[0] == 0:  # intensity changes keep zero (air, no signal) in place
            x = self._intensity(x, generator)
        x = x.clamp(0, 1)
        if a.phase > 0:
            coarse = a.phase * torch.randn((1, 1, 4, 4), generator=generator)
            phase = F.interpolate(coarse, size=x.shape[-2:], mode="bicubic", align_corners=True)[0]
            phase = phase + _uniform(generator, -math.pi, math.pi)
            return torch.cat([x * phase.cos(), x * phase.sin()])
        return 2 * x - 1

    def _slice(self, codes: np.ndarray, generator: torch.Generator) -> np.ndarray:
        n = 1
        if self.augmentation.n_slices > 1:
            n = min(len(codes), 1 + int(torch.randint(self.augmentation.n_slices, (), generator=generator)))
        first = int(torch.randint(len(codes) - n + 1, (), generator=generator))
        return codes[first : first + n].mean(0, dtype=np.float32)

    def _warp(self, image: Tensor, field: float, generator: torch.Generator) -> Tensor:
        """Rotate, flip, zoom to a field of view of ``field`` input pixels, shift within the slice.

        The input's pixels may be half as wide as the output's: each output pixel is the mean of four points, without
        which fine texture would fold into training images and not be there in images that are averaged over pixels.
        """
        a, (ny, nx) = self.augmentation, image.shape
        theta = math.radians(_uniform(generator, -a.rotation, a.rotation))
        flip = 1.0 if _uniform(generator, 0, 1) < 0.5 else -1.0
        cx = _uniform(generator, -1, 1) * (max(0.0, nx - field) / nx + 0.05)
        cy = _uniform(generator, -1, 1) * (max(0.0, ny - field) / ny + 0.05)
        c, s = math.cos(theta) * field, math.sin(theta) * field
        matrix = torch.tensor([[flip * c / nx, -s / nx, cx], [flip * s / ny, c / ny, cy]])
        grid = F.affine_grid(matrix[None], [1, 1, 2 * a.size, 2 * a.size], align_corners=False)
        return F.avg_pool2d(F.grid_sample(image[None, None], grid, align_corners=False, padding_mode="zeros")[0], 2)

    def _intensity(self, x: Tensor, generator: torch.Generator) -> Tensor:
        a = self.augmentation
        if a.remap > 0 and _uniform(generator, 0, 1) < a.remap:
            knots = torch.cat([torch.zeros(1), 0.1 + 0.9 * torch.rand(4, generator=generator)])
            t = x * (len(knots) - 1)
            i = t.floor().long().clamp(0, len(knots) - 2)
            x = knots[i] + (t - i) * (knots[i + 1] - knots[i])
        if a.gamma > 0:
            x = x.clamp(min=0) ** math.exp(_uniform(generator, -a.gamma, a.gamma))
        if a.gain > 0:
            x = x * math.exp(_uniform(generator, -a.gain, a.gain))
        if a.bias > 0:
            coarse = a.bias * torch.randn((1, 1, 3, 3), generator=generator)
            x = x * F.interpolate(coarse, size=x.shape[-2:], mode="bicubic", align_corners=True)[0].exp()
        return x


def _uniform(generator: torch.Generator, lo: float, hi: float) -> float:
    return lo + (hi - lo) * float(torch.rand((), generator=generator))
