"""What every algorithm must satisfy, over the literal table. A new one is added to FAST and passes them all."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from invdiff import ComplexGaussianNoise, GaussianNoise, Measurement, PoissonLogNoise
from invdiff.algorithms import (
    ALGORITHMS,
    DAPS,
    DDNM,
    DDRM,
    DDS,
    DPS,
    MCG,
    PSLD,
    TDS,
    DiffPIR,
    MCGTomography,
    PiGDM,
    PnPDM,
    REDDiff,
    ReSample,
)
from invdiff.algorithms.configure import configure
from invdiff.algorithms.draw import DivergenceError
from invdiff.algorithms.guidance import Isotropic
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
from invdiff.priors import DenseCovariance, GaussianPrior, KarrasGrid, StationaryCovariance
from invdiff.priors.denoiser import Prior
from invdiff.priors.latent import LatentPrior

SHAPE = (1, 16, 16)
COVARIANCE = StationaryCovariance.power_law(SHAPE)
GRID = KarrasGrid(sigma_max=10.0, sigma_min=0.01)
# conjugate gradients take a fixed number of steps here: where they stop would depend on rounding
FAST: dict[str, Any] = {
    "daps": DAPS(n_anneal=10, n_ode=2, sigma_max=3.0, kernel=Conditional(n_cg=8, tolerance=1e-12)),
    "ddnm": DDNM(n_steps=10, grid=GRID, travel=2),
    "ddrm": DDRM(n_steps=10, grid=GRID),
    "dds": DDS(n_steps=10, grid=GRID),
    "diffpir": DiffPIR(n_steps=15, grid=GRID, n_cg=8, tolerance=1e-12),
    "dps": DPS(n_steps=60, guidance_scale=1.0, clip=False),
    "mcg": MCG(n_steps=60, guidance_scale=0.3, clip=False, cutoff=0.1),
    "mcg-tomography": MCGTomography(n_steps=60, sigma_max=10.0),
    "pigdm": PiGDM(n_steps=15, grid=GRID, covariance=Isotropic(n_cg=8, tolerance=1e-12)),
    "pnp-dm": PnPDM(n_iterations=12, n_denoise=3, rho_max=3.0, rho_min=0.05, decay=0.6, n_cg=8, tolerance=1e-12),
    "psld": PSLD(n_steps=60, eta=1.0, gamma=0.01),
    "red-diff": REDDiff(n_steps=60, lr=0.05),
    "resample": ReSample(n_steps=20, guidance_scale=0.1, n_pixel=60, n_latent=60, resample_every=4, lr_pixel=0.02),
    "tds": TDS(n_steps=15, n_particles=4, covariance=Isotropic(n_cg=8, tolerance=1e-12), grid=GRID),
}
LATENT = ("psld", "resample")
# what needs noise of one standard deviation refuses the Poisson counts of the CT problem
REFUSES = {(name, "ct"): "one standard deviation" for name in ("ddnm", "ddrm")}


def make_prior(name: str, cls: Any = GaussianPrior, dtype: torch.dtype = torch.float32) -> Prior:
    """The same Gaussian image; for latent algorithms with its Hartley coefficients as latents."""
    if name not in LATENT:
        return cls(torch.zeros(SHAPE), COVARIANCE, dtype=dtype)
    coefficients = DenseCovariance(torch.diag(COVARIANCE.eigenvalues.flatten()), SHAPE)
    return LatentPrior(
        COVARIANCE.forward, COVARIANCE.inverse, cls(torch.zeros(SHAPE), coefficients, dtype=dtype), image_shape=SHAPE
    )  # fmt: skip


PRIOR = GaussianPrior(torch.zeros(SHAPE), COVARIANCE)


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


PAIRS = [(name, problem) for name in FAST for problem in ("blur", "mri", "ct")]


@pytest.mark.parametrize(("name", "problem"), [p for p in PAIRS if p in REFUSES])
def test_a_pair_that_does_not_work_says_why(name: str, problem: str) -> None:
    with pytest.raises(TypeError, match=REFUSES[name, problem]):
        FAST[name](make_prior(name), measurements()[problem])


@pytest.mark.parametrize(("name", "problem"), [p for p in PAIRS if p not in REFUSES])
def test_a_batch_is_its_samples_one_by_one(name: str, problem: str) -> None:
    # in double precision, so that the order of sums does not matter and any coupling of samples shows
    m = measurements()[problem].to(dtype=torch.float64)
    prior = make_prior(name, dtype=torch.float64)
    whole = FAST[name](prior, m, n_samples=5, seed=3)
    parts = FAST[name](prior, m, n_samples=5, seed=3, batch_size=2)
    fewer = FAST[name](prior, m, n_samples=2, seed=3)
    torch.testing.assert_close(parts.samples, whole.samples, rtol=0, atol=1e-8)
    torch.testing.assert_close(fewer.samples, whole.samples[:2], rtol=0, atol=1e-8)
    assert parts.nfe == whole.nfe == fewer.nfe


@pytest.mark.parametrize(("name", "problem"), [p for p in PAIRS if p not in REFUSES])
def test_the_mean_is_nearer_the_truth_than_the_prior_mean(name: str, problem: str) -> None:
    m = measurements()[problem]
    assert m.reference is not None
    p = FAST[name](make_prior(name), m, n_samples=8)
    # ReSample minimises the misfit alone, which undoes a blur noise and all: better than nothing is what it promises
    bound = 1.0 if (name, problem) == ("resample", "blur") else 0.5
    assert float((p.mean - m.reference).square().mean()) < bound * float(m.reference.square().mean())


@pytest.mark.parametrize("name", FAST)
def test_seeds_reproduce_and_matter(name: str) -> None:
    m = measurements()["blur"]
    a, b, c = (FAST[name](make_prior(name), m, seed=s).samples for s in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.allclose(a, c)


@pytest.mark.parametrize("name", FAST)
def test_out_of_memory_halves_the_batch_and_keeps_the_samples(name: str) -> None:
    class Small(GaussianPrior):
        def denoise(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            if x.shape[0] > (8 if name == "tds" else 2):  # TDS: four particles a sample
                raise torch.cuda.OutOfMemoryError("too many")
            return super().denoise(x, sigma)

    m = measurements()["blur"]
    p = FAST[name](make_prior(name, Small), m, n_samples=5)
    q = FAST[name](make_prior(name), m, n_samples=5)
    torch.testing.assert_close(p.samples, q.samples, rtol=0, atol=1e-3)
    assert p.nfe == q.nfe


def test_the_cpus_own_way_of_being_out_of_memory_halves_the_batch_too() -> None:
    class Small(GaussianPrior):
        def denoise(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            if x.shape[0] > 2:
                torch.empty(2**60, dtype=torch.uint8)
            return super().denoise(x, sigma)

    m = measurements()["blur"]
    p, q = (FAST["daps"](make_prior("daps", kind), m, n_samples=5) for kind in (Small, GaussianPrior))
    torch.testing.assert_close(p.samples, q.samples, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", FAST)
def test_divergence_names_the_step(name: str) -> None:
    class Broken(GaussianPrior):
        def denoise(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            return x / (0 if float(sigma[0]) < 1 else 1)

    broken = make_prior(name, Broken)
    with pytest.raises((DivergenceError, FloatingPointError), match="not finite"):
        FAST[name](broken, measurements()["blur"])


@pytest.mark.parametrize("name", FAST)
def test_only_those_that_say_so_differentiate_through_the_network(name: str) -> None:
    graphs: list[bool] = []

    class Watched(GaussianPrior):
        def denoise(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            graphs.append(torch.is_grad_enabled() and x.requires_grad)
            return super().denoise(x, sigma)

    p = FAST[name](make_prior(name, Watched), measurements()["blur"])
    assert any(graphs) == type(FAST[name]).__call__.backprop
    assert not p.samples.requires_grad


@pytest.mark.parametrize("name", FAST)
def test_evaluations_are_as_documented(name: str) -> None:
    a = FAST[name]
    documented = {
        "daps": lambda: a.n_anneal * a.n_ode,
        "ddnm": lambda: a.n_steps * a.travel,
        "mcg-tomography": lambda: 2 * a.n_steps - 1,
        "pnp-dm": lambda: a.n_iterations * a.n_denoise,
        "resample": lambda: a.n_steps + sum(min(a.n_travel, i) for i in range(1, 15) if i % 4 == 0),
        "tds": lambda: a.n_steps * a.n_particles,
    }.get(name, lambda: a.n_steps)
    assert a(make_prior(name), measurements()["blur"], n_samples=3).nfe == documented()


@pytest.mark.parametrize("name", [n for n in FAST if n != "red-diff"])
def test_a_warm_start_enters_at_its_level(name: str) -> None:
    m, seen = measurements()["blur"], []
    assert m.reference is not None
    p = FAST[name](
        make_prior(name), m, start=m.reference, start_sigma=0.3, n_samples=4,
        callback=lambda step, n, **state: seen.append(state["sigma"]),
    )  # fmt: skip
    cold = FAST[name](make_prior(name), m, n_samples=4)
    assert max(seen) <= 0.3
    assert p.nfe < cold.nfe
    assert float((p.samples - m.reference).square().mean()) < float(m.reference.square().mean())


@pytest.mark.parametrize("name", FAST)
def test_progress_ends_at_the_last_step(name: str) -> None:
    seen: list[tuple[int, int]] = []
    FAST[name](make_prior(name), measurements()["blur"], callback=lambda step, n, **state: seen.append((step, n)))
    n = len(seen)
    assert seen == [(i + 1, n) for i in range(n)]


@pytest.mark.parametrize("name", FAST)
def test_misfits_are_refused_before_any_work(name: str) -> None:
    m = Measurement(torch.zeros(1, 8, 8), Identity((1, 8, 8)), GaussianNoise(0.1))
    with pytest.raises(ValueError, match="image size"):
        FAST[name](make_prior(name), m)
    with pytest.raises(ValueError, match="n_samples and batch_size"):
        FAST[name](make_prior(name), measurements()["blur"], n_samples=0)
    with pytest.raises(TypeError, match="seed"):
        FAST[name](make_prior(name), measurements()["blur"], seed=0.5)


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
