"""Image quality against a known truth. The data range is always stated: there is no default."""

from __future__ import annotations

import math

from torch import Tensor


def psnr(x: Tensor, reference: Tensor, *, data_range: float) -> float:
    """Peak signal-to-noise ratio in dB, ``10 log10(data_range^2 / mean |x - reference|^2)``.

    Args:
        x, reference: images of the same shape and units.
        data_range: in the same units, e.g. the reference's maximum minus minimum.
    """
    _check(x, reference, data_range)
    mse = float((x - reference).double().square().mean())
    return math.inf if mse == 0 else 10 * math.log10(data_range**2 / mse)


def ssim(x: Tensor, reference: Tensor, *, data_range: float) -> float:
    """Structural similarity of two (1, y, x) images (Wang et al. 2004): 7 x 7 uniform window, K1 = 0.01,
    K2 = 0.03, as in scikit-image and fastMRI."""
    from skimage.metrics import structural_similarity

    _check(x, reference, data_range)
    a, b = (t.detach().cpu().double().numpy()[0] for t in (x, reference))
    return float(structural_similarity(a, b, data_range=data_range))


def _check(x: Tensor, reference: Tensor, data_range: float) -> None:
    if x.shape != reference.shape:
        raise ValueError(f"The images must have the same shape, got {tuple(x.shape)} and {tuple(reference.shape)}.")
    if not (math.isfinite(data_range) and data_range > 0):
        raise ValueError(f"data_range must be positive and finite, got {data_range}.")
