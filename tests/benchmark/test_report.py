"""The report: its statistics, and the page in a real browser."""

from __future__ import annotations

import io
import statistics
from pathlib import Path
from typing import Any

import browser
import numpy as np
import pytest
import torch

from invdiff import plot
from invdiff.benchmark import Plan, Store, run
from invdiff.benchmark.report import (
    _log_ticks,
    _ticks,
    collect,
    compare,
    coverage,
    curve,
    holm,
    tabulate,
    write_report,
)
from invdiff.evaluation import calibration


def test_coverage_by_ranks_is_that_of_the_calibration_module() -> None:
    generator = torch.Generator().manual_seed(0)
    samples, truth = torch.randn(1, 19, 500, generator=generator), 1.3 * torch.randn(1, 500, generator=generator)
    rank = calibration.ranks(samples, truth)
    histogram = torch.bincount(rank.flatten(), minlength=20).numpy()
    assert coverage(histogram, 0.9) == pytest.approx((0.9, calibration.coverage(rank, 19, 0.9)))
    assert dict(curve(histogram))[0.5] == pytest.approx(calibration.coverage(rank, 19, 0.5))
    assert coverage(np.array([1, 1, 1, 1, 1]), 0.9) == (0.6, 0.6)  # 4 samples: no wider interval but all of them
    assert curve(np.array([2, 1, 1, 2])) == [(0, 0), (0.5, pytest.approx(1 / 3)), (1, 1)]


def test_pairs_are_compared_as_wilcoxon_did() -> None:
    first = {str(i): 30.0 for i in range(8)}
    other = {str(i): 30.0 + d for i, d in enumerate([1, 2, 3, 4, 5, 6, 7, -8])}
    n, median, p = compare(first, {**other, "only here": 0.0})
    assert (n, median) == (8, 3.5)
    # rank sums 28 and 8 of 36; the exact two-sided p of W = 8 at n = 8 is 50 / 256 (Wilcoxon 1945, table)
    assert p == pytest.approx(50 / 256)
    assert compare(first, dict(list(other.items())[:5]))[2] is None
    assert compare(first, first) == (8, 0, 1.0)
    assert compare({}, other)[0] == 0


def test_holm_multiplies_by_what_is_left() -> None:
    assert holm([0.01, None, 0.04, 0.03]) == [0.03, None, pytest.approx(0.06), pytest.approx(0.06)]
    assert holm([0.6, 0.7]) == [1.0, 1.0]


def test_ticks_are_round_and_inside() -> None:
    assert [t for _, t in _ticks(0.13, 0.92)] == ["0.2", "0.4", "0.6", "0.8"]
    assert [t for _, t in _ticks(28.7, 33.1)] == ["29", "30", "31", "32", "33"]
    assert [t for _, t in _log_ticks(-2.1, 1.2)] == ["0.01", "0.1", "1", "10"]


@pytest.fixture
def page(tmp_path: Path, make_plan: Any) -> Path:
    plan = Plan.read(make_plan("", "seconds = 0.001", items=8))
    run(plan, tmp_path / "s", command="invdiff bench run <plan>")
    out = tmp_path / "report.html"
    assert write_report(plan, Store(tmp_path / "s"), out) == 16
    return out


def test_the_page_has_the_numbers_and_names_nothing_outside(page: Path, tmp_path: Path, make_plan: Any) -> None:
    text = page.read_text()
    group = collect(Plan.read(tmp_path / "plan.toml"), Store(tmp_path / "s"))["P"]["m0"]
    assert f"{statistics.mean(group.values('psnr')):.2f} ± " in text
    assert len(group.by_patient("psnr")) == 4  # 8 items of 4 patients
    assert "invdiff bench run &lt;plan&gt;" in text
    assert "(n = 4)" in text
    assert "{{" not in text
    assert "http:" not in text
    assert "https:" not in text
    assert '"m1"' in text  # in the viewer


def test_a_report_of_an_unfinished_run_says_what_is_missing(page: Path, tmp_path: Path, make_plan: Any) -> None:
    store, plan = Store(tmp_path / "s"), Plan.read(tmp_path / "plan.toml")
    for key in list(store.keys())[:3]:
        store.set_aside(key)
    assert write_report(plan, store, page) == 13
    assert "13 results, 3 missing or failed" in page.read_text()
    other = Plan.read(make_plan("fails = 0, seconds = 0.5", name="other"))
    with pytest.raises(ValueError, match="holds no result of the plan 'other' yet"):
        write_report(other, store, page)


def test_matplotlib_shows_the_numbers_of_the_page(page: Path, tmp_path: Path) -> None:
    plan, store = Plan.read(tmp_path / "plan.toml"), Store(tmp_path / "s")
    (figures,) = plot.benchmark(plan, store).values()
    assert set(figures) == {"table", "nfe", "calibration"}  # Draw's stated seconds are 0: nothing to plot
    methods = collect(plan, store)["P"]
    expected = {m: (statistics.mean(g.values("nfe")), statistics.mean(g.values("psnr"))) for m, g in methods.items()}
    (nfe,) = figures["nfe"].axes
    assert [t.get_text() for t in nfe.texts] == list(expected)
    assert {tuple(c.get_offsets()[0]) for c in nfe.collections} == set(expected.values())
    (calibration_axes,) = figures["calibration"].axes
    lines = {line.get_label(): line.get_xydata() for line in calibration_axes.lines}
    np.testing.assert_allclose(lines["m1"], curve(methods["m1"].ranks()), atol=1e-6)
    (cell_texts,) = [[c.get_text().get_text() for c in a.tables[0].get_celld().values()] for a in figures["table"].axes]
    assert set(tabulate(methods).rows["m0"]) <= set(cell_texts)
    for figure in figures.values():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=50)
        assert buffer.getvalue().startswith(b"\x89PNG")


@pytest.mark.skipif(browser.find() is None, reason="needs chromium (apt-get install chromium)")
def test_the_page_works_in_a_browser(page: Path, tmp_path: Path) -> None:
    b = browser.Browser(tmp_path / "profile")
    try:
        b.open(page)
        b.until("document.querySelectorAll('canvas').length === 3")  # truth and two methods
        turn = "Number(document.getElementById('panels').dataset.turn)"

        def act(action: str) -> None:
            before = b.evaluate(turn)
            b.evaluate(action)
            b.until(f"{turn} > {before}")

        def dispatch(name: str, value: str, event: str) -> None:
            element = f"document.getElementById('{name}')"
            act(f"(e => {{ e.value = {value!r}; e.dispatchEvent(new Event('{event}')); }})({element})")

        def choose(name: str, value: str) -> None:
            dispatch(name, value, "change")

        def slide(name: str, value: int) -> None:
            dispatch(name, str(value), "input")

        def picture(i: int = 1) -> list[int]:
            return b.evaluate(
                f"Array.from(document.querySelectorAll('canvas')[{i}].getContext('2d').getImageData(0, 0, 8, 8).data)"
            )

        store = Store(tmp_path / "s")
        truth_of = {r.labels["item"]: store.measurement(r.spec.recipe).reference for r in map(store.read, store.keys())}
        item = b.evaluate("document.getElementById('item').value")
        x = truth_of[item]
        assert x is not None
        expected = torch.round(255 * (x[0] - x.min()) / (x.max() - x.min()))
        shown = torch.tensor(picture(0)).reshape(8, 8, 4)
        assert float((shown[..., 0] - expected).abs().max()) <= 1  # the truth, full range
        assert bool((shown[..., 3] == 255).all())
        mean = picture()
        choose("item", "3")
        other = picture()
        assert other != mean
        slide("sample", 2)
        second = picture()
        assert b.evaluate("document.getElementById('show').value") == "sample"
        slide("sample", 3)
        assert len({str(p) for p in (mean, other, second, picture())}) == 4
        assert "3 of 3" in b.evaluate("document.getElementById('sample-out').textContent")
        slide("width", 200)
        narrow = picture()
        slide("level", 900)
        dark = picture()
        assert sum(dark) < sum(narrow)
        choose("show", "std")
        assert b.evaluate("document.querySelectorAll('canvas').length") == 2  # of the methods; the truth has none
        choose("show", "error")
        assert b.evaluate("document.querySelectorAll('canvas').length") == 2
        choose("show", "mean")
        assert picture() == other  # the window is back at the full range
        b.evaluate("document.querySelector('canvas').onmousemove({offsetX: 1, offsetY: 1})")
        assert "(0, 0): " in b.evaluate("document.querySelector('.value').textContent")
        assert b.evaluate("document.querySelectorAll('svg').length") >= 1
        assert b.complaints == []
        outside = [url for url in b.requests if not url.startswith(("data:", "file:"))]
        assert outside == []
        assert sum(url.startswith("file:") for url in b.requests) == 1
    finally:
        b.close()
