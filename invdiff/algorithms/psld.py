"""PSLD: posterior sampling with latent diffusion.

Rout, Raoof, Daras, Caramanis, Dimakis, Shakkottai: "Solving linear inverse problems provably via posterior
sampling with latent diffusion models", NeurIPS 2023, arXiv 2307.00619, algorithm 2.

Deviations from the paper and the released code:

1. The glued image is ``A^T y + (I - A^T A) Dec(z0_hat)`` with the operator and the data divided by the operator's
   norm. That is the paper's where the rows of A are orthogonal and of one length (inpainting, subsampling), and
   one Landweber step towards the data elsewhere; the paper's is neither a projection nor stable there.
2. Both terms are gradients of un-squared norms, as in the released code; the paper writes squared ones.
3. Norms are per sample.
4. The reverse variance is the DDPM posterior variance beta~_t; the released code takes DDIM steps with eta 0.
5. The schedule is the linear DDPM one, respaced for fewer than 1000 steps, and the first state is
   ``sqrt(1 - abar_T) z``. The released code uses that of Stable Diffusion.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor

from invdiff.algorithms.draw import Run, check_linear, check_positive, preset, sampler
from invdiff.algorithms.solvers import ddpm_step
from invdiff.operators.base import LinearOperator
from invdiff.priors.latent import LatentPrior, check_latent, of_images
from invdiff.priors.schedules import ddpm_sigmas


@dataclass(frozen=True, kw_only=True)
class PSLD:
    """Latent DPS with a gluing term that asks the latent to be that of a data-consistent image. Label: *heuristic*
    (the guidance is not the likelihood's; it does not see the noise level).

    Needs a :class:`~invdiff.priors.LatentPrior` and a linear operator. Costs ``n_steps`` denoiser evaluations per
    sample, each with backpropagation through denoiser, decoder and encoder. The residual is in data units, so the
    right ``eta`` grows as ``1 / |A|``.

    Truth bench, gaussian-blur-mask (guidance scale tuned): gap 0.07 dB, spread-skill 0.87, cov90 0.83, chi2 0.38.

    Attributes:
        n_steps: T, ancestral steps on the DDPM schedule.
        eta: of the gradient of ``|y - A(Dec(z0_hat))|_2`` in the state z_t.
        gamma: of the gradient of ``|z0_hat - Enc(A^T y + (I - A^T A) Dec(z0_hat))|_2``.

    Example:
        >>> from invdiff import GaussianNoise, Measurement
        >>> from invdiff.algorithms import PSLD
        >>> from invdiff.operators import Inpainting, random_pixels
        >>> from invdiff.priors import GaussianPrior, LatentPrior, StationaryCovariance
        >>> prior = GaussianPrior(torch.zeros(1, 4, 4), StationaryCovariance(torch.full((1, 4, 4), 0.25)))
        >>> seen = random_pixels((1, 4, 4), 0.5, seed=0)
        >>> m = Measurement(0.6 * seen, Inpainting(seen), GaussianNoise(0.01))
        >>> prior = LatentPrior(torch.clone, torch.clone, prior, image_shape=(1, 4, 4))  # latents are the image here
        >>> p = PSLD(n_steps=100)(prior, m, n_samples=32)
        >>> bool((p.mean[seen] - 0.6).abs().max() < 0.1), bool(p.std[~seen].mean() > p.std[seen].mean())
        (True, True)
    """

    n_steps: int = 1000
    eta: float = 1.0
    gamma: float = 0.1
    bibtex: ClassVar[str] = """@inproceedings{rout2023solving,
  author    = {Rout, Litu and Raoof, Negin and Daras, Giannis and Caramanis, Constantine and Dimakis, Alexandros G.
               and Shakkottai, Sanjay},
  title     = {Solving linear inverse problems provably via posterior sampling with latent diffusion models},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year      = {2023},
  note      = {arXiv:2307.00619}
}"""

    def __post_init__(self) -> None:
        check_positive(self, "n_steps")
        if not 2 <= self.n_steps <= 1000:
            raise ValueError(f"PSLD: n_steps must lie in 2 .. 1000, got {self.n_steps}.")
        if not (self.eta >= 0 and self.gamma >= 0):
            raise ValueError(f"PSLD: eta and gamma must not be negative, got {self.eta} and {self.gamma}.")

    @classmethod
    def released_code(cls, model: str) -> PSLD:
        """As in LituRout/PSLD@2090daed (its omega is eta here), 1000 steps. Models: stable-diffusion, ldm."""
        return cls(n_steps=1000, eta=preset({"stable-diffusion": 1.0, "ldm": 0.1}, model), gamma=0.1)

    @sampler(backprop=True)
    def __call__(self, run: Run) -> Tensor:
        check_latent(self, run.prior)
        prior, image = cast(LatentPrior, run.prior), of_images(run.measurement)
        check_linear(self, image)
        A = cast(LinearOperator, image.linear)
        L = A.norm() ** 2
        # z_T ~ N(0, I); sigma_t = sqrt((1 - abar_t) / abar_t), u = z / sqrt(abar)
        u, S = run.start(ddpm_sigmas(self.n_steps))
        z, N = u / (1 + S[0] ** 2) ** 0.5, len(S) - 1
        for i in range(N):
            # z0_hat = E[z0 | z_t], x0_hat = Dec(z0_hat)
            z = z.detach().requires_grad_(True)
            z0 = run.denoise(z * (1 + S[i] ** 2) ** 0.5, S[i])
            x0 = prior.decode(z0)
            # r = y - A x0_hat, glue = z0_hat - Enc(x0_hat + A^T r / |A|^2)
            r = image.residual(x0)
            glue = z0 - prior.encode(x0 + A.H(r) / L)
            # g = grad_z eta |r|_2 + gamma |glue|_2, one norm per sample
            (g,) = torch.autograd.grad((self.eta * _norms(r) + self.gamma * _norms(glue)).sum(), z)
            with torch.no_grad():
                # z_(t-1) = z' - g, z' the ancestral step
                z = ddpm_step(z, z0, S[i], S[i + 1], run) - g
            cause = f"eta={self.eta} or gamma={self.gamma} is too large for this operator."
            run.report(i + 1, N, z, cause, sigma=S[i], x0=z0.detach())
        return z


def _norms(r: Tensor) -> Tensor:
    return torch.linalg.vector_norm(r.flatten(1), dim=1)
