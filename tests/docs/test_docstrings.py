"""Every public name has a docstring with an example, the examples run, and the API reference shows the name."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
MODULES = (
    "invdiff", "invdiff.operators", "invdiff.datasets", "invdiff.priors", "invdiff.algorithms",
    "invdiff.algorithms.kernels", "invdiff.algorithms.solvers", "invdiff.classical", "invdiff.evaluation",
    "invdiff.evaluation.metrics", "invdiff.evaluation.lpips", "invdiff.evaluation.calibration",
    "invdiff.evaluation.conformal", "invdiff.evaluation.ultrasound", "invdiff.plot", "invdiff.progress",
    "invdiff.benchmark",
)  # fmt: skip
NEEDS = {  # examples of names that exist for another package, which is not a dependency
    "invdiff.operators.from_deepinv": "deepinv",
    "invdiff.operators.to_deepinv": "deepinv",
    "invdiff.datasets.read_ismrmrd": "ismrmrd",
    "invdiff.benchmark.load_results": "pyarrow",
}
NOT_RUN = {
    "invdiff.evaluation.lpips.LPIPS",  # needs the authors' weights, which do not come with the package
    "invdiff.operators.AstraCT",  # needs a GPU
}


def public() -> Iterator[tuple[str, Any]]:
    """Classes and functions by their public name: what ``__all__`` lists, else what the module defines."""
    for name in MODULES:
        module = importlib.import_module(name)
        names = getattr(module, "__all__", None) or [
            n for n, o in vars(module).items() if not n.startswith("_") and getattr(o, "__module__", None) == name
        ]
        for n in names:
            if inspect.isclass(item := getattr(module, n)) or inspect.isfunction(item):
                yield f"{name}.{n}", item


PUBLIC = dict(public())


def methods(cls: type) -> Iterator[tuple[str, str | None]]:
    """Public methods and properties that a class defines itself, with their docstrings. One that implements a
    protocol of its module, or overrides a method, has the docstring given there."""
    protocols = [p for p in vars(inspect.getmodule(cls)).values() if getattr(p, "_is_protocol", False)]
    for name, item in vars(cls).items():
        if isinstance(item, classmethod | staticmethod):
            item = item.__func__
        if not name.startswith("_") and (inspect.isfunction(item) or isinstance(item, property)):
            doc = inspect.getdoc(item) or inspect.getdoc(getattr(cls, name))
            yield name, doc or next((p.__doc__ for p in (vars(q).get(name) for q in protocols) if p), None)


def parameters(item: Any) -> list[str]:
    if getattr(item, "_is_protocol", False):
        return []
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in inspect.signature(item).parameters.values() if p.kind not in kinds]


def test_every_public_name_has_a_docstring_and_an_example() -> None:
    lacking = []
    for name, item in PUBLIC.items():
        doc = item.__doc__ and inspect.getdoc(item)
        described = (doc or "").split("Example:")[0]
        if not doc or doc.startswith(f"{item.__name__}("):  # what dataclass writes where there is none
            lacking.append(f"{name}: no docstring")
        elif not re.match(r"\S.*[.:]", doc.split("\n\n")[0], re.S):
            lacking.append(f"{name}: no first sentence")
        elif not re.search(r"^Example:\n    >>> ", doc, re.M):
            lacking.append(f"{name}: no section 'Example:' that starts with >>>")
        lacking += [f"{name}: nothing about {p!r}" for p in parameters(item) if not re.search(rf"\b{p}\b", described)]
        if inspect.isclass(item):
            lacking += [f"{name}.{n}: no docstring" for n, text in methods(item) if not text]
    assert lacking == []


@pytest.mark.parametrize("name", PUBLIC)
def test_the_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    monkeypatch.chdir(tmp_path)
    doc = inspect.getdoc(PUBLIC[name])
    assert doc
    test = doctest.DocTestParser().get_doctest(doc, {"torch": torch}, name, None, None)
    run = [e for e in test.examples if not e.options.get(doctest.SKIP)]
    assert run
    if name not in NOT_RUN:
        assert len(run) == len(test.examples)
        assert any(e.want for e in run), "an example that shows nothing"
    report: list[str] = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        result = doctest.DocTestRunner().run(test, out=report.append)
    assert result.failed == 0, "".join(report)
    assert not list(tmp_path.iterdir()), "the example leaves files behind"


def test_the_reference_shows_every_public_name() -> None:
    pages = "\n".join(p.read_text() for p in REFERENCE.glob("*.md"))
    modules = re.findall(r"^\.\. automodule:: (\S+)$", pages, re.M)
    single = re.findall(r"^\.\. auto(?:class|function):: (\S+)$", pages, re.M)
    shown = {id(PUBLIC.get(n)) for n in PUBLIC if n.rpartition(".")[0] in modules or n in single}
    for name in modules:  # with :members:, what they define themselves
        shown |= {id(o) for o in vars(importlib.import_module(name)).values() if getattr(o, "__module__", "") == name}
    assert [n for n, o in PUBLIC.items() if id(o) not in shown] == []
