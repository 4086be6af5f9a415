"""A measurement: the data, the operator that made them, and the noise in them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invdiff.noise import Noise
from invdiff.operators.base import COMPLEX, Affine, LinearOperator, Operator
from invdiff.operators.linalg import cg, cg_on_data
from invdiff.operators.pointwise import Identity
from invdiff.operators.svd import SVD
from invdiff.random import SampleStreams


@dataclass(frozen=True)
class Measurement:
    """``y = A(x) + noise``. It owns the likelihood: weights such as 1/sigma^2 exist here and nowhere else.

    Args:
        y: data, shape ``A.out_shape``, finite, zero where ``A.observed`` is False.
        A: forward operator, in physical units.
        noise: a noise model of :mod:`invdiff.noise`.
        image_scale: the image value that corresponds to 1 in a prior's relative units: for CT the attenuation
            of water at the scanner's effective energy (1/mm), for MRI the 99.5th percentile of the magnitude.
        units: of the image, e.g. "1/mm".
        reference: the true image, where it is known, shape ``A.in_shape``.
        item: names the slice or frame; it selects the random streams and the file names.
        metadata: plain strings, numbers and lists of them to carry along: source, licence, and "affine", 4 x 4 from the
            index (x, y, z) of the image to mm in RAS, which an exported posterior takes over.

    Raises:
        ValueError, TypeError: shapes, dtypes or values that do not fit together, saying which.

    Example:
        >>> from invdiff import GaussianNoise, Measurement
        >>> from invdiff.operators import BlockDownsample
        >>> A = BlockDownsample((1, 4, 4), 2)
        >>> m = Measurement.simulate(torch.ones(1, 4, 4), A, GaussianNoise(0.1), seed=0)
        >>> tuple(m.y.shape), m.n_data
        ((1, 2, 2), 4)
        >>> bool(m.chi2(torch.ones(1, 4, 4)) < m.chi2(torch.zeros(1, 4, 4)))  # about 1, and about 100
        True
    """

    y: Tensor
    A: Operator
    noise: Noise
    image_scale: float = 1.0
    units: str = "relative"
    reference: Tensor | None = None
    item: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        A, y = self.A, self.y
        if not isinstance(A, Operator):
            raise TypeError(f"A must be an invdiff operator, got {type(A).__name__}.")
        if tuple(y.shape) != A.out_shape:
            raise ValueError(f"y must have the operator's output shape {A.out_shape}, got {tuple(y.shape)} ({A!r}).")
        dtype = COMPLEX[A.dtype] if A.out_complex else A.dtype
        if y.dtype != dtype:
            raise TypeError(f"y must be {dtype}, as the operator's output, got {y.dtype}.")
        if not torch.isfinite(y).all():
            bad = int((~torch.isfinite(y)).sum())
            raise ValueError(f"y has {bad} non-finite value(s) (NaN or inf) in {y.numel()}. Mask or repair them first.")
        if self.noise.complex != A.out_complex:
            kind = "complex" if A.out_complex else "real"
            raise TypeError(f"The data are {kind}; {self.noise!r} is not a noise model for {kind} data.")
        self.noise.precision(y)  # refuses weights that do not fit the data
        if A.observed is not None and bool((y != 0).masked_select(~A.observed.expand(y.shape)).any()):
            raise ValueError("y is not zero where the operator observes nothing. Multiply it by A.observed first.")
        if not (self.image_scale > 0):
            raise ValueError(f"image_scale must be positive, got {self.image_scale}.")
        if self.reference is not None and tuple(self.reference.shape) != A.in_shape:
            raise ValueError(f"reference must have shape {A.in_shape}, got {tuple(self.reference.shape)}.")

    @classmethod
    def simulate(cls, x: Tensor, A: Operator, noise: Noise, *, seed: int, **kwargs: Any) -> Measurement:
        """Measure ``x`` with ``A`` and fresh noise; ``x`` becomes the reference. Beware of the inverse crime:
        to avoid it, simulate ``y`` with a finer operator and construct the Measurement from it."""
        y = noise.sample(A(x), torch.Generator().manual_seed(seed))
        if A.observed is not None:
            y = y * A.observed
        return cls(y, A, noise, reference=x, **kwargs)

    @property
    def n_data(self) -> int:
        """Number of observed entries of y."""
        observed = self.A.observed
        return self.y.numel() if observed is None else int(observed.expand(self.y.shape).sum())

    @property
    def linear(self) -> LinearOperator | None:
        """The linear part of the operator; None if it is not linear (or affine)."""
        if isinstance(self.A, Affine):
            return self.A.linear
        return self.A if isinstance(self.A, LinearOperator) else None

    @property
    def linear_data(self) -> Tensor:
        """The data that :attr:`linear` explains: ``y`` minus the operator's constant, zero where not observed."""
        if not isinstance(self.A, Affine):
            return self.y
        y = self.y - self.A.constant
        return y if self.A.observed is None else y * self.A.observed

    def _sum(self, entries: Tensor) -> Tensor:
        if self.A.observed is not None:
            entries = entries * self.A.observed
        return entries.flatten(-len(self.A.out_shape)).sum(-1)

    def mean_over_data(self, entries: Tensor) -> Tensor:
        """Mean of ``entries`` (..., \\*out_shape) over the observed entries, per leading index."""
        return self._sum(entries) / self.n_data

    def residual(self, x: Tensor) -> Tensor:
        """``y - A(x)``, (..., \\*out_shape), zero where nothing is observed."""
        return self.y - self.A(x)

    def nll(self, x: Tensor) -> Tensor:
        """-log p(y | x) up to a constant, one value per leading index of ``x``."""
        return self._sum(self.noise.nll(self.A(x), self.y))

    def nll_grad(self, x: Tensor) -> Tensor:
        """Gradient of :meth:`nll` in ``x``, shape of ``x``: ``J^H`` of the noise model's data-space gradient."""
        Ax = self.A(x)
        v = self.noise.nll_grad(Ax, self.y)
        if self.A.observed is not None:
            v = v * self.A.observed
        return self.A.vjp(x, v)

    def chi2(self, x: Tensor) -> Tensor:
        """Mean squared residual over its variance, per leading index: 1 in expectation for the truth and for
        exact posterior samples; below 1, noise is fitted; far above, data are ignored."""
        return self.mean_over_data(self.noise.chi2(self.A(x), self.y))

    def prox(self, z: Tensor, variance: float, *, n_steps: int = 100, tolerance: float = 1e-5) -> Tensor:
        """``argmin_x |x - z|^2 / (2 variance) + nll(x)``, the noise replaced by its closest Gaussian.

        Closed form where the operator has one, else conjugate gradients with the given stopping: on the image for white
        noise, on the data (:meth:`solve_covariance`) for other noise.

        Raises:
            TypeError: the operator is not linear (or affine).
        """
        if self._seen is not None:
            return self._in_coefficients(z, self._seen[1], variance)
        return self._solve(z, self.y, variance, n_steps, tolerance)

    def conditional(
        self,
        z: Tensor,
        variance: float,
        streams: SampleStreams,
        *,
        n_steps: int = 100,
        tolerance: float = 1e-5,
    ) -> Tensor:
        """Draw from ``N(x; z, variance) p(y | x)``, the noise replaced by its closest Gaussian.

        Perturbs ``z`` and ``y`` by their noise and solves :meth:`prox`: an exact draw (Papandreou and Yuille 2010)
        up to the stopping of the conjugate gradients. ``z``: (n_samples, \\*in_shape), one row per stream.
        """
        precision = self.noise.precision(self.y)
        std = precision**-0.5 if isinstance(precision, float) else precision.rsqrt()
        if self._seen is not None:  # U^H y, perturbed by the noise in it: no numbers for data that outnumber pixels
            svd, y = self._seen
            y = y + std * svd.coefficients(streams.randn(self.A.in_shape, dtype=z.dtype, device=z.device))
            z = z + variance**0.5 * streams.randn(self.A.in_shape, dtype=z.dtype, device=z.device)
            return self._in_coefficients(z, y, variance)
        y = self.y + std * streams.randn(self.A.out_shape, dtype=self.y.dtype, device=self.y.device)
        z = z + variance**0.5 * streams.randn(self.A.in_shape, dtype=z.dtype, device=z.device)
        return self._solve(z, y, variance, n_steps, tolerance)

    @cached_property
    def _seen(self) -> tuple[SVD, Tensor] | None:
        """The operator's singular value decomposition and ``U^H y``, all that white data tell of the image, for MRI of
        whole lines of k-space, whose coils give more data than there are pixels."""
        A = self.linear
        if A is None or not A.svd_by_lines or not isinstance(self.noise.precision(self.y), float):
            return None
        svd = A.svd()
        return svd, svd.data_coefficients(self.linear_data)

    def _in_coefficients(self, z: Tensor, y: Tensor, variance: float) -> Tensor:
        """The proximal point of ``z`` for the data's coefficients ``y = U^H (data)``."""
        assert self._seen is not None
        svd, w = self._seen[0], variance * self._mean_precision
        s = svd.singular_values
        return z + svd.image(w * s / (1 + w * s.square()) * (y - s * svd.coefficients(z)))

    def _solve(self, z: Tensor, y: Tensor, variance: float, n_steps: int, tolerance: float) -> Tensor:
        A = self.linear
        if isinstance(self.A, Affine):
            y = y - self.A.constant
        if A is None:
            raise TypeError(
                f"This needs a linear operator, got {self.A!r}. Use an algorithm or kernel that needs only nll_grad."
            )
        if A.observed is not None:
            y = y * A.observed
        precision = self.noise.precision(self.y)
        if isinstance(precision, float) and A.has_closed_form_prox:
            return A.prox(z, y, variance * precision)
        if not isinstance(precision, float):
            return z + self._on_data(y - A(z), variance, n_steps, tolerance)[1]
        w = variance * precision
        return cg(
            lambda x: x + w * A.gram(x), z + w * A.H(y), item_ndim=len(A.in_shape), start=z, n_steps=n_steps,
            tolerance=tolerance,
        )  # fmt: skip

    @cached_property
    def _covariance_of_white_images(self) -> tuple[Tensor, Tensor]:
        """What ``A A^H`` is like, from 16 images of random signs: its diagonal, (\\*out_shape), and a level for each
        frequency of the last axis of the data, (frequencies,): the mean of its diagonal in Fourier space over the other
        axes, weighted by itself, so that the few directions count in which the data overlap."""
        A, generator = self.linear, torch.Generator().manual_seed(0)
        assert A is not None
        dtype = COMPLEX[A.dtype] if A.in_complex else A.dtype
        energy = torch.zeros(A.out_shape, dtype=A.dtype, device=A.device)
        spectrum = torch.zeros_like(energy)
        dims = tuple(range(1, 1 + len(A.out_shape)))
        for _ in range(4):
            signs = 2 * torch.randint(2, (4, *A.in_shape), generator=generator) - 1
            y = A(signs.to(A.device, dtype))
            y = y if A.observed is None else y * A.observed
            energy += y.abs().square().sum(0) / 16
            spectrum += torch.fft.fftn(y, dim=dims, norm="ortho").abs().square().sum(0) / 16
        spectrum = spectrum.flatten(0, -2) if len(A.out_shape) > 1 else spectrum[None]
        return energy, spectrum.square().sum(0) / spectrum.sum(0).clamp(min=torch.finfo(A.dtype).tiny)

    @cached_property
    def _mean_precision(self) -> float:
        precision = self.noise.precision(self.y)
        return precision if isinstance(precision, float) else float(self.mean_over_data(precision))

    @cached_property
    def _mean_and_peak(self) -> tuple[float, float]:
        """Of ``A A^H``: the mean of its diagonal, and its level at the strongest frequency."""
        energy, level = self._covariance_of_white_images
        return float(self.mean_over_data(energy)), float(level.max())

    def solve_covariance(self, r: Tensor, variance: float, *, n_steps: int = 100, tolerance: float = 1e-5) -> Tensor:
        """``(variance A A^H + R)^-1 r``, with R the variances of the noise (of its closest Gaussian): the data's
        covariance when the image is known up to ``variance``.

        Conjugate gradients on the whitened data, preconditioned by the covariance's diagonal and a filter along the
        last axis of the data (for projections a ramp, as in filtered back projection, up to where views overlap).
        Where the noise is not white this is also the way to :meth:`prox`: at the photon counts behind a chest, 30 to
        20,000, and a wide prior 5 steps on the data come as near to the image as 25 on the image
        (benchmarks/results/inner_solver.txt).

        Args:
            r: (..., \\*out_shape), zero where nothing is observed.
            variance: of each entry of the image.
        """
        return self._on_data(r, variance, n_steps, tolerance)[0]

    def _on_data(self, r: Tensor, variance: float, n_steps: int, tolerance: float) -> tuple[Tensor, Tensor]:
        """``u = (variance A A^H + R)^-1 r`` and ``variance A^H u``."""
        A, s = self.linear, variance**0.5
        assert A is not None
        p, scale, gain = self._filter(variance)

        def approximate_inverse(v: Tensor) -> Tensor:
            v = scale * v
            if v.is_complex():
                return scale * torch.fft.ifft(gain * torch.fft.fft(v))
            n = v.shape[-1]
            return scale * torch.fft.irfft(gain[: n // 2 + 1] * torch.fft.rfft(v), n=n)

        sp = s * p
        q, image = cg_on_data(
            lambda x: sp * A(x), lambda v: A.H(sp * v), p * r, item_ndim=len(A.out_shape),
            preconditioner=approximate_inverse, n_steps=n_steps, tolerance=tolerance,
        )  # fmt: skip
        return p * q, s * image

    def _filter(self, variance: float) -> tuple[Tensor, Tensor, Tensor]:
        """Of the whitened covariance ``R^(-1/2) (variance A A^H + R) R^(-1/2)``: the whitening ``p = R^(-1/2)``, zero
        where nothing is observed; the inverse root of its diagonal; the inverse of what is left of it per frequency."""
        A, weight = self.linear, variance * self._mean_precision
        assert A is not None
        p = torch.as_tensor(self.noise.precision(self.y), dtype=A.dtype, device=A.device).sqrt()
        if A.observed is not None:
            p = p * A.observed
        energy, level = self._covariance_of_white_images
        scale = (1 + variance * p.square() * energy).rsqrt()
        gain = (1 + weight * self._mean_and_peak[0]) / (1 + weight * level)
        return p, scale if A.observed is None else scale * A.observed, gain

    def conditioning(self, variance: float) -> float:
        """How far the data's covariance (:meth:`solve_covariance`) at its strongest frequency exceeds its mean: 1 where
        the noise prevails, up to about the number of views that overlap at low frequencies where the data do. The steps
        that conjugate gradients need grow with its root."""
        weight, (mean, peak) = variance * self._mean_precision, self._mean_and_peak
        return (1 + weight * peak) / (1 + weight * mean)

    def in_model_units(self, scale: float, offset: float) -> Measurement:
        """The same measurement as a function of ``u``, where the image is ``x = scale u + offset``."""
        A = self.A
        if A.in_complex:
            raise TypeError(f"{A!r} takes complex images, priors give real ones. Compose it: A @ ViewAsComplex(shape).")
        constant = torch.full(A.in_shape, offset, dtype=A.dtype, device=A.device)
        if self.linear is not None:
            inner: Operator = Affine(scale * self.linear, A(constant))
        else:
            identity = Identity(A.in_shape).to(dtype=A.dtype, device=A.device)
            inner = A @ Affine(scale * identity, constant)
        reference = None if self.reference is None else (self.reference - offset) / scale
        return replace(self, A=inner, reference=reference, image_scale=1.0, units="model")

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Measurement:
        """A copy in another precision and/or on another device."""
        from invdiff.operators.base import _cast

        reference = None if self.reference is None else _cast(self.reference, dtype, device)
        return replace(
            self, y=_cast(self.y, dtype, device), A=self.A.to(dtype=dtype, device=device), reference=reference
        )

    def save(self, path: str | Path) -> None:
        """Write one HDF5 file (``.h5``), atomically: data, operator with its constructor arguments, noise."""
        from invdiff.storage import save_measurement

        save_measurement(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> Measurement:
        """Read a file written by :meth:`save`. Nothing in it is executed; external links are refused."""
        from invdiff.storage import load_measurement

        return cls(**load_measurement(Path(path)))
