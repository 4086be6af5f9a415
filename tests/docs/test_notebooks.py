"""A tutorial as JupyterLab meets it: a valid file, and a real kernel that executes its cells by Jupyter's protocol."""

from __future__ import annotations

import importlib.util
import os
import queue
import sys
import time
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"
TUTORIALS = sorted((DOCS / "tutorials").glob("*.py"))
LIMIT = 300.0  # seconds for one cell


def notebook_of(script: Path) -> Any:
    """The notebook that ``docs/tutorials.py`` executes and writes."""
    spec = importlib.util.spec_from_file_location("tutorials_script", DOCS / "tutorials.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.notebook(script)


@pytest.mark.parametrize("script", TUTORIALS, ids=lambda p: p.stem)
def test_the_notebook_opens_without_edits(script: Path) -> None:
    pytest.importorskip("jupytext", reason="the extra 'docs' is not installed")
    nbformat = pytest.importorskip("nbformat", reason="the extra 'docs' is not installed")
    # as JupyterLab reads it, from text
    notebook = nbformat.reads(nbformat.writes(notebook_of(script)), as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert notebook.nbformat == 4
    assert notebook.metadata.kernelspec == {"name": "python3", "display_name": "Python 3", "language": "python"}
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds[0] == "markdown"
    assert notebook.cells[0].source.startswith("# ")
    assert kinds.count("code") >= 3


def execute(client: Any, code: str) -> list[dict[str, Any]]:
    """Run a cell; the messages that it published, up to the one that says that the kernel is idle again."""
    request = client.execute(code, stop_on_error=True)
    messages, end = [], time.monotonic() + LIMIT
    while time.monotonic() < end:
        try:
            message = client.get_iopub_msg(timeout=5)
        except queue.Empty:
            continue
        if message["parent_header"].get("msg_id") != request:
            continue
        messages.append(message)
        if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
            reply = client.get_shell_msg(timeout=10)
            while reply["parent_header"]["msg_id"] != request:  # answers to "are you ready?"
                reply = client.get_shell_msg(timeout=10)
            assert reply["content"]["status"] == "ok", "\n".join(reply["content"].get("traceback", []))
            return messages
    raise TimeoutError(f"No end after {LIMIT:g} s of:\n{code}")


@pytest.mark.slow
def test_a_kernel_executes_a_tutorial_and_sends_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jupytext", reason="the extra 'docs' is not installed")
    pytest.importorskip("ipykernel", reason="the extra 'docs' is not installed")
    KernelManager = pytest.importorskip("jupyter_client").KernelManager
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(DOCS.parent), *sys.path[1:]]))  # as this process sees it
    notebook = notebook_of(DOCS / "tutorials" / "01_sparse_view_ct.py")
    manager = KernelManager(kernel_name=notebook.metadata.kernelspec.name)
    manager.start_kernel(cwd=str(tmp_path))
    try:
        client = manager.blocking_client()
        client.start_channels()
        client.wait_for_ready(timeout=120)
        code = "from invdiff.plot import pareto\npareto({'FBP': (1.0, 2.0)}, cost='s', quality='dB')[0]"
        before_pyplot = execute(client, code)
        outputs = [m for cell in notebook.cells if cell.cell_type == "code" for m in execute(client, cell.source)]
        client.stop_channels()
    finally:
        manager.shutdown_kernel(now=False)
    assert not manager.is_alive()
    assert not [m for m in outputs if m["msg_type"] == "error"]
    shown = [m["content"]["data"] for m in outputs if m["msg_type"] in ("display_data", "execute_result")]
    assert any("image/png" in m["content"].get("data", {}) for m in before_pyplot)
    assert any(len(data.get("image/png", "")) > 10_000 for data in shown)  # the figure, base64
    printed = "".join(m["content"]["text"] for m in outputs if m["msg_type"] == "stream")
    assert "posterior mean" in printed
    assert "covered" in printed
