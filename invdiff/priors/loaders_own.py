"""Safetensors files written by :meth:`invdiff.priors.checkpoints.Checkpoint.save`."""

from __future__ import annotations

import json
from typing import Any

from torch import Tensor

from invdiff.priors.checkpoints import _AUTOENCODER, _NEW, _OLD, Checkpoint, File, Network, tensors
from invdiff.priors.denoiser import PriorInfo


def matches(file: File) -> bool:
    return file.metadata.get("format") in (_OLD, _NEW)


def read(file: File) -> Checkpoint:
    try:
        return _read(file, json.loads(file.metadata["invdiff"]))
    except (KeyError, TypeError, AttributeError, RecursionError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{file.path.name} has a header that cannot be read ({type(error).__name__}: {error}); it may come from "
            f"another version of this package."
        ) from None


def _read(file: File, header: dict[str, Any]) -> Checkpoint:
    if file.metadata["format"] == _OLD:
        header["network"] = {"class": "UNet", "arguments": header["network"]}
        header["denoiser"] = {"class": "EDMDenoiser", "sigma_data": header["sigma_data"]}
        if "autoencoder" in header:
            header["autoencoder"] = {"class": "Autoencoder", "arguments": header["autoencoder"]}
    info, denoiser = header["info"], dict(header["denoiser"])
    denoiser["class"] = str(denoiser["class"])
    for key in ("value_range", "pixel_size"):
        info[key] = tuple(info[key]) if info[key] else None
    own = {k: v for k, v in file.content.items() if "autoencoder" not in header or not k.startswith(_AUTOENCODER)}
    part = header.get("autoencoder")
    return Checkpoint(
        network=_network(header["network"], own),
        denoiser=denoiser,
        shape=tuple(header["shape"]),
        sigma_min=header["sigma_min"],
        sigma_max=header["sigma_max"],
        data_range=tuple(header.get("data_range", (-1.0, 1.0))),
        info=PriorInfo(**info, sha256=file.sha256()),
        autoencoder=part and _network(part, tensors(file.content, _AUTOENCODER), _AUTOENCODER),
    )


def _network(part: dict[str, Any], weights: dict[str, Tensor], prefix: str = "") -> Network:
    return Network(name=str(part["class"]), arguments=dict(part["arguments"]), weights=weights, prefix=prefix)
