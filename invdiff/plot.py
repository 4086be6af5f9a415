"""Figures of reconstructions and their uncertainty, for notebooks and files: each returns (figure, axes).

Matplotlib is imported when a figure is made, and no global state of it is touched. ``figure.savefig(path)`` writes one.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from invdiff.evaluation import calibration
from invdiff.evaluation.pareto import pareto_front
from invdiff.posterior import Posterior
from invdiff.storage import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from invdiff.benchmark import Plan, Store


@dataclass(frozen=True, kw_only=True)
class Row:
    """One problem in a figure.

    Attributes:
        title: of the row.
        posterior: samples to show.
        classical: a classical reconstruction, with its name; or None.
        reference: the truth, (1, y, x), or None.
        notes: a line under each panel, by panel title.
        window: the grey scale's (lower, upper) end in the image's units, e.g. a CT display window; None: the 0.5 to
            99.5 % range of the truth, or of the mean.
        n_shown: samples shown, from the first.

    Example:
        >>> from invdiff import Posterior
        >>> from invdiff.plot import Row
        >>> row = Row(title="CT", posterior=Posterior(samples=torch.rand(4, 1, 8, 8)), window=(0.0, 1.0))
        >>> row.n_shown
        1
    """

    title: str
    posterior: Posterior
    classical: tuple[str, Posterior] | None = None
    reference: Tensor | None = None
    notes: dict[str, str] | None = None
    window: tuple[float, float] | None = None
    n_shown: int = 1


def panels(rows: Sequence[Row]) -> tuple[Figure, np.ndarray]:
    """One row per problem: truth, classical, posterior mean, samples, standard deviation, error of the mean.

    Images of a row share one grey scale (:attr:`Row.window`); standard deviation and absolute error share one
    colour scale, so that they can be compared. Of complex images the magnitude is shown.

    Args:
        rows: at least one.

    Returns:
        the figure and its axes (row, column); unused ones are hidden.

    Example:
        >>> from invdiff import Posterior
        >>> from invdiff.plot import Row, panels
        >>> p = Posterior(samples=torch.rand(4, 1, 8, 8))
        >>> figure, axes = panels([Row(title="CT", posterior=p, reference=torch.rand(1, 8, 8))])
        >>> [ax.get_title() for ax in axes[0] if ax.get_visible()][:2]
        ['truth', 'posterior mean']
    """
    for row in rows:
        if not 1 <= row.n_shown <= row.posterior.n_samples:
            raise ValueError(f"n_shown must lie in 1 .. {row.posterior.n_samples} (the samples), got {row.n_shown}.")
        if row.window is not None and not row.window[0] < row.window[1]:
            raise ValueError(f"window must be (lower, upper) with lower < upper, got {row.window}.")
    n_columns = max(_n_panels(row) for row in rows)
    figure = _figure(2.35 * n_columns, 2.75 * len(rows))
    axes = figure.subplots(len(rows), n_columns, squeeze=False)
    for line, row in zip(axes, rows, strict=True):
        _draw_row(figure, line, row)
    return figure, axes


def save_panels(rows: Sequence[Row], path: Path) -> None:
    """Write :func:`panels` as PNG, atomically.

    Args:
        rows: as of :func:`panels`.
        path: of the PNG file.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from invdiff import Posterior
        >>> from invdiff.plot import Row, save_panels
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "figure.png")
        ...     save_panels([Row(title="CT", posterior=Posterior(samples=torch.rand(4, 1, 8, 8)))], file)
        ...     file.read_bytes()[1:4]
        b'PNG'
    """
    figure, _ = panels(rows)
    with atomic_path(path) as tmp:
        figure.savefig(tmp, format="png")


def calibration_curve(curves: Mapping[str, tuple[Tensor, Tensor]]) -> tuple[Figure, Axes]:
    """Coverage of central intervals against their nominal level; exact draws lie on the diagonal, overconfident ones
    below it.

    Args:
        curves: (levels, coverage) of :func:`invdiff.evaluation.calibration.calibration_curve`, by name.

    Example:
        >>> from invdiff import plot
        >>> from invdiff.evaluation import calibration
        >>> figure, axes = plot.calibration_curve({"DAPS": calibration.calibration_curve(torch.arange(17), 16)})
        >>> axes.get_xlabel()
        'nominal level'
    """
    figure, ax = _single(3.6, 3.6)
    ax.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--", label="exact")
    for name, (levels, covered) in curves.items():
        ax.plot(levels.cpu(), covered.cpu(), marker="o", markersize=3, linewidth=1.2, label=name)
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="nominal level", ylabel="coverage")
    ax.legend(frameon=False, fontsize=8)
    return figure, ax


def rank_histogram(rank: Tensor, n_samples: int, *, max_bins: int = 20) -> tuple[Figure, Axes]:
    """Histogram of the truth's ranks among the samples, with the level expected of exact draws.

    Args:
        rank, n_samples, max_bins: as in :func:`invdiff.evaluation.calibration.rank_histogram`.

    Example:
        >>> from invdiff import plot
        >>> figure, axes = plot.rank_histogram(torch.arange(17), 16)
        >>> axes.get_xlabel()
        'rank of the truth among 16 samples'
    """
    observed, expected = calibration.rank_histogram(rank, n_samples, max_bins=max_bins)
    edges = torch.cat([expected.new_zeros(1), expected.cumsum(0)]).cpu() * (n_samples + 1) - 0.5
    figure, ax = _single(3.9, 2.9)
    ax.stairs((observed / expected).cpu(), edges, fill=True, color="C0", alpha=0.75)
    ax.axhline(1, color="0.3", linewidth=1, linestyle="--")
    tv = calibration.total_variation(observed, expected)
    ax.set(
        xlim=(-0.5, n_samples + 0.5), xlabel=f"rank of the truth among {n_samples} samples", ylabel="share / expected"
    )
    ax.set_title(f"total variation {tv:.3f}", fontsize=9)
    return figure, ax


def pareto(
    points: Mapping[str, tuple[float, float]], *, cost: str, quality: str, lower_is_better: bool = False
) -> tuple[Figure, Axes]:
    """Quality against cost on a logarithmic axis, with the front of the points that no other one beats in both.

    Args:
        points: (cost, quality) by name; the cost is positive.
        cost, quality: what they are, with unit: ``"seconds per slice"``, ``"NFE"``, ``"PSNR of the mean [dB]"``.
        lower_is_better: of the quality (CRPS, error).

    Example:
        >>> from invdiff import plot
        >>> points = {"DPS": (60.0, 30.1), "DAPS": (10.0, 30.4)}
        >>> figure, axes = plot.pareto(points, cost="seconds per slice", quality="PSNR of the mean [dB]")
        >>> axes.get_xscale(), axes.get_xlabel()
        ('log', 'seconds per slice')
    """
    if not points:
        raise ValueError("There are no points to plot.")
    for name, point in points.items():
        if not (np.isfinite(point).all() and point[0] > 0):
            raise ValueError(
                f"{name} has cost {point[0]} and quality {point[1]}: both must be finite, the cost positive."
            )
    figure, ax = _single(4.6, 3.4)
    front = pareto_front(points, lower_is_better=lower_is_better)
    x, y = zip(*(points[name] for name in front), strict=True)
    ax.plot(x, y, color="C0", linewidth=1, drawstyle="steps-post", zorder=1)
    for name, point in points.items():
        best = name in front
        ax.scatter(*point, s=22, color="C0" if best else "0.6", zorder=2)
        ax.annotate(name, point, (4, 4), textcoords="offset points", fontsize=7.5, color="0.1" if best else "0.45")
    ax.set(xscale="log", xlabel=cost, ylabel=quality)
    ax.margins(x=0.18, y=0.12)
    return figure, ax


def table(
    columns: Sequence[str], rows: Mapping[str, Sequence[str]], *, bold: Collection[tuple[str, int]] = ()
) -> tuple[Figure, Axes]:
    """Numbers as a picture.

    Args:
        columns: their headings.
        rows: a cell for each column, as text, by the row's name.
        bold: cells to print bold, as (name of the row, number of the column).

    Example:
        >>> from invdiff.plot import table
        >>> rows = {"FBP": ["29.6", "0.71"], "DAPS": ["32.9", "0.83"]}
        >>> figure, axes = table(["PSNR [dB]", "SSIM"], rows, bold=[("DAPS", 0), ("DAPS", 1)])
        >>> len(axes.tables[0].get_celld())  # 3 x 3, without the corner
        8
    """
    if not rows or any(len(cells) != len(columns) for cells in rows.values()):
        raise ValueError(f"A table needs at least one row, and {len(columns)} cells in each, one for each column.")
    figure, ax = _single(2.0 + 1.15 * len(columns), 0.6 + 0.26 * len(rows))
    ax.axis("off")
    headings = [textwrap.fill(c, 14) for c in columns]
    drawn = ax.table([list(cells) for cells in rows.values()], rowLabels=list(rows), colLabels=headings, loc="center")
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(7.5)
    for (i, j), cell in drawn.get_celld().items():
        cell.visible_edges = "B" if i == 0 else ""
        cell.set_height((2.2 if i == 0 else 1) / (len(rows) + 2.2))
        if i > 0 and (list(rows)[i - 1], j) in bold:
            cell.set_text_props(weight="bold")
    return figure, ax


def benchmark(plan: Plan, store: Store) -> dict[str, dict[str, Figure]]:
    """The figures of a benchmark's report: problem to figures by name, those for which there are results.

    "table": the numbers; "seconds" and "nfe": quality against cost; "calibration": coverage of central intervals.

    Args:
        plan: that was run.
        store: where its results are.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from invdiff import plot
        >>> from invdiff.benchmark import Plan, Store, run
        >>> text = '''
        ... n_samples = 1
        ... seeds = [0]
        ... [[problem]]
        ... make = "accelerated_mri"
        ... with = { n_coils = 2 }
        ... prior = "brain-mri-128"
        ... [[method]]
        ... algorithm = "zero-filled"
        ... '''
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "plan.toml")
        ...     _ = file.write_text(text)
        ...     plan = Plan.read(file)
        ...     _ = run(plan, f"{folder}/results")
        ...     figures = plot.benchmark(plan, Store(f"{folder}/results"))
        >>> list(figures["accelerated_mri"])  # one method makes no front, one sample no calibration
        ['table']
    """
    from invdiff.benchmark import report

    out: dict[str, dict[str, Figure]] = {}
    for problem, methods in report.collect(plan, store).items():
        if not any(group.results for group in methods.values()):
            continue
        t = report.tabulate(methods)
        found = {"table": table(t.columns, t.rows, bold=t.best)[0]}
        for axis, label in report.AXES:
            if len(points := report.costs(methods, axis)) > 1:
                found[axis] = pareto(points, cost=label, quality=report.QUALITY)[0]
        if curves := {m: torch.tensor(c).T for m, c in report.curves(methods).items()}:
            found["calibration"] = calibration_curve({m: (c[0], c[1]) for m, c in curves.items()})[0]
        out[problem] = found
    return out


def _figure(width: float, height: float) -> Figure:
    """A figure that pyplot does not know of and a notebook shows all the same (others only once pyplot is imported)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    figure._repr_png_ = partial(_png, figure)  # type: ignore[attr-defined]
    return figure


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _single(width: float, height: float) -> tuple[Figure, Axes]:
    figure = _figure(width, height)
    ax = figure.subplots()
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8)
    return figure, ax


def _n_panels(row: Row) -> int:
    known = row.reference is not None
    return 1 + row.n_shown + known + (row.classical is not None) + (row.posterior.n_samples > 1) * (1 + known)


def _magnitude(x: Tensor) -> Tensor:
    return x.abs() if x.is_complex() else x


def _draw_row(figure: Figure, axes: Sequence, row: Row) -> None:
    p, ref = row.posterior, row.reference
    grey: list[tuple[str, Tensor]] = [] if ref is None else [("truth", ref)]
    if row.classical is not None:
        grey.append((row.classical[0], row.classical[1].mean))
    grey.append(("posterior mean", p.mean))
    names = ["one sample"] if row.n_shown == 1 else [f"sample {i + 1}" for i in range(row.n_shown)]
    grey += zip(names, p.samples, strict=False)
    grey = [(title, _magnitude(x)) for title, x in grey]
    heat: list[tuple[str, Tensor]] = []
    if p.n_samples > 1:
        heat.append(("standard deviation", p.std))
        if ref is not None:
            heat.append(("|mean - truth|", (p.mean - ref).abs()))

    scale = _magnitude(p.mean if ref is None else ref).flatten()
    lo, hi = row.window or (float(scale.quantile(0.005)), float(scale.quantile(0.995)))
    top = max((float(x.flatten().quantile(0.995)) for _, x in heat), default=1.0)
    notes = row.notes or {}
    for ax, (title, x) in zip(axes, grey + heat, strict=False):
        is_heat = any(title == t for t, _ in heat)
        shown = ax.imshow(
            x[0].detach().cpu().numpy(), interpolation="nearest", cmap="magma" if is_heat else "gray",
            vmin=0 if is_heat else lo, vmax=top if is_heat else hi,
        )  # fmt: skip
        ax.set_title(title, fontsize=9)
        ax.set_xlabel(notes.get(title, ""), fontsize=7.5)
        ax.set_xticks([])
        ax.set_yticks([])
        for spine in ax.spines.values():
            spine.set_visible(False)
        if title in (names[-1], "|mean - truth|") or (is_heat and ref is None):
            bar = figure.colorbar(shown, ax=ax, shrink=0.72, pad=0.02)
            bar.ax.tick_params(labelsize=6)
            bar.outline.set_visible(False)
            bar.set_label("" if p.units == "relative" else p.units, fontsize=7)
    for ax in axes[len(grey) + len(heat) :]:
        ax.set_visible(False)
    axes[0].set_ylabel(row.title, fontsize=9)
