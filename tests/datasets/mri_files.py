"""Writers of fastMRI, ISMRMRD and BART files from their documented layouts, all of one phantom, for the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from invdiff.operators import birdcage_maps, fft2c

SIGMA = 0.02
NY, NX, OVERSAMPLED = 32, 40, 64  # fastMRI: rows are the readout, recorded twice as long
N_SLICES, N_COILS = 3, 4
XML = """<?xml version="1.0"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
 <acquisitionSystemInformation>
  <relativeReceiverNoiseBandwidth>0.8</relativeReceiverNoiseBandwidth>
 </acquisitionSystemInformation>
 <encoding>
  <encodedSpace><matrixSize><x>{ex}</x><y>{ey}</y><z>{ez}</z></matrixSize>
   <fieldOfView_mm><x>{fx}</x><y>80</y><z>5</z></fieldOfView_mm></encodedSpace>
  <reconSpace><matrixSize><x>{rx}</x><y>{ey}</y><z>1</z></matrixSize>
   <fieldOfView_mm><x>64</x><y>80</y><z>5</z></fieldOfView_mm></reconSpace>
  <encodingLimits><kspace_encoding_step_1>
   <minimum>0</minimum><maximum>{maximum}</maximum><center>{center}</center>
  </kspace_encoding_step_1></encodingLimits>
  <trajectory>{trajectory}</trajectory>
  <parallelImaging><calibrationMode>{calibration}</calibrationMode></parallelImaging>
 </encoding>
</ismrmrdHeader>"""


def xml(**changes: Any) -> str:
    values = dict(
        ex=OVERSAMPLED, ey=NX, ez=1, fx=128, rx=NY, maximum=NX - 1, center=NX // 2, trajectory="cartesian",
        calibration="embedded",
    )  # fmt: skip
    return XML.format(**{**values, **changes})


def images() -> np.ndarray:
    """(slice, y, x), complex, soft-edged discs that grow from slice to slice."""
    y, x = np.meshgrid(*[(np.arange(n) - n // 2) / (n / 2) for n in (NY, NX)], indexing="ij")
    radius = np.array([0.5, 0.6, 0.7])[:, None, None]
    discs = 1 / (1 + np.exp(-20 * (radius - np.hypot(y, x)))) + 0.5 / (1 + np.exp(-20 * (0.2 - np.hypot(y + 0.2, x))))
    return 3 * discs * np.exp(1j * (1 + 0.5 * x + 0.3 * y))


def raw(maps: np.ndarray | None = None, sigma: float = SIGMA, seed: int = 0) -> np.ndarray:
    """Fully sampled k-space with twofold readout (slice, coil, 64, 40), complex64."""
    maps = birdcage_maps(N_COILS, (NY, NX)).numpy() if maps is None else maps
    coils = maps * images()[:, None]
    padded = np.pad(coils, [(0, 0), (0, 0), (NY // 2, NY // 2), (0, 0)])
    k = fft2c(torch.from_numpy(padded)).numpy()
    rng = np.random.default_rng(seed)
    return (k + sigma * (rng.normal(size=k.shape) + 1j * rng.normal(size=k.shape))).astype(np.complex64)


def rss(k: np.ndarray) -> np.ndarray:
    """Root sum of squares of (slice, coil, 64, 40), the central 32 x 32, with numpy's FFT."""
    x = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(k, axes=(-2, -1)), norm="ortho"), axes=(-2, -1))
    return np.sqrt((np.abs(x) ** 2).sum(1))[:, 16:48, 4:36].astype(np.float32)


def fastmri(path: Path, **changes: Any) -> Path:
    """A fastMRI file; ``name=None`` leaves a dataset out."""
    k = raw()
    contents = {"kspace": k, "reconstruction_rss": rss(k), "ismrmrd_header": xml(), **changes}
    with h5py.File(path, "w") as f:
        for name, value in contents.items():
            if value is not None:
                f[name] = value
        f.attrs.update(acquisition="AXT2", patient_id="0123")
    return path


IDX = np.dtype(
    [(name, "<u2") for name in ("kspace_encode_step_1", "kspace_encode_step_2", "average", "slice", "contrast", "phase",
                                "repetition", "set", "segment")] + [("user", "<u2", (8,))]
)  # fmt: skip

HEAD = np.dtype(
    [("version", "<u2"), ("flags", "<u8"), ("measurement_uid", "<u4"), ("scan_counter", "<u4"),
     ("acquisition_time_stamp", "<u4"), ("physiology_time_stamp", "<u4", (3,)), ("number_of_samples", "<u2"),
     ("available_channels", "<u2"), ("active_channels", "<u2"), ("channel_mask", "<u8", (16,)), ("discard_pre", "<u2"),
     ("discard_post", "<u2"), ("center_sample", "<u2"), ("encoding_space_ref", "<u2"),
     ("trajectory_dimensions", "<u2"), ("sample_time_us", "<f4"), ("position", "<f4", (3,)), ("read_dir", "<f4", (3,)),
     ("phase_dir", "<f4", (3,)), ("slice_dir", "<f4", (3,)), ("patient_table_position", "<f4", (3,)), ("idx", IDX),
     ("user_int", "<i4", (8,)), ("user_float", "<f4", (8,))]
)  # fmt: skip

RECORD = np.dtype([("head", HEAD), ("traj", h5py.vlen_dtype(np.float32)), ("data", h5py.vlen_dtype(np.float32))])

NOISE, CALIBRATION, REVERSE, NAVIGATOR = (1 << (bit - 1) for bit in (19, 20, 22, 23))


def readout(data: np.ndarray, line: int = 0, **changes: Any) -> np.ndarray:
    """One record of samples (coil, n); counters by name."""
    record = np.zeros(1, RECORD)
    head = record["head"][0]
    head["number_of_samples"], head["active_channels"] = data.shape[1], data.shape[0]
    head["center_sample"], head["sample_time_us"] = data.shape[1] // 2, 5.0
    head["idx"]["kspace_encode_step_1"] = line
    for name, value in changes.items():
        (head["idx"] if name in IDX.names else head)[name] = value
    record["traj"][0] = np.zeros(0, np.float32)
    record["data"][0] = np.ascontiguousarray(data, np.complex64).view(np.float32).ravel()
    return record


def readouts(k: np.ndarray, lines: Any = range(NX), **changes: Any) -> list[np.ndarray]:
    """The columns of one slice (coil, 64, 40) as readouts."""
    return [readout(k[:, :, line], line, **changes) for line in lines]


def ismrmrd(path: Path, records: list[np.ndarray], header: str | None = None, group: str = "dataset") -> Path:
    with h5py.File(path, "w") as f:
        f[f"{group}/xml"] = np.array([(header or xml()).encode()], dtype=h5py.special_dtype(vlen=bytes))
        data = f.create_dataset(f"{group}/data", (len(records),), RECORD, maxshape=(None,), chunks=(1,))
        for i, record in enumerate(records):
            data[i] = record[0]
    return path


def all_slices(k: np.ndarray) -> list[np.ndarray]:
    return [r for i in range(len(k)) for r in readouts(k[i], slice=i)]


NZ, POSITIONS = 24, 12  # of a volume (z, y, x): x is the readout, recorded twice as long


def volume() -> tuple[np.ndarray, torch.Tensor]:
    """k-space (coil, z, y, 2 x) of a volume with oversampled readout, and its coil images (coil, z, y, x)."""
    z, y, x = np.meshgrid(
        *[(np.arange(n) - n // 2) / (n / 2) for n in (NZ, NX, POSITIONS)], indexing="ij"
    )  # fmt: skip
    ball = (1 + 0.3 * x) / (1 + np.exp(-15 * (0.7 - np.sqrt(z**2 + (y - 0.1) ** 2 + 0.5 * x**2))))
    coils = birdcage_maps(N_COILS, (NZ, NX)).numpy()[..., None] * (3 * ball * np.exp(1j * y))
    padded = np.fft.ifftshift(np.pad(coils, [(0, 0)] * 3 + [(POSITIONS // 2,) * 2]), axes=(1, 2, 3))
    k = np.fft.fftshift(np.fft.fftn(padded, axes=(1, 2, 3), norm="ortho"), axes=(1, 2, 3))
    rng = np.random.default_rng(4)
    k += SIGMA * (rng.normal(size=k.shape) + 1j * rng.normal(size=k.shape))
    return k.astype(np.complex64), torch.from_numpy(coils)


def three_d(path: Path, keep: Any = lambda z, y: True, **changes: Any) -> Path:
    k, _ = volume()
    records = [
        readout(k[:, z, y], y, kspace_encode_step_2=z, **changes) for z in range(NZ) for y in range(NX) if keep(z, y)
    ]
    return ismrmrd(path, records, xml(ex=2 * POSITIONS, rx=POSITIONS, ez=NZ))


def bart(path: Path, array: np.ndarray, header: str | None = None) -> Path:
    """The pair of files of an array with its dimensions in BART's order."""
    sizes = " ".join(map(str, array.shape + (1,) * (16 - array.ndim)))
    path.with_suffix(".hdr").write_text(f"# Dimensions\n{sizes} \n" if header is None else header)
    path.with_suffix(".cfl").write_bytes(array.astype(np.complex64).tobytes(order="F"))
    return path.with_suffix(".cfl")
