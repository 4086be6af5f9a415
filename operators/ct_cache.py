"""Projector matrices on disk, so that a geometry is weighted once per machine and not once per process.

The folder is ``invdiff`` in the user's cache folder (``$XDG_CACHE_HOME`` or ``~/.cache``; ``~/Library/Caches`` on
macOS, ``%LOCALAPPDATA%`` on Windows). The environment variable ``INVDIFF_CACHE`` names another folder, or switches
the cache off with the value ``off``. Nothing in it is needed: files may be removed at any time, a damaged one is
built again, and the least recently used go when all together take more than ``MAX_BYTES``.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import uuid
import zipfile
from pathlib import Path

import numpy as np
import scipy.sparse

from invdiff.operators.ct_matrix import joseph_matrix

VERSION = b"joseph-1"  # changes when the weights or the file's layout do
MIN_WEIGHTS = 8_000_000  # of the builder; fewer are computed in about 0.3 s
MAX_BYTES = 4 * 2**30


def cache_folder() -> Path | None:
    """Where matrices are kept; None if the cache is switched off."""
    chosen = os.environ.get("INVDIFF_CACHE")
    if chosen is not None:
        return None if chosen.lower() in ("", "0", "off") else Path(chosen).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "invdiff"


def cached_joseph_matrix(
    origins: np.ndarray,
    directions: np.ndarray,
    image_shape: tuple[int, int],
    pixel_size: float | tuple[float, float],
    *,
    supersampling: int = 1,
) -> scipy.sparse.csr_array:
    """:func:`joseph_matrix` in float32, from the cache where it is large and has been built before.

    The name of a file is a hash of the rays, the grid and ``supersampling``, so that a geometry that means other
    rays cannot meet an old file.
    """

    def build() -> scipy.sparse.csr_array:
        return joseph_matrix(origins, directions, image_shape, pixel_size, supersampling=supersampling)

    folder = cache_folder()
    if folder is None or origins.size * max(image_shape) < MIN_WEIGHTS:  # origins.size is twice the number of rays
        return build()
    key = hashlib.sha256(VERSION)
    key.update(repr((origins.shape, image_shape, pixel_size, supersampling)).encode())
    for rays in (origins, directions):
        key.update(np.ascontiguousarray(rays, dtype=np.float64).data)
    path = folder / f"ct-{key.hexdigest()[:32]}.npz"
    shape = (origins.size // 2 // supersampling, image_shape[0] * image_shape[1])
    matrix = _load(path, shape)
    if matrix is None:
        matrix = build()
        with contextlib.suppress(OSError):  # a full disk or a folder without permission costs only time
            _save(path, matrix)
    return matrix


def _load(path: Path, shape: tuple[int, int]) -> scipy.sparse.csr_array | None:
    """The matrix, or None if there is no such file or its checksums or contents are wrong."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as f:
            data, indices, indptr = (f[name] for name in ("data", "indices", "indptr"))
        os.utime(path)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    fits = (
        (data.dtype, indices.dtype, indptr.dtype) == (np.float32, np.int32, np.int32)
        and indptr.shape == (shape[0] + 1,)
        and data.shape == indices.shape == (indptr[-1],)
    )
    return scipy.sparse.csr_array((data, indices, indptr), shape=shape) if fits else None


def _save(path: Path, matrix: scipy.sparse.csr_array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with tmp.open("wb") as file:
            np.savez(file, data=matrix.data, indices=matrix.indices, indptr=matrix.indptr)
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)
    kept = 0
    files = [(f.stat(), f) for f in path.parent.iterdir() if "ct-" in f.name and f.suffix in (".npz", ".tmp")]
    for status, entry in sorted(files, key=lambda f: -f[0].st_mtime):
        kept += status.st_size
        if kept > MAX_BYTES and entry != path:
            entry.unlink(missing_ok=True)
