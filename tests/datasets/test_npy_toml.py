"""The .npy with a TOML file: every documented example runs, every mistake is named."""

from __future__ import annotations

import math
import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from invdiff import ComplexGaussianNoise, datasets
from invdiff.datasets import npy_toml
from invdiff.operators import CT, Blur, FanBeam, Inpainting

EXAMPLES = {
    re.search('modality = "(.*)"', text).group(1): textwrap.dedent(text)  # type: ignore[union-attr]
    for text in re.findall(r"::\n\n(.*?)(?=\n\n\S)", npy_toml.__doc__, re.DOTALL)
}
SHAPES = {"ct-parallel": (60, 150), "ct-fan": (90, 150), "mri": (3, 20, 24), "blur": (20, 24), "inpainting": (20, 24)}


def write(folder: Path, modality: str, toml: str | None = None, data: np.ndarray | None = None) -> Path:
    shape = SHAPES.get(modality, (4, 4))
    rng = np.random.default_rng(0)
    complex_ = 1j * rng.random(shape) if modality == "mri" else 0
    np.save(folder / "scan.npy", rng.random(shape) + complex_ if data is None else data)
    np.save(folder / "maps.npy", np.full((3, 20, 24), 3**-0.5, np.complex64))
    np.save(folder / "mask.npy", np.arange(20 * 24).reshape(20, 24) % 3 > 0)
    (folder / "scan.toml").write_text(EXAMPLES[modality] if toml is None else toml)
    return folder / "scan.npy"


@pytest.mark.parametrize("modality", SHAPES)
def test_every_documented_example_runs(tmp_path: Path, modality: str) -> None:
    m = datasets.open(write(tmp_path, modality))
    assert m.y.shape[-2:] == SHAPES[modality][-2:]
    again = datasets.open(tmp_path / "scan.toml")
    assert torch.equal(again.y, m.y)


def test_every_modality_is_documented() -> None:
    assert set(EXAMPLES) == set(npy_toml.MODALITIES)


def test_values_and_geometry(tmp_path: Path) -> None:
    fan = datasets.open(write(tmp_path, "ct-fan"))
    assert isinstance(fan.A, CT)
    assert isinstance(fan.A.geometry, FanBeam)
    assert fan.A.geometry.angles[1] == pytest.approx(math.radians(4))
    assert (fan.units, fan.image_scale, fan.item) == ("1/mm", 0.0193, "scan")
    assert fan.metadata["voxel_size_mm"] == pytest.approx([0.8, 0.8, 1])
    blur = datasets.open(write(tmp_path, "blur"))
    assert isinstance(blur.A, Blur)
    assert float(blur.A.psf.sum()) == pytest.approx(1)
    mri = datasets.open(write(tmp_path, "mri"))
    assert mri.noise == ComplexGaussianNoise(0.01)
    assert mri.A.in_shape == (1, 20, 24)
    estimated = EXAMPLES["mri"].replace("[noise]", "").replace("sigma", "# sigma").replace("true", "false")
    mri = datasets.open(write(tmp_path, "mri", estimated))
    assert mri.A.in_shape == (2, 20, 24)
    assert mri.noise.sigma > 0.1
    inpainting = datasets.open(write(tmp_path, "inpainting"))
    assert isinstance(inpainting.A, Inpainting)
    assert float((inpainting.y != 0).float().mean()) == pytest.approx(2 / 3, abs=0.01)


def test_a_stated_noise_is_not_estimated(tmp_path: Path) -> None:
    k = np.zeros((3, 20, 24), complex)
    k[:, 6:14, 8:16] = 1 + np.random.default_rng(0).random((3, 8, 8))  # 64 samples, of which few lie at the edge
    assert datasets.open(write(tmp_path, "mri", data=k)).noise == ComplexGaussianNoise(0.01)
    estimated = EXAMPLES["mri"].replace("[noise]", "").replace("sigma", "# sigma")
    with pytest.raises(ValueError, match="too few for the noise"):
        datasets.open(write(tmp_path, "mri", estimated, k))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[noise]", "[noises]", r"no key noises; it has modality.*geometry"),
        ("pixel_size = 0.8", "pixelsize = 0.8", r"\[geometry\] has no key pixelsize; it has image_shape, pixel_size"),
        ("n_photons = 1e4", "photons = 1e4", r"\[noise\] has no key photons; it has sigma, n_photons"),
        ("n_photons = 1e4", "n_photons = 1e4\nsigma = 1.0", "either sigma or n_photons"),
        ("n_photons = 1e4", "n_photons = -1.0", "n_photons must be a positive"),
        ("n_photons = 1e4", "sigma = nan", "'sigma' must be finite"),
        ("pixel_size = 0.8", "", "'pixel_size' .* is missing"),
        ("pixel_size = 0.8", 'pixel_size = "0.8"', "'pixel_size' must be a number"),
        ("n = 60", "n = 61", "61 angles need"),
        ("n = 60", "n = 60.5", "'n' must be an integer"),
        ("[128, 128]", "[128]", "two integers"),
        ("[128, 128]", "[1e9, 1e9]", "two integers"),
        ("supersampling = 2", "supersampling = 1000000", "between 1 and 64"),
        ('"ct-parallel"', '"ct"', "unknown modality 'ct'; known: ct-parallel"),
        ("modality", "modality modality", "not valid TOML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    toml = EXAMPLES["ct-parallel"]
    assert old in toml
    with pytest.raises(ValueError, match=message):
        datasets.open(write(tmp_path, "ct-parallel", toml.replace(old, new)))


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    path = write(tmp_path, "blur")
    (tmp_path / "scan.toml").write_text(EXAMPLES["blur"], encoding="utf-8-sig")
    assert isinstance(datasets.open(path).A, Blur)


def test_files_that_are_not_there_or_elsewhere(tmp_path: Path) -> None:
    path = write(tmp_path, "inpainting", EXAMPLES["inpainting"].replace("mask.npy", "../mask.npy"))
    with pytest.raises(ValueError, match="in the same folder"):
        datasets.open(path)
    (tmp_path / "scan.toml").unlink()
    with pytest.raises(FileNotFoundError, match=r"scan\.toml, with what the array is, is missing"):
        datasets.open(path)


def test_arrays_that_are_not_numbers(tmp_path: Path) -> None:
    def attempt(message: str, kind: type[Exception] = ValueError) -> None:
        with pytest.raises(kind, match=message):
            datasets.open(path)

    path = write(tmp_path, "blur", data=np.full((20, 24), np.nan))
    attempt("480 non-finite")
    path = write(tmp_path, "blur", data=np.ones((20, 24), complex))
    attempt("expected a real image")
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    attempt("must hold numbers")
    header = b"\x93NUMPY\x01\x00\x76\x00" + b"{'descr': '<f8', 'fortran_order': False, 'shape': (999999, 999999), }"
    path.write_bytes(header.ljust(127) + b"\n" + bytes(2000))
    attempt("the header says 999999 x 999999", OSError)
    path.write_bytes(b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(100))
    attempt("header is damaged")
