"""What is done to a beamformed image: envelope, log compression, and a haze over it."""

from __future__ import annotations

import torch
from torch import Tensor

from invdiff.operators.base import LinearOperator, Operator


class Envelope(Operator):
    """Envelope of a beamformed image (channel, z, x): ``sqrt(|a|^2 + floor^2)``. Not linear.

    An IQ image is its own analytic signal ``a``; of an RF image it is taken along depth (the axis z, -2) by
    the Hilbert transform (FFT, so periodic in z). Differentiable everywhere; where ``|a|`` is far below ``floor``
    the gradient vanishes.

    Args:
        shape: of the image.
        in_complex: whether the image is IQ.
        floor: positive, in the units of the image, well below what matters in it.

    Example:
        >>> from invdiff.operators import Envelope
        >>> iq = torch.full((1, 2, 2), 3 + 4j)
        >>> Envelope((1, 2, 2), in_complex=True)(iq).unique().tolist()
        [5.0]
    """

    def __init__(self, shape: tuple[int, ...], in_complex: bool = False, floor: float = 1e-6) -> None:
        _positive("floor", floor)
        super().__init__(shape, shape, in_complex=in_complex)
        self.shape, self.floor = tuple(shape), float(floor)

    def forward(self, x: Tensor) -> Tensor:
        a = x if self.in_complex else analytic(x)
        return (a.real.square() + a.imag.square() + self.floor**2).sqrt()


class LogCompression(Operator):
    """Envelope to decibels, ``10 log10((e / reference)^2 + 10^(-dynamic_range / 10))``. Not linear.

    0 dB is ``reference``; an envelope of 0 gives ``-dynamic_range``, the documented floor, at which the gradient
    vanishes; 10 dB above it the floor raises the value by 0.4 dB.

    Args:
        shape: of the image.
        reference: the envelope that is 0 dB.
        dynamic_range: dB.

    Example:
        >>> from invdiff.operators import LogCompression
        >>> y = LogCompression((1, 1, 3))(torch.tensor([[[1.0, 0.1, 0.0]]]))
        >>> [round(v, 1) for v in y.flatten().tolist()]
        [0.0, -20.0, -60.0]
    """

    def __init__(self, shape: tuple[int, ...], reference: float = 1.0, dynamic_range: float = 60.0) -> None:
        _positive("reference", reference)
        _positive("dynamic_range", dynamic_range)
        super().__init__(shape, shape)
        self.shape, self.reference, self.dynamic_range = tuple(shape), float(reference), float(dynamic_range)

    def forward(self, x: Tensor) -> Tensor:
        return 10 * torch.log10((x / self.reference).square() + 10 ** (-self.dynamic_range / 10))


class Haze(LinearOperator):
    """``y = (1 - level) tissue + level haze``: images (2, z, x), tissue first, to (1, z, x).

    The mixture of T. Stevens et al., "Dehazing ultrasound using diffusion models", IEEE Trans. Med. Imaging 43,
    3546-3558, 2024. A known haze h is ``Affine((1 - level) * Identity(shape), level * h)``.

    Args:
        shape: of one image, (1, z, x).
        level: share of the haze, in [0, 1].

    Example:
        >>> from invdiff.operators import Haze
        >>> tissue, haze = torch.ones(1, 2, 2), torch.zeros(1, 2, 2)
        >>> Haze((1, 2, 2), 0.25)(torch.cat([tissue, haze])).unique().tolist()
        [0.75]
    """

    has_closed_form_prox = True

    def __init__(self, shape: tuple[int, int, int], level: float) -> None:
        if shape[0] != 1:
            raise ValueError(f"shape must be that of one image, (1, z, x), got {tuple(shape)}.")
        if not 0 <= level <= 1:
            raise ValueError(f"level must lie in [0, 1], got {level!r}.")
        super().__init__((2, *shape[1:]), shape)
        self.shape, self.level = tuple(shape), float(level)

    def forward(self, x: Tensor) -> Tensor:
        return (1 - self.level) * x[:, :1] + self.level * x[:, 1:]

    def adjoint(self, y: Tensor) -> Tensor:
        return torch.cat([(1 - self.level) * y, self.level * y], 1)

    def prox(self, z: Tensor, y: Tensor, weight: Tensor | float) -> Tensor:
        """Closed form: A A^H is a number."""
        square = (1 - self.level) ** 2 + self.level**2
        return z + self.H(weight / (1 + weight * square) * (y - self(z)))

    def pinv(self, y: Tensor) -> Tensor:
        return self.H(y / ((1 - self.level) ** 2 + self.level**2))


def analytic(x: Tensor, dim: int = -2) -> Tensor:
    """Analytic signal of a real tensor along ``dim``: negative frequencies removed, positive ones doubled."""
    n = x.shape[dim]
    gain = torch.zeros(n, dtype=x.dtype, device=x.device)
    gain[0] = 1
    gain[1 : (n + 1) // 2] = 2
    if n % 2 == 0:
        gain[n // 2] = 1
    spectrum = torch.fft.fft(x, dim=dim).movedim(dim, -1) * gain
    return torch.fft.ifft(spectrum.movedim(-1, dim), dim=dim)


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value!r}.")
