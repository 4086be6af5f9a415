"""Writes references.json: names, shapes and outputs of deepinv's networks, for tests on machines without deepinv.

    python tests/priors/make_references.py   (needs the extra 'deepinv'; written with deepinv 0.5.0)

Weights are those of ``layouts.random_weights``: a function of name and shape. Inputs: ``layouts.network_input``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from deepinv.models import ADMUNet, DiffUNet, NCSNpp
from layouts import network_input, random_weights

SMALL: dict[str, Any] = {"pretrained": None, "in_channels": 2, "out_channels": 2, "num_blocks": 1, "label_dim": 0}


def record(model: Any, forward: Any, size: int, labels: list[float]) -> dict[str, Any]:
    shapes = {k: list(v.shape) for k, v in model.state_dict().items() if "alphas_cumprod" not in k}
    model.load_state_dict(random_weights(shapes), strict=False)
    channels = next(v[1] for k, v in shapes.items() if k.endswith(("_conv.weight", "input_blocks.0.0.weight")))
    with torch.no_grad():
        y = forward(network_input(channels, size), torch.tensor(labels))
    return {"shapes": shapes, "size": size, "labels": labels, "output": y[..., ::4, ::4].flatten().tolist()}


if __name__ == "__main__":
    references = {}
    for name, cls, arguments in (
        ("ncsnpp", NCSNpp, {"model_type": "ncsn", "channel_mult": (1, 1), "attn_resolutions": (8,)}),
        ("ddpmpp", NCSNpp, {"model_type": "ddpm", "channel_mult": (1, 1), "attn_resolutions": (8,), "augment_dim": 0}),
        ("adm", ADMUNet, {"channel_mult": (1, 1), "attn_resolutions": (8,), "model_channels": 128}),
    ):
        model = cls(**SMALL, **arguments, img_resolution=16).eval()
        references[name] = record(model, model.forward_unet, 16, [0.3, -1.2])
    model = DiffUNet(pretrained=None).eval()
    references["ffhq"] = record(model, lambda x, t: model(x, t, type_t="timestep"), 32, [30.0, 612.0])
    Path(__file__).with_name("references.json").write_text(json.dumps(references) + "\n")
