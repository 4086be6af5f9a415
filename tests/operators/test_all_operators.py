"""What every operator must satisfy, over one list. A new operator is added to CASES and passes them all."""

from __future__ import annotations

import math

import pytest
import torch

from invdiff.operators import (
    CT,
    CT3D,
    OPERATORS,
    BicubicDownsample,
    BlockDownsample,
    Blur,
    BlurDownsample,
    ConeBeam,
    Crop,
    CurvedFanBeam,
    FanBeam,
    Fourier,
    Haze,
    Identity,
    Inpainting,
    LinearOperator,
    Matrix,
    MultiCoilMRI,
    NonCartesianMRI,
    Pad,
    ParallelBeam,
    PlaneWaveIQ,
    PlaneWaveRF,
    PlaneWaveScan,
    RealAsComplex,
    SpaceVaryingBlur,
    VectorBeam,
    ViewAsComplex,
    birdcage_maps,
    dot,
    equispaced_mask,
    gaussian_psf,
    gaussian_pulse,
    golden_angle_trajectory,
    interpolation_weights,
    motion_psf,
    random_pixels,
    reflect_blur,
    slab_mask,
)

ANGLES = tuple(math.pi * i / 7 for i in range(7))
PARALLEL = ParallelBeam(image_shape=(11, 14), pixel_size=1.3, angles=ANGLES, n_detectors=19, detector_spacing=1.1)
FAN = FanBeam(
    image_shape=(11, 14), pixel_size=1.3, angles=ANGLES, n_detectors=23, detector_spacing=1.5, source_origin=60.0,
    source_detector=90.0, detector_offset=0.4,
)  # fmt: skip
CURVED = CurvedFanBeam(
    image_shape=(11, 14), pixel_size=(1.3, 0.9), angles=ANGLES, n_detectors=23, detector_spacing=1.5,
    source_origin=60.0, source_detector=90.0,
)  # fmt: skip
MRI = MultiCoilMRI(birdcage_maps(3, (12, 9)), equispaced_mask(9, acceleration=3, center_fraction=0.2))
CONE = ConeBeam(
    image_shape=(4, 5, 6), voxel_size=(1.5, 1.0, 0.8), angles=ANGLES[::2], detector_shape=(5, 7), detector_spacing=1.5,
    detector_offset=(0.3, -0.2), source_origin=20.0, source_detector=30.0,
)  # fmt: skip
SPOKES = NonCartesianMRI(birdcage_maps(3, (9, 8)), golden_angle_trajectory(8, n_spokes=13, n_samples=17))
BLUR = Blur(gaussian_psf(1.2, 5), (2, 12, 9))
SCAN = PlaneWaveScan(
    image_shape=(6, 5), pixel_size=(0.4, 0.3), origin=(1.0, -0.6), element_positions=(-0.9, -0.2, 0.3, 0.8),
    angles=(-0.2, 0.3), start_times=(1e-6, 1.2e-6), n_samples=23, sampling_frequency=8e6, centre_frequency=5e6,
)  # fmt: skip
IQ = PlaneWaveIQ(SCAN, f_number=1.0, pulse=gaussian_pulse(0.0, 5e6, 8e6))

CASES: dict[str, LinearOperator] = {
    "Identity": Identity((1, 5, 4)),
    "Inpainting": Inpainting(random_pixels((2, 6, 5), 0.4, seed=0)),
    "Blur": BLUR,
    "Blur even size, odd PSF shape": Blur(torch.rand(4, 3, generator=torch.Generator().manual_seed(0)), (1, 8, 8)),
    "Blur by motion": Blur(motion_psf(5, seed=1), (1, 8, 7)),
    "SpaceVaryingBlur": SpaceVaryingBlur(
        torch.stack([motion_psf(5, seed=i) for i in range(6)]), interpolation_weights((2, 3), (8, 9)), (2, 8, 9)
    ),
    "BlockDownsample": BlockDownsample((2, 6, 9), 3),
    "BicubicDownsample": BicubicDownsample((2, 8, 12), 4),
    "BlurDownsample": BlurDownsample(gaussian_psf((1.5, 0.8), 5, angle=0.4), (2, 12, 9), 3),
    "Fourier": Fourier((2, 5, 6)),
    "Matrix": Matrix(torch.rand(6, 20, generator=torch.Generator().manual_seed(0)), (1, 5, 4), (2, 3)),
    "Pad": Pad((1, 6, 7), 2),
    "Crop": Crop((1, 9, 8), 2),
    "reflect_blur": reflect_blur(gaussian_psf(1.0, 5), (1, 9, 8)),
    "RealAsComplex": RealAsComplex((1, 4, 5)),
    "ViewAsComplex": ViewAsComplex((1, 4, 5)),
    "MultiCoilMRI": MRI,
    "MultiCoilMRI of a volume": MultiCoilMRI(
        birdcage_maps(2, (6, 5))[:, None] * torch.linspace(0.5, 1, 4)[:, None, None],
        equispaced_mask(5, acceleration=2, center_fraction=0.2),
    ),
    "NonCartesianMRI": SPOKES,
    "NonCartesianMRI of a real image": SPOKES @ RealAsComplex((1, 9, 8)),
    "ToeplitzMRI": SPOKES.gram,
    "MRI of a two-channel image": MRI @ ViewAsComplex((1, 12, 9)),
    "MRI of a real image": MRI @ RealAsComplex((1, 12, 9)),
    "CT parallel": CT(PARALLEL),
    "CT fan, supersampled": CT(FAN, supersampling=2),
    "CT curved fan, oblong pixels": CT(CURVED),
    "CT vectors": CT(VectorBeam.of(FAN)),
    "CT cone": CT3D(CONE),
    "CT cone, weighted at every call": CT3D(CONE, memory_budget=1),
    "plane wave, RF": PlaneWaveRF(SCAN, f_number=0.5, aperture="hann", pulse=gaussian_pulse(3e6, 4e6, 8e6)),
    "plane wave, RF, stored delays": PlaneWaveRF(SCAN, f_number=1.0, memory_budget=1),
    "plane wave, IQ": IQ,
    "plane wave, IQ, stored delays": PlaneWaveIQ(SCAN, memory_budget=1),
    "plane wave, some transmits and elements": Inpainting(
        slab_mask(IQ.out_shape, 0, [1]) & slab_mask(IQ.out_shape, 1, [0, 2]), in_complex=True
    )
    @ IQ
    @ ViewAsComplex((1, 6, 5)),
    "Haze": Haze((1, 6, 5), 0.3),
    "Inpainting of complex images": Inpainting(random_pixels((1, 6, 5), 0.4, seed=0), in_complex=True),
    "gram": BLUR.gram,
    "adjoint": MRI.H,
    "sum": BLUR + 2.0 * Identity((2, 12, 9)),
    "complex multiple": (0.5 - 2j) * MRI,
    "composition": Inpainting(random_pixels((2, 12, 9), 0.4, seed=0)) @ BLUR,
}


@pytest.fixture(params=CASES, ids=str)
def A(request: pytest.FixtureRequest) -> LinearOperator:
    return CASES[request.param].to(dtype=torch.float64)


def rand(shape: tuple[int, ...], is_complex: bool, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=g, dtype=dtype)
    return torch.complex(x, torch.randn(shape, generator=g, dtype=dtype)) if is_complex else x


def inputs(A: LinearOperator, n: int = 2, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        rand((n, *A.in_shape), A.in_complex, 1, dtype),
        rand((n, *A.out_shape), A.out_complex, 2, dtype),
    )


def test_adjoint_passes_the_dot_test_in_double_precision(A: LinearOperator) -> None:
    x, y = inputs(A)
    Ax, AHy = A(x), A.H(y)
    assert Ax.shape == y.shape
    assert AHy.shape == x.shape
    scale = float(torch.linalg.vector_norm(Ax) * torch.linalg.vector_norm(y))
    assert abs(float(dot(Ax, y) - dot(x, AHy))) < 1e-13 * scale + 1e-13


@pytest.mark.parametrize("name", CASES)
def test_adjoint_passes_the_dot_test_in_single_precision(name: str) -> None:
    A = CASES[name]
    x, y = inputs(A, dtype=torch.float32)
    Ax, AHy = A(x), A.H(y)
    scale = float(torch.linalg.vector_norm(Ax) * torch.linalg.vector_norm(y))
    assert abs(float(dot(Ax, y).double() - dot(x, AHy).double())) < 1e-6 * scale


def test_is_linear(A: LinearOperator) -> None:
    x, z = rand(A.in_shape, A.in_complex, 1), rand(A.in_shape, A.in_complex, 3)
    torch.testing.assert_close(A(x - 2.5 * z), A(x) - 2.5 * A(z))


def test_backward_is_the_adjoint(A: LinearOperator) -> None:
    x, v = inputs(A)
    _, pull = torch.func.vjp(A, x)
    torch.testing.assert_close(pull(v)[0], A.H(v))
    torch.testing.assert_close(A.vjp(x, v), A.H(v))


def test_backward_of_the_adjoint_is_the_forward(A: LinearOperator) -> None:
    x, v = inputs(A)
    _, pull = torch.func.vjp(A.H, v)
    torch.testing.assert_close(pull(x)[0], A(x))


def test_gradients_are_those_of_finite_differences(A: LinearOperator) -> None:
    x = rand((1, *A.in_shape), A.in_complex, 1).requires_grad_(True)
    # finufft adds its points in any order, so that two runs differ in the last digits
    assert torch.autograd.gradcheck(A, x, fast_mode=True, nondet_tol=1e-12)


def test_jvp_is_the_forward(A: LinearOperator) -> None:
    x, _ = inputs(A)
    _, tangent = torch.func.jvp(A, (x,), (2 * x,))
    torch.testing.assert_close(tangent, 2 * A(x))


def test_broadcasts_over_leading_dimensions(A: LinearOperator) -> None:
    x = rand((3, 2, *A.in_shape), A.in_complex, 1)
    y = A(x)
    assert y.shape == (3, 2, *A.out_shape)
    torch.testing.assert_close(y[2, 1], A(x[2, 1]))
    torch.testing.assert_close(torch.vmap(A)(x), y)


def test_gram_is_adjoint_after_forward(A: LinearOperator) -> None:
    x, _ = inputs(A)
    torch.testing.assert_close(A.gram(x), A.H(A(x)))


def test_prox_solves_its_normal_equations(A: LinearOperator) -> None:
    z, y = inputs(A)
    x = A.prox(z, y, 0.7)
    gradient = x - z + 0.7 * A.H(A(x) - y)
    assert float(gradient.abs().max()) < 1e-3 * float((z + 0.7 * A.H(y)).abs().max())


def test_svd_is_one(A: LinearOperator) -> None:
    if A.in_complex:
        with pytest.raises(TypeError, match="real images"):
            A.svd()
        return
    x, y = inputs(A)
    if A.observed is not None:
        y = y * A.observed
    svd = A.svd()
    s = svd.singular_values
    # U^H A = diag(s) V^H, A^H U = V diag(s), V^H V = 1 on the range, and the Moore-Penrose properties
    torch.testing.assert_close(svd.data_coefficients(A(x)), s * svd.coefficients(x), rtol=0, atol=1e-3)
    torch.testing.assert_close(svd.image(s * svd.data_coefficients(y)), A.H(y), rtol=0, atol=1e-3)
    seen = svd.project(x)
    torch.testing.assert_close(svd.project(seen), seen, rtol=0, atol=1e-5)
    torch.testing.assert_close(A(seen), A(x), rtol=0, atol=1e-3)
    torch.testing.assert_close(svd.pinv(A(x)), seen, rtol=0, atol=1e-3)
    assert abs(float(dot(seen, x - seen))) < 1e-4 * float(dot(x, x))


def test_norm_bounds_the_operator(A: LinearOperator) -> None:
    x, _ = inputs(A, 1)
    for _ in range(200):  # the top singular vector, by an iteration of its own
        x = A.gram(x) / torch.linalg.vector_norm(A.gram(x))
    true_norm = float(torch.linalg.vector_norm(A(x)))
    assert A.norm(n_steps=100) == pytest.approx(true_norm, rel=0.02)


def test_precision_and_shape_are_checked(A: LinearOperator) -> None:
    x, _ = inputs(A)
    with pytest.raises(TypeError, match="works on"):
        A(x.to(torch.complex64 if A.in_complex else torch.float32))
    with pytest.raises(ValueError, match="expected trailing dimensions"):
        A(x[..., :-1])


def test_every_serialisable_operator_is_on_the_list() -> None:
    def parts(A: LinearOperator) -> set[str]:
        inner = [v for v in vars(A).values() if isinstance(v, LinearOperator)]
        return {type(A).__name__}.union(*(parts(v) for v in inner))

    covered = set().union(*(parts(A) for A in CASES.values()))
    linear = {name for name, cls in OPERATORS.items() if issubclass(cls, LinearOperator)}
    single_precision = {"AstraCT"}  # see test_ct.py
    assert not linear - covered - single_precision, "add the operator to CASES; a non-linear one to test_nonlinear.py"
