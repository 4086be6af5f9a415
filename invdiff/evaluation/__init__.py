"""Measures of reconstructions and of posteriors, and intervals with a promise.

Re-exported here are the measures of images (:mod:`invdiff.evaluation.metrics`) and :func:`calibrate`
(:mod:`invdiff.evaluation.conformal`). Measures of posteriors: :mod:`invdiff.evaluation.calibration`; LPIPS:
:mod:`invdiff.evaluation.lpips`.
"""

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
    mcc,
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
    "mcc",
    "ms_ssim",
    "nmse",
    "psnr",
    "ssim",
]
