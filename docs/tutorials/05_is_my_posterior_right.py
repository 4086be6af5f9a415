# %% [markdown]
# # Is my posterior right? The truth bench
#
# A sampler that looks good may still sample the wrong distribution. Where the prior is Gaussian or a mixture of Gaussians
# the posterior is known exactly, so that samplers can be measured against it, with a perfect denoiser: what is then wrong
# is the algorithm.

# %%
import torch

from invdiff import GaussianNoise, Measurement
from invdiff.algorithms import DAPS, DDS, DPS, PnPDM
from invdiff.operators import Inpainting, random_pixels
from invdiff.priors import ExactPosterior, GaussianPrior, StationaryCovariance

shape = (1, 16, 16)
covariance = StationaryCovariance.power_law(shape, exponent=3.0)
prior = GaussianPrior(torch.zeros(shape), covariance)
A, sigma = Inpainting(random_pixels(shape, 0.25, seed=0)), 0.05
truth = prior.sample(1, seed=3)[0]
measurement = Measurement.simulate(truth, A, GaussianNoise(sigma), seed=0)
exact = ExactPosterior(prior, measurement).sample(200, seed=1)

# %% [markdown]
# Four samplers on the same data, 64 samples each. One number is not enough: look at mean, spread and data fit together.

# %%
samplers = {
    "DPS, scale 0.3": DPS(n_steps=300, guidance_scale=0.3, clip=False),
    "DDS": DDS(n_steps=50),
    "DAPS": DAPS(n_anneal=100),
    "PnP-DM": PnPDM(n_iterations=60, decay=0.85, rho_min=sigma / 4),
}
draws = {"exact": exact} | {name: a(prior, measurement, n_samples=64).samples for name, a in samplers.items()}
mean, variance = exact.mean(0), exact.var(0)
print(f"{'':<16}{'error of mean':>14}{'std / exact, seen':>19}{'unseen':>8}{'chi2':>8}")
for name, s in draws.items():
    error = float((s.mean(0) - mean).square().mean().sqrt() / variance.mean().sqrt())
    ratio = (s.var(0) / variance).sqrt()
    seen, unseen = float(ratio[A.mask].mean()), float(ratio[~A.mask].mean())
    print(f"{name:<16}{error:>14.2f}{seen:>19.2f}{unseen:>8.2f}{float(measurement.chi2(s).mean()):>8.2f}")

# %% [markdown]
# DPS does not see the noise level: with this scale it reproduces the data far closer than their noise, so its spread is
# too small where pixels were seen. DDS is under-dispersed there as well. DAPS and PnP-DM are close.
#
# A row through the image, with 90 % intervals:

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(1, len(draws), figsize=(14, 3.8), sharey=True, layout="constrained")
row = 8
for ax, (name, s) in zip(axes, draws.items(), strict=True):
    lower, upper = s.quantile(0.05, 0)[0, row], s.quantile(0.95, 0)[0, row]
    ax.fill_between(range(16), lower, upper, alpha=0.35, label="90 % of the samples")
    ax.plot(s.mean(0)[0, row], linewidth=2, label="their mean")
    ax.plot(truth[0, row], "k--", linewidth=1, label="truth")
    ax.plot(A.mask[0, row].nonzero(), truth[0, row][A.mask[0, row]], "ko", markersize=4, label="measured pixel")
    ax.set(title=name, xlabel="x, pixels")
axes[0].set_ylabel("image value")
legend = figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)

# %% [markdown]
# The whole bench, ten problems and every algorithm, is `invdiff truth` (about 12 minutes on two cores). Here its quick
# version for two algorithms. The rows "exact draw" and "prior draw" are always there: the second ignores the data and
# still passes spread-skill and coverage.

# %%
from rich.console import Console

from invdiff.evaluation.truth import LEGEND, run_truth, tables

records = run_truth(["daps", "dds"], quick=True, workers=1)
console = Console(width=170)
for table in tables([r for r in records if r.problem in ("gaussian-blur-mask", "mixture-8-1")]):
    console.print(table)
print(LEGEND)
