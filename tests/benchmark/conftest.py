"""A plan, a store and the plug-ins, as the tests of the engine use them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

sys.path.insert(0, str(HERE))  # for the plug-ins and the browser

MakePlan = Callable[..., Path]


@pytest.fixture(autouse=True)
def _plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def make_plan(tmp_path: Path) -> MakePlan:
    """Write a plan of one problem with some items, and methods given as TOML inline tables."""

    def make(*methods: str, items: int = 2, seeds: str = "[0]", head: str = "", name: str = "plan") -> Path:
        text = f'n_samples = 3\nseeds = {seeds}\n{head}\n[[problem]]\nname = "P"\nmake = "bench_plugins:problem"\n'
        text += f'items = {{ item = {list(range(items))} }}\nprior = "bench_plugins:prior"\n'
        for i, parameters in enumerate(methods or ("",)):
            text += f'\n[[method]]\nname = "m{i}"\nalgorithm = "bench_plugins:Draw"\nset = {{ {parameters} }}\n'
        path = tmp_path / f"{name}.toml"
        path.write_text(text)
        return path

    return make
