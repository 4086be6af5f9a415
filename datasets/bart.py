"""BART arrays (.cfl with .hdr): k-space with a coil dimension, or images.

Uecker et al., "Berkeley Advanced Reconstruction Toolbox", Proc. ISMRM 23 (2015). ``.hdr`` is text, the sizes of up to
16 dimensions after a line "# Dimensions"; ``.cfl`` holds complex64 numbers, first dimension fastest: 0 readout, 1 and
2 phase encoding (x, y, z of an image), 3 coils, 4 maps, then time, slices and others.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from invdiff.datasets.files import Head, Volume
from invdiff.datasets.kspace import item_index, kspace_measurement, readout_phases
from invdiff.measurement import Measurement

START = "# Dimensions"
MAX_HEADER = 2**20  # bytes
N_DIMENSIONS = 16


def read_bart(
    path: str | Path, *, index: int | None = None, kspace: bool | None = None, magnitude: bool = True
) -> Measurement | Volume:
    """Read a Cartesian k-space as a measurement of one slice, or images as a volume.

    A three-dimensional k-space (both dimensions 1 and 2 phase-encoded) is transformed along its fully sampled readout,
    and each position there is a slice.

    Args:
        path: the ``.cfl`` or the ``.hdr`` file; both must be there.
        index: of k-space, which of the items that the dimensions from 4 on count (first fastest), and, slowest of all,
            the positions along the readout of a three-dimensional one; None: the middle. Images are read whole.
        kspace: True or False to say what the file holds; None: k-space if there is more than one coil.
        magnitude: as in :func:`kspace_measurement`.

    Returns:
        Measurement of k-space (coil, y = dimension 1, x = dimension 0), of a three-dimensional one (coil, y = dimension
        2, x = dimension 1); or Volume (..., z, y, x), complex, without affine, the dimensions from 3 on reversed in
        front.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: not such files, sizes that disagree, non-finite values, or a three-dimensional k-space whose
            readouts are not sampled whole.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from invdiff.datasets import read_bart
        >>> with tempfile.TemporaryDirectory() as folder:  # one coil: images, x = 4, y = 3, z = 2
        ...     _ = Path(folder, "image.hdr").write_text("# Dimensions\\n4 3 2 1 1\\n")
        ...     _ = Path(folder, "image.cfl").write_bytes(np.arange(24).astype("<c8").tobytes())
        ...     volume = read_bart(f"{folder}/image.cfl")
        >>> volume.data.shape, int(volume.data[0, 0, 1].real)  # x is fastest
        ((2, 3, 4), 1)
    """
    path = Path(path)
    header, data = path.with_suffix(".hdr"), path.with_suffix(".cfl")
    for file in (header, data):
        if not file.is_file():
            raise FileNotFoundError(f"No such file: {file} (a BART array is a pair of .hdr and .cfl).")
    sizes = _sizes(header)
    claimed, stored = 8 * math.prod(sizes), data.stat().st_size
    if claimed != stored:
        raise ValueError(f"{data.name}: {header.name} announces {claimed} bytes, the file has {stored}.")
    array = np.memmap(data, np.dtype("<c8"), "r", shape=sizes, order="F")
    n_coils, n_items = sizes[3], math.prod(sizes[4:])
    if kspace is None:
        kspace = n_coils > 1
    if not kspace:
        if index is not None:
            raise ValueError(f"index chooses an item of k-space; the images of {data.name} are read whole.")
        volume = np.ascontiguousarray(array.T).reshape(*(n for n in sizes[:2:-1] if n > 1), *sizes[2::-1])
        if not np.isfinite(volume).all():
            raise ValueError(f"{data.name} has {int((~np.isfinite(volume)).sum())} non-finite value(s).")
        return Volume(volume, metadata={"file": data.name, "source": "BART"})
    positions = sizes[0] if sizes[2] > 1 else 1
    index = item_index(index, n_items * positions)
    position, item = divmod(index, n_items)
    where = np.unravel_index(item, sizes[4:], order="F")
    samples = array[(slice(None),) * 4 + where].T  # (coil, z, y, x)
    metadata = {"file": data.name, "source": "BART", "index": index, "n_items": n_items * positions}
    if sizes[2] > 1:
        metadata["readout_position"] = position
        samples = _at_position(samples, position, data.name)
    else:
        samples = np.ascontiguousarray(samples[:, 0])
    return kspace_measurement(samples, magnitude=magnitude, item=f"{path.stem}_{index}", metadata=metadata)


def _at_position(samples: np.ndarray, position: int, name: str) -> np.ndarray:
    """k-space (coil, z, y) of one position along the readout of (coil, z, y, x), a coil at a time."""
    n = samples.shape[-1]
    phases = readout_phases(position, n, n)
    slices = []
    for coil in samples:
        sampled = np.count_nonzero(coil, axis=-1)
        if not np.isin(sampled, (0, n)).all():
            raise ValueError(
                f"{name}: a three-dimensional k-space {samples.shape[:0:-1]} whose readouts (dimension 0) are not "
                f"sampled whole cannot be taken apart into slices. Build a MultiCoilMRI operator of the volume."
            )
        slices.append((coil @ phases).astype(np.complex64))
    return np.stack(slices)


read = read_bart


def matches(head: Head) -> bool:
    """A header that starts with "# Dimensions", or a ``.cfl`` file beside one."""
    if head.start.startswith(START.encode()):
        return True
    header = head.path.with_suffix(".hdr")
    if head.path.suffix != ".cfl" or not header.is_file():
        return False
    try:
        with header.open("rb") as file:
            return file.read(len(START)) == START.encode()
    except OSError:
        return False


def _sizes(header: Path) -> tuple[int, ...]:
    """The 16 sizes that a header announces."""
    if header.stat().st_size > MAX_HEADER:
        raise ValueError(f"{header.name} is too long for a BART header.")
    lines = header.read_bytes().decode("ascii", "replace").splitlines()
    if len(lines) < 2 or lines[0].strip() != START:
        raise ValueError(f"{header.name} does not start like a BART header ('{START}' and a line of sizes).")
    words = lines[1].split()
    if not 1 <= len(words) <= N_DIMENSIONS or not all(w.isdecimal() and len(w) < 12 and int(w) > 0 for w in words):
        raise ValueError(f"{header.name}: expected 1 to {N_DIMENSIONS} positive sizes, got {lines[1][:100]!r}.")
    sizes = tuple(int(w) for w in words)
    return sizes + (1,) * (N_DIMENSIONS - len(sizes))
