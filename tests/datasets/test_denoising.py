"""A slice of a volume as a denoising problem: orientation, affine, units and the estimated noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from invdiff import datasets
from invdiff.datasets import Volume, denoising
from invdiff.datasets.denoising import haar_noise


@pytest.mark.parametrize("bin", [1, 2])
@pytest.mark.parametrize("image_shape", [None, (3, 8), (9, 2)])
def test_every_pixel_stays_where_it_was_in_the_body(bin: int, image_shape: Any, fixtures: Any) -> None:
    """The value of a volume that is linear in world coordinates tells where a pixel came from."""
    affine, shape = fixtures.affine, (5, 8, 6)  # z, y, x
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")[::-1], -1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    weights = np.array([1.0, 10.0, 100.0])
    m = denoising(Volume(world @ weights, affine), index=2, sigma=1.0, bin=bin, image_shape=image_shape)
    placed = np.array(m.metadata["affine"])
    y = m.y[0].numpy()
    rows, columns = np.indices(y.shape)
    there = np.stack([columns, rows, np.zeros_like(rows), np.ones_like(rows)], -1) @ placed.T
    expected = there[..., :3] @ weights
    inside = np.abs(y - y.min()) > 1e-3 * np.abs(y).max()  # padding takes the smallest value
    assert inside.any()
    np.testing.assert_allclose(y[inside], expected[inside], rtol=1e-4, atol=1e-2)
    # row 0 anterior (+y), column 0 left (-x): canonical orientation seen from above
    assert placed[1, 1] < 0 < placed[0, 0]


def test_hounsfield_units_become_attenuation(tmp_path: Path, fixtures: Any) -> None:
    m = datasets.open_measurement(fixtures.dicom(tmp_path), index=1)
    assert (m.units, m.image_scale) == ("1/mm", 0.0193)
    assert float(m.y.min()) >= 0
    assert m.metadata["voxel_size_mm"] == pytest.approx([0.9, 0.7, 2.5])
    with pytest.raises(ValueError, match="index must lie in 0 to 3"):
        datasets.open_measurement(tmp_path / "series", index=4)
    with pytest.raises(TypeError, match="no option views"):
        datasets.open_measurement(tmp_path / "series", views=4)


def test_noise_is_estimated_on_an_image_with_edges() -> None:
    y, x = np.mgrid[:96, :96]
    image = 50.0 * (np.hypot(x - 40, y - 50) < 30) + 0.2 * x
    noisy = image + 2.5 * np.random.default_rng(0).normal(size=image.shape)
    assert haar_noise(noisy) == pytest.approx(2.5, rel=0.05)
    with pytest.raises(ValueError, match="no noise"):
        haar_noise(np.ones((8, 8)))


def test_only_one_real_volume(fixtures: Any) -> None:
    with pytest.raises(ValueError, match="one real volume"):
        denoising(Volume(np.ones((2, 3, 4, 5))))
    with pytest.raises(ValueError, match="one real volume"):
        denoising(Volume(np.ones((3, 4, 5), complex)))
