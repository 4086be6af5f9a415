"""Conjugate gradients and power iteration against dense linear algebra."""

import pytest
import torch

from invdiff.operators.linalg import cg


def spd(n: int, seed: int) -> torch.Tensor:
    M = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.complex128)
    return M @ M.mH + 0.1 * torch.eye(n)


def test_cg_solves_hermitian_systems() -> None:
    H, b = spd(20, 0), torch.randn(3, 20, generator=torch.Generator().manual_seed(1), dtype=torch.complex128)
    x = cg(lambda v: v @ H.T, b, item_ndim=1, n_steps=200, tolerance=1e-12)
    torch.testing.assert_close(x, torch.linalg.solve(H, b.T).T, rtol=1e-8, atol=1e-8)


def test_cg_of_a_batch_is_cg_of_its_items() -> None:
    # items of very different difficulty: coefficients shared over the batch would change all of them
    H = torch.stack([torch.diag(torch.linspace(1, c, 12, dtype=torch.float64)) for c in (1.0, 10.0, 1e4)])
    b = torch.randn(3, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    batch = cg(lambda v: (H @ v[..., None])[..., 0], b, item_ndim=1, n_steps=7)
    for i in range(3):
        single = cg(lambda v, i=i: v @ H[i].T, b[i : i + 1], item_ndim=1, n_steps=7)
        torch.testing.assert_close(batch[i : i + 1], single, rtol=1e-12, atol=1e-12)


def test_the_diagonal_as_preconditioner_solves_a_diagonal_system_in_one_step() -> None:
    d = torch.logspace(-6, 6, 30, dtype=torch.float64)
    b = torch.randn(2, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = cg(lambda v: d * v, b, item_ndim=1, preconditioner=lambda v: v / d, n_steps=1)
    torch.testing.assert_close(x, b / d, rtol=1e-12, atol=1e-12)


def test_cg_refuses_indefinite_operators_and_bad_input() -> None:
    with pytest.raises(FloatingPointError, match="not positive semi-definite"):
        cg(lambda v: -v, torch.ones(1, 4), item_ndim=1)
    with pytest.raises(FloatingPointError, match="not finite"):
        cg(lambda v: v, torch.tensor([[float("nan")]]), item_ndim=1)
