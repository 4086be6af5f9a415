"""Checkpoints of CompVis latent diffusion, in their layout, with the networks of diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from invdiff.priors import LatentPrior, load_prior

from .layouts import compvis_first_stage_names, guided_diffusion_names, network_input, randomise

diffusers = pytest.importorskip("diffusers", reason="needs the extra 'diffusers'")

UNET: dict[str, Any] = {
    "sample_size": 8, "in_channels": 3, "out_channels": 3, "block_out_channels": (32, 64, 64), "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 32,
}  # fmt: skip
FIRST: dict[str, Any] = {
    "in_channels": 3, "out_channels": 3, "latent_channels": 3, "block_out_channels": (32, 32, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3, "layers_per_block": 2,
}  # fmt: skip
BETAS = torch.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=torch.float64) ** 2


def write(path: Path, kind: str, **changes: Any) -> tuple[Any, Any]:
    """A Lightning file: raw weights (here zeros), their moving average without dots, first stage, schedule."""
    unet = randomise(diffusers.UNet2DModel(**UNET))
    first = randomise(getattr(diffusers, kind)(**FIRST, **({"num_vq_embeddings": 64} if kind == "VQModel" else {})))
    weights = guided_diffusion_names(unet.state_dict(), UNET)
    state = {"betas": BETAS.float(), "alphas_cumprod": torch.cumprod(1 - BETAS, 0).float()}
    state |= {f"model.diffusion_model.{k}": torch.zeros_like(v) for k, v in weights.items()}
    state |= {f"model_ema.diffusion_model{k.replace('.', '')}": v for k, v in weights.items()}
    state |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(3)}
    names = compvis_first_stage_names(first.state_dict(), 3)
    state |= {f"first_stage_model.{k}": v for k, v in names.items()}
    state |= {"first_stage_model.loss.discriminator.main.0.weight": torch.ones(2)} | changes
    torch.save({"epoch": 1, "state_dict": {k: v for k, v in state.items() if v is not None}}, path)
    return unet, first


@pytest.mark.parametrize("kind", ["VQModel", "AutoencoderKL"])
def test_against_diffusers(tmp_path: Path, kind: str) -> None:
    scale = {"scale_factor": torch.tensor(0.7)} if kind == "AutoencoderKL" else {}
    unet, first = write(tmp_path / "model.ckpt", kind, **scale)
    prior = load_prior(tmp_path / "model.ckpt", size=8)
    assert isinstance(prior, LatentPrior)
    assert (prior.shape, prior.image_shape) == ((3, 8, 8), (3, 32, 32))
    denoiser: Any = prior.denoiser
    # the sqrt-linear schedule, as the file holds it (float32)
    alphas_bar = torch.cumprod(1 - BETAS.float().double(), 0)
    sigmas = ((1 - alphas_bar) / alphas_bar).sqrt()
    steps = torch.arange(1000, dtype=torch.float64)
    torch.testing.assert_close(denoiser.module.schedule.index(sigmas), steps, rtol=1e-12, atol=1e-12)
    for t in (0, 50, 400):
        s = sigmas[t].float()
        x = (1 + s) * network_input(3, 8)
        expected = x - s * unet(x * alphas_bar[t].sqrt().float(), t).sample
        torch.testing.assert_close(prior(x, s), expected, rtol=1e-5, atol=1e-5 * float(1 + s))
    factor = 0.7 if kind == "AutoencoderKL" else 1.0
    image = network_input(3, 32)
    encoded = first.encode(image)
    z = factor * (encoded.latents if kind == "VQModel" else encoded.latent_dist.mean)
    torch.testing.assert_close(prior.encode(image), z, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(prior.decode(z), first.decode(z / factor).sample, rtol=1e-5, atol=1e-5)


def test_wrong_checkpoints_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    one = torch.ones(1)
    flat = "model_ema.diffusion_modelout0bias"
    for changes, match in (
        ({flat: None}, r"misses \['diffusion_modelout0bias'\]"),
        ({"model_ema.diffusion_modelx": one}, r"unexpected \['diffusion_modelx'\]"),
        ({"first_stage_model.encoder.down.1.attn.0.norm.weight": one}, "attention at other than the coarsest level"),
        ({"first_stage_model.extra": one}, r"unexpected \['first_stage_model.extra'\]"),
        ({"model.diffusion_model.label_emb.weight": one, "model_ema.diffusion_modellabel_embweight": one[None]},
         "conditional on 1 classes"),
    ):  # fmt: skip
        write(path, "VQModel", **changes)
        with pytest.raises(ValueError, match=match):
            load_prior(path, size=8)
    content = torch.load(path, weights_only=True)
    kept = {k: v for k, v in content["state_dict"].items() if not k.startswith("first_stage_model.")}
    torch.save({"state_dict": kept}, path)
    with pytest.raises(ValueError, match="no first stage"):
        load_prior(path, size=8)
    kept = {k: v for k, v in content["state_dict"].items() if not k.startswith("model_ema.")}
    torch.save({"state_dict": kept}, path)
    with pytest.raises(ValueError, match="no moving average"):
        load_prior(path, size=8)
