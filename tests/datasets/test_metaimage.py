"""MetaImage: the values, axes and affine of the NIfTI file with the same content; headers that cannot be true."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from invdiff import datasets

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "us"


@pytest.mark.parametrize("name", ["MetaImage", "MetaImage, compressed", "MetaImage, two files"])
def test_it_is_the_volume_of_the_nifti_file(tmp_path: Path, fixtures: Any, name: str) -> None:
    (tmp_path / "nifti").mkdir()
    path, nifti = fixtures.all[name][0](tmp_path), fixtures.all["NIfTI"][0](tmp_path / "nifti")
    assert datasets.recognise(path)[0] == "MetaImage"
    v, truth = datasets.open(path), datasets.open(nifti)
    np.testing.assert_array_equal(v.data, truth.data)
    np.testing.assert_allclose(v.affine, truth.affine, atol=1e-5)


@pytest.mark.parametrize("place", ["Offset", "Position", "Origin"])
@pytest.mark.parametrize("turn", ["TransformMatrix", "Rotation", "Orientation"])
def test_all_names_of_a_field_are_read(tmp_path: Path, place: str, turn: str) -> None:
    path = tmp_path / "a.mha"
    path.write_text(
        f"ObjectType = Image\nNDims = 3\n{place} = 10 20 30\n{turn} = 0 1 0 1 0 0 0 0 1\nElementSpacing = 1 2 3\n"
        f"DimSize = 2 3 4\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n{'.' * 24}"
    )
    # the first axis runs along y by 1 mm, the second along x by 2 mm; LPS to RAS turns both signs
    truth = [[0, -2, 0, -10], [-1, 0, 0, -20], [0, 0, 3, 30], [0, 0, 0, 1]]
    np.testing.assert_array_equal(datasets.open(path).affine, truth)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("DimSize = 5 7 9", "DimSize = 5 7 9000000", "truncated, or its header lies"),
        ("DimSize = 5 7 9", "DimSize = 5 7", "contradicts itself"),
        ("MET_SHORT", "MET_SHORT_ARRAY", "expected binary voxels of one channel"),
        ("NDims = 3", "NDims = three", "incomplete or damaged"),
        ("ElementDataFile = LOCAL", "ElementDataFile = ../other.raw", "expected one data file beside it"),
        ("ElementDataFile = LOCAL", "ElementDataFile = other.raw", "not beside it"),
        ("BinaryData = True", "BinaryData = False", "BinaryData = False"),
    ],
)
def test_headers_that_cannot_be_true_are_refused(
    tmp_path: Path, fixtures: Any, old: str, new: str, message: str
) -> None:
    path = fixtures.all["MetaImage"][0](tmp_path)
    content = path.read_bytes()
    assert old.encode() in content
    path.write_bytes(content.replace(old.encode(), new.encode()))
    with pytest.raises((ValueError, OSError), match=message):
        datasets.open(path)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no ultrasound data in {REAL}")
def test_the_sequences_of_the_plus_toolkit() -> None:
    bone, prostate = (datasets.open(REAL / f"plus_{n}") for n in ("bone_bmode.mha", "prostate_bmode.mhd"))
    assert (bone.data.shape, prostate.data.shape) == ((21, 616, 820), (10, 480, 640))
    assert prostate.voxel_size == pytest.approx((0.3, 0.3, 1.0))
