"""LPIPS in closed form with weights made up for it, and against the authors' package."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from invdiff.evaluation.lpips import _LAYERS, LPIPS


def blank() -> dict[str, torch.Tensor]:
    """A state dict of zeros that scales nothing."""
    state = {"scaling_layer.shift": torch.zeros(1, 3, 1, 1), "scaling_layer.scale": torch.ones(1, 3, 1, 1)}
    for i, (name, out, into, kernel, _, _) in enumerate(_LAYERS):
        state[f"{name}.weight"] = torch.zeros(out, into, kernel, kernel)
        state[f"{name}.bias"] = torch.zeros(out)
        state[f"lin{i}.model.1.weight"] = torch.zeros(1, out, 1, 1)
    return state


def test_distance_in_closed_form(tmp_path: Path) -> None:
    """The first layer's features are (red, 1): constant images differ by their angle, weighted 2 and 3."""
    state = blank()
    state["net.slice1.0.weight"][0, 0, 5, 5] = 1
    state["net.slice1.0.bias"][1] = 1
    state["lin0.model.1.weight"][0, :2, 0, 0] = torch.tensor([2.0, 3.0])
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pth")
    a, b = torch.full((1, 32, 40), 8.0), torch.full((1, 32, 40), 5.0)
    u, v = torch.tensor([0.6, 1.0]), torch.tensor([0.0, 1.0])  # 2 x / 10 - 1
    u, v = u / u.norm(), v / v.norm()
    expected = float(2 * (u[0] - v[0]) ** 2 + 3 * (u[1] - v[1]) ** 2)
    for name in ("w.safetensors", "w.pth"):
        distance = LPIPS(tmp_path / name)
        assert distance(a, b, data_range=10.0) == pytest.approx(expected, rel=1e-5)
        assert distance(a.expand(3, -1, -1), b.expand(3, -1, -1), data_range=10.0) == pytest.approx(expected, rel=1e-5)
        assert distance(a, a, data_range=10.0) == 0


@pytest.mark.filterwarnings("ignore")  # the package's
def test_distance_is_that_of_the_authors_package(tmp_path: Path) -> None:
    """With their released heads and scaling, and a random AlexNet: the trained one would be a download."""
    package = pytest.importorskip("lpips")  # extra: metrics
    torch.manual_seed(0)
    theirs = package.LPIPS(net="alex", pnet_rand=True, verbose=False)
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    g = torch.Generator().manual_seed(1)
    x, truth = torch.rand(1, 3, 70, 83, generator=g), torch.rand(1, 3, 70, 83, generator=g)
    expected = float(theirs(x, truth, normalize=True))
    assert LPIPS(tmp_path / "w.pth")(x[0], truth[0], data_range=1.0) == pytest.approx(expected, rel=1e-5)


def test_misuse_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no LPIPS weights file"):
        LPIPS(tmp_path / "none.pth")
    state = blank()
    del state["lin3.model.1.weight"]
    state["net.slice1.0.bias"] = torch.zeros(3)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"wrong shape are lin3.model.1.weight, net.slice1.0.bias\."):
        LPIPS(tmp_path / "w.safetensors")
    (tmp_path / "w.pth").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="not a file of tensors"):
        LPIPS(tmp_path / "w.pth")
    save_file(blank(), tmp_path / "w.safetensors")
    distance = LPIPS(tmp_path / "w.safetensors")
    x = torch.zeros(1, 32, 32)
    with pytest.raises(ValueError, match="at least 32 x 32"):
        distance(x[:, 1:], x[:, 1:], data_range=1.0)
    with pytest.raises(ValueError, match="data_range must be positive"):
        distance(x, x, data_range=0.0)
    with pytest.raises(ValueError, match="not finite"):
        distance(x / 0, x, data_range=1.0)
    with pytest.raises(TypeError, match="data_range"):
        distance(x, x)
