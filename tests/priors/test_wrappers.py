"""Priors around priors, against denoisers that are known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from invdiff import GaussianNoise, Measurement
from invdiff.algorithms import DAPS
from invdiff.operators import Identity
from invdiff.priors import (
    Calibrated,
    ClippedSigma,
    GaussianPrior,
    LatentPrior,
    Prior,
    PriorInfo,
    Slices,
    StationaryCovariance,
    Tiled,
    load_prior,
)

INFO = PriorInfo(name="known", sha256="f" * 64)


class Known(Prior):
    """A prior whose denoiser is the function given to it."""

    def __init__(self, f: Any, shape: tuple[int, ...], **sigmas: float) -> None:
        super().__init__(shape, **({"sigma_min": 0.01, "sigma_max": 10.0} | sigmas), info=INFO)
        self.f = f

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.f(x, sigma.reshape(-1, *[1] * (x.ndim - 1)))


def pointwise(x: Tensor, s: Tensor) -> Tensor:
    return torch.tanh(x) / (1 + s**2)


def blur(x: Tensor, s: Tensor) -> Tensor:
    """The mean of 5 x 5 pixels, zero outside the tile: what a tile does not see is missing at its border."""
    return F.avg_pool2d(x, 5, 1, 2)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


SIGMA = torch.tensor([0.1, 2.0])


class TestTiled:
    @pytest.mark.parametrize("shape", [(2, 16, 16), (2, 16, 41), (2, 57, 33)])
    @pytest.mark.parametrize(("overlap", "batch_size"), [(0, 1), (4, 3), (15, 2)])
    def test_a_pointwise_denoiser_is_unchanged(self, shape: Any, overlap: int, batch_size: int) -> None:
        inner = Known(pointwise, (2, 16, 16))
        prior = Tiled(inner, shape, overlap=overlap, batch_size=batch_size)
        x = noise(2, *shape)
        torch.testing.assert_close(prior(x, SIGMA), pointwise(x, SIGMA[:, None, None, None]))

    def test_the_error_of_a_local_denoiser_is_bounded_by_the_weight_at_the_border(self) -> None:
        # at i pixels from its border a tile misses (2 - i) of 5 rows, i < 2, with the weight sin^2(pi/2 (i + 1/2)/8)
        prior = Tiled(Known(blur, (1, 32, 32)), (1, 96, 80), overlap=8)
        x = noise(1, 1, 96, 80).clamp(-1, 1)
        bound = 2 * sum((2 - i) / 5 * math.sin(math.pi / 2 * (i + 0.5) / 8) ** 2 for i in range(2))  # along y and x
        error = (prior(x, 1.0) - blur(x, SIGMA[:1]))[..., 2:-2, 2:-2].abs()
        assert 0 < float(error.max()) < bound
        # next to nothing where no tile ends, and without overlap much more
        assert float(error[..., 8:14, 8:14].max()) < 1e-6
        hard = Tiled(Known(blur, (1, 32, 32)), (1, 96, 80), overlap=0)
        assert float((hard(x, 1.0) - blur(x, SIGMA[:1]))[..., 2:-2, 2:-2].abs().max()) > 2 * bound

    def test_gradients_and_sampling(self) -> None:
        prior = Tiled(GaussianPrior(torch.zeros(1, 8, 8), StationaryCovariance.power_law((1, 8, 8))), (1, 12, 20))
        x = noise(1, 1, 12, 20).requires_grad_(True)
        prior(x, 1.0).square().sum().backward()
        assert x.grad is not None
        assert bool(x.grad.isfinite().all())
        m = Measurement.simulate(torch.zeros(1, 12, 20), Identity((1, 12, 20)), GaussianNoise(0.1), seed=0)
        posterior = DAPS(n_anneal=3, n_ode=1)(prior, m, n_samples=1, seed=0)
        assert posterior.samples.shape == (1, 1, 12, 20)

    @pytest.mark.slow
    def test_seams_of_the_ct_prior(self) -> None:
        # a seam would be a jump across the lines where tiles start, beyond the jumps elsewhere
        prior = Tiled(load_prior("ct-128"), (1, 192, 192))
        y, x = torch.meshgrid(torch.linspace(-1, 1, 192), torch.linspace(-1, 1, 192), indexing="ij")
        image = torch.where((x / 0.8) ** 2 + (y / 0.6) ** 2 < 1, 0.02, -1.0)[None, None]
        clean = prior(image + 0.1 * noise(1, 1, 192, 192), 0.1)
        inside = ((x / 0.7) ** 2 + (y / 0.5) ** 2 < 1)[1:]
        jumps = clean.diff(dim=-2)[0, 0].abs()
        starts = sorted({a for a, _ in prior.corners if a} | {a + 128 for a, _ in prior.corners if a + 128 < 192})
        at = torch.stack([jumps[a - 1][inside[a - 1]].mean() for a in starts])
        assert float(at.max()) < 1.5 * float(jumps[inside].mean())

    def test_refusals(self) -> None:
        inner = Known(pointwise, (2, 16, 16))
        for shape, overlap, match in (
            ((1, 32, 32), None, r"Tiled makes \(channel, y, x\)"),
            ((2, 32, 8), None, "smaller than the prior's"),
            ((2, 32, 32), 16, r"overlap must lie in 0 \.\. 15"),
        ):
            with pytest.raises(ValueError, match=match):
                Tiled(inner, shape, overlap=overlap)
        latent = LatentPrior(lambda x: x, lambda z: z, inner, image_shape=(2, 16, 16))
        with pytest.raises(TypeError, match="wrap its denoiser"):
            Tiled(latent, (2, 32, 32))


@pytest.mark.parametrize("batch_size", [None, 3])
def test_slices_are_those_of_the_prior(batch_size: int | None) -> None:
    inner = Known(blur, (2, 8, 8))
    prior = Slices(inner, 5, batch_size=batch_size)
    x = noise(2, 2, 5, 8, 8)
    out = prior(x, SIGMA)
    assert prior.shape == (2, 5, 8, 8)
    for z in range(5):
        torch.testing.assert_close(out[:, :, z], inner(x[:, :, z], SIGMA))
    for bad in ({"n_slices": 0}, {"n_slices": 2, "batch_size": 0}):
        with pytest.raises(ValueError, match="at least one slice"):
            Slices(inner, **bad)
    with pytest.raises(ValueError, match="channel, y, x"):
        Slices(prior, 2)


def test_slices_of_slices_levels_belong_to_their_volume() -> None:
    prior = Slices(Known(lambda x, s: 0 * x + s, (1, 4, 4)), 3)
    out = prior(noise(2, 1, 3, 4, 4), SIGMA)
    assert torch.equal(out, SIGMA[:, None, None, None, None].expand_as(out))


def test_clipped_levels_never_reach_the_network() -> None:
    seen = []
    v = 0.25  # of the images

    def ideal(x: Tensor, s: Tensor) -> Tensor:
        seen.append(s.flatten())
        return v / (v + s**2) * x

    prior = ClippedSigma(Known(ideal, (1, 4, 4)), sigma_min=0.1, sigma_max=5.0)
    sigma = torch.tensor([0.01, 0.1, 1.0, 5.0, 80.0])
    x = sigma[:, None, None, None] * noise(5, 1, 4, 4)
    out = prior(x, sigma)
    assert torch.equal(seen[0], torch.tensor([0.1, 0.1, 1.0, 5.0, 5.0]))
    exact = ideal(x, sigma[:, None, None, None])
    torch.testing.assert_close(out[1:4], exact[1:4])
    assert bool((out[4] - exact[4]).abs().max() <= x[4].abs().max() * v / (5.0 * 80.0))
    with pytest.raises(ValueError, match="0 < sigma_min < sigma_max"):
        ClippedSigma(Known(ideal, (1, 4, 4)), sigma_min=20.0)


class TestCalibrated:
    V = 0.25
    LEVELS = (0.1, 1.0, 4.0)

    def images(self, n: int) -> Tensor:
        return 0.3 + self.V**0.5 * noise(n, 1, 3, 3)

    def biased(self, x: Tensor, s: Tensor) -> Tensor:
        """Ideal for images of mean 0.3 and variance V, and off by log sigma in one corner."""
        out = 0.3 + self.V / (self.V + s**2) * (x - 0.3)
        corner = torch.zeros(3, 3)
        corner[0, 0] = 1
        return out + s.log() * corner

    def test_the_offset_is_measured_and_subtracted(self, tmp_path: Path) -> None:
        n = 4000
        inner = Known(self.biased, (1, 3, 3))
        prior = Calibrated.fit(inner, self.images(n), self.LEVELS, seed=1)
        for s, offset in zip(self.LEVELS, prior.offsets, strict=True):
            error = (self.V * s**2 / (self.V + s**2) / n) ** 0.5  # standard error, the posterior's variance over n
            expected = torch.zeros(1, 3, 3)
            expected[0, 0, 0] = math.log(s)
            assert float((offset - expected).abs().max()) < 5 * error
        # at a level in between the offset is linear in log sigma, as it is here
        x = self.images(n) + 2.0 * noise(n, 1, 3, 3).flip(0)
        assert abs(float(inner(x, 2.0)[:, 0, 0, 0].mean()) - 0.3 - math.log(2)) < 0.05
        assert abs(float(prior(x, 2.0)[:, 0, 0, 0].mean()) - 0.3) < 0.05
        prior.save(tmp_path / "c.safetensors")
        again = Calibrated.load(inner, tmp_path / "c.safetensors")
        assert torch.equal(again(x, 2.0), prior(x, 2.0))

    def test_refusals(self, tmp_path: Path) -> None:
        inner = Known(self.biased, (1, 3, 3))
        with pytest.raises(ValueError, match="positive and ascending"):
            Calibrated(inner, [1.0, 0.5], torch.zeros(2, 1, 3, 3))
        with pytest.raises(ValueError, match=r"offsets must be \(2, 1, 3, 3\)"):
            Calibrated(inner, [0.5, 1.0], torch.zeros(1, 3, 3))
        with pytest.raises(ValueError, match=r"images must be \(n, 1, 3, 3\)"):
            Calibrated.fit(inner, torch.zeros(0, 1, 3, 3), [1.0])
        Calibrated(inner, [1.0], torch.zeros(1, 1, 3, 3)).save(tmp_path / "c.safetensors")
        other = GaussianPrior(torch.zeros(1, 3, 3), StationaryCovariance.power_law((1, 3, 3)))
        with pytest.raises(ValueError, match="measured with another prior"):
            Calibrated.load(other, tmp_path / "c.safetensors")
