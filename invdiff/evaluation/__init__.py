"""Measures of reconstructions and posteriors."""

from invdiff.evaluation.metrics import (
    fastmri_nmse,
    fastmri_psnr,
    fastmri_ssim,
    gmsd,
    haarpsi,
    hu_error,
    lodopab_psnr,
    lodopab_psnr_fr,
    lodopab_ssim,
    lodopab_ssim_fr,
    ms_ssim,
    nmse,
    psnr,
    ssim,
)

__all__ = [
    "fastmri_nmse",
    "fastmri_psnr",
    "fastmri_ssim",
    "gmsd",
    "haarpsi",
    "hu_error",
    "lodopab_psnr",
    "lodopab_psnr_fr",
    "lodopab_ssim",
    "lodopab_ssim_fr",
    "ms_ssim",
    "nmse",
    "psnr",
    "ssim",
]
