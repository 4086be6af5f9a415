# %% [markdown]
# # Sparse-view CT in ten lines
#
# A slice of a real CT scan (pydicom's test file), projected along 40 views with photon noise on a finer grid than the one
# we reconstruct on. The prior that ships with the package was trained on other patients.

# %%
from invdiff import load_prior
from invdiff.algorithms import DAPS
from invdiff.classical import FBP
from invdiff.datasets import sparse_view_ct
from invdiff.evaluation import psnr
from invdiff.progress import progress_bar

measurement = sparse_view_ct(n_views=40)
fbp = FBP(window="hann")(None, measurement)
daps = DAPS(n_anneal=50, width=2.0)  # width: the paper's is too wide, see "The width of DAPS"
posterior = daps(load_prior("ct-128"), measurement, n_samples=8, seed=0, callback=progress_bar())
posterior

# %% [markdown]
# A measurement knows its data, its operator, its noise and its units; a posterior is its samples.

# %%
truth = measurement.reference
span = float(truth.max() - truth.min())
for name, image in (("FBP", fbp.mean), ("posterior mean", posterior.mean), ("one sample", posterior.samples[0])):
    print(f"{name:>14}: {psnr(image, truth, data_range=span):.1f} dB, chi2 {float(measurement.chi2(image)):.2f}")

# %% [markdown]
# The mean has the smaller error, a sample explains the data better: a mean of plausible images is smoother than any of
# them. The standard deviation says where the samples disagree.

# %%
import matplotlib.pyplot as plt

panels = {
    "truth": truth, "FBP": fbp.mean, "posterior mean": posterior.mean, "one sample": posterior.samples[0],
    "standard deviation": posterior.std, "error of the mean": (posterior.mean - truth).abs(),
}  # fmt: skip
figure, axes = plt.subplots(2, 3, figsize=(10, 6.4), layout="constrained")
for ax, (title, image) in zip(axes.flat, panels.items(), strict=True):
    uncertainty = title in ("standard deviation", "error of the mean")
    top = 0.1 * span if uncertainty else float(truth.max())
    picture = ax.imshow(image[0], cmap="magma" if uncertainty else "gray", vmin=0, vmax=top)
    ax.set_title(title)
    ax.axis("off")
    if title in ("posterior mean", "error of the mean"):
        figure.colorbar(picture, ax=ax, label="1/mm", shrink=0.9)

# %% [markdown]
# Are the intervals right? With 8 samples, the truth should lie within their range in 7 of 9 pixels.

# %%
inside = (posterior.samples.amin(0) < truth) & (truth < posterior.samples.amax(0))
body = truth > 0.3 * truth.max()
print(f"covered: {float(inside[body].float().mean()):.0%}, nominal {7 / 9:.0%}")

# %% [markdown]
# Near nominal, on one slice. With the width of the paper, `DAPS(n_anneal=50)`, the map is too wide. To keep the result:
# `posterior.save("folder")`, or `posterior.export("scan.nii.gz")` for other programs.
