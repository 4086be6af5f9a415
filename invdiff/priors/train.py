"""Training a prior: ``invdiff train CONFIG.toml --out DIR``.

EDM denoising score matching (Karras et al. 2022, arXiv 2206.00364): noise levels log-normal, loss weighted by
``1 / c_out^2``, an exponential moving average of the weights, mixed precision on an accelerator. The state is
checkpointed at intervals and on exit; the same command continues, and step ``k`` draws the same batch whether
or not the run was interrupted. Everything but building the slice file needs only torch, numpy and h5py.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invdiff.datasets.slices import MODALITIES, build_slices, load_slices
from invdiff.priors.augment import Augmentation, SliceSampler
from invdiff.priors.checkpoints import save_prior
from invdiff.priors.denoiser import EDMDenoiser, PriorInfo
from invdiff.priors.networks import UNet
from invdiff.storage import atomic_path

SIGMAS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)  # levels of the validation curve, model units (range 2)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One prior, from data to weights; the fields of a training TOML file.

    Attributes:
        name: of the prior and its file.
        modality: a key of ``invdiff.datasets.slices.MODALITIES``.
        train, validation: volume files, relative to the data folder.
        trained_on, licence, quantity: for the model card.
        augmentation: table of :class:`~invdiff.priors.augment.Augmentation`.
        network: table of constructor arguments of :class:`~invdiff.priors.networks.UNet`.
        n_steps, batch_size: length of the run and images per step.
        learning_rate: of Adam, warmed up over 100 steps, cosine decay to 2 % of it.
        p_mean, p_std: of ln sigma in training.
        sigma_min, sigma_max: stated range of the prior.
        ema: largest decay of the weight average per step.
        seed: of everything random.
    """

    name: str
    modality: str
    train: tuple[str, ...]
    validation: tuple[str, ...]
    trained_on: str = ""
    licence: str = ""
    quantity: str = "relative value"
    augmentation: Augmentation = field(default_factory=Augmentation)
    network: dict[str, Any] = field(default_factory=dict)
    n_steps: int = 2000
    batch_size: int = 16
    learning_rate: float = 1e-3
    p_mean: float = -1.2
    p_std: float = 1.4
    sigma_min: float = 0.005
    sigma_max: float = 100.0
    ema: float = 0.999
    seed: int = 0

    @classmethod
    def read(cls, path: Path) -> TrainConfig:
        """From a TOML file. Raises ValueError naming unknown or missing entries."""
        try:
            import tomllib
        except ModuleNotFoundError:  # Python 3.10
            import tomli as tomllib  # type: ignore[no-redef]
        try:
            table = tomllib.loads(path.read_text())
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path.name} is not valid TOML: {error}") from None
        augmentation = _checked(Augmentation, table.pop("augmentation", {}), f"{path.name} [augmentation]")
        config = _checked(cls, {**table, "augmentation": augmentation}, path.name)
        if config.modality not in MODALITIES:
            raise ValueError(
                f"{path.name}: unknown modality {config.modality!r}; it must be one of {list(MODALITIES)}."
            )
        return config


def _checked(cls: type, table: dict[str, Any], where: str) -> Any:
    fields = {f.name: f for f in dataclasses.fields(cls)}
    if unknown := sorted(set(table) - set(fields)):
        raise ValueError(f"{where}: no parameter {', '.join(map(repr, unknown))}; it has {', '.join(fields)}.")
    missing = [
        n for n, f in fields.items()
        if n not in table and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]  # fmt: skip
    if missing:
        raise ValueError(f"{where}: missing {', '.join(missing)}.")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in table.items()})


def train(
    config: TrainConfig,
    out: Path,
    *,
    data: Path | None = None,
    max_minutes: float = math.inf,
    device: torch.device | str | None = None,
    callback: Callable[..., None] | None = None,
) -> Path | None:
    """Train, or continue training, in the folder ``out``.

    Args:
        out: holds ``slices.h5``, ``checkpoint.pt``, ``samples.png`` and at the end ``NAME.safetensors`` and
            ``NAME.md`` (the model card).
        data: folder of the volumes; needed only while ``out/slices.h5`` does not exist.
        max_minutes: stop (checkpointed) after this time; the learning rate follows the planned length.
        device: default: an accelerator if there is one.
        callback: called as ``callback(step, n_steps, loss)`` after each step.

    Returns:
        The weights file, or None if the run stopped before its last step.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    slices = out / "slices.h5"
    modality = MODALITIES[config.modality]
    if not slices.exists():
        if data is None:
            raise ValueError(f"{slices} does not exist yet: give the folder of the volumes (--data).")
        missing = [n for n in (*config.train, *config.validation) if not (data / n).is_file()]
        if missing:
            raise FileNotFoundError(f"Not in {data}: {', '.join(missing)}.")
        build_slices(
            slices, root=data, modality=modality, train=config.train, validation=config.validation,
            coarsest=config.augmentation.pixel_size[1],
        )  # fmt: skip
    stacks, value_range = load_slices(slices, "train")
    sampler = SliceSampler(stacks, config.augmentation, value_range)

    with torch.random.fork_rng():  # weight initialisation; every batch has its own generator
        torch.default_generator.manual_seed(config.seed)
        denoiser = EDMDenoiser(UNet(**config.network))
    denoiser.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(denoiser).eval().requires_grad_(False)
    optimiser = torch.optim.Adam(denoiser.parameters(), lr=config.learning_rate, betas=(0.9, 0.99))
    checkpoint, step, seconds, losses = out / "checkpoint.pt", 0, 0.0, []
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=device)
        denoiser.load_state_dict(state["denoiser"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        step, seconds, losses = state["step"], state["seconds"], state["losses"]

    def save() -> None:
        with atomic_path(checkpoint) as tmp:
            torch.save(
                {"denoiser": denoiser.state_dict(), "average": average.state_dict(), "step": step, "losses": losses,
                 "optimiser": optimiser.state_dict(), "seconds": seconds + time.monotonic() - begun}, tmp
            )  # fmt: skip

    begun = last_save = time.monotonic()
    try:
        while step < config.n_steps and time.monotonic() - begun < 60 * max_minutes:
            for group in optimiser.param_groups:
                group["lr"] = config.learning_rate * _rate(step, config.n_steps)
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
            x0 = sampler.batch(config.batch_size, generator).to(device)
            sigma = (config.p_mean + config.p_std * torch.randn(len(x0), generator=generator)).exp().to(device)
            noise = torch.randn(x0.shape, generator=generator).to(device)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
                loss = edm_loss(denoiser, x0, sigma, noise)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
            optimiser.step()
            decay = min(config.ema, (1 + step) / (10 + step))
            with torch.no_grad():
                for a, p in zip(average.parameters(), denoiser.parameters(), strict=True):
                    a.lerp_(p, 1 - decay)
            step += 1
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(
                    f"The loss is {losses[-1]} at step {step}; lower learning_rate={config.learning_rate}."
                )
            if callback is not None:
                callback(step, config.n_steps, losses[-1])
            if time.monotonic() - last_save > 120:
                save()
                last_save = time.monotonic()
    finally:
        save()
        seconds += time.monotonic() - begun
    sample_sheet(average, config.augmentation.size, out / "samples.png", seed=config.seed)
    if step < config.n_steps:
        return None
    curve = denoising_curve(average, slices, config.augmentation)
    info = PriorInfo(
        name=config.name, value_range=value_range, quantity=config.quantity, pixel_size=config.augmentation.pixel_size,
        trained_on=config.trained_on, licence=config.licence,
        details={
            "n_steps": step, "batch_size": config.batch_size, "hours": round(seconds / 3600, 2),
            "hardware": hardware(device), "validation": ", ".join(Path(v).name for v in config.validation),
            "denoising_psnr": curve,
        },
    )  # fmt: skip
    path = out / f"{config.name}.safetensors"
    size = config.augmentation.size
    save_prior(
        path, average, dict(config.network), shape=(1, size, size),
        sigma_min=config.sigma_min, sigma_max=config.sigma_max, info=info,
    )  # fmt: skip
    with atomic_path(path.with_suffix(".md")) as tmp:
        tmp.write_text(model_card(info, sum(p.numel() for p in average.parameters())))
    return path


def edm_loss(denoiser: EDMDenoiser, x0: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """Mean of ``|D(x0 + sigma n, sigma) - x0|^2 / c_out^2`` (Karras et al. 2022, eq. 2 and table 1)."""
    s, sd = sigma.reshape(-1, *[1] * (x0.ndim - 1)), denoiser.sigma_data
    weight = (s.square() + sd**2) / (s * sd).square()
    return (weight * (denoiser(x0 + s * noise, sigma) - x0).square()).mean()


def _rate(step: int, n_steps: int) -> float:
    return min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / n_steps)))


@torch.no_grad()
def sample_sheet(denoiser: EDMDenoiser, size: int, path: Path, *, seed: int, n: int = 16, n_steps: int = 40) -> None:
    """Unconditional samples by the deterministic Euler sampler, as a picture."""
    import matplotlib.image

    from invdiff.priors.schedules import karras_sigmas

    p = next(denoiser.parameters())
    sigmas = [*karras_sigmas(n_steps - 1, 0.01, 80.0).tolist(), 0.0]
    x = sigmas[0] * torch.randn(n, 1, size, size, generator=torch.Generator().manual_seed(seed)).to(p.device)
    for s, s_next in zip(sigmas[:-1], sigmas[1:], strict=True):
        d = (x - denoiser(x, torch.full((n,), s, device=p.device))) / s
        x = x + (s_next - s) * d
    rows = x.clamp(-1, 1).cpu().reshape(n // 8, 8, size, size).permute(0, 2, 1, 3).reshape(n // 8 * size, 8 * size)
    with atomic_path(path) as tmp:
        matplotlib.image.imsave(tmp, rows.numpy(), cmap="gray", format="png")


@torch.no_grad()
def denoising_curve(
    denoiser: EDMDenoiser, slices: Path, augmentation: Augmentation, n: int = 32
) -> list[dict[str, float]]:
    """PSNR (range 2) per noise level on held-out slices: noisy input, total variation, this prior.

    The total-variation weight is the best of five for each level on the same images, which favours the baseline.
    """
    from skimage.restoration import denoise_tv_chambolle

    stacks, value_range = load_slices(slices, "validation")
    plain = dataclasses.replace(augmentation, rotation=0.0, gain=0.0, gamma=0.0, remap=0.0, bias=0.0)
    generator = torch.Generator().manual_seed(1)
    x0 = SliceSampler(stacks, plain, value_range).batch(n, generator)
    device = next(denoiser.parameters()).device

    def psnr(x: Tensor) -> float:
        return float((10 * torch.log10(4 / (x - x0).square().mean((1, 2, 3)))).mean())

    rows = []
    for sigma in SIGMAS:
        noisy = x0 + sigma * torch.randn(x0.shape, generator=generator)
        tv = max(
            psnr(torch.stack([torch.from_numpy(denoise_tv_chambolle(v[0].numpy(), w * sigma))[None] for v in noisy]))
            for w in (0.6, 0.9, 1.2, 1.6, 2.2)
        )
        ours = denoiser(noisy.to(device), torch.full((n,), sigma, device=device)).cpu()
        rows.append({"sigma": sigma, "noisy": psnr(noisy), "tv": tv, "prior": psnr(ours)})
    return rows


def hardware(device: torch.device) -> str:
    """What the training ran on, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def model_card(info: PriorInfo, n_parameters: int) -> str:
    """The model card as Markdown."""
    d = info.details
    lo, hi = info.value_range
    curve = "\n".join(
        f"| {r['sigma']:g} | {r['noisy']:.1f} | {r['tv']:.1f} | {r['prior']:.1f} |" for r in d["denoising_psnr"]
    )
    sizes = "" if info.pixel_size is None else f"{info.pixel_size[0]:g} to {info.pixel_size[1]:g} mm"
    return f"""# {info.name}

| | |
|---|---|
| image values | {lo:g} to {hi:g}; 1 is {info.quantity} |
| pixel size in training | {sizes} |
| trained on | {info.trained_on} |
| licence of the data | {info.licence} |
| network | U-Net, {n_parameters / 1e6:.2f} M parameters, EDM preconditioning, stored in fp16 |
| training | {d["n_steps"]} steps of {d["batch_size"]} images, {d["hours"]:g} h on {d["hardware"]} |
| held out | {d["validation"]} |

Denoising of held-out slices, PSNR in dB (range 2), mean over 32 images; TV is the best of five weights per level:

| sigma | noisy | TV | this prior |
|---|---|---|---|
{curve}

A first, small prior: few subjects, short training. Its posterior samples look plausible before they are right;
check data fit and calibration on your own data. Not a medical device.
"""
