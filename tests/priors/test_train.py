"""Training: the loss, resuming, the files it leaves."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from invdiff.cli import app
from invdiff.datasets.slices import Stack, load_slices
from invdiff.priors import load_prior, shipped_priors
from invdiff.priors.augment import Augmentation, SliceSampler
from invdiff.priors.configuration import TrainConfig
from invdiff.priors.denoiser import EDMDenoiser
from invdiff.priors.train import edm_loss, train

TOML = """
name = "tiny"
modality = "mri"
train = ["a.nii.gz"]
validation = ["b.nii.gz"]
n_steps = 6
batch_size = 4
[augmentation]
size = 16
pixel_size = [1.0, 2.0]
gain = 0.1
gamma = 0.2
remap = 0.5
bias = 0.1
[network]
widths = [8, 8]
n_blocks = 1
unshuffle = 2
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        volume = np.zeros((24, 28, 5), np.int16)
        volume[4:20, 4:24] = rng.integers(200, 1000, (16, 20, 5))
        nibabel.save(nibabel.Nifti1Image(volume, np.diag([1.0, 1.0, 2.0, 1.0])), tmp_path / f"{name}.nii.gz")
    (tmp_path / "tiny.toml").write_text(TOML)
    return tmp_path


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(data: Path) -> None:
    config = TrainConfig.read(data / "tiny.toml")
    whole = train(config, data / "whole", data=data, device="cpu")

    class Killed(Exception):
        pass

    def kill(step: int, n_steps: int, loss: float) -> None:
        if step == 3:
            raise Killed

    with pytest.raises(Killed):
        train(config, data / "parts", data=data, device="cpu", callback=kill)
    assert torch.load(data / "parts" / "checkpoint.pt", weights_only=True)["step"] == 3
    parts = train(config, data / "parts", device="cpu")
    assert whole is not None
    assert parts is not None
    a, b = load_prior(whole), load_prior(parts)
    for p, q in zip(a.module.parameters(), b.module.parameters(), strict=True):
        assert torch.equal(p, q)
    assert {f.name for f in (data / "parts").iterdir()} == {
        "slices.h5", "checkpoint.pt", "samples.png", "tiny.safetensors", "tiny.md"
    }  # fmt: skip
    assert [row["sigma"] for row in a.info.details["denoising_psnr"]] == [0.05, 0.1, 0.2, 0.5, 1.0, 2.0]


def test_a_run_whose_loss_was_not_finite_continues(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, factors = TrainConfig.read(data / "tiny.toml"), iter([1.0, 1.0, 1.0, math.nan])
    monkeypatch.setattr("invdiff.priors.train.edm_loss", lambda *arguments: next(factors) * edm_loss(*arguments))
    with pytest.raises(FloatingPointError, match="denoiser is nan at step 4.*lower learning_rate"):
        train(config, data / "run", data=data, device="cpu")
    monkeypatch.undo()
    state = torch.load(data / "run" / "checkpoint.pt", weights_only=True)
    assert state["step"] == len(state["losses"]) == 3
    assert all(bool(w.isfinite().all()) for w in state["denoiser"].values())
    assert train(config, data / "run", device="cpu") is not None


def test_the_command_trains_stops_and_continues(data: Path) -> None:
    command = ["train", str(data / "tiny.toml"), "--out", str(data / "run"), "--device", "cpu"]
    first = CliRunner().invoke(app, [*command, "--data", str(data), "--max-minutes", "0"])
    assert first.exit_code == 0, first.output
    assert "the same command continues" in first.output
    second = CliRunner().invoke(app, command)
    assert "Finished" in second.output
    card = (data / "run" / "tiny.md").read_text()
    assert "6 steps of 4 images" in card
    assert "| held out | b.nii.gz |" in card


PHANTOMS = """
modality = "disc"
[[phantoms]]
make = "invdiff.datasets.phantoms:AcrylicDiscs"
n = 3
[[phantoms]]
make = "invdiff.datasets.phantoms:AcrylicDiscs"
n = 2
seed = 1
split = "validation"
[augmentation]
size = 16
pixel_size = [4.0, 6.0]
"""


def test_a_prior_from_phantoms_needs_no_files(data: Path) -> None:
    head, network = TOML.partition("modality")[0], TOML[TOML.index("[network]") :]
    steps = "n_steps = 2\nbatch_size = 2\n"
    (data / "disc.toml").write_text(head + steps + PHANTOMS + network)
    path = train(TrainConfig.read(data / "disc.toml"), data / "disc", device="cpu")
    assert path is not None
    info = load_prior(path).info
    assert info.value_range == (0.0, 1.25)
    assert info.details["validation"] == "AcrylicDiscs 1"
    (data / "bad.toml").write_text(head + steps + PHANTOMS.replace("validation", "train") + network)
    with pytest.raises(ValueError, match="for training and for validation"):
        TrainConfig.read(data / "bad.toml")
    (data / "bad.toml").write_text(head + steps + PHANTOMS.replace("AcrylicDiscs", "NoSuch") + network)
    with pytest.raises(ValueError, match="expected package.module:Class"):
        train(TrainConfig.read(data / "bad.toml"), data / "bad", device="cpu")


def test_a_complex_prior_has_two_channels_in_one_unit(data: Path) -> None:
    text = TOML.replace("bias = 0.1", "bias = 0.1\nphase = 1.0").replace("[network]", "[network]\nchannels = 2")
    (data / "complex.toml").write_text(text)
    config = TrainConfig.read(data / "complex.toml")
    path = train(config, data / "complex", data=data, device="cpu", bfloat16=True)
    assert path is not None
    prior = load_prior(path)
    assert prior.shape == (2, 16, 16)
    assert (prior.scale, prior.offset) == (1.2, 0.0)  # no signal is 0 in the model, whatever the phase
    stacks, value_range = load_slices(data / "complex" / "slices.h5", "train")
    plain = dataclasses.replace(config.augmentation, phase=0.0)
    g = [torch.Generator().manual_seed(3) for _ in range(2)]
    z = SliceSampler(stacks, config.augmentation, value_range)._one(g[0])
    x = SliceSampler(stacks, plain, value_range)._one(g[1])
    torch.testing.assert_close(z.square().sum(0).sqrt(), (x[0] + 1) / 2, atol=1e-6, rtol=0)
    (data / "bad.toml").write_text(TOML.replace("bias = 0.1", "bias = 0.1\nphase = 1.0"))
    with pytest.raises(ValueError, match="channels = 2, got 1"):
        TrainConfig.read(data / "bad.toml")


def test_training_images_are_means_over_their_pixels_and_over_neighbouring_slices() -> None:
    # a checkerboard of single stored pixels, seen with pixels twice as wide, is flat; slices of 0, 1/3, 2/3, 1
    board = (np.indices((64, 64)).sum(0) % 2).astype(np.float32)
    codes = np.stack([(65535 * board * k / 3).round().astype(np.uint16) for k in range(4)])
    plain = Augmentation(size=16, pixel_size=(2.0, 2.0), rotation=0.0)
    stack, g = [Stack("a", codes, 1.0)], torch.Generator().manual_seed(0)
    one = SliceSampler(stack, plain, (0.0, 1.0)).batch(64, g)[..., 3:-3, 3:-3]  # without what lies beyond the slice
    level = one.mean((1, 2, 3))
    assert float((one - level[:, None, None, None]).abs().max()) < 0.02
    assert {round(3 * (v + 1), 1) for v in level.tolist()} == {0.0, 1.0, 2.0, 3.0}  # half the maximum, in [-1, 1]
    thick = SliceSampler(stack, dataclasses.replace(plain, n_slices=2), (0.0, 1.0)).batch(256, g)
    thick = thick[..., 3:-3, 3:-3].mean((1, 2, 3))
    assert {round(6 * (v + 1)) for v in thick.tolist()} == {0, 1, 2, 3, 4, 5, 6}


def test_slices_keep_orientation_and_values(data: Path) -> None:
    volume = np.zeros((24, 28, 3), np.int16)
    volume[6:18, 6:22] = 500
    volume[16, 20] = 1000  # right, anterior
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([1.0, 1.0, 2.0, 1.0])), data / "a.nii.gz")
    train(TrainConfig.read(data / "tiny.toml"), data / "out", data=data, device="cpu", max_minutes=0)
    with h5py.File(data / "out" / "slices.h5") as f:
        codes, (lo, hi) = f["a/0/slices"][0], f.attrs["value_range"]
    row, column = np.unravel_index(codes.argmax(), codes.shape)
    assert (row, column) == (28 - 1 - 20, 16)  # anterior is up
    assert float(codes[14, 10]) / 65535 * (hi - lo) + lo == pytest.approx(0.5, abs=0.3)


def test_the_loss_is_one_for_white_data_and_an_untrained_network() -> None:
    class Zero(torch.nn.Module):
        def forward(self, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(x)

    g = torch.Generator().manual_seed(0)
    x0, noise = 0.5 * torch.randn(4, 1, 200, 200, generator=g), torch.randn(4, 1, 200, 200, generator=g)
    loss = edm_loss(EDMDenoiser(Zero()), x0, torch.tensor([0.05, 0.3, 1.0, 20.0]), noise)
    assert float(loss) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("n_step = 7", "no parameter 'n_step'; it has name"),
        ("= =", "not valid TOML"),
    ],
)
def test_wrong_configurations_are_refused(data: Path, change: str, message: str) -> None:
    (data / "bad.toml").write_text(change + "\n" + TOML)
    with pytest.raises(ValueError, match=message):
        TrainConfig.read(data / "bad.toml")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("n_steps = 0", "n_steps must be an integer above 0, got 0"),
        ("n_steps = 2.5", "n_steps must be an integer above 0, got 2.5"),
        ("n_steps = true", "n_steps must be an integer above 0, got True"),
        ('n_steps = "a"', "n_steps must be an integer above 0, got 'a'"),
        ("batch_size = 0", "batch_size must be"),
        ("n_blocks = -1", r"\[network\]: n_blocks must be an integer, 0 or more, got -1"),
        ("widths = 8", r"\[network\]: widths must be a list, got 8"),
        ("widths = [-8]", "widths must be an integer above 0, got -8"),
        ("widths = []", "16 x 16 pixels .* Give one or more widths"),
        ("widths = [9]", "16 x 16 pixels .* multiples of 8"),
        ("size = 33", "33 x 33 pixels .* divides"),
        ("unshuffle = 3", "16 x 16 pixels .* divides"),
        ("unshuffle = 0", "unshuffle must be"),
        ("pixel_size = [3, 1]", r"expected pixel_size = \[smallest, largest\], got \[3.0, 1.0\]"),
        ("pixel_size = [1, 2, 3]", "pixel_size must be a list of two numbers"),
        ("pixel_size = [0, 0]", "pixel_size must be a number above 0, got 0"),
        ("gain = nan", "gain must be a number, 0 or more, got nan"),
        ("sigma_min = 100", "sigma_min below sigma_max, got 100.0 and 100.0"),
        ("ema = 2", "ema must be a number from 0 to 1, got 2"),
        ("p_std = -1", "p_std must be a number above 0, got -1"),
        ('name = "../esc"', "file name: expected letters.* got '../esc'"),
        ('name = ""', "file name: expected letters"),
        ('train = "a.nii.gz"', "train must be a list, got 'a.nii.gz'"),
        ("augmentation = 3", r"\[augmentation\]: expected a table, got 3"),
    ],
)
def test_wrong_values_are_refused(data: Path, line: str, message: str) -> None:
    text, key = TOML, line.partition(" ")[0]
    if key == "augmentation":
        text = text[: text.index("[augmentation]")] + text[text.index("[network]") :]
    text, n = re.subn(rf"^{key} = .*$", line, text, flags=re.MULTILINE)
    (data / "bad.toml").write_text(text if n else f"{line}\n{text}")
    with pytest.raises(ValueError, match=rf"^bad\.toml.*{message}"):
        TrainConfig.read(data / "bad.toml")


def test_the_file_is_utf_8(data: Path) -> None:
    (data / "tiny.toml").write_bytes(f'licence = "frei, für alle"{TOML}'.encode())
    assert TrainConfig.read(data / "tiny.toml").licence == "frei, für alle"
    (data / "tiny.toml").write_bytes(f'licence = "für alle"{TOML}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"tiny\.toml is not valid TOML .*utf-8"):
        TrainConfig.read(data / "tiny.toml")


def test_the_shipped_configurations_are_read() -> None:
    for file in shipped_priors().values():
        assert TrainConfig.read(file.with_suffix(".toml")).name == file.stem


class TestAnotherConfiguration:
    """In the folder of a run."""

    @pytest.fixture
    def out(self, data: Path) -> Path:
        train(TrainConfig.read(data / "tiny.toml"), data / "run", data=data, device="cpu", max_minutes=0)
        return data / "run"

    @pytest.mark.parametrize(
        ("change", "differs"),
        [
            (('modality = "mri"', 'modality = "disc"'), r"slices\.h5 .* differs in modality:"),
            (('["a.nii.gz"]', '["c.nii.gz"]'), r"slices\.h5 .* differs in train:"),
            (('["b.nii.gz"]', '["c.nii.gz"]'), r"slices\.h5 .* differs in validation:"),
            (("[network]", PHANTOMS[PHANTOMS.index("[[") : PHANTOMS.index("[aug")] + "[network]"), "in phantoms:"),
            (("size = 16", "size = 32"), r"checkpoint\.pt .* differs in size:"),
            (("[8, 8]", "[8, 16]"), r"checkpoint\.pt .* differs in widths:"),
            (("[network]", "[network]\nchannels = 2"), r"checkpoint\.pt .* differs in phase, channels:"),
            (("batch_size", "p_mean = -1\nbatch_size"), r"checkpoint\.pt .* differs in p_mean:"),
        ],
    )
    def test_is_refused(self, data: Path, out: Path, change: tuple[str, str], differs: str) -> None:
        text = TOML.replace(*change)
        if "channels" in change[1]:
            text = text.replace("bias = 0.1", "bias = 0.1\nphase = 1.0")
        (data / "other.toml").write_text(text)
        with pytest.raises(ValueError, match=f"{differs}.*--out"):
            train(TrainConfig.read(data / "other.toml"), out, device="cpu")

    def test_goes_on_where_only_the_length_and_the_learning_rate_differ(self, data: Path, out: Path) -> None:
        text = TOML.replace("n_steps = 6", 'n_steps = 2\nlearning_rate = 1e-4\ntrained_on = "one"')
        (data / "shorter.toml").write_text(text.replace("batch_size = 4", "batch_size = 2"))
        assert train(TrainConfig.read(data / "shorter.toml"), out, device="cpu") is not None
        assert torch.load(out / "checkpoint.pt", weights_only=True)["step"] == 2

    def test_of_an_earlier_version_goes_on_with_the_same_network(self, data: Path, out: Path) -> None:
        with h5py.File(out / "slices.h5", "a") as f:
            del f.attrs["origin"]
        state = torch.load(out / "checkpoint.pt", weights_only=True)
        del state["identity"]
        torch.save(state, out / "checkpoint.pt")
        (data / "wider.toml").write_text(TOML.replace("[8, 8]", "[8, 16]"))
        with pytest.raises(ValueError, match="holds another network.*--out"):
            train(TrainConfig.read(data / "wider.toml"), out, device="cpu")
        assert train(TrainConfig.read(data / "tiny.toml"), out, device="cpu") is not None


def test_time_is_a_number(data: Path) -> None:
    with pytest.raises(ValueError, match="max_minutes must be 0 or more, got nan"):
        train(TrainConfig.read(data / "tiny.toml"), data / "out", data=data, max_minutes=math.nan)


def test_missing_data_are_named(data: Path) -> None:
    config = TrainConfig.read(data / "tiny.toml")
    with pytest.raises(ValueError, match="--data"):
        train(config, data / "out")
    with pytest.raises(FileNotFoundError, match=r"No such folder of volumes \(--data\): .*nofolder"):
        train(config, data / "out", data=data / "nofolder")
    (data / "b.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"b\.nii\.gz"):
        train(config, data / "out", data=data)
