"""Downsampling against dense linear algebra and against an independent bicubic kernel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from invdiff.operators import (
    BicubicDownsample,
    BlockDownsample,
    Blur,
    BlurDownsample,
    LinearOperator,
    gaussian_psf,
    motion_psf,
)

X = torch.rand(1, 24, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
CASES = {
    "block": BlockDownsample((1, 12, 8), 2),
    "bicubic": BicubicDownsample((1, 12, 8), 4),
    "blur": BlurDownsample(gaussian_psf(1.0, 5), (1, 12, 8), 2),
    "motion blur, odd coarse size": BlurDownsample(motion_psf(7, seed=0), (1, 9, 15), 3),
}


def dense(A: LinearOperator) -> torch.Tensor:
    n = math.prod(A.in_shape)
    return A(torch.eye(n, dtype=torch.float64).unflatten(-1, A.in_shape)).flatten(1).T


@pytest.fixture(params=CASES, ids=str)
def A(request: pytest.FixtureRequest) -> LinearOperator:
    return CASES[request.param].to(dtype=torch.float64)


def test_singular_values_are_those_of_the_matrix(A: LinearOperator) -> None:
    values = torch.linalg.svdvals(dense(A))
    closed = A.svd().singular_values.flatten().double()
    # the half spectrum holds each pair of conjugate frequencies once: compare as sets
    distance = (values[:, None] - closed).abs()
    assert float(distance.min(1).values.max()) < 1e-6
    assert float(distance.min(0).values.max()) < 1e-6


def test_pinv_and_prox_are_those_of_the_matrix(A: LinearOperator) -> None:
    M, g = dense(A), torch.Generator().manual_seed(1)
    y = torch.randn(A.out_shape, generator=g, dtype=torch.float64)
    z = torch.randn(A.in_shape, generator=g, dtype=torch.float64)
    assert float(torch.linalg.svdvals(M).min()) > 1e-3  # well posed, so that no cutoff enters
    torch.testing.assert_close(A.pinv(y).flatten(), torch.linalg.pinv(M) @ y.flatten(), rtol=1e-3, atol=1e-5)
    exact = torch.linalg.solve(torch.eye(len(M.T)) + 3.0 * M.T @ M, z.flatten() + 3.0 * M.T @ y.flatten())
    torch.testing.assert_close(A.prox(z, y, 3.0).flatten(), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_bicubic_is_the_antialiased_kernel_of_torch_on_a_mirrored_image(factor: int) -> None:
    x = X[..., : 24 // factor * factor, : 32 // factor * factor]
    m = 2 * factor  # a multiple of the factor, at least the reach of the kernel
    mirrored = torch.from_numpy(np.pad(x.numpy(), ((0, 0), (m, m), (m, m)), mode="symmetric"))
    reference = F.interpolate(mirrored[None], scale_factor=1 / factor, mode="bicubic", antialias=True)[0, :, 2:-2, 2:-2]
    y = BicubicDownsample(tuple(x.shape), factor).to(dtype=torch.float64)(x)  # type: ignore[arg-type]
    torch.testing.assert_close(y, reference, rtol=0, atol=1e-6)
    # without mirroring torch differs, and only in the two outermost pixels
    plain = F.interpolate(x[None], scale_factor=1 / factor, mode="bicubic", antialias=True)[0]
    torch.testing.assert_close(y[:, 2:-2, 2:-2], plain[:, 2:-2, 2:-2], rtol=0, atol=1e-6)
    assert float((y - plain).abs().max()) > 1e-3


def test_bicubic_keeps_constants_and_straight_lines() -> None:
    A = BicubicDownsample((1, 40, 8), 4).to(dtype=torch.float64)
    ramp = torch.arange(40, dtype=torch.float64)[:, None].expand(1, 40, 8)
    torch.testing.assert_close(A(torch.ones(1, 40, 8, dtype=torch.float64)), torch.ones(1, 10, 2).double())
    # Keys' kernel reproduces straight lines: inside, the value at the coarse pixel's centre, 4 i + 1.5
    torch.testing.assert_close(A(ramp)[0, 2:-2, 0], 4 * torch.arange(2, 8).double() + 1.5, rtol=0, atol=1e-5)


def test_block_average_is_a_mean_and_its_pinv_fills_blocks() -> None:
    A = BlockDownsample((1, 24, 32), 4).to(dtype=torch.float64)
    y = A(X)
    torch.testing.assert_close(y[0, 1, 2], X[0, 4:8, 8:12].mean())
    torch.testing.assert_close(A.pinv(y)[0, 4:8, 8:12], y[0, 1, 2].expand(4, 4))


def test_blur_downsample_is_a_blur_of_which_every_other_pixel_is_kept() -> None:
    psf = motion_psf(9, seed=2)
    y = BlurDownsample(psf, (1, 24, 32), 2).to(dtype=torch.float64)(X)
    torch.testing.assert_close(y, Blur(psf, (1, 24, 32)).to(dtype=torch.float64)(X)[:, ::2, ::2])


def test_sizes_that_do_not_divide_are_refused() -> None:
    for make in (BlockDownsample, BicubicDownsample, lambda s, f: BlurDownsample(gaussian_psf(1.0, 3), s, f)):
        with pytest.raises(ValueError, match="multiple of the integer factor, got 5"):
            make((1, 10, 12), 5)
