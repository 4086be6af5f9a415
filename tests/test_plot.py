"""What the figures show, read back from their axes; each is rendered once."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from invdiff import plot
from invdiff.evaluation import calibration
from invdiff.plot import Row
from invdiff.posterior import Posterior


def rendered(figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=50)
    return buffer.getvalue()


def posterior(n_samples: int) -> Posterior:
    g = torch.Generator().manual_seed(0)
    return Posterior(
        samples=torch.linspace(0, 1, 16)[None, None, None] + 0.1 * torch.randn(n_samples, 1, 16, 16, generator=g)
    )


def test_panels_share_the_window_and_show_the_samples_asked_for() -> None:
    truth = torch.linspace(0, 1, 16).expand(1, 16, 16)
    figure, axes = plot.panels(
        [
            Row(title="a", posterior=posterior(4), reference=truth, window=(0.25, 0.75), n_shown=3),
            Row(title="b", posterior=posterior(1)),
        ]
    )
    assert axes.shape == (2, 7)
    titles = ["truth", "posterior mean", "sample 1", "sample 2", "sample 3", "standard deviation", "|mean - truth|"]
    assert [ax.get_title() for ax in axes[0]] == titles
    assert [ax.images[0].get_clim() for ax in axes[0, :5]] == [(0.25, 0.75)] * 5
    assert axes[0, 5].images[0].get_clim() == axes[0, 6].images[0].get_clim()
    np.testing.assert_array_equal(axes[0, 3].images[0].get_array(), posterior(4).samples[1, 0].numpy())
    assert [ax.get_visible() for ax in axes[1]] == [True, True, False, False, False, False, False]
    assert rendered(figure).startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="n_shown must lie in 1 .. 4"):
        plot.panels([Row(title="a", posterior=posterior(4), n_shown=5)])
    with pytest.raises(ValueError, match="lower < upper"):
        plot.panels([Row(title="a", posterior=posterior(4), window=(1.0, 0.0))])


def test_calibration_curve_plots_what_was_computed() -> None:
    curve = calibration.calibration_curve(torch.arange(17), 16)
    figure, ax = plot.calibration_curve({"exact draws": curve})
    diagonal, line = ax.lines
    assert line.get_label() == "exact draws"
    np.testing.assert_allclose(np.asarray(line.get_xydata()), torch.stack(curve, 1))
    np.testing.assert_allclose(diagonal.get_xydata(), [[0, 0], [1, 1]])
    assert rendered(figure)


def test_rank_histogram_of_unequal_bins_is_level_for_uniform_ranks() -> None:
    figure, ax = plot.rank_histogram(torch.arange(32), 31, max_bins=20)  # bins of one rank and of two
    (stairs,) = ax.patches
    values, edges, _ = stairs.get_data()
    np.testing.assert_allclose(values, np.ones(20))
    np.testing.assert_allclose(edges[[0, -1]], [-0.5, 31.5])
    np.testing.assert_allclose(np.asarray(edges) % 1, 0.5)  # between ranks
    assert ax.get_title() == "total variation 0.000"
    assert rendered(figure)


def test_pareto_front() -> None:
    points = {"a": (1.0, 20.0), "b": (10.0, 30.0), "worse": (20.0, 25.0), "same": (30.0, 30.0), "best": (100.0, 31.0)}
    figure, ax = plot.pareto(points, cost="NFE", quality="PSNR [dB]")
    np.testing.assert_allclose(np.asarray(ax.lines[0].get_xydata()), [(1, 20), (10, 30), (100, 31)])
    assert (ax.get_xscale(), ax.get_xlabel(), ax.get_ylabel()) == ("log", "NFE", "PSNR [dB]")
    assert [t.get_text() for t in ax.texts] == list(points)
    assert rendered(figure)
    _, ax = plot.pareto(points, cost="NFE", quality="CRPS", lower_is_better=True)
    np.testing.assert_allclose(np.asarray(ax.lines[0].get_xydata()), [(1, 20)])
    with pytest.raises(ValueError, match="FBP has cost 0"):
        plot.pareto({"FBP": (0, 20.0)}, cost="NFE", quality="PSNR")
    with pytest.raises(ValueError, match="no points"):
        plot.pareto({}, cost="NFE", quality="PSNR")
