"""Ray geometry against hand-computed points, and what the constructors refuse."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from invdiff.operators.ct_geometry import CurvedFanBeam, FanBeam, ParallelBeam, VectorBeam

PARALLEL: dict[str, Any] = {
    "image_shape": (8, 10), "pixel_size": 1.0, "angles": (0.0, 0.7), "n_detectors": 4, "detector_spacing": 2.0,
}  # fmt: skip
FAN: dict[str, Any] = {**PARALLEL, "source_origin": 50.0, "source_detector": 80.0}


def test_parallel_ray_at_angle_zero_goes_down_through_u() -> None:
    origins, directions = ParallelBeam(**{**PARALLEL, "angles": (0.0,), "detector_offset": 0.5}).rays()
    np.testing.assert_allclose(origins[0], [[-2.5, 0], [-0.5, 0], [1.5, 0], [3.5, 0]])
    np.testing.assert_allclose(directions[0], np.tile([0.0, -1.0], (4, 1)), atol=1e-15)


def test_fan_rays_start_at_the_source_and_pass_through_the_element() -> None:
    origins, directions = FanBeam(**{**FAN, "angles": (math.pi / 2,)}).rays()
    np.testing.assert_allclose(origins[0], np.tile([50.0, 0.0], (4, 1)), atol=1e-12)
    # the detector is at x = 50 - 80 and runs along +y; element 3 sits at u = 3 mm
    expected = np.array([-80.0, 3.0]) / math.hypot(80, 3)
    np.testing.assert_allclose(directions[0, 3], expected, atol=1e-12)


@pytest.mark.parametrize("geometry", [ParallelBeam(**PARALLEL), FanBeam(**FAN)])
def test_supersampled_positions_average_to_the_element(geometry: ParallelBeam | FanBeam) -> None:
    fine = geometry.detector_positions(5).reshape(-1, 5)
    np.testing.assert_allclose(fine.mean(1), geometry.detector_positions(), atol=1e-12)
    assert fine[0, -1] - fine[0, 0] == pytest.approx(2.0 * 4 / 5)
    origins, directions = geometry.rays(5)
    assert origins.shape == directions.shape == (2, 20, 2)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=-1), 1, atol=1e-12)


def test_covering_sees_the_whole_image() -> None:
    parallel = ParallelBeam.covering((256, 256), 0.5, 60)
    assert (parallel.n_views, parallel.n_detectors) == (60, 363)
    assert parallel.angles[-1] == pytest.approx(math.pi * 59 / 60)
    assert parallel.n_detectors * parallel.detector_spacing / 2 >= parallel.radius

    fan = FanBeam.covering((64, 64), 1.0, 10, source_origin=100, source_detector=180)
    edge = math.atan(fan.n_detectors * fan.detector_spacing / 2 / fan.source_detector)
    assert 100 * math.sin(edge) >= fan.radius  # the outermost ray misses the corners


def test_subset_keeps_order_and_everything_else() -> None:
    g = FanBeam(**{**FAN, "angles": (0.0, 0.1, 0.2, 0.3)})
    s = g.subset(np.array([3, 1]))
    assert s.angles == (0.3, 0.1)
    assert dataclasses.replace(s, angles=g.angles) == g


def test_fields_survive_lists_and_arrays_and_are_plain() -> None:
    g = FanBeam(**{**FAN, "angles": np.array([0.0, 0.7]), "image_shape": [8, 10]})
    assert g == FanBeam(**FAN)
    assert hash(g) == hash(FanBeam(**FAN))
    for value in dataclasses.asdict(g).values():
        assert isinstance(value, int | float | tuple)
    assert FanBeam(**dataclasses.asdict(g)) == g


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"angles": ()}, "at least one view"),
        ({"angles": (0.0, math.nan)}, "finite"),
        ({"pixel_size": 0.0}, "pixel_size must be a positive"),
        ({"detector_spacing": -1.0}, "detector_spacing must be a positive"),
        ({"n_detectors": 0}, "n_detectors must be a positive integer"),
        ({"n_detectors": 2.5}, "n_detectors must be a positive integer"),
        ({"image_shape": (8,)}, "two positive integers"),
        ({"detector_offset": math.inf}, "detector_offset must be a finite"),
        ({"source_origin": 6.0}, "source must stay outside the image"),
        ({"source_detector": 30.0}, "behind the rotation axis"),
    ],
)
def test_refuses(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FanBeam(**{**FAN, **change})


def test_refuses_supersampling_below_one() -> None:
    with pytest.raises(ValueError, match="supersampling must be a positive integer"):
        ParallelBeam(**PARALLEL).rays(0)


def test_curved_rays_are_equally_spaced_in_angle() -> None:
    g = CurvedFanBeam(**{**FAN, "angles": (0.0,), "detector_offset": 1.0})
    origins, directions = g.rays()
    np.testing.assert_allclose(origins[0], np.tile([0.0, -50.0], (4, 1)), atol=1e-12)
    # along the arc of radius 80 mm: u = -2, 0, 2, 4 mm; the central ray goes up
    angles = np.array([-2.0, 0, 2, 4]) / 80
    np.testing.assert_allclose(directions[0], np.stack([np.sin(angles), np.cos(angles)], 1), atol=1e-15)
    np.testing.assert_allclose(g.fan_angles(3).reshape(4, 3).mean(1), angles, atol=1e-15)


def test_flat_and_curved_detectors_agree_near_the_central_ray() -> None:
    flat, curved = FanBeam(**FAN), CurvedFanBeam(**FAN)
    np.testing.assert_allclose(flat.rays()[1], curved.rays()[1], atol=(3 / 80) ** 3)
    wide = {**FAN, "n_detectors": 60}
    assert np.abs(FanBeam(**wide).rays()[1] - CurvedFanBeam(**wide).rays()[1]).max() > 0.05


def test_curved_covering_sees_the_whole_image() -> None:
    g = CurvedFanBeam.covering((64, 64), 1.0, 10, source_origin=100, source_detector=180)
    assert isinstance(g, CurvedFanBeam)
    edge = g.n_detectors * g.detector_spacing / 2 / g.source_detector
    assert 100 * math.sin(edge) >= g.radius
    assert 100 * math.sin(edge - 2 * g.detector_spacing / 180) < g.radius


@pytest.mark.parametrize("beam", [ParallelBeam(**PARALLEL), FanBeam(**FAN), CurvedFanBeam(**FAN)])
def test_the_centre_is_the_column_whose_ray_meets_the_axis(beam: ParallelBeam | FanBeam | CurvedFanBeam) -> None:
    g = beam.with_centre(1.0)
    assert g.centre == pytest.approx(1.0)
    origins, directions = g.rays()
    distance = origins[..., 0] * directions[..., 1] - origins[..., 1] * directions[..., 0]
    np.testing.assert_allclose(distance[:, 1], 0, atol=1e-12)
    assert (np.abs(distance[:, [0, 2, 3]]) > 1).all()
    assert beam.with_centre(1.5) == beam  # four elements: the middle lies between 1 and 2
    with pytest.raises(ValueError, match="counted in detector elements"):
        beam.with_centre(math.nan)


def test_the_shortest_scan_sees_every_line_of_the_outermost_rays_once() -> None:
    g = CurvedFanBeam(**FAN).short_scan(31, start=0.2)
    gamma = g.fan_angles()
    assert (g.n_views, g.angles[0]) == (31, 0.2)
    assert g.angles[-1] - g.angles[0] == pytest.approx(math.pi + 2 * gamma.max())


def test_oblong_pixels() -> None:
    g = ParallelBeam(**{**PARALLEL, "pixel_size": [2.0, 0.5]})
    assert g.pixel_size == g.pixel_spacing == (2.0, 0.5)
    assert g.radius == pytest.approx(math.hypot(8 * 2, 10 * 0.5) / 2)
    x, y = g.pixel_centres()
    np.testing.assert_allclose([x[0], x[1], y[0], y[1]], [-2.25, -1.75, 7, 5])
    assert ParallelBeam(**{**PARALLEL, "pixel_size": (1.0, 1.0)}) == ParallelBeam(**PARALLEL)
    covering = ParallelBeam.covering((8, 10), (2.0, 0.5), 3)
    assert covering.detector_spacing == 0.5
    assert covering.n_detectors * 0.5 / 2 >= covering.radius
    for bad in (0.0, (1.0, -1.0), (1.0, 1.0, 1.0), math.nan):
        with pytest.raises(ValueError, match=r"or two \(dy, dx\)"):
            ParallelBeam(**{**PARALLEL, "pixel_size": bad})


@pytest.mark.parametrize("beam", [ParallelBeam(**PARALLEL), FanBeam(**FAN)])
def test_vectors_of_a_beam_are_its_rays(beam: ParallelBeam | FanBeam) -> None:
    beam = dataclasses.replace(beam, detector_offset=0.7, angles=(0.0, 0.7, -2.0))
    vectors = VectorBeam.of(beam)
    for k in (1, 3):
        (o, d), (p, e) = beam.rays(k), vectors.rays(k)
        np.testing.assert_allclose(d, e, atol=1e-14)
        step = p - o  # any other point on the same ray
        np.testing.assert_allclose(step[..., 0] * d[..., 1] - step[..., 1] * d[..., 0], 0, atol=1e-12)
    assert vectors.n_views == 3
    np.testing.assert_array_equal(vectors.subset([2, 0]).rays()[1], vectors.rays()[1][[2, 0]])
    assert VectorBeam(**dataclasses.asdict(vectors)) == vectors
    assert hash(vectors) == hash(VectorBeam(**dataclasses.asdict(vectors)))


VECTORS: dict[str, Any] = {
    "image_shape": (8, 10), "pixel_size": 1.0, "n_detectors": 4, "detectors": [[0, -30.0]], "axes": [[2.0, 0]],
    "sources": [[0, 50.0]],
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": None}, "either sources .* or directions"),
        ({"directions": [[0, 1.0]]}, "either sources .* or directions"),
        ({"axes": [[2.0, 0], [2.0, 0]]}, "axes has 2 views, detectors has 1"),
        ({"axes": [2.0, 0]}, r"axes must be finite numbers \(n_views, 2\)"),
        ({"sources": [[0, math.nan]]}, "sources must be finite"),
        ({"sources": [[0, 6.0]]}, "stay outside the image"),
        ({"axes": [[0.0, 2.0]]}, "zero, or parallel"),
        ({"axes": [[0.0, 0.0]]}, "zero, or parallel"),
        ({"n_detectors": 0}, "positive integer"),
    ],
)
def test_refuses_vectors(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VectorBeam(**{**VECTORS, **change})


def test_refuses_other_beams() -> None:
    with pytest.raises(TypeError, match="flat detector, got CurvedFanBeam"):
        VectorBeam.of(CurvedFanBeam(**FAN))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="within 90 degrees"):
        CurvedFanBeam(**{**FAN, "n_detectors": 300})
