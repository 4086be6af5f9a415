"""fastMRI, ISMRMRD and BART files, generated from their documented layouts; damaged and lying ones."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from mri_files import (
    CALIBRATION,
    HEAD,
    N_COILS,
    NAVIGATOR,
    NOISE,
    NX,
    NY,
    NZ,
    OVERSAMPLED,
    POSITIONS,
    RECORD,
    REVERSE,
    SIGMA,
    all_slices,
    bart,
    fastmri,
    images,
    ismrmrd,
    raw,
    readout,
    readouts,
    rss,
    three_d,
    volume,
    xml,
)

from invdiff import Measurement, Posterior, datasets
from invdiff.classical import CGSense
from invdiff.datasets import read_bart, read_fastmri, read_ismrmrd, write_fastmri
from invdiff.operators import equispaced_mask, fft2c


def error(m: Measurement) -> float:
    assert m.reference is not None
    return float((CGSense(n_steps=30)(None, m).mean - m.reference).norm() / m.reference.norm())


# fastMRI --------------------------------------------------------------------------------------------------------


def test_fastmri_is_opened_with_its_target(tmp_path: Path) -> None:
    m = datasets.open(fastmri(tmp_path / "file.h5"))
    assert isinstance(m, Measurement)
    assert m.A.in_shape == (1, NY, NX)
    assert m.item == "file_1"
    assert (m.metadata["n_items"], m.metadata["readout_cropped_from"]) == (3, 64)
    assert (m.metadata["pixel_size_y_mm"], m.metadata["pixel_size_x_mm"]) == (2.0, 2.0)
    assert m.metadata["acquisition"] == "AXT2"
    assert "0123" not in str(m.metadata)
    assert m.metadata["reference_difference"] < 1e-5
    assert m.reference is not None
    truth = torch.from_numpy(np.abs(images()[1]))
    assert float((m.reference - truth).norm() / truth.norm()) < 0.05
    assert error(m) < 0.05
    assert 0.9 * SIGMA < m.noise.sigma < 1.5 * SIGMA
    wrong = fastmri(tmp_path / "other.h5", reconstruction_rss=rss(raw()[::-1]) * 1.0)
    assert datasets.open(wrong, index=0).metadata["reference_difference"] > 0.1  # type: ignore[union-attr]


def test_fastmri_undersampled_afterwards(tmp_path: Path) -> None:
    path = fastmri(tmp_path / "file.h5")
    full = read_fastmri(path, index=2)
    m = read_fastmri(path, index=2, acceleration=2, center_fraction=0.3, seed=1)
    columns = (m.y != 0).any(0).any(0)
    assert abs(int(columns.sum()) - NX / 2) <= 2
    torch.testing.assert_close(m.y, full.y * columns)
    assert (m.noise, m.item) == (full.noise, "file_2")
    assert error(m) < 0.1
    assert not torch.equal(m.y, read_fastmri(path, index=2, acceleration=2, center_fraction=0.3, seed=2).y)
    mask = equispaced_mask(NX, acceleration=2, center_fraction=0.25)
    assert torch.equal((read_fastmri(path, mask=mask).y != 0).any(0).any(0), mask)
    with pytest.raises(ValueError, match="not both"):
        read_fastmri(path, mask=mask, acceleration=2)
    with pytest.raises(ValueError, match="does not broadcast"):
        read_fastmri(path, mask=mask[:-1])
    with pytest.raises(ValueError, match="index must lie between 0 and 2"):
        read_fastmri(path, index=3)


def test_fastmri_test_set_has_a_mask_and_no_reference(tmp_path: Path) -> None:
    mask = equispaced_mask(NX, acceleration=2, center_fraction=0.25).numpy()
    k = raw() * mask
    path = fastmri(tmp_path / "test.h5", kspace=k, reconstruction_rss=None, mask=mask)
    m = datasets.open(path)
    assert isinstance(m, Measurement)
    assert m.reference is None
    assert torch.equal((m.y != 0).any(0).any(0), torch.from_numpy(mask))
    with pytest.raises(ValueError, match="undersampled already"):
        read_fastmri(path, acceleration=4)
    assert read_fastmri(fastmri(tmp_path / "m.h5", kspace=k, reconstruction_rss=None)).reference is None


def test_fastmri_single_coil(tmp_path: Path) -> None:
    k = raw(np.ones((1, NY, NX)))
    path = fastmri(tmp_path / "s.h5", kspace=k[:, 0], reconstruction_rss=None, reconstruction_esc=rss(k))
    m = read_fastmri(path)
    assert m.A.out_shape == (1, NY, NX)
    assert m.metadata["reference_difference"] < 1e-5
    assert error(m) < 0.05


def test_fastmri_columns_of_padding_are_not_data(tmp_path: Path) -> None:
    """A scan of 30 of 40 columns, stored with zeros around; the header says where, whatever the zeros hold."""
    k = raw()
    k[..., :4] = 0
    k[..., 34:] = 1e-3
    path = fastmri(tmp_path / "p.h5", kspace=k, ismrmrd_header=xml(maximum=29, center=16), reconstruction_rss=None)
    m = read_fastmri(path)
    assert torch.equal((m.y != 0).any(0).any(0), (torch.arange(NX) >= 4) & (torch.arange(NX) < 34))
    assert m.reference is not None
    without = fastmri(tmp_path / "q.h5", kspace=k, ismrmrd_header=None)
    assert read_fastmri(without).A.in_shape == (1, OVERSAMPLED, NX)


def test_fastmri_two_channels(tmp_path: Path) -> None:
    m = read_fastmri(fastmri(tmp_path / "c.h5"), magnitude=False)
    assert m.A.in_shape == (2, NY, NX)
    assert m.reference is None


def test_fastmri_writer(tmp_path: Path) -> None:
    x = torch.rand(5, 1, 8, 6, generator=torch.Generator().manual_seed(0))
    slices = [
        Posterior(samples=x * (i + 1), algorithm="DPS()", item=f"f_{i}", metadata={"acquisition": "AXT2"})
        for i in range(2)
    ]
    write_fastmri(slices, tmp_path / "out.h5", crop=(4, 4))
    with h5py.File(tmp_path / "out.h5") as f:
        np.testing.assert_allclose(f["reconstruction"][1], 2 * x.mean(0)[0, 2:6, 1:5], rtol=1e-6)
        np.testing.assert_allclose(f["reconstruction_std"][0], x.std(0)[0, 2:6, 1:5], rtol=1e-5)
        assert f["samples"].shape == (5, 2, 4, 4)
        assert (f.attrs["algorithm"], f.attrs["acquisition"], list(f.attrs["items"])) == (
            "DPS()",
            "AXT2",
            ["f_0", "f_1"],
        )
    write_fastmri(Posterior(samples=torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)), tmp_path / "one.h5")
    with h5py.File(tmp_path / "one.h5") as f:
        assert f["reconstruction"][()] == 5.0
        assert "reconstruction_std" not in f
    write_fastmri(Posterior(samples=torch.rand(2, 1, 3, 4, 5)), tmp_path / "volume.h5")
    with h5py.File(tmp_path / "volume.h5") as f:
        assert f["reconstruction"].shape == (3, 4, 5)
    with pytest.raises(ValueError, match=r"ends in \.h5"):
        write_fastmri(slices, tmp_path / "out.txt")
    with pytest.raises(ValueError, match="does not fit"):
        write_fastmri(slices, tmp_path / "out.h5", crop=(9, 4))
    with pytest.raises(ValueError, match="equal shape"):
        write_fastmri([], tmp_path / "out.h5")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kspace": None}, "no dataset 'kspace'"),
        ({"kspace": np.ones((2, 3), np.complex64)}, "must have 3 or 4 dimensions"),
        ({"kspace": np.ones((3, 4, 64, 40))}, "must hold numbers"),
        ({"kspace": "text"}, "index must lie between|must have 3 or 4 dimensions|dimensions"),
        ({"kspace": np.full((3, 4, 64, 40), np.nan, np.complex64)}, "non-finite"),
        ({"kspace": np.zeros((3, 4, 64, 40), np.complex64)}, "no sampled column"),
        ({"kspace": np.zeros((0, 4, 64, 40), np.complex64)}, "index must lie between"),
        ({"mask": np.ones(39, bool)}, "'mask' has 39 entries for 40 columns"),
        ({"mask": "text"}, "'mask' must have 1 dimension"),
        ({"reconstruction_rss": np.ones((2, 32, 32))}, "2 images for 3 slices"),
        ({"reconstruction_rss": np.full((3, 32, 32), np.inf)}, "non-finite"),
        ({"ismrmrd_header": 3.0}, "must hold one text"),
        ({"ismrmrd_header": "<a"}, "not valid XML"),
        ({"ismrmrd_header": "<a/>"}, "encodedSpace/matrixSize/x must be a number"),
        ({"ismrmrd_header": xml(ex=-3)}, "matrixSize/x must be a number from 1"),
        ({"ismrmrd_header": xml(ex="1e400")}, "matrixSize/x must be a number"),
        ({"ismrmrd_header": xml(fx="nan")}, "fieldOfView_mm/x must be a number"),
        ({"ismrmrd_header": '<!DOCTYPE a [<!ENTITY b "c">]>' + xml()[21:]}, "document type or entities"),
    ],
)
def test_fastmri_refuses_other_contents(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = fastmri(tmp_path / "bad.h5", **changes)
    with pytest.raises(ValueError, match=message) as info:
        read_fastmri(path)
    assert "\n" not in str(info.value)


# ISMRMRD --------------------------------------------------------------------------------------------------------


def test_ismrmrd_is_opened_slice_by_slice(tmp_path: Path) -> None:
    path = ismrmrd(tmp_path / "scan.h5", all_slices(raw()))
    for index in (0, 2):
        m = datasets.open(path, index=index)
        assert isinstance(m, Measurement)
        assert m.A.in_shape == (1, NX, NY)  # rows: phase encoding, columns: readout without oversampling
        x = CGSense(n_steps=30)(None, m).mean[0]
        truth = torch.from_numpy(np.abs(images()[index])).T
        assert float((x - truth).norm() / truth.norm()) < 0.05
        assert (m.metadata["slice"], m.metadata["n_items"], m.metadata["n_averages"]) == (index, 3, 1)
        assert 0.9 * SIGMA < m.noise.sigma < 1.5 * SIGMA
    assert (m.metadata["pixel_size_y_mm"], m.metadata["pixel_size_x_mm"]) == (2.0, 2.0)
    assert datasets.open(path).item == "scan_1"  # type: ignore[union-attr]


def test_ismrmrd_agrees_with_fastmri_on_the_same_samples(tmp_path: Path) -> None:
    a = read_ismrmrd(ismrmrd(tmp_path / "a.h5", all_slices(raw()), group="other"), index=1)
    b = read_fastmri(fastmri(tmp_path / "b.h5"), index=1)
    torch.testing.assert_close(a.y, b.y.mT.contiguous())


def test_ismrmrd_noise_scans_whiten_the_coils(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    mixing = np.eye(N_COILS) + 0.4 * (rng.normal(size=(4, 4)) + 1j * rng.normal(size=(4, 4)))
    n = rng.normal(size=(2, N_COILS, 4096)) + 1j * rng.normal(size=(2, N_COILS, 4096))
    # half the dwell time of the data, flat filter of 0.8 of the bandwidth: 2 x 0.8 times its variance
    noise = [readout(0.3 * 1.6**0.5 * mixing @ part, flags=NOISE, sample_time_us=2.5) for part in n]
    clean = raw(sigma=0.0)[1]
    coloured = clean + 0.3 * np.einsum("cd,dyx->cyx", mixing, raw(np.zeros((4, NY, NX)), sigma=1.0)[1])
    m = read_ismrmrd(ismrmrd(tmp_path / "noise.h5", [*noise, *readouts(coloured)]))
    assert m.noise.sigma == 1.0
    assert "prewhitened" in m.metadata["noise"]
    expected = read_ismrmrd(ismrmrd(tmp_path / "clean.h5", [*noise, *readouts(clean)]))
    residual = (m.y - expected.y).flatten(1)
    covariance = residual @ residual.mH / residual.shape[1]
    torch.testing.assert_close(covariance, 2 * torch.eye(4, dtype=torch.complex64), rtol=0, atol=0.25)
    with pytest.raises(ValueError, match="do not have the 4 coils"):
        read_ismrmrd(ismrmrd(tmp_path / "bad.h5", [readout(n[0, :3], flags=NOISE), *readouts(clean)]))


def test_ismrmrd_averages_lines_and_calibration(tmp_path: Path) -> None:
    k = [raw(seed=s)[1] for s in (1, 2)]
    twice = [*readouts(k[0], average=0), *readouts(k[1], average=1)]
    m = read_ismrmrd(ismrmrd(tmp_path / "twice.h5", twice))
    one, two = (read_ismrmrd(ismrmrd(tmp_path / f"{i}.h5", readouts(k[i]))) for i in (0, 1))
    torch.testing.assert_close(m.y, (one.y + two.y) / 2)
    assert m.metadata["n_averages"] == 2
    assert m.noise.sigma == pytest.approx(one.noise.sigma / 2**0.5, rel=0.2)

    image, center = range(0, NX, 2), range(12, 28)
    lines = [*readouts(k[0], image), *readouts(k[0], [i for i in center if i % 2], flags=CALIBRATION)]
    rows = torch.tensor([i % 2 == 0 or i in center for i in range(NX)])
    m = read_ismrmrd(ismrmrd(tmp_path / "embedded.h5", lines))
    assert torch.equal((m.y != 0).any(0).any(1), rows)
    separate = ismrmrd(tmp_path / "separate.h5", lines, xml(calibration="separate"))
    with pytest.raises(ValueError, match="fully sampled centre"):
        read_ismrmrd(separate)
    m = read_ismrmrd(ismrmrd(tmp_path / "n.h5", [readout(k[0][:, :5, 0], flags=NAVIGATOR), *readouts(k[0])]))
    torch.testing.assert_close(m.y, one.y)


def test_ismrmrd_incomplete_echoes_stay_where_they_belong(tmp_path: Path) -> None:
    k = raw()[1]
    short = [readout(k[:, 10:, line], line, center_sample=22, discard_pre=0) for line in range(NX)]
    m = read_ismrmrd(ismrmrd(tmp_path / "echo.h5", short))
    assert m.A.in_shape == (1, NX, OVERSAMPLED)
    torch.testing.assert_close(m.y[:, :, 10:], torch.from_numpy(k[:, 10:]).mT.contiguous())
    assert not m.y[:, :, :10].any()
    padded = [readout(np.pad(k[:, :, i], [(0, 0), (3, 2)]), i, center_sample=35, discard_pre=3, discard_post=2)
              for i in range(NX)]  # fmt: skip
    whole = read_ismrmrd(ismrmrd(tmp_path / "whole.h5", readouts(k)))
    torch.testing.assert_close(read_ismrmrd(ismrmrd(tmp_path / "discard.h5", padded)).y, whole.y)


def test_ismrmrd_written_by_its_own_library(tmp_path: Path) -> None:
    """The library is in no extra: the test runs where it happens to be installed."""
    library = pytest.importorskip("ismrmrd")
    k = raw()[1]
    data = library.Dataset(str(tmp_path / "lib.h5"), "dataset", create_if_needed=True)
    data.write_xml_header(xml().encode())
    for line in range(NX):
        record = library.Acquisition()
        record.resize(OVERSAMPLED, N_COILS)
        record.center_sample, record.sample_time_us = OVERSAMPLED // 2, 5.0
        record.idx.kspace_encode_step_1 = line
        record.data[:] = k[:, :, line]
        data.append_acquisition(record)
    data.close()
    ours = read_ismrmrd(ismrmrd(tmp_path / "ours.h5", readouts(k)))
    torch.testing.assert_close(datasets.open(tmp_path / "lib.h5").y, ours.y)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("change", "header", "message"),
    [
        ({}, xml(trajectory="spiral"), "Cartesian scans; the trajectory is 'spiral'"),
        ({"trajectory_dimensions": 2}, None, "Cartesian scans"),
        ({"kspace_encode_step_2": 1}, None, "three-dimensional encoding in a matrix"),
        ({"kspace_encode_step_2": 9}, xml(ez=8), "outside of the encoded matrix"),
        ({}, xml(ez=2**20), "cannot fill the encoded matrix"),
        ({}, xml(ez=8, ex=2**30), "cannot fill the encoded matrix"),
        ({"flags": REVERSE}, None, "reversed readouts"),
        ({"flags": NAVIGATOR}, None, "none of the 40 readouts"),
        ({"number_of_samples": 63}, None, "announces 4 coils of 63"),
        ({"active_channels": 0}, None, "announces 0 coils"),
        ({"center_sample": 40}, None, "outside of the encoded matrix"),
        ({"discard_pre": 64}, None, "discards 64"),
        ({}, xml(center=0), "outside of the encoded matrix"),
        ({}, xml(ex=2**20, ey=2**20), "cannot fill the encoded matrix"),
        ({}, "<a/>", "must be a number"),
    ],
)
def test_ismrmrd_refuses_what_it_cannot_do(
    tmp_path: Path, change: dict[str, int], header: str | None, message: str
) -> None:
    path = ismrmrd(tmp_path / "bad.h5", readouts(raw()[1], **change), header)
    with pytest.raises(ValueError, match=message) as info:
        read_ismrmrd(path)
    assert "\n" not in str(info.value)


def test_ismrmrd_counters_cost_no_memory(tmp_path: Path) -> None:
    records = readouts(raw()[1])
    records[7]["head"]["idx"]["kspace_encode_step_1"] = records[7]["head"]["idx"]["kspace_encode_step_2"] = 2**16 - 1
    path = ismrmrd(tmp_path / "far.h5", records, xml(ez=8))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="readout 7 lies outside of the encoded matrix"):
            read_ismrmrd(path)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_ismrmrd_refuses_other_records(tmp_path: Path) -> None:
    def attempt(data: Any, text: Any = None) -> None:
        with h5py.File(tmp_path / "x.h5", "w") as f:
            f["dataset/xml"] = xml() if text is None else text
            if data is not None:
                f["dataset/data"] = data
        read_ismrmrd(tmp_path / "x.h5")

    for data, message in (
        (None, "no group with 'xml' and 'data'"),
        (np.ones(3), "list of .head, traj, data. records"),
        (np.zeros(3, [("head", [("flags", "u8")]), ("data", "f4")]), "readout headers lack"),
        (np.zeros(3, [("head", HEAD), ("data", "f4")]), "variable-length float32"),
    ):
        with pytest.raises(ValueError, match=message):
            attempt(data)
    with pytest.raises(ValueError, match="'xml' must hold one text"):
        attempt(np.ones(3), np.ones(4))
    k = raw()[1]
    k[2, 5, 7] = np.nan
    with pytest.raises(ValueError, match="readout 7 has non-finite"):
        read_ismrmrd(ismrmrd(tmp_path / "nan.h5", readouts(k)))


def test_a_three_dimensional_scan_is_slices_along_its_readout(tmp_path: Path) -> None:
    _, coils = volume()
    path = three_d(tmp_path / "v.h5")
    for index in (3, None):
        m = read_ismrmrd(path, index=index)
        position = POSITIONS // 2 if index is None else index
        expected = fft2c(coils[..., position])
        assert (m.A.in_shape, m.metadata["readout_position"], m.metadata["n_items"]) == (
            (1, NZ, NX),
            position,
            POSITIONS,
        )
        error = (m.y - expected) / SIGMA
        assert float(torch.view_as_real(error).std()) == pytest.approx(
            1, abs=0.03
        )  # nothing but the noise of the samples
        assert 0.9 * SIGMA < m.noise.sigma < 1.5 * SIGMA
    sizes = {k: m.metadata[k] for k in ("pixel_size_y_mm", "pixel_size_x_mm", "slice_thickness_mm")}
    assert sizes == {
        "pixel_size_y_mm": pytest.approx(5 / NZ), "pixel_size_x_mm": 2.0, "slice_thickness_mm": pytest.approx(128 / 24)
    }  # fmt: skip
    np.testing.assert_allclose(m.metadata["voxel_size_mm"], [2.0, 5 / NZ, 128 / 24])
    k, _ = volume()
    dims = k.transpose(3, 2, 1, 0)  # (x, y, z, coil), oversampled
    b = read_bart(bart(tmp_path / "v.cfl", dims), index=POSITIONS // 2 + 3)
    assert isinstance(b, Measurement)
    torch.testing.assert_close(b.y, read_ismrmrd(path, index=3).y)
    assert (b.metadata["readout_position"], b.metadata["n_items"]) == (POSITIONS // 2 + 3, 2 * POSITIONS)


def test_a_three_dimensional_scan_keeps_its_two_dimensional_mask(tmp_path: Path) -> None:
    def keep(z: int, y: int) -> bool:
        return (z + y) % 2 == 0 or (abs(z - NZ // 2) <= 5 and abs(y - NX // 2) <= 5)

    m = read_ismrmrd(three_d(tmp_path / "v.h5", keep), index=4)
    mask = torch.tensor([[keep(z, y) for y in range(NX)] for z in range(NZ)])
    assert torch.equal((m.y != 0).any(0), mask)
    x = CGSense(n_steps=30)(None, m).mean[0]
    truth = volume()[1][..., 4].abs().square().sum(0).sqrt()
    assert float((x - truth).norm() / truth.norm()) < 0.1
    k = volume()[0].transpose(3, 2, 1, 0) * mask.T.numpy()[None, :, :, None]
    b = read_bart(bart(tmp_path / "v.cfl", k), index=4 + POSITIONS // 2)
    torch.testing.assert_close(b.y, m.y)  # type: ignore[union-attr]
    k[3, 2, 2] = 0
    with pytest.raises(ValueError, match="not sampled whole"):
        read_bart(bart(tmp_path / "v.cfl", k))
    with pytest.raises(ValueError, match="incomplete echoes"):
        read_ismrmrd(three_d(tmp_path / "w.h5", keep, discard_post=2))


# BART -----------------------------------------------------------------------------------------------------------


def test_bart_kspace(tmp_path: Path) -> None:
    k = raw()[:, :, ::2]  # the field of view is halved: aliasing does not matter here
    dims = k.transpose(3, 2, 1, 0)[:, :, None]  # (x, y, 1, coil, slice)
    path = bart(tmp_path / "k.cfl", dims)
    for name in ("k.cfl", "k.hdr"):
        m = datasets.open(tmp_path / name, index=2)
        assert isinstance(m, Measurement)
        torch.testing.assert_close(m.y, torch.from_numpy(k[2]))
    assert (m.item, m.metadata["n_items"], m.A.in_shape) == ("k_2", 3, (1, NY, NX))
    single = read_bart(bart(tmp_path / "one.cfl", dims[:, :, :, :1]), kspace=True)
    assert isinstance(single, Measurement)
    torch.testing.assert_close(single.y, torch.from_numpy(k[1, :1]))
    with pytest.raises(ValueError, match="index must lie between 0 and 2"):
        read_bart(path, index=3)


def test_bart_images(tmp_path: Path) -> None:
    x = np.arange(6 * 5 * 4 * 2).reshape(6, 5, 4, 1, 1, 1, 1, 1, 1, 1, 2) * (1 + 2j)
    path = bart(tmp_path / "image.cfl", x)
    volume = datasets.open(path)
    assert isinstance(volume, datasets.Volume)
    assert volume.data.shape == (2, 4, 5, 6)
    assert volume.data[1, 3, 2, 5] == x[5, 2, 3].ravel()[1]
    with pytest.raises(ValueError, match="read whole"):
        read_bart(path, index=0)


def test_bart_refuses_files_that_do_not_agree(tmp_path: Path) -> None:
    x = np.ones((6, 5, 1, 2))
    for header, message in (
        ("# Dimensions\n6 5 1 3\n", "announces 720 bytes, the file has 480"),
        ("# Dimensions\n99999999999 99999999999 99999\n", "announces"),
        ("# Dimensions\n6 5 -1 2\n", "positive sizes"),
        ("# Dimensions\n6 5 0 2\n", "positive sizes"),
        ("# Dimensions\n" + "1 " * 17, "1 to 16"),
        ("# Dimensions\n", "does not start like"),
        ("6 5 1 2\n", "does not start like"),
        ("# Dimensions\n" + "9" * 2**21, "too long"),
    ):
        with pytest.raises(ValueError, match=message):
            read_bart(bart(tmp_path / "x.cfl", x, header))
    with pytest.raises(ValueError, match="non-finite"):
        read_bart(bart(tmp_path / "nan.cfl", np.full((6, 5, 1), np.nan)))
    with pytest.raises(ValueError, match="non-finite"):
        read_bart(bart(tmp_path / "nan.cfl", np.full((16, 15, 1, 2), np.inf)))
    (tmp_path / "x.cfl").unlink()
    with pytest.raises(FileNotFoundError, match=r"pair of \.hdr and \.cfl"):
        read_bart(tmp_path / "x.hdr")


# damaged, lying and hostile HDF5 --------------------------------------------------------------------------------


def test_a_small_file_that_claims_much_is_refused_without_allocating(tmp_path: Path) -> None:
    for compression in (None, "gzip"):
        path = fastmri(tmp_path / "claims.h5", kspace=None)
        with h5py.File(path, "a") as f:
            shape = (36, 16, 4096, 3646)  # 69 GB
            f.create_dataset("kspace", shape, np.complex64, chunks=(1, 1, 512, 512), compression=compression)
        with pytest.raises(ValueError, match="more than the file can hold"):
            datasets.open(path)
    with h5py.File(path, "a") as f:  # less than a thousand times the file, but never written
        del f["kspace"]
        f.create_dataset("kspace", (3, 4, 64, 40), np.complex64)
    with pytest.raises(ValueError, match="claims 245760 bytes, the file stores 0"):
        read_fastmri(path)
    with h5py.File(tmp_path / "records.h5", "w") as f:
        f["dataset/xml"] = xml()
        f.create_dataset("dataset/data", (40,), RECORD)
    with pytest.raises(ValueError, match="the file stores 0"):
        read_ismrmrd(tmp_path / "records.h5")


@pytest.mark.parametrize("read", [read_fastmri, read_ismrmrd])
def test_links_and_external_storage_are_refused(tmp_path: Path, read: Callable[[Path], Measurement]) -> None:
    fastmri(tmp_path / "target.h5")
    with h5py.File(tmp_path / "link.h5", "w") as f:
        f["kspace"] = h5py.ExternalLink("target.h5", "/kspace")
        f["ismrmrd_header"] = xml()
    with pytest.raises(ValueError, match="links are refused"):
        read(tmp_path / "link.h5")
    (tmp_path / "raw.bin").write_bytes(bytes(8 * 3 * 4 * 64 * 40))
    with h5py.File(tmp_path / "external.h5", "w") as f:
        f.create_dataset("kspace", (3, 4, 64, 40), np.complex64, external=[(str(tmp_path / "raw.bin"), 0, 8 * 30720)])
        f["mask"] = np.ones(40)
    with pytest.raises(ValueError, match="in another file"):
        read(tmp_path / "external.h5")


@pytest.mark.parametrize("kind", ["fastmri", "ismrmrd"])
def test_truncated_and_corrupted_files_give_one_clear_error(tmp_path: Path, kind: str) -> None:
    read: Callable[[Path], Measurement] = read_fastmri if kind == "fastmri" else read_ismrmrd
    k = raw()[:, :2, :, :]
    if kind == "fastmri":
        whole = fastmri(tmp_path / "whole.h5", kspace=k[:1], reconstruction_rss=None).read_bytes()
    else:
        whole = ismrmrd(tmp_path / "whole.h5", readouts(k[1])).read_bytes()
    path = tmp_path / "damaged.h5"
    rng = np.random.default_rng(0)
    attempts = [whole[:cut] for cut in (0, 7, 100, 2000, len(whole) // 2, len(whole) - 1)]
    for _ in range(40):  # the structure lies at the start, and between the data
        damaged = bytearray(whole)
        for position in rng.integers(8, min(len(whole), 6000), 6):
            damaged[position] = rng.integers(256)
        attempts.append(bytes(damaged))
    messages = []
    for data in attempts:
        path.write_bytes(data)
        try:
            m = read(path)
        except (ValueError, OSError) as error:
            messages.append(str(error))
        else:  # the damage hit bytes that mean nothing, or single samples
            assert torch.isfinite(m.y).all()
    assert len(messages) >= 6
    assert all(message and "\n" not in message for message in messages)
