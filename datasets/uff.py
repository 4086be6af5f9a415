"""UFF of USTB (.uff): plane-wave channel data, RF or IQ, of the UltraSound ToolBox.

O. Bernard et al., "The ultrasound file format (UFF) - first draft", IEEE International Ultrasonics Symposium 2018;
A. Rodriguez-Molares et al., "The UltraSound ToolBox", ibid. 2017. HDF5 with MATLAB's dimensions reversed: a group of
class ``uff.channel_data`` with ``data`` (frame, transmit, element, sample; leading ones of length 1 may be missing; a
group of ``real`` and ``imag`` if complex), ``probe``, ``sequence`` (waves with ``source/azimuth`` and ``delay``),
``initial_time``, ``sampling_frequency``, ``modulation_frequency``, ``sound_speed``. Time and the phase of IQ data count
on the record's clock, on which a wave passes the origin at ``-delay``. Read by h5py alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from invdiff.datasets.channel_data import chosen, frame, linear_array, plane_wave_measurement
from invdiff.datasets.files import Head
from invdiff.datasets.hdf5 import array, dataset_shape, open_hdf5, scalar
from invdiff.measurement import Measurement

PLANE = 0  # of the enumeration plane, spherical, photoacoustic


def read_uff(
    path: str | Path,
    *,
    index: int = 0,
    angles: int | Sequence[int] | None = None,
    image_shape: tuple[int, int] = (256, 256),
    depth: tuple[float, float] | None = None,
    f_number: float = 1.75,
    bandwidth: float | None = None,
) -> Measurement:
    """Read one frame of the file's first channel data as a measurement.

    Args:
        path: a ``.uff`` file.
        index: frame.
        angles: transmits: a number of them, equispaced, or their indices. None: all.
        image_shape, depth, f_number, bandwidth: as in
            :func:`invdiff.datasets.channel_data.plane_wave_measurement`; bandwidth None: no pulse.

    Raises:
        FileNotFoundError, OSError, ValueError: not such a file, damaged, transmits that are not plane waves, RF data
            without a centre frequency, or a selection that it cannot give.

    Example:
        >>> import tempfile
        >>> import h5py
        >>> import numpy as np
        >>> from invdiff.datasets import read_uff
        >>> x, rf = np.linspace(-2e-3, 2e-3, 16), np.random.default_rng(0).normal(size=(1, 1, 16, 512))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with h5py.File(f"{folder}/scan.uff", "w") as f:
        ...         g = f.create_group("channel_data")
        ...         g.attrs["class"], g["data"] = "uff.channel_data", rf
        ...         g["probe/geometry"] = np.concatenate([x[None], np.zeros((6, 16))])
        ...         wave = g.create_group("sequence/sequence_0001")
        ...         wave["source/azimuth"], wave["source/distance"], wave["wavefront"] = [[0.0]], [[np.inf]], [[0]]
        ...         g["initial_time"], g["sampling_frequency"], g["sound_speed"] = [[0.0]], [[20e6]], [[1540.0]]
        ...         g["modulation_frequency"], g["pulse/center_frequency"] = [[0.0]], [[5e6]]
        ...     m = read_uff(f"{folder}/scan.uff", image_shape=(16, 8), depth=(8.0, 12.0))
        >>> m.A.in_shape, m.A.out_shape
        ((1, 16, 8), (1, 16, 512))
    """
    path = Path(path)
    with open_hdf5(path) as f:
        root = next((name for name in sorted(f) if _is_channel_data(f[name])), None)
        if root is None:
            raise ValueError(f"{path.name}: no group holds channel data (data, probe, sequence, sampling_frequency).")
        elements = _elements(f, f"{root}/probe", path.name)
        waves = _waves(f, f"{root}/sequence", path.name)
        kept = np.sort(chosen(angles, len(waves)))
        parts = [f"{root}/data/{p}" for p in ("real", "imag")]
        names = parts if isinstance(f[f"{root}/data"], h5py.Group) else [f"{root}/data"]
        samples = [_samples(f, name, len(waves), len(elements), index, kept) for name in names]
        if len({s.shape for s in samples}) > 1:
            raise ValueError(f"{path.name}: data/real and data/imag differ in shape.")
        start = scalar(f, f"{root}/initial_time")
        numbers = [scalar(f, f"{root}/{k}") for k in ("sampling_frequency", "sound_speed")]
        modulation = scalar(f, f"{root}/modulation_frequency") if f"{root}/modulation_frequency" in f else 0.0
        pulse = f"{root}/pulse/center_frequency"
        frequency = modulation or (scalar(f, pulse) if pulse in f else 0.0)
    if frequency == 0:
        raise ValueError(f"{path.name}: neither modulation_frequency nor pulse/center_frequency states a frequency.")
    return plane_wave_measurement(
        samples[0] + 1j * samples[1] if len(samples) == 2 and samples[1].any() else samples[0],
        element_positions=elements,
        angles=waves[kept, 0],
        start_times=start + waves[kept, 1],
        phase_times=start,
        sampling_frequency=numbers[0],
        centre_frequency=frequency,
        sound_speed=numbers[1],
        bandwidth=bandwidth,
        image_shape=image_shape,
        depth=depth,
        f_number=f_number,
        item=f"{path.stem}_{index}",
        metadata={"source": "UFF (USTB)", "file": path.name, "frame": int(index)},
    )


read = read_uff


def matches(head: Head) -> bool:
    """A top-level group with channel data."""
    tops = [k for k in head.keys if "/" not in k]
    return any({f"{k}/data", f"{k}/probe", f"{k}/sequence", f"{k}/sampling_frequency"} <= head.keys for k in tops)


def _is_channel_data(item: h5py.Group | h5py.Dataset) -> bool:
    return isinstance(item, h5py.Group) and {"data", "probe", "sequence", "sampling_frequency"} <= set(item)


def _elements(f: h5py.File, key: str, name: str) -> np.ndarray:
    """x of the elements, m: stated (7, element), or from their number and pitch."""
    if f"{key}/geometry" in f:
        return linear_array(array(f, f"{key}/geometry", ndim=2)[:3].T, name)
    number, pitch = (scalar(f, f"{key}/{k}") for k in ("N", "pitch"))
    if not 1 <= number <= 10_000:
        raise ValueError(f"{name}: {key}/N must be a number of elements, got {number:g}.")
    return (np.arange(int(number)) - (int(number) - 1) / 2) * pitch


def _waves(f: h5py.File, key: str, name: str) -> np.ndarray:
    """(azimuth, delay) of every wave."""
    group = f[key]
    if not isinstance(group, h5py.Group):
        raise ValueError(f"{name}: '{key}' must be a group of waves.")
    keys = [key] if "source" in group else [f"{key}/{k}" for k in sorted(group)]
    waves = []
    for k in keys:
        if f"{k}/wavefront" in f and scalar(f, f"{k}/wavefront") != PLANE:
            raise ValueError(f"{name}: '{k}' is not a plane wave; focused and diverging transmits are not supported.")
        if f"{k}/source/elevation" in f and abs(scalar(f, f"{k}/source/elevation")) > 1e-6:
            raise ValueError(f"{name}: '{k}' is steered out of the image plane.")
        delay = scalar(f, f"{k}/delay") if f"{k}/delay" in f else 0.0
        waves.append((scalar(f, f"{k}/source/azimuth"), delay))
    if not waves:
        raise ValueError(f"{name}: '{key}' holds no waves.")
    return np.array(waves)


def _samples(f: h5py.File, key: str, n_waves: int, n_elements: int, index: int, kept: np.ndarray) -> np.ndarray:
    """(transmit, element, sample) of one frame."""
    shape = dataset_shape(f, key, ndim=(2, 3, 4))
    n_frames, n_transmits, n_channels = (1, 1, *shape)[-4:-1]
    if (n_transmits, n_channels) != (n_waves, n_elements):
        raise ValueError(
            f"{Path(f.filename).name}: '{key}' has {n_transmits} transmits x {n_channels} channels, the sequence and "
            f"the probe have {n_waves} x {n_elements}."
        )
    where = (frame(index, n_frames), kept)[4 - len(shape) :]
    return array(f, key, where=where).reshape(len(kept), n_elements, -1)
