"""DICOM-CT-PD: projections of clinical CT scanners with their geometry (Mayo Clinic's LDCT-and-Projection-data).

B. Chen, X. Duan, Z. Yu, S. Leng, L. Yu, C. McCollough, "Development and validation of an open data format for CT
projection data", Med. Phys. 42, 2015; T. Moen and others, "Low-dose CT image and projection dataset", Med. Phys. 48,
2021, table IV. A folder with one DICOM file per view, numbered by InstanceNumber; the geometry is in private tags. The
detector's focal centre is at ``rho (-sin phi, cos phi)``, columns increase in the direction in which it moves for
growing phi, rows with z; the central element counts from 1. Images come out in the scanner's axes, which a patient
image may mirror.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from invdiff.datasets.dicom import dicom_files, pixels, read_dataset
from invdiff.datasets.files import Head, Volume
from invdiff.datasets.geometry import coarsest_rebin, equispaced, placement
from invdiff.datasets.htc import noise_level
from invdiff.measurement import Measurement
from invdiff.noise import GaussianNoise
from invdiff.operators.ct import CT
from invdiff.operators.ct_geometry import CurvedFanBeam, FanBeam

ROWS, COLUMNS, SHAPE = 0x70291010, 0x70291011, 0x7029100B
TRANSVERSE, AXIAL = 0x70291002, 0x70291006  # spacing of columns and rows on the detector, mm
ANGLE, Z, RHO, DISTANCE, CENTRE = 0x70311001, 0x70311002, 0x70311003, 0x70311031, 0x70311033
SHIFTS = {"angular_shift_rad": 0x7033100B, "axial_shift_mm": 0x7033100C, "radial_shift_mm": 0x7033100D}
VIEWS_PER_TURN, WATER = 0x70331013, 0x70411001
BEAMS = {"CYLINDRICAL": CurvedFanBeam, "FLAT": FanBeam}


def matches(head: Head) -> bool:
    """A DICOM file, or a folder of them, with the private tags of the detector's position."""
    try:
        file = head.path if head.path.is_file() else next(dicom_files(head.path))
        return ANGLE in read_dataset(file, pixels=False)
    except Exception:
        return False


def read(
    path: Path,
    *,
    z: float | None = None,
    views: int | None = None,
    image_shape: tuple[int, int] = (128, 128),
    pixel_size: float | None = None,
    rebin: int | None = None,
) -> Measurement | Volume:
    """One transaxial slice as a fan-beam measurement of attenuation in 1/mm; all projections of a helical scan.

    A circular scan gives its central plane. Of a helical scan, ``z`` chooses a slice: the turn around it is rebinned
    to that plane (F. Noo, M. Defrise, R. Clackdoyle, "Single-slice rebinning method for helical cone-beam CT",
    Phys. Med. Biol. 44, 1999): each fan ray takes the cone ray above it that meets the slice next to the axis. This
    is an approximation, good for few detector rows. Without ``z``, the result is a Volume of all line integrals,
    (view, row, column), with the geometry of every view in its metadata; nothing here reconstructs that.

    Args:
        path: the folder.
        z: position of the slice, mm, as the tags count it.
        views: equispaced views of the turn to keep; None: all.
        image_shape: (ny, nx) of the reconstruction.
        pixel_size: mm; None: the field of view over the shorter side.
        rebin: neighbouring detector columns to average, a divisor of their number; None: the most for which a
            column, scaled to the axis, is at most 1/1.5 of a pixel.

    Raises:
        ValueError: no such file, tags that are missing or make no sense, a flying focal spot that moves within the
            plane (no geometry here has it), a slice outside the scan. OSError: truncated.
    """
    files = [path] if path.is_file() else sorted(dicom_files(path))
    if not files:
        raise ValueError(f"{path.name} holds no DICOM file.")
    headers = [read_dataset(file, pixels=False) for file in files]
    order = _order(headers)
    files, headers = [files[i] for i in order], [headers[i] for i in order]
    first = headers[0]

    def every(tag: int) -> np.ndarray:
        return np.array([_number(h, tag, f.name) for h, f in zip(headers, files, strict=True)])

    rows, columns = int(_number(first, ROWS, files[0].name)), int(_number(first, COLUMNS, files[0].name))
    angles, position = np.unwrap(every(ANGLE)), every(Z)
    shifts = {name: every(tag) if tag in first else np.zeros(len(files)) for name, tag in SHIFTS.items()}
    height = position + shifts["axial_shift_mm"]
    scalars = {
        "source_origin_mm": _number(first, RHO, files[0].name),
        "source_detector_mm": _number(first, DISTANCE, files[0].name),
        "column_spacing_mm": _number(first, TRANSVERSE, files[0].name),
        "row_spacing_mm": _number(first, AXIAL, files[0].name),
        "central_column": _number(first, CENTRE, files[0].name, 0, 2) - 1,
        "central_row": _number(first, CENTRE, files[0].name, 1, 2) - 1,
        "water_per_mm": _number(first, WATER, files[0].name) if WATER in first else 0.0192,
    }
    for name in ("source_origin_mm", "source_detector_mm", "column_spacing_mm", "row_spacing_mm", "water_per_mm"):
        if not scalars[name] > 0:
            raise ValueError(f"{path.name}: {name} must be positive, the tags say {scalars[name]:g}.")
    shape = _text(first, SHAPE)
    metadata = {
        "file": path.name, "detector_shape": shape, **scalars, "source": "DICOM-CT-PD",
    }  # fmt: skip

    helical = np.ptp(position) > 0.5 * scalars["row_spacing_mm"]
    if z is None and helical:
        data = np.empty((len(files), rows, columns), dtype=np.float32)
        for i, file in enumerate(files):
            data[i] = _projection(file, rows, columns)
        lists = {"angles_rad": angles, "z_mm": position, **shifts}
        return Volume(data, units="line integral", metadata=metadata | {k: v.tolist() for k, v in lists.items()})

    if shape not in BEAMS:
        raise ValueError(f"{path.name}: unknown detector shape {shape!r}; known: {', '.join(BEAMS)}.")
    if max(np.abs(shifts["angular_shift_rad"]).max(), np.abs(shifts["radial_shift_mm"]).max()) > 1e-6:
        raise ValueError(
            f"{path.name}: the focal spot moves within the plane (flying focal spot); no geometry here has that. "
            f"Of a helical scan, read the projections without the option z."
        )
    z = float(position.mean()) if z is None else float(z)
    turn = _turn(path, angles, height, z)
    turn = turn[equispaced(len(turn), len(turn) if views is None else views)]

    image_shape = (int(image_shape[0]), int(image_shape[1]))
    source_origin, source_detector = scalars["source_origin_mm"], scalars["source_detector_mm"]
    beam: Any = BEAMS[shape](
        image_shape=(1, 1), pixel_size=1e-3, angles=tuple(angles[turn] + math.pi), n_detectors=columns,
        detector_spacing=scalars["column_spacing_mm"], source_origin=source_origin, source_detector=source_detector,
    ).with_centre(scalars["central_column"])  # fmt: skip
    gamma = beam.fan_angles()
    if pixel_size is None:
        pixel_size = 2 * source_origin * math.sin(np.abs(gamma).max()) / min(image_shape)
    at_axis = beam.detector_spacing / beam.magnification
    rebin = coarsest_rebin(columns, at_axis, pixel_size) if rebin is None else rebin
    if rebin < 1 or columns % rebin:
        raise ValueError(f"rebin must divide the {columns} detector columns, got {rebin}.")

    reach = source_detector / (1.0 if shape == "CYLINDRICAL" else np.cos(gamma))  # from source to column, in the plane
    sinogram = np.empty((len(turn), columns))
    for i, view in enumerate(turn):
        w = (z - height[view]) * reach / (source_origin * np.cos(gamma))  # height on the detector, mm
        row = np.clip(scalars["central_row"] + w / scalars["row_spacing_mm"], 0, rows - 1)
        low = np.minimum(row.astype(int), max(rows - 2, 0))
        high, part, column = np.minimum(low + 1, rows - 1), row - low, np.arange(columns)
        cone = _projection(files[view], rows, columns)
        sinogram[i] = (cone[low, column] * (1 - part) + cone[high, column] * part) * reach / np.hypot(reach, w)
    y = sinogram.reshape(len(turn), -1, rebin).mean(-1)
    beam = replace(
        beam, image_shape=image_shape, pixel_size=pixel_size, n_detectors=columns // rebin,
        detector_spacing=beam.detector_spacing * rebin,
    )  # fmt: skip
    return Measurement(
        y=torch.from_numpy(y).float()[None],
        A=CT(beam, supersampling=math.ceil(4 * rebin * at_axis / pixel_size)),  # sub-rays at most 1/4 pixel apart
        noise=GaussianNoise(noise_level(y)),
        image_scale=scalars["water_per_mm"],
        units="1/mm",
        item=f"{path.stem}_z{z:g}",
        metadata={
            **metadata,
            "z_mm": z,
            "rebin": int(rebin),
            **placement(image_shape, pixel_size, _thickness(scalars)),
        },
    )


def _order(headers: list[Any]) -> list[int]:
    """Indices of the views by InstanceNumber if all files have distinct ones, else as they are: by file name."""
    numbers = [h.get("InstanceNumber") for h in headers]
    if all(isinstance(n, int) for n in numbers) and len(set(numbers)) == len(numbers):
        return sorted(range(len(numbers)), key=numbers.__getitem__)
    return list(range(len(numbers)))


def _turn(path: Path, angles: np.ndarray, height: np.ndarray, z: float) -> np.ndarray:
    """Indices of the views of one turn, those closest to the slice; all of them, if they are less than a turn."""
    step = float(np.median(np.abs(np.diff(angles)))) if len(angles) > 1 else 0.0
    n = round(2 * math.pi / step) if step > 0 else len(angles)
    if n >= len(angles):
        return np.arange(len(angles))
    if not height.min() - 1e-3 <= z <= height.max() + 1e-3:
        raise ValueError(f"{path.name}: z must lie in the scan, {height.min():g} to {height.max():g} mm, got {z:g}.")
    start = int(np.clip(np.abs(height - z).argmin() - n // 2, 0, len(angles) - n))
    return np.arange(start, start + n)


def _thickness(scalars: dict[str, float]) -> float:
    """Height of a detector row at the axis, mm."""
    return scalars["row_spacing_mm"] * scalars["source_origin_mm"] / scalars["source_detector_mm"]


def _projection(file: Path, rows: int, columns: int) -> np.ndarray:
    """Line integrals (row, column) of one view; the files hold either this array or its transpose."""
    data = pixels(file)
    if data.shape == (rows, columns):
        return data
    if data.shape == (columns, rows):
        return data.T
    raise ValueError(f"{file.name}: the detector has {rows} x {columns} elements, the file holds {data.shape}.")


def _number(ds: Any, tag: int, name: str, index: int = 0, n: int = 1) -> float:
    """A finite number of a private tag, which some files store as unparsed bytes. Raises ValueError."""
    value = ds[tag].value if tag in ds else None
    try:
        if isinstance(value, bytes):
            value = np.frombuffer(value, {2 * n: "<u2", 4 * n: "<f4", 8 * n: "<f8"}[len(value)])
        number = float(np.atleast_1d(np.asarray(value, dtype=np.float64))[index])
    except (KeyError, ValueError, TypeError, IndexError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name}: the tag ({tag >> 16:04X},{tag & 0xFFFF:04X}) must hold a number, got {value!r}.")
    return number


def _text(ds: Any, tag: int) -> str:
    value = ds[tag].value if tag in ds else ""
    return (value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)).strip(" \0").upper()
