"""Plug-and-play: a denoiser in place of the proximal operator of a regulariser.

S. V. Venkatakrishnan, C. A. Bouman and B. Wohlberg, "Plug-and-play priors for model based reconstruction", IEEE
GlobalSIP 2013. Here by half-quadratic splitting with a falling level, as in DPIR: K. Zhang, Y. Li, W. Zuo, L. Zhang,
L. Van Gool and R. Timofte, "Plug-and-play image restoration with deep denoiser prior", IEEE Trans. PAMI 44, 6360-6376,
2022, arXiv 2008.13751, algorithm 1.

Deviations: 1. the level falls to ``sigma_last``, theirs to the noise's, which is that of the image only if the operator
is close to the identity; 2. it starts from the mean image (0 in model units), theirs from an image interpolated from
the data; 3. no flips and turns of the image from step to step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invdiff.algorithms.draw import Callback, Run, check_linear, check_positive, draw
from invdiff.measurement import Measurement
from invdiff.posterior import Posterior
from invdiff.priors.denoiser import Prior


@dataclass(frozen=True, kw_only=True)
class PnP:
    """Plug-and-play (DPIR): data term and denoiser in turn, at a falling level. Label: *point estimate*.

    The denoiser is a prior's, used at low levels only; any callable one, such as deepinv's DRUNet, is a prior by
    :func:`invdiff.priors.interop.from_deepinv`. Where the denoiser is the exact one of a Gaussian image of covariance C
    and the level stays at sigma, x converges to the posterior mean of covariance ``(C + sigma^2) / lam``; the image
    is the denoised ``D(x)``.

    Attributes:
        n_steps: iterations, each one denoising.
        sigma_first: level of the first, model units (range 2); paper: 49/255 of the range.
        sigma_last: of the last; between them they fall geometrically. Paper: the data's noise.
        lam: lambda, weight of the denoiser.

    Example:
        >>> from invdiff import GaussianNoise, Measurement
        >>> from invdiff.classical import PnP
        >>> from invdiff.operators import Identity
        >>> from invdiff.priors import GaussianPrior, StationaryCovariance
        >>> prior = GaussianPrior(torch.zeros(1, 1, 2), StationaryCovariance(torch.full((1, 1, 2), 0.24)))
        >>> m = Measurement(torch.tensor([[[0.8, -0.8]]]), Identity((1, 1, 2)), GaussianNoise(0.5))
        >>> x = PnP(n_steps=200, sigma_first=0.1, sigma_last=0.1, lam=1.0)(prior, m).mean
        >>> [round(v, 3) for v in x.flatten().tolist()]  # 0.24 / (0.25 + 0.25) * 0.8
        [0.384, -0.384]
    """

    n_steps: int = 8
    sigma_first: float = 2 * 49 / 255
    sigma_last: float = 0.02
    lam: float = 0.23
    takes_prior: ClassVar[bool] = True
    bibtex: ClassVar[str] = """@article{zhang2022plug,
  author  = {Zhang, Kai and Li, Yawei and Zuo, Wangmeng and Zhang, Lei and Van Gool, Luc and Timofte, Radu},
  title   = {Plug-and-play image restoration with deep denoiser prior},
  journal = {IEEE Transactions on Pattern Analysis and Machine Intelligence},
  volume  = {44},
  number  = {10},
  pages   = {6360--6376},
  year    = {2022}
}"""

    def __post_init__(self) -> None:
        check_positive(self, "n_steps", "sigma_first", "sigma_last", "lam")
        if self.sigma_last > self.sigma_first:
            raise ValueError(f"PnP: sigma_last {self.sigma_last} must not exceed sigma_first {self.sigma_first}.")

    def __call__(
        self,
        prior: Prior | None,
        measurement: Measurement,
        *,
        n_samples: int = 1,
        seed: int = 0,
        batch_size: int | None = None,
        callback: Callback | None = None,
    ) -> Posterior:
        """Same call as an algorithm; ``n_samples`` must be 1.

        The callback gets the images ``x`` of the data term and ``z`` of the denoiser.

        Raises:
            TypeError: no prior, or an operator that is not linear.
            ValueError: several samples; levels that the prior was not trained for.
        """
        if prior is None:
            raise TypeError("PnP needs a denoiser: a prior, or invdiff.priors.interop.from_deepinv(denoiser, ...).")
        if n_samples != 1:
            raise ValueError(f"PnP is a point estimate: n_samples must be 1, got {n_samples}.")
        check_linear(self, measurement)
        if not prior.sigma_min <= self.sigma_last <= self.sigma_first <= prior.sigma_max:
            raise ValueError(
                f"PnP: the prior {prior.info.name!r} denoises levels of {prior.sigma_min:g} to {prior.sigma_max:g}, "
                f"not all of {self.sigma_last:g} to {self.sigma_first:g}. Choose other sigma_first and sigma_last."
            )

        with torch.no_grad():
            return draw(
                self, self._loop, prior, measurement, n_samples=1, seed=seed, batch_size=None, start=None,
                start_sigma=None, callback=callback,
            )  # fmt: skip

    def _loop(self, run: Run) -> Tensor:
        z = torch.zeros_like(run.randn())
        for k in range(self.n_steps):
            # sigma_k falls geometrically from sigma_first to sigma_last
            sigma = self.sigma_first * (self.sigma_last / self.sigma_first) ** (k / max(1, self.n_steps - 1))
            # x_k = argmin_x nll(x) + lambda |x - z|^2 / (2 sigma_k^2)
            x = run.measurement.prox(z, sigma**2 / self.lam)
            # z_k = D(x_k, sigma_k)
            z = run.denoise(x, sigma)
            run.report(k, self.n_steps, z, "a denoiser far outside its training; lower sigma_first.", x=x, z=z)
        return z
