"""The denoiser convention: wrappers and checks."""

import pytest
import torch
from torch import Tensor, nn

from invdiff import GaussianNoise, Measurement, load_prior
from invdiff.noise import ComplexGaussianNoise
from invdiff.operators import Identity, RealAsComplex
from invdiff.priors import (
    ClippedSigma,
    DDPMDenoiser,
    DiscreteSchedule,
    EDMDenoiser,
    GaussianPrior,
    NetworkPrior,
    PriorInfo,
    StationaryCovariance,
    linear_betas,
)

SHAPE = (1, 8, 8)
SD = 0.5  # x0 ~ N(0, SD^2): the ideal denoiser is x SD^2 / (SD^2 + sigma^2)


class IdealEps(nn.Module):
    """The ideal eps-network of a DDPM for white data of standard deviation SD, written in VP variables."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))
        self.alphas_bar = DiscreteSchedule(linear_betas()).alphas_bar

    def forward(self, v: Tensor, t: Tensor) -> Tensor:
        ab = self.alphas_bar[t.round().long()].to(v)[:, None, None, None]
        eps = (1 - ab).sqrt() * v / (ab * SD**2 + 1 - ab)  # E[eps | v]
        return torch.cat([eps, torch.full_like(eps, 7.0)], 1)  # a learned variance that must be dropped


class ZeroNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return torch.zeros_like(x)


def test_ddpm_wrapper_turns_the_ideal_eps_into_the_ideal_denoiser() -> None:
    denoiser = DDPMDenoiser(IdealEps(), linear_betas())
    sigma = denoiser.schedule.sigmas[[0, 10, 300, 700, 999]].float()
    x = (
        torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(0))
        * (SD**2 + sigma**2).sqrt()[:, None, None, None]
    )
    expected = x * (SD**2 / (SD**2 + sigma**2))[:, None, None, None]
    torch.testing.assert_close(denoiser(x, sigma), expected, rtol=1e-3, atol=1e-4)


def test_edm_wrapper_is_the_ideal_denoiser_of_white_data_when_the_network_is_zero() -> None:
    x = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.01, 1.0, 80.0])
    expected = x * (SD**2 / (SD**2 + sigma**2))[:, None, None, None]
    torch.testing.assert_close(EDMDenoiser(ZeroNet(), SD)(x, sigma), expected)


def test_edm_preconditioning_has_unit_variance_in_and_out() -> None:
    seen = []

    class Probe(ZeroNet):
        def forward(self, x: Tensor, label: Tensor) -> Tensor:
            seen.append(x)
            return torch.zeros_like(x)

    g = torch.Generator().manual_seed(0)
    x0, n, sigma = (
        SD * torch.randn(1, 1, 300, 300, generator=g),
        torch.randn(1, 1, 300, 300, generator=g),
        0.7,
    )
    x = x0 + sigma * n
    c_skip_x = EDMDenoiser(Probe(), SD)(x, torch.tensor([sigma]))
    c_out = sigma * SD / (sigma**2 + SD**2) ** 0.5
    assert float(seen[0].var()) == pytest.approx(1, abs=0.02)
    assert float(((x0 - c_skip_x) / c_out).var()) == pytest.approx(1, abs=0.02)


def prior() -> GaussianPrior:
    return GaussianPrior(torch.zeros(SHAPE), StationaryCovariance.power_law(SHAPE))


def test_units_map_model_images_to_physical_ones() -> None:
    info = PriorInfo(name="p", value_range=(0.0, 2.0))
    p = NetworkPrior(EDMDenoiser(ZeroNet()), SHAPE, sigma_min=0.01, sigma_max=10, info=info)
    m = Measurement(torch.full(SHAPE, 0.0193), Identity(SHAPE), GaussianNoise(1e-3), image_scale=0.0193, units="1/mm")
    model = p.in_model_units(m)
    water = torch.zeros(1, *SHAPE)  # 1 in relative units is the middle of the range
    assert float(model.chi2(water)) == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(p.to_image(water, m), torch.full((1, *SHAPE), 0.0193))


def test_misfits_of_prior_and_measurement_are_refused() -> None:
    p = prior()
    for A, match in (
        (Identity((1, 8, 9)), r"image size: .*\(1, 8, 8\).*\(1, 8, 9\)"),
        (Identity((2, 8, 8)), "image channels"),
        (Identity(SHAPE).to(dtype=torch.float64), "float64"),
    ):
        m = Measurement(torch.zeros(A.out_shape, dtype=A.dtype), A, GaussianNoise(0.1))
        with pytest.raises(ValueError, match=match):
            p.in_model_units(m)
    A = Identity(SHAPE)
    A.in_complex = A.out_complex = True
    m = Measurement(torch.zeros(SHAPE, dtype=torch.complex64), A, ComplexGaussianNoise(0.1))
    with pytest.raises(ValueError, match="RealAsComplex"):
        p.in_model_units(m)
    assert RealAsComplex(SHAPE).out_complex


def test_wrong_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"works on \(batch, 1, 8, 8\)"):
        prior()(torch.zeros(1, 8, 8), 1.0)
    with pytest.raises(ValueError, match="sigma_min < sigma_max"):
        GaussianPrior(torch.zeros(SHAPE), StationaryCovariance.power_law(SHAPE), sigma_min=2.0, sigma_max=1.0)


def test_the_error_follows_the_validation_curve() -> None:
    rows = [{"sigma": s, "prior": p} for s, p in ((0.1, 40.0), (0.4, 30.0), (1.6, 24.0))]
    info = PriorInfo(name="told", details={"denoising_psnr": rows[::-1]})  # in any order
    prior = NetworkPrior(EDMDenoiser(nn.Identity()), (1, 4, 4), sigma_min=0.01, sigma_max=10.0, info=info)
    for row in rows:
        assert prior.error(row["sigma"]) == pytest.approx(2 * 10 ** (-row["prior"] / 20))
    assert prior.error(0.2) == pytest.approx(2 * 10 ** (-35 / 20))  # half way in both logarithms
    assert prior.error(6.4) == pytest.approx(2 * 10 ** (-18 / 20))  # the last slope goes on
    assert prior.error(1e-6) == 1e-6  # doing nothing is never worse
    assert ClippedSigma(prior, sigma_max=5.0).error(0.4) == prior.error(0.4)
    silent = NetworkPrior(prior.module, (1, 4, 4), sigma_min=0.01, sigma_max=10.0, info=PriorInfo(name="silent"))
    with pytest.raises(ValueError, match="'silent' does not say how well it denoises"):
        silent.error(0.1)


def test_the_error_of_a_gaussian_prior_is_that_of_its_denoiser() -> None:
    prior = GaussianPrior(torch.zeros(1, 8, 8), StationaryCovariance.power_law((1, 8, 8), std=0.5))
    x0 = prior.sample(4000, seed=0)
    x = x0 + 0.3 * torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    assert float((prior(x, 0.3) - x0).square().mean().sqrt()) == pytest.approx(prior.error(0.3), rel=0.01)


def test_a_convolutional_prior_works_at_other_sizes() -> None:
    prior = load_prior("ct-128")
    wide = prior.sized(96, 160)
    assert wide.shape == (1, 96, 160)
    # what is far from the new border is denoised as before
    x = torch.nn.functional.interpolate(torch.linspace(-1, 1, 12).reshape(1, 1, 3, 4), (96, 160))
    x = x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    a, b = wide(x, 0.05)[..., 32:64, 48:112], prior.sized(96, 128)(x[..., :128].contiguous(), 0.05)[..., 32:64, 48:112]
    assert float((a - b).square().mean().sqrt()) < 0.2 * prior.error(0.05)
    with pytest.raises(ValueError, match="does not work on images .1, 100, 100."):
        prior.sized(100, 100)


def test_a_checkpoint_without_a_curve_can_be_given_one() -> None:
    exact = GaussianPrior(torch.zeros(SHAPE), StationaryCovariance.power_law(SHAPE, std=0.5))

    class Exact(nn.Module):
        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            return exact(x, sigma)

    prior = NetworkPrior(Exact(), SHAPE, sigma_min=0.01, sigma_max=10.0, info=PriorInfo(name="published"))
    told = prior.validated(exact.sample(600, seed=0))
    for sigma in (0.1, 0.5, 1.0):
        assert told.error(sigma) == pytest.approx(exact.error(sigma), rel=0.02)
    # concave in logarithms: a chord lies below, by (ln 2.5)^2 / 8 of the curvature at most, which is below 1/2
    assert 0.95 * exact.error(0.3) < told.error(0.3) < exact.error(0.3)
    with pytest.raises(ValueError, match="Expected images"):
        prior.validated(torch.zeros(2, 1, 4, 4))
