"""deepinv's methods in a plan: the same problem, the same posterior, their seeds, and what they cannot do."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from invdiff import GaussianNoise, Measurement, PoissonLogNoise
from invdiff.benchmark import Plan, Store, run
from invdiff.benchmark import deepinv_methods as theirs
from invdiff.classical.tv import TV, differences
from invdiff.operators import Blur, Identity, Inpainting, gaussian_psf, random_pixels
from invdiff.priors import GaussianPrior, StationaryCovariance

SHAPE = (1, 12, 12)
needs_deepinv = pytest.mark.skipif(not theirs.VERSION, reason="needs invdiff[deepinv]")


def gaussian() -> GaussianPrior:
    covariance = StationaryCovariance.power_law(SHAPE, std=0.25, exponent=3.0)
    return GaussianPrior(torch.zeros(SHAPE), covariance, value_range=(-0.5, 1.5))


def inpainting(scale: float = 1.0, image_scale: float = 3.0) -> Measurement:
    P = gaussian()
    x = image_scale * (P.scale * P.sample(1, seed=0)[0] + P.offset)
    A = scale * Inpainting(random_pixels(SHAPE, 0.5, seed=0))
    sigma = 0.05 * scale * image_scale
    return Measurement.simulate(x, A, GaussianNoise(sigma), seed=0, image_scale=image_scale, item="a")


@needs_deepinv
@pytest.mark.parametrize(
    ("cls", "parameters"),
    [
        (theirs.DPS, {"n_steps": 60, "guidance": "annealed"}),
        (theirs.DiffPIR, {"n_steps": 50, "zeta": 0.6, "lam": 3.0}),
        (theirs.DDRM, {"n_steps": 100}),
    ],
)
def test_samplers_come_near_the_exact_posterior_mean_in_physical_units(cls: Any, parameters: dict[str, Any]) -> None:
    method = cls(**parameters)
    m, P = inpainting(), gaussian()
    exact = P.to_image(P.posterior(m).mean, m)
    posterior = method(P, m, n_samples=8)
    assert posterior.samples.shape == (8, *SHAPE)
    assert posterior.nfe >= method.n_steps - 2
    prior_error = float((P.to_image(P.means[0], m) - exact).norm())
    assert float((posterior.mean - exact).norm()) < 0.5 * prior_error
    # a gain of the scanner changes nothing: operator, data and noise are normalised
    again = method(P, inpainting(scale=7.0), n_samples=1)
    torch.testing.assert_close(again.samples[0], posterior.samples[0], rtol=0, atol=0.02)


@needs_deepinv
@pytest.mark.parametrize("cls", [theirs.DPS, theirs.DiffPIR, theirs.DDRM])
def test_a_sample_depends_on_seed_item_and_number_only(cls: Any) -> None:
    m, P, method = inpainting(), gaussian(), cls(n_steps=5)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    three = method(P, m, n_samples=3, seed=4).samples
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    torch.testing.assert_close(method(P, m, n_samples=2, seed=4).samples, three[:2])
    assert not torch.allclose(three[0], three[1])
    assert not torch.allclose(method(P, m, seed=5).samples[0], three[0])
    assert not torch.allclose(method(P, dataclasses.replace(m, item="b"), seed=4).samples[0], three[0])


@needs_deepinv
@pytest.mark.slow
def test_tv_reaches_the_minimum_that_ours_does() -> None:
    x = torch.zeros(1, 16, 16)
    x[:, 4:12, 5:11] = 0.02
    A = 50.0 * Blur(gaussian_psf(1.0, 5), (1, 16, 16))
    m = Measurement.simulate(x, A, GaussianNoise(0.05), seed=0, image_scale=0.02)

    def objective(image: torch.Tensor) -> float:
        return float(m.nll(image) + 20.0 * differences(image / 0.02, 2).square().sum(0).sqrt().sum())

    ours = objective(TV(weight=20.0, tolerance=1e-4)(None, m).mean)
    found = objective(theirs.TV(weight=20.0, n_steps=60, n_inner=30)(None, m).mean)
    assert found == pytest.approx(ours, rel=3e-3)


@needs_deepinv
def test_a_plan_runs_them_beside_ours(tmp_path: Path) -> None:
    text = "n_samples = 2\n[[problem]]\nmake = 'bench_plugins:problem'\nprior = 'bench_plugins:prior'\n"
    for name, parameters in (("DPS", "n_steps = 5"), ("DiffPIR", "n_steps = 5"), ("DDRM", "n_steps = 5"),
                             ("TV", "weight = 1.0")):  # fmt: skip
        text += f"[[method]]\nname = '{name}'\nalgorithm = 'invdiff.benchmark.deepinv_methods:{name}'\n"
        text += f"set = {{ {parameters} }}\n"
    (tmp_path / "plan.toml").write_text(text)
    plan = Plan.read(tmp_path / "plan.toml")
    summary = run(plan, tmp_path / "s")
    assert (summary.done, summary.failed) == (4, {})
    store = Store(tmp_path / "s")
    assert {store.read(k).spec.version.split()[-1] for k in list(store.keys())} == {theirs.VERSION}
    assert {store.read(k).spec.n_samples for k in list(store.keys())} == {1, 2}


@needs_deepinv
def test_errors_say_what_is_needed() -> None:
    P = gaussian()
    counts = Measurement(torch.zeros(SHAPE), Identity(SHAPE), PoissonLogNoise(1e3))
    with pytest.raises(TypeError, match="linear operators and white Gaussian noise only"):
        theirs.DPS()(P, counts)
    blurred = Measurement(torch.zeros(SHAPE), Blur(gaussian_psf(1.0, 5), SHAPE), GaussianNoise(0.1))
    with pytest.raises(TypeError, match="needs a real SVD with all of V"):
        theirs.DDRM()(P, blurred)


def test_without_deepinv_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(theirs, "VERSION", "")
    with pytest.raises(ImportError, match=r"deepinv_methods:DDRM needs deepinv: pip install 'invdiff\[deepinv\]'"):
        theirs.DDRM()
