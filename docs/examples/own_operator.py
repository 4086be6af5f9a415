"""An operator of one's own: the horizontal derivative of an image, as differential phase contrast measures it."""

import torch
from torch import Tensor

from invdiff import GaussianNoise, Measurement
from invdiff.algorithms import DDS
from invdiff.operators import LinearOperator, dot
from invdiff.priors import GaussianPrior, StationaryCovariance


class HorizontalDerivative(LinearOperator):
    """``y[..., i, j] = (x[..., i, j + 1] - x[..., i, j]) / pixel_size``, (c, ny, nx) to (c, ny, nx - 1)."""

    def __init__(self, shape: tuple[int, int, int], pixel_size: float) -> None:
        if shape[-1] < 2 or not pixel_size > 0:
            raise ValueError(f"Need at least two columns and a positive pixel_size in mm, got {shape}, {pixel_size}.")
        super().__init__(shape, (*shape[:-1], shape[-1] - 1))
        self.shape, self.pixel_size = tuple(shape), pixel_size  # arguments under their own names: repr, save, load

    def forward(self, x: Tensor) -> Tensor:  # (batch, c, ny, nx)
        return (x[..., 1:] - x[..., :-1]) / self.pixel_size

    def adjoint(self, y: Tensor) -> Tensor:  # optional: without it autograd derives the adjoint
        zero = y.new_zeros((*y.shape[:-1], 1))
        return (torch.cat([zero, y], -1) - torch.cat([y, zero], -1)) / self.pixel_size


A = HorizontalDerivative((1, 16, 16), pixel_size=0.5)
x, y = torch.randn(1, 16, 16), torch.randn(1, 16, 15)
assert torch.isclose(dot(A(x), y), dot(x, A.H(y)), rtol=1e-4)  # the dot test: <A x, y> = <x, A^H y>

prior = GaussianPrior(torch.zeros(1, 16, 16), StationaryCovariance.power_law((1, 16, 16), exponent=3.0))
truth = prior.sample(1, seed=0)[0]
measurement = Measurement.simulate(truth, A, GaussianNoise(0.1), seed=0)
posterior = DDS(n_steps=30)(prior, measurement, n_samples=8)
print(f"error {float((posterior.mean - truth).std()):.2f}, image {float(truth.std()):.2f}")
