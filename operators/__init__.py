"""Forward operators: physics only, no noise."""

if __name__ != "invdiff.operators":
    raise ImportError("This folder is imported as 'invdiff.operators'; it is not the top-level package 'operators'.")

from invdiff.operators.base import (
    Affine,
    Identity,
    LinearComposition,
    LinearOperator,
    LinearSum,
    Operator,
    RealAsComplex,
    Scaled,
    ViewAsComplex,
    dot,
)
from invdiff.operators.blur import Blur, Crop, Pad, gaussian_psf, reflect_blur
from invdiff.operators.ct import CT
from invdiff.operators.ct_geometry import CurvedFanBeam, FanBeam, ParallelBeam, VectorBeam
from invdiff.operators.dense import Matrix
from invdiff.operators.inpainting import Inpainting, random_pixels
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
from invdiff.operators.mri_trajectories import golden_angle_trajectory, radial_trajectory, spiral_trajectory
from invdiff.operators.svd import SVD

OPERATORS: dict[str, type[Operator]] = {
    cls.__name__: cls
    for cls in (
        Affine, Blur, Crop, CT, Identity, Inpainting, LinearComposition, LinearSum, Matrix, MultiCoilMRI, Pad,
        RealAsComplex, Scaled, ViewAsComplex,
    )
}  # fmt: skip
PARAMETERS: dict[str, type] = {cls.__name__: cls for cls in (CurvedFanBeam, FanBeam, ParallelBeam, VectorBeam)}

__all__ = [
    "CT", "OPERATORS", "PARAMETERS", "SVD", "Affine", "Blur", "Crop", "CurvedFanBeam", "FanBeam", "Identity",
    "Inpainting", "LinearComposition", "LinearOperator", "LinearSum", "Matrix", "MultiCoilMRI", "Operator", "Pad",
    "ParallelBeam", "RealAsComplex", "Scaled", "VectorBeam", "ViewAsComplex", "birdcage_maps", "coil_compression",
    "dot", "equispaced_fraction_mask", "equispaced_mask", "espirit_maps", "fft2c", "gaussian_mask", "gaussian_psf",
    "golden_angle_trajectory", "ifft2c", "magic_mask", "noise_covariance", "poisson_disc_mask", "prewhiten",
    "radial_trajectory", "random_mask", "random_pixels", "reflect_blur", "spiral_trajectory",
]  # fmt: skip
