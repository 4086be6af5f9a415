"""Files: written aside and renamed, read without executing anything.

Measurements are HDF5 (operators and noise as named classes with their constructor arguments, looked up in
literal tables); posteriors are safetensors and JSON.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import io
import json
import math
import mmap
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

FORMAT = "invdiff-measurement-1"
HEAP = b"GCOL\x01\0\0\0"  # how a global heap of HDF5 begins
MAX_NUMBERS = 2**20  # in a list that is a constructor argument, such as angles
SMALL, MAX_RATIO = 2**26, 20  # bytes that may always be allocated; uncompressed over stored size beyond that


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary sibling of the file ``path`` that replaces it on success and is removed on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        yield tmp
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)


def require_empty(folder: Path, *, overwrite: bool) -> None:
    """Raise an OSError if ``folder`` holds anything and ``overwrite`` is False, or if nothing can be written there.

    Nothing is left behind: a folder that does not exist is not made, the nearest one above it is tried.
    """
    there = next((f for f in (folder, *folder.parents) if os.path.lexists(f)), folder)
    if not os.path.isdir(there):
        raise NotADirectoryError(f"{there} is a file; the output must be a folder.")
    if there == folder and not overwrite and any(folder.iterdir()):
        raise FileExistsError(f"The folder {folder} is not empty. Choose another, or allow overwriting (--overwrite).")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise OSError(f"Nothing can be written into {folder} ({error.strerror}). Choose another folder.") from None


def known_classes() -> dict[str, type]:
    """Every class that a measurement file may name."""
    from invdiff.noise import NOISES
    from invdiff.operators import OPERATORS, PARAMETERS

    return {**OPERATORS, **PARAMETERS, **NOISES}


def save_measurement(m: Any, path: Path) -> None:
    """Write a :class:`invdiff.Measurement`."""
    if path.suffix != ".h5":
        raise ValueError(f"A measurement file ends in .h5, got {path.name!r}.")
    with atomic_path(path) as tmp, h5py.File(tmp, "w") as f:
        f.attrs["format"] = FORMAT
        f.attrs["precision"] = str(m.A.dtype).removeprefix("torch.")
        f.attrs["image_scale"], f.attrs["units"], f.attrs["item"] = m.image_scale, m.units, m.item
        f.attrs["metadata"] = json.dumps(m.metadata)
        f["y"] = m.y.cpu().numpy()
        if m.reference is not None:
            f["reference"] = m.reference.cpu().numpy()
        _write(f, "operator", m.A)
        _write(f, "noise", m.noise)


def load_measurement(path: Path) -> dict[str, Any]:
    """The constructor arguments of a saved :class:`invdiff.Measurement`."""
    with open_hdf5(path) as f:
        if f.attrs.get("format") != FORMAT:
            raise ValueError(
                f"{path.name} is not a saved Measurement: expected the attribute format={FORMAT!r}, "
                f"got {f.attrs.get('format')!r}. Write such a file with Measurement.save."
            )
        dtype = {"float32": torch.float32, "float64": torch.float64}[f.attrs["precision"]]
        return {
            "y": torch.from_numpy(f["y"][()]),
            "A": _read(f["operator"]).to(dtype=dtype),
            "noise": _read(f["noise"]),
            "image_scale": float(f.attrs["image_scale"]),
            "units": str(f.attrs["units"]),
            "item": str(f.attrs["item"]),
            "metadata": json.loads(f.attrs["metadata"]),
            "reference": torch.from_numpy(f["reference"][()]) if "reference" in f else None,
        }


@contextlib.contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading, after refusing links and storage outside it and sizes it cannot hold.

    Raises:
        FileNotFoundError; OSError: not HDF5, or truncated; ValueError: external or impossible content.
    """
    if not path.is_file():
        raise FileNotFoundError(f"No such file: {path}")
    try:
        f = h5py.File(path, "r")
    except OSError as error:
        raise OSError(
            f"{path.name} is not a readable HDF5 file; it may be truncated or of another kind ({_one_line(error)})."
        ) from None
    with f:
        try:
            _check_hdf5(f, path)
            yield f
        except (KeyError, RuntimeError, UnicodeDecodeError) as error:  # what h5py raises on damage; nothing else does
            raise OSError(f"{path.name} is damaged ({_one_line(error)}).") from error


def _check_hdf5(f: h5py.File, path: Path) -> None:
    """Raise ValueError for links, data kept elsewhere, and datasets larger than the file can hold."""
    size = path.stat().st_size
    _check_heaps(path)
    groups: list[h5py.Group] = [f]
    seen: set[object] = set()
    while groups:
        group = groups.pop()
        if (where := h5py.h5o.get_info(group.id).addr) in seen:
            continue
        seen.add(where)
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ValueError(f"{path.name}: {group.name}/{name} is a link; links are refused.")
            item = group[name]
            if isinstance(item, h5py.Group):
                groups.append(item)
            elif isinstance(item, h5py.Dataset):
                if item.external or item.is_virtual:
                    raise ValueError(f"{path.name}: {item.name} keeps its data in another file; that is refused.")
                if not _sound(item.dtype):
                    raise ValueError(f"{path.name}: the type of {item.name} is damaged: its fields overlap.")
                if item.dtype.hasobject:
                    _check_lists(item, path)
                chunk = math.prod(item.chunks or ()) * item.dtype.itemsize
                stored = min(item.id.get_storage_size(), size)
                check_claim(f"{path.name}: {item.name}", max((item.size or 0) * item.dtype.itemsize, chunk), stored)


def _check_heaps(path: Path) -> None:
    """Raise OSError where the objects of a global heap, which hold text and lists of variable length, do not follow
    each other: HDF5 itself goes round for ever in a free space of size 0.

    A heap is "GCOL", version 1, three zero bytes and its size, then objects: index and references (2 bytes each), four
    bytes, size (8 bytes), content padded to 8; index 0 is the free space, whose size counts its own head."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = content.find(HEAP)
        while start >= 0:
            end = start + int.from_bytes(content[start + 8 : start + 16], "little")
            position = start + 16
            while position + 16 <= min(end, len(content)):
                index = int.from_bytes(content[position : position + 2], "little")
                size = int.from_bytes(content[position + 8 : position + 16], "little")
                position += 16 + -(-size // 8) * 8 if index else size
                if position > end or (not index and not size):
                    break
            if end > len(content) or not end - 16 < position <= end:
                raise OSError(f"{path.name} is damaged: a heap at byte {start} makes no sense.")
            start = content.find(HEAP, start + 8)


def _check_lists(item: h5py.Dataset, path: Path) -> None:
    """Raise OSError where a list of variable length claims more entries than the file has bytes; HDF5 would go through
    them. Each is stored as its length (4 bytes), the address of its heap (8) and its index in it (4)."""
    kind = item.id.get_type()
    if kind.get_class() == h5py.h5t.COMPOUND:
        members = range(kind.get_nmembers())
        offsets = [kind.get_member_offset(i) for i in members if kind.get_member_class(i) == h5py.h5t.VLEN]
    else:
        offsets = [0]
    where: list[tuple[int, int]] = []
    if item.chunks is None:
        where.append((item.id.get_offset() or 0, item.id.get_storage_size()))
    elif item.compression is None and not item.shuffle:
        item.id.chunk_iter(lambda chunk: where.append((chunk.byte_offset, chunk.size)))
    size, step = path.stat().st_size, kind.get_size()
    with path.open("rb") as file:
        for offset, n_bytes in where:
            file.seek(offset)
            raw = np.frombuffer(file.read(min(n_bytes, size) // step * step), np.uint8).reshape(-1, step)
            for at in offsets:
                if len(raw) and int(raw[:, at : at + 4].copy().view("<u4").max()) > size:
                    raise OSError(
                        f"{path.name} is damaged: a list in {item.name} claims more entries than the file holds."
                    )


def _sound(dtype: np.dtype) -> bool:
    """Whether the fields of a compound type lie side by side; HDF5 overruns its buffers where they do not."""
    end = 0
    for part, offset in sorted((field[:2] for field in (dtype.fields or {}).values()), key=lambda field: field[1]):
        if offset < end or not _sound(part.base):
            return False
        end = offset + part.itemsize
    return end <= dtype.itemsize


def check_claim(what: str, claimed: int, stored: int) -> None:
    """Refuse data that claim to be far larger than what is stored: a lying header, or a decompression bomb.

    Args:
        what: to name in the message.
        claimed: bytes after decompression, by the header.
        stored: bytes in the file.

    Raises:
        ValueError: ``claimed`` is above 64 MiB and above 20 times ``stored``, more than images compress.
    """
    if claimed > max(SMALL, MAX_RATIO * stored):
        raise ValueError(
            f"{what} claims {claimed} bytes, more than the file can hold: {stored} bytes are stored. If you trust "
            f"the file, store it uncompressed."
        )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _write(group: h5py.Group, name: str, value: Any) -> None:
    """One constructor argument: a tensor, a number, text, a list of numbers, None or a named object."""
    if isinstance(value, Tensor):
        group.create_dataset(name, data=value.cpu().numpy()).attrs["class"] = "tensor"
    elif value is None or isinstance(value, bool | int | float | str):
        group.attrs[name] = json.dumps(value)
    elif isinstance(value, complex):
        group.attrs[name] = json.dumps({"re": value.real, "im": value.imag})
    elif isinstance(value, tuple | list) and np.asarray(value).dtype.kind in "if":  # one number, or rows of numbers
        group.create_dataset(name, data=np.asarray(value))
    elif type(value).__name__ in known_classes():
        child = group.create_group(name)
        child.attrs["class"] = type(value).__name__
        arguments = (
            {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            if dataclasses.is_dataclass(value)
            else value.init_args()
        )
        for key, argument in arguments.items():
            _write(child, key, argument)
    else:
        raise TypeError(
            f"Cannot save {type(value).__name__} ({name}): it is not in invdiff's table of known classes. "
            "Save y and what the operator is built from, and build it again."
        )


def _read(group: h5py.Group) -> Any:
    name = group.attrs["class"]
    cls = known_classes().get(name)
    if cls is None:
        raise ValueError(f"The file names the unknown class {name!r}; known: {', '.join(sorted(known_classes()))}.")
    tuples = dataclasses.is_dataclass(cls)
    arguments: dict[str, Any] = {}
    for key, value in group.attrs.items():
        if key != "class":
            parsed = json.loads(value)
            arguments[key] = complex(parsed["re"], parsed["im"]) if isinstance(parsed, dict) else parsed
    for key, value in group.items():
        if isinstance(value, h5py.Group):
            arguments[key] = _read(value)
        else:
            array = np.asarray(value[()])
            numbers = value.attrs.get("class") != "tensor" and (tuples or array.dtype == np.int64)
            if numbers and array.size > MAX_NUMBERS:
                raise ValueError(
                    f"The file lists {array.size} numbers for {name}.{key}; expected {MAX_NUMBERS} at most."
                )
            arguments[key] = tuple(array.tolist()) if numbers else torch.from_numpy(array)
    return cls(**arguments)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file, written like any other: a full disk is an OSError, the mode follows the umask.

    safetensors' own writer has an exception of its own for the former, and makes files that only their owner reads.
    The file is in memory once more while it is written.
    """
    from safetensors.torch import save

    own = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    path.write_bytes(save(own, metadata=None if metadata is None else dict(metadata)))


def save_posterior(p: Any, folder: Path, *, overwrite: bool) -> None:
    """Write a :class:`invdiff.Posterior`."""
    require_empty(folder, overwrite=overwrite)
    arrays = {"samples": p.samples, "mean": p.mean}
    if p.n_samples > 1:
        arrays["std"] = p.std
    record = json.dumps({f.name: getattr(p, f.name) for f in dataclasses.fields(p) if f.name != "samples"}, indent=2)
    with atomic_path(folder / "posterior.safetensors") as tmp:
        write_tensors(tmp, arrays, {"invdiff": record})
    with atomic_path(folder / "posterior.json") as tmp:
        tmp.write_text(record + "\n")


def load_posterior(folder: Path) -> dict[str, Any]:
    """The constructor arguments of a saved :class:`invdiff.Posterior`."""
    from safetensors import SafetensorError, safe_open

    path = folder / "posterior.safetensors"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no posterior.safetensors; expected a folder written by Posterior.save."
        )
    try:
        with safe_open(path, "pt") as f:
            return {"samples": f.get_tensor("samples"), **json.loads(f.metadata()["invdiff"])}
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"{path} was not written by Posterior.save, or is truncated ({error}).") from None


def export_posterior(p: Any, path: Path, *, overwrite: bool) -> list[Path]:
    """Write a :class:`invdiff.Posterior` for other programs; see :meth:`invdiff.Posterior.export`."""
    name = path.name.lower()
    if name.endswith((".dcm", ".dicom")) or path.name == "DICOMDIR":
        raise ValueError(
            "DICOM is not written: means and samples of a posterior are no acquired images, and in an archive they "
            "would pass for some. Write NIfTI (.nii.gz), which carries the same affine."
        )
    ending = next((e for e in EXPORTS if name.endswith(e) and len(name) > len(e)), None)
    if ending is None:
        raise ValueError(f"A posterior is exported to {', '.join(EXPORTS)}, got {path.name!r}.")
    contents = EXPORTS[ending](p, path.name[: -len(ending)], ending)
    if not overwrite:
        for file in contents:
            if (path.parent / file).exists():
                raise FileExistsError(f"{path.parent / file} exists. Choose another name, or allow overwriting.")
    for file, content in contents.items():
        with atomic_path(path.parent / file) as tmp:
            tmp.write_bytes(content)
    return [path.parent / file for file in contents]


def _export_nifti(p: Any, stem: str, suffix: str) -> dict[str, bytes]:
    """Mean, standard deviation and samples, each an image and its JSON sidecar, by file name."""
    import nibabel

    affine = posterior_affine(p)
    images = {"mean": ("Posterior mean", p.mean[None])}
    if p.n_samples > 1:
        images["std"] = ("Posterior standard deviation of every voxel", p.std[None])
        images["samples"] = ("Posterior samples, along the fourth dimension", p.samples)
    files: dict[str, bytes] = {}
    for desc, (description, x) in images.items():
        n, channels, *space = x.shape
        dtype = torch.complex64 if x.is_complex() else torch.float32
        voxels = x.detach().to("cpu", dtype).resolve_conj().numpy().reshape(n, channels, -1, *space[-2:])
        voxels = voxels.transpose(4, 3, 2, 0, 1)  # x, y, z, sample, channel
        while voxels.ndim > 3 and voxels.shape[-1] == 1:
            voxels = voxels[..., 0]
        image = nibabel.Nifti1Image(voxels, affine)
        image.header.set_xyzt_units("mm")
        image.header["descrip"] = b"invdiff: " + description.encode()
        content = image.to_bytes()
        files[f"{stem}_desc-{desc}_image{suffix}"] = (
            gzip.compress(content, mtime=0) if suffix.endswith("gz") else content
        )
        sidecar = {
            "Description": f"{description} of an image, inferred from a measurement; not an acquired image.",
            "Units": p.units, "Algorithm": p.algorithm, "Prior": p.prior, "Seed": p.seed, "Item": p.item,
            "NumberOfSamples": p.n_samples, "Metadata": p.metadata,
        }  # fmt: skip
        files[f"{stem}_desc-{desc}_image.json"] = (json.dumps(sidecar, indent=2) + "\n").encode()
    return files


def posterior_affine(p: Any) -> np.ndarray:
    """The 4 x 4 affine from the index (x, y, z) to mm: the metadata's "affine"; else a grid centred on the origin, row
    0 at the largest y, with the metadata's "voxel_size_mm" (x, y, z), or "pixel_size_mm", or "pixel_size_x_mm" and
    "pixel_size_y_mm", or voxels of 1 mm."""
    given = p.metadata.get("affine")
    if given is not None:
        affine = np.asarray(given, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise ValueError(f"The metadata's affine must be 4 x 4 finite numbers, got {given!r}.")
        return affine
    size = np.ones(3)
    sides = tuple(p.metadata.get(f"pixel_size_{axis}_mm", 1.0) for axis in "xy")
    known = p.metadata.get("voxel_size_mm", p.metadata.get("pixel_size_mm", sides))
    if not isinstance(known, str):
        size[: 3 if np.size(known) == 3 else 2] = known
    sign = np.array([1.0, -1.0, 1.0])
    shape = np.array([*p.samples.shape[:1:-1], 1])[:3]
    affine = np.diag([*(size * sign), 1.0])
    affine[:3, 3] = -(shape - 1) / 2 * size * sign
    return affine


def _export_hdf5(p: Any, stem: str, suffix: str) -> dict[str, bytes]:
    """As :func:`invdiff.datasets.fastmri.write_fastmri` writes it: mean, standard deviation and samples."""
    from tempfile import TemporaryDirectory

    from invdiff.datasets.fastmri import write_fastmri

    with TemporaryDirectory() as folder:
        write_fastmri(p, file := Path(folder) / "posterior.h5")
        return {f"{stem}{suffix}": file.read_bytes()}


def _export_figure(p: Any, stem: str, suffix: str) -> dict[str, bytes]:
    from invdiff.plot import Row, panels

    stream = io.BytesIO()
    figure, _ = panels([Row(title=p.item, posterior=p)])
    figure.savefig(stream, format="png")
    return {f"{stem}{suffix}": stream.getvalue()}


EXPORTS: dict[str, Callable[[Any, str, str], dict[str, bytes]]] = {
    ".nii.gz": _export_nifti,
    ".nii": _export_nifti,
    ".h5": _export_hdf5,
    ".png": _export_figure,
}
