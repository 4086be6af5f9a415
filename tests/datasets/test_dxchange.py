"""Data Exchange: flats, darks, noise and rotation centre; the real tooth where present."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from invdiff import GaussianNoise, WeightedGaussianNoise, datasets
from invdiff.classical.fbp import fbp
from invdiff.datasets.ct_centre import centre_of_projections
from invdiff.datasets.dxchange import mean_attenuation
from invdiff.operators import CT

TOOTH = Path(__file__).parents[2].parent / "shared" / "data" / "ct_raw" / "tomopy_tooth.h5"
GRID = {"image_shape": (32, 32), "pixel_size": 0.5, "rebin": 1}


def test_counts_become_line_integrals_with_their_noise(tmp_path: Path, fixtures: Any) -> None:
    m = datasets.open(fixtures.dxchange(tmp_path), **GRID)
    x = fixtures.disc(fixtures.dx_beam, 3.0, 0.1)
    assert m.A.geometry.detector_spacing == pytest.approx(0.25)  # the file says 250 micrometres
    assert m.A.geometry.detector_offset == pytest.approx(1.0, abs=0.03)
    assert isinstance(m.noise, WeightedGaussianNoise)
    photons = 20000 * (1 + 0.1 * np.cos(np.arange(64) / 5))
    through_air = m.noise.weights[0, :, :8] * (1 + 1 / 20)  # twenty flats leave 5 % of their noise in every view
    np.testing.assert_allclose(through_air.mean(0), photons[:8], rtol=0.1)
    assert float(m.chi2(x)) == pytest.approx(1, abs=0.15)
    assert m.units == "1/mm"
    empty = datasets.open(tmp_path / "scan.h5", row=0, centre=27.5, image_scale=0.1, **GRID)
    assert float(empty.y.mean()) == pytest.approx(0, abs=5e-3)


def test_half_the_views_and_averaged_elements(tmp_path: Path, fixtures: Any) -> None:
    path = fixtures.dxchange(tmp_path)
    m = datasets.open(path, views=20, rebin=4, image_shape=(32, 32), pixel_size=0.5)
    assert m.A.geometry.angles == pytest.approx([math.pi * i / 20 for i in range(20)])
    assert m.A.geometry.n_detectors == 16
    assert float(m.residual(fixtures.disc(fixtures.dx_beam, 3.0, 0.1)).abs().max()) < 0.1


def test_the_centre_is_found_for_any_object_that_every_view_sees(fixtures: Any) -> None:
    for centre in (24.3, 31.5, 36.0):
        beam = fixtures.dx_beam.with_centre(centre)
        y = CT(beam, supersampling=4)(fixtures.disc(beam, 2.0, 0.1))[0].double().numpy()
        assert centre_of_projections(y, np.rad2deg(beam.angles)) == pytest.approx(centre, abs=0.05)
        # an object wider than the detector: from two opposite views
        wide = CT(beam, supersampling=4)(fixtures.disc(beam, 30.0, 0.1) * (1 + 0.5 * fixtures.disc(beam, 2.0, 1.0)))
        angles = np.rad2deg(beam.angles)
        angles[-1], other = 180.0, wide[0].double().numpy()
        other[-1] = np.interp(2 * centre - np.arange(64), np.arange(64), other[0])
        assert centre_of_projections(other, angles) == pytest.approx(centre, abs=0.5)


def test_the_mean_attenuation_of_a_disc_is_its_value(fixtures: Any) -> None:
    y = CT(fixtures.dx_beam, supersampling=4)(fixtures.disc(fixtures.dx_beam, 3.0, 0.1))[0].double().numpy()
    assert mean_attenuation(y, 0.25) == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"exchange__data_white": None}, {}, "no flat fields"),
        ({"exchange__data_white": np.ones((3, 2, 60))}, {}, "must have 2 rows of 64 elements"),
        ({"exchange__data_white": np.ones((3, 2, 64))}, {}, "not brighter in the flats"),
        ({"exchange__theta": None}, {}, "Give the option angles"),
        ({"exchange__theta": np.arange(7.0)}, {}, "must hold 40 angles"),
        ({"exchange__theta": np.full(40, np.nan)}, {}, "40 non-finite"),
        ({"exchange__data": np.ones((40, 64))}, {}, "must be a dataset of 3 dimensions"),
        ({"exchange__data": "text"}, {}, "must be a dataset of 3 dimensions"),
        ({}, {"row": 2}, "row must lie in 0 to 1"),
        ({}, {"centre": 70}, "centre must be an element index from 0 to 63"),
        ({}, {"rebin": 3}, "rebin must divide the 64"),
        ({}, {"views": 41}, "views must lie between 1 and 40"),
        ({}, {"detector_spacing": -1.0}, "must be a positive length"),
    ],
)
def test_refuses_other_contents(tmp_path: Path, fixtures: Any, changes: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        datasets.open(fixtures.dxchange(tmp_path, **changes), **options)


def test_optional_datasets(tmp_path: Path, fixtures: Any) -> None:
    path = fixtures.dxchange(tmp_path, exchange__theta=None, exchange__data_dark=None)
    m = datasets.open(path, angles=(0, 180), **GRID)
    assert m.A.geometry.angles[1] == pytest.approx(math.pi / 40)
    (tmp_path / "b").mkdir()
    one_flat = {"exchange__data_white": 60100.0 * np.ones((1, 2, 64)), RESOLUTION: None}
    m = datasets.open(fixtures.dxchange(tmp_path / "b", **one_flat), **{**GRID, "pixel_size": 2.0})
    assert isinstance(m.noise, GaussianNoise)
    assert m.units == "1/element"


RESOLUTION = "measurement__instrument__detection_system__objective__resolution"


@pytest.mark.skipif(not TOOTH.is_file(), reason=f"the tooth is not in {TOOTH.parent}")
def test_the_real_tooth() -> None:
    m = datasets.open(TOOTH, image_shape=(80, 80))
    assert m.metadata["centre"] == pytest.approx(296, abs=1)  # what its providers give
    assert m.A.geometry.n_views == 181

    def negative(centre: float) -> float:
        """Energy of negative attenuation in FBP, least at the right centre."""
        d = datasets.open(TOOTH, centre=centre, image_shape=(80, 80), rebin=4)
        return float(fbp(d.y, d.A.geometry).clamp(max=0).square().sum())

    assert negative(m.metadata["centre"]) < min(negative(m.metadata["centre"] + d) for d in (-4, 4))
    air = m.noise.chi2(torch.zeros_like(m.y), m.y)[..., :10]  # outside the tooth: noise only, and the lamp's drift
    assert 0.7 < float(air.mean()) < 4
