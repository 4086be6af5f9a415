"""Conjugate gradients and power iteration against dense linear algebra."""

import pytest
import torch

from invdiff.operators.linalg import cg, cg_on_data


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


def test_cg_on_data_solves_one_plus_b_bh_and_gives_bh_of_the_solution_with_no_product_to_spare() -> None:
    B = torch.randn(6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.complex128)
    b = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.complex128)
    products = {"B": 0, "BH": 0}

    def forward(x: torch.Tensor) -> torch.Tensor:
        products["B"] += 1
        return x @ B.T

    def adjoint(y: torch.Tensor) -> torch.Tensor:
        products["BH"] += 1
        return y @ B.conj()

    q, image = cg_on_data(forward, adjoint, b, item_ndim=1, n_steps=6, tolerance=1e-14)
    exact = torch.linalg.solve(torch.eye(6) + B @ B.mH, b.flatten(0, 1).T).T.unflatten(0, (2, 3))
    torch.testing.assert_close(q, exact, rtol=1e-8, atol=1e-8)  # exact after as many steps as unknowns
    torch.testing.assert_close(image, exact @ B.conj(), rtol=1e-8, atol=1e-8)
    assert products == {"B": 5, "BH": 6}


def test_cg_on_data_of_a_batch_is_that_of_its_items_whatever_else_is_in_it() -> None:
    scale = torch.tensor([1e-3, 1.0, 1e3], dtype=torch.float64)[:, None]
    b = torch.randn(3, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    b = torch.cat([b, torch.zeros(1, 12, dtype=torch.float64)])  # nothing to do for the last
    d = torch.cat([scale * torch.linspace(0.1, 1, 12, dtype=torch.float64), torch.ones(1, 12)])
    M = lambda v: v / (1 + torch.linspace(0.1, 1, 12, dtype=torch.float64) ** 2)  # noqa: E731
    batch = cg_on_data(lambda x: d * x, lambda y: d * y, b, item_ndim=1, preconditioner=M, n_steps=4)
    for i in range(4):
        one = cg_on_data(
            lambda x, i=i: d[i] * x, lambda y, i=i: d[i] * y, b[i], item_ndim=1, preconditioner=M, n_steps=4
        )
        for whole, part in zip(batch, one, strict=True):
            torch.testing.assert_close(whole[i], part, rtol=1e-12, atol=1e-12)
    with pytest.raises(FloatingPointError, match="not finite"):
        cg_on_data(lambda x: x, lambda y: y, torch.tensor([float("inf")]), item_ndim=1)
