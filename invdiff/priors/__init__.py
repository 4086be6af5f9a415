"""Priors: denoisers with units, ranges and provenance."""

from invdiff.priors.analytic import (
    DenseCovariance,
    ExactPosterior,
    GaussianMixturePrior,
    GaussianPrior,
    StationaryCovariance,
)
from invdiff.priors.checkpoints import load_prior, save_prior, shipped_priors
from invdiff.priors.denoiser import (
    Counted,
    DDPMDenoiser,
    EDMDenoiser,
    NetworkPrior,
    Prior,
    PriorInfo,
    VEDenoiser,
    VPDenoiser,
)
from invdiff.priors.interop import from_deepinv
from invdiff.priors.latent import LatentPrior
from invdiff.priors.memory import batch_within, memory_per_image
from invdiff.priors.schedules import (
    CosineGrid,
    DDPMGrid,
    DiscreteSchedule,
    KarrasGrid,
    QuadraticDDPMGrid,
    ddpm_sigmas,
    karras_sigmas,
    linear_betas,
    sqrt_linear_betas,
)
from invdiff.priors.wrappers import Calibrated, ClippedSigma, Slices, Tiled

__all__ = [
    "Calibrated",
    "ClippedSigma",
    "CosineGrid",
    "Counted",
    "DDPMDenoiser",
    "DDPMGrid",
    "DenseCovariance",
    "DiscreteSchedule",
    "EDMDenoiser",
    "ExactPosterior",
    "GaussianMixturePrior",
    "GaussianPrior",
    "KarrasGrid",
    "LatentPrior",
    "NetworkPrior",
    "Prior",
    "PriorInfo",
    "QuadraticDDPMGrid",
    "Slices",
    "StationaryCovariance",
    "Tiled",
    "VEDenoiser",
    "VPDenoiser",
    "batch_within",
    "ddpm_sigmas",
    "from_deepinv",
    "karras_sigmas",
    "linear_betas",
    "load_prior",
    "memory_per_image",
    "save_prior",
    "shipped_priors",
    "sqrt_linear_betas",
]
