"""The promise of risk-controlling intervals, on posteriors whose risk is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from invdiff.evaluation.conformal import (
    RiskControllingIntervals,
    calibrate,
    hoeffding_bentkus,
    size_stratified_risk,
)
from invdiff.posterior import Posterior


def posterior(mean: torch.Tensor, std: torch.Tensor) -> Posterior:
    """Two samples with exactly this mean and standard deviation."""
    return Posterior(samples=torch.stack([mean - std / 2**0.5, mean + std / 2**0.5]))


def draw(n: int, generator: torch.Generator, common: float) -> tuple[list[Posterior], list[torch.Tensor]]:
    """Images (1, 4, 4) whose errors are normal with twice the stated deviation, a share of their variance common to
    the whole image: intervals of scale s miss ``erfc(s / sqrt(8))`` of the pixels of new images."""
    std = (torch.randn(n, 1, 4, 4, generator=generator, dtype=torch.float64) / 2).exp()
    own = torch.randn(n, 1, 4, 4, generator=generator, dtype=torch.float64)
    shared = torch.randn(n, 1, 1, 1, generator=generator, dtype=torch.float64)
    truth = 2 * std * ((1 - common) ** 0.5 * own + common**0.5 * shared)
    return [posterior(torch.zeros_like(s), s) for s in std], list(truth)


@pytest.mark.parametrize("common", [0.0, 0.5, 1.0])
def test_the_risk_is_controlled_with_the_promised_probability(common: float) -> None:
    generator = torch.Generator().manual_seed(0)
    alpha, delta = 0.2, 0.2
    scales = []
    for _ in range(150):
        split = draw(60, generator, common)
        ratios = torch.stack([x.abs() / p.std for p, x in zip(*split, strict=True)])
        scales.append((calibrate(*split, alpha=alpha, delta=delta).scale, float(ratios.quantile(1 - alpha))))
    risk, risk_without_margin = torch.erfc(torch.tensor(scales, dtype=torch.float64) / 8**0.5).T  # of new images
    assert float((risk > alpha).double().mean()) <= delta
    assert 0.5 * alpha < float(risk.mean()) < alpha  # not by giving intervals away
    assert float((risk_without_margin > alpha).double().mean()) > delta  # the promise is one that can be broken
    if common == 1:  # an image is missed as a whole or not at all: the case that the bound is made for
        assert float((risk > alpha).double().mean()) > 0


def test_new_images_are_missed_as_promised() -> None:
    generator = torch.Generator().manual_seed(1)
    intervals = calibrate(*draw(500, generator, 0.5), alpha=0.1, delta=0.1)
    missed = []
    for p, x in zip(*draw(2000, generator, 0.5), strict=True):
        lower, upper = intervals.apply(p)
        missed.append(((x < lower) | (x > upper)).double().mean())
    assert float(torch.stack(missed).mean()) < 0.1
    assert 2 * 1.645 < intervals.scale < 2 * 2.2  # the stated deviation is half of the true one
    assert (intervals.alpha, intervals.delta, intervals.n_images) == (0.1, 0.1, 500)


def test_the_scale_is_the_smallest_that_is_controlled() -> None:
    # 22 images of 10 pixels, std 1, errors 0.1 .. 1.0: at alpha = delta = 0.5 a risk is controlled up to a bound
    error = torch.arange(1, 11, dtype=torch.float64).reshape(1, 2, 5) / 10
    zero, one = torch.zeros(1, 2, 5, dtype=torch.float64), torch.ones(1, 2, 5, dtype=torch.float64)
    scale = calibrate([posterior(zero, one)] * 22, [error] * 22, alpha=0.5, delta=0.5).scale
    missed = round(10 * (1 - scale))  # of each image
    assert hoeffding_bentkus(missed / 10, 22, 0.5) <= 0.5 < hoeffding_bentkus((missed + 1) / 10, 22, 0.5)
    assert 0 < missed < 5
    exact = calibrate([posterior(zero, one)] * 22, [zero] * 22)
    assert exact.scale == 0  # nothing to cover


def test_hoeffding_bentkus_in_closed_form() -> None:
    assert hoeffding_bentkus(0.0, 10, 0.3) == pytest.approx(0.7**10)
    kl = 0.1 * math.log(0.1 / 0.3) + 0.9 * math.log(0.9 / 0.7)
    binomial = sum(math.comb(10, k) * 0.3**k * 0.7 ** (10 - k) for k in range(2))
    assert hoeffding_bentkus(0.1, 10, 0.3) == pytest.approx(min(math.exp(-10 * kl), math.e * binomial))
    assert hoeffding_bentkus(0.3, 10, 0.3) == 1


def test_apply_is_mean_and_scaled_deviation() -> None:
    p = posterior(torch.full((1, 2, 2), 3.0), torch.full((1, 2, 2), 0.5))
    lower, upper = RiskControllingIntervals(scale=2.0, alpha=0.1, delta=0.1, n_images=50).apply(p)
    torch.testing.assert_close(lower, torch.full((1, 2, 2), 2.0))
    torch.testing.assert_close(upper, torch.full((1, 2, 2), 4.0))


def test_risk_by_size_shows_what_the_total_hides() -> None:
    width = torch.arange(1.0, 101.0)
    truth = torch.where(width <= 10, 9.0, 0.0) * width  # the ten narrowest are missed: 10 % in all
    risk = size_stratified_risk(-width, width, truth, n_strata=4)
    assert risk.tolist() == [10 / 25, 0, 0, 0]
    assert float(risk.mean()) == pytest.approx(0.1)


def test_misuse_is_refused() -> None:
    generator = torch.Generator().manual_seed(2)
    posteriors, truths = draw(30, generator, 0.5)
    with pytest.raises(ValueError, match="need at least 22 calibration images, got 21"):
        calibrate(posteriors[:21], truths[:21])
    calibrate(posteriors[:22], truths[:22])
    with pytest.raises(ValueError, match="alpha must lie"):
        calibrate(posteriors, truths, alpha=1.0)
    with pytest.raises(ValueError):  # one truth is missing
        calibrate(posteriors, truths[1:])
    with pytest.raises(ValueError, match="posterior's shape"):
        calibrate(posteriors, [x[0] for x in truths])
    with pytest.raises(ValueError, match="not finite"):
        calibrate(posteriors, [x / 0 for x in truths])
    same = [Posterior(samples=torch.zeros(2, 1, 4, 4))] * 30
    with pytest.raises(ValueError, match="agree on a wrong value"):
        calibrate(same, truths)
    with pytest.raises(ValueError, match="at least 2 samples"):
        calibrate([Posterior(samples=torch.zeros(1, 1, 4, 4))] * 30, truths)
    x = torch.zeros(4)
    with pytest.raises(ValueError, match="same shape"):
        size_stratified_risk(x, x, x[1:])
    with pytest.raises(ValueError, match="n_strata"):
        size_stratified_risk(x, x, x, n_strata=5)
