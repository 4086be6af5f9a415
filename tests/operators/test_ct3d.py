"""The 3-D CT operator against exact line integrals and the 2-D operator, and its geometries against known points."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from invdiff.measurement import Measurement
from invdiff.noise import GaussianNoise
from invdiff.operators.ct import CT
from invdiff.operators.ct3d import CT3D
from invdiff.operators.ct_geometry import FanBeam, ParallelBeam
from invdiff.operators.ct_geometry3d import ConeBeam, ParallelBeam3D

Beam = ParallelBeam3D | ConeBeam
ANGLES = (0.3, -1.0, 2.2, 4.0, math.pi / 2)
CONE = ConeBeam(
    image_shape=(21, 26, 32), voxel_size=1.0, angles=ANGLES, detector_shape=(35, 61), detector_spacing=1.7,
    detector_offset=(2.0, -3.0), source_origin=40.0, source_detector=70.0,
)  # fmt: skip
OBLONG = replace(CONE, image_shape=(14, 26, 40), voxel_size=(1.5, 1.0, 0.8), detector_spacing=(2.0, 1.5))
PARALLEL = ParallelBeam3D(
    image_shape=(21, 26, 32), voxel_size=1.0, angles=ANGLES, detector_shape=(24, 45), detector_spacing=0.97,
    detector_offset=(0.2, 0.4),
)  # fmt: skip
STEEP = replace(CONE, image_shape=(60, 8, 8), source_origin=9.0, source_detector=14.0, detector_shape=(70, 31))
GEOMETRIES = {"cone": CONE, "oblong": OBLONG, "parallel": PARALLEL, "steep": STEEP}
CENTRE, RADIUS, MU = np.array([3.0, -2.0, 1.5]), 7.0, 0.02  # x, y, z; mm; 1/mm


@pytest.fixture(params=GEOMETRIES, ids=str)
def geometry(request: pytest.FixtureRequest) -> Beam:
    return GEOMETRIES[request.param]


def ball_integrals(g: Beam, centre: np.ndarray = CENTRE, radius: float = RADIUS) -> np.ndarray:
    origins, directions = g.rays()
    distance = np.linalg.norm(np.cross(centre - origins, directions), axis=-1)
    return 2 * MU * np.sqrt(np.maximum(radius**2 - distance**2, 0))


def box_integrals(g: Beam, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Length between the last entry into and the first exit from the three slabs."""
    origins, directions = g.rays()
    with np.errstate(divide="ignore"):
        a, b = (low - origins) / directions, (high - origins) / directions
    enter, leave = np.minimum(a, b).max(-1), np.maximum(a, b).min(-1)
    return MU * np.maximum(leave - enter, 0)


def volume(g: Beam, inside, k: int = 4) -> torch.Tensor:
    """Each voxel the mean of ``inside(x, y, z)`` over k^3 points."""
    nz, ny, nx = g.image_shape
    z, y, x = finer(g, k).voxel_centres()
    values = inside(x, y[:, None], z[:, None, None]) * np.ones((nz * k, ny * k, nx * k))
    return torch.from_numpy(MU * values.reshape(nz, k, ny, k, nx, k).mean((1, 3, 5))).float()[None]


def relative(a, b) -> float:
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def finer(g: Beam, k: int) -> Beam:
    (nz, ny, nx), (dz, dy, dx) = g.image_shape, g.voxel_spacing
    return replace(g, image_shape=(nz * k, ny * k, nx * k), voxel_size=(dz / k, dy / k, dx / k))


@pytest.mark.parametrize("name", ["cone", "oblong", "parallel"])
def test_exact_line_integrals_of_an_off_centre_gaussian(name: str) -> None:
    g, width = GEOMETRIES[name], 3.0
    z, y, x = g.voxel_centres()
    squared = (x - CENTRE[0]) ** 2 + (y[:, None] - CENTRE[1]) ** 2 + (z[:, None, None] - CENTRE[2]) ** 2
    blob = torch.from_numpy(MU * np.exp(-squared / (2 * width**2))).float()[None]
    origins, directions = g.rays()
    distance = np.linalg.norm(np.cross(CENTRE - origins, directions), axis=-1)
    exact = MU * math.sqrt(2 * math.pi) * width * np.exp(-(distance**2) / (2 * width**2))
    # interpolation widens the Gaussian by less than voxel^2 / 4 in variance along each of two axes
    bound = 0.25 * (np.sort(g.voxel_spacing)[1:] ** 2).sum() / width**2
    for memory_budget in (None, 1):
        A = CT3D(g, memory_budget)
        assert (A._pair is None) == (memory_budget == 1)
        error = relative(A(blob)[0], exact)
        assert error < bound
    for sign in ([-1, 1, 1], [1, -1, 1], [1, 1, -1]):
        distance = np.linalg.norm(np.cross(CENTRE * sign - origins, directions), axis=-1)
        assert relative(A(blob)[0], exact.max() * np.exp(-(distance**2) / (2 * width**2))) > 0.3


@pytest.mark.parametrize("name", ["cone", "oblong", "parallel"])
def test_line_integrals_of_a_ball_and_a_box_become_exact_as_voxels_shrink(name: str) -> None:
    g = replace(GEOMETRIES[name], angles=ANGLES[1:3])
    low, high = np.array([-6.1, -3.2, -4.6]), np.array([8.2, 5.1, 3.4])

    def ball(x, y, z):
        return (x - CENTRE[0]) ** 2 + (y - CENTRE[1]) ** 2 + (z - CENTRE[2]) ** 2 < RADIUS**2

    def box(x, y, z):
        return (low[0] < x) & (x < high[0]) & (low[1] < y) & (y < high[1]) & (low[2] < z) & (z < high[2])

    for inside, exact in ((ball, ball_integrals(g)), (box, box_integrals(g, low, high))):
        coarse, fine = (relative(CT3D(f, 1)(volume(f, inside))[0], exact) for f in (g, finer(g, 3)))
        assert fine < 0.06  # nearly all of it on the rays that graze the object
        assert fine < 0.55 * coarse


def test_mass_is_kept_by_every_parallel_view() -> None:
    g = replace(PARALLEL, detector_shape=(120, 225), detector_spacing=0.2)
    x = torch.zeros(1, *g.image_shape)
    x[0, 8:12, 10:16, 9:20] = torch.rand(4, 6, 11, generator=torch.Generator().manual_seed(0))
    mass = CT3D(g)(x)[0].sum((1, 2)) * 0.2**2
    torch.testing.assert_close(mass, x.sum().expand(5), rtol=0.01, atol=0)


@pytest.mark.parametrize(
    "beam", [replace(CONE, detector_offset=(0.0, -3.0)), replace(PARALLEL, detector_shape=(25, 45))]
)
def test_the_middle_row_is_the_two_dimensional_operator(beam: Beam) -> None:
    beam = replace(beam, detector_offset=(0.0, beam.detector_offset[1]))
    x = torch.rand(1, *beam.image_shape, generator=torch.Generator().manual_seed(0))
    nz, n_rows = beam.image_shape[0], beam.detector_shape[0]
    expected = CT(beam.midplane)(x[:, nz // 2])
    torch.testing.assert_close(CT3D(beam)(x)[:, :, n_rows // 2], expected, rtol=1e-5, atol=1e-5)


def test_every_row_of_a_parallel_beam_is_the_two_dimensional_operator() -> None:
    g = replace(PARALLEL, detector_shape=(21, 45), detector_spacing=(1.0, 0.97), detector_offset=(0.0, 0.4))
    x = torch.rand(1, *g.image_shape, generator=torch.Generator().manual_seed(0))
    expected = CT(g.midplane)(x[0][:, None])[:, 0]  # slices as a batch
    torch.testing.assert_close(CT3D(g)(x)[0].transpose(0, 1), expected, rtol=1e-4, atol=1e-4)


def test_rays_along_all_three_axes_are_used() -> None:
    directions = np.abs(STEEP.rays()[1])
    assert set(directions.argmax(-1).ravel().tolist()) == {0, 1, 2}
    x = torch.ones(1, *STEEP.image_shape)
    exact = box_integrals(STEEP, np.array([-4.0, -4, -30]), np.array([4.0, 4, 30])) / MU
    y = CT3D(STEEP)(x)[0].numpy()
    inner = box_integrals(STEEP, np.array([-3.0, -3, -29]), np.array([3.0, 3, 29])) > 3 * MU
    assert relative(y[inner], exact[inner]) < 0.05


def test_stored_and_computed_weights_agree(geometry: Beam, monkeypatch: pytest.MonkeyPatch) -> None:
    r = torch.Generator().manual_seed(0)
    stored = CT3D(geometry)
    assert stored._pair is not None
    x, y = torch.rand(2, *stored.in_shape, generator=r), torch.rand(2, *stored.out_shape, generator=r)
    for steps in (2**20, 700):
        monkeypatch.setattr("invdiff.operators.ct3d.STEPS_PER_BLOCK", steps)
        computed = CT3D(geometry, memory_budget=1)
        torch.testing.assert_close(computed(x), stored(x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(computed.H(y), stored.H(y), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("memory_budget", [None, 1])
def test_adjoint_is_exact(geometry: Beam, memory_budget: int | None) -> None:
    A = CT3D(geometry, memory_budget).to(dtype=torch.float64)
    r = torch.Generator().manual_seed(0)
    x = torch.randn(2, *A.in_shape, dtype=torch.float64, generator=r)
    y = torch.randn(2, *A.out_shape, dtype=torch.float64, generator=r)
    error = ((A(x) * y).sum() - (x * A.H(y)).sum()).abs() / (A(x).norm() * y.norm())
    assert error < 1e-13


def test_what_is_stored_fits_the_budget(geometry: Beam) -> None:
    needed = CT3D(geometry)._pair.nbytes
    assert CT3D(geometry, memory_budget=int(1.15 * needed))._pair is not None
    assert CT3D(geometry, memory_budget=int(0.85 * needed))._pair is None


def test_cone_rays_start_at_the_source_and_pass_through_the_element() -> None:
    g = replace(
        CONE, angles=(math.pi / 2,), detector_shape=(3, 2), detector_offset=(0.0, 0.0), detector_spacing=(4.0, 2.0)
    )
    origins, directions = g.rays()
    np.testing.assert_allclose(origins[0], np.tile([40.0, 0, 0], (3, 2, 1)), atol=1e-12)
    # the panel is at x = 40 - 70, columns run along +y, rows along +z
    expected = np.array([-70.0, 1.0, 4.0]) / math.sqrt(70**2 + 17)
    np.testing.assert_allclose(directions[0, 2, 1], expected, atol=1e-12)


def test_the_midplane_and_the_centre() -> None:
    assert CONE.midplane == FanBeam(
        image_shape=(26, 32), pixel_size=1.0, angles=ANGLES, n_detectors=61, detector_spacing=1.7, detector_offset=-3.0,
        source_origin=40.0, source_detector=70.0,
    )  # fmt: skip
    assert OBLONG.midplane.pixel_size == (1.0, 0.8)
    assert isinstance(PARALLEL.midplane, ParallelBeam)
    moved = CONE.with_centre(25.0)
    assert moved.midplane.centre == pytest.approx(25)
    assert moved.detector_offset[0] == 2.0


def test_covering_sees_the_whole_volume() -> None:
    g = ConeBeam.covering((20, 30, 30), (2.0, 1.0, 1.0), 12, source_origin=100.0, source_detector=150.0)
    z, y, x = (np.array([c[0], c[-1]]) * (1 + 1 / (len(c) - 1)) for c in g.voxel_centres())
    u_max, v_max = (n * d / 2 for n, d in zip(g.detector_shape[::-1], g.element_spacing[::-1], strict=True))
    for t in g.angles:
        for corner in np.array(np.meshgrid(x, y, z)).reshape(3, -1).T:
            depth = 100 - corner[0] * math.sin(t) + corner[1] * math.cos(t)
            assert abs(150 / depth * (corner[0] * math.cos(t) + corner[1] * math.sin(t))) <= u_max
            assert abs(150 / depth * corner[2]) <= v_max


def test_survives_a_measurement_file(geometry: Beam, tmp_path: Path) -> None:
    A = CT3D(geometry, memory_budget=10**9)
    Measurement(torch.ones(A.out_shape), A, GaussianNoise(0.1)).save(tmp_path / "m.h5")
    assert Measurement.load(tmp_path / "m.h5").A.init_args() == A.init_args()
    assert type(geometry)(**dataclasses.asdict(geometry)) == geometry


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_shape": (8, 8)}, r"image_shape must be positive integers \(nz, ny, nx\)"),
        ({"image_shape": (0, 8, 8)}, "image_shape must be a positive integer"),
        ({"detector_shape": (8,)}, r"detector_shape must be positive integers \(n_rows, n_columns\)"),
        ({"voxel_size": (1.0, 1.0)}, "voxel_size must be a positive finite length in mm, or 3 of them"),
        ({"detector_spacing": -1.0}, "detector_spacing must be a positive finite length"),
        ({"detector_offset": (0.0, math.nan)}, "two finite lengths"),
        ({"angles": ()}, "at least one view"),
        ({"source_origin": 10.0}, "source must stay outside"),
        ({"source_detector": 30.0}, "behind the rotation axis"),
    ],
)
def test_refuses(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONE, **change)


def test_refuses_other_geometries() -> None:
    with pytest.raises(TypeError, match="ParallelBeam3D or a ConeBeam, got FanBeam"):
        CT3D(CONE.midplane)
    with pytest.raises(ValueError, match="positive number of bytes"):
        CT3D(CONE, memory_budget=-1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu(geometry: Beam) -> None:
    for memory_budget in (None, 1):
        A = CT3D(geometry, memory_budget)
        B, x = A.to(device="cuda"), torch.rand(2, *A.in_shape, generator=torch.Generator().manual_seed(0))
        assert relative(B(x.cuda()).cpu(), A(x)) < 1e-5
        assert relative(B.H(A(x).cuda()).cpu(), A.H(A(x))) < 1e-5
