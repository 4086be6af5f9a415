"""Writes references.json: names, shapes and outputs of others' networks, for tests on machines without them.

    python tests/priors/make_references.py deepinv   (needs the extra 'deepinv'; written with deepinv 0.5.0)
    python tests/priors/make_references.py zea       (needs zea on Keras with the torch backend; written with zea 0.1.8)

Weights are those of ``layouts.random_weights``: a function of name and shape. Inputs: ``layouts.network_input``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from layouts import network_input, random_weights

SMALL: dict[str, Any] = {"pretrained": None, "in_channels": 2, "out_channels": 2, "num_blocks": 1, "label_dim": 0}


def record(model: Any, forward: Any, size: int, labels: list[float]) -> dict[str, Any]:
    shapes = {k: list(v.shape) for k, v in model.state_dict().items() if "alphas_cumprod" not in k}
    model.load_state_dict(random_weights(shapes), strict=False)
    channels = next(v[1] for k, v in shapes.items() if k.endswith(("_conv.weight", "input_blocks.0.0.weight")))
    with torch.no_grad():
        y = forward(network_input(channels, size), torch.tensor(labels))
    return {"shapes": shapes, "size": size, "labels": labels, "output": y[..., ::4, ::4].flatten().tolist()}


def of_deepinv() -> dict[str, Any]:
    from deepinv.models import ADMUNet, DiffUNet, NCSNpp

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
    return references


def of_zea() -> dict[str, Any]:
    from zea.models.unet import get_time_conditional_unetwork

    net = get_time_conditional_unetwork((16, 16, 1), [8, 16, 32], 2, 1.0, 10.0, 16)
    shapes = {f"{i} {w.path}": list(w.shape) for i, w in enumerate(net.weights)}
    net.set_weights([w.numpy() for w in random_weights(shapes, std=0.1).values()])
    labels = [0.3, 0.9]
    x = network_input(1, 16).permute(0, 2, 3, 1)
    y = net([x, torch.tensor(labels)[:, None, None, None]], training=False).detach().permute(0, 3, 1, 2)
    return {"zea": {"shapes": shapes, "size": 16, "labels": labels, "output": y[..., ::4, ::4].flatten().tolist()}}


if __name__ == "__main__":
    path = Path(__file__).with_name("references.json")
    references = json.loads(path.read_text()) if path.exists() else {}
    references |= {"deepinv": of_deepinv, "zea": of_zea}[sys.argv[1]]()
    path.write_text(json.dumps(references) + "\n")
