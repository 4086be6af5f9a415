"""Classical reconstructions: one baseline per file, same call as an algorithm."""

from invdiff.classical.cg_sense import CGSense
from invdiff.classical.cgls import CGLS
from invdiff.classical.fbp import FBP
from invdiff.classical.fdk import FDK
from invdiff.classical.l1_wavelet import L1Wavelet
from invdiff.classical.richardson_lucy import RichardsonLucy
from invdiff.classical.sirt import SIRT
from invdiff.classical.tv import TV
from invdiff.classical.wiener import Wiener
from invdiff.classical.zero_filled import ZeroFilled

CLASSICAL: dict[str, type] = {
    "cg-sense": CGSense,
    "cgls": CGLS,
    "fbp": FBP,
    "fdk": FDK,
    "l1-wavelet": L1Wavelet,
    "richardson-lucy": RichardsonLucy,
    "sirt": SIRT,
    "tv": TV,
    "wiener": Wiener,
    "zero-filled": ZeroFilled,
}

__all__ = [
    "CGLS",
    "CLASSICAL",
    "FBP",
    "FDK",
    "SIRT",
    "TV",
    "CGSense",
    "L1Wavelet",
    "RichardsonLucy",
    "Wiener",
    "ZeroFilled",
]
