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

__all__ = [
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
    "StationaryCovariance",
    "VEDenoiser",
    "VPDenoiser",
    "ddpm_sigmas",
    "from_deepinv",
    "karras_sigmas",
    "linear_betas",
    "load_prior",
    "save_prior",
    "shipped_priors",
    "sqrt_linear_betas",
]
