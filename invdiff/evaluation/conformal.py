"""Intervals that miss at most a stated share of the pixels, whatever the sampler does wrong.

Angelopoulos, Kohli, Bates, Jordan, Malik, Alshaabi, Upadhyayula, Romano: "Image-to-image regression with
distribution-free uncertainty quantification and applications in imaging", ICML 2022, arXiv 2202.05265, algorithm 1;
Bates, Angelopoulos, Lei, Malik, Jordan: "Distribution-free, risk-controlling prediction sets", J. ACM 2021,
arXiv 2101.02703 (RCPS; the Hoeffding-Bentkus bound).

Deviations:

1. The heuristic interval is the posterior mean +- one standard deviation of the samples.
2. The scale is found exactly, by sorting ``|truth - mean| / std``, and not on a grid.
3. The binomial bound rounds the number of misses up, as in the paper; the authors' code rounds it down.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from invdiff.posterior import Posterior


@dataclass(frozen=True, kw_only=True)
class RiskControllingIntervals:
    """``mean +- scale * std`` of a posterior.

    With probability 1 - delta over the calibration images, intervals of new images of the same kind miss the truth
    on at most the share alpha of their pixels, in the mean over images. Not on every image, and not in every
    structure: see :func:`size_stratified_risk`.

    Attributes:
        scale: half-width in standard deviations.
        alpha: the share of pixels that may be missed.
        delta: the probability that the promise is broken.
        n_images: calibration images behind it.

    Example:
        >>> from invdiff import Posterior
        >>> from invdiff.evaluation import RiskControllingIntervals
        >>> p = Posterior(samples=torch.tensor([0.0, 1.0, 2.0]).reshape(3, 1, 1, 1))  # mean 1, standard deviation 1
        >>> lower, upper = RiskControllingIntervals(scale=2.0, alpha=0.1, delta=0.1, n_images=50).apply(p)
        >>> float(lower), float(upper)
        (-1.0, 3.0)
    """

    scale: float
    alpha: float
    delta: float
    n_images: int

    def apply(self, posterior: Posterior) -> tuple[Tensor, Tensor]:
        """Lower and upper end per pixel, in the posterior's shape and units; it needs two samples or more."""
        half = self.scale * posterior.std
        return posterior.mean - half, posterior.mean + half


def calibrate(
    posteriors: Iterable[Posterior], truths: Iterable[Tensor], *, alpha: float = 0.1, delta: float = 0.1
) -> RiskControllingIntervals:
    """The narrowest intervals whose risk is controlled.

    Args:
        posteriors: of a calibration split that no tuning has seen, all with the algorithm, settings and number of
            samples to be used later. They must be independent: one slice, or one whole volume, per patient.
        truths: the true images, in the same order, shape and units.
        alpha: the share of pixels that may be missed, in (0, 1).
        delta: the probability that the promise is broken, in (0, 1).

    Raises:
        ValueError: too few images: even without a miss, n must reach ``log(delta) / log(1 - alpha)`` (22 for 0.1
            and 0.1); or the samples agree, on the wrong value, on more pixels than may be missed.

    Example:
        >>> from invdiff import Posterior
        >>> from invdiff.evaluation import calibrate
        >>> truths = [torch.randn(1, 4, 4) for _ in range(200)]
        >>> posteriors = [Posterior(samples=torch.randn(32, 1, 4, 4)) for _ in range(200)]  # draws from the truth's law
        >>> intervals = calibrate(posteriors, truths, alpha=0.1, delta=0.1)
        >>> bool(1.645 < intervals.scale < 2.5), intervals.n_images  # 90 % of a normal law, and a margin
        (True, 200)
    """
    for name, value in (("alpha", alpha), ("delta", delta)):
        if not 0 < value < 1:
            raise ValueError(f"{name} must lie in (0, 1), got {value}.")
    ratios = [_ratio(p, x) for p, x in zip(posteriors, truths, strict=True)]
    n = len(ratios)
    least = math.ceil(math.log(delta) / math.log1p(-alpha))
    if n < least:
        raise ValueError(f"alpha = {alpha} and delta = {delta} need at least {least} calibration images, got {n}.")
    # Risk once the k largest ratios are missed: each pixel counts 1 / (n pixels of its image).
    ratio, order = torch.cat(ratios).sort(descending=True)
    weight = torch.cat([torch.full((len(r),), 1 / (n * len(r)), dtype=torch.float64) for r in ratios])
    risk = torch.cat([torch.zeros(1, dtype=torch.float64), weight[order].cumsum(0)])
    k, too_many = 0, len(risk)  # bisection for the last k that is controlled
    while too_many - k > 1:
        middle = (k + too_many) // 2
        if hoeffding_bentkus(float(risk[middle]), n, alpha) <= delta:
            k = middle
        else:
            too_many = middle
    scale = float(ratio[k]) if k < len(ratio) else 0.0
    if math.isinf(scale):
        raise ValueError(
            f"The samples agree on a wrong value on more than {float(risk[k]):.3g} of the pixels: no scale of their "
            f"standard deviation controls the risk at alpha = {alpha}."
        )
    return RiskControllingIntervals(scale=scale, alpha=alpha, delta=delta, n_images=n)


def hoeffding_bentkus(risk: float, n: int, alpha: float) -> float:
    """Bound on the probability that n independent losses in 0 .. 1 have a mean of at most ``risk`` if their
    expectation exceeds ``alpha``: ``min(exp(-n KL(risk, alpha)), e P(Bin(n, alpha) <= ceil(n risk)))``.

    Example:
        >>> from invdiff.evaluation.conformal import hoeffding_bentkus
        >>> f"{hoeffding_bentkus(0.0, 22, 0.1):.4f}"  # 0.9^22
        '0.0985'
    """
    from scipy.special import rel_entr
    from scipy.stats import binom

    if risk >= alpha:
        return 1.0
    hoeffding = math.exp(-n * (rel_entr(risk, alpha) + rel_entr(1 - risk, 1 - alpha)))
    return min(hoeffding, math.e * float(binom.cdf(math.ceil(n * risk - 1e-9), n, alpha)), 1.0)


def size_stratified_risk(lower: Tensor, upper: Tensor, truth: Tensor, *, n_strata: int = 4) -> Tensor:
    """Share of pixels missed among those with the narrowest to those with the widest intervals, (n_strata,).

    Equal shares say that hard and easy regions are treated alike (Angelopoulos et al. 2022); intervals
    may keep their total risk by missing all of the narrow ones.

    Args:
        lower, upper, truth: the same shape, any; pixels of all images are pooled.
        n_strata: equally many pixels in each.

    Example:
        >>> from invdiff.evaluation.conformal import size_stratified_risk
        >>> upper, truth = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([9.0, 1.0, 1.0, 1.0])
        >>> size_stratified_risk(torch.zeros(4), upper, truth, n_strata=2).tolist()
        [0.5, 0.0]
    """
    if not lower.shape == upper.shape == truth.shape:
        shapes = [tuple(t.shape) for t in (lower, upper, truth)]
        raise ValueError(f"lower, upper and truth must have the same shape, got {shapes}.")
    if not 1 <= n_strata <= truth.numel():
        raise ValueError(f"n_strata must lie in 1 .. {truth.numel()} (the number of pixels), got {n_strata}.")
    missed = ((truth < lower) | (truth > upper)).flatten().double()
    by_width = missed[(upper - lower).flatten().argsort(stable=True)]
    return torch.stack([stratum.mean() for stratum in by_width.tensor_split(n_strata)])


def _ratio(posterior: Posterior, truth: Tensor) -> Tensor:
    """``|truth - mean| / std`` per pixel, (n,); 0 where both vanish."""
    mean, std = posterior.mean.double(), posterior.std.double()
    if truth.shape != mean.shape:
        raise ValueError(f"Expected a truth of the posterior's shape {tuple(mean.shape)}, got {tuple(truth.shape)}.")
    error = (truth.to(mean) - mean).abs()
    if not (error.isfinite() & std.isfinite()).all():
        raise ValueError("A posterior or truth has values that are not finite: drop the image and report it as failed.")
    return torch.where(error == 0, 0, error / std).flatten().cpu()
