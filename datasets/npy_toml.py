"""A .npy array with a small TOML file beside it that states modality, geometry and units.

``scan.npy`` holds the data, ``scan.toml`` says what they are; either name opens the pair. Lengths are in mm, angles
in degrees. A complete example of each modality:

Parallel-beam CT; the array holds line integrals, (n_views, n_detectors)::

    modality = "ct-parallel"
    image_scale = 0.0193            # the attenuation that counts as 1 to a prior: water, 1/mm

    [geometry]
    image_shape = [128, 128]
    pixel_size = 0.8
    angles = {start = 0, stop = 180, n = 60}   # stop excluded; or a list of angles
    detector_spacing = 0.8
    detector_offset = 0.0           # optional, 0
    supersampling = 2               # optional, 1

    [noise]
    n_photons = 1e4                 # Poisson counts behind the logarithm; or sigma = 0.02 for Gaussian noise

Fan-beam CT with a flat detector: the same with two more lengths::

    modality = "ct-fan"
    image_scale = 0.0193

    [geometry]
    image_shape = [128, 128]
    pixel_size = 0.8
    angles = {start = 0, stop = 360, n = 90}
    detector_spacing = 1.2
    source_origin = 400.0
    source_detector = 600.0

    [noise]
    sigma = 0.02

Blur (circular) by a Gaussian, or by a PSF in a file beside it; the array is an image, (y, x) or (channel, y, x)::

    modality = "blur"

    [blur]
    psf = {sigma = 1.5, size = 9}   # pixels; or psf = "psf.npy"

    [noise]
    sigma = 0.01

Cartesian MRI; the array is k-space, complex (coil, y, x) or (y, x), zero frequency at the centre, in the units of the
orthonormal FFT (:func:`invdiff.datasets.kspace.kspace_measurement`, which says what is estimated if left out)::

    modality = "mri"

    [mri]
    mask = "mask.npy"               # optional: sampled where it is not zero
    maps = "maps.npy"               # optional: coil sensitivities, complex (coil, y, x)
    magnitude = true                # optional: false for a complex image as two channels

    [noise]                         # optional for MRI
    sigma = 0.01                    # of real and imaginary part each

Inpainting; the array is an image, the mask (same shape, or (y, x)) is non-zero where a pixel was measured::

    modality = "inpainting"

    [inpainting]
    mask = "mask.npy"

    [noise]
    sigma = 0.01

Every file may also state ``units`` and ``image_scale`` of the image (by default "1/mm" and 1 for CT, "relative" and 1
otherwise, for MRI an estimate), ``pixel_size`` in mm outside CT, an ``item`` name, and a table ``[metadata]`` of
strings and numbers.
"""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invdiff.datasets.files import Head
from invdiff.datasets.geometry import placement
from invdiff.datasets.kspace import kspace_measurement
from invdiff.measurement import Measurement
from invdiff.noise import ComplexGaussianNoise, GaussianNoise, Noise, PoissonLogNoise
from invdiff.operators import CT, Blur, FanBeam, Inpainting, ParallelBeam, gaussian_psf
from invdiff.operators.base import Operator

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAGIC = b"\x93NUMPY"
MAX_TOML = 2**20  # bytes
EVERYWHERE = ("modality", "units", "image_scale", "pixel_size", "item", "metadata", "noise")


def matches(head: Head) -> bool:
    """A .npy array, or a TOML file that states a modality."""
    if head.start.startswith(MAGIC):
        return True
    return head.path.suffix == ".toml" and b"modality" in head.start


def read(path: Path) -> Measurement:
    """The measurement that the pair of files describes.

    Args:
        path: of the array or of the TOML file; the other one has the same name with the other suffix.

    Raises:
        FileNotFoundError: one of the two is missing. OSError: truncated.
        ValueError: an unknown or missing key, naming the known ones; a value of the wrong kind; arrays whose header
            does not agree with the file's size, objects (pickles), non-finite values, shapes that do not fit.
    """
    toml, npy = path.with_suffix(".toml"), path.with_suffix(".npy")
    if path.suffix not in (".toml", ".npy"):
        npy = path
    for file, role in ((toml, "what the array is"), (npy, "the array")):
        if not file.is_file():
            raise FileNotFoundError(
                f"{file.name}, with {role}, is missing beside {path.name}; see invdiff.datasets.npy_toml."
            )
    table = _Table(read_toml(toml), toml.name)
    modality = table.text("modality")
    if modality not in MODALITIES:
        raise ValueError(f"{toml.name}: unknown modality {modality!r}; known: {', '.join(MODALITIES)}.")
    section, build = MODALITIES[modality]
    table.known(*EVERYWHERE, section)
    stated = _noise(table.table("noise"), modality) if "noise" in table.values or modality != "mri" else None
    y, A, scale, estimated = build(read_npy(npy), table.table(section), toml.parent, stated)
    noise = stated or estimated
    assert noise is not None
    side = table.number("pixel_size", 0.0)
    pixel_size = A.geometry.pixel_spacing if isinstance(A, CT) else (side, side)
    metadata = {"file": npy.name, **table.table("metadata", {}).values}
    if min(pixel_size) > 0:
        metadata = {**placement(A.in_shape[-2:], pixel_size), **metadata}
    return Measurement(
        y, A, noise,
        image_scale=table.number("image_scale", scale),
        units=table.text("units", "1/mm" if isinstance(A, CT) else "relative"),
        item=table.text("item", npy.stem),
        metadata=metadata,
    )  # fmt: skip


def read_npy(path: Path) -> np.ndarray:
    """A ``.npy`` array of finite numbers, its header checked against the file's size before anything is allocated.

    Raises:
        OSError: shorter than its header says. ValueError: not such a file, objects, longer than its header says,
            non-finite values.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(2**16)
    if not start.startswith(MAGIC):
        raise ValueError(f"{path.name} is not a .npy file.")
    stream = io.BytesIO(start)
    try:
        version = np.lib.format.read_magic(stream)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(stream)
        n_bytes = math.prod(shape) * dtype.itemsize
    except Exception as error:
        raise ValueError(f"{path.name}: the .npy header is damaged ({' '.join(str(error).split())}).") from error
    if dtype.kind not in "biufc":
        raise ValueError(f"{path.name} must hold numbers, it has dtype {dtype}.")
    held = size - stream.tell()
    if min(shape, default=1) < 1 or n_bytes != held:
        kind = OSError if n_bytes > held else ValueError
        raise kind(
            f"{path.name}: the header says {' x '.join(map(str, shape))} of {dtype}, {n_bytes} bytes; the file holds "
            f"{held}."
        )
    data = np.fromfile(path, dtype, offset=stream.tell()).reshape(shape, order="F" if fortran else "C")
    if dtype.kind in "fc" and not (finite := np.isfinite(data)).all():
        raise ValueError(f"{path.name} has {int((~finite).sum())} non-finite value(s) in {data.size}.")
    return data


def read_toml(path: Path) -> dict[str, Any]:
    """A small TOML file. Raises ValueError."""
    if path.stat().st_size > MAX_TOML:
        raise ValueError(f"{path.name} has more than {MAX_TOML} bytes; expected a short description.")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # a byte order mark is no content
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path.name} is not valid TOML ({error}).") from None


class _Table:
    """A TOML table whose keys are asked for by name and kind; what is missing, wrong or left over is an error."""

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, dict):
            raise ValueError(f"{where} must be a table, got {values!r}.")
        self.values, self.where = values, where

    def known(self, *keys: str) -> None:
        """Raise ValueError for any other key."""
        if unknown := sorted(set(self.values) - set(keys)):
            raise ValueError(f"{self.where} has no key {', '.join(unknown)}; it has {', '.join(keys)}.")

    def get(self, key: str, kinds: tuple[type, ...], what: str, default: Any = None) -> Any:
        if key not in self.values:
            if default is None:
                raise ValueError(f"{self.where}: the key '{key}' ({what}) is missing.")
            return default
        value = self.values[key]
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise ValueError(f"{self.where}: '{key}' must be {what}, got {value!r}.")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        return str(self.get(key, (str,), "a string", default))

    def number(self, key: str, default: float | None = None) -> float:
        value = float(self.get(key, (int, float), "a number", default))
        if not math.isfinite(value):
            raise ValueError(f"{self.where}: '{key}' must be finite, got {value}.")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise ValueError(f"{self.where}: '{key}' must be true or false, got {value!r}.")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        return int(self.get(key, (int,), "an integer", default))

    def numbers(self, key: str) -> list[float]:
        value = self.get(key, (list,), "a list of numbers")
        if not all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in value):
            raise ValueError(f"{self.where}: '{key}' must be a list of finite numbers, got {value!r}.")
        return [float(v) for v in value]

    def table(self, key: str, default: dict[str, Any] | None = None) -> _Table:
        return _Table(self.get(key, (dict,), "a table", default), f"{self.where} [{key}]")


Built = tuple[Tensor, Operator, float, Noise | None]  # y, A, image_scale unless stated, noise if it need not be stated


def _parallel(data: np.ndarray, table: _Table, folder: Path, stated: Noise | None) -> Built:
    return _ct(data, table, ParallelBeam, ())


def _fan(data: np.ndarray, table: _Table, folder: Path, stated: Noise | None) -> Built:
    return _ct(data, table, FanBeam, ("source_origin", "source_detector"))


def _ct(data: np.ndarray, table: _Table, beam: Callable[..., Any], lengths: tuple[str, ...]) -> Built:
    table.known("image_shape", "pixel_size", "angles", "detector_spacing", "detector_offset", "supersampling", *lengths)
    angles = _angles(table)
    if data.ndim != 2 or data.shape[0] != len(angles) or data.dtype.kind not in "fiu":
        raise ValueError(
            f"{table.where}: {len(angles)} angles need a real array (n_views, n_detectors) with as many rows, the "
            f".npy file has {data.dtype} of shape {data.shape}."
        )
    shape = table.numbers("image_shape")
    if len(shape) != 2 or any(n != int(n) or not 1 <= n <= 2**14 for n in shape):
        raise ValueError(f"{table.where}: image_shape must be two integers [ny, nx], got {shape}.")
    geometry = beam(
        image_shape=(int(shape[0]), int(shape[1])), pixel_size=table.number("pixel_size"),
        angles=tuple(math.radians(a) for a in angles), n_detectors=data.shape[1],
        detector_spacing=table.number("detector_spacing"), detector_offset=table.number("detector_offset", 0.0),
        **{name: table.number(name) for name in lengths},
    )  # fmt: skip
    supersampling = table.integer("supersampling", 1)
    if not 1 <= supersampling <= 64:
        raise ValueError(f"{table.where}: supersampling must lie between 1 and 64, got {supersampling}.")
    return torch.from_numpy(data.astype(np.float32))[None], CT(geometry, supersampling=supersampling), 1.0, None


def _angles(table: _Table) -> list[float]:
    """View angles in degrees: a list, or start, stop (excluded) and n."""
    if isinstance(table.values.get("angles"), dict):
        span = table.table("angles")
        span.known("start", "stop", "n")
        n = span.integer("n")
        if not 1 <= n <= 2**20:
            raise ValueError(f"{span.where}: n must be a positive number of views, got {n}.")
        return np.linspace(span.number("start"), span.number("stop"), n, endpoint=False).tolist()
    return table.numbers("angles")


def _blur(data: np.ndarray, table: _Table, folder: Path, stated: Noise | None) -> Built:
    table.known("psf")
    y = _image(data, table)
    if isinstance(table.values.get("psf"), dict):
        gaussian = table.table("psf")
        gaussian.known("sigma", "size")
        size = gaussian.integer("size")
        if size > min(y.shape[-2:]):
            raise ValueError(f"{gaussian.where}: a PSF of size {size} is larger than the image {tuple(y.shape[-2:])}.")
        psf = gaussian_psf(gaussian.number("sigma"), size)
    else:
        array = _neighbour(table, "psf", folder)
        if array.ndim != 2 or array.dtype.kind not in "fiu":
            raise ValueError(f"{table.where}: the PSF must be a real array (y, x), got shape {array.shape}.")
        psf = torch.from_numpy(array.astype(np.float32))
    return y, Blur(psf, (y.shape[0], y.shape[1], y.shape[2])), 1.0, None


def _inpainting(data: np.ndarray, table: _Table, folder: Path, stated: Noise | None) -> Built:
    table.known("mask")
    y = _image(data, table)
    mask = torch.from_numpy(_neighbour(table, "mask", folder) != 0)
    if tuple(mask.shape) not in (tuple(y.shape), tuple(y.shape[-2:])):
        raise ValueError(
            f"{table.where}: the mask {tuple(mask.shape)} does not have the image's shape {tuple(y.shape)}."
        )
    mask = mask.expand(y.shape).clone()
    return y * mask, Inpainting(mask), 1.0, None


def _mri(data: np.ndarray, table: _Table, folder: Path, stated: Noise | None) -> Built:
    table.known("mask", "maps", "magnitude")
    mask, maps = (_neighbour(table, key, folder) if key in table.values else None for key in ("mask", "maps"))
    sigma = stated.sigma if isinstance(stated, ComplexGaussianNoise) else None
    m = kspace_measurement(data, mask=mask, maps=maps, sigma=sigma, magnitude=table.flag("magnitude", True))
    return m.y, m.A, m.image_scale, m.noise


def _image(data: np.ndarray, table: _Table) -> Tensor:
    if data.ndim not in (2, 3) or data.dtype.kind not in "fiu":
        raise ValueError(
            f"{table.where}: expected a real image (y, x) or (channel, y, x), got {data.dtype} {data.shape}."
        )
    return torch.from_numpy(data.astype(np.float32)).reshape((-1, *data.shape[-2:]))


def _neighbour(table: _Table, key: str, folder: Path) -> np.ndarray:
    """Another array in the same folder."""
    name = table.text(key)
    if Path(name).name != name or not (folder / name).is_file():
        raise ValueError(f"{table.where}: '{key}' must name a .npy file in the same folder, got {name!r}.")
    return read_npy(folder / name)


def _noise(table: _Table, modality: str) -> Noise:
    table.known("sigma", "n_photons")
    if len(table.values) != 1:
        raise ValueError(f"{table.where} must state either sigma or n_photons, it states {list(table.values)}.")
    if "n_photons" in table.values:
        return PoissonLogNoise(table.number("n_photons"))
    sigma = table.number("sigma")
    return ComplexGaussianNoise(sigma) if modality == "mri" else GaussianNoise(sigma)


# modality: (the table that describes its operator, what builds data and operator from it)
MODALITIES: dict[str, tuple[str, Callable[[np.ndarray, _Table, Path, Noise | None], Built]]] = {
    "ct-parallel": ("geometry", _parallel),
    "ct-fan": ("geometry", _fan),
    "mri": ("mri", _mri),
    "blur": ("blur", _blur),
    "inpainting": ("inpainting", _inpainting),
}
