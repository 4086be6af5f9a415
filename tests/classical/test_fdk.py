"""Feldkamp reconstruction of exact line integrals of a ball: its attenuation comes back in 1/mm, where it belongs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from invdiff.classical.fbp import fbp
from invdiff.classical.fdk import FDK, fdk
from invdiff.measurement import Measurement
from invdiff.noise import GaussianNoise
from invdiff.operators.ct3d import CT3D
from invdiff.operators.ct_geometry3d import ConeBeam, ParallelBeam3D
from invdiff.operators.pointwise import Identity

MU, CENTRE, RADIUS = 0.02, np.array([5.0, -7.0, 2.0]), 12.0
CONE = ConeBeam.covering((30, 48, 48), 1.0, 180, source_origin=150.0, source_detector=250.0)
FAN = CONE.midplane
ANGLES = tuple(np.pi * np.arange(120) / 120)
PARALLEL = ParallelBeam3D(
    image_shape=(30, 48, 48), voxel_size=1.0, angles=ANGLES, detector_shape=(30, 72), detector_spacing=1.0
)
GEOMETRIES = {
    "cone": CONE,
    "cone, offset panel": replace(CONE, detector_offset=(3.1, -2.2), detector_shape=(48, 80)),
    "cone, short scan": replace(CONE, angles=FAN.short_scan(150, start=0.4).angles),
    "cone, half panel": replace(CONE, detector_offset=(0.0, 25.0), detector_shape=(CONE.detector_shape[0], 40)),
    "cone, oblong voxels": replace(CONE, image_shape=(15, 48, 48), voxel_size=(2.0, 1.0, 1.0)),
    "parallel": PARALLEL,
    "parallel, half panel": replace(
        PARALLEL, angles=tuple(np.pi * np.arange(180) / 90), detector_offset=(0.0, -12.0), detector_shape=(30, 36)
    ),
}


def ball(g: ParallelBeam3D | ConeBeam) -> torch.Tensor:
    origins, directions = g.rays()
    distance = np.linalg.norm(np.cross(CENTRE - origins, directions), axis=-1)
    return torch.from_numpy(2 * MU * np.sqrt(np.maximum(RADIUS**2 - distance**2, 0))).float()


@pytest.mark.parametrize("g", GEOMETRIES.values(), ids=GEOMETRIES)
def test_ball_comes_back_with_its_attenuation(g: ParallelBeam3D | ConeBeam) -> None:
    z, y, x = g.voxel_centres()
    distance = np.sqrt((x - CENTRE[0]) ** 2 + (y[:, None] - CENTRE[1]) ** 2 + (z[:, None, None] - CENTRE[2]) ** 2)
    volume = fdk(ball(g), g).numpy()
    inside, outside = volume[distance < RADIUS - 3], volume[distance > RADIUS + 3]
    assert abs(inside.mean() / MU - 1) < 0.02
    assert abs(outside.mean()) < 0.02 * MU
    middle = np.abs(z) < 1.1
    centre = volume[middle][distance[middle] < RADIUS - 3]
    assert abs(centre.mean() / MU - 1) < 0.01
    assert centre.std() < 0.03 * MU


def test_the_plane_of_the_source_is_the_two_dimensional_reconstruction() -> None:
    g = replace(CONE, image_shape=(1, 48, 48), detector_shape=(3, CONE.detector_shape[1]), angles=CONE.angles[::3])
    y = ball(g)
    torch.testing.assert_close(fdk(y, g)[0], fbp(y[:, 1], g.midplane), rtol=1e-4, atol=1e-6)
    single = replace(g, detector_shape=(1, g.detector_shape[1]))
    torch.testing.assert_close(fdk(y[:, 1:2], single)[0], fdk(y, g)[0], rtol=1e-4, atol=1e-6)


def test_inverts_the_operator_and_keeps_leading_dimensions() -> None:
    g = ConeBeam.covering((12, 24, 24), 2.0, 90, source_origin=150.0, source_detector=250.0)
    z, y, x = g.voxel_centres()
    blob = MU * np.exp(-((x - 4) ** 2 + (y[:, None] + 3) ** 2 + (z[:, None, None] - 1) ** 2) / 60)
    truth = torch.from_numpy(blob).float()
    back = fdk(CT3D(g)(torch.stack([truth[None], 2 * truth[None]])), g)
    assert back.shape == (2, 1, 12, 24, 24)
    assert back.dtype == torch.float32
    assert (back[0, 0] - truth).norm() < 0.06 * truth.norm()
    torch.testing.assert_close(back[1], 2 * back[0], rtol=1e-3, atol=1e-6)


def test_called_like_an_algorithm() -> None:
    g = ConeBeam.covering((4, 8, 8), 2.0, 12, source_origin=50.0, source_detector=90.0)
    A = CT3D(g)
    m = Measurement(torch.rand(A.out_shape, generator=torch.Generator().manual_seed(0)), A, GaussianNoise(0.1))
    posterior = FDK(window="hann")(None, m)
    torch.testing.assert_close(posterior.samples, fdk(m.y, g, window="hann")[None])
    assert posterior.samples.shape == (1, 1, 4, 8, 8)


def test_refuses() -> None:
    with pytest.raises(TypeError, match="FDK needs a CT3D operator"):
        FDK()(None, Measurement(torch.zeros(1, 4, 4), Identity((1, 4, 4)), GaussianNoise(1.0)))
    with pytest.raises(TypeError, match="ParallelBeam3D or a ConeBeam, got FanBeam"):
        fdk(torch.zeros(1), FAN)
    with pytest.raises(ValueError, match="n_views, n_rows, n_columns"):
        fdk(torch.zeros(3, 4), CONE)
    with pytest.raises(ValueError, match="window must be one of ram-lak"):
        FDK(window="box")
