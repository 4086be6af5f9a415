"""Plans: what they expand to, what their keys depend on, and one line for everything wrong."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from invdiff.algorithms import ALGORITHMS
from invdiff.algorithms.configure import configure
from invdiff.benchmark import Store, run
from invdiff.benchmark.engine import tasks
from invdiff.benchmark.plan import Plan, TaskSpec, full_parameters
from invdiff.benchmark.problems import PROBLEMS, ct_slice
from invdiff.benchmark.report import write_report
from invdiff.classical import CLASSICAL

PLANS = sorted((Path(__file__).parents[2] / "benchmarks").glob("*.toml"))

PLAN = """
n_samples = 2
seeds = [0, 1]

[[problem]]
name = "CT"
make = "sparse_view_ct"
with = { n_views = [20, 40], n_photons = 1e4 }
items = { seed = [0, 1, 2] }
prior = ["ct-128", "other.safetensors"]

[[method]]
algorithm = "fbp"

[[method]]
name = "DAPS"
algorithm = "daps"
set = { n_anneal = [5, 10], "kernel" = "langevin", "kernel.n_steps" = 7 }
problems = ["CT, n_views=2*"]
n_samples = 3
"""


def read(tmp_path: Path, text: str) -> Plan:
    path = tmp_path / "plan.toml"
    path.write_text(text)
    return Plan.read(path)


def test_lists_expand_into_problems_items_and_methods(tmp_path: Path) -> None:
    cells = list(read(tmp_path, PLAN).cells())
    fbp = [c for c in cells if c.label == "FBP" or c.method.key == "fbp"]
    daps = [c for c in cells if c.method.key == "daps"]
    assert len(fbp) == 2 * 3 * 2  # problems, items, seeds; no prior
    assert len(daps) == 1 * 3 * 2 * 2 * 2  # one problem; items, seeds, n_anneal, priors
    assert {c.problem for c in cells} == {"CT, n_views=20", "CT, n_views=40"}
    assert {c.problem for c in daps} == {"CT, n_views=20"}
    assert {c.item for c in cells} == {"0", "1", "2"}
    assert {c.label for c in daps} == {
        f"DAPS, n_anneal={n}, {p}" for n in (5, 10) for p in ("ct-128", "other.safetensors")
    }
    assert daps[0].recipe.arguments == {"n_views": 20, "n_photons": 1e4, "seed": 0}
    assert daps[0].method.parameters["kernel.n_steps"] == 7
    assert (daps[0].method.n_samples, fbp[0].method.n_samples) == (3, 1)


def test_a_list_in_a_list_is_one_value(tmp_path: Path) -> None:
    text = PLAN.replace("n_photons = 1e4", "n_photons = [[1, 2]]")
    assert next(read(tmp_path, text).cells()).recipe.arguments["n_photons"] == [1, 2]


def spec(**changes: object) -> TaskSpec:
    plan_cell = dict(
        data="d", dtype="float32", prior="p", prior_sha256="s", method="daps", parameters={"n_anneal": 5},
        version="1", seed=0, n_samples=2, keep=1,
    )  # fmt: skip
    from invdiff.benchmark.plan import Recipe

    return TaskSpec(**{**plan_cell, "recipe": Recipe("make", {"a": 1}), **changes})  # type: ignore[arg-type]


def test_the_key_depends_on_everything_that_a_result_depends_on() -> None:
    from invdiff.benchmark.plan import Recipe

    changes: dict[str, object] = {
        "data": "e", "dtype": "float64", "prior_sha256": "t", "method": "dps", "parameters": {"n_anneal": 6},
        "version": "2", "seed": 1, "n_samples": 3, "keep": 2, "recipe": Recipe("make", {"a": 2}),
    }  # fmt: skip
    assert set(changes) == {f.name for f in dataclasses.fields(TaskSpec)} - {"prior"}
    keys = {spec().key, *(spec(**{k: v}).key for k, v in changes.items())}
    assert len(keys) == 1 + len(changes)
    assert spec(prior="moved/p").key == spec().key  # the same weights in another place
    assert spec().key == TaskSpec.from_json(spec().to_json()).key
    assert spec(parameters={"b": 1, "a": 2}).key == spec(parameters={"a": 2, "b": 1}).key
    text = (
        '{"data":"d","dtype":"float32","keep":1,"method":"daps","n_samples":2,"parameters":{"n_anneal":5},'
        '"prior_sha256":"s","recipe":{"arguments":{"a":1},"files":{},"make":"make","version":""},"seed":0,"version":"1"}'
    )
    assert spec().key == hashlib.sha256(text.encode()).hexdigest()  # on any machine and Python


@pytest.mark.parametrize("name", [*ALGORITHMS, *CLASSICAL])
def test_full_parameters_make_the_same_method_again(name: str) -> None:
    cls = {**ALGORITHMS, **CLASSICAL}[name]
    needed = {f.name: 0.5 for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING}
    method = cls(**needed)
    assert configure(cls, full_parameters(method)) == method


def test_full_parameters_name_the_objects_in_them() -> None:
    sampler = configure(ALGORITHMS["daps"], {"kernel": "langevin", "kernel.n_steps": 7})
    parameters = full_parameters(sampler)
    assert (parameters["kernel"], parameters["kernel.n_steps"]) == ("langevin", 7)
    assert configure(ALGORITHMS["daps"], parameters) == sampler


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("n_samples = 2", "samples = 2", "the plan has no key 'samples'; it has problem, method, n_samples"),
        ("prior = [", "priors = [", "a [[problem]] has no key 'priors'; it has name, make, with"),
        ('algorithm = "fbp"', 'algorithm = "fbp"\nsets = 1', "a [[method]] has no key 'sets'; it has name, algorithm"),
        ('"sparse_view_ct"', '"sparse_ct"', "No problem 'sparse_ct'; there are sparse_view_ct, accelerated_mri"),
        ('"sparse_view_ct"', '"nowhere:f"', "Cannot load the problem 'nowhere:f'"),
        ("n_photons = 1e4", "photons = 1e4", "sparse_view_ct has no argument 'photons'; it has n_views"),
        ('"fbp"', '"bfp"', "No method 'bfp'; there are daps"),
        ("n_anneal = [5, 10]", "anneal = 5", "DAPS has no parameter 'anneal'; it has n_anneal"),
        ("n_anneal = [5, 10]", 'n_anneal = "5"', "n_anneal must be of type int"),
        ("n_anneal = [5, 10]", "n_anneal = -5", "n_anneal must be positive"),
        ("n_anneal = [5, 10]", "n_anneal = []", "n_anneal is an empty list"),
        ('"langevin"', '"langevine"', "kernel must be one of"),
        ("seeds = [0, 1]", "seeds = [0, 0]", "list of different integers"),
        ("seeds = [0, 1]", "seeds = 2", "seeds must be of type list"),
        ("n_samples = 2", "n_samples = 0", "must be positive"),
        ("n_samples = 2", "n_samples = true", "n_samples must be of type int"),
        ("n_samples = 2", "time_limit = -1", "time_limit must be positive"),
        ('problems = ["CT, n', 'problems = ["MRI', "but the problems are CT, n_views=20"),
        ("seed = [0, 1, 2]", "n_views = [1]", "gives 'n_views' both in with and in items"),
        ('prior = ["ct-128", "other.safetensors"]', "", "needs a prior for 'DAPS, n_anneal=5'"),
        ('name = "DAPS"', 'name = "fbp"\n', ""),
        ("[[problem]]", "[problem]", "problem must be of type list"),
        ("n_samples = 2", "n_samples = = 2", "Invalid value"),
        ('algorithm = "fbp"', 'name = "x"', "a [[method]] needs the key 'algorithm'"),
        ('algorithm = "fbp"', 'algorithm = "fbp"\n[[method]]\nalgorithm = "fbp"', "Two methods are named 'fbp'"),
    ],
)
def test_a_wrong_plan_is_one_line_that_names_what_is_known(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in PLAN
    if not message:  # allowed: another method's name, made different by its parameters
        read(tmp_path, PLAN.replace(old, new))
        return
    with pytest.raises(ValueError, match="plan.toml: ") as error:
        read(tmp_path, PLAN.replace(old, new))
    assert message in str(error.value)


def test_a_file_counts_by_its_content(tmp_path: Path) -> None:
    text = (
        '[[problem]]\nmake = "bench_plugins:file_problem"\nitems = { path = ["a.h5"] }\n[[method]]\nalgorithm = "fbp"\n'
    )
    (tmp_path / "plan.toml").write_text(text)
    with pytest.raises(FileNotFoundError, match="No such data file"):
        Plan.read(tmp_path / "plan.toml", data=tmp_path)
    keys = []
    for folder, content in (("x", b"one"), ("y", b"one"), ("z", b"two")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.h5").write_bytes(content)
        plan = Plan.read(tmp_path / "plan.toml", data=tmp_path / folder)
        keys.append(next(plan.cells()).recipe.key)
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize("path", PLANS, ids=lambda p: p.stem)
def test_the_plans_of_this_repository_are_right(path: Path) -> None:
    data = Path(__file__).parents[2].parent / "shared" / "data"
    try:
        assert next(Plan.read(path, data=data).cells())
    except (FileNotFoundError, ImportError) as error:
        pytest.skip(f"needs data or deepinv: {error}")


@pytest.mark.slow
@pytest.mark.parametrize("path", PLANS, ids=lambda p: p.stem)
def test_the_first_item_of_every_problem_is_reconstructed(path: Path, tmp_path: Path) -> None:
    """By the quick classical methods (not TV); the priors are checked against the problems."""
    data = Path(__file__).parents[2].parent / "shared" / "data"
    try:
        plan = Plan.read(path, data=data)
    except (FileNotFoundError, ImportError) as error:
        pytest.skip(f"needs data or deepinv: {error}")
    problems = [dataclasses.replace(p, items=dict(list(p.items.items())[:1])) for p in plan.problems]
    small = dataclasses.replace(plan, problems=problems)
    store = Store(tmp_path / "s", create=True)
    assert all(task is not None for cell, task in tasks(small, store, data=data) if not cell.method.candidates)
    untuned = [dataclasses.replace(m.candidates[0], name=m.name) if m.candidates else m for m in plan.methods]
    quick = [m for m in untuned if m.point and not m.key.lower().endswith("tv")]
    if not quick:
        return
    small = dataclasses.replace(small, methods=quick)
    summary = run(small, store, data=data)
    assert summary.failed == {}
    assert summary.done > 0
    assert write_report(small, store, tmp_path / "report.html", data=data) == summary.done


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("deblurring", {"image": "coins", "size": 32}),
        ("deblurring", {"image": "astronaut", "size": 16}),
        ("inpainting", {"image": "moon"}),
    ],
)
def test_problems_give_measurements_that_their_truth_explains(name: str, arguments: dict[str, object]) -> None:
    m = PROBLEMS[name](**arguments)
    assert m.reference is not None
    assert 0.7 < float(m.chi2(m.reference)) < 1.3
    assert 0 <= float(m.reference.min()) < 0.2
    assert 0.7 < float(m.reference.max()) <= 1


def test_a_larger_slice_of_a_volume_holds_the_smaller_one(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(-1000, 1500, (80, 90, 5)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(x, np.diag([2.0, 2.0, 3.0, 1.0])), tmp_path / "a.nii.gz")
    small, large = (ct_slice(path=tmp_path / "a.nii.gz", pixel_size=2.0, n_views=4, size=n) for n in (32, 64))
    torch.testing.assert_close(small.reference, large.reference[:, 16:48, 16:48])
    assert large.A.in_shape == (1, 64, 64)
