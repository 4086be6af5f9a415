"""DPS: diffusion posterior sampling.

Chung, Kim, Mccann, Klasky, Ye: "Diffusion posterior sampling for general noisy inverse problems", ICLR 2023,
arXiv 2209.14687, algorithm 1 (Gaussian noise).

Deviations from the paper and the released code:

1. The norm of the residual is taken per sample; the released code takes it over the whole batch, which couples
   the samples and shrinks the step.
2. The reverse variance is the fixed posterior variance beta~_t; the released code uses the network's learned
   variance, which a prior here does not carry.
3. ``guidance_scale`` multiplies the gradient of the un-squared norm, as in the released code. The paper's
   ``zeta' / |r|`` times the gradient of the squared norm is the same with ``guidance_scale = 2 zeta'``.
4. Fewer than 1000 steps use the evenly respaced schedule (alpha-bar kept, betas recomputed).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invdiff.algorithms.draw import Callback, check_finite, check_positive, draw
from invdiff.measurement import Measurement
from invdiff.posterior import Posterior
from invdiff.priors.denoiser import Counted, Prior
from invdiff.priors.schedules import linear_betas
from invdiff.random import SampleStreams


@dataclass(frozen=True, kw_only=True)
class DPS:
    """Diffusion posterior sampling. Label: *heuristic* (the guidance is not the likelihood's; it does not see
    the noise level).

    Costs ``n_steps`` denoiser evaluations per sample, each with backpropagation. The residual is in data units,
    so the right ``guidance_scale`` grows as 1 / |A|: the presets belong to operators of norm about 1.

    Attributes:
        n_steps: T, ancestral steps on the DDPM schedule (1000 in the paper).
        guidance_scale: zeta, of the gradient of ``|y - A(x0_hat)|_2`` in the state v_t.
        clip: clip x0_hat to [-1, 1], gradient included (the released code does).
    """

    n_steps: int = 1000
    guidance_scale: float = 0.3
    clip: bool = True
    bibtex: ClassVar[str] = """@inproceedings{chung2023diffusion,
  author    = {Chung, Hyungjin and Kim, Jeongsol and Mccann, Michael T. and Klasky, Marc L. and Ye, Jong Chul},
  title     = {Diffusion posterior sampling for general noisy inverse problems},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year      = {2023},
  note      = {arXiv:2209.14687}
}"""

    def __post_init__(self) -> None:
        check_positive(self, "n_steps")
        if not 2 <= self.n_steps <= 1000:
            raise ValueError(f"DPS: n_steps must lie in 2 .. 1000, got {self.n_steps}.")
        if not self.guidance_scale >= 0:
            raise ValueError(f"DPS: guidance_scale must not be negative, got {self.guidance_scale}.")

    @classmethod
    def released_code(cls, task: str) -> DPS:
        """As configured in DPS2022/diffusion-posterior-sampling@effbde73 (FFHQ, images in [-1, 1], noise 0.05).
        Tasks: super-resolution, gaussian-blur, motion-blur, nonlinear-blur, inpainting, phase-retrieval."""
        if task not in _SCALE:
            raise KeyError(f"No preset for {task!r}; there are {', '.join(_SCALE)}.")
        return cls(n_steps=1000, guidance_scale=_SCALE[task], clip=True)

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
        prior = D.prior
        ab = torch.cumprod(1 - linear_betas(1000), 0)[torch.linspace(0, 999, self.n_steps).round().long()].tolist()
        # v_T ~ N(0, I)
        v = streams.randn(prior.shape, dtype=prior.dtype, device=prior.device)
        for t in range(self.n_steps - 1, -1, -1):
            ab_t, ab_prev = ab[t], ab[t - 1] if t > 0 else 1.0
            alpha_t = ab_t / ab_prev
            beta_t = 1 - alpha_t
            # x0_hat = E[x0 | v_t], in VE units: u = v / sqrt(abar), sigma = sqrt((1 - abar) / abar)
            v = v.detach().requires_grad_(True)
            x0_hat = D(v / ab_t**0.5, ((1 - ab_t) / ab_t) ** 0.5)
            if self.clip:
                x0_hat = x0_hat.clamp(-1, 1)
            # g = grad_v |y - A(x0_hat)|_2, one norm per sample
            r = measurement.residual(x0_hat).flatten(1)
            (g,) = torch.autograd.grad(torch.linalg.vector_norm(r, dim=1).sum(), v)
            # v' = sqrt(abar_prev) beta / (1 - abar) x0_hat + sqrt(alpha) (1 - abar_prev) / (1 - abar) v + sqrt(beta~) z
            with torch.no_grad():
                mean = ab_prev**0.5 * beta_t / (1 - ab_t) * x0_hat + alpha_t**0.5 * (1 - ab_prev) / (1 - ab_t) * v
                std = ((1 - ab_prev) / (1 - ab_t) * beta_t) ** 0.5
                if t > 0:
                    mean = mean + std * streams.randn(prior.shape, dtype=prior.dtype, device=prior.device)
                # v_(t-1) = v' - zeta g
                v = mean - self.guidance_scale * g
            check_finite(v, self.n_steps - t, f"guidance_scale={self.guidance_scale} is too large for this operator.")
            callback(self.n_steps - t, self.n_steps, sigma=((1 - ab_t) / ab_t) ** 0.5, x0=x0_hat.detach())
        return v.detach()


# scale of configs/*_config.yaml of the released code
_SCALE = {
    "super-resolution": 0.3,
    "gaussian-blur": 0.3,
    "motion-blur": 0.3,
    "nonlinear-blur": 0.3,
    "inpainting": 0.5,
    "phase-retrieval": 1.0,
}
