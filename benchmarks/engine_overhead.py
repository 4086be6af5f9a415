"""What the benchmark engine costs: many tasks that do nothing, through the dask executor, and once more.

    python benchmarks/engine_overhead.py [--tasks 100000] [--workers 2] [--store FOLDER] [--report]

Every task makes a 1 x 8 x 8 image, is measured against a truth, and is stored. Printed: time to read the plan and to
make its tasks, wall time for each task (start of the workers not included), the main process's memory before and
while it runs, the time that a second run needs to find everything done, and (``--report``) to load and report it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from invdiff import GaussianNoise, Measurement, Posterior
from invdiff.benchmark import Plan, Store, load_results, run
from invdiff.benchmark.cluster import local
from invdiff.operators import Identity

SHAPE = (1, 8, 8)


def problem() -> Measurement:
    """White noise."""
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    return Measurement.simulate(x, Identity(SHAPE), GaussianNoise(0.1), seed=0)


@dataclass(frozen=True, kw_only=True)
class Nothing:
    """Returns the data."""

    point = True

    def __call__(self, prior: Any, m: Measurement, **_: Any) -> Posterior:
        return Posterior(samples=m.y[None])


def memory() -> float:
    """Resident size of this process in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--report", action="store_true")
    arguments = parser.parse_args()
    here = Path(__file__).resolve()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(here.parent), os.environ.get("PYTHONPATH", "")])
    sys.path.insert(0, str(here.parent))
    folder = Path(tempfile.mkdtemp())
    store = arguments.store or folder / "store"
    path = folder / "nothing.toml"
    path.write_text(
        f"seeds = {list(range(arguments.tasks))}\n[[problem]]\nmake = '{here.stem}:problem'\n"
        f"[[method]]\nalgorithm = '{here.stem}:Nothing'\n"
    )
    begun = time.monotonic()
    plan = Plan.read(path)
    print(f"reading the plan (s): {time.monotonic() - begun:.2f}")
    times: dict[str, float] = {}
    sizes: dict[str, float] = {}

    def callback(ended: int, total: int, outcome: Any) -> None:
        if "planned" not in times:
            times["planned"], sizes["planned"] = time.monotonic(), memory()
        elif "first" not in times and ended >= 2 * arguments.workers:
            times["first"], times["n"] = time.monotonic(), ended
        if ended % 500 == 0:
            sizes["most"] = max(sizes.get("most", 0), memory())

    with local(arguments.workers) as executor:
        begun = time.monotonic()
        summary = run(plan, store, executor=executor, callback=callback)
        ended = time.monotonic()
    print(f"making the tasks (s): {times['planned'] - begun:.2f}")
    print(f"computed: {summary.done}")
    print(f"one task (ms): {1e3 * (ended - times['first']) / (summary.done - times['n']):.2f}")
    print(f"main process, before running (MB): {sizes['planned']:.0f}")
    print(f"main process, growth while running (MB): {sizes['most'] - sizes['planned']:.0f}", flush=True)
    begun = time.monotonic()
    again = run(plan, store)
    print(f"found by the second run: {again.stored}")
    print(f"second run (s): {time.monotonic() - begun:.2f}", flush=True)
    if arguments.report:
        from invdiff.benchmark.report import write_report

        begun = time.monotonic()
        print(f"rows of the table: {len(load_results(store))}")
        print(f"loading them (s): {time.monotonic() - begun:.2f}")
        begun = time.monotonic()
        write_report(plan, Store(store), folder / "report.html")
        print(f"report (s): {time.monotonic() - begun:.2f}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
