"""State dicts of EDM's networks, in the layout of deepinv's (recorded), alone and as InverseBench wraps them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from invdiff.priors import load_prior

from .layouts import network_input, random_weights

REFERENCES = json.loads(Path(__file__).with_name("references.json").read_text())
NETWORKS = ("ncsnpp", "ddpmpp", "adm")


def weights(name: str) -> dict[str, Tensor]:
    return random_weights(REFERENCES[name]["shapes"])


@pytest.mark.parametrize("name", NETWORKS)
def test_network_against_deepinv(tmp_path: Path, name: str) -> None:
    torch.save(weights(name), tmp_path / f"{name}.pt")
    prior = load_prior(tmp_path / f"{name}.pt")
    reference = REFERENCES[name]
    assert (prior.shape, prior.info.details["denoiser"]) == ((2, 16, 16), "EDMDenoiser")
    y = prior.module.net(network_input(2, 16), torch.tensor(reference["labels"]))
    torch.testing.assert_close(y[..., ::4, ::4].flatten(), torch.tensor(reference["output"]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_recorded_layouts_are_those_of_deepinv(name: str) -> None:
    models = pytest.importorskip("deepinv", reason="needs the extra 'deepinv'").models
    small: dict[str, Any] = {"pretrained": None, "in_channels": 2, "out_channels": 2, "num_blocks": 1, "label_dim": 0}
    model = {
        "ncsnpp": lambda: models.NCSNpp(
            **small, model_type="ncsn", channel_mult=(1, 1), attn_resolutions=(8,), img_resolution=16
        ),
        "ddpmpp": lambda: models.NCSNpp(
            **small, model_type="ddpm", channel_mult=(1, 1), attn_resolutions=(8,), img_resolution=16, augment_dim=0
        ),
        "adm": lambda: models.ADMUNet(
            **small, channel_mult=(1, 1), attn_resolutions=(8,), img_resolution=16, model_channels=128
        ),
    }[name]()
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == REFERENCES[name]["shapes"]


def test_preconditionings_are_those_of_karras_et_al_table_1(tmp_path: Path) -> None:
    # the three rows written out; the network is the same
    path = tmp_path / "net.pt"
    torch.save(weights("adm"), path)
    x = network_input(2, 16)
    s = 0.7
    sigma = torch.tensor([s, s])
    net = load_prior(path).module.net
    edm = 0.25 / (s**2 + 0.25) * x + s * 0.5 / math.hypot(s, 0.5) * net(x / math.hypot(s, 0.5), sigma.log() / 4)
    torch.testing.assert_close(load_prior(path)(x, s), edm, rtol=1e-5, atol=1e-5)
    t = (math.sqrt(0.1**2 + 2 * 19.9 * math.log(1 + s**2)) - 0.1) / 19.9
    assert math.exp(19.9 * t**2 / 2 + 0.1 * t) - 1 == pytest.approx(s**2)
    vp = x - s * net(x / math.hypot(1, s), torch.full((2,), 999 * t))
    torch.testing.assert_close(load_prior(path, preconditioning="vp")(x, s), vp, rtol=1e-5, atol=1e-5)
    ve = x + s * net(x, (sigma / 2).log())
    torch.testing.assert_close(load_prior(path, preconditioning="ve")(x, s), ve, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("key", ["ema", "net"])
def test_inversebench_release(tmp_path: Path, key: str) -> None:
    # dict(ema or net) of the preconditioned network, whose own is "model"
    path = tmp_path / "ns-5m.pt"
    content = {"ema": None, "net": None} | {key: {f"model.{k}": v for k, v in weights("adm").items()}}
    torch.save({k: v for k, v in content.items() if v is not None} | {"step": 3}, path)
    prior, plain = load_prior(path), tmp_path / "plain.pt"
    torch.save(weights("adm"), plain)
    x = network_input(2, 16)
    assert torch.equal(prior(x, 1.0), load_prior(plain)(x, 1.0))
    assert (prior.sigma_min, prior.sigma_max) == (0.002, 80.0)


def test_data_in_another_range_becomes_model_units(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save(weights("adm"), path)
    plain, unit = load_prior(path), load_prior(path, data_range=(0.0, 1.0))
    x = network_input(2, 16)
    torch.testing.assert_close(unit(x, 0.8), 2 * plain((x + 1) / 2, 0.4) - 1)
    assert (unit.sigma_min, unit.sigma_max) == (0.004, 160.0)


class TestRefused:
    def test_weights_that_do_not_fit(self, tmp_path: Path) -> None:
        path = tmp_path / "net.pt"
        changed = weights("adm")
        changed["extra.weight"] = changed.pop("dec.16x16_up.norm1.bias")
        torch.save({"ema": {f"model.{k}": v for k, v in changed.items()}}, path)
        match = r"missing \['model.dec.16x16_up.norm1.bias'\], unexpected \['model.extra.weight'\]"
        with pytest.raises(ValueError, match=match):
            load_prior(path)

    def test_variants(self, tmp_path: Path) -> None:
        path = tmp_path / "net.pt"
        for change, match in (
            ({"map_label.weight": torch.ones(512, 1000)}, "conditional on 1000 classes"),
            ({"enc.8x8_aux_skip.weight": torch.ones(1)}, "skip inputs or outputs"),
            ({"map_layer0.weight": torch.tensor(1.0)}, "'map_layer0.weight' should have at least 2 dimensions"),
        ):
            torch.save(weights("adm") | change, path)
            with pytest.raises(ValueError, match=match):
                load_prior(path)
        torch.save({k: v for k, v in weights("adm").items() if not k.startswith("out_conv")}, path)
        with pytest.raises(ValueError, match="Not a U-Net of EDM: it has no 'dec.16x16_aux_conv.weight'"):
            load_prior(path)
        torch.save(weights("adm"), path)
        with pytest.raises(ValueError, match="preconditioning must be one of edm, vp, ve"):
            load_prior(path, preconditioning="iddpm")
