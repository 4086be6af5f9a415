"""What a sensor does to intensities: saturation and quantisation."""

from __future__ import annotations

import torch
from torch import Tensor

from invdiff.operators.base import Operator


class Clip(Operator):
    """``y = clip(gain x, low, high)``: a sensor that saturates. The gradient is zero where it does.

    The defaults are the high-dynamic-range task of the diffusion benchmarks, for images in [-1, 1].

    Args:
        shape: (channel, y, x).
        gain: multiplies the image before clipping.
        low, high: the range of the sensor, low < high.

    Example:
        >>> from invdiff.operators import Clip
        >>> Clip((1, 1, 3))(torch.tensor([[[-0.75, 0.25, 0.75]]])).tolist()
        [[[-1.0, 0.5, 1.0]]]
    """

    def __init__(self, shape: tuple[int, ...], gain: float = 2.0, low: float = -1.0, high: float = 1.0) -> None:
        if not low < high:
            raise ValueError(f"Need low < high, got {low=}, {high=}.")
        super().__init__(shape, shape)
        self.shape, self.gain, self.low, self.high = tuple(shape), gain, low, high

    def forward(self, x: Tensor) -> Tensor:
        return (self.gain * x).clamp(self.low, self.high)


class Quantize(Operator):
    """``y = step round(x / step)``: uniform quantisation. Its error has a standard deviation of about step / sqrt(12).

    The true gradient is zero almost everywhere and of no use, so ``vjp`` and autograd return the
    straight-through estimate instead, the gradient of the identity (Y. Bengio, N. Leonard and A. Courville,
    arXiv:1308.3432, 2013): a choice, not a derivative. An image of b bits on [0, high] is
    ``Quantize(shape, high / (2**b - 1)) @ Clip(shape, 1.0, 0.0, high)``.

    Args:
        shape: (channel, y, x).
        step: distance between levels, in image units, positive.

    Example:
        >>> from invdiff.operators import Quantize
        >>> Quantize((1, 1, 3), 0.5)(torch.tensor([[[0.2, 0.3, 0.9]]])).tolist()
        [[[0.0, 0.5, 1.0]]]
    """

    def __init__(self, shape: tuple[int, ...], step: float) -> None:
        if not step > 0:
            raise ValueError(f"step must be positive, got {step}.")
        super().__init__(shape, shape)
        self.shape, self.step = tuple(shape), step

    def forward(self, x: Tensor) -> Tensor:
        levels = self.step * torch.round(x / self.step)
        return levels.detach() + (x - x.detach())  # the bracket is zero, its gradient one

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        """``v``, straight through."""
        return v
