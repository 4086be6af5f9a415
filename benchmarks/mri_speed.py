"""Speed of the multi-coil Cartesian MRI operator and its adjoint against deepinv's, in one process.

    OMP_NUM_THREADS=2 python benchmarks/mri_speed.py [--size 320] [--coils 8] [--rounds 40]

4x random columns, complex64, one image. The two take turns; medians are printed, the ratio first. deepinv's images are
real with two channels, ours complex: each gets its own. Without deepinv only our times are printed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from invdiff.operators import MultiCoilMRI, birdcage_maps, dot, random_mask

Pair = tuple[Callable[[], torch.Tensor], Callable[[], torch.Tensor]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--coils", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()
    n, coils = arguments.size, arguments.coils
    maps, mask = birdcage_maps(coils, (n, n)), random_mask(n, acceleration=4, center_fraction=0.08, seed=0)
    A = MultiCoilMRI(maps, mask)
    x = torch.randn(1, 1, n, n, dtype=torch.complex64)
    y = A(x)
    pairs: dict[str, Pair] = {"invdiff": (lambda: A(x), lambda: A.H(y))}
    try:
        import deepinv
    except (ImportError, RuntimeError) as error:
        print(f"deepinv is left out ({type(error).__name__})")
    else:
        P = deepinv.physics.MultiCoilMRI(
            mask=mask.expand(1, 2, n, n).float(), coil_maps=maps[None], img_size=(1, 2, n, n)
        )
        u = torch.view_as_real(x[:, 0]).movedim(-1, 1).contiguous()
        v = P.A(u)
        pairs["deepinv"] = (lambda: P.A(u), lambda: P.A_adjoint(v))
        k = torch.view_as_complex(v.movedim(1, -1).contiguous())
        print(f"same data: relative difference {float((k - y).norm() / y.norm()):.1e}")
    z = torch.randn_like(y) * A.observed
    gap = abs(dot(A(x), z) - dot(x, A.H(z))) / (A(x).norm() * z.norm())
    times: dict[str, list[list[float]]] = {name: [[], []] for name in pairs}
    for _ in range(arguments.rounds):
        for name, pair in pairs.items():
            for which, work in enumerate(pair):
                begun = time.perf_counter()
                work()
                times[name][which].append(time.perf_counter() - begun)
    ms = {name: [1e3 * statistics.median(t) for t in both] for name, both in times.items()}
    if "deepinv" in ms:
        print(f"deepinv over invdiff, A + A.H: {sum(ms['deepinv']) / sum(ms['invdiff']):.2f}")
    for name, (forward, adjoint) in ms.items():
        print(f"{name:<10} A {forward:6.2f} ms   A.H {adjoint:6.2f} ms")
    print(f"adjoint error {float(gap):.1e}; {n} x {n}, {coils} coils, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
