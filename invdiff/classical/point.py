"""What the classical reconstructions share: one image packed as a posterior of one sample."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from invdiff.measurement import Measurement
from invdiff.operators.base import LinearOperator
from invdiff.posterior import Posterior


def point_estimate(
    method: Any, reconstruct: Callable[[], Tensor], measurement: Measurement, *, n_samples: int, seed: int
) -> Posterior:
    """Time ``reconstruct``, which gives one image (\\*in_shape, physical units), and pack the image.

    Raises:
        ValueError: ``n_samples`` is not 1; before any work.
    """
    if n_samples != 1:
        raise ValueError(f"{type(method).__name__} is a point estimate: n_samples must be 1, got {n_samples}.")
    begun = time.monotonic()
    x = reconstruct()
    return Posterior(
        samples=x[None],
        units=measurement.units,
        algorithm=repr(method),
        seed=seed,
        item=measurement.item,
        seconds=time.monotonic() - begun,
        metadata=dict(measurement.metadata),
    )


def require_linear(method: Any, measurement: Measurement) -> LinearOperator:
    """The measurement's operator, if linear; TypeError otherwise."""
    if not isinstance(measurement.A, LinearOperator):
        raise TypeError(f"{type(method).__name__} needs a linear operator, got {measurement.A!r}.")
    return measurement.A


class Whitened(LinearOperator):
    """``P^(1/2) A`` with the noise's precision P: data of unit variance. :attr:`data` is ``P^(1/2) y``.

    Raises:
        TypeError: the measurement's operator is not linear.
    """

    def __init__(self, method: Any, measurement: Measurement) -> None:
        A, y = require_linear(method, measurement), measurement.y
        super().__init__(
            A.in_shape, A.out_shape, in_complex=A.in_complex, out_complex=A.out_complex, dtype=A.dtype, device=A.device
        )
        precision = measurement.noise.precision(y)
        self.A, self.root = A, precision**0.5
        self.data = self.root * y

    def forward(self, x: Tensor) -> Tensor:
        return self.root * self.A(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.A.H(self.root * y)


def require_non_negative(method: Any, A: LinearOperator) -> tuple[Tensor, Tensor]:
    """Row sums ``A 1`` and column sums ``A^H 1`` of an operator with weights that are not negative.

    Raises:
        TypeError: complex images or data, or negative sums.
    """
    if A.in_complex or A.out_complex:
        raise TypeError(f"{type(method).__name__} needs real images and data, got {A!r}.")
    rows = A(torch.ones(A.in_shape, dtype=A.dtype, device=A.device))
    columns = A.H(torch.ones(A.out_shape, dtype=A.dtype, device=A.device))
    if min(float(rows.min() / rows.abs().max()), float(columns.min() / columns.abs().max())) < -1e-5:
        raise TypeError(f"{type(method).__name__} needs an operator without negative weights, got {A!r}.")
    return rows.clamp(min=0), columns.clamp(min=0)
