"""Measured plane-wave data of a disc: delay and sum, coherence factor and minimum variance.

    python docs/figures/ultrasound_real_data.py --data FOLDER --out docs/images/ultrasound_real_data.png

FOLDER holds ``pymust_pwi_disk.mat``: RF of a rotating disc of 2 cm diameter in water, one level plane wave, 128
elements, 5 MHz (PWI_disk.mat of PyMUST, LGPL-2.1). gCNR is that of the inner disc against the water beside it, on
the envelope.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch

from invdiff.classical import DAS, CoherenceFactor, MinimumVariance
from invdiff.datasets import read_must
from invdiff.evaluation.ultrasound import contrast_ratio, disc_mask, gcnr
from invdiff.operators import find_plane_wave

CENTRE, RADIUS = (22.2, -0.1), 10.0  # (z, x) in mm, found by eye
DECIBELS = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    measurement = read_must(
        arguments.data / "pymust_pwi_disk.mat", image_shape=(220, 190), depth=(9.0, 36.0), f_number=1.5
    )
    wave = find_plane_wave(measurement.A)
    assert wave is not None
    scan = wave.scan
    inside = disc_mask(scan, CENTRE, 0.75 * RADIUS)
    outside = disc_mask(scan, CENTRE, 1.5 * RADIUS, hole=1.25 * RADIUS)
    x, z = scan.pixel_centres()

    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), sharey=True, layout="constrained")
    for axis, method in zip(axes, (DAS(), CoherenceFactor(), MinimumVariance()), strict=True):
        envelope = torch.linalg.vector_norm(method(None, measurement).mean, dim=0, keepdim=True)
        quality = gcnr(envelope, inside, outside), contrast_ratio(envelope, inside, outside)
        print(f"{type(method).__name__}: gCNR {quality[0]:.3f}, contrast {quality[1]:.1f} dB")
        decibels = 20 * np.log10(envelope[0].numpy() / float(envelope.max()) + 1e-9)
        shown = axis.imshow(
            decibels, cmap="gray", vmin=-DECIBELS, vmax=0, extent=(x[0], x[-1], z[-1], z[0]), aspect="equal"
        )
        axis.set_title(f"{type(method).__name__}\ngCNR {quality[0]:.2f}, contrast {quality[1]:.0f} dB", fontsize=10)
        axis.set_xlabel("x (mm)")
        for mask, colour in ((inside, "tab:cyan"), (outside, "tab:orange")):
            axis.contour(x, z, mask[0], levels=[0.5], colors=colour, linewidths=0.7)
    axes[0].set_ylabel("depth (mm)")
    figure.colorbar(shown, ax=axes, label="dB", shrink=0.85)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out, dpi=90)
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
