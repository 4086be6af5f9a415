"""Diffusion posterior sampling for imaging inverse problems: measured data in, posterior out."""

from pathlib import Path

# In a checkout, operators/ and datasets/ are siblings of this folder; in a wheel they are inside it.
if not (Path(__file__).parent / "operators").is_dir():
    __path__.append(str(Path(__file__).resolve().parents[1]))

from invdiff.measurement import Measurement
from invdiff.noise import ComplexGaussianNoise, GaussianNoise, PoissonLogNoise, WeightedGaussianNoise
from invdiff.posterior import Posterior
from invdiff.priors import load_prior

__version__ = "0.1.0"
__all__ = [
    "ComplexGaussianNoise",
    "GaussianNoise",
    "Measurement",
    "PoissonLogNoise",
    "Posterior",
    "WeightedGaussianNoise",
    "load_prior",
]
