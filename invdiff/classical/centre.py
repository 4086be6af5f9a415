"""Where the rotation axis falls on the detector, from the data alone.

Source: T. Donath, F. Beckmann, A. Schreyer, "Automated determination of the center of rotation in tomography data",
J. Opt. Soc. Am. A 23, 1048-1057, 2006: of the reconstructions with different centres, the right one has the least
negative attenuation (their Q_IN; squared here). On half a turn, a wrong centre opens every edge into an arc on one side
and an overshoot on the other (tuning forks).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from invdiff.classical.fbp import fbp
from invdiff.datasets.ct_centre import centre_of_projections
from invdiff.operators.ct_geometry import CurvedFanBeam, FanBeam, ParallelBeam

COARSE = 1.0  # detector elements between the first candidates


def find_centre(
    y: Tensor,
    geometry: ParallelBeam | FanBeam | CurvedFanBeam,
    *,
    start: float | None = None,
    span: float = 8.0,
    tolerance: float = 0.05,
    window: str = "hann",
) -> float:
    """The detector column, counted from 0, on which the rotation axis falls, for ``geometry.with_centre(column)``.

    Of a scan over more than half a turn (plus the fan angle) only such a part is used, from the widest gap between
    views on: over a full turn a wrong centre blurs edges symmetrically, which lessens negative values. The views may
    come in any order and turn either way.

    Args:
        y: line integrals, (n_views, n_detectors), of an object in air that every view sees whole, over at least half a
            turn.
        geometry: its views and an image grid that holds the object; its own offset is only a start.
        start: first guess. None: for parallel beams that of the projections
            (:func:`invdiff.datasets.ct_centre.centre_of_projections`), for fans ``geometry.centre``.
        span: columns on either side of it that are tried.
        tolerance: of the result, in columns.
        window: of the filter, a key of ``invdiff.classical.fbp.WINDOWS``.

    Raises:
        ValueError: the best column is at the end of the span.
    """
    if tuple(y.shape) != (geometry.n_views, geometry.n_detectors):
        expected = (geometry.n_views, geometry.n_detectors)
        raise ValueError(f"y must be (n_views, n_detectors) = {expected}, got shape {tuple(y.shape)}.")
    since = np.mod(np.asarray(geometry.angles) - geometry.angles[0], 2 * math.pi)
    ordered = np.sort(since)
    gaps = np.diff(ordered, append=2 * math.pi)  # behind each view; the last one is before the scan's first view
    begin = ordered[(np.flatnonzero(gaps > gaps.max() / 2)[-1] + 1) % len(ordered)]
    arc = math.pi if isinstance(geometry, ParallelBeam) else math.pi + 2 * np.abs(geometry.fan_angles()).max()
    kept = np.flatnonzero(np.mod(since - begin, 2 * math.pi) <= arc + 1e-9)
    y, geometry = y[torch.from_numpy(kept).to(y.device)], geometry.subset(kept.tolist())
    if start is None:
        start = geometry.centre
        if isinstance(geometry, ParallelBeam):
            start = centre_of_projections(y.double().cpu().numpy(), np.rad2deg(geometry.angles))

    def negative(column: float) -> float:
        image = fbp(y, geometry.with_centre(column), window=window)
        return float(image.clamp(max=0).double().square().sum())

    columns = np.arange(start - span, start + span + COARSE / 2, COARSE)
    best = int(np.argmin([negative(c) for c in columns]))
    if best in (0, len(columns) - 1):
        raise ValueError(
            f"No centre of rotation between columns {columns[0]:.1f} and {columns[-1]:.1f}: the reconstruction is best "
            f"at the end of this span. Give another start= or a wider span=."
        )
    low, high = float(columns[best - 1]), float(columns[best + 1])
    while high - low > 2 * tolerance:  # three candidates inside: drop a quarter at either end, or half
        inner = np.linspace(low, high, 5)[1:4]
        i = int(np.argmin([negative(c) for c in inner]))
        low, high = inner[i] - (inner[1] - inner[0]), inner[i] + (inner[1] - inner[0])
    return (low + high) / 2
