# %% [markdown]
# # Plane-wave ultrasound
#
# One plane wave, 64 elements. The operator maps a complex reflectivity to demodulated channel data: two delays, a phase,
# the pulse's envelope, for every pixel and element, as a sparse matrix with its exact adjoint.

# %%
import math

import numpy as np
import torch

from invdiff import ComplexGaussianNoise, Measurement
from invdiff.operators import PlaneWaveIQ, PlaneWaveScan, ViewAsComplex, gaussian_pulse

scan = PlaneWaveScan.covering(
    (128, 96), (8.0, 28.0), element_positions=0.3 * (np.arange(64) - 31.5), sampling_frequency=6e6, centre_frequency=5e6
)
H = PlaneWaveIQ(scan, f_number=1.5, pulse=gaussian_pulse(0.0, 3e6, 6e6))
H

# %% [markdown]
# A cyst without echoes in speckle, and three bright points.

# %%
x, z = (torch.from_numpy(np.asarray(c)).float() for c in scan.pixel_centres())
g = torch.Generator().manual_seed(0)
cyst = (z[:, None] - 18) ** 2 + (x[None] - 3) ** 2 < 3.0**2
amplitude = torch.where(cyst, 0.02, 1.0)
truth = amplitude * torch.randn(2, 128, 96, generator=g) / math.sqrt(2)
for depth, lateral in ((11.0, -5.0), (18.0, -5.0), (25.0, -5.0)):
    truth[0, (z - depth).abs().argmin(), (x - lateral).abs().argmin()] = 12.0
A = H @ ViewAsComplex((1, 128, 96))  # two real channels, as priors have them
y = A(truth)
sigma = 0.05 * float(y.abs().square().mean().sqrt())
measurement = Measurement.simulate(truth, A, ComplexGaussianNoise(sigma), seed=0, item="us")

# %% [markdown]
# Classical beamforming, and samples of the reflectivity. Fully developed speckle is complex white Gaussian noise, so its
# prior is known in closed form; with it the posterior is exact, and samplers can be compared with it. (The package ships no
# ultrasound network.)

# %%
from invdiff.algorithms import DAPS
from invdiff.classical import DAS, CoherenceFactor
from invdiff.priors import GaussianPrior, StationaryCovariance
from invdiff.progress import progress_bar

das, cf = DAS()(None, measurement).mean, CoherenceFactor()(None, measurement).mean
prior = GaussianPrior(torch.zeros(2, 128, 96), StationaryCovariance(torch.full((2, 128, 96), 0.5)), name="speckle")
posterior = DAPS(n_anneal=30)(prior, measurement, n_samples=8, seed=0, callback=progress_bar())
print(f"chi2 of the samples {float(measurement.chi2(posterior.samples).mean()):.2f}")


# %%
import matplotlib.pyplot as plt

from invdiff.evaluation.ultrasound import disc_mask, gcnr, point_widths


def envelope(image: torch.Tensor) -> torch.Tensor:
    return image.norm(dim=-3) if image.shape[-3] == 2 else image[..., 0, :, :].abs()


ring = ((z[:, None] - 18) ** 2 + (x[None] - 3) ** 2 > 4.0**2) & ((z[:, None] - 18) ** 2 + (x[None] - 3) ** 2 < 6.0**2)
core = (z[:, None] - 18) ** 2 + (x[None] - 3) ** 2 < 2.4**2
views = {"delay and sum": envelope(das), "coherence factor": envelope(cf), "posterior mean": envelope(posterior.mean),
         "one sample": envelope(posterior.samples[0])}  # fmt: skip
figure, axes = plt.subplots(1, 4, figsize=(14, 4.4), sharey=True, layout="constrained")
extent = (float(x[0]), float(x[-1]), float(z[-1]), float(z[0]))
for ax, (title, e) in zip(axes, views.items(), strict=True):
    db = 20 * torch.log10(e / e.max() + 1e-6)
    picture = ax.imshow(db, cmap="gray", vmin=-50, vmax=0, extent=extent, aspect="equal")
    axial, lateral = point_widths(e, scan, disc_mask(scan, (18.0, -5.0), 1.5))
    ax.set_title(f"{title}\ngCNR {gcnr(e, core, ring):.2f}, point {axial:.2f} x {lateral:.2f} mm")
    ax.set_xlabel("x, mm")
axes[0].set_ylabel("depth, mm")
bar = figure.colorbar(picture, ax=axes, label="dB", shrink=0.7)

# %% [markdown]
# In the titles: how well the cyst is told from its surroundings (gCNR, 1 is best), and how wide the middle point is, in depth
# and across. The posterior mean is a deconvolution: the point is a pixel or two, where delay and sum smears it over the
# beam. The cyst is worse off. A sample fills what the array does not see with speckle, in the cyst as well, because this
# prior knows no cysts. That is what a posterior under a wrong prior looks like: it explains the data (chi2 near 1), and its
# detail is the prior's.
#
# Real files (PICMUS, zea, UFF, MUST) are opened with `datasets.open`, with the scan they describe.
