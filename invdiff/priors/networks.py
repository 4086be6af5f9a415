"""A small convolutional U-Net that denoises 128 x 128 images on a laptop CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UNet(nn.Module):
    """Residual U-Net without attention, working on pixel-unshuffled images.

    Fully convolutional: any height and width that ``unshuffle * 2^(levels - 1)`` divides.

    Args:
        channels: image channels, in and out.
        widths: feature channels per level, from fine to coarse.
        n_blocks: residual blocks per level, on the way down and on the way up.
        unshuffle: space-to-depth factor at the input (1: none).
    """

    def __init__(
        self, channels: int = 1, widths: Sequence[int] = (32, 64, 128), n_blocks: int = 1, unshuffle: int = 2
    ) -> None:
        super().__init__()
        self.unshuffle = unshuffle
        n_embed = 4 * widths[0]
        self.embed = nn.Sequential(
            NoiseEmbedding(widths[0]),
            nn.Linear(widths[0], n_embed),
            nn.SiLU(),
            nn.Linear(n_embed, n_embed),
            nn.SiLU(),
        )
        self.stem = nn.Conv2d(channels * unshuffle**2, widths[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        width, skips = widths[0], [widths[0]]
        for level, w in enumerate(widths):
            for _ in range(n_blocks):
                self.down.append(Block(width, w, n_embed))
                width = w
                skips.append(width)
            if level < len(widths) - 1:
                self.down.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                skips.append(width)
        self.middle = nn.ModuleList([Block(width, width, n_embed), Block(width, width, n_embed)])
        for level, w in reversed(list(enumerate(widths))):
            for _ in range(n_blocks + 1):
                self.up.append(Block(width + skips.pop(), w, n_embed))
                width = w
            if level > 0:
                self.up.append(Upsample(width))
        last = nn.Conv2d(width, channels * unshuffle**2, 3, padding=1)
        nn.init.zeros_(last.weight)  # the untrained denoiser is c_skip x
        self.head = nn.Sequential(_norm(width), nn.SiLU(), last)

    def forward(self, x: Tensor, noise_label: Tensor) -> Tensor:
        """``x`` (batch, channels, y, x), ``noise_label`` (batch,): ln(sigma)/4 or a step index."""
        e = self.embed(noise_label)
        h = self.stem(F.pixel_unshuffle(x, self.unshuffle))
        skips = [h]
        for module in self.down:
            h = module(h, e) if isinstance(module, Block) else module(h)
            skips.append(h)
        for module in self.middle:
            h = module(h, e)
        for module in self.up:
            h = module(torch.cat([h, skips.pop()], 1), e) if isinstance(module, Block) else module(h)
        return F.pixel_shuffle(self.head(h), self.unshuffle)


class Block(nn.Module):
    """norm - SiLU - conv - norm with scale and shift from the noise level - SiLU - conv, plus a shortcut."""

    def __init__(self, n_in: int, n_out: int, n_embed: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(n_in), nn.Conv2d(n_in, n_out, 3, padding=1)
        self.affine = nn.Linear(n_embed, 2 * n_out)
        self.norm2, self.conv2 = _norm(n_out), nn.Conv2d(n_out, n_out, 3, padding=1)
        self.shortcut = nn.Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.affine(e)[:, :, None, None].chunk(2, 1)
        h = self.conv2(F.silu(torch.addcmul(shift, self.norm2(h), 1 + scale)))
        return self.shortcut(x) + h


class Upsample(nn.Module):
    """Nearest-neighbour doubling and a convolution."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n, n, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class NoiseEmbedding(nn.Module):
    """Sines and cosines of the noise label at geometric frequencies (periods 0.3 to 30 in label units)."""

    frequencies: Tensor

    def __init__(self, n: int) -> None:
        super().__init__()
        f = 2 * math.pi * torch.logspace(-1.5, 0.5, n // 2, device="cpu")
        self.register_buffer("frequencies", f, persistent=False)

    def forward(self, label: Tensor) -> Tensor:
        phase = label[:, None] * self.frequencies.to(label)
        return torch.cat([phase.cos(), phase.sin()], 1)


def _norm(n: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(8, n // 4), n)
