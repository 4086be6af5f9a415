"""The rotation axis is found where it was put."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from invdiff.classical.centre import find_centre
from invdiff.classical.fbp import fbp
from invdiff.datasets.ct_counts import flat_field_correction
from invdiff.operators.ct_geometry import CurvedFanBeam, FanBeam, ParallelBeam

PARALLEL = ParallelBeam.covering((64, 64), 1.0, 90)
TURN = replace(PARALLEL, angles=tuple(np.linspace(0, 2 * np.pi, 120, endpoint=False)))
FAN = FanBeam.covering((64, 64), 1.0, 120, source_origin=150.0, source_detector=240.0)
CURVED = CurvedFanBeam.covering((64, 64), 1.0, 120, source_origin=150.0, source_detector=240.0)
TOOTH = Path(__file__).parents[2].parent / "shared" / "data" / "ct_raw" / "tomopy_tooth.h5"


def discs(g: ParallelBeam | FanBeam | CurvedFanBeam) -> torch.Tensor:
    origins, directions = g.rays()
    y = np.zeros(origins.shape[:2])
    for x0, y0, radius, mu in ((3, 5, 17, 0.02), (10, 8, 4, 0.03), (-6, -2, 3, -0.02), (0, 14, 2, 0.04)):
        distance = (x0 - origins[..., 0]) * directions[..., 1] - (y0 - origins[..., 1]) * directions[..., 0]
        y += 2 * mu * np.sqrt(np.maximum(radius**2 - distance**2, 0))
    return torch.from_numpy(y + 0.005 * np.random.default_rng(0).normal(size=y.shape)).float()


@pytest.mark.parametrize("shift", [-3.3, 0.0, 4.62])
@pytest.mark.parametrize("beam", [PARALLEL, TURN, FAN, FAN.short_scan(120), CURVED])
def test_a_shifted_axis_is_found(beam: ParallelBeam | FanBeam | CurvedFanBeam, shift: float) -> None:
    true = beam.with_centre(beam.centre + shift)
    assert find_centre(discs(true), beam, span=6) == pytest.approx(true.centre, abs=0.15)


def turned(beam: ParallelBeam | FanBeam, order: str) -> ParallelBeam | FanBeam:
    angles = np.asarray(beam.angles)
    ways = {
        "back": angles[::-1], "clockwise": -angles, "shuffled": np.random.default_rng(0).permutation(angles),
        "a quarter later": angles + np.pi / 2,
    }  # fmt: skip
    return replace(beam, angles=tuple(ways[order]))


@pytest.mark.parametrize("order", ["back", "clockwise", "shuffled", "a quarter later"])
@pytest.mark.parametrize("beam", [PARALLEL, FAN.short_scan(120)])
def test_the_order_of_the_views_and_the_sense_of_rotation_do_not_matter(
    beam: ParallelBeam | FanBeam, order: str
) -> None:
    true = turned(beam, order).with_centre(beam.centre + 2.3)
    assert find_centre(discs(true), turned(beam, order), span=4) == pytest.approx(true.centre, abs=0.15)


def test_far_axes_are_found_from_the_centres_of_mass_or_refused() -> None:
    wide = replace(PARALLEL, n_detectors=150)
    true = wide.with_centre(50.4)
    assert find_centre(discs(true), wide, span=3) == pytest.approx(50.4, abs=0.15)
    with pytest.raises(ValueError, match="at the end of this span"):
        find_centre(discs(true), wide, start=60.0, span=4)
    with pytest.raises(ValueError, match="n_views, n_detectors"):
        find_centre(torch.zeros(3, 4), wide)


@pytest.mark.skipif(not TOOTH.is_file(), reason=f"tomopy's tooth is not in {TOOTH.parent}")
def test_real_tooth() -> None:
    """Measured projections: the two rows agree, near column 296, and the reconstruction is air outside the tooth."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(TOOTH) as f:
        raw, flats, darks, degrees = (f[f"exchange/{k}"][()] for k in ("data", "data_white", "data_dark", "theta"))
    y = torch.from_numpy(flat_field_correction(raw, flats, darks).line_integrals)
    g = ParallelBeam(
        image_shape=(80, 80), pixel_size=8.0, angles=np.deg2rad(degrees), n_detectors=640, detector_spacing=1.0
    )
    columns = [find_centre(y[:, row], g, span=2) for row in (0, 1)]
    assert columns[0] == pytest.approx(columns[1], abs=0.5)
    assert columns[0] == pytest.approx(296, abs=0.5)
    g = g.with_centre(columns[0])
    x = fbp(y[:, 0], g, window="hann").numpy()
    xs, ys = g.pixel_centres()
    inside, outside = x[np.hypot(xs, ys[:, None]) < 60], x[np.hypot(xs, ys[:, None]) > 290]
    assert inside.mean() > 20 * abs(outside.mean())
