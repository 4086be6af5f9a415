"""Phase retrieval: only the magnitude of a Fourier transform is measured.

Both kinds are ``|F L x|`` with a known linear map L: zero padding (oversampled) or multiplication by known masks
(coded). The image is determined up to trivial ambiguities at best: sign; without masks also translation and
inversion through the origin. Metrics must allow for them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from invdiff.operators.base import LinearOperator, Operator
from invdiff.operators.blur import Pad
from invdiff.operators.mri import MultiCoilMRI, fft2c, ifft2c
from invdiff.operators.pointwise import RealAsComplex


class Fourier(LinearOperator):
    """Centred orthonormal FFT of every channel of a complex image; unitary.

    Args:
        shape: (channel, y, x).

    Example:
        >>> from invdiff.operators import Fourier
        >>> point = torch.zeros(1, 4, 4, dtype=torch.complex64)
        >>> point[0, 2, 2] = 1.0  # in the centre: a flat spectrum
        >>> torch.allclose(Fourier((1, 4, 4))(point), torch.full((1, 4, 4), 0.25 + 0j), atol=1e-6)
        True
    """

    has_closed_form_prox = True

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__(shape, shape, in_complex=True, out_complex=True)
        self.shape = tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        return fft2c(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return ifft2c(y)

    def prox(self, z: Tensor, y: Tensor, weight: Tensor | float) -> Tensor:
        """Closed form."""
        return (z + weight * self.H(y)) / (1 + weight)

    def pinv(self, y: Tensor) -> Tensor:
        """``A^+ = A^H``."""
        return self.H(y)


class Modulus(Operator):
    """``y = |x|`` of a complex image, entry by entry. Its derivative at 0, where there is none, is taken as 0.

    Args:
        shape: of the image, (channel, y, x).

    Example:
        >>> from invdiff.operators import Modulus
        >>> Modulus((1, 1, 1))(torch.tensor([[[3 + 4j]]])).tolist()
        [[[5.0]]]
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape, shape, in_complex=True)
        self.shape = tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        return x.abs()

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        """``v x / |x|``."""
        return v * torch.sgn(x)


def phase_retrieval(shape: tuple[int, int, int], margin: int) -> Operator:
    """``|F P x|`` of a real image, zero-padded by ``margin`` pixels on each side, orthonormal FFT.

    ``margin = n / 2`` doubles each side of an n x n image. The benchmark of diffusion posterior sampling (DPS), which
    calls its setting an oversampling of 2, pads by n / 4: 1.5 times as many pixels per side, 2.25 data a pixel.

    Args:
        shape: (channel, y, x); every channel is measured on its own.
        margin: pixels, at least 1: without padding, the magnitude says too little.

    Example:
        >>> from invdiff.operators import phase_retrieval
        >>> A = phase_retrieval((1, 8, 8), 4)
        >>> x = torch.rand(1, 8, 8)
        >>> A.out_shape, torch.allclose(A(x), A(x.flip(-1, -2)), atol=1e-5)  # a turn by 180 degrees is not seen
        ((1, 16, 16), True)
    """
    if margin < 1:
        raise ValueError(f"margin must be at least 1 pixel, got {margin}.")
    pad = Pad(shape, margin, "constant")
    channels, ny, nx = pad.out_shape
    padded = (channels, ny, nx)
    return Modulus(padded) @ (Fourier(padded) @ RealAsComplex(padded) @ pad)


def coded_phase_retrieval(masks: Tensor) -> Operator:
    """``|F (m_k x)|`` of a real image (1, y, x), one diffraction pattern for each mask, orthonormal FFT.

    Args:
        masks: complex, (n, y, x), for instance :func:`octanary_masks`.

    Example:
        >>> from invdiff.operators import coded_phase_retrieval, octanary_masks
        >>> A = coded_phase_retrieval(octanary_masks(3, (8, 8), seed=0))
        >>> x = torch.rand(1, 8, 8)
        >>> A.out_shape, torch.allclose(A(x), A(-x))  # the sign is lost
        ((3, 8, 8), True)
    """
    n, ny, nx = masks.shape
    coded = MultiCoilMRI(masks, torch.ones(ny, nx, dtype=torch.bool))
    return Modulus((n, ny, nx)) @ (coded @ RealAsComplex((1, ny, nx)))


def octanary_masks(n: int, image_shape: tuple[int, int], *, seed: int) -> Tensor:
    """Random masks for coded diffraction, (n, y, x), complex64, mean square 1.

    Entries ``b1 b2`` with b1 uniform in {1, -1, i, -i} and b2 equal to sqrt(1/2) with probability 4/5, else sqrt(3)
    (E. J. Candes, X. Li and M. Soltanolkotabi, Appl. Comput. Harmon. Anal. 39, 277-299, 2015).

    Args:
        n: masks.
        image_shape: (y, x).
        seed: of the entries.

    Example:
        >>> from invdiff.operators import octanary_masks
        >>> masks = octanary_masks(2, (16, 16), seed=0)
        >>> sorted({round(v, 2) for v in masks.abs().square().flatten().tolist()})
        [0.5, 3.0]
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}.")
    generator = torch.Generator().manual_seed(seed)
    quarter = torch.randint(4, (n, *image_shape), generator=generator)
    large = torch.rand((n, *image_shape), generator=generator) < 0.2
    return torch.tensor([1, 1j, -1, -1j])[quarter] * torch.where(large, 3**0.5, 0.5**0.5)
