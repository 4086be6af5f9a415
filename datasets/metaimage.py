"""MetaImage volumes and image sequences (.mha; .mhd with .raw), the format of ITK and of the PLUS toolkit.

The header is text, ``Key = value`` a line, ending with ``ElementDataFile``; voxels follow in the file (LOCAL) or lie
in the named file beside it, as they are or compressed with zlib. Positions are in LPS, as in DICOM; the affine
here is RAS. Header keys: the MetaIO documentation of ITK, where some have three names.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import numpy as np

from invdiff.datasets.files import Head, Volume
from invdiff.storage import check_claim

TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
START = (b"ObjectType", b"NDims")
PLACE, TURN = ("Offset", "Position", "Origin"), ("TransformMatrix", "Rotation", "Orientation")  # synonyms
LONGEST = 2**20  # bytes of header; that of a tracked sequence has lines for each frame


def matches(head: Head) -> bool:
    """Text that starts with ``ObjectType`` (or ``NDims``) and says how many dimensions there are."""
    return head.start.lstrip().startswith(START) and b"NDims" in head.start


def read(path: Path) -> Volume:
    """The volume as stored.

    Returns:
        Volume with data ``(z, y, x)``, or (frame, y, x) for a sequence of images; ``metadata`` says which anatomical
        orientation the file states.

    Raises:
        OSError: truncated, or the data file is missing. ValueError: not such a file, more than one channel, several
            data files, a header that cannot be true, non-finite values.
    """
    size = path.stat().st_size
    with path.open("rb") as f:
        start = f.read(LONGEST)
    marker = start.find(b"ElementDataFile")
    end = start.find(b"\n", max(marker, 0))
    end = len(start) if end < 0 else end  # the text of a pair may end without a line break
    lines = (line.split("=", 1) for line in start[:end].decode("latin-1").splitlines() if "=" in line)
    header = {key.strip(): value.strip() for key, value in lines}
    if not header.get("ElementDataFile"):
        raise ValueError(f"{path.name}: the MetaImage header does not name its ElementDataFile.")
    shape, dtype, affine = _layout(header, path)
    n_bytes = math.prod(shape) * dtype.itemsize

    source = header["ElementDataFile"]
    if source == "LOCAL":
        file, offset = path, end + 1
    else:
        file, offset = path.parent / Path(source).name, 0
        if source != file.name or "%" in source or source == "LIST":
            raise ValueError(f"{path.name}: expected one data file beside it, got ElementDataFile = {source}.")
        if not file.is_file():
            raise OSError(f"{path.name} keeps its voxels in {file.name}, which is not beside it.")
        size = file.stat().st_size
    if header.get("HeaderSize", "0") not in ("0", "-1"):
        raise ValueError(f"{path.name}: a HeaderSize inside the data file is not supported.")
    compressed = header.get("CompressedData", "False").lower() == "true"
    if compressed:
        check_claim(f"{path.name}: the header", n_bytes, size - offset)
    elif n_bytes > size - offset:
        raise OSError(f"{file.name} is truncated, or its header lies: {n_bytes} bytes needed, {size - offset} stored.")
    with file.open("rb") as f:
        f.seek(offset)
        content = f.read(size if compressed else n_bytes)
    if compressed:
        stream = zlib.decompressobj(wbits=47)
        try:
            content = stream.decompress(content, n_bytes + 1)
        except zlib.error as error:
            raise OSError(f"{file.name} is truncated or damaged ({error}).") from error
    if len(content) < n_bytes or (compressed and not (stream.eof and len(content) == n_bytes)):
        raise OSError(f"{file.name} does not hold the {n_bytes} bytes of voxels that the header states.")

    data = np.frombuffer(content, dtype).reshape(shape[::-1]).astype(dtype.newbyteorder("="))
    data = data.reshape((1,) * (3 - data.ndim) + data.shape)
    orientation = header.get("AnatomicalOrientation", "")
    return Volume(data, affine, metadata={"file": path.name, "orientation": orientation})


def _layout(header: dict[str, str], path: Path) -> tuple[tuple[int, ...], np.dtype, np.ndarray]:
    """Sizes along (x, y, z, ...), type of a voxel, affine in RAS."""
    try:
        shape = tuple(int(n) for n in header["DimSize"].split())
        n = int(header["NDims"])
        spacing = [float(v) for v in header.get("ElementSpacing", "1 " * n).split()]
        place, turned = (next((header[k] for k in keys if k in header), None) for keys in (PLACE, TURN))
        offset = [0.0] * n if place is None else [float(v) for v in place.split()]
        turn = np.eye(n) if turned is None else np.array(turned.split(), float)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path.name}: the MetaImage header is incomplete or damaged ({error}).") from None
    good = len(shape) == len(spacing) == len(offset) == n and turn.size == n * n and 2 <= n <= 7 and min(shape) > 0
    if not good or not np.isfinite([*spacing, *offset, *turn]).all():
        raise ValueError(f"{path.name}: the MetaImage header contradicts itself: {n} dimensions, sizes {shape}.")
    kind = header.get("ElementType", "")
    channels = header.get("ElementNumberOfChannels", "1")
    if kind not in TYPES or channels != "1" or header.get("BinaryData", "True").lower() != "true":
        raise ValueError(
            f"{path.name}: expected binary voxels of one channel of type {', '.join(TYPES)}, got "
            f"{kind or 'no type'}, {channels} channel(s), BinaryData = {header.get('BinaryData', 'True')}."
        )
    big = (header.get("BinaryDataByteOrderMSB") or header.get("ElementByteOrderMSB") or "False").lower() == "true"
    affine = np.eye(4)
    k = min(n, 3)  # rows of the matrix are the directions of the axes
    affine[:k, :k] = turn.reshape(n, n)[:k, :k].T * spacing[:k]
    affine[:k, 3] = offset[:k]
    affine[:2] *= -1  # LPS to RAS
    return shape, np.dtype((">" if big else "<") + TYPES[kind]), affine
