"""deepinv's physics as operators and operators as deepinv's physics (the extra "deepinv")."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from invdiff import GaussianNoise, Measurement
from invdiff.operators import (
    CT,
    Blur,
    Clip,
    Identity,
    LinearOperator,
    MultiCoilMRI,
    ParallelBeam,
    SpaceVaryingBlur,
    ViewAsComplex,
    birdcage_maps,
    dot,
    from_deepinv,
    interpolation_weights,
    motion_psf,
    random_mask,
    to_deepinv,
)
from invdiff.operators.linalg import cg

pytestmark = pytest.mark.filterwarnings("ignore")


def test_import_loads_no_deepinv() -> None:
    code = "import sys, invdiff, invdiff.operators; print('deepinv' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "False"


dinv = pytest.importorskip("deepinv", reason="the extra deepinv is not installed", exc_type=ImportError)
P = dinv.physics

G = torch.Generator().manual_seed(0)
PSF = motion_psf(5, seed=0).float()[None, None]
MASK = (torch.rand(1, 12, 10, generator=G) > 0.5).float()
MAPS = birdcage_maps(3, (12, 10))


def seeded(n: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(n)


PHYSICS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "Denoising": (lambda: P.Denoising(), (1, 6, 5)),
    "Inpainting": (lambda: P.Inpainting((2, 8, 7), mask=0.5, rng=seeded()), (2, 8, 7)),
    "Blur": (lambda: P.Blur(PSF, padding="valid"), (2, 12, 10)),
    "Blur, reflect": (lambda: P.Blur(PSF, padding="reflect"), (2, 12, 10)),
    "BlurFFT": (lambda: P.BlurFFT((2, 12, 10), PSF), (2, 12, 10)),
    "Downsampling": (lambda: P.Downsampling((2, 12, 8), filter="bicubic", factor=2), (2, 12, 8)),
    "DownsamplingMatlab": (lambda: P.DownsamplingMatlab(factor=2), (2, 12, 8)),
    "Tomography": (lambda: P.Tomography(angles=5, img_width=12, circle=False, normalize=False), (1, 12, 12)),
    "MRI": (lambda: P.MRI(mask=MASK, img_size=(2, 12, 10)), (2, 12, 10)),
    "MultiCoilMRI": (lambda: P.MultiCoilMRI(mask=MASK, coil_maps=MAPS[None], img_size=(2, 12, 10)), (2, 12, 10)),
    "CompressedSensing": (lambda: P.CompressedSensing(20, (1, 6, 5), rng=seeded()), (1, 6, 5)),
    "SinglePixelCamera": (lambda: P.SinglePixelCamera(20, (1, 8, 8), rng=seeded()), (1, 8, 8)),
    "CompressiveSpectralImaging": (lambda: P.CompressiveSpectralImaging((3, 8, 8), rng=seeded()), (3, 8, 8)),
    "stacked": (lambda: P.Denoising().stack(P.Blur(PSF, padding="valid")), (1, 12, 10)),
    "without A_adjoint": (lambda: P.LinearPhysics(A=lambda x: x.roll(1, -1), img_size=(1, 6, 5)), (1, 6, 5)),
}
OWN_ADJOINT_IS_WRONG = {"CompressiveSpectralImaging"}  # in deepinv 0.5.0


@pytest.mark.parametrize("name", PHYSICS)
def test_a_linear_physics_is_an_operator_with_its_adjoint(name: str) -> None:
    make, shape = PHYSICS[name]
    physics = make()
    A = from_deepinv(physics, shape)
    assert isinstance(A, LinearOperator)
    x = torch.randn(2, *shape, generator=seeded(1))
    y = torch.randn(2, *A.out_shape, generator=seeded(2))
    Ax, AHy = A(x), A.H(y)
    scale = float(torch.linalg.vector_norm(Ax) * torch.linalg.vector_norm(y))
    assert abs(float(dot(Ax, y).double() - dot(x, AHy).double())) < 1e-5 * scale
    torch.testing.assert_close(A(x[None, 0]), A(x)[:1])  # batch and leading dimensions
    torch.testing.assert_close(torch.func.vjp(A, x)[1](y)[0], AHy)
    if name != "stacked":
        torch.testing.assert_close(Ax, physics.A(x))
        same = torch.allclose(AHy, physics.A_adjoint(y), atol=1e-5)
        assert same == (name not in OWN_ADJOINT_IS_WRONG)


def test_stacked_data_become_one_vector() -> None:
    make, shape = PHYSICS["stacked"]
    physics, x = make(), torch.randn(2, 1, 12, 10, generator=seeded())
    y = physics.A(x)
    A = from_deepinv(physics, shape)
    torch.testing.assert_close(A(x), torch.cat([y[0].flatten(1), y[1].flatten(1)], 1))
    torch.testing.assert_close(A.H(A(x)), physics.A_adjoint(y))  # type: ignore[attr-defined]


def test_complex_physics_keeps_complex_images() -> None:
    A = from_deepinv(
        P.CompressedSensing(20, (1, 6, 5), dtype=torch.complex64, rng=seeded()), (1, 6, 5), in_complex=True
    )
    assert isinstance(A, LinearOperator)
    assert A.in_complex
    assert A.out_complex
    x, y = (torch.randn(s, generator=seeded(), dtype=torch.complex64) for s in (A.in_shape, A.out_shape))
    assert float(dot(A(x), y)) == pytest.approx(float(dot(x, A.H(y))), abs=1e-4)


def test_a_nonlinear_physics_is_an_operator_with_a_vjp() -> None:
    physics = P.RandomPhaseRetrieval(40, (1, 6, 5), rng=seeded())
    A = from_deepinv(physics, (1, 6, 5), in_complex=True)
    assert not isinstance(A, LinearOperator)
    x = torch.randn(2, 1, 6, 5, generator=seeded(), dtype=torch.complex64)
    v = torch.randn(2, 40, generator=seeded())
    torch.testing.assert_close(A(x), physics.A(x))
    # |B x|^2 has the derivative 2 B^H (v B x)
    torch.testing.assert_close(A.vjp(x, v), 2 * physics.B.A_adjoint(v * physics.B.A(x)))


@pytest.mark.parametrize("name", ["BlurFFT", "MultiCoilMRI", "Downsampling", "CompressedSensing"])
def test_double_precision_is_a_copy(name: str) -> None:
    make, shape = PHYSICS[name]
    physics = make()
    A = from_deepinv(physics, shape).to(dtype=torch.float64)
    x = torch.randn(1, *shape, generator=seeded(), dtype=torch.float64)
    y = torch.randn(1, *A.out_shape, generator=seeded(1), dtype=torch.float64)
    assert float(dot(A(x), y)) == pytest.approx(float(dot(x, A.H(y))), rel=1e-12)
    assert physics.A(x.float()).dtype == torch.float32  # the original is as it was


def test_our_operators_agree_with_theirs() -> None:
    x = torch.randn(2, 2, 12, 10, generator=seeded())
    ours = Blur(PSF[0, 0], (2, 12, 10))
    torch.testing.assert_close(ours(x), from_deepinv(P.BlurFFT((2, 12, 10), PSF), (2, 12, 10))(x), atol=1e-5, rtol=0)
    A = MultiCoilMRI(MAPS, MASK[0].bool()) @ ViewAsComplex((1, 12, 10))
    B = from_deepinv(P.MultiCoilMRI(mask=MASK, coil_maps=MAPS[None], img_size=(2, 12, 10)), (2, 12, 10))
    y = A(x)
    torch.testing.assert_close(torch.stack([y.real, y.imag], 1), B(x), atol=1e-5, rtol=0)


def test_our_bicubic_is_their_matlab_one_inside() -> None:
    from invdiff.operators import BicubicDownsample

    x = torch.rand(1, 1, 32, 40, generator=seeded())
    theirs = P.DownsamplingMatlab(factor=4, kernel="cubic").A(x)
    torch.testing.assert_close(BicubicDownsample((1, 32, 40), 4)(x), theirs, atol=1e-5, rtol=0)


def test_our_space_varying_blur_is_theirs() -> None:
    psfs, w = torch.stack([motion_psf(5, seed=i) for i in range(4)]).float(), interpolation_weights((2, 2), (12, 10))
    theirs = P.SpaceVaryingBlur(psfs[None, None], w[None, None].float(), padding="circular")
    x = torch.randn(1, 1, 12, 10, generator=seeded())
    torch.testing.assert_close(SpaceVaryingBlur(psfs, w, (1, 12, 10))(x), theirs.A(x), atol=1e-5, rtol=0)


CT_12 = CT(ParallelBeam.covering((12, 12), 1.0, 20))


def test_their_solvers_run_on_our_ct() -> None:
    A = CT_12.to(dtype=torch.float64)
    physics = to_deepinv(A)
    assert isinstance(physics, P.LinearPhysics)
    x = torch.rand(2, 1, 12, 12, generator=seeded(), dtype=torch.float64)
    y = A(x) + torch.randn(2, *A.out_shape, generator=seeded(1), dtype=torch.float64)
    assert float(physics.adjointness_test(x)) == pytest.approx(0, abs=1e-9)
    ours = cg(A.gram, A.H(y), item_ndim=3, n_steps=1000, tolerance=1e-10)
    torch.testing.assert_close(physics.A_dagger(y, solver="lsqr", max_iter=1000, tol=1e-10), ours, atol=1e-5, rtol=0)
    # damped least squares: their prox against ours, which stops at 1e-5
    theirs = physics.prox_l2(x, y, gamma=0.3, max_iter=1000, tol=1e-10)
    torch.testing.assert_close(theirs, A.prox(x, y, 0.3), atol=1e-3, rtol=0)


def test_their_proximal_gradient_on_our_ct_finds_the_tikhonov_solution() -> None:
    physics, weight = to_deepinv(CT_12), 2.0
    y = CT_12(torch.rand(1, 1, 12, 12, generator=seeded()))
    step = 1 / CT_12.norm() ** 2
    # lambda * prior, with the prior |x|^2 / 2
    algorithm = dinv.optim.FISTA(
        data_fidelity=dinv.optim.data_fidelity.L2(), prior=dinv.optim.prior.Tikhonov(), lambda_reg=weight,
        stepsize=step, max_iter=1500, early_stop=False,
    )  # fmt: skip
    theirs = algorithm(y, physics)
    ours = cg(lambda x: CT_12.gram(x) + weight * x, CT_12.H(y), item_ndim=3, tolerance=1e-7)
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=0)


def test_complex_data_go_to_their_solvers_and_complex_images_do_not() -> None:
    mri = MultiCoilMRI(MAPS, random_mask(10, acceleration=2, center_fraction=0.4, seed=0))
    A = mri @ ViewAsComplex((1, 12, 10))
    assert isinstance(A, LinearOperator)
    x = torch.randn(1, 2, 12, 10, generator=seeded())
    y = A(x)
    physics = to_deepinv(A)
    z = torch.zeros_like(x)
    torch.testing.assert_close(
        physics.prox_l2(z, y, gamma=5.0, max_iter=200, tol=1e-7), A.prox(z, y, 5.0), atol=1e-3, rtol=0
    )
    with pytest.raises(TypeError, match="ViewAsComplex"):
        to_deepinv(mri)


def test_there_and_back() -> None:
    A = from_deepinv(to_deepinv(CT_12), CT_12.in_shape)
    x = torch.rand(2, 1, 12, 12, generator=seeded())
    torch.testing.assert_close(A(x), CT_12(x))
    clip = from_deepinv(to_deepinv(Clip((1, 12, 12))), (1, 12, 12))
    torch.testing.assert_close(clip.vjp(x, x), Clip((1, 12, 12)).vjp(x, x))


def test_what_cannot_be_done_is_refused(tmp_path: Path) -> None:
    A = from_deepinv(P.Denoising(), (1, 6, 5))
    m = Measurement(torch.zeros(1, 6, 5), A, GaussianNoise(0.1))
    with pytest.raises(TypeError, match=r"Cannot save DeepinvLinearOperator .* build it again"):
        m.save(tmp_path / "m.h5")
    with pytest.raises(TypeError, match=r"takes a deepinv.physics.Physics, got Identity"):
        from_deepinv(Identity((1, 6, 5)), (1, 6, 5))
    with pytest.raises(TypeError, match="takes an invdiff operator, got Denoising"):
        to_deepinv(P.Denoising())
    with pytest.raises(ValueError, match="Is A linear"):
        from_deepinv(P.LinearPhysics(A=lambda x: x**2 + 1, A_adjoint=lambda y: y), (1, 6, 5))
    make, shape = PHYSICS["stacked"]
    with pytest.raises(TypeError, match=r"does not take torch.float64 images of shape \(1, 12, 10\)"):
        from_deepinv(make(), shape).to(dtype=torch.float64)
