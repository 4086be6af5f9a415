"""Downsampling by an integer factor: block averages, antialiased bicubic, and blur followed by decimation.

All three have a closed-form singular value decomposition, hence a closed-form prox and pseudo-inverse.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from invdiff.operators.base import LinearOperator
from invdiff.operators.blur import Blur
from invdiff.operators.svd import SVD


class BlockDownsample(LinearOperator):
    """The mean of every block of ``factor x factor`` pixels. All singular values are ``1 / factor``.

    Args:
        shape: image shape, (channel, y, x), y and x multiples of ``factor``.
        factor: integer, at least 1.

    Example:
        >>> from invdiff.operators import BlockDownsample
        >>> x = torch.arange(8.0).reshape(1, 2, 4)
        >>> BlockDownsample((1, 2, 4), 2)(x).tolist()  # the means of 0, 1, 4, 5 and of 2, 3, 6, 7
        [[[2.5, 4.5]]]
    """

    has_closed_form_prox = True

    def __init__(self, shape: tuple[int, int, int], factor: int) -> None:
        super().__init__(shape, _coarse(shape, factor))
        self.shape, self.factor = tuple(shape), factor

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.factor)

    def adjoint(self, y: Tensor) -> Tensor:
        return F.interpolate(y, scale_factor=float(self.factor), mode="nearest") / self.factor**2

    def prox(self, z: Tensor, y: Tensor, weight: Tensor | float) -> Tensor:
        """Closed form."""
        return self.svd().prox(z, y, weight)

    def pinv(self, y: Tensor) -> Tensor:
        """Every block filled with its mean."""
        return self.factor**2 * self.H(y)

    def svd(self) -> SVD:
        """Blocks are the singular vectors."""
        s = torch.full(self.out_shape, 1 / self.factor, dtype=self.dtype, device=self.device)
        return SVD(s, lambda x: self.factor * self(x), lambda c: self.factor * self.H(c), lambda y: y)


class BicubicDownsample(LinearOperator):
    """Antialiased bicubic downsampling, as Matlab's ``imresize`` and the super-resolution benchmarks do it.

    Cubic convolution kernel with a = -1/2 (R. G. Keys, IEEE Trans. ASSP 29, 1153-1160, 1981), widened by
    ``factor``; pixel centres at half-integers; rows and columns of the image mirrored beyond its border.
    ``torch.nn.functional.interpolate(mode="bicubic", antialias=True)`` and Pillow use the same kernel but
    cut it off at the border and renormalise: equal inside, different in the two outermost pixels on each side.

    Args:
        shape: image shape, (channel, y, x), y and x multiples of ``factor``.
        factor: integer, at least 1.

    Example:
        >>> from invdiff.operators import BicubicDownsample
        >>> y = BicubicDownsample((1, 8, 8), 4)(torch.ones(1, 8, 8))
        >>> tuple(y.shape), torch.allclose(y, torch.ones(1, 2, 2))  # the mean is kept
        ((1, 2, 2), True)
    """

    has_closed_form_prox = True

    def __init__(self, shape: tuple[int, int, int], factor: int) -> None:
        super().__init__(shape, _coarse(shape, factor))
        self.shape, self.factor = tuple(shape), factor
        # separable, y = R x C^T, so the SVD is the Kronecker product of those of R and C
        R, C = (_bicubic_matrix(n, factor) for n in shape[-2:])
        (Uy, sy, Vy), (Ux, sx, Vx) = (torch.linalg.svd(M, full_matrices=False) for M in (R, C))
        self._rows, self._columns, self._s = R.float(), C.float(), torch.outer(sy, sx).float()
        self._uy, self._vy, self._ux, self._vx = (M.float() for M in (Uy, Vy, Ux, Vx))

    def forward(self, x: Tensor) -> Tensor:
        return self._rows @ x @ self._columns.T

    def adjoint(self, y: Tensor) -> Tensor:
        return self._rows.T @ y @ self._columns

    def prox(self, z: Tensor, y: Tensor, weight: Tensor | float) -> Tensor:
        """Closed form."""
        return self.svd().prox(z, y, weight)

    def pinv(self, y: Tensor) -> Tensor:
        """Closed form."""
        return self.svd().pinv(y)

    def svd(self) -> SVD:
        """Products of the singular vectors along y and along x."""
        return SVD(
            self._s.expand(self.out_shape),
            lambda x: self._vy @ x @ self._vx.T,
            lambda c: self._vy.T @ c @ self._vx,
            lambda y: self._uy.T @ y @ self._ux,
        )


class BlurDownsample(LinearOperator):
    """Circular convolution with a PSF, then every ``factor``-th pixel, from the first one.

    Closed forms through aliasing: ``A A^H`` is a circular convolution on the coarse grid, with the PSF's
    autocorrelation at every ``factor``-th lag (N. Zhao, Q. Wei, A. Basarab, N. Dobigeon, D. Kouame and
    J.-Y. Tourneret, IEEE Trans. Image Process. 25, 3683-3697, 2016).

    Args:
        psf: (y, x), centred at ``(y // 2, x // 2)``, no larger than the image; sum 1 keeps the mean.
        shape: image shape, (channel, y, x), y and x multiples of ``factor``.
        factor: integer, at least 1.

    Example:
        >>> from invdiff.operators import Blur, BlurDownsample, gaussian_psf
        >>> psf, x = gaussian_psf(1.0, 5), torch.rand(1, 8, 8)
        >>> y = BlurDownsample(psf, (1, 8, 8), 2)(x)
        >>> torch.allclose(y, Blur(psf, (1, 8, 8))(x)[:, ::2, ::2], atol=1e-6)
        True
    """

    has_closed_form_prox = True

    def __init__(self, psf: Tensor, shape: tuple[int, int, int], factor: int) -> None:
        super().__init__(shape, _coarse(shape, factor))
        self._blur = Blur(psf, shape)
        self.psf, self.shape, self.factor = self._blur.psf, tuple(shape), factor
        power = self._blur._transfer.to(torch.complex128).abs().square()
        autocorrelation = torch.fft.irfft2(power, s=shape[-2:])[::factor, ::factor]
        self._s = torch.fft.rfft2(autocorrelation).real.clamp(min=0).sqrt().float()

    def forward(self, x: Tensor) -> Tensor:
        return self._blur.forward(x)[..., :: self.factor, :: self.factor]

    def adjoint(self, y: Tensor) -> Tensor:
        x = torch.zeros(y.shape[0], *self.in_shape, dtype=y.dtype, device=y.device)
        x[..., :: self.factor, :: self.factor] = y
        return self._blur.adjoint(x)

    def prox(self, z: Tensor, y: Tensor, weight: Tensor | float) -> Tensor:
        """Closed form."""
        return self.svd().prox(z, y, weight)

    def pinv(self, y: Tensor, cutoff: float = 1e-4) -> Tensor:
        """Closed form; what passes with less than ``cutoff`` is left out."""
        return self.svd(cutoff).pinv(y)

    def svd(self, cutoff: float = 1e-4) -> SVD:
        """The frequencies of the coarse grid are U (half spectrum, complex); s is zero below ``cutoff``."""
        s = torch.where(self._s > cutoff, self._s, torch.zeros_like(self._s))
        inverse = torch.where(s > 0, 1 / s.clamp(min=cutoff), torch.zeros_like(s))
        return SVD(
            s.expand(*self.out_shape[:-1], s.shape[-1]),
            lambda x: inverse * torch.fft.rfft2(self(x), norm="ortho"),
            lambda c: self.H(torch.fft.irfft2(inverse * c, s=self.out_shape[-2:], norm="ortho")),
            lambda y: (s > 0) * torch.fft.rfft2(y, norm="ortho"),
        )


def _coarse(shape: tuple[int, int, int], factor: int) -> tuple[int, int, int]:
    channels, ny, nx = shape
    if not isinstance(factor, int) or factor < 1 or ny % factor or nx % factor:
        raise ValueError(f"The image size {ny} x {nx} must be a multiple of the integer factor, got {factor!r}.")
    return channels, ny // factor, nx // factor


def _bicubic_matrix(n: int, factor: int) -> Tensor:
    """(n // factor, n), float64: cubic weights around each coarse centre, mirrored at the borders, rows of sum 1."""
    centre = (torch.arange(n // factor, dtype=torch.float64) + 0.5) * factor - 0.5
    j = (centre[:, None] - 2 * factor).ceil() + torch.arange(4 * factor + 1)
    t = ((j - centre[:, None]) / factor).abs()
    near, far = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    weights = torch.where(t <= 1, near, torch.where(t <= 2, far, torch.zeros_like(t)))
    j = j.long() % (2 * n)
    matrix = torch.zeros(n // factor, n, dtype=torch.float64)
    matrix.scatter_add_(1, torch.where(j < n, j, 2 * n - 1 - j), weights / weights.sum(1, keepdim=True))
    return matrix
