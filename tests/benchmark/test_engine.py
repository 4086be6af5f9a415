"""Running plans in one process."""

from __future__ import annotations

import contextlib
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from invdiff import GaussianNoise, Measurement, Posterior
from invdiff.benchmark import Plan, Store, run
from invdiff.benchmark.engine import TimeLimit, measure, time_limit
from invdiff.cli import app
from invdiff.operators import Identity


def cli(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


def test_a_run_computes_what_is_missing_and_nothing_else(tmp_path: Path, make_plan: Any) -> None:
    journal = tmp_path / "journal"
    plan = make_plan(f'journal = "{journal}"', items=3)
    result = cli("run", plan, "--store", tmp_path / "s")
    assert result.exit_code == 0, result.output
    assert "3 tasks: 3 computed now, 0 found" in result.output
    assert "3 tasks: 0 computed now, 3 found" in cli("run", plan, "--store", tmp_path / "s").output
    assert len(journal.read_text().splitlines()) == 3
    more = make_plan(f'journal = "{journal}"', items=4, seeds="[0, 1]", name="more")
    assert "8 tasks: 5 computed now, 3 found" in cli("run", more, "--store", tmp_path / "s").output
    assert len(journal.read_text().splitlines()) == 8
    assert len(Store(tmp_path / "s").runs()) == 3
    status = cli("status", more, "--store", tmp_path / "s").output
    assert next(line for line in status.splitlines() if "all" in line).replace("│", " ").split() == [
        "all",
        "8",
        "0",
        "0",
        "0",
    ]


def test_the_stored_numbers_are_those_of_the_samples(tmp_path: Path, make_plan: Any) -> None:
    run(Plan.read(make_plan(items=1, head="keep = 2")), tmp_path / "s")
    store = Store(tmp_path / "s")
    (key,) = store.keys()
    arrays, metrics = store.arrays(key), store.read(key).metrics
    m = store.measurement(store.read(key).spec.recipe)
    assert arrays["samples"].shape == (2, 1, 8, 8)
    assert arrays["std"].shape == (1, 8, 8)
    assert metrics["chi2"] == pytest.approx(float(m.chi2(arrays["mean"])), rel=1e-6)
    assert m.reference is not None
    span = float(m.reference.max() - m.reference.min())
    mse = float((arrays["mean"] - m.reference).square().mean())
    assert metrics["psnr"] == pytest.approx(10 * math.log10(span**2 / mse), rel=1e-6)
    assert metrics["peak_memory"] > 1e7


def test_exact_draws_are_measured_as_calibrated() -> None:
    """Truth and samples from one law: ranks are uniform, the spread is the skill, chi2 of a sample is 2 (its own
    variance and the noise's)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 64, 64, generator=generator)
    m = Measurement.simulate(x, Identity(x.shape), GaussianNoise(1.0), seed=1)
    samples = torch.randn(9, 1, 64, 64, generator=generator)
    out = measure(Posterior(samples=samples), Measurement(m.y, m.A, m.noise, reference=x))
    share = torch.tensor(out["ranks"]) / sum(out["ranks"])
    assert sum(out["ranks"]) > 0.99 * 64 * 64
    assert float((share - 0.1).abs().max()) < 0.02
    assert out["spread_skill"] == pytest.approx(1, abs=0.03)
    assert out["chi2_sample"] == pytest.approx(3, abs=0.1)  # E (x + n - s)^2 = 1 + 1 + 1
    assert out["psnr_sample"] < out["psnr"] - 2  # 10 log10(2 / (1 + 1/9)) = 2.55
    # E|s - x| - E|s - s'| / 2 = 2 / sqrt(pi) - 1 / sqrt(pi)
    assert out["crps"] * out["data_range"] == pytest.approx(1 / math.sqrt(math.pi), abs=0.02)


def test_a_permanent_error_is_tried_once_another_until_its_attempts_end(tmp_path: Path, make_plan: Any) -> None:
    plan = make_plan('error = "ValueError"', 'error = "OSError"', "", items=1)
    result = cli("run", plan, "--store", tmp_path / "s")
    assert result.exit_code == 1
    assert "3 tasks: 1 computed now, 0 found" in result.output
    assert "ValueError: on purpose" in result.output
    assert f"invdiff bench show KEY --store {tmp_path / 's'}\n" in result.output
    store = Store(tmp_path / "s")
    failures = [store.failure(p.stem) for p in (tmp_path / "s" / "failed").iterdir()]
    counts = {f["errors"][-1]["kind"]: len(f["errors"]) for f in failures if f}
    assert counts == {"ValueError": 1, "OSError": 3}
    key = next(p.stem for p in (tmp_path / "s" / "failed").iterdir())
    shown = cli("show", key[:10], "--store", tmp_path / "s").output
    assert "raise {" in shown  # the line of the traceback
    assert "attempt 1" in shown
    again = cli("run", plan, "--store", tmp_path / "s")  # what failed for good is not tried again ...
    assert again.exit_code == 1
    assert sum(len(store.failure(p.stem)["errors"]) for p in (tmp_path / "s" / "failed").iterdir()) == 4  # type: ignore[index]
    cli("run", plan, "--store", tmp_path / "s", "--retry-failed")  # ... unless asked for
    assert sum(len(store.failure(p.stem)["errors"]) for p in (tmp_path / "s" / "failed").iterdir()) == 4  # type: ignore[index]
    assert "failed" in cli("status", plan, "--store", tmp_path / "s").output


def test_what_works_at_the_third_attempt_is_done(tmp_path: Path, make_plan: Any) -> None:
    plan = Plan.read(make_plan(f'fails = 2, journal = "{tmp_path}/j"', items=1))
    summary = run(plan, tmp_path / "s")
    assert (summary.done, summary.failed) == (1, {})
    assert not list((tmp_path / "s" / "failed").iterdir())


def test_a_task_over_its_time_is_stopped(tmp_path: Path, make_plan: Any) -> None:
    plan = Plan.read(make_plan("seconds = 60.0", "", items=1, head="time_limit = 0.3"))
    begun = time.monotonic()
    summary = run(plan, tmp_path / "s", attempts=2)
    assert time.monotonic() - begun < 10
    assert (summary.done, list(summary.failed.values())) == (1, ["TimeLimit: took longer than its 0.3 s"])


def test_the_time_limit_does_not_strike_late() -> None:
    for _ in range(50):
        with contextlib.suppress(TimeLimit), time_limit(0.01):
            time.sleep(0.0099)
        for _ in range(100):  # here it must not be raised
            pass
    time.sleep(0.05)

    def forever() -> None:
        with time_limit(0.02):
            while True:
                time.sleep(0.001)

    with pytest.raises(TimeLimit):
        forever()


def test_a_prior_that_does_not_fit_is_said_before_any_work(tmp_path: Path, make_plan: Any) -> None:
    path = make_plan()
    path.write_text(
        path.read_text().replace("bench_plugins:problem", "bench_plugins:other_size").replace("items =", "# ")
    )
    result = cli("run", path, "--store", tmp_path / "s")
    assert result.exit_code == 2
    assert "differ in image size" in result.stderr
    assert not list(Store(tmp_path / "s").keys())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "no.toml", "--store", "s"), "No such plan: no.toml"),
        (("status", "plan.toml", "--store", "s"), "not a benchmark store"),
        (("show", "abc", "--store", "s"), "not a benchmark store"),
        (("report", "plan.toml", "--store", "s"), "not a benchmark store"),
        (("run", "plan.toml", "--store", "s", "--workers", 2, "--scheduler", "tcp://x:1"), "Choose one of --workers"),
        (("run", "plan.toml", "--store", "s", "--device", "tpu"), "'tpu' is not available"),
        (("run", "broken.toml", "--store", "s"), "invalid syntax (broken_methods.py, line 1)"),
    ],
)
def test_a_wrong_command_is_one_line(
    tmp_path: Path, make_plan: Any, monkeypatch: pytest.MonkeyPatch, arguments: tuple[Any, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    text = make_plan().read_text()
    Path("broken.toml").write_text(text.replace("bench_plugins:Draw", "broken_methods:Draw"))
    Path("broken_methods.py").write_text("class Draw(:")
    result = cli(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not Path("s").exists()


@pytest.mark.slow
def test_a_serial_run_killed_in_one_task_again_and_again_gives_it_up(tmp_path: Path, make_plan: Any) -> None:
    import subprocess
    import sys

    plan = make_plan('death = "segfault"', "", items=1)
    code = "import sys; from invdiff.benchmark import *; print(run(Plan.read(sys.argv[1]), sys.argv[2]).done)"
    ends = []
    for _ in range(4):
        p = subprocess.run([sys.executable, "-c", code, plan, tmp_path / "s"], capture_output=True, text=True)
        ends.append(p.returncode)
    assert ends == [-11, -11, -11, 0]
    assert p.stdout == "1\n"
    (path,) = (tmp_path / "s" / "failed").iterdir()
    failure = Store(tmp_path / "s").failure(path.stem)
    assert failure is not None
    assert "in __call__" in failure["errors"][-1]["traceback"]  # where it crashed
