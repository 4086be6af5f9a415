"""Classical reconstructions: one baseline per file, same call as an algorithm."""

from invdiff.classical.cg_sense import CGSense
from invdiff.classical.fbp import FBP
from invdiff.classical.zero_filled import ZeroFilled

CLASSICAL: dict[str, type] = {"cg-sense": CGSense, "fbp": FBP, "zero-filled": ZeroFilled}

__all__ = ["CLASSICAL", "FBP", "CGSense", "ZeroFilled"]
