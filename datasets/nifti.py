"""NIfTI-1 and NIfTI-2 image volumes (.nii, .nii.gz), with their affine.

NIfTI-1: R. W. Cox and others, "A (sort of) new image data format standard: NIfTI-1", NeuroImage 22, 2004.
"""

from __future__ import annotations

import gzip
import io
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from invdiff.datasets.files import Head, Volume
from invdiff.storage import check_claim

MAGIC = {348: (b"n+1\0", b"ni1\0"), 540: (b"n+2\0", b"ni2\0")}
MILLIMETRES = {"meter": 1000.0, "mm": 1.0, "micron": 1e-3}  # other codes (0: unknown) are taken as mm
GZIP = b"\x1f\x8b"


def matches(head: Head) -> bool:
    """The header's size and magic word, behind gzip or not."""
    return _header_kind(_start(head.start)) is not None


def read(path: Path, *, fill: float | None = None) -> Volume:
    """The volume as stored, scaled by its slope and intercept.

    Args:
        path: a single file, whatever its name.
        fill: replaces non-finite voxels; None: they are an error.

    Returns:
        Volume with data ``(z, y, x)``, or ``(t, z, y, x)`` and so on for more dimensions, in the order and
        orientation of the file; the affine is that of the header (sform before qform), in mm.

    Raises:
        OSError: truncated. ValueError: not such a file, a pair of files, a header that cannot be true, colour
            images, non-finite values.
    """
    import nibabel

    size = path.stat().st_size
    with path.open("rb") as raw:
        compressed = raw.read(2) == GZIP
        raw.seek(0)
        start = raw.read(4096)
        kind = _header_kind(_start(start))
        if kind is None:
            raise ValueError(f"{path.name} does not start with a NIfTI header.")
        length, magic = kind
        if magic.startswith(b"ni"):
            raise ValueError(
                f"{path.name} is the header of a NIfTI pair (.hdr with .img). Convert it to one .nii file."
            )
        header_class = nibabel.Nifti1Header if length == 348 else nibabel.Nifti2Header
        try:
            header = header_class.from_fileobj(io.BytesIO(_start(start)[:length]), check=False)
            shape, dtype = tuple(int(n) for n in header.get_data_shape()), header.get_data_dtype()
            slope, intercept = header.get_slope_inter()
            affine = np.asarray(header.get_best_affine(), dtype=np.float64)
            unit = MILLIMETRES.get(header.get_xyzt_units()[0], 1.0)
            offset = float(header["vox_offset"])
        except Exception as error:
            raise ValueError(f"{path.name}: the NIfTI header makes no sense ({error}).") from error
        if not 1 <= len(shape) <= 7 or min(shape) < 1:
            raise ValueError(f"{path.name}: the header claims the shape {shape}; expected 1 to 7 positive sizes.")
        if dtype.kind not in "fiuc":
            raise ValueError(f"{path.name} has voxels of type {dtype}; expected one number each, not colours.")
        if not (np.isfinite(affine).all() and np.isfinite([slope or 1.0, intercept or 0.0]).all()):
            raise ValueError(f"{path.name}: the header's affine or intensity scaling is not finite.")
        if not length <= offset < 2**31:
            raise ValueError(f"{path.name}: the header says that the data start at byte {offset:g}, inside itself.")
        n_bytes = math.prod(shape) * dtype.itemsize
        needed = int(offset) + n_bytes
        if compressed:
            check_claim(f"{path.name}: the header", needed, size)
        elif needed > size:
            raise OSError(f"{path.name} is truncated, or its header lies: {needed} bytes are needed, it has {size}.")
        raw.seek(0)
        try:
            stream: Any = gzip.GzipFile(fileobj=raw) if compressed else raw
            stream.read(int(offset))
            content = stream.read(n_bytes)
            stream.read(1)  # at the end of a gzip stream, this compares its checksum
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise OSError(f"{path.name} is truncated or damaged ({error}).") from error
    if len(content) < n_bytes:
        raise OSError(f"{path.name} is truncated: it holds {len(content)} bytes of voxels, {n_bytes} are needed.")

    data = np.frombuffer(content, dtype).reshape(shape, order="F").T
    data = data.astype(dtype.newbyteorder("="))  # a copy that can be written to
    if (slope, intercept) not in ((None, None), (1.0, 0.0)):
        kind_ = np.result_type(dtype.newbyteorder("="), np.float32)
        data = data.astype(kind_) * kind_.type(slope) + kind_.type(intercept)
    if data.dtype.kind in "fc" and not (finite := np.isfinite(data)).all():
        if fill is None:
            raise ValueError(
                f"{path.name} has {int((~finite).sum())} non-finite voxel(s) in {data.size}. Choose a value for them "
                f"with the option fill, e.g. fill=0."
            )
        data[~finite] = fill
    data = data.reshape(data.shape[-3:] if data.ndim > 3 and data.shape[:-3] == (1,) * (data.ndim - 3) else data.shape)
    data = data.reshape((1,) * (3 - data.ndim) + data.shape)
    affine = affine.copy()
    affine[:3] *= unit
    return Volume(data, affine, metadata={"file": path.name})


def _start(start: bytes) -> bytes:
    """The first bytes of the content, uncompressed; what there is of them."""
    if start[:2] != GZIP:
        return start
    try:
        return zlib.decompressobj(wbits=31).decompress(start, 1024)
    except zlib.error:
        return b""


def _header_kind(start: bytes) -> tuple[int, bytes] | None:
    """Header length and magic word; None if this is no NIfTI header."""
    for length, position in ((348, 344), (540, 4)):
        magic = start[position : position + 4]
        size = {int.from_bytes(start[:4], order) for order in ("little", "big")}
        if magic in MAGIC[length] and length in size and len(start) >= length:
            return length, magic
    return None
