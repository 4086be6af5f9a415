"""MATLAB 5 files (.mat), checked before anything is allocated."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io

from invdiff.datasets.files import Head

MAX_BYTES = 2**30  # of one variable, uncompressed


def variables(head: Head) -> set[str] | None:
    """Names of the variables of a MATLAB 5 file; None if it is not one, empty if it is damaged."""
    if not head.start.startswith(b"MATLAB 5.0"):
        return None
    try:
        return {name for name, _, _ in scipy.io.whosmat(head.path)}
    except Exception:
        return set()


def load(path: Path, names: Iterable[str], *, remedy: str) -> dict[str, Any]:
    """Those of the variables ``names`` that the file has; structs are dictionaries.

    Args:
        remedy: one sentence that ends every message, saying which file was expected.

    Raises:
        FileNotFoundError, ValueError: not such a file, truncated, damaged, or declaring more than it may hold.
    """
    _check_file(path, remedy)
    try:
        there = [name for name, _, _ in scipy.io.whosmat(path)]
        found = [name for name in names if name in there]
        if not found:
            raise ValueError(f"{path.name} has no variable {' or '.join(names)}; it has {there}. {remedy}")
        data = scipy.io.loadmat(path, variable_names=found, simplify_cells=True)
        return {name: data[name] for name in found}
    except (OSError, TypeError, KeyError, IndexError, NotImplementedError, MemoryError, zlib.error) as error:
        raise ValueError(f"{path.name} cannot be read as a MATLAB 5 file ({error}). {remedy}") from error


def field(container: Any, key: str, where: str, path: Path, remedy: str) -> Any:
    """A field of a struct, or ValueError."""
    if not isinstance(container, dict) or key not in container:
        has = sorted(container) if isinstance(container, dict) else type(container).__name__
        raise ValueError(f"{path.name}: {where} has no field '{key}' (it has {has}). {remedy}")
    return container[key]


def numbers(value: Any, name: str, path: Path) -> np.ndarray:
    """Finite real numbers as float64, or ValueError."""
    value = np.asarray(value)
    if value.dtype.kind not in "fiu" or not np.isfinite(value).all():
        raise ValueError(f"{path.name}: {name} must hold finite real numbers, got dtype {value.dtype}.")
    return value.astype(np.float64)


def _check_file(path: Path, remedy: str) -> None:
    """Check suffix, header and the declared sizes against the file, before anything is allocated."""
    if path.suffix.lower() != ".mat":
        raise ValueError(f"expected a file ending in .mat, got {path.name}. {remedy}")
    if not path.is_file():
        raise FileNotFoundError(f"No such file: {path}. {remedy}")
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(128)
        if header[:4] == b"\x89HDF" or header[:10] == b"MATLAB 7.3":
            raise ValueError(f"{path.name} is a MATLAB 7.3 file. Save it with '-v7' in MATLAB. {remedy}")
        order = {b"IM": "<", b"MI": ">"}.get(header[126:128])
        if not header.startswith(b"MATLAB 5.0") or order is None:
            raise ValueError(f"{path.name} does not start like a MATLAB 5 file. {remedy}")
        position = 128
        while position < size:
            tag = file.read(8)
            kind, n_bytes = struct.unpack(order + "II", tag) if len(tag) == 8 else (0, size)
            position += 8 + n_bytes
            if position > size:
                raise ValueError(
                    f"{path.name} is truncated: it has {size} bytes of at least {position}. Download it again."
                )
            if kind == 15:  # compressed: its first 8 bytes say how large it becomes
                try:
                    inner = zlib.decompressobj().decompress(file.read(min(n_bytes, 256)), 8)
                    n_bytes = struct.unpack(order + "II", inner)[1]
                except (zlib.error, struct.error) as error:
                    raise ValueError(f"{path.name} is damaged ({error}). Download it again.") from error
            if n_bytes > MAX_BYTES:
                raise ValueError(f"{path.name} declares {n_bytes} bytes of data, more than {MAX_BYTES}. {remedy}")
            file.seek(position)
