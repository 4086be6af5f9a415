"""The truth bench: every algorithm against posteriors that are known exactly.

Problems with analytic priors (:mod:`invdiff.priors.analytic`) give exact denoisers and exact posterior draws, so
that what is measured is the algorithm's own error. Three rows are always there: *exact draw* is the floor of every
measure, *prior draw* ignores the data (and passes the measures that are blind to that), *exact-posterior
diffusion* runs a plain diffusion sampler with the posterior itself as the prior: it has the solver's error only.
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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from invdiff.algorithms.solvers import DDIM, sample_prior
from invdiff.evaluation.truth_problems import PROBLEMS, Group, Problem, build, measures, relative
from invdiff.priors.analytic import GaussianMixturePrior, PosteriorPrior
from invdiff.priors.schedules import KarrasGrid
from invdiff.storage import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

EXACT, PRIOR, DIFFUSION = "exact draw", "prior draw", "exact-posterior diffusion"


def diffuse(group: Group, *, n_steps: int, seed: int) -> Tensor:
    """The exact-posterior diffusion: ancestral steps with E[x0 | u, y], (n_items, n_samples, \\*shape)."""
    prior = PosteriorPrior(group.posteriors)
    grid, n = KarrasGrid(sigma_max=prior.sigma_max), len(group.posteriors) * group.n_samples
    posterior = sample_prior(prior, n, n_steps=n_steps, solver=DDIM(eta=1.0), grid=grid, seed=seed, item=group.item)
    return posterior.samples.unflatten(0, (-1, group.n_samples))


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
    return cls(n_steps=_n(p, 100, 60), n_particles=_n(p, 16, 8), covariance=Tweedie())


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
        """``A^T Sigma^-1 r = A^T R^-1 (r - A d)`` with ``(V^-1 + A^T R^-1 A) d = A^T R^-1 r`` for the residual r."""
        m = run.measurement
        A, lam, r = m.linear, m.noise.precision(m.y), m.residual(x0.detach())
        P = self.precision + torch.eye(len(self.gram), dtype=torch.float64) / s**2 + lam * self.gram
        b = lam * A.H(r).flatten(1).double()
        d = torch.cholesky_solve(b.T, torch.linalg.cholesky(P)).T.to(x0).reshape(x0.shape)
        w = lam * (r - A(d))
        return A.H(w), (w.conj() * r).real.flatten(1).sum(1)


def _pigdm(cls: type, p: Problem, _: float) -> Any:
    from invdiff.algorithms.guidance import Isotropic

    if p.kind == "image":
        return cls(n_steps=_n(p, 300, 100), covariance=KnownCovariance.of(p.groups[0]))
    # with few steps the guidance of a mixture overshoots: those of --quick leave single problems far off
    grid = KarrasGrid(sigma_max=20.0 if p.groups[0].x[0].numel() < 80 else 63.0)
    return cls(n_steps=_n(p, 1000, 200), covariance=Isotropic(sigma_data=p.sd), grid=grid)


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
            names = ", ".join(sorted({*known, *SETTINGS}))
            raise KeyError(f"The truth bench has no row for {name!r}; there are {names}.")
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


# of the figure: what is shown, its name, colour from (log2 of) the value, number in the cell
PANELS: tuple[tuple[str, str, Callable[[float], float]], ...] = (
    ("gap_db", "error of the mean above exact draws, dB", lambda v: v / 6),
    ("spread_skill", "spread over skill (1: calibrated)", lambda v: math.log2(max(v, 1e-3))),
    ("chi2", "data chi2 (1: fits the noise)", lambda v: math.log2(max(v, 1e-3)) / 2),
)


def plot(records: Sequence[Record]) -> Figure:
    """MMSE gap, spread-skill ratio and chi2 of every row and problem, as coloured tables; white is exact."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    problems = _by_problem(records)
    rows = list(dict.fromkeys(r.row for r in records))
    labels = {r.row: r.label for r in records}
    size = (2.6 + 3 * (0.5 + 0.44 * len(problems)), 1.9 + 0.29 * len(rows))
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    axes = figure.subplots(1, len(PANELS), sharey=True)
    for ax, (key, title, colour) in zip(axes, PANELS, strict=True):
        values = np.full((len(rows), len(problems)), np.nan)
        for column, members in enumerate(problems.values()):
            for r in members:
                values[rows.index(r.row), column] = r.values.get(key, np.nan)
        shades = np.vectorize(lambda v, colour=colour: np.nan if np.isnan(v) else colour(v))(values)
        ax.imshow(shades, cmap="RdBu_r", vmin=-1.6, vmax=1.6, aspect="auto")
        for (i, j), v in np.ndenumerate(values):
            if not np.isnan(v):
                text = f"{v:.1f}" if key == "gap_db" else f"{v:.2f}" if v < 9.995 else f"{v:.0f}"
                text = ">999" if v >= 999.5 else "0.0" if text == "-0.0" else text
                ink = "white" if abs(shades[i, j]) > 1.0 else "black"
                ax.text(j, i, text, ha="center", va="center", fontsize=8, color=ink)
        ax.set_title(title, fontsize=11)
        ax.set_xticks(range(len(problems)), list(problems), rotation=40, ha="right", fontsize=9)
        ax.set_yticks(range(len(rows)), rows, fontsize=10)
        for tick, row in zip(axes[0].get_yticklabels(), rows, strict=True):
            tick.set_color(COLOURS[labels[row]])
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    handles = [Patch(color=c, label=k) for k, c in COLOURS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=10, frameon=False)
    return figure


def save(records: Sequence[Record], folder: Path) -> None:
    """Write ``truth.json`` and ``truth.png``, atomically."""
    rows = [{**asdict(r), "values": {k: v if math.isfinite(v) else None for k, v in r.values.items()}} for r in records]
    with atomic_path(folder / "truth.json") as tmp:
        tmp.write_text(json.dumps({"format": "invdiff-truth-1", "records": rows}, indent=1, allow_nan=False) + "\n")
    with atomic_path(folder / "truth.png") as tmp:
        plot(records).savefig(tmp, format="png")
