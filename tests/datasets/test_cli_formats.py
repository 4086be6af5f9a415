"""``invdiff reconstruct`` on a file of every format: its NIfTI output lies where the input lay."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from invdiff import Posterior, datasets
from invdiff.cli import app
from invdiff.priors import EDMDenoiser, PriorInfo, save_prior
from invdiff.priors.networks import UNet


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[int, ...]], Path]:
    """A small random network for images of a shape."""
    folder = tmp_path_factory.mktemp("prior")

    def make(shape: tuple[int, ...]) -> Path:
        path = folder / f"{'x'.join(map(str, shape))}.safetensors"
        if not path.is_file():
            network = {"channels": shape[0], "widths": (8, 8), "n_blocks": 1, "unshuffle": 2}
            with torch.random.fork_rng():
                torch.manual_seed(0)
                denoiser = EDMDenoiser(UNet(**network))
            info = PriorInfo(name="p")
            save_prior(path, denoiser, network, shape=shape, sigma_min=0.01, sigma_max=80, info=info)
        return path

    return make


def centred(size: float, thickness: float = 1.0, shape: tuple[int, int] = (16, 16)) -> np.ndarray:
    affine = np.diag([size, -size, thickness, 1.0])
    affine[:2, 3] = -(shape[1] - 1) / 2 * size, (shape[0] - 1) / 2 * size
    return affine


def lateral_and_depth() -> np.ndarray:
    """24 elements over 8 mm, rows from 6 to 10 mm deep; z points up, towards the array."""
    return np.array([[8 / 15, 0, 0, -4], [0, 0, 1, 0], [0, -4 / 15, 0, -6], [0, 0, 0, 1]])


# By hand from each fixture's geometry: the field of view over 16 pixels.
EXPECTED = {
    "invdiff measurement": centred(1.0),
    "HTC 2022": centred(20 * 4.0 * 400 / 540 / 16),
    "LoDoPaB-CT": centred(260 / 16),
    "Data Exchange": centred(1.0, 0.25),
    "DICOM-CT-PD": centred(2 * 100 * math.sin((11.5 * 3.4 + 1.1) / 180) / 16, 3.0 * 100 / 180),
    "npy + toml": centred(1.0),
    "fastMRI": centred(2.0, 5.0, shape=(32, 40)),
    "ISMRMRD": centred(2.0, 5.0, shape=(40, 32)),
    "BART": centred(1.0, shape=(32, 40)),
    **dict.fromkeys(("PICMUS", "zea", "UFF (USTB)", "MUST"), lateral_and_depth()),
}


def test_the_output_lies_where_the_input_lay(
    format_file: tuple[str, Path, dict[str, Any]], prior: Callable[[tuple[int, ...]], Path], tmp_path: Path
) -> None:
    name, path, options = format_file
    m = datasets.open_measurement(path, **options)
    if isinstance(datasets.open(path, **options), datasets.Volume):
        options = {"image_shape": (16, 16), **options}
        m = datasets.open_measurement(path, **options)
    given = [f"--open={k}={list(v) if isinstance(v, tuple) else v}" for k, v in options.items()]
    out = tmp_path / "out"
    arguments = ["reconstruct", path, "--prior", prior(m.A.in_shape), "--out", out, "--samples", 2, *given]
    result = CliRunner().invoke(app, [str(a) for a in [*arguments, "--algorithm", "dps", "--set", "n_steps=2"]])
    assert result.exit_code == 0, result.output

    (file,) = out.glob("*_desc-mean_image.nii.gz")
    image = nibabel.load(file)
    posterior = Posterior.load(out)
    ny, nx = m.A.in_shape[1:]
    mean = image.get_fdata().reshape(nx, ny, -1)[..., 0].T
    np.testing.assert_allclose(mean, posterior.mean[0], rtol=1e-5)
    (samples,) = out.glob("*_desc-samples_image.nii.gz")
    assert nibabel.load(samples).shape[:4] == (nx, ny, 1, 2)
    sidecar = json.loads(file.with_name(file.name.replace(".nii.gz", ".json")).read_text())
    assert sidecar["Units"] == m.units
    if name in EXPECTED:
        np.testing.assert_allclose(image.affine, EXPECTED[name], rtol=1e-5, atol=1e-5)
    else:  # a volume: every pixel is on a voxel of the one slice that was asked for
        volume = datasets.open(path)
        corners = image.affine @ np.array([[0, 0, 0, 1], [15, 0, 0, 1], [0, 15, 0, 1], [15, 15, 0, 1.0]]).T
        index = np.linalg.inv(volume.affine) @ corners
        np.testing.assert_allclose(index, np.round(index), atol=1e-4)
        np.testing.assert_allclose(index[2], volume.data.shape[0] // 2, atol=1e-4)
        centre = index[:2].mean(1) - (np.array(volume.data.shape[:0:-1]) - 1) / 2
        assert np.abs(centre).max() <= 0.5 + 1e-4
