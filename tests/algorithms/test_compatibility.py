"""The compatibility table: every algorithm with every kind of operator, on a 32 x 32 image of a Gaussian prior.

Each pair runs and its mean beats the pseudo-inverse (the prior's mean, where there is none), or raises the reason that
the table gives.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from invdiff import ComplexGaussianNoise, GaussianNoise, Measurement, PoissonLogNoise
from invdiff.algorithms import (
    ALGORITHMS,
    DAPS,
    DDNM,
    DDRM,
    DDS,
    DPS,
    MCG,
    PSLD,
    TDS,
    DiffPIR,
    MCGTomography,
    PiGDM,
    PnPDM,
    REDDiff,
    ReSample,
)  # fmt: skip
from invdiff.algorithms.guidance import Isotropic
from invdiff.algorithms.kernels import Langevin
from invdiff.operators import (
    CT,
    Blur,
    Inpainting,
    MultiCoilMRI,
    ParallelBeam,
    RealAsComplex,
    birdcage_maps,
    equispaced_mask,
    gaussian_psf,
    random_pixels,
)  # fmt: skip
from invdiff.operators.base import Operator
from invdiff.priors import DenseCovariance, GaussianPrior, KarrasGrid, StationaryCovariance
from invdiff.priors.latent import LatentPrior

SHAPE = (1, 32, 32)
COVARIANCE = StationaryCovariance.power_law(SHAPE, std=0.4, exponent=3.0)
PRIOR = GaussianPrior(torch.zeros(SHAPE), COVARIANCE)
LATENT = LatentPrior(
    COVARIANCE.forward, COVARIANCE.inverse,
    GaussianPrior(torch.zeros(SHAPE), DenseCovariance(torch.diag(COVARIANCE.eigenvalues.flatten()), SHAPE)),
    image_shape=SHAPE,
)  # fmt: skip
X = PRIOR.sample(1, seed=3)[0]


class Saturation(Operator):
    """A sensor that saturates: tanh(2 x)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape, shape)
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(2 * x)


BEAM = ParallelBeam.covering((32, 32), 0.1, 12)
OPERATORS: dict[str, tuple[Operator, Any]] = {
    "mask": (Inpainting(random_pixels(SHAPE, 0.5, seed=0)), GaussianNoise(0.05)),
    "blur": (Blur(gaussian_psf(1.0, 7), SHAPE), GaussianNoise(0.05)),
    "blur, then mask": (
        Inpainting(random_pixels(SHAPE, 0.5, seed=0)) @ Blur(gaussian_psf(1.0, 7), SHAPE),
        GaussianNoise(0.05),
    ),
    "ct": (CT(BEAM), GaussianNoise(0.05)),
    "ct, counts": (CT(BEAM), PoissonLogNoise(1e3)),
    "mri": (
        MultiCoilMRI(birdcage_maps(4, (32, 32)), equispaced_mask(32, acceleration=4, center_fraction=0.1))
        @ RealAsComplex(SHAPE),
        ComplexGaussianNoise(0.05),
    ),
    "saturation": (Saturation(SHAPE), GaussianNoise(0.05)),
}
GRID = KarrasGrid(sigma_max=10.0, sigma_min=0.01)
V = Isotropic(sigma_data=0.4, n_cg=15)


def settings(norm: float) -> dict[str, Any]:
    """Scales of guidance belong to operators of norm 1."""
    return {
        "daps": DAPS(n_anneal=30, sigma_max=10.0),
        "ddnm": DDNM(n_steps=30, grid=GRID),
        "ddrm": DDRM(grid=GRID),
        "dds": DDS(n_steps=30, grid=GRID, sigma_data=0.4),
        "diffpir": DiffPIR(n_steps=40, grid=GRID),
        "dps": DPS(n_steps=150, guidance_scale=1.0 / norm, clip=False),
        "mcg": MCG(n_steps=150, guidance_scale=0.3 / norm, clip=False, cutoff=0.3),
        "mcg-tomography": MCGTomography(n_steps=100, sigma_max=10.0),
        "pigdm": PiGDM(n_steps=40, grid=GRID, covariance=V),
        "pnp-dm": PnPDM(n_iterations=30, n_denoise=4, rho_max=3.0, rho_min=0.03, decay=0.8, n_cg=20, sigma_data=0.4),
        "psld": PSLD(n_steps=150, eta=1.0 / norm, gamma=0.01),
        "red-diff": REDDiff(n_steps=150, lr=0.05, lam=0.25),
        "resample": ReSample(
            n_steps=30, guidance_scale=0.1 / norm, n_pixel=60, n_latent=60, resample_every=5, lr_pixel=0.02
        ),
        "tds": TDS(n_steps=40, n_particles=2, covariance=V, grid=GRID),
    }


NEEDS_LINEAR, NEEDS_SIGMA = "needs a linear operator", "needs noise of one standard deviation"
REASONS: dict[tuple[str, str], str] = {
    **{(name, "saturation"): NEEDS_LINEAR for name in ALGORITHMS if name not in ("dps", "red-diff", "resample")},
    ("ddnm", "ct, counts"): NEEDS_SIGMA,
    ("ddrm", "ct, counts"): NEEDS_SIGMA,
}
PAIRS = [(name, operator) for name in ALGORITHMS for operator in OPERATORS]


def run(name: str, operator: str, algorithm: Any = None) -> tuple[Measurement, Tensor]:
    A, noise = OPERATORS[operator]
    m = Measurement.simulate(X, A, noise, seed=1)
    norm = float(m.linear.norm()) if m.linear is not None else 2.0
    algorithm = algorithm or settings(norm)[name]
    return m, algorithm(LATENT if name in ("psld", "resample") else PRIOR, m, n_samples=4).mean


@pytest.mark.parametrize(("name", "operator"), [p for p in PAIRS if p in REASONS])
def test_what_does_not_work_says_why(name: str, operator: str) -> None:
    with pytest.raises(TypeError, match=REASONS[name, operator]):
        run(name, operator)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "operator"), [p for p in PAIRS if p not in REASONS])
def test_what_works_beats_the_pseudo_inverse(name: str, operator: str) -> None:
    m, mean = run(name, operator)
    naive = torch.zeros(SHAPE) if m.linear is None else m.linear.pinv(m.linear_data)
    assert float((mean - X).square().mean()) < float((naive - X).square().mean())


def test_daps_takes_non_linear_operators_with_another_kernel() -> None:
    kernel = Langevin(n_steps=30, step_size=1e-4)
    _, mean = run("daps", "saturation", DAPS(n_anneal=40, sigma_max=5.0, kernel=kernel))
    assert float((mean - X).square().mean()) < 0.2 * float(X.square().mean())
