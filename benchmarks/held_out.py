"""How good and how calibrated DAPS is with the shipped priors, on slices of patients they were not trained on.

    python benchmarks/held_out.py --data FOLDER [--slices 10] [--width 2] [--on-tuning] [--only NAME ...]

FOLDER holds the volumes that the priors' configurations name as validation data. CT: parallel beam, 30 views,
2e4 photons, pixels of 3.2 mm, simulated on a three times finer grid. MRI: 8 birdcage coils, random columns, noise 0.01
per component of k-space, pixels of 1.5 mm; magnitude images, or complex ones with a smooth phase. B-mode: one scan
line in four of a display picture (a prostate phantom, another scanner), noise of 2 % of white.

The weights of TV and L1-wavelets are chosen on two other slices of the same volumes by PSNR. DAPS has width=2, chosen
among the paper's sigma_t and 1.5, 2 and 3 on those slices of CT and of MRI 4x by the spread-skill ratio.
Per method the mean over slices, with the standard deviation over slices in brackets, of: PSNR in dB (range: maximum
minus minimum of the truth) and SSIM; then, for the posterior, its gain over the better classical image of the
same slice; PSNR of one sample; chi2 of the samples; spread-skill ratio (1 if calibrated, above 1 over-dispersed);
share of the pixels inside the body that the range of 19 samples covers (90 % if calibrated).
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from invdiff import ComplexGaussianNoise, GaussianNoise, Measurement, load_prior
from invdiff.algorithms import DAPS
from invdiff.benchmark.problems import ct_slice, mri_slice, slice_of
from invdiff.classical import FBP, TV, CGSense, L1Wavelet
from invdiff.datasets import metaimage
from invdiff.evaluation import psnr, ssim
from invdiff.evaluation.calibration import spread_skill
from invdiff.operators import Inpainting, MultiCoilMRI, ViewAsComplex, birdcage_maps, random_mask

N_SAMPLES = 19  # the range of 19 samples holds an exchangeable truth with probability 18/20
Item = tuple[Path, float]


def complex_mri(path: Path, z: float, acceleration: float) -> Measurement:
    """As ``mri_slice``, but the image keeps its phase: a polynomial of degree two, different for each slice."""
    x = slice_of(path, "mri", z, 1.5)
    u, v = torch.meshgrid(*[torch.linspace(-1, 1, 128)] * 2, indexing="ij")
    c = 2 * torch.randn(6, generator=torch.Generator().manual_seed(round(1000 * z)))
    phase = c[0] + c[1] * u + c[2] * v + c[3] * u * v + c[4] * u * u + c[5] * v * v
    x = torch.cat([x * phase.cos(), x * phase.sin()])
    mask = random_mask(128, acceleration=acceleration, center_fraction=0.08, seed=0)
    A = MultiCoilMRI(birdcage_maps(8, (128, 128)), mask) @ ViewAsComplex((1, 128, 128))
    return Measurement.simulate(x, A, ComplexGaussianNoise(0.01), seed=0, item=f"{path.name.split('.')[0]}-{z:g}")


def scan_lines(path: Path, z: float) -> Measurement:
    """Every fourth column of a frame of a B-mode sequence, at two thirds of its resolution; white is 1."""
    frames = torch.from_numpy(metaimage.read(path).data)
    frame = frames[round(z * (len(frames) - 1))].float()[None, None] / 255
    x = torch.nn.functional.interpolate(frame[..., 70:454, 256:640], (256, 256), mode="area")[0, :, 64:192, 64:192]
    mask = torch.zeros(1, 128, 128, dtype=torch.bool)
    mask[..., ::4] = True
    return Measurement.simulate(x.contiguous(), Inpainting(mask), GaussianNoise(0.02), seed=0, item=f"frame-{z:g}")


@dataclass(frozen=True)
class Setting:
    """One row of the table: how a slice becomes a measurement, with what, and which weights are tried."""

    title: str
    prior: str
    volumes: tuple[str, ...]
    make: Callable[[Path, float], Measurement]
    plain: Callable[[Measurement], torch.Tensor] | None
    tuned: Callable[[float], Callable[[Measurement], torch.Tensor]]
    tuned_name: str
    weights: tuple[float, ...]


def tv(weight: float) -> Callable[[Measurement], torch.Tensor]:
    return lambda m: TV(weight=weight, non_negative=True)(None, m).mean


def wavelet(weight: float) -> Callable[[Measurement], torch.Tensor]:
    return lambda m: L1Wavelet(weight=weight)(None, m).mean


CT_VOLUMES = ("ct/lung_A0001_5mm.nii.gz",)
MRI_VOLUMES = ("mri/stroke_t1_1mm.nii.gz", "mri/seg3d_t1w_0.9mm.nii.gz")
W = (3.0, 5.0, 10.0, 20.0, 40.0)


def cg_sense(m: Measurement) -> torch.Tensor:
    return CGSense()(None, m).mean


SETTINGS = {
    "ct": Setting(
        "CT, 30 views", "ct-128", CT_VOLUMES, lambda p, z: ct_slice(path=p, z=z, n_views=30),
        lambda m: FBP(window="hann")(None, m).mean, tv, "TV", W,
    ),
    "mri4": Setting(
        "MRI, 4x", "brain-mri-128", MRI_VOLUMES, lambda p, z: mri_slice(path=p, z=z), cg_sense, wavelet, "L1-wavelet", W
    ),
    "mri8": Setting(
        "MRI, 8x", "brain-mri-128", MRI_VOLUMES,
        lambda p, z: mri_slice(path=p, z=z, acceleration=8.0, center_fraction=0.04), cg_sense, wavelet, "L1-wavelet", W,
    ),
    "complex": Setting(
        "MRI, 4x, complex", "brain-mri-complex-128", MRI_VOLUMES, lambda p, z: complex_mri(p, z, 4.0), cg_sense,
        wavelet, "L1-wavelet", W,
    ),
    "b-mode": Setting(
        "B-mode, one line in 4", "b-mode-128", ("us/plus_prostate_bmode.mhd",), scan_lines, None, tv, "TV", W
    ),
}  # fmt: skip


def places(volumes: Sequence[str], data: Path, n: int) -> tuple[list[Item], list[Item]]:
    """``n`` slices between 0.3 and 0.7 of the volumes in turn, and two others to choose weights on."""
    heights = torch.linspace(0.3, 0.7, math.ceil(n / len(volumes))).tolist()
    test = [(data / v, round(z, 3)) for z in heights for v in volumes][:n]
    return test, [(data / v, z) for v, z in zip((volumes * 2)[:2], (0.25, 0.75), strict=True)]


def quality(x: torch.Tensor, m: Measurement) -> tuple[float, float]:
    truth = m.reference
    assert truth is not None
    data_range = float(truth.max() - truth.min())
    return psnr(x, truth, data_range=data_range), ssim(x, truth, data_range=data_range)


def run(s: Setting, data: Path, n: int, daps: DAPS, on_tuning: bool) -> None:
    test, tuning = places(s.volumes, data, n)
    scores = {w: statistics.mean(quality(s.tuned(w)(m), m)[0] for m in [s.make(*t) for t in tuning]) for w in s.weights}
    weight = max(scores, key=scores.__getitem__)
    prior, rows = load_prior(s.prior).fast(bfloat16=True), []
    for path, z in tuning if on_tuning else test:
        m = s.make(path, z)
        truth = m.reference
        assert truth is not None
        p = daps(prior, m, n_samples=N_SAMPLES)
        body = truth.norm(dim=0, keepdim=True).expand_as(truth) > 0.1 * m.image_scale
        plain = quality(s.plain(m), m) if s.plain else (math.nan, math.nan)
        tuned, mean = quality(s.tuned(weight)(m), m), quality(p.mean, m)
        inside = (p.samples.amin(0) < truth) & (truth < p.samples.amax(0))
        rows.append(
            (
                *plain, *tuned, *mean, mean[0] - (tuned[0] if math.isnan(plain[0]) else max(plain[0], tuned[0])),
                quality(p.samples[0], m)[0], float(m.chi2(p.samples).mean()),
                spread_skill(p.samples[:, body].T[..., None], truth[body][:, None]),
                float(inside[body].float().mean()), p.seconds,
            )
        )  # fmt: skip
    columns = [(float(np.mean(c)), float(np.std(c))) for c in zip(*rows, strict=True)]
    cells = [
        f"{a:.2f} ({b:.2f})" if i in (1, 3, 5, 9, 10) else f"{a:.1f} ({b:.1f})" for i, (a, b) in enumerate(columns)
    ]
    names = [
        "FBP" if s.prior.startswith("ct") else "CG-SENSE", "", f"{s.tuned_name} ({weight:g})", "", "posterior mean", "",
        "gain over the better", "one sample", "chi2", "spread/skill", "coverage", "seconds",
    ]  # fmt: skip
    settings = f"{N_SAMPLES} samples, {daps.n_anneal} levels, width={daps.width}"
    print(f"{s.title}; prior {s.prior}; {len(rows)} slices; {settings}")
    for i in (0, 2, 4):
        if not math.isnan(columns[i][0]):
            print(f"  {names[i]:<22}{cells[i]:>14} dB   SSIM {cells[i + 1]}")
    print("  " + "; ".join(f"{names[i]} {cells[i]}" for i in range(6, 12)) + "\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--slices", type=int, default=10)
    parser.add_argument("--n-anneal", type=int, default=50)
    parser.add_argument("--width", type=float, default=2.0, help="of DAPS; 0: the paper's")
    parser.add_argument("--on-tuning", action="store_true", help="the two slices that the weights are chosen on")
    parser.add_argument("--only", nargs="*", default=list(SETTINGS), choices=list(SETTINGS))
    arguments = parser.parse_args()
    daps = DAPS(n_anneal=arguments.n_anneal, width=arguments.width or None)
    for name in arguments.only:
        run(SETTINGS[name], arguments.data, arguments.slices, daps, arguments.on_tuning)


if __name__ == "__main__":
    main()
