"""The likelihood of a noisy state against dense linear algebra, and the level of a warm start."""

from __future__ import annotations

import pytest
import torch

from invdiff import ComplexGaussianNoise, GaussianNoise, Measurement, PoissonLogNoise
from invdiff.algorithms.draw import Run, start_level
from invdiff.algorithms.guidance import Isotropic, Tweedie, likelihood_score, without_overshoot
from invdiff.operators import (
    CT,
    BlockDownsample,
    Blur,
    Identity,
    Inpainting,
    MultiCoilMRI,
    ParallelBeam,
    RealAsComplex,
    birdcage_maps,
    equispaced_mask,
    gaussian_psf,
    random_pixels,
)
from invdiff.operators.base import LinearOperator
from invdiff.priors import Counted, GaussianPrior, StationaryCovariance
from invdiff.random import SampleStreams

SHAPE, F64 = (1, 8, 8), torch.float64
PRIOR = GaussianPrior(torch.zeros(SHAPE), StationaryCovariance.power_law(SHAPE), dtype=F64)
X = PRIOR.sample(1, seed=2)[0].float()
BEAM = ParallelBeam(
    image_shape=(8, 8), pixel_size=0.4, angles=(0.0, 0.7, 1.5), n_detectors=12, detector_spacing=0.4
)  # fmt: skip
PROBLEMS = {
    "blur": (Blur(gaussian_psf(0.8, 5), SHAPE), GaussianNoise(0.1)),
    "mask": (Inpainting(random_pixels(SHAPE, 0.3, seed=0)), GaussianNoise(0.1)),
    "ct": (CT(BEAM), GaussianNoise(0.1)),
    "counts": (CT(BEAM), PoissonLogNoise(200.0)),
    "mri": (
        MultiCoilMRI(birdcage_maps(2, (8, 8)), equispaced_mask(8, acceleration=2, center_fraction=0.25))
        @ RealAsComplex(SHAPE),
        ComplexGaussianNoise(0.1),
    ),
}


def make_run(name: str, n: int = 3) -> Run:
    A, noise = PROBLEMS[name]
    m = PRIOR.in_model_units(Measurement.simulate(X, A, noise, seed=1).to(dtype=F64))  # type: ignore[arg-type]
    return Run(Counted(PRIOR), m, SampleStreams(0, range(n)), None, lambda *a, **k: None)


def dense(run: Run) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A as a matrix of observed real rows, the noise's precision per row, and the data."""
    m = run.measurement
    assert m.linear is not None
    eye = torch.eye(64, dtype=F64).reshape(64, *SHAPE)
    keep = (torch.ones(m.A.out_shape) if m.A.observed is None else m.A.observed.expand(m.A.out_shape)).bool()

    def pack(y: torch.Tensor) -> torch.Tensor:
        y = y[..., keep]
        return torch.view_as_real(y).flatten(-2) if y.is_complex() else y

    precision = torch.as_tensor(m.noise.precision(m.y), dtype=F64).expand(m.A.out_shape)[keep]
    if m.A.out_complex:
        precision = precision.repeat_interleave(2)
    return pack(m.linear(eye)).T, precision, pack(m.linear_data)


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("exact", [False, True], ids=["isotropic", "tweedie"])
def test_the_score_is_that_of_the_gaussian_likelihood(name: str, exact: bool) -> None:
    run, s = make_run(name), 0.4
    M, precision, y = dense(run)
    u = run.randn()
    C = PRIOR.covariance
    eye = torch.eye(64, dtype=F64).reshape(64, *SHAPE)
    J = C.inverse(C.eigenvalues / (C.eigenvalues + s**2) * C.forward(eye)).reshape(64, 64)
    V = s**2 * J if exact else s**2 * 0.25 / (s**2 + 0.25) * torch.eye(64, dtype=F64)
    Sigma = M @ V @ M.T + torch.diag(1 / precision)
    x0 = u.flatten(1) @ J.T
    r = y - x0 @ M.T
    w = torch.linalg.solve(Sigma, r.T).T
    covariance = Tweedie(n_cg=300, tolerance=1e-12) if exact else Isotropic(n_cg=300, tolerance=1e-12)
    mean, g, log_p = likelihood_score(u, s, run, covariance)
    torch.testing.assert_close(mean.flatten(1), x0)
    torch.testing.assert_close(g.flatten(1), w @ M @ J.T, rtol=1e-5, atol=1e-7)
    expected = -0.5 * (w * r).sum(1)
    torch.testing.assert_close(log_p - log_p[0], expected - expected[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "A",
    [Inpainting(random_pixels(SHAPE, 0.5, seed=0)), Blur(gaussian_psf(1.0, 5), SHAPE), BlockDownsample(SHAPE, 2)],
    ids=["mask", "blur", "down"],
)
def test_the_score_of_precise_data_survives_single_precision(A: LinearOperator) -> None:
    m = Measurement.simulate(X, A, GaussianNoise(1e-5), seed=1)
    scores = []
    for dtype in (torch.float32, F64):
        prior = GaussianPrior(torch.zeros(SHAPE), PRIOR.covariance, dtype=dtype)
        streams = SampleStreams(0, range(2))
        run = Run(Counted(prior), prior.in_model_units(m.to(dtype=dtype)), streams, None, lambda *a, **k: None)
        u = torch.randn((2, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=F64).to(dtype)
        scores.append(likelihood_score(u, 0.5, run, Isotropic())[1].double())
    assert float((scores[0] - scores[1]).norm() / scores[1].norm()) < 1e-3


def test_guidance_is_shortened_only_where_it_overshoots() -> None:
    # V = s^2 J: the residual left is R Sigma^-1 r, never an overshoot; V far too narrow: it is, by a known factor
    run, s = make_run("blur"), 0.4
    u = run.randn()
    x0, g, _ = likelihood_score(u, s, run, Tweedie(n_cg=300, tolerance=1e-12))
    torch.testing.assert_close(without_overshoot(g, x0, s, 0.0, run), g)
    x0, g, _ = likelihood_score(u, s, run, Isotropic(sigma_data=0.05))
    short = without_overshoot(g, x0, s, 0.0, run)
    left = run.measurement.residual(x0 + s**2 * short).flatten(1).norm(dim=1)
    assert bool((left < run.measurement.residual(x0).flatten(1).norm(dim=1)).all())
    # a short step of the iteration may follow g further
    torch.testing.assert_close(without_overshoot(g, x0, s, s * 0.9999, run), g)
    for factor in (0.95, 1.05):  # least squares along g
        other = run.measurement.residual(x0 + factor * s**2 * short).flatten(1).norm(dim=1)
        assert bool((left < other).all())


def test_tweedie_builds_small_covariances_densely() -> None:
    run = make_run("ct")
    u = run.randn()
    a = likelihood_score(u, 0.4, run, Tweedie(dense_limit=100))
    b = likelihood_score(u, 0.4, run, Tweedie(dense_limit=1, n_cg=200, tolerance=1e-12))
    torch.testing.assert_close(a[1], b[1], rtol=1e-6, atol=1e-8)
    assert not torch.allclose(a[2] - a[2][0], torch.zeros(3, dtype=F64))


@pytest.mark.parametrize("name", ["blur", "mask", "ct", "mri"])
@pytest.mark.parametrize("level", [0.1, 0.5])
def test_the_start_level_of_white_noise_is_its_standard_deviation(name: str, level: float) -> None:
    m = make_run(name).measurement
    assert m.reference is not None
    z = torch.randn((40, *SHAPE), generator=torch.Generator().manual_seed(3), dtype=F64)
    found = torch.tensor([start_level(m, m.reference + level * v) for v in z])
    assert float(found.square().mean().sqrt()) == pytest.approx(level, rel=0.2)


def test_a_start_that_is_the_data_enters_at_their_noise() -> None:
    A = Identity(SHAPE)
    m = Measurement.simulate(X, A, GaussianNoise(0.2), seed=1)
    assert start_level(m, m.y) == pytest.approx(0.2, rel=0.1)  # its error is the noise, its residual nothing


def test_a_start_must_be_one_finite_image() -> None:
    from invdiff.algorithms import DAPS

    A, noise = PROBLEMS["blur"]
    m = Measurement.simulate(X, A, noise, seed=1).to(dtype=F64)
    with pytest.raises(ValueError, match="start must be one finite image of shape"):
        DAPS(n_anneal=3)(PRIOR, m, start=torch.zeros(8, 8))
    with pytest.raises(ValueError, match="no image was given"):
        DAPS(n_anneal=3)(PRIOR, m, start_sigma=0.3)
