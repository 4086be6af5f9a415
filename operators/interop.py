"""deepinv's physics as operators, and operators as deepinv's physics.

    A = from_deepinv(deepinv.physics.Downsampling(img_size=(3, 64, 64), factor=2), (3, 64, 64))
    physics = to_deepinv(CT(geometry))

deepinv is imported only when one of the two functions is called (``pip install invdiff[deepinv]``).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from invdiff.operators.base import COMPLEX, LinearOperator, Operator, _cast, dot

ADJOINT_TOLERANCE = 1e-4  # relative mismatch of the dot test above which a foreign adjoint is not believed


class DeepinvOperator(Operator):
    """A deepinv physics, made by :func:`from_deepinv`. It cannot be saved: a file names invdiff's own classes only."""

    def __init__(self, physics: Any, in_shape: Sequence[int], in_complex: bool, dtype: torch.dtype) -> None:
        device = next((t.device for t in [*physics.parameters(), *physics.buffers()]), torch.device("cpu"))
        zero = torch.zeros(1, *in_shape, dtype=COMPLEX[dtype] if in_complex else dtype, device=device)
        name = type(physics).__name__
        try:
            with torch.no_grad():
                y = physics.A(zero)
        except RuntimeError as error:
            raise TypeError(f"{name} does not take {zero.dtype} images of shape {tuple(in_shape)}: {error}") from None
        # deepinv.utils.TensorList, the data of stacked physics: several tensors, here one vector
        parts = [y] if isinstance(y, Tensor) else list(y)
        out_complex = parts[0].is_complex()
        if any(p.dtype != (COMPLEX[dtype] if out_complex else dtype) for p in parts):
            raise TypeError(
                f"{name} turns {zero.dtype} into {parts[0].dtype}. Build the physics in one precision and name it: "
                "from_deepinv(..., dtype=torch.float32 or torch.float64)."
            )
        self._part_shapes = None if isinstance(y, Tensor) else [tuple(p.shape[1:]) for p in parts]
        out_shape = parts[0].shape[1:] if self._part_shapes is None else (sum(p[0].numel() for p in parts),)
        super().__init__(
            in_shape, out_shape, in_complex=in_complex, out_complex=out_complex, dtype=dtype, device=device
        )
        self.physics = physics

    def forward(self, x: Tensor) -> Tensor:
        y = self.physics.A(x)
        return y if self._part_shapes is None else torch.cat([p.flatten(1) for p in y], 1)

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Any:
        """A copy with its own copy of the physics. TypeError if the physics cannot be converted."""
        physics = copy.deepcopy(self.physics)
        for module in physics.modules():  # Module.to(dtype) would drop the imaginary part of complex buffers
            for name, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                tensor = _cast(value.detach(), dtype, device)
                setattr(module, name, torch.nn.Parameter(tensor) if isinstance(value, torch.nn.Parameter) else tensor)
        return type(self)(physics, self.in_shape, self.in_complex, dtype or self.dtype)


class DeepinvLinearOperator(DeepinvOperator, LinearOperator):
    """A linear deepinv physics, made by :func:`from_deepinv`."""

    adjoint_as_backward = True
    _by_autograd = False

    def __init__(self, physics: Any, in_shape: Sequence[int], in_complex: bool, dtype: torch.dtype) -> None:
        super().__init__(physics, in_shape, in_complex, dtype)
        try:
            self._by_autograd = not _adjoint_mismatch(self) <= ADJOINT_TOLERANCE
        except RuntimeError:  # an A_adjoint that fails in this precision
            self._by_autograd = True
        if self._by_autograd and not (mismatch := _adjoint_mismatch(self)) <= ADJOINT_TOLERANCE:
            raise ValueError(
                f"Neither A_adjoint of {type(physics).__name__} nor the derivative of its A is its adjoint: the dot "
                f"test is off by {mismatch:.1e} |A x| |y|. Is A linear, and not random?"
            )

    def adjoint(self, y: Tensor) -> Tensor:
        if self._by_autograd:
            return super().adjoint(y)
        if self._part_shapes is None:
            return self.physics.A_adjoint(y)
        from deepinv.utils import TensorList

        parts = y.split([math.prod(s) for s in self._part_shapes], 1)
        return self.physics.A_adjoint(
            TensorList([p.unflatten(1, s) for p, s in zip(parts, self._part_shapes, strict=True)])
        )


def from_deepinv(
    physics: Any, in_shape: Sequence[int], *, in_complex: bool = False, dtype: torch.dtype = torch.float32
) -> Operator:
    """Any deepinv physics as an operator: a :class:`LinearOperator` if it is a ``LinearPhysics``.

    The adjoint is the physics' ``A_adjoint`` where that works and passes a dot test, else autograd derives it from
    ``A``. Its noise and sensor model are not taken over: noise belongs to the :class:`invdiff.Measurement`. Data that
    deepinv splits into a list of tensors become one vector. deepinv keeps complex MRI images and k-space as two real
    channels, and so does the operator made of it.

    Args:
        physics: a ``deepinv.physics.Physics``, on its device. It is used as it is, not copied.
        in_shape: shape of one image, without the batch dimension.
        in_complex: whether it takes complex images.
        dtype: its real precision.

    Raises:
        TypeError: not a deepinv physics, or one that does not take such images.
        ValueError: a ``LinearPhysics`` that is not linear.

    Example:
        >>> import deepinv  # the extra "deepinv"
        >>> from invdiff.operators import from_deepinv
        >>> mask = torch.tensor([[[1.0, 0.0]]])
        >>> A = from_deepinv(deepinv.physics.Inpainting((1, 1, 2), mask=mask), (1, 1, 2))
        >>> A(torch.ones(1, 1, 2)).tolist()
        [[[1.0, 0.0]]]
    """
    from deepinv.physics import LinearPhysics, Physics

    if not isinstance(physics, Physics):
        raise TypeError(f"from_deepinv takes a deepinv.physics.Physics, got {type(physics).__name__}.")
    kind = DeepinvLinearOperator if isinstance(physics, LinearPhysics) else DeepinvOperator
    return kind(physics, in_shape, in_complex, dtype)


def to_deepinv(A: Operator) -> Any:
    """An operator as a deepinv ``LinearPhysics`` (``Physics`` if it is not linear) without noise.

    deepinv's tensors have one batch dimension. Complex data stay complex; complex images are refused, as deepinv's
    priors and denoisers expect real channels. The physics stays on the operator's device and in its precision.

    Args:
        A: an operator on real images.

    Raises:
        TypeError: not an operator, or one on complex images.

    Example:
        >>> import deepinv  # the extra "deepinv"
        >>> from invdiff.operators import BlockDownsample, to_deepinv
        >>> physics = to_deepinv(BlockDownsample((1, 4, 4), 2))
        >>> tuple(physics.A(torch.ones(1, 1, 4, 4)).shape)
        (1, 1, 2, 2)
    """
    from deepinv.physics import LinearPhysics, Physics

    if not isinstance(A, Operator):
        raise TypeError(f"to_deepinv takes an invdiff operator, got {type(A).__name__}.")
    if A.in_complex:
        raise TypeError(
            f"deepinv works on real channels, {A!r} on complex images. Compose it: A @ ViewAsComplex(shape)."
        )
    if not isinstance(A, LinearOperator):
        return Physics(A=A)
    return LinearPhysics(A=A, A_adjoint=A.H, img_size=A.in_shape, device=A.device)


def _adjoint_mismatch(A: LinearOperator) -> float:
    """``|<A x, y> - <x, A^H y>| / (|A x| |y|)`` for one random pair."""
    generator = torch.Generator().manual_seed(0)

    def draw(shape: tuple[int, ...], is_complex: bool) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=COMPLEX[A.dtype] if is_complex else A.dtype).to(A.device)

    x = draw(A.in_shape, A.in_complex)
    with torch.no_grad():
        Ax = A(x)
        y = Ax + float(Ax.abs().square().mean().sqrt()) * draw(A.out_shape, A.out_complex)
        difference = dot(Ax, y) - dot(x, A.H(y))
        return float(difference.abs() / (torch.linalg.vector_norm(Ax) * torch.linalg.vector_norm(y)).clamp(min=1e-30))
