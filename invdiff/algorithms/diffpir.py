"""DiffPIR: denoising diffusion models for plug-and-play image restoration.

Zhu, Zhang, Liang, Cao, Wen, Timofte, Van Gool: CVPR Workshops 2023, arXiv 2305.08995, algorithm 1.

Deviations from the paper and the released code:

1. The data step is the proximal point ``argmin nll(x) + lambda / (2 s^2) |x - x0|^2``: the paper's
   ``rho_t = lambda sigma_n^2 / s^2`` with the measurement's own noise (weights per datum where it has them).
2. Ports differ by a factor 2 and by whether sigma_n^2 enters twice; this is the paper's form.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from invdiff.algorithms.draw import Run, check_linear, check_positive, check_unit_interval, preset, sampler
from invdiff.priors.schedules import DDPMGrid, Grid, QuadraticDDPMGrid


@dataclass(frozen=True, kw_only=True)
class DiffPIR:
    """Plug-and-play restoration with a diffusion denoiser. Label: *heuristic* (proximal steps, then new noise).

    ``n_steps`` denoiser evaluations per sample, no backpropagation.

    Truth bench, gaussian-blur-mask: gap 0.63 dB, spread-skill 0.74, cov90 0.77, chi2 2.54.

    Attributes:
        n_steps: denoising steps.
        lam: lambda, strength of the prior in the data step.
        zeta: share of fresh noise in the renoising, in [0, 1].
        grid: noise levels.
        n_cg, tolerance: conjugate gradients, where the operator has no closed form.

    Example:
        >>> from invdiff import GaussianNoise, Measurement
        >>> from invdiff.algorithms import DiffPIR
        >>> from invdiff.operators import Inpainting, random_pixels
        >>> from invdiff.priors import GaussianPrior, StationaryCovariance
        >>> prior = GaussianPrior(torch.zeros(1, 4, 4), StationaryCovariance(torch.full((1, 4, 4), 0.25)))
        >>> seen = random_pixels((1, 4, 4), 0.5, seed=0)
        >>> m = Measurement(0.6 * seen, Inpainting(seen), GaussianNoise(0.01))
        >>> p = DiffPIR(n_steps=20)(prior, m, n_samples=32)
        >>> bool((p.mean[seen] - 0.6).abs().max() < 0.05), bool(p.std[~seen].mean() > p.std[seen].mean())
        (True, True)
    """

    n_steps: int = 100
    lam: float = 8.0
    zeta: float = 1.0
    grid: Grid = field(default_factory=DDPMGrid)
    n_cg: int = 25
    tolerance: float = 1e-5
    bibtex: ClassVar[str] = """@inproceedings{zhu2023denoising,
  author    = {Zhu, Yuanzhi and Zhang, Kai and Liang, Jingyun and Cao, Jiezhang and Wen, Bihan and Timofte, Radu
               and Van Gool, Luc},
  title     = {Denoising diffusion models for plug-and-play image restoration},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition Workshops (CVPRW)},
  year      = {2023},
  note      = {arXiv:2305.08995}
}"""

    def __post_init__(self) -> None:
        check_positive(self, "n_steps", "lam", "n_cg", "tolerance")
        check_unit_interval(self, "zeta")

    @classmethod
    def released_code(cls, task: str) -> DiffPIR:
        """As configured in yuanzhi-zhu/DiffPIR@1112e2f7 (FFHQ). Its lambda multiplies the noise variance of images in
        [0, 1] over levels of images in [-1, 1]: four times the lambda of this file. Tasks: deblurring,
        super-resolution (100 steps), inpainting (20 steps)."""
        n_steps, lam, zeta = preset(_RELEASED, task)
        return cls(n_steps=n_steps, lam=lam / 4, zeta=zeta, grid=QuadraticDDPMGrid())

    @classmethod
    def inversebench(cls) -> DiffPIR:
        """The defaults of devzhk/InverseBench@b113d67b: 1000 steps, xi = 1, ``rho = 2 lambda sigma_n^2 / (1 - abar)``
        with lambda = 8 (at small levels that is this file's lambda times 2)."""
        return cls(n_steps=1000, lam=16.0, zeta=1.0)

    @sampler()
    def __call__(self, run: Run) -> Tensor:
        m = run.measurement
        check_linear(self, m)
        u, S = run.start(self.grid(self.n_steps))
        N = len(S) - 1
        for i in range(N):
            s, s_next = S[i], S[i + 1]
            # x0 = D(u, s); xh = argmin nll(x) + lambda / (2 s^2) |x - x0|^2
            x0 = run.denoise(u, s)
            xh = m.prox(x0, s**2 / self.lam, n_steps=self.n_cg, tolerance=self.tolerance)
            # u' = xh + s' (sqrt(zeta) z + sqrt(1 - zeta) (u - xh) / s)
            u = xh + s_next * (self.zeta**0.5 * run.randn() + (1 - self.zeta) ** 0.5 * (u - xh) / s)
            run.report(i + 1, N, u, "a prior that does not fit the data's range.", sigma=s, x0=xh)
        return u


# iter_num, lambda_, zeta of configs/*.yaml of the released code
_RELEASED = {
    "deblurring": (100, 1.0, 0.1),
    "super-resolution": (100, 1.0, 0.1),
    "inpainting": (20, 1.0, 1.0),
}
