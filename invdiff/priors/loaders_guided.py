"""Checkpoints of guided-diffusion and of the codes built on it (FFHQ of DPS, ImageNet, DDS): a flat state dict.

Dhariwal and Nichol 2021, arXiv 2105.05233. The file holds weights only. The network's arguments follow from
their names and shapes; the schedule, the image size and the channels per attention head do not, and are those of all
published 256 x 256 files unless stated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from invdiff.priors.adm import adm_arguments
from invdiff.priors.checkpoints import Checkpoint, File, Network, tensors
from invdiff.priors.denoiser import PriorInfo
from invdiff.priors.schedules import DiscreteSchedule, linear_betas


def matches(file: File) -> bool:
    return {"time_embed.0.weight", "input_blocks.0.0.weight", "out.2.weight"} <= set(file.content)


def read(
    file: File, *, size: int = 256, head_channels: int | None = 64, betas: Sequence[float] | None = None
) -> Checkpoint:
    """The network predicts noise; the second half of its output, a learned variance, is dropped.

    Args:
        size: of the images, pixels per side.
        head_channels: per attention head; None: one head.
        betas: the schedule; default: linear, 1000 steps.
    """
    weights = tensors(file.content)
    try:
        arguments = adm_arguments(weights, head_channels)
    except ValueError as error:
        raise ValueError(f"{file.path.name}: {error}") from None
    channels, out = arguments["in_channels"], arguments["out_channels"]
    if out not in (channels, 2 * channels):
        raise ValueError(
            f"{file.path.name} maps {channels} channels to {out}; expected as many out as in, or twice as many (with "
            f"a learned variance). A network with extra inputs, such as a super-resolution one, is not a prior."
        )
    factor = 2 ** (len(arguments["channel_mult"]) - 1)
    if size % factor:
        raise ValueError(f"The size of images must be divisible by {factor} for {file.path.name}, got {size}.")
    schedule = DiscreteSchedule(linear_betas() if betas is None else betas)
    return Checkpoint(
        network=Network(name="ADMUNet", arguments=arguments, weights=weights),
        denoiser={"class": "DDPMDenoiser", "betas": schedule.betas.tolist(), "prediction": "epsilon"},
        shape=(channels, size, size),
        sigma_min=math.floor(1e6 * float(schedule.sigmas[0])) / 1e6,
        sigma_max=float(schedule.sigmas[-1]),
        info=PriorInfo(
            name=file.path.stem,
            value_range=(0.0, 1.0),
            quantity="the brightest pixel value",
            sha256=file.sha256(),
            details={"format": "guided-diffusion", "prediction": "epsilon", "learned variance": out == 2 * channels},
        ),
    )
