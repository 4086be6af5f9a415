"""From raw detector counts to line integrals: flat and dark fields, noise weights, rotation centre."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class Projections(NamedTuple):
    """Corrected projections; arrays have the shape of the raw ones.

    Attributes:
        transmission: (raw - dark) / (flat - dark), float64; not clipped, so noise may make it negative or above 1.
        line_integrals: -log of it, float32, without unit.
        weights: inverse variance of the line integrals, float32: the argument of ``WeightedGaussianNoise``.
        gain: detector units per photon.
        electronic: standard deviation of the read-out noise, in photons.
    """

    transmission: np.ndarray
    line_integrals: np.ndarray
    weights: np.ndarray
    gain: float
    electronic: float


def flat_field_correction(
    projections: np.ndarray,
    flats: np.ndarray,
    darks: np.ndarray,
    *,
    gain: float | None = None,
    min_count: float = 0.1,
) -> Projections:
    """Line integrals and their noise weights from raw counts.

    With I photons in a ray and F in the flat field, averaged over n frames, and s the electronic noise in photons, the
    variance of -log(I / F) is to first order ``(I + s^2) / I^2 + (F + s^2) / (n F^2)``. The second part, the noise of
    the flat field, is the same in every view and shows as rings.

    Args:
        projections: (n_views, ...), raw detector values.
        flats: (n_flats, ...), the same without object.
        darks: (n_darks, ...), the same without X-rays.
        gain: detector units per photon. None: estimated from how much successive flats and darks differ (photon
            transfer: variance over mean); needs at least two of each. A beam that moves between the flats makes the
            estimate too high and the weights too small.
        min_count: photons to which darker rays are set before the logarithm.

    Raises:
        ValueError: shapes that do not fit, non-finite values, elements that are not brighter in the flats than in the
            darks, no way to estimate the gain.
    """
    raw, flats, darks = (np.asarray(a, dtype=np.float64) for a in (projections, flats, darks))
    for name, a in (("projections", raw), ("flats", flats), ("darks", darks)):
        if a.ndim < 2 or not len(a) or a.shape[1:] != raw.shape[1:]:
            raise ValueError(f"{name} must be (n, ...) with frames of shape {raw.shape[1:]}, got {a.shape}.")
        if not np.isfinite(a).all():
            raise ValueError(f"{name} has {int((~np.isfinite(a)).sum())} non-finite value(s). Repair them first.")
    dark = darks.mean(0)
    white = flats.mean(0) - dark
    dead = int((white <= 0).sum())
    if dead:
        raise ValueError(
            f"{dead} of {white.size} detector elements are not brighter in the flats than in the darks. Cut them "
            f"off, or replace them by their neighbours, in projections, flats and darks."
        )
    dark_variance = _variance(darks) if len(darks) > 1 else 0.0
    if gain is None:
        if min(len(flats), len(darks)) < 2:
            raise ValueError("The gain is estimated from two or more flats and darks. Take more, or give gain=.")
        gain = (_variance(flats) - dark_variance) / float(white.mean())
    if not (math.isfinite(gain) and gain > 0):
        raise ValueError(f"gain must be a positive number of detector units per photon, got {gain!r}.")

    transmission = (raw - dark) / white
    photons, blank = np.maximum((raw - dark) / gain, min_count), white / gain
    s2 = dark_variance / gain**2
    variance = (photons + s2) / photons**2 + (blank + s2) / (len(flats) * blank**2)
    return Projections(
        transmission, np.log(blank / photons).astype(np.float32), (1 / variance).astype(np.float32), gain, math.sqrt(s2)
    )


def _variance(frames: np.ndarray) -> float:
    """Temporal variance, averaged over elements; from successive differences, which slow drift does not reach."""
    return float(np.square(np.diff(frames, axis=0)).mean()) / 2
