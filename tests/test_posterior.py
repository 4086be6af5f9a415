"""Posterior: summaries and files."""

import os
from pathlib import Path

import pytest
import torch

from invdiff import Posterior
from invdiff.storage import write_tensors

SAMPLES = torch.randn(50, 1, 6, 5, generator=torch.Generator().manual_seed(0))
P = Posterior(samples=SAMPLES, units="1/mm", algorithm="DAPS()", seed=3, nfe=100, seconds=1.5, metadata={"a": 1})


def test_interval_holds_its_share_of_the_samples() -> None:
    lower, upper = P.interval(0.8)
    inside = ((SAMPLES >= lower) & (SAMPLES <= upper)).float().mean(0)
    assert float(inside.min()) >= 0.76
    assert float(inside.max()) <= 0.84


def test_saved_and_loaded_posteriors_agree(tmp_path: Path) -> None:
    P.save(tmp_path / "p")
    q = Posterior.load(tmp_path / "p")
    assert torch.equal(q.samples, SAMPLES)
    assert (q.units, q.algorithm, q.seed, q.nfe, q.seconds, q.metadata) == (
        "1/mm",
        "DAPS()",
        3,
        100,
        1.5,
        {"a": 1},
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_an_os_error() -> None:
    with pytest.raises(OSError, match="No space left"):
        write_tensors(Path("/dev/full"), {"samples": SAMPLES})


def test_files_have_the_mode_that_the_user_asks_for(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        P.save(tmp_path / "p")
    finally:
        os.umask(before)
    assert {f.name: oct(f.stat().st_mode & 0o777) for f in (tmp_path / "p").iterdir()} == {
        "posterior.safetensors": "0o640",
        "posterior.json": "0o640",
    }


def test_a_non_empty_folder_is_not_overwritten(tmp_path: Path) -> None:
    P.save(tmp_path / "p")
    with pytest.raises(FileExistsError, match="not empty"):
        P.save(tmp_path / "p")
    (tmp_path / "p" / "notes.txt").write_text("mine")
    P.save(tmp_path / "p", overwrite=True)
    assert (tmp_path / "p" / "notes.txt").read_text() == "mine"
    (tmp_path / "p" / "posterior.safetensors").write_bytes(b"\0" * 40)
    with pytest.raises(ValueError, match="truncated"):
        Posterior.load(tmp_path / "p")
    with pytest.raises(FileNotFoundError, match=r"no posterior\.safetensors"):
        Posterior.load(tmp_path)


def test_a_point_estimate_has_no_standard_deviation() -> None:
    with pytest.raises(ValueError, match="at least 2 samples"):
        _ = Posterior(samples=SAMPLES[:1]).std
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        P.quantile(1.5)
    with pytest.raises(ValueError, match=r"\(0, 1\)"):
        P.interval(90)


AFFINE = [[-0.8, 0.0, 0.1, 12.0], [0.0, 0.9, 0.0, -4.0], [0.1, 0.0, 2.0, 3.0], [0.0, 0.0, 0.0, 1.0]]


def test_nifti_carries_values_axes_and_affine(tmp_path: Path) -> None:
    import nibabel

    p = Posterior(samples=torch.rand(3, 1, 4, 6, 5), units="1/mm", item="scan", metadata={"affine": AFFINE})
    files = p.export(tmp_path / "scan.nii.gz")
    assert sorted(f.name for f in files) == sorted(
        f"scan_desc-{d}_image.{e}" for d in ("mean", "std", "samples") for e in ("nii.gz", "json")
    )
    for desc, truth in (("mean", p.mean), ("std", p.std)):
        image = nibabel.load(tmp_path / f"scan_desc-{desc}_image.nii.gz")
        torch.testing.assert_close(torch.from_numpy(image.get_fdata()).permute(2, 1, 0)[None], truth.double())
        assert abs(image.affine - AFFINE).max() < 1e-6
        assert image.header.get_xyzt_units()[0] == "mm"
    samples = nibabel.load(tmp_path / "scan_desc-samples_image.nii.gz").get_fdata()
    torch.testing.assert_close(torch.from_numpy(samples[..., 1]).permute(2, 1, 0), p.samples[1, 0].double())
    with pytest.raises(FileExistsError, match="exists"):
        p.export(tmp_path / "scan.nii.gz")
    p.export(tmp_path / "scan.nii.gz", overwrite=True)


def test_without_an_affine_the_grid_is_centred(tmp_path: Path) -> None:
    import nibabel

    for metadata, size in (
        ({"pixel_size_mm": 0.5}, (0.5, 0.5, 1)),
        ({"voxel_size_mm": [2, 3, 4]}, (2, 3, 4)),
        ({}, (1,) * 3),
    ):
        p = Posterior(samples=torch.rand(1, 1, 6, 5), metadata=metadata)
        (file, _) = p.export(tmp_path / "x.nii", overwrite=True)
        image = nibabel.load(file)
        assert image.header.get_zooms() == pytest.approx(size)
        middle = image.affine @ [2, 2.5, 0, 1]
        assert middle[:3] == pytest.approx(0)


def test_two_channels_are_kept_in_nifti_and_combined_for_fastmri(tmp_path: Path) -> None:
    import h5py
    import nibabel

    p = Posterior(samples=torch.rand(2, 2, 6, 5))
    p.export(tmp_path / "x.nii.gz")
    image = nibabel.load(tmp_path / "x_desc-mean_image.nii.gz")
    assert image.shape == (5, 6, 1, 1, 2)
    torch.testing.assert_close(torch.from_numpy(image.get_fdata())[:, :, 0, 0].permute(2, 1, 0), p.mean.double())
    p.export(tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5") as f:
        # the mean of the magnitude, not the magnitude of the mean: its standard deviation comes beside it
        magnitude = p.samples.norm(dim=1)
        torch.testing.assert_close(torch.from_numpy(f["reconstruction"][:]), magnitude.mean(0, keepdim=True))
        torch.testing.assert_close(torch.from_numpy(f["reconstruction_std"][:]), magnitude.std(0, keepdim=True))
    (png,) = p.export(tmp_path / "x.png")
    assert png.read_bytes().startswith(b"\x89PNG")


def test_complex_images_stay_complex_in_nifti_and_are_magnitudes_elsewhere(tmp_path: Path) -> None:
    import h5py
    import nibabel

    p = Posterior(samples=torch.randn(3, 1, 6, 5, dtype=torch.complex64))
    p.export(tmp_path / "x.nii.gz")
    for desc, truth in (("mean", p.mean[0]), ("std", p.std[0]), ("samples", p.samples[:, 0])):
        image = nibabel.load(tmp_path / f"x_desc-{desc}_image.nii.gz")
        assert image.get_data_dtype() == ("float32" if desc == "std" else "complex64")
        torch.testing.assert_close(torch.from_numpy(image.dataobj[:, :, 0].T.copy()), truth)
    p.export(tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5") as f:
        torch.testing.assert_close(torch.from_numpy(f["samples"][:]), p.samples.abs())
    (png,) = p.export(tmp_path / "x.png")
    assert png.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(TypeError, match="no quantiles"):
        p.interval(0.9)


def test_dicom_is_refused_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no acquired images.*Write NIfTI"):
        P.export(tmp_path / "x.dcm")
    with pytest.raises(ValueError, match=r"exported to \.nii\.gz, \.nii, \.h5, \.png, got 'x\.tiff'"):
        P.export(tmp_path / "x.tiff")
    with pytest.raises(ValueError, match="4 x 4"):
        Posterior(samples=SAMPLES, metadata={"affine": [[1, 2]]}).export(tmp_path / "x.nii")
    assert not list(tmp_path.iterdir())
