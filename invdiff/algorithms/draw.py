"""What every algorithm does around its loop: units, streams, warm start, micro-batches, accounting."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Concatenate

import torch
from torch import Tensor

from invdiff.measurement import Measurement
from invdiff.posterior import Posterior
from invdiff.priors.denoiser import Counted, Prior
from invdiff.random import SampleStreams

Callback = Callable[..., None]
"""Called as ``callback(step, n_steps, **state)`` after each step of the outer loop; ``state`` holds the
algorithm's variables in model units, and ``samples``, the range of sample indices in this micro-batch."""


class DivergenceError(ArithmeticError):
    """An iteration produced a non-finite image."""


class Run:
    """One micro-batch of samples, as an algorithm's loop sees it. All images are in model units.

    Attributes:
        denoise: ``D(u, sigma)``, counting its evaluations.
        measurement: the data, as a function of the model's images.
        n: samples in this micro-batch; every state has this leading dimension.
        streams: the samples' random streams.
    """

    def __init__(
        self,
        denoise: Counted,
        measurement: Measurement,
        streams: SampleStreams,
        warm: tuple[Tensor, float] | None,
        callback: Callback,
    ) -> None:
        self.denoise, self.measurement, self.streams = denoise, measurement, streams
        self.prior, self.n = denoise.prior, len(streams)
        self._warm, self._callback = warm, callback

    def randn(self, shape: Sequence[int] | None = None) -> Tensor:
        """Standard normal numbers, (n, \\*shape), by default shaped like an image."""
        p = self.prior
        return self.streams.randn(p.shape if shape is None else shape, dtype=p.dtype, device=p.device)

    def start(self, sigmas: Sequence[float]) -> tuple[Tensor, list[float]]:
        """The first state and the levels to go through, the last being 0.

        Cold: ``sigmas`` and ``N(0, sigmas[0]^2 I)``. Warm: the levels up to the start's, and the start plus noise.
        """
        levels = [float(s) for s in sigmas]
        if self._warm is None:
            return levels[0] * self.randn(), levels
        image, sigma = self._warm
        levels = [s for s in levels if s <= sigma] if levels[-2] < sigma else levels[-2:]
        return image + levels[0] * self.randn(), levels

    @property
    def start_image(self) -> Tensor | None:
        """The warm start, for algorithms without noise levels to enter."""
        return None if self._warm is None else self._warm[0]

    def report(self, step: int, n_steps: int, u: Tensor, cause: str, **state: Any) -> None:
        """Check that the state ``u`` is finite (``cause``: the likely reason if not) and call the user's callback."""
        check_finite(u, step, cause)
        self._callback(step, n_steps, **state)


def sampler(
    *, backprop: bool = False
) -> Callable[[Callable[[Any, Run], Tensor]], Callable[Concatenate[Any, Prior, Measurement, ...], Posterior]]:
    """Turn an algorithm's loop ``(self, run) -> samples`` into its public call.

    Args:
        backprop: the loop differentiates through the network. Otherwise it runs without autograd.
    """

    def decorate(loop: Callable[[Any, Run], Tensor]) -> Callable[..., Posterior]:
        def call(
            self: Any,
            prior: Prior,
            measurement: Measurement,
            *,
            n_samples: int = 1,
            seed: int = 0,
            batch_size: int | None = None,
            start: Tensor | None = None,
            start_sigma: float | None = None,
            callback: Callback | None = None,
        ) -> Posterior:
            with torch.set_grad_enabled(backprop):
                return draw(
                    self, functools.partial(loop, self), prior, measurement, n_samples=n_samples, seed=seed,
                    batch_size=batch_size, start=start, start_sigma=start_sigma, callback=callback,
                )  # fmt: skip

        call.__doc__ = "Draw samples. See :func:`invdiff.algorithms.draw.draw` for arguments and errors."
        call.__name__, call.__qualname__, call.__module__ = "__call__", loop.__qualname__, loop.__module__
        call.backprop = backprop  # type: ignore[attr-defined]
        return call

    return decorate


def draw(
    algorithm: Any,
    loop: Callable[[Run], Tensor],
    prior: Prior,
    measurement: Measurement,
    *,
    n_samples: int,
    seed: int,
    batch_size: int | None,
    start: Tensor | None,
    start_sigma: float | None,
    callback: Callback | None,
) -> Posterior:
    """Run ``loop`` for all samples and pack the result.

    Args:
        n_samples: posterior samples, at least 1.
        seed: integer; sample i depends on (seed, measurement.item, i) only.
        batch_size: samples at a time (default: all). Out of memory halves it; the samples stay the same.
        start: an image to start from instead of pure noise, shape ``measurement.A.in_shape``, physical units.
        start_sigma: noise level (model units) at which the chain enters; by default :func:`start_level`.
        callback: see :data:`Callback`.

    Raises:
        ValueError: prior and measurement do not fit (image size, channels, precision, device).
        DivergenceError: the iteration left the finite numbers.
    """
    if n_samples < 1 or (batch_size is not None and batch_size < 1):
        raise ValueError(f"n_samples and batch_size must be at least 1, got {n_samples} and {batch_size}.")
    problem = prior.in_model_units(measurement)
    warm = None
    if start is not None:
        if tuple(start.shape) != measurement.A.in_shape or not torch.isfinite(start).all():
            raise ValueError(
                f"start must be one finite image of shape {measurement.A.in_shape}, got {tuple(start.shape)}."
            )
        u = prior.from_image(start, measurement)
        warm = u, start_level(problem, u) if start_sigma is None else float(start_sigma)
    elif start_sigma is not None:
        raise ValueError("start_sigma is the noise level of a start= image; no image was given.")
    begun, D = time.monotonic(), Counted(prior)
    parts: list[Tensor] = []
    first, size = 0, batch_size or n_samples
    while first < n_samples:
        indices = range(first, min(first + size, n_samples))

        def report(step: int, n_steps: int, indices: range = indices, **state: Any) -> None:
            if callback is not None:
                callback(step, n_steps, samples=indices, **state)

        counted = D.n
        try:
            u = loop(Run(D, problem, SampleStreams(seed, indices, measurement.item), warm, report))
            parts.append(prior.to_image(u.detach(), measurement))
        except (MemoryError, RuntimeError) as error:  # torch's allocator for a CPU raises a plain RuntimeError
            if len(indices) == 1 or not _out_of_memory(error):
                raise
            D.n, size = counted, len(indices) // 2
            continue
        first = indices.stop
    return Posterior(
        samples=torch.cat(parts),
        units=measurement.units,
        algorithm=repr(algorithm),
        prior=f"{prior.info.name} {prior.info.sha256[:12]}".strip(),
        seed=seed,
        item=measurement.item,
        nfe=D.n / n_samples,
        seconds=time.monotonic() - begun,
        metadata=dict(measurement.metadata),
    )


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def start_level(measurement: Measurement, u: Tensor, n_probes: int = 8) -> float:
    """The white noise level whose residual would be as large as that of the image ``u``.

    An error ``e`` of standard deviation s per pixel makes ``chi2 = 1 + s^2 q`` with ``q = E |A z|^2 / (m sigma^2)``
    for ``z ~ N(0, I)``, estimated with ``n_probes`` draws. Errors that the operator does not see do not count, so
    a start that is wrong mostly in the null space needs a larger level, given by hand. A start made from the data
    has taken in some of their noise, which lowers chi2 below 1 by as much as it adds to the error: the distance from
    1 counts, and no less than what chi2 of the truth itself scatters by.
    """
    m = measurement
    z = torch.randn((n_probes, *u.shape), generator=torch.Generator().manual_seed(0), dtype=u.dtype).to(u.device)
    A = m.linear
    Az = A(z) if A is not None else torch.stack([torch.func.jvp(m.A, (u,), (v,))[1] for v in z])
    q = m.mean_over_data(m.noise.precision(m.y) * Az.abs().square()).mean()
    q = q / (2 if m.A.out_complex else 1)
    scatter = ((1 if m.A.out_complex else 2) / m.n_data) ** 0.5
    return float(((m.chi2(u) - 1).abs().clamp(min=scatter) / q).sqrt())


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


def check_unit_interval(algorithm: Any, *names: str) -> None:
    """Raise ValueError unless the named fields lie in [0, 1]."""
    for name in names:
        value = getattr(algorithm, name)
        if not (isinstance(value, int | float) and 0 <= value <= 1):
            raise ValueError(f"{type(algorithm).__name__}: {name} must lie in [0, 1], got {value!r}.")


def check_linear(algorithm: Any, measurement: Measurement, *, gaussian: bool = False) -> None:
    """Raise TypeError unless the operator is linear and (``gaussian``) the noise has one standard deviation."""
    name = type(algorithm).__name__
    if measurement.linear is None:
        raise TypeError(
            f"{name} needs a linear operator, got {measurement.A!r}. DPS, DAPS(Langevin) and RED-Diff do not."
        )
    if gaussian and not isinstance(measurement.noise.precision(measurement.y), float):
        raise TypeError(
            f"{name} needs noise of one standard deviation, got {measurement.noise!r}. "
            "Replace it by a GaussianNoise of typical size, or use one that weights the data (DDS, DiffPIR, DAPS)."
        )


def preset(table: Mapping[str, Any], task: str) -> Any:
    """An entry of a table of published settings. Raises KeyError naming the tasks there are."""
    if task not in table:
        raise KeyError(f"No preset for {task!r}; there are {', '.join(table)}.")
    return table[task]
