"""Posterior-sampling algorithms: one file is one paper."""

from invdiff.algorithms.daps import DAPS
from invdiff.algorithms.dps import DPS

ALGORITHMS: dict[str, type] = {"daps": DAPS, "dps": DPS}

__all__ = ["ALGORITHMS", "DAPS", "DPS"]
