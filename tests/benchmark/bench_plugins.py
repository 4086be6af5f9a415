"""Problems, priors and methods that the tests of the engine name in their plans."""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from invdiff import GaussianNoise, Measurement, Posterior
from invdiff.operators import Identity
from invdiff.priors import GaussianPrior, StationaryCovariance
from invdiff.random import SampleStreams

SHAPE = (1, 8, 8)


def problem(*, item: int = 0, noise: float = 0.1) -> Measurement:
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(item))
    return Measurement.simulate(
        x,
        Identity(SHAPE),
        GaussianNoise(noise),
        seed=1000 + item,
        item=f"item {item}",
        metadata={"patient": f"p{item // 2}"},
    )


def file_problem(*, path: Path) -> Measurement:
    return Measurement.load(path)


def other_size() -> Measurement:
    return Measurement(torch.zeros(1, 4, 4), Identity((1, 4, 4)), GaussianNoise(0.1))


class Mine(Identity):
    """An operator that no file can name."""


def unsaveable() -> Measurement:
    return Measurement(torch.zeros(SHAPE), Mine(SHAPE), GaussianNoise(0.1), reference=torch.randn(SHAPE))


def prior() -> GaussianPrior:
    return GaussianPrior(torch.zeros(SHAPE), StationaryCovariance.power_law(SHAPE))


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Noise around the data, after some seconds; says in a journal that it ran.

    Attributes:
        seconds: how long it takes.
        journal: file to add a line to, when done.
        error: what to raise, by name.
        death: how to end the process: "exit", "kill" or "segfault".
        hang: seconds in one call that ignores everything.
        fails: how often to raise OSError before it works; counted in files next to the journal.
    """

    seconds: float = 0.0
    journal: str = ""
    error: str = ""
    death: str = ""
    hang: float = 0.0
    fails: int = 0

    def __call__(
        self, prior: Any, m: Measurement, *, n_samples: int, seed: int, batch_size: int | None = None
    ) -> Posterior:
        if self.death == "exit":
            os._exit(3)
        if self.death == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.death == "segfault":
            faulthandler._sigsegv()
        if self.error:
            raise {"ValueError": ValueError, "OSError": OSError, "RuntimeError": RuntimeError}[self.error]("on purpose")
        if self.fails:
            count = Path(self.journal).with_suffix(".count")
            n = len(count.read_text()) if count.exists() else 0
            if n < self.fails:
                count.write_text("x" * (n + 1))
                raise OSError("not yet")
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            time.sleep(0.01)
        if self.hang:
            import ctypes

            ctypes.PyDLL(None).usleep(int(self.hang * 1e6))  # holds the interpreter's lock
        samples = m.y + SampleStreams(seed, range(n_samples), m.item).randn(SHAPE) * 0.1
        if self.journal:
            with Path(self.journal).open("a") as f:
                f.write(f"{m.item} {seed} {os.getpid()}\n")
        return Posterior(samples=samples, algorithm=repr(self), seed=seed, item=m.item, nfe=1)


@dataclass(frozen=True, kw_only=True)
class Point(Draw):
    """One image."""

    point = True


@dataclass(frozen=True, kw_only=True)
class Shrink:
    """The data times a weight: of white images of variance 1, best at 1 / (1 + noise^2)."""

    weight: float = 1.0
    point = True

    def __call__(self, prior: Any, m: Measurement, **_: Any) -> Posterior:
        if self.weight < 0:
            raise ValueError("on purpose")
        return Posterior(samples=self.weight * m.y[None], item=m.item)
