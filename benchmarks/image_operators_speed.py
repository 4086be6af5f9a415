"""Speed of blur and super-resolution against deepinv's operators of the same name, in one process.

    OMP_NUM_THREADS=2 python benchmarks/image_operators_speed.py [--rounds 20] [--batches 1 8 32]

Images of 3 x 256 x 256, float32; motion PSF of 31 x 31 pixels; factor 4; 2 x 2 PSFs for the blur that varies. Each peer
is checked to compute the same data before it is timed. All contestants take turns, so that a disturbance of the machine
hits all of them; medians. Forward A, adjoint A.H, and gram A.H(A x). Printed first: how many times as long as ours
each peer takes.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import deepinv
import torch
from torch import Tensor

from invdiff.operators import (
    BicubicDownsample,
    Blur,
    BlurDownsample,
    LinearOperator,
    SpaceVaryingBlur,
    interpolation_weights,
    motion_psf,
)

SHAPE, FACTOR = (3, 256, 256), 4
FUNCTIONS = ("A", "A.H", "gram")


def problems() -> dict[str, tuple[LinearOperator, dict[str, deepinv.physics.LinearPhysics]]]:
    """Our operator and its peers, by task."""
    P = deepinv.physics
    psf = motion_psf(31, seed=0).float()
    psfs, w = torch.stack([motion_psf(31, seed=i) for i in range(4)]).float(), interpolation_weights((2, 2), SHAPE[1:])
    return {
        "blur": (
            Blur(psf, SHAPE),
            {
                "BlurFFT": P.BlurFFT(SHAPE, psf[None, None]),
                "Blur(circular)": P.Blur(psf[None, None], padding="circular"),
            },
        ),
        "varying blur": (
            SpaceVaryingBlur(psfs, w, SHAPE),
            {"SpaceVaryingBlur": P.SpaceVaryingBlur(psfs[None, None], w[None, None].float(), padding="circular")},
        ),
        "blur, every 4th": (
            BlurDownsample(psf, SHAPE, FACTOR),
            {"Downsampling": P.Downsampling(SHAPE, filter=psf[None, None], factor=FACTOR, padding="circular")},
        ),
        "bicubic": (BicubicDownsample(SHAPE, FACTOR), {"DownsamplingMatlab": P.DownsamplingMatlab(factor=FACTOR)}),
    }


def functions(
    A: Callable[[Tensor], Tensor], AH: Callable[[Tensor], Tensor], x: Tensor, y: Tensor
) -> tuple[Callable[[], Tensor], ...]:
    return lambda: A(x), lambda: AH(y), lambda: AH(A(x))


def measure(contestants: dict[str, tuple[Callable[[], Tensor], ...]], rounds: int) -> dict[str, list[float]]:
    """Median milliseconds of every function of every contestant; one call of each per round, in turn."""
    times: dict[str, list[list[float]]] = {name: [[] for _ in FUNCTIONS] for name in contestants}
    for round_ in range(rounds + 2):
        for name, calls in contestants.items():
            for record, call in zip(times[name], calls, strict=True):
                start = time.perf_counter()
                call()
                if round_ >= 2:
                    record.append(1e3 * (time.perf_counter() - start))
    return {name: [statistics.median(r) for r in records] for name, records in times.items()}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, deepinv {deepinv.__version__}; {torch.get_num_threads()} threads")
    ratios, rows = [], []
    for task, (A, peers) in problems().items():
        for batch in arguments.batches:
            x = torch.rand(batch, *SHAPE)
            y = A(x)
            contestants = {type(A).__name__: functions(A, A.H, x, y)}
            for name, physics in peers.items():
                off = float((physics.A(x) - y).abs().max())
                same = off < 1e-3 * float(y.abs().max())
                label = f"deepinv {name}" + ("" if same else f" (other data: up to {off:.2g})")
                contestants[label] = functions(physics.A, physics.A_adjoint, x, physics.A(x))
            result = measure(contestants, arguments.rounds)
            ours = result[type(A).__name__]
            for name, ms in result.items():
                rows.append(f"{task:16}{batch:6}  {name:34}" + "".join(f"{t / batch:10.2f}" for t in ms))
                if ms is not ours:
                    quotients = "".join(f"{t / u:10.1f}" for t, u in zip(ms, ours, strict=True))
                    ratios.append(f"{task:16}{batch:6}  {name:34}{quotients}")
    head = f"{'':16}{'batch':>6}  {'':34}" + "".join(f"{f:>10}" for f in FUNCTIONS)
    print("\ntimes as long as ours\n" + "\n".join([head, *ratios]))
    print("\nms per image\n" + "\n".join([head, *rows]))


if __name__ == "__main__":
    main()
