"""``datasets.open``: one call for every known file, told apart by content, never by suffix alone.

A format is a module of this folder with two functions, entered in :func:`formats`::

    matches(head: Head) -> bool                                     looks, allocates nothing, never raises
    read(path: Path, *, <options>) -> Measurement | Volume          raises ValueError or OSError on a bad file

Its module docstring's first line is what ``invdiff list`` shows.
"""

from __future__ import annotations

import builtins
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from types import ModuleType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import h5py
import numpy as np

from invdiff.measurement import Measurement
from invdiff.storage import open_hdf5

HDF5 = b"\x89HDF\r\n\x1a\n"
START = 4096  # bytes of a file that a format may look at


@dataclass(frozen=True)
class Head:
    """What a file looks like, to recognise it by.

    Attributes:
        path: of the file or folder.
        start: its first bytes; empty for a folder.
        keys: of an HDF5 file, the names of its groups and datasets down to the fourth level, without the leading "/";
            empty for anything else.
        attributes: of an HDF5 file, the names of the root's attributes.
    """

    path: Path
    start: bytes
    keys: frozenset[str] = frozenset()
    attributes: frozenset[str] = frozenset()

    @classmethod
    def of(cls, path: Path) -> Head:
        """Look at ``path``. Raises FileNotFoundError."""
        if path.is_dir():
            return cls(path, b"")
        if not path.is_file():
            raise FileNotFoundError(f"No such file: {path}")
        with builtins.open(path, "rb") as file:
            start = file.read(START)
        keys: set[str] = set()
        attributes: set[str] = set()
        if start.startswith(HDF5):
            try:
                with h5py.File(path, "r") as f:
                    _names(f, "", 4, keys)
                    attributes = set(f.attrs)
            except (OSError, RuntimeError, KeyError, UnicodeDecodeError):
                pass  # damaged: the reader that its other signs lead to will say so
        return cls(path, start, frozenset(keys), frozenset(attributes))


def _names(group: h5py.Group, prefix: str, depth: int, into: set[str]) -> None:
    for name in group:
        if len(into) > 1000 or not isinstance(group.get(name, getlink=True), h5py.HardLink):
            continue
        into.add(prefix + name)
        if depth > 1 and isinstance(item := group[name], h5py.Group):
            _names(item, f"{prefix}{name}/", depth - 1, into)


@dataclass(frozen=True)
class Volume:
    """Images from a file, in their physical units.

    Attributes:
        data: (z, y, x), or (..., z, y, x); real or complex numpy array, as stored on disk and rescaled.
        affine: 4 x 4, from the index (x, y, z) to millimetres in RAS; None where the file does not say.
        units: e.g. "HU", "1/mm", "relative".
        metadata: plain strings and numbers.

    Raises:
        ValueError: fewer than three dimensions, or non-finite values.

    Example:
        >>> import numpy as np
        >>> from invdiff.datasets import Volume
        >>> volume = Volume(np.zeros((10, 8, 8)), affine=np.diag([0.5, 0.5, 2.0, 1.0]), units="HU")
        >>> volume.voxel_size  # (x, y, z), mm
        (0.5, 0.5, 2.0)
    """

    data: np.ndarray
    affine: np.ndarray | None = None
    units: str = "relative"
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.data.ndim < 3 or not np.isfinite(self.data).all():
            raise ValueError(f"A volume is (..., z, y, x) with finite values, got {self.data.dtype} {self.data.shape}.")

    @property
    def voxel_size(self) -> tuple[float, float, float] | None:
        """Edges of a voxel along (x, y, z) in mm."""
        if self.affine is None:
            return None
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)


def formats() -> dict[str, ModuleType]:
    """Name to module of every known format, the most specific first.

    Example:
        >>> from invdiff.datasets import formats
        >>> {"NIfTI", "DICOM", "HTC 2022", "LoDoPaB-CT", "PICMUS"} <= set(formats())
        True
    """
    from invdiff.datasets import (
        bart,
        ct_projections,
        dicom,
        dxchange,
        fastmri,
        htc,
        ismrmrd,
        lodopab,
        metaimage,
        must,
        nifti,
        npy_toml,
        picmus,
        saved,
        uff,
        zea,
    )

    return {
        "invdiff measurement": saved,
        "HTC 2022": htc,
        "LoDoPaB-CT": lodopab,
        "Data Exchange": dxchange,
        "PICMUS": picmus,
        "zea": zea,
        "UFF (USTB)": uff,
        "MUST": must,
        "NIfTI": nifti,
        "MetaImage": metaimage,
        "DICOM-CT-PD": ct_projections,
        "DICOM": dicom,
        "npy + toml": npy_toml,
        "fastMRI": fastmri,
        "ISMRMRD": ismrmrd,
        "BART": bart,
    }


def recognise(path: str | Path) -> tuple[str, ModuleType]:
    """The format of a file, by its content.

    Args:
        path: a file or folder.

    Raises:
        FileNotFoundError, ValueError: nothing there, or no known format.
        OSError: HDF5, but damaged.

    Example:
        >>> import tempfile
        >>> import nibabel
        >>> import numpy as np
        >>> from invdiff.datasets import recognise
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 2)), np.eye(4)), f"{folder}/scan.nii")
        ...     recognise(f"{folder}/scan.nii")[0]
        'NIfTI'
    """
    head = Head.of(Path(path))
    for name, module in formats().items():
        if module.matches(head):
            return name, module
    if head.start.startswith(HDF5):
        with open_hdf5(head.path):  # says whether it is damaged
            pass
    inside = f" (an HDF5 file with {', '.join(sorted(head.keys)[:8])})" if head.keys else ""
    raise ValueError(f"{head.path.name} is in no known format{inside}; known: {', '.join(formats())}.")


def open(path: str | Path, **options: Any) -> Measurement | Volume:
    """Read a measurement or an image volume from a file (or a folder, for DICOM series).

    Args:
        path: a file, or a folder of DICOM files.
        options: of the format's ``read`` function, e.g. ``views=60`` for a sinogram, ``index=3`` for a slice.

    Raises:
        FileNotFoundError, OSError: no such file, or a truncated one.
        ValueError: an unknown format, or content that does not make sense.
        TypeError: an option that the format does not have, or a value of the wrong kind.

    Example:
        >>> import tempfile
        >>> import invdiff
        >>> from invdiff.operators import Identity
        >>> m = invdiff.Measurement(torch.ones(1, 4, 4), Identity((1, 4, 4)), invdiff.GaussianNoise(0.1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     m.save(f"{folder}/scan.h5")
        ...     torch.equal(invdiff.datasets.open(f"{folder}/scan.h5").y, m.y)
        True
    """
    name, module = recognise(path)
    _check(options, _annotations(module.read), name)
    try:
        with np.errstate(all="ignore"):  # what overflows is refused for not being finite
            return module.read(Path(path), **options)
    except ArithmeticError as error:
        raise ValueError(f"{Path(path).name}: numbers in the file, or options, are absurd ({error}).") from error


def open_measurement(path: str | Path, **options: Any) -> Measurement:
    """As :func:`open`, and a Volume becomes a denoising problem of one of its slices
    (:func:`invdiff.datasets.denoising.denoising`), whose options may be given too.

    Args:
        path: as of :func:`open`.
        options: of the format, and of :func:`~invdiff.datasets.denoising.denoising`.

    Raises:
        FileNotFoundError, OSError, ValueError, TypeError: as :func:`open`.

    Example:
        >>> import tempfile
        >>> import nibabel
        >>> import numpy as np
        >>> from invdiff.datasets import open_measurement
        >>> voxels = np.random.default_rng(0).normal(size=(16, 16, 3)).astype(np.float32)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), f"{folder}/scan.nii")
        ...     open_measurement(f"{folder}/scan.nii", index=1).A
        Identity((1, 16, 16) real -> (1, 16, 16) real)
    """
    from invdiff.datasets.denoising import denoising

    name, module = recognise(path)
    own, result_type = _annotations(module.read), get_type_hints(module.read)["return"]
    may_be_volume = Volume in (result_type, *get_args(result_type))
    more = {k: v for k, v in _annotations(denoising).items() if may_be_volume and k not in own}
    _check(options, own | more, name)
    result = open(path, **{k: v for k, v in options.items() if k in own})
    left = {k: v for k, v in options.items() if k in more}
    if isinstance(result, Volume):
        return denoising(result, **left)
    if left:
        raise TypeError(f"{Path(path).name} holds a measurement, no image volume; it has no option {', '.join(left)}.")
    return result


def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    """The options of a function, which are its keyword-only parameters, and the type that each is annotated with."""
    hints = get_type_hints(function)
    return {k: hints[k] for k, p in inspect.signature(function).parameters.items() if p.kind is p.KEYWORD_ONLY}


def _check(options: Mapping[str, Any], known: Mapping[str, Any], name: str) -> None:
    """Raise TypeError for an option of the format ``name`` that is unknown, or whose value is of the wrong kind."""
    if unknown := sorted(set(options) - set(known)):
        raise TypeError(f"The format {name!r} has no option {', '.join(unknown)}; it has {', '.join(known) or 'none'}.")
    for option, value in options.items():
        if not _fits(value, known[option]):
            raise TypeError(f"The option {option} must be {_words(known[option])}, got {value!r}.")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is what an annotation says: a list is as good as a tuple, a whole number as a float, True is no
    number, and floats are finite."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return any(_fits(value, h) for h in inner)
    if kind in (tuple, Sequence):
        values = value.tolist() if isinstance(value, np.ndarray) else value
        if not isinstance(values, list | tuple | range) or (kind is tuple and len(values) != len(inner)):
            return False
        return all(_fits(v, inner[0]) for v in values)
    if hint is bool:
        return isinstance(value, bool | np.bool_)
    if hint is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if hint is float:
        number = isinstance(value, Real) and not isinstance(value, bool)
        return number and abs(value) < math.inf
    return isinstance(value, hint)


def _words(hint: Any) -> str:
    """An annotation in words, without None, which is what an option is that nobody gives."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return " or ".join(_words(h) for h in inner if h is not type(None))
    if kind in (tuple, Sequence):
        numbers, example = ("whole numbers", "[128, 128]") if inner[0] is int else ("finite numbers", "[0, 90]")
        return f"a list of {numbers}" if kind is Sequence else f"{len(inner)} {numbers}, e.g. {example}"
    words = {bool: "true or false", int: "a whole number", float: "a finite number"}
    words[str] = 'text (in quotes where it reads as a number or boolean: NAME="2.9")'
    return words.get(hint) or f"{hint.__module__}.{hint.__qualname__}"
