"""``prior convert`` and ``prior info``: published files to ours, pickles only when asked for and never run."""

from __future__ import annotations

import io
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from invdiff.cli import app
from invdiff.priors import load_prior, pickles
from invdiff.priors.edm import DhariwalUNet

from .layouts import network_input, randomise

ARGUMENTS: dict[str, Any] = {
    "image_size": 16, "in_channels": 1, "out_channels": 1, "channels": 64, "widths": (64, 64), "n_blocks": 1,
    "attention": (8,),
}  # fmt: skip


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["prior", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["prior", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 2, result.output
    return result.output


@pytest.fixture
def net() -> nn.Module:
    return randomise(DhariwalUNet(**ARGUMENTS))


@pytest.mark.parametrize(("half", "tolerance"), [(False, 0.0), (True, 3e-3)])
def test_a_converted_checkpoint_is_the_same_prior(tmp_path: Path, net: nn.Module, half: bool, tolerance: float) -> None:
    source, out = str(tmp_path / "scatter.pt"), str(tmp_path / "scatter.safetensors")
    torch.save({"ema": {f"model.{k}": v for k, v in net.state_dict().items()}}, source)
    said = run("convert", source, out, "--set", "sigma_data=0.7", *(["--half"] if half else []))
    assert ("fp16" if half else "fp32") in said
    ours, theirs = load_prior(out), load_prior(source, sigma_data=0.7)
    x = network_input(1, 16)
    torch.testing.assert_close(ours(x, 1.3), theirs(x, 1.3), rtol=0, atol=tolerance)
    assert (ours.shape, ours.sigma_min, ours.sigma_max) == (theirs.shape, theirs.sigma_min, theirs.sigma_max)
    for path in (source, out):
        said = run("info", path)
        for word in ("scatter", "1 x 16 x 16", "EDMDenoiser", "sha256", "0.002 to 80", f"{_n(net):,}"):
            assert word in said
    assert "exists. Choose another name" in refused("convert", source, out)
    run("convert", source, out, "--overwrite")
    assert ".safetensors" in refused("convert", source, str(tmp_path / "x.pt"))
    assert "0.004 to 160" in run("info", source, "--set", "data_range=[0,1]")
    assert "no option colour; it has preconditioning" in refused("info", source, "--set", "colour=1")


def test_a_variance_preserving_schedule_survives_to_the_last_digit(tmp_path: Path) -> None:
    from invdiff.priors.adm import ADMUNet

    source, out = tmp_path / "a.pt", tmp_path / "a.safetensors"
    net = randomise(ADMUNet(1, 2, 32, (1, 1), 1, (1,), 32))
    torch.save(net.state_dict(), source)
    run("convert", str(source), str(out), "--half", "--set", "size=16", "--set", "head_channels=32")
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    assert torch.equal(load_prior(out).module.schedule.betas, betas)


def _n(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def edm_pickle(path: Path, net: nn.Module, monkeypatch: pytest.MonkeyPatch, class_name: str, **attributes: Any) -> None:
    """A pickle as EDM writes them: each module by its class's name, its source and its state, to be executed."""
    persistence = types.ModuleType("torch_utils.persistence")
    source = "raise SystemExit('the source of a pickle was run')"

    class EasyDict(dict):
        __module__, __qualname__ = "dnnlib.util", "EasyDict"

    def _reconstruct_persistent_obj(meta: Any) -> Any:
        raise AssertionError("called while unpickling")

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
    util = types.ModuleType("dnnlib.util")
    util.EasyDict = EasyDict  # type: ignore[attr-defined]
    for name, module in (
        ("torch_utils", types.ModuleType("torch_utils")), ("torch_utils.persistence", persistence),
        ("dnnlib", types.ModuleType("dnnlib")), ("dnnlib.util", util),
    ):  # fmt: skip
        monkeypatch.setitem(sys.modules, name, module)

    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = net
            for name, value in attributes.items():
                setattr(self, name, value)

    class Pickler(pickle.Pickler):
        def reducer_override(self, value: Any) -> Any:
            if type(value).__name__ in ("Wrapper", "DhariwalUNet", "_Block", "_Conv"):
                name = class_name if isinstance(value, Wrapper) else type(value).__name__
                meta = EasyDict(type="class", version=6, module_src=source, class_name=name, state=dict(vars(value)))
                return _reconstruct_persistent_obj, (meta,)
            return NotImplemented

    buffer = io.BytesIO()
    Pickler(buffer).dump({
        "ema": Wrapper().eval(), "augment_pipe": None, "training_set_kwargs": EasyDict(path="x.zip"),
    })  # fmt: skip
    path.write_bytes(buffer.getvalue())


def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same reading without the start of a process."""
    monkeypatch.setattr(pickles, "unpickle", lambda path, out: torch.save(pickles.plain(pickles.read(path)), out))


@pytest.mark.parametrize(
    ("class_name", "attributes", "sigmas"),
    [
        ("EDMPrecond", {"sigma_data": 0.7, "sigma_min": 0, "sigma_max": float("inf")}, (0.002, 80.0)),
        ("VPPrecond", {"beta_d": 19.9, "beta_min": 0.1, "M": 1000, "sigma_min": 0.003, "sigma_max": 152.2},
         (0.003, 152.2)),
        ("VEPrecond", {"sigma_min": 0.02, "sigma_max": 100.0}, (0.02, 100.0)),
    ],
)  # fmt: skip
def test_pickles_of_edm(
    tmp_path: Path, net: nn.Module, monkeypatch: pytest.MonkeyPatch, class_name: str, attributes: Any, sigmas: Any
) -> None:
    source, out = tmp_path / "edm-net.pkl", tmp_path / "edm-net.safetensors"
    edm_pickle(source, net, monkeypatch, class_name, **attributes)
    with pytest.raises(ValueError, match=r"Pickles are not loaded.*--i-trust-this-file"):
        load_prior(source)
    assert "--i-trust-this-file" in refused("convert", str(source), str(out))
    if class_name != "EDMPrecond":
        in_this_process(monkeypatch)
    run("convert", str(source), str(out), "--i-trust-this-file")
    prior = load_prior(out)
    assert (prior.sigma_min, prior.sigma_max) == sigmas
    plain = tmp_path / "plain.pt"
    torch.save(net.state_dict(), plain)
    kind = class_name.removesuffix("Precond").lower()
    expected = load_prior(plain, preconditioning=kind, sigma_data=attributes.get("sigma_data", 0.5))
    x = network_input(1, 16)
    assert torch.equal(prior(x, 0.9), expected(x, 0.9))


def test_what_a_pickle_asks_to_run_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return exec, (f"open({str(tmp_path / 'was-here')!r}, 'w')",)

    in_this_process(monkeypatch)
    source = tmp_path / "evil.pkl"
    source.write_bytes(pickle.dumps({"ema": Evil()}))
    out = refused("convert", str(source), str(tmp_path / "o.safetensors"), "--i-trust-this-file")
    assert "nor a known checkpoint" in out
    torch.save({"state_dict": {}, "callbacks": Evil()}, tmp_path / "evil.ckpt")
    refused("convert", str(tmp_path / "evil.ckpt"), str(tmp_path / "o.safetensors"), "--i-trust-this-file")
    assert not (tmp_path / "was-here").exists()


@pytest.mark.slow
def test_a_damaged_pickle_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "damaged.pkl"
    source.write_bytes(b"\x80\x04garbage")
    with pytest.raises(ValueError, match="damaged.pkl cannot be unpickled"):
        pickles.unpickle(source, tmp_path / "o.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_training_files_with_objects_beside_the_weights(
    tmp_path: Path, net: nn.Module, monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    # as Lightning writes them: callbacks by their class, configurations as objects
    module = types.ModuleType("lightning_callbacks")

    class Callback:
        __module__, __qualname__ = "lightning_callbacks", "Callback"

        def __init__(self) -> None:
            self.best = 3

    module.Callback = Callback  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lightning_callbacks", module)
    source, out = tmp_path / "model.ckpt", tmp_path / "model.safetensors"
    content = {"ema": dict(net.state_dict()), "callbacks": {Callback: {"best": 1}}, "hyper_parameters": Callback()}
    torch.save(content, source, _use_new_zipfile_serialization=zipped)
    monkeypatch.delitem(sys.modules, "lightning_callbacks")
    in_this_process(monkeypatch)
    assert "--i-trust-this-file" in refused("convert", str(source), str(out))
    run("convert", str(source), str(out), "--i-trust-this-file")
    x = network_input(1, 16)
    plain = tmp_path / "plain.pt"
    torch.save(net.state_dict(), plain)
    assert torch.equal(load_prior(out)(x, 0.9), load_prior(plain)(x, 0.9))


def test_an_unknown_wrapper_is_named(tmp_path: Path, net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    in_this_process(monkeypatch)
    source = tmp_path / "i.pkl"
    edm_pickle(source, net, monkeypatch, "iDDPMPrecond", M=1000)
    out = refused("convert", str(source), str(tmp_path / "i.safetensors"), "--i-trust-this-file")
    assert "iDDPMPrecond" in out
