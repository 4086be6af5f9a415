"""Denoisers of deepinv as priors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from invdiff.priors import from_deepinv

from .layouts import randomise


def wiener(y: Tensor, sigma: Tensor) -> Tensor:
    """The ideal denoiser of white images of mean 0.5 and standard deviation 0.25 in [0, 1]."""
    gain = 0.25**2 / (0.25**2 + sigma.square())
    return 0.5 + gain[:, None, None, None] * (y - 0.5)


def test_units_are_those_of_the_model() -> None:
    # the same images in [-1, 1] have the standard deviation 0.5
    prior = from_deepinv(wiener, (1, 8, 8), sigma_min=0.01, sigma_max=0.2)
    x, sigma = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.1, 0.4])
    gain = (0.25 / (0.25 + sigma**2))[:, None, None, None]
    torch.testing.assert_close(prior(x, sigma), gain * x)
    assert (prior.sigma_min, prior.sigma_max, prior.info.name) == (0.02, 0.4, "function")


def test_drunet() -> None:
    deepinv = pytest.importorskip("deepinv", reason="needs the extra 'deepinv'")
    net = randomise(deepinv.models.DRUNet(1, 1, nc=(8, 8, 8, 8), nb=1, pretrained=None))
    prior = from_deepinv(net, (1, 16, 16), sigma_min=1 / 255, sigma_max=50 / 255)
    x = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    for sigma in (0.02, 0.15):
        torch.testing.assert_close(prior(2 * x - 1, 2 * sigma), 2 * net(x, sigma) - 1, rtol=1e-5, atol=1e-5)
    assert prior.info.name == "DRUNet"
