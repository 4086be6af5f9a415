"""Noise levels against published constants and exact identities."""

import pytest
import torch

from invdiff.priors import DiscreteSchedule, karras_sigmas, linear_betas, sqrt_linear_betas


@pytest.mark.parametrize(
    ("betas", "first", "last"),
    # the ends of the DDPM schedule (Ho et al. 2020) and of the latent-diffusion one (Rombach et al. 2022)
    [(linear_betas(), 0.0100, 157.4), (sqrt_linear_betas(), 0.0388, 83.8)],
)
def test_sigma_of_the_published_schedules(betas: torch.Tensor, first: float, last: float) -> None:
    sigmas = DiscreteSchedule(betas).sigmas
    assert float(sigmas[0]) == pytest.approx(first, rel=5e-3)
    assert float(sigmas[-1]) == pytest.approx(last, rel=1e-3)


def test_index_inverts_sigma_exactly_and_is_monotone() -> None:
    schedule = DiscreteSchedule(linear_betas())
    t = torch.arange(1000, dtype=torch.float64)
    torch.testing.assert_close(schedule.index(schedule.sigmas), t, rtol=0, atol=1e-9)
    between = schedule.index(torch.logspace(-1.9, 2.1, 500, dtype=torch.float64))
    assert bool((between.diff() > 0).all())
    assert schedule.index(torch.tensor([1e-6, 1e6])).tolist() == [0, 999]


def test_karras_grid_has_its_ends_and_is_uniform_in_the_seventh_root() -> None:
    s = karras_sigmas(10, 0.1, 100.0)
    assert len(s) == 11
    assert (float(s[0]), float(s[-1])) == (pytest.approx(100), pytest.approx(0.1))
    steps = (s ** (1 / 7)).diff()
    torch.testing.assert_close(steps, steps[:1].expand(10))


def test_bad_schedules_are_refused() -> None:
    with pytest.raises(ValueError, match="sigma_min < sigma_max"):
        karras_sigmas(5, 1.0, 0.5)
    with pytest.raises(ValueError, match="betas"):
        DiscreteSchedule(torch.tensor([0.5, 1.5]))
