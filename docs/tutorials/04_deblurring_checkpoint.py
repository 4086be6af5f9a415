# %% [markdown]
# # Deblurring with a checkpoint in a published format
#
# `load_prior` reads the layouts in which the field publishes its networks: diffusers folders, guided-diffusion, EDM and
# others. No such file can be downloaded offline, so we make one: a small `UNet2DModel` of diffusers, trained for a minute
# on patches of scikit-image's photographs and saved as diffusers saves it. With a real folder, start at `load_prior`.

# %%
import skimage.data
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

torch.manual_seed(0)
names = ("coins", "moon", "page", "clock", "brick", "grass", "gravel")
photographs = [torch.from_numpy(getattr(skimage.data, n)()).float()[None, None] / 127.5 - 1 for n in names]
photographs = [F.interpolate(p, scale_factor=0.5, mode="area") for p in photographs]


def patches(n: int) -> torch.Tensor:
    out = []
    for i in torch.randint(len(photographs), (n,)).tolist():
        p = photographs[i][0]
        top, left = (int(torch.randint(s - 32 + 1, (1,))) for s in p.shape[1:])
        out.append(p[:, top : top + 32, left : left + 32])
    return torch.stack(out)


net = UNet2DModel(
    sample_size=64, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(24, 48), norm_num_groups=8,
    down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"), add_attention=False,
)  # fmt: skip
schedule = DDPMScheduler(num_train_timesteps=1000)
optimizer = torch.optim.Adam(net.parameters(), 1e-3)
for _ in tqdm(range(300)):
    x, t = patches(16), torch.randint(1000, (16,))
    eps = torch.randn_like(x)
    loss = F.mse_loss(net(schedule.add_noise(x, eps, t), t).sample, eps)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
DDPMPipeline(unet=net, scheduler=schedule).save_pretrained("photographs")
print(f"last loss {loss.item():.3f}")

# %%
from invdiff import load_prior

prior = load_prior("photographs")
prior

# %% [markdown]
# The checkpoint's own schedule gives the map from noise level to step; an algorithm never asks how the network was
# trained. Now a photograph that was not in training, blurred and noisy. The chain starts from the data (`start=`), at the
# noise level that their residual suggests: a small prior is of little use at high noise.

# %%
from invdiff import GaussianNoise, Measurement
from invdiff.algorithms import DiffPIR
from invdiff.evaluation import psnr
from invdiff.operators import Blur, gaussian_psf

camera = torch.from_numpy(skimage.data.camera()).float()[None, None] / 127.5 - 1
truth = F.interpolate(camera, scale_factor=0.5, mode="area")[0, :, 20:84, 90:154]
A = Blur(gaussian_psf(1.2, 9), (1, 64, 64))
measurement = Measurement.simulate(truth, A, GaussianNoise(0.05), seed=0)
posterior = DiffPIR(n_steps=40)(prior, measurement, n_samples=4, seed=0, start=measurement.y)
for name, image in (("data", measurement.y), ("posterior mean", posterior.mean)):
    print(f"{name:>14}: {psnr(image, truth, data_range=2.0):.1f} dB")

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(1, 4, figsize=(11, 3), layout="constrained")
shown = {"truth": truth, "data": measurement.y, "posterior mean": posterior.mean, "standard deviation": posterior.std}
for ax, (title, image) in zip(axes, shown.items(), strict=True):
    spread = title == "standard deviation"
    ax.imshow(image[0], cmap="magma" if spread else "gray", vmin=0 if spread else -1, vmax=0.3 if spread else 1)
    ax.set_title(title)
    ax.axis("off")
