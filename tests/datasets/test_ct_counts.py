"""Units of CT, and raw counts simulated photon by photon: the truth comes back, with the noise that was put in."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from invdiff.datasets.ct_counts import flat_field_correction
from invdiff.datasets.ct_units import MU_WATER, attenuation_to_hu, hu_to_attenuation

GAIN, OFFSET, ELECTRONIC = 3.7, 120.0, 14.0  # detector units per photon, detector units, photons


def test_hounsfield_units_of_water_air_and_lodopab() -> None:
    mu = hu_to_attenuation(torch.tensor([0.0, -1000.0, 1000.0]))
    torch.testing.assert_close(mu, torch.tensor([MU_WATER, 0.0, 2 * MU_WATER]))
    # LoDoPaB-CT: 20 and 0.02 per metre, and 3071 HU is 81.35858 per metre
    assert hu_to_attenuation(np.array(3071.0), mu_water=0.02, mu_air=2e-5) == pytest.approx(0.08135858)
    assert hu_to_attenuation(np.array(-1000.0), mu_water=0.02, mu_air=2e-5) == pytest.approx(2e-5)
    hu = np.linspace(-1024, 3071, 9)
    np.testing.assert_allclose(attenuation_to_hu(hu_to_attenuation(hu, mu_air=2e-5), mu_air=2e-5), hu)


@pytest.mark.parametrize(("mu_water", "mu_air"), [(0.0, 0.0), (0.02, 0.02), (0.02, -0.1), (20.0, 0.02), (np.nan, 0.0)])
def test_refuses_other_units(mu_water: float, mu_air: float) -> None:
    with pytest.raises(ValueError, match="1/mm"):
        hu_to_attenuation(np.zeros(2), mu_water=mu_water, mu_air=mu_air)


def exposure(mean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return GAIN * (rng.poisson(mean) + ELECTRONIC * rng.normal(size=mean.shape)) + OFFSET


def scan(n_flats: int = 10, n_darks: int = 10) -> tuple[np.ndarray, ...]:
    """True line integrals (300, 2, 80), and raw projections, flats and darks with an uneven beam."""
    rng = np.random.default_rng(0)
    beam = np.broadcast_to(np.linspace(2000, 6000, 80), (2, 80))
    truth = np.broadcast_to(np.sin(np.linspace(0, np.pi, 80)) * 2, (300, 2, 80))
    return (
        truth, exposure(beam * np.exp(-truth), rng), exposure(np.tile(beam, (n_flats, 1, 1)), rng),
        exposure(np.zeros((n_darks, 2, 80)), rng),
    )  # fmt: skip


def test_line_integrals_come_back_with_their_weights() -> None:
    truth, raw, flats, darks = scan()
    p = flat_field_correction(raw, flats, darks)
    assert p.gain == pytest.approx(GAIN, rel=0.1)
    assert p.electronic == pytest.approx(ELECTRONIC, rel=0.1)
    error = p.line_integrals - truth
    assert abs(error.mean()) < 0.002
    np.testing.assert_allclose(p.line_integrals, -np.log(p.transmission), rtol=1e-4, atol=1e-6)
    given = flat_field_correction(raw, flats, darks, gain=GAIN)
    chi2 = (error**2 * given.weights).mean((0, 1)).reshape(8, 10).mean(1)  # by brightness
    np.testing.assert_allclose(chi2, 1, atol=0.12)  # three standard deviations; most of it is the flats' noise
    assert chi2.mean() == pytest.approx(1, abs=0.05)
    assert given.weights.max() / given.weights.min() > 5


def test_dark_rays_are_clipped() -> None:
    _, raw, flats, darks = scan()
    raw[0, 0, :] = OFFSET - 100
    p = flat_field_correction(raw, flats, darks, gain=GAIN, min_count=0.5)
    assert (p.transmission[0, 0] < 0).all()
    np.testing.assert_allclose(
        np.exp(-p.line_integrals[0, 0]) * (flats.mean(0) - darks.mean(0))[0] / GAIN, 0.5, rtol=1e-4
    )
    assert p.weights[0, 0].max() < 0.01


def test_one_flat_and_dark_suffice_where_the_gain_is_known() -> None:
    truth, raw, flats, darks = scan(1, 1)
    p = flat_field_correction(raw, flats, darks, gain=GAIN)
    assert p.electronic == 0
    assert abs(p.line_integrals - truth).mean() < 0.06
    with pytest.raises(ValueError, match="two or more flats and darks"):
        flat_field_correction(raw, flats, darks)


def test_refuses() -> None:
    _, raw, flats, darks = scan()
    with pytest.raises(ValueError, match=r"flats must be \(n, ...\) with frames of shape \(2, 80\)"):
        flat_field_correction(raw, flats[:, :1], darks)
    with pytest.raises(ValueError, match="projections has 1 non-finite"):
        flat_field_correction(np.where(raw == raw.max(), np.nan, raw), flats, darks)
    dead = flats.copy()
    dead[:, 1, 7] = OFFSET - 50
    with pytest.raises(ValueError, match="1 of 160 detector elements are not brighter"):
        flat_field_correction(raw, dead, darks)
    with pytest.raises(ValueError, match="gain must be a positive"):
        flat_field_correction(raw, flats, darks, gain=-1.0)
