"""One small file of every format, written here from the format's documentation, with the truth behind it."""

from __future__ import annotations

import functools
import importlib.util
import math
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from invdiff import GaussianNoise, Measurement
from invdiff.operators import CT, CurvedFanBeam, FanBeam, Identity, ParallelBeam

sys.path.insert(0, str(Path(__file__).parent))  # for mri_files

AFFINE = np.array([[-1.5, 0.1, 0, 20], [0.1, 1.4, 0.2, -30], [0, -0.2, 3.0, 7], [0, 0, 0, 1.0]])


def volume(shape: tuple[int, ...] = (5, 7, 9)) -> np.ndarray:
    """Integers (x, y, z) without any symmetry."""
    return np.random.default_rng(0).integers(-100, 1000, shape).astype(np.int16)


def disc(beam: Any, radius: float = 6.0, mu: float = 0.02) -> torch.Tensor:
    x, y = beam.pixel_centres()
    return torch.from_numpy((np.hypot(x - 3, y[:, None] - 2) < radius) * mu).float()[None]


def nifti(folder: Path, name: str = "scan.nii") -> Path:
    import nibabel

    image = nibabel.Nifti1Image(volume(), AFFINE)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, folder / name)
    return folder / name


def nifti_gz(folder: Path) -> Path:
    return nifti(folder, "scan.nii.gz")


METAIMAGE = """ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = {compressed}
TransformMatrix = {turn}
Offset = {offset}
AnatomicalOrientation = RAI
ElementSpacing = {spacing}
DimSize = {size}
ElementType = MET_SHORT
ElementDataFile = {file}
"""


def metaimage(folder: Path, *, compressed: bool = False, local: bool = True) -> Path:
    """The volume of ``nifti``, with its affine, in LPS."""
    data = volume()
    lps = np.diag([-1.0, -1.0, 1.0]) @ AFFINE[:3, :3]
    spacing = np.linalg.norm(lps, axis=0)
    row = lambda values: " ".join(repr(float(v)) for v in values)  # noqa: E731
    header = METAIMAGE.format(
        compressed=compressed, turn=row((lps / spacing).T.ravel()), offset=row(AFFINE[:3, 3] * [-1, -1, 1]),
        spacing=row(spacing), size=" ".join(map(str, data.shape)), file="LOCAL" if local else "scan.raw",
    )  # fmt: skip
    voxels = data.T.astype("<i2").tobytes()
    voxels = zlib.compress(voxels) if compressed else voxels
    path = folder / ("scan.mha" if local else "scan.mhd")
    path.write_bytes(header.encode() + (voxels if local else b""))
    if not local:
        (folder / "scan.raw").write_bytes(voxels)
    return path


def metaimage_pair(folder: Path) -> Path:
    return metaimage(folder, local=False)


def metaimage_zlib(folder: Path) -> Path:
    return metaimage(folder, compressed=True)


def dicom_dataset(pixels: np.ndarray, **attributes: Any) -> Any:
    """A CT Image Storage dataset of one slice, stored values (rows, columns)."""
    import pydicom

    ds = pydicom.Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = pydicom.uid.CTImageStorage
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=["i"])
    ds.SeriesInstanceUID, ds.Modality, ds.PatientName = "1.2.3", "CT", "Secret^Name"
    ds.Rows, ds.Columns = pixels.shape
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit, ds.PixelRepresentation, ds.SamplesPerPixel = 15, 0, 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.RescaleSlope, ds.RescaleIntercept = 2, -1024
    ds.PixelData = pixels.astype("<u2").tobytes()
    for key, value in attributes.items():
        setattr(ds, key, value)
    return ds


def dicom(folder: Path) -> Path:
    """Four oblique slices, 6 x 8, in a folder, named in no order."""
    (folder / "series").mkdir()
    row, column = np.array([math.cos(0.3), math.sin(0.3), 0]), np.array([-math.sin(0.3), math.cos(0.3), 0])
    stored = np.random.default_rng(1).integers(0, 2000, (4, 6, 8))
    for i, name in enumerate("cadb"):
        ds = dicom_dataset(
            stored[i], ImageOrientationPatient=[*row, *column], PixelSpacing=[0.7, 0.9], SliceThickness=2.5,
            ImagePositionPatient=[-50.0, -40.0, 10 + 2.5 * i], KVP=120, InstanceNumber=4 - i,
        )  # fmt: skip
        ds.save_as(folder / "series" / f"{name}.dcm", enforce_file_format=True)
    (folder / "series" / "README.txt").write_text("not an image")
    return folder / "series"


PD_BEAM = CurvedFanBeam(
    image_shape=(16, 16), pixel_size=2.0, angles=tuple(2 * math.pi * i / 18 + math.pi for i in range(18)),
    n_detectors=24, detector_spacing=3.4, source_origin=100.0, source_detector=180.0, detector_offset=1.1,
)  # fmt: skip


def ct_pd(folder: Path, *, turns: int = 1, feed: float = 0.0, **tags: Any) -> Path:
    """Cylindrical detector of 4 rows, a disc that does not depend on z: exact cone rays of every view."""
    (folder / "projections").mkdir()
    fan = CT(PD_BEAM, supersampling=2)(disc(PD_BEAM))[0].double().numpy()
    fan += 0.002 * np.random.default_rng(2).normal(size=fan.shape)
    central_column = (24 + 1) / 2 - 1.1 / 3.4  # counted from 1
    for i in range(18 * turns):
        phi, z0 = 2 * math.pi * i / 18, feed * i / 18
        height = (np.arange(4) - 1.5) * 3.0
        cone = fan[i % 18] * np.hypot(1, height / 180.0)[:, None]
        stored = np.round((cone + 1) * 10000)
        ds = dicom_dataset(stored.T, RescaleSlope=1e-4, RescaleIntercept=-1, SeriesInstanceUID="1.2.4")
        for group in (0x7029, 0x7031, 0x7033, 0x7041):
            ds.add_new((group, 0x0010), "LO", "DICOM-CT-PD")
        values: dict[int, tuple[str, Any]] = {
            0x70291010: ("US", 4), 0x70291011: ("US", 24), 0x70291002: ("FL", 3.4), 0x70291006: ("FL", 3.0),
            0x7029100B: ("CS", "CYLINDRICAL"), 0x70311001: ("FL", math.remainder(phi, 2 * math.pi)),
            0x70311002: ("FL", z0), 0x70311003: ("FL", 100.0), 0x70311031: ("FL", 180.0),
            0x70311033: ("FL", [central_column, 2.5]), 0x7033100B: ("FL", 0.0), 0x7033100C: ("FL", 0.0),
            0x7033100D: ("FL", 0.0), 0x70331013: ("US", 18), 0x70411001: ("DS", "0.0192"),
        }  # fmt: skip
        for tag, (vr, value) in values.items():
            value = tags.get(f"{tag:08X}", value)
            if value is not None:
                ds.add_new(tag, vr, value)
        ds.save_as(folder / "projections" / f"{i:04d}.dcm", enforce_file_format=True)
    return folder / "projections"


LODOPAB = ParallelBeam(
    image_shape=(362, 362), pixel_size=260 / 362, angles=tuple((i + 0.5) * math.pi / 1000 for i in range(0, 1000, 125)),
    n_detectors=513, detector_spacing=260 * math.sqrt(2) / 513,
)  # fmt: skip


@functools.cache
def _lodopab() -> tuple[torch.Tensor, np.ndarray]:
    x = torch.stack([disc(LODOPAB, 60.0), disc(LODOPAB, 40.0, 0.03)])
    y = np.zeros((2, 1000, 513), np.float32)
    y[:, ::125] = CT(LODOPAB, supersampling=2)(x)[:, 0].numpy() / 81.35858
    return x, y


def lodopab(folder: Path) -> Path:
    """Two slices, each a disc off the centre; eight of the thousand views are measured, the others zero."""
    x, y = _lodopab()
    with h5py.File(folder / "observation_test_000.hdf5", "w") as f:
        f["data"] = y
    with h5py.File(folder / "ground_truth_test_000.hdf5", "w") as f:
        f["data"] = np.rot90(x[:, 0].numpy(), -1, (1, 2)) / 0.08135858  # (x, y), both increasing
    return folder / "observation_test_000.hdf5"


DX_BEAM = ParallelBeam(
    image_shape=(32, 32), pixel_size=0.5, angles=tuple(math.pi * i / 40 for i in range(40)), n_detectors=64,
    detector_spacing=0.25, detector_offset=1.0,
)  # fmt: skip


def dxchange(folder: Path, **changes: Any) -> Path:
    """Poisson counts with a gain of 3, an uneven flat field and darks; rotation axis at element 27.5."""
    rng = np.random.default_rng(3)
    line = CT(DX_BEAM, supersampling=2)(disc(DX_BEAM, 3.0, 0.1))[0].double().numpy()
    photons = 20000 * (1 + 0.1 * np.cos(np.arange(64) / 5))

    def counts(mean: np.ndarray) -> np.ndarray:
        return (3 * rng.poisson(mean) + 100 + rng.normal(size=mean.shape)).astype(np.float32)

    content: dict[str, Any] = {
        "exchange/data": np.stack([counts(photons * np.ones_like(line)), counts(photons * np.exp(-line))], 1),
        "exchange/data_white": counts(np.broadcast_to(photons, (20, 2, 64))),
        "exchange/data_dark": (100 + rng.normal(size=(20, 2, 64))).astype(np.float32),
        "exchange/theta": np.arange(40) * 4.5,
        "measurement/instrument/detection_system/objective/resolution": np.array([250.0]),
    } | {k.replace("__", "/"): v for k, v in changes.items()}
    with h5py.File(folder / "scan.h5", "w") as f:
        for key, value in content.items():
            if value is not None:
                f[key] = value
    return folder / "scan.h5"


def npy_toml(folder: Path) -> Path:
    np.save(folder / "scan.npy", np.random.default_rng(4).normal(size=(6, 20)).astype(np.float32))
    (folder / "scan.toml").write_text(
        'modality = "ct-parallel"\nimage_scale = 0.02\n[geometry]\nimage_shape = [16, 16]\npixel_size = 1.0\n'
        "angles = {start = 0, stop = 180, n = 6}\ndetector_spacing = 1.0\n[noise]\nsigma = 0.1\n"
    )
    return folder / "scan.npy"


def htc(folder: Path) -> Path:
    import scipy.io

    degrees = np.arange(0, 361.0, 10)
    beam = FanBeam(
        image_shape=(16, 16), pixel_size=3.0, angles=np.deg2rad(degrees), n_detectors=20, detector_spacing=4.0,
        source_origin=400.0, source_detector=540.0,
    )  # fmt: skip
    sinogram = CT(beam)(disc(beam))[0].double().numpy() + 0.01 * np.random.default_rng(5).normal(size=(37, 20))
    parameters = {
        "distanceSourceOrigin": 400.0, "distanceSourceDetector": 540.0, "distanceUnit": "mm", "pixelSizePost": 4.0,
        "numDetectorsPost": 20, "angles": degrees,
    }  # fmt: skip
    data = {"type": "2d", "sinogram": sinogram, "parameters": parameters}
    scipy.io.savemat(folder / "htc2022_x.mat", {"CtDataFull": data}, do_compression=True)
    return folder / "htc2022_x.mat"


def saved(folder: Path) -> Path:
    x = torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(0))
    Measurement.simulate(x, Identity((1, 16, 16)), GaussianNoise(0.1), seed=0).save(folder / "m.h5")
    return folder / "m.h5"


@functools.cache
def _tests(name: str) -> Any:
    """The module of another test file, for the writers in it."""
    spec = importlib.util.spec_from_file_location(f"writers_of_{name}", Path(__file__).with_name(f"test_{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ultrasound(name: str, file: str) -> Callable[[Path], Path]:
    """A writer of the plane-wave formats, from their own tests."""
    return lambda folder: Path(getattr(_tests("ultrasound_files"), name)(folder / file))


def fastmri(folder: Path) -> Path:
    return Path(_tests("mri_formats").fastmri(folder / "file.h5"))


def ismrmrd(folder: Path) -> Path:
    mri = _tests("mri_formats")
    return Path(mri.ismrmrd(folder / "scan.h5", mri.all_slices(mri.raw()[:1])))


def bart(folder: Path) -> Path:
    mri = _tests("mri_formats")
    return Path(mri.bart(folder / "k.cfl", mri.raw()[:1, :, ::2].transpose(3, 2, 1, 0)[:, :, None]))


PLANE_WAVES = {"image_shape": (16, 16), "depth": (6.0, 10.0)}

# Format name in datasets.formats(): (writer of a fixture into an empty folder, options that make it small to read)
FIXTURES: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
    "invdiff measurement": (saved, {}),
    "HTC 2022": (htc, {"image_shape": (16, 16)}),
    "LoDoPaB-CT": (lodopab, {"views": 8, "image_shape": (16, 16), "rebin": 19}),
    "Data Exchange": (dxchange, {"image_shape": (16, 16)}),
    "PICMUS": (ultrasound("picmus", "p.hdf5"), PLANE_WAVES),
    "zea": (ultrasound("zea", "z.hdf5"), PLANE_WAVES),
    "UFF (USTB)": (ultrasound("uff", "u.uff"), PLANE_WAVES),
    "MUST": (ultrasound("must", "m.mat"), PLANE_WAVES),
    "NIfTI": (nifti, {}),
    "NIfTI, compressed": (nifti_gz, {}),
    "MetaImage": (metaimage, {}),
    "MetaImage, compressed": (metaimage_zlib, {}),
    "MetaImage, two files": (metaimage_pair, {}),
    "DICOM-CT-PD": (ct_pd, {"image_shape": (16, 16)}),
    "DICOM": (dicom, {}),
    "npy + toml": (npy_toml, {}),
    "fastMRI": (fastmri, {}),
    "ISMRMRD": (ismrmrd, {}),
    "BART": (bart, {}),
}


class Fixtures:
    """What the tests of single formats need of this file."""

    all = FIXTURES
    affine = AFFINE
    volume = staticmethod(volume)
    disc = staticmethod(disc)
    dicom_dataset = staticmethod(dicom_dataset)
    nifti, dicom, ct_pd, lodopab, dxchange = map(staticmethod, (nifti, dicom, ct_pd, lodopab, dxchange))  # type: ignore[assignment]
    pd_beam, lodopab_beam, dx_beam = PD_BEAM, LODOPAB, DX_BEAM
    pack = staticmethod(struct.pack)


@pytest.fixture
def fixtures() -> type[Fixtures]:
    return Fixtures


@pytest.fixture(params=FIXTURES)
def format_file(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, dict[str, Any]]:
    """Each format in turn: its name, a file of it, and options that make it small to read."""
    write, options = FIXTURES[request.param]
    return request.param.split(",")[0], write(tmp_path), options
