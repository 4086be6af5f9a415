"""DICOM image series: a folder of slices, or one file; CT in Hounsfield units.

DICOM PS3.3, sections C.7.6.2 (image plane) and C.11.1 (modality LUT). DICOM coordinates are LPS, the affine here
is RAS, so the first two rows change sign. Compressed and multi-frame files are refused with the remedy.
"""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from invdiff.datasets.files import Head, Volume

NATIVE = {
    "1.2.840.10008.1.2": "implicit little endian",
    "1.2.840.10008.1.2.1": "explicit little endian",
    "1.2.840.10008.1.2.2": "explicit big endian",
}
KEEP = {"Modality", "Manufacturer", "KVP", "ConvolutionKernel", "SliceThickness", "SeriesDescription", "EchoTime"}


def matches(head: Head) -> bool:
    """A file with the DICOM prefix, or a folder that holds one."""
    return head.start[128:132] == b"DICM" or any(True for _ in dicom_files(head.path))


def read(path: Path, *, series: str | None = None) -> Volume:
    """One image series as a volume.

    Args:
        path: a file, or a folder; files in it that are not DICOM are passed over, sub-folders too.
        series: the end of a SeriesInstanceUID, where the folder holds several.

    Returns:
        Volume (z, y, x), float32, slices in the order of their position along the slice normal. Units are "HU" for
        CT, otherwise what the file says, or "relative". Nothing that identifies a patient is kept.

    Raises:
        ValueError: several series, compressed or colour or multi-frame images, slices that differ in size or
            orientation, a missing or repeated slice, missing geometry. OSError: truncated.
    """
    files = [path] if path.is_file() else sorted(dicom_files(path))
    if not files:
        raise ValueError(f"{path.name} holds no DICOM file.")
    headers = [read_dataset(file, pixels=False) for file in files]
    chosen = _choose_series(path, headers, series)
    files, headers = [files[i] for i in chosen], [headers[i] for i in chosen]
    first = headers[0]
    for file, header in zip(files, headers, strict=True):
        _check_image(file, header, first)

    order, affine = _geometry(path, headers)
    data = np.empty((len(files), int(first.Rows), int(first.Columns)), dtype=np.float32)
    for z, i in enumerate(order):
        data[z] = pixels(files[i])
    units = "HU" if first.Modality == "CT" else str(first.get("Units", first.get("RescaleType", "relative")))
    return Volume(
        data, affine, units="relative" if units == "US" else units,
        metadata={"file": path.name, **{k: _plain(first[k].value) for k in sorted(KEEP) if k in first}},
    )  # fmt: skip


def dicom_files(folder: Path) -> Any:
    """The DICOM files directly in a folder, in no order."""
    for file in folder.iterdir() if folder.is_dir() else ():
        if file.is_file() and file.name != "DICOMDIR":
            with file.open("rb") as f:
                if f.read(132)[128:] == b"DICM":
                    yield file


def read_dataset(file: Path, *, pixels: bool = True) -> Any:
    """A pydicom Dataset, after the transfer syntax was found to be uncompressed.

    Raises:
        ValueError, OSError: saying what is wrong with the file.
    """
    import pydicom

    content = file.read_bytes()  # pydicom asks the file for whatever length a damaged header names
    if content[128:132] != b"DICM":
        raise ValueError(f"{file.name} is not a DICOM file: the prefix DICM is missing.")
    syntax = _transfer_syntax(content)
    if syntax is None:
        raise ValueError(f"{file.name} has no readable transfer syntax; the file is damaged.")
    if syntax not in NATIVE:
        raise ValueError(
            f"{file.name} is compressed, or of an unknown kind (transfer syntax {_syntax_name(syntax)}). Decompress it "
            f"first, e.g. with 'gdcmconv --raw' or 'dcmconv'."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about values that break the standard: what matters is checked here
        try:
            ds = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=not pixels)
            for element in ds:  # values are parsed when they are looked at: here, once
                _ = element.value
        except Exception as error:
            raise OSError(f"{file.name} is truncated or damaged ({' '.join(str(error).split())}).") from error
    return ds


def _transfer_syntax(content: bytes) -> str | None:
    """Element (0002,0010) of the file meta information, which is explicit little endian; None if there is none.

    Looked at before pydicom is asked, because it would inflate a deflated file to whatever size."""
    position = 132
    while content[position : position + 2] == b"\x02\x00" and position + 12 <= len(content):
        element, vr = content[position + 2 : position + 4], content[position + 4 : position + 6]
        if vr in (b"OB", b"OW", b"SQ", b"UN", b"UT"):
            start, n = position + 12, int.from_bytes(content[position + 8 : position + 12], "little")
        else:
            start, n = position + 8, int.from_bytes(content[position + 6 : position + 8], "little")
        if element == b"\x10\x00":
            return content[start : start + n].decode("ascii", "replace").rstrip("\0 ")
        position = start + n
    return None


def _syntax_name(syntax: str) -> str:
    import pydicom

    return pydicom.uid.UID(syntax).name if re.fullmatch(r"[0-9.]{1,64}", syntax) else repr(syntax[:64])


def pixels(file: Path) -> np.ndarray:
    """The rescaled image of one uncompressed, single-frame file, float32 (rows, columns)."""
    ds = read_dataset(file)
    rows, columns, bits = (int(_number(ds, name, file)) for name in ("Rows", "Columns", "BitsAllocated"))
    if bits not in (8, 16, 32) or rows < 1 or columns < 1:
        raise ValueError(f"{file.name}: cannot read {rows} x {columns} pixels of {bits} bits.")
    needed, held = rows * columns * bits // 8, len(ds.get("PixelData", None) or b"")
    if held < needed:
        raise OSError(f"{file.name} is truncated: {rows} x {columns} pixels need {needed} bytes, it has {held}.")
    slope, intercept = _number(ds, "RescaleSlope", file, 1.0), _number(ds, "RescaleIntercept", file, 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            stored = np.asarray(ds.pixel_array)
        except Exception as error:
            raise ValueError(f"{file.name}: the pixels cannot be decoded ({' '.join(str(error).split())}).") from error
    if stored.shape != (rows, columns):
        raise ValueError(f"{file.name} holds an image of shape {stored.shape}; expected {(rows, columns)}.")
    image = stored.astype(np.float64) * slope + intercept
    if not np.abs(image).max() < 3e38:
        raise ValueError(f"{file.name}: rescaled by slope {slope:g} and intercept {intercept:g}, values overflow.")
    return image.astype(np.float32)


def _choose_series(path: Path, headers: list[Any], wanted: str | None) -> list[int]:
    """Indices of the files of the one series asked for."""
    uids = [str(h.get("SeriesInstanceUID", "")) for h in headers]
    known = sorted(set(uids))
    if wanted is None:
        if len(known) > 1:
            raise ValueError(
                f"{path.name} holds {len(known)} series; choose one with the option series: "
                f"{', '.join(f'{u} ({uids.count(u)} files)' for u in known)}."
            )
        return list(range(len(uids)))
    found = [u for u in known if u.endswith(wanted)]
    if len(found) != 1:
        raise ValueError(f"{len(found)} series end in {wanted!r}; {path.name} holds {', '.join(known)}.")
    return [i for i, u in enumerate(uids) if u == found[0]]


def _check_image(file: Path, ds: Any, first: Any) -> None:
    for name in ("Rows", "Columns", "Modality"):
        if name not in ds:
            raise ValueError(f"{file.name} is not an image: it has no {name}.")
        if ds[name].value != first[name].value:
            raise ValueError(
                f"{file.name}: the slices of a series must agree in {name}; it has {ds[name].value}, "
                f"the first one {first[name].value}."
            )
    if int(_number(ds, "NumberOfFrames", file, 1)) != 1:
        raise ValueError(f"{file.name} has several frames in one file. Convert it to NIfTI first, with dcm2niix.")
    if int(_number(ds, "SamplesPerPixel", file, 1)) != 1:
        raise ValueError(f"{file.name} is a colour image; expected one value per pixel.")


def _geometry(path: Path, headers: list[Any]) -> tuple[list[int], np.ndarray]:
    """Order of the slices, and the affine from (x, y, z) indices to mm in RAS."""
    name = path.name

    def vector(ds: Any, key: str, n: int) -> np.ndarray:
        value = ds.get(key)
        try:
            array = np.array([float(v) for v in value], dtype=np.float64)
        except (TypeError, ValueError):
            array = np.empty(0)
        if array.shape != (n,) or not np.isfinite(array).all():
            raise ValueError(f"{name}: {key} must hold {n} finite numbers, got {value!r}.")
        return array

    orientation = vector(headers[0], "ImageOrientationPatient", 6)
    spacing = vector(headers[0], "PixelSpacing", 2)  # between rows, between columns
    if not (spacing > 0).all():
        raise ValueError(f"{name}: PixelSpacing must be positive, got {spacing.tolist()}.")
    for ds in headers[1:]:
        for key, expected, tolerance in (
            ("ImageOrientationPatient", orientation, 1e-3), ("PixelSpacing", spacing, 1e-3),
        ):  # fmt: skip
            if np.abs(vector(ds, key, len(expected)) - expected).max() > tolerance:
                raise ValueError(f"{name}: the slices differ in {key}; they are no single volume.")
    along_row, along_column = orientation[:3], orientation[3:]
    if not np.allclose(
        [along_row @ along_row, along_column @ along_column, along_row @ along_column], [1, 1, 0], atol=1e-2
    ):
        raise ValueError(f"{name}: ImageOrientationPatient {orientation.tolist()} is not a pair of unit vectors.")
    normal = np.cross(along_row, along_column)
    positions = np.stack([vector(ds, "ImagePositionPatient", 3) for ds in headers])
    depth = positions @ normal
    order = np.argsort(depth, kind="stable")
    positions, depth = positions[order], depth[order]

    if len(headers) == 1:
        given = headers[0].get("SpacingBetweenSlices") or headers[0].get("SliceThickness") or 1.0
        step = normal * abs(_number_of(given, 1.0))
    else:
        gaps = np.diff(depth)
        usual = float(np.sort(gaps)[(len(gaps) - 1) // 2])
        if gaps.min() < 1e-3:
            raise ValueError(
                f"{name}: two slices share the position {depth[gaps.argmin()]:g} mm; the folder mixes acquisitions. "
                f"Keep one of them."
            )
        if gaps.max() > 1.5 * usual:
            raise ValueError(
                f"{name}: a slice is missing between {depth[gaps.argmax()]:g} and {depth[gaps.argmax() + 1]:g} mm, "
                f"the others are {usual:g} mm apart. Find it, or read the parts one by one."
            )
        step = (positions[-1] - positions[0]) / (len(headers) - 1)
        off = np.abs(positions - positions[0] - np.arange(len(headers))[:, None] * step).max()
        if off > 0.1 * usual:
            raise ValueError(f"{name}: the slices are not equally spaced (off by up to {off:g} mm of {usual:g} mm).")
    lps = np.eye(4)
    lps[:3] = np.stack([along_row * spacing[1], along_column * spacing[0], step, positions[0]], -1)
    return order.tolist(), np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps


def _plain(value: Any) -> float | str:
    """A header's value as a number, or else as text."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return str(value)


def _number_of(value: Any, default: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return default
    return number if np.isfinite(number) and number != 0 else default


def _number(ds: Any, key: str, file: Path, default: float | None = None) -> float:
    """A finite number of the header. Raises ValueError."""
    value = ds.get(key, default)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not np.isfinite(number):
        raise ValueError(f"{file.name}: {key} must be a finite number, got {value!r}.")
    return number
