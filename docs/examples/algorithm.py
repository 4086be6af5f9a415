"""An algorithm of one's own: annealed Langevin dynamics with an inflated noise level (Jalal et al., NeurIPS 2021)."""

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from invdiff.algorithms.draw import Run, check_linear, check_positive, sampler
from invdiff.priors import KarrasGrid


@dataclass(frozen=True, kw_only=True)
class AnnealedLangevin:
    """Score-ALD. Label: *heuristic* (few Langevin steps per level, data weighted by 1 / (sigma_y^2 + s^2)).

    Attributes:
        n_levels: noise levels; ``n_levels * n_inner`` denoiser evaluations per sample.
        n_inner: Langevin steps at each.
        step: length of a step over the level's variance.
        grid: the levels.
    """

    n_levels: int = 60
    n_inner: int = 3
    step: float = 0.15
    grid: KarrasGrid = field(default_factory=lambda: KarrasGrid(sigma_max=20.0, sigma_min=0.02))
    bibtex: ClassVar[str] = "@inproceedings{jalal2021robust, note = {arXiv:2108.01368}}"

    def __post_init__(self) -> None:
        check_positive(self, "n_levels", "n_inner", "step")

    @sampler()  # units, random streams, micro-batches, warm starts and accounting happen around this loop
    def __call__(self, run: Run) -> Tensor:
        m = run.measurement  # as a function of the model's images
        check_linear(self, m)
        norm2 = m.linear.norm() ** 2
        u, S = run.start(self.grid(self.n_levels))
        for i, s in enumerate(S[:-1]):
            for _ in range(self.n_inner):
                # score of the posterior at level s: (D(u, s) - u) / s^2 + A^T (y - A u) / (sigma_y^2 + |A|^2 s^2)
                prior = (run.denoise(u, s) - u) / s**2
                data = -m.nll_grad(u) / (1 + m.noise.precision(m.y) * norm2 * s**2)
                u = u + self.step * s**2 * (prior + data) + (2 * self.step) ** 0.5 * s * run.randn()
            run.report(i + 1, len(S) - 1, u, "a step that is too long.", sigma=s)
        return run.denoise(u, S[-2])
