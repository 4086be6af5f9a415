"""The operator algebra: shapes, composition, exact adjoints.

An operator acts on the trailing dimensions of its input and broadcasts over any leading ones. A subclass
passes its shapes to ``super().__init__`` and writes ``forward`` (and ``adjoint``, if linear) for tensors with
exactly one leading dimension; flattening, checking and unflattening happen here, once.

Constructor arguments are kept as attributes of the same name. That one rule gives ``repr`` and the
serialisation of operators inside a saved :class:`invdiff.Measurement`.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from invdiff.operators.svd import SVD

COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}
REAL = {v: k for k, v in COMPLEX.items()}


class Operator:
    """A map from images to data, ``y = A(x)``, possibly non-linear. It contains no noise.

    Args:
        in_shape: shape of one image, ``(channel, [z,] y, x)``.
        out_shape: shape of one measurement.
        in_complex, out_complex: whether images / measurements are complex.

    Attributes:
        dtype: real precision (float32 or float64); complex data have the matching complex precision.
        device: where inputs must live. Use :meth:`to` to change either.
        observed: bool tensor that broadcasts to ``out_shape``: which entries of the output carry data
            (None: all). Unobserved entries are zero in every measurement.

    Example:
        >>> from invdiff.operators import Operator
        >>> class Square(Operator):
        ...     def forward(self, x):
        ...         return x**2
        >>> A, x = Square((1, 1, 2), (1, 1, 2)), torch.tensor([[[1.0, 3.0]]])
        >>> A(x).tolist(), A.vjp(x, torch.ones(1, 1, 2)).tolist()  # 2 x
        ([[[1.0, 9.0]]], [[[2.0, 6.0]]])
    """

    observed: Tensor | None = None

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        *,
        in_complex: bool = False,
        out_complex: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.in_shape = tuple(int(n) for n in in_shape)
        self.out_shape = tuple(int(n) for n in out_shape)
        self.in_complex, self.out_complex = in_complex, out_complex
        self.dtype, self.device = dtype, torch.device(device)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to ``x`` of shape (batch, \\*in_shape). Written by the subclass; call ``A(x)`` instead."""
        raise TypeError(f"{type(self).__name__} does not define forward(x).")

    def __call__(self, x: Tensor) -> Tensor:
        """``A(x)``: ``(..., *in_shape)`` to ``(..., *out_shape)``. Raises ValueError or TypeError on a mismatch."""
        lead = self._leading(x, self.in_shape, self.in_complex)
        return self._apply(x.reshape(-1, *self.in_shape)).reshape(*lead, *self.out_shape)

    def _apply(self, x: Tensor) -> Tensor:
        return self.forward(x)

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        """``J(x)^H v``: pull a data-space vector back to image space at ``x``. Shapes as in ``A(x)``."""
        return torch.func.vjp(self, x)[1](v)[0]

    def _leading(self, x: Tensor, shape: tuple[int, ...], is_complex: bool) -> tuple[int, ...]:
        k = len(shape)
        if x.ndim < k or tuple(x.shape[x.ndim - k :]) != shape:
            raise ValueError(
                f"{type(self).__name__} maps (..., {_s(self.in_shape)}) to (..., {_s(self.out_shape)}); "
                f"expected trailing dimensions ({_s(shape)}), got a tensor of shape {tuple(x.shape)}."
            )
        dtype = COMPLEX[self.dtype] if is_complex else self.dtype
        if x.dtype != dtype:
            raise TypeError(
                f"{type(self).__name__} works on {dtype}, got {x.dtype}. Convert the tensor, or the operator "
                f"with .to(dtype=...); real images enter a complex operator through A @ RealAsComplex(shape)."
            )
        if x.device.type != self.device.type:
            raise ValueError(
                f"{type(self).__name__} is on {self.device}, the tensor on {x.device}. Use .to(device=...)."
            )
        return tuple(x.shape[: x.ndim - k])

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Any:
        """A copy in another real precision (complex tensors follow) and/or on another device."""
        if dtype is not None and dtype not in COMPLEX:
            raise TypeError(f"dtype is the real precision, torch.float32 or torch.float64, got {dtype}.")
        new = copy.copy(self)
        new.dtype = dtype or self.dtype
        new.device = torch.device(device) if device is not None else self.device
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(new, name, _cast(value, dtype, device))
            elif hasattr(value, "to") and not isinstance(value, torch.dtype):
                setattr(new, name, value.to(dtype=dtype, device=device))
        return new

    def init_args(self) -> dict[str, Any]:
        """The constructor's arguments, read back from the attributes of the same names."""
        names = [p for p in inspect.signature(type(self).__init__).parameters if p != "self"]
        return {name: getattr(self, name) for name in names}

    def __repr__(self) -> str:
        kind = {False: "real", True: "complex"}
        return (
            f"{type(self).__name__}(({_s(self.in_shape)}) {kind[self.in_complex]} -> "
            f"({_s(self.out_shape)}) {kind[self.out_complex]})"
        )

    def __matmul__(self, other: Operator) -> Operator:
        """``A @ B``: first ``B``, then ``A``."""
        if not isinstance(other, Operator):
            return NotImplemented
        if other.out_shape != self.in_shape or other.out_complex != self.in_complex:
            raise ValueError(
                f"Cannot compose {self!r} @ {other!r}: the output of the second must be the input of the first."
            )
        if isinstance(self, LinearOperator) and isinstance(other, LinearOperator):
            return LinearComposition(self, other)
        return Composition(self, other)


class Composition(Operator):
    """``outer @ inner`` for operators of which at least one is non-linear.

    Example:
        >>> from invdiff.operators import Fourier, Modulus
        >>> A = Modulus((1, 4, 4)) @ Fourier((1, 4, 4))
        >>> A
        Composition((1, 4, 4) complex -> (1, 4, 4) real)
    """

    def __init__(self, outer: Operator, inner: Operator) -> None:
        _init_composition(self, outer, inner)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer._apply(self.inner._apply(x))

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        return self.inner.vjp(x, self.outer.vjp(self.inner(x), v))

    outer: Operator
    inner: Operator


def _init_composition(self: Any, outer: Operator, inner: Operator) -> None:
    Operator.__init__(
        self, inner.in_shape, outer.out_shape, in_complex=inner.in_complex, out_complex=outer.out_complex,
        dtype=outer.dtype, device=outer.device,
    )  # fmt: skip
    if inner.dtype != outer.dtype or inner.device.type != outer.device.type:
        raise TypeError(
            f"Cannot compose operators in {outer.dtype} on {outer.device} and {inner.dtype} on {inner.device}."
        )
    self.outer, self.inner, self.observed = outer, inner, outer.observed


class LinearOperator(Operator):
    """A linear operator with its exact adjoint.

    A subclass writes ``forward`` and, where autograd is slow or impossible, ``adjoint``; without it the
    adjoint is derived by autograd. With ``adjoint_as_backward = True`` (custom kernels that autograd cannot
    see through) the adjoint is registered as the backward of the forward, and the other way round, so that
    ``vjp``, ``jvp``, ``vmap`` and higher derivatives work.

    Args:
        in_shape, out_shape, in_complex, out_complex, dtype, device: as of :class:`Operator`.

    Example:
        >>> from invdiff.operators import LinearOperator
        >>> class Mirror(LinearOperator):
        ...     def forward(self, x):
        ...         return x.flip(-1)
        >>> A, x = Mirror((1, 2, 3), (1, 2, 3)), torch.rand(1, 2, 3)
        >>> torch.equal(A.H(A(x)), x)  # the adjoint follows by autograd
        True
    """

    adjoint_as_backward = False
    has_closed_form_prox = False
    coupled_axis: int | None = None  # the only dimension of the image (from the end) along which A^H A mixes pixels
    svd_by_lines = False  # whether svd() follows from that
    reads_as_complex = False  # whether it does nothing but take real numbers for complex ones

    def adjoint(self, y: Tensor) -> Tensor:
        """``A^H y`` for ``y`` of shape (batch, \\*out_shape). Call ``A.H(y)`` instead."""
        dtype = COMPLEX[self.dtype] if self.in_complex else self.dtype
        zero = torch.zeros(y.shape[0], *self.in_shape, dtype=dtype, device=y.device)
        return torch.func.vjp(self.forward, zero)[1](y)[0]

    def _apply(self, x: Tensor) -> Tensor:
        if self.adjoint_as_backward:
            return _WithAdjoint.apply(x, self.forward, self.adjoint)
        return self.forward(x)

    @property
    def H(self) -> LinearOperator:
        """The exact adjoint; ``A.H.H is A``."""
        return Adjoint(self)

    @property
    def gram(self) -> LinearOperator:
        """``A^H A``, the normal operator."""
        return LinearComposition(self.H, self)

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        """The adjoint applied to ``v``; ``x`` is not used."""
        return self.H(v)

    def line_gram(self, lines: slice) -> Tensor:
        """Blocks of ``A^H A`` along :attr:`coupled_axis`, (lines, n, n) in double precision; lines in the order of the
        image's other dimensions. Written by a subclass that has such an axis."""
        raise TypeError(f"{self!r} does not couple pixels along one axis only.")

    def norm(self, *, n_steps: int = 30, seed: int = 0) -> float:
        """Spectral norm, by power iteration on the normal operator (relative error about 1e-3 or less)."""
        from invdiff.operators.linalg import power_iteration

        dtype, generator = COMPLEX[self.dtype] if self.in_complex else self.dtype, torch.Generator().manual_seed(seed)
        x = torch.randn(self.in_shape, generator=generator, dtype=dtype).to(self.device)
        return math.sqrt(power_iteration(self.gram, x, n_steps=n_steps))

    def prox(self, z: Tensor, y: Tensor, weight: Tensor | float) -> Tensor:
        """``argmin_x 1/2 |x - z|^2 + weight/2 |A x - y|^2`` with ``z`` (..., \\*in_shape), ``weight`` >= 0.

        Per-sample conjugate gradients here; by the singular values where ``A^H A`` couples pixels along lines only.
        Subclasses override it where there is another closed form, and say so by ``has_closed_form_prox = True``.
        """
        from invdiff.operators.linalg import cg

        if self.has_closed_form_prox:
            return self._decomposition().prox(z, y, weight)
        return cg(lambda x: x + weight * self.gram(x), z + weight * self.H(y), item_ndim=len(self.in_shape), start=z)

    def pinv(self, y: Tensor) -> Tensor:
        """``A^+ y``, the minimum-norm least-squares solution, (..., \\*out_shape) to (..., \\*in_shape).

        Conjugate gradients on the normal equations from zero; for ill-posed operators the stopping
        (200 steps or a relative residual of 1e-5) regularises.
        """
        from invdiff.operators.linalg import cg

        return cg(self.gram, self.H(y), item_ndim=len(self.in_shape), n_steps=200)

    def svd(self) -> SVD:
        """``A = U diag(s) V^H``: closed form where there is one, else dense for small operators, computed once.

        Raises:
            TypeError: no closed form and too large (:data:`invdiff.operators.svd.DENSE_LIMIT`), or complex images.
        """
        if self.in_complex:
            raise TypeError(f"The SVD is defined for operators on real images; compose {self!r} with ViewAsComplex.")
        return self._decomposition()

    def _decomposition(self) -> SVD:
        from invdiff.operators.svd import decompose

        cached = vars(self).get("_svd")
        if cached is None or cached[:2] != (self.dtype, self.device):
            cached = self._svd = (self.dtype, self.device, decompose(self))
        return cached[2]

    def __add__(self, other: LinearOperator) -> LinearOperator:
        if not isinstance(other, LinearOperator):
            return NotImplemented
        return LinearSum(self, other)

    def __sub__(self, other: LinearOperator) -> LinearOperator:
        return self + (-1.0) * other

    def __mul__(self, scale: complex) -> LinearOperator:
        if not isinstance(scale, int | float | complex):
            return NotImplemented
        return Scaled(self, scale)

    __rmul__ = __mul__

    def __neg__(self) -> LinearOperator:
        return self * -1.0


class LinearComposition(LinearOperator):
    """``outer @ inner`` for linear operators.

    Example:
        >>> from invdiff.operators import BlockDownsample, Crop, dot
        >>> A = BlockDownsample((1, 2, 2), 2) @ Crop((1, 4, 4), 1)
        >>> A
        LinearComposition((1, 4, 4) real -> (1, 1, 1) real)
        >>> x, y = torch.rand(1, 4, 4), torch.rand(1, 1, 1)
        >>> torch.allclose(dot(A(x), y), dot(x, A.H(y)))
        True
    """

    outer: LinearOperator
    inner: LinearOperator

    def __init__(self, outer: LinearOperator, inner: LinearOperator) -> None:
        _init_composition(self, outer, inner)
        if inner.reads_as_complex and outer.coupled_axis is not None:
            self.svd_by_lines = self.has_closed_form_prox = True
            if inner.in_shape == outer.in_shape:  # else real and imaginary parts are channels, which mix
                self.coupled_axis = outer.coupled_axis

    def forward(self, x: Tensor) -> Tensor:
        return self.outer._apply(self.inner._apply(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return self.inner.H._apply(self.outer.H._apply(y))

    def line_gram(self, lines: slice) -> Tensor:
        """That of the outer operator for real images, its real part."""
        return self.outer.line_gram(lines).real if self.coupled_axis is not None else super().line_gram(lines)

    @property
    def gram(self) -> LinearOperator:
        """``inner^H outer^H outer inner``, through the outer operator's own normal operator."""
        return LinearComposition(self.inner.H, LinearComposition(self.outer.gram, self.inner))


class LinearSum(LinearOperator):
    """``first + second``, two linear operators between the same spaces.

    Example:
        >>> from invdiff.operators import Identity
        >>> A = Identity((1, 1, 2)) + 2.0 * Identity((1, 1, 2))
        >>> A(torch.tensor([[[1.0, 2.0]]])).tolist()
        [[[3.0, 6.0]]]
    """

    def __init__(self, first: LinearOperator, second: LinearOperator) -> None:
        def key(A: Operator) -> tuple:
            return (A.in_shape, A.out_shape, A.in_complex, A.out_complex, A.dtype, A.device.type)

        if key(first) != key(second):
            raise ValueError(f"Cannot add {first!r} and {second!r}: shapes, kinds, precision and device must agree.")
        super().__init__(
            first.in_shape, first.out_shape, in_complex=first.in_complex, out_complex=first.out_complex,
            dtype=first.dtype, device=first.device,
        )  # fmt: skip
        self.first, self.second = first, second
        if first.observed is not None and second.observed is not None:
            self.observed = first.observed | second.observed

    def forward(self, x: Tensor) -> Tensor:
        return self.first._apply(x) + self.second._apply(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.first.H._apply(y) + self.second.H._apply(y)


class Scaled(LinearOperator):
    """``scale * operator`` with a real or complex number.

    Example:
        >>> from invdiff.operators import Identity
        >>> A = 3.0 * Identity((1, 1, 2))
        >>> A(torch.ones(1, 1, 2)).tolist(), A.pinv(torch.ones(1, 1, 2) * 6).tolist()
        ([[[3.0, 3.0]]], [[[2.0, 2.0]]])
    """

    def __init__(self, operator: LinearOperator, scale: complex) -> None:
        if isinstance(scale, complex) and not (operator.in_complex and operator.out_complex):
            raise TypeError(f"{operator!r} has a real side and cannot be scaled by the complex number {scale}.")
        super().__init__(
            operator.in_shape, operator.out_shape, in_complex=operator.in_complex,
            out_complex=operator.out_complex, dtype=operator.dtype, device=operator.device,
        )  # fmt: skip
        self.operator, self.scale, self.observed = operator, scale, operator.observed
        self.has_closed_form_prox = operator.has_closed_form_prox
        self.svd_by_lines = operator.svd_by_lines and not isinstance(scale, complex)
        n_in = math.prod(self.in_shape) * (1 + self.in_complex)
        n_out = math.prod(self.out_shape) * (1 + self.out_complex)
        self._small_input = n_in < n_out  # the smaller side is multiplied

    def forward(self, x: Tensor) -> Tensor:
        if self._small_input:
            return self.operator._apply(self.scale * x)
        return self.scale * self.operator._apply(x)

    def adjoint(self, y: Tensor) -> Tensor:
        if self._small_input:
            return self.scale.conjugate() * self.operator.H._apply(y)
        return self.operator.H._apply(self.scale.conjugate() * y)

    def prox(self, z: Tensor, y: Tensor, weight: Tensor | float) -> Tensor:
        # |s A x - y|^2 = |s|^2 |A x - y / s|^2, so a closed form of A stays one
        if self.scale == 0:
            return z + self.H(y)
        return self.operator.prox(z, y / self.scale, weight * abs(self.scale) ** 2)

    def pinv(self, y: Tensor) -> Tensor:
        return self.operator.pinv(y / self.scale) if self.scale != 0 else self.H(y)

    def svd(self) -> SVD:
        return self.operator.svd().scaled(self.scale) if isinstance(self.scale, int | float) else super().svd()


class Adjoint(LinearOperator):
    """``operator.H``."""

    def __init__(self, operator: LinearOperator) -> None:
        super().__init__(
            operator.out_shape, operator.in_shape, in_complex=operator.out_complex,
            out_complex=operator.in_complex, dtype=operator.dtype, device=operator.device,
        )  # fmt: skip
        self.operator = operator
        self.adjoint_as_backward = operator.adjoint_as_backward

    def forward(self, x: Tensor) -> Tensor:
        return self.operator.adjoint(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.operator._apply(y)

    @property
    def H(self) -> LinearOperator:
        return self.operator


class Affine(Operator):
    """``x -> L x + constant``: a linear operator seen through an affine change of image units.

    Args:
        linear: the linear part ``L``.
        constant: tensor of shape ``linear.out_shape``; taken as zero where ``linear`` observes nothing.

    Example:
        >>> from invdiff.operators import Affine, Identity
        >>> A = Affine(2.0 * Identity((1, 1, 2)), torch.ones(1, 1, 2))
        >>> A(torch.tensor([[[0.0, 3.0]]])).tolist()
        [[[1.0, 7.0]]]
    """

    def __init__(self, linear: LinearOperator, constant: Tensor) -> None:
        super().__init__(
            linear.in_shape, linear.out_shape, in_complex=linear.in_complex, out_complex=linear.out_complex,
            dtype=linear.dtype, device=linear.device,
        )  # fmt: skip
        if tuple(constant.shape) != linear.out_shape:
            raise ValueError(f"constant must have shape {linear.out_shape}, got {tuple(constant.shape)}.")
        self.linear, self.observed = linear, linear.observed
        self.constant = constant if linear.observed is None else constant * linear.observed

    def forward(self, x: Tensor) -> Tensor:
        return self.linear._apply(x) + self.constant

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        """The adjoint of the linear part; ``x`` is not used."""
        return self.linear.H(v)


class _WithAdjoint(torch.autograd.Function):
    """``forward(x)`` whose derivative is declared: backward = adjoint, jvp = forward, both differentiable."""

    @staticmethod
    def forward(x: Tensor, forward: Callable, adjoint: Callable) -> Tensor:
        return forward(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, ctx.forward_map, ctx.adjoint_map = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return _WithAdjoint.apply(grad, ctx.adjoint_map, ctx.forward_map), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        return _WithAdjoint.apply(tangent, ctx.forward_map, ctx.adjoint_map)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, x: Tensor, forward: Callable, adjoint: Callable) -> tuple[Tensor, int]:
        x = x.movedim(in_dims[0], 0)
        y = _WithAdjoint.apply(x.flatten(0, 1), forward, adjoint)
        return y.unflatten(0, x.shape[:2]), 0


# torch asks for the signature at every call; working it out takes a tenth of a millisecond, stored it takes none
_WithAdjoint.forward.__signature__ = inspect.signature(_WithAdjoint.forward)  # type: ignore[attr-defined]


def dot(u: Tensor, v: Tensor) -> Tensor:
    """Real inner product ``Re <u, v>`` over all entries.

    Example:
        >>> from invdiff.operators import dot
        >>> float(dot(torch.tensor([1 + 1j]), torch.tensor([1j])))  # Re (1 - i) i
        1.0
    """
    return (u.conj() * v).real.sum()


def _cast(value: Tensor, dtype: torch.dtype | None, device: torch.device | str | None) -> Tensor:
    if dtype is not None and value.is_complex():
        dtype = COMPLEX[dtype]
    elif not value.is_floating_point():
        dtype = None
    return value.to(dtype=dtype, device=device)


def _s(shape: Sequence[int]) -> str:
    return ", ".join(str(n) for n in shape)
