"""Noise models: how data scatter around ``A(x)``. Each is a small frozen object.

All methods take ``Ax`` (noise-free data, any leading dimensions) and ``y`` (measured data), and work entry by
entry; :class:`invdiff.Measurement` does the sums and leaves out unobserved entries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor


class Noise(Protocol):
    """What a noise model must offer."""

    complex: ClassVar[bool]

    def sample(self, Ax: Tensor, generator: torch.Generator) -> Tensor:
        """Draw y given ``Ax``."""
        ...

    def nll(self, Ax: Tensor, y: Tensor) -> Tensor:
        """-log p(y | Ax) per entry, up to a constant that depends on y only."""
        ...

    def nll_grad(self, Ax: Tensor, y: Tensor) -> Tensor:
        """Derivative of ``nll`` in ``Ax`` per entry (real and imaginary part as one complex number)."""
        ...

    def precision(self, y: Tensor) -> Tensor | float:
        """Inverse variance (per component) of the Gaussian closest to the noise, a number or per entry."""
        ...

    def chi2(self, Ax: Tensor, y: Tensor) -> Tensor:
        """Squared residual per entry over its variance: mean 1 over y when ``Ax`` is the truth."""
        ...


def _positive(name: str, value: float) -> None:
    if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive finite number, got {value!r}.")


@dataclass(frozen=True)
class GaussianNoise:
    """y = A x + n, n ~ N(0, sigma^2), for real data.

    Args:
        sigma: standard deviation, in the units of y. Positive.
    """

    sigma: float
    complex: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _positive("sigma", self.sigma)

    def sample(self, Ax: Tensor, generator: torch.Generator) -> Tensor:
        return Ax + self.sigma * torch.randn(Ax.shape, generator=generator, dtype=Ax.dtype).to(Ax.device)

    def nll(self, Ax: Tensor, y: Tensor) -> Tensor:
        return (Ax - y).square() / (2 * self.sigma**2)

    def nll_grad(self, Ax: Tensor, y: Tensor) -> Tensor:
        return (Ax - y) / self.sigma**2

    def precision(self, y: Tensor) -> float:
        return 1 / self.sigma**2

    def chi2(self, Ax: Tensor, y: Tensor) -> Tensor:
        return ((Ax - y) / self.sigma).square()


@dataclass(frozen=True)
class ComplexGaussianNoise:
    """y = A x + n, real and imaginary part of n independent N(0, sigma^2), so that E |n|^2 = 2 sigma^2.

    Args:
        sigma: standard deviation of each component, in the units of y (for k-space: of the orthonormal FFT).
    """

    sigma: float
    complex: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _positive("sigma", self.sigma)

    def sample(self, Ax: Tensor, generator: torch.Generator) -> Tensor:
        real = torch.float64 if Ax.dtype == torch.complex128 else torch.float32
        n = torch.view_as_complex(torch.randn((*Ax.shape, 2), generator=generator, dtype=real))
        return Ax + self.sigma * n.to(Ax.device)

    def nll(self, Ax: Tensor, y: Tensor) -> Tensor:
        r = Ax - y
        return (r.real.square() + r.imag.square()) / (2 * self.sigma**2)

    def nll_grad(self, Ax: Tensor, y: Tensor) -> Tensor:
        return (Ax - y) / self.sigma**2

    def precision(self, y: Tensor) -> float:
        return 1 / self.sigma**2

    def chi2(self, Ax: Tensor, y: Tensor) -> Tensor:
        return self.nll(Ax, y)  # |r|^2 / (2 sigma^2): two components


@dataclass(frozen=True)
class PoissonLogNoise:
    """Log-transformed photon counts: I ~ Poisson(n_photons exp(-A x)), y = -log(I / n_photons).

    The likelihood is the exact Poisson one, on the counts that y encodes. Zero counts are stored as
    ``min_count`` (the LoDoPaB convention is 0.1), which biases rays that are almost dark.

    Args:
        n_photons: mean count of an unattenuated ray.
        min_count: count that stands for zero.
    """

    n_photons: float
    min_count: float = 0.1
    complex: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _positive("n_photons", self.n_photons)
        _positive("min_count", self.min_count)

    def counts(self, y: Tensor) -> Tensor:
        """The photon counts that log data ``y`` stand for."""
        return self.n_photons * torch.exp(-y)

    def sample(self, Ax: Tensor, generator: torch.Generator) -> Tensor:
        counts = torch.poisson(self.counts(Ax).cpu(), generator=generator).clamp(min=self.min_count)
        return -torch.log(counts / self.n_photons).to(Ax.device)

    def nll(self, Ax: Tensor, y: Tensor) -> Tensor:
        # lambda - I log(lambda), minus its value at lambda = I, so that it is 0 at Ax = y
        counts, d = self.counts(y), Ax - y
        return counts * (torch.expm1(-d) + d)

    def nll_grad(self, Ax: Tensor, y: Tensor) -> Tensor:
        return self.counts(y) - self.counts(Ax)

    def precision(self, y: Tensor) -> Tensor:
        return self.counts(y)  # var(y) = 1 / I to first order

    def chi2(self, Ax: Tensor, y: Tensor) -> Tensor:
        return (self.counts(y) - self.counts(Ax)).square() / self.counts(Ax)  # Pearson


NOISES: dict[str, type] = {
    "GaussianNoise": GaussianNoise,
    "ComplexGaussianNoise": ComplexGaussianNoise,
    "PoissonLogNoise": PoissonLogNoise,
}
