"""The main job on two real images: what ``invdiff demo`` runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from invdiff.algorithms import DAPS
from invdiff.classical import FBP, CGSense
from invdiff.datasets import accelerated_mri, sparse_view_ct
from invdiff.evaluation import psnr, ssim
from invdiff.measurement import Measurement
from invdiff.plot import Row, save_panels
from invdiff.posterior import Posterior
from invdiff.priors import load_prior
from invdiff.storage import atomic_path


@dataclass(frozen=True, kw_only=True)
class Score:
    """One line of the table."""

    problem: str
    reconstruction: str
    psnr: float
    ssim: float
    chi2: float
    seconds: float
    nfe: float


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A measurement with the prior and the classical method it goes with."""

    title: str
    measurement: Callable[[], Measurement]
    prior: str
    classical_name: str
    classical: Any


PROBLEMS = (
    Problem(
        title="CT, 40 views", measurement=sparse_view_ct, prior="ct-128", classical_name="FBP",
        classical=FBP(window="hann"),
    ),
    Problem(
        title="brain MRI, 4x, 8 coils", measurement=accelerated_mri, prior="brain-mri-128", classical_name="CG-SENSE",
        classical=CGSense(),
    ),
)  # fmt: skip

ALGORITHM = DAPS(n_anneal=150, width=2.0)


def run_demo(out: Path, *, n_samples: int, seed: int, progress: Callable[[str], Callable[..., None]]) -> list[Score]:
    """Reconstruct both problems, write everything below ``out``, return the table.

    Args:
        progress: called as ``progress(title)``; returns the algorithm's callback.
    """
    scores: list[Score] = []
    rows: list[Row] = []
    for problem in PROBLEMS:
        m = problem.measurement()
        assert m.reference is not None
        classical: Posterior = problem.classical(None, m)
        posterior = ALGORITHM(
            load_prior(problem.prior), m, n_samples=n_samples, seed=seed,
            callback=progress(problem.title),
        )  # fmt: skip
        posterior.save(out / (m.item or "posterior"), overwrite=True)
        lines = [
            score(problem, problem.classical_name, classical.mean, m, classical),
            score(problem, "posterior mean", posterior.mean, m, posterior),
            score(problem, "one sample", posterior.samples[0], m, posterior),
        ]
        scores += lines
        rows.append(
            Row(
                title=problem.title, posterior=posterior, classical=(problem.classical_name, classical),
                reference=m.reference, notes={s.reconstruction: f"{s.psnr:.1f} dB" for s in lines},
            )
        )  # fmt: skip
    save_panels(rows, out / "figure.png")
    with atomic_path(out / "table.json") as tmp:
        tmp.write_text(json.dumps([asdict(s) for s in scores], indent=2) + "\n")
    return scores


def score(problem: Problem, name: str, x: Tensor, m: Measurement, posterior: Posterior) -> Score:
    """Quality of one image against the reference (range: its maximum minus minimum) and its data fit."""
    assert m.reference is not None
    data_range = float(m.reference.max() - m.reference.min())
    return Score(
        problem=problem.title,
        reconstruction=name,
        psnr=psnr(x, m.reference, data_range=data_range),
        ssim=ssim(x, m.reference, data_range=data_range),
        chi2=float(m.chi2(x)),
        seconds=posterior.seconds,
        nfe=posterior.nfe,
    )
