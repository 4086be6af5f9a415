"""Multi-coil MRI along any trajectory: ``y = F S x`` with a non-uniform Fourier transform."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from invdiff.operators.base import LinearOperator
from invdiff.operators.nufft import check_trajectory, density_compensation, nufft


class NonCartesianMRI(LinearOperator):
    """Coil sensitivities and the Fourier transform at given positions of k-space.

    Complex images (1, y, x) to samples (coil, n_samples); see :mod:`invdiff.operators.nufft` for the definition and
    the two implementations. :attr:`gram` is a multiplication on the twofold padded Fourier grid
    (:class:`ToeplitzMRI`), whose cost does not depend on the number of samples; conjugate gradients use it.

    Args:
        maps: coil sensitivities, (coil, y, x), complex64.
        trajectory: (..., 2), (ky, kx) in cycles per field of view, within half the image size; leading dimensions
            (readouts, samples) are flattened.

    Example:
        >>> from invdiff.operators import NonCartesianMRI, fft2c
        >>> k = torch.arange(-4.0, 4.0)
        >>> grid = torch.stack(torch.meshgrid(k, k, indexing="ij"), -1)  # here the Cartesian grid, to compare
        >>> A = NonCartesianMRI(torch.ones(1, 8, 8, dtype=torch.complex64), grid)
        >>> x = torch.rand(1, 8, 8) + 0j
        >>> torch.allclose(A(x), fft2c(x).reshape(1, 64), atol=1e-4)
        True
    """

    adjoint_as_backward = True

    def __init__(self, maps: Tensor, trajectory: Tensor) -> None:
        if maps.ndim != 3 or not maps.is_complex():
            raise TypeError(f"maps must be complex, (coil, y, x), got {maps.dtype} of shape {tuple(maps.shape)}.")
        n_coils, ny, nx = maps.shape
        check_trajectory(trajectory, (ny, nx))
        super().__init__(
            (1, ny, nx), (n_coils, trajectory.numel() // 2), in_complex=True, out_complex=True, device=maps.device
        )
        self.maps, self.trajectory = maps.to(torch.complex64), trajectory
        self._nufft = nufft(trajectory.double().cpu().reshape(-1, 2), (ny, nx)).to(device=maps.device)

    def forward(self, x: Tensor) -> Tensor:
        return self._nufft.apply((self.maps * x).flatten(0, 1)).unflatten(0, (len(x), -1))

    def adjoint(self, y: Tensor) -> Tensor:
        coils = self._nufft.apply_adjoint(y.flatten(0, 1)).unflatten(0, (len(y), -1))
        return (self.maps.conj() * coils).sum(1, keepdim=True)

    @property
    def gram(self) -> LinearOperator:
        """``A^H A`` by FFT; equal to ``A.H @ A`` up to the accuracy of the transform."""
        cached = vars(self).get("_gram")
        if cached is None or cached[:2] != (self.dtype, self.device):
            spectrum = toeplitz_spectrum(self.trajectory, self.in_shape[1:])
            gram = ToeplitzMRI(self.maps, spectrum.to(self.device)).to(dtype=self.dtype)
            cached = self._gram = (self.dtype, self.device, gram)
        return cached[2]

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Any:
        """A copy in another precision and/or on another device; the trajectory stays as given."""
        new = super().to(dtype=dtype, device=device)
        new.trajectory = self.trajectory
        return new


class ToeplitzMRI(LinearOperator):
    """The normal operator of :class:`NonCartesianMRI`: per coil, a convolution with the point spread function.

    Fessler et al., "Toeplitz-based iterative image reconstruction for MRI with correction for magnetic field
    inhomogeneity", IEEE Transactions on Signal Processing 53 (2005). Complex images (1, y, x) to the same; it is its
    own adjoint.

    Args:
        maps: coil sensitivities, (coil, y, x), complex.
        spectrum: FFT of the point spread function over twice the image size, (2 y, 2 x), real.

    Example:
        >>> from invdiff.operators import NonCartesianMRI, birdcage_maps, radial_trajectory
        >>> A = NonCartesianMRI(birdcage_maps(2, (8, 8)), radial_trajectory(8, n_spokes=5))
        >>> type(A.gram).__name__
        'ToeplitzMRI'
        >>> x = torch.rand(1, 8, 8) + 0j
        >>> torch.allclose(A.gram(x), A.H(A(x)), atol=1e-2)
        True
    """

    def __init__(self, maps: Tensor, spectrum: Tensor) -> None:
        ny, nx = maps.shape[-2:]
        if tuple(spectrum.shape) != (2 * ny, 2 * nx) or spectrum.is_complex():
            raise ValueError(f"spectrum must be real, ({2 * ny}, {2 * nx}), got {tuple(spectrum.shape)}.")
        super().__init__((1, ny, nx), (1, ny, nx), in_complex=True, out_complex=True, device=maps.device)
        self.maps, self.spectrum = maps, spectrum

    def forward(self, x: Tensor) -> Tensor:
        _, ny, nx = self.in_shape
        spectra = torch.fft.fft2(self.maps * x, s=(2 * ny, 2 * nx))
        coils = torch.fft.ifft2(self.spectrum * spectra)[..., :ny, :nx]
        return (self.maps.conj() * coils).sum(1, keepdim=True)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.forward(y)


def toeplitz_spectrum(trajectory: Tensor, shape: tuple[int, ...]) -> Tensor:
    """FFT over twice the image size of ``1 / (ny nx) sum_j exp(2 pi i k_j d / n)``, real, float64."""
    ny, nx = shape
    double = nufft(2 * trajectory.double().cpu().reshape(-1, 2), (2 * ny, 2 * nx)).to(dtype=torch.float64)
    ones = torch.ones(1, trajectory.numel() // 2, dtype=torch.complex128)
    psf = double.apply_adjoint(ones)[0] * (math.sqrt(4 * ny * nx) / (ny * nx))
    return torch.fft.fft2(torch.fft.ifftshift(psf)).real


def gridding(A: NonCartesianMRI, y: Tensor) -> Tensor:
    """Direct reconstruction ``A^H (w y)`` of (..., coil, n_samples), w the density compensation.

    For a fully sampled trajectory and maps with ``sum |S|^2 = 1`` it is the image, blurred to the disc that is sampled.

    Example:
        >>> from invdiff.operators import NonCartesianMRI, gridding
        >>> k = torch.arange(-4.0, 4.0)
        >>> grid = torch.stack(torch.meshgrid(k, k, indexing="ij"), -1)
        >>> A = NonCartesianMRI(torch.ones(1, 8, 8, dtype=torch.complex64), grid)
        >>> x = torch.rand(1, 8, 8) + 0j
        >>> bool((gridding(A, A(x)) - x).abs().max() < 0.05)
        True
    """
    weights = density_compensation(A.trajectory, (A.in_shape[1], A.in_shape[2]))
    return A.H(weights.to(dtype=A.dtype, device=A.device) * y)
