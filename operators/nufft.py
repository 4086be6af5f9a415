"""The non-uniform discrete Fourier transform and its exact adjoint.

``y_j = 1 / sqrt(ny nx) sum_q x_q exp(-2 pi i (ky_j qy / ny + kx_j qx / nx))`` with pixel coordinates q that are zero
at ``(ny // 2, nx // 2)`` and (ky, kx) in cycles per field of view. On the whole numbers it is :func:`fft2c`.

Two implementations with the same methods: finufft (Barnett, Magland, af Klinteberg, SIAM J. Sci. Comput. 41, 2019)
on a CPU where it is installed (``pip install invdiff[nufft]``), and torch alone: a twofold oversampled FFT and
interpolation with a Kaiser-Bessel kernel (Fessler and Sutton, IEEE Trans. Signal Process. 51, 2003), stored as a
sparse matrix with its transpose. Both are accurate to about 1e-6 in single and 1e-12 in double precision, and adjoint
to rounding.
"""

from __future__ import annotations

import copy
import importlib.util
import math
from typing import Any

import numpy as np
import scipy.sparse
import scipy.special
import torch
from torch import Tensor

from invdiff.operators.base import COMPLEX
from invdiff.operators.ct_matrix import SparsePair

MAX_PLANS = 6  # finufft plans kept per transform: one per direction and number of images
ACCURACY = {torch.float32: 1e-6, torch.float64: 1e-12}  # asked of finufft
KERNEL_WIDTH = {torch.float32: 7, torch.float64: 13}  # points of the Kaiser-Bessel kernel on the oversampled grid


def nufft(trajectory: Tensor, shape: tuple[int, int]) -> FinufftTransform | KaiserBesselTransform:
    """The transform of images ``shape`` at ``trajectory`` (n_samples, 2): finufft's where it is installed.

    Raises:
        ValueError: a trajectory of another shape, not finite, or outside of the band ``|k| <= n / 2``.
    """
    check_trajectory(trajectory, shape)
    installed = importlib.util.find_spec("finufft") is not None
    return (FinufftTransform if installed else KaiserBesselTransform)(trajectory, shape)


def check_trajectory(trajectory: Tensor, shape: tuple[int, int]) -> None:
    """Raise ValueError unless ``trajectory`` is (..., 2), finite, and within the band of images ``shape``."""
    if trajectory.ndim < 2 or trajectory.shape[-1] != 2 or trajectory.is_complex() or trajectory.numel() == 0:
        raise ValueError(f"trajectory must be real, (..., 2) with (ky, kx), got {tuple(trajectory.shape)}.")
    if not torch.isfinite(trajectory).all():
        raise ValueError("trajectory has non-finite values.")
    reach = trajectory.abs().reshape(-1, 2).amax(0)
    if any(float(r) > n / 2 * (1 + 1e-6) for r, n in zip(reach, shape, strict=True)):
        raise ValueError(
            f"trajectory must lie within half the image size {shape} in cycles per field of view, |ky| <= "
            f"{shape[0] / 2:g} and |kx| <= {shape[1] / 2:g}; it reaches {float(reach[0]):g} and {float(reach[1]):g}. "
            f"Rescale it, or use a larger image."
        )


class FinufftTransform:
    """By finufft on a CPU, with a cached plan per direction and number of images.

    Args:
        trajectory: (n_samples, 2). shape: (ny, nx). dtype: real precision.
    """

    def __init__(self, trajectory: Tensor, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> None:
        self.trajectory, self.shape, self.dtype = trajectory.double().cpu().reshape(-1, 2), shape, dtype
        self._plans: dict[tuple[int, int], Any] = {}

    def apply(self, x: Tensor) -> Tensor:
        """Images (n, ny, nx) to samples (n, n_samples)."""
        return self._execute(2, -1, x)

    def apply_adjoint(self, y: Tensor) -> Tensor:
        """Samples (n, n_samples) to images (n, ny, nx)."""
        return self._execute(1, 1, y)

    def _execute(self, kind: int, sign: int, data: Tensor) -> Tensor:
        import finufft

        n = len(data)
        if (kind, n) not in self._plans:
            while len(self._plans) >= MAX_PLANS:
                self._plans.pop(next(iter(self._plans)))
            name = str(COMPLEX[self.dtype]).removeprefix("torch.")
            plan = finufft.Plan(kind, self.shape, n, ACCURACY[self.dtype], sign, dtype=name, modeord=0)
            real = np.float32 if self.dtype == torch.float32 else np.float64
            points = 2 * math.pi * self.trajectory.numpy() / np.asarray(self.shape)
            plan.setpts(*(np.ascontiguousarray(p, real) for p in points.T))
            self._plans[kind, n] = plan
        value = data.detach().resolve_conj().contiguous().numpy()
        out = self._plans[kind, n].execute(value[0] if n == 1 else value)
        return torch.from_numpy(out).reshape(n, *(self.shape if kind == 1 else (-1,))) / math.prod(self.shape) ** 0.5

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Any:
        """In another precision; on another device than a CPU it is the one of torch."""
        if device is not None and torch.device(device).type != "cpu":
            return KaiserBesselTransform(self.trajectory, self.shape, dtype or self.dtype).to(device=device)
        return FinufftTransform(self.trajectory, self.shape, dtype or self.dtype)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_plans": {}}  # plans belong to this process


class KaiserBesselTransform:
    """By torch alone: deconvolve, zero-pad twofold, FFT, interpolate.

    Args:
        trajectory: (n_samples, 2). shape: (ny, nx). dtype: real precision.
    """

    def __init__(self, trajectory: Tensor, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> None:
        self.trajectory, self.shape, self.dtype = trajectory.double().cpu().reshape(-1, 2), shape, dtype
        width = KERNEL_WIDTH[dtype]
        matrix = kaiser_bessel_matrix(self.trajectory, shape, width)
        self._pair = SparsePair(matrix.astype(np.float32 if dtype == torch.float32 else np.float64))
        factors = [1 / _kernel_transform((np.arange(n) - n // 2) / (2 * n), width) / n**0.5 for n in shape]
        self._weight = torch.from_numpy(np.multiply.outer(*factors)).to(dtype)
        (ny, nx) = shape
        self._pad = (nx - nx // 2, nx // 2, ny - ny // 2, ny // 2)  # puts q = 0 at (ny, nx) of (2 ny, 2 nx)

    def apply(self, x: Tensor) -> Tensor:
        """Images (n, ny, nx) to samples (n, n_samples)."""
        padded = torch.nn.functional.pad(self._weight * x, self._pad)
        return self._real(self._pair.apply, torch.fft.fft2(padded).flatten(1))

    def apply_adjoint(self, y: Tensor) -> Tensor:
        """Samples (n, n_samples) to images (n, ny, nx)."""
        (ny, nx), (left, _, top, _) = self.shape, self._pad
        grid = self._real(self._pair.apply_transpose, y).reshape(-1, 2 * ny, 2 * nx)
        return self._weight * torch.fft.ifft2(grid, norm="forward")[:, top : top + ny, left : left + nx]

    def _real(self, matrix: Any, x: Tensor) -> Tensor:
        """A real matrix applied to complex rows (n, in) -> (n, out)."""
        columns = matrix(torch.cat([x.real, x.imag]).T).T
        return torch.complex(columns[: len(x)], columns[len(x) :])

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Any:
        """In another precision, with a kernel for it, and/or on another device."""
        new = copy.copy(self)
        if dtype not in (None, self.dtype):
            new = KaiserBesselTransform(self.trajectory, self.shape, dtype).to(device=self._weight.device)
        if device is not None:
            new._pair, new._weight = new._pair.to(device=device), new._weight.to(device=device)
        return new


def kaiser_bessel_matrix(trajectory: Tensor, shape: tuple[int, int], width: int) -> scipy.sparse.csr_array:
    """Interpolation from the twofold oversampled FFT grid, (n_samples, 4 ny nx) CSR, float64.

    The grid's FFT is of an image padded with its centre pixel at (ny, nx), which alternates the signs of the
    frequencies; the signs are part of the matrix.
    """
    index, weight = [], []
    for k, n in zip(trajectory.reshape(-1, 2).numpy().T, shape, strict=True):
        point = np.ceil(2 * k - width / 2).astype(np.int64)[:, None] + np.arange(width)
        u = 2 * k[:, None] - point
        beta = _beta(width)
        argument = np.sqrt(np.clip(1 - (2 * u / width) ** 2, 0, None))
        weight.append(np.i0(beta * argument) / np.i0(beta) * (1 - 2 * (point % 2)))
        index.append(point % (2 * n))
    columns = index[0][:, :, None] * (2 * shape[1]) + index[1][:, None, :]
    values = weight[0][:, :, None] * weight[1][:, None, :]
    n_samples = len(columns)
    rows = np.arange(0, n_samples * width**2 + 1, width**2)
    if rows[-1] > np.iinfo(np.int32).max:
        raise ValueError(f"{n_samples} samples of {width**2} weights are too many for one matrix. Split the readouts.")
    matrix = scipy.sparse.csr_array(
        (values.ravel(), columns.ravel().astype(np.int32), rows.astype(np.int32)),
        shape=(n_samples, 4 * math.prod(shape)),
    )
    matrix.sum_duplicates()  # a grid smaller than the kernel is met twice; it also sorts
    return matrix


def _beta(width: int) -> float:
    """Shape of the Kaiser-Bessel kernel for twofold oversampling (Beatty et al., IEEE Trans. Med. Imaging 24, 2005)."""
    return math.pi * math.sqrt((width * 0.75) ** 2 - 0.8)


def _kernel_transform(frequency: np.ndarray, width: int) -> np.ndarray:
    """Continuous Fourier transform of the kernel, frequency in cycles per grid point."""
    beta = _beta(width)
    root = np.sqrt(beta**2 - (math.pi * width * frequency) ** 2)  # real for |frequency| <= 1/4
    return width * np.sinh(root) / root / np.i0(beta)


def density_compensation(trajectory: Tensor, shape: tuple[int, int], *, n_steps: int = 30) -> Tensor:
    """Area of k-space that each sample stands for, in (cycles per field of view)^2; 1 on the Cartesian grid.

    Pipe and Menon, "Sampling density compensation in MRI: rationale and an iterative numerical solution", Magnetic
    Resonance in Medicine 41 (1999): weights are divided by what they spread onto each other through the gridding
    kernel, until that is uniform.

    Args:
        n_steps: fixed-point iterations.
        trajectory: (..., 2), (ky, kx) in cycles per field of view.
        shape: (ny, nx) of the images.

    Returns:
        float32, (n_samples,), positive.

    Example:
        >>> from invdiff.operators import density_compensation, radial_trajectory
        >>> weights = density_compensation(radial_trajectory(16, n_spokes=25), (16, 16))
        >>> per_spoke = weights.reshape(25, 32)
        >>> bool(per_spoke[:, 16].max() < per_spoke[:, 8].min())  # the centre is sampled most densely
        True
    """
    check_trajectory(trajectory, shape)
    G = kaiser_bessel_matrix(trajectory.double().cpu(), shape, 6)
    transpose = G.T.tocsr()
    uniform = float(_kernel_transform(np.zeros(1), 6)[0]) ** 4 / 4  # G G^T 1 on the Cartesian grid
    w = np.ones(G.shape[0])
    for _ in range(n_steps):
        w = w * uniform / (G @ (transpose @ w))
    return torch.from_numpy(w).float()
