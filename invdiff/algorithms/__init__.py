"""Posterior-sampling algorithms: one file is one paper."""

from invdiff.algorithms.daps import DAPS
from invdiff.algorithms.ddnm import DDNM
from invdiff.algorithms.ddrm import DDRM
from invdiff.algorithms.dds import DDS
from invdiff.algorithms.diffpir import DiffPIR
from invdiff.algorithms.dps import DPS
from invdiff.algorithms.mcg import MCG, MCGTomography
from invdiff.algorithms.pigdm import PiGDM
from invdiff.algorithms.pnp_dm import PnPDM
from invdiff.algorithms.psld import PSLD
from invdiff.algorithms.red_diff import REDDiff
from invdiff.algorithms.resample import ReSample
from invdiff.algorithms.tds import TDS

ALGORITHMS: dict[str, type] = {
    "daps": DAPS,
    "ddnm": DDNM,
    "ddrm": DDRM,
    "dds": DDS,
    "diffpir": DiffPIR,
    "dps": DPS,
    "mcg": MCG,
    "mcg-tomography": MCGTomography,
    "pigdm": PiGDM,
    "pnp-dm": PnPDM,
    "psld": PSLD,
    "red-diff": REDDiff,
    "resample": ReSample,
    "tds": TDS,
}

__all__ = [
    "ALGORITHMS", "DAPS", "DDNM", "DDRM", "DDS", "DPS", "MCG", "PSLD", "TDS", "DiffPIR", "MCGTomography", "PiGDM",
    "PnPDM", "REDDiff", "ReSample",
]  # fmt: skip
