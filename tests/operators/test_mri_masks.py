"""Masks and trajectories: the acceleration that is promised, full centres, and each pattern's own property."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from invdiff.operators import (
    equispaced_fraction_mask,
    equispaced_mask,
    gaussian_mask,
    golden_angle_trajectory,
    magic_mask,
    poisson_disc_mask,
    radial_trajectory,
    random_mask,
    spiral_trajectory,
)


@pytest.mark.parametrize(("width", "acceleration", "fraction"), [(368, 4, 0.08), (320, 8, 0.04), (101, 3.5, 0.1)])
def test_column_masks_meet_the_acceleration_around_a_full_centre(
    width: int, acceleration: float, fraction: float
) -> None:
    low = round(width * fraction)
    start = (width - low + 1) // 2
    counts = []
    for seed in range(20):
        mask = equispaced_fraction_mask(width, acceleration=acceleration, center_fraction=fraction, seed=seed)
        assert mask.dtype == torch.bool
        assert mask[start : start + low].all()
        assert abs(int(mask.sum()) - width / acceleration) <= 2
        counts.append(int(random_mask(width, acceleration=acceleration, center_fraction=fraction, seed=seed).sum()))
    mean = sum(counts) / len(counts)
    assert abs(mean - width / acceleration) < 4 * math.sqrt(width / acceleration / len(counts))


def test_equispaced_fraction_is_equispaced_outside_the_centre() -> None:
    n, R, low = 368, 4, 29
    mask = equispaced_fraction_mask(n, acceleration=R, center_fraction=0.08, seed=1)
    start = (n - low + 1) // 2
    gaps = torch.cat([mask[:start].nonzero().diff(dim=0), mask[start + low :].nonzero().diff(dim=0)])
    adjusted = R * (low - n) / (low * R - n)  # the spacing of the published code
    assert {int(g) for g in gaps} <= {math.floor(adjusted), math.ceil(adjusted)}
    assert not torch.equal(mask, equispaced_fraction_mask(n, acceleration=R, center_fraction=0.08, seed=2))


@pytest.mark.parametrize("offset", [0, 1, 2, 3])
@pytest.mark.parametrize("width", [64, 51])
def test_magic_columns_and_their_mirror_images_cover_every_second_frequency(width: int, offset: int) -> None:
    mask = magic_mask(width, acceleration=4, center_fraction=0.0, offset=offset)
    k = torch.arange(width) - width // 2
    positive, negative = ({abs(int(i)) for i in k[mask & side]} for side in (k > 0, k < 0))
    assert not positive & negative
    both = sorted(positive | negative)
    assert set(torch.tensor(both).diff().tolist()) == {2}
    wasted = equispaced_mask(width, acceleration=4, center_fraction=0.0, offset=width // 2 % 4)
    positive, negative = ({abs(int(i)) for i in k[wasted & side]} for side in (k > 0, k < 0))
    assert len(positive & negative) >= len(positive) - 1


def test_magic_follows_the_published_frequencies() -> None:
    k = torch.arange(32) - 16
    even = k[magic_mask(32, acceleration=4, center_fraction=0.0, offset=0)]
    odd = k[magic_mask(32, acceleration=4, center_fraction=0.0, offset=1)]
    assert even[even >= 0].tolist() == [1, 5, 9, 13]
    assert even[even < 0].tolist() == [-15, -11, -7, -3]
    assert odd[odd >= 0].tolist() == [3, 7, 11, 15]
    assert odd[odd < 0].tolist() == [-13, -9, -5, -1]


@pytest.mark.parametrize(("acceleration", "growth"), [(4.0, 2.0), (8.0, 1.0), (6.0, 0.5)])
def test_poisson_disc_keeps_its_distance_and_leaves_no_hole(acceleration: float, growth: float) -> None:
    shape = (80, 64)
    mask = poisson_disc_mask(shape, acceleration=acceleration, calibration=(0, 0), growth=growth, seed=0)
    assert mask.numel() / int(mask.sum()) == pytest.approx(acceleration, rel=0.03)
    points = mask.nonzero().double()
    rho = ((points - torch.tensor([40, 32])) / torch.tensor([40, 32])).norm(dim=1)
    slope = 1 + growth * rho
    distance = torch.cdist(points, points).fill_diagonal_(math.inf)
    r0 = float((distance / torch.minimum(slope[:, None], slope)).min())  # the largest r_0 that the mask obeys
    expected = math.sqrt(acceleration) * 0.5 / (1 + 0.5 * growth)  # far more than independent points would keep
    assert r0 > expected
    holes = (~mask).nonzero().double()
    assert float((torch.cdist(holes, points) / slope).min(1).values.max()) <= r0 + 1e-9


def test_poisson_disc_is_denser_in_the_middle_and_full_in_the_calibration_region() -> None:
    mask = poisson_disc_mask((96, 96), acceleration=6.0, calibration=(16, 12), growth=2.0, seed=3)
    assert mask.numel() / int(mask.sum()) == pytest.approx(6, rel=0.03)
    assert mask[40:56, 42:54].all()
    inner, outer = mask[24:40, 24:72].double().mean(), mask[:12].double().mean()
    assert inner > 2 * outer
    assert torch.equal(mask, poisson_disc_mask((96, 96), acceleration=6.0, calibration=(16, 12), seed=3))


def test_gaussian_mask_has_the_exact_number_of_points_and_the_density() -> None:
    shape, std = (128, 100), 0.4
    masks = torch.stack(
        [gaussian_mask(shape, acceleration=40.0, calibration=(0, 0), std=std, seed=s) for s in range(60)]
    )
    assert (masks.sum((1, 2)) == round(128 * 100 / 40)).all()
    y = (torch.arange(128) - 64) / 64
    variance = float((masks.double().mean((0, 2)) * y**2).sum() / masks.double().mean((0, 2)).sum())
    weight = torch.exp(-(y**2) / (2 * std**2))
    truth = float((weight * y**2).sum() / weight.sum())
    assert variance == pytest.approx(truth, rel=0.08)  # few of many drawn, so nearly the density itself
    full = gaussian_mask(shape, acceleration=5.0, calibration=(24, 20), std=std, seed=0)
    assert full[52:76, 40:60].all()
    assert int(full.sum()) == 2560


def test_impossible_masks_are_refused() -> None:
    with pytest.raises(ValueError, match="the centre alone takes 50"):
        equispaced_fraction_mask(101, acceleration=4, center_fraction=0.5, seed=0)
    with pytest.raises(ValueError, match="at least 1"):
        gaussian_mask((8, 8), acceleration=0.5, calibration=(2, 2), seed=0)
    with pytest.raises(ValueError, match="must fit into"):
        poisson_disc_mask((8, 8), acceleration=2, calibration=(9, 2), seed=0)
    with pytest.raises(ValueError, match="No radius gives"):  # equal radii on a grid allow a few densities only
        poisson_disc_mask((80, 64), acceleration=6.0, calibration=(0, 0), growth=0.0, seed=0)
    with pytest.raises(ValueError, match="above 2"):
        magic_mask(32, acceleration=2, center_fraction=0.1)
    with pytest.raises(ValueError, match="n_spokes must be positive"):
        radial_trajectory(16, n_spokes=0)


def angles(trajectory: Tensor) -> Tensor:
    rim = trajectory[:, 0]
    return torch.atan2(rim[:, 0], rim[:, 1]).remainder(math.pi)


def test_radial_spokes_pass_the_centre_at_equal_angles() -> None:
    k = radial_trajectory(32, n_spokes=10)
    assert k.shape == (10, 64, 2)
    assert (k[:, 32] == 0).all()
    torch.testing.assert_close(k[0], torch.stack([torch.zeros(64), (torch.arange(64) - 32) / 2], 1).double())
    torch.testing.assert_close(angles(k), math.pi * torch.arange(10, dtype=torch.float64) / 10)
    assert float(k.norm(dim=-1).max()) == pytest.approx(16)


def test_golden_angle_gaps_take_at_most_three_values_and_shrink_evenly() -> None:
    for n in (8, 13, 21, 50):  # the three-gap theorem; two gaps at Fibonacci numbers
        sorted_angles = angles(golden_angle_trajectory(32, n_spokes=n)).sort().values
        gaps = torch.cat([sorted_angles.diff(), sorted_angles[:1] + math.pi - sorted_angles[-1:]])
        distinct = gaps.mul(1e9).round().unique()
        assert len(distinct) <= (3 if n == 50 else 2)
        assert float(gaps.max()) < 2 * math.pi / n
    first = golden_angle_trajectory(32, n_spokes=2)
    turn = math.degrees(float(torch.atan2(first[1, -1, 0], first[1, -1, 1])))
    assert turn == pytest.approx(111.246, abs=1e-3)


def test_spiral_turns_and_samples_are_no_farther_apart_than_nyquist() -> None:
    k = spiral_trajectory(24, n_arms=4)
    assert float(k[:, 0].abs().max()) < 1e-12
    torch.testing.assert_close(k[:, -1].norm(dim=-1), torch.full((4,), 12.0, dtype=torch.float64))
    step = k.diff(dim=1).norm(dim=-1)
    assert 0.45 < float(step.min()) <= float(step.max()) < 0.5 + 1e-9
    grid = torch.stack(torch.meshgrid(*[torch.linspace(-8, 8, 41, dtype=torch.float64)] * 2, indexing="ij"), -1)
    nearest = torch.cdist(grid.reshape(-1, 2), k.reshape(-1, 2)).min(1).values
    assert float(nearest.max()) < 0.6  # turns one cycle apart: half a cycle, and half a step along the arm
    sparse = spiral_trajectory(24, n_arms=4, acceleration=3.0)
    assert float(torch.cdist(grid.reshape(-1, 2), sparse.reshape(-1, 2)).min(1).values.max()) > 1.3
    assert sparse.shape[1] < k.shape[1]
