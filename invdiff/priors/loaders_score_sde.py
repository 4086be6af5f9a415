"""Checkpoints of score_sde: NCSN++ trained on the variance-exploding process (AAPM CT, fastMRI knee, FFHQ ...).

Song et al., "Score-based generative modeling through stochastic differential equations", ICLR 2021, arXiv
2011.13456; the CT and MRI ones: Chung et al., arXiv 2206.00941, 2110.05243. The file is a dict with ``model`` (names
``module.all_modules.<n>.*``, and the unused levels ``module.sigmas``) and ``ema``, whose ``shadow_params`` is a list
without names: the trained parameters in their order. The averaged weights are taken. The network is EDM's
:class:`~invdiff.priors.edm.SongUNet` under other names.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from invdiff.priors.adm import shape_of
from invdiff.priors.checkpoints import Checkpoint, File, Network
from invdiff.priors.denoiser import PriorInfo
from invdiff.priors.edm import SongUNet, resampling_filter

STEM = 4  # modules 0 .. 3 embed the noise level and the image
BLOCK = {"norm0": "GroupNorm_0", "conv0": "Conv_0", "affine": "Dense_0", "norm1": "GroupNorm_1", "conv1": "Conv_1",
         "skip": "Conv_2"}  # fmt: skip


def matches(file: File) -> bool:
    ema, model = file.content.get("ema"), file.content.get("model")
    return isinstance(ema, dict) and "shadow_params" in ema and isinstance(model, dict)


def read(file: File, *, size: int = 256, sigma_min: float = 0.01, sigma_max: float = 378.0) -> Checkpoint:
    """Data in [0, 1] (``data.centered = False``), which the network itself maps to [-1, 1].

    Args:
        size: of the images, pixels per side.
        sigma_min, sigma_max: of the training, in the data's units; default: those of the AAPM CT prior.
    """
    weights = _averaged(file)
    try:
        arguments = _arguments(weights, size)
        renamed = _renamed(weights, arguments)
    except ValueError as error:
        raise ValueError(f"{file.path.name}: {error}") from None
    return Checkpoint(
        network=Network(name="SongUNet", arguments=arguments, weights=renamed),
        denoiser={"class": "VEDenoiser"},
        shape=(arguments["in_channels"], size, size),
        sigma_min=2 * sigma_min,
        sigma_max=2 * sigma_max,
        info=PriorInfo(
            name=file.path.stem,
            value_range=(0.0, 1.0),
            quantity="the largest value of the training data",
            sha256=file.sha256(),
            details={"format": "score_sde", "weights": "moving average", "step": file.content.get("step", "unknown")},
        ),
    )


def _averaged(file: File) -> dict[str, Tensor]:
    """Weights by name (from ``all_modules`` on), values from the moving average where there are any."""
    named = {k.removeprefix("module."): v for k, v in file.content["model"].items() if isinstance(v, Tensor)}
    named.pop("sigmas", None)
    if bad := [k for k in named if not k.startswith("all_modules.")]:
        raise ValueError(f"{file.path.name} does not fit NCSN++: unexpected {bad[:3]}.")
    trained = [k for k in named if k != "all_modules.0.W"]  # the Fourier frequencies are fixed
    shadow = file.content["ema"]["shadow_params"]
    if len(shadow) != len(trained):
        raise ValueError(
            f"{file.path.name}: the moving average has {len(shadow)} parameters, the model {len(trained)}."
        )  # fmt: skip
    for k, v in zip(trained, shadow, strict=True):
        if v.shape != named[k].shape:
            raise ValueError(
                f"{file.path.name}: the moving average of {k!r} has the shape {tuple(v.shape)}, the model's "
                f"{tuple(named[k].shape)}."
            )
        named[k] = v
    return {k.removeprefix("all_modules."): v for k, v in named.items()}


def _arguments(weights: dict[str, Tensor], size: int) -> dict[str, Any]:
    """Constructor arguments of SongUNet, from the kinds of the modules in their order."""
    if "0.W" not in weights:
        raise ValueError("it has no 'all_modules.0.W': a network without Fourier features of the noise level.")
    if "3.weight" not in weights or weights["3.weight"].ndim != 4:
        raise ValueError("'all_modules.3.weight' should be a convolution of the image.")
    kinds = ""  # R: residual block, A: attention, P: residual input, N: anything else
    n = 1 + max(int(k.split(".")[0]) for k in weights)
    for i in range(STEM, n):
        has = [letter for letter, key in (("R", "Conv_0"), ("A", "NIN_0"), ("P", "Conv2d_0")) if _any(weights, i, key)]
        kinds += has[0] if has else "N"
    levels = kinds.split("P")
    if len(levels) < 2 or not kinds.endswith("NN"):
        raise ValueError(
            "only NCSN++ with residual input, without progressive output, is supported "
            "(progressive_input = 'residual', progressive = 'none')."
        )
    n_blocks = levels[0].count("R") - 1  # the last one of the first level halves the resolution
    widths, i, attention = [], STEM, []
    for level in range(len(levels)):
        widths.append(shape_of(weights, f"{i}.Conv_0.weight")[0] if _any(weights, i, "Conv_0") else 0)
        attends = levels[level].startswith("RA")
        attention += [size >> level] * attends
        i += (n_blocks * (2 if attends else 1)) + 2
    return {
        "image_size": size,
        "in_channels": weights["3.weight"].shape[1],
        "out_channels": shape_of(weights, f"{n - 1}.weight")[0] if f"{n - 1}.weight" in weights else 0,
        "channels": weights["3.weight"].shape[0],
        "widths": widths,
        "n_blocks": n_blocks,
        "attention": attention,
        "ncsn": True,
    }


def _any(weights: dict[str, Tensor], i: int, name: str) -> bool:
    return any(k in weights for k in (f"{i}.{name}.weight", f"{i}.{name}.W"))


def _renamed(weights: dict[str, Tensor], arguments: dict[str, Any]) -> dict[str, Tensor]:
    """In the names of SongUNet. Raises ValueError on missing or left-over weights."""
    left, out = dict(weights), {}

    def take(name: str) -> Tensor:
        if name not in left:
            raise ValueError(f"missing 'all_modules.{name}'.")
        return left.pop(name)

    def copy(new: str, old: str) -> None:
        for kind in ("weight", "bias"):
            out[f"{new}.{kind}"] = take(f"{old}.{kind}")

    out["map_noise.freqs"] = take("0.W")
    copy("map_layer0", "1")
    copy("map_layer1", "2")
    with torch.device("meta"):
        net = SongUNet(**arguments)
    i = STEM - 1
    for part in ("enc", "dec"):
        for name, module in getattr(net, part).items():
            own = {k.removesuffix(".weight") for k in module.state_dict() if k.endswith(".weight")}
            if f"{part}.{name}".endswith(("_conv", "_aux_norm")):
                copy(f"{part}.{name}", str(i))
            elif name.endswith("_aux_residual"):
                copy(f"{part}.{name}", f"{i}.Conv2d_0")
            else:
                for ours in [k for k in BLOCK if k in own]:
                    copy(f"{part}.{name}.{ours}", f"{i}.{BLOCK[ours]}")
                if "qkv" in own:
                    i += 1
                    copy(f"{part}.{name}.norm2", f"{i}.GroupNorm_0")
                    # channels in the order (channel, q k v); a layer maps by x W, not W x
                    w = torch.stack([take(f"{i}.NIN_{j}.W").T for j in range(3)], 1)
                    out[f"{part}.{name}.qkv.weight"] = w.reshape(-1, w.shape[-1])[..., None, None]
                    b = torch.stack([take(f"{i}.NIN_{j}.b") for j in range(3)], 1)
                    out[f"{part}.{name}.qkv.bias"] = b.flatten()
                    out[f"{part}.{name}.proj.weight"] = take(f"{i}.NIN_3.W").T[..., None, None]
                    out[f"{part}.{name}.proj.bias"] = take(f"{i}.NIN_3.b")
            i += 1
    if left:
        raise ValueError(f"does not fit its network: unexpected {['all_modules.' + k for k in sorted(left)[:3]]}.")
    for k in net.state_dict():
        if k.endswith("resample_filter"):
            out[k] = resampling_filter((1.0, 3.0, 3.0, 1.0))
    return out
