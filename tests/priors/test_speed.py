"""Faster ways to run a denoiser change its answer by little; the memory it needs is what autograd keeps."""

from __future__ import annotations

import copy
import math
import platform
import shutil
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from invdiff.priors import (
    EDMDenoiser,
    LatentPrior,
    NetworkPrior,
    PriorInfo,
    batch_within,
    load_prior,
    memory_per_image,
    shipped_priors,
)
from invdiff.priors.networks import UNet

from .layouts import randomise

LEVELS = (0.02, 0.1, 0.5, 2.0, 10.0)


def psnr(estimate: Tensor, truth: Tensor) -> float:
    return -10 * math.log10(float((estimate - truth).square().mean()) / 4)  # of a range of 2


def ellipses() -> Tensor:
    """Four images unlike each other and unlike what the priors were trained on."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 128), torch.linspace(-1, 1, 128), indexing="ij")
    images = []
    for i in range(4):
        image = torch.full((128, 128), -1.0)
        image[(x / 0.8) ** 2 + (y / (0.5 + 0.1 * i)) ** 2 < 1] = 0.02
        image[(x - 0.2) ** 2 + (y / 2) ** 2 < 0.01 * (i + 1)] = 0.4 - 0.3 * i
        images.append(image)
    return torch.stack(images)[:, None]


def loss_of_psnr(prior: NetworkPrior, fast: NetworkPrior) -> float:
    """The most that any level loses, dB."""
    x = ellipses().expand(-1, prior.shape[0], -1, -1)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    return max(psnr(prior(x + s * noise, s), x) - psnr(fast(x + s * noise, s), x) for s in LEVELS)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in shipped_priors() if "latent" not in n])
def test_bfloat16_loses_less_than_a_twentieth_of_a_decibel(name: str) -> None:
    prior = load_prior(name)
    assert isinstance(prior, NetworkPrior)
    assert abs(loss_of_psnr(prior, prior.fast(bfloat16=True))) < 0.05


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_compiled_is_the_same() -> None:
    net = randomise(UNet(1, (8, 16), 1), std=0.2)
    prior = NetworkPrior(EDMDenoiser(net), (1, 16, 16), sigma_min=0.01, sigma_max=10, info=PriorInfo(name="p"))
    x, sigma = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([0.1, 2.0])
    results = []
    for p in (prior, prior.fast(compiled=True)):
        v = x.clone().requires_grad_(True)
        out = p(v, sigma)
        results.append((out.detach(), *torch.autograd.grad(out.square().sum(), v)))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


def test_options_change_how_it_is_run_and_nothing_else() -> None:
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 1, 3, padding=1))

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            return x + self.net(x)

    prior = NetworkPrior(Two(), (1, 8, 8), sigma_min=0.01, sigma_max=10, info=PriorInfo(name="p"))
    fast = prior.fast(channels_last=True, bfloat16=True)
    assert net[2].weight.is_contiguous(memory_format=torch.channels_last)
    assert (fast.module, fast.shape, fast.dtype, fast.bfloat16) == (prior.module, prior.shape, torch.float32, True)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert fast(x, 1.0).dtype == torch.float32
    torch.testing.assert_close(fast(x, 1.0), prior(x, 1.0), rtol=0, atol=2e-2)
    assert not torch.equal(fast(x, 1.0), prior(x, 1.0))
    assert fast.to(device="cpu").bfloat16
    assert copy.deepcopy(fast).module is not fast.module
    assert not prior.bfloat16


def test_a_latent_prior_is_fast_at_its_denoiser() -> None:
    prior = load_prior("ct-128-latent")
    assert isinstance(prior, LatentPrior)
    fast = prior.fast(bfloat16=True)
    z = torch.randn(1, *prior.shape, generator=torch.Generator().manual_seed(0))
    assert 0 < float((fast(z, 1.0) - prior(z, 1.0)).abs().max()) < 0.1
    assert torch.equal(fast.decode(z), prior.decode(z))


class Steps(nn.Module):
    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return torch.exp(torch.exp(x))  # keeps both results for its gradient


class TestMemory:
    def test_of_a_chain_of_two(self) -> None:
        prior = NetworkPrior(Steps(), (1, 32, 32), sigma_min=0.01, sigma_max=10, info=PriorInfo(name="p"))
        image = 4 * 32 * 32
        assert memory_per_image(prior, gradient=False) == 2 * image  # one step's input and output
        # two kept results; going back, the incoming gradient and the outgoing one
        assert 3 * image <= memory_per_image(prior, gradient=True) <= 5 * image

    def test_of_a_network_with_gradient_is_what_autograd_keeps(self) -> None:
        prior = load_prior("ct-128")
        kept: dict[int, int] = {}

        def pack(t: Tensor) -> Tensor:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            out = prior(torch.zeros(1, *prior.shape, requires_grad=True), 1.0)
        for p in prior.module.parameters():
            kept.pop(p.untyped_storage().data_ptr(), None)
        assert out.requires_grad
        need = memory_per_image(prior, gradient=True)
        assert sum(kept.values()) * 0.95 < need < sum(kept.values()) * 1.5
        assert memory_per_image(prior, gradient=False) < need / 2

    def test_batch(self) -> None:
        prior = load_prior("ct-128")
        need = memory_per_image(prior, gradient=True)
        assert batch_within(prior, 3.5 * need, gradient=True) == 3
        with pytest.raises(ValueError, match="more than the 1 MiB allowed; use Tiled"):
            batch_within(prior, 2**20, gradient=True)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_that_is_kept_is_not_mapped_again() -> None:
    """Pages that a fresh process touches anew while it makes and drops 20 MiB thirty times."""
    code = """
import resource, sys, torch
from invdiff.priors.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
make = lambda: torch.ones(5 * 2**20)
make()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(30):
    make()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() / 2**20)
"""
    command = [sys.executable, "-c", code, "keep"]
    mapped = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert mapped < 40  # MiB; 140 with the defaults of glibc 2.36
