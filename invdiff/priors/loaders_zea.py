"""Diffusion priors of zea (ultrasound), their averaged network's weights exported to numpy.

The presets are Keras files; where zea is installed, one line writes what is read here::

    numpy.savez("echonet.npz", *DiffusionModel.from_preset("diffusion-echonet-dynamic").ema_network.get_weights())

The array order is that of the network of zea 0.1 (and of the files written with it): per residual block the mean and
variance of the normalisation, two 3 x 3 convolutions, and where the width changes a 1 x 1 one. Kernels are
(y, x, in, out). The network predicts the noise of ``cos(a) x0 + sin(a) n`` and is told ``sin(a)^2``; it follows the
Keras example on denoising diffusion implicit models.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from invdiff.priors.checkpoints import Checkpoint, File, Network
from invdiff.priors.denoiser import PriorInfo


def matches(file: File) -> bool:
    return "arr_0" in file.content


def read(
    file: File,
    *,
    size: int = 112,
    data_range: tuple[float, float] = (-1.0, 1.0),
    frequencies: tuple[float, float] = (1.0, 1000.0),
    signal_rates: tuple[float, float] = (0.02, 0.95),
) -> Checkpoint:
    """The arrays ``arr_0, arr_1, ...``.

    Args:
        size: of the images, pixels per side.
        data_range: the model's ``input_range``.
        frequencies: its ``embedding_min_frequency`` and ``embedding_max_frequency``.
        signal_rates: its ``min_signal_rate`` and ``max_signal_rate``, cos(a) at the ends of the training.
    """
    arrays = [file.content[f"arr_{i}"] for i in range(len(file.content)) if f"arr_{i}" in file.content]
    try:
        arguments, weights = _named(arrays)
    except ValueError as error:
        raise ValueError(f"{file.path.name}: {error}") from None
    factor = 2 ** (len(arguments["widths"]) - 1)
    if size % factor:
        raise ValueError(f"The size of images must be divisible by {factor} for {file.path.name}, got {size}.")
    half = (data_range[1] - data_range[0]) / 2
    lo, hi = (math.sqrt(1 / r**2 - 1) / half for r in signal_rates[::-1])
    return Checkpoint(
        network=Network(name="ZeaUNet", arguments=arguments | {"frequencies": list(frequencies)}, weights=weights),
        denoiser={"class": "VarianceDenoiser"},
        shape=(arguments["channels"], size, size),
        sigma_min=lo,
        sigma_max=hi,
        data_range=data_range,
        info=PriorInfo(
            name=file.path.stem,
            value_range=(-1.0, 1.0),
            sha256=file.sha256(),
            details={"format": "zea, exported to numpy", "weights": "moving average"},
        ),
    )


def _named(arrays: list[Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Constructor arguments and weights of ZeaUNet. Raises ValueError where the order of shapes does not make sense."""
    left = list(arrays)

    def take(what: str, ndim: int, side: int = 0) -> Tensor:
        if not left:
            raise ValueError(f"expected {what} after {len(arrays)} arrays.")
        a = left.pop(0)
        if a.ndim != ndim or (side and tuple(a.shape[:2]) != (side, side)):
            i = len(arrays) - len(left) - 1
            raise ValueError(f"arr_{i} should be {what}, it has the shape {tuple(a.shape)}.")
        return a

    def conv(name: str, side: int) -> None:
        kernel = take(f"the {side} x {side} kernel of {name}", 4, side)
        weights[f"{name}.weight"] = kernel.permute(3, 2, 0, 1)
        weights[f"{name}.bias"] = take(f"the bias of {name}", 1)

    weights: dict[str, Tensor] = {}
    conv("stem", 1)
    blocks: list[tuple[int, int]] = []  # channels in and out
    while left and left[0].ndim == 1:
        name = f"blocks.{len(blocks)}"
        for statistic in ("mean", "variance"):
            weights[f"{name}.{statistic}"] = take(f"the {statistic} of {name}", 1)
        conv(f"{name}.conv1", 3)
        conv(f"{name}.conv2", 3)
        n_in, n_out = len(weights[f"{name}.mean"]), len(weights[f"{name}.conv2.bias"])
        if n_in != n_out:
            conv(f"{name}.shortcut", 1)
        blocks.append((n_in, n_out))
    conv("head", 1)
    if left:
        raise ValueError(f"{len(left)} arrays are left over after the last convolution.")
    # the widths rise and fall again: as many blocks at each, the coarsest once
    widths = [n for i, (_, n) in enumerate(blocks) if i == 0 or n != blocks[i - 1][1]]
    n_levels = (len(widths) + 1) // 2
    if not blocks or len(widths) % 2 == 0 or len(blocks) % len(widths) or widths != widths[::-1]:
        raise ValueError(f"blocks of widths {[n for _, n in blocks]} are not those of a U-Net.")
    stem = len(weights["stem.bias"])
    return {
        "channels": weights["stem.weight"].shape[1],
        "widths": widths[:n_levels],
        "n_blocks": len(blocks) // len(widths),
        "n_embed": blocks[0][0] - stem,
    }, weights
