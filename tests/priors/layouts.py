"""Published layouts of weights, written by others' networks: what the tests of loaders load."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def randomise(module: nn.Module, std: float = 0.05) -> nn.Module:
    """Weights that leave nothing at zero or one, from a fixed seed."""
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(std * torch.randn(p.shape, generator=g))
    return module.eval().requires_grad_(False)


def random_weights(shapes: Mapping[str, Sequence[int]], std: float = 0.05) -> dict[str, Tensor]:
    """Weights that depend on their name and shape alone; filters of resampling as EDM has them."""
    weights = {}
    for name, shape in shapes.items():
        g = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        weights[name] = std * torch.randn(tuple(shape), generator=g)
        if name.endswith("variance"):
            weights[name] = 0.5 + weights[name].abs()
        if name.endswith("resample_filter"):
            f = torch.tensor([1.0, 1.0] if shape[-1] == 2 else [1.0, 3.0, 3.0, 1.0])
            weights[name] = (torch.outer(f, f) / f.sum() ** 2)[None, None]
    return weights


def guided_diffusion_names(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """A ``UNet2DModel`` of diffusers in the names of guided-diffusion (and of the networks of CompVis).

    The reverse of what the conversion scripts of diffusers do: blocks counted through, queries, keys and values
    joined per head.
    """
    out: dict[str, Tensor] = {}

    def copy(old: str, new: str) -> None:
        for kind in ("weight", "bias"):
            out[f"{new}.{kind}"] = weights[f"{old}.{kind}"]

    def resnet(old: str, new: str) -> None:
        for a, b in (("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("time_emb_proj", "emb_layers.1"),
                     ("norm2", "out_layers.0"), ("conv2", "out_layers.3")):  # fmt: skip
            copy(f"{old}.{a}", f"{new}.{b}")
        if f"{old}.conv_shortcut.weight" in weights:
            copy(f"{old}.conv_shortcut", f"{new}.skip_connection")

    def attention(old: str, new: str) -> None:
        copy(f"{old}.group_norm", f"{new}.norm")
        n = weights[f"{old}.to_q.weight"].shape[0]
        head = config["attention_head_dim"]
        for kind in ("weight", "bias"):
            parts = [weights[f"{old}.to_{p}.{kind}"].reshape(n // head, head, -1) for p in "qkv"]
            joined = torch.cat(parts, 1).reshape(3 * n, -1)
            out[f"{new}.qkv.{kind}"] = joined[..., None] if kind == "weight" else joined[:, 0]
        out[f"{new}.proj_out.weight"] = weights[f"{old}.to_out.0.weight"][..., None]
        out[f"{new}.proj_out.bias"] = weights[f"{old}.to_out.0.bias"]

    def resample(old: str, new: str, conv: str) -> None:
        if f"{old}.norm1.weight" in weights:
            resnet(old, new)
        else:
            copy(f"{old}.conv", f"{new}.{conv}")

    copy("time_embedding.linear_1", "time_embed.0")
    copy("time_embedding.linear_2", "time_embed.2")
    copy("conv_in", "input_blocks.0.0")
    n_levels, n_blocks = len(config["block_out_channels"]), config["layers_per_block"]
    i = 1
    for level in range(n_levels):
        for j in range(n_blocks):
            resnet(f"down_blocks.{level}.resnets.{j}", f"input_blocks.{i}.0")
            if f"down_blocks.{level}.attentions.{j}.to_q.weight" in weights:
                attention(f"down_blocks.{level}.attentions.{j}", f"input_blocks.{i}.1")
            i += 1
        if level < n_levels - 1:
            resample(f"down_blocks.{level}.downsamplers.0", f"input_blocks.{i}.0", "op")
            i += 1
    resnet("mid_block.resnets.0", "middle_block.0")
    attention("mid_block.attentions.0", "middle_block.1")
    resnet("mid_block.resnets.1", "middle_block.2")
    i = 0
    for level in range(n_levels):
        for j in range(n_blocks + 1):
            k = 1
            resnet(f"up_blocks.{level}.resnets.{j}", f"output_blocks.{i}.0")
            if f"up_blocks.{level}.attentions.{j}.to_q.weight" in weights:
                attention(f"up_blocks.{level}.attentions.{j}", f"output_blocks.{i}.1")
                k = 2
            if level < n_levels - 1 and j == n_blocks:
                resample(f"up_blocks.{level}.upsamplers.0", f"output_blocks.{i}.{k}", "conv")
            i += 1
    copy("conv_norm_out", "out.0")
    copy("conv_out", "out.2")
    assert sum(v.numel() for v in out.values()) == sum(v.numel() for v in weights.values())
    return out


def network_input(channels: int, size: int) -> Tensor:
    """Two images, from a fixed seed."""
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(2))


def score_sde_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """EDM's NCSN++ in the names of score_sde: one list of modules, in the order in which they are used; layers of
    attention are matrices ``x W``."""
    out: dict[str, Tensor] = {"0.W": weights["map_noise.freqs"]}
    for i in (1, 2):
        for kind in ("weight", "bias"):
            out[f"{i}.{kind}"] = weights[f"map_layer{i - 1}.{kind}"]
    groups: dict[str, dict[str, Tensor]] = {}
    for k, v in weights.items():
        if k.startswith(("enc.", "dec.")) and not k.endswith("resample_filter"):
            part, name, rest = k.split(".", 2)
            groups.setdefault(f"{part}.{name}", {})[rest] = v
    i = 3
    for name, group in groups.items():
        if "aux_residual" in name:
            out |= {f"{i}.Conv2d_0.{k}": v for k, v in group.items()}
        elif "conv0.weight" not in group:
            out |= {f"{i}.{k}": v for k, v in group.items()}
        else:
            for ours, theirs in (("norm0", "GroupNorm_0"), ("conv0", "Conv_0"), ("affine", "Dense_0"),
                                 ("norm1", "GroupNorm_1"), ("conv1", "Conv_1"), ("skip", "Conv_2")):  # fmt: skip
                for kind in ("weight", "bias"):
                    if f"{ours}.{kind}" in group:
                        out[f"{i}.{theirs}.{kind}"] = group[f"{ours}.{kind}"]
            if "qkv.weight" in group:
                i += 1
                for kind in ("weight", "bias"):
                    out[f"{i}.GroupNorm_0.{kind}"] = group[f"norm2.{kind}"]
                n = group["proj.bias"].shape[0]
                for j in range(3):
                    out[f"{i}.NIN_{j}.W"] = group["qkv.weight"].reshape(n, 3, n)[:, j].T
                    out[f"{i}.NIN_{j}.b"] = group["qkv.bias"].reshape(n, 3)[:, j]
                out[f"{i}.NIN_3.W"], out[f"{i}.NIN_3.b"] = group["proj.weight"][:, :, 0, 0].T, group["proj.bias"]
        i += 1
    return {f"all_modules.{k}": v.contiguous() for k, v in out.items()}


def compvis_first_stage_names(weights: Mapping[str, Tensor], n_levels: int) -> dict[str, Tensor]:
    """An autoencoder of diffusers in the names of CompVis."""
    out = {}
    for k, v in weights.items():
        words = k.split(".")
        if words[1] == "mid_block":
            attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out": "proj_out"}
            if words[2] == "resnets":
                words[1:4] = ["mid", f"block_{int(words[3]) + 1}"]
            else:
                words[1:-1] = ["mid", "attn_1", attention[words[4]]]
                v = v[..., None, None] if v.ndim == 2 else v
        elif words[1] == "down_blocks":
            words[1:5] = ["down", words[2], *(["block", words[4]] if words[3] == "resnets" else ["downsample"])]
        elif words[1] == "up_blocks":
            level = str(n_levels - 1 - int(words[2]))
            words[1:5] = ["up", level, *(["block", words[4]] if words[3] == "resnets" else ["upsample"])]
        elif words[1] == "conv_norm_out":
            words[1] = "norm_out"
        out[".".join("nin_shortcut" if w == "conv_shortcut" else w for w in words)] = v
    return out
