"""Speed of the CT operator and of its exact adjoint, against ASTRA (CPU) and deepinv, in one process.

    OMP_NUM_THREADS=2 python benchmarks/operators_speed.py [--fan] [--size 256] [--views 60] [--rounds 40]

Parallel views over 180 degrees, or flat fan-beam views over 360 degrees; a detector that sees the whole image; float32;
2 threads. The contestants take turns, so that a disturbance of the machine hits all of them; medians are printed.
ASTRA's CPU projectors use one thread by construction. On a machine that is busy with other work, set
OMP_WAIT_POLICY=passive: otherwise the threads of torch spin while waiting for each other and lose whole time slices.

Peers: ASTRA 'linear' (Joseph, the same discretisation) for parallel beams and 'line_fanflat' (Siddon) for fans,
through the faster of ``direct_FP/BP`` and linked data; deepinv ``Tomography`` (rotate and sum, unit pixels) with ``A``
and ``A_adjoint``. Peers that cannot be imported are skipped with a note.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import statistics
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch

from invdiff.operators.ct import CT
from invdiff.operators.ct_geometry import FanBeam, ParallelBeam

Beam = ParallelBeam | FanBeam
Pair = tuple[Callable[[], object], Callable[[], object]]


def ours(A: CT, batch: int) -> Pair:
    x = torch.rand(batch, *A.in_shape)
    y, AH = A(x), A.H
    return (lambda: A(x)), (lambda: AH(y))


def astra_pairs(geometry: Beam) -> dict[str, Pair]:
    import astra

    volume = astra.create_vol_geom(*geometry.image_shape)
    detector = (geometry.detector_spacing, geometry.n_detectors, np.array(geometry.angles))
    if isinstance(geometry, FanBeam):
        method, distances = "line_fanflat", (geometry.source_origin, geometry.source_detector - geometry.source_origin)
        beam = astra.create_proj_geom("fanflat", *detector, *distances)
    else:
        method, beam = "linear", astra.create_proj_geom("parallel", *detector)
    projector = astra.create_projector(method, beam, volume)
    x = np.random.default_rng(0).random(geometry.image_shape, dtype=np.float32)
    y = np.zeros((geometry.n_views, geometry.n_detectors), np.float32)
    back = np.zeros_like(x)
    pairs: dict[str, Pair] = {}

    x_id, y_id = astra.data2d.link("-vol", volume, x), astra.data2d.link("-sino", beam, y)
    back_id = astra.data2d.link("-vol", volume, back)
    algorithms = []
    for kind, volume_id in (("FP", x_id), ("BP", back_id)):
        config = astra.astra_dict(kind)
        config["ProjectorId"], config["ProjectionDataId"] = projector, y_id
        config["VolumeDataId" if kind == "FP" else "ReconstructionDataId"] = volume_id
        algorithms.append(astra.algorithm.create(config))
    pairs[f"astra {method}, linked"] = tuple(lambda a=a: astra.algorithm.run(a) for a in algorithms)  # type: ignore[assignment]
    if hasattr(astra.projector, "direct_FP"):
        pairs[f"astra {method}, direct"] = (
            lambda: astra.projector.direct_FP(projector, x, out=y),
            lambda: astra.projector.direct_BP(projector, y, out=back),
        )
    return pairs


def deepinv_pair(geometry: Beam) -> tuple[Pair, float]:
    import deepinv

    degrees = torch.rad2deg(torch.tensor(geometry.angles, dtype=torch.float32))
    fan = isinstance(geometry, FanBeam) and {
        "pixel_spacing": 1.0,
        "source_radius": geometry.source_origin,
        "detector_radius": geometry.source_detector - geometry.source_origin,
        "n_detector_pixels": geometry.n_detectors,
        "detector_spacing": geometry.detector_spacing,
    }
    physics = deepinv.physics.Tomography(
        angles=degrees,
        img_width=geometry.image_shape[1],
        circle=False,
        normalize=False,
        fan_beam=bool(fan),
        fan_parameters=fan or None,
    )
    x = torch.rand(1, 1, *geometry.image_shape)
    y = physics.A(x)
    v = torch.randn_like(y)
    error = mismatch(y, v, x, physics.A_adjoint(v))
    return ((lambda: physics.A(x)), (lambda: physics.A_adjoint(y))), error


def measure(pairs: dict[str, Pair], rounds: int) -> dict[str, tuple[float, float]]:
    """Median milliseconds of both functions of every pair; one call of each per round, in turn."""
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in pairs}
    for round_ in range(rounds + 3):
        for name, functions in pairs.items():
            for record, function in zip(times[name], functions, strict=True):
                function()  # brings the data back into the cache, as inside an iterative algorithm
                start = time.perf_counter()
                function()
                if round_ >= 3:
                    record.append(1e3 * (time.perf_counter() - start))
    return {name: (statistics.median(a), statistics.median(b)) for name, (a, b) in times.items()}


def adjoint_error(A: CT) -> float:
    x, y = torch.rand(A.in_shape, dtype=A.dtype), torch.randn(A.out_shape, dtype=A.dtype)
    return mismatch(A(x), y, x, A.H(y))


def mismatch(Ax: torch.Tensor, y: torch.Tensor, x: torch.Tensor, AHy: torch.Tensor) -> float:
    Ax, y, x, AHy = (t.double() for t in (Ax, y, x, AHy))
    return abs(float((Ax * y).sum() - (x * AHy).sum())) / float(Ax.norm() * y.norm())


def version(name: str) -> str:
    try:
        return f"{name} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{name} absent"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--fan", action="store_true")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--views", type=int, default=60)
    arguments = parser.parse_args()
    rounds, n = arguments.rounds, arguments.size
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    torch.set_num_threads(2)
    print(", ".join(map(version, ("torch", "astra-toolbox", "deepinv"))), f"; {torch.get_num_threads()} threads")

    geometry: Beam = ParallelBeam.covering((n, n), 1.0, arguments.views)
    if arguments.fan:
        distances = {"source_origin": 2.0 * n, "source_detector": 3.0 * n}
        geometry = FanBeam.covering((n, n), 1.0, arguments.views, **distances)
    start = time.perf_counter()
    A = CT(geometry)
    seconds = time.perf_counter() - start
    print(f"{A!r}: built (or read from the cache) in {seconds:.2f} s, {A.stored_bytes / 1e6:.0f} MB")

    pairs: dict[str, Pair] = {"invdiff CT": ours(A, 1)}
    errors = {"invdiff CT": adjoint_error(A), "invdiff CT, float64": adjoint_error(A.to(dtype=torch.float64))}
    try:
        pairs |= astra_pairs(geometry)
    except ImportError as error:
        print(f"astra skipped: {error}")
    try:
        pairs["deepinv Tomography"], errors["deepinv Tomography"] = deepinv_pair(geometry)
    except ImportError as error:
        print(f"deepinv skipped: {error}")

    result = measure(pairs, rounds)
    our_a, our_h = result["invdiff CT"]
    print(f"\none image, median ms of {rounds}{'A':>13}{'A.H':>9}{'pair':>9}   times ours: A, A.H, pair")
    for name, (a, h) in result.items():
        ratios = f"{a / our_a:10.1f}{h / our_h:8.1f}{(a + h) / (our_a + our_h):8.1f}"
        print(f"{name:30}{a:9.2f}{h:9.2f}{a + h:9.2f}{ratios}")

    print("\ninvdiff CT, ms per image          A      A.H     pair")
    batches = {f"batch {b}": ours(A, b) for b in (1, 8, 32)}
    for (name, (a, h)), b in zip(measure(batches, rounds).items(), (1, 8, 32), strict=True):
        print(f"{name:26}{a / b:9.2f}{h / b:9.2f}{(a + h) / b:9.2f}")

    print("\nadjoint error |<Ax,y> - <x,A'y>| / (|Ax| |y|)")
    for name, error in errors.items():
        print(f"{name:26}{error:9.1e}")


if __name__ == "__main__":
    main()
