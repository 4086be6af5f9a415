"""The truth bench: its floor meets the thresholds, its blind spots are caught by what is not blind to them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from invdiff import GaussianNoise, Measurement
from invdiff.algorithms import ALGORITHMS, DAPS, DPS
from invdiff.algorithms.draw import DivergenceError
from invdiff.cli import app
from invdiff.evaluation import truth
from invdiff.evaluation.truth import SETTINGS, Record, Setting, draw
from invdiff.evaluation.truth_problems import PROBLEMS, Problem, build, mcgdiff, measures, relative
from invdiff.operators import Matrix
from invdiff.priors import Prior
from invdiff.priors.analytic import ExactPosterior, PosteriorPrior

# shared/reference/evaluation.md, section 1.5: exact-class samplers, 64 x 16 samples of a Gaussian image
THRESHOLDS = {
    "gap_db": (-0.15, 0.15),
    "spread_skill": (0.93, 1.07),
    "cov90": (0.85, 0.92),
    "chi2": (0.9, 1.1),
    "var_null": (0.9, 1.1),
    "var_range": (0.9, 1.1),
    "sbc_tv": (0, 0.035),
    "crps_ratio": (0.98, 1.02),
}


@pytest.fixture(scope="module")
def gaussian() -> Problem:
    return build("gaussian-blur-mask")


@pytest.fixture(scope="module")
def mixture() -> Problem:
    return build("mixture-8-1", n_items=2)


def failures(values: dict[str, float]) -> dict[str, float]:
    return {k: values[k] for k, (lo, hi) in THRESHOLDS.items() if not lo <= values[k] <= hi}


def test_exact_draws_meet_every_threshold(gaussian: Problem) -> None:
    (g,) = gaussian.groups
    values = relative(gaussian, measures(gaussian, [g.exact(16, seed=77)]))
    assert not failures(values)
    assert values["tarp"] < 1.36 / 8


def test_exact_posterior_diffusion_meets_every_threshold(gaussian: Problem) -> None:
    values = truth._reference(gaussian, truth.DIFFUSION).values
    assert not failures(values)


def test_prior_draws_pass_the_blind_measures_and_are_caught_by_the_others(gaussian: Problem) -> None:
    values = truth._reference(gaussian, truth.PRIOR).values
    caught = failures(values)
    assert {"spread_skill", "cov90", "sbc_tv"}.isdisjoint(caught)
    assert values["chi2"] > 30
    assert values["crps_ratio"] > 1.5
    assert values["gap_db"] > 3
    assert values["tarp"] > 0.5  # references that depend on the data


def test_the_posterior_mean_repeated_has_no_spread_and_the_best_error(gaussian: Problem) -> None:
    (g,) = gaussian.groups
    values = relative(gaussian, measures(gaussian, [g.exact_mean[:, None].expand(-1, 16, -1, -1, -1).clone()]))
    assert -0.4 < values["gap_db"] < -0.1  # 16 exact draws have 0.26 dB
    assert values["spread_skill"] < 1e-3
    assert values["cov90"] == 0
    assert values["crps_ratio"] > 1.2


def test_mixtures_have_a_floor_and_a_ceiling(mixture: Problem) -> None:
    exact, diffusion, prior = (
        truth._reference(mixture, row).values for row in (truth.EXACT, truth.DIFFUSION, truth.PRIOR)
    )
    assert 0.6 < exact["sw1_ratio"] < 1.6
    assert diffusion["sw1_ratio"] < 1.8
    assert prior["sw1_ratio"] > 10
    assert exact["mode_tv"] < 0.03 < 0.3 < prior["mode_tv"]
    assert 0.9 < exact["chi2_ratio"] < 1.1 < prior["chi2_ratio"] / 10
    assert abs(exact["gap_db"]) < 0.05
    assert abs(diffusion["spread_skill"] / exact["spread_skill"] - 1) < 0.05


@pytest.mark.parametrize("algorithm", [DAPS(n_anneal=10), DPS(n_steps=10, clip=False)], ids=["daps", "dps"])
@pytest.mark.parametrize("name", ["gaussian-ct", "complex-mri", "templates-mask"])
def test_a_stacked_call_equals_single_calls(algorithm: Any, name: str) -> None:
    (g,) = build(name, n_items=3, n_samples=2).groups
    stacked, nfe = draw(algorithm, g, seed=5)
    assert nfe == 10
    for i in range(3):
        alone = algorithm(g.prior, g.measurement(i), n_samples=2 * i + 2, seed=5)  # its last rows: the same streams
        torch.testing.assert_close(stacked[i], alone.samples[-2:], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_problem_is_what_it_says(name: str) -> None:
    p = build(name, n_items=2, n_samples=4, n_truths=3)
    for g in p.groups:
        assert g.stack(4).n_data == g.measurement(0).n_data
        chi2 = g.measurement(0).chi2(g.x[0])
        assert 0.001 < float(chi2) < 10
        again = build(name, n_items=2, n_samples=4, n_truths=3).groups[p.groups.index(g)]
        torch.testing.assert_close(again.y, g.y, rtol=0, atol=0)
        for i, posterior in enumerate(g.posteriors):  # reused factor = computed anew
            torch.testing.assert_close(posterior.mean, g.prior.posterior(g.measurement(i)).mean, rtol=1e-9, atol=1e-9)
    assert all(math.isfinite(v) for v in truth._reference(p, truth.EXACT).values.values())


def test_mcgdiff_problems_are_the_published_ones() -> None:
    prior, A, noise = mcgdiff(8, 2, seed=3)
    means = prior.scale * prior.means.reshape(25, 8)
    assert means[0].tolist() == [-16] * 8
    assert means[1].tolist() == [-16, -8] * 4
    assert float((prior.scale * prior.sample(4000, seed=0) - means.mean(0).reshape(1, 1, 8).float()).std()) > 5
    s = torch.linalg.svdvals(A.matrix)
    assert 0 < float(s[1]) <= float(s[0]) < 1
    assert 0 < noise.sigma < float(s[0])


def test_posterior_prior_is_the_denoiser_of_each_posterior() -> None:
    """One level down: E[x0 | u, y] is the posterior mean when u is a second measurement of the image."""
    (g,) = build("templates-mask", n_items=2, n_samples=3).groups
    D, sigma = PosteriorPrior(g.posteriors), 0.3
    u = g.prior.sample(6, seed=1) + sigma * torch.randn(6, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    got = D(u, sigma)
    keep = g.A.observed.flatten()
    for row in (0, 5):
        # stack the pixel data, scaled to unit noise, on the noisy image, scaled to unit noise
        eye = torch.eye(256)
        M = Matrix(torch.cat([eye[keep] / 0.1, eye / sigma]), (1, 16, 16), (int(keep.sum()) + 256,))
        y = torch.cat([g.y[row // 3].flatten()[keep] / 0.1, u[row].flatten() / sigma])
        want = ExactPosterior(g.prior, Measurement(y, M, GaussianNoise(1.0))).mean
        torch.testing.assert_close(got[row].double(), want, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="multiple of 2"):
        D(u[:5], sigma)


class Fails:
    """An algorithm that raises what it is told."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, prior: Prior, measurement: Any, **_: Any) -> Any:
        raise self.error


def bench(monkeypatch: pytest.MonkeyPatch, make: Any, scales: dict[str, tuple[float, ...]] | None = None) -> Record:
    monkeypatch.setitem(SETTINGS, "it", Setting(algorithm="daps", label="heuristic", make=make, scales=scales or {}))
    problem = build("gaussian-mask", n_items=4, n_samples=3)
    return truth._evaluate(problem, "it", SETTINGS["it"], DAPS, 0)


def test_an_algorithm_that_refuses_gets_its_reason_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    r = bench(monkeypatch, lambda cls, p, z: Fails(TypeError("needs an SVD")))
    assert r.reason == "needs an SVD"
    assert not r.values
    assert not r.nonfinite


def test_divergence_is_a_share_of_non_finite_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    r = bench(monkeypatch, lambda cls, p, z: Fails(DivergenceError("step 3")))
    assert r.nonfinite == 1
    assert not r.values


def test_the_tuned_scale_is_the_best_on_other_draws_and_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    make = lambda cls, p, z: DPS(n_steps=30, guidance_scale=z, clip=False)  # noqa: E731
    r = bench(monkeypatch, make, {"image": (1e-4, 0.3, 1e4)})
    assert r.tuned == 0.3
    assert "guidance_scale=0.3" in r.algorithm


def test_run_saves_and_shows_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = lambda name, quick, seed: build(name, n_items=2, n_samples=4, n_truths=2)  # noqa: E731
    monkeypatch.setattr(truth, "_built", small)
    monkeypatch.setattr(truth, "_n", lambda problem, full, quick: 5)
    told: list[tuple[int, int, str]] = []
    records = truth.run_truth(
        ["daps"], problems=["gaussian-mask", "mixture-8-4"], callback=lambda *args: told.append(args)
    )
    assert [r.row for r in records] == 2 * [truth.EXACT, truth.PRIOR, truth.DIFFUSION, "daps"]
    assert told[-1][:2] == (8, 8)
    truth.save(records, tmp_path)
    saved = json.loads((tmp_path / "truth.json").read_text())["records"]
    assert saved[3]["values"]["spread_skill"] == records[3].values["spread_skill"]
    assert (tmp_path / "truth.png").stat().st_size > 10_000
    assert [t.row_count for t in truth.tables(records)] == [4, 4]


def test_unknown_names_are_refused_before_any_work() -> None:
    with pytest.raises(KeyError, match="no row for 'nope'"):
        truth.run_truth(["nope"])
    with pytest.raises(KeyError, match="No problem 'nope'"):
        truth.run_truth(problems=["nope"])


def test_rows_name_algorithms_that_exist() -> None:
    assert {s.algorithm for s in SETTINGS.values()} <= set(ALGORITHMS)


def test_the_command_writes_its_files_and_prints_every_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = lambda name, quick, seed: build(name, n_items=2, n_samples=4, n_truths=2)  # noqa: E731
    monkeypatch.setattr(truth, "_built", small)
    monkeypatch.setattr(truth, "_n", lambda problem, full, quick: 5)
    monkeypatch.setattr(truth, "PROBLEMS", {k: PROBLEMS[k] for k in ("gaussian-ct", "mixture-8-1")})
    monkeypatch.setenv("COLUMNS", "200")
    command = ["truth", "--algorithm", "daps", "--quick", "--workers", "1", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert result.output.count("exact-posterior diffusion") >= 2
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"truth.json", "truth.png"}
    assert CliRunner().invoke(app, command).exit_code == 2  # the folder is not empty


def test_the_command_refuses_an_unknown_algorithm(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["truth", "--algorithm", "nope", "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "there are" in result.output
    assert "pigdm, pigdm-paper, pnp-dm" in result.output.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_the_command_prints_its_tables_where_nothing_can_be_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError("No space left")

    monkeypatch.setattr(truth, "run_truth", lambda *_, **__: [])
    monkeypatch.setattr(truth, "tables", lambda _: ["a table"])
    monkeypatch.setattr(truth, "save", full)
    result = CliRunner().invoke(app, ["truth", "--out", "nowhere"])
    assert result.exit_code == 2
    assert "a table" in result.output
    assert "No space left" in result.stderr


@pytest.mark.parametrize("name", ["gaussian-ct", "complex-mri", "mixture-8-4"])
def test_the_closed_form_prox_solves_its_normal_equations(name: str) -> None:
    A = build(name, n_items=2, n_samples=2).groups[0].A.to(dtype=torch.float64)
    z = torch.randn(3, *A.in_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = A(z.flip(0)) + 1
    for weight in (0.1, 1e4):
        x = A.prox(z, y, weight)
        gradient = x - z + weight * A.H(A(x) - y)
        assert float(gradient.abs().max()) < 1e-4 * weight * float(A.H(y).abs().max())


def test_the_known_covariance_is_that_of_a_gaussian_prior() -> None:
    """With it, ``x0 + s^2 grad log p(y | u)`` is E[x0 | u, y], which the posterior as a prior knows too."""
    from invdiff.algorithms.draw import Run
    from invdiff.algorithms.guidance import likelihood_score
    from invdiff.priors.denoiser import Counted
    from invdiff.random import SampleStreams

    for name in ("gaussian-blur-mask", "complex-mri"):
        (g,) = build(name, n_items=2, n_samples=1).groups
        m = g.prior.in_model_units(g.stack(1))
        run = Run(Counted(g.prior), m, SampleStreams(0, range(2)), None, lambda *args, **state: None)
        u = g.prior.sample(2, seed=1)
        x0, score, _ = likelihood_score(u, 0.4, run, truth.KnownCovariance.of(g))
        torch.testing.assert_close(x0 + 0.4**2 * score, PosteriorPrior(g.posteriors)(u, 0.4), rtol=1e-3, atol=1e-3)
