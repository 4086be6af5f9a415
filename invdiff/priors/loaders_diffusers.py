"""Folders of diffusers: ``UNet2DModel`` with its scheduler's configuration, and latent ones with an autoencoder.

The folder is a pipeline (``model_index.json``, parts in subfolders) or one model with ``scheduler_config.json``
beside it. Nothing but the configurations (JSON) and the weights (safetensors, or a torch file without objects) is
read. The networks themselves are those of the package diffusers (the extra ``diffusers``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from invdiff.priors.checkpoints import Checkpoint, File, Network, read_safetensors, read_torch, tensors
from invdiff.priors.denoiser import PREDICTIONS, PriorInfo
from invdiff.priors.schedules import DiscreteSchedule, linear_betas, sqrt_linear_betas

CLASSES = ("UNet2DModel", "AutoencoderKL", "VQModel")
WEIGHTS = tuple(f"diffusion_pytorch_model.{kind}" for kind in ("safetensors", "bin", "fp16.safetensors", "fp16.bin"))
# Attention of old files, renamed.
RENAMED = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def matches(file: File) -> bool:
    return file.path.is_dir() and _index(file.path) is not None


def read(file: File, *, data_range: tuple[float, float] | None = None) -> Checkpoint:
    """A folder.

    Args:
        data_range: values of the training images that are -1 and +1 in model units; default: (-1, 1) for DDPM
            and DDIM schedulers, (0, 1) for the variance-exploding one.
    """
    unet, scheduler, auto = _parts(file.path)
    config = _config(unet)
    if config.get("class_embed_type") or config.get("num_class_embeds"):
        raise ValueError(f"{file.path.name}: the network is class-conditional; only unconditional ones are supported.")
    weights, digest = _load(unet)
    network = Network(name="UNet2DModel", arguments=_arguments(config), weights=weights)
    size = config.get("sample_size")
    if size is None:
        raise ValueError(f"{file.path.name}: the configuration of the network has no 'sample_size'.")
    ny, nx = (size, size) if isinstance(size, int) else size
    name, values = _schedule(scheduler, file.path.name)
    if name == "ScoreDenoiser":
        if config.get("time_embedding_type") != "fourier":
            raise ValueError(f"{file.path.name}: a variance-exploding scheduler needs a network with Fourier features.")
        denoiser, sigmas = {"class": name}, (values["sigma_min"], values["sigma_max"])
        data_range = data_range or (0.0, 1.0)
    else:
        denoiser = {"class": name, **values}
        levels = DiscreteSchedule(values["betas"]).sigmas
        sigmas = (float(levels[0]), float(levels[-1]))
        data_range = data_range or (-1.0, 1.0)
    half = (data_range[1] - data_range[0]) / 2
    autoencoder = None
    if auto is not None:
        c = _config(auto)
        autoencoder = Network(name=c["_class_name"], arguments=_arguments(c), weights=_load(auto)[0])
    return Checkpoint(
        network=network,
        denoiser=denoiser,
        shape=(config["in_channels"], ny, nx),
        sigma_min=sigmas[0] / half,
        sigma_max=sigmas[1] / half,
        data_range=data_range,
        autoencoder=autoencoder,
        info=PriorInfo(
            name=file.path.resolve().name,
            value_range=(0.0, 1.0),
            quantity="the brightest pixel value",
            sha256=digest,
            details={"format": "diffusers folder", "scheduler": _config(scheduler).get("_class_name", "")},
        ),
    )


def _index(folder: Path) -> dict[str, Any] | None:
    """The configuration that tells a folder of diffusers, or None."""
    for name in ("model_index.json", "config.json"):
        try:
            config = json.loads((folder / name).read_text())
        except (OSError, ValueError):
            continue
        if isinstance(config, dict) and ("_diffusers_version" in config or config.get("_class_name") in CLASSES):
            return config
    return None


def _parts(folder: Path) -> tuple[Path, Path, Path | None]:
    """Folders or files of the network, of the scheduler, and of the autoencoder if there is one."""
    index = _index(folder) or {}
    if index.get("_class_name") in ("AutoencoderKL", "VQModel"):
        raise ValueError(f"{folder.name} is an autoencoder alone; expected the folder of the whole pipeline.")
    if index.get("_class_name") == "UNet2DModel":
        unet = folder
    else:
        unet = folder / "unet"
        if not unet.is_dir():  # old pipelines keep everything in one folder
            unet = folder
    found = _config(unet).get("_class_name")
    if found != "UNet2DModel":
        raise ValueError(f"{folder.name} holds a {found}; only unconditional networks (UNet2DModel) are supported.")
    scheduler = next(
        (p for p in (folder / "scheduler", folder, folder.parent / "scheduler") if _is_scheduler(p)), None
    )  # fmt: skip
    if scheduler is None:
        raise ValueError(f"{folder.name} has no scheduler_config.json; the noise schedule is needed.")
    autoencoder = next((folder / p for p in ("vqvae", "vae") if (folder / p).is_dir()), None)
    if autoencoder is not None and _config(autoencoder).get("_class_name") not in CLASSES[1:]:
        raise ValueError(f"{folder.name}: the autoencoder must be AutoencoderKL or VQModel.")
    return unet, scheduler / "scheduler_config.json", autoencoder


def _is_scheduler(folder: Path) -> bool:
    return (folder / "scheduler_config.json").is_file()


def _config(path: Path) -> dict[str, Any]:
    path = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path.parent.name} has no {path.name}.") from None
    except ValueError as error:
        raise ValueError(f"{path.name} is not readable JSON ({error}).") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path.name} holds a {type(config).__name__}, expected a JSON object.")
    return config


def _arguments(config: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in config.items() if not k.startswith("_")}


def _load(folder: Path) -> tuple[dict[str, Tensor], str]:
    """Weights of a model and the digest of their file."""
    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise ValueError(f"{folder.name} has none of {', '.join(WEIGHTS)}.")
    weights = read_safetensors(path)[0] if path.suffix == ".safetensors" else tensors(read_torch(path))
    for old, new in RENAMED.items():
        weights = {k.replace(old, new) if "attentions." in k else k: v for k, v in weights.items()}
    return weights, File(path).sha256()


def _schedule(path: Path, source: str) -> tuple[str, dict[str, Any]]:
    """Denoiser class and arguments (betas in float64) that a scheduler's configuration implies."""
    c = _config(path)
    kind = str(c.get("_class_name", ""))
    if kind == "ScoreSdeVeScheduler":
        return "ScoreDenoiser", {"sigma_min": c.get("sigma_min", 0.01), "sigma_max": c.get("sigma_max", 1348.0)}
    if not kind.startswith(("DDPM", "DDIM", "PNDM", "LMS", "DPM", "Euler")):
        raise ValueError(f"{source}: the scheduler {kind!r} is not supported; DDPM, DDIM and ScoreSdeVe are.")
    if c.get("rescale_betas_zero_snr"):
        raise ValueError(f"{source}: its last step is pure noise (rescale_betas_zero_snr), which has no finite sigma.")
    n, first, last = c.get("num_train_timesteps", 1000), c.get("beta_start", 1e-4), c.get("beta_end", 0.02)
    if (trained := c.get("trained_betas")) is not None:
        betas = torch.tensor(trained, dtype=torch.float64)
    elif (name := c.get("beta_schedule", "linear")) == "linear":
        betas = linear_betas(n, first, last)
    elif name == "scaled_linear":
        betas = sqrt_linear_betas(n, first, last)
    elif name == "squaredcos_cap_v2":  # Nichol and Dhariwal 2021, eq. 17
        f = [math.cos((i / n + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(n + 1)]
        betas = torch.tensor([min(1 - f[i + 1] / f[i], 0.999) for i in range(n)], dtype=torch.float64)
    else:
        raise ValueError(f"{source}: the schedule of betas {name!r} is not supported.")
    prediction = c.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise ValueError(f"{source}: prediction_type must be one of {', '.join(PREDICTIONS)}, got {prediction!r}.")
    return "DDPMDenoiser", {"betas": betas.tolist(), "prediction": prediction}


def constructor(name: str) -> Callable[..., nn.Module]:
    """Of a network of diffusers. Raises ValueError for an unknown name, ImportError without the package."""
    if name not in CLASSES:
        raise ValueError(f"Unknown network {name!r}; known classes of diffusers are {', '.join(CLASSES)}.")
    try:
        import diffusers
    except ImportError:
        raise ImportError(
            f"The network {name} comes from the package diffusers: pip install 'invdiff[diffusers]'."
        ) from None
    cls = getattr(diffusers, name)

    def build(**arguments: Any) -> nn.Module:
        module = cls(**arguments)
        if name == "UNet2DModel":
            module.register_forward_hook(_sample)
        return module

    return build


def _sample(module: nn.Module, inputs: Any, output: Any) -> Tensor:
    return output.sample


class DiffusersAutoencoder(nn.Module):
    """``AutoencoderKL`` or ``VQModel`` as encoder and decoder of a latent prior.

    A latent is the mean of the encoder's distribution (or its output before quantisation) times the configured
    ``scaling_factor``; decoding divides by it, and quantises where the model does.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        config: Any = model.config
        self.channels, self.latent_channels = config.in_channels, config.latent_channels
        self.factor, self.scale = 2 ** (len(config.block_out_channels) - 1), float(config.scaling_factor)
        self.shift = float(getattr(config, "shift_factor", None) or 0.0)

    def encode(self, x: Tensor) -> Tensor:
        """Images (batch, channels, y, x) in model units to latents."""
        encoded: Any = self.model.encode(x)  # type: ignore[operator]
        z = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        return (z - self.shift) * self.scale

    def decode(self, z: Tensor) -> Tensor:
        """Latents to images in model units."""
        return self.model.decode(z / self.scale + self.shift).sample  # type: ignore[operator]
