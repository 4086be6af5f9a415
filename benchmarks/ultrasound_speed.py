"""The plane-wave ultrasound operator against deepinv's ``UltrasoundPlaneWave``: same output, speed in one process.

    OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive python benchmarks/ultrasound_speed.py [--rounds 10]      (needs deepinv)

256 x 256 pixels, 128 elements (pitch 0.3 mm), 1536 samples at 20.8 MHz, f-number 1.751, one transmit, float32. The two
take turns, so that a disturbance of the machine hits both; medians are printed. deepinv's f-number is depth over half
of the aperture, so it gets twice ours. It computes delays in float32, which is what the two outputs differ by. (At
1.75 some elements lie exactly on the edge of an aperture, and rounding would decide who hears them.)
"""

from __future__ import annotations

import argparse
import importlib.metadata
import statistics
import time
from collections.abc import Callable

import deepinv
import numpy as np
import torch

from invdiff.operators import LinearOperator, PlaneWaveIQ, PlaneWaveRF, PlaneWaveScan, gaussian_pulse

ELEMENTS = 0.3 * (np.arange(128) - 63.5)
FS, FC, F_NUMBER = 20.832e6, 5.208e6, 1.751


def scan(angles: tuple[float, ...]) -> PlaneWaveScan:
    return PlaneWaveScan(
        image_shape=(256, 256), pixel_size=(45 / 255, 38.1 / 255), origin=(5.0, -19.05),
        element_positions=tuple(ELEMENTS), angles=angles, start_times=4e-6, n_samples=1536, sampling_frequency=FS,
        centre_frequency=FC, sound_speed=1540.0,
    )  # fmt: skip


def peer(ours: PlaneWaveRF) -> deepinv.physics.UltrasoundPlaneWave:
    s = ours.scan
    return deepinv.physics.UltrasoundPlaneWave(
        img_size=s.image_shape, angles=torch.tensor(s.angles),
        element_positions=torch.tensor(np.stack([ELEMENTS, 0 * ELEMENTS], 1) / 1e3, dtype=torch.float32),
        n_samples=s.n_samples, sampling_frequency=s.sampling_frequency, sound_speed=s.sound_speed,
        t0=torch.tensor([-t for t in np.atleast_1d(s.start_times)], dtype=torch.float32),
        pixel_size=tuple(d / 1e3 for d in s.pixel_size), pixel_origin=tuple(o / 1e3 for o in s.origin),
        f_number=2 * ours.f_number, pulse=ours.pulse, normalize=False,
    )  # fmt: skip


def measure(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each, in turn."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for round_ in range(rounds + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if round_:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(t) for name, t in times.items()}


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def mismatch(A: LinearOperator) -> float:
    x, y = (torch.randn(s, dtype=torch.complex64 if A.in_complex else A.dtype) for s in (A.in_shape, A.out_shape))
    Ax, AHy = A(x), A.H(y)
    u, v = ((p.conj() * q).to(torch.complex128).sum() for p, q in ((Ax, y), (x, AHy)))
    return float((u - v).abs() / (Ax.norm() * y.norm()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    print(
        f"torch {torch.__version__}, deepinv {importlib.metadata.version('deepinv')}, {torch.get_num_threads()} threads"
    )

    pulse = gaussian_pulse(FC, 0.67 * FC, FS)
    print("\nrelative difference to deepinv        A      A.H")
    for name, A in (
        ("one transmit", PlaneWaveRF(scan((0.0,)), F_NUMBER)),
        ("three transmits and a pulse", PlaneWaveRF(scan((-0.2, 0.0, 0.25)), F_NUMBER, pulse=pulse)),
    ):
        x, y, physics = torch.randn(1, *A.in_shape), torch.randn(1, *A.out_shape), peer(A)
        errors = difference(A(x), physics.A(x)[:, 0]), difference(A.H(y), physics.A_adjoint(y[:, None]))
        print(f"{name:32}{errors[0]:9.1e}{errors[1]:9.1e}")

    begun = time.perf_counter()
    A = PlaneWaveRF(scan((0.0,)), F_NUMBER)
    built = time.perf_counter() - begun
    gathered = PlaneWaveRF(scan((0.0,)), F_NUMBER, memory_budget=1)
    iq = PlaneWaveIQ(scan((0.0,)), F_NUMBER)
    physics = peer(A)
    x, y = torch.randn(1, *A.in_shape), torch.randn(1, *A.out_shape)
    x8, y8 = torch.randn(8, *A.in_shape), torch.randn(8, *A.out_shape)
    functions: dict[str, Callable[[], object]] = {
        "A": lambda: A(x), "A.H": lambda: A.H(y), "A 8": lambda: A(x8), "A.H 8": lambda: A.H(y8),
        "IQ A": lambda: iq(x + 0j), "IQ A.H": lambda: iq.H(y + 0j),
        "stored A": lambda: gathered(x), "stored A.H": lambda: gathered.H(y),
        "deepinv A": lambda: physics.A(x), "deepinv A.H": lambda: physics.A_adjoint(y[:, None]),
    }  # fmt: skip
    t = measure(functions, rounds)
    pair = t["A"] + t["A.H"]
    print(f"\nA + A.H, one image: deepinv takes {(t['deepinv A'] + t['deepinv A.H']) / pair:.0f} times ours")
    print(f"median ms of {rounds} rounds              A      A.H")
    for name, prefix, n in (
        ("RF", "", 1), ("RF, per image of 8", "", 8), ("IQ", "IQ ", 1), ("RF, stored delays", "stored ", 1),
        ("deepinv", "deepinv ", 1),
    ):  # fmt: skip
        suffix = " 8" if n == 8 else ""
        print(f"{name:32}{t[prefix + 'A' + suffix] / n:9.2f}{t[prefix + 'A.H' + suffix] / n:9.2f}")
    print(f"\nbuilt in {built:.2f} s; matrix and transpose {A._delays.pair.nbytes / 2**20:.0f} MiB")
    print(
        f"adjoint error, float32: RF {mismatch(A):.1e}, IQ {mismatch(iq):.1e}, stored delays {mismatch(gathered):.1e}"
    )


if __name__ == "__main__":
    main()
