"""Point spread functions and the blur that changes over the image."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.ndimage import label
from torch import Tensor

from invdiff.operators import Blur, SpaceVaryingBlur, gaussian_psf, interpolation_weights, motion_psf


def moments(psf: Tensor) -> tuple[Tensor, Tensor]:
    """Centroid (y, x) relative to the centre, and covariance."""
    n = psf.shape[0]
    t = torch.arange(n, dtype=torch.float64) - n // 2
    r = torch.stack(torch.meshgrid(t, t, indexing="ij"))
    mean = (psf * r).sum((1, 2))
    d = r - mean[:, None, None]
    return mean, torch.einsum("yx,iyx,jyx->ij", psf, d, d)


def test_a_gaussian_psf_has_the_covariance_it_was_asked_for() -> None:
    # a Gaussian sampled at steps of one pixel has the moments of the continuous one up to exp(-2 pi^2 sigma^2)
    psf = gaussian_psf((4.0, 1.5), 61, angle=0.5)
    mean, covariance = moments(psf)
    along, across = torch.tensor([math.sin(0.5), math.cos(0.5)]), torch.tensor([math.cos(0.5), -math.sin(0.5)])
    expected = 16 * torch.outer(along, along) + 2.25 * torch.outer(across, across)
    torch.testing.assert_close(mean, torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-10)
    torch.testing.assert_close(covariance, expected.double(), rtol=0, atol=1e-5)
    assert float(psf.sum()) == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(gaussian_psf((2.0, 2.0), 15, angle=1.1), gaussian_psf(2.0, 15))


@pytest.mark.parametrize("size", [15, 16, 61])
def test_a_motion_psf_is_a_connected_path_that_keeps_mean_and_place(size: int) -> None:
    psf = motion_psf(size, seed=3)
    mean, _ = moments(psf)
    assert float(psf.sum()) == pytest.approx(1, abs=1e-12)
    assert float(psf.min()) >= 0
    torch.testing.assert_close(mean, torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-9)
    # it reaches the border at distance (size - 1) // 2 from the centre, and no pixel on the way there is skipped
    y, x = psf.nonzero().T - size // 2
    assert int(torch.maximum(y.abs(), x.abs()).max()) == (size - 1) // 2
    assert label(psf.numpy() > 1e-12, structure=torch.ones(3, 3).numpy())[1] == 1  # below: rounding of a corner weight


def test_a_motion_psf_depends_on_its_seed_only_and_smooth_ones_are_shorter() -> None:
    torch.testing.assert_close(motion_psf(21, seed=5), motion_psf(21, seed=5), rtol=0, atol=0)
    assert float((motion_psf(21, seed=5) - motion_psf(21, seed=6)).abs().sum()) > 0.1

    def covered(smoothness: float) -> float:
        return sum(float((motion_psf(41, seed=i, smoothness=smoothness) > 0).sum()) for i in range(8))

    assert covered(3.0) < 0.7 * covered(0.1)


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (4, 1), (7, 8)])
def test_interpolation_weights_are_a_partition_of_unity(grid: tuple[int, int]) -> None:
    w = interpolation_weights(grid, (21, 24))
    assert w.shape == (grid[0] * grid[1], 21, 24)
    assert float(w.min()) >= 0
    torch.testing.assert_close(w.sum(0), torch.ones(21, 24, dtype=torch.float64), rtol=0, atol=1e-12)


def test_interpolation_weights_are_one_at_their_own_patch_centre() -> None:
    w = interpolation_weights((3, 3), (21, 21))  # centres at pixels 3, 10, 17
    torch.testing.assert_close(w[:, 3::7, 3::7].reshape(9, 9), torch.eye(9, dtype=torch.float64))


def test_a_point_is_seen_through_the_interpolated_psf() -> None:
    psfs = torch.stack([gaussian_psf((0.7 + i, 0.6), 9, angle=float(i)) for i in range(4)])
    w = interpolation_weights((2, 2), (24, 20))
    A = SpaceVaryingBlur(psfs, w, (1, 24, 20)).to(dtype=torch.float64)
    for y, x in ((12, 10), (7, 6), (15, 12)):
        point = torch.zeros(1, 24, 20, dtype=torch.float64)
        point[0, y, x] = 1
        expected = torch.zeros_like(point)
        expected[0, y - 4 : y + 5, x - 4 : x + 5] = (w[:, y, x, None, None] * psfs).sum(0)
        torch.testing.assert_close(A(point), expected, rtol=0, atol=1e-7)


def test_equal_psfs_make_an_ordinary_blur() -> None:
    psf, x = motion_psf(7, seed=0), torch.rand(2, 16, 15, generator=torch.Generator().manual_seed(0))
    A = SpaceVaryingBlur(psf.expand(6, 7, 7), interpolation_weights((3, 2), (16, 15)), (2, 16, 15))
    torch.testing.assert_close(A(x), Blur(psf, (2, 16, 15))(x))


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="sigma > 0"):
        gaussian_psf((1.0, 0.0), 5)
    with pytest.raises(ValueError, match="size >= 3"):
        motion_psf(2, seed=0)
    with pytest.raises(ValueError, match="grid must lie"):
        interpolation_weights((9, 1), (8, 8))
    with pytest.raises(ValueError, match="no larger than the image"):
        SpaceVaryingBlur(torch.ones(1, 9, 9), torch.ones(1, 8, 8), (1, 8, 8))
    with pytest.raises(ValueError, match=r"weights must be \(2, 8, 8\)"):
        SpaceVaryingBlur(torch.ones(2, 3, 3), torch.ones(1, 8, 8), (1, 8, 8))
