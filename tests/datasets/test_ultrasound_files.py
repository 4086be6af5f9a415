"""Readers of plane-wave files: fixtures written here from the formats' layouts, a scene that must come back, and
damage of every kind. Real files where present."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import nibabel
import numpy as np
import pytest
import scipy.io
import torch

from invdiff import GaussianNoise, Measurement, datasets
from invdiff.classical import DAS
from invdiff.datasets.channel_data import (
    chosen,
    demodulate,
    noise_level,
    plane_wave_of,
)
from invdiff.datasets.files import Head
from invdiff.evaluation.ultrasound import disc_mask, gcnr
from invdiff.operators import Envelope, PlaneWaveIQ, PlaneWaveRF, PlaneWaveScan, find_plane_wave, gaussian_pulse

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "us"
SIGMA, C, FC, FS = 0.02, 1500.0, 5e6, 20e6
ELEMENTS = np.linspace(-4e-3, 4e-3, 24)
ANGLES = np.array([-0.15, 0.0, 0.1])
GRID: dict[str, Any] = {"image_shape": (41, 33), "depth": (6.0, 10.0)}
SCAN = PlaneWaveScan(
    image_shape=(41, 33), pixel_size=(0.1, 0.25), origin=(6.0, -4.0), element_positions=tuple(1e3 * ELEMENTS),
    angles=tuple(ANGLES), start_times=tuple(np.array([2.0, 1.5, 2.5]) * 1e-6), n_samples=320, sampling_frequency=FS,
    centre_frequency=FC, sound_speed=C,
)  # fmt: skip
POINT = (30, 20)  # pixel, off the middle, so that a mirrored or turned image would be noticed


def record(scan: PlaneWaveScan = SCAN, *, iq: bool, seed: int = 0) -> np.ndarray:
    """Noisy channel data (transmit, element, sample) of one point."""
    pulse = gaussian_pulse(0.0 if iq else FC, 3e6, FS)
    x = torch.zeros(1, 41, 33, dtype=torch.complex64 if iq else torch.float32)
    x[0][POINT] = 5.0
    y = (PlaneWaveIQ if iq else PlaneWaveRF)(scan, f_number=0.0, pulse=pulse)(x).numpy()
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=y.shape) + (1j * rng.normal(size=y.shape) if iq else 0)
    return (y + SIGMA * noise).astype(y.dtype)


def on_clock(y: np.ndarray, first_sample: float) -> np.ndarray:
    """IQ as demodulated by a carrier on whose clock all transmits start at ``first_sample``, s; RF as it is."""
    turns = FC * (np.asarray(SCAN.start_times) - first_sample)
    return y * np.exp(2j * np.pi * turns)[:, None, None] if np.iscomplexobj(y) else y


START = 2e-6  # PICMUS has one start time for all transmits
PICMUS_SCAN = PlaneWaveScan(**{**vars(SCAN), "start_times": START})


def picmus(path: Path, *, iq: bool = True, modulation_frequency: float = FC) -> Path:
    y = record(PICMUS_SCAN, iq=iq)
    with h5py.File(path, "w") as f:
        g = f.create_group("US/US_DATASET0000")
        g["data/real"], g["data/imag"] = y.real, y.imag
        g["angles"] = ANGLES.astype(np.float32)
        g["probe_geometry"] = np.stack([ELEMENTS, 0 * ELEMENTS, 0 * ELEMENTS])
        for key, value in (
            ("initial_time", START), ("sampling_frequency", FS), ("sound_speed", C), ("PRF", 100.0),
            ("modulation_frequency", modulation_frequency),
        ):  # fmt: skip
            g[key] = np.array([value])
    return path


def zea(path: Path, *, iq: bool = True) -> Path:
    y = np.stack([on_clock(record(iq=iq, seed=s), 0.0) for s in range(2)])
    delays = np.sin(ANGLES)[:, None] * ELEMENTS / C
    first = delays.min(1, keepdims=True)
    with h5py.File(path, "w") as f:
        raw = np.stack([y.real, y.imag], -1) if iq else y[..., None]
        f.create_dataset("data/raw_data", data=raw.transpose(0, 1, 3, 2, 4).astype(np.float32), compression="gzip")
        s = f.create_group("scan")
        s["probe_geometry"] = np.stack([ELEMENTS, 0 * ELEMENTS, 0 * ELEMENTS], 1).astype(np.float32)
        s["t0_delays"] = (delays - first).astype(np.float32)
        s["initial_times"] = (np.asarray(SCAN.start_times) - first[:, 0]).astype(np.float32)
        s["polar_angles"] = ANGLES.astype(np.float32)
        s["sampling_frequency"], s["center_frequency"], s["sound_speed"] = np.float32(FS), np.float32(FC), C
        s["focus_distances"] = np.full(3, np.inf, np.float32)
    return path


def uff(path: Path, *, iq: bool = True) -> Path:
    y = on_clock(record(iq=iq), 1e-6)
    with h5py.File(path, "w") as f:
        g = f.create_group("channel_data")
        g.attrs["class"] = "uff.channel_data"
        if iq:
            g["data/real"], g["data/imag"] = y.real[None], y.imag[None]
        else:
            g["data"] = y[None]
        flat = np.zeros((6, len(ELEMENTS)))
        g["probe/geometry"] = np.concatenate([ELEMENTS[None], flat])
        for k, (angle, start) in enumerate(zip(ANGLES, SCAN.start_times, strict=True)):  # type: ignore[arg-type]
            wave = g.create_group(f"sequence/sequence_{k + 1:04d}")
            wave["source/azimuth"], wave["source/distance"] = [[angle]], [[np.inf]]
            wave["delay"], wave["wavefront"] = [[start - 1e-6]], [[0]]
        for key, value in (
            ("initial_time", 1e-6), ("sampling_frequency", FS), ("sound_speed", C),
            ("modulation_frequency", FC if iq else 0.0), ("pulse/center_frequency", FC),
        ):  # fmt: skip
            g[key] = [[value]]
    return path


def must(path: Path, *, angle: float = 0.1, **changes: Any) -> Path:
    """Band-pass sampled RF, two frames."""
    fs = 4 / 3 * FC
    fine = PlaneWaveScan(**{**vars(SCAN.subset([2])), "sampling_frequency": 12 * fs, "n_samples": 12 * 120})
    # the RF as it is before sampling, from the envelope at a high rate
    t = fine.start_times[0] + np.arange(fine.n_samples) / fine.sampling_frequency  # type: ignore[index]
    x = torch.zeros(1, 41, 33, dtype=torch.complex64)
    x[0][POINT] = 5.0
    envelope = PlaneWaveIQ(fine, f_number=0.0, pulse=gaussian_pulse(0.0, 1.5e6, fine.sampling_frequency))(x).numpy()
    rf = 12**0.5 * (envelope * np.exp(2j * np.pi * FC * t)).real[..., ::12]
    rng = np.random.default_rng(0)
    rf = np.concatenate([rf + SIGMA * rng.normal(size=rf.shape) for _ in range(2)])
    delays = math.sin(angle) * ELEMENTS / C
    param: dict[str, Any] = {
        "fs": fs, "fc": FC, "pitch": ELEMENTS[1] - ELEMENTS[0], "c": C, "t0": fine.start_times[0] - delays.min(),  # type: ignore[index]
        "TXdelay": delays - delays.min(), "Nelements": 24, "bandwidth": 30,
    }  # fmt: skip
    variables = {"RF": rf.transpose(2, 1, 0), "param": param}
    for key, value in changes.items():
        target = variables if key in variables else param
        if value is None:
            del target[key]
        else:
            target[key] = value
    scipy.io.savemat(path, variables, do_compression=True)
    return path


def scan_of(m: Any) -> PlaneWaveScan:
    wave = find_plane_wave(m.A)
    assert wave is not None
    return wave.scan


def peak(m: Measurement) -> tuple[int, int]:
    """Pixel at which the delay-and-sum image is largest."""
    magnitude = torch.linalg.vector_norm(DAS(f_number=1.0)(None, m).mean, dim=0)
    return divmod(int(magnitude.argmax()), 33)


WRITERS: dict[str, Callable[..., Path]] = {
    "PICMUS": picmus, "PICMUS RF": lambda p: picmus(p, iq=False, modulation_frequency=0.0), "zea": zea,
    "zea RF": lambda p: zea(p, iq=False), "UFF": uff, "UFF RF": lambda p: uff(p, iq=False), "MUST": must,
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("us")
    return {
        name: write(folder / (name.replace(" ", "_") + (".mat" if name == "MUST" else ".hdf5")))
        for name, write in WRITERS.items()
    }


@pytest.mark.parametrize("name", WRITERS)
def test_the_scene_comes_back(files: dict[str, Path], name: str) -> None:
    m = datasets.open(files[name], **GRID)
    assert isinstance(m, Measurement)
    iq = "RF" not in name
    assert (m.A.in_shape, m.A.out_complex) == ((2 if iq else 1, 41, 33), iq)
    scan = scan_of(m)
    assert scan.element_positions == pytest.approx(SCAN.element_positions, abs=1e-5)
    expected = ANGLES[2:] if name == "MUST" else ANGLES
    assert scan.angles == pytest.approx(expected, abs=1e-5)
    starts = [START] * 3 if "PICMUS" in name else list(SCAN.start_times)[-len(expected) :]  # type: ignore[arg-type]
    assert scan.start_times == pytest.approx(starts, abs=1e-11)
    assert (scan.pixel_size, scan.origin) == (pytest.approx((0.1, 0.25), rel=1e-5), pytest.approx((6.0, -4.0)))
    assert scan.centre_frequency == pytest.approx(5.208e6 if name == "PICMUS RF" else FC)
    assert m.noise.sigma == pytest.approx(SIGMA, rel=0.1)  # type: ignore[attr-defined]
    if name == "PICMUS RF":
        return  # with another frequency than the scene's
    assert peak(m) == POINT
    row, column = POINT
    place = np.array(m.metadata["affine"]) @ [column, row, 0, 1]
    np.testing.assert_allclose(place[:3], [-4 + 0.25 * column, 0, -(6 + 0.1 * row)], atol=1e-4)


@pytest.mark.parametrize(("name", "first_sample"), [("UFF", 1e-6), ("zea", 0.0)])
def test_iq_of_all_transmits_adds_up_in_phase(
    files: dict[str, Path], name: str, first_sample: float, tmp_path: Path
) -> None:
    """Echoes of a point of reflectivity 1, mixed down by the clock of the format: the record's, or the samples'."""
    path = tmp_path / "point.hdf5"
    path.write_bytes(files[name].read_bytes())
    x, z = -4e-3 + 0.25e-3 * POINT[1], 6e-3 + 0.1e-3 * POINT[0]
    t = first_sample + np.arange(SCAN.n_samples) / FS
    y = 1e-4 * np.random.default_rng(0).normal(size=(3, 24, t.size)) + 0j
    for k, (angle, start) in enumerate(zip(ANGLES, SCAN.start_times, strict=True)):  # type: ignore[arg-type]
        travel = (x * math.sin(angle) + z * math.cos(angle) + np.hypot(ELEMENTS - x, z)) / C  # since it passed (0, 0)
        after = t - (first_sample + travel - start)[:, None]
        y[k] += np.exp(-((2e6 * after) ** 2) + 2j * np.pi * FC * (after - t))
    with h5py.File(path, "r+") as f:
        if name == "zea":
            f["data/raw_data"][0] = np.stack([y.real, y.imag], -1).transpose(0, 2, 1, 3)
        else:
            f["channel_data/data/real"][0], f["channel_data/data/imag"][0] = y.real, y.imag
    m = datasets.open(path, **GRID)
    assert isinstance(m, Measurement)
    assert peak(m) == POINT
    assert float(DAS(f_number=1.0)(None, m).mean.norm(dim=0).max()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("name", WRITERS)
def test_formats_are_told_apart_by_content(files: dict[str, Path], name: str, tmp_path: Path) -> None:
    suffix = ".mat" if name == "MUST" else ".dat"
    path = tmp_path / f"renamed{suffix}"
    path.write_bytes(files[name].read_bytes())
    assert datasets.recognise(path)[0].split()[0] == name.split()[0]


@pytest.mark.parametrize("name", ["zea", "zea RF"])
def test_a_prior_and_nibabel_can_use_it(files: dict[str, Path], name: str, tmp_path: Path) -> None:
    m = datasets.open(files[name], **GRID)
    assert isinstance(m, Measurement)
    gradient = m.in_model_units(m.image_scale, 0.0).nll_grad(torch.rand(2, *m.A.in_shape))
    assert torch.isfinite(gradient).all()
    m.save(tmp_path / "m.h5")
    again = Measurement.load(tmp_path / "m.h5")
    assert scan_of(again) == scan_of(m)
    DAS()(None, again).export(tmp_path / "image.nii.gz")
    image = nibabel.load(tmp_path / "image_desc-mean_image.nii.gz")
    np.testing.assert_allclose(image.affine, m.metadata["affine"], atol=1e-6)
    assert image.shape[:2] == (33, 41)


def test_the_model_explains_the_data(files: dict[str, Path]) -> None:
    """With the true pulse and aperture, the residual of the true scene is the noise."""
    m = datasets.open(files["zea"], bandwidth=0.6, f_number=0.0, **GRID)
    x = torch.zeros(2, 41, 33)
    x[0][POINT] = 5.0
    assert isinstance(m, Measurement)
    assert float(m.chi2(x)) == pytest.approx(1, abs=0.2)  # the noise level's own error, squared


@pytest.mark.parametrize("name", ["PICMUS", "zea", "UFF RF"])
def test_some_transmits(files: dict[str, Path], name: str) -> None:
    whole, one, two = (datasets.open(files[name], angles=a, **GRID) for a in (None, 1, [2, 0]))
    assert scan_of(one).angles == pytest.approx([0.0])
    torch.testing.assert_close(one.y, whole.y[[1]])  # type: ignore[union-attr]
    torch.testing.assert_close(two.y, whole.y[[0, 2]])  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="indices from 0 to 2"):
        datasets.open(files[name], angles=[3])
    with pytest.raises(ValueError, match="between 1 and 3"):
        datasets.open(files[name], angles=4)


def test_frames(files: dict[str, Path]) -> None:
    for name in ("zea", "MUST"):
        first, second = (datasets.open(files[name], index=i, **GRID) for i in (0, 1))
        assert not torch.equal(first.y, second.y)  # type: ignore[union-attr]
        assert (first.y - second.y).abs().max() < 12 * SIGMA  # type: ignore[union-attr]
        with pytest.raises(ValueError, match="index must be a frame from 0 to 1"):
            datasets.open(files[name], index=2)


@pytest.mark.parametrize("iq", [False, True])
def test_uff_written_by_an_independent_implementation(tmp_path: Path, iq: bool) -> None:
    """pyuff_ustb, part of no extra: pip install pyuff-ustb."""
    pyuff = pytest.importorskip("pyuff_ustb")
    probe = pyuff.LinearArray(N=24, pitch=float(ELEMENTS[1] - ELEMENTS[0]))
    origin = pyuff.Point(distance=0.0, azimuth=0.0, elevation=0.0)
    probe.origin = origin
    sequence = [
        pyuff.Wave(
            wavefront=pyuff.Wavefront.plane, source=pyuff.Point(distance=np.inf, azimuth=float(a), elevation=0.0),
            origin=origin, delay=float(t), sound_speed=C, apodization=pyuff.Apodization(),
        )
        for a, t in zip(ANGLES, SCAN.start_times, strict=True)  # type: ignore[arg-type]
    ]  # fmt: skip
    data = pyuff.ChannelData(
        sampling_frequency=FS, initial_time=0.0, sound_speed=C, modulation_frequency=FC if iq else 0.0,
        sequence=sequence, probe=probe, data=on_clock(record(iq=iq), 0.0).transpose(2, 1, 0),
        pulse=pyuff.Pulse(center_frequency=FC),
    )  # fmt: skip
    path = tmp_path / "scene.uff"
    data.write(str(path), "channel_data", ignore_missing_compulsory_fields=True)
    m = datasets.open(path, **GRID)
    assert isinstance(m, Measurement)
    assert m.A.out_complex is iq
    torch.testing.assert_close(m.y, torch.from_numpy(record(iq=iq)))
    assert peak(m) == POINT


# --- shared parts ------------------------------------------------------------------------------------------------


def test_demodulation_of_band_pass_sampled_tones() -> None:
    """cos(2 pi (fc + d) t + p) becomes exp(i (2 pi d t + p)), sampled at half the rate."""
    fs, start = 4 / 3 * 5e6, 1.3e-6
    n = 300
    t = start + np.arange(n) / fs
    for bins in (-40, 0, 25):
        d = bins * fs / n
        iq, rate = demodulate(np.cos(2 * np.pi * (5e6 + d) * t + 0.4), fs, 5e6, start)
        assert rate == fs / 2
        np.testing.assert_allclose(iq, np.exp(1j * (2 * np.pi * d * t[::2] + 0.4)), atol=1e-5)
    noise = np.random.default_rng(0).normal(size=(200, 300))
    iq, _ = demodulate(noise, fs, 5e6, start)
    assert iq.real.std() == pytest.approx(1, rel=0.02)
    assert iq.imag.std() == pytest.approx(1, rel=0.02)
    correlation = np.mean(iq[:, 1:] * iq[:, :-1].conj()) / np.mean(np.abs(iq) ** 2)
    assert abs(correlation) < 0.02
    with pytest.raises(ValueError, match="4 f / "):
        demodulate(noise, 8e6, 5e6, 0.0)


def test_noise_level_is_that_of_the_quietest_part() -> None:
    rng = np.random.default_rng(0)
    y = 0.3 * rng.normal(size=(2, 8, 1600))
    y[..., 300:] += 20 * rng.normal(size=(2, 8, 1300))
    y[..., 1500:] = 7.0  # padded
    assert noise_level(y) == pytest.approx(0.3, rel=0.05)
    z = y + 1j * np.roll(y, 1, 1)
    assert noise_level(z) == pytest.approx(0.3, rel=0.05)
    with pytest.raises(ValueError, match="constant"):
        noise_level(np.ones((1, 2, 32)))


def test_transmits_are_chosen_equispaced() -> None:
    assert chosen(None, 4).tolist() == [0, 1, 2, 3]
    assert chosen(1, 75).tolist() == [37]
    assert chosen(3, 75).tolist() == [0, 37, 74]
    for wrong in ([], [0, 0], "all", [1.5], [[0]]):
        with pytest.raises(ValueError, match="angles must be"):
            chosen(wrong, 4)  # type: ignore[arg-type]


def test_only_plane_waves_are_plane_waves() -> None:
    delays = math.sin(-0.2) * ELEMENTS / C + 3e-6
    assert plane_wave_of(delays, ELEMENTS, C, FC, "f") == pytest.approx((-0.2, 3e-6))
    focused = (0.03 - np.hypot(ELEMENTS, 0.03)) / C
    with pytest.raises(ValueError, match="not those of a plane wave"):
        plane_wave_of(focused, ELEMENTS, C, FC, "f")


# --- damage ------------------------------------------------------------------------------------------------------

HDF5 = [n for n in WRITERS if n != "MUST"]


def outcome(module: ModuleType, path: Path) -> Measurement | str:
    """A measurement or one clear line; any other exception fails the test."""
    try:
        return module.read(path, image_shape=(4, 4))
    except (ValueError, OSError) as error:
        return str(error)


def format_of(path: Path) -> ModuleType | None:
    head = Head.of(path)
    return next((m for m in datasets.formats().values() if m.matches(head)), None)


def datasets_of(path: Path) -> list[str]:
    names: list[str] = []
    with h5py.File(path) as f:
        f.visititems(lambda n, o: names.append(n) if isinstance(o, h5py.Dataset) else None)
    return names


@pytest.mark.parametrize("name", ["PICMUS", "zea", "UFF"])
@pytest.mark.parametrize("damage", ["text", "nan", "group", "empty", "shape", "huge", "negative", "complex"])
def test_every_dataset_is_checked(files: dict[str, Path], name: str, damage: str, tmp_path: Path) -> None:
    # not read, optional, or any finite number may stand there
    needless = (
        "PRF",
        "focus_distances",
        "source/distance",
        "pulse/center_frequency",
        "sound_speed",
        "data/imag",
        "data/real",
    )
    path = tmp_path / "bad.h5"
    for key in datasets_of(files[name]):
        path.write_bytes(files[name].read_bytes())
        with h5py.File(path, "r+") as f:
            shape = f[key].shape
            del f[key]
            if damage == "text":
                f[key] = "not a number"
            elif damage == "nan":
                f[key] = np.full(shape, np.nan)
            elif damage == "group":
                f.create_group(key)
            elif damage == "empty":
                f[key] = np.zeros((0, *shape[1:]))
            elif damage == "shape":
                f[key] = np.arange(float(np.prod(shape) + 1))
            elif damage == "huge":
                f[key] = np.full(shape, 1e300)
            elif damage == "negative":
                f[key] = np.full(shape, -1e30)
            else:
                f[key] = np.full(shape, 1 + 1j)
        module = format_of(path)
        if module is None:
            continue  # without that dataset it is not this format
        result = outcome(module, path)
        if isinstance(result, str):
            assert "\n" not in result
        else:
            assert torch.isfinite(result.y).all()
            assert key.endswith(needless) or damage in ("shape", "group"), key


@pytest.mark.parametrize("name", WRITERS)
def test_truncated_files(files: dict[str, Path], name: str, tmp_path: Path) -> None:
    whole = files[name].read_bytes()
    path = tmp_path / files[name].name
    module = format_of(files[name])
    assert module is not None
    for size in (0, 7, 100, 600, len(whole) // 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises((ValueError, OSError)):
            module.read(path)


@pytest.mark.parametrize("name", ["PICMUS", "zea", "UFF RF", "MUST"])
def test_flipped_bytes(files: dict[str, Path], name: str, tmp_path: Path) -> None:
    """Random damage gives a measurement (of damaged numbers) or one clear line, never another exception."""
    whole = files[name].read_bytes()
    path = tmp_path / files[name].name
    module = format_of(files[name])
    assert module is not None
    rng = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(whole)
        for position in rng.integers(0, min(len(whole), 12_000), 8):
            damaged[position] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        Head.of(path)
        result = outcome(module, path)
        assert isinstance(result, Measurement) or "\n" not in result


@pytest.mark.parametrize("name", ["PICMUS", "zea", "UFF RF"])
def test_links_and_claims_are_refused(files: dict[str, Path], name: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.h5"
    key = max(datasets_of(files[name]), key=lambda k: h5py.File(files[name])[k].size)
    module = format_of(files[name])
    assert module is not None
    for damage in ("link", "soft", "claim"):
        path.write_bytes(files[name].read_bytes())
        with h5py.File(path, "r+") as f:
            shape = f[key].shape
            del f[key]
            if damage == "link":
                f[key] = h5py.ExternalLink(str(files[name]), key)
            elif damage == "soft":
                f[key] = h5py.SoftLink("/nowhere")
            else:
                f.create_dataset(key, shape=(*shape[:-1], 2**40), chunks=(*(1 for _ in shape[:-1]), 2**10), dtype="f4")
        with pytest.raises(ValueError, match="links are refused|more than the file can hold"):
            module.read(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RF": None}, "only the variable param"),
        ({"param": 3.0}, "param has no field 'fs'"),
        ({"param": None, "RF": np.ones((9, 9))}, "only the variable RF"),
        ({"fs": None}, "no field 'fs'"),
        ({"fs": "fast"}, "finite real numbers"),
        ({"fs": [1.0, 2.0]}, "must be one number"),
        ({"fc": -1.0}, "must be positive"),
        ({"pitch": np.nan}, "finite real numbers"),
        ({"fs": 8e6}, "4 f / "),
        ({"radius": 0.06}, "curved array"),
        ({"TXdelay": np.zeros(5)}, "5 entries for 24 elements"),
        ({"TXdelay": (ELEMENTS / 4e-3) ** 2 * 1e-6}, "not those of a plane wave"),
        ({"RF": "text"}, "RF must be real"),
        ({"RF": np.full((120, 24), np.nan)}, "finite real numbers"),
        ({"RF": np.zeros((120, 24))}, "constant"),
        ({"RF": np.ones((120, 24)) * 1j}, "RF must be real"),
        ({"RF": np.ones((4, 24))}, "16 parts"),
    ],
)
def test_must_contents_are_checked(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        datasets.read_must(must(tmp_path / "bad.mat", **changes))


def test_must_bombs_and_other_files(files: dict[str, Path], tmp_path: Path) -> None:
    header = files["MUST"].read_bytes()[:128]
    inner = zlib.compress(struct.pack("<II", 14, 3 * 2**30) + bytes(64))
    (tmp_path / "bomb.mat").write_bytes(header + struct.pack("<II", 15, len(inner)) + inner)
    with pytest.raises(ValueError, match="declares"):
        datasets.read_must(tmp_path / "bomb.mat")
    scipy.io.savemat(tmp_path / "other.mat", {"x": 1})
    with pytest.raises(ValueError, match="no variable RF or param"):
        datasets.read_must(tmp_path / "other.mat")
    with pytest.raises(FileNotFoundError):
        datasets.read_must(tmp_path / "absent.mat")


# --- real files --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not (REAL / "pymust_pwi_disk.mat").is_file(), reason=f"pymust_pwi_disk.mat is not in {REAL}")
def test_real_disc_is_visible() -> None:
    """A disc of 2 cm diameter in water, in front of a linear array (example of the toolbox)."""
    m = datasets.open(REAL / "pymust_pwi_disk.mat", image_shape=(96, 96), depth=(8.0, 40.0))
    assert isinstance(m, Measurement)
    scan = scan_of(m)
    assert scan.angles == (0.0,)
    image = torch.linalg.vector_norm(DAS()(None, m).mean, dim=0, keepdim=True)
    inside = disc_mask(scan, (22.5, 0.0), 7.0)
    outside = disc_mask(scan, (22.5, 0.0), 15.0, hole=12.5)
    assert gcnr(image, inside, outside) > 0.8


@pytest.mark.skipif(not (REAL / "pybf_sim_rf.hdf5").is_file(), reason=f"pybf_sim_rf.hdf5 is not in {REAL}")
@pytest.mark.parametrize("transmit", [0, 1, 2])
def test_das_of_simulated_points_peaks_where_they_are(transmit: int) -> None:
    """Field II plane waves at -12, 0 and 12 degrees over rows of points: times, sign of the angle and scale at once.

    The record's clock starts with the excitation, so an echo's middle comes half a two-way pulse late.
    """
    with h5py.File(REAL / "pybf_sim_rf.hdf5") as f:

        def number(key: str) -> float:
            return float(f[key][0, 0])

        rf = f[f"data/rf_data/frame_1/shot_{transmit + 1}"][()].astype(np.float32)
        angle = float(f["data/tx_mode/PW_3_12"][0, transmit])
        points = 1e3 * f["sim_params/scatters_data"][()].T
        pulse = f["sim_params/excitation"].size + 2 * f["sim_params/electroacoustic_impulse_response"].size - 2
        start = number("sim_params/start_time") - pulse / number("sim_params/f_sim_hz") / 2
        elements = 1e3 * number("trans_params/x_pitch") * (np.arange(192) - 95.5)
        fs, fc = number("data/f_sampling"), number("trans_params/f_central")
    chosen_points = [p for p in points if abs(p[0]) < 3 and abs(p[2] - 17.741) < 0.01]  # 1.18 mm apart
    assert len(chosen_points) >= 4
    for x, _, z in chosen_points:
        scan = PlaneWaveScan(
            image_shape=(41, 21), pixel_size=(0.04, 0.05), origin=(z - 0.8, x - 0.5), element_positions=tuple(elements),
            angles=(angle,), start_times=start, n_samples=rf.shape[1], sampling_frequency=fs, centre_frequency=fc,
            sound_speed=1540.0,
        )  # fmt: skip
        m = Measurement(torch.from_numpy(rf[None]), PlaneWaveRF(scan), GaussianNoise(1.0))
        image = Envelope((1, 41, 21))(DAS(f_number=1.5)(None, m).mean)
        row, column = divmod(int(image.argmax()), 21)
        assert abs(row - 20) * 0.04 < 0.1  # a third of the wavelength
        assert abs(column - 10) * 0.05 < 0.2  # the points are 0.5 mm wide
