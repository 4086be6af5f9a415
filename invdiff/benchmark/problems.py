"""The problems that a plan can name: functions of keyword arguments that return a Measurement.

Arguments annotated as ``Path`` are files, relative to the data folder; their content is part of a result's key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from invdiff.classical import FBP
from invdiff.datasets.examples import MU_WATER, accelerated_mri, sparse_view_ct
from invdiff.datasets.files import open as open_file
from invdiff.datasets.htc import read_htc
from invdiff.datasets.slices import MODALITIES, axial_slices
from invdiff.measurement import Measurement
from invdiff.noise import ComplexGaussianNoise, GaussianNoise, PoissonLogNoise
from invdiff.operators import (
    CT,
    BicubicDownsample,
    Inpainting,
    MultiCoilMRI,
    ParallelBeam,
    RealAsComplex,
    birdcage_maps,
    gaussian_psf,
    random_mask,
    random_pixels,
    reflect_blur,
)
from invdiff.priors import GaussianPrior, StationaryCovariance


def measured(*, path: Path, **options: Any) -> Measurement:
    """Any measurement file that :func:`invdiff.datasets.open` knows, with that format's options."""
    m = open_file(path, **options)
    if not isinstance(m, Measurement):
        raise TypeError(f"{path.name} holds images, not a measurement.")
    return m


def slice_of(path: Path, modality: str, z: float, pixel_size: float, size: int = 128) -> torch.Tensor:
    """One axial slice of a NIfTI volume in relative units, (1, size, size) with pixels of ``pixel_size`` mm, at the
    height ``z`` (0 the lowest slice, 1 the highest)."""
    volume, stored = axial_slices(path)
    x = torch.from_numpy(MODALITIES[modality].relative(volume))
    image = x[round(z * (len(x) - 1))]
    shape = [round(side * stored / pixel_size) for side in image.shape]
    image = F.interpolate(image[None, None], shape, mode="area")[0]
    pad = [max(0, size - side) for side in reversed(shape)]
    image = F.pad(image, (pad[0] // 2, pad[0] - pad[0] // 2, pad[1] // 2, pad[1] - pad[1] // 2))
    top, left = ((side - size) // 2 for side in image.shape[1:])
    return image[:, top : top + size, left : left + size].contiguous()


def _stem(path: Path) -> str:
    return path.name.split(".")[0]


def ct_slice(
    *, path: Path, z: float = 0.5, pixel_size: float = 3.2, n_views: int = 40, n_photons: float = 2e4, size: int = 128,
    seed: int = 0,
) -> Measurement:  # fmt: skip
    """Parallel-beam CT of a slice of a CT volume in HU (NIfTI), image in 1/mm.

    Simulated on a grid three times finer with twelve rays per detector; counts are Poisson.

    Args:
        path: the volume; one file is one patient.
        z: height of the slice, 0 to 1.
        pixel_size: of the image, mm.
        n_views: over 180 degrees.
        n_photons: mean count of an unattenuated ray.
        size: pixels per side of the image.
        seed: of the noise.
    """
    x = MU_WATER * slice_of(path, "ct", z, pixel_size, size)
    geometry = ParallelBeam.covering((size, size), pixel_size, n_views)
    fine = ParallelBeam(
        image_shape=(3 * size, 3 * size), pixel_size=pixel_size / 3, angles=geometry.angles,
        n_detectors=geometry.n_detectors, detector_spacing=geometry.detector_spacing,
    )  # fmt: skip
    noise = PoissonLogNoise(n_photons)
    line_integrals = CT(fine, supersampling=12)(x.repeat_interleave(3, 1).repeat_interleave(3, 2))
    y = noise.sample(line_integrals, torch.Generator().manual_seed(seed))
    return Measurement(
        y, CT(geometry, supersampling=4), noise, image_scale=MU_WATER, units="1/mm", reference=x,
        item=f"{_stem(path)}-{z:g}", metadata={"patient": _stem(path), "pixel_size_mm": pixel_size},
    )  # fmt: skip


def mri_slice(
    *,
    path: Path,
    z: float = 0.5,
    pixel_size: float = 1.5,
    acceleration: float = 4.0,
    center_fraction: float = 0.08,
    n_coils: int = 8,
    sigma: float = 0.01,
    seed: int = 0,
    patient: str = "",
) -> Measurement:
    """Multi-coil Cartesian MRI of a slice of a magnitude volume (NIfTI), random columns, birdcage coils.

    Args:
        path: the volume.
        z: height of the slice, 0 to 1.
        pixel_size: of the 128 x 128 image, mm.
        acceleration, center_fraction: of the fastMRI-style random column mask.
        sigma: noise of each k-space component, relative to the 99.5th percentile of the volume.
        seed: of mask and noise.
        patient: whose volume it is (default: the file's name).
    """
    x = slice_of(path, "mri", z, pixel_size)
    mask = random_mask(128, acceleration=acceleration, center_fraction=center_fraction, seed=seed)
    A = MultiCoilMRI(birdcage_maps(n_coils, (128, 128)), mask) @ RealAsComplex((1, 128, 128))
    return Measurement.simulate(
        x, A, ComplexGaussianNoise(sigma), seed=seed, item=f"{_stem(path)}-{z:g}",
        metadata={"patient": patient or _stem(path), "pixel_size_mm": pixel_size},
    )  # fmt: skip


def photograph(name: str, size: int) -> torch.Tensor:
    """A test image of scikit-image in grey, (1, size, size) in [0, 1]: its central square, averaged down."""
    import skimage.data
    from skimage.color import rgb2gray

    folder = Path(skimage.data.__file__).parent
    known = sorted(p.stem for p in folder.glob("*.png"))
    if name not in known:
        raise ValueError(f"scikit-image has no image {name!r}; there are {', '.join(known)}.")
    image = getattr(skimage.data, name)()
    grey = rgb2gray(image[..., :3]) if image.ndim == 3 else image / 255.0
    side = min(grey.shape)
    top, left = ((n - side) // 2 for n in grey.shape)
    x = torch.from_numpy(np.ascontiguousarray(grey[top : top + side, left : left + side])).float()
    return F.interpolate(x[None, None], (size, size), mode="area")[0]


def deblurring(
    *, image: str = "camera", size: int = 128, psf_sigma: float = 1.5, noise: float = 0.02, seed: int = 0
) -> Measurement:
    """Gaussian blur with mirrored borders and Gaussian noise, of a test image of scikit-image in [0, 1].

    Args:
        image: its name in ``skimage.data``.
        size: pixels along each side.
        psf_sigma: of the PSF, pixels.
        noise: standard deviation.
        seed: of the noise.
    """
    x = photograph(image, size)
    A = reflect_blur(gaussian_psf(psf_sigma, 2 * round(3 * psf_sigma) + 1), (1, size, size))
    return Measurement.simulate(
        x, A, GaussianNoise(noise), seed=seed, item=image, metadata={"source": f"scikit-image {image}"}
    )


def inpainting(
    *, image: str = "camera", size: int = 128, fraction: float = 0.5, noise: float = 0.02, seed: int = 0
) -> Measurement:
    """Random pixels with Gaussian noise, of a test image of scikit-image in [0, 1].

    Args:
        image: its name in ``skimage.data``.
        size: pixels along each side.
        fraction: of the pixels that are seen.
        noise: standard deviation.
        seed: of mask and noise.
    """
    A = Inpainting(random_pixels((1, size, size), fraction, seed=seed))
    return Measurement.simulate(
        photograph(image, size), A, GaussianNoise(noise), seed=seed, item=image,
        metadata={"source": f"scikit-image {image}"},
    )  # fmt: skip


def super_resolution(
    *, image: str = "camera", size: int = 128, factor: int = 4, noise: float = 0.02, seed: int = 0
) -> Measurement:
    """Antialiased bicubic downsampling and Gaussian noise, of a test image of scikit-image in [0, 1].

    Args:
        image: its name in ``skimage.data``.
        size: pixels along each side of the image to find.
        factor: of the downsampling.
        noise: standard deviation.
        seed: of the noise.
    """
    x = photograph(image, size)
    A = BicubicDownsample((1, size, size), factor)
    return Measurement.simulate(
        x, A, GaussianNoise(noise), seed=seed, item=image, metadata={"source": f"scikit-image {image}"}
    )


def photographs() -> GaussianPrior:
    """A prior for 128 x 128 grey photographs in [0, 1]: Gaussian, its power spectrum a power of the frequency.

    The exponent is that of scikit-image's brick, grass, gravel, coffee and moon, the standard deviation (of -1 to 1)
    their mean. It knows no edges: it is for comparing samplers with each other and with filters.
    """
    covariance = StationaryCovariance.power_law((1, 128, 128), std=0.25, exponent=2.05)
    return GaussianPrior(
        torch.zeros(1, 128, 128),
        covariance,
        name="photographs-128",
        value_range=(0.0, 1.0),  # type: ignore[arg-type]
    )


def htc_limited_angle(*, path: Path, arc: float = 90.0, start: float = 0.0) -> Measurement:
    """A part of the turn of a real scan of the Helsinki Tomography Challenge 2022: a view every degree, detector
    elements averaged by four, beam hardening undone; ``image_scale`` makes acrylic 0.96, as the prior acrylic-disc-128
    has it.

    The reference is the FBP (Hann) of the full turn, non-negative: the best there is, not the truth. It shares its rays
    with the data.

    Args:
        path: of the ``.mat`` file.
        arc: degrees that are kept.
        start: where they begin.
    """
    read = partial(read_htc, path, linearise=True, model_error=0.01, image_scale=0.047)
    m, full = read(angles=(start, start + arc), views=round(arc) + 1, rebin=4), read()
    reference = FBP(window="hann")(None, full).mean.clamp(min=0)
    metadata = {**m.metadata, "patient": _stem(path), "reference": "FBP of the full turn"}
    return replace(m, reference=reference, item=f"{_stem(path)}-{start:g}-{arc:g}", metadata=metadata)


PROBLEMS: dict[str, Callable[..., Measurement]] = {
    f.__name__: f
    for f in (
        sparse_view_ct, accelerated_mri, ct_slice, mri_slice, deblurring, inpainting, super_resolution,
        htc_limited_angle, measured,
    )
}  # fmt: skip
