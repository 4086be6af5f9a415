"""Files and phantoms: each source in one file, each giving a Measurement or images."""

if __name__ != "invdiff.datasets":
    raise ImportError("This folder is imported as 'invdiff.datasets'; it is not the top-level package 'datasets'.")

from invdiff.datasets.bart import read_bart
from invdiff.datasets.denoising import denoising
from invdiff.datasets.examples import accelerated_mri, sparse_view_ct
from invdiff.datasets.fastmri import read_fastmri, write_fastmri
from invdiff.datasets.files import Volume, formats, open, open_measurement, recognise
from invdiff.datasets.htc import read_htc
from invdiff.datasets.ismrmrd import read_ismrmrd
from invdiff.datasets.kspace import kspace_measurement
from invdiff.datasets.must import read_must
from invdiff.datasets.phantoms import (
    AcrylicDiscs,
    BModePhantoms,
    BrainLike,
    DiscWithHoles,
    RandomEllipses,
    SpeckleCysts,
    ellipse_image,
    ellipse_sinogram,
    shepp_logan,
)
from invdiff.datasets.picmus import read_picmus
from invdiff.datasets.uff import read_uff
from invdiff.datasets.zea import read_zea

__all__ = [
    "AcrylicDiscs", "BModePhantoms", "BrainLike", "DiscWithHoles", "RandomEllipses", "SpeckleCysts", "Volume",
    "accelerated_mri", "denoising", "ellipse_image", "ellipse_sinogram", "formats", "kspace_measurement", "open",
    "open_measurement", "read_bart", "read_fastmri", "read_htc", "read_ismrmrd", "read_must", "read_picmus",
    "read_uff", "read_zea", "recognise", "shepp_logan", "sparse_view_ct", "write_fastmri",
]  # fmt: skip
