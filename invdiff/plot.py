"""Figures of reconstructions and their uncertainty. Matplotlib is imported when a figure is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from invdiff.posterior import Posterior
from invdiff.storage import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Row:
    """One problem in a figure.

    Attributes:
        title: of the row.
        posterior: samples to show.
        classical: a classical reconstruction, with its name; or None.
        reference: the truth, (1, y, x), or None.
        notes: a line under each panel, by panel title.
    """

    title: str
    posterior: Posterior
    classical: tuple[str, Posterior] | None = None
    reference: Tensor | None = None
    notes: dict[str, str] | None = None


def panels(rows: Sequence[Row]) -> Figure:
    """One row per problem: truth, classical, posterior mean, one sample, standard deviation, error of the mean.

    Images of a row share one grey scale (the 0.5 to 99.5 % range of the truth, or of the mean); standard
    deviation and absolute error share one colour scale, so that they can be compared.
    """
    from matplotlib.figure import Figure

    n_columns = max(_n_panels(row) for row in rows)
    figure = Figure(figsize=(2.35 * n_columns, 2.75 * len(rows)), dpi=150, layout="constrained")
    axes = figure.subplots(len(rows), n_columns, squeeze=False)
    for line, row in zip(axes, rows, strict=True):
        _draw_row(figure, line, row)
    return figure


def save_panels(rows: Sequence[Row], path: Path) -> None:
    """Write :func:`panels` as PNG, atomically."""
    figure = panels(rows)
    with atomic_path(path) as tmp:
        figure.savefig(tmp, format="png")


def _n_panels(row: Row) -> int:
    known = row.reference is not None
    return 2 + known + (row.classical is not None) + (row.posterior.n_samples > 1) * (1 + known)


def _draw_row(figure: Figure, axes: Sequence, row: Row) -> None:
    p, ref = row.posterior, row.reference
    grey: list[tuple[str, Tensor]] = [] if ref is None else [("truth", ref)]
    if row.classical is not None:
        grey.append((row.classical[0], row.classical[1].mean))
    grey += [("posterior mean", p.mean), ("one sample", p.samples[0])]
    heat: list[tuple[str, Tensor]] = []
    if p.n_samples > 1:
        heat.append(("standard deviation", p.std))
        if ref is not None:
            heat.append(("|mean - truth|", (p.mean - ref).abs()))

    scale = (p.mean if ref is None else ref).flatten()
    lo, hi = float(scale.quantile(0.005)), float(scale.quantile(0.995))
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
        if title in ("one sample", "|mean - truth|") or (is_heat and ref is None):
            bar = figure.colorbar(shown, ax=ax, shrink=0.72, pad=0.02)
            bar.ax.tick_params(labelsize=6)
            bar.outline.set_visible(False)
            bar.set_label("" if p.units == "relative" else p.units, fontsize=7)
    for ax in axes[len(grey) + len(heat) :]:
        ax.set_visible(False)
    axes[0].set_ylabel(row.title, fontsize=9)
