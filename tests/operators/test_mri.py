"""Multi-coil MRI in 2-D and 3-D against the FFT, noise whitening, coil compression and ESPIRiT."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from invdiff.operators import (
    MultiCoilMRI,
    RealAsComplex,
    ViewAsComplex,
    birdcage_maps,
    coil_compression,
    espirit_maps,
    fft2c,
    ifft2c,
    noise_covariance,
    poisson_disc_mask,
    prewhiten,
)
from invdiff.operators.svd import affordable


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Complex, each component of variance 1."""
    x = torch.randn(*shape, 2, generator=torch.Generator().manual_seed(seed))
    return torch.view_as_complex(x)


def disc(n: int, radius: float) -> Tensor:
    y, x = torch.meshgrid(*[(torch.arange(n) - n / 2) / (n / 2)] * 2, indexing="ij")
    return (torch.hypot(y, x) < radius) & (torch.hypot(y - 0.2, x + 0.1) > 0.15)


def test_a_volume_is_the_product_of_a_slicewise_and_an_axial_fft() -> None:
    maps = normal(3, 5, 6, 7)
    mask = torch.rand(6, 7, generator=torch.Generator().manual_seed(1)) < 0.5
    A = MultiCoilMRI(maps, mask)
    assert (A.in_shape, A.out_shape) == ((1, 5, 6, 7), (3, 5, 6, 7))
    x = normal(1, 5, 6, 7, seed=2)
    z = torch.arange(5) - 2
    axial = torch.exp(-2j * math.pi / 5 * (z[:, None] * z)) / 5**0.5
    expected = mask * torch.einsum("kz,czyx->ckyx", axial.to(torch.complex64), fft2c(maps * x))
    torch.testing.assert_close(A(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "mask", "axis"),
    [((8, 9), (3, (9,)), -1), ((8, 9), (3, (8, 1)), -2), ((5, 6, 7), (2, (6, 1)), -2), ((8, 9), (9, (9,)), -1)],
    ids=["columns", "rows", "volume", "all"],
)
@pytest.mark.parametrize("kind", ["complex", "real", "two channels"])
def test_whole_lines_of_k_space_decouple_the_lines_of_the_image(
    shape: tuple[int, ...], mask: tuple[int, tuple[int, ...]], axis: int, kind: str
) -> None:
    n, m = shape[axis], some(mask[0], math.prod(mask[1])).reshape(mask[1])
    mri = MultiCoilMRI(normal(3, *shape) / 3, m)
    assert mri.coupled_axis == axis
    G, x = mri.line_gram(slice(None)), normal(1, *shape, seed=2).to(torch.complex128)
    lines = x.movedim(axis, -1).reshape(-1, n, 1)
    through = mri.to(dtype=torch.float64).gram(x).movedim(axis, -1).reshape(-1, n, 1)
    torch.testing.assert_close(G @ lines, through, rtol=1e-6, atol=1e-6)

    A: Any = {
        "complex": mri,
        "real": mri @ RealAsComplex((1, *shape)),
        "two channels": mri @ ViewAsComplex((1, *shape)),
    }
    A = (1.7 * A[kind]).to(dtype=torch.float64)
    assert A.has_closed_form_prox
    dtype = torch.complex128 if A.in_complex else torch.float64
    z = torch.randn(2, *A.in_shape, generator=torch.Generator().manual_seed(5), dtype=dtype)
    y = A(torch.randn(2, *A.in_shape, generator=torch.Generator().manual_seed(6), dtype=dtype)) + A(z).conj()
    rows = A.gram(torch.eye(z[0].numel(), dtype=dtype).reshape(-1, *A.in_shape)).flatten(1)
    for weight in (0.1, 30.0, 1e5):
        exact = torch.linalg.solve(torch.eye(len(rows)) + weight * rows.T, (z + weight * A.H(y)).flatten(1).T).T
        torch.testing.assert_close(A.prox(z, y, weight), exact.reshape(z.shape), rtol=1e-4, atol=1e-4)


def test_points_of_k_space_and_large_volumes_do_not_decouple() -> None:
    points = MultiCoilMRI(normal(2, 8, 9), some(20, 72).reshape(8, 9))
    assert points.coupled_axis is None
    assert not (points @ RealAsComplex((1, 8, 9))).has_closed_form_prox
    with pytest.raises(TypeError, match="does not couple pixels along one axis only"):
        points.line_gram(slice(None))
    assert affordable((1, 320, 320), -1)
    assert not affordable((1, 160, 320, 320), -1)


def some(n: int, of: int) -> Tensor:
    return torch.isin(torch.arange(of), torch.randperm(of, generator=torch.Generator().manual_seed(3))[:n])


@pytest.mark.parametrize("block_bytes", [1, 1000, 2**20])
@pytest.mark.parametrize(
    ("shape", "mask"),
    [
        ((8, 9), some(3, 9)),
        ((8, 9), some(3, 8)[:, None]),
        ((8, 9), some(20, 72).reshape(8, 9)),
        ((8, 9), torch.ones((), dtype=torch.bool)),
        ((8, 9), torch.zeros(9, dtype=torch.bool)),
        ((5, 6, 7), some(2, 7)),
        ((5, 6, 7), some(2, 6)[:, None]),
        ((5, 6, 7), some(1, 5)[:, None, None]),
        ((5, 6, 7), some(9, 42).reshape(6, 7)),
        ((5, 6, 7), some(8, 30).reshape(5, 6, 1)),
        ((5, 6, 7), some(8, 35).reshape(5, 1, 7)),
    ],
    ids=["columns", "rows", "points", "all", "none", "x", "y", "z", "y x", "z y", "z x"],
)  # fmt: skip
def test_lines_that_the_mask_drops_need_no_transform(
    shape: tuple[int, ...], mask: Tensor, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("invdiff.operators.mri.BLOCK_BYTES", block_bytes)
    dims = tuple(range(-len(shape), 0))
    maps, x = normal(3, *shape), normal(2, 1, *shape, seed=2).to(torch.complex128)
    A = MultiCoilMRI(maps, mask).to(dtype=torch.float64)
    inner = torch.fft.fftn(torch.fft.ifftshift(maps * x, dims), dim=dims, norm="ortho")
    torch.testing.assert_close(A(x), mask * torch.fft.fftshift(inner, dims), rtol=1e-6, atol=1e-6)
    y = normal(2, 3, *shape, seed=4).to(torch.complex128)
    coils = torch.fft.ifftn(torch.fft.ifftshift(mask * y, dims), dim=dims, norm="ortho")
    expected = (maps.conj() * torch.fft.fftshift(coils, dims)).sum(1, keepdim=True)
    torch.testing.assert_close(A.H(y), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(A.H(y.mT.contiguous().mT), A.H(y))  # any layout in memory


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mask", [some(8, 32), some(300, 1024).reshape(32, 32)], ids=["columns", "points"])
def test_cuda_equals_cpu(mask: Tensor) -> None:
    A, x = MultiCoilMRI(normal(4, 32, 32), mask), normal(3, 1, 32, 32, seed=2)
    B = A.to(device="cuda")
    torch.testing.assert_close(B(x.cuda()).cpu(), A(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(B.H(A(x).cuda()).cpu(), A.H(A(x)), rtol=1e-4, atol=1e-4)


def test_maps_and_masks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(TypeError, match="maps must be complex"):
        MultiCoilMRI(torch.ones(2, 4, 4), torch.ones(4, dtype=torch.bool))
    with pytest.raises(ValueError, match="does not broadcast"):
        MultiCoilMRI(normal(2, 3, 4, 4), torch.ones(3, 4, dtype=torch.bool))


def test_prewhitened_noise_has_unit_variance_and_no_correlation() -> None:
    mixing = normal(4, 4, seed=3) * torch.tensor([1.0, 5.0, 0.1, 2.0])[:, None]
    n = mixing @ normal(4, 20000, seed=4)
    white = prewhiten(n, noise_covariance(n))
    torch.testing.assert_close(noise_covariance(white), 2 * torch.eye(4, dtype=torch.complex64), rtol=0, atol=1e-3)
    # with the true covariance (2 M M^H: two components), the noise that was mixed is recovered up to a unitary
    again = prewhiten(n, 2 * mixing @ mixing.mH)
    torch.testing.assert_close(again.real.std(1), torch.ones(4), rtol=0.03, atol=0)
    torch.testing.assert_close(again.imag.std(1), torch.ones(4), rtol=0.03, atol=0)
    with pytest.raises(ValueError, match="at least 16 samples"):
        noise_covariance(n[:, :15])
    with pytest.raises(ValueError, match="not Hermitian positive definite"):
        prewhiten(n, torch.zeros(4, 4, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"shape \(4, 4\)"):
        prewhiten(n, torch.eye(3, dtype=torch.complex64))


def test_coil_compression_keeps_all_data_of_low_rank_and_is_optimal() -> None:
    sources = normal(3, 8, 9, seed=5)
    kspace = torch.einsum("cs,syx->cyx", normal(10, 3, seed=6), sources)
    virtual, matrix = coil_compression(kspace, 3)
    torch.testing.assert_close(matrix @ matrix.mH, torch.eye(3, dtype=torch.complex64), rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.einsum("vc,vyx->cyx", matrix.conj(), virtual), kspace, rtol=1e-3, atol=1e-3)
    noisy = kspace + 0.5 * normal(10, 8, 9, seed=7)
    s = torch.linalg.svdvals(noisy.flatten(1))
    for n in (1, 4):
        kept = coil_compression(noisy, n)[0].abs().square().sum()
        torch.testing.assert_close(kept, s[:n].square().sum(), rtol=1e-4, atol=0)  # Eckart-Young
    with pytest.raises(ValueError, match="between 1 and the 10 coils"):
        coil_compression(kspace, 11)


def object_in_coils(n: int = 64, n_coils: int = 6, sigma: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """k-space (coil, y, x) of a textured disc with birdcage coils and a smooth phase, its maps, and where it is."""
    inside = disc(n, 0.75)
    texture = 1 + 0.5 * torch.rand(n, n, generator=torch.Generator().manual_seed(8))
    phase = torch.exp(2j * torch.linspace(-1, 1, n)[:, None] * torch.linspace(0, 1, n))
    maps = birdcage_maps(n_coils, (n, n))
    return fft2c(maps * inside * texture * phase) + sigma * normal(n_coils, n, n, seed=9), maps, inside


def likeness(maps: Tensor, truth: Tensor, where: Tensor) -> Tensor:
    """|<m, s>| over the coils, 1 for equal maps up to a phase, at the pixels ``where``."""
    return (maps.conj() * truth).sum(0).abs()[where]


def test_espirit_finds_the_known_maps_inside_the_object() -> None:
    kspace, truth, inside = object_in_coils(sigma=1e-3)
    maps = espirit_maps(kspace, 24)
    found = likeness(maps, truth, inside)
    assert float(found.median()) > 0.9995
    assert float(found.quantile(0.02)) > 0.99
    norm = maps.abs().square().sum(0)
    assert bool(((norm - 1).abs() < 1e-4).logical_or(norm == 0).all())
    assert float(norm[~disc(64, 0.95)].mean()) < 0.2  # cropped in the air
    # as a model of the data: coil images are the maps times one image
    coils = ifft2c(kspace)
    projected = maps * (maps.conj() * coils).sum(0)
    assert float((projected - coils)[:, inside].norm() / coils[:, inside].norm()) < 0.02


def test_espirit_needs_only_the_centre_and_does_not_depend_on_blocks() -> None:
    kspace, _, _ = object_in_coils()
    whole = espirit_maps(kspace, 20)
    mask = poisson_disc_mask((64, 64), acceleration=4.0, calibration=(20, 20), seed=0)
    torch.testing.assert_close(espirit_maps(kspace * mask, 20, max_bytes=1), whole, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="central samples are missing"):
        espirit_maps(kspace * mask, 40)
    with pytest.raises(ValueError, match="smaller than the kernel"):
        espirit_maps(kspace, 4)
    with pytest.raises(ValueError, match="must be complex"):
        espirit_maps(kspace.real)


@pytest.mark.slow
def test_espirit_agrees_with_sigpy() -> None:
    """sigpy is no dependency and in no extra: the test runs where it happens to be installed."""
    pytest.importorskip("sigpy")
    import numpy as np
    import sigpy.mri.app

    kspace, _, inside = object_in_coils(sigma=3e-3)
    theirs = sigpy.mri.app.EspiritCalib(kspace.numpy(), calib_width=24, crop=0, show_pbar=False).run()
    found = likeness(espirit_maps(kspace, 24, crop=0.0), torch.from_numpy(np.asarray(theirs)), inside)
    assert float(found.median()) > 0.999
