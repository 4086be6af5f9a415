"""What the classical reconstructions share: one image packed as a posterior of one sample."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

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
