"""Data Exchange HDF5 (tomopy, synchrotron beamlines): parallel-beam projections with flats and darks.

F. De Carlo and others, "Scientific data exchange: a schema for HDF5-based storage of raw and analyzed data",
J. Synchrotron Rad. 21, 1224-1230, 2014. Datasets ``exchange/data`` (theta, y, x), ``exchange/data_white`` and
``exchange/data_dark`` (n, y, x) in detector counts, ``exchange/theta`` in degrees.
"""

from __future__ import annotations

import math
from pathlib import Path

import h5py
import numpy as np
import torch

from invdiff.datasets.ct_centre import centre_of_projections
from invdiff.datasets.ct_counts import flat_field_correction
from invdiff.datasets.files import Head
from invdiff.datasets.geometry import coarsest_rebin, equispaced, placement
from invdiff.datasets.hdf5 import array, attribute, dataset_shape, open_hdf5
from invdiff.datasets.htc import noise_level
from invdiff.measurement import Measurement
from invdiff.noise import GaussianNoise, WeightedGaussianNoise
from invdiff.operators.ct import CT
from invdiff.operators.ct_geometry import ParallelBeam

RESOLUTION = "measurement/instrument/detection_system/objective/resolution"
MILLIMETRES = {"mm": 1.0, "um": 1e-3, "µm": 1e-3, "micron": 1e-3, "microns": 1e-3, "m": 1e3, "nm": 1e-6}
MIN_TRANSMISSION = 1e-4  # what is darker, by noise in the dark or a dead element, counts as this


def matches(head: Head) -> bool:
    """An HDF5 file with exchange/data."""
    return "exchange/data" in head.keys


def read(
    path: Path,
    *,
    row: int | None = None,
    centre: float | None = None,
    views: int | None = None,
    image_shape: tuple[int, int] = (128, 128),
    pixel_size: float | None = None,
    detector_spacing: float | None = None,
    rebin: int | None = None,
    angles: tuple[float, float] | None = None,
    image_scale: float | None = None,
) -> Measurement:
    """One detector row as a measurement of attenuation in 1/mm.

    Transmission is ``(data - dark) / (flat - dark)`` with the mean flat and dark field, the sinogram its negative
    logarithm. Every ray has its own noise, from the photons counted in it and in the flats
    (:func:`invdiff.datasets.ct_counts.flat_field_correction`); with fewer than two flats or darks it is one level for
    all, from differences of views (:func:`invdiff.datasets.htc.noise_level`).

    Args:
        row: of the detector; None: the middle one.
        centre: index of the detector element that the rotation axis projects onto, a fraction; None: estimated
            (:func:`invdiff.datasets.ct_centre.centre_of_projections`) from all views, to some tenths of an element;
            :func:`invdiff.classical.centre.find_centre` is finer.
        views: equispaced views to keep; None: all.
        image_shape: (ny, nx) of the reconstruction.
        pixel_size: mm; None: the detector's width over the shorter side.
        detector_spacing: mm between detector elements; None: what the file says, else 1, so that lengths are in
            elements and attenuation is per element (``units`` says which).
        rebin: neighbouring elements whose transmissions are averaged, a divisor of their number; None: the largest
            for which an element is at most 1/1.5 of a pixel.
        angles: (start, stop) of equispaced views in degrees, stop excluded, where the file has no theta.
        image_scale: attenuation that counts as 1 to a prior; None: :func:`mean_attenuation`.

    Raises:
        ValueError: datasets that are missing or do not fit together, a selection that the file cannot give.
        OSError: damaged.
    """
    with open_hdf5(path) as f:
        shape = dataset_shape(f, "exchange/data", ndim=3)
        row = shape[1] // 2 if row is None else row
        if not 0 <= row < shape[1]:
            raise ValueError(f"{path.name} has {shape[1]} rows; row must lie in 0 to {shape[1] - 1}, got {row}.")
        data, flats, darks = (
            array(f, f"exchange/{name}", ndim=3, where=np.s_[:, row]).astype(np.float64)
            if _fits(f, path, name, shape)
            else np.empty((0, shape[2]))
            for name in ("data", "data_white", "data_dark")
        )
        if not len(flats):
            raise ValueError(f"{path.name} has no flat fields (exchange/data_white); the counts cannot be normalised.")
        theta = _theta(f, path, shape[0], angles)
        spacing, known = (detector_spacing, True) if detector_spacing is not None else _spacing(f)
    if not (math.isfinite(spacing) and spacing > 0):
        raise ValueError(f"detector_spacing must be a positive length in mm, got {spacing}.")

    n = shape[2]
    if not len(darks):
        darks = np.zeros((2, n))
    counted = len(flats) > 1 and len(darks) > 1  # photons can be told from detector units
    corrected = flat_field_correction(data, flats, darks, gain=None if counted else 1.0)
    transmission = np.clip(corrected.transmission, MIN_TRANSMISSION, None)
    sinogram = -np.log(transmission)
    if centre is None:
        centre = centre_of_projections(sinogram, theta)
    if not 0 <= centre <= n - 1:
        raise ValueError(f"centre must be an element index from 0 to {n - 1}, got {centre}.")

    image_shape = (int(image_shape[0]), int(image_shape[1]))
    if pixel_size is None:
        pixel_size = n * spacing / min(image_shape)
    if rebin is None:
        rebin = coarsest_rebin(n, spacing, pixel_size)
    if rebin < 1 or n % rebin:
        raise ValueError(f"rebin must divide the {n} detector elements, got {rebin}.")
    keep = equispaced(len(theta), len(theta) if views is None else views)
    y = -np.log(transmission.reshape(len(data), -1, rebin).mean(-1))
    noise: WeightedGaussianNoise | GaussianNoise
    if counted:  # the variance of a mean of k neighbours is their mean variance over k
        variance = (1 / corrected.weights[keep].astype(np.float64)).reshape(*y[keep].shape, rebin).mean(-1) / rebin
        noise = WeightedGaussianNoise(torch.from_numpy(1 / variance).float()[None])
    else:
        noise = GaussianNoise(noise_level(y))
    beam = ParallelBeam(
        image_shape=image_shape, pixel_size=pixel_size, angles=tuple(np.deg2rad(theta[keep])), n_detectors=n // rebin,
        detector_spacing=spacing * rebin, detector_offset=((n - 1) / 2 - centre) * spacing,
    )  # fmt: skip
    if image_scale is None:
        image_scale = mean_attenuation(sinogram, spacing)
    return Measurement(
        y=torch.from_numpy(y[keep]).float()[None],
        A=CT(beam, supersampling=math.ceil(4 * rebin * spacing / pixel_size)),  # sub-rays at most 1/4 pixel apart
        noise=noise,
        image_scale=image_scale,
        units="1/mm" if known else "1/element",
        item=f"{path.stem}_row{row}",
        metadata={
            "file": path.name, "row": int(row), "centre": float(centre), "rebin": int(rebin),
            **placement(image_shape, pixel_size, spacing),
        },
    )  # fmt: skip


def mean_attenuation(sinogram: np.ndarray, spacing: float) -> float:
    """Mean attenuation of the object, 1/mm: its mass over the disc as wide as its shadow (above a tenth of the
    largest line integral). ``sinogram`` (n_views, n_detectors), ``spacing`` in mm. Raises ValueError: empty."""
    width = float((sinogram > 0.1 * sinogram.max()).sum(1).mean()) * spacing
    mass = float(sinogram.sum(1).mean()) * spacing
    if not (mass > 0 and width > 0):
        raise ValueError("The sinogram shows no object: its mean line integral is not positive.")
    return mass / (math.pi / 4 * width**2)


def _fits(f: h5py.File, path: Path, name: str, shape: tuple[int, ...]) -> bool:
    """Whether exchange/``name`` is there. Raises ValueError where its rows and columns are not those of the data."""
    if f"exchange/{name}" not in f:
        return False
    found = dataset_shape(f, f"exchange/{name}", ndim=3)
    if found[1:] != shape[1:]:
        raise ValueError(
            f"{path.name}: exchange/{name} must have {shape[1]} rows of {shape[2]} elements, as the data, it has the "
            f"shape {found}."
        )
    return True


def _theta(f: h5py.File, path: Path, n_views: int, angles: tuple[float, float] | None) -> np.ndarray:
    if angles is not None:
        return np.linspace(float(angles[0]), float(angles[1]), n_views, endpoint=False)
    if "exchange/theta" not in f:
        raise ValueError(f"{path.name} has no exchange/theta. Give the option angles, e.g. angles=[0, 180].")
    theta = array(f, "exchange/theta", ndim=1).astype(np.float64)
    if theta.shape != (n_views,):
        raise ValueError(f"{path.name}: exchange/theta must hold {n_views} angles, one per view, it has {theta.size}.")
    if str(attribute(f["exchange/theta"], "units", "deg")).startswith("rad"):
        theta = np.rad2deg(theta)
    return theta


def _spacing(f: h5py.File) -> tuple[float, bool]:
    """Distance of the detector elements in the object in mm, and whether the file says it."""
    if RESOLUTION not in f:
        return 1.0, False
    value = array(f, RESOLUTION).ravel()
    unit = str(attribute(f[RESOLUTION], "units", "um")).strip().lower()
    if value.size != 1 or unit not in MILLIMETRES:
        return 1.0, False
    return float(value[0]) * MILLIMETRES[unit], True
