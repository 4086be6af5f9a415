"""The kernels of DAPS leave their target unchanged: a Gaussian whose moments are known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from invdiff import GaussianNoise, Measurement, WeightedGaussianNoise
from invdiff.algorithms.draw import Run
from invdiff.algorithms.kernels import HMC, Conditional, Langevin, Metropolis
from invdiff.operators import Inpainting, Matrix
from invdiff.priors import Counted, GaussianPrior, StationaryCovariance
from invdiff.random import SampleStreams

SHAPE, F64, S, SIGMA, N = (1, 2, 2), torch.float64, 0.3, 0.2, 1000
PRIOR = GaussianPrior(torch.zeros(SHAPE), StationaryCovariance(torch.ones(SHAPE)), dtype=F64)
MASK = torch.tensor([[[True, False], [True, True]]])
Y = torch.tensor([[[0.5, 0.0], [-0.2, 1.0]]])
M = Measurement(Y, Inpainting(MASK), GaussianNoise(SIGMA)).to(dtype=F64)


@pytest.mark.parametrize(
    ("kernel", "bias"),
    [
        (Conditional(), 0.0),
        (Langevin(n_steps=300, step_size=1e-3, step_decay=1.0), 0.02),
        (HMC(n_steps=300, step_size=1e-3, step_decay=1.0, momentum=0.0), 0.02),
        (HMC(n_steps=300, step_size=5e-4, step_decay=1.0, momentum=0.6), 0.02),
        (Metropolis(n_steps=600, step_size=0.02, step_decay=1.0), 0.0),
    ],
    ids=lambda v: type(v).__name__,
)
def test_the_target_is_reached(kernel: Conditional, bias: float) -> None:
    m = torch.full((N, *SHAPE), 0.1, dtype=F64)
    problem = PRIOR.in_model_units(M)
    run = Run(Counted(PRIOR), problem, SampleStreams(0, range(N)), None, lambda *a, **k: None)
    kernel.check(problem, [S])
    x = kernel(m, S, run, 0.0)
    precision = 1 / S**2 + MASK / SIGMA**2
    mean, var = (0.1 / S**2 + MASK * Y / SIGMA**2) / precision, 1 / precision
    assert float(((x.mean(0) - mean) / (var / N).sqrt()).abs().max()) < 4.5
    assert float((x.var(0) / var - 1).abs().max()) < bias + 4.5 * (2 / N) ** 0.5


@pytest.mark.parametrize(
    ("kernel", "limit"), [(Langevin(step_size=1.0), "exceeds 2"), (HMC(step_size=1.0, momentum=0.5), "exceeds 3")]
)
def test_the_limit_of_the_step_is_named(kernel: Langevin, limit: str) -> None:
    with pytest.raises(ValueError, match=limit):
        kernel.check(PRIOR.in_model_units(M), [S, S])


def test_a_step_is_judged_at_the_level_where_it_is_longest_for_the_curvature() -> None:
    # weak data: the curvature is 1 / S^2, largest at the last level, where the step has shrunk by step_decay
    weak, sigmas = PRIOR.in_model_units(replace(M, noise=GaussianNoise(1e3))), [1.0, 0.3, 0.1]
    Langevin(step_size=0.98 * 2 * 0.1**2 / 0.5, step_decay=0.5).check(weak, sigmas)
    with pytest.raises(ValueError, match="level sigma=0.1 times"):
        Langevin(step_size=1.05 * 2 * 0.1**2 / 0.5, step_decay=0.5).check(weak, sigmas)


def test_weighted_data_bound_the_step_by_the_curvature_that_they_have() -> None:
    # precisions 1 and 100 on the pixels that are seen weakly and strongly: |W^1/2 A|^2 = 4, max(W) |A|^2 = 400
    A = Matrix(torch.tensor([[2.0, 0.0], [0.0, 0.1]]), (1, 1, 2), (1, 1, 2))
    noise = WeightedGaussianNoise(torch.tensor([[[1.0, 100.0]]]))
    m = Measurement(torch.zeros(1, 1, 2), A, noise)
    Langevin(step_size=0.98 * 2 / (4 + 1 / S**2)).check(m, [S, S])
    with pytest.raises(ValueError, match="exceeds 2"):
        Langevin(step_size=1.05 * 2 / (4 + 1 / S**2)).check(m, [S, S])


@pytest.mark.parametrize("kernel", [Langevin, HMC])
def test_a_clip_without_tau_is_refused(kernel: type) -> None:
    with pytest.raises(ValueError, match="give tau too"):
        kernel(clip=1.0)


def test_hmc_is_stable_up_to_its_limit_and_not_beyond() -> None:
    problem = PRIOR.in_model_units(M)
    run = Run(Counted(PRIOR), problem, SampleStreams(0, range(8)), None, lambda *a, **k: None)
    curvature = 1 / S**2 + 1 / SIGMA**2
    m = torch.zeros(8, *SHAPE, dtype=F64)
    inside = HMC(n_steps=400, step_size=0.98 * 3 / curvature, step_decay=1.0, momentum=0.5)(m, S, run, 0.0)
    outside = HMC(n_steps=400, step_size=1.05 * 3 / curvature, step_decay=1.0, momentum=0.5)(m, S, run, 0.0)
    assert float(inside.abs().max()) < 100
    assert float(outside.abs().max()) > 1e4
