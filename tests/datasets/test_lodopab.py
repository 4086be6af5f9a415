"""LoDoPaB-CT: units, orientation and noise of a file made here by its definition."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from invdiff import PoissonLogNoise, datasets
from invdiff.datasets.geometry import average_to

EIGHT = {"views": 8, "rebin": 3}


def test_the_ground_truth_explains_the_observation(tmp_path: Path, fixtures: Any) -> None:
    m = datasets.open(fixtures.lodopab(tmp_path), index=1, **EIGHT)
    assert (m.A.geometry.image_shape, m.A.geometry.n_detectors, m.units) == ((362, 362), 171, "1/mm")
    assert m.A.geometry.pixel_size == pytest.approx(260 / 362)
    assert m.A.geometry.angles[:2] == pytest.approx((0.5 * math.pi / 1000, 125.5 * math.pi / 1000))
    assert m.noise == PoissonLogNoise(3 * 4096.0, 0.1)
    torch.testing.assert_close(m.reference, fixtures.disc(fixtures.lodopab_beam, 40.0, 0.03), rtol=1e-5, atol=1e-7)
    assert (
        float(m.residual(m.reference).abs().max()) < 0.03
    )  # of 2.4; three elements averaged as counts, and as one ray
    assert m.image_scale == pytest.approx(0.020)  # the data set's water: 20 per metre


def test_orientation_follows_the_definition_of_the_ray_transform(tmp_path: Path) -> None:
    """Images are indexed (x, y), both increasing, and the view at angle t sees a point at x cos(t) + y sin(t)."""
    image = np.zeros((1, 362, 362), np.float32)
    image[0, 300, 120] = 1.0
    with h5py.File(tmp_path / "ground_truth_train_000.hdf5", "w") as f:
        f["data"] = image
    with h5py.File(tmp_path / "observation_train_000.hdf5", "w") as f:
        f["data"] = np.zeros((1, 1000, 513), np.float32)
    m = datasets.open(tmp_path / "observation_train_000.hdf5", **EIGHT)
    x, y = ((i + 0.5) * 260 / 362 - 130 for i in (300, 120))
    sinogram = m.A(m.reference)[0].double().numpy()
    seen = sinogram @ m.A.geometry.detector_positions() / sinogram.sum(1)
    t = np.array(m.A.geometry.angles)
    np.testing.assert_allclose(seen, x * np.cos(t) + y * np.sin(t), atol=0.5)
    v = datasets.open(tmp_path / "ground_truth_train_000.hdf5")
    row, column = np.argwhere(v.data[0] > 0)[0]
    np.testing.assert_allclose((v.affine @ [column, row, 0, 1])[:2], [x, y], atol=1e-6)
    assert v.data.max() == pytest.approx(0.08135858)


def test_rebinning_keeps_the_counts_poisson(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    counts = rng.poisson(4096 * math.exp(-2.0), (1, 1000, 513))
    with h5py.File(tmp_path / "observation_test_000.hdf5", "w") as f:
        f["data"] = (-np.log(counts / 4096) / 81.35858).astype(np.float32)
    m = datasets.open(tmp_path / "observation_test_000.hdf5", views=1000, rebin=19, image_shape=(8, 8))
    chi2 = m.noise.chi2(torch.full_like(m.y, 2.0), m.y)
    assert float(chi2.mean()) == pytest.approx(1, abs=4 * math.sqrt(2 / m.y.numel()))
    assert m.reference is None


def test_averaging_keeps_the_mean_and_exact_blocks() -> None:
    x = np.random.default_rng(0).random((12, 18)).astype(np.float32)
    np.testing.assert_allclose(average_to(x, (4, 6)), x.reshape(4, 3, 6, 3).mean((1, 3)), rtol=1e-5)
    assert average_to(x, (5, 7)).mean() == pytest.approx(x.mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"index": 2}, "holds 2 slices; index must lie in 0 to 1"),
        ({"views": 1001}, "views must lie between 1 and 1000"),
        ({"rebin": 2}, "rebin must divide the 513"),
        ({"views": 2, "image_shape": (100, 90)}, "must be square"),
    ],
)
def test_refuses_impossible_selections(tmp_path: Path, fixtures: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        datasets.open(fixtures.lodopab(tmp_path), **options)
