"""Hounsfield units and linear attenuation.

By definition (ICRU Report 87) water has 0 HU and air -1000 HU: HU = 1000 (mu - mu_water) / (mu_water - mu_air).
"""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
from torch import Tensor

Image = TypeVar("Image", Tensor, np.ndarray)
MU_WATER = 0.0193  # 1/mm at 70 keV, the effective energy of a 120 kVp spectrum (NIST XCOM)


def hu_to_attenuation(hu: Image, *, mu_water: float = MU_WATER, mu_air: float = 0.0) -> Image:
    """Hounsfield units to linear attenuation in 1/mm.

    Values below -1000 HU, as padding outside a scanner's field of view has, become negative; clip them.

    Args:
        hu: any shape, floating point.
        mu_water: attenuation of water at the effective energy of the spectrum, 1/mm.
        mu_air: of air, 1/mm; scanners differ in whether they neglect it (at 70 keV it is 2e-5, or 1 HU).
    """
    scale = _scale(mu_water, mu_air)
    return mu_water + hu * scale


def attenuation_to_hu(attenuation: Image, *, mu_water: float = MU_WATER, mu_air: float = 0.0) -> Image:
    """Linear attenuation in 1/mm to Hounsfield units, the inverse of :func:`hu_to_attenuation`."""
    return (attenuation - mu_water) / _scale(mu_water, mu_air)


def _scale(mu_water: float, mu_air: float) -> float:
    if not (math.isfinite(mu_water) and 0 <= mu_air < mu_water):
        raise ValueError(f"Expected 0 <= mu_air < mu_water in 1/mm, got mu_air={mu_air!r} and mu_water={mu_water!r}.")
    if mu_water > 1:
        raise ValueError(f"mu_water={mu_water!r} is not in 1/mm; divide values in 1/m by 1000 and in 1/cm by 10.")
    return (mu_water - mu_air) / 1000
