"""Networks of EDM: state dicts alone (deepinv's files), InverseBench releases, and EDM's pickles.

Karras et al. 2022, arXiv 2206.00364; Zheng et al., "InverseBench", ICLR 2025, arXiv 2503.11043. InverseBench keeps
the preconditioned network (keys ``model.*``) under ``ema``, else ``net``. A state dict does not say which
preconditioning it was trained with; a pickle does, after :mod:`invdiff.priors.pickles`.
"""

from __future__ import annotations

from typing import Any

from invdiff.priors.adm import adm_arguments
from invdiff.priors.checkpoints import Checkpoint, File, Network, tensors
from invdiff.priors.denoiser import PriorInfo
from invdiff.priors.edm import edm_arguments

# Preconditioning: the denoiser, and the noise levels at which it is defined.
PRECONDITIONING: dict[str, tuple[dict[str, Any], float, float]] = {
    "edm": ({"class": "EDMDenoiser", "sigma_data": 0.5}, 0.002, 80.0),
    "vp": ({"class": "VPDenoiser", "beta_d": 19.9, "beta_min": 0.1, "steps": 999}, 0.002, 152.0),
    "ve": ({"class": "VEDenoiser"}, 0.02, 100.0),
}


def _held(content: dict[str, Any]) -> dict[str, Any]:
    return next((content[key] for key in ("ema", "net") if isinstance(content.get(key), dict)), content)


def _weights(content: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The network's weights, and the prefix of their names."""
    content = _held(content)
    content = content.get("state_dict", content) if "class" in content else content
    prefix = "model." if any(str(k).startswith("model.") for k in content) else ""
    return tensors(content, prefix), prefix


def _preconditioned(file: File) -> tuple[dict[str, Any], float, float] | None:
    """Denoiser and noise range as the pickled wrapper states them; None if the file does not say."""
    held = _held(file.content)
    if "class" not in held:
        return None
    a = held["attributes"]
    if held["class"] == "EDMPrecond":  # its range is (0, inf) by default
        return (
            {"class": "EDMDenoiser", "sigma_data": float(a["sigma_data"])},
            max(float(a["sigma_min"]), 0.002), min(float(a["sigma_max"]), 80.0),
        )  # fmt: skip
    if held["class"] == "VPPrecond":
        vp = {"class": "VPDenoiser", "beta_d": float(a["beta_d"]), "beta_min": float(a["beta_min"])}
        return vp | {"steps": int(a["M"]) - 1}, float(a["sigma_min"]), float(a["sigma_max"])
    if held["class"] == "VEPrecond":
        return {"class": "VEDenoiser"}, float(a["sigma_min"]), float(a["sigma_max"])
    raise ValueError(
        f"{file.path.name} holds a {held['class']}; supported are EDMPrecond, VPPrecond and VEPrecond."
    )  # fmt: skip


def matches(file: File) -> bool:
    return not {"map_layer0.weight", "input_blocks.0.0.weight"}.isdisjoint(_weights(file.content)[0])


def read(
    file: File,
    *,
    preconditioning: str | None = None,
    size: int | None = None,
    sigma_data: float = 0.5,
    data_range: tuple[float, float] = (-1.0, 1.0),
    head_channels: int | None = 64,
) -> Checkpoint:
    """A state dict.

    Args:
        preconditioning: a key of :data:`PRECONDITIONING`; default: what the file says; if it does not, as in
            InverseBench "vp" for an ADM network, "edm" for the others.
        size: of the images, pixels per side; default: the one in the names of the weights, 256 for ADM.
        sigma_data: standard deviation of the training images, of "edm".
        data_range: values of the network's images that are -1 and +1 in model units.
        head_channels: per attention head of an ADM network; None: one head.
    """
    weights, prefix = _weights(file.content)
    try:
        if "input_blocks.0.0.weight" in weights:
            name, arguments = "ADMUNet", adm_arguments(weights, head_channels)
        else:
            name, arguments = edm_arguments(weights)
    except ValueError as error:
        raise ValueError(f"{file.path.name}: {error}") from None
    said = _preconditioned(file)
    if preconditioning is None and said is not None:
        denoiser, sigma_min, sigma_max = said
    else:
        preconditioning = preconditioning or ("vp" if name == "ADMUNet" else "edm")
        if preconditioning not in PRECONDITIONING:
            raise ValueError(f"preconditioning must be one of {', '.join(PRECONDITIONING)}, got {preconditioning!r}.")
        denoiser, sigma_min, sigma_max = PRECONDITIONING[preconditioning]
        if "sigma_data" in denoiser:
            denoiser = denoiser | {"sigma_data": float(sigma_data)}
    size = size or arguments.get("image_size", 256)
    half = (data_range[1] - data_range[0]) / 2
    return Checkpoint(
        network=Network(name=name, arguments=arguments, weights=weights, prefix=prefix),
        denoiser=denoiser,
        shape=(arguments["in_channels"], size, size),
        sigma_min=sigma_min / half,
        sigma_max=sigma_max / half,
        data_range=data_range,
        info=PriorInfo(
            name=file.path.stem,
            value_range=(-1.0, 1.0),
            sha256=file.sha256(),
            details={"format": "EDM, InverseBench", "denoiser": denoiser["class"]},
        ),
    )
