"""The CT operator against exact line integrals, the ASTRA toolbox, and a plain matrix."""

from __future__ import annotations

import math
import os
import pickle
import re
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from invdiff.measurement import Measurement
from invdiff.noise import GaussianNoise
from invdiff.operators.ct import CT
from invdiff.operators.ct_astra import AstraCT
from invdiff.operators.ct_cache import cache_folder, cached_joseph_matrix
from invdiff.operators.ct_geometry import CurvedFanBeam, FanBeam, ParallelBeam, VectorBeam
from invdiff.operators.ct_matrix import joseph_matrix

Beam = ParallelBeam | FanBeam | CurvedFanBeam | VectorBeam
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
CURVED = CurvedFanBeam.covering((64, 64), 0.8, 16, source_origin=60.0, source_detector=110.0)
ODD_CURVED = CurvedFanBeam(
    image_shape=(48, 66), pixel_size=0.8, angles=(0.3, -1.0, 2.2, 4.0, math.pi / 2), n_detectors=95,
    detector_spacing=1.4, detector_offset=-0.6, source_origin=60.0, source_detector=110.0,
)  # fmt: skip
OBLONG = replace(ODD_FAN, image_shape=(30, 80), pixel_size=(1.1, 0.7))
RNG = np.random.default_rng(3)


def shaken(beam: ParallelBeam | FanBeam) -> VectorBeam:
    """Its views moved and turned by a few millimetres and degrees each, and stretched by a few percent."""
    v = VectorBeam.of(beam)

    def moved(vectors: tuple, by: float) -> np.ndarray:
        return np.asarray(vectors) + RNG.uniform(-by, by, (v.n_views, 2))

    if v.sources is None:
        return replace(
            v, detectors=moved(v.detectors, 2), axes=moved(v.axes, 0.05), directions=moved(v.directions, 0.1)
        )
    return replace(v, detectors=moved(v.detectors, 2), axes=moved(v.axes, 0.1), sources=moved(v.sources, 4))


GEOMETRIES = {
    "parallel": PARALLEL, "fan": FAN, "odd parallel": ODD_PARALLEL, "odd fan": ODD_FAN, "curved": CURVED,
    "odd curved": ODD_CURVED, "oblong": OBLONG, "parallel vectors": shaken(ODD_PARALLEL), "fan vectors": shaken(FAN),
}  # fmt: skip


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


def finer(g: Beam, k: int) -> Beam:
    dy, dx = g.pixel_spacing
    return replace(g, image_shape=tuple(k * n for n in g.image_shape), pixel_size=(dy / k, dx / k))


def ellipse_image(g: Beam, centre: tuple[float, float], axes: tuple[float, float], mu: float) -> torch.Tensor:
    """The same ellipse on the pixel grid, each pixel the mean over 10 x 10 points."""
    x, y = finer(g, 10).pixel_centres()
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
    fine = finer(geometry, 5)
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
    assert (
        relative(CT(geometry)(torch.from_numpy(image).float()[None])[0], exact)
        < 0.25 * (max(geometry.pixel_spacing) / width) ** 2
    )


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


@pytest.mark.parametrize("name", ["odd parallel", "odd fan", "parallel vectors", "fan vectors"])
def test_vectors_agree_with_astra(name: str) -> None:
    """Parallel: the same weights. Fans: ASTRA has Siddon's only, so a smooth object."""
    astra = pytest.importorskip("astra")
    g = GEOMETRIES[name]
    v = g if isinstance(g, VectorBeam) else VectorBeam.of(g)
    (ny, nx), (dy, dx) = g.image_shape, g.pixel_spacing
    volume = astra.create_vol_geom(ny, nx, -nx * dx / 2, nx * dx / 2, -ny * dy / 2, ny * dy / 2)
    rays = v.directions if v.sources is None else v.sources
    vectors = np.concatenate([rays, v.detectors, v.axes], 1)
    if v.sources is None:
        x = torch.rand(1, ny, nx, generator=torch.Generator().manual_seed(0))
        beam = astra.create_proj_geom("parallel_vec", v.n_detectors, vectors)
        assert relative(CT(g)(x)[0], astra_project(astra, "linear", beam, volume, x)) < 1e-4
    else:
        xs, ys = g.pixel_centres()
        x = torch.from_numpy(0.02 * np.exp(-((xs - 5) ** 2 + (ys[:, None] + 7) ** 2) / 50)).float()[None]
        beam = astra.create_proj_geom("fanflat_vec", v.n_detectors, vectors)
        assert relative(CT(g)(x)[0], astra_project(astra, "line_fanflat", beam, volume, x)) < 0.02


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


@pytest.mark.parametrize(("g", "factor"), [(PARALLEL, 6), (FAN, 5), (CURVED, 5)])
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
@pytest.mark.parametrize("beam", [PARALLEL, FAN, CURVED])
def test_any_equispaced_set_of_views(beam: Beam, start: float, span: float) -> None:
    g = replace(beam, angles=tuple(start + span * i / 40 for i in range(40)))
    x = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(2))
    matrix = joseph_matrix(*g.rays(), g.image_shape, g.pixel_size)
    assert relative(CT(g)(x).reshape(-1), matrix @ x.reshape(-1).numpy()) < 1e-6


@pytest.mark.parametrize("views", [40, 41])  # over a turn, its last view the first one again if 41
@pytest.mark.parametrize("beam", [PARALLEL, FAN, CURVED])
def test_lines_measured_twice_count_twice_in_the_adjoint(beam: Beam, views: int) -> None:
    g = replace(beam, angles=tuple(2 * math.pi * i / 40 for i in range(views)))
    A, matrix = CT(g), joseph_matrix(*g.rays(), g.image_shape, g.pixel_size)
    y = torch.rand(A.out_shape, generator=torch.Generator().manual_seed(2))
    assert relative(A.H(y).reshape(-1), matrix.T @ y.reshape(-1).numpy()) < 1e-6


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
    assert CT(**A.init_args()).init_args() == {"geometry": PARALLEL, "supersampling": 1, "memory_budget": None}


def test_every_geometry_survives_a_measurement_file(geometry: Beam, tmp_path: Path) -> None:
    A = CT(geometry, 2, memory_budget=10**9)
    Measurement(torch.ones(A.out_shape), A, GaussianNoise(0.1)).save(tmp_path / "m.h5")
    assert Measurement.load(tmp_path / "m.h5").A.init_args() == A.init_args()


def test_building_is_silent() -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        CT(PARALLEL).to(dtype=torch.float64)
    assert [str(w.message) for w in said] == []


def test_rays_that_miss_the_image_are_zero() -> None:
    g = replace(ODD_PARALLEL, n_detectors=301)
    y = CT(g)(torch.ones(1, *g.image_shape))
    outside = np.abs(g.detector_positions()) > g.radius + 0.8
    assert outside.any()
    assert (y[0][:, torch.from_numpy(outside)] == 0).all()


def test_refuses_what_is_not_a_geometry() -> None:
    with pytest.raises(TypeError, match="CurvedFanBeam or VectorBeam, got dict"):
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


def test_astra_without_a_matrix_as_a_choice(tmp_path: Path) -> None:
    pytest.importorskip("astra", reason="pip install 'invdiff[astra]'")
    A, B = AstraCT(PARALLEL, 2), CT(PARALLEL, 2)
    x = torch.rand(2, *A.in_shape, generator=torch.Generator().manual_seed(0))
    assert relative(A(x), B(x)) < 1e-4
    assert relative(A.H(B(x)), B.H(B(x))) < 1e-4
    assert A.mismatch < 1e-6
    assert "by ASTRA on cpu, adjoint off by" in repr(A)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(A(x).square().sum() / 2, x)
    torch.testing.assert_close(gradient, A.gram(x.detach()))
    assert A.to(dtype=torch.float64)(x.detach().double()).dtype == torch.float64
    Measurement(torch.ones(A.out_shape), A, GaussianNoise(0.1)).save(tmp_path / "m.h5")
    assert Measurement.load(tmp_path / "m.h5").A.init_args() == A.init_args()
    with pytest.raises(TypeError, match="no CPU projector for a CurvedFanBeam"):
        AstraCT(ODD_CURVED)  # type: ignore[arg-type]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("geometry", [PARALLEL, FAN, VectorBeam.of(FAN)])
def test_astra_on_cuda_is_near(geometry: ParallelBeam | FanBeam | VectorBeam) -> None:
    """ASTRA's own tests allow an adjoint that is off by a tenth."""
    pytest.importorskip("astra", reason="pip install 'invdiff[astra]'")
    A, B = AstraCT(geometry).to(device="cuda"), CT(geometry)
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, 64)] * 2, indexing="ij")
    smooth = torch.exp(-8 * ((x - 0.3) ** 2 + (y + 0.2) ** 2))[None]
    assert relative(A(smooth.cuda()).cpu(), B(smooth)) < 0.01
    assert relative(A.H(B(smooth).cuda()).cpu(), B.H(B(smooth))) < 0.1
    assert A.mismatch < 0.1
    assert f"by ASTRA on cuda, adjoint off by {A.mismatch:.1e}" in repr(A)


class TestCache:
    RAYS = (*ODD_FAN.rays(2), ODD_FAN.image_shape, ODD_FAN.pixel_size)

    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("INVDIFF_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("invdiff.operators.ct_cache.MIN_WEIGHTS", 1000)
        return tmp_path / "cache"

    def get(self, supersampling: int = 2) -> np.ndarray:
        return cached_joseph_matrix(*self.RAYS, supersampling=supersampling).toarray()

    def expected(self, supersampling: int = 2) -> np.ndarray:
        return joseph_matrix(*self.RAYS, supersampling=supersampling).toarray()

    def test_the_second_time_it_is_read(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        np.testing.assert_array_equal(self.get(), self.expected())
        assert len(list(folder.iterdir())) == 1
        expected = self.expected()
        monkeypatch.delattr("invdiff.operators.ct_cache.joseph_matrix")  # it cannot be built again
        np.testing.assert_array_equal(self.get(), expected)

    def test_every_argument_is_part_of_the_key(self, folder: Path) -> None:
        self.get(), self.get(1)
        origins, directions, shape, size = self.RAYS
        cached_joseph_matrix(origins + 1e-9, directions, shape, size)
        cached_joseph_matrix(origins, directions * [1, -1], shape, size)
        cached_joseph_matrix(origins, directions, shape[::-1], size)
        cached_joseph_matrix(origins, directions, shape, (size, size))
        assert len(list(folder.iterdir())) == 6

    @pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text", "another matrix"])
    def test_damaged_files_are_built_again(self, folder: Path, damage: str) -> None:
        self.get()
        (path,) = folder.iterdir()
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        if damage == "another matrix":
            self.get(1)
            (other,) = set(folder.iterdir()) - {path}
            other.replace(path)
        else:
            contents = {"cut": whole[: len(whole) // 2], "flip": bytes(flipped), "empty": b"", "text": b"text"}
            path.write_bytes(contents[damage])
        np.testing.assert_array_equal(self.get(), self.expected())
        assert path.read_bytes() == whole  # mended

    def test_small_matrices_are_not_kept(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("invdiff.operators.ct_cache.MIN_WEIGHTS", 10**9)
        np.testing.assert_array_equal(self.get(), self.expected())
        assert not folder.exists()

    def test_it_can_be_switched_off_and_fail_to_write(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("INVDIFF_CACHE", "off")
        assert cache_folder() is None
        np.testing.assert_array_equal(self.get(), self.expected())
        folder.write_text("a file where the folder should be")
        monkeypatch.setenv("INVDIFF_CACHE", str(folder))
        np.testing.assert_array_equal(self.get(), self.expected())

    def test_without_the_variable_it_is_the_users_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("INVDIFF_CACHE")
        monkeypatch.setattr("sys.platform", "linux")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert cache_folder() == tmp_path / "invdiff"

    def test_the_least_recently_used_go_first(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.get()
        (old,) = folder.iterdir()
        os.utime(old, (1, 1))
        bystander = folder / "notes.txt"
        bystander.write_text("not a matrix")
        monkeypatch.setattr("invdiff.operators.ct_cache.MAX_BYTES", old.stat().st_size)
        self.get(1)
        assert not old.exists()
        assert len(list(folder.iterdir())) == 2
        assert bystander.exists()

    def test_the_operator_uses_it(self, folder: Path) -> None:
        CT(PARALLEL)
        assert len(list(folder.iterdir())) == 2  # the folded and the full matrix


class TestMemoryBudget:
    def test_only_the_small_matrix_where_both_do_not_fit(self) -> None:
        whole = CT(FAN)
        assert whole._pair is not None
        assert whole._folded is not None
        A = CT(FAN, memory_budget=whole._pair.nbytes)
        assert A._pair is None
        assert A._folded is not None

    @pytest.mark.parametrize("g", GEOMETRIES.values(), ids=GEOMETRIES)
    def test_what_is_stored_fits(self, g: Beam) -> None:
        supersampling = 2
        rays = g.rays(supersampling)
        full = 16 * joseph_matrix(*rays, g.image_shape, g.pixel_size, supersampling=supersampling).nnz
        for budget in (int(1.1 * full), int(0.9 * full), full // 6):
            try:
                A = CT(g, supersampling, memory_budget=budget)
            except MemoryError:
                continue
            assert A.stored_bytes <= 1.05 * budget
            assert (A.stored_bytes > 0) != (A._astra is not None)

    @pytest.mark.slow
    def test_512_pixels_and_360_parallel_views_take_less_than_0_7_gb(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("INVDIFF_CACHE", "off")
        A = CT(ParallelBeam.covering((512, 512), 1.0, 360), memory_budget=700_000_000)
        assert A._astra is None
        assert 0 < A.stored_bytes < 700_000_000
        x = torch.ones(1, 512, 512)
        assert float(A(x).max()) == pytest.approx(512 * 2**0.5, rel=0.01)

    @pytest.mark.parametrize("name", ["odd parallel", "odd fan", "parallel vectors", "fan vectors"])
    @pytest.mark.parametrize("supersampling", [1, 3])
    def test_beyond_it_astra_projects(self, name: str, supersampling: int, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("astra")
        g = GEOMETRIES[name]
        A, stored = CT(g, supersampling, memory_budget=10**5), CT(g, supersampling)
        assert A._astra is not None
        assert A._pair is A._folded is None
        r = torch.Generator().manual_seed(0)
        x, y = torch.rand(3, *A.in_shape, generator=r), torch.rand(3, *A.out_shape, generator=r)
        if "parallel" in name:
            assert relative(A(x), stored(x)) < 1e-4
            assert relative(A.H(y), stored.H(y)) < 1e-4
        else:  # Siddon's weights, ours are Joseph's: the same on a smooth object
            smooth = ellipse_image(finer(g, 1), (3.0, 2.0), (14.0, 12.0), 0.02)
            assert relative(A(smooth), stored(smooth)) < 0.02
        Ax, AHy = A(x), A.H(y)
        assert abs(float((Ax * y).double().sum() - (x * AHy).double().sum())) < 1e-6 * float(Ax.norm() * y.norm())
        for n_threads in (1, 2, 5):  # whole images, or parts of the views of one
            monkeypatch.setattr(torch, "get_num_threads", lambda n=n_threads: n)
            torch.testing.assert_close(torch.stack([A(i) for i in x]), Ax)
            torch.testing.assert_close(torch.stack([A.H(i) for i in y]), AHy)
        torch.testing.assert_close(A.to(dtype=torch.float64)(x.double()).float(), Ax)
        torch.testing.assert_close(pickle.loads(pickle.dumps(A))(x), Ax)
        with pytest.raises(ValueError, match="on the CPU only"):
            A.to(device="meta")

    @pytest.mark.parametrize(
        ("g", "reason"), [(ODD_CURVED, "no CPU projector for a CurvedFanBeam"), (OBLONG, "that are not square")]
    )
    def test_otherwise_it_says_what_would_fit(self, g: Beam, reason: str) -> None:
        full = CT(g)._pair.nbytes
        with pytest.raises(MemoryError, match=reason) as error:
            CT(g, memory_budget=full // 2)
        bytes_, views = re.search(r"memory_budget=(\d+), or (\d+) of the 5 views", str(error.value)).groups()
        CT(g, memory_budget=int(bytes_))
        CT(g.subset(range(int(views))), memory_budget=full // 2)

    def test_without_astra_it_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "astra", None)
        with pytest.raises(MemoryError, match=r"invdiff\[astra\]"):
            CT(ODD_FAN, memory_budget=10**5)

    def test_refuses_a_budget_of_nothing(self) -> None:
        with pytest.raises(ValueError, match="positive number of bytes"):
            CT(PARALLEL, memory_budget=0)
