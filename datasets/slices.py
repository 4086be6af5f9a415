"""Slices of medical volumes at several resolutions in one compact HDF5 file, to train priors from.

The file is all that training needs: no NIfTI reader, no original data. Layout: one group per volume and
resolution, dataset ``slices`` (n, y, x) uint16, attributes ``pixel_size`` (mm), ``split``
("train" or "validation") and ``volume``; root attribute ``value_range`` (relative values of codes 0 and 65535).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from invdiff.storage import atomic_path


@dataclass(frozen=True, kw_only=True)
class Modality:
    """How stored intensities become relative values.

    Attributes:
        water: Hounsfield units to attenuation relative to water, 1 + HU / 1000; otherwise the
            99.5th percentile of the volume's positive values becomes 1.
        value_range: values are clipped to this range of relative units.
    """

    water: bool
    value_range: tuple[float, float]

    def relative(self, volume: np.ndarray) -> np.ndarray:
        if self.water:
            x = 1 + volume.astype(np.float32) / 1000
        else:
            positive = volume[volume > 0]
            x = volume.astype(np.float32) / np.percentile(positive[::7], 99.5)
        return np.clip(x, *self.value_range)


MODALITIES = {
    "ct": Modality(water=True, value_range=(0.0, 2.0)),
    "mri": Modality(water=False, value_range=(0.0, 1.2)),
}


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
    root: Path,
    modality: Modality,
    train: Sequence[str],
    validation: Sequence[str],
    coarsest: float,
) -> None:
    """Write the slice file from NIfTI volumes.

    Args:
        path: the HDF5 file to write (atomically).
        root: folder that the volume names are relative to.
        modality: see :class:`Modality`.
        train, validation: volume files; keep subjects apart.
        coarsest: halve the resolution while the pixel stays below this size (mm).
    """
    lo, hi = modality.value_range
    with atomic_path(path) as tmp, h5py.File(tmp, "w") as f:
        f.attrs["value_range"] = modality.value_range
        for split, names in (("train", train), ("validation", validation)):
            for name in names:
                volume, size = axial_slices(root / name)
                x = modality.relative(volume)
                keep = (x > lo + 0.15 * (hi - lo)).mean((1, 2)) > 0.08  # drop slices that are nearly all air
                x, level = x[keep], 0
                while True:
                    group = f.create_group(f"{Path(name).name.split('.')[0]}/{level}")
                    group.attrs.update(pixel_size=size, split=split, volume=Path(name).name)
                    codes = np.round((x - lo) / (hi - lo) * 65535).astype(np.uint16)
                    group.create_dataset(
                        "slices", data=codes, chunks=(1, *codes.shape[1:]), compression=4, shuffle=True
                    )
                    if 2 * size > coarsest:
                        break
                    x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
                    x = x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2).mean((2, 4))
                    size, level = 2 * size, level + 1


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
