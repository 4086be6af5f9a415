"""Reading HDF5 files that may be damaged or hostile."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from invdiff.storage import open_hdf5

__all__ = ["array", "attribute", "damaged", "dataset_shape", "open_hdf5", "require_stored", "scalar", "text"]


def array(
    f: h5py.File, key: str, *, ndim: int | tuple[int, ...] | None = None, kinds: str = "fiu", where: Any = ()
) -> np.ndarray:
    """A dataset, or the part ``where`` of it, checked before anything is read. Open ``f`` with :func:`open_hdf5`.

    Args:
        ndim: allowed numbers of dimensions of the whole dataset.
        kinds: allowed numpy kinds: "f", "i", "u", "c"; a compound of two floats (r, i) counts as "c".
        where: index, e.g. ``np.s_[3]``.

    Raises:
        ValueError: missing, of another kind, or not finite.
        OSError: damaged.
    """
    name = Path(f.filename).name
    item = f.get(key)
    if not isinstance(item, h5py.Dataset):
        raise ValueError(f"{name}: no dataset '{key}'; it has {', '.join(sorted(f)) or 'nothing'}.")
    if item.shape is None:
        raise ValueError(f"{name}: '{key}' holds nothing.")
    allowed = (ndim,) if isinstance(ndim, int) else ndim
    if allowed is not None and item.ndim not in allowed:
        expected = " or ".join(map(str, allowed))
        raise ValueError(f"{name}: '{key}' must have {expected} dimensions, it has the shape {item.shape}.")
    pair = item.dtype.names is not None and len(item.dtype.names) == 2
    kind = "c" if pair else item.dtype.kind
    if kind not in kinds:
        raise ValueError(f"{name}: '{key}' must hold numbers (numpy kinds {kinds}), it has dtype {item.dtype}.")
    try:
        value = np.asarray(item[where])
    except (IndexError, TypeError):
        raise ValueError(f"{name}: '{key}' has the shape {item.shape}; what is asked for is not in it.") from None
    except (OSError, RuntimeError) as error:
        raise OSError(f"{name}: '{key}' cannot be read; the file may be truncated ({error}).") from None
    if pair:
        real, imaginary = item.dtype.names
        value = value[real] + 1j * value[imaginary]
    if value.dtype.kind in "fc" and not np.isfinite(value).all():
        bad = int((~np.isfinite(value)).sum())
        raise ValueError(f"{name}: '{key}' has {bad} non-finite value(s) in {value.size}.")
    return value


def scalar(f: h5py.File, key: str) -> float:
    """One real number, or several equal ones; ValueError otherwise."""
    value = array(f, key)
    if not value.size or (value != value.flat[0]).any():
        raise ValueError(f"{Path(f.filename).name}: '{key}' must be one number, it has the shape {value.shape}.")
    return float(value.flat[0])


def dataset_shape(f: h5py.File, key: str, *, ndim: int | tuple[int, ...]) -> tuple[int, ...]:
    """Shape of a dataset, with one of the numbers of dimensions ``ndim`` and no length 0; ValueError otherwise."""
    item = f.get(key)
    shape = item.shape if isinstance(item, h5py.Dataset) and item.shape is not None else None
    allowed = (ndim,) if isinstance(ndim, int) else ndim
    if shape is None or len(shape) not in allowed or 0 in shape:
        expected = " or ".join(map(str, allowed))
        raise ValueError(
            f"{Path(f.filename).name}: '{key}' must be a dataset of {expected} dimensions, none of length 0; "
            f"{'there is none' if shape is None else f'it has the shape {shape}'}."
        )
    return tuple(shape)


def attribute(f: h5py.File | h5py.Group, key: str, default: Any = None) -> Any:
    """An attribute as a plain Python value (text decoded, one-element arrays unpacked); ``default`` if missing."""
    value = f.attrs.get(key, default)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(())[()]
    return value.item() if isinstance(value, np.generic) else value


def text(f: h5py.File | h5py.Group, key: str) -> str:
    """A dataset that holds one text, decoded.

    Raises:
        ValueError: missing, or something else. (Variable-length data of other types are not even read: the library
            may crash on a damaged one.)
    """
    item = f.get(key)
    if not isinstance(item, h5py.Dataset) or item.size != 1 or h5py.check_string_dtype(item.dtype) is None:
        raise ValueError(f"{Path(f.file.filename).name}: '{key}' must hold one text.")
    value = np.asarray(item[()]).reshape(-1)[0]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


@contextlib.contextmanager
def damaged(path: Path) -> Iterator[None]:
    """Whatever the HDF5 library says of a damaged file, as an OSError of one line. Goes around :func:`open_hdf5`."""
    try:
        yield
    except (RuntimeError, KeyError, IndexError, TypeError, AttributeError, MemoryError, UnicodeError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise OSError(f"{path.name} cannot be read; it may be damaged or truncated ({reason}).") from None


def require_stored(item: h5py.Dataset) -> None:
    """Raise ValueError if an uncompressed dataset claims more bytes than the file stores for it."""
    claimed, stored = item.size * item.dtype.itemsize, item.id.get_storage_size()
    filtered = item.id.get_create_plist().get_nfilters() > 0
    if claimed and (stored == 0 or (not filtered and stored < claimed)):
        name = Path(item.file.filename).name
        raise ValueError(f"{name}: '{item.name}' claims {claimed} bytes, the file stores {stored}; it is incomplete.")
