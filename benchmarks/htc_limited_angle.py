"""Limited-angle tomography of real discs: segmentation from 90, 60 and 40 degrees of the turn.

    python benchmarks/htc_limited_angle.py --data FOLDER [--samples 12] [--figure docs/images/htc_limited_angle.jpg]

FOLDER holds the training files of the Helsinki Tomography Challenge 2022 (``ct_raw/htc2022_t?_full.mat`` and the
segmentations that the organisers made from all views). The prior, acrylic-disc-128, has seen phantoms only. Beam
hardening is undone with the uniform disc's curve; 0.01 is taken as the model error of 128 x 128 pixels. The weight of
TV is chosen on three phantoms, whose rays are simulated with the same views. Images are enlarged to 512 x 512 by
cubic splines and divided by Otsu's threshold; the score is the challenge's, Matthews correlation. The figure
shows, for one arc, the probability that a pixel is acrylic, and that the border of a hole or of the disc
passes through it: both are shares of the posterior samples.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import scipy.io
import torch
import torch.nn.functional as F
from skimage.filters import threshold_otsu

from invdiff import Measurement, load_prior
from invdiff.algorithms import DAPS
from invdiff.classical import FBP, TV
from invdiff.datasets import AcrylicDiscs, read_htc
from invdiff.evaluation import mcc

DISCS, ARCS, WEIGHTS = ("ta", "tb", "tc", "td"), (90.0, 60.0, 40.0), (1.0, 3.0, 10.0, 30.0, 100.0)
ACRYLIC = 0.045  # 1/mm after linearisation
PIXEL = 512 / 128 * 0.2 * 410.66 / 553.74  # mm; the segmentations have 512 x 512 pixels of a detector element each


def measure(data: Path, disc: str, arc: float) -> Measurement:
    """A view every degree, elements averaged by four; acrylic is 0.96 of ``image_scale``, as in the phantoms."""
    return read_htc(
        data / "ct_raw" / f"htc2022_{disc}_full.mat", pixel_size=PIXEL, angles=(0.0, arc), views=round(arc) + 1,
        rebin=4, linearise=True, model_error=0.01, image_scale=ACRYLIC / 0.96,
    )  # fmt: skip


def enlarged(x: torch.Tensor) -> torch.Tensor:
    """(..., 128, 128) to (..., 512, 512)."""
    x = x.reshape(-1, 1, *x.shape[-2:])
    return F.interpolate(x, (512, 512), mode="bicubic", align_corners=False)[:, 0]


def segmented(x: torch.Tensor) -> torch.Tensor:
    big = enlarged(x)[0]
    return big > float(threshold_otsu(big.numpy()))


def border(mask: torch.Tensor) -> torch.Tensor:
    """Pixels of (n, y, x) masks that have a neighbour of the other kind."""
    x = mask.float()[:, None]
    return (F.max_pool2d(x, 3, 1, 1) + F.max_pool2d(-x, 3, 1, 1))[:, 0] > 0


def tune(m: Measurement) -> float:
    """The weight of TV with the best mean score on three phantoms seen through the same views."""
    phantoms = AcrylicDiscs(3, (128, 128), PIXEL, seed=7, attenuation=ACRYLIC, cupping=0.0)
    scores = {}
    for w in WEIGHTS:
        values = []
        for i in range(3):
            s = Measurement.simulate(phantoms[i], m.A, m.noise, seed=i, image_scale=m.image_scale)
            truth = enlarged(phantoms[i])[0] > ACRYLIC / 2
            values.append(mcc(segmented(TV(weight=w, non_negative=True)(None, s).mean), truth))
        scores[w] = sum(values) / 3
    return max(scores, key=scores.__getitem__)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=12)
    parser.add_argument("--arc-of-figure", type=float, default=60.0)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    prior, rows = load_prior("acrylic-disc-128").fast(bfloat16=True), []
    print(f"Matthews correlation with the organisers' segmentation; {arguments.samples} samples of DAPS, 50 levels\n")
    print(f"{'arc':>5}{'disc':>7}{'FBP':>8}{'TV':>8}{'mean':>8}{'chi2':>8}{'seconds':>9}")
    for arc in ARCS:
        weight = tune(measure(arguments.data, "ta", arc))
        scores = []
        for disc in DISCS:
            m = measure(arguments.data, disc, arc)
            file = arguments.data / "ct_raw" / f"htc2022_{disc}_full_recon_fbp_seg.mat"
            truth = torch.from_numpy(scipy.io.loadmat(file)["reconFullFbpSeg"] > 0)
            fbp, tv = FBP(window="hann")(None, m).mean, TV(weight=weight, non_negative=True)(None, m).mean
            p = DAPS(n_anneal=50)(prior, m, n_samples=arguments.samples)
            scores.append([mcc(segmented(x), truth) for x in (fbp, tv, p.mean)])
            chi2 = float(m.chi2(p.samples).mean())
            print(f"{arc:>5g}{disc:>7}" + "".join(f"{v:>8.3f}" for v in scores[-1]) + f"{chi2:>8.2f}{p.seconds:>9.1f}",
                  flush=True)  # fmt: skip
            if arc == arguments.arc_of_figure:
                acrylic = enlarged(p.samples) > ACRYLIC / 2
                rows.append((disc, truth.float(), fbp[0], tv[0], p.mean[0], acrylic.float().mean(0),
                             border(acrylic).float().mean(0)))  # fmt: skip
        means = torch.tensor(scores).mean(0).tolist()
        print(f"{arc:>5g}{'mean':>7}" + "".join(f"{v:>8.3f}" for v in means) + f"   TV weight {weight:g}\n", flush=True)
    if arguments.figure:
        draw(rows, arguments.arc_of_figure, arguments.figure)


def draw(rows: list, arc: float, path: Path) -> None:
    import matplotlib.pyplot as plt

    titles = ("segmentation of all views", "FBP", "TV", "posterior mean", "P(acrylic)", "P(border)")
    figure, axes = plt.subplots(len(rows), 6, figsize=(12, 2.08 * len(rows) + 0.3), layout="constrained")
    for row, (line, (disc, *images)) in enumerate(zip(axes, rows, strict=True)):
        for k, (axis, image, title) in enumerate(zip(line, images, titles, strict=True)):
            top = ACRYLIC * 1.15 if k in (1, 2, 3) else 1.0 if k != 5 else 0.6
            axis.imshow(image, cmap="gray" if k < 4 else "magma" if k == 5 else "viridis", vmin=0, vmax=top)
            axis.set(xticks=[], yticks=[])
            if row == 0:
                axis.set_title(title, fontsize=10)
        line[0].set_ylabel(f"{disc}, {arc:g} degrees", fontsize=9)
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    main()
