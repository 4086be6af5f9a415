"""kspace_measurement: maps, phase, noise and scale estimated from the samples, against what made them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from invdiff import Measurement
from invdiff.classical import CGSense
from invdiff.datasets.kspace import calibration_size, kspace_measurement, noise_level
from invdiff.operators import birdcage_maps, equispaced_fraction_mask, fft2c, poisson_disc_mask

SIGMA = 0.02
SHAPE = (64, 48)
REAL = Path(__file__).parents[2].parent / "shared" / "data" / "mri_kspace" / "sigpy_brain8ch_poisson.npy"


def scene(n_coils: int = 6, *, sharpness: float = 30.0) -> tuple[Tensor, Tensor]:
    """A complex image (y, x) with soft edges and a smooth phase, and its noisy full k-space (coil, y, x)."""
    y, x = torch.meshgrid(*[(torch.arange(n) - n // 2) / (n / 2) for n in SHAPE], indexing="ij")
    disc, hole = (torch.sigmoid(sharpness * (r - torch.hypot(y - dy, x))) for r, dy in ((0.8, 0.0), (0.3, 0.3)))
    image = 2.0 * disc - hole
    image = image * torch.exp(1j * (0.5 + x - 0.7 * y * y))
    maps = birdcage_maps(n_coils, SHAPE) if n_coils > 1 else torch.ones(1, *SHAPE)
    noise = torch.view_as_complex(torch.randn(n_coils, *SHAPE, 2, generator=torch.Generator().manual_seed(0)))
    return image, fft2c(maps * image) + SIGMA * noise


def error(m: Measurement, truth: Tensor) -> float:
    x = CGSense(n_steps=30)(None, m).mean
    return float((x - truth).norm() / truth.norm())


@pytest.mark.parametrize("n_coils", [1, 6])
def test_full_kspace_gives_the_magnitude_back(n_coils: int) -> None:
    image, kspace = scene(n_coils)
    m = kspace_measurement(kspace.numpy(), reference=image.abs(), item="a", metadata={"source": "here"})
    assert m.A.in_shape == (1, *SHAPE)
    assert m.reference is not None
    assert error(m, m.reference) < 0.05
    assert 0.95 * SIGMA < m.noise.sigma < 1.3 * SIGMA  # signal at the edges makes it an upper bound
    assert m.image_scale == pytest.approx(2.0, rel=0.15)
    assert (m.item, m.metadata["source"], m.metadata["acceleration"]) == ("a", "here", 1.0)


def test_complex_image_as_two_channels() -> None:
    image, kspace = scene()
    m = kspace_measurement(kspace, magnitude=False)
    assert m.A.in_shape == (2, *SHAPE)
    x = CGSense(n_steps=30)(None, m).mean
    assert float((x.norm(dim=0) - image.abs()).norm() / image.abs().norm()) < 0.05
    with pytest.raises(ValueError, match="reference must be complex"):
        kspace_measurement(kspace, magnitude=False, reference=image.abs())


def test_undersampled_kspace_is_unfolded() -> None:
    image, kspace = scene(sharpness=300.0)
    for mask in (
        equispaced_fraction_mask(48, acceleration=2, center_fraction=0.3, seed=0),
        poisson_disc_mask(SHAPE, acceleration=3, calibration=(20, 20), seed=0),
    ):
        implicit = kspace_measurement(kspace * mask, crop=0.8)
        explicit = kspace_measurement(kspace, mask=mask.numpy(), crop=0.8)
        assert torch.equal(implicit.y, explicit.y)
        assert implicit.metadata["acceleration"] == pytest.approx(2 if mask.ndim == 1 else 3, rel=0.1)
        assert error(implicit, image.abs()[None]) < 0.12
        assert error(implicit, image.abs()[None]) < 0.6 * float(
            (implicit.A.H(implicit.y) - image.abs()).norm() / image.abs().norm()  # type: ignore[attr-defined]
        )


def test_by_default_no_pixel_is_hidden_from_the_data() -> None:
    maps = kspace_measurement(scene()[1]).A.outer.maps  # type: ignore[attr-defined]
    torch.testing.assert_close(maps.abs().square().sum(0), torch.ones(SHAPE))


def test_given_maps_and_sigma_are_used() -> None:
    image, kspace = scene()
    m = kspace_measurement(kspace, maps=birdcage_maps(6, SHAPE), sigma=0.25)
    assert m.noise.sigma == 0.25
    assert float((m.A.outer.maps.abs() - birdcage_maps(6, SHAPE).abs()).abs().max()) < 1e-5  # type: ignore[attr-defined]
    assert error(m, image.abs()[None]) < 0.05


def test_noise_level_sees_noise_of_several_coils_and_no_padding() -> None:
    n = torch.view_as_complex(torch.randn(2, 80, 80, 2, generator=torch.Generator().manual_seed(1)))
    n = n * torch.tensor([1.0, 3.0])[:, None, None]
    n[:, 36:44, 36:44] += 1000.0
    full = torch.ones(80, 80, dtype=torch.bool)
    assert noise_level(n, full) == pytest.approx(5**0.5, rel=0.05)
    n[:, :10] = 0
    assert noise_level(n, full) == pytest.approx(5**0.5, rel=0.1)


def test_calibration_size() -> None:
    mask = torch.zeros(40, 30, dtype=torch.bool)
    mask[:, 10:20] = True
    assert calibration_size(mask) == (24, 10)
    mask[20] = False
    with pytest.raises(ValueError, match="8 x 8 or more"):
        calibration_size(mask)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kspace": np.zeros((2, 8, 8), np.complex64)}, "zero wherever it is sampled"),
        ({"kspace": np.ones((2, 8, 8))}, "must be a complex array"),
        ({"kspace": np.ones((2, 3, 8, 8), np.complex64)}, "must be a complex array"),
        ({"kspace": np.ones((0, 8, 8), np.complex64)}, "must be a complex array"),
        ({"kspace": np.full((2, 8, 8), np.nan, np.complex64)}, "128 non-finite"),
        ({"kspace": np.full((2, 8, 8), 1e300 + 0j)}, "non-finite"),
        ({"kspace": np.full((2, 8, 8), 1e30 + 0j)}, "leave single precision"),
        ({"maps": np.zeros((6, 64, 48), np.complex64)}, "maps are zero"),
        ({"mask": np.ones(5)}, "mask .* does not broadcast"),
        ({"maps": np.ones((3, 64, 48), np.complex64)}, "maps must have k-space's shape"),
        ({"reference": np.ones((64, 48), np.complex64)}, "reference must be real"),
        ({"reference": np.ones((64, 40))}, "reference must have shape"),
        ({"sigma": -1.0}, "sigma must be a positive"),
        ({"mask": np.arange(48) % 4 == 0}, "fully sampled centre"),
    ],
)
def test_nonsense_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kspace_measurement(**{"kspace": scene()[1], **arguments})


@pytest.mark.skipif(not REAL.is_file(), reason="the real k-space (shared/data/mri_kspace) is not here")
def test_real_undersampled_brain_is_unfolded() -> None:
    """Random aliasing looks like noise in the air, and the samples left out must be predicted from the others."""
    kspace = np.load(REAL)
    sampled = (kspace != 0).any(0)
    left_out = sampled & (np.random.default_rng(0).random(sampled.shape) < 0.05)
    left_out[95:135, 70:110] = False
    m = kspace_measurement(kspace * ~left_out, magnitude=False, crop=0.8)
    assert m.metadata["acceleration"] == pytest.approx(1 / sampled.mean(), rel=0.06)
    full = kspace_measurement(kspace, magnitude=False, maps=m.A.outer.maps)  # type: ignore[attr-defined]
    x = CGSense(n_steps=20)(None, m).mean
    held = torch.from_numpy(left_out)
    missed = (full.A(x) - full.y)[:, held]
    assert float(missed.norm() / full.y[:, held].norm()) < 0.7  # zero-filling: 1, by definition
