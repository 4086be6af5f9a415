"""What the benchmark engine costs: two workers against one, and many tasks that do nothing.

    python benchmarks/engine_overhead.py [--tasks 2000] [--workers 2] [--report]
    python benchmarks/engine_overhead.py --only nothing --tasks 100000 --report

Two workers against one (``--only scaling``): DDS with the shipped CT prior, 2 samples of a 128 x 128 image, 10 steps,
one thread each; tasks per second between the completions after which every worker has started and loaded the prior
(three for each) and the last ones (one for each, when workers run out of tasks). Beside it the machine's own limit: the
same work in plain processes that know nothing of each other, two against one. On two hardware threads of one core, on
a machine with other work, or where memory is the bottleneck, that limit is far below two.

Nothing (``--only nothing``): every task makes a 1 x 8 x 8 image, is measured against a truth, and is stored. Time to
read the plan and to make its tasks; wall time for each task, the start of the workers (three tasks each) not included,
and the processor time of main process and workers in it; the main process's memory before and while it runs; the time
that a second run needs to find everything done, and (``--report``) to load and report it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
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
STARTED = 3  # tasks of each worker that count as its start
REAL = """
n_samples = 2
keep = 0
seeds = {seeds}
[[problem]]
make = "sparse_view_ct"
with = {{ n_views = 40 }}
prior = "ct-128"
[[method]]
algorithm = "dds"
set = {{ n_steps = 10, grid = "karras", "grid.sigma_max" = 20.0, "grid.sigma_min" = 0.02 }}
"""
NOTHING = """
seeds = {seeds}
[[problem]]
make = "engine_overhead:problem"
[[method]]
algorithm = "engine_overhead:Nothing"
"""
PLAIN = """
import sys, time
import torch
from invdiff import load_prior
from invdiff.algorithms import DDS
from invdiff.benchmark.engine import keep_freed_memory
from invdiff.benchmark.problems import PROBLEMS
from invdiff.priors import KarrasGrid

torch.set_num_threads(1)
keep_freed_memory()
m, prior = PROBLEMS["sparse_view_ct"](n_views=40), load_prior("ct-128")
algorithm = DDS(n_steps=10, grid=KarrasGrid(sigma_max=20.0, sigma_min=0.02))
algorithm(prior, m, n_samples=2)
print("ready", flush=True)
sys.stdin.readline()
n, begun = 0, time.monotonic()
while time.monotonic() - begun < 15:
    algorithm(prior, m, n_samples=2, seed=n)
    n += 1
print(n / (time.monotonic() - begun), flush=True)
"""


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


class Watch:
    """Notes of a run, as its callback: when it had planned, and when each task ended."""

    def __init__(self, n_started: int) -> None:
        self.n_started, self.planned, self.ends, self.most = n_started, 0.0, list[float](), 0.0
        self.before = 0.0
        self.processor: dict[str, float] = {}

    def __call__(self, ended: int, total: int, outcome: Any) -> None:
        if outcome is None:
            self.planned, self.before = time.monotonic(), memory()
            return
        self.ends.append(time.monotonic())
        if ended == self.n_started:
            self.processor = processor_time()
        if ended % 500 == 0:
            self.most = max(self.most, memory())


def memory() -> float:
    """Resident size of this process in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def processor_time() -> dict[str, float]:
    """Seconds of processor that this process ("main") and its descendants ("workers") have used."""
    import psutil

    me, used = psutil.Process(), 0.0
    for child in me.children(recursive=True):
        used += sum(child.cpu_times()[:2])
    return {"main": time.process_time(), "workers": used}


def write_plan(folder: Path, text: str, n: int) -> Path:
    path = folder / "plan.toml"
    path.write_text(text.format(seeds=list(range(n))))
    return path


def throughput(workers: int, n: int) -> float:
    """Tasks per second of the real plan."""
    with tempfile.TemporaryDirectory() as folder, local(workers) as executor:
        plan, watch = Plan.read(write_plan(Path(folder), REAL, n)), Watch(0)
        summary = run(plan, Path(folder) / "store", executor=executor, callback=watch)
    assert not summary.failed, summary.failed
    first, last = STARTED * workers, len(watch.ends) - 1 - workers
    return (last - first) / (watch.ends[last] - watch.ends[first])


def plain_throughput(n: int) -> float:
    """Tasks per second of ``n`` plain processes together."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PLAIN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        for _ in range(n)
    ]
    for p in processes:
        assert p.stdout is not None
        assert p.stdout.readline() == "ready\n"
    for p in processes:
        assert p.stdin is not None
        p.stdin.write("\n")
        p.stdin.flush()
    return sum(float(p.communicate()[0]) for p in processes)


def scaling(workers: int) -> None:
    print(f"load average before: {os.getloadavg()[0]:.1f}", flush=True)
    plain = [plain_throughput(k) for k in (1, workers)]
    print(f"plain processes (tasks/s): 1: {plain[0]:.3f}, {workers}: {plain[1]:.3f}, ratio {plain[1] / plain[0]:.2f}")
    ours = [throughput(k, 20 * k) for k in (1, workers)]
    print(f"workers (tasks/s): 1: {ours[0]:.3f}, {workers}: {ours[1]:.3f}, ratio {ours[1] / ours[0]:.2f}", flush=True)


def nothing(workers: int, n: int, report: bool) -> None:
    here = Path(__file__).resolve().parent
    os.environ["PYTHONPATH"] = os.pathsep.join([str(here), os.environ.get("PYTHONPATH", "")])
    sys.path.insert(0, str(here))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store, path = folder / "store", write_plan(folder, NOTHING, n)
        begun = time.monotonic()
        plan = Plan.read(path)
        print(f"load average before: {os.getloadavg()[0]:.1f}")
        print(f"reading the plan (s): {time.monotonic() - begun:.2f}")
        watch = Watch(STARTED * workers)
        with local(workers) as executor:
            begun = time.monotonic()
            summary = run(plan, store, executor=executor, callback=watch)
            used = processor_time()
        m = summary.done - watch.n_started
        print(f"making the tasks (s): {watch.planned - begun:.2f}")
        print(f"computed: {summary.done}")
        print(f"one task (ms): {1e3 * (watch.ends[-1] - watch.ends[watch.n_started - 1]) / m:.2f}")
        for who, seconds in used.items():
            print(f"  of processor time, {who} (ms): {1e3 * (seconds - watch.processor[who]) / m:.2f}")
        print(f"main process, before running (MB): {watch.before:.0f}")
        print(f"main process, growth while running (MB): {watch.most - watch.before:.0f}", flush=True)
        begun = time.monotonic()
        again = run(plan, store)
        print(f"found by the second run: {again.stored}")
        print(f"second run (s): {time.monotonic() - begun:.2f}", flush=True)
        if report:
            from invdiff.benchmark.report import write_report

            begun = time.monotonic()
            print(f"rows of the table: {len(load_results(store))}")
            print(f"loading them (s): {time.monotonic() - begun:.2f}")
            begun = time.monotonic()
            write_report(plan, Store(store), folder / "report.html")
            print(f"report (s): {time.monotonic() - begun:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("scaling", "nothing"))
    parser.add_argument("--tasks", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--report", action="store_true")
    arguments = parser.parse_args()
    if arguments.only != "nothing":
        scaling(arguments.workers)
    if arguments.only != "scaling":
        nothing(arguments.workers, arguments.tasks, arguments.report)


if __name__ == "__main__":
    main()
