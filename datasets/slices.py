"""Slices of medical volumes and phantoms at several resolutions in one compact HDF5 file, to train priors from.

The file is all that training needs: no NIfTI reader, no original data. Layout: one group per volume and
resolution, dataset ``slices`` (n, y, x) uint16, attributes ``pixel_size`` (mm), ``split``
("train" or "validation") and ``volume``; root attribute ``value_range`` (relative values of codes 0 and 65535).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from torch.utils.data import Dataset

from invdiff.datasets import metaimage
from invdiff.storage import atomic_path


@dataclass(frozen=True, kw_only=True)
class Modality:
    """How stored intensities become relative values.

    Attributes:
        unit: function of a volume as stored (slice, y, x), giving relative values.
        value_range: relative values are clipped to this range.
        millimetres: whether the files' pixel sizes can be trusted. If not, sizes count in stored pixels, and black
            borders that no slice uses are cut off.
    """

    unit: Callable[[np.ndarray], np.ndarray]
    value_range: tuple[float, float]
    millimetres: bool = True

    def relative(self, volume: np.ndarray) -> np.ndarray:
        """Relative values, clipped to the range."""
        return np.clip(self.unit(volume), *self.value_range)

    def prepare(self, volume: np.ndarray, pixel_size: float) -> tuple[np.ndarray, float]:
        """Relative values of a volume, and its pixel size."""
        x = self.relative(volume)
        if self.millimetres:
            return x, pixel_size
        lo, hi = self.value_range
        used = np.any(x > lo + 0.05 * (hi - lo), axis=0)
        if not used.any():
            return x, 1.0
        rows, columns = (np.flatnonzero(used.any(axis)) for axis in (1, 0))
        return x[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 1.0


def over_water(hu: np.ndarray) -> np.ndarray:
    """Attenuation relative to water, from Hounsfield units."""
    return 1 + hu.astype(np.float32) / 1000


def over_percentile(magnitude: np.ndarray) -> np.ndarray:
    """The 99.5th percentile of the positive values of the volume becomes 1."""
    positive = magnitude[magnitude > 0][::7]
    return magnitude.astype(np.float32) / (np.percentile(positive, 99.5) if positive.size else 1)


def over_acrylic(mu: np.ndarray) -> np.ndarray:
    """Attenuation in 1/mm relative to 0.0376, which :func:`~invdiff.datasets.htc.read_htc` calls 1."""
    return mu.astype(np.float32) / 0.0376


def over_white(grey: np.ndarray) -> np.ndarray:
    """Display values, 0 to 255, of log-compressed echoes; 255 becomes 1."""
    return grey.astype(np.float32) / 255


MODALITIES = {
    "ct": Modality(unit=over_water, value_range=(0.0, 2.0)),
    "mri": Modality(unit=over_percentile, value_range=(0.0, 1.2)),
    "disc": Modality(unit=over_acrylic, value_range=(0.0, 1.25)),
    "b-mode": Modality(unit=over_white, value_range=(0.0, 1.0), millimetres=False),
}


def volume_slices(path: Path) -> tuple[np.ndarray, float]:
    """Slices (n, y, x) of a volume file and their pixel size: NIfTI (axial) or MetaImage (as stored)."""
    if path.suffix not in (".mha", ".mhd"):
        return axial_slices(path)
    volume = metaimage.read(path)
    x, y, _ = volume.voxel_size or (1.0, 1.0, 1.0)
    return volume.data, (x * y) ** 0.5


def axial_slices(path: Path) -> tuple[np.ndarray, float]:
    """A NIfTI volume as axial slices (z, y, x), row 0 anterior, with the in-plane pixel size in mm.

    The volume is brought to RAS order first. Raises ValueError if it is not three-dimensional.
    """
    import nibabel

    image = nibabel.as_closest_canonical(nibabel.load(path))
    if len(image.shape) != 3:
        raise ValueError(f"{path.name}: expected a 3-D volume, got shape {image.shape}.")
    dx, dy, _ = image.header.get_zooms()
    volume = np.asarray(image.dataobj, dtype=np.float32)
    if abs(dx / dy - 1) > 0.2:
        raise ValueError(f"{path.name}: in-plane voxels of {dx:g} x {dy:g} mm are not square.")
    return np.ascontiguousarray(volume.transpose(2, 1, 0)[:, ::-1]), float((dx * dy) ** 0.5)


def build_slices(
    path: Path,
    *,
    root: Path | None,
    modality: Modality,
    train: Sequence[str],
    validation: Sequence[str],
    coarsest: float,
    phantoms: Mapping[str, tuple[str, Dataset, float]] | None = None,
    origin: str = "{}",
) -> None:
    """Write the slice file from volumes and phantoms.

    Args:
        path: the HDF5 file to write (atomically).
        root: folder that the volume names are relative to.
        modality: see :class:`Modality`.
        train, validation: volume files; keep subjects apart.
        coarsest: halve the resolution while the pixel stays below this size.
        phantoms: name to (split, images (1, y, x) in the modality's stored units, pixel size), each a volume too.
        origin: what tells this file from one with other contents, kept as an attribute.

    Raises:
        ValueError: a volume is listed twice, or none of its slices shows anything.
    """
    volumes: list[tuple[str, str, Callable[[], tuple[np.ndarray, float]]]] = []
    for split, names in (("train", train), ("validation", validation)):
        volumes += [(str(name), split, partial(volume_slices, (root or Path()) / name)) for name in names]
    for name, (split, images, size) in (phantoms or {}).items():
        volumes.append((name, split, partial(_phantom_slices, images, size)))

    groups, labels = _names([name for name, _, _ in volumes])
    lo, hi = modality.value_range
    with atomic_path(path) as tmp, h5py.File(tmp, "w") as f:
        f.attrs.update(value_range=modality.value_range, origin=origin)
        for (name, split, load), group_name, label in zip(volumes, groups, labels, strict=True):
            x, size = modality.prepare(*load())
            keep = (x > lo + 0.15 * (hi - lo)).mean((1, 2)) > 0.08  # drop slices that are nearly all air
            if not keep.any():
                raise ValueError(
                    f"{name}: no slice has more than 8 % of its pixels above {lo + 0.15 * (hi - lo):g} (relative "
                    f"value). Leave this volume out, or state the modality that fits its values."
                )
            x, level = x[keep], 0
            while True:
                group = f.create_group(f"{group_name}/{level}")
                group.attrs.update(pixel_size=size, split=split, volume=label)
                codes = np.round((x - lo) / (hi - lo) * 65535).astype(np.uint16)
                group.create_dataset("slices", data=codes, chunks=(1, *codes.shape[1:]), compression=4, shuffle=True)
                if 2 * size > coarsest or min(x.shape[1:]) < 2:
                    break
                x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
                x = x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2).mean((2, 4))
                size, level = 2 * size, level + 1


def _names(paths: Sequence[str]) -> tuple[list[str], list[str]]:
    """A group and a label for each volume: short ones, from its file name, where these tell all of them apart."""
    if twice := [p for p in paths if paths.count(p) > 1]:
        raise ValueError(f"The volume {twice[0]} is listed twice; list each once, for training or for validation.")
    labels = [Path(p).name for p in paths]
    groups = [label.split(".")[0] for label in labels]
    return (
        groups if len(set(groups)) == len(groups) else [f"{i:04d}" for i in range(len(groups))],
        labels if len(set(labels)) == len(labels) else list(paths),
    )


def _phantom_slices(images: Any, pixel_size: float) -> tuple[np.ndarray, float]:
    return np.stack([images[i][0].numpy() for i in range(len(images))]), pixel_size


@dataclass(frozen=True)
class Stack:
    """Slices of one volume at one resolution: codes (n, y, x) uint16, pixel size in mm."""

    volume: str
    codes: np.ndarray
    pixel_size: float


def load_slices(path: Path, split: str) -> tuple[list[Stack], tuple[float, float]]:
    """All stacks of one split, and the value range of the codes 0 .. 65535."""
    with h5py.File(path, "r") as f:
        lo, hi = (float(v) for v in f.attrs["value_range"])
        stacks = [
            Stack(str(g.attrs["volume"]), g["slices"][:], float(g.attrs["pixel_size"]))
            for volume in f.values()
            for g in volume.values()
            if g.attrs["split"] == split
        ]
    if not stacks:
        raise ValueError(f"{path.name} has no volume in the split {split!r}.")
    return stacks, (lo, hi)
