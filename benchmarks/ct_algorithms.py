"""Every algorithm on one problem: 30-view CT at 128 x 128 with the shipped CT priors, against FBP and TV.

    python benchmarks/ct_algorithms.py --data FOLDER --out FOLDER [--samples 4] [--quick] [--rows DPS DDS ...]

FOLDER holds the held-out volume of the CT prior's configuration. Parallel beam, 30 views, Gaussian noise of 0.02 in
the line integrals, simulated on a three times finer grid. Scales and weights (DPS, DDS's eta, MCG, PSLD, RED-Diff,
TV) are the best of the listed values by PSNR of the mean on another slice, with fewer steps; DDS's grid was picked
there too. PSNR and SSIM of the mean of the
samples, range: maximum minus minimum of the truth; chi2 of the samples; spread-skill ratio; coverage: share of pixels
inside the body where the truth lies within the samples' range, nominal (n - 1) / (n + 1); seconds for all samples.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from invdiff import GaussianNoise, Measurement, load_prior
from invdiff.algorithms import (
    DAPS,
    DDNM,
    DDRM,
    DDS,
    DPS,
    MCG,
    PSLD,
    TDS,
    DiffPIR,
    MCGTomography,
    PiGDM,
    PnPDM,
    REDDiff,
    ReSample,
)  # fmt: skip
from invdiff.algorithms.draw import DivergenceError
from invdiff.algorithms.guidance import Isotropic
from invdiff.benchmark.problems import slice_of
from invdiff.classical import FBP, TV
from invdiff.datasets.examples import MU_WATER
from invdiff.evaluation import psnr, ssim
from invdiff.operators import CT, ParallelBeam
from invdiff.priors import KarrasGrid
from invdiff.storage import atomic_path

PIXEL = 3.2  # mm
TV_WEIGHTS = (1.0, 3.0, 10.0, 30.0, 100.0)


def measure(x: torch.Tensor, item: str) -> Measurement:
    mu, geometry = MU_WATER * x, ParallelBeam.covering((128, 128), PIXEL, 30)
    fine = ParallelBeam(
        image_shape=(384, 384), pixel_size=PIXEL / 3, angles=geometry.angles, n_detectors=geometry.n_detectors,
        detector_spacing=geometry.detector_spacing,
    )  # fmt: skip
    y = CT(fine, supersampling=12)(F.interpolate(mu[None], scale_factor=3.0, mode="nearest")[0])
    y = y + 0.02 * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    return Measurement(
        y, CT(geometry, supersampling=4), GaussianNoise(0.02), image_scale=MU_WATER, reference=mu, item=item
    )


def candidates(norm: float, quick: bool) -> dict[str, tuple[str, list[float], Callable[[float, bool], Any]]]:
    """Row to (prior, values to choose from, ``(value, tuning) -> algorithm``)."""
    f = 10 if quick else 1
    grid, V = KarrasGrid(sigma_max=80.0, sigma_min=0.01), Isotropic(n_cg=20, tolerance=1e-3)

    def n(full: int, tuning: bool) -> int:
        return max(full // f // (5 if tuning and full > 300 else 1), 10)

    return {
        "DPS": ("ct-128", [0.3, 1.0, 3.0, 10.0], lambda z, t: DPS(n_steps=n(1000, t), guidance_scale=z / norm)),
        "DDS": (
            "ct-128", [0.85, 1.0],
            lambda z, t: DDS(n_steps=20, eta=z, grid=KarrasGrid(sigma_max=20.0, sigma_min=0.02)),
        ),
        "MCG": ("ct-128", [0.1, 1.0], lambda z, t: MCG(n_steps=n(300, t), guidance_scale=z / norm, cutoff=0.1)),
        "MCG, tomography": ("ct-128", [0.0], lambda z, t: MCGTomography(n_steps=n(300, t), sigma_max=80.0)),
        "DAPS": ("ct-128", [0.0], lambda z, t: DAPS(n_anneal=n(100, t))),
        "DAPS, width 2": ("ct-128", [0.0], lambda z, t: DAPS(n_anneal=n(100, t), width=2.0)),
        "RED-Diff": ("ct-128", [0.25, 1e2, 1e3, 1e4], lambda z, t: REDDiff(n_steps=n(300, t), lam=z, lr=0.1)),
        "DDRM": ("ct-128", [0.0], lambda z, t: DDRM()),
        "DDNM": ("ct-128", [0.0], lambda z, t: DDNM(n_steps=n(100, t))),
        "PiGDM": ("ct-128", [0.0], lambda z, t: PiGDM(n_steps=n(100, t), covariance=V, grid=grid)),
        "DiffPIR": ("ct-128", [0.0], lambda z, t: DiffPIR(n_steps=n(100, t))),
        "PnP-DM": ("ct-128", [0.0], lambda z, t: PnPDM(n_iterations=max(n(60, t), 45), decay=0.85, rho_min=0.02)),
        "TDS, 2 particles": (
            "ct-128", [0.0], lambda z, t: TDS(n_steps=n(100, t), n_particles=2, covariance=V, grid=grid),
        ),
        "PSLD": ("ct-128-latent", [0.3, 1.0, 3.0], lambda z, t: PSLD(n_steps=n(200, t), eta=z / norm, gamma=0.02)),
        "ReSample": (
            "ct-128-latent", [0.0],
            lambda z, t: ReSample(
                n_steps=n(60, t), resample_every=5, n_travel=3, n_pixel=100, n_latent=100, lr_latent=0.01,
                guidance_scale=0.5 / norm,
            ),
        ),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rows", nargs="*", help="only these algorithms")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    volume = arguments.data / "ct/lung_A0001_5mm.nii.gz"
    tuning, test = (measure(slice_of(volume, "ct", z, PIXEL), name) for z, name in ((0.302, "tuning"), (0.508, "test")))
    priors = {name: load_prior(name) for name in ("ct-128", "ct-128-latent")}
    norm = float(priors["ct-128"].in_model_units(test).linear.norm())  # type: ignore[union-attr]
    truth = test.reference
    assert truth is not None
    assert tuning.reference is not None
    span, body, S = float(truth.max() - truth.min()), truth > 0.1 * MU_WATER, arguments.samples
    rows: list[dict[str, Any]] = []
    pictures: list[tuple[str, torch.Tensor]] = [("truth", truth)]

    def add(name: str, mean: torch.Tensor, seconds: float, samples: torch.Tensor | None = None, **more: Any) -> None:
        row = dict(name=name, psnr=psnr(mean, truth, data_range=span), ssim=ssim(mean, truth, data_range=span))
        if samples is None:
            row["chi2"] = float(test.chi2(mean))
        else:
            skill = (mean - truth)[body].square().mean().sqrt()
            row["chi2"] = float(test.chi2(samples).mean())
            row["spread_skill"] = float(((S + 1) / S * samples.var(0)[body].mean()).sqrt() / skill)
            inside = (samples.amin(0) < truth) & (truth < samples.amax(0))
            row["coverage"] = float(inside[body].float().mean())
        rows.append({**row, "seconds": seconds, **more})
        pictures.append((name, mean))
        print(
            f"{name:<18}{row['psnr']:>7.2f}{row['ssim']:>7.3f}{row['chi2']:>9.3g}"
            f"{row.get('spread_skill', float('nan')):>8.2f}{row.get('coverage', float('nan')):>7.2f}{seconds:>8.1f}"
            f"{more.get('nfe', 0):>7.0f}  {more.get('value', '')}",
            flush=True,
        )

    print(f"{'':<18}{'PSNR':>7}{'SSIM':>7}{'chi2':>9}{'spr/sk':>8}{'cov':>7}{'s':>8}{'NFE':>7}  chosen")

    def store() -> None:
        """After each row, so that an interrupted run shows what it has."""
        with atomic_path(arguments.out / "ct_algorithms.json") as path:
            path.write_text(json.dumps(rows, indent=1))
        figure(pictures, {r["name"]: r for r in rows}, arguments.out / "ct_algorithms.jpg")

    begun = time.monotonic()
    add("FBP (Hann)", FBP(window="hann")(None, test).mean, time.monotonic() - begun)
    goal = tuning.reference
    weights = {w: psnr(TV(weight=w, non_negative=True)(None, tuning).mean, goal, data_range=span) for w in TV_WEIGHTS}
    best = max(weights, key=weights.__getitem__)
    p = TV(weight=best, non_negative=True)(None, test)
    add("TV", p.mean, p.seconds, value=best)
    for name, (prior_name, values, make) in candidates(norm, arguments.quick).items():
        if arguments.rows and name not in arguments.rows:
            continue
        prior = priors[prior_name]

        def score(z: float, prior: Any = prior, make: Any = make) -> float:
            try:
                p = make(z, True)(prior, tuning, n_samples=2)
            except DivergenceError:
                return -1e9
            return psnr(p.mean, goal, data_range=span)

        z = max(values, key=score) if len(values) > 1 else values[0]
        try:
            algorithm = make(z, False)
            p = algorithm(prior, test, n_samples=S)
        except DivergenceError as error:
            print(f"{name:<18}{error}", flush=True)
            continue
        more = {"value": z} if len(values) > 1 else {}
        add(name, p.mean, p.seconds, p.samples, nfe=p.nfe, algorithm=repr(algorithm), **more)
        store()


def figure(pictures: list[tuple[str, torch.Tensor]], rows: dict[str, Any], path: Path) -> None:
    """All means side by side, with PSNR."""
    from matplotlib.figure import Figure

    columns = 6
    fig = Figure(figsize=(2.2 * columns, 2.45 * -(-len(pictures) // columns)), layout="constrained")
    axes = fig.subplots(-(-len(pictures) // columns), columns).flatten()
    top = float(pictures[0][1].max())
    for ax in axes:
        ax.axis("off")
    for ax, (name, image) in zip(axes, pictures, strict=False):
        ax.imshow(image[0], cmap="gray", vmin=0, vmax=0.75 * top)
        ax.set_title(name + (f", {rows[name]['psnr']:.1f} dB" if name in rows else ""), fontsize=9)
    with atomic_path(path) as tmp:
        fig.savefig(tmp, dpi=130, format="jpeg", pil_kwargs={"quality": 88})


if __name__ == "__main__":
    main()
