"""Checkpoints of CompVis latent diffusion (FFHQ, CelebA-HQ, LSUN): denoiser and first stage in one Lightning file.

Rombach et al. 2022, arXiv 2112.10752. Names are those of the training code under ``state_dict``: the denoiser as
``model.diffusion_model.*``, its moving average as ``model_ema.*`` with the dots left out of the names, the autoencoder
as ``first_stage_model.*``, the schedule as ``betas``. The moving average is taken. The autoencoder becomes a
``VQModel`` or ``AutoencoderKL`` of the package diffusers (the extra ``diffusers``).
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from invdiff.priors.adm import adm_arguments
from invdiff.priors.checkpoints import Checkpoint, File, Network, tensors
from invdiff.priors.denoiser import PriorInfo
from invdiff.priors.schedules import DiscreteSchedule, sqrt_linear_betas

DENOISER, AVERAGE, FIRST_STAGE = "model.diffusion_model.", "model_ema.", "first_stage_model."
# Names of the first stage, to those of diffusers; levels of the decoder are counted from the other end.
RENAMED = (
    (r"^(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out."),
    (r"^encoder\.down\.(\d+)\.block\.(\d+)\.", r"encoder.down_blocks.\1.resnets.\2."),
    (r"^encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0."),
    (r"^decoder\.up\.(\d+)\.block\.(\d+)\.", r"decoder.up_blocks.<\1>.resnets.\2."),
    (r"^decoder\.up\.(\d+)\.upsample\.", r"decoder.up_blocks.<\1>.upsamplers.0."),
    (r"\.nin_shortcut\.", r".conv_shortcut."),
    (r"\.mid\.block_1\.", r".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", r".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", r".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.mid\.attn_1\.proj_out\.", r".mid_block.attentions.0.to_out.0."),
)


def _state(file: File) -> dict[str, Any]:
    return file.content["state_dict"] if isinstance(file.content.get("state_dict"), dict) else file.content


def matches(file: File) -> bool:
    return any(str(k).startswith(DENOISER) for k in _state(file))


def read(
    file: File, *, size: int = 64, head_channels: int | None = 32, scale_factor: float | None = None
) -> Checkpoint:  # fmt: skip
    """An unconditional model with its first stage.

    Args:
        size: of the latents, pixels per side.
        head_channels: per attention head; None: one head.
        scale_factor: of the latents; default: that in the file, else 1.
    """
    state, name = tensors(_state(file)), file.path.name
    weights = _averaged(state, name)
    first = {k: v for k, v in tensors(state, FIRST_STAGE).items() if not k.startswith("loss.")}
    if not first:
        raise ValueError(f"{name} has no first stage ({FIRST_STAGE}*), so its latents cannot be decoded.")
    try:
        arguments = adm_arguments(weights, head_channels)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if scale_factor is None:
        scale_factor = float(state["scale_factor"]) if "scale_factor" in state else 1.0
    schedule = DiscreteSchedule(state["betas"] if "betas" in state else sqrt_linear_betas())
    return Checkpoint(
        network=Network(name="ADMUNet", arguments=arguments, weights=weights, prefix=DENOISER),
        denoiser={"class": "DDPMDenoiser", "betas": schedule.betas.tolist(), "prediction": "epsilon"},
        shape=(arguments["in_channels"], size, size),
        sigma_min=float(schedule.sigmas[0]),
        sigma_max=float(schedule.sigmas[-1]),
        autoencoder=_first_stage(first, scale_factor, name),
        info=PriorInfo(
            name=file.path.stem,
            value_range=(0.0, 1.0),
            quantity="the brightest pixel value",
            sha256=file.sha256(),
            details={"format": "CompVis latent diffusion", "weights": "moving average", "scale factor": scale_factor},
        ),
    )


def _averaged(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The denoiser's weights from the moving average. Raises ValueError without one."""
    raw = tensors(state, DENOISER)
    average = {k: v for k, v in tensors(state, AVERAGE).items() if k not in ("decay", "num_updates")}
    flat = {"diffusion_model" + k.replace(".", ""): k for k in raw}
    if not average:
        raise ValueError(f"{name} has no moving average of the weights ({AVERAGE}*); the raw ones are not sampled.")
    if set(flat) != set(average):
        missing, unexpected = sorted(set(flat) - set(average))[:3], sorted(set(average) - set(flat))[:3]
        raise ValueError(f"{name}: the moving average misses {missing}, and has unexpected {unexpected}.")
    return {k: average[f] for f, k in flat.items()}


def _first_stage(weights: dict[str, Tensor], scale_factor: float, name: str) -> Network:
    if other := [k for k in weights if ".attn." in k]:
        raise ValueError(f"{name}: a first stage with attention at other than the coarsest level ({other[0]!r}).")
    if "encoder.conv_in.weight" not in weights or "post_quant_conv.weight" not in weights:
        raise ValueError(f"{name}: {FIRST_STAGE}* is no autoencoder of latent diffusion.")
    n_levels = len({k.split(".")[2] for k in weights if k.startswith("encoder.down.")})
    n_blocks = len({k.split(".")[4] for k in weights if k.startswith("encoder.down.0.block.")})
    latent, embed = weights["post_quant_conv.weight"].shape[:2]
    arguments: dict[str, Any] = {
        "in_channels": weights["encoder.conv_in.weight"].shape[1],
        "out_channels": weights["decoder.conv_out.weight"].shape[0],
        "down_block_types": ["DownEncoderBlock2D"] * n_levels,
        "up_block_types": ["UpDecoderBlock2D"] * n_levels,
        "block_out_channels": [weights[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(n_levels)],
        "layers_per_block": n_blocks,
        "latent_channels": latent,
        "scaling_factor": scale_factor,
    }
    if "quantize.embedding.weight" in weights:
        kind = "VQModel"
        arguments |= {"num_vq_embeddings": weights["quantize.embedding.weight"].shape[0], "vq_embed_dim": embed}
    else:
        kind = "AutoencoderKL"
        if embed != latent:
            raise ValueError(f"{name}: a first stage of {latent} channels coded in {embed} is not supported.")
    renamed = {}
    for key, value in weights.items():
        new = key
        for pattern, replacement in RENAMED:
            new = re.sub(pattern, replacement, new)
        new = re.sub(r"<(\d+)>", lambda m: str(n_levels - 1 - int(m[1])), new)
        linear = ".attentions.0.to_" in new and value.ndim == 4
        renamed[new] = value[..., 0, 0] if linear else value
    return Network(name=kind, arguments=arguments, weights=renamed, prefix=FIRST_STAGE)
