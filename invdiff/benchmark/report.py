"""The report: one HTML file that needs no network. Tables, plots as SVG, and a viewer of the stored images."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from invdiff.benchmark.engine import tasks
from invdiff.benchmark.plan import Plan
from invdiff.benchmark.store import DamagedError, Result, Store, now
from invdiff.benchmark.tuning import Search
from invdiff.evaluation.pareto import pareto_front
from invdiff.storage import atomic_path

# Okabe and Ito's colours, told apart with any colour vision.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C8C00", "#000000")

# heading, metric, format, whether more is better (None: neither, or not a matter of quality)
COLUMNS: tuple[tuple[str, str, str, bool | None], ...] = (
    ("PSNR of the mean, dB", "psnr", ".2f", True),
    ("PSNR of a sample, dB", "psnr_sample", ".2f", True),
    ("SSIM of the mean", "ssim", ".3f", True),
    ("CRPS, 1/1000 of range", "crps", ".2f", False),
    ("chi2 of a sample", "chi2_sample", ".2f", None),
    ("spread-skill", "spread_skill", ".2f", None),
    ("coverage (nominal)", "coverage", ".2f", None),
    ("seconds", "seconds", ".3g", None),
    ("NFE", "nfe", ".0f", None),
    ("memory, GB", "peak_memory", ".2f", None),
)

LEGEND = """PSNR and SSIM: data range = maximum minus minimum of the reference image. "of a sample": mean over the
single samples; "of the mean": of the samples' mean. chi2: mean squared residual over the noise's variance, 1 for the
truth. CRPS (fair), spread-skill (1 if calibrated) and coverage are taken over the pixels where the reference exceeds
its minimum by 5 % of its range. Coverage: share of these pixels whose truth lies in the central interval between order
statistics of nominal level nearest to 90 %, short of all samples; the nominal level is in parentheses. Values are means
over items, ± their standard deviation. Difference: median over patients (or items) of the PSNR of the mean, minus that
of the first method; p: two-sided Wilcoxon signed-rank test on the same pairs, corrected for the number of methods
(Holm); not given for fewer than 6 pairs, which cannot reach 0.05. seconds: of all samples together; NFE: denoiser
evaluations per sample; memory: peak resident size of the process, libraries included."""


@dataclass
class Group:
    """All results of one method on one problem.

    Attributes:
        missing: tasks without a result.
        search: how its parameters were tuned, or None.
    """

    results: list[tuple[str, str, Result]] = field(default_factory=list)  # item, patient, result
    missing: int = 0
    search: Search | None = None

    def values(self, metric: str) -> list[float]:
        """One value for each item: the mean over its seeds."""
        by_item: dict[str, list[float]] = {}
        for item, _, r in self.results:
            if (v := value(r.metrics, metric)) is not None:
                by_item.setdefault(item, []).append(v)
        return [statistics.mean(v) for v in by_item.values()]

    def by_patient(self, metric: str) -> dict[str, float]:
        """One value for each patient: the mean over items and seeds."""
        found: dict[str, list[float]] = {}
        for _, patient, r in self.results:
            if (v := value(r.metrics, metric)) is not None:
                found.setdefault(patient, []).append(v)
        return {k: statistics.mean(v) for k, v in found.items()}

    def ranks(self) -> np.ndarray | None:
        """Histogram of the ranks of all results, or None."""
        found = [r.metrics["ranks"] for _, _, r in self.results if "ranks" in r.metrics]
        sizes = {len(f) for f in found}
        return np.sum(found, 0) if len(sizes) == 1 else None


def value(metrics: Mapping[str, Any], name: str) -> float | None:
    """A number of the tables, in its unit there."""
    if name == "coverage":
        return coverage(np.asarray(metrics["ranks"]), 0.9)[1] if "ranks" in metrics else None
    v = metrics.get(name)
    return None if v is None else v * {"crps": 1e3, "peak_memory": 2**-30}.get(name, 1)


def coverage(ranks: np.ndarray, level: float) -> tuple[float, float]:
    """Nominal and measured coverage of the central interval between two order statistics that is nearest to
    ``level``: (n - 1) / (n + 1) at most for n samples."""
    n = len(ranks) - 1
    a = max(1, round((1 - level) / 2 * (n + 1)))
    return (n + 1 - 2 * a) / (n + 1), float(ranks[a : n + 1 - a].sum() / ranks.sum())


def curve(ranks: np.ndarray) -> list[tuple[float, float]]:
    """Nominal and measured coverage of all central intervals between order statistics, and the ends (0, 0), (1, 1)."""
    n = len(ranks) - 1
    inner = [((n + 1 - 2 * a) / (n + 1), float(ranks[a : n + 1 - a].sum() / ranks.sum())) for a in range(n // 2, 0, -1)]
    return [(0.0, 0.0), *inner, (1.0, 1.0)]


def compare(first: Mapping[str, float], other: Mapping[str, float]) -> tuple[int, float, float | None]:
    """Pairs, median difference (other minus first), and p of Wilcoxon's signed-rank test (None below 6 pairs)."""
    from scipy.stats import wilcoxon

    both = sorted(set(first) & set(other))
    differences = [other[k] - first[k] for k in both]
    if not both:
        return 0, math.nan, None
    p = None
    if len(both) >= 6:
        p = 1.0 if not any(differences) else float(wilcoxon(differences).pvalue)
    return len(both), statistics.median(differences), p


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """p values corrected for their number (Holm 1979)."""
    order = sorted((p, i) for i, p in enumerate(ps) if p is not None)
    out: list[float | None] = [None] * len(ps)
    least = 0.0
    for k, (p, i) in enumerate(order):
        least = max(least, min(1.0, p * (len(order) - k)))
        out[i] = least
    return out


def collect(plan: Plan, store: Store) -> dict[str, dict[str, Group]]:
    """Problem to method to results, in the plan's order. Damaged results count as missing."""
    groups: dict[str, dict[str, Group]] = {}
    for cell, task in tasks(plan, store, make=False):
        if cell.search:
            continue
        group = groups.setdefault(cell.problem, {}).setdefault(cell.label, Group())
        try:
            result = store.read(task.key) if task is not None and store.has(task.key) else None
        except DamagedError:
            result = None
        if task is None or result is None:
            group.missing += 1
        else:
            group.results.append((cell.item, task.labels["patient"], result))
            group.search = task.search
    return groups


def tuned(methods: Mapping[str, Group], store: Store) -> list[str]:
    """A sentence for each method of a problem that was tuned: the values chosen, from which, and on what."""
    sentences = []
    for name, group in methods.items():
        if (s := group.search) is None or (best := s.best(store)) is None:
            continue
        scores = (s.scores(store) or {}).items()
        tried = ", ".join(f"{v}: {'failed' if score is None else format(score, '.4g')}" for v, score in scores)
        shared = sorted({p for _, p, _ in group.results} & set(s.patients))
        warning = f"; of the same patients as the results: {', '.join(shared)}" if shared else ""
        sentences.append(
            f"{name}: {best.name}, the best {s.by} of {{{tried}}} on the validation items {'; '.join(s.items)}"
            f" (patients {', '.join(s.patients)}{warning})."
        )
    return sentences


def write_report(plan: Plan, store: Store, out: Path, *, data: Path | None = None, viewer_items: int = 6) -> int:
    """Write the report, atomically; returns how many results are in it.

    Args:
        data: folder of the plan's files, for measurements that could not be saved.
        viewer_items: images of so many items of each problem are in it, of the first seed.

    Raises:
        ValueError: there is no result yet.
    """
    groups = collect(plan, store)
    n = _count(plan, store, groups)
    colors = {m: COLORS[i % len(COLORS)] for i, m in enumerate({m: 0 for ms in groups.values() for m in ms})}
    sections = "\n".join(_section(p, methods, colors, store) for p, methods in groups.items())
    template = (Path(__file__).parent / "report.html").read_text()
    page = template
    for name, text in (
        ("title", html.escape(f"Benchmark {plan.name}")),
        ("lead", html.escape(_lead(groups, n))),
        ("sections", sections),
        ("legend", html.escape(LEGEND)),
        ("provenance", _provenance(plan, store, groups)),
        ("data", json.dumps(_images(plan, store, groups, data, viewer_items)).replace("</", "<\\/")),
    ):
        page = page.replace("{{" + name + "}}", text)
    with atomic_path(out) as tmp:
        tmp.write_text(page)
    return n


# -------------------------------------------------------------------------------------- tables and plots


@dataclass(frozen=True)
class Table:
    """A problem's numbers, as text, with the places of the best of each column as (row, column)."""

    columns: Sequence[str]
    rows: Mapping[str, Sequence[str]]
    best: frozenset[tuple[str, int]]


def tabulate(methods: Mapping[str, Group]) -> Table:
    """Of one problem: a row for each method."""
    columns = [c for c in COLUMNS if any(g.values(c[1]) for g in methods.values())]
    first = next(iter(methods))
    pairs = {
        m: compare(methods[first].by_patient("psnr"), g.by_patient("psnr")) for m, g in methods.items() if m != first
    }
    corrected = dict(zip(pairs, holm([p for _, _, p in pairs.values()]), strict=True))
    compared = any(n for n, _, _ in pairs.values())
    extremes = {}
    for _, metric, form, more in columns:
        means = [float(format(statistics.mean(v), form)) for g in methods.values() if (v := g.values(metric))]
        extremes[metric] = None if more is None else max(means) if more else min(means)
    rows, best = {}, set()
    for method, g in methods.items():
        done = len(g.results)
        row = [f"{done}" if not g.missing else f"{done} of {done + g.missing}"]
        for _, metric, form, _ in columns:
            v = g.values(metric)
            if not v:
                row.append("")
                continue
            mean = statistics.mean(v)
            spread = statistics.stdev(v) if len(v) > 1 else 0.0
            text = format(mean, form) + (f" ± {format(spread, '.2g' if form == '.3g' else form)}" if spread else "")
            if metric == "coverage" and (r := g.ranks()) is not None:
                text += f" ({coverage(r, 0.9)[0]:.2f})"
            if extremes[metric] == float(format(mean, form)) and len(methods) > 1:
                best.add((method, len(row)))
            row.append(text)
        if compared:
            k, difference, _ = pairs.get(method, (0, math.nan, None))
            p = corrected.get(method)
            row += [f"{difference:+.2f} (n = {k})" if k else "", "" if p is None else f"{p:.2g}"]
        rows[method] = row
    names = ["results", *(h for h, *_ in columns), *([f"difference to {first}, dB", "p"] if compared else [])]
    return Table(names, rows, frozenset(best))


def costs(methods: Mapping[str, Group], axis: str) -> dict[str, tuple[float, float]]:
    """Method to (mean cost, mean PSNR), for those that have both; ``axis``: "seconds" or "nfe"."""
    return {
        m: (statistics.mean(x), statistics.mean(y))
        for m, g in methods.items()
        if (x := g.values(axis)) and (y := g.values("psnr")) and statistics.mean(x) > 0
    }


def curves(methods: Mapping[str, Group]) -> dict[str, list[tuple[float, float]]]:
    """Method to :func:`curve`, for those with several samples."""
    return {m: curve(r) for m, g in methods.items() if (r := g.ranks()) is not None}


AXES = (("seconds", "seconds"), ("nfe", "NFE per sample"))
QUALITY = "PSNR of the mean, dB"


def write_tables(plan: Plan, store: Store, out: Path) -> int:
    """The report's tables as text (Markdown), with the commands and where they ran; returns how many results."""
    groups = collect(plan, store)
    n = _count(plan, store, groups)
    lines = [f"Benchmark {plan.name}: {_lead(groups, n)}", ""]
    for problem, methods in groups.items():
        t = tabulate(methods)
        cells = [["method", *t.columns], *([m, *row] for m, row in t.rows.items())]
        widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
        text = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
        rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
        lines += [f"## {problem}", "", text[0], rule, *text[1:], "", *(f"- {s}" for s in tuned(methods, store)), ""]
    lines += [LEGEND, ""]
    for r in store.runs():
        if r["plan"] == plan.name:
            lines.append(f"{r['started']}: {r['command']} ({r['tasks']} tasks)")
    for name, text_ in _environment(groups).items():
        lines.append(f"{name}: {text_}")
    with atomic_path(out) as tmp:
        tmp.write_text("\n".join(lines) + "\n")
    return n


def _count(plan: Plan, store: Store, groups: Mapping[str, Mapping[str, Group]]) -> int:
    n = sum(len(g.results) for methods in groups.values() for g in methods.values())
    if not n:
        raise ValueError(f"{store.path} holds no result of the plan {plan.name!r} yet; run 'invdiff bench run' first.")
    return n


def _lead(groups: Mapping[str, Mapping[str, Group]], n: int) -> str:
    missing = sum(g.missing for methods in groups.values() for g in methods.values())
    return f"{n} results" + (f", {missing} missing or failed" if missing else "") + f". Made {now()}."


def _section(problem: str, methods: Mapping[str, Group], colors: Mapping[str, str], store: Store) -> str:
    t = tabulate(methods)
    head = "".join(f"<th>{html.escape(h)}</th>" for h in t.columns)
    rows = []
    for method, row in t.rows.items():
        marks = [' class="best"' if (method, i) in t.best else "" for i in range(len(row))]
        cells = "".join(f"<td{mark}>{html.escape(text)}</td>" for mark, text in zip(marks, row, strict=True))
        dot = f'<span class="dot" style="background:{colors[method]}"></span>'
        rows.append(f"<tr><th>{dot}{html.escape(method)}</th>{cells}</tr>")
    body = f"<table><thead><tr><th>method</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    searches = "".join(f"<li>{html.escape(s)}</li>" for s in tuned(methods, store))
    listed = f"<p class='legend'>Tuned:</p><ul class='legend'>{searches}</ul>" if searches else ""
    plots = [*(_pareto(methods, colors, axis, label) for axis, label in AXES), _calibration(methods, colors)]
    return (
        f"<section><h2>{html.escape(problem)}</h2><div class='scroll'>{body}</div>{listed}"
        f"<div class='plots'>{''.join(plots)}</div></section>"
    )


def _pareto(methods: Mapping[str, Group], colors: Mapping[str, str], axis: str, label: str) -> str:
    """Quality against cost; the line joins what no other method beats in both."""
    points = costs(methods, axis)
    if len(points) < 2:
        return ""
    at = {m: (math.log10(cost), quality) for m, (cost, quality) in points.items()}
    plot = _Plot([x for x, _ in at.values()], [y for _, y in at.values()], label, QUALITY)
    plot.line([at[m] for m in pareto_front(points)], "#999", dashed=True)
    for m, (cost, quality) in points.items():
        plot.dot(*at[m], colors[m], f"{m}: {quality:.2f} dB, {cost:.3g} {label}")
    return plot.svg(log=True)


def _calibration(methods: Mapping[str, Group], colors: Mapping[str, str]) -> str:
    """Measured against nominal coverage."""
    lines = curves(methods)
    if not lines:
        return ""
    plot = _Plot([0, 1], [0, 1], "nominal coverage", "measured coverage", pad=0)
    plot.line([(0, 0), (1, 1)], "#999", dashed=True)
    for m, c in lines.items():
        plot.line(c, colors[m], title=m)
        for x, y in c[1:-1]:
            plot.dot(x, y, colors[m], f"{m}: {y:.2f} at {x:.2f}", r=3)
    return plot.svg()


class _Plot:
    """Axes and marks of one SVG."""

    W, H, L, B, T, R = 360, 270, 52, 42, 10, 12

    def __init__(self, xs: Sequence[float], ys: Sequence[float], xlabel: str, ylabel: str, pad: float = 0.08) -> None:
        def limits(v: Sequence[float]) -> tuple[float, float]:
            lo, hi = min(v), max(v)
            span = (hi - lo) or 1.0
            return lo - pad * span, hi + pad * span

        self.x, self.y, self.labels, self.marks = limits(xs), limits(ys), (xlabel, ylabel), list[str]()

    def _at(self, x: float, y: float) -> tuple[float, float]:
        fx, fy = ((v - lo) / (hi - lo) for v, (lo, hi) in ((x, self.x), (y, self.y)))
        return self.L + fx * (self.W - self.L - self.R), self.H - self.B - fy * (self.H - self.B - self.T)

    def line(self, points: Sequence[tuple[float, float]], color: str, *, dashed: bool = False, title: str = "") -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (self._at(*p) for p in points))
        dash = ' stroke-dasharray="4 4"' if dashed else ""
        self.marks.append(
            f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"{dash}>'
            f"<title>{html.escape(title)}</title></polyline>"
        )

    def dot(self, x: float, y: float, color: str, title: str, r: float = 5) -> None:
        cx, cy = self._at(x, y)
        self.marks.append(
            f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="{r}" fill="{color}"><title>{html.escape(title)}</title></circle>'
        )

    def svg(self, *, log: bool = False) -> str:
        W, H, L, B, T, R = self.W, self.H, self.L, self.B, self.T, self.R
        parts = [f'<rect x="{L}" y="{T}" width="{W - L - R}" height="{H - B - T}" fill="none" stroke="#bbb"/>']
        for v, text in _log_ticks(*self.x) if log else _ticks(*self.x):
            x, _ = self._at(v, self.y[0])
            parts.append(
                f'<path d="M{x:.1f} {H - B}v4" stroke="#888"/><text x="{x:.1f}" y="{H - B + 17}">{text}</text>'
            )
        for v, text in _ticks(*self.y):
            _, y = self._at(self.x[0], v)
            parts.append(
                f'<path d="M{L} {y:.1f}h-4" stroke="#888"/><text x="{L - 8}" y="{y + 4:.1f}" class="r">{text}</text>'
            )
        xlabel, ylabel = self.labels
        parts.append(f'<text x="{(L + W - R) / 2}" y="{H - 6}">{html.escape(xlabel)}</text>')
        mid = (H - B + T) / 2
        parts.append(f'<text transform="translate(13 {mid}) rotate(-90)">{html.escape(ylabel)}</text>')
        name = html.escape(f"{ylabel} against {xlabel}")
        return f'<svg viewBox="0 0 {W} {H}" role="img" aria-label="{name}">{"".join(parts + self.marks)}</svg>'


def _ticks(lo: float, hi: float) -> list[tuple[float, str]]:
    step = 10 ** math.floor(math.log10((hi - lo) / 3))
    step *= next(k for k in (1, 2, 5, 10) if (hi - lo) / (k * step) <= 5)
    digits = max(0, -math.floor(math.log10(step)))
    return [
        (k * step, f"{k * step:.{digits}f}")
        for k in range(math.ceil(lo / step - 1e-9), math.floor(hi / step + 1e-9) + 1)
    ]


def _log_ticks(lo: float, hi: float) -> list[tuple[float, str]]:
    few = hi - lo > 2.5
    values = [m * 10.0**e for e in range(math.floor(lo), math.ceil(hi) + 1) for m in ((1,) if few else (1, 2, 5))]
    return [(math.log10(v), f"{v:g}") for v in values if lo <= math.log10(v) <= hi]


def _environment(groups: Mapping[str, Mapping[str, Group]]) -> dict[str, str]:
    """What the results were made with, and when."""
    results = [r for methods in groups.values() for g in methods.values() for _, _, r in g.results]
    names = ("invdiff", "commit", "python", "torch", "numpy", "scipy", "platform", "cpu", "cpus", "threads", "device")
    out = {name: ", ".join(sorted({str(r.env.get(name, "")) for r in results})[:8]) for name in names}
    days = sorted(str(r.env.get("finished", "")) for r in results)
    return {**out, "computed": f"{days[0]} to {days[-1]}"}


def _provenance(plan: Plan, store: Store, groups: Mapping[str, Mapping[str, Group]]) -> str:
    runs = [r for r in store.runs() if r["plan"] == plan.name]
    items = [f"<li><code>{html.escape(r['command'])}</code> ({r['started']}, {r['tasks']} tasks)</li>" for r in runs]
    rows = [f"<tr><th>{name}</th><td>{html.escape(text)}</td></tr>" for name, text in _environment(groups).items()]
    parameters: dict[str, str] = {}
    for problem, methods in groups.items():
        for name, g in methods.items():
            if g.results:
                if g.search is not None:
                    name = f"{name} ({problem})"
                spec = g.results[0][2].spec
                prior = f", prior {spec.prior} {spec.prior_sha256[:12]}" if spec.prior else ""
                values = ", ".join(f"{k}={v}" for k, v in spec.parameters.items())
                parameters[name] = f"{spec.method}({values}), {spec.n_samples} samples{prior}, version {spec.version}"
    listed = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in parameters.items())
    return (
        f"<h3>Commands</h3><ul>{''.join(items) or '<li>not recorded</li>'}</ul>"
        f"<h3>Environment</h3><table>{''.join(rows)}</table><h3>Methods</h3><table>{listed}</table>"
        f"<h3>Plan</h3><pre>{html.escape(plan.text)}</pre>"
    )


# ------------------------------------------------------------------------------------------------ viewer


def _png(x: np.ndarray, lo: float, hi: float) -> str:
    """A data URI: 16 bits, the high byte in red and the low byte in green."""
    from PIL import Image

    code = np.round(np.clip((x - lo) / ((hi - lo) or 1.0), 0, 1) * 65535).astype(np.uint16)
    rgb = np.stack([code >> 8, code & 255, np.zeros_like(code)], -1).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _picture(images: Sequence[Tensor]) -> dict[str, Any]:
    """Images on one scale."""
    arrays = [_plane(x) for x in images]
    lo, hi = min(float(a.min()) for a in arrays), max(float(a.max()) for a in arrays)
    return {"lo": lo, "hi": hi, "png": [_png(a, lo, hi) for a in arrays]}


def _plane(x: Tensor) -> np.ndarray:
    """(channel, [z,] y, x) as one plane: the magnitude of the channels, the middle of z."""
    x = x.detach().float()
    while x.ndim > 3:
        x = x[:, x.shape[1] // 2]
    return (x[0] if len(x) == 1 else x.square().sum(0).sqrt()).numpy()


def _images(
    plan: Plan, store: Store, groups: Mapping[str, Mapping[str, Group]], data: Path | None, n_items: int
) -> dict[str, Any]:
    from matplotlib import colormaps

    problems: dict[str, Any] = {}
    for problem, methods in groups.items():
        items: dict[str, Any] = {}
        for method, g in methods.items():
            for item, _, r in g.results:
                if r.spec.seed != plan.seeds[0] or (item not in items and len(items) >= n_items):
                    continue
                if item not in items:
                    m = store.measurement(r.spec.recipe, data)
                    truth = None if m.reference is None or m.A.in_complex else _picture([m.reference])
                    items[item] = {"truth": truth, "units": m.units, "scale": m.image_scale, "methods": {}}
                arrays = store.arrays(r.key)
                if arrays["mean"].ndim < 3:
                    continue
                numbers = {k: v for k, v in r.metrics.items() if isinstance(v, float | int)}
                entry = {"metrics": numbers, "images": _picture([arrays["mean"], *arrays["samples"]])}
                if "std" in arrays:
                    entry["std"] = _picture([arrays["std"]])
                items[item]["methods"][method] = entry
        problems[problem] = items
    heat = (colormaps["inferno"](np.arange(256) / 255)[:, :3] * 255).round().astype(int).tolist()
    return {"problems": problems, "heat": heat}
