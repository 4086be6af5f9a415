"""The U-Net of guided-diffusion checkpoints and, with other options, of unconditional latent diffusion.

Dhariwal and Nichol, "Diffusion models beat GANs on image synthesis", NeurIPS 2021, arXiv 2105.05233 (ADM);
Rombach et al., "High-resolution image synthesis with latent diffusion models", CVPR 2022, arXiv 2112.10752. Written
from their descriptions; module names are those of the published state dicts, so that weights load key for key.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from invdiff.priors.networks import Upsample


class ADMUNet(nn.Module):
    """Residual U-Net with self-attention, for images whose sides ``2^(levels - 1)`` divides.

    Args:
        in_channels, out_channels: of the images; twice as many out where the variance is learned too.
        model_channels: width that ``channel_mult`` multiplies, per level from fine to coarse.
        n_blocks: residual blocks per level on the way down; one more on the way up.
        attention: levels (0 is the finest) with self-attention.
        head_channels: per attention head; None: one head.
        scale_shift: the noise level scales and shifts the second normalisation (ADM) or only adds to it (LDM).
        residual_resampling: resolution changes inside residual blocks (ADM) or by a convolution (LDM).
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 6,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 1, 2, 2, 4, 4),
        n_blocks: int = 1,
        attention: Sequence[int] = (4,),
        head_channels: int | None = 64,
        scale_shift: bool = True,
        residual_resampling: bool = True,
    ) -> None:
        super().__init__()
        n_embed = 4 * model_channels
        self.model_channels = model_channels
        self.time_embed = nn.Sequential(nn.Linear(model_channels, n_embed), nn.SiLU(), nn.Linear(n_embed, n_embed))

        def block(n_in: int, n_out: int, resample: nn.Module | None = None) -> nn.Module:
            return _Block(n_in, n_out, n_embed, scale_shift, resample)

        def stage(n_in: int, n_out: int, level: int) -> list[nn.Module]:
            attend = [_Attention(n_out, head_channels)] if level in attention else []
            return [block(n_in, n_out), *attend]

        widths = [m * model_channels for m in channel_mult]
        last = len(widths) - 1
        width = widths[0]
        self.input_blocks = nn.ModuleList([_Stage(nn.Conv2d(in_channels, width, 3, padding=1))])
        skips = [width]
        for level, w in enumerate(widths):
            for _ in range(n_blocks):
                self.input_blocks.append(_Stage(*stage(width, w, level)))
                width = w
                skips.append(width)
            if level < last:
                down = block(width, width, nn.AvgPool2d(2)) if residual_resampling else _Downsample(width)
                self.input_blocks.append(_Stage(down))
                skips.append(width)
        self.middle_block = _Stage(block(width, width), _Attention(width, head_channels), block(width, width))
        self.output_blocks = nn.ModuleList()
        for level, w in reversed(list(enumerate(widths))):
            for i in range(n_blocks + 1):
                modules = stage(width + skips.pop(), w, level)
                width = w
                if level > 0 and i == n_blocks:
                    doubling = nn.UpsamplingNearest2d(scale_factor=2)
                    modules.append(block(width, width, doubling) if residual_resampling else Upsample(width))
                self.output_blocks.append(_Stage(*modules))
        self.out = nn.Sequential(nn.GroupNorm(32, width), nn.SiLU(), nn.Conv2d(width, out_channels, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """``x`` (batch, in_channels, y, x), ``t`` (batch,): the step of the schedule, fractions allowed."""
        half = self.model_channels // 2
        f = torch.exp(-math.log(10000) / half * torch.arange(half, device=x.device, dtype=torch.float32))
        phase = t[:, None].float() * f
        e = self.time_embed(torch.cat([phase.cos(), phase.sin()], 1).to(x.dtype))
        h, skips = x, []
        for stage in self.input_blocks:
            h = stage(h, e)
            skips.append(h)
        h = self.middle_block(h, e)
        for stage in self.output_blocks:
            h = stage(torch.cat([h, skips.pop()], 1), e)
        return self.out(h)


class _Stage(nn.ModuleList):
    def __init__(self, *modules: nn.Module) -> None:
        super().__init__(modules)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        for module in self:
            x = module(x, e) if isinstance(module, _Block) else module(x)
        return x


class _Block(nn.Module):
    def __init__(self, n_in: int, n_out: int, n_embed: int, scale_shift: bool, resample: nn.Module | None) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(32, n_in), nn.SiLU(), nn.Conv2d(n_in, n_out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(n_embed, (2 if scale_shift else 1) * n_out))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, n_out), nn.SiLU(), nn.Identity(), nn.Conv2d(n_out, n_out, 3, padding=1)
        )  # the identity stands where training had dropout
        self.skip_connection = nn.Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        self.scale_shift, self.resample = scale_shift, resample or nn.Identity()

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        norm, act, conv = self.in_layers
        h = conv(self.resample(act(norm(x))))
        x = self.skip_connection(self.resample(x))
        e = self.emb_layers(e)[:, :, None, None]
        norm, act, _, conv = self.out_layers
        if self.scale_shift:
            scale, shift = e.chunk(2, 1)
            return x + conv(act(norm(h) * (1 + scale) + shift))
        return x + conv(act(norm(h + e)))


class _Attention(nn.Module):
    """Channels of ``qkv`` are ordered (head, q k v, channel)."""

    def __init__(self, n: int, head_channels: int | None) -> None:
        super().__init__()
        if head_channels is not None and n % head_channels:
            raise ValueError(f"head_channels must divide the {n} channels of an attention layer, got {head_channels}.")
        self.heads = 1 if head_channels is None else n // head_channels
        self.norm, self.qkv, self.proj_out = nn.GroupNorm(32, n), nn.Conv1d(n, 3 * n, 1), nn.Conv1d(n, n, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, *size = x.shape
        h = self.qkv(self.norm(x).reshape(b, c, -1))
        q, k, v = h.reshape(b, self.heads, 3, c // self.heads, -1).transpose(-1, -2).unbind(2)
        h = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(b, c, -1)
        return x + self.proj_out(h).reshape(b, c, *size)


class _Downsample(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(n, n, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


def shape_of(weights: dict[str, Tensor], name: str) -> torch.Size:
    """Of a layer's weights, two dimensions or more. Raises ValueError where they are missing or something else."""
    if name not in weights:
        raise ValueError(f"Not a known network: it has no {name!r}.")
    if weights[name].ndim < 2:
        raise ValueError(
            f"Not a known network: {name!r} should have at least 2 dimensions, its shape is "
            f"{tuple(weights[name].shape)}."
        )
    return weights[name].shape


def adm_arguments(weights: dict[str, Tensor], head_channels: int | None) -> dict[str, Any]:
    """The constructor arguments of :class:`ADMUNet` that a state dict's keys and shapes imply.

    Raises:
        ValueError: conditional on text, class labels or other inputs; or keys of another network.
    """
    if any(".transformer_blocks." in k for k in weights):
        raise ValueError("The network attends to a text or class embedding; only unconditional networks are supported.")
    if "label_emb.weight" in weights:
        n = shape_of(weights, "label_emb.weight")[0]
        raise ValueError(f"The network is conditional on {n} classes; only unconditional networks are supported.")
    needed = ("time_embed.0.weight", "input_blocks.0.0.weight", "out.2.weight", "middle_block.0.emb_layers.1.weight")
    if missing := [k for k in needed if k not in weights]:
        raise ValueError(f"Not a guided-diffusion U-Net: it has no {missing[0]!r}.")
    model_channels = shape_of(weights, "time_embed.0.weight")[1]
    outputs = {int(k.split(".")[1]) for k in weights if k.startswith("output_blocks.")}
    by_block, by_conv = ".in_layers.2.weight", ".conv.weight"
    up = [i for i in outputs for j in (1, 2) for s in (by_block, by_conv) if f"output_blocks.{i}.{j}{s}" in weights]
    n_levels = len(up) + 1
    n_blocks = len(outputs) // n_levels - 1
    first = [1 + level * (n_blocks + 1) for level in range(n_levels)]  # first input block of each level
    ends = [f"input_blocks.{i}.0.in_layers.2.weight" for i in first]
    if n_blocks < 1 or any(k not in weights for k in ends):
        raise ValueError(f"Not a guided-diffusion U-Net: {len(outputs)} output blocks on {n_levels} levels.")
    return {
        "in_channels": shape_of(weights, "input_blocks.0.0.weight")[1],
        "out_channels": shape_of(weights, "out.2.weight")[0],
        "model_channels": model_channels,
        "channel_mult": [shape_of(weights, k)[0] // model_channels for k in ends],
        "n_blocks": n_blocks,
        "attention": [level for level, i in enumerate(first) if f"input_blocks.{i}.1.qkv.weight" in weights],
        "head_channels": head_channels,
        "scale_shift": shape_of(weights, "middle_block.0.emb_layers.1.weight")[0]
        == 2 * shape_of(weights, "middle_block.0.in_layers.2.weight")[0],
        "residual_resampling": not any(k.endswith(".0.op.weight") for k in weights),
    }
