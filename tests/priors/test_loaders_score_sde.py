"""Checkpoints of score_sde, in their layout, with the network of deepinv (recorded)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from invdiff.priors import load_prior

from .layouts import network_input, random_weights, score_sde_names

REFERENCE = json.loads(Path(__file__).with_name("references.json").read_text())["ncsnpp"]


def checkpoint() -> dict[str, Any]:
    """As ``save_checkpoint`` of score_sde writes them: the moving average is a list, and not what the model holds."""
    weights = score_sde_names(random_weights(REFERENCE["shapes"]))
    fixed = "all_modules.0.W"
    return {
        "optimizer": {"state": {}, "param_groups": []},
        "model": {"module.sigmas": torch.linspace(378, 0.01, 2000)}
        | {f"module.{k}": v if k == fixed else torch.zeros_like(v) for k, v in weights.items()},
        "ema": {"decay": 0.999, "num_updates": 7, "shadow_params": [v for k, v in weights.items() if k != fixed]},
        "step": 185,
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.save(checkpoint(), tmp_path / "checkpoint_185.pth")
    return tmp_path / "checkpoint_185.pth"


def test_network_against_deepinv(path: Path) -> None:
    prior = load_prior(path, size=16)
    y = prior.module.net(network_input(2, 16), torch.tensor(REFERENCE["labels"]))
    torch.testing.assert_close(y[..., ::4, ::4].flatten(), torch.tensor(REFERENCE["output"]), rtol=1e-5, atol=1e-5)


def test_files_of_torch_before_1_6(path: Path) -> None:
    old = path.with_name("old.pth")
    torch.save(checkpoint(), old, _use_new_zipfile_serialization=False)
    x = network_input(2, 16)
    assert torch.equal(load_prior(old, size=16)(x, 1.0), load_prior(path, size=16)(x, 1.0))


def test_denoiser_is_tweedie_in_the_units_of_the_data(path: Path) -> None:
    prior = load_prior(path, size=16)
    assert (prior.shape, prior.sigma_min, prior.sigma_max) == ((2, 16, 16), 0.02, 756.0)
    net = prior.module.net
    sigma = torch.tensor([0.03, 11.0])  # of data in [0, 1]
    s = sigma[:, None, None, None]
    v = 0.5 + s * network_input(2, 16)
    score = net(2 * v - 1, sigma.log()) / s  # the network centres its input, and divides its output by sigma
    expected = v + s**2 * score
    torch.testing.assert_close(prior(2 * v - 1, 2 * sigma), 2 * expected - 1, rtol=1e-5, atol=1e-4)


def test_wrong_checkpoints_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.pth"

    def refused(match: str, *, model: dict[str, Any] | None = None, drop: str | None = None, cut: int = 0) -> None:
        content = checkpoint()
        names = [k for k in content["model"] if k not in ("module.sigmas", "module.all_modules.0.W")]
        if drop is not None:
            content["ema"]["shadow_params"].pop(names.index(f"module.all_modules.{drop}"))
            del content["model"][f"module.all_modules.{drop}"]
        content["model"] |= model or {}
        content["ema"]["shadow_params"] += list((model or {}).values())
        content["ema"]["shadow_params"] = content["ema"]["shadow_params"][cut:]
        torch.save(content, path)
        with pytest.raises(ValueError, match=match):
            load_prior(path, size=16)

    n = len(checkpoint()["ema"]["shadow_params"])
    refused(f"the moving average has {n - 1} parameters, the model {n}", cut=1)
    refused(r"missing 'all_modules.4.GroupNorm_1.bias'", drop="4.GroupNorm_1.bias")
    refused(r"unexpected \['all_modules.4.Extra.weight'\]", model={"module.all_modules.4.Extra.weight": torch.ones(1)})
    refused(r"does not fit NCSN\+\+: unexpected \['classifier.weight'\]", model={"classifier.weight": torch.ones(1)})
