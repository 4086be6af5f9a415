"""The command line: what works, and one clear line for everything that does not."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from invdiff import GaussianNoise, Measurement, Posterior, load_prior
from invdiff.algorithms import ALGORITHMS
from invdiff.classical import CLASSICAL
from invdiff.cli import app, parse_assignments
from invdiff.operators import OPERATORS, Identity
from invdiff.priors import EDMDenoiser, PriorInfo, save_prior
from invdiff.priors.networks import UNet

SHAPE = (1, 16, 16)
Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in a folder that holds a measurement and a prior that fits it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    network = {"widths": (8, 8), "n_blocks": 1, "unshuffle": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        denoiser = EDMDenoiser(UNet(**network))
    save_prior(
        Path("p.safetensors"), denoiser, network, shape=SHAPE, sigma_min=0.01, sigma_max=80, info=PriorInfo(name="p")
    )
    x = 0.5 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    Measurement.simulate(x, Identity(SHAPE), GaussianNoise(0.1), seed=0).save("m.h5")
    return lambda *args: CliRunner().invoke(app, [str(a) for a in args])


RECONSTRUCT = (
    "reconstruct",
    "m.h5",
    "--prior",
    "p.safetensors",
    "--out",
    "out",
    "--samples",
    "3",
    "--set",
    "n_anneal=4",
)


def test_reconstruct_writes_samples_and_figure(run: Run) -> None:
    result = run(*RECONSTRUCT, "--seed", 5)
    assert result.exit_code == 0, result.output
    assert "data chi2" in result.output
    posterior = Posterior.load("out")
    assert posterior.samples.shape == (3, *SHAPE)
    assert (posterior.seed, posterior.nfe) == (5, 4)
    assert Path("out/figure.png").read_bytes().startswith(b"\x89PNG")
    assert run(*RECONSTRUCT, "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ({"voxel_size_mm": [0.65, 0.65, 1.0]}, "are of 0.65 mm"),
        ({"voxel_size_mm": [2.0, 4.0, 1.0]}, "are of 2 x 4 mm"),
        ({"pixel_size_mm": 4.0}, "are of 4 mm"),
        ({"voxel_size_mm": [1.2, 3.6, 9.0]}, None),
        ({"pixel_size_mm": 2.0}, None),
        ({}, None),
    ],
)
def test_pixels_of_a_size_that_the_prior_does_not_know_are_told(
    run: Run, known: dict[str, Any], said: str | None
) -> None:
    prior = load_prior("p.safetensors")
    info = dataclasses.replace(prior.info, pixel_size=(1.2, 3.6))
    network = {"widths": (8, 8), "n_blocks": 1, "unshuffle": 2}
    save_prior(Path("p.safetensors"), prior.module, network, shape=SHAPE, sigma_min=0.01, sigma_max=80, info=info)
    dataclasses.replace(Measurement.load("m.h5"), metadata=known).save("m.h5")
    result = run(*RECONSTRUCT)
    assert result.exit_code == 0, result.output
    if said is None:
        assert "Note:" not in result.output
    else:
        assert f"the prior p knows pixels of 1.2 to 3.6 mm, these {said}" in result.output


def test_a_plugin_algorithm_is_found_by_module_and_class(run: Run) -> None:
    plugin = ("--algorithm", "invdiff.algorithms.dps:DPS")
    result = run(*RECONSTRUCT[:-2], *plugin, "--set", "n_steps=4", "--set", "clip=false", "--batch-size", 2)
    assert result.exit_code == 0, result.output
    assert "DPS(n_steps=4, guidance_scale=0.3, clip=False)" in result.output
    assert "samples 1-2" in result.output  # one progress bar per micro-batch
    assert "sample 3" in result.output
    result = run(*RECONSTRUCT, *plugin, "--overwrite")
    assert result.exit_code == 2
    assert "DPS has no parameter 'n_anneal'; it has n_steps, guidance_scale, clip" in result.stderr


def test_overwriting_leaves_nothing_of_an_earlier_run_and_nothing_else_goes(run: Run) -> None:
    assert run(*RECONSTRUCT).exit_code == 0
    mine = ["m_desc-mask_image.nii.gz", "m_desc-std_image.png", "notes.txt", "posterior.txt"]
    for name in mine:
        Path("out", name).write_text("mine")
    before = sorted(Path("out").iterdir())
    assert Path("out/m_desc-samples_image.json") in before
    assert run(*RECONSTRUCT, "--overwrite", "--set", "n_anneal=0").exit_code == 2
    assert sorted(Path("out").iterdir()) == before  # what is refused loses nothing
    assert run(*RECONSTRUCT, "--overwrite", "--samples", 1).exit_code == 0
    new = ["figure.png", "m_desc-mean_image.json", "m_desc-mean_image.nii.gz", "posterior.json"]
    assert sorted(p.name for p in Path("out").iterdir()) == sorted([*mine, *new, "posterior.safetensors"])


def test_an_input_that_overwriting_would_remove_is_refused(run: Run) -> None:
    Path("out").mkdir()
    shutil.copy("m.h5", "out/x_desc-mean_image.nii.gz")
    result = run("reconstruct", "out/x_desc-mean_image.nii.gz", *RECONSTRUCT[2:], "--overwrite")
    assert result.exit_code == 2
    assert "is itself one of the results" in result.stderr


def test_plugins_of_the_current_folder_are_found(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])  # as for an installed command
    Path("my_methods.py").write_text("class A:\n    bibtex = '@misc{mine}'\n")
    assert run("cite", "my_methods:A").output == "@misc{mine}\n"


def write(path: str, content: bytes) -> Callable[[], None]:
    return lambda: Path(path).write_bytes(content)


def truncate() -> None:
    data = Path("m.h5").read_bytes()
    Path("m.h5").write_bytes(data[: len(data) // 2])


def fill_out() -> None:
    Path("out").mkdir()
    Path("out/notes.txt").write_text("mine")


def measure_other_size() -> None:
    Measurement(torch.zeros(1, 8, 8), Identity((1, 8, 8)), GaussianNoise(0.1)).save("m.h5")


def measure_two_channels() -> None:
    Measurement(torch.zeros(2, 16, 16), Identity((2, 16, 16)), GaussianNoise(0.1)).save("m.h5")


def spoil(value: float, shape: tuple[int, ...] = SHAPE) -> Callable[[], None]:
    def write_y() -> None:
        import h5py

        with h5py.File("m.h5", "r+") as f:
            del f["y"]
            f["y"] = torch.full(shape, value).numpy()

    return write_y


def negative_sigma() -> None:
    import h5py

    with h5py.File("m.h5", "r+") as f:
        f["noise"].attrs["sigma"] = "-0.1"


@pytest.mark.parametrize(
    ("arguments", "prepare", "message"),
    [
        (("reconstruct", "no.h5", "--prior", "p.safetensors", "--out", "out"), None, "No such file: no.h5"),
        (
            ("reconstruct", "m.nii", "--prior", "p.safetensors", "--out", "out"),
            write("m.nii", b""),
            "m.nii is in no known format; known: invdiff measurement, HTC 2022",
        ),
        (RECONSTRUCT, truncate, "may be truncated"),
        (RECONSTRUCT, spoil(0.0, (1, 16, 15)), "y must have the operator's output shape (1, 16, 16), got (1, 16, 15)"),
        (RECONSTRUCT, spoil(float("nan")), "256 non-finite value(s)"),
        (RECONSTRUCT, negative_sigma, "sigma must be a positive finite number, got -0.1"),
        (("reconstruct", "m.h5", "--prior", "ct", "--out", "out"), None, "neither a file nor a shipped prior"),
        ((*RECONSTRUCT, "--algorithm", "dsp"), None, "No algorithm 'dsp'; there are daps, ddnm"),
        ((*RECONSTRUCT, "--set", "anneal=3"), None, "DAPS has no parameter 'anneal'; it has n_anneal"),
        ((*RECONSTRUCT, "--set", "n_anneal"), None, "--set takes NAME=VALUE"),
        (RECONSTRUCT, measure_other_size, "differ in image size"),
        (RECONSTRUCT, measure_two_channels, "differ in image channels"),
        (RECONSTRUCT, fill_out, "not empty"),
        ((*RECONSTRUCT, "--views", 3), None, "The format 'invdiff measurement' has no option views; it has none"),
        ((*RECONSTRUCT, "--open", "row=3"), None, "The format 'invdiff measurement' has no option row"),
        ((*RECONSTRUCT, "--open", "row"), None, "--open takes NAME=VALUE"),
        ((*RECONSTRUCT, "--algorithm", "json:JSONDecoder"), None, "must be a dataclass, got JSONDecoder"),
        ((*RECONSTRUCT, "--algorithm", ":a"), None, "Cannot load the algorithm ':a': Empty module name"),
        ((*RECONSTRUCT, "--algorithm", ".a:b"), None, "Cannot load the algorithm '.a:b'"),
        ((*RECONSTRUCT, "--out", "m.h5/x"), None, "m.h5 is a file; the output must be a folder"),
        ((*RECONSTRUCT, "--out", "/proc/x"), None, "Nothing can be written into /proc/x"),
        (("truth", "--out", "m.h5/x"), None, "m.h5 is a file"),
        (("demo", "--out", "m.h5/x"), None, "m.h5 is a file"),
        ((*RECONSTRUCT, "--device", "tpu"), None, "The device 'tpu' is not available"),
        (("cite", "dsp"), None, "No method 'dsp'"),
        (("cite", "json:JSONDecoder"), None, "The method 'json:JSONDecoder' cannot be cited"),
        (("cite", "invdiff.priors:Prior"), None, "cannot be cited"),
        (("cite", "broken:A"), write("broken.py", b"class A(:"), "invalid syntax (broken.py, line 1)"),
        (("train", "no.toml", "--out", "run"), None, "No such file: no.toml"),
        (("prior", "info", "m.h5"), None, "A prior is a .safetensors file"),
        (("prior", "info", "."), None, "error: . is not an invdiff prior"),
        (("demo", "--out", "out"), fill_out, "not empty"),
    ],
)
def test_bad_input_is_one_clear_line_before_any_work(
    run: Run, arguments: tuple[str, ...], prepare: Callable[[], None] | None, message: str
) -> None:
    if prepare:
        prepare()
    before = {p: p.stat().st_mtime_ns for p in Path().rglob("*")}
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.strip().splitlines()) == 1
    assert "step/s" not in result.output
    assert {p: p.stat().st_mtime_ns for p in Path().rglob("*")} == before


def test_list_shows_every_entry(run: Run) -> None:
    output = run("list").output
    for name in [*ALGORITHMS, *CLASSICAL, *OPERATORS, "ct-128", "brain-mri-128", ".h5", ".mat"]:
        assert name in output
    assert "y = mask * x" in output  # emphasis goes, products stay
    assert "Label: heuristic" in output


@pytest.mark.parametrize("name", [*ALGORITHMS, *CLASSICAL])
def test_every_method_can_be_cited(run: Run, name: str) -> None:
    output = run("cite", name).output
    assert output.startswith("@")
    assert output.count("{") == output.count("}")
    assert "year" in output


def write_slices() -> None:
    import nibabel
    import numpy as np

    voxels = np.random.default_rng(0).normal(5, 1, (32, 32, 3)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), "v.nii")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), "--open 'image_shape=[16,16]' sets the grid of a CT or ultrasound file, and crops or pads an image"),
        (("--open", "index=1.5"), "The option index must be a whole number, got 1.5."),
        (("--open", "image_shape=[]"), "The option image_shape must be 2 whole numbers, e.g. [128, 128], got []."),
        (("--open", "foo=3"), "'NIfTI' has no option foo; it has fill, index, sigma, bin, image_shape."),
    ],
)
def test_options_of_a_volume(run: Run, given: tuple[str, ...], message: str) -> None:
    write_slices()
    result = run("reconstruct", "v.nii", *RECONSTRUCT[2:], *given)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert message in result.stderr
    for fits in ("bin=2", "image_shape=[16,16]"):
        result = run("reconstruct", "v.nii", *RECONSTRUCT[2:], "--open", fits, "--overwrite")
        assert result.exit_code == 0, result.output


def test_values_on_the_command_line() -> None:
    given = ("a=false", "b=True", "c=no", "d=2.9", "e='2.9'", 'f="true"', "g=[1, 2.5]", "h=")
    values = list(parse_assignments(list(given)).values())
    assert values == [False, True, "no", 2.9, "2.9", "true", [1, 2.5], ""]


def test_prior_info_shows_what_is_known(run: Run) -> None:
    output = run("prior", "info", "ct-128").output
    for text in ("1 is the attenuation of water", "LIDC-IDRI", "sha256", "denoising held-out slices"):
        assert text in output


@pytest.mark.slow
def test_demo_beats_the_classical_reconstructions_and_fits_the_data(run: Run) -> None:
    result = run("demo", "--samples", 4, "--out", "d")
    assert result.exit_code == 0, result.output
    rows = {(r["problem"], r["reconstruction"]): r for r in json.loads(Path("d/table.json").read_text())}
    for problem, classical in (("CT, 40 views", "FBP"), ("brain MRI, 4x, 8 coils", "CG-SENSE")):
        mean, sample = rows[problem, "posterior mean"], rows[problem, "one sample"]
        assert mean["psnr"] > rows[problem, classical]["psnr"] + 1
        assert mean["ssim"] > rows[problem, classical]["ssim"]
        assert mean["psnr"] > sample["psnr"] + 1.5  # the samples spread: exact ones would differ by 2 dB or more
        assert 0.8 < sample["chi2"] < 1.3  # neither ignores the data nor fits their noise
    for folder in ("ct", "mri"):
        p = Posterior.load(f"d/{folder}")
        assert p.samples.shape == (4, 1, 128, 128)
        assert float(p.std.min()) > 0
    assert Path("d/figure.png").stat().st_size > 100_000
