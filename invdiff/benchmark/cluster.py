"""Dask workers for :func:`invdiff.benchmark.run`: on this machine, behind any scheduler, or as Slurm jobs.

A dask scheduler lets whoever reaches its port run code. The one of :func:`local` listens on 127.0.0.1 only, without a
dashboard; for a cluster use TLS (``security = true`` and a shared ``shared_temp_directory`` in the Slurm file).
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import inspect
import logging
import queue
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from invdiff.benchmark.engine import Executor, Outcome, Task, Work, run_task
from invdiff.benchmark.store import Store, StoreError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RESUBMIT = 20  # times that the scheduler may give a task up because workers died around it
PATIENCE = 60  # seconds without workers after which that is said
LOST = 30.0  # seconds without the scheduler, after which the run ends

# A worker that dies is nobody's fault but the running task's, and that is counted by the task's mark in the store. A
# worker that is busy in compiled code for long is not dead.
CONFIG: dict[str, Any] = {
    "distributed.scheduler.allowed-failures": 10**6,
    "distributed.scheduler.worker-ttl": None,
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 0.95,
    "distributed.worker.profile.enabled": False,
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    "distributed.admin.tick.limit": "1h",
}


logger = logging.getLogger("invdiff")


class LostError(ConnectionError):
    """The scheduler is gone."""


@contextlib.contextmanager
def local(workers: int, *, threads: int = 1, device: str = "cpu") -> Iterator[Executor]:
    """Worker processes on this machine, killed ones replaced; on "cuda" worker i sees GPU i (modulo their number)."""
    dask, distributed = _import()
    from distributed.deploy.spec import SpecCluster

    n_gpus = torch.cuda.device_count() if device.startswith("cuda") else 0
    options = {
        "host": "127.0.0.1", "nthreads": 1, "memory_limit": _memory() // workers, "dashboard": False,
        "dashboard_address": "127.0.0.1:0", "silence_logs": 50,
    }  # fmt: skip
    specs = {
        i: {
            "cls": distributed.Nanny,
            "options": {**options, "env": {"CUDA_VISIBLE_DEVICES": str(i % n_gpus)} if n_gpus else {}},
        }
        for i in range(workers)
    }
    here = {"host": "127.0.0.1", "port": 0, "dashboard": False, "dashboard_address": "127.0.0.1:0"}
    scheduler = {"cls": distributed.Scheduler, "options": here}
    with (
        _quiet(),
        dask.config.set({**CONFIG, "distributed.nanny.pre-spawn-environ": _environment(threads)}),
        SpecCluster(workers=specs, scheduler=scheduler, silence_logs=50, name="invdiff") as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield over(client)


@contextlib.contextmanager
def connect(address: str) -> Iterator[Executor]:
    """The workers of a running scheduler. They need this package, the store's folder, and one thread each.

    Raises:
        OSError: there is no scheduler.
    """
    _, distributed = _import()
    try:  # a Client that refuses its address would hang when it is deleted
        distributed.comm.get_address_host_port(address)
    except ValueError as error:
        raise OSError(f"The address of a dask scheduler is like tcp://127.0.0.1:8786: {error}.") from None
    try:
        client = distributed.Client(address, set_as_default=False, timeout=20)
    except (OSError, ValueError) as error:
        raise OSError(f"No dask scheduler answers at {address} ({error}). Start one: dask scheduler.") from None
    with _quiet(), client:
        yield over(client)


@contextlib.contextmanager
def slurm(path: Path, *, threads: int = 1) -> Iterator[Executor]:
    """Workers as Slurm jobs.

    Args:
        path: TOML: ``jobs`` (how many) and the arguments of ``dask_jobqueue.SLURMCluster``, e.g. queue, account, cores,
            processes (equal to cores: one thread each), memory, walltime, job_script_prologue.

    Raises:
        FileNotFoundError; ValueError: an unknown key, or workers of several threads.
    """
    dask, distributed = _import()
    try:
        from dask_jobqueue import SLURMCluster
        from dask_jobqueue.core import Job, JobQueueCluster
        from dask_jobqueue.slurm import SLURMJob
    except ImportError as error:
        raise ImportError(f"Slurm needs dask-jobqueue: pip install 'invdiff[bench]' ({error}).") from None
    if not path.is_file():
        raise FileNotFoundError(f"No such file: {path}")
    try:
        settings = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path.name}: {error}") from None
    known = {name for cls in (SLURMJob, Job, JobQueueCluster) for name in inspect.signature(cls.__init__).parameters}
    known = known - {"self", "args", "kwargs", "scheduler", "name", "loop", "asynchronous"} | {"jobs"}
    for key in settings:
        if key not in known:
            raise ValueError(f"{path.name} has no key {key!r}; it has {', '.join(sorted(known))}.")
    jobs = settings.pop("jobs", 1)
    settings = {"cores": 1, "processes": settings.get("cores", 1), "memory": "4GB", **settings}
    if settings["cores"] != settings["processes"]:
        raise ValueError(f"{path.name}: processes must equal cores (workers of one thread each).")
    exports = [f"export {name}={value}" for name, value in _environment(threads).items()]
    settings["job_script_prologue"] = [*settings.get("job_script_prologue", []), *exports]
    settings["scheduler_options"] = {"dashboard": False, **settings.get("scheduler_options", {})}
    with (
        _quiet(),
        dask.config.set(CONFIG),
        SLURMCluster(**settings, silence_logs="error") as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        _try_submission(cluster.job_script())
        cluster.adapt(minimum_jobs=jobs, maximum_jobs=jobs, interval="30s")  # jobs that end are replaced
        yield over(client)


def _try_submission(script: str) -> None:
    """Have Slurm check a job script. Raises ValueError with what it says."""
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as f:
        f.write(script)
        f.flush()
        try:
            said = subprocess.run(["sbatch", "--test-only", f.name], capture_output=True, text=True)
        except FileNotFoundError:
            raise ValueError("There is no Slurm here: the command sbatch was not found.") from None
    if said.returncode:
        raise ValueError(f"Slurm refuses the job: {' '.join(said.stderr.split())}")


def over(client: Any) -> Executor:
    """An executor on a ``distributed.Client``: two tasks for each worker are submitted, the rest waits here."""

    def execute(waiting: collections.deque[Task], work: Work) -> Iterator[tuple[Task, Outcome]]:
        finished: queue.SimpleQueue[Any] = queue.SimpleQueue()
        flying: dict[str, tuple[Task, Any]] = {}
        times: collections.Counter[str] = collections.Counter()
        store, window, looked, answered, told = Store(work.store), 1, 0.0, time.monotonic(), time.monotonic()
        try:
            while waiting or flying:
                if time.monotonic() - looked > 1:
                    if client.status == "running":
                        n, answered = _workers(client), time.monotonic()
                        window = max(1, 2 * n)
                        if n:
                            told = answered
                        elif answered - told > PATIENCE:
                            told = answered
                            logger.warning("No dask worker for %d s; waiting for one.", PATIENCE)
                    elif time.monotonic() - answered > LOST or client.status in ("closed", "closing"):
                        raise _lost()
                    yield from _stop_hanging(client, store, work, flying)
                    looked = time.monotonic()
                while waiting and len(flying) < window:
                    task = waiting.popleft()
                    times[task.key] += 1
                    # dask keeps statistics for whatever stands before the first "-": without it, for each task
                    key = f"invdiff-{task.key}" + (f"-{times[task.key]}" if times[task.key] > 1 else "")
                    arguments = (work, task.key, task.spec.to_json(), dict(task.labels))
                    future = client.submit(run_task, *arguments, key=key, pure=False)
                    flying[key] = task, future
                    future.add_done_callback(finished.put)
                try:
                    future = finished.get(timeout=1)
                except queue.Empty:
                    continue
                if future.key not in flying:
                    continue  # given up before
                task, _ = flying.pop(future.key)
                if future.status == "finished":
                    try:  # what is stored need not be asked for
                        outcome = Outcome(task.key, "done") if store.has(task.key) else future.result()
                    except (OSError, asyncio.CancelledError, concurrent.futures.CancelledError):
                        raise _lost() from None
                    yield task, outcome
                elif future.status == "error":
                    error = future.exception()
                    if type(error).__name__ != "KilledWorker" or times[task.key] > RESUBMIT:
                        if isinstance(error, StoreError):
                            raise error
                        raise RuntimeError(f"A worker could not run a task: {type(error).__name__}: {error}") from error
                    waiting.append(task)  # its mark in the store tells whether it is to blame
                else:
                    raise _lost()
        finally:
            if client.status == "running":
                with contextlib.suppress(Exception):
                    client.cancel([future for _, future in flying.values()])

    return execute


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What distributed logs about dying processes is said here in one line."""
    logger = logging.getLogger("distributed")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def _lost() -> LostError:
    return LostError(
        "The scheduler was lost. What is stored is intact: start the scheduler again, if it is not this command's own, "
        "and repeat the command."
    )


def _workers(client: Any) -> int:
    """How many there are. Raises ValueError if one has several threads."""
    try:
        threads = client.nthreads()
    except (OSError, TimeoutError):
        return 1
    if many := [address for address, n in threads.items() if n != 1]:
        raise ValueError(f"The dask worker {many[0]} has {threads[many[0]]} threads; start it with --nthreads 1.")
    return len(threads)


def _stop_hanging(
    client: Any, store: Store, work: Work, flying: dict[str, tuple[Task, Any]]
) -> Iterator[tuple[Task, Outcome]]:
    """Restart workers in which a task did not react to its time limit."""
    if work.time_limit is None:
        return
    for key, (record, _) in store.all_running().items():
        late = time.time() - record["started"] - work.time_limit
        if record["run"] != work.run or late < max(5.0, 0.2 * work.time_limit) or not record["worker"]:
            continue
        found = next((k for k, (task, _) in flying.items() if task.key == key), None)
        if found is None:
            continue
        task, future = flying.pop(found)
        future.cancel()
        message = (
            f"took longer than its {work.time_limit:g} s in one call, which does not react; its worker was stopped"
        )
        store.unmark(key)
        count = store.fail(task.spec, task.labels, kind="TimeLimit", message=message, traceback="", permanent=False)
        with contextlib.suppress(Exception):
            client.restart_workers([record["worker"]], timeout=60, raise_for_error=False)
        yield task, Outcome(key, "again" if count < work.attempts else "failed", f"TimeLimit: {message}")


def _environment(threads: int) -> dict[str, str]:
    """Of a worker, before it starts."""
    return {f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "MKL", "OPENBLAS")}


def _memory() -> int:
    from distributed.system import MEMORY_LIMIT

    return int(MEMORY_LIMIT)


def _import() -> tuple[Any, Any]:
    try:
        import dask
        import distributed
    except ImportError as error:
        raise ImportError(f"Workers need dask and distributed: pip install 'invdiff[bench]' ({error}).") from None
    return dask, distributed
