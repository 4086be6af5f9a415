"""Dask workers: what is killed, hangs or dies, and what is left in the store then."""

from __future__ import annotations

import collections
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from invdiff.benchmark import Plan, Store, run
from invdiff.benchmark.cluster import connect, slurm

pytest.importorskip("distributed", reason="needs dask and distributed (pip install invdiff[bench])")

COMMAND = [sys.executable, "-c", "from invdiff.cli import app; app()", "bench"]
ITEMS = 8


def start(*arguments: Any, **kwargs: Any) -> subprocess.Popen[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kwargs)


def finish(process: subprocess.Popen[str], seconds: float = 240) -> str:
    output, _ = process.communicate(timeout=seconds)
    return output


def until(condition: Callable[[], Any], process: subprocess.Popen[str] | None = None, seconds: float = 120) -> Any:
    end = time.monotonic() + seconds
    while True:
        if value := condition():
            return value
        assert time.monotonic() < end
        assert process is None or process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


def running(store: Path) -> dict[str, dict[str, Any]]:
    if not (store / "store.json").exists():
        return {}
    return {key: mark for key, (mark, _) in Store(store).all_running().items()}


def done(store: Path) -> list[str]:
    return list(Store(store).keys()) if (store / "store.json").exists() else []


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[-1].split()[0] == "Z"
    except OSError:
        return True


def contents(store: Path) -> dict[str, Any]:
    """All that a result says, short of when and where it was made and how long it took."""
    s, out = Store(store), {}
    for key in done(store):
        r = s.read(key)
        metrics = {k: v for k, v in r.metrics.items() if k not in ("seconds", "peak_memory")}
        out[r.spec.method, r.labels["item"], r.spec.seed] = metrics, (s.folder(key) / "arrays.safetensors").read_bytes()
    return out


@pytest.fixture
def study(tmp_path: Path, make_plan: Any) -> Path:
    """16 tasks: 8 that take half a second and write a journal, 8 of a real algorithm."""
    path = make_plan(f'seconds = 0.5, journal = "{tmp_path}/journal"', items=ITEMS)
    path.write_text(path.read_text() + '\n[[method]]\nalgorithm = "daps"\nset = { n_anneal = 5 }\n')
    return path


@pytest.fixture
def reference(study: Path, tmp_path: Path) -> dict[str, Any]:
    """What an undisturbed serial run stores."""
    run(Plan.read(study), tmp_path / "serial")
    (tmp_path / "journal").unlink()
    return contents(tmp_path / "serial")


def check_completed(store: Path, reference: dict[str, Any], journal: Path, *, again: int) -> None:
    """All results are there and equal; no task ran twice but the ``again`` that were killed before they ended."""
    assert contents(store) == reference
    assert not list((store / "failed").glob("*"))
    ran = collections.Counter(line.rsplit(" ", 1)[0] for line in journal.read_text().splitlines())
    assert len(ran) == ITEMS
    assert sum(ran.values()) <= ITEMS + again


@pytest.mark.slow
def test_kill_9_of_a_worker(study: Path, reference: dict[str, Any], tmp_path: Path) -> None:
    store = tmp_path / "s"
    process = start("run", study, "--store", store, "--workers", 2)
    until(lambda: len(done(store)) >= 2, process)
    mark = until(lambda: next(iter(running(store).values()), None), process)
    os.kill(mark["pid"], signal.SIGKILL)
    output = finish(process)
    assert process.returncode == 0, output
    assert "16 tasks: 16 computed now" in output
    check_completed(store, reference, tmp_path / "journal", again=1)


@pytest.mark.slow
def test_kill_9_of_the_main_process(study: Path, reference: dict[str, Any], tmp_path: Path) -> None:
    store = tmp_path / "s"
    process = start("run", study, "--store", store, "--workers", 2)
    until(lambda: len(done(store)) >= 3, process)
    pids = {mark["pid"] for mark in running(store).values()}
    process.kill()
    process.communicate()
    until(lambda: all(map(gone, pids)))  # its workers go with it
    stored = {key: Store(store).folder(key).stat().st_ctime_ns for key in done(store)}
    assert 3 <= len(stored) < 16
    again = start("run", study, "--store", store, "--workers", 2)
    output = finish(again)
    assert again.returncode == 0, output
    assert f"16 tasks: {16 - len(stored)} computed now, {len(stored)} found" in output
    assert all(Store(store).folder(key).stat().st_ctime_ns == t for key, t in stored.items())  # untouched
    check_completed(store, reference, tmp_path / "journal", again=2)


class Scheduler:
    """A scheduler with two workers, in processes of their own."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "scheduler.json"
        self.file.unlink(missing_ok=True)
        dask = [sys.executable, "-m", "distributed.cli."]
        options: dict[str, Any] = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)
        command = ["dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file"]
        self.process = subprocess.Popen([*dask[:2], dask[2] + command[0], *command[1:], str(self.file)], **options)
        until(self.file.exists)
        command = ["dask_worker", "--nthreads", "1", "--nworkers", "2", "--no-dashboard", "--scheduler-file"]
        self.workers = subprocess.Popen([*dask[:2], dask[2] + command[0], *command[1:], str(self.file)], **options)

    @property
    def address(self) -> str:
        import json

        return json.loads(self.file.read_text())["address"]

    def end(self) -> None:
        for process in (self.workers, self.process):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[Callable[[], Scheduler]]:
    made: list[Scheduler] = []

    def make() -> Scheduler:
        made.append(Scheduler(tmp_path))
        return made[-1]

    yield make
    for one in made:
        one.end()


@pytest.mark.slow
def test_kill_9_of_the_scheduler(
    study: Path, reference: dict[str, Any], tmp_path: Path, scheduler: Callable[[], Scheduler]
) -> None:
    store, first = tmp_path / "s", scheduler()
    process = start("run", study, "--store", store, "--scheduler", first.address)
    until(lambda: len(done(store)) >= 3, process)
    first.process.kill()
    output = finish(process)
    assert process.returncode == 2
    assert "The scheduler was lost. What is stored is intact" in output
    first.end()
    assert 3 <= len(done(store)) <= 16
    second = scheduler()
    again = start("run", study, "--store", store, "--scheduler", second.address)
    output = finish(again)
    assert again.returncode == 0, output
    check_completed(store, reference, tmp_path / "journal", again=2)


@pytest.mark.slow
def test_a_task_that_kills_its_worker_is_reported_and_the_others_finish(tmp_path: Path, make_plan: Any) -> None:
    plan = make_plan('death = "kill"', 'death = "segfault"', "seconds = 0.05", items=1)
    text = plan.read_text()
    plan.write_text(text + text[text.rindex("[[method]]") :].replace("m2", "m3").replace("0.05", "0.06"))
    store = tmp_path / "s"
    process = start("run", plan, "--store", store, "--workers", 2, "--attempts", 2)
    output = finish(process)
    assert process.returncode == 1, output
    assert "4 tasks: 2 computed now, 0 found" in output
    failures = {
        f["labels"]["method"]: f["errors"]
        for p in (store / "failed").iterdir()
        if (f := Store(store).failure(p.stem)) is not None
    }
    assert set(failures) == {"m0", "m1"}
    for errors in failures.values():
        assert [e["kind"] for e in errors] == ["Killed", "Killed"]
        assert "was killed or crashed" in errors[0]["message"]
    assert "SIGKILL" in failures["m0"][0]["traceback"]
    assert "in __call__" in failures["m1"][0]["traceback"]  # where it crashed


@pytest.mark.slow
def test_a_task_that_hangs_in_compiled_code_loses_its_worker(tmp_path: Path, make_plan: Any) -> None:
    plan = make_plan("hang = 600.0", "seconds = 0.01", items=1, head="time_limit = 2")
    process = start("run", plan, "--store", tmp_path / "s", "--workers", 1, "--attempts", 1)
    output = finish(process)
    assert process.returncode == 1, output
    assert "2 tasks: 1 computed now" in output
    assert "which does not react; its worker was stopped" in output


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small tmpfs")
def test_a_disk_that_fills_up_under_the_workers(tmp_path: Path, make_plan: Any) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        plan = make_plan(items=1, seeds=str(list(range(40))))
        process = start("run", plan, "--store", small / "s", "--workers", 2)
        output = finish(process)
        assert process.returncode == 2, output
        assert "Traceback" not in output
        assert "is full. Free some space and repeat the command; what is stored is intact" in output
        n = len(done(small / "s"))
        assert 0 < n < 40
        subprocess.run(["mount", "-o", "remount,size=8m", small], check=True)
        again = start("run", plan, "--store", small / "s")
        assert f"40 tasks: {40 - n} computed now, {n} found" in finish(again)
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.slow
def test_two_thousand_tasks_through_dask_in_bounded_memory() -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "engine_overhead.py"
    command = [sys.executable, str(script), "--only", "nothing", "--tasks", "2000", "--workers", "2"]
    out = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert out.returncode == 0, out.stderr
    values = dict(line.rsplit(": ", 1) for line in out.stdout.splitlines() if ": " in line)
    assert values["computed"] == "2000"
    assert values["found by the second run"] == "2000"
    assert float(values["main process, growth while running (MB)"]) < 60


def test_no_scheduler_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="dask scheduler"), connect("nonsense://127.0.0.1:1"):
        pass


def test_an_address_without_a_port_is_one_line(tmp_path: Path, make_plan: Any) -> None:
    process = start("run", make_plan(), "--store", tmp_path / "s", "--scheduler", "foo")
    lines = finish(process).strip().splitlines()  # no traceback of a client that hangs
    assert process.returncode == 2
    assert lines == [
        "error: The address of a dask scheduler is like tcp://127.0.0.1:8786: missing port number in address 'foo'."
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("queues = 1", "slurm.toml has no key 'queues'; it has account"),
        ("cores = 4\nprocesses = 2", "processes must equal cores"),
        ("cores = ", "slurm.toml: "),
    ],
)
def test_a_wrong_slurm_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    pytest.importorskip("dask_jobqueue", reason="needs dask-jobqueue (pip install invdiff[bench])")
    path = tmp_path / "slurm.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message), slurm(path):
        pass
    with pytest.raises(FileNotFoundError), slurm(tmp_path / "none.toml"):
        pass


@pytest.mark.slow
def test_a_tuned_method_waits_for_its_trials_on_other_workers(tmp_path: Path, make_plan: Any) -> None:
    path = make_plan(items=3)
    text = path.read_text() + '\n[[method]]\nalgorithm = "daps"\ntune = { n_anneal = [3, 6] }\nby = "crps"\n'
    path.write_text(text.replace("\nprior =", "\nvalidation = { item = [7, 8] }\nprior ="))
    output = finish(start("run", path, "--store", tmp_path / "s", "--workers", 2))
    assert "10 tasks: 10 computed now, 0 found" in output  # 3 of Draw; 2 values on 2 items, and the best on 3
    run(Plan.read(path), tmp_path / "serial")
    assert contents(tmp_path / "s") == contents(tmp_path / "serial")


@pytest.mark.slow
def test_no_port_is_open_to_other_machines(tmp_path: Path) -> None:
    """A scheduler runs the code of whoever reaches it."""
    code = (
        "import psutil\nfrom invdiff.benchmark.cluster import local\n"
        "if __name__ == '__main__':\n with local(1):\n  me = psutil.Process()\n"
        "  for p in [me, *me.children(recursive=True)]:\n   for c in p.net_connections(kind='inet'):\n"
        "    if c.status == 'LISTEN': print(c.laddr.ip)\n"
    )
    script = tmp_path / "ports.py"
    script.write_text(code)
    out = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert out.returncode == 0, out.stderr
    assert set(out.stdout.split()) == {"127.0.0.1"}
