"""Posterior: summaries and files."""

from pathlib import Path

import pytest
import torch

from invdiff import Posterior

SAMPLES = torch.randn(50, 1, 6, 5, generator=torch.Generator().manual_seed(0))
P = Posterior(samples=SAMPLES, units="1/mm", algorithm="DAPS()", seed=3, nfe=100, seconds=1.5, metadata={"a": 1})


def test_interval_holds_its_share_of_the_samples() -> None:
    lower, upper = P.interval(0.8)
    inside = ((SAMPLES >= lower) & (SAMPLES <= upper)).float().mean(0)
    assert float(inside.min()) >= 0.76
    assert float(inside.max()) <= 0.84


def test_saved_and_loaded_posteriors_agree(tmp_path: Path) -> None:
    P.save(tmp_path / "p")
    q = Posterior.load(tmp_path / "p")
    assert torch.equal(q.samples, SAMPLES)
    assert (q.units, q.algorithm, q.seed, q.nfe, q.seconds, q.metadata) == (
        "1/mm",
        "DAPS()",
        3,
        100,
        1.5,
        {"a": 1},
    )


def test_a_non_empty_folder_is_not_overwritten(tmp_path: Path) -> None:
    P.save(tmp_path / "p")
    with pytest.raises(FileExistsError, match="not empty"):
        P.save(tmp_path / "p")
    (tmp_path / "p" / "notes.txt").write_text("mine")
    P.save(tmp_path / "p", overwrite=True)
    assert (tmp_path / "p" / "notes.txt").read_text() == "mine"
    (tmp_path / "p" / "posterior.safetensors").write_bytes(b"\0" * 40)
    with pytest.raises(ValueError, match="truncated"):
        Posterior.load(tmp_path / "p")
    with pytest.raises(FileNotFoundError, match=r"no posterior\.safetensors"):
        Posterior.load(tmp_path)


def test_a_point_estimate_has_no_standard_deviation() -> None:
    with pytest.raises(ValueError, match="at least 2 samples"):
        _ = Posterior(samples=SAMPLES[:1]).std
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        P.quantile(1.5)
    with pytest.raises(ValueError, match=r"\(0, 1\)"):
        P.interval(90)
