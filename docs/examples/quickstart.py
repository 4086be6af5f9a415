"""What a new user does: an own sinogram in a .npy file, a few lines of TOML, a reconstruction with uncertainty."""

import numpy as np
import torch

from invdiff.operators import CT, ParallelBeam

# stands for your scanner: 60 views of a disc with a hole, 1/mm, with noise
geometry = ParallelBeam.covering((128, 128), 2.5, 60)
x, y = geometry.pixel_centres()
disc = 0.02 * (np.hypot(x, y[:, None]) < 125) - 0.015 * (np.hypot(x - 37.5, y[:, None]) < 25)
sinogram = CT(geometry, supersampling=4)(torch.from_numpy(disc).float()[None])[0].numpy()
np.save("scan.npy", sinogram + 0.02 * np.random.default_rng(0).standard_normal(sinogram.shape))
