"""Files: written aside and renamed, read without executing anything.

Measurements are HDF5 (operators and noise as named classes with their constructor arguments, looked up in
literal tables); posteriors are safetensors and JSON.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

FORMAT = "invdiff-measurement-1"
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
    """Raise FileExistsError if ``folder`` holds anything and ``overwrite`` is False."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; the output must be a folder.")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise FileExistsError(f"The folder {folder} is not empty. Choose another, or allow overwriting (--overwrite).")


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
        except (KeyError, RuntimeError) as error:  # what h5py raises on damage; nothing else here does
            raise OSError(f"{path.name} is damaged ({_one_line(error)}).") from error


def _check_hdf5(f: h5py.File, path: Path) -> None:
    """Raise ValueError for links, data kept elsewhere, and datasets larger than the file can hold."""
    size = path.stat().st_size
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
                chunk = math.prod(item.chunks or ()) * item.dtype.itemsize
                stored = min(item.id.get_storage_size(), size)
                check_claim(f"{path.name}: {item.name}", max((item.size or 0) * item.dtype.itemsize, chunk), stored)


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
            arguments[key] = tuple(array.tolist()) if numbers else torch.from_numpy(array)
    return cls(**arguments)


def save_posterior(p: Any, folder: Path, *, overwrite: bool) -> None:
    """Write a :class:`invdiff.Posterior`."""
    from safetensors.torch import save_file

    require_empty(folder, overwrite=overwrite)
    arrays = {"samples": p.samples, "mean": p.mean}
    if p.n_samples > 1:
        arrays["std"] = p.std
    record = json.dumps({f.name: getattr(p, f.name) for f in dataclasses.fields(p) if f.name != "samples"}, indent=2)
    with atomic_path(folder / "posterior.safetensors") as tmp:
        save_file({k: v.detach().cpu().contiguous() for k, v in arrays.items()}, tmp, metadata={"invdiff": record})
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
