"""PnP-DM: plug-and-play diffusion models, a split Gibbs sampler.

Wu, Sun, Chen, Zhang, Yue, Bouman: "Principled probabilistic imaging using diffusion models as plug-and-play
priors", NeurIPS 2024, arXiv 2405.18782, algorithm 1.

Deviations from the paper and the released code:

1. The likelihood step is drawn exactly (perturb and solve) instead of by Langevin steps; linear operators only.
2. The last rho is ``sigma_y / |A|`` by default: the split adds ``rho^2 A A^T`` to the noise's covariance, so a rho
   that ends higher leaves chi2 above 1 (3.4 where sigma_y was 0.05 and rho 0.3).
3. The prior draw takes few ancestral steps of matched variance (:func:`invdiff.algorithms.solvers.matched_step`)
   instead of the tail of a long EDM schedule: on a Gaussian image 10 such steps keep the variance within 3 %,
   where 10 plain ancestral steps lose 20 % and 40 lose 4 %.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from invdiff.algorithms.draw import Run, check_linear, check_positive, sampler
from invdiff.algorithms.solvers import matched_step
from invdiff.priors.schedules import karras_sigmas


@dataclass(frozen=True, kw_only=True)
class PnPDM:
    """Split Gibbs sampling with a diffusion prior. Label: *asymptotically exact* in unimodal problems, as rho -> 0
    and the iterations become many; mode weights freeze once rho is below the distance of the modes.

    ``n_iterations * n_denoise`` denoiser evaluations per sample, no backpropagation.

    Truth bench, gaussian-blur-mask: gap 0.02 dB, spread-skill 1.00, cov90 0.88, chi2 1.03.

    Attributes:
        n_iterations: Gibbs iterations.
        n_denoise: ancestral steps of the prior draw from level rho.
        rho_max: first rho.
        rho_min: last rho, model units; None: ``sigma_y / |A|``.
        sigma_data: standard deviation of the images, model units, for the variance of these steps.
        decay: rho_k = max(rho_max decay^k, rho_min).
        n_cg, tolerance: conjugate gradients, where the operator has no closed form.

    Example:
        >>> from invdiff import GaussianNoise, Measurement
        >>> from invdiff.algorithms import PnPDM
        >>> from invdiff.operators import Inpainting, random_pixels
        >>> from invdiff.priors import GaussianPrior, StationaryCovariance
        >>> prior = GaussianPrior(torch.zeros(1, 4, 4), StationaryCovariance(torch.full((1, 4, 4), 0.25)))
        >>> seen = random_pixels((1, 4, 4), 0.5, seed=0)
        >>> m = Measurement(0.6 * seen, Inpainting(seen), GaussianNoise(0.5))
        >>> p = PnPDM(n_iterations=40, n_denoise=5, rho_max=2.0, rho_min=0.1)(prior, m, n_samples=64)
        >>> bool((p.mean[seen].mean() - 0.3).abs() < 0.05), bool((p.std[seen].mean() - 0.35).abs() < 0.05)  # exact
        (True, True)
    """

    n_iterations: int = 100
    n_denoise: int = 10
    rho_max: float = 10.0
    rho_min: float | None = None
    sigma_data: float = 0.5
    decay: float = 0.9
    n_cg: int = 50
    tolerance: float = 1e-5
    bibtex: ClassVar[str] = """@inproceedings{wu2024principled,
  author    = {Wu, Zihui and Sun, Yu and Chen, Yifan and Zhang, Bingliang and Yue, Yisong and Bouman, Katherine L.},
  title     = {Principled probabilistic imaging using diffusion models as plug-and-play priors},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year      = {2024},
  note      = {arXiv:2405.18782}
}"""

    def __post_init__(self) -> None:
        check_positive(self, "n_iterations", "n_denoise", "rho_max", "sigma_data", "decay", "n_cg", "tolerance")
        if self.rho_min is not None:
            check_positive(self, "rho_min")
        if not self.decay < 1:
            raise ValueError(f"PnPDM: decay must be below 1, got {self.decay}.")

    @classmethod
    def released_code(cls) -> PnPDM:
        """The linear tasks of zihuiwu/PnP-DM-public@70b1de29 (Gaussian and motion blur, super-resolution; noise
        0.05): 100 iterations, rho from 10 to 0.3, decay 0.9. Their prior step is the tail of a 100-step EDM
        schedule (deviation 3)."""
        return cls(n_iterations=100, rho_max=10.0, rho_min=0.3, decay=0.9)

    def rhos(self, rho_min: float) -> list[float]:
        """The annealing of rho."""
        return [max(self.rho_max * self.decay**k, rho_min) for k in range(self.n_iterations)]

    @sampler()
    def __call__(self, run: Run) -> Tensor:
        m = run.measurement
        check_linear(self, m)
        assert m.linear is not None
        precision = m.noise.precision(m.y)
        largest = precision if isinstance(precision, float) else float(precision.max())
        rho_min = self.rho_min or largest**-0.5 / m.linear.norm()
        rhos = self.rhos(rho_min)
        if rhos[-1] > rho_min:
            raise ValueError(
                f"PnPDM: after {self.n_iterations} iterations rho is {rhos[-1]:.3g}, above rho_min={rho_min:.3g}. "
                "Use more iterations or a smaller decay."
            )
        x, S = run.start([*rhos, 0.0])
        rhos = S[:-1]
        for k, rho in enumerate(rhos):
            # z ~ p(y | z) N(z; x, rho^2 I)
            z = m.conditional(x, rho**2, run.streams, n_steps=self.n_cg, tolerance=self.tolerance)
            # x ~ p(x | x + rho n = z): reverse diffusion from level rho
            levels = [*karras_sigmas(self.n_denoise, min(rho / 20, 0.01), rho).tolist()[:-1], 0.0]
            x = z
            for s, s_next in zip(levels[:-1], levels[1:], strict=True):
                x = matched_step(x, run.denoise(x, s), s, s_next, self.sigma_data, run)
            run.report(k + 1, len(rhos), x, "a prior that does not fit the data's range.", sigma=rho, x0=x)
        return x
