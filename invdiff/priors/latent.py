"""Latent priors: a denoiser of latents between an encoder and a decoder, seen as any other prior.

Algorithms run on latents unchanged: the measurement they get is that of the decoded image. DPS on a
:class:`LatentPrior` is Latent-DPS (with ``clip=False``: latents are not confined to [-1, 1]), DAPS with a gradient
kernel is LatentDAPS.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from invdiff.measurement import Measurement
from invdiff.operators.base import Composition, Operator
from invdiff.priors.denoiser import NetworkPrior, Prior, PriorInfo

Map = Callable[[Tensor], Tensor]


class Decoder(Operator):
    """Latents to images in model units, as a non-linear operator; its vjp is autograd's.

    Args:
        decode: (batch, \\*latent_shape) to (batch, \\*image_shape), differentiable.
        latent_shape, image_shape: of one item.
        dtype, device: of both.
    """

    def __init__(
        self,
        decode: Map,
        latent_shape: Sequence[int],
        image_shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(latent_shape, image_shape, dtype=dtype, device=device)
        self.decode = decode

    def forward(self, z: Tensor) -> Tensor:
        return self.decode(z)


class LatentPrior(Prior):
    """A prior of images through their latents. ``shape`` is that of a latent.

    Latents should have a standard deviation of about 0.5, so that the noise levels of pixel priors suit them.

    Args:
        encoder: images in model units (batch, \\*image_shape) to latents (batch, \\*denoiser.shape).
        decoder: back; its gradients are used, so its weights should be frozen.
        denoiser: a prior of the latents, e.g. a :class:`NetworkPrior`; it brings precision, device and noise range.
        image_shape: of one image, ``(channel, [z,] y, x)``.
        info: of the images; ``value_range`` are the relative values that the decoder's -1 and +1 stand for.
            Default: that of ``denoiser``.

    Example:
        >>> from torch.nn.functional import avg_pool2d, interpolate
        >>> from invdiff.priors import GaussianPrior, LatentPrior, StationaryCovariance
        >>> latents = GaussianPrior(torch.zeros(1, 2, 2), StationaryCovariance(torch.full((1, 2, 2), 0.25)))
        >>> def encode(x):
        ...     return avg_pool2d(x, 2)
        >>> def decode(z):
        ...     return interpolate(z, scale_factor=2.0)
        >>> prior = LatentPrior(encode, decode, latents, image_shape=(1, 4, 4))
        >>> prior.shape, tuple(prior.decoder(torch.zeros(1, 1, 2, 2)).shape)
        ((1, 2, 2), (1, 1, 4, 4))
    """

    def __init__(
        self,
        encoder: Map,
        decoder: Map,
        denoiser: Prior,
        *,
        image_shape: Sequence[int],
        info: PriorInfo | None = None,
    ) -> None:
        p, info = denoiser, info or denoiser.info
        super().__init__(
            p.shape, sigma_min=p.sigma_min, sigma_max=p.sigma_max, info=info, dtype=p.dtype, device=p.device
        )
        self.encoder, self.decoder, self.denoiser = encoder, decoder, denoiser
        self.image_shape = tuple(int(n) for n in image_shape)
        # the image side of the prior: its shape, units and checks
        self._image = Prior(
            self.image_shape, sigma_min=p.sigma_min, sigma_max=p.sigma_max, info=info, dtype=p.dtype, device=p.device
        )

    @classmethod
    def from_autoencoder(cls, autoencoder: Any, denoiser: NetworkPrior) -> LatentPrior:
        """With frozen weights. Raises ValueError if the latents do not fit.

        Args:
            autoencoder: an :class:`~invdiff.priors.autoencoder.Autoencoder`, or another module with its attributes
                ``channels``, ``latent_channels`` and ``factor`` and its methods ``encode`` and ``decode``.
        """
        channels, ny, nx = denoiser.shape
        image_shape = (autoencoder.channels, ny * autoencoder.factor, nx * autoencoder.factor)
        if channels != autoencoder.latent_channels:
            raise ValueError(
                f"The denoiser works on latents {denoiser.shape}, the autoencoder makes "
                f"{(autoencoder.latent_channels, ny, nx)}."
            )
        autoencoder.eval().requires_grad_(False)
        return cls(autoencoder.encode, autoencoder.decode, denoiser, image_shape=image_shape)

    @property
    def modules(self) -> list[nn.Module]:
        """The torch modules behind encoder, decoder and denoiser, each once."""
        found = [getattr(f, "__self__", f) for f in (self.encoder, self.decoder)]
        found.append(getattr(self.denoiser, "module", None))
        return list(dict.fromkeys(m for m in found if isinstance(m, nn.Module)))

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.denoiser.denoise(x, sigma)

    def error(self, sigma: float) -> float:
        return self.denoiser.error(sigma)

    def encode(self, x: Tensor) -> Tensor:
        """Images in model units (batch, \\*image_shape) to latents (batch, \\*shape)."""
        return self._checked(x, self.image_shape, self.encoder, self.shape)

    def decode(self, z: Tensor) -> Tensor:
        """Latents (batch, \\*shape) to images in model units (batch, \\*image_shape)."""
        return self._checked(z, self.shape, self.decoder, self.image_shape)

    def _checked(self, x: Tensor, shape: tuple[int, ...], f: Map, out_shape: tuple[int, ...]) -> Tensor:
        if tuple(x.shape[1:]) != shape or x.dtype != self.dtype:
            raise ValueError(
                f"The prior {self.info.name!r} makes images {self.image_shape} from latents {self.shape} in "
                f"{self.dtype}; expected (batch, {', '.join(map(str, shape))}), got {tuple(x.shape)} in {x.dtype}."
            )
        y = f(x)
        if tuple(y.shape[1:]) != out_shape:
            raise ValueError(f"{f!r} was to map {shape} to {out_shape}, but it makes {tuple(y.shape[1:])}.")
        return y

    def in_model_units(self, measurement: Measurement) -> Measurement:
        """The measurement as a function of latents: not linear, and without a reference (a latent has none)."""
        m = self._image.in_model_units(measurement)
        decoder = Decoder(self.decode, self.shape, self.image_shape, dtype=self.dtype, device=self.device)
        return replace(m, A=Composition(m.A, decoder), reference=None)

    def to_image(self, u: Tensor, measurement: Measurement) -> Tensor:
        """Latents to images in the measurement's physical units."""
        with torch.no_grad():
            return self._image.to_image(self.decode(u), measurement)

    def from_image(self, x: Tensor, measurement: Measurement) -> Tensor:
        """The latent of one image (or of a batch) in physical units; the inverse of :meth:`to_image` up to what
        the autoencoder loses."""
        u = self._image.from_image(x, measurement)
        with torch.no_grad():
            return self.encode(u) if u.ndim > len(self.image_shape) else self.encode(u[None])[0]

    def to(self, *, device: torch.device | str) -> LatentPrior:
        """The same prior on another device (its modules are moved, not copied)."""
        for module in self.modules:
            module.to(device)
        denoiser = self.denoiser.to(device=device)  # type: ignore[attr-defined]
        return LatentPrior(self.encoder, self.decoder, denoiser, image_shape=self.image_shape, info=self.info)

    def fast(self, **options: bool) -> LatentPrior:
        """The same prior with its denoiser run in another way (:meth:`NetworkPrior.fast`); encoder and decoder stay."""
        denoiser = self.denoiser.fast(**options)  # type: ignore[attr-defined]
        return LatentPrior(self.encoder, self.decoder, denoiser, image_shape=self.image_shape, info=self.info)

    def __repr__(self) -> str:
        sigmas = f"sigma=[{self.sigma_min:g}, {self.sigma_max:g}]"
        return f"LatentPrior({self.info.name!r}, shape={self.shape}, image_shape={self.image_shape}, {sigmas})"


def of_images(measurement: Measurement) -> Measurement:
    """What :meth:`LatentPrior.in_model_units` made, as a function of images in model units again."""
    A = measurement.A
    if not (isinstance(A, Composition) and isinstance(A.inner, Decoder)):
        raise TypeError(f"Expected a measurement of latents (from LatentPrior.in_model_units), got {A!r}.")
    return replace(measurement, A=A.outer)


def check_latent(algorithm: object, prior: Prior) -> None:
    """Raise TypeError unless the prior is a :class:`LatentPrior`."""
    if not isinstance(prior, LatentPrior):
        name = type(algorithm).__name__
        raise TypeError(
            f"{name} needs a LatentPrior (encoder, decoder, denoiser of latents), got {prior!r}. "
            f"Load a latent one, e.g. load_prior('ct-128-latent'), or use DPS or DAPS."
        )
