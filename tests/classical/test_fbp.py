"""Filtered back projection of exact line integrals: the attenuation comes back in 1/mm, where it belongs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from invdiff.classical.fbp import FBP, WINDOWS, displaced_weights, fbp, parker_weights, redundancy_weights, view_weights
from invdiff.datasets import ellipse_sinogram
from invdiff.datasets.htc import read_htc
from invdiff.measurement import Measurement
from invdiff.noise import GaussianNoise
from invdiff.operators.ct import CT
from invdiff.operators.ct_geometry import CurvedFanBeam, FanBeam, ParallelBeam, VectorBeam
from invdiff.operators.pointwise import Identity

Beam = ParallelBeam | FanBeam | CurvedFanBeam
HTC = Path(__file__).parents[2].parent / "shared" / "data" / "ct_raw" / "htc2022_ta_full.mat"
DEGREE = math.pi / 180
MU, CENTRE, RADIUS = 0.02, (9.0, 13.0), 24.0  # 1/mm, mm, mm; inside the image, off the axis
PARALLEL = ParallelBeam.covering((100, 110), 1.0, 180)
FAN = FanBeam.covering((100, 110), 1.0, 360, source_origin=260.0, source_detector=430.0)
CURVED = CurvedFanBeam.covering((100, 110), 1.0, 360, source_origin=160.0, source_detector=270.0)  # a fan of 55 degrees


def disc(g: Beam) -> torch.Tensor:
    """Exact line integrals (n_views, n_detectors) of the disc, float64."""
    origins, directions = g.rays()
    to_centre = np.array(CENTRE) - origins
    distance = to_centre[..., 0] * directions[..., 1] - to_centre[..., 1] * directions[..., 0]
    return torch.from_numpy(2 * MU * np.sqrt(np.maximum(RADIUS**2 - distance**2, 0)))


def zones(g: Beam, x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Values well inside and well outside the disc."""
    xs, ys = g.pixel_centres()
    distance = np.hypot(xs - CENTRE[0], ys[:, None] - CENTRE[1])
    return x.numpy()[distance < RADIUS - 3], x.numpy()[distance > RADIUS + 3]


def degrees(*values: float) -> tuple[float, ...]:
    return tuple(v * DEGREE for v in values)


def spread(rng: np.random.Generator, n: int, span: float) -> tuple[float, ...]:
    return tuple(rng.uniform(0, span, n))


RNG = np.random.default_rng(0)
COMPLETE: dict[str, Beam] = {
    "parallel": PARALLEL,
    "parallel, offset detector": replace(PARALLEL, detector_offset=2.7),
    "parallel, 0 and 180 degrees": replace(PARALLEL, angles=degrees(*range(181))),
    "parallel, full turn": replace(PARALLEL, angles=degrees(*range(0, 361, 2))),
    "parallel, other order": replace(PARALLEL, angles=degrees(*np.roll(np.arange(180), 70)[::-1])),
    "parallel, dense half and sparse half": replace(
        PARALLEL, angles=degrees(*np.arange(0, 90, 0.5), *range(90, 180, 2))
    ),
    "parallel, random angles": replace(PARALLEL, angles=spread(RNG, 600, math.pi)),
    "fan": FAN,
    "fan, offset detector": replace(FAN, detector_offset=-4.1, n_detectors=FAN.n_detectors + 6),
    "fan, 0 and 360 degrees": replace(FAN, angles=degrees(*range(361))),
    "fan, random angles": replace(FAN, angles=spread(RNG, 1500, 2 * math.pi)),
    "fan, 300 degrees": replace(FAN, angles=degrees(*range(40, 341))),
    "fan, short scan": replace(FAN, angles=degrees(*range(-100, 120))),  # 180 degrees + twice 17
    "fan, shortest scan": FAN.short_scan(220, start=1.0),
    "curved fan": CURVED,
    "curved fan, offset detector": replace(CURVED, detector_offset=5.3, n_detectors=CURVED.n_detectors + 8),
    "curved fan, shortest scan": CURVED.short_scan(300, start=-2.0),
    "curved fan, 300 degrees": replace(CURVED, angles=degrees(*range(40, 341))),
    "oblong pixels": replace(PARALLEL, image_shape=(50, 110), pixel_size=(2.0, 1.0)),
    "curved fan, oblong pixels": replace(CURVED, image_shape=(100, 55), pixel_size=(1.0, 2.0)),
}


@pytest.mark.parametrize("g", COMPLETE.values(), ids=COMPLETE.keys())
def test_disc_comes_back_with_its_attenuation(g: Beam) -> None:
    inside, outside = zones(g, fbp(disc(g), g))
    assert abs(inside.mean() / MU - 1) < 0.002
    assert inside.std() < 0.01 * MU
    assert abs(outside.mean()) < 0.002 * MU
    assert outside.std() < 0.05 * MU


def test_corners_beyond_the_detector_stay_empty() -> None:
    g = replace(FAN, n_detectors=87)  # half the image's diagonal at the axis, the disc still in view
    g = replace(g, detector_spacing=FAN.detector_spacing * 1.2)
    y = disc(g)
    assert y[:, 0].max() == 0
    assert y[:, -1].max() == 0
    xs, ys = g.pixel_centres()
    beyond = np.hypot(xs, ys[:, None]) > g.n_detectors * g.detector_spacing / g.magnification / 2 + 2
    x = fbp(y, g).numpy()
    assert beyond.any()
    assert abs(x[beyond].mean()) < 0.003 * MU
    assert np.abs(x[beyond]).max() < 0.05 * MU


def test_limited_arc_counts_each_line_once() -> None:
    """90 degrees of a fan see most lines once: half the parallel beam's mass, spread over the image, not a quarter."""
    fan = replace(FAN, angles=degrees(*range(0, 91)))
    parallel = replace(PARALLEL, angles=degrees(*range(0, 91)))
    a, b = zones(fan, fbp(disc(fan), fan))[0].mean(), zones(parallel, fbp(disc(parallel), parallel))[0].mean()
    assert 0.9 < a / b < 1.1


def test_half_of_the_views_twice_as_far_apart() -> None:
    for g in (PARALLEL, FAN):
        half = g.subset(range(0, g.n_views, 2))
        assert abs(zones(half, fbp(disc(half), half))[0].mean() / MU - 1) < 0.005


@pytest.mark.parametrize("window", WINDOWS)
def test_windows_keep_the_mean_and_smooth_in_order(window: str) -> None:
    g = PARALLEL
    noise = torch.randn(g.n_views, g.n_detectors, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert abs(zones(g, fbp(disc(g), g, window=window))[0].mean() / MU - 1) < 0.005
    if window != "ram-lak":
        assert fbp(noise, g, window=window).std() < 0.95 * fbp(noise, g).std()


def test_inverts_the_operator_and_keeps_leading_dimensions() -> None:
    g = FAN
    xs, ys = g.pixel_centres()
    x = torch.from_numpy(MU * np.exp(-((xs - 9) ** 2 + (ys[:, None] - 13) ** 2) / 200)).float()
    y = CT(g)(torch.stack([x[None], 2 * x[None]]))
    back = fbp(y, g)
    assert back.shape == (2, 1, 100, 110)
    assert back.dtype == torch.float32
    assert (back[0, 0] - x).norm() < 0.01 * x.norm()
    torch.testing.assert_close(back[1], 2 * back[0], rtol=1e-3, atol=1e-6)


def test_view_weights_are_a_quadrature() -> None:
    angles = RNG.uniform(-10, 10, 500)
    assert view_weights(angles, math.pi).sum() == pytest.approx(math.pi)
    np.testing.assert_allclose(
        view_weights(np.array([0, 1, 2, 2, 3]) * math.pi / 4, math.pi) * 8 / math.pi, [2, 2, 1, 1, 2]
    )
    np.testing.assert_allclose(view_weights(np.deg2rad([10.0, 11, 13, 15]), 2 * math.pi) / DEGREE, [0.5, 1.5, 2, 1])
    assert view_weights(np.array([0.3]), math.pi) == pytest.approx(math.pi)


def test_shares_of_a_line_add_up_to_one() -> None:
    gamma = np.deg2rad(np.arange(-15, 16))
    angles = np.deg2rad(np.arange(0, 231))
    w = redundancy_weights(angles, gamma)
    for view, j in [(0, 0), (3, 10), (10, 5), (24, 2), (20, 0)]:
        opposite = view + 180 - 2 * (j - 15)
        assert 0 <= opposite <= 230
        assert w[view, j] + w[opposite, 30 - j] == pytest.approx(1)
    assert w[115, 15] == pytest.approx(1)  # its line is measured once
    np.testing.assert_allclose(redundancy_weights(np.deg2rad(np.arange(360)), gamma), 0.5)


@pytest.mark.parametrize("arc", [200, 210, 250, 330])
def test_parker_shares_add_up_to_one_and_fade_at_both_ends(arc: int) -> None:
    gamma = np.deg2rad(np.arange(-10, 11))
    s = np.deg2rad(np.arange(arc + 1))
    w = parker_weights(s, gamma, s[-1])
    for view in range(arc + 1):
        for j in range(21):
            opposite = view + 180 - 2 * (j - 10)
            before = view - 180 - 2 * (j - 10)
            partner = opposite if opposite <= arc else before
            shares = w[view, j] + (w[partner, 20 - j] if 0 <= partner <= arc else 0)
            assert shares == pytest.approx(1, abs=1e-6)
    assert w[0, 1:].max() < 1e-6
    assert w[-1, :-1].max() < 1e-6
    assert np.abs(np.diff(w, axis=0)).max() < (0.25 if arc > 200 else 1.0)  # of the shortest arc one corner is sharp


@pytest.mark.skipif(not HTC.is_file(), reason=f"the HTC 2022 files are not in {HTC.parent}")
def test_real_short_scan_agrees_with_the_full_turn() -> None:
    """The measured disc of the Helsinki challenge; its fan is 11.6 degrees wide."""
    full, short = (
        read_htc(HTC, image_shape=(96, 96), angles=arc, views=n) for arc, n in ((None, 360), ((30, 222), 193))
    )
    xs, ys = full.A.geometry.pixel_centres()
    seen = np.hypot(xs, ys[:, None]) < 37
    a, b = (fbp(m.y, m.A.geometry, window="hann")[0].numpy()[seen] for m in (full, short))
    assert np.corrcoef(a, b)[0, 1] > 0.99
    assert b.mean() == pytest.approx(a.mean(), rel=0.01)


def test_called_like_an_algorithm() -> None:
    g = ParallelBeam.covering((32, 32), 2.0, 40)
    A = CT(g)
    y = torch.rand(A.out_shape, generator=torch.Generator().manual_seed(0))
    m = Measurement(y, A, GaussianNoise(0.01), units="1/mm", item="slice-3", metadata={"voxel": 2.0})
    posterior = FBP(window="hann")(None, m, n_samples=1, seed=5)
    torch.testing.assert_close(posterior.samples, fbp(y, g, window="hann")[None])
    assert posterior.samples.shape == (1, 1, 32, 32)
    assert (posterior.units, posterior.item, posterior.seed, posterior.nfe) == ("1/mm", "slice-3", 5, 0)
    assert "hann" in posterior.algorithm
    assert posterior.metadata == {"voxel": 2.0}
    with pytest.raises(ValueError, match="point estimate"):
        FBP()(None, m, n_samples=2)


def test_refuses() -> None:
    m = Measurement(torch.zeros(1, 4, 4), Identity((1, 4, 4)), GaussianNoise(1.0))
    with pytest.raises(TypeError, match="needs a CT operator"):
        FBP()(None, m)
    g = ParallelBeam.covering((4, 4), 1.0, 3)
    with pytest.raises(TypeError, match="a geometry that rotates.*got VectorBeam"):
        FBP()(None, Measurement(torch.zeros(1, 3, 6), CT(VectorBeam.of(g)), GaussianNoise(1.0)))
    with pytest.raises(ValueError, match="window must be one of ram-lak"):
        FBP(window="box")
    with pytest.raises(ValueError, match="n_views, n_detectors"):
        fbp(torch.zeros(3, 4), PARALLEL)


HALF: Any = {"image_shape": (64, 64), "pixel_size": 1.0, "angles": tuple(math.pi * i / 90 for i in range(180))}
SOURCE: Any = {"source_origin": 120.0, "source_detector": 180.0}


@pytest.mark.parametrize(
    "half",
    [
        FanBeam(**HALF, **SOURCE, n_detectors=60, detector_spacing=1.2, detector_offset=22.0),
        CurvedFanBeam(**HALF, **SOURCE, n_detectors=60, detector_spacing=1.2, detector_offset=-22.0),
        ParallelBeam(**HALF, n_detectors=60, detector_spacing=0.7, detector_offset=15.0),
    ],
    ids=["fan", "curved, other side", "parallel"],
)  # fmt: skip
def test_a_displaced_detector_sees_the_object_in_a_full_turn(half: FanBeam | CurvedFanBeam | ParallelBeam) -> None:
    """A detector of 60 elements that ends a few mm beyond the axis, against one of 240 that sees the whole object."""
    ellipses = np.array([[0.02, 28, 22, 3, -4, 0.3], [0.03, 6, 6, -10, 8, 0], [-0.02, 4, 3, 12, 5, 0]])
    whole = replace(half, n_detectors=240, detector_offset=0.0)
    x, expected = (fbp(ellipse_sinogram(ellipses, g)[0], g, window="hann") for g in (half, whole))
    inside = np.hypot(*np.meshgrid(*[np.arange(64) - 31.5] * 2)) < 30
    assert float((x - expected)[inside].norm() / expected[inside].norm()) < 0.03
    weights = displaced_weights(np.linspace(-5.0, 20.0, 26))
    np.testing.assert_allclose(weights[:11] + weights[10::-1], 1, atol=1e-12)  # both shares of a line
    np.testing.assert_array_equal(weights[11:], 1)
