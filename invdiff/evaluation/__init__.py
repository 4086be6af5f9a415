"""Measures of reconstructions (:mod:`metrics`) and posteriors (:mod:`calibration`), and intervals that keep a promise
(:mod:`conformal`)."""

from invdiff.evaluation.conformal import RiskControllingIntervals, calibrate
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
    "RiskControllingIntervals",
    "calibrate",
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
