"""Image quality against a known truth. The data range is always stated: there is no default.

Throughout: ``x`` and ``reference`` are real, finite and of the same shape (\\*slices, y, x) and units; the leading
dimensions (channels, slices of a volume) are planes, which a two-dimensional measure sees one by one and averages.
One number comes back. Computed in float64. ``data_range`` is what "the full range of the images" means:

* a number in their units, e.g. the reference's maximum minus minimum, or a display window's width;
* ``"slice_max"``: each plane's own maximum in the reference, for the measure of that plane;
* ``"volume_max"``: the maximum of the whole reference, for every plane.

A volume's slices far from its centre are dim, so the last two differ by several dB: papers that do not say which
cannot be compared. PSNR and SSIM favour posterior means over samples, which are right to differ from the truth.

>>> import torch
>>> truth = torch.zeros(2, 16, 16)
>>> truth[0], truth[1] = 1.0, 0.1
>>> f"{psnr(truth + 0.01, truth, data_range=1.0):.1f} dB"
'40.0 dB'
>>> f"{psnr(truth + 0.01, truth, data_range='slice_max'):.1f} dB"  # 40 dB and 20 dB
'30.0 dB'
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

DataRange = float | Tensor | Literal["slice_max", "volume_max"]

LODOPAB_MU_MAX = 0.08135858  # 1/mm: what LoDoPaB-CT divides by (Leuschner et al. 2021)

_MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def psnr(x: Tensor, reference: Tensor, *, data_range: DataRange) -> float:
    """Peak signal-to-noise ratio in dB, ``10 log10(data_range^2 / mean |x - reference|^2)``.

    The mean is over everything (all slices of a volume); with ``"slice_max"`` each plane has its own ratio, and
    the ratios are averaged. Infinite for equal images.

    Args:
        x, reference, data_range: see :mod:`invdiff.evaluation.metrics`.

    Example:
        >>> from invdiff.evaluation import psnr
        >>> truth = torch.rand(1, 8, 8)
        >>> f"{psnr(truth + 0.01, truth, data_range=1.0):.1f} dB"
        '40.0 dB'
    """
    a, b, L = _planes(x, reference, data_range)
    mse = (a - b).square().mean((1, 2))
    if not (isinstance(data_range, str) and data_range == "slice_max"):
        mse, L = mse.mean(0, keepdim=True), L[:1]
    return float((10 * (L**2 / mse).log10()).mean())


def nmse(x: Tensor, reference: Tensor) -> float:
    """Normalised mean squared error, ``|x - reference|^2 / |reference|^2`` over everything; 0 is best.

    Args:
        x, reference: of the same shape, any units.

    Example:
        >>> from invdiff.evaluation import nmse
        >>> nmse(torch.tensor([[3.0, 1.0]]), torch.tensor([[4.0, 0.0]]))  # (1 + 1) / 16
        0.125
    """
    a, b, _ = _planes(x, reference, 1.0)
    if not b.any():
        raise ValueError("The reference is zero everywhere: an error relative to it has no meaning.")
    return float((a - b).square().sum() / b.square().sum())


def ssim(x: Tensor, reference: Tensor, *, data_range: DataRange) -> float:
    """Structural similarity (Wang et al. 2004), at most 1: 7 x 7 uniform window, sample covariances, K1 = 0.01,
    K2 = 0.03, mean over the windows that lie inside the image. As in scikit-image, fastMRI and LoDoPaB-CT.

    Args:
        x, reference, data_range: see :mod:`invdiff.evaluation.metrics`.

    Raises:
        ValueError: planes below 7 x 7.

    Example:
        >>> from invdiff.evaluation import ssim
        >>> truth = torch.rand(1, 16, 16)
        >>> round(ssim(truth, truth, data_range=1.0), 6), ssim(1 - truth, truth, data_range=1.0) < 0
        (1.0, True)
    """
    a, b, L = _planes(x, reference, data_range, smallest=7)
    n = 7**2
    luminance, structure = _ssim_terms(a, b, L, lambda t: F.avg_pool2d(t, 7, stride=1), n / (n - 1))
    return float((luminance * structure).mean())


def ms_ssim(
    x: Tensor, reference: Tensor, *, data_range: DataRange, weights: Sequence[float] = _MS_SSIM_WEIGHTS
) -> float:
    """Multi-scale structural similarity (Wang, Simoncelli, Bovik 2003, equation 7), in 0 .. 1.

    11 x 11 Gaussian window of standard deviation 1.5 pixels, images halved by 2 x 2 means from scale to scale
    (an odd last row is dropped), the luminance term at the last scale only; a negative mean of the structure term
    counts as 0.

    Args:
        x, reference, data_range: see :mod:`invdiff.evaluation.metrics`.
        weights: exponents, from the finest scale to the coarsest. The paper's five need planes of 176 x 176; fewer
            scales for smaller images are another measure, to be named as such.

    Raises:
        ValueError: planes below 11 * 2^(n_scales - 1).

    Example:
        >>> from invdiff.evaluation import ms_ssim
        >>> truth = torch.rand(1, 44, 44)
        >>> round(ms_ssim(truth, truth, data_range=1.0, weights=(0.3, 0.4, 0.3)), 6)  # three scales: named as such
        1.0
    """
    a, b, L = _planes(x, reference, data_range, smallest=11 * 2 ** (len(weights) - 1))
    t = torch.arange(-5, 6, dtype=a.dtype, device=a.device)
    g = (-(t**2) / (2 * 1.5**2)).exp()
    g = g / g.sum()

    def blur(t: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(t[:, None], g[None, None, :, None]), g[None, None, None])[:, 0]

    product = torch.ones_like(L)
    for i, weight in enumerate(weights):
        if i:
            a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
        luminance, structure = _ssim_terms(a, b, L, blur)
        term = structure if i < len(weights) - 1 else luminance * structure
        product = product * term.mean((1, 2)).clamp(min=0) ** weight
    return float(product.mean())


def haarpsi(x: Tensor, reference: Tensor, *, data_range: DataRange) -> float:
    """Haar wavelet perceptual similarity of grey planes (Reisenhofer et al. 2018, arXiv 1607.06140), in 0 .. 1.

    Similarity of Haar coefficients at scales 1 and 2 (C = 30 for a range of 255), through a sigmoid (alpha = 4.2),
    weighted by the coefficients at scale 3. As in the authors' code: images halved by 2 x 2 means first, zero
    beyond the border. Channels of a colour image are taken as planes, not as luma and chroma.

    Args:
        x, reference, data_range: see :mod:`invdiff.evaluation.metrics`.

    Example:
        >>> from invdiff.evaluation import haarpsi
        >>> truth = torch.rand(1, 32, 32)
        >>> round(haarpsi(truth, truth, data_range=1.0), 4)
        1.0
        >>> haarpsi(torch.rand(1, 32, 32), truth, data_range=1.0) < 0.9
        True
    """
    a, b, L = _planes(x, reference, data_range, smallest=16)
    a, b = (_halve(255 * t / L[:, None, None]) for t in (a, b))
    C, alpha = 30, 4.2
    total, norm = torch.zeros_like(L), torch.zeros_like(L)
    for s, r in ((a, b), (a.mT, b.mT)):
        similarity = []
        for scale in (1, 2):
            p, q = _haar(s, scale), _haar(r, scale)
            similarity.append((2 * p * q + C) / (p**2 + q**2 + C))
        weight = torch.maximum(_haar(s, 3), _haar(r, 3))
        total += (torch.sigmoid(alpha * (similarity[0] + similarity[1]) / 2) * weight).sum((1, 2))
        norm += weight.sum((1, 2))
    score = torch.where(norm > 0, total / norm, torch.sigmoid(torch.full_like(norm, alpha)))
    return float(((torch.logit(score) / alpha) ** 2).mean())


def gmsd(x: Tensor, reference: Tensor, *, data_range: DataRange) -> float:
    """Gradient magnitude similarity deviation of grey planes (Xue et al. 2014, equation 6): 0 is best.

    Standard deviation over the pixels of the similarity of Prewitt gradients (c = 170 for a range of 255). As in
    the authors' code, images are halved by 2 x 2 means first and are zero beyond the border; the deviation divides
    by N, as in the paper (their code: by N - 1).

    Args:
        x, reference, data_range: see :mod:`invdiff.evaluation.metrics`.

    Example:
        >>> from invdiff.evaluation import gmsd
        >>> truth = torch.rand(1, 16, 16)
        >>> round(gmsd(truth, truth, data_range=1.0), 6), gmsd(torch.rand(1, 16, 16), truth, data_range=1.0) > 0.05
        (0.0, True)
    """
    a, b, L = _planes(x, reference, data_range, smallest=4)
    prewitt = torch.tensor([[1.0, 0.0, -1.0]] * 3, dtype=a.dtype, device=a.device) / 3
    kernels = torch.stack([prewitt, prewitt.T])[:, None]
    p, q = (F.conv2d(_halve(255 * t / L[:, None, None])[:, None], kernels, padding=1).norm(dim=1) for t in (a, b))
    similarity = (2 * p * q + 170) / (p**2 + q**2 + 170)
    return float(similarity.std((1, 2), correction=0).mean())


class HUError(NamedTuple):
    """Error of attenuation in Hounsfield units: mean (bias), mean absolute, root mean square.

    Args:
        bias, mae, rmse: of ``x - reference``, HU.

    Example:
        >>> from invdiff.evaluation import hu_error
        >>> error = hu_error(torch.tensor([[1.01, 0.99]]), torch.ones(1, 2), water=1.0)
        >>> [round(v, 2) for v in error]  # HU
        [0.0, 10.0, 10.0]
    """

    bias: float
    mae: float
    rmse: float


def hu_error(x: Tensor, reference: Tensor, *, water: float, mask: Tensor | None = None) -> HUError:
    """``1000 (x - reference) / water`` over the pixels of ``mask``.

    Args:
        water: attenuation of water in the images' units (``datasets.ct_units.MU_WATER`` in 1/mm; 1 for images
            relative to water).
        mask: boolean, of the images' shape, e.g. the body: air around it flatters the mean. None: everything.

    Example:
        >>> from invdiff.evaluation import hu_error
        >>> truth = torch.full((1, 8, 8), 0.02)
        >>> round(hu_error(truth + 0.0002, truth, water=0.02).mae, 3)
        10.0
    """
    if not (math.isfinite(water) and water > 0):
        raise ValueError(f"water must be the positive attenuation of water in the images' units, got {water}.")
    a, b, _ = _planes(x, reference, 1.0)
    error = 1000 * (a - b) / water
    if mask is not None:
        if mask.shape != x.shape or mask.dtype != torch.bool or not mask.any():
            raise ValueError(
                f"mask must be boolean, of shape {tuple(x.shape)} and true somewhere, got {mask.dtype} "
                f"{tuple(mask.shape)}."
            )
        error = error[mask.reshape(error.shape)]
    return HUError(float(error.mean()), float(error.abs().mean()), float(error.square().mean().sqrt()))


def mcc(x: Tensor, reference: Tensor) -> float:
    """Matthews correlation coefficient of two boolean segmentations: 1 equal, 0 no better than chance, -1 inverted.

    The score of the Helsinki Tomography Challenge 2022, ``(TP TN - FP FN) / sqrt((TP+FP)(TP+FN)(TN+FP)(TN+FN))``;
    0 where one of the two has a single class.

    Args:
        x, reference: segmentations of any shape, the same for both.

    Raises:
        TypeError: not boolean. ValueError: different shapes.

    Example:
        >>> from invdiff.evaluation import mcc
        >>> half = torch.arange(8) < 4
        >>> mcc(half, half), mcc(~half, half), mcc(torch.arange(8) % 2 == 0, half)
        (1.0, -1.0, 0.0)
    """
    if x.dtype != torch.bool or reference.dtype != torch.bool:
        raise TypeError(f"Expected two boolean segmentations, got {x.dtype} and {reference.dtype}.")
    if x.shape != reference.shape:
        raise ValueError(f"Shapes differ: {tuple(x.shape)} and {tuple(reference.shape)}.")
    tp, fp = float((x & reference).sum()), float((x & ~reference).sum())
    fn, tn = float((~x & reference).sum()), float((~x & ~reference).sum())
    norm = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return (tp * tn - fp * fn) / norm if norm else 0.0


def fastmri_psnr(x: Tensor, reference: Tensor) -> float:
    """PSNR in dB of a volume of magnitudes (slice, y, x) as fastMRI's ``evaluate.py`` has it (Zbontar et al. 2018):
    over the whole volume, range its maximum. Volumes come centre-cropped as the challenge asks (320 x 320).

    Args:
        x, reference: (slice, y, x), magnitudes.

    Example:
        >>> from invdiff.evaluation import fastmri_psnr
        >>> truth = torch.ones(2, 8, 8)
        >>> f"{fastmri_psnr(truth + 0.1, truth):.2f} dB"
        '20.00 dB'
    """
    return psnr(*_volume(x, reference), data_range="volume_max")


def fastmri_ssim(x: Tensor, reference: Tensor) -> float:
    """:func:`ssim` as fastMRI's ``evaluate.py`` has it: mean over slices, range the maximum of the *volume*; as
    :func:`fastmri_psnr`.

    Args:
        x, reference: (slice, y, x), magnitudes.

    Example:
        >>> from invdiff.evaluation import fastmri_ssim
        >>> truth = torch.rand(2, 16, 16)
        >>> round(fastmri_ssim(truth, truth), 6)
        1.0
    """
    return ssim(*_volume(x, reference), data_range="volume_max")


def fastmri_nmse(x: Tensor, reference: Tensor) -> float:
    """:func:`nmse` of the whole volume, as fastMRI's ``evaluate.py`` has it; as :func:`fastmri_psnr`.

    Args:
        x, reference: (slice, y, x), magnitudes.

    Example:
        >>> from invdiff.evaluation import fastmri_nmse
        >>> fastmri_nmse(torch.full((2, 8, 8), 1.5), torch.ones(2, 8, 8))
        0.25
    """
    return nmse(*_volume(x, reference))


def lodopab_psnr(x: Tensor, reference: Tensor) -> float:
    """PSNR in dB as the LoDoPaB-CT challenge has it (Leuschner et al. 2021): the range of each image is the
    maximum minus the minimum of its reference. Several images (n, y, x) are scored one by one and averaged.

    Args:
        x, reference: (y, x) or (n, y, x), any units.

    Example:
        >>> from invdiff.evaluation import lodopab_psnr
        >>> truth = torch.tensor([[0.0, 1.0], [1.0, 3.0]])  # range 3
        >>> f"{lodopab_psnr(truth + 0.3, truth):.2f} dB"
        '20.00 dB'
    """
    images = _images(x, reference)
    return sum(psnr(a, b, data_range=b.max() - b.min()) for a, b in images) / len(images)


def lodopab_ssim(x: Tensor, reference: Tensor) -> float:
    """:func:`ssim` as the LoDoPaB-CT challenge has it; range and averaging as :func:`lodopab_psnr`.

    Args:
        x, reference: (y, x) or (n, y, x), any units.

    Example:
        >>> from invdiff.evaluation import lodopab_ssim
        >>> truth = torch.rand(16, 16)
        >>> round(lodopab_ssim(truth, truth), 6)
        1.0
    """
    images = _images(x, reference)
    return sum(ssim(a, b, data_range=b.max() - b.min()) for a, b in images) / len(images)


def lodopab_psnr_fr(x: Tensor, reference: Tensor) -> float:
    """PSNR-FR in dB of the LoDoPaB-CT challenge: fixed range 1.0 of images divided by mu_max, here of images in
    1/mm, so ``LODOPAB_MU_MAX``. (Images still divided by mu_max: ``psnr(..., data_range=1.0)``, one by one.)

    Args:
        x, reference: (y, x) or (n, y, x), 1/mm.

    Example:
        >>> from invdiff.evaluation import lodopab_psnr_fr
        >>> from invdiff.evaluation.metrics import LODOPAB_MU_MAX
        >>> truth = torch.rand(8, 8) * LODOPAB_MU_MAX
        >>> f"{lodopab_psnr_fr(truth + 0.1 * LODOPAB_MU_MAX, truth):.2f} dB"
        '20.00 dB'
    """
    images = _images(x, reference)
    return sum(psnr(a, b, data_range=LODOPAB_MU_MAX) for a, b in images) / len(images)


def lodopab_ssim_fr(x: Tensor, reference: Tensor) -> float:
    """SSIM-FR of the LoDoPaB-CT challenge; images in 1/mm, range as :func:`lodopab_psnr_fr`.

    Args:
        x, reference: (y, x) or (n, y, x), 1/mm.

    Example:
        >>> from invdiff.evaluation import lodopab_ssim_fr
        >>> truth = 0.02 * torch.rand(16, 16)  # 1/mm
        >>> round(lodopab_ssim_fr(truth, truth), 6)
        1.0
    """
    return ssim(x, reference, data_range=LODOPAB_MU_MAX)


def _planes(x: Tensor, reference: Tensor, data_range: DataRange, smallest: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Both images as float64 (n_planes, y, x), and the range of each plane (n_planes,), once everything is right."""
    if x.shape != reference.shape:
        raise ValueError(f"The images must have the same shape, got {tuple(x.shape)} and {tuple(reference.shape)}.")
    if x.ndim < 2 or min(x.shape[-2:]) < smallest or not x.numel():
        raise ValueError(f"Expected images (*slices, y, x) of at least {smallest} x {smallest}, got {tuple(x.shape)}.")
    if x.is_complex() or reference.is_complex():
        raise ValueError("Expected real images, got complex ones. Pass magnitudes, x.abs().")
    a, b = (t.detach().double().reshape(-1, *t.shape[-2:]) for t in (x, reference))
    for name, t in (("x", a), ("reference", b)):
        if not t.isfinite().all():
            raise ValueError(f"{name} has {int((~t.isfinite()).sum())} values that are not finite.")
    return a, b, _range(b, data_range)


def _range(b: Tensor, data_range: DataRange) -> Tensor:
    if isinstance(data_range, str):
        if data_range not in ("slice_max", "volume_max"):
            raise ValueError(f'data_range must be a number, "slice_max" or "volume_max", got "{data_range}".')
        L = b.amax((1, 2)) if data_range == "slice_max" else b.max().expand(len(b))
        if not (L > 0).all():
            raise ValueError(f'data_range="{data_range}" is {float(L.min())} here: pass a positive number instead.')
        return L
    if data_range is None or isinstance(data_range, bool):
        raise ValueError(f'data_range must be a number, "slice_max" or "volume_max", got {data_range}.')
    if not (math.isfinite(data_range) and data_range > 0):
        raise ValueError(f"data_range must be positive and finite, got {float(data_range)}.")
    return torch.full((len(b),), float(data_range), dtype=b.dtype, device=b.device)


def _ssim_terms(
    a: Tensor, b: Tensor, L: Tensor, mean: Callable[[Tensor], Tensor], unbias: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Luminance and contrast-structure terms of SSIM per window."""
    c1, c2 = ((k * L[:, None, None]) ** 2 for k in (0.01, 0.03))
    ma, mb = mean(a), mean(b)
    va, vb, cov = (
        unbias * (mean(s * t) - ms * mt) for s, t, ms, mt in ((a, a, ma, ma), (b, b, mb, mb), (a, b, ma, mb))
    )
    return (2 * ma * mb + c1) / (ma**2 + mb**2 + c1), (2 * cov + c2) / (va + vb + c2)


def _halve(t: Tensor) -> Tensor:
    """Means of 2 x 2 blocks, zero beyond an odd border."""
    return F.avg_pool2d(F.pad(t, (0, t.shape[-1] % 2, 0, t.shape[-2] % 2)), 2)


def _haar(t: Tensor, scale: int) -> Tensor:
    """Magnitude of the Haar coefficients along y at every pixel of (n, y, x): 2^-scale times the sum over the lower
    minus that over the upper half of a square of side 2^scale."""
    k = 2**scale
    kernel = torch.full((1, 1, k, k), 1 / k, dtype=t.dtype, device=t.device)
    kernel[:, :, : k // 2] *= -1
    return F.conv2d(F.pad(t[:, None], (k // 2 - 1, k // 2, k // 2 - 1, k // 2)), kernel)[:, 0].abs()


def _volume(x: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    if reference.ndim != 3:
        raise ValueError(f"Expected a whole volume (slice, y, x), got {tuple(reference.shape)}.")
    return x, reference


def _images(x: Tensor, reference: Tensor) -> list[tuple[Tensor, Tensor]]:
    a, b, _ = _planes(x, reference, 1.0)
    return list(zip(a, b, strict=True))
