"""How near to the exact inner draw of DAPS on CT conjugate gradients come, on the image and on the data.

    python benchmarks/inner_solver.py [--views 40] [--photons 2e4] [--volume CT.nii.gz] [--daps]

The draw solves ``x + v A^H W (A x - y) = z`` with the photon counts W, where z is the truth and twice noise of
variance v: the denoiser's error and the draw's own noise. On the image: that system, not preconditioned. On the data:
``(v A A^H + W^-1) u = y - A z``, ``x = z + v A^H u``, preconditioned by its diagonal and a filter, as in
``Measurement.prox``. Either costs one A and one A^H a step. The slice is the vertebra of ``sparse_view_ct``, or the
middle of a CT volume in HU, at 3.2 mm: a chest spans a wider range of counts. Printed: root mean square error of the
image over the draw's width v^(1/2), and of its line integrals over the noise, against 3000 steps in float64.

With --daps, what DAPS makes of it (ct-128, 50 levels, width 2, 12 samples) on two slices of the volume: PSNR of the
mean in dB, chi2 of the samples, seconds, with the steps that the kernel takes by itself and with given numbers of them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from invdiff import load_prior
from invdiff.algorithms import DAPS
from invdiff.algorithms.kernels import Conditional
from invdiff.benchmark.problems import ct_slice
from invdiff.datasets import sparse_view_ct
from invdiff.evaluation import psnr
from invdiff.operators.linalg import cg

STEPS = (3, 5, 10, 25, 100)


def daps(volume: Path, n_views: int, n_photons: float) -> None:
    prior = load_prior("ct-128")
    print(f"{n_views} views, {n_photons:g} photons")
    for n_cg in (None, 3, 10, 25):
        cells, algorithm = [], DAPS(n_anneal=50, width=2.0, kernel=Conditional(n_cg=n_cg))
        for z in (0.25, 0.75):
            m = ct_slice(path=volume, z=z, n_views=n_views, n_photons=n_photons)
            assert m.reference is not None
            p = algorithm(prior, m, n_samples=12)
            quality = psnr(p.mean, m.reference, data_range=m.reference.max() - m.reference.min())
            cells.append(f"{quality:.2f} dB, chi2 {float(m.chi2(p.samples).mean()):.3f}, {p.seconds:.0f} s")
        print(f"  {'by itself' if n_cg is None else f'1 to {n_cg} steps':<16}" + "; ".join(cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--views", type=int, default=40)
    parser.add_argument("--photons", type=float, default=2e4)
    parser.add_argument("--volume", type=Path)
    parser.add_argument("--daps", action="store_true", help="needs --volume")
    arguments = parser.parse_args()
    if arguments.daps:
        if arguments.volume is None:
            parser.error("--daps reconstructs slices of a CT volume: give --volume too.")
        daps(arguments.volume, arguments.views, arguments.photons)
        return
    if arguments.volume:
        m = ct_slice(path=arguments.volume, n_views=arguments.views, n_photons=arguments.photons)
    else:
        m = sparse_view_ct(n_views=arguments.views, n_photons=arguments.photons)
    m = m.in_model_units(0.5 * m.image_scale, 0.5 * m.image_scale)  # water is 1, air -1
    exact = m.to(dtype=torch.float64)
    A, weights = exact.linear, exact.noise.precision(exact.y)
    assert A is not None
    assert exact.reference is not None
    assert isinstance(weights, torch.Tensor)
    print(f"{arguments.views} views, {arguments.photons:g} photons, counts {weights.min():.0f} to {weights.max():.0f}")
    print(f"{'width':>6}  {'on':<6}" + "".join(f"{f'{n} steps':>16}" for n in STEPS))
    for width in (3.0, 1.0, 0.3, 0.1, 0.03):
        v, streams = width**2, torch.Generator().manual_seed(0)
        z = exact.reference + 2**0.5 * width * torch.randn(1, *A.in_shape, generator=streams, dtype=torch.float64)
        b = z + v * A.H(weights * exact.linear_data)
        truth = exact.prox(z, v, n_steps=3000, tolerance=1e-12)

        def on_image(n: int, v: float = v, z: torch.Tensor = z, b: torch.Tensor = b) -> torch.Tensor:
            return cg(lambda x: x + v * A.H(weights * A(x)), b, item_ndim=3, start=z, n_steps=n, tolerance=1e-12)

        def on_data(n: int, v: float = v, z: torch.Tensor = z) -> torch.Tensor:
            return exact.prox(z, v, n_steps=n, tolerance=1e-12)

        for name, solve in (("image", on_image), ("data", on_data)):
            cells = []
            for n in STEPS:
                e = solve(n) - truth
                fit = float((weights * A(e).square()).mean().sqrt())
                cells.append(f"{float(e.square().mean().sqrt()) / width:.3f} / {fit:.2f}")
            print(f"{width:>6g}  {name:<6}" + "".join(f"{c:>16}" for c in cells), flush=True)


if __name__ == "__main__":
    main()
