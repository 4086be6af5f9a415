"""The U-Nets of EDM checkpoints (also those of InverseBench, and in another key order of score_sde).

Karras, Aittala, Aila, Laine, "Elucidating the design space of diffusion-based generative models", NeurIPS 2022,
arXiv 2206.00364: ``SongUNet`` is DDPM++ or NCSN++ (Song et al. 2021, arXiv 2011.13456), ``DhariwalUNet`` is ADM
(arXiv 2105.05233). Written from the descriptions; module names are those of the published state dicts, so that
weights load key for key. Module names hold the resolution; the networks are convolutional all the same.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from invdiff.priors.adm import shape_of


class _EDMUNet(nn.Module):
    """Encoder, decoder and the walk through both; the two subclasses add noise embedding and head."""

    def _build(
        self, block: Callable[..., _Block], image_size: int, in_channels: int, first: int, widths: Sequence[int],
        n_blocks: int, attention: Sequence[int], *, attend_all: bool, residual_input: Sequence[float] | None = None,
    ) -> None:  # fmt: skip
        sizes = [image_size >> level for level in range(len(widths))]
        names = [f"{n}x{n}" for n in sizes]
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        self.enc[f"{names[0]}_conv"] = _Conv(in_channels, first, 3)
        width, skips, aux = first, [first], in_channels
        for level, (name, w) in enumerate(zip(names, widths, strict=True)):
            if level > 0:
                self.enc[f"{name}_down"] = block(width, width, down=True)
                skips.append(width)
                if residual_input is not None:
                    self.enc[f"{name}_aux_residual"] = _Conv(aux, width, 3, down=True, fir=residual_input, fused=True)
                    aux = width
            for i in range(n_blocks):
                self.enc[f"{name}_block{i}"] = block(width, w, attention=sizes[level] in attention)
                width = w
                skips.append(width)
        for level, (name, w) in reversed(list(enumerate(zip(names, widths, strict=True)))):
            if level == len(widths) - 1:
                self.dec[f"{name}_in0"] = block(width, width, attention=True)
                self.dec[f"{name}_in1"] = block(width, width)
            else:
                self.dec[f"{name}_up"] = block(width, width, up=True)
            for i in range(n_blocks + 1):
                attend = sizes[level] in attention and (attend_all or i == n_blocks)
                self.dec[f"{name}_block{i}"] = block(width + skips.pop(), w, attention=attend)
                width = w

    def _walk(self, x: Tensor, e: Tensor) -> Tensor:
        skips: list[Tensor] = []
        aux = x
        for name, module in self.enc.items():
            if name.endswith("aux_residual"):
                x = aux = skips[-1] = (x + module(aux)) * 0.5**0.5
            else:
                x = module(x, e) if isinstance(module, _Block) else module(x)
                skips.append(x)
        for name, module in self.dec.items():
            if "_block" in name:
                x = torch.cat([x, skips.pop()], 1)
            if isinstance(module, _Block):
                x = module(x, e)
        return x


class SongUNet(_EDMUNet):
    """NCSN++ (Fourier embedding, FIR filter of four taps, residual input) or DDPM++ (positional, two taps, neither).

    Args:
        image_size: resolution of training; it names the modules and places the attention.
        in_channels, out_channels: of the images.
        channels: width of the first convolution; ``widths``: per level, from fine to coarse.
        n_blocks: residual blocks per level on the way down; one more on the way up.
        attention: resolutions with self-attention, one head.
        ncsn: the first or the second of the two networks.
        n_augment: length of the training's augmentation label, unused; 0: none.
    """

    def __init__(
        self,
        image_size: int,
        in_channels: int = 3,
        out_channels: int = 3,
        channels: int = 128,
        widths: Sequence[int] = (128, 256, 256, 256),
        n_blocks: int = 4,
        attention: Sequence[int] = (16,),
        ncsn: bool = True,
        n_augment: int = 0,
    ) -> None:
        super().__init__()
        n_noise, n_embed = (2 if ncsn else 1) * channels, 4 * channels
        self.map_noise = _Fourier(n_noise) if ncsn else _Positional(n_noise, endpoint=True)
        self.map_augment = nn.Linear(n_augment, n_noise, bias=False) if n_augment else None
        self.map_layer0, self.map_layer1 = nn.Linear(n_noise, n_embed), nn.Linear(n_embed, n_embed)
        fir = (1.0, 3.0, 3.0, 1.0) if ncsn else (1.0, 1.0)
        block = partial(
            _Block, n_embed=n_embed, adaptive=False, project=True, heads=1, eps=1e-6, gain=0.5**0.5, fir=fir
        )
        self._build(
            block, image_size, in_channels, channels, widths, n_blocks, attention, attend_all=False,
            residual_input=fir if ncsn else None,
        )  # fmt: skip
        name = f"{image_size}x{image_size}"
        self.dec[f"{name}_aux_norm"] = _norm(widths[0], 1e-6)
        self.dec[f"{name}_aux_conv"] = _Conv(widths[0], out_channels, 3)
        self._head = (f"{name}_aux_norm", f"{name}_aux_conv")

    def forward(self, x: Tensor, noise_label: Tensor) -> Tensor:
        """``x`` (batch, in_channels, y, x), ``noise_label`` (batch,)."""
        cos, sin = self.map_noise(noise_label.float()).chunk(2, 1)
        e = torch.cat([sin, cos], 1).to(x.dtype)
        e = F.silu(self.map_layer1(F.silu(self.map_layer0(e))))
        x = self._walk(x, e)
        norm, conv = (self.dec[k] for k in self._head)
        return conv(F.silu(norm(x)))


class DhariwalUNet(_EDMUNet):
    """ADM as EDM has it. Arguments as of :class:`SongUNet`; attention has 64 channels per head."""

    def __init__(
        self,
        image_size: int,
        in_channels: int = 3,
        out_channels: int = 3,
        channels: int = 192,
        widths: Sequence[int] = (192, 384, 576, 768),
        n_blocks: int = 3,
        attention: Sequence[int] = (32, 16, 8),
        n_augment: int = 0,
    ) -> None:
        super().__init__()
        n_embed = 4 * channels
        self.map_noise = _Positional(channels, endpoint=False)
        self.map_augment = nn.Linear(n_augment, channels, bias=False) if n_augment else None
        self.map_layer0, self.map_layer1 = nn.Linear(channels, n_embed), nn.Linear(n_embed, n_embed)
        block = partial(
            _Block, n_embed=n_embed, adaptive=True, project=False, heads=None, eps=1e-5, gain=1.0, fir=(1.0, 1.0)
        )
        self._build(block, image_size, in_channels, widths[0], widths, n_blocks, attention, attend_all=True)
        self.out_norm, self.out_conv = _norm(widths[0], 1e-5), _Conv(widths[0], out_channels, 3)

    def forward(self, x: Tensor, noise_label: Tensor) -> Tensor:
        """``x`` (batch, in_channels, y, x), ``noise_label`` (batch,)."""
        e = self.map_noise(noise_label.float()).to(x.dtype)
        e = F.silu(self.map_layer1(F.silu(self.map_layer0(e))))
        return self.out_conv(F.silu(self.out_norm(self._walk(x, e))))


class _Block(nn.Module):
    def __init__(
        self, n_in: int, n_out: int, *, n_embed: int, adaptive: bool, project: bool, heads: int | None, eps: float,
        gain: float, fir: Sequence[float], attention: bool = False, up: bool = False, down: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.adaptive, self.gain = adaptive, gain
        self.norm0, self.conv0 = _norm(n_in, eps), _Conv(n_in, n_out, 3, up=up, down=down, fir=fir)
        self.affine = nn.Linear(n_embed, (2 if adaptive else 1) * n_out)
        self.norm1, self.conv1 = _norm(n_out, eps), _Conv(n_out, n_out, 3)
        self.skip = None
        if n_in != n_out or up or down:
            self.skip = _Conv(n_in, n_out, 1 if project or n_in != n_out else 0, up=up, down=down, fir=fir)
        self.heads = (heads or n_out // 64) if attention else 0
        if attention:
            self.norm2, self.qkv, self.proj = _norm(n_out, eps), _Conv(n_out, 3 * n_out, 1), _Conv(n_out, n_out, 1)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = self.conv0(F.silu(self.norm0(x)))
        e = self.affine(e)[:, :, None, None]
        if self.adaptive:
            scale, shift = e.chunk(2, 1)
            h = torch.addcmul(shift, self.norm1(h), 1 + scale)
        else:
            h = self.norm1(h + e)
        h = self.conv1(F.silu(h))
        x = self.gain * (h + (x if self.skip is None else self.skip(x)))
        if self.heads:
            b, c, *size = x.shape
            # channels of qkv are ordered (head, channel, q k v)
            h = self.qkv(self.norm2(x)).reshape(b, self.heads, c // self.heads, 3, -1).transpose(2, 4)
            q, k, v = h.unbind(3)
            h = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(b, c, *size)
            x = self.gain * (x + self.proj(h))
        return x


class _Conv(nn.Module):
    """A convolution of ``kernel`` x ``kernel`` (0: none) after doubling or halving through a separable FIR filter.

    ``fused``: the convolution comes first and does not pad for the filter's sake; this differs at the border only.
    """

    resample_filter: Tensor | None

    def __init__(
        self, n_in: int, n_out: int, kernel: int, *, up: bool = False, down: bool = False,
        fir: Sequence[float] = (1.0, 1.0), fused: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.up, self.down, self.fused, self.kernel = up, down, fused, kernel
        if kernel:
            bound = 1 / math.sqrt(n_in * kernel**2)
            self.weight = nn.Parameter(torch.empty(n_out, n_in, kernel, kernel).uniform_(-bound, bound))
            self.bias = nn.Parameter(torch.zeros(n_out))
        self.register_buffer("resample_filter", resampling_filter(fir) if up or down else None)

    def forward(self, x: Tensor) -> Tensor:
        if self.resample_filter is None:
            return F.conv2d(x, self.weight, self.bias, padding=self.kernel // 2)
        reach = (self.resample_filter.shape[-1] - 1) // 2
        if self.fused:
            return self._filter(F.conv2d(x, self.weight, self.bias, padding=self.kernel // 2 + reach), 0)
        x = self._filter(x, reach)
        return F.conv2d(x, self.weight, self.bias, padding=self.kernel // 2) if self.kernel else x

    def _filter(self, x: Tensor, padding: int) -> Tensor:
        assert self.resample_filter is not None
        n = x.shape[1]
        f = self.resample_filter.expand(n, -1, -1, -1)
        if self.up:
            return F.conv_transpose2d(x, 4 * f, stride=2, padding=padding, groups=n)
        return F.conv2d(x, f, stride=2, padding=padding, groups=n)


def resampling_filter(fir: Sequence[float]) -> Tensor:
    """The separable filter of these taps, of sum 1, as (1, 1, n, n)."""
    f = torch.tensor(fir, device="cpu")
    return torch.outer(f, f)[None, None] / f.sum() ** 2


class _Positional(nn.Module):
    """Cosines, then sines, of the label at ``10000^(-i/n)``; ``endpoint``: the lowest frequency is 1/10000."""

    frequencies: Tensor

    def __init__(self, n: int, *, endpoint: bool) -> None:
        super().__init__()
        k = torch.arange(n // 2, dtype=torch.float32, device="cpu") / (n // 2 - endpoint)
        self.register_buffer("frequencies", (1 / 10000) ** k, persistent=False)

    def forward(self, label: Tensor) -> Tensor:
        phase = label[:, None] * self.frequencies
        return torch.cat([phase.cos(), phase.sin()], 1)


class _Fourier(nn.Module):
    """Cosines, then sines, of ``2 pi label freqs``, the frequencies being part of the checkpoint."""

    freqs: Tensor

    def __init__(self, n: int) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.full((n // 2,), 16.0))

    def forward(self, label: Tensor) -> Tensor:
        phase = label[:, None] * (2 * math.pi * self.freqs)
        return torch.cat([phase.cos(), phase.sin()], 1)


def _norm(n: int, eps: float) -> nn.GroupNorm:
    return nn.GroupNorm(min(32, n // 4), n, eps=eps)


def edm_arguments(weights: dict[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """Name and constructor arguments of the network that a state dict's keys and shapes imply.

    Raises:
        ValueError: class-conditional, a variant that is not written here, or another network.
    """
    if "map_label.weight" in weights:
        n = shape_of(weights, "map_label.weight")[1]
        raise ValueError(f"The network is conditional on {n} classes; only unconditional networks are supported.")
    if other := [k for k in weights if "_aux_skip." in k or "_aux_up." in k]:
        raise ValueError(f"The network has skip inputs or outputs ({other[0]!r}); that variant is not supported.")
    sizes = sorted({int(m[1]) for k in weights if (m := re.match(r"enc\.(\d+)x\1_", k))}, reverse=True)
    if not sizes or f"enc.{sizes[0]}x{sizes[0]}_conv.weight" not in weights or "map_layer0.weight" not in weights:
        raise ValueError("Not a U-Net of EDM: it has no 'enc.<n>x<n>_conv.weight' and 'map_layer0.weight'.")
    names = [f"{n}x{n}" for n in sizes]
    dhariwal, ncsn = "out_conv.weight" in weights, "map_noise.freqs" in weights
    head = "out_conv.weight" if dhariwal else f"dec.{names[0]}_aux_conv.weight"
    blocks = [f"enc.{name}_block0.conv0.weight" for name in names]
    if missing := [k for k in (*blocks, head) if k not in weights]:
        raise ValueError(f"Not a U-Net of EDM: it has no {missing[0]!r}.")
    n_noise = shape_of(weights, "map_layer0.weight")[1]
    arguments = {
        "image_size": sizes[0],
        "in_channels": shape_of(weights, f"enc.{names[0]}_conv.weight")[1],
        "out_channels": shape_of(weights, head)[0],
        "channels": n_noise // 2 if ncsn else n_noise,
        "widths": [shape_of(weights, k)[0] for k in blocks],
        "n_blocks": len({m[0] for k in weights if (m := re.match(rf"enc\.{names[0]}_block\d+", k))}),
        "attention": [n for n in sizes if f"enc.{n}x{n}_block0.qkv.weight" in weights],
        "n_augment": shape_of(weights, "map_augment.weight")[1] if "map_augment.weight" in weights else 0,
    }
    return ("DhariwalUNet", arguments) if dhariwal else ("SongUNet", arguments | {"ncsn": ncsn})
