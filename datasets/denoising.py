"""A slice of an image volume as a measurement of itself: the image that a scanner stored, with its noise."""

from __future__ import annotations

import numpy as np
import torch

from invdiff.datasets.ct_units import MU_WATER, hu_to_attenuation
from invdiff.datasets.files import Volume
from invdiff.datasets.geometry import placed
from invdiff.measurement import Measurement
from invdiff.noise import GaussianNoise
from invdiff.operators.pointwise import Identity


def denoising(
    volume: Volume,
    *,
    index: int | None = None,
    sigma: float | None = None,
    bin: int = 1,
    image_shape: tuple[int, int] | None = None,
) -> Measurement:
    """``y = x + noise`` for one axial slice of a volume, row 0 anterior and column 0 left in RAS order.

    Hounsfield units become attenuation in 1/mm, what a CT prior knows; other values stay, and the 99.5th percentile of
    the positive ones becomes ``image_scale``.

    Args:
        volume: real, (z, y, x), or with leading dimensions of length 1.
        index: of the slice, counted from the feet; None: the middle one.
        sigma: noise, in the units of the measurement; None: from the finest diagonal Haar coefficients of the slice
            by their median absolute deviation (Donoho and Johnstone 1994), which takes fine texture for noise.
        bin: side of the square of pixels to average.
        image_shape: (ny, nx) to crop or pad to around the middle, after averaging; None: as it is. Padding takes the
            smallest value (air).

    Raises:
        ValueError: complex or several volumes, an index outside, a slice without any noise to estimate.

    Example:
        >>> import numpy as np
        >>> from invdiff.datasets import Volume, denoising
        >>> noisy = Volume(5 + np.random.default_rng(0).normal(size=(3, 64, 64)))
        >>> m = denoising(noisy)
        >>> tuple(m.y.shape), bool(abs(m.noise.sigma - 1) < 0.1)  # estimated
        ((1, 64, 64), True)
    """
    import nibabel

    data = volume.data
    if data.ndim < 3 or any(n != 1 for n in data.shape[:-3]) or data.dtype.kind not in "fiu":
        raise ValueError(f"Expected one real volume (z, y, x), got {data.dtype} of shape {data.shape}.")
    data = data.reshape(data.shape[-3:])
    affine = np.eye(4) if volume.affine is None else volume.affine
    if volume.affine is not None:
        canonical = nibabel.as_closest_canonical(nibabel.Nifti1Pair(data.T.astype(np.float32), affine))
        data, affine = np.asarray(canonical.dataobj).T[:, ::-1], canonical.affine
        affine = affine @ np.array([[1, 0, 0, 0], [0, -1, 0, data.shape[1] - 1], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    n = data.shape[0]
    index = n // 2 if index is None else index
    if not 0 <= index < n:
        raise ValueError(f"The volume has {n} slices; index must lie in 0 to {n - 1}, got {index}.")
    if bin < 1 or min(data.shape[1:]) < bin:
        raise ValueError(f"bin must lie between 1 and the image's size {data.shape[1:]}, got {bin}.")
    x = data[index].astype(np.float64)
    affine = affine @ _shift(0, 0, index)
    units, scale = volume.units, 1.0
    if units == "HU":
        x, units, scale = np.clip(hu_to_attenuation(x), 0, None), "1/mm", MU_WATER

    ny, nx = (s // bin for s in x.shape)
    x = x[: ny * bin, : nx * bin].reshape(ny, bin, nx, bin).mean((1, 3))
    affine = affine @ _shift((bin - 1) / 2, (bin - 1) / 2, 0) @ np.diag([bin, bin, 1.0, 1.0])
    if sigma is None:
        sigma = haar_noise(x)
    if image_shape is not None:
        x, (left, top) = _fit(x, (int(image_shape[0]), int(image_shape[1])))
        affine = affine @ _shift(left, top, 0)
    if units != "1/mm":
        positive = x[x > 0]
        scale = float(np.percentile(positive, 99.5)) if positive.size else 1.0
    return Measurement(
        y=torch.from_numpy(x).float()[None],
        A=Identity((1, *x.shape)),
        noise=GaussianNoise(float(sigma)),
        image_scale=scale,
        units=units,
        item=f"{str(volume.metadata.get('file', 'volume')).split('.')[0]}_{index}",
        metadata={**volume.metadata, "slice": int(index), **placed(affine)},
    )


def haar_noise(x: np.ndarray) -> float:
    """Standard deviation of white noise in an image (y, x), from its finest diagonal Haar coefficients that are not
    zero (clipped background has none). Raises ValueError where all are."""
    ny, nx = (s // 2 * 2 for s in x.shape)
    a, b, c, d = (x[i:ny:2, j:nx:2] for i in (0, 1) for j in (0, 1))
    detail = np.abs(a - b - c + d).ravel() / 2
    detail = detail[detail > 0]
    if not detail.size:
        raise ValueError("The slice has no noise to estimate; give sigma.")
    return 1.4826 * float(np.median(detail))


def _shift(x: float, y: float, z: float) -> np.ndarray:
    shift = np.eye(4)
    shift[:3, 3] = x, y, z
    return shift


def _fit(x: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """Crop or pad around the middle; also the (x, y) index of the new first pixel in the old image."""
    out = np.full(shape, x.min())
    start = [(n - m) // 2 for n, m in zip(x.shape, shape, strict=True)]
    old = tuple(slice(max(0, s), min(n, s + m)) for s, n, m in zip(start, x.shape, shape, strict=True))
    new = tuple(slice(o.start - s, o.stop - s) for s, o in zip(start, old, strict=True))
    out[new] = x[old]
    return out, (start[1], start[0])
