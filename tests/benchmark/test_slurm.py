"""A plan on a real Slurm, of one node. ``tests/benchmark/slurm_node.sh`` installs and starts it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from invdiff.benchmark import Plan, Store, run
from invdiff.benchmark.cluster import slurm


def reason() -> str:
    """Why there is no Slurm to test, or ""."""
    if shutil.which("sbatch") is None:
        return "no sbatch here (tests/benchmark/slurm_node.sh installs and starts a Slurm of one node)"
    nodes = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True)
    if nodes.returncode or not any(state in nodes.stdout for state in ("idle", "mixed")):
        return "Slurm is installed but has no node that is up (tests/benchmark/slurm_node.sh start)"
    return ""


def test_a_job_that_slurm_refuses_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("dask_jobqueue", reason="needs dask-jobqueue (pip install invdiff[bench])")
    if why := reason():
        pytest.skip(why)
    path = tmp_path / "slurm.toml"
    path.write_text('interface = "lo"\nqueue = "no-such-partition"\n')
    with pytest.raises(ValueError, match="Slurm refuses the job: .*partition"), slurm(path):
        pass


@pytest.mark.slow
def test_a_plan_runs_in_slurm_jobs(tmp_path: Path, make_plan: Any) -> None:
    pytest.importorskip("dask_jobqueue", reason="needs dask-jobqueue (pip install invdiff[bench])")
    if why := reason():
        pytest.skip(why)
    plan = make_plan("", "seconds = 0.2", items=4)
    path = tmp_path / "slurm.toml"
    path.write_text(f"""
jobs = 2
cores = 1
memory = "4GB"
walltime = "00:05:00"
interface = "lo"
python = "{sys.executable}"
local_directory = "{tmp_path}"
log_directory = "{tmp_path}"
job_script_prologue = ["export PYTHONPATH={os.environ["PYTHONPATH"]}"]
""")
    command = [sys.executable, "-c", "from invdiff.cli import app; app()", "bench", "run", str(plan)]
    command += ["--store", str(tmp_path / "s"), "--slurm", str(path)]
    out = subprocess.run(command, capture_output=True, text=True, timeout=280)
    logs = "\n".join(p.read_text() for p in tmp_path.glob("*.err"))
    assert out.returncode == 0, out.stdout + out.stderr + logs
    assert "8 tasks: 8 computed now" in out.stdout
    store = Store(tmp_path / "s")
    pids = {store.read(key).env["pid"] for key in store.keys()}  # noqa: SIM118
    assert 1 <= len(pids) <= 2
    assert list(tmp_path.glob("*.err")), "the jobs' logs"
    run(Plan.read(plan), tmp_path / "serial")
    serial = Store(tmp_path / "serial")
    for key in serial.keys():  # noqa: SIM118
        arrays = [(s.folder(key) / "arrays.safetensors").read_bytes() for s in (store, serial)]
        assert arrays[0] == arrays[1]
    left = subprocess.run(["squeue", "-h"], capture_output=True, text=True).stdout
    assert str(tmp_path) not in left
