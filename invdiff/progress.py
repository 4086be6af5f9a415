"""A progress bar for algorithms, in a terminal and in a notebook."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def progress_bar(title: str = "") -> Callable[..., None]:
    """A callback for algorithms that shows a bar with the time left, one per micro-batch of samples.

    Args:
        title: in front of the bar.

    Example:
        >>> from invdiff import GaussianNoise, Measurement
        >>> from invdiff.algorithms import DDS
        >>> from invdiff.operators import Identity
        >>> from invdiff.priors import GaussianPrior, StationaryCovariance
        >>> from invdiff.progress import progress_bar
        >>> prior = GaussianPrior(torch.zeros(1, 4, 4), StationaryCovariance(torch.ones(1, 4, 4)))
        >>> m = Measurement(torch.ones(1, 4, 4), Identity((1, 4, 4)), GaussianNoise(1.0))
        >>> DDS(n_steps=5)(prior, m, n_samples=2, callback=progress_bar("CT")).nfe
        5.0
    """
    from tqdm.auto import tqdm

    bar = None

    def callback(step: int, n_steps: int, *, samples: range, **state: Any) -> None:
        nonlocal bar
        if bar is None:
            which = f"samples {samples.start + 1}-{samples.stop}" if len(samples) > 1 else f"sample {samples.stop}"
            name = f"{title}, {which}" if title else which
            bar = tqdm(total=n_steps, desc=name, unit="step", dynamic_ncols=True)
        bar.update(step - bar.n)
        if step == n_steps:
            bar.close()
            bar = None

    return callback
