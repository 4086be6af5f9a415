"""Damaged and hostile files of every format: one clear line, no allocation beyond the file's own size, no crash.

Whatever is done to a file, ``datasets.open`` either raises ValueError or OSError with one line, or returns finite data.
"""

from __future__ import annotations

import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from invdiff import Measurement, datasets

File = tuple[str, Path, dict[str, Any]]
MB = 2**20


def attempt(path: Path, options: dict[str, Any], n_bytes: int) -> Measurement | datasets.Volume | Exception:
    """Open the file; what it gives, or the error, after both were checked."""
    tracemalloc.start()
    try:
        result: Any = datasets.open(path, **options)
    except (ValueError, OSError) as error:
        result = error
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    text = str(result)[:1000]
    assert peak < max(64 * MB, 20 * n_bytes), f"{peak / MB:.0f} MB for a file of {n_bytes} bytes: {text}"
    if isinstance(result, Exception):
        assert 10 < len(str(result)) < 1000, text
        assert "\n" not in text, text
    if isinstance(result, Measurement):
        assert torch.isfinite(torch.view_as_real(result.y) if result.y.is_complex() else result.y).all()
    elif isinstance(result, datasets.Volume):
        assert np.isfinite(result.data).all()
        assert result.affine is None or np.isfinite(result.affine).all()
    return result


def members(path: Path) -> list[Path]:
    """The files that make up one fixture: itself, one of a folder, and what lies beside it with the same stem."""
    if path.is_dir():
        return sorted(path.glob("*.dcm"))[:1]
    return sorted(p for p in path.parent.iterdir() if p.is_file() and p.stem == path.stem)


def size(path: Path) -> int:
    return sum(p.stat().st_size for p in (path.iterdir() if path.is_dir() else members(path)))


def test_every_format_is_here(fixtures: Any) -> None:
    assert {name.split(",")[0] for name in fixtures.all} == set(datasets.formats())


def test_the_fixtures_read(format_file: File) -> None:
    _, path, options = format_file
    assert not isinstance(attempt(path, options, size(path)), Exception)


def test_truncated_files_are_refused(format_file: File) -> None:
    _, path, options = format_file
    n_bytes = size(path)
    for file in members(path):
        whole = file.read_bytes()
        if file.suffix in (".toml", ".hdr", ".mhd"):
            continue  # text: its beginning may be a complete description: see the mutations below
        for length in (0, 1, 9, 130, 400, len(whole) // 4, len(whole) // 2, len(whole) - 1):
            if length < len(whole):
                file.write_bytes(whole[:length])
                result = attempt(path, options, n_bytes)
                # a series of images may do without a file that is no longer recognised as one of them
                if not path.is_dir():
                    assert isinstance(result, Exception), f"{file.name} cut to {length} bytes was read"
        file.write_bytes(whole)


def flips(whole: bytes, seed: int) -> bytes:
    """One to eight bytes replaced, half of them in the first kilobyte, where headers are."""
    rng = np.random.default_rng(seed)
    damaged = bytearray(whole)
    for _ in range(int(rng.integers(1, 9))):
        limit = min(1024, len(whole)) if rng.random() < 0.5 else len(whole)
        damaged[int(rng.integers(limit))] = int(rng.integers(256))
    return bytes(damaged)


def insertions(whole: bytes, seed: int) -> bytes:
    """A stretch cut out, repeated or zeroed."""
    rng = np.random.default_rng(seed)
    start, n = int(rng.integers(len(whole))), int(rng.integers(1, 200))
    middle = (b"", whole[start : start + n] * 2, bytes(n), b"\xff" * n)[seed % 4]
    return whole[:start] + middle + whole[start + n :]


@pytest.mark.parametrize("mutate", [flips, insertions])
@pytest.mark.parametrize("seeds", [range(4), pytest.param(range(4, 54), marks=pytest.mark.slow)], ids=["few", "many"])
def test_random_damage(format_file: File, mutate: Callable[[bytes, int], bytes], seeds: range) -> None:
    _, path, options = format_file
    for file in members(path):
        whole = file.read_bytes()
        for seed in seeds:
            file.write_bytes(mutate(whole, seed))
            attempt(path, options, size(path))
        file.write_bytes(whole)


def test_files_of_another_kind_under_this_name(format_file: File) -> None:
    _, path, options = format_file
    for file in members(path)[:1]:
        for content in (b"", b"\0" * 5000, b"\x89HDF\r\n\x1a\n" + bytes(500), b"MATLAB 5.0" + bytes(500), b"\x80\x04."):
            file.write_bytes(content)
            result = attempt(path, options, 5000)
            assert isinstance(result, Exception) or path.is_dir()


HDF5 = (
    "invdiff measurement", "LoDoPaB-CT", "Data Exchange",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("PICMUS", "zea", "UFF (USTB)", "fastMRI", "ISMRMRD")),
)  # fmt: skip


def datasets_of(path: Path) -> list[str]:
    names: list[str] = []
    with h5py.File(path, "r") as f:
        f.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    return names


def replacements(path: Path, key: str) -> dict[str, Callable[[h5py.File], None]]:
    """What a hostile or careless writer could put in the place of one dataset."""
    with h5py.File(path, "r") as f:
        shape, dtype = f[key].shape, f[key].dtype

    def put(value: Any) -> Callable[[h5py.File], None]:
        return lambda f: f.__setitem__(key, value)

    def huge(f: h5py.File) -> None:
        f.create_dataset(key, shape=(69 * 2**30 // dtype.itemsize,), dtype=dtype, chunks=(1024,))

    def huge_like(f: h5py.File) -> None:
        f.create_dataset(key, shape=(3 * 2**20, *(max(n, 64) for n in shape[1:])), dtype=dtype, chunks=True)

    def huge_chunk(f: h5py.File) -> None:
        f.create_dataset(key, shape=(4,), maxshape=(None,), dtype="f8", chunks=(2**28,))

    def bomb(f: h5py.File) -> None:
        item = f.create_dataset(key, shape=(96, 2**20), dtype="u1", chunks=(1, 2**20), compression=1)
        item[:] = 0

    def virtual(f: h5py.File) -> None:
        layout = h5py.VirtualLayout(shape=shape or (1,), dtype=dtype)
        layout[...] = h5py.VirtualSource("/etc/hostname", "x", shape=shape or (1,))
        f.create_virtual_dataset(key, layout)

    def external(f: h5py.File) -> None:
        f.create_dataset(key, shape, dtype, external=[("/etc/hostname", 0, h5py.h5f.UNLIMITED)])

    def loop(f: h5py.File) -> None:
        f[key] = f["/"]

    return {
        "missing": lambda f: None,
        "text": put("hello"),
        "texts": put(np.array([b"a", b"b"])),
        "complex": put(np.ones(shape or (1,), complex)),
        "empty": put(np.ones((0,))),
        "no space": put(h5py.Empty("f4")),
        "scalar": put(1.0),
        "five dimensions": put(np.ones((1, 2, 1, 2, 1))),
        "other shape": put(np.ones((3, *shape))),
        "nan": put(np.full(shape, np.nan)),
        "inf": put(np.full(shape, np.inf)),
        "largest": put(np.full(shape, 1.7e308)),
        "integers": put(np.full(shape, 2**62)),
        "bool": put(np.ones(shape, bool)),
        "compound": put(np.zeros(shape or (1,), dtype=[("r", "f4"), ("i", "f4"), ("z", "S3")])),
        "group": lambda f: f.create_group(key),
        "69 GB": huge,
        "huge, right dimensions": huge_like,
        "huge chunk": huge_chunk,
        "zip bomb": bomb,
        "external link": put(h5py.ExternalLink("/etc/hostname", "/x")),
        "soft link": put(h5py.SoftLink("/nowhere")),
        "external data": external,
        "virtual": virtual,
        "loop": loop,
    }


@pytest.mark.parametrize("name", HDF5)
def test_hdf5_datasets_replaced_by_something_else(name: str, fixtures: Any, tmp_path: Path) -> None:
    write, options = fixtures.all[name]
    original = write(tmp_path)
    for key in datasets_of(original):
        for what, replace in replacements(original, key).items():
            (folder := tmp_path / "x").mkdir(exist_ok=True)
            shutil.copy(original, folder / "x.h5")
            with h5py.File(folder / "x.h5", "r+") as f:
                del f[key]
                replace(f)
            result = attempt(folder / "x.h5", options, (folder / "x.h5").stat().st_size)
            if any(word in what for word in ("69 GB", "huge chunk", "bomb", "link", "external", "virtual")):
                assert isinstance(result, Exception), f"{key} replaced by {what} was read"


@pytest.mark.parametrize("name", HDF5)
def test_a_small_file_that_claims_69_gigabytes(name: str, fixtures: Any, tmp_path: Path) -> None:
    write, options = fixtures.all[name]
    keys = datasets_of(original := write(tmp_path))
    with h5py.File(original, "r") as old, h5py.File(tmp_path / "small", "w") as f:
        f.attrs.update(old.attrs)
        for key in keys:
            f.create_dataset(key, shape=(2**27, *old[key].shape[1:]), chunks=True, dtype="f4")
        f.create_dataset("more", shape=(69 * 2**30,), dtype="u1", chunks=(1024,))
    assert (tmp_path / "small").stat().st_size < 20_000
    result = attempt(tmp_path / "small", options, 2000)
    assert isinstance(result, ValueError)
    assert any(text in str(result) for text in ("more than the file can hold", "no known format"))
