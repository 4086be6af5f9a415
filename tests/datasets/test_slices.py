"""The slice file that priors are trained from: one group and one label for each volume."""

from __future__ import annotations

from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest

from invdiff.datasets.slices import MODALITIES, build_slices, load_slices


def build(folder: Path, volumes: dict[str, np.ndarray], modality: str = "mri", train: int = 1) -> Path:
    """The slice file of volumes (x, y, z), the first ``train`` of them for training, the others for validation."""
    for name, volume in volumes.items():
        (folder / name).parent.mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(volume.astype(np.float32), np.eye(4)), folder / name)
    names, path = list(volumes), folder / "slices.h5"
    build_slices(
        path, root=folder, modality=MODALITIES[modality], train=names[:train], validation=names[train:], coarsest=2.0
    )
    return path


@pytest.mark.parametrize(
    ("names", "groups", "labels"),
    [
        (("a.nii.gz", "b.nii"), ["a", "b"], ["a.nii.gz", "b.nii"]),
        (("s1/T1.nii", "s2/T1.nii"), ["0000", "0001"], ["s1/T1.nii", "s2/T1.nii"]),
        (("sub.01.nii", "sub.02.nii"), ["0000", "0001"], ["sub.01.nii", "sub.02.nii"]),
    ],
)
def test_every_volume_keeps_a_name_of_its_own(
    tmp_path: Path, names: tuple[str, str], groups: list[str], labels: list[str]
) -> None:
    path = build(tmp_path, {name: np.full((8, 8, n), 100.0) for n, name in enumerate(names, start=2)}, train=2)
    with h5py.File(path) as f:
        assert sorted(f) == groups
    stacks, _ = load_slices(path, "train")
    assert {(s.volume, len(s.codes)) for s in stacks} == {(labels[0], 2), (labels[1], 3)}
    assert len(stacks) == 4  # two resolutions each


def test_a_volume_in_both_splits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"The volume a\.nii is listed twice"):
        build_slices(
            tmp_path / "s.h5", root=tmp_path, modality=MODALITIES["ct"], train=["a.nii"], validation=["a.nii"],
            coarsest=1.0,
        )  # fmt: skip


@pytest.mark.parametrize(("modality", "largest"), [("mri", 0.0), ("mri", 100.0), ("b-mode", 0.0)])
def test_a_volume_of_air_is_refused(tmp_path: Path, modality: str, largest: float) -> None:
    air = np.zeros((16, 16, 3))
    air[0, 0] = largest
    with pytest.raises(ValueError, match=r"^a\.nii: no slice has more than 8 % of its pixels above 0\.1"):
        build(tmp_path, {"a.nii": air}, modality)
    assert not (tmp_path / "slices.h5").exists()
