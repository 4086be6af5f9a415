"""Measurement: likelihood, units, checks, files."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch

from invdiff import ComplexGaussianNoise, GaussianNoise, Measurement, PoissonLogNoise, WeightedGaussianNoise
from invdiff.operators import (
    CT,
    Affine,
    Blur,
    Identity,
    Inpainting,
    MultiCoilMRI,
    Operator,
    ParallelBeam,
    RealAsComplex,
    ViewAsComplex,
    birdcage_maps,
    equispaced_mask,
    gaussian_psf,
    random_pixels,
)
from invdiff.operators.linalg import cg
from invdiff.random import SampleStreams

SHAPE = (1, 12, 10)
X = 1 + torch.rand(SHAPE, generator=torch.Generator().manual_seed(5))


def beam() -> ParallelBeam:
    angles = tuple(math.pi * i / 6 for i in range(6))
    return ParallelBeam(image_shape=SHAPE[1:], pixel_size=0.1, angles=angles, n_detectors=17, detector_spacing=0.1)


def cases() -> dict[str, Measurement]:
    mri = MultiCoilMRI(birdcage_maps(3, SHAPE[1:]), equispaced_mask(10, acceleration=2, center_fraction=0.2))
    masked = Inpainting(random_pixels(SHAPE, 0.5, seed=1)) @ Blur(gaussian_psf(1.0, 5), SHAPE)
    return {
        "inpainting": Measurement.simulate(X, masked, GaussianNoise(0.1), seed=0),
        "mri": Measurement.simulate(X, mri @ RealAsComplex(SHAPE), ComplexGaussianNoise(0.1), seed=0),
        "ct": Measurement.simulate(X, CT(beam()), PoissonLogNoise(1e4), seed=0, units="1/mm", metadata={"views": 6}),
        "scaled": Measurement.simulate(X, 2.0 * Identity(SHAPE), GaussianNoise(0.1), seed=0, image_scale=3.0),
    }


@pytest.fixture(params=["inpainting", "mri", "ct", "scaled"])
def m(request: pytest.FixtureRequest) -> Measurement:
    return cases()[request.param]


def test_gradient_is_the_derivative_of_the_nll(m: Measurement) -> None:
    m = m.to(dtype=torch.float64)
    x = (X.double() * 1.1)[None].requires_grad_(True)
    (g,) = torch.autograd.grad(m.nll(x).sum(), x)
    torch.testing.assert_close(m.nll_grad(x.detach()), g)


def test_nll_is_per_sample(m: Measurement) -> None:
    x = torch.stack([X, 0.5 * X, 2 * X])
    torch.testing.assert_close(m.nll(x)[1], m.nll(x[1]))
    torch.testing.assert_close(m.chi2(x)[2], m.chi2(x[2]))


def test_unobserved_entries_do_not_count() -> None:
    m = cases()["inpainting"]
    assert m.n_data == 60
    r = m.residual(X)
    assert float(m.chi2(X)) == pytest.approx(float((r / 0.1).square().sum()) / 60, rel=1e-5)
    unseen = ~m.A.observed
    assert float(r[unseen].abs().max()) == 0


def test_model_units_are_a_change_of_variables(m: Measurement) -> None:
    m = m.to(dtype=torch.float64)
    scale, offset = 0.7, 0.2
    u = ((X.double() * 1.1 - offset) / scale)[None]
    model = m.in_model_units(scale, offset)
    torch.testing.assert_close(model.nll(u), m.nll(scale * u + offset))
    torch.testing.assert_close(model.nll_grad(u), scale * m.nll_grad(scale * u + offset))
    x = m.prox(scale * u + offset, 0.5 * scale**2, n_steps=500, tolerance=1e-11)
    torch.testing.assert_close(model.prox(u, 0.5, n_steps=500, tolerance=1e-11), (x - offset) / scale)


def test_an_affine_operator_is_data_shifted_by_its_constant() -> None:
    A, shift = Inpainting(random_pixels((1, 4, 3), 0.6, seed=1)), torch.full((1, 4, 3), 0.5)
    m = Measurement.simulate(torch.ones(1, 4, 3), A, GaussianNoise(0.1), seed=0)
    affine = replace(m, A=Affine(A, shift), y=m.y + shift * A.observed)
    torch.testing.assert_close(affine.residual(0.3 * shift), m.residual(0.3 * shift))  # zero where not observed
    u = torch.rand(2, 1, 4, 3, generator=torch.Generator().manual_seed(0))
    model = affine.in_model_units(0.7, 0.2)
    assert model.linear is not None
    torch.testing.assert_close(model.prox(u, 0.5), m.in_model_units(0.7, 0.2).prox(u, 0.5))


def test_conditional_draws_have_the_mean_and_covariance_of_the_gaussian() -> None:
    A = Inpainting(random_pixels((1, 4, 3), 0.6, seed=1)) @ Blur(gaussian_psf(1.0, 3), (1, 4, 3))
    truth = torch.ones(1, 4, 3)
    m = Measurement.simulate(truth, A, GaussianNoise(0.2), seed=0).to(dtype=torch.float64)
    n, variance = 40_000, 0.3
    z = torch.zeros(n, 1, 4, 3, dtype=torch.float64)
    x = m.conditional(z, variance, SampleStreams(0, range(n)), tolerance=1e-10).flatten(1)
    M = torch.stack([m.A(e.reshape(1, 4, 3)).flatten() for e in torch.eye(12, dtype=torch.float64)], 1)
    precision = M.T @ M / 0.2**2 + torch.eye(12, dtype=torch.float64) / variance
    mean = torch.linalg.solve(precision, M.T @ m.y.flatten() / 0.2**2)
    C = torch.linalg.inv(precision)
    assert float(((x.mean(0) - mean) / (C.diagonal() / n).sqrt()).abs().max()) < 4.5
    torch.testing.assert_close(torch.cov(x.T), C, rtol=0, atol=5 * float(C.diagonal().max()) * (2 / n) ** 0.5)


@pytest.mark.parametrize("kind", [RealAsComplex, ViewAsComplex])
def test_draws_for_mri_of_whole_lines_have_the_mean_and_covariance_of_the_gaussian(kind: Any) -> None:
    # 3 coils see more numbers than there are pixels: drawn by what they tell of the pixels, not by their noise
    A = MultiCoilMRI(birdcage_maps(3, (3, 4)), torch.tensor([True, False, True, False])) @ kind((1, 3, 4))
    A, n, variance, d = A.to(dtype=torch.float64), 40_000, 0.3, math.prod(A.in_shape)
    truth = torch.linspace(0, 1, d, dtype=torch.float64).reshape(A.in_shape)
    m = Measurement.simulate(truth, A, ComplexGaussianNoise(0.2), seed=0)
    m = m.in_model_units(0.7, 0.2)  # an affine operator
    M = m.linear(torch.eye(d, dtype=torch.float64).reshape(d, *A.in_shape)).flatten(1).T
    M, y = torch.cat([M.real, M.imag]), m.linear_data.flatten()
    y = torch.cat([y.real, y.imag])
    z = torch.full((n, *A.in_shape), 0.4, dtype=torch.float64)
    precision = M.T @ M / 0.2**2 + torch.eye(d, dtype=torch.float64) / variance
    C = torch.linalg.inv(precision)
    mean = C @ (M.T @ y / 0.2**2 + 0.4 / variance)
    torch.testing.assert_close(m.prox(z[:1], variance).flatten(), mean)
    x = m.conditional(z, variance, SampleStreams(0, range(n))).flatten(1)
    assert float(((x.mean(0) - mean) / (C.diagonal() / n).sqrt()).abs().max()) < 4.5
    torch.testing.assert_close(torch.cov(x.T), C, rtol=0, atol=5 * float(C.diagonal().max()) * (2 / n) ** 0.5)


def test_conditioning_goes_from_one_to_the_overlap_of_the_views() -> None:
    angles = tuple(math.pi * i / 60 for i in range(60))
    beams = ParallelBeam(image_shape=(64, 64), pixel_size=1.0, angles=angles, n_detectors=91, detector_spacing=1.0)
    A = CT(beams)
    m = Measurement(torch.zeros(A.out_shape), A, WeightedGaussianNoise(torch.ones(A.out_shape)))
    assert m.conditioning(1e-9) == pytest.approx(1, abs=1e-3)
    assert 30 < m.conditioning(1e6) < 120  # all 60 views overlap at frequency zero
    few = CT(beams.subset(range(0, 60, 10)))
    m = Measurement(torch.zeros(few.out_shape), few, WeightedGaussianNoise(torch.ones(few.out_shape)))
    assert m.conditioning(1e6) < 20


def test_saved_and_loaded_measurements_agree(m: Measurement, tmp_path: Path) -> None:
    m.save(tmp_path / "m.h5")
    n = Measurement.load(tmp_path / "m.h5")
    assert torch.equal(n.y, m.y)
    torch.testing.assert_close(n.A(X), m.A(X), rtol=0, atol=0)
    torch.testing.assert_close(n.nll_grad(X), m.nll_grad(X), rtol=0, atol=0)
    assert (n.noise, n.image_scale, n.units, n.item, n.metadata) == (
        m.noise,
        m.image_scale,
        m.units,
        m.item,
        m.metadata,
    )
    assert torch.equal(n.reference, m.reference)


class TestErrors:
    A, noise = Identity(SHAPE), GaussianNoise(0.1)

    def test_wrong_shape(self) -> None:
        with pytest.raises(ValueError, match=r"output shape \(1, 12, 10\), got \(1, 10, 12\)"):
            Measurement(torch.zeros(1, 10, 12), self.A, self.noise)

    def test_wrong_precision(self) -> None:
        with pytest.raises(TypeError, match="must be torch.float32"):
            Measurement(X.double(), self.A, self.noise)

    def test_nan(self) -> None:
        y = X.clone()
        y[0, 0, :3] = float("nan")
        with pytest.raises(ValueError, match=r"3 non-finite value"):
            Measurement(y, self.A, self.noise)

    def test_noise_of_the_wrong_kind(self) -> None:
        with pytest.raises(TypeError, match="not a noise model for real data"):
            Measurement(X, self.A, ComplexGaussianNoise(0.1))

    def test_data_where_nothing_is_observed(self) -> None:
        with pytest.raises(ValueError, match="not zero where the operator observes nothing"):
            Measurement(X, Inpainting(random_pixels(SHAPE, 0.5, seed=0)), self.noise)

    def test_not_an_operator(self) -> None:
        with pytest.raises(TypeError, match="must be an invdiff operator"):
            Measurement(X, lambda x: x, self.noise)  # type: ignore[arg-type]

    def test_complex_images_need_a_composition(self) -> None:
        A = MultiCoilMRI(birdcage_maps(2, (4, 4)), torch.ones(4, dtype=torch.bool))
        m = Measurement(torch.zeros(2, 4, 4, dtype=torch.complex64), A, ComplexGaussianNoise(0.1))
        with pytest.raises(TypeError, match="ViewAsComplex"):
            m.in_model_units(1.0, 0.0)

    def test_prox_of_a_nonlinear_operator(self) -> None:
        class Square(Operator):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x**2

        m = Measurement(X, Square(SHAPE, SHAPE), self.noise)
        with pytest.raises(TypeError, match="needs a linear operator"):
            m.prox(X, 1.0)


class TestFiles:
    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="No such file"):
            Measurement.load(tmp_path / "no.h5")

    def test_wrong_suffix(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"ends in \.h5"):
            cases()["scaled"].save(tmp_path / "m.npz")

    def test_truncated(self, tmp_path: Path) -> None:
        path = tmp_path / "m.h5"
        cases()["scaled"].save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(OSError, match="truncated"):
            Measurement.load(path)

    def test_another_hdf5_file(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "other.h5", "w") as f:
            f["x"] = [1]
        with pytest.raises(ValueError, match="not a saved Measurement"):
            Measurement.load(tmp_path / "other.h5")

    def test_unknown_class_is_not_looked_up(self, tmp_path: Path) -> None:
        path = tmp_path / "m.h5"
        cases()["scaled"].save(path)
        with h5py.File(path, "r+") as f:
            f["operator"].attrs["class"] = "os.system"
        with pytest.raises(ValueError, match="unknown class 'os.system'"):
            Measurement.load(path)

    def test_external_storage_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "secret").write_bytes(b"x" * 80)
        with h5py.File(tmp_path / "m.h5", "w") as f:
            f.create_dataset("y", (10,), "f8", external=[(str(tmp_path / "secret"), 0, 80)])
        with pytest.raises(ValueError, match="another file"):
            Measurement.load(tmp_path / "m.h5")

    def test_impossible_size_is_refused(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "m.h5", "w") as f:
            f.create_dataset("y", (10**6, 10**6), "f8", chunks=(1000, 1000))
        with pytest.raises(ValueError, match="more than the file can hold"):
            Measurement.load(tmp_path / "m.h5")

    def test_an_interrupted_save_leaves_the_old_file(self, tmp_path: Path) -> None:
        path = tmp_path / "m.h5"
        m = cases()["scaled"]
        m.save(path)
        broken = Measurement(m.y, m.A, m.noise, metadata={"not json": {1, 2}})
        with pytest.raises(TypeError):
            broken.save(path)
        assert torch.equal(Measurement.load(path).y, m.y)
        assert [p.name for p in tmp_path.iterdir()] == ["m.h5"]


def test_unwhite_noise_is_solved_on_the_data_like_dense_algebra() -> None:
    # counts over four orders of magnitude, a wide prior: hard for steps on the image
    A = CT(beam())
    weights = torch.logspace(0, 4, 17, dtype=torch.float64).expand(A.out_shape)
    y = torch.randn(A.out_shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    m = Measurement(y, A.to(dtype=torch.float64), WeightedGaussianNoise(weights))
    M = m.A(torch.eye(120, dtype=torch.float64).reshape(120, *SHAPE)).flatten(1).T
    z, v = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(4), dtype=torch.float64), 0.7
    precision = torch.eye(120) / v + M.T @ (weights.reshape(-1, 1) * M)
    expected = torch.linalg.solve(precision, z.flatten(1).T / v + M.T @ (weights.flatten() * y.flatten())[:, None]).T
    found = m.prox(z, v, n_steps=400, tolerance=1e-10)
    torch.testing.assert_close(found.flatten(1), expected, rtol=1e-6, atol=1e-6)
    covariance = v * M @ M.T + torch.diag(1 / weights.flatten())
    u = m.solve_covariance(y.expand(2, *A.out_shape), v, n_steps=400, tolerance=1e-12)
    assert float((covariance @ u[0].flatten() - y.flatten()).norm() / y.norm()) < 1e-8


def test_the_filter_of_the_preconditioner_saves_steps_of_its_diagonal_alone() -> None:
    # 60 views of 64 pixels overlap at low frequencies, which no diagonal sees; counts as behind a body
    angles = tuple(math.pi * i / 60 for i in range(60))
    beams = ParallelBeam(image_shape=(64, 64), pixel_size=1.0, angles=angles, n_detectors=91, detector_spacing=1.0)
    A, streams = CT(beams).to(dtype=torch.float64), torch.Generator().manual_seed(5)
    weights = torch.logspace(2, 4, 91, dtype=torch.float64).expand(A.out_shape)
    v, p = 0.1, weights.sqrt()
    r = v**0.5 * A(torch.randn(A.in_shape, generator=streams, dtype=torch.float64))
    r = r + torch.randn(A.out_shape, generator=streams, dtype=torch.float64) / p
    m = Measurement(r, A, WeightedGaussianNoise(weights))
    exact = m.solve_covariance(r, v, n_steps=1500, tolerance=1e-13)
    energy = A(torch.eye(4096, dtype=torch.float64).reshape(4096, 1, 64, 64)).square().sum(0)

    def diagonal_alone(n_steps: int) -> torch.Tensor:
        return p * cg(
            lambda u: u + v * p * A(A.H(p * u)), p * r, item_ndim=3,
            preconditioner=lambda u: u / (1 + v * weights * energy), n_steps=n_steps,
        )  # fmt: skip

    def error(u: torch.Tensor) -> float:
        return float(A.H(u - exact).norm() / A.H(exact).norm())

    assert error(m.solve_covariance(r, v, n_steps=3)) < error(diagonal_alone(5))


def test_draws_of_the_conditional_have_its_mean_and_covariance_where_the_noise_is_not_white() -> None:
    A = CT(beam()).to(dtype=torch.float64)
    weights = torch.logspace(0, 3, 17, dtype=torch.float64).expand(A.out_shape)
    m = Measurement(A(X.double()), A, WeightedGaussianNoise(weights))
    M = A(torch.eye(120, dtype=torch.float64).reshape(120, *SHAPE)).flatten(1).T
    covariance = torch.linalg.inv(torch.eye(120) / 0.5 + M.T @ (weights.reshape(-1, 1) * M))
    n = 4000
    draws = m.conditional(torch.zeros(n, *SHAPE, dtype=torch.float64), 0.5, SampleStreams(0, range(n)), n_steps=60)
    mean = covariance @ (M.T @ (weights.flatten() * m.y.flatten()))
    # whitened by the exact law, the draws are standard normal: chi2 with 120 degrees of freedom, five deviations
    L = torch.linalg.cholesky(covariance)
    white = torch.linalg.solve_triangular(L, (draws.flatten(1) - mean).T, upper=False)
    assert float(white.mean(1).square().sum() * n) == pytest.approx(120, abs=5 * 240**0.5)
    assert float(white.var(1).mean()) == pytest.approx(1, abs=5 * (2 / (120 * n)) ** 0.5)
