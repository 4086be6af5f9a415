"""Classical reconstructions: one baseline per file, same call as an algorithm."""

from invdiff.classical.cg_sense import CGSense
from invdiff.classical.cgls import CGLS
from invdiff.classical.coherence_factor import CoherenceFactor
from invdiff.classical.das import DAS
from invdiff.classical.fbp import FBP
from invdiff.classical.fdk import FDK
from invdiff.classical.l1_wavelet import L1Wavelet
from invdiff.classical.minimum_variance import MinimumVariance
from invdiff.classical.osem import OSEM
from invdiff.classical.ostr import OSTR
from invdiff.classical.pnp import PnP
from invdiff.classical.richardson_lucy import RichardsonLucy
from invdiff.classical.sirt import SIRT
from invdiff.classical.tv import TV
from invdiff.classical.wiener import Wiener
from invdiff.classical.zero_filled import ZeroFilled

CLASSICAL: dict[str, type] = {
    "cg-sense": CGSense,
    "cgls": CGLS,
    "coherence-factor": CoherenceFactor,
    "das": DAS,
    "fbp": FBP,
    "fdk": FDK,
    "l1-wavelet": L1Wavelet,
    "minimum-variance": MinimumVariance,
    "osem": OSEM,
    "ostr": OSTR,
    "pnp": PnP,
    "richardson-lucy": RichardsonLucy,
    "sirt": SIRT,
    "tv": TV,
    "wiener": Wiener,
    "zero-filled": ZeroFilled,
}

__all__ = [
    "CGLS", "CLASSICAL", "DAS", "FBP", "FDK", "OSEM", "OSTR", "SIRT", "TV", "CGSense", "CoherenceFactor", "L1Wavelet",
    "MinimumVariance", "PnP", "RichardsonLucy", "Wiener", "ZeroFilled",
]  # fmt: skip
