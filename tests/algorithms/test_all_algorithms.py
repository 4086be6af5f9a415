"""What every algorithm must satisfy, over the literal table. A new one is added to FAST and passes them all."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from invdiff import ComplexGaussianNoise, GaussianNoise, Measurement, PoissonLogNoise
from invdiff.algorithms import ALGORITHMS, DAPS, DPS
from invdiff.algorithms.configure import configure
from invdiff.algorithms.draw import DivergenceError
from invdiff.algorithms.kernels import Conditional
from invdiff.operators import (
    CT,
    Blur,
    Identity,
    MultiCoilMRI,
    ParallelBeam,
    RealAsComplex,
    birdcage_maps,
    equispaced_mask,
    gaussian_psf,
)
from invdiff.priors import GaussianPrior, PriorInfo, StationaryCovariance
from invdiff.priors.denoiser import Prior

SHAPE = (1, 16, 16)
COVARIANCE = StationaryCovariance.power_law(SHAPE)
PRIOR = GaussianPrior(torch.zeros(SHAPE), COVARIANCE)
FAST: dict[str, Any] = {
    # conjugate gradients run to convergence: samples agree only to their stopping
    "daps": DAPS(n_anneal=10, n_ode=2, sigma_max=3.0, kernel=Conditional(n_cg=200, tolerance=1e-9)),
    "dps": DPS(n_steps=60, guidance_scale=1.0, clip=False),
}


def measurements() -> dict[str, Measurement]:
    x = PRIOR.sample(1, seed=4)[0]
    angles = tuple(3.14159 * i / 8 for i in range(8))
    beam = ParallelBeam(image_shape=(16, 16), pixel_size=0.2, angles=angles, n_detectors=24, detector_spacing=0.2)
    maps, mask = birdcage_maps(4, (16, 16)), equispaced_mask(16, acceleration=2, center_fraction=0.2)
    return {
        "blur": Measurement.simulate(x, Blur(gaussian_psf(1.0, 5), SHAPE), GaussianNoise(0.05), seed=0),
        "mri": Measurement.simulate(
            x, MultiCoilMRI(maps, mask) @ RealAsComplex(SHAPE), ComplexGaussianNoise(0.05), seed=0
        ),
        "ct": Measurement.simulate(x, CT(beam), PoissonLogNoise(1e4), seed=0),
    }


def test_every_algorithm_is_on_the_list() -> None:
    assert set(FAST) == set(ALGORITHMS)


@pytest.mark.parametrize("problem", ["blur", "mri", "ct"])
@pytest.mark.parametrize("name", FAST)
def test_a_batch_is_its_samples_one_by_one(name: str, problem: str) -> None:
    # in double precision, so that the order of sums does not matter and any coupling of samples shows
    m = measurements()[problem].to(dtype=torch.float64)
    prior = GaussianPrior(torch.zeros(SHAPE), COVARIANCE, dtype=torch.float64)
    whole = FAST[name](prior, m, n_samples=5, seed=3)
    parts = FAST[name](prior, m, n_samples=5, seed=3, batch_size=2)
    fewer = FAST[name](prior, m, n_samples=2, seed=3)
    tolerance = 1e-4 if name == "daps" else 1e-8  # DAPS: the stopping of the conjugate gradients times their condition
    torch.testing.assert_close(parts.samples, whole.samples, rtol=0, atol=tolerance)
    torch.testing.assert_close(fewer.samples, whole.samples[:2], rtol=0, atol=tolerance)
    assert parts.nfe == whole.nfe == fewer.nfe


@pytest.mark.parametrize("problem", ["blur", "mri", "ct"])
@pytest.mark.parametrize("name", FAST)
def test_the_mean_is_nearer_the_truth_than_the_prior_mean(name: str, problem: str) -> None:
    m = measurements()[problem]
    assert m.reference is not None
    p = FAST[name](PRIOR, m, n_samples=8)
    assert float((p.mean - m.reference).square().mean()) < 0.5 * float(m.reference.square().mean())


@pytest.mark.parametrize("name", FAST)
def test_seeds_reproduce_and_matter(name: str) -> None:
    m = measurements()["blur"]
    a, b, c = (FAST[name](PRIOR, m, seed=s).samples for s in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.allclose(a, c)


@pytest.mark.parametrize("name", FAST)
def test_out_of_memory_halves_the_batch_and_keeps_the_samples(name: str) -> None:
    class Small(GaussianPrior):
        def denoise(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            if x.shape[0] > 2:
                raise torch.cuda.OutOfMemoryError("too many")
            return super().denoise(x, sigma)

    m = measurements()["blur"]
    p = FAST[name](Small(torch.zeros(SHAPE), StationaryCovariance.power_law(SHAPE)), m, n_samples=5)
    q = FAST[name](PRIOR, m, n_samples=5)
    torch.testing.assert_close(p.samples, q.samples, rtol=0, atol=1e-3)
    assert p.nfe == q.nfe


@pytest.mark.parametrize("name", FAST)
def test_divergence_names_the_step(name: str) -> None:
    class Broken(Prior):
        def denoise(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            return x / (0 if float(sigma[0]) < 1 else 1)

    broken = Broken(SHAPE, sigma_min=0.01, sigma_max=100, info=PriorInfo(name="broken"))
    with pytest.raises((DivergenceError, FloatingPointError), match="not finite"):
        FAST[name](broken, measurements()["blur"])


@pytest.mark.parametrize("name", FAST)
def test_progress_ends_at_the_last_step(name: str) -> None:
    seen: list[tuple[int, int]] = []
    FAST[name](PRIOR, measurements()["blur"], callback=lambda step, n, **state: seen.append((step, n)))
    n = len(seen)
    assert seen == [(i + 1, n) for i in range(n)]


@pytest.mark.parametrize("name", FAST)
def test_misfits_are_refused_before_any_work(name: str) -> None:
    m = Measurement(torch.zeros(1, 8, 8), Identity((1, 8, 8)), GaussianNoise(0.1))
    with pytest.raises(ValueError, match="image size"):
        FAST[name](PRIOR, m)
    with pytest.raises(ValueError, match="n_samples and batch_size"):
        FAST[name](PRIOR, measurements()["blur"], n_samples=0)
    with pytest.raises(TypeError, match="seed"):
        FAST[name](PRIOR, measurements()["blur"], seed=0.5)


class TestConfigure:
    def test_names_values_and_nested_objects(self) -> None:
        daps = configure(DAPS, {"n_anneal": 7, "kernel": "langevin", "kernel.n_steps": 3, "sigma_max": 50})
        assert (daps.n_anneal, daps.kernel.n_steps, daps.sigma_max) == (7, 3, 50.0)
        assert configure(DAPS, {"kernel.n_cg": 4}).kernel.n_cg == 4
        assert configure(DPS, {}) == DPS()

    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"nanneal": 3}, "DAPS has no parameter 'nanneal'; it has n_anneal, n_ode"),
            ({"n_anneal": 3.5}, "n_anneal must be of type int"),
            ({"n_anneal": "many"}, "n_anneal must be of type int"),
            ({"kernel": "gibbs"}, "one of conditional, hmc, langevin"),
            ({"kernel.steps": 3}, "Conditional has no parameter 'steps'"),
            ({"n_anneal.x": 3}, "no parameters of its own"),
        ],
    )
    def test_mistakes_are_named(self, parameters: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            configure(DAPS, parameters)
