"""Folders of diffusers, written by diffusers itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from invdiff.priors import LatentPrior, NetworkPrior, load_prior

from .layouts import randomise

diffusers = pytest.importorskip("diffusers", reason="needs the extra 'diffusers'")

UNET: dict[str, Any] = {
    "sample_size": 16, "in_channels": 2, "out_channels": 2, "block_out_channels": (32, 64), "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 32,
}  # fmt: skip
SIGMA = torch.tensor([0.02, 1.0, 60.0])


def images(shape: tuple[int, ...], sigma: Tensor = SIGMA) -> Tensor:
    g = torch.Generator().manual_seed(1)
    x = torch.rand(len(sigma), *shape, generator=g) * 2 - 1
    return x + sigma[:, None, None, None] * torch.randn(x.shape, generator=g)


def write(folder: Path, scheduler: Any, model: Any = None) -> Any:
    model = model or randomise(diffusers.UNet2DModel(**UNET))
    model.save_pretrained(folder / "unet")
    scheduler.save_pretrained(folder / "scheduler")
    index = {"_class_name": "DDPMPipeline", "_diffusers_version": diffusers.__version__}
    (folder / "model_index.json").write_text(json.dumps(index))
    return model


def vp_betas(config: Any) -> Tensor:
    n, first, last = config.num_train_timesteps, config.beta_start, config.beta_end
    if config.beta_schedule == "linear":
        return torch.linspace(first, last, n, dtype=torch.float64)
    return torch.linspace(first**0.5, last**0.5, n, dtype=torch.float64) ** 2


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("kind", ["DDPMScheduler", "DDIMScheduler"])
def test_the_denoiser_is_what_the_original_network_says_of_the_clean_image(
    tmp_path: Path, kind: str, prediction: str
) -> None:
    schedule = "linear" if kind == "DDPMScheduler" else "scaled_linear"
    scheduler = getattr(diffusers, kind)(prediction_type=prediction, beta_schedule=schedule, clip_sample=False)
    model = write(tmp_path, scheduler)
    prior = load_prior(tmp_path)
    assert isinstance(prior, NetworkPrior)
    assert (prior.shape, prior.info.details["format"]) == ((2, 16, 16), "diffusers folder")
    # sigma to index, by the betas, at every step
    alphas_bar = torch.cumprod(1 - vp_betas(scheduler.config), 0)
    sigmas = ((1 - alphas_bar) / alphas_bar).sqrt()
    steps = torch.arange(len(sigmas), dtype=torch.float64)
    torch.testing.assert_close(prior.module.schedule.index(sigmas), steps, rtol=1e-12, atol=1e-12)
    assert (prior.sigma_min, prior.sigma_max) == (pytest.approx(float(sigmas[0])), pytest.approx(float(sigmas[-1])))
    # the clean image, by the scheduler's own step
    for t in (3, 400, 950):
        s = sigmas[t].float()
        x = images((2, 16, 16), s.repeat(2))
        v = x / (1 + s**2).sqrt()
        out = model(v, t).sample
        expected = scheduler.step(out, t, v).pred_original_sample if kind == "DDPMScheduler" else None
        ab = alphas_bar[t].float()
        by_hand = {
            "epsilon": (v - (1 - ab).sqrt() * out) / ab.sqrt(),
            "v_prediction": ab.sqrt() * v - (1 - ab).sqrt() * out,
            "sample": out,
        }[prediction]
        got = prior(x, s)
        scale = float(by_hand.abs().max())
        torch.testing.assert_close(got, by_hand, rtol=1e-5, atol=1e-5 * scale)
        if expected is not None:
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * scale)  # its betas are in float32


def test_trained_and_cosine_betas(tmp_path: Path) -> None:
    betas = [0.01 + 0.002 * i for i in range(10)]
    write(tmp_path / "trained", diffusers.DDPMScheduler(trained_betas=betas, num_train_timesteps=10))
    assert load_prior(tmp_path / "trained").module.schedule.betas.tolist() == betas
    scheduler = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    write(tmp_path / "cosine", scheduler)
    got = load_prior(tmp_path / "cosine").module.schedule.betas
    torch.testing.assert_close(got.float(), scheduler.betas, rtol=1e-6, atol=1e-9)


def test_old_folders_keep_everything_in_one_place_and_name_attention_otherwise(tmp_path: Path) -> None:
    model = randomise(diffusers.UNet2DModel(**UNET))
    names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    weights = model.state_dict()
    for new, old in names.items():
        weights = {k.replace(new, old): v for k, v in weights.items()}
    assert any(".proj_attn." in k for k in weights)
    torch.save(weights, tmp_path / "diffusion_pytorch_model.bin")
    model.save_config(tmp_path)
    diffusers.DDPMScheduler().save_pretrained(tmp_path)
    x = images((2, 16, 16))
    alphas_bar = 1 / (1 + SIGMA**2)
    prior = load_prior(tmp_path)
    t = prior.module.schedule.index(SIGMA).float()
    eps = model(x * alphas_bar.sqrt()[:, None, None, None], t).sample
    torch.testing.assert_close(prior(x, SIGMA), x - SIGMA[:, None, None, None] * eps, rtol=1e-5, atol=1e-4)


def test_variance_exploding(tmp_path: Path) -> None:
    # data in [0, 1]: the network sees sigma / 2 of ours; NCSN++ with skip inputs and outputs, as google/ncsnpp-*
    config = UNET | {
        "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"), "norm_eps": 1e-6,
        "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"), "in_channels": 3, "out_channels": 3,
        "time_embedding_type": "fourier", "center_input_sample": True,
    }  # fmt: skip
    model = randomise(diffusers.UNet2DModel(**config))
    write(tmp_path, diffusers.ScoreSdeVeScheduler(sigma_max=100.0), model)
    prior = load_prior(tmp_path)
    assert (prior.sigma_min, prior.sigma_max) == (0.02, 200.0)
    x = images((3, 16, 16))
    s = SIGMA[:, None, None, None] / 2
    v = (x + 1) / 2
    clean = v + s**2 * model(v, SIGMA / 2).sample  # Tweedie, from the score
    torch.testing.assert_close(prior(x, SIGMA), 2 * clean - 1, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", ["AutoencoderKL", "VQModel"])
def test_latent(tmp_path: Path, kind: str) -> None:
    common = {
        "block_out_channels": (32, 32, 32), "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3, "latent_channels": 2, "in_channels": 3, "out_channels": 3,
    }  # fmt: skip
    extra = {"num_vq_embeddings": 64} if kind == "VQModel" else {}
    auto = randomise(getattr(diffusers, kind)(**common, **extra, scaling_factor=0.7), std=0.1)
    auto.save_pretrained(tmp_path / ("vqvae" if kind == "VQModel" else "vae"))
    write(tmp_path, diffusers.DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195))
    prior = load_prior(tmp_path)
    assert isinstance(prior, LatentPrior)
    assert (prior.shape, prior.image_shape) == ((2, 16, 16), (3, 64, 64))
    x = images((3, 64, 64), torch.zeros(2))
    z = prior.encode(x)
    encoded = auto.encode(x)
    expected = encoded.latents if kind == "VQModel" else encoded.latent_dist.mean
    torch.testing.assert_close(z, 0.7 * expected, rtol=1e-5, atol=1e-5)
    decoded = auto.decode(z / 0.7).sample
    torch.testing.assert_close(prior.decode(z), decoded, rtol=1e-5, atol=1e-5 * float(decoded.abs().max()))
    assert not any(p.requires_grad for m in prior.modules for p in m.parameters())


class TestRefused:
    def test_missing_unexpected_and_wrong_weights(self, tmp_path: Path) -> None:
        from safetensors.torch import load_file, save_file

        write(tmp_path, diffusers.DDPMScheduler())
        path = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
        weights = load_file(path)
        bias = weights.pop("conv_in.bias")
        save_file({**weights, "extra": bias}, path)
        with pytest.raises(ValueError, match=r"missing \['conv_in.bias'\], unexpected \['extra'\]"):
            load_prior(tmp_path)
        save_file({**weights, "conv_in.bias": bias[:16].contiguous()}, path)
        with pytest.raises(ValueError, match=r"'conv_in.bias' should be \(32,\), it is \(16,\)"):
            load_prior(tmp_path)
        path.write_bytes(path.read_bytes()[:5000])
        with pytest.raises(ValueError, match="truncated"):
            load_prior(tmp_path)
        path.unlink()
        with pytest.raises(ValueError, match="unet has none of diffusion_pytorch_model.safetensors"):
            load_prior(tmp_path)

    def test_configurations(self, tmp_path: Path) -> None:
        write(tmp_path, diffusers.DDPMScheduler())
        for file, change, match in (
            ("unet", {"num_class_embeds": 10}, "class-conditional"),
            ("unet", {"_class_name": "UNet2DConditionModel"}, "holds a UNet2DConditionModel"),
            ("unet", {"sample_size": None}, "no 'sample_size'"),
            ("scheduler", {"prediction_type": "flow"}, "prediction_type must be one of"),
            ("scheduler", {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "scheduler 'FlowMatch.* not supported"),
            ("scheduler", {"rescale_betas_zero_snr": True}, "no finite sigma"),
            ("scheduler", {"beta_schedule": "laplace"}, "'laplace' is not supported"),
        ):
            path = tmp_path / file / ("config.json" if file == "unet" else "scheduler_config.json")
            original = path.read_text()
            path.write_text(json.dumps({**json.loads(original), **change}))
            with pytest.raises(ValueError, match=match):
                load_prior(tmp_path)
            path.write_text(original)
        with pytest.raises(TypeError, match="has no option size; it has data_range"):
            load_prior(tmp_path, size=3)
        (tmp_path / "scheduler" / "scheduler_config.json").unlink()
        with pytest.raises(ValueError, match=r"no scheduler_config.json; the noise schedule is needed"):
            load_prior(tmp_path)
        with pytest.raises(ValueError, match="not an invdiff prior, nor a known checkpoint"):
            load_prior(tmp_path / "scheduler")
