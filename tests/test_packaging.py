"""The wheel, the layout, the floors, and what ``import invdiff`` loads."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TREES = {"invdiff": ROOT / "invdiff", "invdiff/operators": ROOT / "operators", "invdiff/datasets": ROOT / "datasets"}

# Lowest first: a module imports only from its own floor or below.
FLOORS = (
    ("operators",),
    ("noise", "random", "storage"),
    ("measurement", "posterior"),
    ("datasets", "priors"),
    ("algorithms", "classical"),
    ("evaluation",),
    ("benchmark",),
    ("plot", "demo", "progress"),
    ("cli",),
)
FLOOR = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def modules() -> dict[str, Path]:
    """Name inside the package (``operators/ct``) to file, for the whole tree."""
    return {
        f"{prefix}/{path.relative_to(folder).with_suffix('')}".removeprefix("invdiff/"): path
        for prefix, folder in TREES.items()
        for path in folder.rglob("*.py")
    }


def top_level_imports(path: Path) -> list[str]:
    """Modules of this package imported when the file is imported, outside TYPE_CHECKING blocks."""
    names: list[str] = []
    todo: list[ast.AST] = [ast.parse(path.read_text())]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.append(node.module or "")
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        todo += ast.iter_child_nodes(node)
    return [n for n in names if n.split(".")[0] == "invdiff"]


@pytest.mark.parametrize("name", [n for n in modules() if n != "__init__"])
def test_a_module_imports_only_from_its_own_floor_or_below(name: str) -> None:
    room = name.split("/")[0]
    assert room in FLOOR, f"give {room} a floor"
    for imported in top_level_imports(modules()[name]):
        target = imported.removeprefix("invdiff").removeprefix(".").split(".")[0]
        assert target, f"{name} imports the whole package; import the module"
        assert FLOOR[target] <= FLOOR[room], f"{name} (floor {FLOOR[room]}) imports {imported} (floor {FLOOR[target]})"
    if room == "operators":
        assert all(i.startswith("invdiff.operators") for i in top_level_imports(modules()[name]))


def test_import_loads_nothing_heavier_than_torch() -> None:
    code = "import sys, torch; before = set(sys.modules); import invdiff; print(*(set(sys.modules) - before))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    heavy = {
        "deepinv",
        "torchvision",
        "astra",
        "matplotlib",
        "dask",
        "pandas",
        "skimage",
        "nibabel",
        "pydicom",
        "typer",
        "rich",
    }
    assert not heavy & {name.split(".")[0] for name in loaded.split()}
    assert "invdiff.operators.ct" in loaded.split()


@pytest.mark.parametrize("folder", ["operators", "datasets"])
def test_the_folders_do_not_pose_as_top_level_packages(folder: str) -> None:
    run = subprocess.run([sys.executable, "-c", f"import {folder}"], cwd=ROOT, capture_output=True, text=True)
    assert f"imported as 'invdiff.{folder}'" in run.stderr


@pytest.mark.slow
def test_the_wheel_holds_the_same_modules_and_data_as_the_tree(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    run = subprocess.run(build, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    data = ("*.py", "py.typed", "*.safetensors", "*.md", "*.toml", "*.html")
    tree = {
        f"{prefix}/{path.relative_to(folder)}"
        for prefix, folder in TREES.items()
        for pattern in data
        for path in folder.rglob(pattern)
    }
    assert names == tree
