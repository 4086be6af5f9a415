"""The store: whole results or none, whatever is broken around it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from invdiff.benchmark import Plan, Store, TaskSpec, load_results, run
from invdiff.benchmark import store as store_module
from invdiff.benchmark.plan import Recipe
from invdiff.benchmark.store import DamagedError, LockedError, StoreError, digest


def spec(seed: int = 0) -> TaskSpec:
    return TaskSpec(
        recipe=Recipe("make", {}), data="d", dtype="float32", prior="", prior_sha256="", method="fbp", parameters={},
        version="1", seed=seed, n_samples=1, keep=1,
    )  # fmt: skip


LABELS = {"problem": "P", "item": "0", "method": "FBP", "patient": "p"}


def write(store: Store, s: TaskSpec) -> None:
    arrays = {"mean": torch.arange(6.0).reshape(1, 2, 3)}
    store.write(s, labels=LABELS, metrics={"psnr": 30.0, "ranks": [1, 2]}, arrays=arrays, log="x\n", env={"host": "h"})


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    store = Store(tmp_path / "s", create=True)
    write(store, spec())
    result = Store(tmp_path / "s").read(spec().key)
    assert (result.spec, result.labels, result.metrics) == (spec(), LABELS, {"psnr": 30.0, "ranks": [1, 2]})
    assert torch.equal(store.arrays(spec().key)["mean"], torch.arange(6.0).reshape(1, 2, 3))
    assert list(store.keys()) == [spec().key] == [store.find(spec().key[:6])]
    assert not any((tmp_path / "s" / "tmp").iterdir())


def test_a_second_result_of_the_same_key_is_dropped(tmp_path: Path) -> None:
    store = Store(tmp_path / "s", create=True)
    write(store, spec())
    before = files(tmp_path / "s")
    write(store, spec())
    assert files(tmp_path / "s") == before


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not a benchmark store. Choose a new or an empty folder"):
        Store(tmp_path, create=True)
    with pytest.raises(FileNotFoundError, match="no store.json"):
        Store(tmp_path / "none")
    assert os.listdir(tmp_path) == ["notes.txt"]


@pytest.mark.parametrize("when", range(1, 6))
def test_a_full_disk_leaves_no_half_result_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: int
) -> None:
    store = Store(tmp_path / "s", create=True)
    write(store, spec(1))
    before, calls = files(tmp_path / "s"), 0
    original = Path.write_text

    def full(self: Path, data: str, *args: Any, **kwargs: Any) -> int:
        nonlocal calls
        calls += 1
        if calls == when:
            original(self, data[: len(data) // 2], *args, **kwargs)
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(self, data, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", full)
    if when == 5:  # all four texts were written
        write(store, spec())
        return
    with pytest.raises(StoreError, match="disk of the store .* is full. Free some space .* what is stored is intact"):
        write(store, spec())
    assert files(tmp_path / "s") == before


def test_a_run_stops_at_a_full_disk_and_goes_on_when_there_is_space(
    tmp_path: Path, make_plan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, calls = Plan.read(make_plan(items=4)), 0
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        nonlocal calls
        if Path(source).is_dir():
            calls += 1
            if calls == 3:
                raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(store_module.os, "replace", full)
    with pytest.raises(StoreError, match="is full"):
        run(plan, tmp_path / "s")
    store = Store(tmp_path / "s")
    assert len(list(store.keys())) == 2
    assert not (tmp_path / "s" / "failed").exists()  # no task is to blame
    summary = run(plan, tmp_path / "s")
    assert (summary.stored, summary.done) == (2, 2)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_mark_that_finds_no_space_says_so(tmp_path: Path) -> None:
    store = Store(tmp_path / "s", create=True)
    (tmp_path / "s" / "running").mkdir()
    (tmp_path / "s" / "running" / "k.txt").symlink_to("/dev/full")
    with pytest.raises(StoreError, match="is full"), store.marked("k", {}):
        pass


@pytest.mark.skipif(not Path("/dev/shm").is_dir() or os.geteuid() != 0, reason="needs root to mount a small tmpfs")
def test_a_really_full_file_system(tmp_path: Path, make_plan: Any) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        plan = Plan.read(make_plan(items=1, seeds=str(list(range(20)))))
        with pytest.raises(StoreError, match="is full"):
            run(plan, small / "s")
        store = Store(small / "s")
        keys = list(store.keys())
        assert 0 < len(keys) < 20
        for key in keys:
            store.read(key)
        subprocess.run(["mount", "-o", "remount,size=4m", small], check=True)
        summary = run(plan, small / "s")
        assert (summary.stored, summary.done, summary.failed) == (len(keys), 20 - len(keys), {})
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_store_without_write_permission(tmp_path: Path, make_plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan.read(make_plan())
    if os.geteuid() == 0:  # root may write anywhere

        def refuse(*args: Any, **kwargs: Any) -> int:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(store_module.os, "open", refuse)
        Store(tmp_path / "s", create=True)
    else:
        Store(tmp_path / "s", create=True)
        (tmp_path / "s").chmod(0o500)
    with pytest.raises(StoreError, match="cannot be written .*Permission denied.*intact"):
        run(plan, tmp_path / "s")


@pytest.mark.parametrize("name", ["spec.json", "metrics.json", "arrays.safetensors", "env.json"])
@pytest.mark.parametrize("how", ["missing", "truncated", "other"])
def test_a_damaged_result_is_set_aside_and_computed_again(tmp_path: Path, make_plan: Any, name: str, how: str) -> None:
    plan, journal = Plan.read(make_plan()), tmp_path / "s"
    run(plan, journal)
    store = Store(tmp_path / "s")
    keys = list(store.keys())
    good = {k: store.read(k).metrics for k in keys}
    path = store.folder(keys[0]) / name
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:-3] if path.stat().st_size > 3 else b"x")
    else:
        path.write_bytes(b"[1, 2]")
    with pytest.raises(DamagedError, match="is damaged: .*'bench run' computes it again"):
        store.read(keys[0])
    assert len(load_results(store)) == len(keys) - 1
    summary = run(plan, store)
    assert (summary.stored, summary.done, len(summary.damaged)) == (len(keys) - 1, 1, 1)
    assert name == path.name
    assert store.read(keys[0]).metrics["psnr"] == good[keys[0]]["psnr"]
    assert len(load_results(store)) == len(keys)


def test_a_result_under_the_wrong_key_is_damaged(tmp_path: Path) -> None:
    store = Store(tmp_path / "s", create=True)
    write(store, spec())
    other = store.folder(spec(1).key)
    other.parent.mkdir(exist_ok=True)
    store.folder(spec().key).rename(other)
    with pytest.raises(DamagedError, match="belongs to"):
        store.read(spec(1).key)


def test_two_runs_on_one_store_refuse_and_the_lock_dies_with_its_process(tmp_path: Path, make_plan: Any) -> None:
    plan = Plan.read(make_plan())
    Store(tmp_path / "s", create=True)
    code = (
        "import sys, time; from invdiff.benchmark import Store\n"
        "with Store(sys.argv[1]).lock(): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, tmp_path / "s"], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(LockedError, match=f"in use by bench run, process {holder.pid} on .* Wait until it ends"):
            run(plan, tmp_path / "s")
    finally:
        holder.kill()
        holder.communicate()
    assert run(plan, tmp_path / "s").done == 2


def test_the_index_is_a_cache(tmp_path: Path, make_plan: Any) -> None:
    path = make_plan("seconds = 0.0", "fails = 0, seconds = 0.001")
    run(Plan.read(path), tmp_path / "s")
    first = load_results(tmp_path / "s")
    index = tmp_path / "s" / "index.parquet"
    stamp = index.stat().st_mtime_ns
    assert load_results(tmp_path / "s").equals(first)
    assert index.stat().st_mtime_ns == stamp  # nothing new: not written again
    index.write_bytes(b"torn")
    again = load_results(tmp_path / "s")
    assert again.sort_values("key", ignore_index=True).equals(first.sort_values("key", ignore_index=True))
    index.unlink()
    assert len(load_results(tmp_path / "s")) == 4
    assert set(first["method"]) == {"m0", "m1"}
    assert first["psnr"].between(5, 60).all()
    assert json.loads(first["parameters"][0])["error"] == ""


def test_a_measurement_is_made_once_and_its_digest_sees_every_value(tmp_path: Path) -> None:
    import bench_plugins

    store = Store(tmp_path / "s", create=True)
    recipe = Recipe("bench_plugins:problem", {"item": 1})
    known = store.make(recipe)
    m = store.measurement(recipe)
    assert digest(m) == known["digest"] == digest(bench_plugins.problem(item=1))
    assert known["patient"] == "p0"
    others = [bench_plugins.problem(item=2), bench_plugins.problem(item=1, noise=0.2)]
    assert len({known["digest"], *map(digest, others)}) == 3
    stamp = (tmp_path / "s" / "measurements" / f"{recipe.key}.h5").stat().st_mtime_ns
    assert store.make(recipe) == known
    assert (tmp_path / "s" / "measurements" / f"{recipe.key}.h5").stat().st_mtime_ns == stamp


def test_a_measurement_that_no_file_can_hold_is_made_by_each_worker(tmp_path: Path) -> None:
    store = Store(tmp_path / "s", create=True)
    recipe = Recipe("bench_plugins:unsaveable", {})
    store.make(recipe)
    assert not list((tmp_path / "s" / "measurements").glob("*.h5"))
    assert type(store.measurement(recipe).A).__name__ == "Mine"
