"""Convolution with a point spread function (PSF), the same everywhere or changing over the image."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from invdiff.operators.base import LinearOperator
from invdiff.operators.svd import SVD


class Blur(LinearOperator):
    """Circular convolution of every channel with one PSF, by FFT; closed-form prox and pseudo-inverse.

    Args:
        psf: (y, x), centred at ``(y // 2, x // 2)``, no larger than the image; sum 1 keeps the mean.
        shape: image shape, (channel, y, x).

    Example:
        >>> from invdiff.operators import Blur, gaussian_psf
        >>> psf = gaussian_psf(1.0, 5).float()
        >>> point = torch.zeros(1, 9, 9)
        >>> point[0, 4, 4] = 1.0
        >>> torch.allclose(Blur(psf, (1, 9, 9))(point)[0, 2:7, 2:7], psf, atol=1e-6)
        True
    """

    has_closed_form_prox = True

    def __init__(self, psf: Tensor, shape: tuple[int, int, int]) -> None:
        ky, kx = psf.shape
        if ky > shape[-2] or kx > shape[-1]:
            raise ValueError(f"The PSF {tuple(psf.shape)} is larger than the image {tuple(shape[-2:])}.")
        super().__init__(shape, shape)
        self.psf, self.shape = psf.to(torch.float32), tuple(shape)
        self._transfer = _transfer(self.psf, shape)

    def _filter(self, x: Tensor, factor: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x) * factor, s=self.shape[-2:])

    def forward(self, x: Tensor) -> Tensor:
        return self._filter(x, self._transfer)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._filter(y, self._transfer.conj())

    def prox(self, z: Tensor, y: Tensor, weight: Tensor | float) -> Tensor:
        """Closed form in Fourier space (``weight`` a number)."""
        h = self._transfer
        spectrum = (torch.fft.rfft2(z) + weight * h.conj() * torch.fft.rfft2(y)) / (1 + weight * h.abs().square())
        return torch.fft.irfft2(spectrum, s=self.shape[-2:])

    def pinv(self, y: Tensor, cutoff: float = 1e-4) -> Tensor:
        """Inverse filter at frequencies where ``|transfer| > cutoff``, zero at the others."""
        h = self._transfer
        return self._filter(y, torch.where(h.abs() > cutoff, 1 / h, torch.zeros_like(h)))

    def svd(self, cutoff: float = 1e-4) -> SVD:
        """Frequencies are the singular vectors (half spectrum, complex); ``s = |transfer|``, zero below ``cutoff``."""
        h = self._transfer
        s = h.abs()
        s = torch.where(s > cutoff, s, torch.zeros_like(s)).expand(*self.shape[:-1], h.shape[-1])
        phase = torch.where(h.abs() > cutoff, h.conj() / h.abs().clamp(min=cutoff), torch.zeros_like(h))
        return SVD(
            s,
            lambda x: torch.fft.rfft2(x, norm="ortho"),
            lambda c: torch.fft.irfft2(c, s=self.shape[-2:], norm="ortho"),
            lambda y: phase * torch.fft.rfft2(y, norm="ortho"),
        )


class SpaceVaryingBlur(LinearOperator):
    """A blur that changes over the image: ``y = sum_k psf_k * (weight_k x)``, circular, by FFT.

    A point of the object at r is seen through ``sum_k weight_k(r) psf_k``, an interpolation of the PSFs in between
    where they are known (J. G. Nagy and D. P. O'Leary, SIAM J. Sci. Comput. 19, 1063-1082, 1998). With PSFs of sum
    1 and weights of sum 1 the total intensity is kept.

    Args:
        psfs: (n, y, x), each centred at ``(y // 2, x // 2)``, no larger than the image.
        weights: (n, ny, nx), how much of each PSF applies where; see :func:`interpolation_weights`.
        shape: image shape, (channel, ny, nx).

    Example:
        >>> from invdiff.operators import SpaceVaryingBlur, gaussian_psf, interpolation_weights
        >>> psfs = torch.stack([gaussian_psf(0.5, 5), gaussian_psf(1.5, 5)])  # sharper on the left
        >>> A = SpaceVaryingBlur(psfs, interpolation_weights((1, 2), (16, 16)), (1, 16, 16))
        >>> x = torch.rand(1, 16, 16)
        >>> torch.allclose(A(x).sum(), x.sum())
        True
    """

    def __init__(self, psfs: Tensor, weights: Tensor, shape: tuple[int, int, int]) -> None:
        if psfs.ndim != 3 or psfs.shape[-2] > shape[-2] or psfs.shape[-1] > shape[-1]:
            raise ValueError(
                f"psfs must be (n, y, x), no larger than the image {tuple(shape[-2:])}; got {tuple(psfs.shape)}."
            )
        if tuple(weights.shape) != (len(psfs), *shape[-2:]):
            raise ValueError(f"weights must be {(len(psfs), *shape[-2:])}, got {tuple(weights.shape)}.")
        super().__init__(shape, shape)
        self.psfs, self.weights, self.shape = psfs.to(torch.float32), weights.to(torch.float32), tuple(shape)
        self._transfers = _transfer(self.psfs, shape)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.zeros((), dtype=self._transfers.dtype, device=x.device)
        for transfer, weight in zip(self._transfers, self.weights, strict=True):
            spectrum = spectrum + transfer * torch.fft.rfft2(weight * x)
        return torch.fft.irfft2(spectrum, s=self.shape[-2:])

    def adjoint(self, y: Tensor) -> Tensor:
        spectrum, x = torch.fft.rfft2(y), torch.zeros_like(y)
        for transfer, weight in zip(self._transfers, self.weights, strict=True):
            x = x + weight * torch.fft.irfft2(transfer.conj() * spectrum, s=self.shape[-2:])
        return x


class Pad(LinearOperator):
    """Extend an image by ``margin`` pixels on each side, as ``torch.nn.functional.pad`` does.

    Args:
        shape: (channel, y, x).
        margin: pixels on each side.
        mode: "reflect", "replicate", "circular" or "constant".

    Example:
        >>> from invdiff.operators import Pad
        >>> Pad((1, 1, 2), 1, "replicate")(torch.tensor([[[1.0, 2.0]]]))[0, 0].tolist()
        [1.0, 1.0, 2.0, 2.0]
    """

    def __init__(self, shape: tuple[int, int, int], margin: int, mode: str = "reflect") -> None:
        c, ny, nx = shape
        super().__init__(shape, (c, ny + 2 * margin, nx + 2 * margin))
        self.shape, self.margin, self.mode = tuple(shape), margin, mode

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (self.margin,) * 4, mode=self.mode)


class Crop(LinearOperator):
    """Cut ``margin`` pixels off each side of a (channel, y, x) image.

    Args:
        shape: of the image, (channel, y, x).
        margin: pixels, less than half of either side.

    Example:
        >>> from invdiff.operators import Crop
        >>> Crop((1, 4, 4), 1)(torch.arange(16.0).reshape(1, 4, 4)).tolist()
        [[[5.0, 6.0], [9.0, 10.0]]]
    """

    def __init__(self, shape: tuple[int, int, int], margin: int) -> None:
        c, ny, nx = shape
        if 2 * margin >= min(ny, nx):
            raise ValueError(f"A margin of {margin} leaves nothing of an image of {ny} x {nx}.")
        super().__init__(shape, (c, ny - 2 * margin, nx - 2 * margin))
        self.shape, self.margin = tuple(shape), margin

    def forward(self, x: Tensor) -> Tensor:
        m = self.margin
        return x[..., m : x.shape[-2] - m, m : x.shape[-1] - m]

    def adjoint(self, y: Tensor) -> Tensor:
        return F.pad(y, (self.margin,) * 4)


def reflect_blur(psf: Tensor, shape: tuple[int, int, int]) -> LinearOperator:
    """Blur with mirrored borders, the convention of the deblurring benchmarks: ``Crop @ Blur @ Pad``.

    Args:
        psf: (y, x), as of :class:`Blur`.
        shape: of the image, (channel, y, x).

    Example:
        >>> from invdiff.operators import gaussian_psf, reflect_blur
        >>> ramp = torch.arange(8.0).expand(1, 8, 8)
        >>> y = reflect_blur(gaussian_psf(1.0, 3), (1, 8, 8))(ramp)
        >>> torch.allclose(y[..., 1:-1], ramp[..., 1:-1], atol=1e-5)  # nothing wraps around
        True
    """
    c, ny, nx = shape
    margin = max(psf.shape) // 2
    padded = (c, ny + 2 * margin, nx + 2 * margin)
    A = Crop(padded, margin) @ Blur(psf, padded) @ Pad(shape, margin)
    assert isinstance(A, LinearOperator)
    return A


def gaussian_psf(sigma: float | tuple[float, float], size: int, *, angle: float = 0.0) -> Tensor:
    """A Gaussian PSF, (size, size), sum 1.

    Args:
        sigma: standard deviation in pixels; for an anisotropic PSF the pair (along, across).
        angle: rad, from the x axis towards the y axis, of the direction "along".

    Example:
        >>> from invdiff.operators import gaussian_psf
        >>> psf = gaussian_psf((2.0, 1.0), 9)
        >>> round(float(psf.sum()), 5), bool(psf[4, 6] > psf[6, 4])  # longer along x
        (1.0, True)
    """
    along, across = sigma if isinstance(sigma, tuple) else (sigma, sigma)
    if not (along > 0 and across > 0 and size >= 1):
        raise ValueError(f"Need sigma > 0 and size >= 1, got {sigma=}, {size=}.")
    t = torch.arange(size, dtype=torch.float64) - size // 2
    u = t * math.cos(angle) + t[:, None] * math.sin(angle)
    v = t[:, None] * math.cos(angle) - t * math.sin(angle)
    g = torch.exp(-((u / along) ** 2 + (v / across) ** 2) / 2)
    return g / g.sum()


def motion_psf(size: int, *, seed: int, smoothness: float = 0.3) -> Tensor:
    """The PSF of a camera that shakes during the exposure, (size, size), sum 1.

    Both coordinates of the path are Gaussian processes over the exposure time, as in C. J. Schuler, M. Hirsch,
    S. Harmeling and B. Schoelkopf, "Learning to deblur", IEEE TPAMI 38 (2016), here with the Matern-5/2
    covariance. The path is scaled so that its farthest point touches the border of the kernel, and shifted so that
    the centroid of the PSF is its centre: it blurs without moving the image.

    Args:
        size: pixels, at least 3; it alone sets how strong the blur is.
        seed: draws the path.
        smoothness: correlation time as a fraction of the exposure; large is straight, small is shaky.

    Example:
        >>> from invdiff.operators import motion_psf
        >>> psf = motion_psf(15, seed=0)
        >>> x = torch.arange(15.0) - 7
        >>> round(float(psf.sum()), 4), bool((psf.sum(0) * x).sum().abs() < 1e-3)  # the centroid is the centre
        (1.0, True)
    """
    if size < 3 or not smoothness > 0:
        raise ValueError(f"Need size >= 3 and smoothness > 0, got {size=}, {smoothness=}.")
    t = torch.linspace(0, 1, 200, dtype=torch.float64)
    d = math.sqrt(5) * (t - t[:, None]).abs() / smoothness
    covariance = (1 + d + d**2 / 3) * torch.exp(-d) + 1e-9 * torch.eye(len(t), dtype=torch.float64)
    draws = torch.randn(len(t), 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    path = (torch.linalg.cholesky(covariance) @ draws).T[None]
    path = F.interpolate(path, size=len(t) * max(8, size // 4), mode="linear", align_corners=True)[0]
    path = path - path.mean(1, keepdim=True)
    reach = (size - 1) // 2
    position = (path * (reach / path.abs().max())).clamp(-reach, reach) + size // 2  # rounding stays inside
    # each instant deposits its light on the four pixels around it, which keeps the centroid
    corner = position.floor().clamp(max=size - 2)
    fy, fx = position - corner
    index = (corner[0] * size + corner[1]).long()
    psf = torch.zeros(size * size, dtype=torch.float64)
    for step, share in ((0, (1 - fy) * (1 - fx)), (1, (1 - fy) * fx), (size, fy * (1 - fx)), (size + 1, fy * fx)):
        psf.index_add_(0, index + step, share)
    return psf.reshape(size, size) / psf.sum()


def interpolation_weights(grid: tuple[int, int], image_shape: tuple[int, int]) -> Tensor:
    """Smooth weights that sum to 1 everywhere, for PSFs known at the centres of a grid of equal patches.

    Args:
        grid: PSFs along y and x.
        image_shape: (ny, nx).

    Returns:
        (grid[0] * grid[1], ny, nx), row by row: 1 at the centre of the own patch, raised cosines to 0 at the
        neighbouring centres, constant beyond the outermost centres.

    Example:
        >>> from invdiff.operators import interpolation_weights
        >>> weights = interpolation_weights((2, 3), (12, 18))
        >>> tuple(weights.shape), bool(((weights.sum(0) - 1).abs() < 1e-6).all())
        ((6, 12, 18), True)
    """
    if min(grid) < 1 or grid[0] > image_shape[0] or grid[1] > image_shape[1]:
        raise ValueError(f"grid must lie between 1 and the image's {tuple(image_shape)}, got {tuple(grid)}.")
    wy, wx = (_raised_cosines(k, n) for k, n in zip(grid, image_shape, strict=True))
    return (wy[:, None, :, None] * wx[None, :, None, :]).flatten(0, 1)


def _raised_cosines(k: int, n: int) -> Tensor:
    """(k, n): a partition of unity around the centres of k equal patches of n pixels."""
    position = ((torch.arange(n, dtype=torch.float64) + 0.5) * k / n - 0.5).clamp(0, k - 1)
    distance = (position - torch.arange(k, dtype=torch.float64)[:, None]).abs().clamp(max=1)
    return torch.cos(math.pi / 2 * distance) ** 2


def _transfer(psf: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Half spectrum of PSFs (..., y, x) centred at the origin of an image; complex64."""
    ky, kx = psf.shape[-2:]
    padded = F.pad(psf.double(), (0, shape[-1] - kx, 0, shape[-2] - ky)).roll((-(ky // 2), -(kx // 2)), (-2, -1))
    return torch.fft.rfft2(padded).to(torch.complex64)
