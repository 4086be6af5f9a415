"""Helsinki Tomography Challenge 2022 (.mat): measured fan-beam sinograms of acrylic discs with holes.

A. Meaney, F. Silva de Moura, S. Siltanen, "Helsinki Tomography Challenge 2022 open tomographic dataset (HTC
2022)", Zenodo 6984868, CC BY 4.0. Cone-beam scanner, its central row only, so a fan beam with a flat detector.
The files are MATLAB 5 files with one struct, ``CtDataFull`` or ``CtDataLimited``. Angles, detector direction
and image orientation of the files are those of :class:`invdiff.operators.ct_geometry.FanBeam` as they are.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from invdiff.datasets import matlab
from invdiff.datasets.files import Head
from invdiff.measurement import Measurement
from invdiff.noise import GaussianNoise, Noise, WeightedGaussianNoise
from invdiff.operators.ct import CT
from invdiff.operators.ct_geometry import FanBeam

STRUCTS = ("CtDataFull", "CtDataLimited")
PARAMETERS = {
    "distanceSourceOrigin": "source_origin",
    "distanceSourceDetector": "source_detector",
    "pixelSizePost": "detector_spacing",
    "numDetectorsPost": "n_detectors",
}
# Line integrals of the uniform disc of the challenge (radius 34.8 mm, from its shadow) against its chords of 10 mm and
# more: chord proportional to p + a p^2 + b p^3, 0.76 mm root mean square (after what air reads is subtracted).
LINEARISATION = (0.0869, 0.0553)
AIR = 25  # outermost detector elements on either side, which the object never shades
REMEDY = (
    "Expected a sinogram file of the Helsinki Tomography Challenge 2022, such as htc2022_ta_full.mat "
    "(https://doi.org/10.5281/zenodo.6984868)."
)


def read_htc(
    path: str | Path,
    *,
    image_shape: tuple[int, int] = (128, 128),
    pixel_size: float | None = None,
    views: int | None = None,
    angles: tuple[float, float] | None = None,
    rebin: int | None = None,
    image_scale: float = 0.0376,
    linearise: bool = False,
    model_error: float = 0.0,
) -> Measurement:
    """Read one sinogram as a measurement of attenuation in 1/mm.

    The noise is Gaussian with one ``sigma`` for all rays, estimated from all views of the file after rebinning
    (:func:`noise_level`). The real noise grows with attenuation, and two things are not noise: beam hardening
    (polychromatic 45 kV spectrum; a long path reads low) and, on a coarse grid, edges that pixels cannot represent.
    ``chi2`` of a good image therefore stays above 1.

    Args:
        path: a ``.mat`` file of the challenge.
        image_shape: (ny, nx) of the reconstruction.
        pixel_size: mm; None: the field of view (detector width scaled to the axis) over the shorter side.
        views: number of views to keep, equispaced over the turn, or over ``angles`` (both ends included).
            None: all. A view repeated a full turn later is dropped.
        angles: (start, stop) in degrees, the part of the turn to keep, ends included; start < stop, and the arc
            may pass through 360.
        rebin: number of neighbouring detector elements to average; must divide their number. None: the largest for
            which an element, scaled to the axis, is at most 1/1.5 of a pixel.
        image_scale: 1/mm, the attenuation that counts as 1 to a prior. Default: water at 30 keV (NIST XCOM), close
            to the effective energy of this 45 kV Mo spectrum for short paths: there acrylic reconstructs to about
            0.036 1/mm, its value at 30 keV; in the middle of the disc hardening lowers it to 0.028.
        linearise: undo beam hardening, which is possible because the object is of one material: what air reads
            (0.013 to 0.016) is subtracted, and line integrals p become ``p + 0.0869 p^2 + 0.0553 p^3``, fitted to the
            challenge's uniform disc, which is then flat at 0.045 1/mm, the attenuation of short paths. The noise
            becomes that of counts carried through the same map, one weight per ray (a
            :class:`~invdiff.noise.WeightedGaussianNoise`), its level again estimated.
        model_error: standard deviation, in line integrals, of what the model cannot explain, added to the noise in
            quadrature; on 128 x 128 pixels the edges of the disc and its holes leave about 0.01.

    Returns:
        Measurement with a :class:`CT` operator with :class:`FanBeam` geometry; ``item`` is the file's name.

    Raises:
        FileNotFoundError, ValueError: not such a file, damaged, or a selection that it cannot give.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> import scipy.io
        >>> from invdiff.datasets import read_htc
        >>> scanner = {"distanceSourceOrigin": 410.0, "distanceSourceDetector": 553.0, "distanceUnit": "mm",
        ...            "pixelSizePost": 2.0, "numDetectorsPost": 56, "angles": np.arange(0.0, 360.0, 3.0)}
        >>> sinogram = np.random.default_rng(0).normal(0.5, 0.01, (120, 56))
        >>> data = {"type": "2D", "sinogram": sinogram, "parameters": scanner}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     scipy.io.savemat(f"{folder}/htc2022_x.mat", {"CtDataFull": data})
        ...     m = read_htc(f"{folder}/htc2022_x.mat", image_shape=(32, 32), views=30)
        >>> m.A.out_shape, m.units, bool(abs(m.noise.sigma - 0.01) < 0.001)
        ((1, 30, 56), '1/mm', True)
    """
    path = Path(path)
    sinogram, degrees, geometry = _load(path)

    keep = np.unique(np.round(np.mod(degrees, 360), 6), return_index=True)[1]
    keep = _select(np.sort(keep), degrees, views, angles)

    magnification = geometry["source_detector"] / geometry["source_origin"]
    at_axis = geometry["detector_spacing"] / magnification
    if pixel_size is None:
        pixel_size = geometry["n_detectors"] * at_axis / min(image_shape)
    if rebin is None:
        divisors = [k for k in range(1, geometry["n_detectors"] + 1) if geometry["n_detectors"] % k == 0]
        rebin = max((k for k in divisors if k * at_axis <= pixel_size / 1.5), default=1)
    if rebin < 1 or geometry["n_detectors"] % rebin:
        raise ValueError(f"rebin must divide the {geometry['n_detectors']} detector elements, got {rebin}.")
    air = float(np.median(np.concatenate([sinogram[:, :AIR], sinogram[:, -AIR:]], axis=1)))
    sinogram = sinogram.reshape(len(sinogram), -1, rebin).mean(-1)
    geometry["n_detectors"] //= rebin
    geometry["detector_spacing"] *= rebin

    beam = FanBeam(image_shape=image_shape, pixel_size=pixel_size, angles=tuple(np.deg2rad(degrees[keep])), **geometry)
    y = sinogram[keep]
    noise: Noise = GaussianNoise(math.hypot(noise_level(sinogram), model_error))
    if linearise:
        a, b = LINEARISATION
        y = y - air
        sigma = noise_level(sinogram, counts=True) * np.exp(y / 2) * (1 + 2 * a * y + 3 * b * y**2)
        y, noise = (
            y + a * y**2 + b * y**3,
            WeightedGaussianNoise(torch.from_numpy(1 / (sigma**2 + model_error**2)).float()[None]),
        )
    return Measurement(
        y=torch.from_numpy(y).float()[None],
        A=CT(beam, supersampling=math.ceil(4 * rebin * at_axis / pixel_size)),  # sub-rays at most 1/4 pixel apart
        noise=noise,
        image_scale=image_scale,
        units="1/mm",
        item=path.stem,
        metadata={
            "source": "Helsinki Tomography Challenge 2022, https://doi.org/10.5281/zenodo.6984868",
            "authors": "Meaney, Silva de Moura, Siltanen 2022",
            "licence": "CC BY 4.0",
            "file": path.name,
            "pixel_size_mm": float(pixel_size),
            "rebin": int(rebin),
        },
    )


read = read_htc


def matches(head: Head) -> bool:
    """A MATLAB 5 file with one of the challenge's structs, or (damaged, compressed beyond recognition) its name."""
    names = matlab.variables(head)
    if names is None:
        return False
    return bool(names & set(STRUCTS)) if names else head.path.name.lower().startswith("htc2022")


def noise_level(sinogram: np.ndarray, *, counts: bool = False) -> float:
    """Standard deviation of the noise in a finely sampled sinogram (n_views, n_detectors), in its own units.

    Neighbouring views share the object but not the noise, so the fourth difference over views, divided by
    sqrt(70), leaves mostly noise. Per detector element its median absolute deviation, which ignores the few views
    where an edge passes, gives a standard deviation; the result is their root mean square, the level at which
    chi2 averages to 1. Noise correlation between detector elements does not matter.

    Args:
        counts: the noise of a line integral p is that of counts, its standard deviation the returned value times
            ``exp(p / 2)``; in the challenge's files this holds to 4 % from p = 0 to 2.2.

    Raises:
        ValueError: fewer than 16 views, or data without noise.
    """
    if len(sinogram) < 16:
        raise ValueError(
            f"The noise is estimated from differences of views: expected at least 16, got {len(sinogram)}."
        )
    fourth = np.diff(sinogram, n=4, axis=0) / math.sqrt(70)
    if counts:
        fourth = fourth * np.exp(-sinogram[2:-2] / 2)
    sigma = 1.4826 * np.median(np.abs(fourth - np.median(fourth, axis=0)), axis=0)
    level = float(np.sqrt(np.mean(sigma**2)))
    if not level > 0:
        raise ValueError("The sinogram has no noise to estimate (its views are equal or smooth to rounding).")
    return level


def _select(keep: np.ndarray, degrees: np.ndarray, views: int | None, angles: tuple[float, float] | None) -> np.ndarray:
    """Indices of the views asked for, out of ``keep``, in angular order from the start of the arc."""
    start, stop = (0.0, 360.0) if angles is None else (float(angles[0]), float(angles[1]))
    if not 0 < stop - start <= 360:
        raise ValueError(f"angles must be (start, stop) in degrees with 0 < stop - start <= 360, got {angles!r}.")
    offset = np.round(np.mod(degrees[keep] - start, 360), 6) % 360
    order = np.argsort(offset)
    keep, offset = keep[order], offset[order]
    keep, offset = keep[offset <= stop - start + 1e-6], offset[offset <= stop - start + 1e-6]
    if not len(keep):
        raise ValueError(f"No view lies between {start:g} and {stop:g} degrees; the file covers "
                         f"{degrees.min():g} to {degrees.max():g}.")  # fmt: skip
    if views is None:
        return keep
    if not 1 <= views <= len(keep):
        raise ValueError(f"views must lie between 1 and {len(keep)}, the number available, got {views!r}.")
    full = stop - start == 360
    wanted = np.linspace(0, stop - start, views, endpoint=not full)
    chosen = np.abs(offset[None] - wanted[:, None]).argmin(1)
    if len(np.unique(chosen)) < views:
        raise ValueError(
            f"{views} equispaced views between {start:g} and {stop:g} degrees are not in the file; ask for fewer."
        )
    return keep[chosen]


def _load(path: Path) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Sinogram (n_views, n_detectors) float64, angles in degrees, and the geometry's numbers."""
    name, data = next(iter(matlab.load(path, STRUCTS, remedy=REMEDY).items()))

    def get(container: Any, key: str, where: str) -> Any:
        return matlab.field(container, key, where, path, REMEDY)

    parameters = get(data, "parameters", name)
    sinogram = matlab.numbers(get(data, "sinogram", name), "sinogram", path)
    degrees = np.atleast_1d(matlab.numbers(get(parameters, "angles", "parameters"), "parameters.angles", path))
    unit = parameters.get("distanceUnit", "mm")
    if unit != "mm":
        raise ValueError(f"{path.name}: distances must be in mm, got distanceUnit={unit!r}.")
    geometry: dict[str, Any] = {}
    for key, argument in PARAMETERS.items():
        value = matlab.numbers(get(parameters, key, "parameters"), f"parameters.{key}", path)
        if value.ndim or not value > 0:
            raise ValueError(f"{path.name}: parameters.{key} must be one positive number, got {value}.")
        geometry[argument] = float(value)
    geometry["n_detectors"] = int(geometry["n_detectors"])
    expected = (degrees.size, geometry["n_detectors"])
    if degrees.ndim != 1 or sinogram.shape != expected:
        raise ValueError(
            f"{path.name}: expected a sinogram of shape {expected} (one row per angle, one column per detector "
            f"element), got {sinogram.shape}. The file is damaged or of another kind. {REMEDY}"
        )
    return sinogram, degrees, geometry
