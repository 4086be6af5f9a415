"""The truth bench: every algorithm against posteriors that are known exactly.

Problems with analytic priors (:mod:`invdiff.priors.analytic`) give exact denoisers and exact posterior draws, so
that what is measured is the algorithm's own error. Three rows are always there: *exact draw* is the floor of every
measure, *prior draw* ignores the data (and passes the measures that are blind to that), *exact-posterior
diffusion* runs a plain diffusion sampler with the posterior itself as the prior: it has the solver's error only.

Image problems: one truth and ``n_samples`` draws for each of many data of one operator. Mixtures
(the 25 modes of Cardoso et al., MCGDiff, ICLR 2024): few random problems with many draws each; their calibration is
measured given the data, against exact posterior draws as truths.
"""

from __future__ import annotations

import functools
import json
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from invdiff.evaluation.calibration import (
    coverage,
    fair_crps,
    mmse_gap_db,
    mode_frequencies,
    ranks,
    sbc_total_variation,
    sliced_wasserstein,
    spread_skill,
    tarp,
    total_variation,
)
from invdiff.measurement import Measurement
from invdiff.noise import ComplexGaussianNoise, GaussianNoise, Noise
from invdiff.operators import (
    CT,
    Blur,
    Inpainting,
    LinearOperator,
    MultiCoilMRI,
    ParallelBeam,
    ViewAsComplex,
    birdcage_maps,
    equispaced_mask,
    gaussian_psf,
    random_pixels,
)
from invdiff.operators.dense import Matrix
from invdiff.priors.analytic import (
    DenseCovariance,
    ExactPosterior,
    GaussianMixturePrior,
    GaussianPrior,
    PosteriorPrior,
    StationaryCovariance,
)
from invdiff.priors.schedules import KarrasGrid, karras_sigmas
from invdiff.random import SampleStreams
from invdiff.storage import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

SHAPE = (1, 16, 16)
STD = 0.5  # pixel standard deviation of the Gaussian images, model units
EXACT, PRIOR, DIFFUSION = "exact draw", "prior draw", "exact-posterior diffusion"
N_PROJECTIONS = 500
NULL = 1e-2  # singular values below this times the largest count as null space


@dataclass(frozen=True)
class _Stack(Measurement):
    """Many measurements of one operator as one: ``y`` (rows, \\*out_shape), row i for sample i of a single call."""

    def __post_init__(self) -> None:
        """The rows were checked as measurements of their own."""

    @property
    def n_data(self) -> int:
        return super().n_data // len(self.y)


class _Direct(LinearOperator):
    """An operator with its proximal point in closed form, by a dense factorisation: faster than conjugate
    gradients on small problems, and their stopping is not part of what is measured."""

    has_closed_form_prox = True

    def __init__(self, operator: LinearOperator) -> None:
        super().__init__(
            operator.in_shape, operator.out_shape, out_complex=operator.out_complex, dtype=operator.dtype,
            device=operator.device,
        )  # fmt: skip
        self.operator, self.observed = operator, operator.observed
        exact = operator.to(dtype=torch.float64)
        eye = torch.eye(math.prod(self.in_shape), dtype=torch.float64)
        values, vectors = torch.linalg.eigh(exact.gram(eye.reshape(-1, *self.in_shape)).flatten(1))
        keep = values > 1e-12 * values.max()
        self._squares, self._V = values[keep].to(self.dtype), vectors[:, keep].to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.operator._apply(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.operator.H._apply(y)

    def prox(self, z: Tensor, y: Tensor, weight: Tensor | float) -> Tensor:
        # z + V diag(w / (1 + w s^2)) V^T A^H (y - A z)
        c = self.H(y - self(z)).flatten(-len(self.in_shape)) @ self._V
        return z + (weight / (1 + weight * self._squares) * c @ self._V.T).unflatten(-1, self.in_shape)

    def pinv(self, y: Tensor) -> Tensor:
        return self.operator.pinv(y)

    def svd(self) -> Any:
        return self.operator.svd()


@dataclass(frozen=True)
class Group:
    """Measurements of one operator under one prior; x (n, \\*shape) and y are joint draws, in physical units.

    Attributes:
        n_samples: draws per measurement.
        n_truths: truths per measurement. 1: the x that made the data; more: exact posterior draws.
        item, seed: of the random streams.
    """

    prior: GaussianMixturePrior
    A: LinearOperator
    noise: Noise
    x: Tensor
    y: Tensor
    n_samples: int
    n_truths: int
    item: str
    seed: int

    @classmethod
    def joint(
        cls, prior: GaussianMixturePrior, A: LinearOperator, noise: Noise, n: int, *, item: str, seed: int, **kw: int
    ) -> Group:
        """``n`` joint draws of image and data."""
        u = prior.sample(n, seed=seed, item=f"{item} truth")
        x = prior.scale * u + prior.offset
        A = A if A.has_closed_form_prox else _Direct(A)
        y = noise.sample(A(x), torch.Generator().manual_seed(seed))
        return cls(prior, A, noise, x, y if A.observed is None else y * A.observed, item=item, seed=seed, **kw)

    def measurement(self, i: int) -> Measurement:
        """Measurement i on its own."""
        return Measurement(self.y[i], self.A, self.noise, reference=self.x[i], item=self.item)

    def stack(self, repeats: int) -> Measurement:
        """All of them, each for ``repeats`` rows."""
        return _Stack(self.y.repeat_interleave(repeats, 0), self.A, self.noise, item=self.item)

    @cached_property
    def posteriors(self) -> list[ExactPosterior]:
        first = self.prior.posterior(self.measurement(0))
        return [first, *(first.with_data(y) for y in self.y[1:])]

    def physical(self, u: Tensor) -> Tensor:
        """Model units to those of the problem."""
        return self.prior.scale * u + self.prior.offset

    def exact(self, n: int, *, seed: int) -> Tensor:
        """Exact posterior draws, (n_items, n, \\*shape)."""
        return self.physical(
            torch.stack([p.sample(n, seed=seed, item=f"{self.item} {i}") for i, p in enumerate(self.posteriors)])
        )

    @cached_property
    def exact_mean(self) -> Tensor:
        """(n_items, \\*shape)."""
        return self.physical(torch.stack([p.mean for p in self.posteriors]).to(self.x))

    @cached_property
    def truths(self) -> Tensor:
        """(n_items, n_truths, \\*shape)."""
        return self.x[:, None] if self.n_truths == 1 else self.exact(self.n_truths, seed=self.seed + 1)

    @cached_property
    def matrix(self) -> Tensor:
        """The operator as a real matrix on flattened images, observed rows only, (m, d), float64."""
        A = self.A.to(dtype=torch.float64)
        out = A(torch.eye(self.x[0].numel(), dtype=torch.float64).reshape(-1, *A.in_shape))
        return self.flat(out).T

    def flat(self, y: Tensor) -> Tensor:
        """Data (n, \\*out_shape) as real vectors, (n, m)."""
        if self.A.observed is None:
            y = y.flatten(1)
        else:
            y = y[:, self.A.observed.expand(self.A.out_shape)]
        return torch.view_as_real(y).flatten(1) if y.is_complex() else y

    @cached_property
    def references(self) -> Tensor:
        """For TARP, shaped like the truths: a regularised A^+ y plus noise of the prior's standard deviation."""
        sd = float(self.physical(self.prior.sample(256, seed=self.seed, item=f"{self.item} spread")).std())
        M, y = self.matrix, self.flat(self.y).double()
        gram = M @ M.T + (self.sigma_y / sd) ** 2 * torch.eye(len(M), dtype=torch.float64)
        best = (torch.linalg.solve(gram, y.T).T @ M).reshape(len(y), 1, *self.x.shape[1:])
        z = torch.randn(self.truths.shape, generator=torch.Generator().manual_seed(self.seed + 2), dtype=torch.float64)
        return (best + sd * z).to(self.x)

    @property
    def sigma_y(self) -> float:
        """Standard deviation of the noise, per component."""
        return float(self.noise.precision(self.y)) ** -0.5

    @cached_property
    def projectors(self) -> tuple[Tensor, Tensor]:
        """Bases of null space and row space of the operator, (d, .) each, and see :data:`NULL`."""
        _, s, Vh = torch.linalg.svd(self.matrix, full_matrices=True)
        seen = torch.zeros(len(Vh), dtype=torch.bool)
        seen[: len(s)] = s > NULL * s[0]
        return Vh[~seen].T, Vh[seen].T

    @cached_property
    def exact_variances(self) -> tuple[float, float]:
        """Posterior variance in null space and row space, model units, mean over the measurements."""
        C = self.posteriors[0].covariance_of_component()
        w = torch.stack([p.weights for p in self.posteriors])
        d = torch.stack([(p.means - p.mean).flatten(1) for p in self.posteriors])
        null, row = (
            float((V.T @ C @ V).trace() + ((d @ V).square().sum(2) * w).sum(1).mean()) for V in self.projectors
        )
        return null, row

    def whiten(self, u: Tensor) -> Tensor:
        """Model units to coordinates in which the prior's components are round, (..., d)."""
        cov = self.prior.covariance
        c = cov.forward(u.double()) / cov.eigenvalues.clamp(min=1e-12).sqrt()
        return c.flatten(-cov.eigenvalues.ndim)


@dataclass(frozen=True)
class Problem:
    """One table of the bench.

    Attributes:
        kind: "image" or "mixture".
        groups: one for image problems, one per random problem for mixtures.
        quick: fewer draws and steps.
        sd: standard deviation (model units) that a white prior would have: sd in the algorithms' settings.
    """

    name: str
    title: str
    kind: str
    sd: float
    groups: tuple[Group, ...]
    quick: bool

    @cached_property
    def reference_draws(self) -> list[Tensor]:
        """One set of exact draws per group, which SW1 is measured from."""
        return [g.exact(g.n_samples, seed=g.seed + 9)[0] for g in self.groups]

    @cached_property
    def exact_row(self) -> dict[str, float]:
        """The measures of exact draws, mean over 4 sets: what the others are relative to; its SW1 is the floor."""
        sets = [measures(self, [g.exact(g.n_samples, seed=g.seed + 10 + k) for g in self.groups]) for k in range(4)]
        return {key: statistics.mean(m[key] for m in sets) for key in sets[0]}


# ------------------------------------------------------------------------------------------------ problems


def _gaussian(shape: tuple[int, int, int] = SHAPE) -> GaussianPrior:
    return GaussianPrior(
        torch.zeros(shape), StationaryCovariance.power_law(shape, std=STD, exponent=3.0), name="gaussian image"
    )


def _templates() -> GaussianMixturePrior:
    """Five procedural images (disk, ring, square, bars, two blobs) with a common 1/f deviation."""
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, n, dtype=torch.float64) for n in SHAPE[1:]), indexing="ij")
    r = torch.hypot(x, y)
    images = [
        (r < 0.6).double(),
        ((r > 0.4) & (r < 0.75)).double(),
        ((x.abs() < 0.55) & (y.abs() < 0.55)).double(),
        (torch.sin(3 * math.pi * x) > 0).double() * (r < 0.8),
        torch.exp(-((x - 0.4) ** 2 + y**2) / 0.06) + torch.exp(-((x + 0.4) ** 2 + y**2) / 0.06),
    ]
    means = torch.stack(images)[:, None] - 0.5
    weights = torch.tensor([0.3, 0.25, 0.2, 0.15, 0.1])
    return GaussianMixturePrior(means, weights, StationaryCovariance.power_law(SHAPE, std=0.25), name="templates")


def _ct(n_views: int) -> CT:
    angles = tuple(math.pi * i / n_views for i in range(n_views))
    geometry = ParallelBeam(
        image_shape=SHAPE[1:], pixel_size=0.25, angles=angles, n_detectors=23, detector_spacing=0.25
    )  # fmt: skip
    return CT(geometry)


def _mri() -> LinearOperator:
    mask = equispaced_mask(SHAPE[-1], acceleration=8, center_fraction=0.125)
    A = MultiCoilMRI(birdcage_maps(4, SHAPE[1:]), mask) @ ViewAsComplex(SHAPE)
    assert isinstance(A, LinearOperator)
    return A


def _mask(fraction: float) -> Inpainting:
    return Inpainting(random_pixels(SHAPE, fraction, seed=0))


def _blur() -> Blur:
    return Blur(gaussian_psf(1.2, 9), SHAPE)


def _blurred_mask() -> LinearOperator:
    A = _mask(0.25) @ _blur()
    assert isinstance(A, LinearOperator)
    return A


def mcgdiff(d: int, m: int, seed: int) -> tuple[GaussianMixturePrior, Matrix, GaussianNoise]:
    """A random problem of Cardoso et al. 2024: 25 modes (8i, 8j, 8i, 8j ...), unit covariance, weights chi^2_1;
    ``A = U diag(s) V^T`` with s ~ U(0, 1), ``sigma_y ~ U(0, 1) max s``. 16 physical units are one model unit."""
    g = torch.Generator().manual_seed(seed)
    grid = torch.arange(-2, 3, dtype=torch.float64)
    means = torch.cartesian_prod(grid, grid).repeat(1, d // 2) * 8
    weights = torch.randn(25, generator=g, dtype=torch.float64).square()
    U, s, Vh = torch.linalg.svd(torch.randn(m, d, generator=g, dtype=torch.float64), full_matrices=False)
    s = torch.rand(m, generator=g, dtype=torch.float64).sort(descending=True).values
    sigma_y = float(torch.rand(1, generator=g, dtype=torch.float64)) * float(s.max())
    shape = (1, 1, d)
    prior = GaussianMixturePrior(
        means.reshape(-1, *shape) / 16, weights, DenseCovariance(torch.eye(d) / 256, shape), name=f"25 modes, d={d}",
        value_range=(-16.0, 16.0),
    )  # fmt: skip
    return prior, Matrix(U @ torch.diag(s) @ Vh, shape, (1, 1, m)), GaussianNoise(sigma_y)


@dataclass(frozen=True)
class _Image:
    """An image problem: prior, operator, noise."""

    title: str
    prior: Callable[[], GaussianMixturePrior]
    A: Callable[[], LinearOperator]
    noise: Noise
    sd: float = STD


@dataclass(frozen=True)
class _Mixture:
    """Random 25-mode problems of d unknowns and m data."""

    title: str
    d: int
    m: int
    n_problems: int


PROBLEMS: dict[str, _Image | _Mixture] = {
    "gaussian-mask": _Image(
        "Gaussian 1/f image 16x16, 25 % of the pixels", _gaussian, lambda: _mask(0.25), GaussianNoise(0.05)
    ),
    "gaussian-blur": _Image("Gaussian 1/f image 16x16, blur of 1.2 px", _gaussian, _blur, GaussianNoise(0.05)),
    "gaussian-blur-mask": _Image(
        "Gaussian 1/f image 16x16, 25 % of the pixels after a blur of 1.2 px", _gaussian,
        _blurred_mask, GaussianNoise(0.05),
    ),
    "gaussian-ct": _Image("Gaussian 1/f image 16x16, CT, 6 views", _gaussian, lambda: _ct(6), GaussianNoise(0.05)),
    "complex-mri": _Image(
        "complex Gaussian 1/f image 16x16, 4 coils, every 8th column and two central ones",
        lambda: _gaussian((2, *SHAPE[1:])), _mri, ComplexGaussianNoise(0.05),
    ),
    "templates-mask": _Image(
        "five templates and 1/f deviations 16x16, 3 % of the pixels", _templates, lambda: _mask(0.03),
        GaussianNoise(0.1), 0.25,
    ),
    "templates-ct": _Image(
        "five templates and 1/f deviations 16x16, CT, 1 view", _templates, lambda: _ct(1), GaussianNoise(0.1), 0.25
    ),
    "mixture-8-1": _Mixture("25 modes, 8 unknowns, 1 datum", 8, 1, 6),
    "mixture-8-4": _Mixture("25 modes, 8 unknowns, 4 data", 8, 4, 6),
    "mixture-80-1": _Mixture("25 modes, 80 unknowns, 1 datum", 80, 1, 3),
}  # fmt: skip


def build(
    name: str,
    *,
    quick: bool = False,
    seed: int = 0,
    n_items: int | None = None,
    n_samples: int | None = None,
    n_truths: int | None = None,
) -> Problem:
    """A problem of :data:`PROBLEMS` with joint draws of truth and data.

    Args:
        n_items: measurements (images: 64, quick 32, or 16 of complex ones), or random problems (mixtures: 6 or 3,
            quick 2).
        n_samples: draws per measurement (images: 16; mixtures: 1000, quick 500).
        n_truths: for mixtures, exact posterior draws that serve as truths (32).

    Raises:
        KeyError: no such problem.
    """
    if name not in PROBLEMS:
        raise KeyError(f"No problem {name!r}; there are {', '.join(PROBLEMS)}.")
    p = PROBLEMS[name]
    if isinstance(p, _Image):
        prior = p.prior()
        n = n_items or (32 // prior.shape[0] if quick else 64)
        group = Group.joint(
            prior, p.A(), p.noise, n, item=name, seed=seed, n_samples=n_samples or 16, n_truths=1
        )  # fmt: skip
        return Problem(name, p.title, "image", p.sd, (group,), quick)
    groups = []
    for i in range(n_items or (2 if quick else p.n_problems)):
        s = 1000 * seed + 100 * i
        prior, A, noise = mcgdiff(p.d, p.m, s)
        groups.append(
            Group.joint(
                prior, A, noise, 1, item=f"{name} {i}", seed=s, n_samples=n_samples or (500 if quick else 1000),
                n_truths=n_truths or 32,
            )
        )  # fmt: skip
    return Problem(name, p.title, "mixture", 1 / 16, tuple(groups), quick)


# ------------------------------------------------------------------------------------------------ measures


def measures(problem: Problem, draws: Sequence[Tensor]) -> dict[str, float]:
    """Absolute measures of draws (n_items, n_samples, \\*shape), one tensor per group, in physical units."""
    groups = problem.groups
    samples = torch.cat([d.repeat_interleave(g.n_truths, 0) for g, d in zip(groups, draws, strict=True)])
    truth = torch.cat([g.truths.flatten(0, 1) for g in groups])
    optimum = torch.cat([g.exact_mean.repeat_interleave(g.n_truths, 0) for g in groups])
    references = torch.cat([g.references.flatten(0, 1) for g in groups])
    S = samples.shape[1]
    rank = ranks(samples, truth)
    chi2 = [float(g.stack(d.shape[1]).chi2(d.flatten(0, 1)).mean()) for g, d in zip(groups, draws, strict=True)]
    out = {
        "gap_db": mmse_gap_db(samples.mean(1), truth, optimum),
        "spread_skill": spread_skill(samples, truth),
        "cov50": coverage(rank, S, 0.5),
        "cov90": coverage(rank, S, 0.9),
        "sbc_tv": sbc_total_variation(rank, S),
        "tarp": tarp(samples, truth, references)[2],
        "crps": float(fair_crps(samples, truth).mean()),
        "chi2": statistics.mean(chi2),
    }
    if len(groups[0].prior.means) > 1:
        out["mode_tv"] = statistics.mean(
            total_variation(
                mode_frequencies(g.whiten((d - g.prior.offset) / g.prior.scale), g.whiten(g.prior.means)),
                torch.stack([p.weights for p in g.posteriors]),
            )
            for g, d in zip(groups, draws, strict=True)
        )
    if problem.kind == "mixture":
        out |= {f"chi2_{i}": c for i, c in enumerate(chi2)}
        out["sw1"] = statistics.mean(
            sliced_wasserstein(d[0], r, n_projections=N_PROJECTIONS)
            for d, r in zip(draws, problem.reference_draws, strict=True)
        )
    else:
        (g,), (d,) = groups, draws
        centred = ((d - d.mean(1, keepdim=True)) / g.prior.scale).flatten(2).double()
        for key, V, exact in zip(("var_null", "var_range"), g.projectors, g.exact_variances, strict=True):
            variance = (centred @ V).square().sum((1, 2)).mean() / (S - 1)
            out[key] = float(variance) / exact if V.shape[1] else math.nan
    return out


def relative(problem: Problem, m: dict[str, float]) -> dict[str, float]:
    """The measures of the table: gap, CRPS, SW1 and (mixtures) chi2 relative to the exact row or the floor."""
    e = problem.exact_row
    out = {k: v for k, v in m.items() if k not in ("crps", "sw1") and not k.startswith("chi2_")}
    out["gap_db"] = m["gap_db"] - e["gap_db"]
    out["crps_ratio"] = m["crps"] / e["crps"]
    if problem.kind == "mixture":
        out["sw1"], out["sw1_ratio"] = m["sw1"], m["sw1"] / e["sw1"]
        n = len(problem.groups)
        out["chi2_ratio"] = statistics.median(m[f"chi2_{i}"] / e[f"chi2_{i}"] for i in range(n))
    return out


# ------------------------------------------------------------------------------------------------ rows


def diffuse(group: Group, *, n_steps: int, seed: int) -> Tensor:
    """The exact-posterior diffusion: ancestral steps on a Karras grid with E[x0 | u, y]; (n_items, n_samples, ...).

    ``u' = x0 + sqrt(s'^2 - v) (u - x0) / s + sqrt(v) z`` with ``v = s'^2 (s^2 - s'^2) / s^2``.
    """
    D = PosteriorPrior(group.posteriors)
    n = len(group.posteriors) * group.n_samples
    streams = SampleStreams(seed, range(n), group.item)
    s = [*karras_sigmas(n_steps - 1, 2e-3, D.sigma_max).tolist(), 0.0]
    u, z = s[0] * streams.randn(D.shape), torch.empty(0)
    for i, (now, after) in enumerate(zip(s[:-1], s[1:], strict=True)):
        if i % 25 == 0:  # numbers for some steps at once: fewer calls
            z = streams.randn((25, *D.shape))
        x0 = D(u, now)
        v = after**2 * (now**2 - after**2) / now**2
        u = x0 + (after**2 - v) ** 0.5 / now * (u - x0) + v**0.5 * z[:, i % 25]
    return group.physical(u).unflatten(0, (-1, group.n_samples))


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A row of the table.

    Attributes:
        algorithm: its key in :data:`invdiff.algorithms.ALGORITHMS`.
        label: what it targets: "exact", "moment-matched", "heuristic" or "point estimate".
        make: ``(cls, problem, scale)`` to the configured algorithm.
        scales: values of the guidance scale of which the best by MMSE gap on separate draws is used, by kind of
            problem; empty: nothing is tuned.
        latent: it runs on :func:`_latent` of the prior.
        single: it is called once for each measurement (it treats its samples as one measurement's).
        only: the problems it runs on (None: all).
    """

    algorithm: str
    label: str
    make: Callable[[Any, Problem, float], Any]
    scales: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    latent: bool = False
    single: bool = False
    only: tuple[str, ...] | None = None

    def runs_on(self, problem: str) -> bool:
        """Whether the row belongs in the table of a problem."""
        return self.only is None or problem in self.only


def _n(problem: Problem, full: int, quick: int) -> int:
    return quick if problem.quick else full


# 16 physical units are one model unit of the mixtures: the residual's gradient is larger by 256
_SCALES = {"image": (0.1, 0.3, 1.0, 3.0), "mixture": (0.1 / 256, 0.3 / 256, 1 / 256, 3 / 256)}


def _tds(cls: type, p: Problem, _: float) -> Any:
    from invdiff.algorithms.guidance import Isotropic, Tweedie

    if p.kind == "image":
        return cls(n_steps=_n(p, 100, 30), n_particles=_n(p, 8, 4), covariance=Isotropic(sigma_data=p.sd))
    return cls(n_steps=100, n_particles=_n(p, 16, 8), covariance=Tweedie())


@dataclass(frozen=True)
class KnownCovariance:
    """Cov[x0 | u] = (C^-1 + 1/s^2)^-1 with the prior's own C: exact for a Gaussian prior, within one component of a
    mixture. A :class:`~invdiff.algorithms.guidance.PosteriorCovariance` for small problems.

    Attributes:
        precision: C^-1, (d, d), model units.
        gram: A^T A, (d, d), model units.
    """

    precision: Tensor = field(repr=False)
    gram: Tensor = field(repr=False)

    @classmethod
    def of(cls, group: Group) -> KnownCovariance:
        """For the prior and the operator of a group."""
        cov, M = group.prior.covariance, group.matrix * group.prior.scale
        c = cov.forward(torch.eye(M.shape[1], dtype=torch.float64).reshape(-1, *cov.shape))
        return cls(cov.inverse(c / cov.eigenvalues).flatten(1), M.T @ M)

    @torch.no_grad()
    def weigh(self, u: Tensor, x0: Tensor, s: float, run: Any) -> tuple[Tensor, Tensor]:
        """``Sigma^-1 r = R^-1 (r - A d)`` with ``(V^-1 + A^T R^-1 A) d = A^T R^-1 r`` for the residual r."""
        m = run.measurement
        A, lam, r = m.linear, m.noise.precision(m.y), m.residual(x0.detach())
        P = self.precision + torch.eye(len(self.gram), dtype=torch.float64) / s**2 + lam * self.gram
        b = lam * A.H(r).flatten(1).double()
        d = torch.cholesky_solve(b.T, torch.linalg.cholesky(P)).T.to(x0).reshape(x0.shape)
        w = lam * (r - A(d))
        return w, (w.conj() * r).real.flatten(1).sum(1)


def _pigdm(cls: type, p: Problem, _: float) -> Any:
    from invdiff.algorithms.guidance import Isotropic

    if p.kind == "image":
        return cls(n_steps=_n(p, 300, 100), covariance=KnownCovariance.of(p.groups[0]))
    # with few steps the guidance of a mixture overshoots: 300 instead of 1000 leave single problems far off
    grid = KarrasGrid(sigma_max=20.0 if p.groups[0].x[0].numel() < 80 else 63.0)
    return cls(n_steps=_n(p, 1000, 300), covariance=Isotropic(sigma_data=p.sd), grid=grid)


def _pnp_dm(cls: type, p: Problem, _: float) -> Any:
    if p.kind == "mixture":
        return cls(n_iterations=_n(p, 60, 40), n_denoise=_n(p, 10, 5), decay=_n(p, 85, 80) / 100)
    (g,) = p.groups
    rho = g.sigma_y / (4 * g.A.norm())  # rho^2 adds to the noise's variance where the operator is largest
    decay = _n(p, 930, 770) / 1000
    return cls(n_iterations=_n(p, 120, 30), n_denoise=_n(p, 10, 8), decay=decay, rho_min=rho, sigma_data=p.sd)


def _latent(prior: GaussianMixturePrior) -> Any:
    """The same prior with its uncorrelated coefficients as latents: an orthonormal encoder and decoder."""
    from invdiff.priors.latent import LatentPrior

    cov = prior.covariance
    latents = GaussianMixturePrior(
        cov.forward(prior.means), prior.log_weights.exp(), _Diagonal(cov.eigenvalues), sigma_min=prior.sigma_min,
        sigma_max=prior.sigma_max, name=f"{prior.info.name}, latent", dtype=prior.dtype,
    )  # fmt: skip
    return LatentPrior(cov.forward, cov.inverse, latents, image_shape=prior.shape, info=prior.info)


class _Diagonal:
    """A diagonal covariance."""

    def __init__(self, eigenvalues: Tensor) -> None:
        self.shape, self.eigenvalues = tuple(eigenvalues.shape), eigenvalues

    def forward(self, x: Tensor) -> Tensor:
        return x

    inverse = forward


# How each algorithm is run: its defaults where it has some for any problem, step counts that fit the time.
SETTINGS: dict[str, Setting] = {
    "dps": Setting(
        algorithm="dps", label="heuristic", scales=_SCALES,
        make=lambda cls, p, z: cls(n_steps=_n(p, 300, 80), guidance_scale=z, clip=False),
    ),
    "mcg": Setting(
        algorithm="mcg", label="heuristic", scales=_SCALES,
        make=lambda cls, p, z: cls(n_steps=_n(p, 300, 80), guidance_scale=z, clip=False, cutoff=0.05),
    ),
    "mcg-tomography": Setting(
        algorithm="mcg-tomography", label="heuristic", make=lambda cls, p, _: cls(n_steps=_n(p, 200, 30)),
    ),
    "pigdm": Setting(algorithm="pigdm", label="moment-matched", make=_pigdm),
    "pigdm-paper": Setting(algorithm="pigdm", label="heuristic", make=lambda cls, p, _: cls.paper()),
    "ddrm": Setting(algorithm="ddrm", label="heuristic", make=lambda cls, p, _: cls()),
    "ddnm": Setting(algorithm="ddnm", label="heuristic", make=lambda cls, p, _: cls(n_steps=_n(p, 100, 50))),
    "dds": Setting(algorithm="dds", label="heuristic", make=lambda cls, p, _: cls(sigma_data=p.sd)),
    "diffpir": Setting(algorithm="diffpir", label="heuristic", make=lambda cls, p, _: cls(n_steps=_n(p, 100, 50))),
    "daps": Setting(algorithm="daps", label="heuristic", make=lambda cls, p, _: cls(n_anneal=_n(p, 100, 50))),
    "pnp-dm": Setting(algorithm="pnp-dm", label="exact", make=_pnp_dm),
    "psld": Setting(
        algorithm="psld", label="heuristic", latent=True, scales={"image": (0.1, 0.3, 1.0, 3.0)},
        make=lambda cls, p, z: cls(n_steps=_n(p, 300, 80), eta=z, gamma=0.01),
        only=("gaussian-mask", "gaussian-blur-mask", "gaussian-ct"),
    ),
    "resample": Setting(
        algorithm="resample", label="heuristic", latent=True, single=True, only=("gaussian-mask", "gaussian-ct"),
        make=lambda cls, p, _: cls(
            n_steps=_n(p, 30, 10), resample_every=5, n_travel=3, n_pixel=50, n_latent=50, lr_pixel=0.02, lr_latent=0.02,
            guidance_scale=0.1,
        ),
    ),
    "red-diff": Setting(
        algorithm="red-diff", label="point estimate", make=lambda cls, p, _: cls(n_steps=_n(p, 300, 60))
    ),
    "tds": Setting(algorithm="tds", label="exact", make=_tds),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Record:
    """One row of one problem's table.

    Attributes:
        problem, row, label: which; ``label`` is "reference" for the three rows that are always there.
        algorithm: with its parameters, as text.
        tuned: the guidance scale chosen on separate draws, or None.
        values: the measures (empty if ``reason``), see :func:`measures` and :func:`relative`.
        nonfinite: share of samples that are not finite.
        nfe: denoiser evaluations per sample.
        seconds: of the run, all samples together, tuning not included.
        reason: why there are no numbers, or "".
    """

    problem: str
    row: str
    label: str
    algorithm: str
    tuned: float | None = None
    values: dict[str, float] = field(default_factory=dict)
    nonfinite: float = 0.0
    nfe: float = 0.0
    seconds: float = 0.0
    reason: str = ""


def _reference(problem: Problem, row: str) -> Record:
    begun, steps = time.monotonic(), 0
    if row == EXACT:
        draws = [g.exact(g.n_samples, seed=g.seed + 3) for g in problem.groups]
    elif row == PRIOR:
        draws = [
            g.physical(g.prior.sample(len(g.x) * g.n_samples, seed=g.seed + 3, item=f"{g.item} prior")).unflatten(
                0, (-1, g.n_samples)
            )
            for g in problem.groups
        ]
    else:
        steps = _n(problem, 300, 150) if problem.kind == "image" else _n(problem, 1000, 300)
        draws = [diffuse(g, n_steps=steps, seed=g.seed + 3) for g in problem.groups]
    seconds = time.monotonic() - begun
    name = f"{row}, {steps} ancestral steps" if steps else row
    values = relative(problem, measures(problem, draws))
    return Record(
        problem=problem.name, row=row, label="reference", algorithm=name, values=values, nfe=steps, seconds=seconds
    )


def draw(
    algorithm: Any, group: Group, *, seed: int, latent: bool = False, single: bool = False
) -> tuple[Tensor, float]:
    """Samples of all measurements of a group, (n_items, n_samples, \\*shape), by one call (``single``: by one call
    each), and NFE per sample."""
    prior = _latent(group.prior) if latent else group.prior
    if single:
        runs = [
            algorithm(
                prior, replace(group.measurement(i), item=f"{group.item} {i}"), n_samples=group.n_samples, seed=seed
            )
            for i in range(len(group.y))
        ]
        return torch.stack([r.samples for r in runs]), runs[0].nfe
    n, particles = group.n_samples, getattr(algorithm, "n_particles", 1)  # each particle is a row of its own
    posterior = algorithm(prior, group.stack(n * particles), n_samples=len(group.y) * n, seed=seed)
    return posterior.samples.unflatten(0, (-1, n)), posterior.nfe


def _tune(setting: Setting, cls: type, problem: Problem, seed: int) -> float:
    """The scale of least MMSE gap on separate draws."""
    sizes = (16, 8) if problem.kind == "image" else (2, 200)
    other = build(problem.name, quick=problem.quick, seed=seed + 1, n_items=sizes[0], n_samples=sizes[1])
    gaps = {}
    for z in setting.scales[problem.kind]:
        try:
            draws = [
                draw(setting.make(cls, problem, z), g, seed=seed + 1, latent=setting.latent, single=setting.single)[0]
                for g in other.groups
            ]
            gaps[z] = measures(other, draws)["gap_db"]
        except ArithmeticError:
            gaps[z] = math.inf
    return min(gaps, key=gaps.__getitem__)


def _evaluate(problem: Problem, row: str, setting: Setting, cls: type, seed: int) -> Record:
    common: dict[str, Any] = dict(problem=problem.name, row=row, label=setting.label)
    z, begun, text = None, time.monotonic(), ""
    try:
        if setting.scales:
            z = _tune(setting, cls, problem, seed)
        algorithm = setting.make(cls, problem, z or 0.0)
        text, begun = repr(algorithm), time.monotonic()
        results = [
            draw(algorithm, g, seed=g.seed + 4, latent=setting.latent, single=setting.single) for g in problem.groups
        ]
        seconds = time.monotonic() - begun
    except (TypeError, ValueError) as error:
        return Record(**common, algorithm=text, reason=str(error))
    except ArithmeticError as error:
        seconds = time.monotonic() - begun
        return Record(**common, algorithm=text, tuned=z, nonfinite=1.0, seconds=seconds, reason=str(error))
    return Record(
        **common, algorithm=text, tuned=z, values=relative(problem, measures(problem, [d for d, _ in results])),
        nonfinite=float(torch.cat([~torch.isfinite(d.flatten(2)).all(2) for d, _ in results]).double().mean()),
        nfe=statistics.mean(n for _, n in results), seconds=seconds,
    )  # fmt: skip


def select(algorithms: Sequence[str] | None) -> dict[str, Setting]:
    """The rows of some algorithms (default: all). Raises KeyError for an unknown one."""
    known = sorted({s.algorithm for s in SETTINGS.values()})
    for name in algorithms or ():
        if name not in known and name not in SETTINGS:
            raise KeyError(f"The truth bench has no row for {name!r}; there are {', '.join(known)}.")
    return {
        row: s for row, s in SETTINGS.items() if algorithms is None or s.algorithm in algorithms or row in algorithms
    }


@functools.lru_cache(maxsize=2)
def _built(name: str, quick: bool, seed: int) -> Problem:
    return build(name, quick=quick, seed=seed)


def _cell(name: str, row: str, quick: bool, seed: int) -> Record:
    """One row of one table."""
    from invdiff.algorithms import ALGORITHMS

    problem = _built(name, quick, seed)
    if row in (EXACT, PRIOR, DIFFUSION):
        return _reference(problem, row)
    return _evaluate(problem, row, SETTINGS[row], ALGORITHMS[SETTINGS[row].algorithm], seed)


def run_truth(
    algorithms: Sequence[str] | None = None,
    *,
    quick: bool = False,
    seed: int = 0,
    problems: Sequence[str] | None = None,
    workers: int = 1,
    callback: Callable[[int, int, str], None] | None = None,
) -> list[Record]:
    """Run the bench.

    Args:
        algorithms: keys of :data:`invdiff.algorithms.ALGORITHMS` or rows of :data:`SETTINGS` (default: all).
        quick: fewer measurements, draws and steps.
        seed: of problems, data and samples.
        problems: keys of :data:`PROBLEMS` (default: all).
        workers: processes, each with one thread (the tensors are small); 1: this process as it is.
        callback: called as ``callback(done, total, what)`` after each row.

    Raises:
        KeyError: an unknown algorithm or problem.
    """
    names = list(PROBLEMS if problems is None else problems)
    for name in names:
        if name not in PROBLEMS:
            raise KeyError(f"No problem {name!r}; there are {', '.join(PROBLEMS)}.")
    chosen = select(algorithms)
    cells = [
        (name, row)
        for name in names
        for row in (EXACT, PRIOR, DIFFUSION, *chosen)
        if row not in chosen or chosen[row].runs_on(name)
    ]

    def finished(done: int, cell: tuple[str, str]) -> None:
        if callback is not None:
            callback(done, len(cells), ": ".join(cell))

    if workers == 1:
        records = []
        for cell in cells:
            records.append(_cell(*cell, quick, seed))
            finished(len(records), cell)
        return records
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        futures = {pool.submit(_cell, *cell, quick, seed): cell for cell in cells}
        try:
            for done, future in enumerate(as_completed(futures), 1):
                future.result()
                finished(done, futures[future])
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [future.result() for future in futures]


# ------------------------------------------------------------------------------------------------ output

COLUMNS: dict[str, tuple[str, str]] = {
    "sw1_ratio": ("SW1/floor", ".2f"),
    "mode_tv": ("mode TV", ".3f"),
    "gap_db": ("gap dB", ".2f"),
    "spread_skill": ("spread-skill", ".3f"),
    "cov50": ("cov50", ".3f"),
    "cov90": ("cov90", ".3f"),
    "sbc_tv": ("SBC-TV", ".3f"),
    "tarp": ("TARP", ".3f"),
    "chi2": ("chi2", ".3g"),
    "chi2_ratio": ("chi2/exact", ".3g"),
    "var_null": ("var null", ".2f"),
    "var_range": ("var range", ".3g"),
    "crps_ratio": ("CRPS/exact", ".3f"),
}

LEGEND = """\
gap: mean squared error of the samples' mean over that of the exact posterior mean, beyond that of exact draws.
spread-skill: 1 when calibrated. cov50, cov90: share of truths in the central interval by ranks. SBC-TV: distance of
the ranks from uniform. TARP: largest deviation of expected coverage (64 exact draws: below 0.17 in 95 % of cases).
var null, var range: sample variance over the exact one, in the operator's null space and row space. SW1/floor: sliced
Wasserstein distance over that between exact draws. NFE: denoiser evaluations per sample. s: of all samples together."""


def tables(records: Iterable[Record]) -> list[Table]:
    """One rich table per problem."""
    from rich.markup import escape
    from rich.table import Table

    out = []
    for name, rows in _by_problem(records).items():
        keys = [k for k in COLUMNS if any(k in r.values for r in rows)]
        if "chi2_ratio" in keys:
            keys.remove("chi2")  # of a few data: nothing but noise
        table = Table(title=f"{name}: {PROBLEMS[name].title}", title_justify="left")
        for heading in ("sampler", "label", *(COLUMNS[k][0] for k in keys), "NFE", "s", "non-finite"):
            table.add_column(heading, justify="left" if heading in ("sampler", "label") else "right")
        for r in rows:
            tuned = "" if r.tuned is None else f" (tuned: {r.tuned:.3g})"
            cells = [format(r.values[k], COLUMNS[k][1]) if k in r.values else "-" for k in keys]
            table.add_row(
                escape(r.row + tuned), r.label, *cells, f"{r.nfe:.0f}", f"{r.seconds:.1f}", f"{r.nonfinite:.0%}"
            )
        reasons = [f"{r.row}: {r.reason}" for r in rows if r.reason]
        if reasons:
            table.caption, table.caption_justify = escape("\n".join(reasons)), "left"
        out.append(table)
    return out


def bench_line(records: Iterable[Record], row: str) -> str:
    """One row in one line, for an algorithm's documentation: the blurred and masked Gaussian image, or CT."""
    found = {r.problem: r for r in records if r.row == row}
    r = found.get("gaussian-blur-mask") or found["gaussian-ct"]
    tuned = "" if r.tuned is None else " (guidance scale tuned)"
    text = f"Truth bench, {r.problem}{tuned}: gap {r.values['gap_db']:.2f} dB, spread-skill "
    text += f"{r.values['spread_skill']:.2f}, cov90 {r.values['cov90']:.2f}, chi2 {r.values['chi2']:.2f}."
    return text.replace("-0.00", "0.00")


def _by_problem(records: Iterable[Record]) -> dict[str, list[Record]]:
    out: dict[str, list[Record]] = {}
    for r in records:
        out.setdefault(r.problem, []).append(r)
    return out


COLOURS = {
    "reference": "black",
    "exact": "tab:green",
    "moment-matched": "tab:blue",
    "heuristic": "tab:orange",
    "point estimate": "tab:red",
}


def plot(records: Sequence[Record]) -> Figure:
    """MMSE gap (top) and spread-skill ratio (bottom) of every row, a column per problem."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    problems = _by_problem(records)
    rows = list(dict.fromkeys(r.row for r in records))
    place = {row: len(rows) - i for i, row in enumerate(rows)}
    size = (2.2 + 1.45 * len(problems), 1.6 + 0.42 * len(rows))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    axes = figure.subplots(2, len(problems), squeeze=False, sharey=True)
    limits = {"gap_db": (-0.5, 12.0), "spread_skill": (0.0, 2.0)}
    for column, (name, members) in enumerate(problems.items()):
        for line, (key, (lo, hi)) in enumerate(limits.items()):
            ax = axes[line, column]
            for r in members:
                if key in r.values:
                    v, y = r.values[key], place[r.row]
                    shown = min(max(v, lo), hi)
                    ax.plot(shown, y, "o" if shown == v else ">", color=COLOURS[r.label], markersize=4, clip_on=False)
            ax.axvline(0 if key == "gap_db" else 1, color="0.7", linewidth=0.8, zorder=0)
            ax.set(xlim=(lo, hi), ylim=(0.4, len(rows) + 0.6))
            ax.set_yticks(list(place.values()), list(place), fontsize=6)
            ax.tick_params(axis="x", labelsize=6)
            ax.grid(axis="y", linewidth=0.3)
            ax.set_xlabel("MMSE gap, dB" if key == "gap_db" else "spread-skill ratio", fontsize=7)
        axes[0, column].set_title(name, fontsize=7)
    handles = [Line2D([], [], marker="o", linestyle="", color=c, label=k) for k, c in COLOURS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=7, frameon=False)
    return figure


def save(records: Sequence[Record], folder: Path) -> None:
    """Write ``truth.json`` and ``truth.png``, atomically."""
    rows = [{**asdict(r), "values": {k: v if math.isfinite(v) else None for k, v in r.values.items()}} for r in records]
    with atomic_path(folder / "truth.json") as tmp:
        tmp.write_text(json.dumps({"format": "invdiff-truth-1", "records": rows}, indent=1, allow_nan=False) + "\n")
    with atomic_path(folder / "truth.png") as tmp:
        plot(records).savefig(tmp, format="png")
