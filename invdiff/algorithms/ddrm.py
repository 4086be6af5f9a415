"""DDRM: denoising diffusion restoration models.

Kawar, Elad, Ermon, Song: "Denoising diffusion restoration models", NeurIPS 2022, arXiv 2201.11793, eq. (7), (8).

Deviations from the paper and the released code:

1. The state is variance exploding, as in the paper; the released code scales it for its networks.
2. The grid is free; the paper uses 20 evenly spaced DDPM steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from invdiff.algorithms.draw import Run, check_linear, check_positive, check_unit_interval, sampler
from invdiff.priors.schedules import DDPMGrid, Grid


@dataclass(frozen=True, kw_only=True)
class DDRM:
    """Denoising diffusion restoration model. Label: *heuristic* (variational; under-dispersed).

    Replaces, per singular vector of the operator, the denoised coefficient by the measured one once the diffusion
    noise is above the measurement's. Needs the SVD and Gaussian noise. ``n_steps`` denoiser evaluations per
    sample, no backpropagation.

    Truth bench, gaussian-blur-mask: gap -0.06 dB, spread-skill 0.65, cov90 0.71, chi2 0.88.

    Attributes:
        n_steps: denoising steps.
        eta: fresh noise in directions that the data do not determine, in [0, 1].
        eta_b: weight of the data where they are more precise than the diffusion state, in [0, 1].
        grid: noise levels.

    Example:
        >>> from invdiff import GaussianNoise, Measurement
        >>> from invdiff.algorithms import DDRM
        >>> from invdiff.operators import Inpainting, random_pixels
        >>> from invdiff.priors import GaussianPrior, StationaryCovariance
        >>> prior = GaussianPrior(torch.zeros(1, 4, 4), StationaryCovariance(torch.full((1, 4, 4), 0.25)))
        >>> seen = random_pixels((1, 4, 4), 0.5, seed=0)
        >>> m = Measurement(0.6 * seen, Inpainting(seen), GaussianNoise(0.01))
        >>> p = DDRM(n_steps=20)(prior, m, n_samples=32)
        >>> bool((p.mean[seen] - 0.6).abs().max() < 0.05), bool(p.std[~seen].mean() > p.std[seen].mean())
        (True, True)
    """

    n_steps: int = 20
    eta: float = 0.85
    eta_b: float = 1.0
    grid: Grid = field(default_factory=DDPMGrid)
    bibtex: ClassVar[str] = """@inproceedings{kawar2022denoising,
  author    = {Kawar, Bahjat and Elad, Michael and Ermon, Stefano and Song, Jiaming},
  title     = {Denoising diffusion restoration models},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year      = {2022},
  note      = {arXiv:2201.11793}
}"""

    def __post_init__(self) -> None:
        check_positive(self, "n_steps")
        check_unit_interval(self, "eta", "eta_b")

    @classmethod
    def released_code(cls) -> DDRM:
        """Every example of bahjat-kawar/ddrm@08d4dbd2 (images in [-1, 1]): 20 steps, eta 0.85, eta_b 1."""
        return cls(n_steps=20, eta=0.85, eta_b=1.0)

    @sampler()
    def __call__(self, run: Run) -> Tensor:
        m, eta, eta_b = run.measurement, self.eta, self.eta_b
        check_linear(self, m, gaussian=True)
        assert m.linear is not None
        svd = m.linear.svd()
        c = svd.singular_values
        sigma_y = m.noise.precision(m.y) ** -0.5
        noise = torch.where(c > 0, sigma_y / c.clamp(min=1e-30), torch.inf)  # of the data, per coefficient: sigma_y / c
        y = torch.where(c > 0, svd.data_coefficients(m.linear_data) / c.clamp(min=1e-30), 0.0)
        # x_T ~ N(y, S_T^2 - sigma_y^2 / c^2) where measured, N(0, S_T^2) elsewhere
        u, S = run.start(self.grid(self.n_steps))
        if run.start_image is None:
            z = svd.coefficients(u / S[0])
            measured = noise <= S[0]
            target = torch.where(measured, y + (S[0] ** 2 - noise.square()).clamp(min=0).sqrt() * z, S[0] * z)
            u = u + svd.image(target - S[0] * z)
        N = len(S) - 1
        for i in range(N):
            s, s_next = S[i], S[i + 1]
            x0 = run.denoise(u, s)
            # not measured: x0 + sqrt(1 - eta^2) (s'/s) (u - x0) + eta s' z
            z = run.randn()
            u = x0 + (1 - eta**2) ** 0.5 * (s_next / s) * (u - x0) + eta * s_next * z
            x0_c, z_c = svd.coefficients(x0), svd.coefficients(z)
            # c s' >= sigma_y: (1 - eta_b) x0 + eta_b y + sqrt(s'^2 - eta_b^2 sigma_y^2 / c^2) z
            data = (1 - eta_b) * x0_c + eta_b * y + (s_next**2 - eta_b**2 * noise.square()).clamp(min=0).sqrt() * z_c
            # c s' < sigma_y: x0 + sqrt(1 - eta^2) s' (y - x0) c / sigma_y + eta s' z
            weak = x0_c + (1 - eta**2) ** 0.5 * s_next * (y - x0_c) / noise + eta * s_next * z_c
            target = torch.where(c > 0, torch.where(noise <= s_next, data, weak), svd.coefficients(u))
            u = u + svd.image(target - svd.coefficients(u))
            run.report(i + 1, N, u, "a prior that does not fit the data's range.", sigma=s, x0=x0)
        return u
