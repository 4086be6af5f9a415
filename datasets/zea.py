"""zea (.hdf5): plane-wave channel data, RF or IQ, of the zea toolbox (formerly usbmd).

Layout (zea documentation, "data acquisition"): ``data/raw_data`` (frame, transmit, sample, element, channel) with one
channel for RF and two for IQ, and the group ``scan``: ``probe_geometry`` (element, 3) in m, ``t0_delays`` (transmit,
element) in s, ``initial_times`` (transmit,) from the first element's firing to the first sample,
``sampling_frequency``, ``center_frequency``, optionally ``demodulation_frequency``, ``sound_speed``, ``polar_angles``.
The phase of IQ data counts from each transmit's first sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from invdiff.datasets.channel_data import chosen, frame, linear_array, plane_wave_measurement, plane_wave_of
from invdiff.datasets.files import Head
from invdiff.datasets.hdf5 import array, dataset_shape, open_hdf5, scalar
from invdiff.measurement import Measurement

SAME_ANGLE = 0.01  # rad, between the delays and the angle that the file states


def read_zea(
    path: str | Path,
    *,
    index: int = 0,
    angles: int | Sequence[int] | None = None,
    image_shape: tuple[int, int] = (256, 256),
    depth: tuple[float, float] | None = None,
    f_number: float = 1.75,
    bandwidth: float | None = None,
) -> Measurement:
    """Read one frame as a measurement. The steering comes from the transmit delays.

    Args:
        path: an ``.hdf5`` file.
        index: frame.
        angles: transmits: a number of them, equispaced, or their indices. None: all.
        image_shape, depth, f_number, bandwidth: as in
            :func:`invdiff.datasets.channel_data.plane_wave_measurement`; bandwidth None: no pulse.

    Raises:
        FileNotFoundError, OSError, ValueError: not such a file, damaged, transmits that are not plane waves, or a
            selection that it cannot give.

    Example:
        >>> import tempfile
        >>> import h5py
        >>> import numpy as np
        >>> from invdiff.datasets import read_zea
        >>> x, rf = np.linspace(-2e-3, 2e-3, 16), np.random.default_rng(0).normal(size=(2, 1, 512, 16, 1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with h5py.File(f"{folder}/scan.hdf5", "w") as f:
        ...         f["data/raw_data"], g = rf, f.create_group("scan")  # frame, transmit, sample, element, channel
        ...         g["probe_geometry"], g["t0_delays"] = np.stack([x, 0 * x, 0 * x], 1), np.zeros((1, 16))
        ...         g["initial_times"], g["polar_angles"], g["focus_distances"] = [0.0], [0.0], [np.inf]
        ...         g["sampling_frequency"], g["center_frequency"], g["sound_speed"] = 20e6, 5e6, 1540.0
        ...     m = read_zea(f"{folder}/scan.hdf5", index=1, image_shape=(16, 8), depth=(8.0, 12.0))
        >>> m.A.in_shape, m.A.out_shape
        ((1, 16, 8), (1, 16, 512))
    """
    path = Path(path)
    with open_hdf5(path) as f:
        shape = dataset_shape(f, "data/raw_data", ndim=5)
        elements = linear_array(array(f, "scan/probe_geometry", ndim=2), path.name)
        delays = array(f, "scan/t0_delays", ndim=2).astype(np.float64)
        starts = array(f, "scan/initial_times", ndim=1).astype(np.float64)
        if delays.shape != (shape[1], shape[3]) or starts.shape != shape[1:2] or len(elements) != shape[3]:
            raise ValueError(
                f"{path.name}: raw_data (frame, transmit, sample, element, channel) has the shape {shape}, but "
                f"t0_delays {delays.shape}, initial_times {starts.shape}, {len(elements)} elements."
            )
        if shape[4] not in (1, 2):
            raise ValueError(f"{path.name}: raw_data must have 1 channel (RF) or 2 (IQ), it has {shape[4]}.")
        kept = np.sort(chosen(angles, shape[1]))
        demodulated = "scan/demodulation_frequency" in f
        frequency = scalar(f, "scan/demodulation_frequency" if demodulated else "scan/center_frequency")
        sampling_frequency = scalar(f, "scan/sampling_frequency")
        sound_speed = scalar(f, "scan/sound_speed") if "scan/sound_speed" in f else 1540.0
        stated = array(f, "scan/polar_angles").ravel() if "scan/polar_angles" in f else None
        raw = array(f, "data/raw_data", where=np.s_[frame(index, shape[0])])
    waves = [plane_wave_of(delays[k], elements, sound_speed, frequency, path.name) for k in kept]
    tilts, passes = (np.array(v) for v in zip(*waves, strict=True))
    if stated is not None and (stated.size != shape[1] or np.abs(stated[kept] - tilts).max() > SAME_ANGLE):
        raise ValueError(f"{path.name}: polar_angles are not those of t0_delays, {np.round(tilts, 4).tolist()} rad.")
    raw = raw[kept].transpose(0, 2, 1, 3)  # (transmit, element, sample, channel)
    return plane_wave_measurement(
        raw[..., 0] + 1j * raw[..., 1] if shape[4] == 2 else raw[..., 0],
        element_positions=elements,
        angles=tilts,
        start_times=starts[kept] - passes,
        phase_times=0.0,
        sampling_frequency=sampling_frequency,
        centre_frequency=frequency,
        sound_speed=sound_speed,
        bandwidth=bandwidth,
        image_shape=image_shape,
        depth=depth,
        f_number=f_number,
        item=f"{path.stem}_{index}",
        metadata={"source": "zea file", "file": path.name, "frame": int(index)},
    )


read = read_zea


def matches(head: Head) -> bool:
    """Raw data and the probe's geometry."""
    return {"data/raw_data", "scan/probe_geometry"} <= head.keys
