"""Forward operators: physics only, no noise."""

if __name__ != "invdiff.operators":
    raise ImportError("This folder is imported as 'invdiff.operators'; it is not the top-level package 'operators'.")

from invdiff.operators.base import (
    Affine,
    Composition,
    LinearComposition,
    LinearOperator,
    LinearSum,
    Operator,
    Scaled,
    dot,
)
from invdiff.operators.blur import (
    Blur,
    Crop,
    Pad,
    SpaceVaryingBlur,
    gaussian_psf,
    interpolation_weights,
    motion_psf,
    reflect_blur,
)
from invdiff.operators.ct import CT
from invdiff.operators.ct3d import CT3D
from invdiff.operators.ct_astra import AstraCT
from invdiff.operators.ct_geometry import CurvedFanBeam, FanBeam, ParallelBeam, VectorBeam
from invdiff.operators.ct_geometry3d import ConeBeam, ParallelBeam3D
from invdiff.operators.dense import Matrix
from invdiff.operators.inpainting import Inpainting, box_mask, brush_mask, random_pixels
from invdiff.operators.interop import from_deepinv, to_deepinv
from invdiff.operators.mri import MultiCoilMRI, fft2c, ifft2c
from invdiff.operators.mri_coils import birdcage_maps, coil_compression, espirit_maps, noise_covariance, prewhiten
from invdiff.operators.mri_masks import (
    equispaced_fraction_mask,
    equispaced_mask,
    gaussian_mask,
    magic_mask,
    poisson_disc_mask,
    random_mask,
)
from invdiff.operators.mri_noncartesian import NonCartesianMRI, ToeplitzMRI, gridding
from invdiff.operators.mri_trajectories import golden_angle_trajectory, radial_trajectory, spiral_trajectory
from invdiff.operators.nonlinear import Clip, Quantize
from invdiff.operators.nufft import density_compensation
from invdiff.operators.phase import Fourier, Modulus, coded_phase_retrieval, octanary_masks, phase_retrieval
from invdiff.operators.pointwise import Identity, RealAsComplex, ViewAsComplex
from invdiff.operators.superresolution import BicubicDownsample, BlockDownsample, BlurDownsample
from invdiff.operators.svd import SVD
from invdiff.operators.ultrasound import (
    PlaneWave,
    PlaneWaveIQ,
    PlaneWaveRF,
    find_plane_wave,
    gaussian_pulse,
    pulse_psf,
    slab_mask,
)
from invdiff.operators.ultrasound_geometry import PlaneWaveScan
from invdiff.operators.ultrasound_image import Envelope, Haze, LogCompression

OPERATORS: dict[str, type[Operator]] = {
    cls.__name__: cls
    for cls in (
        Affine, AstraCT, BicubicDownsample, BlockDownsample, Blur, BlurDownsample, Clip, Composition, Crop, CT, CT3D,
        Envelope, Fourier, Haze, Identity, Inpainting, LinearComposition, LinearSum, LogCompression, Matrix, Modulus,
        MultiCoilMRI, NonCartesianMRI, Pad, PlaneWaveIQ, PlaneWaveRF, Quantize, RealAsComplex, Scaled,
        SpaceVaryingBlur, ToeplitzMRI, ViewAsComplex,
    )
}  # fmt: skip
PARAMETERS: dict[str, type] = {
    cls.__name__: cls
    for cls in (ConeBeam, CurvedFanBeam, FanBeam, ParallelBeam, ParallelBeam3D, PlaneWaveScan, VectorBeam)
}

__all__ = [
    "CT", "CT3D", "OPERATORS", "PARAMETERS", "SVD", "Affine", "AstraCT", "BicubicDownsample", "BlockDownsample", "Blur",
    "BlurDownsample", "Clip", "Composition", "ConeBeam", "Crop", "CurvedFanBeam", "Envelope", "FanBeam", "Fourier",
    "Haze", "Identity", "Inpainting", "LinearComposition", "LinearOperator", "LinearSum", "LogCompression", "Matrix",
    "Modulus", "MultiCoilMRI", "NonCartesianMRI", "Operator", "Pad", "ParallelBeam", "ParallelBeam3D", "PlaneWave",
    "PlaneWaveIQ", "PlaneWaveRF", "PlaneWaveScan", "Quantize", "RealAsComplex", "Scaled", "SpaceVaryingBlur",
    "ToeplitzMRI", "VectorBeam", "ViewAsComplex", "birdcage_maps", "box_mask", "brush_mask", "coded_phase_retrieval",
    "coil_compression", "density_compensation", "dot", "equispaced_fraction_mask", "equispaced_mask", "espirit_maps",
    "fft2c", "find_plane_wave", "from_deepinv", "gaussian_mask", "gaussian_psf", "gaussian_pulse",
    "golden_angle_trajectory", "gridding", "ifft2c", "interpolation_weights", "magic_mask", "motion_psf",
    "noise_covariance", "octanary_masks", "phase_retrieval", "poisson_disc_mask", "prewhiten", "pulse_psf",
    "radial_trajectory", "random_mask", "random_pixels", "reflect_blur", "slab_mask", "spiral_trajectory",
    "to_deepinv",
]  # fmt: skip
