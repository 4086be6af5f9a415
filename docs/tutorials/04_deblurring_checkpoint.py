# %% [markdown]
# # Deblurring with a checkpoint in a published format
#
# `load_prior` reads the layouts in which the field publishes its networks: diffusers folders, guided-diffusion, EDM and
# others. No such file can be downloaded offline, so we make one: a small `UNet2DModel` of diffusers, trained for two minutes
# on phantoms (discs of acrylic with holes, as in the Helsinki Tomography Challenge) and saved as diffusers saves it. With a
# real folder, start at `load_prior`.

# %%
import torch
import torch.nn.functional as F
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from tqdm.auto import tqdm

from invdiff.datasets import DiscWithHoles

torch.manual_seed(0)
acrylic = 0.036  # 1/mm
phantoms = DiscWithHoles(200, (64, 64), pixel_size=1.3, seed=0, attenuation=acrylic)
images = torch.stack([phantoms[i] for i in range(200)]) / acrylic * 2 - 1  # a network works on [-1, 1]


def patches(n: int) -> torch.Tensor:
    corners = torch.randint(33, (n, 2)).tolist()
    return torch.stack(
        [images[i, :, y : y + 32, x : x + 32] for i, (y, x) in zip(torch.randint(200, (n,)), corners, strict=True)]
    )


net = UNet2DModel(
    sample_size=64, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(16, 32, 64),
    norm_num_groups=8, down_block_types=("DownBlock2D",) * 3, up_block_types=("UpBlock2D",) * 3, add_attention=False,
)  # fmt: skip
schedule, n_steps = DDPMScheduler(num_train_timesteps=1000), 700
optimizer = torch.optim.Adam(net.parameters())
rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=n_steps)
for _ in tqdm(range(n_steps), unit="step"):
    x, t = patches(16), torch.randint(500, (16,))  # the lower half of the noise levels is all we shall use
    eps = torch.randn_like(x)
    loss = F.mse_loss(net(schedule.add_noise(x, eps, t), t).sample, eps)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    rate.step()
DDPMPipeline(unet=net, scheduler=schedule).save_pretrained("discs")

# %% [markdown]
# The checkpoint's own schedule gives the map from noise level to step; an algorithm never asks how the network was
# trained. What such a file does not say is what its numbers mean: -1 and +1 are air and acrylic.

# %%
from invdiff import load_prior
from invdiff.priors import PriorInfo

info = PriorInfo(name="discs", value_range=(0.0, 1.0), quantity="the attenuation of acrylic", trained_on="200 phantoms")
prior = load_prior("discs", info=info)
prior

# %% [markdown]
# A phantom that was not in training, seen through a blur that closes its smaller holes, with noise. Linear filtering and
# total variation are the yardsticks; the weight of the latter is chosen on a third phantom.

# %%
from invdiff import GaussianNoise, Measurement
from invdiff.classical import TV, Wiener
from invdiff.evaluation import psnr
from invdiff.operators import Blur, gaussian_psf

A = Blur(gaussian_psf(2.5, 21), (1, 64, 64))  # a standard deviation of 2.5 pixels, 3.2 mm
other, truth = DiscWithHoles(2, (64, 64), pixel_size=1.3, seed=1, attenuation=acrylic)
noise = GaussianNoise(0.05 * acrylic)
tuning, measurement = (
    Measurement.simulate(x, A, noise, seed=i, image_scale=acrylic, units="1/mm") for i, x in enumerate((other, truth))
)


def quality(image: torch.Tensor, x: torch.Tensor = truth) -> float:
    return psnr(image.clamp(0, acrylic), x, data_range=acrylic)


weight = max((1.0, 2.0, 5.0, 10.0, 20.0), key=lambda w: quality(TV(weight=w)(None, tuning).mean, other))
wiener, tv = Wiener()(None, measurement).mean, TV(weight=weight)(None, measurement).mean

# %% [markdown]
# The chain starts from the Wiener filter's image with noise of level 1 (`start=`): a small prior is of little use at higher
# noise, and does not need to be.

# %%
from invdiff.algorithms import DDS
from invdiff.progress import progress_bar

posterior = DDS(n_steps=40)(
    prior, measurement, n_samples=16, seed=0, start=wiener, start_sigma=1.0, callback=progress_bar()
)
results = {
    "data": measurement.y, "Wiener filter": wiener, "total variation": tv, "posterior mean": posterior.mean,
    "one sample": posterior.samples[0],
}  # fmt: skip
for name, image in results.items():
    print(f"{name:>16}: {quality(image):.1f} dB")
print(f"chi2 of the samples: {float(measurement.chi2(posterior.samples).mean()):.2f}")

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(2, 4, figsize=(12, 6.2), layout="constrained")
shown = {"truth": truth} | results
for ax, (title, image) in zip(axes.flat, shown.items(), strict=False):
    grey = ax.imshow(image[0], cmap="gray", vmin=0, vmax=acrylic)
    ax.set_title(title if title == "truth" else f"{title}, {quality(image):.1f} dB")
for ax, (title, image) in zip(
    axes.flat[6:], {"standard deviation": posterior.std, "error of the mean": (posterior.mean - truth).abs()}.items(),
    strict=True,
):  # fmt: skip
    heat = ax.imshow(image[0], cmap="magma", vmin=0, vmax=0.5 * acrylic)
    ax.set_title(title)
for ax in axes.flat:
    ax.axis("off")
bars = figure.colorbar(grey, ax=axes[0], label="1/mm"), figure.colorbar(heat, ax=axes[1], label="1/mm")

# %% [markdown]
# The blur has closed the gaps between holes; the samples are discs with sharp holes, as the prior knows them. Where the data
# leave open how large a hole is, the samples differ, and the standard deviation marks its rim. Is it right?

# %%
from invdiff.evaluation.calibration import uncertainty_error_correlation

error = posterior.mean - truth
ratio = float(posterior.std.square().mean().sqrt() / error.square().mean().sqrt())
print(f"spread over error: {ratio:.2f} (1 when calibrated)")
print(f"rank correlation of the map with the error: {uncertainty_error_correlation(posterior.std, error):.2f}")

# %% [markdown]
# The map lies where the errors are, and its size is about right on this image. One image proves little; the next tutorial
# measures samplers against exact posteriors. And prior and problem are of one family here, which no real object is: on your
# own data the prior's errors come on top.
