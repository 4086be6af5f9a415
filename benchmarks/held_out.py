"""How good and how calibrated DAPS is with the shipped priors, on slices of patients they were not trained on.

    python benchmarks/held_out.py --data FOLDER [--slices 6] [--n-anneal 100]

FOLDER holds the volumes that the priors' configurations name as validation data. CT: parallel beam, 40 views,
2e4 photons, simulated on a three times finer grid. MRI: 8 birdcage coils, 4x random columns, noise 0.01. Per modality
the mean over slices of: PSNR (range: maximum minus minimum of the truth) of the classical reconstruction, of the
posterior mean and of one sample; chi2 of the samples; spread-skill ratio (1 if calibrated, above 1 over-dispersed);
coverage of the range of 19 samples (90 % if calibrated), over pixels inside the body.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F

from invdiff import ComplexGaussianNoise, Measurement, PoissonLogNoise, load_prior
from invdiff.algorithms import DAPS
from invdiff.classical import FBP, CGSense
from invdiff.datasets.examples import MU_WATER
from invdiff.datasets.slices import MODALITIES, axial_slices
from invdiff.evaluation import psnr
from invdiff.operators import CT, MultiCoilMRI, ParallelBeam, RealAsComplex, birdcage_maps, random_mask

N_SAMPLES = 19  # the range of 19 samples holds an exchangeable truth with probability 18/20


def images(path: Path, modality: str, pixel_size: float, n: int) -> Iterator[torch.Tensor]:
    """``n`` slices from the middle half of a volume, relative values, (1, 128, 128) at ``pixel_size`` mm."""
    volume, size = axial_slices(path)
    x = torch.from_numpy(MODALITIES[modality].relative(volume))
    for z in torch.linspace(0.3 * len(x), 0.7 * len(x), n).long():
        shape = [round(side * size / pixel_size) for side in x.shape[1:]]
        image = F.interpolate(x[z][None, None], shape, mode="area")[0]
        pad = [max(0, 128 - side) for side in reversed(shape)]
        image = F.pad(image, (pad[0] // 2, pad[0] - pad[0] // 2, pad[1] // 2, pad[1] - pad[1] // 2))
        top, left = ((side - 128) // 2 for side in image.shape[1:])
        yield image[:, top : top + 128, left : left + 128].contiguous()


def ct(x: torch.Tensor, pixel_size: float, item: str) -> Measurement:
    mu, noise = MU_WATER * x, PoissonLogNoise(2e4)
    geometry = ParallelBeam.covering((128, 128), pixel_size, 40)
    fine = ParallelBeam(
        image_shape=(384, 384), pixel_size=pixel_size / 3, angles=geometry.angles, n_detectors=geometry.n_detectors,
        detector_spacing=geometry.detector_spacing,
    )  # fmt: skip
    y = CT(fine, supersampling=12)(mu.repeat_interleave(3, 1).repeat_interleave(3, 2))
    y = noise.sample(y, torch.Generator().manual_seed(0))
    return Measurement(y, CT(geometry, supersampling=4), noise, image_scale=MU_WATER, reference=mu, item=item)


def mri(x: torch.Tensor, pixel_size: float, item: str) -> Measurement:
    mask = random_mask(128, acceleration=4, center_fraction=0.08, seed=0)
    A = MultiCoilMRI(birdcage_maps(8, (128, 128)), mask) @ RealAsComplex((1, 128, 128))
    return Measurement.simulate(x, A, ComplexGaussianNoise(0.01), seed=0, item=item)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--slices", type=int, default=6)
    parser.add_argument("--n-anneal", type=int, default=100)
    arguments = parser.parse_args()
    daps = DAPS(n_anneal=arguments.n_anneal)
    print(f"{daps}, {N_SAMPLES} samples, {arguments.slices} slices\n")
    print(
        f"{'':<16}{'classical':>11}{'mean':>8}{'sample':>8}{'chi2':>7}{'spread/skill':>14}{'coverage':>10}{'seconds':>9}"
    )
    for name, volume, pixel_size, measure, classical in (
        ("ct-128", "ct/lung_A0001_5mm.nii.gz", 3.2, ct, FBP(window="hann")),
        ("brain-mri-128", "mri/stroke_t1_1mm.nii.gz", 1.5, mri, CGSense()),
    ):
        prior, rows = load_prior(name), []
        modality = "ct" if measure is ct else "mri"
        for i, x in enumerate(images(arguments.data / volume, modality, pixel_size, arguments.slices)):
            m = measure(x, pixel_size, f"{name}-{i}")
            truth = m.reference
            assert truth is not None
            data_range = float(truth.max() - truth.min())
            p = daps(prior, m, n_samples=N_SAMPLES)
            body = x > 0.1
            skill = (p.mean - truth)[body].square().mean().sqrt()
            spread = ((N_SAMPLES + 1) / N_SAMPLES * p.samples.var(0)[body].mean()).sqrt()
            inside = (p.samples.amin(0) < truth) & (truth < p.samples.amax(0))
            rows.append(
                (
                    *(psnr(v, truth, data_range=data_range) for v in (classical(None, m).mean, p.mean, p.samples[0])),
                    float(m.chi2(p.samples).mean()),
                    float(spread / skill),
                    float(inside[body].float().mean()),
                    p.seconds,
                )
            )
        a = [statistics.mean(column) for column in zip(*rows, strict=True)]
        print(
            f"{name:<16}{a[0]:>11.1f}{a[1]:>8.1f}{a[2]:>8.1f}{a[3]:>7.2f}{a[4]:>14.2f}{a[5]:>10.2f}{a[6]:>9.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
