"""Running a plan: what is missing in the store is computed, by this process or by dask workers.

Workers write to the store and return the task's key only. Whatever is killed, the same command goes on from what is
stored; tasks in flight are lost, and nothing that is stored is computed again.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import functools
import logging
import math
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
import threading
import time
import traceback
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from invdiff.algorithms import ALGORITHMS
from invdiff.algorithms.configure import configure
from invdiff.benchmark.plan import Cell, Method, Plan, Recipe, TaskSpec, lookup, sha256
from invdiff.benchmark.store import DamagedError, Store, StoreError, now
from invdiff.benchmark.tuning import Search
from invdiff.classical import CLASSICAL
from invdiff.evaluation import psnr, ssim
from invdiff.evaluation.calibration import fair_crps, ranks, spread_skill
from invdiff.measurement import Measurement
from invdiff.posterior import Posterior
from invdiff.priors import Prior, load_prior

# What the same task would raise again: not tried a second time.
PERMANENT = (TypeError, ValueError, KeyError, AttributeError, ArithmeticError, AssertionError, NotImplementedError)

NO_TRACEBACK = "No traceback: the process ended at once (SIGKILL, as sent when memory runs out, or os._exit).\n"
OBJECT = 0.05  # calibration is measured where the truth is above its minimum by this share of its range


@dataclass(frozen=True)
class Task:
    """A cell of the plan with its data known.

    Attributes:
        key, spec: what is computed.
        labels: names of problem, item and method in the plan, and the patient.
        search: of a tuned method, how its parameters were found.
    """

    key: str
    spec: TaskSpec
    labels: Mapping[str, str]
    search: Search | None = None


@dataclass(frozen=True, kw_only=True)
class Work:
    """What all tasks of a run share; goes to the workers with each of them.

    Attributes:
        store: its folder, absolute.
        data: folder of the files, or None.
        device: "cpu" or "cuda".
        threads: of torch, in each worker.
        batch_size: samples at a time, or None for all; out of memory halves it.
        time_limit: seconds, or None.
        attempts: how often a task is tried.
        run: names the run.
        serial: the tasks run in the process that also distributes them.
    """

    store: str
    data: str | None = None
    device: str = "cpu"
    threads: int = 1
    batch_size: int | None = None
    time_limit: float | None = None
    attempts: int = 3
    run: str = ""
    serial: bool = True


@dataclass(frozen=True)
class Outcome:
    """How one attempt ended: ``state`` is "done", "failed" or "again" (failed, and worth another attempt)."""

    key: str
    state: str
    message: str = ""


@dataclass
class Summary:
    """What a run did. ``failed``: key to message; ``left``: tasks not reached."""

    total: int = 0
    stored: int = 0
    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    left: int = 0
    damaged: list[str] = field(default_factory=list)


Executor = Callable[["collections.deque[Task]", Work], Iterator[tuple[Task, Outcome]]]
"""Takes tasks from the left of the queue until it is empty, and says how each attempt ended. A task that is to be
tried again is appended to the queue before the next outcome is asked for."""


class TimeLimit(RuntimeError):
    """The task took longer than it may."""


# ------------------------------------------------------------------------------------------------ one task


def run_task(work: Work, key: str, spec_json: str, labels: Mapping[str, str]) -> Outcome:
    """One attempt, here and now. Never raises for what the task does wrong.

    Raises:
        StoreError: the store cannot be written.
    """
    store, spec = Store(work.store), TaskSpec.from_json(spec_json)
    if store.has(key):
        return Outcome(key, "done")
    deaths, before = 0, store.running(key)
    if before and before[0]["run"] == work.run:  # its process ended without a word
        mark, report = before
        deaths, where = mark["deaths"] + 1, f"{mark['pid']} on {mark['host']}"
        message = f"its process ({where}) was killed or crashed"
        count = store.fail(
            spec, labels, kind="Killed", message=message, traceback=report or NO_TRACEBACK, permanent=False
        )
        if count >= work.attempts:
            store.unmark(key)
            return Outcome(key, "failed", f"Killed: {message}, {deaths} times in this run")
    torch.set_num_threads(work.threads)
    if not work.serial:
        keep_freed_memory()
    started = time.time()
    record = {
        "run": work.run, "deaths": deaths, "host": socket.gethostname(), "pid": os.getpid(),
        "worker": _worker_address(), "started": started, "serial": work.serial,
    }  # fmt: skip
    with store.marked(key, record) as file:
        try:
            with _logged() as log, _crash_traceback(file), time_limit(work.time_limit):
                metrics, arrays = execute(store, spec, work)
        except StoreError:
            raise
        except Exception as error:
            permanent, kind = isinstance(error, PERMANENT), type(error).__name__
            text = str(error) or repr(error)
            if isinstance(error, TimeLimit):
                text = f"took longer than its {work.time_limit:g} s"
            count = store.fail(
                spec, labels, kind=kind, message=text, traceback=traceback.format_exc(), permanent=permanent
            )
            return Outcome(key, "failed" if permanent or count >= work.attempts else "again", f"{kind}: {text}")
        env = {
            **environment(), "threads": torch.get_num_threads(), "device": _device_name(work.device),
            "host": socket.gethostname(), "pid": os.getpid(), "finished": now(), "total_seconds": time.time() - started,
        }  # fmt: skip
        store.write(spec, labels=labels, metrics=metrics, arrays=arrays, log="".join(log), env=env)
    return Outcome(key, "done")


def execute(store: Store, spec: TaskSpec, work: Work) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Draw the samples and measure them: numbers, and the arrays to keep."""
    recipe = spec.recipe
    m = _measurement(str(store.path), recipe.key, _Hidden(recipe), work.data, work.device)
    cls = lookup({**ALGORITHMS, **CLASSICAL}, spec.method, "method")
    method = configure(cls, spec.parameters)
    prior = _prior(spec.prior, spec.prior_sha256, work.device) if spec.prior else None
    reset_peak_memory()
    posterior = method(prior, m, n_samples=spec.n_samples, seed=spec.seed, batch_size=work.batch_size)
    metrics = {**measure(posterior, m), **peak_memory()}
    samples = posterior.samples
    arrays = {"mean": posterior.mean, "samples": samples[: spec.keep].clone()}
    if posterior.n_samples > 1:
        arrays["std"] = posterior.std
    return metrics, arrays


def measure(posterior: Posterior, m: Measurement) -> dict[str, Any]:
    """The numbers of one result.

    ``psnr``, ``ssim``, ``chi2``: of the mean; ``*_sample``: mean over the single samples. Their data range is the
    reference's maximum minus minimum. ``crps`` (in units of that range), ``spread_skill`` and ``ranks`` (how many
    pixels have 0 .. n_samples samples below the truth): where the reference exceeds its minimum by 5 % of its range.
    """
    x, mean = posterior.samples, posterior.mean
    out: dict[str, Any] = {
        "chi2": float(m.chi2(mean)), "chi2_sample": float(m.chi2(x).mean()), "seconds": posterior.seconds,
        "nfe": float(posterior.nfe),
    }  # fmt: skip
    if posterior.n_samples > 1:
        out["std"] = float(x.var(0).mean().sqrt()) / m.image_scale
    if m.reference is not None and not m.A.in_complex:
        truth = m.reference
        span = float(truth.max() - truth.min())
        if span > 0:
            out["data_range"] = span
            out["psnr"] = psnr(mean, truth, data_range=span)
            out["psnr_sample"] = sum(psnr(s, truth, data_range=span) for s in x) / len(x)
            if truth.ndim == 3 and len(truth) == 1 and min(truth.shape[1:]) >= 7:
                out["ssim"] = ssim(mean, truth, data_range=span)
                out["ssim_sample"] = sum(ssim(s, truth, data_range=span) for s in x) / len(x)
            inside = truth > truth.min() + OBJECT * span
            if posterior.n_samples > 1 and inside.any():
                s, t = x[:, inside][None], truth[inside][None]
                out["crps"] = float(fair_crps(s, t).mean()) / span
                out["spread_skill"] = spread_skill(s, t)
                out["ranks"] = torch.bincount(ranks(s, t).flatten(), minlength=posterior.n_samples + 1).tolist()
    return {k: v for k, v in out.items() if not isinstance(v, float) or math.isfinite(v)}


@dataclass(frozen=True)
class _Hidden:
    """An argument that a cache does not look at."""

    recipe: Recipe

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hidden)

    def __hash__(self) -> int:
        return 0


@functools.lru_cache(maxsize=4)
def _measurement(store: str, key: str, hidden: _Hidden, data: str | None, device: str) -> Measurement:
    return Store(store).measurement(hidden.recipe, Path(data) if data else None).to(device=device)


@functools.lru_cache(maxsize=2)
def _prior(name: str, sha: str, device: str) -> Prior:
    prior, found = open_prior(name, device)
    if found != sha:
        raise ValueError(f"The prior {name!r} here has sha256 {found[:12]}, the plan's has {sha[:12]}.")
    return prior


def open_prior(name: str, device: str = "cpu") -> tuple[Prior, str]:
    """A shipped prior, a file, or what ``package.module:function`` returns; with the sha256 of its weights (of a
    prior without weights: of its description)."""
    if re.fullmatch(r"[\w.]+:\w+", name) and not Path(name).is_file():
        prior = lookup({}, name, "prior")()
    else:
        prior = load_prior(name, device=device)
    return prior, prior.info.sha256 or sha256(f"{prior.info} {prior.shape} {prior.dtype}")


# ------------------------------------------------------------------------------- around a task's own work


@contextlib.contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise :class:`TimeLimit` in this thread if the block takes longer. It cannot interrupt a single call into
    compiled code; the dask executor restarts a worker that hangs in one."""
    if seconds is None:
        yield
        return
    thread, lock, over = ctypes.c_ulong(threading.get_ident()), threading.Lock(), False
    interrupt = ctypes.pythonapi.PyThreadState_SetAsyncExc

    def strike() -> None:
        with lock:
            if not over:
                interrupt(thread, ctypes.py_object(TimeLimit))

    timer = threading.Timer(seconds, strike)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        with lock:
            over = True
            interrupt(thread, None)  # set, but not raised yet: take it back


@contextlib.contextmanager
def _logged() -> Iterator[list[str]]:
    """Log lines and warnings of the block."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(f"{record.levelname} {record.name}: {record.getMessage()}\n")

    logger, handler = logging.getLogger("invdiff"), Keep()
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            yield lines
        lines += [f"{w.category.__name__}: {w.message}\n" for w in caught]
    finally:
        logger.removeHandler(handler)


@contextlib.contextmanager
def _crash_traceback(file: IO[bytes]) -> Iterator[None]:
    """Write to ``file`` where the process was when a fatal signal hit it."""
    import faulthandler

    was_on = faulthandler.is_enabled()
    faulthandler.enable(file)
    try:
        yield
    finally:
        faulthandler.disable()
        if was_on and sys.__stderr__ is not None:
            with contextlib.suppress(ValueError, OSError):
                faulthandler.enable(sys.__stderr__)


@functools.lru_cache(maxsize=1)
def keep_freed_memory() -> None:
    """Have glibc keep freed blocks for the next tensor.

    Dask starts its workers with MALLOC_TRIM_THRESHOLD_=65536, which gives every freed block back at once: a page fault
    for each page of every tensor, 1.7 times the processor time for a small network.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-1, 2**28)  # M_TRIM_THRESHOLD
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD, its largest value


def reset_peak_memory() -> None:
    """Start counting the peak resident size anew (Linux; elsewhere it counts from the start of the process)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> dict[str, int]:
    """Peak resident size of the process in bytes, libraries included, and that of the GPU's tensors."""
    from invdiff.posterior import peak_memory as resident

    out = {"peak_memory": resident()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        out["peak_gpu_memory"] = torch.cuda.max_memory_allocated()
    return out


@functools.lru_cache(maxsize=1)
def environment() -> dict[str, str]:
    """Versions, commit and processor."""
    import numpy
    import scipy

    import invdiff

    commit = ""
    root = Path(invdiff.__file__).parents[1]
    if (root / ".git").exists():
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            git = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
            commit = subprocess.run(git, capture_output=True, text=True, timeout=10).stdout.strip()
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "invdiff": invdiff.__version__, "commit": commit, "python": platform.python_version(),
        "torch": torch.__version__, "numpy": numpy.__version__, "scipy": scipy.__version__,
        "platform": platform.platform(), "cpu": cpu, "cpus": str(os.cpu_count()),
    }  # fmt: skip


@functools.lru_cache(maxsize=2)
def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device.startswith("cuda") else "cpu"


def _worker_address() -> str:
    if (module := sys.modules.get("distributed")) is not None:
        with contextlib.suppress(ValueError, AttributeError):
            return module.get_worker().address
    return ""


# ----------------------------------------------------------------------------------------------- executors


def serial(queue: collections.deque[Task], work: Work) -> Iterator[tuple[Task, Outcome]]:
    """All tasks in this process."""
    while queue:
        task = queue.popleft()
        yield task, run_task(work, task.key, task.spec.to_json(), task.labels)


# ---------------------------------------------------------------------------------------------------- runs


def tasks(
    plan: Plan, store: Store, *, data: Path | None = None, make: bool = True
) -> Iterator[tuple[Cell, Task | None]]:
    """The plan's cells with their tasks. ``make``: measurements that the store does not have are made; otherwise their
    tasks are None. So are those of a tuned method whose trials are not all done or failed, or all failed.

    Raises:
        KeyError, ValueError: a prior that is not there, or does not fit its measurement; a validation item that is a
            test item too.
    """
    fits: set[tuple[str, str]] = set()
    known: dict[str, dict[str, str] | None] = {}
    priors: dict[str, str] = {"": ""}
    searches: dict[tuple[str, str, str], Search] = {}
    tuned_on: set[tuple[str, str]] = set()
    for cell in plan.cells():
        recipe = cell.recipe.key
        if recipe not in known:
            known[recipe] = store.make(cell.recipe, data) if make else store.data(cell.recipe)
        found = known[recipe]
        method: Method | None = cell.method
        search = None
        if cell.search or cell.method.candidates:
            name = cell.search or cell.method.name
            search = searches.setdefault((cell.problem, name, cell.prior), Search(cell.method.by))
        if found is not None and found["item"]:
            if cell.search:
                tuned_on.add((cell.problem, found["item"]))
            elif (cell.problem, found["item"]) in tuned_on:
                raise ValueError(f"{cell.problem}: {found['item']!r} is among the items and the validation items.")
        if search and not cell.search:
            method = search.best(store)
        if found is None or method is None:
            if search and cell.search:
                search.add(cell.method, cell.item, "", None)
            yield cell, None
            continue
        if cell.prior not in priors:
            priors[cell.prior] = open_prior(cell.prior)[1]
        if make and cell.prior and (cell.prior, recipe) not in fits:
            fits.add((cell.prior, recipe))
            try:
                open_prior(cell.prior)[0].in_model_units(store.measurement(cell.recipe, data))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{cell.problem}, {cell.item}: {error}") from None
        spec = cell.spec(method, found["digest"], found["dtype"], priors[cell.prior])
        problem, patient = cell.problem, found["patient"] or cell.item
        if search and cell.search:
            search.add(cell.method, cell.item, patient, spec.key)
            problem += ", validation"
        labels = {"problem": problem, "item": cell.item, "method": cell.label, "patient": patient}
        yield cell, Task(spec.key, spec, labels, None if cell.search else search)


def run(
    plan: Plan,
    store: str | Path | Store,
    *,
    executor: Executor = serial,
    data: Path | None = None,
    device: str = "cpu",
    threads: int = 1,
    batch_size: int | None = None,
    attempts: int = 3,
    retry_failed: bool = False,
    command: str | None = None,
    callback: Callable[[int, int, Outcome | None], None] | None = None,
) -> Summary:
    """Compute what the store lacks of a plan.

    Args:
        plan: what to compute.
        store: where; made if it is not there. A second run on one store refuses.
        executor: :func:`serial`, or one of :mod:`invdiff.benchmark.cluster`.
        data: folder of the files that the plan names.
        device: "cpu" or "cuda"; with several GPUs, each dask worker has one.
        threads: of torch in each worker; numbers are equal to the last bit only for equal threads.
        batch_size: samples at a time (default: all); out of memory halves it.
        attempts: how often a task is tried, over all runs; what cannot change (a wrong shape, a divergence) is
            tried once.
        retry_failed: try tasks again that failed in earlier runs.
        command: kept with the run (default: this process's command line).
        callback: called as ``callback(done, total, outcome)`` once before the first task and after each attempt.

    Raises:
        LockedError: another run uses the store.
        StoreError: the store cannot be written; what it holds is intact.
        KeyError, ValueError: a prior is missing or does not fit.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from invdiff.benchmark import Plan, run
        >>> text = '''
        ... n_samples = 1
        ... seeds = [0]
        ... [[problem]]
        ... make = "accelerated_mri"
        ... with = { n_coils = [2, 4] }
        ... prior = "brain-mri-128"
        ... [[method]]
        ... algorithm = "zero-filled"
        ... '''
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "plan.toml")
        ...     _ = file.write_text(text)
        ...     first = run(Plan.read(file), f"{folder}/results")
        ...     again = run(Plan.read(file), f"{folder}/results")
        >>> first.done, again.done  # the second run finds everything
        (2, 0)
    """
    store = store if isinstance(store, Store) else Store(store, create=True)
    with store.lock():
        left_over = {k: report for k, (mark, report) in store.all_running().items() if mark["serial"]}
        store.clean()
        summary, seen = Summary(), set[str]()
        work = Work(
            store=str(store.path.resolve()), data=str(data.resolve()) if data else None, device=device,
            threads=threads, batch_size=batch_size, time_limit=plan.time_limit, attempts=attempts,
            run=uuid.uuid4().hex, serial=executor is serial,
        )  # fmt: skip
        ended = 0
        for tuned in (False, True):  # what is tuned waits for its trials
            queue, waiting = collections.deque[Task](), 0
            for cell, task in tasks(plan, store, data=data):
                if bool(cell.method.candidates) is not tuned:
                    waiting += not tuned
                    continue
                if task is None:
                    name = f"{cell.problem}, {cell.item}, {cell.label}, {cell.seed}"
                    summary.total += 1
                    summary.failed[name] = f"none of the values to choose from worked on the validation items ({name})"
                    continue
                if task.key in seen:
                    continue
                seen.add(task.key)
                summary.total += 1
                if store.has(task.key):
                    try:
                        store.check(task.key)
                        summary.stored += 1
                        continue
                    except DamagedError:
                        summary.damaged.append(str(store.set_aside(task.key)))
                if task.key in left_over:
                    store.fail(
                        task.spec, task.labels, kind="Killed", message="the run was killed or crashed in this task",
                        traceback=left_over[task.key] or NO_TRACEBACK, permanent=False,
                    )  # fmt: skip
                if retry_failed:
                    store.forget_failure(task.key)
                elif failure := store.failure(task.key):
                    error = failure["errors"][-1]
                    if failure["permanent"] or len(failure["errors"]) >= attempts:
                        summary.failed[task.key] = f"{error['kind']}: {error['message']}"
                        continue
                queue.append(task)
            total = ended + len(queue) + waiting
            if not tuned:
                store.log_run(
                    {
                        "command": command or shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]), "plan": plan.name,
                        "text": plan.text, "started": now(), "environment": environment(), "threads": threads,
                        "device": device, "tasks": total,
                    }
                )  # fmt: skip
            if callback is not None and (queue or not tuned):
                callback(ended, total, None)
            if queue:
                for task, outcome in executor(queue, work):
                    if outcome.state == "again":
                        queue.append(task)
                    elif outcome.state == "done":
                        summary.done += 1
                    else:
                        summary.failed[task.key] = outcome.message
                    ended += outcome.state != "again"
                    if callback is not None:
                        callback(ended, total, outcome)
            if not waiting:
                break
        summary.left = summary.total - summary.stored - summary.done - len(summary.failed)
    return summary
