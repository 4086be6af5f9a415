"""The README's Python runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from invdiff import Posterior

README = (Path(__file__).parents[1] / "README.md").read_text()
SCRIPTS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.slow
def test_the_ten_line_script_runs_and_beats_fbp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(SCRIPTS[0], "README.md", "exec"), {})
    lines = dict(re.findall(r"(.+): ([\d.]+) dB", capsys.readouterr().out))
    assert float(lines["posterior mean"]) > float(lines["FBP"]) + 1
    assert Posterior.load("ct-posterior").n_samples == 4


def test_the_script_for_ones_own_data_runs() -> None:
    angles = tuple(i * 0.1 for i in range(8))
    variables = {"angles": angles, "y": torch.zeros(1, 8, 560)}
    exec(compile(SCRIPTS[1], "README.md", "exec"), variables)
    assert variables["measurement"].units == "1/mm"  # type: ignore[attr-defined]
