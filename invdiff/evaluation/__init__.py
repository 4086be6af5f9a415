"""Measures of reconstructions and posteriors."""

from invdiff.evaluation.metrics import psnr, ssim

__all__ = ["psnr", "ssim"]
