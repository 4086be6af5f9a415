# %% [markdown]
# # Accelerated multi-coil MRI: from a fastMRI-style file to NIfTI with an uncertainty map
#
# The fastMRI files themselves need an agreement, so we write one with the same layout: eight coils, the readout recorded
# twice as long as the image, noise, an XML header. If you have a real file, start at `datasets.open`.

# %%
from pathlib import Path

import h5py
import nibabel
import numpy as np
import torch

from invdiff.operators import birdcage_maps, fft2c

volume = np.asarray(nibabel.load(Path(nibabel.__file__).parent / "tests/data/example4d.nii.gz").dataobj[..., 0])
slices = np.stack([np.pad(volume[:, ::-1, z].T, [(16, 16), (0, 0)]) for z in (10, 11, 12)]).astype(np.float32)
slices /= np.percentile(slices[slices > 0], 99.5)  # (3, 128, 128)

rng = np.random.default_rng(0)
oversampled = torch.from_numpy(np.pad(slices, [(0, 0), (64, 64), (0, 0)]))
maps = torch.nn.functional.pad(birdcage_maps(8, (128, 128)), (0, 0, 64, 64))
kspace = fft2c(maps * oversampled[:, None]).numpy()
kspace += 0.01 * (rng.standard_normal(kspace.shape) + 1j * rng.standard_normal(kspace.shape))

header = """<?xml version="1.0"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding>
 <encodedSpace><matrixSize><x>256</x><y>128</y><z>1</z></matrixSize>
  <fieldOfView_mm><x>512</x><y>256</y><z>5</z></fieldOfView_mm></encodedSpace>
 <reconSpace><matrixSize><x>128</x><y>128</y><z>1</z></matrixSize>
  <fieldOfView_mm><x>256</x><y>256</y><z>5</z></fieldOfView_mm></reconSpace>
 <encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>127</maximum><center>64</center>
 </kspace_encoding_step_1></encodingLimits><trajectory>cartesian</trajectory>
</encoding></ismrmrdHeader>"""
with h5py.File("brain.h5", "w") as f:
    f["kspace"], f["ismrmrd_header"] = kspace.astype(np.complex64), header
    f.attrs["acquisition"] = "AXT1"

# %% [markdown]
# The reader crops the readout, keeps a quarter of the columns as the challenge's masks do, estimates coil maps (ESPIRiT)
# and phase from the centre of k-space and the noise from its edge. What it assumed is in the metadata.

# %%
from invdiff import datasets

measurement = datasets.open("brain.h5", index=1, acceleration=4, seed=0)
print(measurement.A)
measurement.metadata

# %%
from invdiff import load_prior
from invdiff.algorithms import DAPS
from invdiff.classical import CGSense
from invdiff.evaluation import psnr
from invdiff.progress import progress_bar

sense = CGSense()(None, measurement)
prior = load_prior("brain-mri-128")
posterior = DAPS(n_anneal=50, width=2.0)(prior, measurement, n_samples=8, seed=0, callback=progress_bar())
truth = measurement.reference
span = float(truth.max() - truth.min())
for name, image in (("CG-SENSE", sense.mean), ("posterior mean", posterior.mean)):
    print(f"{name:>14}: {psnr(image, truth, data_range=span):.1f} dB")
print(f"chi2 of the samples: {float(measurement.chi2(posterior.samples).mean()):.2f}")

# %%
import matplotlib.pyplot as plt

top = float(truth.quantile(0.999))
figure, axes = plt.subplots(1, 5, figsize=(14, 3.4), layout="constrained")
for ax, (title, image, vmax, cmap) in zip(
    axes,
    (
        ("fully sampled", truth, top, "gray"),
        ("CG-SENSE, 4x", sense.mean, top, "gray"),
        ("posterior mean", posterior.mean, top, "gray"),
        ("standard deviation", posterior.std, 0.15 * top, "magma"),
        ("error of the mean", (posterior.mean - truth).abs(), 0.15 * top, "magma"),
    ),
    strict=True,
):
    picture = ax.imshow(image[0, :, 12:-12], cmap=cmap, vmin=0, vmax=vmax)
    ax.set_title(title)
    ax.axis("off")
    if title in ("posterior mean", "error of the mean"):
        figure.colorbar(picture, ax=ax, label="relative units", shrink=0.9)

# %% [markdown]
# Two things to see. The error in the air is not the posterior's: the magnitude of a fully sampled image has a noise floor there,
# the posterior mean has none. And the standard deviation is largest in the middle, where the columns that were left out
# fold onto each other and the coils tell them apart least.

# %% [markdown]
# Mean, standard deviation and samples as NIfTI files that any viewer opens:

# %%
for path in posterior.export("brain.nii.gz"):
    if path.suffix == ".gz":
        image = nibabel.load(path)
        print(path.name, image.shape, image.header.get_zooms()[:2], "mm")
