"""DICOM-CT-PD: geometry and values of circular and helical scans made here."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from invdiff import Measurement, datasets
from invdiff.operators import CurvedFanBeam

GRID = {"image_shape": (16, 16), "pixel_size": 2.0, "rebin": 1}


def test_a_circular_scan_gives_its_central_plane(tmp_path: Path, fixtures: Any) -> None:
    m = datasets.open(fixtures.ct_pd(tmp_path), **GRID)
    g, truth = m.A.geometry, fixtures.pd_beam
    assert isinstance(g, CurvedFanBeam)
    assert (g.n_detectors, g.source_origin, g.source_detector) == (24, 100.0, 180.0)
    assert g.detector_offset == pytest.approx(1.1, abs=1e-5)
    np.testing.assert_allclose(np.exp(1j * np.array(g.angles)), np.exp(1j * np.array(truth.angles)), atol=1e-6)
    # the object that made the data explains them: no mirrored detector, no other sense of rotation
    r = m.residual(fixtures.disc(truth))
    assert float(r.square().mean().sqrt()) < 0.01
    assert float(m.residual(fixtures.disc(truth).flip(-1)).square().mean().sqrt()) > 0.05
    assert (m.image_scale, m.units) == (0.0192, "1/mm")


def test_a_slice_of_a_helical_scan_is_rebinned(tmp_path: Path, fixtures: Any) -> None:
    path = fixtures.ct_pd(tmp_path, turns=3, feed=4.0)
    m = datasets.open(path, z=6.3, **GRID)
    assert isinstance(m, Measurement)
    assert m.A.geometry.n_views == 18
    # an object that does not change with z: rebinning is exact but for the interpolation between rows
    assert float(m.residual(fixtures.disc(fixtures.pd_beam)).square().mean().sqrt()) < 0.01
    with pytest.raises(ValueError, match="z must lie in the scan, 0 to 11.7778 mm, got 40"):
        datasets.open(path, z=40)


def test_a_helical_scan_without_a_slice_is_its_projections_with_the_geometry(tmp_path: Path, fixtures: Any) -> None:
    v = datasets.open(fixtures.ct_pd(tmp_path, turns=2, feed=4.0))
    assert isinstance(v, datasets.Volume)
    assert v.data.shape == (36, 4, 24)
    np.testing.assert_allclose(np.diff(v.metadata["angles_rad"]), 2 * math.pi / 18, atol=1e-5)
    np.testing.assert_allclose(v.metadata["z_mm"], 4.0 * np.arange(36) / 18, atol=1e-5)
    assert v.metadata["source_detector_mm"] == 180.0


@pytest.mark.parametrize("distinct", [True, False])
def test_views_are_in_the_order_of_their_instance_numbers(tmp_path: Path, fixtures: Any, distinct: bool) -> None:
    import pydicom

    folder = fixtures.ct_pd(tmp_path)
    truth = datasets.open(folder, **GRID)
    for i, file in enumerate(sorted(folder.iterdir())):
        ds = pydicom.dcmread(file)
        ds.InstanceNumber = i + 1 if distinct else 1
        ds.save_as(folder / f"{i + 1}.dcm" if distinct else file)  # by name, 10.dcm is before 2.dcm
        if distinct:
            file.unlink()
    m = datasets.open(folder, **GRID)
    assert m.A.geometry == truth.A.geometry
    np.testing.assert_array_equal(m.y, truth.y)


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"7033100B": 0.01}, "flying focal spot"),
        ({"7029100B": "SPHERICAL"}, "unknown detector shape 'SPHERICAL'"),
        ({"70311031": -5.0}, "source_detector_mm must be positive"),
        ({"70291010": 5}, "5 x 24 elements, the file holds"),
        ({"70311033": None}, r"tag \(7031,1033\) must hold a number"),
        ({"70311002": math.nan}, r"tag \(7031,1002\) must hold a number"),
    ],
)
def test_refuses_what_it_cannot_represent(tmp_path: Path, fixtures: Any, tags: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        datasets.open(fixtures.ct_pd(tmp_path, **tags), **GRID)


def test_tags_stored_as_raw_bytes_are_understood(tmp_path: Path, fixtures: Any) -> None:
    import pydicom

    folder = fixtures.ct_pd(tmp_path)
    truth = datasets.open(folder, **GRID)
    for file in folder.iterdir():
        ds = pydicom.dcmread(file)
        for tag, form in ((0x70291010, "<H"), (0x70311001, "<f"), (0x70311031, "<f")):
            ds[tag] = pydicom.DataElement(tag, "UN", fixtures.pack(form, ds[tag].value))
        ds.save_as(file)
    assert datasets.open(folder, **GRID).A.geometry == truth.A.geometry
