"""DAPS: decoupled annealing posterior sampling.

Zhang, Chu, Berner, Meng, Anandkumar, Song: "Improving diffusion inverse problem solving with decoupled noise
annealing", CVPR 2025, arXiv 2407.01521, algorithm 1 (pixel space).

Deviations from the paper and the released code:

1. The default kernel draws ``x0`` from the inner conditional exactly (linear operators) instead of by 100
   Langevin steps; ``Langevin`` is the paper's kernel, and the presets use it.
2. The likelihood is the measurement's own. The released code replaces it by ``exp(-|A x - y|^2 / tau^2)`` with
   tau = 0.01 whatever the noise: ``Langevin(tau=0.01)``, as in the presets.
3. The defaults are 100 levels with one ODE step each, down to 0.01, instead of 200 x 5 down to 0.1. For a
   Gaussian prior and a blur the law of the output is known exactly (tests/algorithms/test_daps.py): the
   variance where the data are silent is 1.7 times the posterior's with five ODE steps and 1.15 times with one,
   which ends nearer the mean E[x0 | x_t] that the conditional's Gaussian is meant to be centred on. The last
   level is what an exact draw leaves as noise in those directions; the released code hides it by its decaying
   step size. The presets keep the published values.
4. Unstable Langevin steps and non-finite images raise; the released code returns zeros.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from invdiff.algorithms.draw import Callback, check_finite, check_positive, draw
from invdiff.algorithms.kernels import Conditional, Kernel, Langevin
from invdiff.measurement import Measurement
from invdiff.posterior import Posterior
from invdiff.priors.denoiser import Counted, Prior
from invdiff.priors.schedules import karras_sigmas
from invdiff.random import SampleStreams


@dataclass(frozen=True, kw_only=True)
class DAPS:
    """Decoupled annealing posterior sampling. Label: *heuristic* (over-dispersed where data are silent).

    p(x0 | x_t) is replaced by an isotropic Gaussian of width sigma_t around the end of the probability-flow
    ODE; the posterior is not reached even with a perfect denoiser. Costs ``n_anneal * n_ode`` denoiser
    evaluations per sample and no backpropagation.

    Attributes:
        n_anneal: N_A, annealing levels.
        n_ode: N_ODE, Euler steps of the probability-flow ODE per level.
        sigma_max, sigma_min: first and last non-zero end of the annealing grid (rho = 7).
        sigma_ode: where the ODE stops.
        kernel: draws x0 given x_t and y.
    """

    n_anneal: int = 100
    n_ode: int = 1
    sigma_max: float = 100.0
    sigma_min: float = 0.01
    sigma_ode: float = 0.005
    kernel: Kernel = field(default_factory=Conditional)
    bibtex: ClassVar[str] = """@inproceedings{zhang2025improving,
  author    = {Zhang, Bingliang and Chu, Wenda and Berner, Julius and Meng, Chenlin and Anandkumar, Anima
               and Song, Yang},
  title     = {Improving diffusion inverse problem solving with decoupled noise annealing},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2025},
  note      = {arXiv:2407.01521}
}"""

    def __post_init__(self) -> None:
        check_positive(self, "n_anneal", "n_ode", "sigma_max", "sigma_min", "sigma_ode")
        if not self.sigma_ode < self.sigma_min < self.sigma_max:
            raise ValueError(f"DAPS needs sigma_ode < sigma_min < sigma_max, got {self}.")

    @classmethod
    def released_code(cls, task: str) -> DAPS:
        """DAPS-1K as configured in zhangbingliang2019/DAPS@098df6b7 (pixel space, Langevin; images in [-1, 1],
        noise 0.05). Tasks: super-resolution, box-inpainting, random-inpainting, gaussian-blur, motion-blur,
        phase-retrieval, nonlinear-blur, hdr."""
        if task not in _STEP_SIZE:
            raise KeyError(f"No preset for {task!r}; there are {', '.join(_STEP_SIZE)}.")
        n_steps = 200 if task == "nonlinear-blur" else 100
        kernel = Langevin(n_steps=n_steps, step_size=_STEP_SIZE[task], step_decay=0.01, tau=0.01)
        return cls(n_anneal=200, n_ode=5, sigma_max=100.0, sigma_min=0.1, sigma_ode=0.01, kernel=kernel)

    @torch.no_grad()
    def __call__(
        self,
        prior: Prior,
        measurement: Measurement,
        *,
        n_samples: int = 1,
        seed: int = 0,
        batch_size: int | None = None,
        callback: Callback | None = None,
    ) -> Posterior:
        """Draw samples. See :func:`invdiff.algorithms.draw.draw` for arguments and errors."""
        return draw(
            self, self._loop, prior, measurement,
            n_samples=n_samples, seed=seed, batch_size=batch_size, callback=callback,
        )  # fmt: skip

    def _loop(self, D: Counted, measurement: Measurement, streams: SampleStreams, callback: Callback) -> Tensor:
        prior, N = D.prior, self.n_anneal
        S = [*karras_sigmas(N, self.sigma_min, self.sigma_max).tolist()[:-1], 0.0]
        self.kernel.check(measurement, S[:-1])
        # u_0 ~ N(0, S_0^2 I)
        u = S[0] * streams.randn(prior.shape, dtype=prior.dtype, device=prior.device)
        for i in range(N):
            # m: probability-flow ODE du/ds = (u - D(u, s)) / s from S_i down to sigma_ode, Euler
            s = karras_sigmas(self.n_ode, self.sigma_ode, S[i]).tolist()
            m = u
            for k in range(self.n_ode):
                m = m + (s[k + 1] - s[k]) / s[k] * (m - D(m, s[k]))
            # x0 ~ N(x0; m, S_i^2 I) p(y | x0)
            x0 = self.kernel(m, S[i], measurement, streams, i / (N + 1))
            # u_(i+1) ~ N(x0, S_(i+1)^2 I)
            u = (
                x0 + S[i + 1] * streams.randn(prior.shape, dtype=prior.dtype, device=prior.device)
                if S[i + 1] > 0
                else x0
            )
            check_finite(u, i, "a kernel step that is too long for this operator and noise.")
            callback(i + 1, N, sigma=S[i], x0=x0)
        return u


# eta_0 of the Langevin kernel, configs/task/*.yaml ("pixel" group) of the released code
_STEP_SIZE = {
    "super-resolution": 1e-4,
    "box-inpainting": 5e-5,
    "random-inpainting": 1e-4,
    "gaussian-blur": 1e-4,
    "motion-blur": 5e-5,
    "phase-retrieval": 5e-5,
    "nonlinear-blur": 1e-5,
    "hdr": 2e-5,
}
