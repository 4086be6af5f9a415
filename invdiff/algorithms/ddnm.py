"""DDNM+: denoising diffusion null-space model, with noise.

Wang, Yu, Zhang: "Zero-shot image restoration using denoising diffusion null-space model", ICLR 2023,
arXiv 2212.00490, eq. (13), (17) to (19) and algorithm 2 (time travel).

Deviations from the paper and the released code:

1. ``Sigma_t`` and ``Phi_t`` are per singular value (the paper's general form, and the released code) in VE units;
   ports that use one number for all assume that every singular value is 1.
2. ``eta`` is the released code's: the share ``eta`` of the next level's noise is new, where it is not the data's. The
   paper has no such parameter; with ``eta = 1`` lambda of imprecise data is 0 (the paper: ``s' c / sigma_y``).
3. Time travel goes back by renoising the state, ``travel`` repeats at every level (the paper jumps several).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from invdiff.algorithms.draw import Run, check_linear, check_positive, check_unit_interval, sampler
from invdiff.priors.schedules import DDPMGrid, Grid


@dataclass(frozen=True, kw_only=True)
class DDNM:
    """Denoising diffusion null-space model. Label: *heuristic* (data consistency by projection).

    Needs the SVD and Gaussian noise. ``n_steps * travel`` denoiser evaluations per sample, no backpropagation.

    Truth bench, gaussian-blur-mask: gap 0.22 dB, spread-skill 0.70, cov90 0.74, chi2 0.50.

    Attributes:
        n_steps: denoising steps.
        eta: standard deviation of the new noise over the next level's, in [0, 1], where the data are silent or too
            imprecise to stand for it.
        travel: repeats of each step, renoised in between (1: none).
        grid: noise levels.

    Example:
        >>> from invdiff import GaussianNoise, Measurement
        >>> from invdiff.algorithms import DDNM
        >>> from invdiff.operators import Inpainting, random_pixels
        >>> from invdiff.priors import GaussianPrior, StationaryCovariance
        >>> prior = GaussianPrior(torch.zeros(1, 4, 4), StationaryCovariance(torch.full((1, 4, 4), 0.25)))
        >>> seen = random_pixels((1, 4, 4), 0.5, seed=0)
        >>> m = Measurement(0.6 * seen, Inpainting(seen), GaussianNoise(0.01))
        >>> p = DDNM(n_steps=30)(prior, m, n_samples=32)
        >>> bool((p.mean[seen] - 0.6).abs().max() < 0.05), bool(p.std[~seen].mean() > p.std[seen].mean())
        (True, True)
    """

    n_steps: int = 100
    eta: float = 0.85
    travel: int = 1
    grid: Grid = field(default_factory=DDPMGrid)
    bibtex: ClassVar[str] = """@inproceedings{wang2023zeroshot,
  author    = {Wang, Yinhuai and Yu, Jiwen and Zhang, Jian},
  title     = {Zero-shot image restoration using denoising diffusion null-space model},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year      = {2023},
  note      = {arXiv:2212.00490}
}"""

    def __post_init__(self) -> None:
        check_positive(self, "n_steps", "travel")
        check_unit_interval(self, "eta")

    @classmethod
    def released_code(cls) -> DDNM:
        """Every task of evaluation.sh in wyhuai/DDNM@4ab9e126: 100 steps, eta 0.85, no time travel."""
        return cls(n_steps=100, eta=0.85, travel=1)

    @sampler()
    def __call__(self, run: Run) -> Tensor:
        m, eta = run.measurement, self.eta
        check_linear(self, m, gaussian=True)
        assert m.linear is not None
        svd = m.linear.svd()
        c = svd.singular_values
        noise = torch.where(c > 0, m.noise.precision(m.y) ** -0.5 / c.clamp(min=1e-30), 0.0)  # sigma_y / c
        y = torch.where(c > 0, svd.data_coefficients(m.linear_data) / c.clamp(min=1e-30), 0.0)
        u, S = run.start(self.grid(self.n_steps))
        N = len(S) - 1
        for i in range(N):
            s, s_next = S[i], S[i + 1]
            old, new = (1 - eta**2) ** 0.5 * s_next, eta * s_next  # deviations of the kept noise and of the new
            precise = noise <= s_next
            # where the data are precise they replace x0, and their noise is part of the next level's; where they are
            # not, as much of them as stands for the kept noise; where they are silent, nothing (c = 0)
            lam = torch.where(precise, 1.0, old / noise.clamp(min=1e-30)) * (c > 0)
            fill = torch.where(precise, (s_next**2 - noise.square()).clamp(min=0).sqrt(), new)
            for k in range(self.travel):
                x0 = run.denoise(u, s)
                eps = (u - x0) / s
                # x0 <- x0 - V lambda V^T (x0 - A^+ y)
                x0 = x0 + svd.image(lam * (y - svd.coefficients(x0)))
                z = run.randn()
                silent = old * eps + new * z
                seen = torch.where(c > 0, fill * svd.coefficients(z) - svd.coefficients(silent), 0.0)
                v = x0 + silent + svd.image(seen)
                if k + 1 < self.travel:
                    u = v + (s**2 - s_next**2) ** 0.5 * run.randn()
            u = v
            run.report(i + 1, N, u, "a prior that does not fit the data's range.", sigma=s, x0=x0)
        return u
