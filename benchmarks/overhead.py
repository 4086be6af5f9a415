"""What DAPS and DPS cost per step over the bare network calls that the step must make, at 128 x 128.

    python benchmarks/overhead.py [--rounds 5] [--threads 2] [--steps 24] [--full-resolution]
                                   [--operators inpainting blur "CT, 40 views"] [--give-back-memory]

Bare cost: for DAPS ``n_ode`` evaluations of the denoiser, for DPS one evaluation and its backpropagation to the
input. Both are timed in turn with the algorithm's own steps in the same process; the table shows medians over
rounds and their ratio. The networks are the shipped priors of CT and brain MRI, which work on pixel-unshuffled images
and cost 8 to 17 ms an image; with ``--full-resolution`` an untrained U-Net of 7 M parameters that works on the pixels,
nearer to what published checkpoints cost.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from invdiff import GaussianNoise, Measurement, load_prior
from invdiff.algorithms import DAPS, DPS
from invdiff.algorithms.kernels import Langevin
from invdiff.datasets import accelerated_mri, sparse_view_ct
from invdiff.operators import Blur, Inpainting, gaussian_psf, random_pixels
from invdiff.priors import EDMDenoiser, NetworkPrior, Prior
from invdiff.priors.memory import keep_freed_memory
from invdiff.priors.networks import UNet

SHAPE = (1, 128, 128)


def problems() -> dict[str, Measurement]:
    """Four operators: the inner draw of masks, blurs and MRI by columns has a closed form, that of CT is iterative."""
    x = torch.zeros(SHAPE)
    return {
        "inpainting": Measurement.simulate(
            x, Inpainting(random_pixels(SHAPE, 0.3, seed=0)), GaussianNoise(0.05), seed=0
        ),
        "blur": Measurement.simulate(x, Blur(gaussian_psf(3.0, 61), SHAPE), GaussianNoise(0.05), seed=0),
        "MRI, 4x, 8 coils": replace(accelerated_mri(), reference=None),
        "CT, 40 views": replace(sparse_view_ct(), reference=None),
    }


def bare_daps(prior: Prior, n_steps: int, n_samples: int) -> None:
    x = torch.randn(n_samples, *SHAPE)
    with torch.no_grad():
        for _ in range(n_steps):
            prior(x, 1.0)


def bare_dps(prior: Prior, n_steps: int, n_samples: int) -> None:
    x = torch.randn(n_samples, *SHAPE)
    for _ in range(n_steps):
        v = x.detach().requires_grad_(True)
        torch.autograd.grad(prior(v, 1.0), v, torch.ones_like(v))


def seconds(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--steps", type=int, default=24, help="levels of DAPS, steps of DPS")
    parser.add_argument("--full-resolution", action="store_true")
    parser.add_argument("--give-back-memory", action="store_true", help="to the system, as glibc does by itself")
    parser.add_argument("--operators", nargs="*", default=list(problems()))
    arguments = parser.parse_args()
    steps = arguments.steps
    if not arguments.give_back_memory:
        keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    prior, n = load_prior("ct-128"), arguments.samples
    of_mri = load_prior("brain-mri-128")
    if arguments.full_resolution:
        net = UNet(1, (64, 128, 192), unshuffle=1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        prior = NetworkPrior(EDMDenoiser(net), SHAPE, sigma_min=0.002, sigma_max=80.0, info=prior.info)
        of_mri = prior
    print(
        f"{n} samples, {arguments.threads} threads, {arguments.rounds} rounds of {steps} steps, "
        f"torch {torch.__version__}"
    )
    print(f"{'algorithm':<34}{'operator':<18}{'bare ms/step':>14}{'step ms':>10}{'own ms':>8}{'ratio':>8}")
    everywhere = list(problems())
    langevin = DAPS(n_anneal=steps, n_ode=5, kernel=Langevin(step_size=1e-4))
    cases: list[tuple[str, Any, Callable[[Prior], None], list[str]]] = [
        ("DAPS, n_ode=1", DAPS(n_anneal=steps), lambda p: bare_daps(p, steps, n), everywhere),
        ("DAPS, n_ode=5", DAPS(n_anneal=steps, n_ode=5), lambda p: bare_daps(p, 5 * steps, n), everywhere),
        ("DAPS, n_ode=5, 100 Langevin steps", langevin, lambda p: bare_daps(p, 5 * steps, n), everywhere[:2]),
        ("DPS", DPS(n_steps=steps), lambda p: bare_dps(p, steps, n), everywhere),
    ]
    measurements = problems()
    for title, algorithm, bare, names in cases:
        for name in [each for each in names if each in arguments.operators]:
            m, p = measurements[name], of_mri if name.startswith("MRI") else prior
            run = lambda algorithm=algorithm, m=m, p=p: algorithm(p, m, n_samples=n)  # noqa: E731
            run(), bare(p)
            pairs = [(seconds(lambda bare=bare, p=p: bare(p)), seconds(run)) for _ in range(arguments.rounds)]
            a, b = (statistics.median(pair[i] for pair in pairs) * 1e3 / steps for i in (0, 1))
            ratio = statistics.median(pair[1] / pair[0] for pair in pairs)
            print(f"{title:<34}{name:<18}{a:>14.1f}{b:>10.1f}{b - a:>8.1f}{ratio:>8.3f}", flush=True)


if __name__ == "__main__":
    main()
