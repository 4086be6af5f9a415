"""The store: one folder for each result, named by its key. Its presence means that the task is done.

    store/ab/abcd.../spec.json          what was computed (TaskSpec)
                     metrics.json       numbers
                     arrays.safetensors mean, std, samples (k, *shape), physical units
                     log.txt            warnings and log lines, if there were any
                     env.json           where and with what, and the sizes of the files above
    store/failed/KEY.json               attempts that failed, with their tracebacks
    store/running/KEY.txt               what runs now, or ran when its process was killed, and where that crashed
    store/measurements/RECIPE.h5        data, made once, so that every task on every machine sees the same
    store/runs/TIME.json                command, plan and environment of each ``bench run``
    store/damaged/                      results that did not read, set aside
    store/index.parquet                 a cache of all numbers; may be deleted

A result is written to ``tmp/`` and renamed. Nothing is forced to disk (five fsyncs are 28 ms); after a power failure a
torn result shows by the sizes in its ``env.json``, is set aside and computed again.

``bench run`` holds an exclusive ``flock`` on ``store/lock``: a second one on the same store refuses. The operating
system drops the lock when its process ends, however it ends. Over a network file system the lock holds between
machines where the mount supports it (NFS 4; Lustre with ``-o flock``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from invdiff.benchmark.plan import Recipe, TaskSpec
from invdiff.measurement import Measurement
from invdiff.operators.base import Operator
from invdiff.storage import atomic_path, write_tensors

FORMAT = "invdiff-store-1"
FILES = ("spec.json", "metrics.json", "arrays.safetensors")  # of each result; env.json has their sizes
FULL = (errno.ENOSPC, errno.EDQUOT)


class StoreError(OSError):
    """The store cannot be written; no task is to blame."""


class DamagedError(ValueError):
    """A stored result does not read."""


class LockedError(RuntimeError):
    """Another process runs a benchmark on this store."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """A stored result, without its arrays.

    Attributes:
        key, spec: of the task.
        labels: names of problem, item and method in the plan that first made it.
        metrics: numbers.
        env: where and with what it was made.
    """

    key: str
    spec: TaskSpec
    labels: Mapping[str, str]
    metrics: Mapping[str, Any]
    env: Mapping[str, Any]


class Store:
    """A folder of results.

    Args:
        path: the folder.
        create: make it if it is not there.

    Raises:
        FileNotFoundError: no such store, and ``create`` is False.
        ValueError: the folder holds something else.

    Example:
        >>> import tempfile
        >>> from invdiff.benchmark import Store
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = Store(f"{folder}/results", create=True)
        ...     list(store.keys())
        []
    """

    def __init__(self, path: str | Path, *, create: bool = False) -> None:
        self.path = Path(path)
        marker = self.path / "store.json"
        if marker.is_file():
            found = _json(marker).get("format")
            if found != FORMAT:
                raise ValueError(f"{self.path} is a store of format {found!r}; this version reads {FORMAT!r}.")
            return
        if not create:
            raise FileNotFoundError(f"{self.path} is not a benchmark store (no store.json); 'bench run' makes one.")
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise ValueError(f"{self.path} exists and is not a benchmark store. Choose a new or an empty folder.")
        with self._writing():
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(marker, {"format": FORMAT})

    def folder(self, key: str) -> Path:
        """Where a result is, or will be."""
        return self.path / key[:2] / key

    def has(self, key: str) -> bool:
        """Whether the task is done."""
        return self.folder(key).is_dir()

    def keys(self) -> Iterator[str]:
        """Of all results."""
        for group in sorted(os.scandir(self.path), key=lambda e: e.name):
            if len(group.name) == 2 and group.is_dir():
                yield from sorted(e.name for e in os.scandir(group) if len(e.name) == 64)

    def find(self, prefix: str) -> str:
        """The one key, done or failed, that starts with ``prefix``. Raises KeyError."""
        failed = (p.stem for p in (self.path / "failed").glob("*.json"))
        found = sorted({k for k in (*self.keys(), *failed) if k.startswith(prefix)}) if prefix else []
        if len(found) != 1:
            raise KeyError(
                f"No result or failure in {self.path} starts with {prefix!r}." if not found
                else f"{len(found)} results in {self.path} start with {prefix!r}; give more digits."
            )  # fmt: skip
        return found[0]

    # ------------------------------------------------------------------------------------------ results

    def write(
        self, spec: TaskSpec, *, labels: Mapping[str, str], metrics: Mapping[str, Any], arrays: Mapping[str, Tensor],
        log: str, env: Mapping[str, Any],
    ) -> None:  # fmt: skip
        """Store a result. One that is already there is kept.

        Raises:
            StoreError: no space, no permission.
        """
        key, tmp = spec.key, self.path / "tmp" / uuid.uuid4().hex
        try:
            with self._writing():
                tmp.mkdir(parents=True)
                spec_json = json.dumps({"spec": json.loads(spec.to_json()), "labels": dict(labels)}, indent=1)
                (tmp / "spec.json").write_text(spec_json)
                (tmp / "metrics.json").write_text(json.dumps(dict(metrics), indent=1))
                write_tensors(tmp / "arrays.safetensors", arrays)
                if log:
                    (tmp / "log.txt").write_text(log)
                sizes = {name: (tmp / name).stat().st_size for name in (*FILES, *(["log.txt"] if log else []))}
                (tmp / "env.json").write_text(json.dumps({**env, "files": sizes}, indent=1))
                final = self.folder(key)
                final.parent.mkdir(exist_ok=True)
                try:
                    os.replace(tmp, final)
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
                (self.path / "failed" / f"{key}.json").unlink(missing_ok=True)
        finally:
            shutil.rmtree(tmp, ignore_errors=True)

    def check(self, key: str) -> dict[str, Any]:
        """See that a result's files have the sizes they were written with; returns its ``env``. Raises DamagedError."""
        folder = self.folder(key)
        try:
            env = _json(folder / "env.json")
            for name in {*FILES, *env["files"]}:
                if (size := os.stat(folder / name).st_size) != env["files"][name]:
                    raise ValueError(f"{name} has {size} bytes, expected {env['files'][name]}")
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise _damaged(folder, error) from None
        return env

    def read(self, key: str) -> Result:
        """A result's numbers. Raises KeyError if there is none, DamagedError if it does not read."""
        folder = self.folder(key)
        if not folder.is_dir():
            raise KeyError(f"No result {key} in {self.path}.")
        env = self.check(key)
        try:
            text, metrics = _json(folder / "spec.json"), _json(folder / "metrics.json")
            spec = TaskSpec.from_json(json.dumps(text["spec"]))
            if spec.key != key:
                raise ValueError(f"its spec.json belongs to {spec.key}")
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise _damaged(folder, error) from None
        return Result(key=key, spec=spec, labels=text["labels"], metrics=metrics, env=env)

    def arrays(self, key: str) -> dict[str, Tensor]:
        """``mean``, ``std`` (with 2 samples or more) and ``samples`` of a result. Raises DamagedError."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self.folder(key) / "arrays.safetensors"
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise DamagedError(f"{path} is damaged: {error}. 'bench run' computes it again.") from None

    def set_aside(self, key: str) -> Path:
        """Move a damaged result out of the way, where it can be looked at."""
        target = self.path / "damaged" / f"{key}-{uuid.uuid4().hex[:8]}"
        with self._writing():
            target.parent.mkdir(exist_ok=True)
            os.replace(self.folder(key), target)
        return target

    # ----------------------------------------------------------------------------------------- failures

    def failure(self, key: str) -> dict[str, Any] | None:
        """``{"spec", "labels", "permanent", "errors"}`` of a task that failed, or None. An error for each attempt:
        ``{"kind", "message", "traceback", "time", "host"}``."""
        path = self.path / "failed" / f"{key}.json"
        try:
            return _json(path) if path.is_file() else None
        except ValueError:
            return None  # torn: as if it had not been tried

    def fail(
        self, spec: TaskSpec, labels: Mapping[str, str], *, kind: str, message: str, traceback: str, permanent: bool
    ) -> int:
        """Record one more failed attempt of a task; returns how many there are."""
        key = spec.key
        record = self.failure(key) or {"spec": json.loads(spec.to_json()), "labels": dict(labels), "errors": []}
        record["permanent"] = permanent
        record["errors"].append(
            {"kind": kind, "message": message, "traceback": traceback, "time": now(), "host": socket.gethostname()}
        )
        with self._writing():
            write_json(self.path / "failed" / f"{key}.json", record)
        return len(record["errors"])

    def forget_failure(self, key: str) -> None:
        """Let a failed task be tried anew."""
        (self.path / "failed" / f"{key}.json").unlink(missing_ok=True)

    # ------------------------------------------------------------------------------------- running tasks

    @contextlib.contextmanager
    def marked(self, key: str, record: Mapping[str, Any]) -> Iterator[IO[bytes]]:
        """Say that a task runs, until the block ends. What is written to the file given, a crash report, is found by
        :meth:`running` if the process ends before."""
        path = self.path / "running" / f"{key}.txt"
        with self._writing():
            path.parent.mkdir(exist_ok=True)
            f = path.open("wb", buffering=0)  # nothing is left to fail when it is closed
        with f:
            with self._writing():
                f.write(json.dumps(record).encode() + b"\n")
            try:
                yield f
            finally:
                self.unmark(key)

    def unmark(self, key: str) -> None:
        """Say that a task does not run."""
        (self.path / "running" / f"{key}.txt").unlink(missing_ok=True)

    def running(self, key: str) -> tuple[dict[str, Any], str] | None:
        """The record that :meth:`marked` was given and the crash report, or None."""
        try:
            first, _, rest = (self.path / "running" / f"{key}.txt").read_text().partition("\n")
            return json.loads(first), rest
        except (OSError, ValueError):
            return None

    def all_running(self) -> dict[str, tuple[dict[str, Any], str]]:
        """Key to what :meth:`running` gives."""
        found = {p.stem: self.running(p.stem) for p in (self.path / "running").glob("*.txt")}
        return {key: mark for key, mark in found.items() if mark is not None}

    def clean(self) -> None:
        """Remove what a killed run left in ``tmp`` and ``running``. Only with the lock held."""
        shutil.rmtree(self.path / "tmp", ignore_errors=True)
        shutil.rmtree(self.path / "running", ignore_errors=True)
        for path in (self.path / "measurements").glob(".*.tmp"):
            path.unlink(missing_ok=True)

    # --------------------------------------------------------------------------------------------- data

    def data(self, recipe: Recipe) -> dict[str, str] | None:
        """``{"digest", "dtype", "item", "patient"}`` of a measurement that was made before, or None."""
        path = self.path / "measurements" / f"{recipe.key}.json"
        try:
            known = _json(path) if path.is_file() else None
        except ValueError:
            return None
        return known and {k: str(known[k]) for k in ("digest", "dtype", "item", "patient")}

    def make(self, recipe: Recipe, folder: Path | None = None) -> dict[str, str]:
        """Make a measurement, keep it, and say what :meth:`data` does.

        Measurements with operators that cannot be saved are made again by each worker.
        """
        if known := self.data(recipe):
            return known
        m, path = recipe.build(folder), self.path / "measurements" / f"{recipe.key}.h5"
        with self._writing():
            try:
                m.save(path)
                m = Measurement.load(path)
            except TypeError:
                path.unlink(missing_ok=True)
            known = {
                "digest": digest(m), "dtype": str(m.A.dtype).removeprefix("torch."), "item": m.item,
                "patient": str(m.metadata.get("patient", "")),
            }  # fmt: skip
            write_json(path.with_suffix(".json"), {**known, "recipe": dataclasses.asdict(recipe)})
        return known

    def measurement(self, recipe: Recipe, folder: Path | None = None) -> Measurement:
        """The measurement that :meth:`make` kept."""
        path = self.path / "measurements" / f"{recipe.key}.h5"
        return Measurement.load(path) if path.is_file() else recipe.build(folder)

    # --------------------------------------------------------------------------------------------- runs

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the store for one ``bench run``. Raises LockedError, naming who holds it."""
        with self._writing():
            fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        with os.fdopen(fd, "r+") as f:
            try:
                import fcntl

                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except ImportError:  # no flock on this platform: nobody is kept out
                pass
            except BlockingIOError:
                holder = f.read().strip() or "another process"
                raise LockedError(
                    f"The store {self.path} is in use by {holder}. Wait until it ends, or use another --store."
                ) from None
            with self._writing():
                f.truncate()
                f.write(f"bench run, process {os.getpid()} on {socket.gethostname()}, since {now()}")
                f.flush()
            yield

    def log_run(self, record: Mapping[str, Any]) -> Path:
        """Keep what a ``bench run`` was: command, plan, environment."""
        path = self.path / "runs" / f"{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex[:6]}.json"
        with self._writing():
            write_json(path, record)
        return path

    def runs(self) -> list[dict[str, Any]]:
        """What :meth:`log_run` kept, oldest first."""
        return [_json(p) for p in sorted((self.path / "runs").glob("[0-9]*.json"))]

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if isinstance(error, StoreError):
                raise
            if error.errno in FULL:
                why = f"The disk of the store {self.path} is full. Free some space and repeat the command"
            elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                why = f"The store {self.path} cannot be written ({error.strerror}). Get permission, or use another"
            else:
                why = f"Writing to the store {self.path} failed ({error})"
            raise StoreError(error.errno or 0, f"{why}; what is stored is intact.") from error


def _damaged(folder: Path, error: Exception) -> DamagedError:
    return DamagedError(f"The result {folder} is damaged: {error}. 'bench run' computes it again.")


def write_json(path: Path, value: Any) -> None:
    """Atomically."""
    with atomic_path(path) as tmp:
        tmp.write_text(json.dumps(value, indent=1))


def _json(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text())
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return value


def now() -> str:
    """Local time with its zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S %z")


def digest(m: Measurement) -> str:
    """sha256 of everything in a measurement that a reconstruction can depend on, and of the reference."""
    h = hashlib.sha256()
    _update(h, [m.y, m.A, m.noise, m.image_scale, m.units, m.reference, m.item])
    return h.hexdigest()


def _update(h: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        value = value.detach().cpu().resolve_conj().contiguous().numpy()
    if isinstance(value, np.ndarray):
        h.update(f"array {value.dtype.str} {value.shape}|".encode())
        h.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Operator):
        h.update(f"{type(value).__name__} {value.dtype}|".encode())
        _update(h, value.init_args())
    elif dataclasses.is_dataclass(value):
        h.update(f"{type(value).__name__}|".encode())
        _update(h, {f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    elif isinstance(value, Mapping):
        for key in sorted(value):
            h.update(f"{key}=".encode())
            _update(h, value[key])
    elif isinstance(value, list | tuple):
        h.update(f"{len(value)} of|".encode())
        for v in value:
            _update(h, v)
    elif value is None or isinstance(value, bool | int | float | complex | str | torch.dtype):
        h.update(f"{value!r}|".encode())
    else:
        raise TypeError(f"Cannot digest a {type(value).__name__}: give it as a tensor, number, text or dataclass.")
