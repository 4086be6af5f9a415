"""Priors of one's own: a trained U-Net in one file, and any other denoiser, wrapped."""

from pathlib import Path

import torch
from torch import Tensor, nn

from invdiff import GaussianNoise, Measurement, load_prior
from invdiff.algorithms import DAPS
from invdiff.operators import Inpainting, random_pixels
from invdiff.priors import EDMDenoiser, NetworkPrior, PriorInfo, save_prior
from invdiff.priors.networks import UNet

info = PriorInfo(
    name="my-prior", value_range=(0.0, 1.2), quantity="99.5th percentile of the magnitude", licence="CC0-1.0",
    trained_on="nothing yet",
)  # fmt: skip
arguments = {"channels": 1, "widths": [16, 32]}
denoiser = EDMDenoiser(UNet(**arguments))  # after training; `invdiff train` writes such a file by itself
save_prior(
    Path("my-prior.safetensors"), denoiser, arguments, shape=(1, 32, 32), sigma_min=0.002, sigma_max=80.0, info=info
)


class Shrinkage(nn.Module):
    """Not one of our networks: anything that maps (x, sigma) to an estimate of the clean image will do."""

    def __init__(self) -> None:
        super().__init__()
        self.std = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:  # x = clean + sigma * noise, one sigma per image
        return x / (1 + (sigma.reshape(-1, 1, 1, 1) / self.std) ** 2)


other = NetworkPrior(Shrinkage(), (1, 32, 32), sigma_min=0.01, sigma_max=50.0, info=PriorInfo(name="white"))
A = Inpainting(random_pixels((1, 32, 32), 0.5, seed=0))
measurement = Measurement.simulate(torch.rand(1, 32, 32), A, GaussianNoise(0.05), seed=0)
for p in (load_prior("my-prior.safetensors"), other):
    print(DAPS(n_anneal=10)(p, measurement, n_samples=2))
