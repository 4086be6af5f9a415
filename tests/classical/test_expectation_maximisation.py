"""OSEM (MLEM) and OSTR: what they climb, keep and converge to."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from invdiff import GaussianNoise, Measurement, PoissonLogNoise
from invdiff.classical import OSEM, OSTR, RichardsonLucy
from invdiff.classical.ostr import curvature
from invdiff.classical.richardson_lucy import em_step
from invdiff.operators import CT, Blur, Matrix, ParallelBeam, gaussian_psf

N, PIXEL = 16, 4.0


def discs() -> Tensor:
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, N, dtype=torch.float64)] * 2, indexing="ij")
    return 0.02 * ((x**2 + y**2 < 0.7).double() - 0.6 * ((x - 0.3) ** 2 + (y + 0.2) ** 2 < 0.08).double())[None]


def scanner(n_views: int = 24) -> CT:
    return CT(ParallelBeam.covering((N, N), PIXEL, n_views)).to(dtype=torch.float64)


def emission(seed: int = 0) -> Measurement:
    """Counts, about 2e4 in all."""
    A = scanner()
    counts = torch.poisson(60 * A(discs()), generator=torch.Generator().manual_seed(seed))
    return Measurement(counts, A, GaussianNoise(5.0))


def transmission(n_photons: float = 200.0, electronic: float = 0.0) -> Measurement:
    return Measurement.simulate(discs(), scanner(), PoissonLogNoise(n_photons, electronic=electronic), seed=0)


def divergence(m: Measurement, x: Tensor) -> float:
    """-log of the Poisson likelihood of emission counts, up to a constant."""
    Ax = m.A(x)
    return float((Ax - torch.xlogy(m.y, Ax)).sum())


def images(method: OSEM | OSTR, m: Measurement) -> list[Tensor]:
    out: list[Tensor] = []
    method(None, m, callback=lambda step, n, x: out.append(x))
    return out


def least(f: Callable[[Tensor], Tensor], start: Tensor) -> tuple[Tensor, float]:
    """The non-negative image of least f, by scipy's L-BFGS-B and autograd."""

    def value(v: np.ndarray) -> tuple[float, np.ndarray]:
        x = torch.from_numpy(v).reshape(start.shape).requires_grad_()
        loss = f(x)
        loss.backward()
        assert x.grad is not None
        return float(loss.detach()), x.grad.flatten().numpy()

    found = scipy.optimize.minimize(
        value, start.flatten().numpy(), jac=True, method="L-BFGS-B", bounds=[(0, None)] * start.numel(),
        options={"maxiter": 5000, "maxfun": 10**5, "ftol": 1e-15, "gtol": 1e-10},
    )  # fmt: skip
    return torch.from_numpy(found.x).reshape(start.shape), float(found.fun)


def test_mlem_is_richardson_lucy_and_climbs_the_likelihood_and_keeps_the_counts() -> None:
    m = emission()
    path = images(OSEM(n_steps=20, n_subsets=1), m)
    torch.testing.assert_close(path[-1], RichardsonLucy(n_steps=20)(None, m).mean)
    values = [divergence(m, x) for x in path]
    assert all(b < a for a, b in zip(values[:-1], values[1:], strict=True))
    for x in path:
        assert float(m.A(x).sum()) == pytest.approx(float(m.y.sum()), rel=1e-9)


def test_mlem_converges_to_the_least_divergence_that_another_minimiser_finds() -> None:
    m = emission()
    _, best = least(lambda x: (m.A(x) - torch.xlogy(m.y, m.A(x).clamp(min=1e-12))).sum(), 60 * discs() + 0.1)
    start = divergence(m, torch.full_like(discs(), float(m.y.sum() / m.A(torch.ones_like(discs())).sum())))
    x = OSEM(n_steps=3000, n_subsets=1)(None, m).mean
    assert divergence(m, x) - best < 1e-3 * (start - best)


def test_osem_passes_once_through_the_data_for_what_mlem_needs_many_passes() -> None:
    m = emission()
    once = divergence(m, OSEM(n_steps=1, n_subsets=8)(None, m).mean)
    mlem = [divergence(m, x) for x in images(OSEM(n_steps=10, n_subsets=1), m)]
    assert mlem[3] > once  # eight subsets: four passes are not enough (one would be, were they no faster)


def test_noise_free_data_are_reached_without_a_cycle_and_not_left() -> None:
    A, x = scanner(), discs()
    y = A(x)
    torch.testing.assert_close(em_step(x, A, y, A.H(torch.ones_like(y))), x)
    for path in (
        images(OSEM(n_steps=200, n_subsets=4), Measurement(y, A, GaussianNoise(1.0))),
        images(OSTR(n_steps=200, n_subsets=4), Measurement(y, A, PoissonLogNoise(1e3))),
    ):
        misfit = [float((A(path[k]) - y).norm() / y.norm()) for k in (10, 50, 199)]
        assert misfit[2] < 2e-3
        assert misfit[2] < misfit[1] / 2 < misfit[0] / 4


@pytest.mark.parametrize("electronic", [0.0, 5.0])
def test_ostr_with_one_subset_climbs_the_transmission_likelihood_to_its_top(electronic: float) -> None:
    m = transmission(electronic=electronic)
    path = images(OSTR(n_steps=1500, n_subsets=1), m)
    values = [float(m.nll(x)) for x in path]
    assert all(b <= a + 1e-9 * abs(a) for a, b in zip(values[:-1], values[1:], strict=True))
    _, best = least(m.nll, discs())
    assert values[-1] - best < 1e-3 * (values[0] - best)
    assert min(float(x.min()) for x in path) >= 0


def test_ostr_on_separate_rays_gives_the_line_integrals() -> None:
    # every ray sees one pixel, so the maximum of the likelihood is y / a, or 0 where y is negative
    a = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    y = torch.tensor([0.5, -0.2, 1.5, 3.0], dtype=torch.float64)
    A = Matrix(torch.diag(a), (1, 2, 2), (4,)).to(dtype=torch.float64)
    x = OSTR(n_steps=200, n_subsets=1)(None, Measurement(y, A, PoissonLogNoise(1e4))).mean
    torch.testing.assert_close(x.flatten(), (y / a).clamp(min=0), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("electronic", [0.0, 3.0])
def test_the_parabola_touches_the_likelihood_and_stays_above_it(electronic: float) -> None:
    noise = PoissonLogNoise(50.0, electronic=electronic)
    y, at = torch.meshgrid(*[torch.linspace(0, 4, 21, dtype=torch.float64)] * 2, indexing="ij")
    c = curvature(noise, at, y)
    for Ax in torch.linspace(0, 8, 41, dtype=torch.float64):
        parabola = noise.nll(at, y) + noise.nll_grad(at, y) * (Ax - at) + c / 2 * (Ax - at) ** 2
        assert bool((parabola - noise.nll(Ax.expand_as(y), y) > -1e-9 * 50).all())
    tight = noise.nll(at, y) - noise.nll_grad(at, y) * at + c / 2 * at**2 - noise.nll(torch.zeros_like(at), y)
    assert float(tight[(c > 0) & (at > 0)].abs().max()) < 1e-9 * 50  # it meets it again at 0: no lower one will do


def test_errors_say_what_is_needed() -> None:
    blur = Measurement(torch.rand(1, 8, 8), Blur(gaussian_psf(1.0, 5), (1, 8, 8)), GaussianNoise(0.1))
    with pytest.raises(TypeError, match="only the views of a CT operator"):
        OSEM(n_subsets=2)(None, blur)
    with pytest.raises(TypeError, match="needs photon counts"):
        OSTR(n_subsets=1)(None, blur)
    with pytest.raises(ValueError, match="must not exceed 24 views"):
        OSEM(n_subsets=25)(None, emission())
    with pytest.raises(ValueError, match="no data above zero"):
        OSEM()(None, Measurement(-torch.ones(1, 24, scanner().out_shape[2], dtype=torch.float64), scanner(),
                                 GaussianNoise(1.0)))  # fmt: skip
    assert math.isfinite(float(OSEM(n_subsets=1)(None, blur).mean.sum()))
