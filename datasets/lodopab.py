"""LoDoPaB-CT (HDF5): simulated low-dose parallel-beam sinograms of chest CT slices.

J. Leuschner, M. Schmidt, D. Otero Baguer, P. Maass, "LoDoPaB-CT, a benchmark dataset for low-dose computed
tomography reconstruction", Scientific Data 8, 109, 2021; Zenodo 3384092, CC BY 4.0. Files ``observation_*.hdf5``
and ``ground_truth_*.hdf5``, each one dataset ``data``: (n, 1000, 513) sinograms and (n, 362, 362) images.

Geometry: 0.26 m x 0.26 m, 1000 views at the midpoints of [0, pi), 513 detector elements that cover the image's
diagonal. Images are stored as (x, y), both increasing; here row 0 is the largest y. Both kinds of file are divided
by the attenuation of 3071 HU, 81.35858 per metre, which is undone: sinograms are line integrals without unit,
images are 1/mm. The counts are Poisson with 4096 photons per ray, none counted as 0.1.
"""

from __future__ import annotations

import math
from pathlib import Path

import h5py
import numpy as np
import torch

from invdiff.datasets.files import Head, Volume
from invdiff.datasets.geometry import average_to, centred_affine, equispaced, placement
from invdiff.datasets.hdf5 import array, dataset_shape, open_hdf5
from invdiff.measurement import Measurement
from invdiff.noise import PoissonLogNoise
from invdiff.operators.ct import CT
from invdiff.operators.ct_geometry import ParallelBeam

SINOGRAM, IMAGE = (1000, 513), (362, 362)  # views x elements, pixels
WIDTH = 260.0  # mm
MU_MAX, MU_WATER = 0.08135858, 0.020  # 1/mm: of 3071 HU, of 0 HU, as the data set converts them
N_PHOTONS, MIN_COUNT = 4096, 0.1
SOURCE = {
    "source": "LoDoPaB-CT, https://doi.org/10.5281/zenodo.3384092",
    "authors": "Leuschner, Schmidt, Otero Baguer, Maass 2021",
    "licence": "CC BY 4.0",
}


def matches(head: Head) -> bool:
    """An HDF5 file with one dataset, ``data``, of the size of the data set's sinograms or images."""
    if head.keys != {"data"}:
        return False
    try:
        with h5py.File(head.path, "r") as f:
            return f["data"].shape[1:] in (SINOGRAM, IMAGE)
    except Exception:
        return False


def read(
    path: Path,
    *,
    index: int = 0,
    views: int | None = None,
    image_shape: tuple[int, int] = IMAGE,
    rebin: int = 1,
) -> Measurement | Volume:
    """One sinogram as a measurement of attenuation in 1/mm; one image, from a ``ground_truth`` file, as a Volume.

    The image of the same index becomes the reference where its file lies beside the sinograms' with the usual name.
    All 1000 views of a 362 x 362 image need a large matrix; ``views``, ``image_shape`` and ``rebin`` make it smaller.

    Args:
        path: ``observation_*`` or ``ground_truth_*`` file.
        index: of the slice in the file.
        views: number of equispaced views to keep; None: all.
        image_shape: (ny, nx), of the same 260 mm; the reference is averaged over each pixel's area.
        rebin: neighbouring detector elements whose counts are added, which keeps them Poisson; a divisor of 513.

    Raises:
        ValueError: an index, number of views or rebinning that the file does not have; other content.
        OSError: damaged.
    """
    with open_hdf5(path) as f:
        shape = dataset_shape(f, "data", ndim=3)
        if shape[1:] not in (SINOGRAM, IMAGE):
            raise ValueError(f"{path.name}: expected 'data' of shape (n, 1000, 513) or (n, 362, 362), it has {shape}.")
        if not 0 <= index < shape[0]:
            raise ValueError(
                f"{path.name} holds {shape[0]} slices; index must lie in 0 to {shape[0] - 1}, got {index}."
            )
        data = array(f, "data", ndim=3, where=np.s_[index]).astype(np.float64)
    if shape[1:] == IMAGE:
        image = (np.rot90(data) * MU_MAX).astype(np.float32)
        affine = centred_affine(IMAGE, WIDTH / IMAGE[0])
        return Volume(image[None], affine, units="1/mm", metadata={"file": path.name, "index": index, **SOURCE})

    if not 1 <= rebin <= SINOGRAM[1] or SINOGRAM[1] % rebin:
        raise ValueError(f"rebin must divide the 513 detector elements (1, 3, 9, 19, 27, 57, 171, 513), got {rebin}.")
    keep = equispaced(SINOGRAM[0], SINOGRAM[0] if views is None else views)
    counts = np.exp(-1000 * MU_MAX * data[keep])  # relative to N_PHOTONS
    y = -np.log(counts.reshape(len(keep), -1, rebin).mean(-1))
    spacing = WIDTH * math.sqrt(2) / SINOGRAM[1] * rebin
    pixel_size = WIDTH / image_shape[0]
    if abs(image_shape[1] * pixel_size - WIDTH) > 1e-6 * WIDTH:
        raise ValueError(f"image_shape must be square, as the slices are, got {image_shape}.")
    beam = ParallelBeam(
        image_shape=image_shape, pixel_size=pixel_size, angles=tuple((keep + 0.5) * math.pi / SINOGRAM[0]),
        n_detectors=y.shape[1], detector_spacing=spacing,
    )  # fmt: skip
    truth = path.with_name(path.name.replace("observation", "ground_truth"))
    reference = None
    if truth != path and truth.is_file():
        volume = read(truth, index=index)
        if not isinstance(volume, Volume):
            raise ValueError(f"{truth.name} holds sinograms; expected the images of {path.name}.")
        reference = torch.from_numpy(average_to(volume.data[0], image_shape)[None])
    return Measurement(
        y=torch.from_numpy(y).float()[None],
        A=CT(beam, supersampling=math.ceil(4 * spacing / pixel_size)),  # sub-rays at most 1/4 pixel apart
        noise=PoissonLogNoise(float(N_PHOTONS * rebin), MIN_COUNT),
        image_scale=MU_WATER,
        units="1/mm",
        reference=reference,
        item=f"{path.stem}_{index}",
        metadata={"file": path.name, "index": index, **placement(image_shape, pixel_size), **SOURCE},
    )
