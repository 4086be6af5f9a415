"""The CT operator against exact line integrals, the ASTRA toolbox, and a plain matrix."""

from __future__ import annotations

import math
import pickle
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from invdiff.operators.ct import CT
from invdiff.operators.ct_geometry import FanBeam, ParallelBeam
from invdiff.operators.ct_matrix import joseph_matrix

Beam = ParallelBeam | FanBeam
PARALLEL = ParallelBeam.covering((64, 64), 0.8, 20)
FAN = FanBeam.covering((64, 64), 0.8, 16, source_origin=90.0, source_detector=150.0)
# irregular angles, an oblong image and an offset: nothing symmetric
ODD_PARALLEL = ParallelBeam(
    image_shape=(48, 66), pixel_size=0.8, angles=(0.3, -1.0, 2.2, 4.0, math.pi / 2), n_detectors=85,
    detector_spacing=0.9, detector_offset=0.37,
)  # fmt: skip
ODD_FAN = FanBeam(
    image_shape=(48, 66), pixel_size=0.8, angles=(0.3, -1.0, 2.2, 4.0, math.pi / 2), n_detectors=95,
    detector_spacing=1.4, detector_offset=-0.6, source_origin=90.0, source_detector=150.0,
)  # fmt: skip
GEOMETRIES = {"parallel": PARALLEL, "fan": FAN, "odd parallel": ODD_PARALLEL, "odd fan": ODD_FAN}


@pytest.fixture(params=GEOMETRIES, ids=str)
def geometry(request: pytest.FixtureRequest) -> Beam:
    return GEOMETRIES[request.param]


def ellipse_integrals(g: Beam, centre: tuple[float, float], axes: tuple[float, float], mu: float) -> np.ndarray:
    """Exact line integrals of a uniform upright ellipse, averaged over the width of each detector element."""
    origins, directions = g.rays(8)
    o, d = (origins - centre) / axes, directions / axes  # in these coordinates it is the unit disc
    dd, od = (d * d).sum(-1), (o * d).sum(-1)
    discriminant = np.maximum(od**2 - dd * ((o * o).sum(-1) - 1), 0)
    return mu * (2 * np.sqrt(discriminant) / dd).reshape(g.n_views, g.n_detectors, 8).mean(-1)


def ellipse_image(g: Beam, centre: tuple[float, float], axes: tuple[float, float], mu: float) -> torch.Tensor:
    """The same ellipse on the pixel grid, each pixel the mean over 10 x 10 points."""
    fine = replace(g, image_shape=tuple(10 * n for n in g.image_shape), pixel_size=g.pixel_size / 10)
    x, y = fine.pixel_centres()
    inside = ((x - centre[0]) / axes[0]) ** 2 + ((y[:, None] - centre[1]) / axes[1]) ** 2 <= 1
    ny, nx = g.image_shape
    return mu * torch.from_numpy(inside.reshape(ny, 10, nx, 10).mean((1, 3))).float()[None]


def relative(a: torch.Tensor | np.ndarray, b: torch.Tensor | np.ndarray) -> float:
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def test_exact_line_integrals_of_an_off_centre_ellipse(geometry: Beam) -> None:
    """The error is that of the pixels: about 1 % here, and it vanishes as they shrink."""
    centre, axes, mu = (6.0, -4.5), (13.0, 8.0), 0.02
    exact = ellipse_integrals(geometry, centre, axes, mu)
    assert exact.max() > 0.3  # 2 * 8 mm * 0.02 / mm: a number, not a length
    y = CT(geometry, supersampling=4)(ellipse_image(geometry, centre, axes, mu))
    assert relative(y[0], exact) < 0.02
    fine = replace(geometry, image_shape=tuple(5 * n for n in geometry.image_shape), pixel_size=geometry.pixel_size / 5)
    y_fine = CT(fine, supersampling=8)(ellipse_image(fine, centre, axes, mu))
    assert relative(y_fine[0], exact) < 0.002
    for wrong in [(-6.0, -4.5), (6.0, 4.5), (-4.5, 6.0)]:
        assert relative(y[0], ellipse_integrals(geometry, wrong, axes, mu)) > 0.1


def test_exact_line_integrals_of_an_off_centre_gaussian(geometry: Beam) -> None:
    centre, width, mu = np.array([6.0, -4.5]), 3.0, 0.02
    x, y = geometry.pixel_centres()
    image = mu * np.exp(-((x - centre[0]) ** 2 + (y[:, None] - centre[1]) ** 2) / (2 * width**2))
    origins, directions = geometry.rays()
    to_centre = centre - origins
    distance = to_centre[..., 0] * directions[..., 1] - to_centre[..., 1] * directions[..., 0]
    exact = mu * math.sqrt(2 * math.pi) * width * np.exp(-(distance**2) / (2 * width**2))
    # linear interpolation widens the Gaussian by less than pixel^2 / 4 in variance
    assert relative(CT(geometry)(torch.from_numpy(image).float()[None])[0], exact) < 0.25 * (0.8 / width) ** 2


def test_mass_is_kept_by_every_parallel_view() -> None:
    x = ellipse_image(PARALLEL, (5.0, 3.0), (12.0, 9.0), 0.02)
    mass = float(x.sum()) * PARALLEL.pixel_size**2
    views = CT(PARALLEL, supersampling=8)(x)[0].sum(-1) * PARALLEL.detector_spacing
    torch.testing.assert_close(views, torch.full_like(views, mass), rtol=2e-3, atol=0)


def test_parallel_equals_astra_linear() -> None:
    astra = pytest.importorskip("astra")
    g = replace(PARALLEL, angles=(*PARALLEL.angles[:7], 0.123, 4.5))
    x = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0))
    half = 64 * g.pixel_size / 2
    volume = astra.create_vol_geom(64, 64, -half, half, -half, half)
    beam = astra.create_proj_geom("parallel", g.detector_spacing, g.n_detectors, np.array(g.angles))
    expected = astra_project(astra, "linear", beam, volume, x)
    assert relative(CT(g)(x)[0], expected) < 1e-4
    folded = astra.create_proj_geom("parallel", g.detector_spacing, g.n_detectors, np.array(PARALLEL.angles))
    assert relative(CT(PARALLEL)(x)[0], astra_project(astra, "linear", folded, volume, x)) < 1e-4


def test_fan_agrees_with_astra_siddon_on_a_smooth_object() -> None:
    astra = pytest.importorskip("astra")
    g = FAN
    xs, ys = g.pixel_centres()
    x = torch.from_numpy(0.02 * np.exp(-((xs - 5) ** 2 + (ys[:, None] + 7) ** 2) / 50)).float()[None]
    half = 64 * g.pixel_size / 2
    volume = astra.create_vol_geom(64, 64, -half, half, -half, half)
    distances = (g.source_origin, g.source_detector - g.source_origin)
    beam = astra.create_proj_geom("fanflat", g.detector_spacing, g.n_detectors, np.array(g.angles), *distances)
    assert (
        relative(CT(g)(x)[0], astra_project(astra, "line_fanflat", beam, volume, x)) < 0.02
    )  # Siddon itself is 1 % off


def astra_project(astra, kind: str, beam: dict, volume: dict, x: torch.Tensor) -> np.ndarray:
    projector = astra.create_projector(kind, beam, volume)
    sinogram_id, sinogram = astra.create_sino(x[0].numpy(), projector)
    astra.data2d.delete(sinogram_id)
    astra.projector.delete(projector)
    return sinogram


def test_shared_views_change_nothing(geometry: Beam) -> None:
    """Of a single image, symmetric views are computed from one stored part; of a batch, from the full matrix."""
    for supersampling in (1, 3):
        matrix = joseph_matrix(
            *geometry.rays(supersampling),
            geometry.image_shape,
            geometry.pixel_size,
            supersampling=supersampling,
        )
        x = torch.rand(3, 1, *geometry.image_shape, generator=torch.Generator().manual_seed(1))
        expected = (matrix @ x.reshape(3, -1).numpy().T).T
        A = CT(geometry, supersampling)
        assert relative(A(x).reshape(3, -1), expected) < 1e-6
        assert relative(A(x[1]).reshape(-1), expected[1]) < 1e-6


@pytest.mark.parametrize(("g", "factor"), [(PARALLEL, 6), (FAN, 5)])
def test_single_images_use_a_smaller_matrix(g: Beam, factor: int) -> None:
    A = CT(g)
    assert A._folded is not None
    assert A._pair is not None
    assert A._folded.pair.nbytes * factor < A._pair.nbytes


def test_large_operators_keep_only_the_small_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = CT(FAN)
    monkeypatch.setattr("invdiff.operators.ct.MAX_BATCH_BYTES", 1000)
    A = CT(FAN)
    assert A._pair is None
    x = torch.rand(3, *A.in_shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(A(x), expected(x))
    torch.testing.assert_close(A.H(A(x)), expected.H(expected(x)))


@pytest.mark.parametrize("span", [math.pi, 2 * math.pi])
@pytest.mark.parametrize("start", [0.0, math.pi / 40, 0.1])
@pytest.mark.parametrize("beam", [PARALLEL, FAN])
def test_any_equispaced_set_of_views(beam: Beam, start: float, span: float) -> None:
    g = replace(beam, angles=tuple(start + span * i / 40 for i in range(40)))
    x = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(2))
    matrix = joseph_matrix(*g.rays(), g.image_shape, g.pixel_size)
    assert relative(CT(g)(x).reshape(-1), matrix @ x.reshape(-1).numpy()) < 1e-6


def test_adjoint_is_exact_in_float64(geometry: Beam) -> None:
    A = CT(geometry, supersampling=2).to(dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, *A.in_shape, dtype=torch.float64, generator=g)
    y = torch.randn(2, *A.out_shape, dtype=torch.float64, generator=g)
    for u, v in ((x, y), (x[0], y[0])):  # the paths of batches and of single images
        error = ((A(u) * v).sum() - (u * A.H(v)).sum()).abs() / (A(u).norm() * v.norm())
        assert error < 1e-12


@pytest.mark.parametrize("batch", [1, 3, 8, 9, 32])
def test_batches_agree_with_single_images(geometry: Beam, batch: int) -> None:
    A = CT(geometry)
    g = torch.Generator().manual_seed(0)
    x, y = torch.rand(batch, *A.in_shape, generator=g), torch.rand(batch, *A.out_shape, generator=g)
    torch.testing.assert_close(A(x), torch.stack([A(i) for i in x]), rtol=2e-5, atol=1e-5)
    torch.testing.assert_close(A.H(y), torch.stack([A.H(i) for i in y]), rtol=2e-5, atol=1e-5)


def test_column_chunks_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    A = CT(ODD_FAN)
    x = torch.rand(21, *A.in_shape, generator=torch.Generator().manual_seed(0))
    whole = A(x)
    monkeypatch.setattr("invdiff.operators.ct_matrix.CHUNK_BYTES", 48 * 66 * 4 * 4)
    torch.testing.assert_close(A(x), whole)


def test_without_mkl_the_result_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    A = CT(PARALLEL)
    x = torch.rand(2, *A.in_shape, generator=torch.Generator().manual_seed(0))
    expected = A(x), A(x[0]), A.H(A(x))
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    for got, want in zip((A(x), A(x[0]), A.H(A(x))), expected, strict=True):
        torch.testing.assert_close(got, want)


def test_derivatives() -> None:
    A = CT(FAN).to(dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    x, dx = (torch.randn(A.in_shape, dtype=torch.float64, generator=g) for _ in range(2))
    v = torch.randn(A.out_shape, dtype=torch.float64, generator=g)

    x.requires_grad_()
    (grad,) = torch.autograd.grad((A(x) ** 2).sum() / 2, x)
    torch.testing.assert_close(grad, A.gram(x.detach()))
    torch.testing.assert_close(torch.func.vjp(A, x.detach())[1](v)[0], A.H(v))
    torch.testing.assert_close(torch.func.jvp(A, (x.detach(),), (dx,))[1], A(dx))
    stack = torch.stack([x.detach(), dx])
    torch.testing.assert_close(torch.func.vmap(A)(stack), A(stack))


def test_copies_in_float64_and_by_pickle() -> None:
    A = CT(PARALLEL)
    x = torch.rand(A.in_shape, generator=torch.Generator().manual_seed(0))
    y64 = A.to(dtype=torch.float64)(x.double())
    assert y64.dtype == torch.float64
    assert relative(A(x), y64) < 1e-6
    torch.testing.assert_close(A.to(dtype=torch.float64).to(dtype=torch.float32)(x), A(x), rtol=0, atol=0)
    torch.testing.assert_close(pickle.loads(pickle.dumps(A))(x), A(x), rtol=0, atol=0)
    assert CT(**A.init_args()).init_args() == {"geometry": PARALLEL, "supersampling": 1}


def test_building_is_silent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CT(PARALLEL).to(dtype=torch.float64)


def test_rays_that_miss_the_image_are_zero() -> None:
    g = replace(ODD_PARALLEL, n_detectors=301)
    y = CT(g)(torch.ones(1, *g.image_shape))
    outside = np.abs(g.detector_positions()) > g.radius + g.pixel_size
    assert outside.any()
    assert (y[0][:, torch.from_numpy(outside)] == 0).all()


def test_refuses_what_is_not_a_geometry() -> None:
    with pytest.raises(TypeError, match="ParallelBeam or a FanBeam, got dict"):
        CT({"angles": (0.0,)})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="multiple of"):
        joseph_matrix(np.zeros((3, 2)), np.ones((3, 2)), (4, 4), 1.0, supersampling=2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu(geometry: Beam) -> None:
    A = CT(geometry)
    B = A.to(device="cuda")
    for batch in (1, 3, 32):
        x = torch.rand(batch, *A.in_shape, generator=torch.Generator().manual_seed(0))
        assert relative(B(x.cuda()).cpu(), A(x)) < 1e-5
        assert relative(B.H(A(x).cuda()).cpu(), A.H(A(x))) < 1e-5
