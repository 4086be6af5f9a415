"""Two real CT scans reconstructed by filtered back projection: docs/images/ct_real_data.png.

    python docs/figures/ct_real_data.py --data FOLDER --out docs/images/ct_real_data.png

FOLDER holds ``tomopy_tooth.h5`` (tomopy's synchrotron tooth: raw counts with flats and darks, the rotation axis far
from the middle of the detector) and ``htc2022_ta_full.mat`` (Helsinki Tomography Challenge 2022, Zenodo 6984868, CC BY
4.0). The tooth's rotation axis is found by :func:`invdiff.classical.centre.find_centre`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import h5py
import matplotlib
import numpy as np
import torch

from invdiff.classical.centre import find_centre
from invdiff.classical.fbp import fbp
from invdiff.datasets.ct_counts import flat_field_correction
from invdiff.datasets.htc import read_htc
from invdiff.operators import ParallelBeam

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def tooth(path: Path) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Row 0 with the axis at the middle of the detector, with the axis where it is, and its column."""
    with h5py.File(path) as f:
        raw, flats, darks, degrees = (f[f"exchange/{k}"][()] for k in ("data", "data_white", "data_dark", "theta"))
    corrected = flat_field_correction(raw, flats, darks)
    print(f"tooth: {corrected.gain:.2f} counts per photon, read-out noise {corrected.electronic:.1f} photons")
    y = torch.from_numpy(corrected.line_integrals[:, 0])
    # the file does not say how large a detector element is, so lengths are in elements
    g = ParallelBeam(
        image_shape=(400, 400),
        pixel_size=0.85,
        angles=np.deg2rad(degrees),
        n_detectors=y.shape[1],
        detector_spacing=1.0,
    )
    column = find_centre(y, g)
    print(f"tooth: the rotation axis falls on column {column:.2f} of {y.shape[1]}")
    return fbp(y, g, window="hann"), fbp(y, g.with_centre(column), window="hann"), column


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    wrong, right, column = tooth(arguments.data / "tomopy_tooth.h5")
    htc = read_htc(arguments.data / "htc2022_ta_full.mat", image_shape=(400, 400), rebin=1)
    disc = fbp(htc.y, htc.A.geometry, window="hann")[0]

    panels = [
        (wrong, "tooth, axis at the middle", "1/element", (0, float(right.quantile(0.999)))),
        (right, f"tooth, axis at column {column:.1f}", "1/element", (0, float(right.quantile(0.999)))),
        (disc, "Helsinki disc a, 720 views", "1/mm", (0, 0.04)),
    ]
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.4), layout="constrained")
    for axis, (image, title, units, limits) in zip(axes, panels, strict=True):
        shown = axis.imshow(image, cmap="gray", vmin=limits[0], vmax=limits[1])
        axis.set_title(title, fontsize=9)
        axis.set_axis_off()
        bar = figure.colorbar(shown, ax=axis, shrink=0.75)
        bar.ax.tick_params(labelsize=6)
        bar.set_label(units, fontsize=7)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out, dpi=110)


if __name__ == "__main__":
    main()
