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

    Example:
        >>> from invdiff import GaussianNoise, Measurement
        >>> from invdiff.operators import Identity
        >>> m = Measurement(torch.ones(1, 2, 2), Identity((1, 2, 2)), GaussianNoise(0.5))
        >>> float(m.nll(torch.zeros(1, 2, 2)))  # 4 pixels, 1/2 (1 / 0.5)^2 each
        8.0
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
    """y = A x + n, real and imaginary part of n independent N(0, sigma^2), so that ``E |n|^2 = 2 sigma^2``.

    Args:
        sigma: standard deviation of each component, in the units of y (for k-space: of the orthonormal FFT).

    Example:
        >>> from invdiff import ComplexGaussianNoise
        >>> zero = torch.zeros(10000, dtype=torch.complex64)
        >>> y = ComplexGaussianNoise(0.5).sample(zero, torch.Generator().manual_seed(0))
        >>> bool(abs(y.abs().square().mean() - 2 * 0.5**2) < 0.02)
        True
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


@dataclass(frozen=True, eq=False)
class WeightedGaussianNoise:
    """y = A x + n, n ~ N(0, 1 / weights) with one known weight per entry: weighted least squares, for real data.

    Args:
        weights: inverse variance of each entry, in the units of y to the power -2; broadcasts to y. Positive: a
            small weight, not zero, for entries that say nothing.

    Example:
        >>> from invdiff import Measurement, WeightedGaussianNoise
        >>> from invdiff.operators import Identity
        >>> weights = torch.tensor([[[4.0, 1.0]]])  # standard deviations 0.5 and 1
        >>> m = Measurement(torch.ones(1, 1, 2), Identity((1, 1, 2)), WeightedGaussianNoise(weights))
        >>> m.nll_grad(torch.zeros(1, 1, 2)).tolist()
        [[[-4.0, -1.0]]]
    """

    weights: Tensor
    complex: ClassVar[bool] = False

    def __post_init__(self) -> None:
        w = self.weights
        if not isinstance(w, Tensor) or not w.is_floating_point():
            raise TypeError(
                f"weights must be a real floating-point tensor, got {getattr(w, 'dtype', type(w).__name__)}."
            )
        if not bool((torch.isfinite(w) & (w > 0)).all()):
            raise ValueError("weights must be positive and finite: inverse variances, one per entry of y.")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(weights {tuple(self.weights.shape)}, median {float(self.weights.median()):.4g})"

    def precision(self, y: Tensor) -> Tensor:
        shape = tuple(self.weights.shape)
        if len(shape) > y.ndim or any(n not in (1, m) for n, m in zip(shape[::-1], y.shape[::-1], strict=False)):
            raise ValueError(f"weights of shape {shape} do not broadcast to data of shape {tuple(y.shape)}.")
        return self.weights.to(y.device, y.dtype).expand(y.shape)

    def sample(self, Ax: Tensor, generator: torch.Generator) -> Tensor:
        n = torch.randn(Ax.shape, generator=generator, dtype=Ax.dtype).to(Ax.device)
        return Ax + n * self.precision(Ax).rsqrt()

    def nll(self, Ax: Tensor, y: Tensor) -> Tensor:
        return (Ax - y).square() * self.precision(y) / 2

    def nll_grad(self, Ax: Tensor, y: Tensor) -> Tensor:
        return (Ax - y) * self.precision(y)

    def chi2(self, Ax: Tensor, y: Tensor) -> Tensor:
        return (Ax - y).square() * self.precision(y)


@dataclass(frozen=True)
class PoissonLogNoise:
    """Log-transformed photon counts: I ~ Poisson(n_photons exp(-A x)) + N(0, electronic^2), y = -log(I / n_photons).

    Without electronic noise the likelihood is the exact Poisson one, on the counts that y encodes. With it,
    I + electronic^2 is taken as Poisson with mean ``n_photons exp(-A x) + electronic^2``, which has the right mean and
    variance (D. L. Snyder et al., J. Opt. Soc. Am. A 12, 272-283, 1995). Counts below ``min_count``, so also zero
    and negative ones, are stored as ``min_count`` (the LoDoPaB convention is 0.1), which biases rays that are almost
    dark.

    Args:
        n_photons: mean count of an unattenuated ray.
        min_count: count that stands for zero.
        electronic: standard deviation of the read-out noise, in photons. 0: none.

    Example:
        >>> from invdiff import Measurement, PoissonLogNoise
        >>> from invdiff.operators import Identity
        >>> m = Measurement(torch.full((1, 2, 2), 0.5), Identity((1, 2, 2)), PoissonLogNoise(1e4))
        >>> bool(m.nll_grad(m.y).abs().max() < 1e-2)  # the likelihood is largest at the data
        True
        >>> bool(m.nll(m.y + 0.1) > m.nll(m.y))
        True
    """

    n_photons: float
    min_count: float = 0.1
    electronic: float = 0.0
    complex: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _positive("n_photons", self.n_photons)
        _positive("min_count", self.min_count)
        if self.electronic != 0:
            _positive("electronic", self.electronic)

    def counts(self, y: Tensor) -> Tensor:
        """The photon counts that log data ``y`` stand for."""
        return self.n_photons * torch.exp(-y)

    def sample(self, Ax: Tensor, generator: torch.Generator) -> Tensor:
        counts = torch.poisson(self.counts(Ax).cpu(), generator=generator)
        if self.electronic:
            counts = counts + self.electronic * torch.randn(counts.shape, generator=generator, dtype=counts.dtype)
        return -torch.log(counts.clamp(min=self.min_count) / self.n_photons).to(Ax.device)

    def nll(self, Ax: Tensor, y: Tensor) -> Tensor:
        # lambda - I log(lambda), minus its value at lambda = I, so that it is 0 at Ax = y; both shifted by electronic^2
        counts, d = self.counts(y), Ax - y
        if not self.electronic:
            return counts * (torch.expm1(-d) + d)
        shifted = counts + self.electronic**2
        r = counts * torch.expm1(-d) / shifted
        return shifted * (r - torch.log1p(r))

    def nll_grad(self, Ax: Tensor, y: Tensor) -> Tensor:
        mean = self.counts(Ax)
        residual = self.counts(y) - mean
        return residual * (mean / (mean + self.electronic**2)) if self.electronic else residual

    def precision(self, y: Tensor) -> Tensor:
        counts = self.counts(y)  # var(y) = (I + electronic^2) / I^2 to first order
        return counts * (counts / (counts + self.electronic**2)) if self.electronic else counts

    def chi2(self, Ax: Tensor, y: Tensor) -> Tensor:
        mean = self.counts(Ax)
        return (self.counts(y) - mean).square() / (mean + self.electronic**2)  # Pearson

    def weighted(self, y: Tensor) -> WeightedGaussianNoise:
        """The weighted least-squares data term of log data ``y``: weights I^2 / (I + electronic^2), fixed."""
        return WeightedGaussianNoise(self.precision(y))


NOISES: dict[str, type] = {
    "GaussianNoise": GaussianNoise,
    "ComplexGaussianNoise": ComplexGaussianNoise,
    "PoissonLogNoise": PoissonLogNoise,
    "WeightedGaussianNoise": WeightedGaussianNoise,
}
