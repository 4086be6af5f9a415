"""Wiener filter: the best linear reconstruction of a stationary random image.

N. Wiener, Extrapolation, Interpolation, and Smoothing of Stationary Time Series, MIT Press 1949.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from invdiff.algorithms.draw import Callback
from invdiff.classical.point import point_estimate, require_linear
from invdiff.measurement import Measurement
from invdiff.operators.base import COMPLEX, LinearOperator
from invdiff.operators.blur import Blur
from invdiff.posterior import Posterior
from invdiff.priors.denoiser import Prior


@dataclass(frozen=True, kw_only=True)
class Wiener:
    """Wiener filter: the posterior mean for a stationary Gaussian image. Label: *point estimate*.

    Closed form for a :class:`Blur` (and for a white image, wherever ``prox`` has one), conjugate gradients for other
    linear operators. The image's mean is a constant, fitted to the data.

    Attributes:
        power: the image's power spectrum E|FFT x|^2, orthonormal FFT, physical units squared, (y, x // 2 + 1) as
            torch.fft.rfft2 lays it out; or a number, the variance of a white image. None: falling as 1 / frequency^2,
            as natural images do, below one cycle per image flat, of the size that explains the data's variance.

    Example:
        >>> from invdiff import GaussianNoise, Measurement
        >>> from invdiff.classical import Wiener
        >>> from invdiff.operators import Identity
        >>> m = Measurement(torch.tensor([[[2.0, -2.0], [-4.0, 4.0]]]), Identity((1, 2, 2)), GaussianNoise(1.0))
        >>> Wiener(power=1.0)(None, m).mean.round(decimals=4).tolist()  # y / (1 + sigma^2 / power); their mean is 0
        [[[1.0, -1.0], [-2.0, 2.0]]]
    """

    power: float | Tensor | None = None
    bibtex: ClassVar[str] = """@book{wiener1949extrapolation,
  author    = {Wiener, Norbert},
  title     = {Extrapolation, Interpolation, and Smoothing of Stationary Time Series},
  publisher = {MIT Press},
  year      = {1949}
}"""

    def __post_init__(self) -> None:
        if self.power is not None and not bool(torch.as_tensor(self.power >= 0).all()):
            raise ValueError("Wiener: power must not be negative.")

    def __call__(
        self,
        prior: Prior | None,
        measurement: Measurement,
        *,
        n_samples: int = 1,
        seed: int = 0,
        batch_size: int | None = None,
        callback: Callback | None = None,
    ) -> Posterior:
        """Same call as an algorithm; ``prior`` is not used and ``n_samples`` must be 1.

        Raises:
            TypeError: an operator that is not linear; a power spectrum where images are complex or volumes.
            ValueError: a power spectrum of another shape.
        """
        A, noise = require_linear(self, measurement), measurement.noise
        if not isinstance(self.power, int | float):
            if A.in_complex or len(A.in_shape) != 3:
                raise TypeError(f"Wiener needs real images (channel, y, x), or a number as power (white); got {A!r}.")
            expected = (A.in_shape[1], A.in_shape[2] // 2 + 1)
            if self.power is not None and tuple(self.power.shape) != expected:
                raise ValueError(f"Wiener: power must have shape {expected}, got {tuple(self.power.shape)}.")

        def reconstruct() -> Tensor:
            ones = torch.ones(A.in_shape, dtype=COMPLEX[A.dtype] if A.in_complex else A.dtype, device=A.device)
            A1, y = A(ones), measurement.y
            mean = (A1.conj() * y).real.sum() / A1.abs().square().sum()
            if isinstance(self.power, int | float):
                return measurement.prox(mean * ones, self.power) if self.power > 0 else mean * ones
            r, precision = y - mean * A1, noise.precision(y)
            S = _falling_spectrum(measurement, A, r) if self.power is None else self.power.to(ones)
            if isinstance(A, Blur) and isinstance(precision, float):
                svd = A.svd()
                s = svd.singular_values
                gain = S * s / (S * s**2 + 1 / precision)  # frequency by frequency
                return mean * ones + svd.image(gain * svd.data_coefficients(r))
            # x = mean + L u with a white u of variance 1
            L = _root_filter(A, S)
            white = replace(measurement, y=r, A=A @ L, reference=None)
            return mean * ones + L(white.prox(torch.zeros_like(ones), 1.0))

        return point_estimate(self, reconstruct, measurement, n_samples=n_samples, seed=seed)


def _root_filter(A: LinearOperator, S: Tensor) -> Blur:
    """Colours white images with the power spectrum ``S``: multiplies the spectrum by ``sqrt(S)``."""
    psf = torch.fft.fftshift(torch.fft.irfft2(S.sqrt().to(torch.float64), s=A.in_shape[1:]))
    return Blur(psf, A.in_shape).to(dtype=A.dtype, device=A.device)  # type: ignore[arg-type]


def _falling_spectrum(measurement: Measurement, A: LinearOperator, r: Tensor, n_probes: int = 16) -> Tensor:
    """``c / (f0^2 + f^2)``, (y, x // 2 + 1), with the ``c`` for which the observed data would vary as much as ``r``."""
    ny, nx = A.in_shape[1:]
    fy, fx = torch.fft.fftfreq(ny, dtype=A.dtype), torch.fft.rfftfreq(nx, dtype=A.dtype)
    S = (1 / (1 / max(ny, nx) ** 2 + fy[:, None] ** 2 + fx**2)).to(A.device)
    z = torch.randn((n_probes, *A.in_shape), generator=torch.Generator().manual_seed(0), dtype=A.dtype).to(A.device)
    components = 2 if A.out_complex else 1
    variance = components / torch.as_tensor(measurement.noise.precision(measurement.y), dtype=A.dtype, device=A.device)
    excess = measurement.mean_over_data(r.abs().square() - variance)
    signal = measurement.mean_over_data(A(_root_filter(A, S)(z)).abs().square()).mean()
    return S * (excess / signal).clamp(min=0)
