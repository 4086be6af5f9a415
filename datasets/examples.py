"""Two complete problems made from real images that come with the dependencies; no download.

The images are pydicom's and nibabel's own test files. The measurements are simulated from them, with another
discretisation than the one used to reconstruct (CT), so that the inverse crime is not committed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from invdiff.datasets.ct_units import MU_WATER, hu_to_attenuation
from invdiff.measurement import Measurement
from invdiff.noise import ComplexGaussianNoise, PoissonLogNoise
from invdiff.operators import CT, MultiCoilMRI, ParallelBeam, RealAsComplex, birdcage_maps, random_mask


def sparse_view_ct(*, n_views: int = 40, n_photons: float = 2e4, seed: int = 0) -> Measurement:
    """Parallel-beam CT of a thoracic vertebra with few views and photon noise, image in 1/mm.

    The slice is pydicom's ``CT_small.dcm`` (128 x 128 pixels of 0.66 mm, 120 kVp). Its square pixels are
    projected on a grid three times finer with twelve rays per detector; counts are Poisson.

    Args:
        n_views: views over 180 degrees.
        n_photons: mean count of an unattenuated ray.
        seed: of the noise.

    Example:
        >>> from invdiff.datasets import sparse_view_ct
        >>> m = sparse_view_ct(n_views=2)
        >>> m.A.in_shape, m.A.out_shape[1], m.units
        ((1, 128, 128), 2, '1/mm')
    """
    import pydicom
    from pydicom.data import get_testdata_file

    path = get_testdata_file("CT_small.dcm", download=False)
    if path is None:
        raise FileNotFoundError("pydicom's test file CT_small.dcm is missing from this installation of pydicom.")
    ds = pydicom.dcmread(str(path))
    hu = ds.pixel_array.astype(np.float32) * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
    size, (ny, nx) = float(ds.PixelSpacing[0]), hu.shape
    x = hu_to_attenuation(torch.from_numpy(hu)).clamp(min=0)[None]

    geometry = ParallelBeam.covering((ny, nx), size, n_views)
    fine = ParallelBeam(
        image_shape=(3 * ny, 3 * nx), pixel_size=size / 3, angles=geometry.angles, n_detectors=geometry.n_detectors,
        detector_spacing=geometry.detector_spacing,
    )  # fmt: skip
    noise = PoissonLogNoise(n_photons)
    line_integrals = CT(fine, supersampling=12)(x.repeat_interleave(3, 1).repeat_interleave(3, 2))
    y = noise.sample(line_integrals, torch.Generator().manual_seed(seed))
    return Measurement(
        y, CT(geometry, supersampling=4), noise, image_scale=MU_WATER, units="1/mm", reference=x, item="ct",
        metadata={"source": "pydicom test file CT_small.dcm", "pixel_size_mm": size, "n_views": n_views},
    )  # fmt: skip


def accelerated_mri(
    *,
    acceleration: float = 4.0,
    center_fraction: float = 0.08,
    n_coils: int = 8,
    sigma: float = 0.01,
    seed: int = 0,
) -> Measurement:
    """Multi-coil Cartesian MRI of a brain slice, columns undersampled, magnitude image in relative units.

    The slice is from nibabel's ``example4d.nii.gz`` (128 x 96 pixels of 2 mm, padded to 128 x 128), measured
    with simulated birdcage coils. ``image_scale`` is estimated from the zero-filled image, as on a scanner.

    Args:
        n_coils: simulated coils.
        acceleration, center_fraction: of the fastMRI-style random column mask.
        sigma: noise of each k-space component, relative to the 99.5th percentile of the image.
        seed: of mask and noise.

    Example:
        >>> from invdiff.datasets import accelerated_mri
        >>> m = accelerated_mri(acceleration=4, n_coils=4)
        >>> m.A.in_shape, m.A.out_shape, bool(abs(m.chi2(m.reference) - 1) < 0.05)
        ((1, 128, 128), (4, 128, 128), True)
    """
    import nibabel

    path = Path(nibabel.__file__).parent / "tests" / "data" / "example4d.nii.gz"
    if not path.is_file():
        raise FileNotFoundError("nibabel's test file example4d.nii.gz is missing from this installation of nibabel.")
    volume = np.asarray(nibabel.as_closest_canonical(nibabel.load(path)).dataobj[..., 0], dtype=np.float32)
    slice_ = volume[:, ::-1, 11].T  # row 0 anterior
    slice_ = np.pad(slice_, [((128 - n) // 2, 128 - n - (128 - n) // 2) for n in slice_.shape])
    x = torch.from_numpy(slice_).float()[None] / float(np.percentile(slice_[slice_ > 0], 99.5))

    mask = random_mask(128, acceleration=acceleration, center_fraction=center_fraction, seed=seed)
    A = MultiCoilMRI(birdcage_maps(n_coils, (128, 128)), mask) @ RealAsComplex((1, 128, 128))
    m = Measurement.simulate(x, A, ComplexGaussianNoise(sigma), seed=seed)
    zero_filled = A.H(m.y)  # type: ignore[attr-defined]
    scale = float(torch.quantile(zero_filled[zero_filled > 0.1 * zero_filled.max()], 0.995))
    return Measurement(
        m.y, A, m.noise, image_scale=scale, reference=x, item="mri",
        metadata={"source": "nibabel test file example4d.nii.gz", "pixel_size_mm": 2.0, "acceleration": acceleration},
    )  # fmt: skip
