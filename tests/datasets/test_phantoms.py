"""Phantoms: closed-form line integrals against a projector, items that depend on seed and index only."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from invdiff.datasets.phantoms import (
    AcrylicDiscs,
    BModePhantoms,
    BrainLike,
    DiscWithHoles,
    RandomEllipses,
    SpeckleCysts,
    _sector,
    ellipse_image,
    ellipse_sinogram,
    shepp_logan,
)
from invdiff.operators import CT, CurvedFanBeam, FanBeam, ParallelBeam

GRID: dict[str, Any] = {"image_shape": (256, 256), "pixel_size": 0.5}
VIEWS: dict[str, Any] = {"angles": tuple(0.1 + math.pi * i / 5 for i in range(5)), "n_detectors": 60}
FAN = {"source_origin": 200.0, "source_detector": 350.0}
BEAMS = {
    "parallel": ParallelBeam(**GRID, **VIEWS, detector_spacing=2.3, detector_offset=0.7),
    "fan": FanBeam(**GRID, **VIEWS, **FAN, detector_spacing=4.1),
    "curved fan": CurvedFanBeam(**GRID, **VIEWS, **FAN, detector_spacing=4.1),
}


@pytest.mark.parametrize("name", BEAMS)
def test_the_projector_converges_to_the_line_integrals(name: str) -> None:
    """The same rays through finer and finer pixels: what is left at the edges falls at least with the pixel size."""
    ellipses, errors = shepp_logan(120.0), []
    for n in (64, 128, 256):
        beam = replace(BEAMS[name], image_shape=(n, n), pixel_size=128 / n)
        exact = ellipse_sinogram(ellipses, beam, supersampling=4)
        projected = CT(beam, supersampling=4)(ellipse_image(ellipses, (n, n), 128 / n, supersampling=8))
        errors.append(float((exact - projected).square().mean().sqrt() / exact.max()))
    assert errors[1] < 0.55 * errors[0]
    assert errors[2] < 0.55 * errors[1]


def test_mass_and_centre_of_one_ellipse() -> None:
    """Zeroth and first moment of every parallel view: pi a b value, and the projected centre."""
    a, b, x0, y0, value = 9.0, 4.0, 5.0, -7.0, 0.3
    beam = ParallelBeam(**GRID, angles=tuple(np.linspace(0, 3, 7)), n_detectors=1200, detector_spacing=0.05)
    y = ellipse_sinogram(np.array([[value, a, b, x0, y0, 0.4]]), beam)[0].double().numpy()
    np.testing.assert_allclose(y.sum(1) * 0.05, math.pi * a * b * value, rtol=1e-3)
    t = np.array(beam.angles)
    np.testing.assert_allclose(y @ beam.detector_positions() / y.sum(1), x0 * np.cos(t) + y0 * np.sin(t), atol=1e-3)
    image = ellipse_image(np.array([[value, a, b, x0, y0, 0.4]]), (256, 256), 0.5, supersampling=8)
    assert float(image.sum()) * 0.25 == pytest.approx(math.pi * a * b * value, rel=1e-3)


def test_shepp_logan_has_the_published_values() -> None:
    x = ellipse_image(shepp_logan(2.0, scale=1.0), (200, 200), 0.01)[0]
    assert float(x.max()) == pytest.approx(1.0)
    for (px, py), value in (
        ((0.0, 0.9), 1.0),
        ((0.0, -0.8), 0.2),
        ((0.22, 0.0), 0.0),
        ((0.0, 0.4), 0.3),
        ((0.95, 0.95), 0),
    ):
        assert float(x[round(99.5 - 100 * py), round(99.5 + 100 * px)]) == pytest.approx(value, abs=1e-6)


DATASETS = (RandomEllipses, DiscWithHoles, BrainLike, SpeckleCysts)


@pytest.mark.parametrize("phantom", DATASETS)
def test_an_item_depends_on_seed_and_index_only(phantom: Any) -> None:
    d = phantom(6, (32, 40), seed=3)
    loader = torch.utils.data.DataLoader(d, batch_size=2)
    batches = torch.cat(list(loader))
    assert batches.shape[0] == len(d) == 6
    assert batches.shape[-2:] == (32, 40)
    assert torch.equal(phantom(100, (32, 40), seed=3)[4], batches[4])
    assert not torch.equal(batches[4], batches[5])
    assert not torch.equal(phantom(6, (32, 40), seed=4)[4], batches[4])
    assert torch.isfinite(torch.view_as_real(batches) if batches.is_complex() else batches).all()
    with pytest.raises(IndexError, match="0 to 5"):
        d[6]
    with pytest.raises(ValueError, match="Expected n >= 1"):
        phantom(0)


def test_random_ellipses_are_their_own_sinograms() -> None:
    d = DiscWithHoles(2, (128, 128), 1.0)
    beam = ParallelBeam.covering((128, 128), 1.0, 6)
    exact = ellipse_sinogram(d.ellipses(0), beam, supersampling=8)
    assert float((CT(beam, supersampling=8)(d[0]) - exact).abs().max()) < 0.02 * float(exact.max())


def test_holes_lie_in_the_disc_and_apart() -> None:
    for d in (DiscWithHoles(5, seed=s) for s in range(3)):
        for i in range(5):
            disc, *holes = d.ellipses(i)
            assert 1 <= len(holes) <= 12
            image = d[i]
            assert float(image.min()) == 0
            assert float(image.max()) == pytest.approx(0.036)
            area = sum(math.pi * h[1] * h[2] for h in holes)  # apart and inside: their areas add up
            expected = 0.036 * (math.pi * disc[1] ** 2 - area)
            assert float(image.sum()) * 0.65**2 == pytest.approx(expected, rel=5e-3)


def test_brains_have_three_contrasts_one_phase_and_coils() -> None:
    d = BrainLike(3, (64, 64), n_coils=4)
    x, tissues = d[1], d.tissues(1)
    assert x.shape == (3, 64, 64)
    assert x.dtype == torch.complex64
    total = torch.stack(list(tissues.values())).sum(0)
    assert float(total.max()) <= 1 + 1e-5
    assert min(float(t.min()) for t in tissues.values()) >= -1e-6
    t1, t2 = x[0].abs(), x[1].abs()
    white, fluid = tissues["white"] > 0.99, tissues["csf"] > 0.99
    assert float(t1[white].mean()) > 2 * float(t1[fluid].mean())  # fluid is dark in T1, bright in T2
    assert float(t2[fluid].mean()) > 2 * float(t2[white].mean())
    inside = total > 0.5
    torch.testing.assert_close(torch.angle(x[0])[inside], torch.angle(x[1])[inside], atol=1e-4, rtol=0)
    step = (x[2, :, 1:] * x[2, :, :-1].conj()).angle()[inside[:, 1:] & inside[:, :-1]]
    assert float(step.abs().max()) < 0.3  # smooth
    torch.testing.assert_close(d.maps.abs().square().sum(0), torch.ones(64, 64))


def test_speckle_has_the_backscatter_that_is_stated() -> None:
    d = SpeckleCysts(4, (256, 256), n_points=0)
    x, b = d[2], d.backscatter(2)
    assert float((x.square()[b == 1]).mean()) == pytest.approx(1, rel=0.05)
    for value in b.unique()[1:]:
        where = b == value
        if 500 < int(where.sum()) and value > 0:
            assert float(x[where].square().mean() / value) == pytest.approx(1, rel=0.2)
    assert float(x[b == 0].abs().sum()) == 0
    points = SpeckleCysts(1, (64, 64), n_points=3, n_cysts=0, point=50.0)[0]
    assert int((points == 50).sum()) == 3


def test_acrylic_discs_have_two_values_and_the_stated_cupping() -> None:
    flat, cupped = AcrylicDiscs(30, (64, 64), 1.3, cupping=0.0), AcrylicDiscs(30, (64, 64), 1.3, cupping=0.3)
    y, x = torch.meshgrid(*[torch.arange(64) - 31.5] * 2, indexing="ij")
    distance, differ = torch.hypot(x, y) / 32, 0
    for i in range(30):
        disc = flat[i][0] / 0.036
        partial = (disc > 1e-6) & (disc < 1 - 1e-6)
        assert float(disc.max()) == pytest.approx(1)
        assert float(partial.float().mean()) < 0.25  # only pixels that an edge crosses
        assert not disc[distance > 0.88 + 0.05].any()
        radius = float(distance[disc > 0.5].max())
        assert 0.75 < radius < 0.9
        rim = (distance > 0.95 * radius) & (distance < 0.97 * radius)
        assert bool((disc[rim] > 0.3).all())  # holes do not reach it
        assert bool((cupped[i][0] <= 0.036 * disc + 1e-6).all())
        assert bool((cupped[i][0] >= 0.7 * 0.036 * disc - 1e-6).all())
        differ += int(disc[distance < 0.7].min() < 0.5)
    assert 15 < differ <= 30  # most have holes


def test_b_mode_speckle_is_fully_developed() -> None:
    """Undo the log compression: where the level is flat the envelope is Rayleigh, mean over deviation 1.91."""

    class Flat(BModePhantoms):
        def backscatter(self, rng: np.random.Generator) -> np.ndarray:
            rng.normal()
            return np.zeros(self.shape)

    ratios = []
    for i in range(6):
        grey = Flat(6, (256, 256), dynamic_range=(60.0, 60.0), gain=(0.0, 0.0), sectors=0.0)[i]
        envelope = 10 ** ((grey / 255 - 1) * 60 / 20)
        kept = envelope[(grey > 0) & (grey < 255)]
        ratios.append(float(kept.mean() / kept.std()))
    assert np.mean(ratios) == pytest.approx(math.sqrt(math.pi / (4 - math.pi)), rel=0.05)


def test_the_beams_of_a_sector_fan_out_from_its_arc() -> None:
    """A picture of each sample's own depth and angle shows the polar coordinates of its pixels, nothing outside."""
    opening, radius, nz, nx = math.radians(90), 0.25, 256, 200
    depth, angle = np.meshgrid((np.arange(nz) + 0.5) / nz, (np.arange(nx) + 0.5) / nx - 0.5, indexing="ij")
    pixel = max((1.25 - 0.25 * math.cos(opening / 2)) / nz, 2 * 1.25 * math.sin(opening / 2) / nx)
    z = 0.25 * math.cos(opening / 2) + pixel * (np.arange(nz) + 0.5)[:, None]
    x = pixel * (np.arange(nx) + 0.5 - nx / 2)
    r, phi = np.hypot(x, z), np.arctan2(x, z) / opening
    inside = (np.abs(r - radius - 0.5) < 0.5 - 1 / nz) & (np.abs(phi) < 0.5 - 1 / nx)
    outside = (np.abs(r - radius - 0.5) > 0.5 + 1 / nz) | (np.abs(phi) > 0.5 + 1 / nx)
    area = opening / 2 * (1.25**2 - 0.25**2)
    assert inside.sum() * pixel**2 == pytest.approx(area, rel=0.03)  # all of the sector is in the picture
    np.testing.assert_allclose(_sector(depth, opening, radius)[inside], (r - radius)[inside], atol=1e-12)
    np.testing.assert_allclose(_sector(angle, opening, radius)[inside], phi[inside], atol=1e-12)
    assert np.abs(_sector(1 + depth, opening, radius)[outside]).max() == 0
