"""MUST / PyMUST (.mat): plane-wave RF of the MATLAB UltraSound Toolbox, band-pass sampled or not.

D. Garcia, "Make the most of MUST, an open-source MATLAB UltraSound Toolbox", IEEE International Ultrasonics Symposium
2021. A MATLAB 5 file with ``RF`` (sample, element[, frame]) and the struct ``param``: ``fs``, ``fc`` (Hz), ``pitch``
(m), optionally ``c`` (m/s, 1540), ``t0`` (s, 0), ``TXdelay`` (element,) in s, ``bandwidth`` (per cent of fc).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from invdiff.datasets import matlab
from invdiff.datasets.channel_data import demodulate, frame, plane_wave_measurement, plane_wave_of
from invdiff.datasets.files import Head
from invdiff.measurement import Measurement

REMEDY = "Expected RF data of the MATLAB UltraSound Toolbox with the variables RF and param, such as PWI_disk.mat."
WELL_SAMPLED = 3.9  # samples per period from which RF is kept as it is


def read_must(
    path: str | Path,
    *,
    index: int = 0,
    image_shape: tuple[int, int] = (256, 256),
    depth: tuple[float, float] | None = None,
    f_number: float = 1.75,
    bandwidth: float | None = None,
) -> Measurement:
    """Read one frame as a measurement.

    RF with at least four samples per period stays RF; band-pass sampled RF (4/3 of the centre frequency, usually) is
    demodulated, which keeps its noise white (:func:`invdiff.datasets.channel_data.demodulate`).

    Args:
        path: a ``.mat`` file.
        index: frame.
        image_shape, depth, f_number, bandwidth: as in
            :func:`invdiff.datasets.channel_data.plane_wave_measurement`; bandwidth None: no pulse. The file's own
            bandwidth is a setting of the toolbox, not a measurement, and is not used.

    Raises:
        FileNotFoundError, ValueError: not such a file, damaged, a transmit that is not a plane wave, another array than
            a linear one, or a selection that it cannot give.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> import scipy.io
        >>> from invdiff.datasets import read_must
        >>> rf = np.random.default_rng(0).normal(size=(512, 16))  # sample, element
        >>> param = {"fs": 20e6, "fc": 5e6, "pitch": 3e-4, "c": 1540.0, "t0": 0.0, "Nelements": 16}
        >>> param["TXdelay"] = np.zeros(16)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     scipy.io.savemat(f"{folder}/scan.mat", {"RF": rf, "param": param})
        ...     m = read_must(f"{folder}/scan.mat", image_shape=(16, 8), depth=(8.0, 12.0))
        >>> m.A.in_shape, m.A.out_shape
        ((1, 16, 8), (1, 16, 512))
    """
    path = Path(path)
    data = matlab.load(path, ("RF", "param"), remedy=REMEDY)
    if set(data) != {"RF", "param"}:
        raise ValueError(f"{path.name} has only the variable {', '.join(data)}. {REMEDY}")
    param = data["param"]

    def number(key: str, default: float | None = None) -> float:
        if default is not None and isinstance(param, dict) and key not in param:
            return default
        value = matlab.numbers(matlab.field(param, key, "param", path, REMEDY), f"param.{key}", path)
        if value.size == 0 and default is not None:
            return default
        if value.size != 1:
            raise ValueError(f"{path.name}: param.{key} must be one number, got shape {value.shape}.")
        return float(value.ravel()[0])

    fs, fc, pitch, c, t0 = number("fs"), number("fc"), number("pitch"), number("c", 1540.0), number("t0", 0.0)
    rf = np.asarray(data["RF"])
    if rf.dtype.kind not in "fiu" or rf.ndim not in (2, 3) or 0 in rf.shape:
        raise ValueError(f"{path.name}: RF must be real, (sample, element[, frame]), got {rf.dtype} {rf.shape}.")
    rf = rf.reshape(*rf.shape[:2], -1)
    rf = matlab.numbers(rf[..., frame(index, rf.shape[2])].T, "RF", path)
    if "radius" in param and np.isfinite(np.asarray(param["radius"], dtype=np.float64)).any():
        raise ValueError(f"{path.name}: a curved array (param.radius); only linear arrays are read.")
    elements = (np.arange(len(rf)) - (len(rf) - 1) / 2) * pitch
    delays = matlab.numbers(param.get("TXdelay", np.zeros(len(rf))), "param.TXdelay", path).ravel()
    if delays.size != len(rf):
        raise ValueError(f"{path.name}: param.TXdelay has {delays.size} entries for {len(rf)} elements.")
    if min(fs, fc, pitch, c) <= 0:
        raise ValueError(f"{path.name}: fs, fc, pitch and c must be positive, got {fs:g}, {fc:g}, {pitch:g}, {c:g}.")
    angle, passes = plane_wave_of(delays, elements, c, fc, path.name)
    start = t0 - passes
    samples, rate = (rf, fs) if fs >= WELL_SAMPLED * fc else demodulate(rf, fs, fc, start)
    return plane_wave_measurement(
        samples[None],
        element_positions=elements,
        angles=np.array([angle]),
        start_times=np.array([start]),
        sampling_frequency=rate,
        centre_frequency=fc,
        sound_speed=c,
        bandwidth=bandwidth,
        image_shape=image_shape,
        depth=depth,
        f_number=f_number,
        item=f"{path.stem}_{index}",
        metadata={"source": "MUST file", "file": path.name, "frame": int(index)},
    )


read = read_must


def matches(head: Head) -> bool:
    """A MATLAB 5 file with RF and param."""
    return {"RF", "param"} <= (matlab.variables(head) or set())
