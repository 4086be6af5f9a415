"""Where the rotation axis falls on the detector, from the projections themselves, without a reconstruction.

This is a first guess, good to some tenths of an element, for readers of files that do not say it.
:func:`invdiff.classical.centre.find_centre` starts from it and compares reconstructions, which is finer; it takes fans.
"""

from __future__ import annotations

import numpy as np


def centre_of_projections(sinogram: np.ndarray, theta: np.ndarray) -> float:
    """Index of the detector element that the rotation axis projects onto, to a fraction of an element.

    The centre of mass of a parallel projection is that of the object, projected: ``c + x cos(theta) + y sin(theta)``
    (the first moment of the Helgason-Ludwig conditions), so ``c`` follows from all views by least squares. This
    needs views that see the whole object; where the sinogram does not fall to zero at its edges, the two views that
    are closest to half a turn apart are compared with one of them mirrored, instead.

    Args:
        sinogram: line integrals, (n_views, n_detectors).
        theta: degrees, (n_views,).

    Raises:
        ValueError: no object in the data, or too few views; name the centre then.
    """
    n_views, n = sinogram.shape
    mass = sinogram.sum(1)
    edge = np.concatenate([sinogram[:, : max(1, n // 50)], sinogram[:, -max(1, n // 50) :]], 1)
    t = np.deg2rad(theta)
    if mass.min() > 0 and np.median(edge) < 0.02 * sinogram.max() and n_views >= 3:
        centre_of_mass = sinogram @ np.arange(n) / mass
        design = np.stack([np.ones(n_views), np.cos(t), np.sin(t)], 1)
        if np.linalg.cond(design) < 100:
            return float(np.clip(np.linalg.lstsq(design, centre_of_mass, rcond=None)[0][0], 0, n - 1))
    apart = np.abs(theta[:, None] - theta[None])
    a, b = np.unravel_index(np.abs(apart - 180).argmin(), apart.shape)
    if not abs(apart[a, b] - 180) < 3 or not np.ptp(sinogram) > 0:
        raise ValueError("The rotation centre cannot be estimated: no two views are half a turn apart. Give it.")
    candidates = np.arange(n / 4, 3 * n / 4, 0.25)
    element = np.arange(n)
    misfit = []
    for c in candidates:
        mirrored = 2 * c - element
        seen = (mirrored >= 0) & (mirrored <= n - 1)
        misfit.append(np.mean((sinogram[a][seen] - np.interp(mirrored[seen], element, sinogram[b])) ** 2))
    return float(candidates[int(np.argmin(misfit))])
