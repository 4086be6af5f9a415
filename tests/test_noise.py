"""Noise models: likelihoods agree with their samples and with torch.distributions."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from invdiff import ComplexGaussianNoise, GaussianNoise, Measurement, PoissonLogNoise, WeightedGaussianNoise
from invdiff.noise import NOISES
from invdiff.operators import Identity

N = 200_000


def draws(noise: object, Ax: torch.Tensor) -> torch.Tensor:
    return noise.sample(Ax.expand(N).clone(), torch.Generator().manual_seed(0))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("noise", "Ax"),
    [
        (GaussianNoise(0.3), torch.tensor(1.2, dtype=torch.float64)),
        (ComplexGaussianNoise(0.3), torch.tensor(1.2 - 0.5j, dtype=torch.complex128)),
        (PoissonLogNoise(5000.0), torch.tensor(1.2, dtype=torch.float64)),
        (PoissonLogNoise(5000.0, electronic=25.0), torch.tensor(1.2, dtype=torch.float64)),
        (WeightedGaussianNoise(torch.tensor(11.1)), torch.tensor(1.2, dtype=torch.float64)),
    ],
)
class TestEveryNoise:
    def test_chi2_of_the_truth_is_one(self, noise: object, Ax: torch.Tensor) -> None:
        chi2 = noise.chi2(Ax, draws(noise, Ax))  # type: ignore[attr-defined]
        assert float(chi2.mean()) == pytest.approx(1, abs=5 * float(chi2.std()) / N**0.5)

    def test_gradient_is_the_derivative_of_the_nll(self, noise: object, Ax: torch.Tensor) -> None:
        y = draws(noise, Ax)[:5]
        x = (Ax + 0.1).expand(5).clone().requires_grad_(True)
        (g,) = torch.autograd.grad(noise.nll(x, y).sum(), x)  # type: ignore[attr-defined]
        torch.testing.assert_close(noise.nll_grad(x.detach(), y), g)  # type: ignore[attr-defined]

    def test_precision_is_the_inverse_variance_per_component(self, noise: object, Ax: torch.Tensor) -> None:
        y = draws(noise, Ax)
        components = torch.view_as_real(y) if y.is_complex() else y[:, None]
        precision = torch.as_tensor(noise.precision(y), dtype=torch.float64).mean()  # type: ignore[attr-defined]
        assert float(precision * components.var(0).mean()) == pytest.approx(1, rel=0.02)

    def test_expected_score_is_zero_at_the_truth(self, noise: object, Ax: torch.Tensor) -> None:
        g = noise.nll_grad(Ax, draws(noise, Ax))  # type: ignore[attr-defined]
        g = g.real if g.is_complex() else g
        assert abs(float(g.mean())) < 5 * float(g.std()) / N**0.5


def test_poisson_nll_differences_are_those_of_the_poisson_distribution() -> None:
    noise = PoissonLogNoise(1000.0)
    counts = torch.tensor([0.0, 3.0, 400.0], dtype=torch.float64)
    y = -torch.log(counts.clamp(min=1e-30) / 1000)
    for a, b in ((0.5, 1.5), (2.0, 6.0)):
        Ax, Bx = torch.full_like(y, a), torch.full_like(y, b)
        expected = [torch.distributions.Poisson(noise.counts(v)).log_prob(counts).neg() for v in (Ax, Bx)]
        torch.testing.assert_close(noise.nll(Ax, y) - noise.nll(Bx, y), expected[0] - expected[1])


def test_electronic_noise_vanishes_into_the_exact_poisson_likelihood() -> None:
    exact, nearly = PoissonLogNoise(1000.0), PoissonLogNoise(1000.0, electronic=1e-3)
    Ax = torch.linspace(0, 3, 7, dtype=torch.float64)
    y = Ax + torch.linspace(-0.5, 0.5, 7, dtype=torch.float64)
    for method in ("nll", "nll_grad", "chi2"):
        torch.testing.assert_close(getattr(nearly, method)(Ax, y), getattr(exact, method)(Ax, y), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(nearly.precision(y), exact.precision(y), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("n_photons", "electronic"), [(1e4, 0.0), (1e4, 60.0), (2e3, 10.0)])
def test_weights_after_the_log_are_the_inverse_variance_of_the_log(n_photons: float, electronic: float) -> None:
    """I^2 / (I + electronic^2), by simulating the counts without this module."""
    mean = n_photons * math.exp(-0.7)
    rng = np.random.default_rng(1)
    counts = rng.poisson(mean, N) + electronic * rng.normal(size=N)
    y = torch.from_numpy(-np.log(np.maximum(counts, 0.1) / n_photons))
    weights = PoissonLogNoise(n_photons, electronic=electronic).precision(torch.tensor([0.7], dtype=torch.float64))
    assert float(weights * y.var()) == pytest.approx(1, rel=0.03)


def test_the_weighted_data_term_is_the_quadratic_around_the_data() -> None:
    noise = PoissonLogNoise(1e6, electronic=300.0)
    y = torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64)
    weighted = noise.weighted(y)
    torch.testing.assert_close(weighted.precision(y), noise.precision(y))
    Ax = y + 1e-3
    torch.testing.assert_close(weighted.nll(Ax, y), noise.nll(Ax, y), rtol=0.01, atol=0)


def test_weights_are_kept_in_a_measurement_file(tmp_path: Path) -> None:
    weights = torch.rand(1, 4, 5, generator=torch.Generator().manual_seed(0)) + 0.1
    m = Measurement(torch.ones(1, 4, 5), Identity((1, 4, 5)), WeightedGaussianNoise(weights))
    m.save(tmp_path / "m.h5")
    again = Measurement.load(tmp_path / "m.h5")
    torch.testing.assert_close(again.noise.weights, weights, rtol=0, atol=0)
    x = torch.zeros(1, 4, 5)
    assert float(again.nll(x)) == pytest.approx(float((weights / 2).sum()))
    torch.testing.assert_close(m.to(dtype=torch.float64).nll_grad(x.double()), -weights.double())


def test_refuses_weights() -> None:
    for bad in (torch.tensor([1.0, 0.0]), torch.tensor([1.0, -1.0]), torch.tensor([float("nan")])):
        with pytest.raises(ValueError, match="positive and finite"):
            WeightedGaussianNoise(bad)
    with pytest.raises(TypeError, match=r"floating-point tensor, got torch\.int64"):
        WeightedGaussianNoise(torch.ones(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"weights of shape \(3,\) do not broadcast to data of shape \(1, 4, 5\)"):
        Measurement(torch.ones(1, 4, 5), Identity((1, 4, 5)), WeightedGaussianNoise(torch.ones(3)))
    with pytest.raises(ValueError, match="electronic"):
        PoissonLogNoise(100.0, electronic=-1.0)


def test_every_noise_is_in_the_table() -> None:
    classes = {c.__name__: c for c in (ComplexGaussianNoise, GaussianNoise, PoissonLogNoise, WeightedGaussianNoise)}
    assert classes == NOISES


def test_dark_rays_stay_finite() -> None:
    for electronic in (0.0, 5.0):
        noise = PoissonLogNoise(10.0, electronic=electronic)
        y = noise.sample(torch.full((1000,), 9.0), torch.Generator().manual_seed(0))
        assert torch.isfinite(y).all()
        assert torch.isfinite(noise.nll(torch.full((1000,), 60.0), y)).all()
        assert torch.isfinite(noise.nll_grad(torch.full((1000,), 60.0), y)).all()


@pytest.mark.parametrize("sigma", [-0.1, 0.0, float("nan"), float("inf"), None])
def test_sigma_must_be_positive(sigma: float) -> None:
    with pytest.raises(ValueError, match="sigma must be a positive finite number"):
        GaussianNoise(sigma)
    with pytest.raises(ValueError, match="sigma"):
        ComplexGaussianNoise(sigma)
    with pytest.raises(ValueError, match="n_photons"):
        PoissonLogNoise(sigma)
