"""NIfTI volumes: values, axes and affine as nibabel reads them; headers that cannot be true."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from invdiff import datasets


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_values_axes_and_affine_agree_with_nibabel(tmp_path: Path, fixtures: Any, name: str, kind: type) -> None:
    image = kind(fixtures.volume(), fixtures.affine)
    image.header.set_slope_inter(0.5, -3.0)
    nibabel.save(image, tmp_path / name)
    (tmp_path / name).rename(tmp_path / "renamed")
    v = datasets.open(tmp_path / "renamed")
    nibabel_name = tmp_path / name
    (tmp_path / "renamed").rename(nibabel_name)
    truth = nibabel.load(nibabel_name)
    np.testing.assert_allclose(v.data.transpose(2, 1, 0), truth.get_fdata(), rtol=1e-6)
    np.testing.assert_allclose(v.affine, truth.affine)
    np.testing.assert_allclose(v.voxel_size, truth.header.get_zooms(), rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "expected"), [((4, 3), (1, 3, 4)), ((4, 3, 2, 1), (2, 3, 4)), ((4, 3, 2, 5), (5, 2, 3, 4))]
)
def test_dimensions_are_reversed_and_trailing_ones_dropped(tmp_path: Path, shape: Any, expected: Any) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros(shape, np.float32), np.eye(4)), tmp_path / "v.nii")
    assert datasets.open(tmp_path / "v.nii").data.shape == expected


def test_metres_and_microns_become_millimetres(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.float32), np.diag([250.0, 250, 500, 1]))
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / "v.nii")
    assert datasets.open(tmp_path / "v.nii").voxel_size == pytest.approx((0.25, 0.25, 0.5))


def test_non_finite_voxels_are_an_error_or_filled(tmp_path: Path) -> None:
    data = np.ones((3, 3, 3), np.float32)
    data[1, 1, 1], data[0, 0, 0] = np.nan, np.inf
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), tmp_path / "v.nii")
    with pytest.raises(ValueError, match="2 non-finite"):
        datasets.open(tmp_path / "v.nii")
    v = datasets.open(tmp_path / "v.nii", fill=-1.0)
    assert v.data.min() == -1
    assert v.data.sum() == 25 - 2


def test_headers_that_lie_are_refused(tmp_path: Path, fixtures: Any) -> None:
    path = fixtures.nifti(tmp_path)
    whole = path.read_bytes()

    def attempt(change: bytes, at: int, message: str, kind: type[Exception], *, compress: bool = False) -> None:
        content = whole[:at] + change + whole[at + len(change) :]
        (tmp_path / "x").write_bytes(gzip.compress(content) if compress else content)
        with pytest.raises(kind, match=message):
            datasets.open(tmp_path / "x")

    huge = np.array([3, 30000, 30000, 30000], "<i2").tobytes()
    attempt(huge, 40, "truncated, or its header lies", OSError)
    attempt(huge, 40, "more than the file can hold", ValueError, compress=True)
    attempt(np.array([3, 9, 7, 6], "<i2").tobytes(), 40, "truncated", OSError, compress=True)
    attempt(np.array([3, 9, -7, 5], "<i2").tobytes(), 40, "makes no sense|positive sizes", ValueError)
    attempt(np.array([128], "<i2").tobytes(), 70, "colours", ValueError)  # RGB24
    attempt(b"ni1\0", 344, "pair", ValueError)
    attempt(np.array([np.nan], "<f4").tobytes(), 280, "not finite", ValueError)  # srow_x
    attempt(np.array([4.0], "<f4").tobytes(), 108, "inside itself", ValueError)  # vox_offset
