"""The reader of the Helsinki Tomography Challenge files: on files made here, and on the real ones where present."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch

from invdiff.classical.fbp import fbp
from invdiff.datasets.htc import LINEARISATION, noise_level, read_htc
from invdiff.operators.ct import CT
from invdiff.operators.ct_geometry import FanBeam

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "ct_raw"
real_data = pytest.mark.skipif(
    not (REAL / "htc2022_ta_full.mat").is_file(), reason=f"the HTC 2022 files are not in {REAL}"
)
SIGMA, N_DETECTORS, SPACING, SOURCE_ORIGIN, SOURCE_DETECTOR = 0.01, 60, 1.8, 400.0, 540.0


def geometry(degrees: np.ndarray, image_shape: tuple[int, int] = (48, 48)) -> FanBeam:
    return FanBeam(
        image_shape=image_shape, pixel_size=1.6, angles=np.deg2rad(degrees), n_detectors=N_DETECTORS,
        detector_spacing=SPACING, source_origin=SOURCE_ORIGIN, source_detector=SOURCE_DETECTOR,
    )  # fmt: skip


def image() -> torch.Tensor:
    x, y = geometry(np.zeros(1)).pixel_centres()
    disc = (np.hypot(x - 8, y[:, None] - 12) < 17) * 0.03
    return torch.from_numpy(disc).float()[None]


def contents(**changes: Any) -> dict[str, Any]:
    """What the challenge's files hold, with a smaller detector and known noise."""
    degrees = np.arange(0, 361.0)
    clean = CT(geometry(degrees), supersampling=2)(image())[0].double().numpy()
    parameters = {
        "distanceSourceOrigin": SOURCE_ORIGIN, "distanceSourceDetector": SOURCE_DETECTOR, "distanceUnit": "mm",
        "pixelSizePost": SPACING, "numDetectorsPost": N_DETECTORS, "angles": degrees, "geometryType": "Cone",
    }  # fmt: skip
    data = {
        "type": "2d",
        "sinogram": clean + SIGMA * np.random.default_rng(0).normal(size=clean.shape),
        "parameters": parameters,
    }
    for key, value in changes.items():
        target = data if key in data else parameters
        if value is None:
            del target[key]
        else:
            target[key] = value
    return data


def write(path: Path, *, variable: str = "CtDataFull", **changes: Any) -> Path:
    scipy.io.savemat(path, {variable: contents(**changes)}, do_compression=True)
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("htc") / "htc2022_xx_full.mat")


def test_geometry_data_and_noise(file: Path) -> None:
    m = read_htc(file, image_shape=(48, 48), pixel_size=1.6, rebin=1)
    g = m.A.geometry
    assert isinstance(g, FanBeam)
    assert (g.source_origin, g.source_detector, g.detector_spacing, g.n_detectors) == (400.0, 540.0, 1.8, 60)
    assert g.n_views == 360  # the view at 360 degrees repeats the first
    assert m.noise.sigma == pytest.approx(SIGMA, rel=0.05)
    assert float(m.chi2(image())) == pytest.approx(1, abs=0.1)  # the image that made the data explains them
    assert (m.units, m.item, m.image_scale) == ("1/mm", "htc2022_xx_full", 0.0376)
    assert m.metadata["licence"] == "CC BY 4.0"
    assert "6984868" in m.metadata["source"]
    assert all(isinstance(v, str | int | float) for v in m.metadata.values())


def test_default_grid_covers_the_field_of_view(file: Path) -> None:
    g = read_htc(file, image_shape=(32, 40)).A.geometry
    field = N_DETECTORS * SPACING * SOURCE_ORIGIN / SOURCE_DETECTOR
    assert 32 * g.pixel_size == pytest.approx(field)


def test_rebinning_averages_elements_and_their_noise(file: Path) -> None:
    fine, coarse = (
        read_htc(file, image_shape=(24, 24), rebin=1),
        read_htc(file, image_shape=(24, 24), rebin=2),
    )
    torch.testing.assert_close(coarse.y, fine.y.reshape(1, 360, 30, 2).mean(-1))
    assert coarse.noise.sigma == pytest.approx(fine.noise.sigma / 2**0.5, rel=0.05)
    assert coarse.A.geometry.detector_spacing == 2 * SPACING
    automatic = read_htc(file, image_shape=(24, 24)).A.geometry
    assert automatic.detector_spacing / automatic.magnification <= automatic.pixel_size / 1.5
    with pytest.raises(ValueError, match="rebin must divide the 60"):
        read_htc(file, rebin=7)


def test_views_and_arcs(file: Path) -> None:
    def angles(**kwargs: Any) -> np.ndarray:
        return np.rad2deg(read_htc(file, image_shape=(16, 16), **kwargs).A.geometry.angles)

    np.testing.assert_allclose(angles(views=6), [0, 60, 120, 180, 240, 300])
    np.testing.assert_allclose(angles(angles=(10, 13)), [10, 11, 12, 13])
    np.testing.assert_allclose(angles(angles=(-2, 1)), [358, 359, 0, 1])
    np.testing.assert_allclose(angles(angles=(0, 90), views=4), [0, 30, 60, 90])
    whole, part = (
        read_htc(file, image_shape=(16, 16)),
        read_htc(file, image_shape=(16, 16), angles=(350, 365)),
    )
    torch.testing.assert_close(part.y, whole.y[:, [*range(350, 360), *range(6)]])
    assert part.noise == whole.noise  # estimated from all views


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"views": 0}, "views must lie between 1 and 360"),
        ({"views": 361}, "views must lie between 1 and 360"),
        ({"angles": (50, 50)}, "0 < stop - start <= 360"),
        ({"angles": (0, 10), "views": 12}, "views must lie between 1 and 11"),
        ({"angles": (0.2, 0.4)}, "No view lies between 0.2 and 0.4"),
    ],
)
def test_refuses_impossible_selections(file: Path, selection: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_htc(file, image_shape=(16, 16), **selection)


def test_reads_a_limited_file(tmp_path: Path) -> None:
    degrees = np.arange(30, 71.0)
    path = write(
        tmp_path / "limited.mat",
        variable="CtDataLimited",
        angles=degrees,
        sinogram=contents()["sinogram"][30:71],
    )
    m = read_htc(path, image_shape=(24, 24))
    np.testing.assert_allclose(np.rad2deg(m.A.geometry.angles), degrees)


def test_noise_level_ignores_edges_and_correlation() -> None:
    rng = np.random.default_rng(1)
    n = rng.normal(size=(400, 50)) * np.linspace(0.5, 1.5, 50)
    n[100, :] += 50.0
    n = np.repeat(n, 2, axis=1)  # neighbouring elements share their noise
    assert noise_level(n) == pytest.approx(np.sqrt(np.mean(np.linspace(0.5, 1.5, 50) ** 2)), rel=0.05)
    with pytest.raises(ValueError, match="no noise to estimate"):
        noise_level(np.ones((20, 3)))
    with pytest.raises(ValueError, match="at least 16"):
        noise_level(np.ones((5, 3)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sinogram": None}, "no field 'sinogram'"),
        ({"parameters": 3.0}, "parameters has no field 'angles'"),
        ({"pixelSizePost": None}, "no field 'pixelSizePost'"),
        ({"distanceSourceOrigin": -1.0}, "must be one positive number"),
        ({"distanceUnit": "cm"}, "must be in mm"),
        ({"numDetectorsPost": 59}, r"expected a sinogram of shape \(361, 59\)"),
        ({"sinogram": np.full((361, 60), np.nan)}, "finite real numbers"),
        ({"sinogram": "text"}, "finite real numbers"),
        ({"variable": "reconFullFbp"}, "no variable CtDataFull"),
    ],
)
def test_refuses_other_contents(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_htc(write(tmp_path / "bad.mat", **changes))


def test_refuses_damaged_files(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()

    def attempt(name: str, data: bytes) -> None:
        path = tmp_path / name
        path.write_bytes(data)
        read_htc(path)

    for cut in (len(whole) - 1, len(whole) // 2, 140, 133):
        with pytest.raises(ValueError, match="truncated"):
            attempt("cut.mat", whole[:cut])
    with pytest.raises(ValueError, match="does not start like a MATLAB 5 file"):
        attempt("empty.mat", b"")
    with pytest.raises(ValueError, match="does not start like a MATLAB 5 file"):
        attempt("pickle.mat", b"\x80\x04" + bytes(300))
    with pytest.raises(ValueError, match="MATLAB 7.3"):
        attempt("new.mat", b"\x89HDF\r\n\x1a\n" + bytes(300))
    with pytest.raises(ValueError, match="damaged"):
        attempt("noise.mat", whole[:136] + bytes(len(whole) - 136))
    with pytest.raises(ValueError, match="declares"):
        attempt("bomb.mat", bomb(whole[:128]))
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    with pytest.raises(ValueError, match="cannot be read"):
        attempt("flipped.mat", bytes(flipped))
    with pytest.raises(ValueError, match=r"ending in \.mat"):
        attempt("data.npy", whole)
    with pytest.raises(FileNotFoundError):
        read_htc(tmp_path / "absent.mat")


def bomb(header: bytes) -> bytes:
    """A valid start whose compressed element declares 3 GiB."""
    import struct
    import zlib

    inner = zlib.compress(struct.pack("<II", 14, 3 * 2**30) + bytes(64))
    return header + struct.pack("<II", 15, len(inner)) + inner


@real_data
def test_real_data_agree_with_the_challenge_reconstruction() -> None:
    """Orientation, scale and geometry at once: the authors' own FBP, per pixel of 0.1483 mm, from the same data."""
    size = 0.2 * 410.66 / 553.74
    m = read_htc(REAL / "htc2022_ta_full.mat", image_shape=(128, 128), pixel_size=4 * size)
    reference = scipy.io.loadmat(REAL / "htc2022_ta_full_recon_fbp.mat")["reconFullFbp"] / size
    reference = reference.reshape(128, 4, 128, 4).mean((1, 3))
    x = fbp(m.y, m.A.geometry)[0].double().numpy()
    xs, ys = m.A.geometry.pixel_centres()
    seen = np.hypot(xs, ys[:, None]) < 37
    slope, intercept = np.polyfit(reference[seen], x[seen], 1)
    assert np.corrcoef(reference[seen], x[seen])[0, 1] > 0.99
    assert slope == pytest.approx(1, abs=0.03)
    assert abs(intercept) < 0.001
    for other in (x.T, x[::-1], x[:, ::-1], x[::-1, ::-1]):
        assert np.corrcoef(reference[seen], other[seen])[0, 1] < 0.9


@real_data
def test_real_noise_level_agrees_with_the_repeated_view() -> None:
    """The views at 0 and 360 degrees are two exposures of the same thing."""
    sinogram = scipy.io.loadmat(REAL / "htc2022_ta_full.mat", simplify_cells=True)["CtDataFull"]["sinogram"]
    repeated = (sinogram[720] - sinogram[0]).std() / 2**0.5
    assert noise_level(sinogram) == pytest.approx(repeated, rel=0.15)


def test_linearised_rays_of_a_uniform_disc_are_proportional_to_its_chords(tmp_path: Path) -> None:
    """A file made with the beam hardening and the counting noise that the option undoes; air reads 0.015."""
    degrees, mu, n0 = np.arange(0, 361.0), 0.045, 60000.0
    beam = replace(geometry(degrees), n_detectors=120, detector_spacing=0.9)
    x, y = beam.pixel_centres()
    disc = torch.from_numpy((np.hypot(x, y[:, None]) < 25) * mu).float()[None]
    line = CT(beam, supersampling=4)(disc)[0].double().numpy()
    a, b = LINEARISATION
    p = np.linspace(-0.1, 4, 20001)
    hard = np.interp(line, p + a * p**2 + b * p**3, p)
    rng = np.random.default_rng(0)
    sinogram = hard + np.exp(hard / 2) / math.sqrt(n0) * rng.normal(size=hard.shape) + 0.015
    path = write(tmp_path / "htc2022_xx_full.mat", sinogram=sinogram, numDetectorsPost=120, pixelSizePost=0.9)
    options = {"image_shape": (48, 48), "pixel_size": 1.6, "rebin": 1}
    m = read_htc(path, **options, linearise=True)
    assert float(m.chi2(disc)) == pytest.approx(1, abs=0.1)
    assert float(read_htc(path, **options).chi2(disc)) > 100
    assert float(read_htc(path, **options, linearise=True, model_error=0.1).chi2(disc)) < 0.1
    coarse = read_htc(path, **options | {"rebin": 30}, linearise=True)  # elements wider than the air beside the disc
    assert float(coarse.y.max()) == pytest.approx(float(m.y[:, :, 45:75].mean()), rel=0.15)
