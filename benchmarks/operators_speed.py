"""Speed of the operators and of their exact adjoints against other packages, in one process.

    OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive python benchmarks/operators_speed.py [ct] [mri] [ultrasound] [images]
        [--batches 1 8 32] [--rounds 20] [--seconds 20] [--size 256] [--views 60]

Forward A, adjoint A.H and gram A.H(A x) of float32 images on a CPU. All contestants take turns, so that a disturbance
of the machine hits all of them; each call is timed after an untimed one, which brings its data into the cache, as in
an iterative algorithm; medians. Printed first: how many times as long as ours each peer takes. Then, of our operators,
the time to build (without the disk cache), the memory held (without what finufft holds), the adjoint error; and how far
each peer's data are from ours, where both compute the same (nan: the peer has another model). A peer that is not
installed is left out with a note; so is one from batches that would take it longer than --seconds.

* ct: parallel views over half a turn, flat fan over a full one, a detector that sees the whole image. ASTRA on a CPU
  (one thread by construction) 'linear', Joseph's method as ours, and 'line_fanflat' (Siddon); deepinv ``Tomography``
  (rotate and sum); scikit-image ``radon`` and ``iradon`` without a filter, which are not adjoint.
* mri: 320 x 320, 8 coils; all k-space, 4x random columns, 4x Poisson disc, 64 golden-angle spokes. deepinv's images are
  real with two channels. sigpy's and torchkbnufft's non-uniform transforms are at their default accuracy, some 1e-3.
* ultrasound: 256 x 256 pixels, 128 elements, 1536 samples at 20.8 MHz. deepinv's f-number is depth over half of the
  aperture, so it gets twice ours. (At 1.75 some elements lie exactly on the edge of an aperture, and rounding would
  decide who hears them.)
* images: 3 x 256 x 256, motion PSF of 31 x 31 pixels, factor 4, 2 x 2 PSFs for the blur that varies.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import math
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invdiff.operators import (
    CT,
    BicubicDownsample,
    Blur,
    BlurDownsample,
    FanBeam,
    LinearOperator,
    MultiCoilMRI,
    NonCartesianMRI,
    ParallelBeam,
    PlaneWaveIQ,
    PlaneWaveRF,
    PlaneWaveScan,
    SpaceVaryingBlur,
    birdcage_maps,
    gaussian_pulse,
    golden_angle_trajectory,
    interpolation_weights,
    motion_psf,
    poisson_disc_mask,
    random_mask,
)

FUNCTIONS = ("A", "A.H", "gram", "A + A.H")
PACKAGES = ("torch", "deepinv", "astra-toolbox", "scikit-image", "finufft", "sigpy", "torchkbnufft")
FS, FC, F_NUMBER = 20.832e6, 5.208e6, 1.751
ELEMENTS = 0.3 * (np.arange(128) - 63.5)


@dataclass
class Peer:
    """Another package's operator: ``take`` makes its image of our batch of images, ``give`` ours of its data."""

    forward: Callable[[Any], Any]
    adjoint: Callable[[Any], Any]
    take: Callable[[Tensor], Any] = lambda x: x
    give: Callable[[Any], Tensor] | None = None
    batched: bool = True  # else it is called for one image after the other


Peers = Iterator[tuple[str, Callable[[], Peer]]]
Case = tuple[str, Callable[[], LinearOperator], Callable[[Any], Peers]]


def ct(size: int, views: int) -> Iterator[Case]:
    shape = (size, size)
    yield "parallel", lambda: CT(ParallelBeam.covering(shape, 1.0, views)), ct_peers
    distances = {"source_origin": 2.0 * size, "source_detector": 3.0 * size}
    yield "fan", lambda: CT(FanBeam.covering(shape, 1.0, views, **distances)), ct_peers


def ct_peers(A: CT) -> Peers:
    g: Any = A.geometry
    fan = isinstance(g, FanBeam)

    def astra_() -> Peer:
        import astra

        volume = astra.create_vol_geom(*g.image_shape)
        detector = (g.detector_spacing, g.n_detectors, np.array(g.angles))
        distances = (g.source_origin, g.source_detector - g.source_origin) if fan else ()
        beam = astra.create_proj_geom("fanflat" if fan else "parallel", *detector, *distances)
        projector = astra.create_projector("line_fanflat" if fan else "linear", beam, volume)
        views, image = np.zeros((g.n_views, g.n_detectors), np.float32), np.zeros(g.image_shape, np.float32)
        return Peer(
            lambda x: astra.projector.direct_FP(projector, x, out=views),
            lambda y: astra.projector.direct_BP(projector, y, out=image),
            lambda x: x[0, 0].numpy(),
            None if fan else lambda y: torch.from_numpy(y)[None, None],
            batched=False,
        )

    def deepinv_() -> Peer:
        import deepinv

        parameters = fan and {
            "pixel_spacing": 1.0,
            "source_radius": g.source_origin,
            "detector_radius": g.source_detector - g.source_origin,
            "n_detector_pixels": g.n_detectors,
            "detector_spacing": g.detector_spacing,
        }
        degrees = torch.rad2deg(torch.tensor(g.angles, dtype=torch.float32))
        physics = deepinv.physics.Tomography(
            angles=degrees, img_width=g.image_shape[1], circle=False, normalize=False, fan_beam=fan,
            fan_parameters=parameters or None,
        )  # fmt: skip
        return Peer(physics.A, physics.A_adjoint)

    def skimage_() -> Peer:
        from skimage.transform import iradon, radon

        theta = np.rad2deg(g.angles)
        return Peer(
            lambda x: radon(x, theta, circle=False),
            lambda y: iradon(y, theta, output_size=g.image_shape[0], filter_name=None, circle=False),
            lambda x: x[0, 0].numpy(),
            batched=False,
        )

    yield "astra " + ("line_fanflat" if fan else "linear"), astra_
    yield "deepinv Tomography", deepinv_
    if not fan:
        yield "skimage radon, iradon", skimage_


def mri(*_: int) -> Iterator[Case]:
    n = 320
    maps = birdcage_maps(8, (n, n))
    columns = random_mask(n, acceleration=4, center_fraction=0.08, seed=0)
    points = poisson_disc_mask((n, n), acceleration=4.0, calibration=(24, 24), seed=0)
    yield "all of k-space", lambda: MultiCoilMRI(maps, torch.ones(n, dtype=torch.bool)), mri_peers
    yield "4x columns", lambda: MultiCoilMRI(maps, columns), mri_peers
    yield "4x Poisson disc", lambda: MultiCoilMRI(maps, points), mri_peers
    spokes = golden_angle_trajectory(n, n_spokes=64, n_samples=2 * n)
    yield "64 spokes", lambda: NonCartesianMRI(maps, spokes), spokes_peers


def mri_peers(A: MultiCoilMRI) -> Peers:
    def deepinv_() -> Peer:
        import deepinv

        shape = (1, 2, *A.in_shape[1:])
        P = deepinv.physics.MultiCoilMRI(
            mask=A.mask.expand(shape).float().contiguous(), coil_maps=A.maps[None], img_size=shape
        )
        return Peer(
            P.A, P.A_adjoint,
            lambda x: torch.view_as_real(x[:, 0]).movedim(-1, 1).contiguous(),
            lambda y: torch.view_as_complex(y.movedim(1, -1).contiguous()),
        )  # fmt: skip

    yield "deepinv MultiCoilMRI", deepinv_
    yield "sigpy Sense", lambda: sigpy_sense(A, weights=A.mask.expand(A.in_shape[1:]).float().numpy())


def sigpy_sense(A: MultiCoilMRI | NonCartesianMRI, **sampling: Any) -> Peer:
    import sigpy.mri.linop

    S = sigpy.mri.linop.Sense(A.maps.numpy(), **sampling)
    H = S.H
    return Peer(S, H, lambda x: x[0, 0].numpy(), lambda y: torch.from_numpy(y).reshape(1, *A.out_shape), batched=False)


def spokes_peers(A: NonCartesianMRI) -> Peers:
    k, shape = A.trajectory.reshape(-1, 2), A.in_shape[1:]
    omega = 2 * math.pi * k.double() / torch.tensor(shape)

    def finufft_() -> Peer:
        import finufft

        maps, scale = A.maps.numpy(), 1 / math.sqrt(math.prod(shape))
        plans = [
            finufft.Plan(kind, shape, len(maps), 1e-6, sign, dtype="complex64", nthreads=torch.get_num_threads())
            for kind, sign in ((2, -1), (1, 1))
        ]
        for plan in plans:
            plan.setpts(*omega.float().T.contiguous().numpy())
        return Peer(
            lambda x: scale * plans[0].execute(maps * x),
            lambda y: scale * (maps.conj() * plans[1].execute(y)).sum(0),
            lambda x: x[0, 0].numpy(),
            lambda y: torch.from_numpy(y)[None],
            batched=False,
        )

    def torchkbnufft_() -> Peer:
        import torchkbnufft

        forward, adjoint = torchkbnufft.KbNufft(shape), torchkbnufft.KbNufftAdjoint(shape)
        points, maps = omega.float().T.contiguous(), A.maps[None]
        return Peer(
            lambda x: forward(x, points, smaps=maps, norm="ortho"),
            lambda y: adjoint(y, points, smaps=maps, norm="ortho"),
            give=lambda y: 2 * y,  # its orthonormal transform is that of its grid, twice as fine
        )

    yield "finufft", finufft_
    yield "sigpy Sense", lambda: sigpy_sense(A, coord=k.numpy())
    yield "torchkbnufft", torchkbnufft_


def ultrasound(*_: int) -> Iterator[Case]:
    def scan(*angles: float) -> PlaneWaveScan:
        return PlaneWaveScan(
            image_shape=(256, 256), pixel_size=(45 / 255, 38.1 / 255), origin=(5.0, -19.05),
            element_positions=tuple(ELEMENTS), angles=angles, start_times=4e-6, n_samples=1536, sampling_frequency=FS,
            centre_frequency=FC, sound_speed=1540.0,
        )  # fmt: skip

    pulse = gaussian_pulse(FC, 0.67 * FC, FS)
    yield "RF, one transmit", lambda: PlaneWaveRF(scan(0.0), F_NUMBER), ultrasound_peers
    yield "RF, stored delays", lambda: PlaneWaveRF(scan(0.0), F_NUMBER, memory_budget=1), lambda _: iter(())
    yield "RF, 3 and a pulse", lambda: PlaneWaveRF(scan(-0.2, 0.0, 0.25), F_NUMBER, pulse=pulse), ultrasound_peers
    yield "IQ, one transmit", lambda: PlaneWaveIQ(scan(0.0), F_NUMBER), lambda _: iter(())


def ultrasound_peers(A: PlaneWaveRF) -> Peers:
    def deepinv_() -> Peer:
        import deepinv

        s = A.scan
        physics = deepinv.physics.UltrasoundPlaneWave(
            img_size=s.image_shape, angles=torch.tensor(s.angles),
            element_positions=torch.tensor(np.stack([ELEMENTS, 0 * ELEMENTS], 1) / 1e3, dtype=torch.float32),
            n_samples=s.n_samples, sampling_frequency=s.sampling_frequency, sound_speed=s.sound_speed,
            t0=torch.tensor([-t for t in np.atleast_1d(s.start_times)], dtype=torch.float32),
            pixel_size=tuple(d / 1e3 for d in s.pixel_size), pixel_origin=tuple(o / 1e3 for o in s.origin),
            f_number=2 * A.f_number, pulse=A.pulse, normalize=False,
        )  # fmt: skip
        return Peer(physics.A, physics.A_adjoint, give=lambda y: y[:, 0])

    yield "deepinv UltrasoundPlaneWave", deepinv_


def images(*_: int) -> Iterator[Case]:
    shape, factor = (3, 256, 256), 4
    psf = motion_psf(31, seed=0).float()
    psfs, w = torch.stack([motion_psf(31, seed=i) for i in range(4)]).float(), interpolation_weights((2, 2), shape[1:])

    def peers(**makers: Callable[[Any], Any]) -> Callable[[LinearOperator], Peers]:
        def all_of_them(_: LinearOperator) -> Peers:
            for name, make in makers.items():

                def peer(make: Callable[[Any], Any] = make) -> Peer:
                    import deepinv

                    physics = make(deepinv.physics)
                    return Peer(physics.A, physics.A_adjoint, give=lambda y: y)

                yield f"deepinv {name}", peer

        return all_of_them

    kernel, circular = psf[None, None], {"padding": "circular"}
    yield "blur", lambda: Blur(psf, shape), peers(
        BlurFFT=lambda P: P.BlurFFT(shape, kernel), Blur=lambda P: P.Blur(kernel, **circular)
    )  # fmt: skip
    yield "varying blur", lambda: SpaceVaryingBlur(psfs, w, shape), peers(
        SpaceVaryingBlur=lambda P: P.SpaceVaryingBlur(psfs[None, None], w[None, None].float(), **circular)
    )  # fmt: skip
    yield "blur, every 4th", lambda: BlurDownsample(psf, shape, factor), peers(
        Downsampling=lambda P: P.Downsampling(shape, filter=kernel, factor=factor, **circular)
    )  # fmt: skip
    yield "bicubic", lambda: BicubicDownsample(shape, factor), peers(
        DownsamplingMatlab=lambda P: P.DownsamplingMatlab(factor=factor)
    )  # fmt: skip


Calls = tuple[Callable[[], object], ...]


def random(A: LinearOperator, batch: int) -> Tensor:
    x = torch.rand(batch, *A.in_shape)
    return torch.complex(x, torch.rand_like(x)) if A.in_complex else x


def calls(forward: Callable[[Any], Any], adjoint: Callable[[Any], Any], gram: Callable, x: Any, n: int = 1) -> Calls:
    y = forward(x)
    y = y.copy() if isinstance(y, np.ndarray) else y  # astra writes every result to the same place
    times = range(n)
    if n == 1:
        return lambda: forward(x), lambda: adjoint(y), lambda: gram(x)
    return lambda: [forward(x) for _ in times], lambda: [adjoint(y) for _ in times], lambda: [gram(x) for _ in times]


def peer_calls(p: Peer, A: LinearOperator, batch: int) -> Calls:
    def gram(x: Any) -> Any:
        return p.adjoint(p.forward(x))

    x = random(A, batch)
    return calls(p.forward, p.adjoint, gram, p.take(x), n=1 if p.batched else batch)


def measure(contestants: dict[str, Calls], rounds: int, seconds: float) -> dict[str, tuple[float, ...]]:
    """Median milliseconds of every function of every contestant, one of each per round; whoever has had ``seconds`` and
    three rounds is left out of the next."""
    times: dict[str, list[list[float]]] = {name: [[] for _ in functions] for name, functions in contestants.items()}
    spent = dict.fromkeys(contestants, 0.0)
    for round_ in range(rounds):
        for name, functions in contestants.items():
            if spent[name] > seconds and round_ >= 3:
                continue
            for record, function in zip(times[name], functions, strict=True):
                begun = time.perf_counter()
                function()
                start = time.perf_counter()
                function()
                record.append(1e3 * (time.perf_counter() - start))
                spent[name] += time.perf_counter() - begun
    medians = {name: [statistics.median(t) for t in records] for name, records in times.items()}
    return {name: (a, h, gram, a + h) for name, (a, h, gram) in medians.items()}


def mismatch(A: Callable[[Any], Any], AH: Callable[[Any], Any], x: Any, u: Any) -> float:
    """Adjoint error |<Ax, Au> - <x, A.H A u>| / (|Ax| |Au|), summed in float64."""

    def wide(t: Any) -> Tensor:
        t = torch.as_tensor(np.array(t) if isinstance(t, np.ndarray) else t).clone()
        return t.to(torch.complex128 if t.is_complex() else torch.float64).flatten()

    Ax = wide(A(x))
    v = A(u)
    Au, AHv = wide(v), wide(AH(v))
    return float((torch.vdot(Ax, Au) - torch.vdot(wide(x), AHv)).abs() / (Ax.norm() * Au.norm()))


def held_bytes(value: Any, seen: set[int] | None = None) -> int:
    """Memory of the tensors that an object holds, sparse ones and those of its parts included."""
    seen = set() if seen is None else seen
    if isinstance(value, Tensor):
        if value.layout == torch.sparse_csr:
            return sum(held_bytes(t, seen) for t in (value.crow_indices(), value.col_indices(), value.values()))
        storage = value.untyped_storage()
        new = storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        return storage.nbytes() if new else 0
    if isinstance(value, dict | list | tuple):
        return sum(held_bytes(v, seen) for v in (value.values() if isinstance(value, dict) else value))
    if type(value).__module__.startswith("invdiff") and hasattr(value, "__dict__") and id(value) not in seen:
        seen.add(id(value))
        return held_bytes(vars(value), seen)
    return 0


SECTIONS = {"ct": ct, "mri": mri, "ultrasound": ultrasound, "images": images}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", metavar="section", help=f"of {', '.join(SECTIONS)}; all if none")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=20.0, help="for one contestant at one batch size")
    parser.add_argument("--size", type=int, default=256, help="of the CT image")
    parser.add_argument("--views", type=int, default=60, help="of the CT scan")
    arguments = parser.parse_args()
    if unknown := set(arguments.sections) - set(SECTIONS):
        parser.error(f"sections are {', '.join(SECTIONS)}, got {', '.join(sorted(unknown))}")
    warnings.simplefilter("ignore")
    os.environ["INVDIFF_CACHE"] = "0"
    torch.manual_seed(0)

    ratios, rows, ours, theirs, notes = [], [], [], [], set()
    for section in arguments.sections or SECTIONS:
        for case, build, peers_of in SECTIONS[section](arguments.size, arguments.views):
            print(f"{section}: {case}", file=sys.stderr)
            start = time.perf_counter()
            A = build()
            built = time.perf_counter() - start
            x, u = random(A, 1), random(A, 1)
            wide = A.to(dtype=torch.float64)
            wide_x, wide_u = (t.to(torch.complex128 if A.in_complex else torch.float64) for t in (x, u))
            errors = mismatch(A, A.H, x, u), mismatch(wide, wide.H, wide_x, wide_u)
            ours.append(f"{case:18}{built:10.2f}{held_bytes(A) / 1e6:10.1f}{errors[0]:12.1e}{errors[1]:12.1e}")
            del wide
            peers: dict[str, Peer] = {}
            for name, make in peers_of(A):
                try:
                    peer = make()
                    data = peer.forward(peer.take(x))
                except Exception as error:  # a peer that is absent, or fails on its own, is a note
                    notes.add(f"{name} is left out: {type(error).__name__}: {str(error).splitlines()[0][:90]}")
                    continue
                peers[name] = peer
                gap = math.nan
                if peer.give is not None:
                    gap = float((peer.give(data) - A(x)).norm() / A(x).norm())
                error = mismatch(peer.forward, peer.adjoint, peer.take(x), peer.take(u))
                theirs.append(f"{case:18}{name:30}{gap:10.1e}{error:10.1e}")
            single: dict[str, float] = {}
            for batch in arguments.batches:
                X = random(A, batch)
                contestants = {"ours": calls(A, A.H, A.gram, X)}
                for name, peer in peers.items():
                    if 8 * batch * single.get(name, 0.0) <= 1e3 * arguments.seconds:
                        with contextlib.suppress(MemoryError):
                            contestants[name] = peer_calls(peer, A, batch)
                result = measure(contestants, arguments.rounds, arguments.seconds)
                for name, ms in result.items():
                    single.setdefault(name, sum(ms[:3]) / batch)
                    rows.append(f"{case:18}{batch:6}  {name:30}" + "".join(f"{t / batch:10.2f}" for t in ms))
                    if name != "ours":
                        quotients = "".join(f"{t / o:10.1f}" for t, o in zip(ms, result["ours"], strict=True))
                        ratios.append(f"{case:18}{batch:6}  {name:30}{quotients}")
    head = f"{'':18}{'batch':>6}  {'':30}" + "".join(f"{f:>10}" for f in FUNCTIONS)
    print("times as long as ours\n" + "\n".join([head, *ratios]))
    print("\nms per image\n" + "\n".join([head, *rows]))
    print("\nours              build, s    MB held  adjoint error: float32     float64\n" + "\n".join(ours))
    print(f"\n{'peers':48}{'data off':>10}{'adjoint':>10}\n" + "\n".join(theirs))
    print("\n" + "\n".join(sorted(notes)) + "\n" * bool(notes) + ", ".join(map(version, PACKAGES)), end="")
    print(f"; {torch.get_num_threads()} threads")


def version(name: str) -> str:
    try:
        return f"{name} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{name} absent"


if __name__ == "__main__":
    main()
