"""DPS and DiffPIR against deepinv's, where the posterior is known exactly: same problem, same denoiser.

    python benchmarks/against_deepinv.py [--measurements 4] [--samples 100]          (needs deepinv)

A Gaussian 1/f image (16 x 16, mean 0.5 and standard deviation 0.125 in [0, 1]), half of its pixels seen with noise of
0.025; the exact denoiser stands for the network. DPS: 1000 steps in both; DiffPIR: 100 (ours on a Karras
grid, deepinv's on its own). Each side's parameters are the
best of its listed values on two other measurements, by the error of the mean plus that of the standard deviation, plus
each side's defaults as they are. Per measurement: squared distance of the mean of the samples to the exact one over
the exact variance (less what 100 samples cost), root mean square of std / exact std - 1, chi2.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import deepinv
import torch

from invdiff import GaussianNoise, Measurement
from invdiff.algorithms import DPS, DiffPIR
from invdiff.operators import Inpainting, random_pixels
from invdiff.priors import GaussianPrior, KarrasGrid, StationaryCovariance

SHAPE, SIGMA = (1, 16, 16), 0.025
PRIOR = GaussianPrior(
    torch.zeros(SHAPE), StationaryCovariance.power_law(SHAPE, std=0.25, exponent=3.0), value_range=(0.0, 1.0)
)  # fmt: skip
MASK = random_pixels(SHAPE, 0.5, seed=0)
GRID = KarrasGrid(sigma_max=80.0, sigma_min=0.01)


class Exact(deepinv.models.Denoiser):
    """The exact denoiser for images in [0, 1]."""

    def forward(self, x: torch.Tensor, sigma: Any, **kwargs: Any) -> torch.Tensor:
        s = 2 * torch.as_tensor(sigma, dtype=x.dtype).flatten().expand(x.shape[0])
        return (PRIOR.denoise(2 * x - 1, s) + 1) / 2


def measurement(seed: int) -> Measurement:
    x = (PRIOR.sample(1, seed=seed)[0] + 1) / 2
    return Measurement.simulate(x, Inpainting(MASK), GaussianNoise(SIGMA), seed=seed)


def physics() -> Any:
    return deepinv.physics.Inpainting(
        img_size=SHAPE, mask=MASK.float(), noise_model=deepinv.physics.GaussianNoise(SIGMA)
    )


def their_dps(m: Measurement, n: int, weight: float, guidance: str = "norm") -> torch.Tensor:
    model = deepinv.sampling.DPS(Exact(), num_steps=1000, weight=weight, guidance=guidance, dtype=torch.float32)
    return model(m.y.expand(n, *SHAPE).contiguous(), physics(), seed=0)


def their_annealed_dps(m: Measurement, n: int, weight: float) -> torch.Tensor:
    return their_dps(m, n, weight, "annealed")


def their_diffpir(m: Measurement, n: int, lam: float, zeta: float) -> torch.Tensor:
    model = deepinv.sampling.DiffPIR(
        Exact(), deepinv.optim.data_fidelity.L2(), sigma=SIGMA, max_iter=100, zeta=zeta, lambda_=lam
    )
    return model(m.y.expand(n, *SHAPE).contiguous(), physics(), seed=1)


def our_dps(m: Measurement, n: int, scale: float) -> torch.Tensor:
    return DPS(n_steps=1000, guidance_scale=scale)(PRIOR, m, n_samples=n).samples


def our_diffpir(m: Measurement, n: int, lam: float, zeta: float) -> torch.Tensor:
    return DiffPIR(n_steps=100, lam=lam, zeta=zeta, grid=GRID)(PRIOR, m, n_samples=n).samples


def errors(m: Measurement, samples: torch.Tensor) -> tuple[float, float, float]:
    exact, n = PRIOR.posterior(m), len(samples)
    mean, std = (exact.mean + 1) / 2, exact.std() / 2
    bias = float((samples.mean(0) - mean).square().mean() / std.square().mean())
    noise = float(samples.var(0).mean() / std.square().mean()) / n
    return bias - noise, float((samples.std(0) / std - 1).square().mean().sqrt()), float(m.chi2(samples).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measurements", type=int, default=4)
    parser.add_argument("--samples", type=int, default=100)
    arguments = parser.parse_args()
    n, tuning = arguments.samples, [measurement(100), measurement(101)]
    print(
        f"deepinv {deepinv.__version__}, torch {torch.__version__}, {arguments.measurements} measurements, {n} samples"
    )
    print(f"{'':<34}{'parameters':>14}{'mean error':>12}{'std error':>11}{'chi2':>8}{'seconds':>9}")
    scales = (0.03, 0.1, 0.11, 0.12, 0.13, 0.14, 0.17, 0.3, 1.0)
    weights = (1.0, 30.0, 100.0, 150.0, 200.0, 250.0, 300.0, 400.0, 600.0)
    lams, zetas = (1.0, 2.0, 3.0, 7.0), (0.1, 0.3, 0.6, 1.0)
    pairs = tuple(itertools.product(lams, zetas))
    rows: list[tuple[str, Callable[..., torch.Tensor], list[tuple[float, ...]]]] = [
        ("DPS, invdiff, default", our_dps, [(0.3,)]),
        ("DPS, deepinv, default", their_dps, [(1.0,)]),
        ("DPS, deepinv, annealed, default", their_annealed_dps, [(1.0,)]),
        ("DPS, invdiff, best of 9", our_dps, [(z,) for z in scales]),
        ("DPS, deepinv, best of 9", their_dps, [(z,) for z in weights]),
        ("DPS, deepinv, annealed, best of 5", their_annealed_dps, [(z,) for z in (0.1, 0.3, 1.0, 3.0, 10.0)]),
        ("DiffPIR, invdiff, default", our_diffpir, [(8.0, 1.0)]),
        ("DiffPIR, deepinv, default", their_diffpir, [(7.0, 0.1)]),
        ("DiffPIR, invdiff, best of 16", our_diffpir, list(pairs)),
        ("DiffPIR, deepinv, best of 16", their_diffpir, list(pairs)),
    ]
    for title, run, values in rows:

        def score(v: tuple[float, ...], run: Callable[..., torch.Tensor] = run) -> float:
            return sum(sum(errors(m, run(m, 40, *v))[:2]) for m in tuning)

        chosen = min(values, key=score) if len(values) > 1 else values[0]
        begun = time.monotonic()
        results = [errors(m, run(m, n, *chosen)) for m in map(measurement, range(arguments.measurements))]
        seconds = time.monotonic() - begun
        a = [statistics.mean(column) for column in zip(*results, strict=True)]
        text = ", ".join(f"{v:g}" for v in chosen)
        print(f"{title:<34}{text:>14}{a[0]:>12.3f}{a[1]:>11.3f}{a[2]:>8.2f}{seconds:>9.1f}", flush=True)


if __name__ == "__main__":
    main()
