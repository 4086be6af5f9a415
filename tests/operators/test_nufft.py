"""Both non-uniform transforms against the sum that defines them; Toeplitz, density compensation, gridding."""

from __future__ import annotations

import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from invdiff.operators import (
    NonCartesianMRI,
    birdcage_maps,
    density_compensation,
    fft2c,
    golden_angle_trajectory,
    gridding,
    nufft,
    radial_trajectory,
    spiral_trajectory,
)
from invdiff.operators.nufft import FinufftTransform, KaiserBesselTransform

SHAPE = (15, 12)


def exact(k: Tensor, shape: tuple[int, int]) -> Tensor:
    """The matrix of the transform, (n_samples, ny * nx), complex128."""
    qy, qx = (torch.arange(n, dtype=torch.float64) - n // 2 for n in shape)
    phase = k[:, 0, None, None] * qy[:, None] / shape[0] + k[:, 1, None, None] * qx / shape[1]
    return torch.exp(-2j * math.pi * phase).flatten(1) / math.prod(shape) ** 0.5


def positions(n: int = 40) -> Tensor:
    k = torch.rand(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5
    k = k * torch.tensor(SHAPE)
    k[0], k[1], k[2] = torch.tensor([-7.5, -6.0]), torch.tensor([7.5, 6.0]), torch.tensor([0.0, 0.0])
    return k


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.view_as_complex(
        torch.randn(*shape, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    )


@pytest.fixture(params=[FinufftTransform, KaiserBesselTransform], ids=["finufft", "torch"])
def transform(request: pytest.FixtureRequest) -> Any:
    if request.param is FinufftTransform:
        pytest.importorskip("finufft", reason="extra: nufft")
    return request.param


@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float32, 3e-6), (torch.float64, 3e-12)])
def test_transform_is_the_exact_sum(transform: Any, dtype: torch.dtype, accuracy: float) -> None:
    k = positions()
    F = exact(k, SHAPE)
    T = transform(k, SHAPE, dtype)
    x, y = normal(3, *SHAPE), normal(3, len(k), seed=2)
    cdtype = torch.complex64 if dtype == torch.float32 else torch.complex128
    forward, adjoint = T.apply(x.to(cdtype)), T.apply_adjoint(y.to(cdtype))
    assert forward.dtype == adjoint.dtype == cdtype
    expected, back = x.flatten(1) @ F.T, (y @ F.conj()).reshape(3, *SHAPE)
    assert float((forward - expected).norm() / expected.norm()) < accuracy
    assert float((adjoint - back).norm() / back.norm()) < accuracy
    one = T.apply(x[:1].to(cdtype))
    torch.testing.assert_close(one, forward[:1])


def test_whole_numbers_are_the_centred_fft(transform: Any) -> None:
    grid = torch.stack(torch.meshgrid(*(torch.arange(n) - n // 2 for n in SHAPE), indexing="ij"), -1).reshape(-1, 2)
    x = normal(2, *SHAPE)
    y = transform(grid.double(), SHAPE, torch.float64).apply(x)
    torch.testing.assert_close(y, fft2c(x).flatten(1), rtol=0, atol=1e-10)


def test_transforms_change_precision_and_can_be_pickled(transform: Any) -> None:
    T = transform(positions(), SHAPE)
    x = normal(1, *SHAPE)
    expected = x.flatten(1) @ exact(positions(), SHAPE).T
    T.apply(x.to(torch.complex64))
    wide = T.to(dtype=torch.float64)  # a wider kernel or a finer plan, not the same weights widened
    assert float((wide.apply(x) - expected).norm() / expected.norm()) < 3e-12
    again = pickle.loads(pickle.dumps(T))
    torch.testing.assert_close(again.apply(x.to(torch.complex64)), T.apply(x.to(torch.complex64)))


def operator() -> NonCartesianMRI:
    return NonCartesianMRI(birdcage_maps(3, SHAPE), 0.8 * golden_angle_trajectory(12, n_spokes=9, n_samples=20))


def test_operator_sums_over_coils_and_flattens_readouts() -> None:
    A = operator().to(dtype=torch.float64)
    assert A.out_shape == (3, 180)
    F = exact(A.trajectory.reshape(-1, 2), SHAPE)
    x = normal(1, *SHAPE)
    torch.testing.assert_close(A(x), (A.maps * x).flatten(1) @ F.T, rtol=0, atol=1e-9)


def test_without_finufft_torch_does_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    with_default = operator().to(dtype=torch.float64)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    A = operator().to(dtype=torch.float64)
    assert isinstance(A._nufft, KaiserBesselTransform)
    x = normal(2, 1, *SHAPE)
    torch.testing.assert_close(A(x), with_default(x), rtol=0, atol=1e-10)
    torch.testing.assert_close(A.gram(x), A.H(A(x)), rtol=0, atol=1e-9)


def test_toeplitz_gram_is_the_exact_normal_matrix_and_conjugate_gradients_use_it() -> None:
    A = operator().to(dtype=torch.float64)
    F = exact(A.trajectory.reshape(-1, 2), SHAPE)
    x = normal(1, *SHAPE)
    expected = (A.maps.conj() * ((A.maps * x).flatten(1) @ F.T @ F.conj()).reshape(3, *SHAPE)).sum(0, keepdim=True)
    torch.testing.assert_close(A.gram(x), expected, rtol=0, atol=1e-9)
    assert A.gram is A.gram
    y, back = A(x), A.H(A(x))
    A._nufft.apply = None  # type: ignore[method-assign,assignment]  # not needed any more, once y is measured
    z = A.prox(torch.zeros_like(x), y, 3.0)
    assert float((z + 3 * (A.gram(z) - back)).norm() / back.norm()) < 1e-4


def test_density_is_one_on_the_grid_and_the_ramp_on_spokes() -> None:
    n = 24
    grid = torch.stack(torch.meshgrid(*[torch.arange(n) - n // 2] * 2, indexing="ij"), -1).double()
    torch.testing.assert_close(density_compensation(grid, (n, n)), torch.ones(n * n), rtol=0.02, atol=0)
    n_spokes = 2 * n
    k = radial_trajectory(n, n_spokes=n_spokes)  # samples half a cycle apart
    w = density_compensation(k, (n, n)).reshape(n_spokes, -1)
    radius = k.norm(dim=-1)
    ramp = math.pi * radius / n_spokes * 0.5  # area per sample
    middle = (radius > 3) & (radius < n / 2 - 3)
    torch.testing.assert_close(w[middle].double(), ramp[middle], rtol=0.05, atol=0)
    assert float(w.sum()) == pytest.approx(math.pi * (n / 2) ** 2, rel=0.15)


@pytest.mark.parametrize("trajectory", [radial_trajectory(32, n_spokes=56), spiral_trajectory(32, n_arms=4)])
def test_gridding_reconstructs_a_smooth_image(trajectory: Tensor) -> None:
    y, x = torch.meshgrid(*[torch.arange(32) - 16.0] * 2, indexing="ij")
    image = torch.exp(-(y**2 + (x - 4) ** 2) / 18) + 0.5j * torch.exp(-((y + 5) ** 2 + x**2) / 10)
    A = NonCartesianMRI(birdcage_maps(4, (32, 32)), trajectory)
    again = gridding(A, A(image[None]))[0]
    inside = torch.hypot(y, x) < 15
    assert float((again - image)[inside].norm() / image[inside].norm()) < 0.03


@pytest.mark.parametrize(
    ("trajectory", "message"),
    [
        (torch.zeros(5, 3), "must be real"),
        (torch.full((5, 2), math.nan), "non-finite"),
        (torch.full((5, 2), 7.0), "within half the image size"),
    ],
)
def test_bad_trajectories_are_refused(trajectory: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NonCartesianMRI(birdcage_maps(2, SHAPE), trajectory)
    with pytest.raises(ValueError, match=message):
        nufft.nufft(trajectory, SHAPE)


def test_a_measurement_with_it_is_saved_and_loaded(tmp_path: Any) -> None:
    from invdiff import ComplexGaussianNoise, Measurement

    m = Measurement.simulate(normal(1, *SHAPE).to(torch.complex64), operator(), ComplexGaussianNoise(0.1), seed=0)
    m.save(tmp_path / "m.h5")
    again = Measurement.load(tmp_path / "m.h5")
    assert m.reference is not None
    torch.testing.assert_close(again.A(m.reference), m.A(m.reference))
