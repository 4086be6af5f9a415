"""fastMRI k-space (HDF5), multi-coil and single-coil, training, validation and test sets.

Zbontar et al., "fastMRI: an open dataset and benchmarks for accelerated MRI", arXiv:1811.08839 (2018). ``kspace`` is
(slice, [coil,] y, x), y the readout with twofold oversampling, x the phase encoding; ``reconstruction_rss`` or
``reconstruction_esc`` the fully sampled magnitude, cut to the central 320 x 320; ``mask`` (x,) in the test sets;
``ismrmrd_header`` the XML description of the scan.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from invdiff.datasets.files import Head
from invdiff.datasets.hdf5 import array, attribute, damaged, open_hdf5, require_stored, text
from invdiff.datasets.ismrmrd import ScanHeader
from invdiff.datasets.kspace import crop_readout, item_index, kspace_measurement, noise_level
from invdiff.measurement import Measurement
from invdiff.operators.mri import ifft2c
from invdiff.operators.mri_masks import equispaced_fraction_mask
from invdiff.posterior import Posterior
from invdiff.storage import atomic_path

TARGETS = ("reconstruction_rss", "reconstruction_esc")


def read_fastmri(
    path: str | Path,
    *,
    index: int | None = None,
    acceleration: float | None = None,
    center_fraction: float | None = None,
    seed: int = 0,
    mask: np.ndarray | Tensor | None = None,
    magnitude: bool = True,
) -> Measurement:
    """Read one slice as a measurement, undersampled afterwards if asked for.

    Readout oversampling is removed: the image has the header's reconstruction matrix along y (320) and the full
    k-space width along x, so the published 320 x 320 target is its centre. ``reference`` is the root sum of squares
    over coils of the fully sampled data on that whole image; ``metadata["reference_difference"]`` is its relative
    distance (2-norm) from the file's own target in the centre. There is no reference for undersampled files.

    Coil maps and image phase come from the centre of the k-space that is kept; the noise from the edge of k-space,
    before undersampling (:func:`noise_level`).

    Args:
        path: an ``.h5`` file.
        index: slice; None: the middle one.
        acceleration: keep this fraction of the columns of a fully sampled file, by
            :func:`equispaced_fraction_mask`; None: as acquired.
        center_fraction: of that mask; None: 0.32 / acceleration, the 0.08 for 4x and 0.04 for 8x of the challenge.
        seed: of that mask.
        mask: another mask instead, bool, (x,) or (y, x) after the removal of oversampling.
        magnitude: as in :func:`kspace_measurement`.

    Raises:
        FileNotFoundError, OSError: no such file, or a damaged one.
        ValueError: content that does not make sense, or undersampling of a file that is undersampled already.

    Example:
        >>> import tempfile
        >>> import h5py
        >>> from invdiff.datasets import read_fastmri
        >>> from invdiff.operators import birdcage_maps, fft2c
        >>> kspace = fft2c(birdcage_maps(4, (64, 64)) * torch.ones(3, 1, 64, 64))  # (slice, coil, y, x)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with h5py.File(f"{folder}/file.h5", "w") as f:
        ...         f["kspace"], f["mask"] = kspace.numpy() + 1e-3, [1.0] * 64
        ...     m = read_fastmri(f"{folder}/file.h5", index=1)
        >>> m.A.out_shape, m.metadata["n_items"]
        ((4, 64, 64), 3)
    """
    path = Path(path)
    if mask is not None and acceleration is not None:
        raise ValueError("Give acceleration (with center_fraction and seed) or a mask, not both.")
    with damaged(path), open_hdf5(path) as f:
        if isinstance(f.get("kspace"), h5py.Dataset):
            require_stored(f["kspace"])
            index = item_index(index, f["kspace"].shape[0] if f["kspace"].ndim else 0)
        kspace = array(f, "kspace", ndim=(3, 4), kinds="c", where=index)
        acquired = array(f, "mask", ndim=1, kinds="fiub") != 0 if "mask" in f else None
        n_items = f["kspace"].shape[0]
        target = next((_target(f, key, index, n_items) for key in TARGETS if key in f), None)
        header = ScanHeader.parse(text(f, "ismrmrd_header"), path.name) if "ismrmrd_header" in f else None
        acquisition = str(attribute(f, "acquisition", ""))
    y = torch.from_numpy(kspace.astype(np.complex64))
    y = y[None] if y.ndim == 2 else y
    n_y, n_x = y.shape[1:]

    columns = (y != 0).any(0).any(0)
    if header is not None and header.center is not None and header.maximum is not None and header.encoded[1] == n_x:
        left = n_x // 2 - header.center
        inside = torch.zeros(n_x, dtype=torch.bool)
        inside[max(left, 0) : max(left + header.maximum + 1, 0)] = True
        columns &= inside
    if acquired is not None:
        if len(acquired) != n_x:
            raise ValueError(f"{path.name}: 'mask' has {len(acquired)} entries for {n_x} columns of k-space.")
        columns &= torch.from_numpy(acquired)
    if not bool(columns.any()):
        raise ValueError(f"{path.name}: slice {index} has no sampled column of k-space.")
    y = y * columns
    height = min(header.recon[0], n_y) if header is not None else n_y
    y = crop_readout(y, height, -2)

    first, last = columns.nonzero()[0], columns.nonzero()[-1]
    full = acquired is None and bool(columns[first : last + 1].all()) and int(columns.sum()) >= n_x // 2
    reference, difference = None, None
    if full:
        reference = ifft2c(y).abs().square().sum(0).sqrt()
        if target is not None:
            difference = _difference(reference.numpy(), target)
    if (acceleration is not None or mask is not None) and not full:
        raise ValueError(f"{path.name} is undersampled already: acceleration and mask are for fully sampled files.")
    sigma = noise_level(y, columns.expand(height, n_x))
    kept: Any = columns
    if acceleration is not None:
        fraction = 0.32 / acceleration if center_fraction is None else center_fraction
        kept = equispaced_fraction_mask(n_x, acceleration=acceleration, center_fraction=fraction, seed=seed) & columns
    elif mask is not None:
        try:
            kept = (torch.as_tensor(np.asarray(mask)) != 0) & columns.expand(height, n_x)
        except RuntimeError:
            raise ValueError(f"mask {np.shape(mask)} does not broadcast to k-space's ({height}, {n_x}).") from None
    metadata: dict[str, Any] = {
        "source": "fastMRI, https://fastmri.med.nyu.edu, arXiv:1811.08839",
        "file": path.name,
        "index": index,
        "n_items": n_items,
        "acquisition": acquisition,
        "readout_cropped_from": n_y,
        "noise": "estimated from the edge of k-space",
    }
    if header is not None:
        metadata["pixel_size_y_mm"] = header.encoded_mm[0] / header.encoded[0]
        metadata["pixel_size_x_mm"] = header.encoded_mm[1] / header.encoded[1]
        thickness = header.encoded_mm[2] / header.encoded[2]
        metadata["voxel_size_mm"] = [metadata["pixel_size_x_mm"], metadata["pixel_size_y_mm"], thickness]
    if difference is not None:
        metadata["reference_difference"] = difference
    return kspace_measurement(
        y,
        mask=kept,
        sigma=sigma,
        magnitude=magnitude,
        item=f"{path.stem}_{index}",
        reference=reference if magnitude else None,
        metadata=metadata,
    )


read = read_fastmri


def matches(head: Head) -> bool:
    """An HDF5 file with ``kspace`` and something else of fastMRI's."""
    return "kspace" in head.keys and bool({"ismrmrd_header", "mask", *TARGETS} & head.keys)


def write_fastmri(
    posterior: Posterior | Sequence[Posterior], path: str | Path, *, crop: tuple[int, int] | None = None
) -> None:
    """Write posteriors as an HDF5 file in the layout of fastMRI submissions.

    ``reconstruction`` (slice, y, x) is the mean; ``reconstruction_std`` (if there are two samples or more) and
    ``samples`` (sample, slice, y, x) come beside it. Two-channel (complex) images are written as magnitudes, and
    mean and standard deviation are those of the magnitude.

    Args:
        posterior: one slice, a volume (1, z, y, x), or a list of slices in their order.
        path: ends in ``.h5``; written aside and renamed.
        crop: (y, x) central part to write, as the challenge's (320, 320); None: all.

    Raises:
        ValueError: another suffix, slices that differ in shape or number of samples, or a crop that does not fit.

    Example:
        >>> import tempfile
        >>> import h5py
        >>> from invdiff import Posterior
        >>> from invdiff.datasets import write_fastmri
        >>> slices = [Posterior(samples=torch.rand(4, 1, 8, 8)) for _ in range(3)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_fastmri(slices, f"{folder}/out.h5")
        ...     with h5py.File(f"{folder}/out.h5") as f:
        ...         f["reconstruction"].shape, f["samples"].shape
        ((3, 8, 8), (4, 3, 8, 8))
    """
    path = Path(path)
    if path.suffix != ".h5":
        raise ValueError(f"A fastMRI file ends in .h5, got {path.name!r}.")
    posteriors = [posterior] if isinstance(posterior, Posterior) else list(posterior)
    if not posteriors or len({tuple(p.samples.shape) for p in posteriors}) != 1:
        raise ValueError(f"Expected slices of equal shape, got {[tuple(p.samples.shape) for p in posteriors]}.")
    slices = []
    for p in posteriors:
        x = p.samples.detach().cpu()
        if x.is_complex():
            x = x.abs()
        if x.ndim not in (4, 5) or x.shape[1] not in (1, 2):
            raise ValueError(f"Expected samples (sample, 1 or 2, [z,] y, x), got {tuple(x.shape)}.")
        x = x[:, 0] if x.shape[1] == 1 else x.norm(dim=1)
        slices.append(x[:, None] if x.ndim == 3 else x)
    samples = torch.cat(slices, 1).float().numpy()
    if crop is not None:
        if any(c < 1 or c > n for c, n in zip(crop, samples.shape[2:], strict=True)):
            raise ValueError(f"crop={crop} does not fit into images of {samples.shape[2:]}.")
        samples = _center(samples, crop)
    first = posteriors[0]
    with atomic_path(path) as tmp, h5py.File(tmp, "w") as f:
        f["reconstruction"] = samples.mean(0)
        if len(samples) > 1:
            f["reconstruction_std"] = samples.std(0, ddof=1)
        f["samples"] = samples
        f.attrs.update(
            max=float(samples.mean(0).max()), norm=float(np.linalg.norm(samples.mean(0))), units=first.units,
            algorithm=first.algorithm, prior=first.prior, seed=first.seed, nfe=first.nfe,
            acquisition=str(first.metadata.get("acquisition", "")), items=[p.item for p in posteriors],
        )  # fmt: skip


def _target(f: h5py.File, key: str, index: int | None, n_items: int) -> np.ndarray:
    """The file's own target image (y, x) of one slice."""
    item = f[key]
    if isinstance(item, h5py.Dataset) and item.ndim == 3:
        if len(item) != n_items:
            raise ValueError(f"{Path(f.filename).name}: '{key}' has {len(item)} images for {n_items} slices.")
        require_stored(item)
    return array(f, key, ndim=3, where=index)


def _difference(reference: np.ndarray, target: np.ndarray) -> float | None:
    """Relative distance of the file's target from the centre of ``reference``; None if it is larger or zero."""
    if any(t > n for t, n in zip(target.shape, reference.shape, strict=True)) or not target.any():
        return None
    ours = _center(reference, target.shape)
    return float(np.linalg.norm(ours - target) / np.linalg.norm(target))


def _center(x: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """The central part of the last two dimensions, as fastMRI cuts it."""
    (ny, nx), (h, w) = x.shape[-2:], size
    y, x0 = (ny - h) // 2, (nx - w) // 2
    return x[..., y : y + h, x0 : x0 + w]
