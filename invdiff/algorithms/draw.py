"""What every algorithm does around its loop: units, streams, micro-batches, accounting."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from invdiff.measurement import Measurement
from invdiff.posterior import Posterior
from invdiff.priors.denoiser import Counted, Prior
from invdiff.random import SampleStreams

Callback = Callable[..., None]
"""Called as ``callback(step, n_steps, **state)`` after each step of the outer loop; ``state`` holds the
algorithm's variables in model units, and ``samples``, the range of sample indices in this micro-batch."""


class Loop(Protocol):
    """An algorithm's loop: denoiser, measurement in model units, streams, callback to samples in model units."""

    def __call__(self, D: Counted, measurement: Measurement, streams: SampleStreams, callback: Callback) -> Tensor: ...


class DivergenceError(ArithmeticError):
    """An iteration produced a non-finite image."""


def draw(
    algorithm: Any,
    loop: Loop,
    prior: Prior,
    measurement: Measurement,
    *,
    n_samples: int,
    seed: int,
    batch_size: int | None,
    callback: Callback | None,
) -> Posterior:
    """Run ``loop`` for all samples and pack the result.

    Args:
        n_samples: posterior samples, at least 1.
        seed: integer; sample i depends on (seed, measurement.item, i) only.
        batch_size: samples at a time (default: all). Out of memory halves it; the samples stay the same.

    Raises:
        ValueError: prior and measurement do not fit (image size, channels, precision, device).
        DivergenceError: the iteration left the finite numbers.
    """
    if n_samples < 1 or (batch_size is not None and batch_size < 1):
        raise ValueError(f"n_samples and batch_size must be at least 1, got {n_samples} and {batch_size}.")
    problem = prior.in_model_units(measurement)
    begun, D = time.monotonic(), Counted(prior)
    parts: list[Tensor] = []
    start, size = 0, batch_size or n_samples
    while start < n_samples:
        indices = range(start, min(start + size, n_samples))

        def report(step: int, n_steps: int, indices: range = indices, **state: Any) -> None:
            if callback is not None:
                callback(step, n_steps, samples=indices, **state)

        counted = D.n
        try:
            parts.append(loop(D, problem, SampleStreams(seed, indices, measurement.item), report))
        except (torch.cuda.OutOfMemoryError, MemoryError):
            if len(indices) == 1:
                raise
            D.n, size = counted, len(indices) // 2
            continue
        start = indices.stop
    return Posterior(
        samples=prior.to_image(torch.cat(parts), measurement),
        units=measurement.units,
        algorithm=repr(algorithm),
        prior=f"{prior.info.name} {prior.info.sha256[:12]}".strip(),
        seed=seed,
        item=measurement.item,
        nfe=D.n / n_samples,
        seconds=time.monotonic() - begun,
        metadata=dict(measurement.metadata),
    )


def check_finite(x: Tensor, step: int, cause: str) -> None:
    """Raise :class:`DivergenceError` naming the step, the sample (within the micro-batch) and the likely cause."""
    if not torch.isfinite(x.sum()):
        bad = (~torch.isfinite(x.flatten(1))).any(1).nonzero()
        which = int(bad[0]) if len(bad) else 0
        raise DivergenceError(f"Sample {which} of this batch is not finite at step {step}. Likely cause: {cause}")


def check_positive(algorithm: Any, *names: str) -> None:
    """Raise ValueError unless the named fields are positive numbers."""
    for name in names:
        value = getattr(algorithm, name)
        if not (isinstance(value, int | float) and value > 0):
            raise ValueError(f"{type(algorithm).__name__}: {name} must be positive, got {value!r}.")
