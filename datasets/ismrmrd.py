"""ISMRMRD raw data (HDF5): Cartesian MRI slice by slice, prewhitened by the file's noise scans.

Inati et al., "ISMRM Raw data format: a proposed standard for MRI raw datasets", Magnetic Resonance in Medicine 77
(2017). One group holds ``xml``, the description of the scan, and ``data``, one record per readout. Images have rows
along the phase-encoding direction and columns along the readout; in three dimensions, slices are positions along the
readout, with rows along the second phase-encoding direction and columns along the first.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from invdiff.datasets.files import Head
from invdiff.datasets.hdf5 import damaged, open_hdf5, require_stored, text
from invdiff.datasets.kspace import crop_readout, item_index, kspace_measurement, readout_phases
from invdiff.measurement import Measurement
from invdiff.operators.mri_coils import noise_covariance, prewhiten

NOISE, CALIBRATION, CALIBRATION_AND_IMAGING, REVERSE = 19, 20, 21, 22  # bits of the flags, counted from 1
NO_IMAGE = (23, 24, 26, 27, 28, 29, 30, 31)  # navigators, phase correction, feedback, dummies, stabilisation
ITEM = ("slice", "contrast", "phase", "repetition", "set")  # counters that tell images apart
FIELDS = {
    "flags", "number_of_samples", "active_channels", "discard_pre", "discard_post", "center_sample",
    "encoding_space_ref", "trajectory_dimensions", "sample_time_us", "idx",
}  # fmt: skip
MAX_XML = 2**22  # characters
MAX_EMPTY = 64  # the encoded matrix may be this many times larger than the samples that fill it


@dataclass(frozen=True)
class ScanHeader:
    """What an ISMRMRD XML header says about the first encoding.

    Attributes:
        encoded, recon: matrix sizes (x, y, z); x is the readout.
        encoded_mm, recon_mm: fields of view (x, y, z), mm.
        trajectory: e.g. "cartesian".
        center, maximum: of the first phase-encoding counter; None where the header does not say.
        center_2: of the second.
        calibration: mode of the parallel-imaging calibration, e.g. "embedded"; "" if not said.
        noise_bandwidth: relative receiver noise bandwidth, 1 if not said.
    """

    encoded: tuple[int, int, int]
    recon: tuple[int, int, int]
    encoded_mm: tuple[float, float, float]
    recon_mm: tuple[float, float, float]
    trajectory: str
    center: int | None
    maximum: int | None
    center_2: int | None
    calibration: str
    noise_bandwidth: float

    @classmethod
    def parse(cls, xml: str, name: str) -> ScanHeader:
        """Read the XML text of the file ``name``.

        Raises:
            ValueError: not XML, with a document type or entities (refused), or without a sensible encoding.
        """
        if len(xml) > MAX_XML:
            raise ValueError(f"{name}: the ISMRMRD header has {len(xml)} characters; more than {MAX_XML} are refused.")
        if "<!DOCTYPE" in xml.upper() or "<!ENTITY" in xml.upper():
            raise ValueError(f"{name}: the ISMRMRD header declares a document type or entities; that is refused.")
        try:
            root = ElementTree.fromstring(xml)  # as text: a declared encoding cannot hide a document type
        except (ElementTree.ParseError, LookupError, ValueError) as error:
            raise ValueError(f"{name}: the ISMRMRD header is not valid XML ({error}).") from None

        def find(path: str) -> str | None:
            node: Any = root
            for tag in path.split("/"):
                node = next((child for child in node if child.tag.rpartition("}")[2] == tag), None)
                if node is None:
                    return None
            return (node.text or "").strip()

        def number(path: str, kind: type, low: float, default: Any = ...) -> Any:
            value = find(path)
            if value is None and default is not ...:
                return default
            try:
                result = kind(value)
            except (TypeError, ValueError):
                result = -math.inf
            if not low <= result < 2**31:
                raise ValueError(f"{name}: the ISMRMRD header's {path} must be a number from {low:g}, got {value!r}.")
            return result

        def triple(path: str, kind: type, low: float) -> Any:
            return tuple(number(f"encoding/{path}/{axis}", kind, low) for axis in "xyz")

        limits = "encoding/encodingLimits/kspace_encoding_step_1"
        limits_2 = "encoding/encodingLimits/kspace_encoding_step_2"
        return cls(
            encoded=triple("encodedSpace/matrixSize", int, 1),
            recon=triple("reconSpace/matrixSize", int, 1),
            encoded_mm=triple("encodedSpace/fieldOfView_mm", float, 1e-6),
            recon_mm=triple("reconSpace/fieldOfView_mm", float, 1e-6),
            trajectory=(find("encoding/trajectory") or "").lower(),
            center=number(f"{limits}/center", int, 0, None),
            maximum=number(f"{limits}/maximum", int, 0, None),
            center_2=number(f"{limits_2}/center", int, 0, None),
            calibration=(find("encoding/parallelImaging/calibrationMode") or "").lower(),
            noise_bandwidth=number("acquisitionSystemInformation/relativeReceiverNoiseBandwidth", float, 1e-3, 1.0),
        )


def read_ismrmrd(path: str | Path, *, index: int | None = None, magnitude: bool = True) -> Measurement:
    """Read one image of a raw-data file as a measurement.

    Noise scans, where there are any, whiten the coils (scaled by the dwell times and the receiver's relative noise
    bandwidth), so that ``noise.sigma`` is 1 in each component; without them it is estimated from the edge of k-space.
    Repeated lines are averaged (and sigma divided by the root of their number) if all are repeated equally often, else
    the first is kept. Lines of an embedded calibration are used as data, those of a separate one are not. Readout
    oversampling is removed, unless echoes are incomplete.

    A three-dimensional scan is transformed along its readout, without oversampling, and each position there is a slice:
    image (z, y), of the two phase-encoding directions.

    Args:
        path: an ``.h5`` file.
        index: image, in the order of (slice, contrast, phase, repetition, set), in three dimensions after the position
            along the readout; None: the middle one.
        magnitude: as in :func:`kspace_measurement`.

    Raises:
        FileNotFoundError, OSError: no such file, or a damaged one.
        ValueError: content that does not make sense, or that this reader does not do: non-Cartesian encodings, reversed
            readouts (EPI), incomplete echoes in three dimensions.

    Example:
        >>> import tempfile
        >>> import ismrmrd  # pip install ismrmrd, to write such files
        >>> from invdiff.datasets import read_ismrmrd
        >>> from invdiff.operators import birdcage_maps, fft2c
        >>> kspace = fft2c(birdcage_maps(4, (32, 32)) * torch.ones(1, 32, 32)) + 1e-3 * torch.randn(4, 32, 32)
        >>> size = "<x>32</x><y>32</y><z>1</z>"
        >>> space = f"<matrixSize>{size}</matrixSize><fieldOfView_mm>{size}</fieldOfView_mm>"
        >>> xml = "<ismrmrdHeader><encoding><encodedSpace>{0}</encodedSpace><reconSpace>{0}</reconSpace>" \\
        ...     "<trajectory>cartesian</trajectory></encoding></ismrmrdHeader>"
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     f = ismrmrd.Dataset(f"{folder}/raw.h5")
        ...     f.write_xml_header(xml.format(space).encode())
        ...     for i in range(32):
        ...         line = ismrmrd.Acquisition.from_array(kspace[:, :, i].numpy(), center_sample=16)
        ...         line.idx.kspace_encode_step_1 = i
        ...         f.append_acquisition(line)
        ...     f.close()
        ...     m = read_ismrmrd(f"{folder}/raw.h5")
        >>> m.A.out_shape
        (4, 32, 32)
    """
    path = Path(path)
    with damaged(path), open_hdf5(path) as f:
        group = f[_group(f)]
        records = group["data"]
        header = ScanHeader.parse(text(group, "xml"), path.name)
        heads = _heads(records, path.name)
        lines = _imaging(heads, header, path.name)
        keys = [tuple(int(heads["idx"][name][i]) for name in ITEM) for i in lines]
        items = sorted(set(keys))
        volume = header.encoded[2] > 1
        width = round(header.encoded[0] * header.recon_mm[0] / header.encoded_mm[0])
        width = width if 1 <= width < header.encoded[0] else header.encoded[0]
        n_items = len(items) * (width if volume else 1)
        index = item_index(index, n_items)
        position, item = divmod(index, len(items))
        chosen = [i for i, key in zip(lines, keys, strict=True) if key == items[item]]
        along = (position, width) if volume else None
        y, sampled, n_averages = _fill(records, heads, chosen, header, along, path.name)
        noise = np.flatnonzero(_flag(heads, NOISE)).tolist()
        samples = [_samples(records, heads, i, path.name) for i in noise]

    sigma = None
    if samples:
        if any(len(s) != len(y) for s in samples):
            raise ValueError(f"{path.name}: the noise scans do not have the {len(y)} coils of the data.")
        dwell, noise_dwell = (float(heads["sample_time_us"][i[0]]) for i in (chosen, noise))
        scale = noise_dwell / dwell if noise_dwell > 0 and dwell > 0 else 1.0
        covariance = noise_covariance(torch.from_numpy(np.concatenate(samples, 1))) * scale / header.noise_bandwidth
        y, sigma = prewhiten(y, covariance), n_averages**-0.5
    if not volume and width < y.shape[2] and bool((sampled == sampled[:, :1]).all()):
        y, sampled = crop_readout(y, width, -1), sampled[:, :1]
    size = [mm / n for mm, n in zip(header.encoded_mm, header.encoded, strict=True)]
    return kspace_measurement(
        y,
        mask=sampled,
        sigma=sigma,
        magnitude=magnitude,
        item=f"{path.stem}_{index}",
        metadata={
            "file": path.name,
            "index": index,
            "n_items": n_items,
            **dict(zip(ITEM, items[item], strict=True)),
            **({"readout_position": position} if volume else {}),
            "pixel_size_y_mm": size[2 if volume else 1],
            "pixel_size_x_mm": size[1 if volume else 0],
            "slice_thickness_mm": size[0 if volume else 2],
            "voxel_size_mm": [size[1], size[2], size[0]] if volume else size,
            "n_averages": n_averages,
            "noise": "prewhitened by the file's noise scans" if samples else "estimated from the edge of k-space",
        },
    )


read = read_ismrmrd


def matches(head: Head) -> bool:
    """An HDF5 file with ``xml`` and ``data`` in one group."""
    return any(key.endswith("/xml") and f"{key[:-3]}data" in head.keys for key in head.keys)


def _group(f: h5py.File) -> str:
    for name in sorted(f):
        if isinstance(f[name], h5py.Group) and all(isinstance(f[name].get(k), h5py.Dataset) for k in ("xml", "data")):
            return name
    raise ValueError(f"{Path(f.filename).name}: no group with 'xml' and 'data'; it has {', '.join(sorted(f))}.")


def _heads(records: h5py.Dataset, name: str) -> np.ndarray:
    """The headers of all readouts."""
    kind = records.dtype
    if records.ndim != 1 or kind.names is None or not {"head", "data"} <= set(kind.names):
        raise ValueError(f"{name}: 'data' must be a list of (head, traj, data) records, it has {kind}.")
    missing = FIELDS - set(kind["head"].names or ())
    if missing or not set(ITEM) | {"kspace_encode_step_1", "kspace_encode_step_2"} <= set(
        kind["head"]["idx"].names or ()
    ):
        raise ValueError(f"{name}: the readout headers lack {', '.join(sorted(missing)) or 'counters'}.")
    if h5py.check_vlen_dtype(kind["data"]) != np.dtype("float32"):
        raise ValueError(f"{name}: samples must be variable-length float32, got {kind['data']}.")
    require_stored(records)
    if not len(records):
        raise ValueError(f"{name}: no readouts.")
    return records.fields("head")[:]


def _flag(heads: np.ndarray, bit: int) -> np.ndarray:
    return (heads["flags"] >> np.uint64(bit - 1)) & np.uint64(1) == 1


def _imaging(heads: np.ndarray, header: ScanHeader, name: str) -> list[int]:
    """Indices of the readouts that make images; refuses what cannot be done."""
    skip = _flag(heads, NOISE) | (heads["encoding_space_ref"] != 0)
    for bit in NO_IMAGE:
        skip |= _flag(heads, bit)
    if header.calibration not in ("", "embedded", "interleaved"):
        skip |= _flag(heads, CALIBRATION) & ~_flag(heads, CALIBRATION_AND_IMAGING)
    lines = np.flatnonzero(~skip)
    if not len(lines):
        raise ValueError(f"{name}: none of the {len(heads)} readouts is image data.")
    if header.trajectory != "cartesian" or heads["trajectory_dimensions"][lines].any():
        raise ValueError(
            f"{name}: this reader does Cartesian scans; the trajectory is {header.trajectory!r}, or given per readout. "
            f"Build a NonCartesianMRI operator from it."
        )
    if header.encoded[2] == 1 and heads["idx"]["kspace_encode_step_2"][lines].any():
        raise ValueError(f"{name}: readouts of a three-dimensional encoding in a matrix {header.encoded} of one slice.")
    if _flag(heads, REVERSE)[lines].any():
        raise ValueError(f"{name}: reversed readouts (EPI) need a phase correction that this reader does not do.")
    return lines.tolist()


def _samples(records: h5py.Dataset, heads: np.ndarray, i: int, name: str) -> np.ndarray:
    """Samples (coil, n_samples) of one readout, complex64."""
    n, n_coils = int(heads["number_of_samples"][i]), int(heads["active_channels"][i])
    flat = np.asarray(records.fields("data")[i], dtype=np.float32)
    if n < 1 or n_coils < 1 or flat.shape != (2 * n * n_coils,):
        raise ValueError(
            f"{name}: readout {i} announces {n_coils} coils of {n} complex samples, but holds {flat.size} numbers."
        )
    if not np.isfinite(flat).all():
        raise ValueError(f"{name}: readout {i} has non-finite values.")
    return flat.view(np.complex64).reshape(n_coils, n)


def _fill(
    records: h5py.Dataset,
    heads: np.ndarray,
    lines: list[int],
    header: ScanHeader,
    along: tuple[int, int] | None,
    name: str,
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """k-space (coil, y, x) of the encoded matrix, which of its positions (y, x) are sampled, and how often.

    With ``along``, a position along the readout and how many there are: (coil, z, y) and (z, y) of that position.
    """
    nx, ny, nz = header.encoded
    n_coils, n = _samples(records, heads, lines[0], name).shape
    if nz * ny * nx > MAX_EMPTY * len(lines) * n:
        raise ValueError(
            f"{name}: {len(lines)} readouts of {n} samples cannot fill the encoded matrix {nx} x {ny} x {nz}."
        )
    phases = None if along is None else readout_phases(*along, nx)
    center = ny // 2 if header.center is None else header.center
    center_2 = nz // 2 if header.center_2 is None else header.center_2
    step_1, step_2 = (heads["idx"][f"kspace_encode_step_{i}"][lines].astype(np.int64) for i in (1, 2))
    ys, zs = step_1 - center + ny // 2, step_2 - center_2 + nz // 2
    outside = (ys < 0) | (ys >= ny) | (zs < 0) | (zs >= nz)
    if outside.any():
        raise ValueError(
            f"{name}: readout {lines[outside.argmax()]} lies outside of the encoded matrix {nx} x {ny} x {nz}."
        )
    kspace = np.zeros((n_coils, nz, ny, nx if phases is None else 1), np.complex64)
    sampled = np.zeros(kspace.shape[1:], bool)
    repeats = np.bincount(zs * ny + ys)
    n_averages = int(repeats.max()) if len(set(repeats[repeats > 0])) == 1 else 1
    for i, y, z in zip(lines, ys, zs, strict=True):
        data = _samples(records, heads, i, name)
        if len(data) != n_coils:
            raise ValueError(f"{name}: readout {i} has {len(data)} coils, others {n_coils}.")
        pre, post = int(heads["discard_pre"][i]), int(heads["discard_post"][i])
        if pre + post >= data.shape[1]:
            raise ValueError(f"{name}: readout {i} discards {pre} + {post} of its {data.shape[1]} samples.")
        data = data[:, pre : data.shape[1] - post]
        x = nx // 2 - (int(heads["center_sample"][i]) - pre)
        if x < 0 or x + data.shape[1] > nx:
            raise ValueError(f"{name}: readout {i} lies outside of the encoded matrix {nx} x {ny} x {nz}.")
        if phases is not None:
            if data.shape[1] < nx:
                raise ValueError(
                    f"{name}: readout {i} holds {data.shape[1]} of {nx} samples; a three-dimensional scan with "
                    f"incomplete echoes cannot be taken apart into slices."
                )
            data, x = (data @ phases)[:, None].astype(np.complex64), 0
        if n_averages > 1 or not sampled[z, y].any():
            kspace[:, z, y, x : x + data.shape[1]] += data / n_averages
            sampled[z, y, x : x + data.shape[1]] = True
    plane = np.s_[..., 0, :, :] if phases is None else np.s_[..., 0]
    return torch.from_numpy(kspace[plane]), torch.from_numpy(sampled[plane]), n_averages
