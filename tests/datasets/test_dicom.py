"""DICOM series: order, Hounsfield units and affine; series that are not one volume."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from invdiff import datasets


def test_slices_are_ordered_by_position_and_rescaled(tmp_path: Path, fixtures: Any) -> None:
    v = datasets.open(fixtures.dicom(tmp_path))
    stored = np.random.default_rng(1).integers(0, 2000, (4, 6, 8))
    np.testing.assert_array_equal(v.data, 2 * stored - 1024)
    assert (v.units, v.metadata["KVP"], v.metadata["Modality"]) == ("HU", 120, "CT")
    assert "Secret" not in str(v.metadata)
    # The affine maps an index (column, row, slice) to the position that the standard's equation C.7.6.2.1-1 gives.
    row, column = np.array([np.cos(0.3), np.sin(0.3), 0]), np.array([-np.sin(0.3), np.cos(0.3), 0])
    lps = np.array([-50.0, -40.0, 10 + 2.5 * 3]) + row * 0.9 * 7 + column * 0.7 * 5
    np.testing.assert_allclose((v.affine @ [7, 5, 3, 1])[:3], lps * [-1, -1, 1], atol=1e-9)
    assert v.voxel_size == pytest.approx((0.9, 0.7, 2.5))


@pytest.mark.filterwarnings("ignore:The DICOM readers are highly experimental")
def test_a_single_file_agrees_with_nibabel_and_pydicom(tmp_path: Path) -> None:
    from nibabel.nicom.dicomwrappers import wrapper_from_file

    path = get_testdata_file("CT_small.dcm", download=False)
    shutil.copy(path, tmp_path / "image")
    v = datasets.open(tmp_path / "image")
    ds = pydicom.dcmread(path)
    np.testing.assert_array_equal(v.data[0], ds.pixel_array * ds.RescaleSlope + ds.RescaleIntercept)
    lps = wrapper_from_file(path).affine  # its array is (row, column), ours (x, y) = (column, row)
    np.testing.assert_allclose((np.diag([-1, -1, 1, 1]) @ lps)[:, [1, 0, 3]], v.affine[:, [0, 1, 3]], atol=1e-6)


def edit(name: str, **attributes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        ds = pydicom.dcmread(folder / f"{name}.dcm")
        for key, value in attributes.items():
            if value is None:
                delattr(ds, key)
            else:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of pydicom, about values that break the standard
                    setattr(ds, key, value)
        ds.save_as(folder / f"{name}.dcm", enforce_file_format=True)

    return change


def compress(folder: Path) -> None:
    ds = pydicom.dcmread(folder / "a.dcm")
    ds.compress(pydicom.uid.RLELossless)
    ds.save_as(folder / "a.dcm", enforce_file_format=True)


def cut(folder: Path) -> None:
    content = (folder / "a.dcm").read_bytes()
    (folder / "a.dcm").write_bytes(content[:-20])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit("a", SeriesInstanceUID="1.2.9"), "2 series; choose one"),
        (lambda folder: (folder / "a.dcm").unlink(), "a slice is missing between 10 and 15 mm"),
        (lambda folder: shutil.copy(folder / "a.dcm", folder / "e.dcm"), "share the position"),
        (compress, "compressed.*RLE"),
        (cut, "truncated"),
        (edit("a", ImageOrientationPatient=[1, 0, 0, 0, 1, 0]), "differ in ImageOrientationPatient"),
        (edit("a", PixelSpacing=[1, 1]), "differ in PixelSpacing"),
        (edit("a", Rows=5), "agree in Rows"),
        (edit("a", ImagePositionPatient=None), "ImagePositionPatient must hold 3"),
        (edit("a", NumberOfFrames=3), "several frames"),
        (edit("a", SamplesPerPixel=3), "colour"),
        (edit("a", RescaleSlope="inf"), "RescaleSlope must be a finite number"),
        (edit("c", Modality=None), "is not an image"),
    ],
)
def test_refuses_what_is_no_volume(tmp_path: Path, fixtures: Any, change: Callable[[Path], Any], message: str) -> None:
    folder = fixtures.dicom(tmp_path)
    change(folder)
    with pytest.raises((ValueError, OSError), match=message):
        datasets.open(folder)


def test_one_of_several_series_is_chosen(tmp_path: Path, fixtures: Any) -> None:
    folder = fixtures.dicom(tmp_path)
    edit("a", SeriesInstanceUID="1.2.9")(folder)
    assert datasets.open(folder, series="2.9").data.shape == (1, 6, 8)
    with pytest.raises(ValueError, match="0 series end in"):
        datasets.open(folder, series="7")
