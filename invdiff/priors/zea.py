"""The U-Net of zea's diffusion models, after the Keras example on denoising diffusion implicit models.

zea (ultrasound): github.com/tue-bmd/zea; the example: Beres, "Denoising diffusion implicit models", keras.io 2022.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ZeaUNet(nn.Module):
    """Residual U-Net whose normalisation is a fixed mean and variance, and which sees the noise as added channels.

    Args:
        channels: of the images.
        widths: per level, from fine to coarse.
        n_blocks: residual blocks per level, on the way down and on the way up.
        n_embed: channels of the noise's embedding, sines then cosines.
        frequencies: of the embedding, the lowest and the highest.
    """

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        n_blocks: int,
        n_embed: int,
        frequencies: Sequence[float] = (1.0, 1000.0),
    ) -> None:
        super().__init__()
        self.n_levels, self.n_blocks = len(widths), n_blocks
        lo, hi = (math.log(f) for f in frequencies)
        self.frequencies = (2 * math.pi * torch.linspace(lo, hi, n_embed // 2, device="cpu").exp()).tolist()
        self.stem = nn.Conv2d(channels, widths[0], 1)
        self.blocks = nn.ModuleList()
        width, skips = widths[0] + n_embed, []
        for w in widths[:-1]:
            for _ in range(n_blocks):
                self.blocks.append(_Block(width, w))
                width = w
                skips.append(w)
        for _ in range(n_blocks):
            self.blocks.append(_Block(width, widths[-1]))
            width = widths[-1]
        for w in reversed(widths[:-1]):
            for _ in range(n_blocks):
                self.blocks.append(_Block(width + skips.pop(), w))
                width = w
        self.head = nn.Conv2d(width, channels, 1)

    def forward(self, x: Tensor, variance: Tensor) -> Tensor:
        """``x`` (batch, channels, y, x), ``variance`` (batch,): of the noise in x."""
        phase = variance[:, None] * torch.tensor(self.frequencies, dtype=variance.dtype, device=x.device)
        e = torch.cat([phase.sin(), phase.cos()], 1).to(x.dtype)
        h = torch.cat([self.stem(x), e[:, :, None, None].expand(-1, -1, *x.shape[2:])], 1)
        blocks, skips = iter(self.blocks), []
        for _ in range(self.n_levels - 1):
            for _ in range(self.n_blocks):
                h = next(blocks)(h)
                skips.append(h)
            h = F.avg_pool2d(h, 2)
        for _ in range(self.n_blocks):
            h = next(blocks)(h)
        for _ in range(self.n_levels - 1):
            h = F.interpolate(h, scale_factor=2.0, mode="bilinear")
            for _ in range(self.n_blocks):
                h = next(blocks)(torch.cat([h, skips.pop()], 1))
        return self.head(h)


class _Block(nn.Module):
    mean: Tensor
    variance: Tensor

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_in))
        self.register_buffer("variance", torch.ones(n_in))
        self.conv1, self.conv2 = nn.Conv2d(n_in, n_out, 3, padding=1), nn.Conv2d(n_out, n_out, 3, padding=1)
        self.shortcut = nn.Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = (x - self.mean[:, None, None]) * (self.variance[:, None, None] + 1e-3).rsqrt()
        return self.shortcut(x) + self.conv2(F.silu(self.conv1(h)))
