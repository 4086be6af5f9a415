"""Image metrics against closed forms."""

import math

import pytest
import torch

from invdiff.evaluation import psnr, ssim

X = torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(0))


def test_psnr_of_a_constant_error() -> None:
    # mean square error 0.01 on a range of 2: 10 log10(4 / 0.01)
    assert psnr(X + 0.1, X, data_range=2.0) == pytest.approx(10 * math.log10(400), abs=1e-4)
    assert psnr(X, X, data_range=1.0) == math.inf


def test_ssim_of_a_scaled_constant_has_its_closed_form() -> None:
    # constant images: only the luminance term is left, (2ab + C1) / (a^2 + b^2 + C1), C1 = (0.01 * range)^2
    a, b = torch.full((1, 16, 16), 0.5), torch.full((1, 16, 16), 0.8)
    c1 = 0.01**2
    assert ssim(a, b, data_range=1.0) == pytest.approx((2 * 0.4 + c1) / (0.25 + 0.64 + c1), abs=1e-6)
    assert ssim(X, X, data_range=1.0) == pytest.approx(1)


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="same shape"):
        psnr(X, X[:, 1:], data_range=1.0)
    with pytest.raises(ValueError, match="data_range must be positive"):
        ssim(X, X, data_range=0.0)
