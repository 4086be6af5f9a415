"""Are samples draws from the posterior? Measures on tensors, to be averaged over joint draws of truth and data.

Throughout: ``samples`` (n_data, n_samples, \\*shape) and ``truth`` (n_data, \\*shape), where (truth, data) is drawn
from the joint law. No single number is enough: draws from the prior that ignore the data pass
:func:`spread_skill`, :func:`coverage` and :func:`sbc_total_variation`, and are caught by the data chi2,
:func:`fair_crps` and :func:`mmse_gap_db`; the posterior mean repeated passes the last and fails the first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor


def sliced_wasserstein(x: Tensor, y: Tensor, *, n_projections: int = 1000, seed: int = 0) -> float:
    """Mean over random directions of the one-dimensional Wasserstein distance of order 1.

    Args:
        x, y: two sets of equally many points, (n, \\*shape).
        n_projections: directions, uniform on the sphere.
        seed: of the directions.

    Example:
        >>> from invdiff.evaluation.calibration import sliced_wasserstein
        >>> x = torch.randn(100, 1)
        >>> round(sliced_wasserstein(x, x + 3), 4)  # in one dimension: the shift
        3.0
    """
    if x.shape != y.shape:
        raise ValueError(f"Expected two sets of the same size and shape, got {tuple(x.shape)} and {tuple(y.shape)}.")
    x, y = x.flatten(1), y.flatten(1)
    directions = torch.randn(x.shape[1], n_projections, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
    directions = (directions / directions.norm(dim=0)).to(x.device)
    return float(((x @ directions).sort(0).values - (y @ directions).sort(0).values).abs().mean())


def fair_crps(samples: Tensor, truth: Tensor) -> Tensor:
    """Continuous ranked probability score per pixel, (n_data, \\*shape), in the images' unit; less is better.

    ``mean_i |s_i - x| - sum_ij |s_i - s_j| / (2 S (S - 1))``: unbiased for an ensemble of S samples (Ferro 2014),
    by sorting. Differences to the truth are sorted, so that a large common offset (Hounsfield units) costs no digits.

    Args:
        samples: (n_data, n_samples, \\*shape), at least 2 samples.
        truth: (n_data, \\*shape).

    Example:
        >>> from invdiff.evaluation.calibration import fair_crps
        >>> samples, truth = torch.tensor([[[0.0], [1.0], [2.0]]]), torch.tensor([[0.0]])
        >>> f"{float(fair_crps(samples, truth)):.4f}"  # 1 - (1 + 1 + 2) / 6
        '0.3333'
    """
    S = _check(samples, truth, 2)
    d = (samples - truth[:, None]).unbind(1)
    zero = torch.zeros_like(d[0])
    pairs = sum(((2 * i - S + 1) * row for i, row in enumerate(_sorted(d))), zero)  # half of sum_ij |s_i - s_j|
    return sum((row.abs() for row in d), zero) / S - pairs / (S * (S - 1))


def energy_score(samples: Tensor, truth: Tensor) -> Tensor:
    """The CRPS of whole images, (n_data,), in the images' unit; less is better, and joint errors count.

    ``mean_i |s_i - x| - sum_ij |s_i - s_j| / (2 S (S - 1))`` with the Euclidean norm over all pixels (Gneiting and
    Raftery 2007, equation 22 with beta = 1, in its unbiased form). The S^2 distances come from the samples' inner
    products about their mean, in float64.

    Args:
        samples: (n_data, n_samples, \\*shape), at least 2 samples.
        truth: (n_data, \\*shape).

    Example:
        >>> from invdiff.evaluation.calibration import energy_score
        >>> samples, truth = torch.tensor([[[0.0, 0.0], [3.0, 4.0]]]), torch.tensor([[3.0, 0.0]])
        >>> energy_score(samples, truth).tolist()  # (3 + 4) / 2 - 5 / 2
        [1.0]
    """
    S = _check(samples, truth, 2)
    d = (samples.double() - truth.double()[:, None]).flatten(2)
    error = d.norm(dim=2).mean(1)
    d = d - d.mean(1, keepdim=True)
    gram = d @ d.mT
    square = gram.diagonal(dim1=1, dim2=2)
    distance = (square[:, :, None] + square[:, None] - 2 * gram).clamp(min=0).sqrt()
    distance.diagonal(dim1=1, dim2=2).zero_()
    return (error - distance.sum((1, 2)) / (2 * S * (S - 1))).to(samples.dtype)


def spread_skill(samples: Tensor, truth: Tensor) -> float:
    """``sqrt((S + 1) / S  mean variance / mean squared error of the mean)``: 1 for posterior draws, any S.

    Args:
        samples: (n_data, n_samples, \\*shape), at least 2 samples.
        truth: (n_data, \\*shape).

    Example:
        >>> from invdiff.evaluation.calibration import spread_skill
        >>> truth, samples = torch.randn(2000, 1), torch.randn(2000, 16, 1)  # one law
        >>> bool(abs(spread_skill(samples, truth) - 1) < 0.1), bool(abs(spread_skill(samples / 2, truth) - 0.5) < 0.1)
        (True, True)
    """
    S = _check(samples, truth, 2)
    error = (samples.mean(1) - truth).square().mean()
    return float(((S + 1) / S * samples.var(1).mean() / error).sqrt())


def ranks(samples: Tensor, truth: Tensor) -> Tensor:
    """How many samples lie below the truth, per pixel: (n_data, \\*shape), uniform on 0 .. S for posterior draws.

    Samples equal to the truth (clipped values, an empty background) count as below or above at random, always the same.

    Args:
        samples: (n_data, n_samples, \\*shape).
        truth: (n_data, \\*shape).

    Example:
        >>> from invdiff.evaluation.calibration import ranks
        >>> ranks(torch.tensor([[[0.0], [1.0], [2.0]]]), torch.tensor([[1.5]])).tolist()
        [[2]]
    """
    _check(samples, truth, 1)
    return _ranks(samples, truth)


def _ranks(samples: Tensor, truth: Tensor) -> Tensor:
    below, equal = (samples < truth[:, None]).sum(1), (samples == truth[:, None]).sum(1)
    if equal.any():
        share = torch.rand(equal.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        below = below + (share.to(equal.device) * (equal + 1)).long()
    return below


def coverage(rank: Tensor, n_samples: int, level: float) -> float:
    """Share of truths within the central interval between two order statistics of the samples.

    The interval whose nominal level ``(S + 1 - 2 a) / (S + 1)``, a >= 1, is nearest to ``level`` (S = 16: 15/17 for 0.9
    and 9/17 for 0.5; S = 4: 3/5 for both). Interpolated quantiles of few samples would undercover.

    Args:
        rank: from :func:`ranks`.
        n_samples: S.
        level: in (0, 1).

    Example:
        >>> from invdiff.evaluation.calibration import coverage
        >>> coverage(torch.arange(17), 16, 0.9)  # ranks 1 .. 15 of 0 .. 16 are inside
        0.8823529411764706
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}.")
    a = max(1, round((1 - level) / 2 * (n_samples + 1)))
    return float(((rank >= a) & (rank <= n_samples - a)).double().mean())


def calibration_curve(rank: Tensor, n_samples: int) -> tuple[Tensor, Tensor]:
    """Nominal level against coverage, for every central interval that S samples have; equal for posterior draws.

    Args:
        rank: from :func:`ranks`.
        n_samples: S.

    Returns:
        levels (S // 2,) = ``(S + 1 - 2 a) / (S + 1)``, ascending, and the share of truths within each interval.
        A curve below the diagonal says overconfident, above it underconfident.

    Example:
        >>> from invdiff.evaluation.calibration import calibration_curve
        >>> levels, coverage = calibration_curve(torch.arange(17), 16)  # every rank once: calibrated
        >>> torch.allclose(levels.double(), coverage.double())
        True
    """
    a = torch.arange(n_samples // 2, 0, -1, device=rank.device)
    depth = torch.minimum(rank, n_samples - rank).flatten()  # the interval between order statistics a holds depth >= a
    counts = torch.bincount(depth, minlength=n_samples // 2 + 1).double()
    at_least = counts.flip(0).cumsum(0).flip(0)
    return (n_samples + 1 - 2 * a).double() / (n_samples + 1), at_least[a] / rank.numel()


def rank_histogram(rank: Tensor, n_samples: int, *, max_bins: int = 20) -> tuple[Tensor, Tensor]:
    """Share of all ranks in each bin and the share expected of posterior draws, each (n_bins,), summing to 1.

    A hump in the middle says overdispersed samples, a trough underdispersed, a slope biased (Talts et al. 2018).

    Args:
        rank: from :func:`ranks`.
        n_samples: S; the S + 1 ranks are binned where they are more than ``max_bins``.

    Example:
        >>> from invdiff.evaluation.calibration import rank_histogram
        >>> share, expected = rank_histogram(torch.tensor([0, 0, 1, 2]), 3)
        >>> share.tolist(), expected.tolist()
        ([0.5, 0.25, 0.25, 0.0], [0.25, 0.25, 0.25, 0.25])
    """
    n_bins = min(n_samples + 1, max_bins)
    which = torch.arange(n_samples + 1, device=rank.device) * n_bins // (n_samples + 1)
    expected = torch.bincount(which, minlength=n_bins).double() / (n_samples + 1)
    return torch.bincount(which[rank.flatten()], minlength=n_bins).double() / rank.numel(), expected


def sbc_total_variation(rank: Tensor, n_samples: int, *, max_bins: int = 20) -> float:
    """Total variation distance of :func:`rank_histogram` from the uniform law (simulation-based calibration, Talts
    et al. 2018): 0 for posterior draws, up to sampling noise.

    Args:
        rank, n_samples, max_bins: as of :func:`rank_histogram`.

    Example:
        >>> from invdiff.evaluation.calibration import sbc_total_variation
        >>> sbc_total_variation(torch.tensor([0, 1, 2, 3]), 3), sbc_total_variation(torch.tensor([0, 0, 0, 0]), 3)
        (0.0, 0.75)
    """
    return total_variation(*rank_histogram(rank, n_samples, max_bins=max_bins))


def tarp(samples: Tensor, truth: Tensor, references: Tensor) -> tuple[Tensor, Tensor, float]:
    """Coverage of balls around reference points (TARP: Lemos et al. 2023, arXiv 2302.03026).

    A ball around the reference that holds a share ``level`` of the samples holds the truth with that probability.
    The test sees wrong samples only if the references depend on the data.

    Args:
        samples: (n_data, n_samples, \\*shape).
        truth: (n_data, \\*shape).
        references: (n_data, \\*shape), independent of the truth given the data.

    Returns:
        levels (S,) = k / (S + 1), expected coverage (S,), and their largest deviation; 95 % of calibrated
        experiments deviate by less than about ``1.36 / sqrt(n_data)`` (Kolmogorov).

    Example:
        >>> from invdiff.evaluation.calibration import tarp
        >>> truth, samples = torch.randn(1000, 2), torch.randn(1000, 16, 2)  # one law
        >>> levels, coverage, deviation = tarp(samples, truth, torch.randn(1000, 2))
        >>> len(levels), bool(deviation < 0.1)
        (16, True)
    """
    S = _check(samples, truth, 1)
    if references.shape != truth.shape:
        raise ValueError(f"Expected references of shape {tuple(truth.shape)}, got {tuple(references.shape)}.")
    d_samples = (samples - references[:, None]).flatten(2).norm(dim=2)
    d_truth = (truth - references).flatten(1).norm(dim=1)
    rank = _ranks(d_samples, d_truth)
    k = torch.arange(1, S + 1, device=rank.device)
    expected = (rank[:, None] < k).double().mean(0)
    levels = k.double() / (S + 1)
    return levels, expected, float((expected - levels).abs().max())


def uncertainty_error_correlation(std: Tensor, error: Tensor) -> float:
    """Spearman's rank correlation over pixels of the standard deviation and the absolute error, in -1 .. 1.

    Says whether the uncertainty map points at the errors, and nothing of its scale. Not 1 for exact draws either:
    0.46 where log std is normal of standard deviation 1 / 2.

    Args:
        std, error: the same shape, any; ``error`` with its sign or without.

    Example:
        >>> from invdiff.evaluation.calibration import uncertainty_error_correlation
        >>> round(uncertainty_error_correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.1, -0.5, 9.0])), 6)
        1.0
    """
    if std.shape != error.shape:
        raise ValueError(f"std and error must have the same shape, got {tuple(std.shape)} and {tuple(error.shape)}.")
    r = torch.stack([_mid_ranks(std), _mid_ranks(error.abs())])
    if (r[:, 0, None] == r).all(1).any():
        raise ValueError("std or error is the same everywhere: they have no rank correlation.")
    return float(torch.corrcoef(r)[0, 1])


def mmse_gap_db(estimate: Tensor, truth: Tensor, optimum: Tensor) -> float:
    """``10 log10(MSE(estimate) / MSE(exact posterior mean))``. The mean of S exact draws has ``10 log10(1 + 1/S)``.

    Args:
        estimate, truth, optimum: the same shape; ``optimum`` is the exact posterior mean.

    Example:
        >>> from invdiff.evaluation.calibration import mmse_gap_db
        >>> truth, optimum = torch.zeros(4), torch.ones(4)
        >>> round(mmse_gap_db(2 * optimum, truth, optimum), 2)  # twice the error: 20 log10(2)
        6.02
    """
    if not estimate.shape == truth.shape == optimum.shape:
        shapes = [tuple(t.shape) for t in (estimate, truth, optimum)]
        raise ValueError(f"estimate, truth and optimum must have the same shape, got {shapes}.")
    ratio = float((estimate - truth).square().mean() / (optimum - truth).square().mean())
    return 10 * math.log10(ratio) if ratio else -math.inf


def mode_frequencies(samples: Tensor, modes: Tensor) -> Tensor:
    """Share of the samples nearest to each mode, (n_data, k).

    Args:
        samples: (n_data, n_samples, \\*shape), in coordinates where the modes are round (whitened).
        modes: (k, \\*shape).

    Example:
        >>> from invdiff.evaluation.calibration import mode_frequencies
        >>> samples = torch.tensor([[[-0.9], [-1.2], [0.8], [-1.0]]])
        >>> mode_frequencies(samples, torch.tensor([[-1.0], [1.0]])).tolist()
        [[0.75, 0.25]]
    """
    if samples.shape[2:] != modes.shape[1:]:
        raise ValueError(f"Expected modes (k, {tuple(samples.shape[2:])}), got {tuple(modes.shape)}.")
    nearest = torch.cdist(samples.flatten(2).double(), modes.flatten(1).double()).argmin(2)
    return torch.nn.functional.one_hot(nearest, len(modes)).double().mean(1)


def total_variation(p: Tensor, q: Tensor) -> float:
    """``sum |p - q| / 2`` over the last dimension, mean over the others.

    Example:
        >>> from invdiff.evaluation.calibration import total_variation
        >>> total_variation(torch.tensor([0.75, 0.25]), torch.tensor([0.5, 0.5]))
        0.25
    """
    return float((p - q).abs().sum(-1).mean() / 2)


def _sorted(rows: Sequence[Tensor]) -> list[Tensor]:
    """The rows sorted element by element: a network of minima and maxima of whole rows, several times faster than
    ``torch.sort`` across them; which takes over where the network's S log^2 S / 4 steps are too many."""
    if len(rows) > 128:
        return list(torch.stack(tuple(rows), -1).sort(-1).values.unbind(-1))
    rows = list(rows)
    for i, j in _comparators(len(rows)):
        rows[i], rows[j] = torch.minimum(rows[i], rows[j]), torch.maximum(rows[i], rows[j])
    return rows


@cache
def _comparators(n: int) -> list[tuple[int, int]]:
    """Batcher's merge exchange for any n (Knuth, The Art of Computer Programming 3, algorithm 5.2.2M)."""
    steps = [2**t for t in range((n - 1).bit_length())]
    return [
        (i + j, i + j + k)
        for p in steps
        for k in reversed(steps[: steps.index(p) + 1])
        for j in range(k % p, n - k, 2 * k)
        for i in range(min(k, n - j - k))
        if (i + j) // (2 * p) == (i + j + k) // (2 * p)
    ]


def _mid_ranks(t: Tensor) -> Tensor:
    """Rank of each value, (n,); equal values share the mean of theirs."""
    _, inverse, counts = t.flatten().unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2)[inverse].double()


def _check(samples: Tensor, truth: Tensor, least: int) -> int:
    """The number of samples, once the shapes are right."""
    if samples.ndim < 2 or samples.shape[:1] + samples.shape[2:] != truth.shape:
        raise ValueError(
            f"Expected samples (n_data, n_samples, *shape) and truth (n_data, *shape), "
            f"got {tuple(samples.shape)} and {tuple(truth.shape)}."
        )
    if samples.shape[1] < least:
        raise ValueError(f"Expected at least {least} samples per truth, got {samples.shape[1]}.")
    return samples.shape[1]
