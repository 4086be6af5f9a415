"""Priors whose denoiser and posterior are known exactly: the truth that algorithms are measured against.

A Gaussian mixture with shared covariance ``p(x) = sum_k w_k N(x; mu_k, C)``. With ``C = U diag(lambda) U^T``
for an orthonormal transform ``U``, every formula below is a function of the eigenvalues.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from invdiff.measurement import Measurement
from invdiff.operators.base import _cast
from invdiff.operators.linalg import cg
from invdiff.priors.denoiser import Prior, PriorInfo
from invdiff.random import SampleStreams

DENSE_LIMIT = 4096  # data (real components) up to which the posterior is computed by a Cholesky factor


class Covariance(Protocol):
    """``C = U diag(eigenvalues) U^T`` on images of one shape."""

    shape: tuple[int, ...]
    eigenvalues: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """``U^T x``, (..., \\*shape) to (..., \\*eigenvalues.shape)."""
        ...

    def inverse(self, c: Tensor) -> Tensor:
        """``U c``."""
        ...


class DenseCovariance:
    """A covariance given as a matrix.

    Args:
        matrix: (d, d), symmetric positive semi-definite, d = prod(shape), row-major pixel order.
        shape: of one image.

    Example:
        >>> from invdiff.priors import DenseCovariance, GaussianPrior
        >>> C = DenseCovariance(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), (1, 1, 2))
        >>> C.eigenvalues.tolist()
        [1.0, 3.0]
        >>> x0 = GaussianPrior(torch.zeros(1, 1, 2), C)(torch.tensor([[[[8.0, 0.0]]]]), 1.0)
        >>> x0.round(decimals=4).tolist()  # C (C + 1)^-1 x
        [[[[5.0, 1.0]]]]
    """

    def __init__(self, matrix: Tensor, shape: tuple[int, ...]) -> None:
        d = math.prod(shape)
        if tuple(matrix.shape) != (d, d):
            raise ValueError(f"The covariance of images {shape} is a ({d}, {d}) matrix, got {tuple(matrix.shape)}.")
        values, self._vectors = torch.linalg.eigh(matrix.double())
        if float(values.min()) < -1e-10 * float(values.max()):
            raise ValueError(
                f"The covariance is not positive semi-definite: smallest eigenvalue {float(values.min()):g}."
            )
        self.shape, self.eigenvalues = tuple(shape), values.clamp(min=0)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(-len(self.shape)) @ self._vectors.to(x.dtype)

    def inverse(self, c: Tensor) -> Tensor:
        return (c @ self._vectors.to(c.dtype).T).unflatten(-1, self.shape)


class StationaryCovariance:
    """A stationary covariance on the torus, given by its power spectrum: diagonal in the Hartley transform.

    Args:
        spectrum: variance per frequency, (channel, y, x) in FFT order, non-negative and symmetric
            (``spectrum[-k] = spectrum[k]``); the pixel variance is its mean.

    Example:
        >>> from invdiff.priors import StationaryCovariance
        >>> C = StationaryCovariance.power_law((1, 8, 8), std=0.5)
        >>> round(float(C.eigenvalues.mean()), 6)  # the pixel variance
        0.25
    """

    def __init__(self, spectrum: Tensor) -> None:
        flipped = spectrum.flip((-2, -1)).roll((1, 1), (-2, -1))
        if bool((spectrum < 0).any()) or not torch.allclose(spectrum, flipped):
            raise ValueError("A power spectrum is non-negative and symmetric: spectrum[-k] = spectrum[k].")
        self.shape, self.eigenvalues = tuple(spectrum.shape), spectrum.double()

    @classmethod
    def power_law(
        cls, shape: tuple[int, int, int], *, std: float = 0.5, exponent: float = 2.0, knee: float = 1.0
    ) -> StationaryCovariance:
        """``S(k) ~ (knee^2 + |k|^2)^(-exponent/2)``, k in cycles per image; pixel standard deviation ``std``."""
        ky = torch.fft.fftfreq(shape[-2], 1 / shape[-2], dtype=torch.float64)[:, None]
        kx = torch.fft.fftfreq(shape[-1], 1 / shape[-1], dtype=torch.float64)
        spectrum = (knee**2 + ky**2 + kx**2) ** (-exponent / 2)
        return cls((std**2 * spectrum / spectrum.mean()).expand(shape).clone())

    def forward(self, x: Tensor) -> Tensor:
        f = torch.fft.fft2(x, norm="ortho")
        return f.real - f.imag  # the orthonormal Hartley transform is real, symmetric and its own inverse

    inverse = forward


class GaussianMixturePrior(Prior):
    """``sum_k w_k N(mu_k, C)`` with exact denoiser, log-density and posterior.

    Args:
        sigma_min, sigma_max: see :class:`Prior`.
        name: of the prior.
        means: (k, \\*shape).
        weights: (k,), positive; normalised here.
        covariance: shared by the components.
        value_range: image values that correspond to -1 and +1 of the model (means and covariance are the model's).
        dtype: of the images.

    Example:
        >>> from invdiff.priors import GaussianMixturePrior, StationaryCovariance
        >>> means = torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1)
        >>> prior = GaussianMixturePrior(means, torch.ones(2), StationaryCovariance(torch.full((1, 1, 1), 0.01)))
        >>> x = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1)
        >>> [round(v, 4) + 0.0 for v in prior(x, 0.1).flatten().tolist()]  # between the modes, and at one
        [0.0, 1.0]
    """

    def __init__(
        self,
        means: Tensor,
        weights: Tensor,
        covariance: Covariance,
        *,
        sigma_min: float = 1e-3,
        sigma_max: float = 100.0,
        value_range: tuple[float, float] = (-1.0, 1.0),
        name: str = "gaussian-mixture",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if tuple(means.shape[1:]) != covariance.shape or len(weights) != len(means):
            raise ValueError(
                f"Need means (k, {', '.join(map(str, covariance.shape))}) and k weights, "
                f"got {tuple(means.shape)} and {tuple(weights.shape)}."
            )
        info = PriorInfo(name=name, value_range=value_range)
        super().__init__(covariance.shape, sigma_min=sigma_min, sigma_max=sigma_max, info=info, dtype=dtype)
        self.means, self.covariance = means.double(), covariance
        self.log_weights = torch.log_softmax(weights.double().log(), 0)
        self._mean_coefficients = covariance.forward(self.means)  # U^T mu_k

    def _log_components(self, c: Tensor, variances: Tensor) -> Tensor:
        """log w_k N(c; U^T mu_k, variances) for coefficients c (b, ...), as (b, k)."""
        d = c[:, None] - self._mean_coefficients.to(c)
        dims = tuple(range(2, d.ndim))
        return self.log_weights.to(c) - 0.5 * (d.square() / variances + (2 * math.pi * variances).log()).sum(dims)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """``sum_k r_k(x) [mu_k + C (C + sigma^2)^-1 (x - mu_k)]``, r_k the responsibilities at level sigma."""
        c = self.covariance.forward(x)
        eig = self.covariance.eigenvalues.to(c)
        s2 = sigma.square().reshape(-1, *[1] * (c.ndim - 1))
        gain = eig / (eig + s2)
        if len(self.means) == 1:
            centre = self._mean_coefficients.to(c)
        else:
            M = self._mean_coefficients
            logits = self.log_weights + _log_responsibilities(c.flatten(1), (eig + s2).flatten(1), M.flatten(1))
            centre = torch.tensordot(torch.softmax(logits, 1), M, 1).to(c)
        return self.covariance.inverse(centre + gain * (c - centre))

    def log_density(self, x: Tensor, sigma: float = 0.0) -> Tensor:
        """log p of ``x`` (batch, \\*shape) under the prior blurred by noise of level ``sigma``."""
        c = self.covariance.forward(x)
        return torch.logsumexp(self._log_components(c, self.covariance.eigenvalues.to(c) + sigma**2), 1)

    def sample(self, n_samples: int, *, seed: int, item: str = "prior") -> Tensor:
        """Exact draws from the prior, (n_samples, \\*shape)."""
        streams = SampleStreams(seed, range(n_samples), item)
        k = _choose(self.log_weights.exp().expand(n_samples, -1), streams)
        return (self.means[k] + self._deviation(streams)).to(self.dtype)

    def _deviation(self, streams: SampleStreams) -> Tensor:
        z = streams.randn(self.covariance.eigenvalues.shape, dtype=torch.float64)
        return self.covariance.inverse(self.covariance.eigenvalues.sqrt() * z)

    def posterior(self, measurement: Measurement) -> ExactPosterior:
        """The exact posterior for a linear operator and Gaussian noise, in model units.

        Raises:
            TypeError: non-linear operator or non-Gaussian noise.
        """
        return ExactPosterior(self, measurement)


class GaussianPrior(GaussianMixturePrior):
    """``N(mean, C)``: a mixture of one.

    Args:
        mean: of the images, (\\*shape), model units.
        covariance: e.g. :class:`StationaryCovariance` or :class:`DenseCovariance`.
        name: of the prior.
        kwargs: of :class:`GaussianMixturePrior`.

    Example:
        >>> from invdiff.priors import GaussianPrior, StationaryCovariance
        >>> prior = GaussianPrior(torch.zeros(1, 1, 2), StationaryCovariance(torch.ones(1, 1, 2)))
        >>> prior(torch.tensor([[[[4.0, -2.0]]]]), 1.0).round(decimals=4).tolist()  # x / (1 + sigma^2)
        [[[[2.0, -1.0]]]]
    """

    def __init__(self, mean: Tensor, covariance: Covariance, *, name: str = "gaussian", **kwargs: float) -> None:
        super().__init__(mean[None], torch.ones(1), covariance, name=name, **kwargs)  # type: ignore[arg-type]

    def error(self, sigma: float) -> float:
        """Exactly: the posterior's variance given a noisy image is ``lambda sigma^2 / (lambda + sigma^2)``."""
        eig = self.covariance.eigenvalues
        return float((eig * sigma**2 / (eig + sigma**2)).mean().sqrt())


class ExactPosterior:
    """``p(x | y)`` of a Gaussian mixture prior, a linear operator and Gaussian noise; a Gaussian mixture again.

    With ``S = A C A^T + R``: component k has mean ``mu_k + C A^T S^-1 (y - A mu_k)``, weight proportional to
    ``w_k N(y; A mu_k, S)``, and all share ``C - C A^T S^-1 A C``. Computed in float64, by a Cholesky factor of S
    up to ``DENSE_LIMIT`` data and by conjugate gradients beyond. Complex data count as two real ones.

    Attributes:
        measurement: linear (or affine), with one standard deviation of the noise.
        weights: (k,); means: (k, \\*shape); mean: (\\*shape).

    Example:
        >>> from invdiff import GaussianNoise, Measurement
        >>> from invdiff.operators import Inpainting
        >>> from invdiff.priors import GaussianPrior, StationaryCovariance
        >>> prior = GaussianPrior(torch.zeros(1, 1, 2), StationaryCovariance(torch.ones(1, 1, 2)))
        >>> A = Inpainting(torch.tensor([[[True, False]]]))
        >>> exact = prior.posterior(Measurement(torch.tensor([[[2.0, 0.0]]]), A, GaussianNoise(1.0)))
        >>> exact.mean.round(decimals=4).tolist(), exact.std().round(decimals=4).tolist()
        ([[[1.0, 0.0]]], [[[0.7071, 1.0]]])
    """

    def __init__(self, prior: GaussianMixturePrior, measurement: Measurement) -> None:
        m = prior.in_model_units(measurement).to(dtype=torch.float64)
        A = m.linear
        if A is None:
            raise TypeError(f"The exact posterior needs a linear operator, got {measurement.A!r}.")
        precision = m.noise.precision(m.y)
        if not isinstance(precision, float):
            raise TypeError(f"The exact posterior needs Gaussian noise, got {m.noise!r}.")
        self.prior, self._measurement, self._A, self._variance = prior, m, A, 1 / precision
        self._observed = None if m.A.observed is None else m.A.observed.expand(m.A.out_shape)
        n_data = len(self._pack(m.linear_data))
        if n_data <= DENSE_LIMIT:
            eye = torch.eye(n_data, dtype=torch.float64)
            S = torch.cat([self._apply_S(rows) for rows in eye.split(256)])
            self._factor: Tensor | None = torch.linalg.cholesky((S + S.T) / 2)
        else:
            self._factor = None
        self._condition()

    def _condition(self) -> None:
        self._y = self._pack(self._measurement.linear_data)
        residuals = self._y - self._data(self.prior.means)
        solved = self._solve(residuals)
        self.weights = torch.softmax(self.prior.log_weights - 0.5 * (residuals * solved).sum(1), 0)
        self.means = self.prior.means + self._back(solved)
        self.mean = torch.tensordot(self.weights, self.means, 1)

    def with_data(self, y: Tensor) -> ExactPosterior:
        """The posterior for other data ``y`` (\\*out_shape) of the same operator and noise; the factor is shared."""
        new = copy.copy(self)
        new._measurement = replace(self._measurement, y=_cast(y, torch.float64, None), reference=None)
        new._condition()
        return new

    def sample(self, n_samples: int, *, seed: int, item: str = "exact") -> Tensor:
        """Exact independent draws, (n_samples, \\*shape), in the prior's dtype.

        A joint draw (x, y') from the prior and the noise is conditioned: ``x + C A^T S^-1 (y - y')``.
        """
        streams = SampleStreams(seed, range(n_samples), item)
        k = _choose(self.weights.expand(n_samples, -1), streams)
        deviation = self.prior._deviation(streams)
        noise = self._variance**0.5 * streams.randn(self._y.shape, dtype=torch.float64)
        x = self.means[k] + deviation - self._back(self._solve(self._data(deviation) + noise))
        return x.to(self.prior.dtype)

    def covariance_of_component(self) -> Tensor:
        """The shared posterior covariance, (d, d); for small images."""
        d = math.prod(self.prior.shape)
        eye = torch.eye(d, dtype=torch.float64).reshape(d, *self.prior.shape)
        Ce = self._C(eye)
        return (Ce - self._back(self._solve(self._data(Ce)))).reshape(d, d)

    def std(self) -> Tensor:
        """Exact pixel standard deviation, (\\*shape); for small images."""
        within = self.covariance_of_component().diagonal().reshape(self.prior.shape)
        between = torch.tensordot(self.weights, (self.means - self.mean).square(), 1)
        return (within + between).sqrt()

    def _C(self, x: Tensor) -> Tensor:
        cov = self.prior.covariance
        return cov.inverse(cov.eigenvalues * cov.forward(x))

    def _pack(self, y: Tensor) -> Tensor:
        """Observed data as real vectors: (..., \\*out_shape) to (..., n)."""
        flat = y[..., self._observed] if self._observed is not None else y.flatten(-len(self._A.out_shape))
        return torch.view_as_real(flat).flatten(-2) if flat.is_complex() else flat

    def _unpack(self, v: Tensor) -> Tensor:
        if self._A.out_complex:
            v = torch.view_as_complex(v.unflatten(-1, (-1, 2)).contiguous())
        if self._observed is None:
            return v.unflatten(-1, self._A.out_shape)
        y = v.new_zeros(*v.shape[:-1], *self._A.out_shape)
        y[..., self._observed] = v
        return y

    def _data(self, x: Tensor) -> Tensor:
        return self._pack(self._A(x))

    def _back(self, v: Tensor) -> Tensor:
        return self._C(self._A.H(self._unpack(v)))

    def _apply_S(self, v: Tensor) -> Tensor:
        return self._data(self._back(v)) + self._variance * v

    def _solve(self, v: Tensor) -> Tensor:
        if self._factor is not None:
            return torch.cholesky_solve(v.T, self._factor).T
        return cg(self._apply_S, v, item_ndim=1, n_steps=2000, tolerance=1e-10)


class PosteriorPrior(Prior):
    """Exact posteriors as a prior, ``E[x0 | u, y]``: diffusion with it has the solver's error and no other.

    Args:
        posteriors: one per measurement, of one operator and noise (they share their covariance); in a batch of
            ``n * len(posteriors)`` images, rows ``i n .. (i + 1) n - 1`` belong to posterior i.
    """

    def __init__(self, posteriors: Sequence[ExactPosterior]) -> None:
        prior = posteriors[0].prior
        info = replace(prior.info, name=f"posterior under {prior.info.name}")
        super().__init__(
            prior.shape, sigma_min=prior.sigma_min, sigma_max=prior.sigma_max, info=info, dtype=prior.dtype
        )
        self.covariance = DenseCovariance(posteriors[0].covariance_of_component(), prior.shape)
        self._log_weights = torch.stack([p.weights for p in posteriors]).log()
        self._mean_coefficients = self.covariance.forward(torch.stack([p.means for p in posteriors]))

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        M = self._mean_coefficients  # (posteriors, k, d)
        if len(x) % len(M):
            raise ValueError(f"Expected a multiple of {len(M)} images, one block per posterior, got {len(x)}.")
        work = x if M.shape[1] == 1 else x.double()
        c = self.covariance.forward(work).unflatten(0, (len(M), -1))
        M, eig = M.to(c), self.covariance.eigenvalues.to(c)
        variances = eig + sigma.to(c).square().reshape(len(M), -1, 1)
        if M.shape[1] == 1:
            centre = M
        else:
            logits = self._log_weights[:, None] + _log_responsibilities(c, variances, M)
            centre = torch.softmax(logits, -1).to(c) @ M
        return self.covariance.inverse((centre + eig / variances * (c - centre)).flatten(0, 1)).to(x)


def _log_responsibilities(c: Tensor, variances: Tensor, means: Tensor) -> Tensor:
    """``log N(c; m_k, variances)`` up to a constant per row, float64: (..., n, d) and (..., k, d) to (..., n, k)."""
    c, precisions, means = c.double(), 1 / variances.double(), means.double()
    return (c * precisions) @ means.mT - 0.5 * precisions @ means.square().mT


def _choose(probabilities: Tensor, streams: SampleStreams) -> Tensor:
    """One index per stream, by inversion of the cumulative probabilities (n, k)."""
    u = streams.rand((1,))
    return (probabilities.cumsum(1) < u).sum(1).clamp(max=probabilities.shape[1] - 1)
