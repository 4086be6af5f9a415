"""Ray geometry against hand-computed points, and what the constructors refuse."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from invdiff.operators.ct_geometry import FanBeam, ParallelBeam

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
