"""A small convolutional autoencoder: 1 x 128 x 128 images as 4 x 32 x 32 latents, on a laptop CPU.

Encoder and decoder are a fixed-size block transform (learned, started at the lowest frequencies of each block)
plus a residual network that starts at zero. So the untrained autoencoder is an orthonormal projection, and
training refines it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Autoencoder(nn.Module):
    """Without attention, normalisation layers or randomness; fully convolutional.

    Latents are shifted and scaled per channel to mean 0 and standard deviation 0.5 by :meth:`calibrate`.

    Args:
        channels: image channels.
        latent_channels: channels of the latent, at most ``channels * factor**2``.
        widths: feature channels from fine to coarse; ``factor = 2**len(widths)`` is the reduction per side.
        n_blocks: residual blocks per width in the decoder; the encoder has one.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self, channels: int = 1, latent_channels: int = 4, widths: Sequence[int] = (32, 96), n_blocks: int = 2
    ) -> None:
        super().__init__()
        self.arguments = {
            "channels": channels, "latent_channels": latent_channels, "widths": tuple(widths), "n_blocks": n_blocks
        }  # fmt: skip
        self.channels, self.latent_channels, self.factor = channels, latent_channels, 2 ** len(widths)
        if not 1 <= len(widths) <= 6:
            raise ValueError(f"widths must be 1 .. 6 numbers, one for each halving of the image, got {len(widths)}.")
        if not 1 <= latent_channels <= channels * self.factor**2:
            raise ValueError(
                f"latent_channels must lie in 1 .. {channels * self.factor**2} (channels times the area of a block), "
                f"got {latent_channels}."
            )
        self.analysis = nn.Conv2d(channels * self.factor**2, latent_channels, 1, bias=False)
        self.synthesis = nn.Conv2d(latent_channels, channels * self.factor**2, 1, bias=False)
        basis = block_basis(channels, self.factor)[:latent_channels]
        with torch.no_grad():
            self.analysis.weight.copy_(basis[:, :, None, None])
            self.synthesis.weight.copy_(basis.T[:, :, None, None])
        down: list[nn.Module] = [nn.PixelUnshuffle(2), _conv(4 * channels, widths[0]), ResBlock(widths[0])]
        for fine, coarse in zip(widths[:-1], widths[1:], strict=True):
            down += [_conv(fine, coarse, stride=2), ResBlock(coarse)]
        self.encoder = nn.Sequential(*down, nn.SiLU(), _zero(_conv(widths[-1], latent_channels)))
        up: list[nn.Module] = [_conv(latent_channels, widths[-1])]
        for coarse, fine in zip(widths[:0:-1], widths[-2::-1], strict=True):
            up += [*(ResBlock(coarse) for _ in range(n_blocks)), _conv(coarse, 4 * fine), nn.PixelShuffle(2)]
        up += [*(ResBlock(widths[0]) for _ in range(n_blocks)), nn.SiLU(), _zero(_conv(widths[0], 4 * channels))]
        self.decoder = nn.Sequential(*up, nn.PixelShuffle(2))
        self.register_buffer("shift", torch.zeros(latent_channels, 1, 1))
        self.register_buffer("scale", torch.ones(latent_channels, 1, 1))

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Of an image of ``shape`` (channels, y, x). Raises ValueError if it has no such latent."""
        c, ny, nx = shape
        if c != self.channels or ny % self.factor or nx % self.factor:
            raise ValueError(
                f"The autoencoder takes images ({self.channels}, y, x) with sides divisible by {self.factor}, "
                f"got {tuple(shape)}."
            )
        return self.latent_channels, ny // self.factor, nx // self.factor

    def encode(self, x: Tensor) -> Tensor:
        """Images (batch, channels, y, x) in model units to latents of standard deviation about 0.5."""
        z = self.analysis(F.pixel_unshuffle(x, self.factor)) + self.encoder(x)
        return (z - self.shift) / self.scale

    def decode(self, z: Tensor) -> Tensor:
        """Latents to images in model units."""
        z = z * self.scale + self.shift
        return F.pixel_shuffle(self.synthesis(z), self.factor) + self.decoder(z)

    def forward(self, x: Tensor) -> Tensor:
        """``decode(encode(x))``."""
        return self.decode(self.encode(x))

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Tensor], std: float = 0.5) -> None:
        """Set ``shift`` and ``scale`` so that the latents of ``batches`` have mean 0 and this standard deviation.

        ``decode(encode(x))`` stays as it was.
        """
        z = torch.cat([self.encode(x).transpose(0, 1).flatten(1) for x in batches], 1)
        mean, deviation = (m[:, None, None] for m in (z.mean(1), z.std(1).clamp(min=1e-6)))
        self.shift.add_(self.scale * mean)
        self.scale.mul_(deviation / std)


class ResBlock(nn.Module):
    """``x + conv(SiLU(conv(SiLU(x))))``, the second convolution starting at zero."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = _conv(n, n), _zero(_conv(n, n))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


def autoencoder_loss(model: Autoencoder, x: Tensor, noise: Tensor, level: float, l1: float) -> Tensor:
    """``MSE + l1 * mean absolute error`` of ``decode(encode(x) + level * s * noise)``.

    ``s`` is the latents' standard deviation per channel in this batch over 0.5, so scaling the latents up does
    not escape the noise.
    """
    z = model.encode(x)
    s = 2 * z.std((0, 2, 3), keepdim=True)
    error = model.decode(z + level * s * noise) - x
    return error.square().mean() + l1 * error.abs().mean()


def block_basis(channels: int, factor: int) -> Tensor:
    """Orthonormal cosines on ``factor x factor`` blocks, lowest frequencies first, as rows
    (channels * factor**2, channels * factor**2), columns ordered as ``pixel_unshuffle`` does."""
    k = torch.arange(factor, dtype=torch.float64, device="cpu")
    cosines = torch.cos(math.pi / factor * (k + 0.5) * k[:, None]) * (2 / factor) ** 0.5
    cosines[0] /= 2**0.5
    order = sorted((i * i + j * j, i, j) for i in range(factor) for j in range(factor))
    block = torch.stack([torch.outer(cosines[i], cosines[j]).flatten() for _, i, j in order])
    rows = torch.zeros(factor**2, channels, channels, factor**2, dtype=torch.float64, device="cpu")
    for c in range(channels):
        rows[:, c, c] = block
    return rows.reshape(channels * factor**2, channels * factor**2).float()


def _conv(n_in: int, n_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1)


def _zero(conv: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv
