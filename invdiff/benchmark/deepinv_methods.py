"""deepinv's reconstructions as methods of a plan, to compare with.

    [[method]]
    name = "deepinv's DPS"
    algorithm = "invdiff.benchmark.deepinv_methods:DPS"
    tune = { weight = [10.0, 100.0] }

The operator is handed over by :func:`invdiff.operators.interop.to_deepinv`, the denoiser by
:func:`invdiff.priors.interop.to_deepinv`. Images are in deepinv's units, 0 to 1 for the prior's -1 to +1, and operator,
data and noise are divided by the operator's norm in these units, as deepinv's own operators have norm 1. Samples are
drawn one by one, each with a seed of its own made from the seed, the item and its number, and the global random state
is as before afterwards.

Needs deepinv (``pip install invdiff[deepinv]``), linear operators and white Gaussian noise. deepinv's version counts in
a result's key.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from invdiff.algorithms.draw import check_positive
from invdiff.measurement import Measurement
from invdiff.operators.base import LinearOperator
from invdiff.operators.interop import to_deepinv as physics_of
from invdiff.posterior import Posterior
from invdiff.priors.denoiser import Counted, Prior
from invdiff.priors.interop import to_deepinv as denoiser_of
from invdiff.random import SampleStreams

VERSION = importlib.metadata.version("deepinv") if importlib.util.find_spec("deepinv") else ""


def require_deepinv(method: Any) -> None:
    """Raises ImportError if it is missing."""
    if not VERSION:
        name = f"{type(method).__module__}:{type(method).__name__}"
        raise ImportError(f"{name} needs deepinv: pip install 'invdiff[deepinv]'.")


@dataclass(frozen=True, kw_only=True)
class DPS:
    """deepinv's DPS, ``deepinv.sampling.DPS`` on its VP schedule with its DDPM solver.

    Attributes:
        n_steps: num_steps.
        weight: of the guidance.
        guidance: "norm", as in the paper, or "annealed".
    """

    n_steps: int = 1000
    weight: float = 1.0
    guidance: str = "norm"
    version: ClassVar[str] = VERSION

    def __post_init__(self) -> None:
        require_deepinv(self)
        check_positive(self, "n_steps", "weight")

    def __call__(
        self,
        prior: Prior,
        measurement: Measurement,
        *,
        n_samples: int = 1,
        seed: int = 0,
        batch_size: int | None = None,
    ) -> Posterior:
        """Same call as an algorithm. ``batch_size`` is not used: samples are drawn one by one."""
        from deepinv import sampling

        def reconstruct(problem: Problem, denoiser: Any, seed: int) -> Tensor:
            A = problem.A
            model = sampling.DPS(
                denoiser, num_steps=self.n_steps, weight=self.weight, guidance=self.guidance, device=A.device,
                dtype=A.dtype, rng=torch.Generator(A.device).manual_seed(seed),
            )  # fmt: skip
            return model(problem.y, problem.physics(), x_init=(1, *A.in_shape))

        return draw(self, reconstruct, prior, measurement, n_samples=n_samples, seed=seed)


@dataclass(frozen=True, kw_only=True)
class DiffPIR:
    """deepinv's DiffPIR, ``deepinv.sampling.DiffPIR``.

    Attributes:
        n_steps: max_iter.
        lam: lambda_.
        zeta: how much of the noise is new.
    """

    n_steps: int = 100
    lam: float = 7.0
    zeta: float = 0.1
    version: ClassVar[str] = VERSION

    def __post_init__(self) -> None:
        require_deepinv(self)
        check_positive(self, "n_steps", "lam", "zeta")

    def __call__(
        self,
        prior: Prior,
        measurement: Measurement,
        *,
        n_samples: int = 1,
        seed: int = 0,
        batch_size: int | None = None,
    ) -> Posterior:
        """Same call as an algorithm. ``batch_size`` is not used: samples are drawn one by one."""
        from deepinv import sampling
        from deepinv.optim.data_fidelity import L2

        def reconstruct(problem: Problem, denoiser: Any, seed: int) -> Tensor:
            model = sampling.DiffPIR(
                denoiser, L2(), sigma=problem.sigma, max_iter=self.n_steps, zeta=self.zeta, lambda_=self.lam,
                device=problem.A.device,
            )  # fmt: skip
            return model(problem.y, problem.physics(), seed=seed)

        return draw(self, reconstruct, prior, measurement, n_samples=n_samples, seed=seed)


@dataclass(frozen=True, kw_only=True)
class DDRM:
    """deepinv's DDRM, ``deepinv.sampling.DDRM``, for operators with a real, complete V in their SVD.

    Attributes:
        n_steps: equally spaced levels from 1 to 0.
        eta, etab: the paper's.
    """

    n_steps: int = 100
    eta: float = 0.85
    etab: float = 1.0
    version: ClassVar[str] = VERSION

    def __post_init__(self) -> None:
        require_deepinv(self)
        check_positive(self, "n_steps")

    def __call__(
        self,
        prior: Prior,
        measurement: Measurement,
        *,
        n_samples: int = 1,
        seed: int = 0,
        batch_size: int | None = None,
    ) -> Posterior:
        """Same call as an algorithm. ``batch_size`` is not used: samples are drawn one by one.

        Raises:
            TypeError: the operator's SVD is complex, or lacks a part of the null space.
        """
        from deepinv import sampling

        def reconstruct(problem: Problem, denoiser: Any, seed: int) -> Tensor:
            model = sampling.DDRM(denoiser, sigmas=np.linspace(1, 0, self.n_steps), eta=self.eta, etab=self.etab)
            return model(problem.y, problem.decomposed(), seed=seed)

        return draw(self, reconstruct, prior, measurement, n_samples=n_samples, seed=seed)


@dataclass(frozen=True, kw_only=True)
class TV:
    """deepinv's TV: ``TVPrior`` with FISTA, ``min nll(x) + weight TV(x / image_scale)`` as
    :class:`invdiff.classical.TV`.

    Attributes:
        weight: lambda.
        n_steps: iterations of FISTA.
        n_inner: largest number of iterations of the proximal operator of TV in each.
    """

    weight: float
    n_steps: int = 200
    n_inner: int = 50
    point: ClassVar[bool] = True
    version: ClassVar[str] = VERSION

    def __post_init__(self) -> None:
        require_deepinv(self)
        check_positive(self, "weight", "n_steps", "n_inner")

    def __call__(
        self,
        prior: Prior | None,
        measurement: Measurement,
        *,
        n_samples: int = 1,
        seed: int = 0,
        batch_size: int | None = None,
    ) -> Posterior:
        """Same call as an algorithm; ``prior`` is not used and ``n_samples`` must be 1."""
        from deepinv.optim import FISTA, TVPrior
        from deepinv.optim.data_fidelity import L2

        if n_samples != 1:
            raise ValueError(f"TV is a point estimate: n_samples must be 1, got {n_samples}.")

        def reconstruct(problem: Problem, denoiser: Any, seed: int) -> Tensor:
            # sigma^2 times the objective, whose data term then has a gradient of Lipschitz constant |A|^2 = 1
            model = FISTA(
                data_fidelity=L2(), prior=TVPrior(n_it_max=self.n_inner), lambda_reg=self.weight * problem.sigma**2,
                stepsize=0.95, max_iter=self.n_steps, early_stop=True, thres_conv=1e-6,
            )  # fmt: skip
            return model(problem.y, problem.physics())

        return draw(self, reconstruct, None, measurement, n_samples=1, seed=seed)


class Problem:
    """A measurement in deepinv's units.

    Attributes:
        A: operator of norm 1 on images in [0, 1].
        y: its data, (1, \\*out_shape).
        sigma: their noise.
    """

    def __init__(self, method: Any, m: Measurement, lo: float, hi: float) -> None:
        precision = m.noise.precision(m.y)
        if m.linear is None or not isinstance(precision, float):
            raise TypeError(
                f"deepinv's {type(method).__name__} is given linear operators and white Gaussian noise only, "
                f"got {m.A!r} and {m.noise!r}."
            )
        scaled: LinearOperator = (m.image_scale * (hi - lo)) * m.linear
        norm = float(scaled.norm())
        self.A: LinearOperator = (1 / norm) * scaled
        black = torch.full(m.A.in_shape, m.image_scale * lo, dtype=m.A.dtype, device=m.A.device)
        self.y, self.sigma = ((m.linear_data - m.linear(black)) / norm)[None], precision**-0.5 / norm

    def physics(self) -> Any:
        """deepinv's physics, with its noise model."""
        from deepinv.physics import GaussianNoise

        physics = physics_of(self.A)
        physics.noise_model = GaussianNoise(self.sigma)
        return physics

    def decomposed(self) -> Any:
        """The same by its SVD."""
        from deepinv.physics import DecomposablePhysics, GaussianNoise

        svd, A = self.A.svd(), self.A
        x = torch.randn((1, *A.in_shape), generator=torch.Generator().manual_seed(0), dtype=A.dtype).to(A.device)
        c = svd.coefficients(x)
        if c.is_complex() or not torch.allclose(svd.image(c), x, atol=1e-3):
            raise TypeError(f"deepinv's DDRM needs a real SVD with all of V; that of {A!r} is complex, or has not all.")
        return DecomposablePhysics(
            U=lambda c: A(svd.image(c / svd.singular_values.clamp(min=1e-12))), U_adjoint=svd.data_coefficients,
            V=svd.image, V_adjoint=svd.coefficients, mask=svd.singular_values[None], img_size=A.in_shape,
            noise_model=GaussianNoise(self.sigma), device=A.device,
        )  # fmt: skip


def draw(
    method: Any,
    reconstruct: Callable[[Problem, Any, int], Tensor],
    prior: Prior | None,
    measurement: Measurement,
    *,
    n_samples: int,
    seed: int,
) -> Posterior:
    """Reconstruct once for each sample and pack the images, in physical units."""
    m = measurement
    if prior is not None:
        prior.in_model_units(m)  # do they fit?
    lo, hi = (0.0, 1.0) if prior is None else prior.info.value_range
    D, begun = None if prior is None else Counted(prior), time.monotonic()
    problem, denoiser = Problem(method, m, lo, hi), None if D is None else denoiser_of(D)
    streams = SampleStreams(seed, range(n_samples), m.item).rand((1,)).flatten()
    samples = []
    for number in streams.tolist():
        with _own_randomness():
            samples.append(reconstruct(problem, denoiser, 1 + int(number * 2**31)).detach())  # deepinv ignores seed 0
    v = torch.cat(samples).to(m.A.dtype)
    if not torch.isfinite(v).all():
        raise ArithmeticError(f"deepinv's {type(method).__name__} left the finite numbers: {method!r}.")
    return Posterior(
        samples=m.image_scale * (lo + (hi - lo) * v),
        units=m.units,
        algorithm=f"deepinv {VERSION} {method!r}",
        prior="" if prior is None else f"{prior.info.name} {prior.info.sha256[:12]}".strip(),
        seed=seed,
        item=m.item,
        nfe=0 if D is None else D.n / n_samples,
        seconds=time.monotonic() - begun,
        metadata=dict(m.metadata),
    )


@contextlib.contextmanager
def _own_randomness() -> Iterator[None]:
    """Leave torch's and numpy's global random state as it was."""
    state = np.random.get_state()  # noqa: NPY002 (deepinv's DDRM seeds it)
    try:
        with torch.random.fork_rng():
            yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
