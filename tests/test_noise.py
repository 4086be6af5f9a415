"""Noise models: likelihoods agree with their samples and with torch.distributions."""

import pytest
import torch

from invdiff import ComplexGaussianNoise, GaussianNoise, PoissonLogNoise

N = 200_000


def draws(noise: object, Ax: torch.Tensor) -> torch.Tensor:
    return noise.sample(Ax.expand(N).clone(), torch.Generator().manual_seed(0))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("noise", "Ax"),
    [
        (GaussianNoise(0.3), torch.tensor(1.2, dtype=torch.float64)),
        (ComplexGaussianNoise(0.3), torch.tensor(1.2 - 0.5j, dtype=torch.complex128)),
        (PoissonLogNoise(5000.0), torch.tensor(1.2, dtype=torch.float64)),
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


def test_dark_rays_stay_finite() -> None:
    y = PoissonLogNoise(10.0).sample(torch.full((1000,), 9.0), torch.Generator().manual_seed(0))
    assert torch.isfinite(y).all()


@pytest.mark.parametrize("sigma", [-0.1, 0.0, float("nan"), float("inf"), None])
def test_sigma_must_be_positive(sigma: float) -> None:
    with pytest.raises(ValueError, match="sigma must be a positive finite number"):
        GaussianNoise(sigma)
    with pytest.raises(ValueError, match="sigma"):
        ComplexGaussianNoise(sigma)
    with pytest.raises(ValueError, match="n_photons"):
        PoissonLogNoise(sigma)
