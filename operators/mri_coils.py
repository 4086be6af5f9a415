"""Coil sensitivities."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def birdcage_maps(n_coils: int, shape: tuple[int, int], *, radius: float = 1.5) -> Tensor:
    """Sensitivities of coils on a ring around the image: magnitude 1/distance, phase of the azimuth.

    Args:
        n_coils: coils, equispaced on a circle.
        shape: (y, x).
        radius: of the circle, in half image widths (> 1: outside the image).

    Returns:
        complex64, (n_coils, y, x), with ``sum |S|^2 = 1`` in every pixel.

    Example:
        >>> from invdiff.operators import birdcage_maps
        >>> maps = birdcage_maps(6, (16, 16))
        >>> torch.allclose(maps.abs().square().sum(0), torch.ones(16, 16))
        True
    """
    if radius <= 1:
        raise ValueError(f"The coils must lie outside the image: radius > 1, got {radius}.")
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, n, dtype=torch.float64) for n in shape), indexing="ij")
    angle = 2 * math.pi * torch.arange(n_coils, dtype=torch.float64)[:, None, None] / n_coils
    dx, dy = x - radius * angle.cos(), y - radius * angle.sin()
    maps = torch.polar(1 / torch.hypot(dx, dy), torch.atan2(dx, -dy) + angle)
    return (maps / maps.abs().square().sum(0).sqrt()).to(torch.complex64)


def noise_covariance(noise: Tensor) -> Tensor:
    """Covariance ``E[n n^H]`` between coils, (coil, coil) complex, from noise-only samples (coil, ...).

    Raises:
        ValueError: fewer than four samples per coil, from which no covariance can be inverted reliably.

    Example:
        >>> from invdiff.operators import noise_covariance
        >>> noise = torch.tensor([[1, -1, 1, -1] * 2, [2, 2, -2, -2] * 2]) + 0j
        >>> noise_covariance(noise).real.tolist()
        [[1.0, 0.0], [0.0, 4.0]]
    """
    n = noise.flatten(1)
    if n.shape[1] < 4 * n.shape[0]:
        raise ValueError(f"A noise covariance of {len(n)} coils needs at least {4 * len(n)} samples, got {n.shape[1]}.")
    return n @ n.mH / n.shape[1]


def prewhiten(data: Tensor, covariance: Tensor) -> Tensor:
    """Linear combinations of the coils whose noise is independent, with standard deviation 1 in each component.

    With ``covariance / 2 = L L^H`` (Cholesky) the result is ``L^-1 data`` (Pruessmann et al., Magnetic Resonance in
    Medicine 46, 2001). Apply it to k-space and to coil maps alike; the noise is then ``ComplexGaussianNoise(1.0)``
    for k-space in the units of the orthonormal FFT. Estimated maps follow from the whitened k-space by themselves.

    Args:
        data: (coil, ...), complex.
        covariance: ``E[n n^H]`` of the noise, (coil, coil), see :func:`noise_covariance`.

    Raises:
        ValueError: shapes that do not fit, or a matrix that is not Hermitian positive definite.

    Example:
        >>> from invdiff.operators import noise_covariance, prewhiten
        >>> noise = torch.randn(3, 3) @ torch.randn(3, 1000) + 0j  # correlated coils
        >>> white = prewhiten(noise, noise_covariance(noise))
        >>> torch.allclose(noise_covariance(white), 2 * torch.eye(3) + 0j, atol=1e-3)  # 1 in each component
        True
    """
    n_coils = data.shape[0]
    if tuple(covariance.shape) != (n_coils, n_coils):
        raise ValueError(f"The covariance of {n_coils} coils has shape ({n_coils}, {n_coils}), got {covariance.shape}.")
    C = covariance.to(torch.complex128)
    factor, info = torch.linalg.cholesky_ex(C / 2)
    if info or not torch.allclose(C, C.mH, rtol=1e-4, atol=1e-4 * float(C.abs().max())):
        raise ValueError("The noise covariance is not Hermitian positive definite. Is a coil dead, or its noise zero?")
    white = torch.linalg.solve_triangular(factor, data.flatten(1).to(torch.complex128), upper=False)
    return white.to(data.dtype).reshape(data.shape)


def coil_compression(kspace: Tensor, n_virtual: int) -> tuple[Tensor, Tensor]:
    """Fewer, virtual coils: the leading left singular vectors of the data (coil by sample).

    Huang et al., "A software channel compression technique for faster reconstruction with many channels", Magnetic
    Resonance Imaging 26 (2008). The combinations are orthonormal, so white noise stays white with the same standard
    deviation; prewhiten first.

    Args:
        kspace: (coil, ...), complex.
        n_virtual: coils to keep.

    Returns:
        compressed k-space (n_virtual, ...), and the matrix (n_virtual, coil) that made it, for maps.

    Example:
        >>> from invdiff.operators import coil_compression
        >>> mixing, sources = torch.randn(6, 2) + 0j, torch.randn(2, 8, 8) + 0j  # six coils that see two signals
        >>> kspace = torch.einsum("cs,syx->cyx", mixing, sources)
        >>> compressed, matrix = coil_compression(kspace, 2)
        >>> tuple(matrix.shape), torch.allclose(compressed.norm(), kspace.norm(), rtol=1e-4)  # nothing is lost
        ((2, 6), True)
    """
    n_coils = kspace.shape[0]
    if not 1 <= n_virtual <= n_coils:
        raise ValueError(f"n_virtual must lie between 1 and the {n_coils} coils, got {n_virtual}.")
    samples = kspace.flatten(1)
    _, vectors = torch.linalg.eigh((samples @ samples.mH).to(torch.complex128))
    matrix = vectors.mH.flip(0)[:n_virtual].to(kspace.dtype)
    return (matrix @ samples).reshape(n_virtual, *kspace.shape[1:]), matrix


def espirit_maps(
    kspace: Tensor,
    calibration_width: int | tuple[int, int] = 24,
    *,
    kernel: int = 6,
    threshold: float = 0.02,
    crop: float = 0.95,
    max_bytes: int = 2**27,
) -> Tensor:
    """Coil sensitivities from the fully sampled centre of k-space (ESPIRiT, first set of maps).

    Uecker et al., "ESPIRiT - an eigenvalue approach to autocalibrating parallel MRI", Magnetic Resonance in Medicine
    71 (2014). All ``kernel x kernel`` patches of the calibration region lie near a subspace; projecting every patch
    of a k-space onto it and averaging where patches overlap is a convolution, hence in image space a Hermitian
    (coil, coil) matrix in every pixel. True sensitivities are its eigenvector of eigenvalue 1. Here that matrix is
    a short Fourier series whose coefficients are sums along the diagonals of the projection, so no image per
    singular vector is ever formed.

    Args:
        kspace: (coil, y, x), complex, centred; only the calibration region is used.
        calibration_width: size of that region, for both directions or (y, x).
        kernel: size of a patch.
        threshold: singular values above this share of the largest span the subspace.
        crop: maps are zero where the eigenvalue is below this (outside the object); 0 keeps all.
        max_bytes: of the matrices held at once; rows of pixels are done in blocks of that size.

    Returns:
        complex64, (coil, y, x); ``sum |S|^2`` is 1, or 0 where cropped. The phase is that of the virtual coil with
        the most signal, which is taken as real.

    Raises:
        ValueError: a calibration region that is not fully sampled, or too small for the kernel.

    Example:
        >>> from invdiff.operators import birdcage_maps, dot, espirit_maps, fft2c
        >>> truth = birdcage_maps(3, (24, 24))
        >>> maps = espirit_maps(fft2c(truth), 16, kernel=4, crop=0.0)  # k-space of a constant image
        >>> agreement = (maps.conj() * truth).sum(0).abs()  # 1 where they are equal up to the phase
        >>> bool(agreement[4:-4, 4:-4].min() > 0.99)
        True
    """
    if kspace.ndim != 3 or not kspace.is_complex():
        raise ValueError(f"kspace must be complex, (coil, y, x), got {kspace.dtype} of shape {tuple(kspace.shape)}.")
    n_coils, ny, nx = kspace.shape
    height, width = (calibration_width,) * 2 if isinstance(calibration_width, int) else calibration_width
    height, width = min(height, ny), min(width, nx)
    if not 1 <= kernel <= min(height, width):
        raise ValueError(f"The calibration region of {height} x {width} is smaller than the kernel, {kernel}.")
    y0, x0 = ny // 2 - height // 2, nx // 2 - width // 2
    center = kspace[:, y0 : y0 + height, x0 : x0 + width].to(torch.complex64)
    if bool((center == 0).all(0).any()):
        missing = int((center == 0).all(0).sum())
        raise ValueError(
            f"{missing} of the {height} x {width} central samples are missing; coil maps need a fully sampled centre. "
            f"Lower calibration_width, or give the maps."
        )

    # projection onto the patches' subspace: the rows of the matrix (patch, coil ky kx) span it
    patches = center.unfold(1, kernel, 1).unfold(2, kernel, 1)  # (coil, y, x, ky, kx)
    matrix = patches.permute(1, 2, 0, 3, 4).reshape(-1, n_coils * kernel**2)
    matrix = matrix / matrix.abs().max()
    squares, V = torch.linalg.eigh(matrix.mH @ matrix)  # of the singular values, and right singular vectors
    V = V[:, squares > threshold**2 * squares[-1]]
    P = (V.conj() @ V.mT).reshape(n_coils, kernel, kernel, n_coils, kernel, kernel)
    # h_cd(l) = sum over p - p' = l of P[c p, d p']
    h = P.new_zeros(n_coils, n_coils, 2 * kernel - 1, 2 * kernel - 1)
    for py in range(kernel):
        for px in range(kernel):
            block = P[:, py, px].flip(2, 3)  # (c, d, ky - 1 - p'_y, kx - 1 - p'_x)
            h[:, :, py : py + kernel, px : px + kernel] += block
    lag = torch.arange(2 * kernel - 1, device=kspace.device) - (kernel - 1)

    def waves(n: int) -> Tensor:
        q = torch.arange(n, device=kspace.device) - n // 2
        angle = 2 * math.pi / n * (q[:, None] * lag % n).to(torch.float32)
        return torch.polar(torch.ones_like(angle), angle)

    along_x = torch.einsum("cdab,xb->axcd", h / kernel**2, waves(nx))
    # the combination of coils with the most signal is made real
    _, vectors = torch.linalg.eigh(center.flatten(1) @ center.flatten(1).mH)
    virtual = vectors[:, -1]
    maps = torch.empty(n_coils, ny, nx, dtype=torch.complex64, device=kspace.device)
    rows = max(1, max_bytes // (3 * 8 * nx * n_coils**2))
    along_y = waves(ny)
    for y in range(0, ny, rows):
        G = torch.einsum("axcd,ya->yxcd", along_x, along_y[y : y + rows])
        values, vectors = torch.linalg.eigh(G)
        S = vectors[..., -1]
        phase = (S * virtual.conj()).sum(-1, keepdim=True)
        S = S * torch.where(phase.abs() > 0, phase.conj() / phase.abs(), 1) * (values[..., -1:] >= crop)
        maps[:, y : y + rows] = S.permute(2, 0, 1)
    return maps
