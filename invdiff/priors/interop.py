"""Denoisers of deepinv (and anything called like them) as priors, and priors as denoisers of deepinv."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from invdiff.priors.denoiser import Counted, NetworkPrior, Prior, PriorInfo, Rescaled


class _Called(nn.Module):
    def __init__(self, denoiser: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.denoiser(x, sigma)


def from_deepinv(
    denoiser: Callable[[Tensor, Tensor], Tensor],
    shape: tuple[int, ...],
    *,
    sigma_min: float,
    sigma_max: float,
    data_range: tuple[float, float] = (0.0, 1.0),
    info: PriorInfo | None = None,
) -> NetworkPrior:
    """A denoiser ``f(y, sigma)``, such as deepinv's ``DRUNet`` or ``NCSNpp``, as a prior.

    A plug-and-play denoiser is trained at low noise only (DRUNet: up to 50/255). It is a prior for algorithms that
    start there, not for those that start from pure noise.

    Args:
        denoiser: takes images (batch, channel, y, x) and noise levels (batch,), both in the units of ``data_range``.
        shape: of one image, (channel, y, x).
        sigma_min, sigma_max: noise levels it was trained for, in its own units.
        data_range: its images' values that are -1 and +1 in model units; deepinv's are in [0, 1].
        info: what is known of it; default: its class's name.

    Example:
        >>> from invdiff.priors import from_deepinv
        >>> def denoiser(y, sigma):  # in place of, say, deepinv.models.DRUNet
        ...     return y / 2
        >>> prior = from_deepinv(denoiser, (1, 8, 8), sigma_min=1 / 255, sigma_max=50 / 255)
        >>> prior.info.value_range, round(prior.sigma_max, 3)  # images in [0, 1] become [-1, 1]
        ((0.0, 1.0), 0.392)
    """
    half = (data_range[1] - data_range[0]) / 2
    module: nn.Module = _Called(denoiser)
    if tuple(data_range) != (-1.0, 1.0):
        module = Rescaled(module, *data_range)
    return NetworkPrior(
        module,
        shape,
        sigma_min=sigma_min / half,
        sigma_max=sigma_max / half,
        info=info or PriorInfo(name=type(denoiser).__name__, value_range=(0.0, 1.0)),
    )


def to_deepinv(prior: Prior | Counted) -> Any:
    """A prior as a ``deepinv.models.Denoiser`` of images whose values 0 and 1 are the prior's -1 and +1.

    Levels below the prior's smallest are denoised at that. deepinv is imported here (``pip install invdiff[deepinv]``).
    """
    from deepinv.models import Denoiser

    D = prior if isinstance(prior, Counted) else Counted(prior)
    known = D.prior

    class PriorDenoiser(Denoiser):
        def forward(self, x: Tensor, sigma: Any, *args: Any, **kwargs: Any) -> Tensor:
            level = 2 * torch.as_tensor(sigma, dtype=known.dtype, device=known.device).flatten().expand(len(x))
            u = (2 * x - 1).to(known.dtype)
            return ((D(u, level.clamp(min=known.sigma_min)) + 1) / 2).to(x.dtype)

    return PriorDenoiser()
