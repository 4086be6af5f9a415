"""The two example problems: their data fit their truth, and they commit no inverse crime."""

import pytest
import torch

from invdiff.datasets import accelerated_mri, sparse_view_ct


def test_ct_example() -> None:
    m = sparse_view_ct()
    assert m.y.shape[1] == 40
    assert m.reference is not None
    # soft tissue of a 120 kVp scan
    assert float(m.reference.median()) == pytest.approx(0.0193, rel=0.1)
    chi2 = float(m.chi2(m.reference))
    assert 0.9 < chi2 < 1.3  # simulated on a finer grid: a little model error on top of the noise
    assert float(m.residual(m.reference).abs().max()) > 0


def test_mri_example() -> None:
    m = accelerated_mri()
    assert m.reference is not None
    assert float(m.chi2(m.reference)) == pytest.approx(1, abs=0.05)
    assert 0.2 < float(m.A.observed.float().mean()) < 0.3  # type: ignore[union-attr]
    assert m.image_scale == pytest.approx(float(torch.quantile(m.reference[m.reference > 0], 0.995)), rel=0.2)
    assert not torch.equal(accelerated_mri(seed=1).y, m.y)
