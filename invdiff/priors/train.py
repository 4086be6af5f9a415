"""Training a prior: ``invdiff train CONFIG.toml --out DIR``.

EDM denoising score matching (Karras et al. 2022, arXiv 2206.00364): noise levels log-normal, loss weighted by
``1 / c_out^2``, an exponential moving average of the weights, mixed precision on an accelerator. The state is
checkpointed at intervals and on exit; the same command continues, and step ``k`` draws the same batch whether
or not the run was interrupted. Everything but building the slice file needs only torch, numpy and h5py.

A configuration with a table ``[autoencoder]`` makes a latent prior: the autoencoder is trained first, then the
denoiser on its latents, each with its own checkpoint.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np
import torch
from torch import Tensor, nn

from invdiff.datasets.slices import MODALITIES, build_slices, load_slices
from invdiff.priors.augment import Augmentation, SliceSampler
from invdiff.priors.autoencoder import Autoencoder, autoencoder_loss
from invdiff.priors.checkpoints import save_prior
from invdiff.priors.configuration import TrainConfig
from invdiff.priors.denoiser import VALIDATION_SIGMAS, EDMDenoiser, PriorInfo, read_in_float32
from invdiff.priors.networks import UNet
from invdiff.storage import atomic_path

M = TypeVar("M", bound=nn.Module)
Callback = Callable[..., None]
TV_WEIGHTS = (0.6, 0.9, 1.2, 1.6, 2.2)  # of the baseline, times sigma


def _same(stored: dict[str, str], ours: dict[str, str], file: Path) -> None:
    """Raise ValueError unless the digests agree, as far as they are stored: earlier versions stored none."""
    if other := [name for name in ours if stored.get(name, ours[name]) != ours[name]]:
        raise ValueError(
            f"{file} belongs to another configuration, which differs in {', '.join(other)}: train this one in another "
            f"folder (--out), or continue with the configuration that the folder was started with."
        )


def train(
    config: TrainConfig,
    out: Path,
    *,
    data: Path | None = None,
    max_minutes: float = math.inf,
    device: torch.device | str | None = None,
    bfloat16: bool | None = None,
    callback: Callback | None = None,
) -> Path | None:
    """Train, or continue training, in the folder ``out``.

    Args:
        out: holds ``slices.h5``, ``checkpoint.pt``, ``samples.png`` and at the end ``NAME.safetensors`` and
            ``NAME.md`` (the model card).
        data: folder of the volumes; needed only while ``out/slices.h5`` does not exist.
        max_minutes: stop (checkpointed) after this time; the learning rate follows the planned length.
        device: default: an accelerator if there is one.
        bfloat16: convolutions in bfloat16 but for the first, weights and the rest in float32. None: on an accelerator
            only; a processor with instructions for it takes 0.5 to 0.7 of the time.
        callback: called as ``callback(step, n_steps, loss)`` after each step.

    Returns:
        The weights file, or None if the run stopped before its last step.

    Raises:
        ValueError: ``out`` was started with another configuration. Lengths of the run, batch sizes, learning rates,
            the weight average and texts may change half-way.
    """
    if not max_minutes >= 0:
        raise ValueError(f"max_minutes must be 0 or more, got {max_minutes}.")
    if data is not None and not data.is_dir():
        raise FileNotFoundError(f"No such folder of volumes (--data): {data}")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    bfloat16 = device.type != "cpu" if bfloat16 is None else bfloat16
    slices = out / "slices.h5"
    modality = MODALITIES[config.modality]
    if slices.exists():
        with h5py.File(slices, "r") as f:
            _same(json.loads(f.attrs.get("origin", "{}")), config.of_slices(), slices)
    else:
        names = (*config.train, *config.validation)
        if data is None and names:
            raise ValueError(f"{slices} does not exist yet: give the folder of the volumes (--data).")
        if missing := [n for n in names if not (Path(data or ".") / n).is_file()]:
            raise FileNotFoundError(f"Not in {data}: {', '.join(missing)}.")
        made = {p.name: p.images() for p in config.phantoms}
        build_slices(
            slices, root=data, modality=modality, train=config.train, validation=config.validation,
            coarsest=config.augmentation.pixel_size[1],
            phantoms={p.name: (p.split, made[p.name], made[p.name].pixel_size) for p in config.phantoms},
            origin=json.dumps(config.of_slices()),
        )  # fmt: skip
    stacks, value_range = load_slices(slices, "train")
    sampler = SliceSampler(stacks, config.augmentation, value_range)
    channels = config.augmentation.channels

    deadline = time.monotonic() + 60 * max_minutes
    size, total, autoencoder, seconds = config.augmentation.size, config.total_steps, None, 0.0
    common: dict[str, Any] = {
        "deadline": deadline, "device": device, "ema": config.ema, "bfloat16": bfloat16,
    }  # fmt: skip

    def seeded(step: int) -> torch.Generator:
        return torch.Generator().manual_seed(config.seed * 1_000_003 + step)

    if config.autoencoder is not None:
        first = config.autoencoder
        with torch.random.fork_rng():
            torch.default_generator.manual_seed(config.seed)
            autoencoder = Autoencoder(**first.network())

        def calibration() -> Iterator[Tensor]:
            return (sampler.batch(8, seeded(-1 - i)).to(device) for i in range(32))

        def reconstruct(model: Autoencoder, generator: torch.Generator) -> Tensor:
            x = sampler.batch(first.batch_size, generator)
            noise = torch.randn((len(x), *model.latent_shape(x.shape[1:])), generator=generator)
            return autoencoder_loss(model, x.to(device), noise.to(device), first.noise, first.l1)

        state = out / "autoencoder.pt"
        autoencoder.to(device)
        if not state.exists():
            autoencoder.calibrate(calibration())
        autoencoder, done, seconds = _fit(
            "autoencoder", autoencoder, reconstruct, state, n_steps=first.n_steps, learning_rate=first.learning_rate,
            generator=seeded, callback=_offset(callback, 0, total), identity=config.of_autoencoder(), **common,
        )  # fmt: skip
        if done < first.n_steps:
            return None
        autoencoder.calibrate(calibration())

    with torch.random.fork_rng():  # weight initialisation; every batch has its own generator
        torch.default_generator.manual_seed(config.seed)
        denoiser = EDMDenoiser(UNet(**config.network))

    def denoise(model: EDMDenoiser, generator: torch.Generator) -> Tensor:
        x0 = sampler.batch(config.batch_size, generator).to(device)
        if autoencoder is not None:
            with torch.no_grad(), torch.autocast(device.type, enabled=False):
                x0 = autoencoder.encode(x0)
        sigma = (config.p_mean + config.p_std * torch.randn(len(x0), generator=generator)).exp().to(device)
        noise = torch.randn(x0.shape, generator=generator).to(device)
        return edm_loss(model, x0, sigma, noise)

    average, step, more = _fit(
        "denoiser", denoiser, denoise, out / "checkpoint.pt", n_steps=config.n_steps,
        learning_rate=config.learning_rate, generator=seeded,
        callback=_offset(callback, total - config.n_steps, total), identity=config.of_denoiser(), **common,
    )  # fmt: skip
    shape = (channels, size, size) if autoencoder is None else autoencoder.latent_shape((1, size, size))
    sample_sheet(average, shape, out / "samples.png", seed=config.seed, autoencoder=autoencoder)
    if step < config.n_steps:
        return None
    held = [Path(v).name for v in config.validation] + [p.name for p in config.phantoms if p.split == "validation"]
    details: dict[str, Any] = {
        "n_steps": step, "batch_size": config.batch_size, "hours": round((seconds + more) / 3600, 2),
        "hardware": hardware(device), "validation": ", ".join(held),
    }  # fmt: skip
    if config.autoencoder is not None and autoencoder is not None:
        details["autoencoder_steps"] = config.autoencoder.n_steps
        details["reconstruction_psnr"] = reconstruction_psnr(autoencoder, slices, config.augmentation)
    details["denoising_psnr"] = denoising_curve(average, slices, config.augmentation, autoencoder=autoencoder)
    pixel_size = config.augmentation.pixel_size if modality.millimetres else None
    info = PriorInfo(
        name=config.name, value_range=sampler.value_range, quantity=config.quantity, pixel_size=pixel_size,
        trained_on=config.trained_on, licence=config.licence, details=details,
    )  # fmt: skip
    path = out / f"{config.name}.safetensors"
    save_prior(
        path, average, dict(config.network), shape=shape, sigma_min=config.sigma_min, sigma_max=config.sigma_max,
        info=info, autoencoder=autoencoder,
    )  # fmt: skip
    with atomic_path(path.with_suffix(".md")) as tmp:
        n = [sum(p.numel() for p in net.parameters()) for net in (average, autoencoder) if net is not None]
        tmp.write_text(model_card(info, *n))
    return path


def _offset(callback: Callback | None, steps: int, total: int) -> Callback:
    return lambda step, loss: None if callback is None else callback(steps + step, total, loss)


def _fit(
    name: str,
    model: M,
    loss_of: Callable[[M, torch.Generator], Tensor],
    checkpoint: Path,
    *,
    identity: dict[str, str],
    n_steps: int,
    learning_rate: float,
    ema: float,
    generator: Callable[[int], torch.Generator],
    deadline: float,
    device: torch.device,
    bfloat16: bool,
    callback: Callback,
) -> tuple[M, int, float]:
    """Train ``model`` to the last step or the deadline: its weight average, the steps and the seconds so far.

    Args:
        name: of the model, in the checkpoint.
        loss_of: ``loss_of(model, generator)``, drawing its batch from the generator.
        checkpoint: file of the state, continued if it exists.
        identity: digests of what may not change on the way.
    """
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(model).eval().requires_grad_(False)
    if bfloat16:
        read_in_float32(model)
    optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate, betas=(0.9, 0.99))
    step, seconds, losses = 0, 0.0, []
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=device)
        _same(state.get("identity", {}), identity, checkpoint)
        try:
            model.load_state_dict(state[name])
        except (KeyError, RuntimeError):
            raise ValueError(f"{checkpoint} holds another network: give another folder (--out).") from None
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        step, seconds, losses = state["step"], state["seconds"], state["losses"]

    def save() -> None:
        with atomic_path(checkpoint) as tmp:
            torch.save(
                {name: model.state_dict(), "average": average.state_dict(), "step": step, "losses": losses,
                 "optimiser": optimiser.state_dict(), "seconds": seconds + time.monotonic() - begun,
                 "identity": identity}, tmp
            )  # fmt: skip

    begun = last_save = time.monotonic()
    started = step
    try:
        while step < n_steps and time.monotonic() < deadline:
            for group in optimiser.param_groups:
                group["lr"] = learning_rate * _rate(step, n_steps)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16):
                loss = loss_of(model, generator(step))
            optimiser.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            if not (math.isfinite(value := float(loss.detach())) and math.isfinite(norm)):
                raise FloatingPointError(  # before the step: the weights that are saved are finite
                    f"The loss of the {name} is {value} at step {step + 1}, its gradient has norm {float(norm)}; lower "
                    f"learning_rate={learning_rate}. The weights before this step are kept."
                )
            optimiser.step()
            decay = min(ema, (1 + step) / (10 + step))
            with torch.no_grad():
                for a, p in zip(average.parameters(), model.parameters(), strict=True):
                    a.lerp_(p, 1 - decay)
            step += 1
            losses.append(value)
            callback(step, value)
            if time.monotonic() - last_save > 120:
                save()
                last_save = time.monotonic()
    finally:
        if step > started or not checkpoint.exists():
            save()
            seconds += time.monotonic() - begun
    return average, step, seconds


def edm_loss(denoiser: EDMDenoiser, x0: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """Mean of ``|D(x0 + sigma n, sigma) - x0|^2 / c_out^2`` (Karras et al. 2022, eq. 2 and table 1)."""
    s, sd = sigma.reshape(-1, *[1] * (x0.ndim - 1)), denoiser.sigma_data
    weight = (s.square() + sd**2) / (s * sd).square()
    return (weight * (denoiser(x0 + s * noise, sigma) - x0).square()).mean()


def _rate(step: int, n_steps: int) -> float:
    return min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / n_steps)))


@torch.no_grad()
def sample_sheet(
    denoiser: EDMDenoiser,
    shape: tuple[int, ...],
    path: Path,
    *,
    seed: int,
    n: int = 16,
    n_steps: int = 40,
    autoencoder: Autoencoder | None = None,
) -> None:
    """Unconditional samples by the deterministic Euler sampler, as a picture; latents are decoded."""
    import matplotlib.image

    from invdiff.priors.schedules import karras_sigmas

    p = next(denoiser.parameters())
    sigmas = [*karras_sigmas(n_steps - 1, 0.01, 80.0).tolist(), 0.0]
    x = sigmas[0] * torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed)).to(p.device)
    for s, s_next in zip(sigmas[:-1], sigmas[1:], strict=True):
        d = (x - denoiser(x, torch.full((n,), s, device=p.device))) / s
        x = x + (s_next - s) * d
    if autoencoder is not None:
        x = autoencoder.decode(x)
    size = x.shape[-1]
    if shape[0] == 2 and autoencoder is None:  # complex: the magnitude
        x = 2 * x.square().sum(1, keepdim=True).sqrt() - 1
    rows = x.clamp(-1, 1).cpu().reshape(n // 8, 8, size, size).permute(0, 2, 1, 3).reshape(n // 8 * size, 8 * size)
    with atomic_path(path) as tmp:
        matplotlib.image.imsave(tmp, rows.numpy(), cmap="gray", format="png")


@torch.no_grad()
def denoising_curve(
    denoiser: EDMDenoiser,
    slices: Path,
    augmentation: Augmentation,
    n: int = 32,
    autoencoder: Autoencoder | None = None,
) -> list[dict[str, float]]:
    """PSNR (range 2) per noise level on held-out slices: noisy input, total variation, this prior.

    The total-variation weight is the best of five for each level on the same images, which favours the baseline.
    With an autoencoder the noise is added to latents and the error is that of latents; total variation is left
    out, and "linear" is the best linear denoiser of each entry, from the mean and variance of its channel.
    """
    from skimage.restoration import denoise_tv_chambolle

    generator = torch.Generator().manual_seed(1)
    x0 = held_out(slices, augmentation, n, generator)
    device = next(denoiser.parameters()).device
    if autoencoder is not None:
        x0 = autoencoder.encode(x0.to(device)).cpu()
        mean, variance = x0.mean((0, 2, 3), keepdim=True), x0.var((0, 2, 3), keepdim=True)

    rows = []
    for sigma in VALIDATION_SIGMAS:
        noisy = x0 + sigma * torch.randn(x0.shape, generator=generator)
        if autoencoder is None:
            tv = ([denoise_tv_chambolle(v.numpy(), w * sigma, channel_axis=0) for v in noisy] for w in TV_WEIGHTS)
            baseline = {"tv": max(_psnr(torch.from_numpy(np.stack(x)), x0) for x in tv)}
        else:
            baseline = {"linear": _psnr(mean + variance / (variance + sigma**2) * (noisy - mean), x0)}
        ours = denoiser(noisy.to(device), torch.full((n,), sigma, device=device)).cpu()
        rows.append({"sigma": sigma, "noisy": _psnr(noisy, x0), **baseline, "prior": _psnr(ours, x0)})
    return rows


@torch.no_grad()
def reconstruction_psnr(autoencoder: Autoencoder, slices: Path, augmentation: Augmentation, n: int = 32) -> float:
    """Mean PSNR (range 2) of ``decode(encode(x))`` on held-out slices."""
    x0 = held_out(slices, augmentation, n, torch.Generator().manual_seed(1))
    return _psnr(autoencoder(x0.to(autoencoder.scale.device)).cpu(), x0)


def held_out(slices: Path, augmentation: Augmentation, n: int, generator: torch.Generator) -> Tensor:
    """``n`` validation images (n, 1, size, size), with the geometric but without the intensity augmentation."""
    stacks, value_range = load_slices(slices, "validation")
    plain = dataclasses.replace(augmentation, rotation=0.0, gain=0.0, gamma=0.0, remap=0.0, bias=0.0)
    return SliceSampler(stacks, plain, value_range).batch(n, generator)


def _psnr(x: Tensor, x0: Tensor) -> float:
    return float((10 * torch.log10(4 / (x - x0).square().mean((1, 2, 3)))).mean())


def hardware(device: torch.device) -> str:
    """What the training ran on, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def model_card(info: PriorInfo, n_parameters: int, n_autoencoder: int = 0) -> str:
    """The model card as Markdown."""
    d = info.details
    lo, hi = info.value_range
    latent = "autoencoder_steps" in d
    baseline = "linear" if latent else "tv"
    curve = "\n".join(
        f"| {r['sigma']:g} | {r['noisy']:.1f} | {r[baseline]:.1f} | {r['prior']:.1f} |" for r in d["denoising_psnr"]
    )
    sizes = "" if info.pixel_size is None else f"{info.pixel_size[0]:g} to {info.pixel_size[1]:g} mm"
    network = f"U-Net, {n_parameters / 1e6:.2f} M parameters, EDM preconditioning, stored in fp16"
    steps = f"{d['n_steps']} steps of {d['batch_size']} images"
    score = "PSNR in dB (range 2), mean over 32 images"
    what = f"Denoising of held-out slices, {score}; TV is the best of five weights per level:"
    if latent:
        network += f"; convolutional autoencoder, {n_autoencoder / 1e6:.2f} M parameters"
        steps += f" after {d['autoencoder_steps']} of the autoencoder"
        what = f"""`decode(encode(x))` of held-out slices: {d["reconstruction_psnr"]:.1f} ({score}), a bound for every
reconstruction with this prior.

Denoising of their latents, {score}; "linear" knows mean and variance of each channel:"""
    return f"""# {info.name}

| | |
|---|---|
| image values | {lo:g} to {hi:g}; 1 is {info.quantity} |
| pixel size in training | {sizes} |
| trained on | {info.trained_on} |
| licence of the data | {info.licence} |
| network | {network} |
| training | {steps}, {d["hours"]:g} h on {d["hardware"]} |
| held out | {d["validation"]} |

{what}

| sigma | noisy | {"linear" if latent else "TV"} | this prior |
|---|---|---|---|
{curve}

A first, small prior: few subjects or phantoms, short training. Its posterior samples look plausible before they are
right; check data fit and calibration on your own data. Not a medical device.
"""
