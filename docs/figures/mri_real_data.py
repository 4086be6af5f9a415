"""Real 8-coil brain k-space, an eighth of it measured: zero-filled, CG-SENSE and L1-wavelet.

    python docs/figures/mri_real_data.py --data FOLDER --out docs/images/mri_real_data.png

FOLDER holds ``sigpy_brain8ch_poisson.npy``: ``data/cartesian_ksp.npy`` of mikgroup/sigpy-mri-tutorial (BSD-3), k-space
(8, 230, 180), variable-density Poisson-disc samples. There is no fully sampled truth. Maps, phase and noise are
estimated from the data (:func:`invdiff.datasets.kspace_measurement`). Printed for each image: how well it predicts 5 %
of the samples, which were left out of another reconstruction by the same method.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch

from invdiff import Measurement
from invdiff.classical import CGSense, L1Wavelet, ZeroFilled
from invdiff.datasets import kspace_measurement


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    kspace = np.load(arguments.data / "sigpy_brain8ch_poisson.npy", allow_pickle=False)
    mask = (kspace != 0).any(0)
    ny, nx = mask.shape
    held = mask & (np.random.default_rng(0).random(mask.shape) < 0.05)
    held[ny // 2 - 12 : ny // 2 + 12, nx // 2 - 12 : nx // 2 + 12] = False  # the calibration region is kept

    whole = kspace_measurement(kspace, magnitude=False, crop=0.8)
    maps = whole.A.outer.maps  # type: ignore[attr-defined]
    part = kspace_measurement(kspace, mask=mask & ~held, maps=maps, magnitude=False)
    left_out = torch.from_numpy(held)

    def prediction_error(x: torch.Tensor) -> float:
        return float((whole.A(x) - whole.y)[:, left_out].norm() / whole.y[:, left_out].norm())

    def weight(m: Measurement) -> float:
        return 0.15 * m.image_scale / m.noise.sigma  # type: ignore[attr-defined]

    methods = {
        "zero-filled": lambda m: ZeroFilled()(None, m),
        "CG-SENSE, 15 steps": lambda m: CGSense(n_steps=15)(None, m),
        "L1-wavelet, 40 steps": lambda m: L1Wavelet(weight=weight(m), n_steps=40)(None, m),
    }
    images = []
    for name, method in methods.items():
        images.append(method(whole).mean.norm(dim=0))
        print(f"{name}: error of predicted samples {prediction_error(method(part).mean):.3f}")
    print(f"acceleration {mask.size / mask.sum():.1f}, {whole.noise!r}, scale {whole.image_scale:.3g}")

    figure, axes = plt.subplots(1, 4, figsize=(10, 3.6), layout="constrained")
    axes[0].imshow(mask, cmap="gray", interpolation="nearest")
    axes[0].set_title(f"{100 * mask.mean():.1f} % of k-space")
    for axis, name, image in zip(axes[1:], methods, images, strict=True):
        axis.imshow(image, cmap="gray", vmin=0, vmax=float(torch.quantile(image, 0.997)))
        axis.set_title(name)
    for axis in axes:
        axis.set_axis_off()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out, dpi=110)


if __name__ == "__main__":
    main()
