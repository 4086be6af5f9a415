"""Tuned methods: what is searched, on what, and what is made of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from invdiff.benchmark import Plan, Store, load_results, run
from invdiff.benchmark.engine import tasks
from invdiff.benchmark.report import collect, tuned, write_report, write_tables
from invdiff.cli import app

PLAN = """
[[problem]]
name = "P"
make = "bench_plugins:problem"
with = { noise = [0.1, 1.0] }
items = { item = [0, 1, 2] }
validation = { item = [10, 11, 12, 13] }
prior = "bench_plugins:prior"

[[method]]
name = "data"
algorithm = "bench_plugins:Shrink"

[[method]]
name = "tuned"
algorithm = "bench_plugins:Shrink"
tune = { weight = [0.05, 0.5, 1.0] }
"""


def read(tmp_path: Path, text: str = PLAN) -> Plan:
    path = tmp_path / "plan.toml"
    path.write_text(text)
    return Plan.read(path)


def weights(plan: Plan, store: Store) -> dict[str, set[float]]:
    """Problem to the weights of the tuned method's results."""
    groups = collect(plan, store)
    return {p: {r.spec.parameters["weight"] for _, _, r in g["tuned"].results} for p, g in groups.items()}


def test_each_problem_gets_the_value_that_is_best_in_theory(tmp_path: Path) -> None:
    plan = read(tmp_path)
    summary = run(plan, tmp_path / "s")
    assert summary.failed == {}
    # for each of 2 problems: 4 items x 3 weights of the search, 3 items of "data", 3 of "tuned" (at noise 0.1 those
    # of "data", which is the same task)
    assert (summary.total, summary.done) == (2 * 15 + 3, 2 * 15 + 3)
    store = Store(tmp_path / "s")
    # 1 / (1 + noise^2) is 0.99 and 0.5
    assert weights(plan, store) == {"P, noise=0.1": {1.0}, "P, noise=1.0": {0.5}}
    group = collect(plan, store)["P, noise=1.0"]["tuned"]
    assert (len(group.results), group.missing) == (3, 0)
    assert {item for item, _, _ in group.results} == {"0", "1", "2"}  # no validation item among the results


def test_the_search_is_made_of_ordinary_tasks_and_resumes(tmp_path: Path) -> None:
    plan = read(tmp_path)
    run(plan, tmp_path / "s")
    again = run(plan, tmp_path / "s")
    assert (again.done, again.stored) == (0, 33)
    table = load_results(tmp_path / "s")
    trials = table[table["problem"] == "P, noise=1.0, validation"]
    assert set(trials["method"]) == {"tuned, weight=0.05", "tuned, weight=0.5", "tuned, weight=1.0"}
    assert {json.loads(p)["weight"] for p in trials["parameters"]} == {0.05, 0.5, 1.0}
    best = trials.groupby("method")["psnr"].mean().idxmax()
    assert best == "tuned, weight=0.5"
    # one more value: only its trials are new, and what they do not change stays
    more = run(read(tmp_path, PLAN.replace("0.5, 1.0]", "0.5, 1.0, 0.02]")), tmp_path / "s")
    assert (more.done, more.stored) == (8, 33)


def test_nothing_is_chosen_before_all_trials_are_there(tmp_path: Path) -> None:
    plan = read(tmp_path)
    run(plan, tmp_path / "s")
    store = Store(tmp_path / "s")
    trial = next(t for c, t in tasks(plan, store, make=False) if c.search and t and "noise=1.0" in c.problem)
    assert trial is not None
    store.set_aside(trial.key)
    found = {c.problem: t for c, t in tasks(plan, store, make=False) if c.method.candidates}
    assert found["P, noise=1.0"] is None
    assert found["P, noise=0.1"] is not None
    assert run(plan, store).done == 1


def test_a_value_that_fails_is_out(tmp_path: Path) -> None:
    plan = read(tmp_path, PLAN.replace("0.05,", "-1.0,"))
    summary = run(plan, tmp_path / "s")
    assert len(summary.failed) == 8
    store = Store(tmp_path / "s")
    assert weights(plan, store)["P, noise=1.0"] == {0.5}
    assert "weight=-1.0: failed" in tuned(collect(plan, store)["P, noise=1.0"], store)[0]
    none = run(read(tmp_path, PLAN.replace("[0.05, 0.5, 1.0]", "[-1.0, -2.0]")), tmp_path / "s")
    messages = [m for m in none.failed.values() if "none of the values to choose from worked" in m]
    assert len(messages) == 6
    assert (none.total, none.left) == (none.stored + none.done + len(none.failed), 0)


def test_another_number_can_decide(tmp_path: Path) -> None:
    text = PLAN.replace("tune = { weight = [0.05, 0.5, 1.0] }", "tune = { seconds = [0.0, 0.001] }\nby = 'crps'")
    text = text.replace('"tuned"\nalgorithm = "bench_plugins:Shrink"', '"tuned"\nalgorithm = "bench_plugins:Draw"')
    plan = read(tmp_path, "n_samples = 3\n" + text)
    assert run(plan, tmp_path / "s").failed == {}
    store = Store(tmp_path / "s")
    assert "the best crps of {seconds=0.0: " in tuned(collect(plan, store)["P, noise=1.0"], store)[0]


def test_the_reports_say_what_was_chosen_from_what_and_on_what(tmp_path: Path) -> None:
    plan = read(tmp_path)
    run(plan, tmp_path / "s")
    store = Store(tmp_path / "s")
    (sentence,) = tuned(collect(plan, store)["P, noise=1.0"], store)
    assert sentence.startswith("tuned: weight=0.5, the best psnr of {weight=0.05: ")
    assert sentence.endswith("on the validation items 10; 11; 12; 13 (patients p5, p6).")
    write_report(plan, store, tmp_path / "report.html")
    assert "the best psnr of {weight=0.05: " in (tmp_path / "report.html").read_text()
    assert write_tables(plan, store, tmp_path / "tables.txt") == 12
    text = (tmp_path / "tables.txt").read_text()
    assert sentence in text
    assert "| tuned  | 3 " in text
    shared = read(tmp_path, PLAN.replace("[10, 11, 12, 13]", "[3, 11, 12, 13]"))  # item 3 is of the patient of item 2
    run(shared, tmp_path / "s")
    assert "of the same patients as the results: p1" in tuned(collect(shared, store)["P, noise=1.0"], store)[0]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[10, 11,", "[2, 11,", "{'item': 2} is both in items and in validation"),
        ("validation =", "# ", "The problem 'P, noise=0.1' needs validation items for 'tuned'"),
        ("[0.05, 0.5, 1.0]", "0.5", "tune takes a list of values of 'weight'"),
        ("[0.05, 0.5, 1.0]", "[]", "weight is an empty list"),
        ("[0.05, 0.5, 1.0] }", '[0.5] }\nby = "rmse"', "cannot be tuned by 'rmse'; there are psnr, psnr_sample"),
        ("tune = { weight = [0.05, 0.5, 1.0] }", 'by = "psnr"', "has by, but nothing to tune"),
        ("tune =", "set = { weight = 1.0 }\ntune =", "tune takes a list of values of 'weight', and set none"),
        ("tune = { weight", "tune = { height", "Shrink has no parameter 'height'"),
    ],
)
def test_errors(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in PLAN
    with pytest.raises(ValueError, match="plan.toml: ") as error:
        read(tmp_path, PLAN.replace(old, new))
    assert message in str(error.value)


def test_a_test_item_under_another_recipe_is_not_taken_for_validation(tmp_path: Path) -> None:
    plan = read(tmp_path, PLAN.replace("{ item = [10, 11, 12, 13] }", "{ item = 1, noise = 0.5 }"))
    with pytest.raises(ValueError, match="'item 1' is among the items and the validation items"):
        run(plan, tmp_path / "s")


def test_status_counts_the_trials_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = read(tmp_path)
    run(plan, tmp_path / "s")
    shown: Any = CliRunner().invoke(
        app, ["bench", "status", str(tmp_path / "plan.toml"), "--store", str(tmp_path / "s")]
    )
    assert "P, noise=1.0, validation" in shown.output
    assert plan.methods[1].candidates
