# %% [markdown]
# # Train your own prior
#
# A prior is a denoiser. `invdiff train` turns a folder of NIfTI volumes and a small TOML file into one: slices at several
# resolutions, augmentation, an exponential moving average of the weights, checkpoints that a killed run resumes from, and
# a model card. Here on the volume that comes with nibabel, for a minute; a useful prior takes an hour on two cores.

# %%
from pathlib import Path

import nibabel
import numpy as np

folder = Path("volumes")
folder.mkdir(exist_ok=True)
source = nibabel.load(Path(nibabel.__file__).parent / "tests" / "data" / "example4d.nii.gz")
for name, index in (("train", 0), ("held_out", 1)):
    nibabel.save(nibabel.Nifti1Image(np.asarray(source.dataobj[..., index]), source.affine), folder / f"{name}.nii.gz")
_ = Path("my-brain.toml").write_text("""
name = "my-brain"
modality = "mri"
train = ["train.nii.gz"]
validation = ["held_out.nii.gz"]
trained_on = "nibabel's example volume"
licence = "MIT"
quantity = "99.5th percentile of the magnitude"
n_steps = 600
batch_size = 8
ema = 0.99

[augmentation]
size = 64
pixel_size = [3.0, 4.5]
rotation = 15.0

[network]
widths = [24, 48, 64]
""")

# %% [markdown]
# On the command line: `invdiff train my-brain.toml --data volumes --out run`. In Python, stopped half-way and continued:

# %%
from tqdm.auto import tqdm

from invdiff.priors.configuration import TrainConfig
from invdiff.priors.train import train

config = TrainConfig.read(Path("my-brain.toml"))
losses = {}
with tqdm(total=config.total_steps, unit="step") as bar:

    def callback(step: int, n_steps: int, loss: float) -> None:
        losses[step] = loss
        bar.update(step - bar.n)

    first = train(config, Path("run"), data=folder, max_minutes=0.3, callback=callback)
    weights = first or train(config, Path("run"), callback=callback)
print("stopped half-way" if first is None else "one go", "->", weights)

# %%
from invdiff import load_prior

prior = load_prior(weights)
print(Path("run/my-brain.md").read_text()[:600])

# %% [markdown]
# The prior at work: inpainting on a slice of the held-out volume.

# %%
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from invdiff import GaussianNoise, Measurement
from invdiff.algorithms import DAPS
from invdiff.operators import Inpainting, random_pixels
from invdiff.progress import progress_bar

held_out = np.asarray(nibabel.load(folder / "held_out.nii.gz").dataobj)[:, ::-1, 12].T.astype(np.float32)
x = torch.from_numpy(held_out / np.percentile(held_out[held_out > 0], 99.5))[None, None]
x = F.interpolate(F.pad(x, (0, 0, 16, 16)), (64, 64), mode="area")[0].clamp(0, 1.2)
m = Measurement.simulate(x, Inpainting(random_pixels((1, 64, 64), 0.4, seed=0)), GaussianNoise(0.02), seed=0)
p = DAPS(n_anneal=40)(prior, m, n_samples=4, callback=progress_bar())
figure, axes = plt.subplots(1, 5, figsize=(14, 3.2), layout="constrained")
axes[0].plot(list(losses), list(losses.values()))
axes[0].set(title="training loss", xlabel="step", yscale="log")
shown = {"truth": x, "40 % of the pixels": m.y, "posterior mean": p.mean, "standard deviation": p.std}
for ax, (title, image) in zip(axes[1:], shown.items(), strict=True):
    spread = title == "standard deviation"
    picture = ax.imshow(image[0], cmap="magma" if spread else "gray", vmin=0, vmax=0.25 if spread else 1)
    ax.set_title(title)
    ax.axis("off")
    if title in ("posterior mean", "standard deviation"):
        figure.colorbar(picture, ax=ax, label="relative units", shrink=0.9)
