"""datasets.open: recognised by content, options checked, hostile HDF5 refused."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from invdiff import GaussianNoise, Measurement, datasets
from invdiff.datasets.hdf5 import array, open_hdf5
from invdiff.operators import Identity


def test_a_saved_measurement_is_recognised_by_content(tmp_path: Path) -> None:
    m = Measurement(torch.ones(1, 4, 4), Identity((1, 4, 4)), GaussianNoise(0.1), item="x")
    m.save(tmp_path / "m.h5")
    (tmp_path / "m.h5").rename(tmp_path / "renamed.bin")
    again = datasets.open(tmp_path / "renamed.bin")
    assert isinstance(again, Measurement)
    assert torch.equal(again.y, m.y)
    with pytest.raises(TypeError, match="no option views"):
        datasets.open(tmp_path / "renamed.bin", views=3)


def test_unknown_content_names_what_is_known(tmp_path: Path) -> None:
    (tmp_path / "m.h5").write_bytes(b"not a file of any kind")
    with pytest.raises(ValueError, match="no known format.*HTC 2022"):
        datasets.open(tmp_path / "m.h5")
    with h5py.File(tmp_path / "other.h5", "w") as f:
        f["some/thing"] = 1.0
    with pytest.raises(ValueError, match="some/thing"):
        datasets.open(tmp_path / "other.h5")
    with pytest.raises(FileNotFoundError):
        datasets.open(tmp_path / "nothing")


def test_arrays_are_checked_before_they_are_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as f:
        f["x"] = np.ones((2, 3))
        f["bad"] = np.array([1.0, np.nan])
        f["text"] = "hello"
        f["pair"] = np.array([(1.0, 2.0)], dtype=[("r", "f4"), ("i", "f4")])
        f.create_dataset("huge", shape=(1 << 33,), chunks=(1 << 20,), dtype="f8")
    with pytest.raises(ValueError, match="more than the file can hold"), open_hdf5(tmp_path / "a.h5"):
        pass
    with h5py.File(tmp_path / "a.h5", "r+") as f:
        del f["huge"]
    with open_hdf5(tmp_path / "a.h5") as f:
        assert array(f, "x", ndim=2, where=np.s_[0]).shape == (3,)
        assert array(f, "pair", kinds="c")[0] == 1 + 2j
        for key, kwargs, message in (
            ("y", {}, "no dataset"), ("x", {"ndim": 3}, "must have 3 dimensions"), ("text", {}, "must hold numbers"),
            ("bad", {}, "1 non-finite"), ("pair", {}, "must hold numbers"),
        ):  # fmt: skip
            with pytest.raises(ValueError, match=message):
                array(f, key, **kwargs)


def test_a_compound_type_with_overlapping_fields_is_refused(tmp_path: Path) -> None:
    """As a damaged file may hold; reading one corrupts memory inside HDF5, so the check must come before."""
    from invdiff.storage import _sound

    def compound(offsets: list[int], itemsize: int, formats: tuple = ("<f8", "<f4")) -> np.dtype:
        return np.dtype({"names": ["r", "i"], "formats": list(formats), "offsets": offsets, "itemsize": itemsize})

    assert _sound(np.dtype("f4"))
    assert _sound(compound([0, 8], 12))
    assert _sound(compound([4, 0], 16, ("<f8", "<f4")))
    assert not _sound(compound([0, 4], 12))
    nested = np.dtype([("a", "i4"), ("b", compound([0, 4], 12), (2,))])
    assert not _sound(nested)


@pytest.mark.parametrize("damage", ["free space of size 0", "list of four billion entries"])
def test_damage_that_hangs_hdf5_is_refused_first(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "lists.h5"
    with h5py.File(path, "w") as f:
        lists = f.create_dataset("lists", (3,), h5py.vlen_dtype(np.float32), chunks=(1,))
        for i in range(3):
            lists[i] = np.arange(5 + i)
    with open_hdf5(path) as f:
        assert f["lists"][2].sum() == 21
        where = f["lists"].id.get_chunk_info(1).byte_offset
    content = bytearray(path.read_bytes())
    if damage.startswith("list"):
        content[where : where + 4] = b"\xff" * 4
    else:
        at = content.index(b"GCOL") + 16
        while content[at] or content[at + 1]:  # objects, until the free space, whose index is 0
            at += 16 + -(-int.from_bytes(content[at + 8 : at + 16], "little") // 8) * 8
        content[at + 8 : at + 16] = bytes(8)
    path.write_bytes(content)
    with pytest.raises(OSError, match="makes no sense|claims more entries"), open_hdf5(path) as f:
        f["lists"][2]


@pytest.mark.parametrize(
    ("name", "option", "value", "expected"),
    [
        ("HTC 2022", "linearise", "no", "true or false, got 'no'"),
        ("HTC 2022", "linearise", 0, "true or false, got 0"),
        ("HTC 2022", "image_shape", [1, 2, 3], "2 whole numbers"),
        ("HTC 2022", "image_shape", [1.5, 2.5], "2 whole numbers"),
        ("HTC 2022", "image_shape", 128, "2 whole numbers"),
        ("HTC 2022", "image_scale", math.inf, "a finite number, got inf"),
        ("HTC 2022", "views", True, "a whole number, got True"),
        ("HTC 2022", "angles", "", "2 finite numbers"),
        ("Data Exchange", "centre", "abc", "a finite number, got 'abc'"),
        ("Data Exchange", "angles", [0, math.nan], "2 finite numbers"),
        ("zea", "angles", [0.5], "a whole number or a list of whole numbers"),
        ("NIfTI", "fill", "abc", "a finite number"),
        ("NIfTI", "index", "abc", "a whole number"),
        ("DICOM", "series", 2.9, "text"),
        ("fastMRI", "mask", 3, "numpy.ndarray or torch.Tensor, got 3"),
    ],
)
def test_an_option_of_the_wrong_kind_is_refused(
    tmp_path: Path, fixtures: Any, name: str, option: str, value: Any, expected: str
) -> None:
    path = fixtures.all[name][0](tmp_path)
    with pytest.raises(TypeError, match=f"^The option {option} must be {re.escape(expected)}"):
        datasets.open_measurement(path, **{option: value})


def test_numbers_of_numpy_are_numbers(tmp_path: Path, fixtures: Any) -> None:
    path = fixtures.all["HTC 2022"][0](tmp_path)
    options: dict[str, Any] = {"views": np.int64(6), "linearise": np.bool_(True), "image_shape": np.array([16, 16])}
    m = datasets.open(path, pixel_size=np.float32(3), image_scale=1, angles=[0, 180], **options)
    assert isinstance(m, Measurement)
    assert m.A.in_shape == (1, 16, 16)
    assert m.y.shape[1] == 6


def test_options_with_none_for_the_default(tmp_path: Path, fixtures: Any) -> None:
    for name, option in (("HTC 2022", "views"), ("NIfTI", "fill"), ("DICOM", "series")):
        write, options = fixtures.all[name]
        (tmp_path / name).mkdir()
        path = write(tmp_path / name)
        given, left = (datasets.open(path, **chosen, **options) for chosen in ({option: None}, {}))
        if isinstance(left, Measurement):
            assert isinstance(given, Measurement)
            torch.testing.assert_close(given.y, left.y, rtol=0, atol=0)
        else:
            np.testing.assert_array_equal(given.data, left.data)
