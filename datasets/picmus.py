"""PICMUS (.hdf5): plane-wave channel data, RF or IQ, of the plane-wave imaging challenge.

H. Liebgott, A. Rodriguez-Molares, F. Cervenansky, J. A. Jensen and O. Bernard, "Plane-wave imaging challenge in medical
ultrasound", IEEE International Ultrasonics Symposium 2016. Layout: the group ``US/US_DATASET0000`` with ``data/real``
and ``data/imag`` (transmit, element, sample), ``angles`` (rad), ``probe_geometry`` (3, element) in m,
``initial_time`` (s), ``sampling_frequency`` and ``modulation_frequency`` (Hz), ``sound_speed`` (m/s).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from invdiff.datasets.channel_data import chosen, linear_array, plane_wave_measurement
from invdiff.datasets.files import Head
from invdiff.datasets.hdf5 import array, dataset_shape, open_hdf5, scalar
from invdiff.measurement import Measurement

GROUP = "US/US_DATASET0000"
CENTRE_FREQUENCY = 5.208e6  # Hz, of the challenge's L11-4v probe; RF files and one IQ file state 0


def read_picmus(
    path: str | Path,
    *,
    angles: int | Sequence[int] | None = None,
    image_shape: tuple[int, int] = (256, 256),
    depth: tuple[float, float] | None = None,
    f_number: float = 1.75,
    bandwidth: float | None = None,
) -> Measurement:
    """Read one file as a measurement.

    A file whose imaginary part is zero holds RF, any other IQ data. Where the modulation frequency is 0, the probe's
    5.208 MHz stands for it. Noise: :func:`invdiff.datasets.channel_data.noise_level`.

    Args:
        path: an ``.hdf5`` file.
        angles: transmits: a number of them, equispaced, or their indices. None: all, up to 75, which beyond a
            quarter of the machine's memory is slow.
        image_shape, depth, f_number, bandwidth: as in
            :func:`invdiff.datasets.channel_data.plane_wave_measurement`; the probe's bandwidth is 0.67.

    Raises:
        FileNotFoundError, OSError, ValueError: not such a file, damaged, or a selection that it cannot give.

    Example:
        >>> import tempfile
        >>> import h5py
        >>> import numpy as np
        >>> from invdiff.datasets import read_picmus
        >>> x, rf = np.linspace(-2e-3, 2e-3, 16), np.random.default_rng(0).normal(size=(3, 16, 512))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with h5py.File(f"{folder}/scan.hdf5", "w") as f:
        ...         g = f.create_group("US/US_DATASET0000")
        ...         g["data/real"], g["data/imag"], g["angles"] = rf, 0 * rf, [-0.1, 0.0, 0.1]
        ...         g["probe_geometry"], g["initial_time"], g["sampling_frequency"] = [x, 0 * x, 0 * x], [0.0], [20e6]
        ...         g["sound_speed"], g["modulation_frequency"] = [1540.0], [0.0]
        ...     m = read_picmus(f"{folder}/scan.hdf5", angles=[1], image_shape=(16, 8), depth=(8.0, 12.0))
        >>> m.A.in_shape, m.A.out_shape
        ((1, 16, 8), (1, 16, 512))
    """
    path = Path(path)
    with open_hdf5(path) as f:
        tilts = array(f, f"{GROUP}/angles").ravel()
        elements = linear_array(array(f, f"{GROUP}/probe_geometry", ndim=2).T, path.name)
        shape = dataset_shape(f, f"{GROUP}/data/real", ndim=3)
        if shape[:2] != (tilts.size, elements.size):
            raise ValueError(
                f"{path.name}: data/real (transmit, element, sample) has the shape {shape}, but there are {tilts.size} "
                f"angles and {elements.size} elements."
            )
        kept = np.sort(chosen(angles, tilts.size))
        real = array(f, f"{GROUP}/data/real", ndim=3, where=kept)
        imaginary = array(f, f"{GROUP}/data/imag", ndim=3, where=kept) if f"{GROUP}/data/imag" in f else 0 * real
        numbers = {k: scalar(f, f"{GROUP}/{k}") for k in ("initial_time", "sampling_frequency", "sound_speed")}
        modulation = scalar(f, f"{GROUP}/modulation_frequency")
    if real.shape != imaginary.shape:
        raise ValueError(f"{path.name}: data/real and data/imag differ in shape: {real.shape}, {imaginary.shape}.")
    iq = bool(imaginary.any())
    return plane_wave_measurement(
        real + 1j * imaginary if iq else real,
        element_positions=elements,
        angles=tilts[kept],
        start_times=np.array(numbers["initial_time"]),
        sampling_frequency=numbers["sampling_frequency"],
        centre_frequency=modulation or CENTRE_FREQUENCY,
        sound_speed=numbers["sound_speed"],
        bandwidth=bandwidth,
        image_shape=image_shape,
        depth=depth,
        f_number=f_number,
        item=path.stem,
        metadata={"source": "PICMUS, IEEE International Ultrasonics Symposium 2016", "file": path.name},
    )


read = read_picmus


def matches(head: Head) -> bool:
    """Its group, with samples in it."""
    return f"{GROUP}/data/real" in head.keys
