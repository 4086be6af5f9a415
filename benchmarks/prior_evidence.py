"""What the shipped priors generate: sheets of samples, how far they are from the training slices, and their spread.

    python benchmarks/prior_evidence.py --data FOLDER [--figures docs/images] [--only NAME ...]

Per prior:

* ``prior-NAME.jpg``: 16 unconditional samples (Heun, 20 levels), and below them the nearest training slices of the
  first eight, turned and shifted onto them.
* Memorisation: the largest normalised correlation of each sample with any training slice over all shifts, 24
  turns, mirror images and 3 sizes, at 48 x 48 pixels; for comparison the same of held-out slices, which cannot
  have been memorised. A prior that copies has samples far above the held-out slices. Phantoms: 300 of each set.
* Sizes: how much worse held-out images are denoised at another size than at 128 x 128, in dB at sigma 0.2: at 96, the
  middle of an image cut out before or after; at 192 and 256, the whole image against tiles of 128.
* Spread: the standard deviation of the samples' pixels over 64 samples drawn in 5, 10, 20 and 40
  levels, over that of the training images (augmented as in training). 1 is right; few levels lose variance.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from invdiff import load_prior
from invdiff.algorithms.solvers import sample_prior
from invdiff.datasets.slices import MODALITIES, Stack, build_slices, load_slices
from invdiff.priors import NetworkPrior, Tiled
from invdiff.priors.augment import SliceSampler
from invdiff.priors.configuration import TrainConfig
from invdiff.storage import atomic_path

ZOO = Path(__file__).parents[1] / "invdiff" / "priors" / "zoo"
SIDE, TURNS, SIZES = 48, 24, (0.85, 1.0, 1.18)


Stacks = tuple[list[Stack], tuple[float, float]]


def stacks_of(config: TrainConfig, data: Path) -> tuple[Stacks, Stacks]:
    """Training and validation slices."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slices.h5"
        made = {p.name: dataclasses.replace(p, n=min(p.n, 300)).images() for p in config.phantoms}
        build_slices(
            path, root=data, modality=MODALITIES[config.modality], train=config.train, validation=config.validation,
            coarsest=config.augmentation.pixel_size[1],
            phantoms={p.name: (p.split, made[p.name], made[p.name].pixel_size) for p in config.phantoms},
        )  # fmt: skip
        return load_slices(path, "train"), load_slices(path, "validation")


def whole(stacks: list[Stack], config: TrainConfig) -> Tensor:
    """Slices, upright, with the field of view of a sample, (n, 1, SIDE, SIDE)."""
    images = []
    middle = math.sqrt(math.prod(config.augmentation.pixel_size))
    for name in sorted({s.volume for s in stacks}):
        s = max((s for s in stacks if s.volume == name), key=lambda s: s.pixel_size)
        x = torch.from_numpy(s.codes.astype(np.float32))[:, None] / 65535
        side = round(128 * middle / s.pixel_size)
        pad = [max(0, side - m) for m in reversed(x.shape[-2:])]
        x = F.pad(x, (pad[0] // 2, pad[0] - pad[0] // 2, pad[1] // 2, pad[1] - pad[1] // 2))
        top, left = ((m - side) // 2 for m in x.shape[-2:])
        images.append(F.interpolate(x[..., top : top + side, left : left + side], (SIDE, SIDE), mode="area"))
    return torch.cat(images)


def size_loss(prior: NetworkPrior, held_out: Stacks, config: TrainConfig, side: int, sigma: float = 0.2) -> float:
    """See above; positive is a loss."""
    g = torch.Generator().manual_seed(1)
    n, shape = max(side, 128), (prior.shape[0], side, side)
    plain = dataclasses.replace(config.augmentation, size=n, rotation=0.0, gain=0.0, gamma=0.0, remap=0.0, bias=0.0)
    x0 = SliceSampler(held_out[0], plain, held_out[1]).batch(12, g)
    x = x0 + sigma * torch.randn(x0.shape, generator=g)
    at_size = prior.sized(side, side)
    if side < 128:
        cut = slice((128 - side) // 2, (128 + side) // 2)
        usual, x0 = prior(x, sigma)[..., cut, cut], x0[..., cut, cut]
        ours = at_size(x[..., cut, cut], sigma)
    else:
        usual, ours = Tiled(prior, shape)(x, sigma), at_size(x, sigma)
    return float(10 * ((ours - x0).square().mean((1, 2, 3)) / (usual - x0).square().mean((1, 2, 3))).log10().mean())


def turned(x: Tensor) -> Tensor:
    """All turns, mirror images and sizes of (n, 1, SIDE, SIDE): (n, k, SIDE, SIDE)."""
    out = []
    for size in SIZES:
        for mirror in (1.0, -1.0):
            for k in range(TURNS):
                c, s = (f(2 * math.pi * k / TURNS) / size for f in (math.cos, math.sin))
                matrix = torch.tensor([[mirror * c, -s, 0.0], [mirror * s, c, 0.0]]).expand(len(x), -1, -1)
                grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
                out.append(F.grid_sample(x, grid, align_corners=False, padding_mode="border"))
    return torch.cat(out, 1)


def nearest(x: Tensor, training: Tensor) -> tuple[Tensor, Tensor]:
    """Largest correlation of each of ``x`` (n, 1, SIDE, SIDE) with the training slices, and that slice, aligned."""
    unit = lambda t: F.normalize((t - t.mean((-2, -1), keepdim=True)).flatten(-2), dim=-1).view_as(t)  # noqa: E731
    spectra = torch.fft.rfft2(unit(x))  # (n, 1, ...)
    best, match = torch.full((len(x),), -1.0), torch.zeros_like(x)
    for slice_ in training:
        candidates = unit(turned(slice_[None]))[0]
        r = torch.fft.irfft2(spectra * torch.fft.rfft2(candidates).conj(), s=(SIDE, SIDE))  # (n, k, dy, dx)
        value, index = r.flatten(1).max(1)
        for i in (value > best).nonzero()[:, 0].tolist():
            k, dy, dx = np.unravel_index(int(index[i]), r.shape[1:])
            best[i] = value[i]
            match[i, 0] = turned(slice_[None])[0, k].roll((int(dy), int(dx)), (0, 1))
    return best, match


def drawn(prior: NetworkPrior, n_steps: int) -> Tensor:
    """Unconditional samples in model units."""
    p = sample_prior(prior, 64, n_steps=n_steps)
    return (p.samples - prior.offset) / prior.scale


def magnitude(u: Tensor, prior: NetworkPrior) -> Tensor:
    """Model images to grey values in [0, 1], (n, 1, y, x)."""
    if prior.shape[0] == 2:
        return u.norm(dim=1, keepdim=True).clamp(0, 1)
    return ((u + 1) / 2).clamp(0, 1)


def main() -> None:
    import matplotlib.image

    names = sorted(p.stem for p in ZOO.glob("*.toml") if "latent" not in p.stem)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--figures", type=Path)
    parser.add_argument("--only", nargs="*", default=names, choices=names)
    arguments = parser.parse_args()
    header = ("nearest training slice", "same, held-out slices", "loss at 96, 192, 256", "spread with 5, 10, 20, 40")
    print(f"{'prior':<24}" + "".join(f"{h:>28}" for h in header))
    for name in arguments.only:
        config = TrainConfig.read(ZOO / f"{name}.toml")
        prior = load_prior(name).fast(bfloat16=True)
        train, validation = stacks_of(config, arguments.data)
        training, held_out = whole(train[0], config), whole(validation[0], config)
        seen = SliceSampler(train[0], config.augmentation, train[1]).batch(128, torch.Generator().manual_seed(5))
        draws = {n: drawn(prior, n) for n in (5, 10, 20, 40)}
        spread = [float((u.var(0).mean() / seen.var(0).mean()).sqrt()) for u in draws.values()]
        x = magnitude(draws[20][:16], prior)
        small = F.interpolate(x, (SIDE, SIDE), mode="area")
        r, match = nearest(small, training)
        q, _ = nearest(held_out[:: max(1, len(held_out) // 16)][:16], training)
        text = [f"{t.median():.3f} (largest {t.max():.3f})" for t in (r, q)]
        text.append("  ".join(f"{size_loss(prior, validation, config, side):.2f}" for side in (96, 192, 256)))
        text.append("  ".join(f"{v:.2f}" for v in spread))
        print(f"{name:<24}" + "".join(f"{t:>28}" for t in text), flush=True)
        if arguments.figures:
            found = F.interpolate(match[:8], (128, 128), mode="bilinear").clamp(0, 1)
            rows = torch.cat([x, found])[:, 0].view(3, 8, 128, 128).permute(0, 2, 1, 3).reshape(3 * 128, 8 * 128)
            with atomic_path(arguments.figures / f"prior-{name}.jpg") as tmp:
                matplotlib.image.imsave(tmp, rows.numpy(), cmap="gray", vmin=0, vmax=1, format="jpg")


if __name__ == "__main__":
    main()
