"""Seconds of the posterior measures against scoringrules, in one process, and how far the two agree.

    pip install ".[metrics]"
    python benchmarks/metrics_speed.py [--rounds 3] [--threads 1]

Fair CRPS per pixel and fair energy score per image, of samples drawn from a normal law, float32 and float64; medians
over rounds, in turn. scoringrules is asked for its "fair" estimator with its NumPy and PyTorch backends, and with numba
where that is installed; the ratio is its time over ours.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import numpy as np
import scoringrules
import torch
from scoringrules import crps_ensemble, es_ensemble

from invdiff.evaluation.calibration import energy_score, fair_crps


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    backends = ["numpy", "torch"] + ["numba"] * (find_spec("numba") is not None)
    print(f"torch {torch.__version__}, scoringrules {scoringrules.__version__}, {args.threads} thread(s)")
    header = ("measure", "samples", "dtype", "backend", "ours [s]", "theirs [s]", "ratio", "differ")
    print("{:<14}{:<20}{:<9}{:<9}{:>9}{:>11}{:>8}{:>9}".format(*header))
    generator = torch.Generator().manual_seed(0)
    for n_data, n_samples, n_pixels in ((16, 16, 64**2), (4, 64, 64**2), (4, 100, 64**2)):
        for dtype in (torch.float32, torch.float64):
            s = torch.randn(n_data, n_samples, n_pixels, generator=generator, dtype=dtype)
            x = torch.randn(n_data, n_pixels, generator=generator, dtype=dtype)
            for backend in backends:
                data = (x, s) if backend == "torch" else (x.numpy(), s.numpy())
                fair = {"estimator": "fair", "backend": backend}
                for name, ours, theirs in (
                    ("fair CRPS", partial(fair_crps, s, x), partial(crps_ensemble, *data, m_axis=1, **fair)),
                    ("energy score", partial(energy_score, s, x), partial(es_ensemble, *data, **fair)),
                ):
                    difference = np.abs(np.asarray(ours()) - np.asarray(theirs())).max()  # and a warm start
                    times = [(seconds(ours), seconds(theirs)) for _ in range(args.rounds)]
                    a, b = (statistics.median(t) for t in zip(*times, strict=True))
                    row = (
                        name,
                        f"{n_data} x {n_samples} x {n_pixels}",
                        str(dtype)[6:],
                        backend,
                        a,
                        b,
                        b / a,
                        difference,
                    )
                    print("{:<14}{:<20}{:<9}{:<9}{:>9.3f}{:>11.3f}{:>8.1f}{:>9.0e}".format(*row), flush=True)


if __name__ == "__main__":
    main()
