"""State dicts of guided-diffusion, in the layout of deepinv's network (recorded) and of diffusers' (renamed)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from invdiff.priors import NetworkPrior, load_prior
from invdiff.priors.adm import ADMUNet, adm_arguments

from .layouts import guided_diffusion_names, network_input, random_weights, randomise

REFERENCES = Path(__file__).with_name("references.json")
# ADM in diffusers: resolution changes in residual blocks, scale and shift from the noise level
CONFIG: dict[str, Any] = {
    "sample_size": 16, "in_channels": 1, "out_channels": 2, "block_out_channels": (32, 32, 64), "layers_per_block": 2,
    "down_block_types": ("ResnetDownsampleBlock2D", "ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D", "ResnetUpsampleBlock2D"),
    "downsample_type": "resnet", "upsample_type": "resnet", "resnet_time_scale_shift": "scale_shift",
    "attention_head_dim": 32, "attn_norm_num_groups": 32,
}  # fmt: skip


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Any, Path]:
    diffusers = pytest.importorskip("diffusers", reason="needs the extra 'diffusers'")
    model = randomise(diffusers.UNet2DModel(**CONFIG))
    torch.save(guided_diffusion_names(model.state_dict(), CONFIG), tmp_path / "tiny.pt")
    return model, tmp_path / "tiny.pt"


def test_complex_images_are_two_channels(tmp_path: Path) -> None:
    # the MRI priors of DDS (Chung et al. 2024, arXiv 2303.05754)
    diffusers = pytest.importorskip("diffusers", reason="needs the extra 'diffusers'")
    model = randomise(diffusers.UNet2DModel(**CONFIG | {"in_channels": 2, "out_channels": 4}))
    torch.save(guided_diffusion_names(model.state_dict(), CONFIG), tmp_path / "fastmri_320_complex_1m.pt")
    prior = load_prior(tmp_path / "fastmri_320_complex_1m.pt", size=16, head_channels=32)
    x, s = network_input(2, 16), float(prior.module.schedule.sigmas[500])
    eps = model(x / (1 + s**2) ** 0.5, 500).sample[:, :2]
    torch.testing.assert_close(prior(x, s), x - s * eps, rtol=1e-5, atol=1e-5 * (1 + s))


def test_denoiser_against_the_network_of_diffusers(saved: tuple[Any, Path]) -> None:
    model, path = saved
    prior = load_prior(path, size=16, head_channels=32)
    assert isinstance(prior, NetworkPrior)
    assert (prior.shape, prior.info.name, len(prior.info.sha256)) == ((1, 16, 16), "tiny", 64)
    alphas_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    sigmas = ((1 - alphas_bar) / alphas_bar).sqrt()
    steps = torch.arange(1000, dtype=torch.float64)
    torch.testing.assert_close(prior.module.schedule.index(sigmas), steps, rtol=1e-12, atol=1e-12)
    for t in (0, 200, 999):
        s = sigmas[t].float()
        x = (1 + s) * network_input(1, 16)
        eps = model(x * alphas_bar[t].sqrt().float(), t).sample[:, :1]  # the second channel is a learned variance
        torch.testing.assert_close(prior(x, s), x - s * eps, rtol=1e-5, atol=1e-5 * float(1 + s))


@pytest.mark.parametrize("name", ["time_embed.0.weight", "out.2.weight", "middle_block.0.in_layers.2.weight"])
def test_weights_of_another_shape_are_named(tmp_path: Path, name: str) -> None:
    weights = ADMUNet(1, 2, 32, (1, 1), 1, (1,), 32).state_dict()
    for changed, match in (
        ({name: torch.tensor(1.0)}, r"should have at least 2 dimensions"),
        ({}, "nor a known|has no"),
    ):
        torch.save({k: v for k, v in weights.items() if k != name} | changed, tmp_path / "a.pt")
        with pytest.raises(ValueError, match=match):
            load_prior(tmp_path / "a.pt", size=16, head_channels=32)


@pytest.mark.parametrize("large", [False, True])
def test_arguments_of_the_published_networks_follow_from_their_weights(large: bool) -> None:
    # the arguments as the releases of DPS state them, against the shapes of deepinv's networks; no memory is taken
    models = pytest.importorskip("deepinv", reason="needs the extra 'deepinv'").models
    with torch.device("meta"):
        weights = models.DiffUNet(pretrained=None, large_model=large).state_dict()
        weights = {k: v for k, v in weights.items() if "alphas_cumprod" not in k}
        got = adm_arguments(weights, 64)
        own = ADMUNet(**got).state_dict()
    assert got == {
        "in_channels": 3, "out_channels": 6, "model_channels": 256 if large else 128, "n_blocks": 2 if large else 1,
        "channel_mult": [1, 1, 2, 2, 4, 4], "attention": [3, 4, 5] if large else [4], "head_channels": 64,
        "scale_shift": True, "residual_resampling": True,
    }  # fmt: skip
    assert {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in weights.items()}


@pytest.mark.slow
def test_network_of_ffhq_against_deepinv(tmp_path: Path) -> None:
    reference = json.loads(REFERENCES.read_text())["ffhq"]
    torch.save(random_weights(reference["shapes"]), tmp_path / "ffhq_10m.pt")
    prior = load_prior(tmp_path / "ffhq_10m.pt")
    assert (prior.shape, prior.info.details["learned variance"]) == ((3, 256, 256), True)
    y = prior.module.net(network_input(3, reference["size"]), torch.tensor(reference["labels"]))
    expected = torch.tensor(reference["output"])
    torch.testing.assert_close(y[..., ::4, ::4].flatten(), expected, rtol=1e-5, atol=1e-5)


def test_inversebench_wraps_it_for_the_continuous_process(saved: tuple[Any, Path]) -> None:
    model, path = saved
    weights = torch.load(path, weights_only=True)
    torch.save({"ema": {f"model.{k}": v for k, v in weights.items()}, "net": {}}, path)
    prior = load_prior(path, size=16, head_channels=32)
    assert (prior.shape, prior.info.details["denoiser"]) == ((1, 16, 16), "VPDenoiser")
    x, s = network_input(1, 16), 0.6
    # Karras et al. 2022, table 1: sigma = sqrt(exp(19.9 t^2 / 2 + 0.1 t) - 1), label 999 t
    t = (math.sqrt(0.1**2 + 2 * 19.9 * math.log(1 + s**2)) - 0.1) / 19.9
    eps = model(x / math.hypot(1, s), torch.tensor(999 * t)).sample[:, :1]
    torch.testing.assert_close(prior(x, s), x - s * eps, rtol=1e-5, atol=1e-5)


class TestRefused:
    def test_weights_that_do_not_fit(self, saved: tuple[Any, Path]) -> None:
        path = saved[1]
        weights = torch.load(path, weights_only=True)
        changed = {k: v for k, v in weights.items() if k != "input_blocks.3.0.in_layers.0.bias"} | {
            "step": torch.ones(1)
        }
        torch.save(changed, path)
        with pytest.raises(ValueError, match=r"missing \['input_blocks.3.0.in_layers.0.bias'\], unexpected \['step'\]"):
            load_prior(path, size=16, head_channels=32)
        torch.save(weights | {"middle_block.1.norm.weight": torch.ones(3)}, path)
        with pytest.raises(ValueError, match=r"'middle_block.1.norm.weight' should be \(64,\), it is \(3,\)"):
            load_prior(path, size=16, head_channels=32)

    def test_networks_that_are_no_priors(self, saved: tuple[Any, Path]) -> None:
        path = saved[1]
        weights = torch.load(path, weights_only=True)
        for change, match in (
            ({"label_emb.weight": torch.ones(1000, 128)}, "conditional on 1000 classes"),
            ({"input_blocks.0.0.weight": torch.ones(32, 6, 3, 3)}, "maps 6 channels to 2; expected as many out as in"),
            ({"input_blocks.7.1.transformer_blocks.0.norm1.weight": torch.ones(64)}, "text or class embedding"),
        ):
            torch.save(weights | change, path)
            with pytest.raises(ValueError, match=match):
                load_prior(path, size=16, head_channels=32)

    def test_options(self, saved: tuple[Any, Path]) -> None:
        path = saved[1]
        with pytest.raises(ValueError, match="divisible by 4"):
            load_prior(path, size=18, head_channels=32)
        with pytest.raises(ValueError, match="head_channels must divide the 64 channels"):
            load_prior(path, size=16, head_channels=48)
        with pytest.raises(TypeError, match="no option image_size; it has size, head_channels, betas"):
            load_prior(path, image_size=16)
        path.write_bytes(path.read_bytes()[:-5000])
        with pytest.raises(ValueError, match="truncated"):
            load_prior(path, size=16)


def test_own_schedule(saved: tuple[Any, Path]) -> None:
    betas = torch.linspace(1e-3, 0.03, 100, dtype=torch.float64)
    prior = load_prior(saved[1], size=16, head_channels=32, betas=betas)
    assert torch.equal(prior.module.schedule.betas, betas)
    assert prior.sigma_max == float(prior.module.schedule.sigmas[-1])
