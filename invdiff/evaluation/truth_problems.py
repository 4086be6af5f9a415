"""The problems of the truth bench, and what is measured of draws from their posteriors.

An analytic prior, an operator and noise, with joint draws of truth and data: posteriors are known exactly, so what
is measured is an algorithm's own error. Image problems: one truth and ``n_samples`` draws for each of many data of one
operator. Mixtures (the 25 modes of Cardoso et al., MCGDiff, ICLR 2024): few random problems with many draws each;
their calibration is measured given the data, against exact posterior draws as truths.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

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
    StationaryCovariance,
)

SHAPE = (1, 16, 16)
STD = 0.5  # pixel standard deviation of the Gaussian images, model units
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
