"""The prior as every algorithm sees it: a denoiser ``D(x, sigma) = E[x0 | x0 + sigma n = x]``.

Everything here is in VE units (the state is the clean image plus noise, never scaled). Networks trained in
other parametrisations are wrapped once, at load time, by a module below; an algorithm never asks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from invdiff.measurement import Measurement
from invdiff.priors.schedules import ContinuousVP, DiscreteSchedule, NoiseVariance

VALIDATION_SIGMAS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)  # levels of the validation curve, model units (range 2)


@dataclass(frozen=True, kw_only=True)
class PriorInfo:
    """What a user needs to know before trusting a prior.

    Attributes:
        name: e.g. "ct-128".
        value_range: relative image values (lo, hi) that correspond to -1 and +1 of the model.
        quantity: what 1.0 in relative units is, e.g. "attenuation of water".
        pixel_size: range of pixel sizes in mm seen in training, (lo, hi), or None.
        trained_on, licence: free text.
        sha256: digest of the weights file (filled in by the loader).
        details: training steps, hardware, validation curve ...

    Example:
        >>> from invdiff.priors import PriorInfo
        >>> PriorInfo(name="liver", value_range=(0.0, 2.0), quantity="the attenuation of water").value_range
        (0.0, 2.0)
    """

    name: str
    value_range: tuple[float, float] = (-1.0, 1.0)
    quantity: str = "model units"
    pixel_size: tuple[float, float] | None = None
    trained_on: str = ""
    licence: str = ""
    sha256: str = ""
    details: dict[str, Any] = field(default_factory=dict)


class Prior:
    """Base of all priors: shape, noise range, units, and the checked denoiser call.

    A subclass passes these to ``super().__init__`` and writes ``denoise``.

    Args:
        shape: one image, ``(channel, [z,] y, x)``, real (two channels for complex images).
        sigma_min, sigma_max: noise levels at which the denoiser may be called by default schedules.
        info: see :class:`PriorInfo`.
        dtype: real dtype of the images it works on.
        device: where it lives.

    Example:
        >>> from invdiff.priors import Prior, PriorInfo
        >>> class White(Prior):  # independent pixels of variance 1
        ...     def denoise(self, x, sigma):
        ...         return x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)
        >>> prior = White((1, 1, 2), sigma_min=0.01, sigma_max=10.0, info=PriorInfo(name="white"))
        >>> prior(torch.tensor([[[[2.0, 4.0]]]]), 1.0).tolist()
        [[[[1.0, 2.0]]]]
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        sigma_min: float,
        sigma_max: float,
        info: PriorInfo,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if not 0 < sigma_min < sigma_max < math.inf:
            raise ValueError(f"Need 0 < sigma_min < sigma_max, got {sigma_min=}, {sigma_max=}.")
        self.shape, self.sigma_min, self.sigma_max = tuple(shape), float(sigma_min), float(sigma_max)
        self.info, self.dtype, self.device = info, dtype, torch.device(device)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """``x`` (batch, \\*shape), ``sigma`` (batch,). Written by the subclass; call the prior itself."""
        raise TypeError(f"{type(self).__name__} does not define denoise(x, sigma).")

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Posterior mean of the clean image, in model units.

        Args:
            x: noisy images, (batch, \\*shape).
            sigma: noise level, positive; a number or one per image.
        """
        if tuple(x.shape[1:]) != self.shape or x.dtype != self.dtype:
            raise ValueError(
                f"The prior {self.info.name!r} works on (batch, {', '.join(map(str, self.shape))}) in {self.dtype}, "
                f"got {tuple(x.shape)} in {x.dtype}."
            )
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(x.shape[0])
        return self.denoise(x, sigma)

    def error(self, sigma: float) -> float:
        """How far the denoiser is from the truth at a noise level: root mean square over pixels, model units.

        From the validation curve in ``info.details["denoising_psnr"]`` (held-out images; ``invdiff train`` takes the
        mean of their PSNR), interpolated and continued in logarithms, never above ``sigma``.
        :meth:`NetworkPrior.validated` measures such a curve.

        Raises:
            ValueError: the prior has no such curve.
        """
        curve = self.info.details.get("denoising_psnr", ())
        if len(curve) < 2:
            raise ValueError(
                f"The prior {self.info.name!r} does not say how well it denoises: its info has no validation curve, "
                f"as 'invdiff train' writes it; prior.validated(images) measures one."
            )
        points = sorted((row["sigma"], 2 * 10 ** (-row["prior"] / 20)) for row in curve)  # PSNR of a range of 2
        x, y = np.log(points).T
        i = int(np.clip(np.searchsorted(x, math.log(sigma)), 1, len(x) - 1))
        slope = (y[i] - y[i - 1]) / (x[i] - x[i - 1])
        return min(sigma, math.exp(y[i] + slope * (math.log(sigma) - x[i])))

    @property
    def scale(self) -> float:
        """Relative image value per model unit."""
        lo, hi = self.info.value_range
        return (hi - lo) / 2

    @property
    def offset(self) -> float:
        """Relative image value of model value 0."""
        lo, hi = self.info.value_range
        return (hi + lo) / 2

    def in_model_units(self, measurement: Measurement) -> Measurement:
        """The measurement as a function of the model's images. Raises ValueError if the two do not fit."""
        A = measurement.A
        if A.in_complex:
            raise ValueError(
                f"The measurement's operator takes complex images {A.in_shape}; priors give real ones. Compose it: "
                f"A @ ViewAsComplex(shape) for a two-channel prior, A @ RealAsComplex(shape) for a magnitude prior."
            )
        if A.in_shape != self.shape:
            what, instead = "channels", ""
            if A.in_shape[0] == self.shape[0]:
                what, size = "size", ",".join(map(str, self.shape[1:]))
                instead = (
                    " A convolutional network works at other sizes: prior.sized(...). On the command line, --open "
                    f"'image_shape=[{size}]' sets the grid of a CT or ultrasound file, and crops or pads an image; "
                    "--open bin=2 first averages the image's pixels."
                )
            raise ValueError(
                f"Prior and measurement differ in image {what}: the prior {self.info.name!r} makes images of shape "
                f"{self.shape}, the operator takes {A.in_shape}. Choose another prior, or build the operator on a "
                f"grid of the prior's size.{instead}"
            )
        if A.dtype != self.dtype or A.device.type != self.device.type:
            raise ValueError(
                f"The prior is {self.dtype} on {self.device}, the measurement {A.dtype} on {A.device}. "
                f"Use measurement.to(dtype=..., device=...)."
            )
        s = measurement.image_scale
        return measurement.in_model_units(scale=s * self.scale, offset=s * self.offset)

    def to_image(self, u: Tensor, measurement: Measurement) -> Tensor:
        """Model images to the measurement's physical units."""
        return measurement.image_scale * (self.scale * u + self.offset)

    def from_image(self, x: Tensor, measurement: Measurement) -> Tensor:
        """The inverse of :meth:`to_image`."""
        return (x / measurement.image_scale - self.offset) / self.scale

    def __repr__(self) -> str:
        sigmas = f"sigma=[{self.sigma_min:g}, {self.sigma_max:g}]"
        return f"{type(self).__name__}({self.info.name!r}, shape={self.shape}, {sigmas})"


class NetworkPrior(Prior):
    """A prior around a torch module ``module(x, sigma) -> x0_hat`` in VE units, weights frozen.

    Args:
        module: e.g. :class:`EDMDenoiser` or :class:`DDPMDenoiser`.
        shape, sigma_min, sigma_max, info: see :class:`Prior`.
        bfloat16, compiled: see :meth:`fast`.

    Example:
        >>> from invdiff.priors import EDMDenoiser, NetworkPrior, PriorInfo
        >>> net = EDMDenoiser(lambda x, noise_label: 0 * x)  # in place of a trained network F(x, noise_label)
        >>> prior = NetworkPrior(net, (1, 8, 8), sigma_min=0.002, sigma_max=80.0, info=PriorInfo(name="mine"))
        >>> prior
        NetworkPrior('mine', shape=(1, 8, 8), sigma=[0.002, 80])
    """

    def __init__(
        self,
        module: nn.Module,
        shape: tuple[int, ...],
        *,
        sigma_min: float,
        sigma_max: float,
        info: PriorInfo,
        bfloat16: bool = False,
        compiled: bool = False,
    ) -> None:
        p = next(module.parameters(), torch.empty(0))  # a denoiser may be without parameters
        super().__init__(shape, sigma_min=sigma_min, sigma_max=sigma_max, info=info, dtype=p.dtype, device=p.device)
        self.module = module.eval().requires_grad_(False)
        self.bfloat16, self.compiled = bfloat16, compiled
        self._forward: Callable[[Tensor, Tensor], Tensor] = torch.compile(self.module) if compiled else self.module

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        if not self.bfloat16:
            return self._forward(x, sigma)
        with torch.autocast(self.device.type, torch.bfloat16):
            return self._forward(x, sigma).to(x.dtype)

    def to(self, *, device: torch.device | str) -> NetworkPrior:
        """The same prior on another device (the module is moved, not copied)."""
        return self._with(module=self.module.to(device))

    def fast(self, *, channels_last: bool = False, bfloat16: bool = False, compiled: bool = False) -> NetworkPrior:
        """The same prior with its module run in another way; the module itself is shared.

        ``benchmarks/denoiser_speed.py`` measures what each gains and loses.

        Args:
            channels_last: weights in the memory order (y, x, channel), faster for convolutions, and not undone by a
                later call without it. The shipped priors have it.
            bfloat16: matrix products and convolutions in bfloat16 (autocast). The preconditioning stays in float32,
                and so does the convolution that reads the image: the eight significant bits of bfloat16 would add
                noise of about 0.002 to it, which at low noise levels costs up to 0.08 dB.
            compiled: through ``torch.compile``: the first call at each shape takes about a minute.
        """
        if channels_last:
            module: Any = self.module  # torch's stubs differ in whether this overload of to() exists
            module.to(memory_format=torch.channels_last)
        if bfloat16:
            read_in_float32(self.module)
        return self._with(bfloat16=bfloat16, compiled=compiled)

    def validated(self, images: Tensor, *, sigmas: Sequence[float] = VALIDATION_SIGMAS, seed: int = 0) -> NetworkPrior:
        """The same prior with the validation curve of these images, which :meth:`error` reads.

        For published checkpoints, which come without one.

        Args:
            images: clean, not of its training, (n, channel, y, x), model units; a few dozen suffice.
            sigmas: levels of the curve, two or more.
            seed: of the noise.
        """
        if tuple(images.shape[1:]) != self.shape or len(sigmas) < 2:
            raise ValueError(
                f"Expected images (n, {', '.join(map(str, self.shape))}) and two levels or more, got "
                f"{tuple(images.shape)} and {len(sigmas)}."
            )
        generator, curve = torch.Generator().manual_seed(seed), []
        for sigma in sigmas:
            noise = torch.randn(images.shape, generator=generator, dtype=images.dtype).to(images)
            with torch.no_grad():
                pairs = zip(images, noise, strict=True)
                squared = torch.cat([(self(x[None] + sigma * n[None], sigma) - x).square() for x, n in pairs])
            noisy = 20 * math.log10(2 / sigma)
            curve.append({"sigma": float(sigma), "noisy": noisy, "prior": 10 * math.log10(4 / float(squared.mean()))})
        info = replace(self.info, details={**self.info.details, "denoising_psnr": curve})
        return self._with(info=info)

    def sized(self, *sides: int) -> NetworkPrior:
        """The same network for images of another size, ``sides``, at the pixel sizes of its training.

        For convolutional networks, such as the shipped ones; ``benchmarks/prior_evidence.py`` measures what it costs.
        A network with attention may run, but has not learned what lies so far apart: use
        :class:`~invdiff.priors.Tiled`.

        Raises:
            ValueError: the network cannot take that size.
        """
        shape = (self.shape[0], *sides)
        try:
            with torch.no_grad():
                x = torch.zeros(1, *shape, dtype=self.dtype, device=self.device)
                out = self.module(x, torch.ones(1).to(x))
            if tuple(out.shape[1:]) != shape:
                raise RuntimeError(f"it gives {tuple(out.shape[1:])}")
        except RuntimeError as error:
            raise ValueError(
                f"The network of {self.info.name!r} does not work on images {shape}: {error}. Sides that are multiples "
                f"of 16 suit most."
            ) from None
        return self._with(shape=shape)

    def _with(self, **changes: Any) -> NetworkPrior:
        """The same but for these arguments of the constructor; the module is shared."""
        names = ("module", "shape", "sigma_min", "sigma_max", "info", "bfloat16", "compiled")
        return NetworkPrior(**{**{name: getattr(self, name) for name in names}, **changes})


def read_in_float32(module: nn.Module) -> None:
    """Take the first convolution of a network out of autocast; without autocast nothing changes."""
    first = next((m for m in module.modules() if getattr(getattr(m, "weight", None), "ndim", 0) == 4), None)
    if first is not None and "forward" not in vars(first):
        first.forward = partial(_without_autocast, first.forward)


def _without_autocast(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return f(x)


class EDMDenoiser(nn.Module):
    """Preconditioned network of Karras et al. 2022 (arXiv 2206.00364), table 1, column "Ours".

    ``D(x, s) = c_skip x + c_out F(c_in x, c_noise)`` with ``c_skip = sd^2/(s^2+sd^2)``,
    ``c_out = s sd/sqrt(s^2+sd^2)``, ``c_in = 1/sqrt(s^2+sd^2)``, ``c_noise = ln(s)/4``.

    Args:
        net: ``F(x, noise_label)``.
        sigma_data: standard deviation of the clean images, sd.

    Example:
        >>> from invdiff.priors import EDMDenoiser
        >>> D = EDMDenoiser(lambda x, noise_label: 0 * x, sigma_data=0.5)  # a network that says nothing
        >>> D(torch.ones(1, 1, 1, 2), torch.tensor([0.5])).tolist()  # c_skip x
        [[[[0.5, 0.5]]]]
    """

    def __init__(self, net: nn.Module, sigma_data: float = 0.5) -> None:
        super().__init__()
        self.net, self.sigma_data = net, sigma_data

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        s = sigma.reshape(-1, *[1] * (x.ndim - 1))
        total = s.square() + self.sigma_data**2
        c_skip, c_out, c_in = self.sigma_data**2 / total, s * self.sigma_data / total.sqrt(), total.rsqrt()
        return c_skip * x + c_out * self.net(c_in * x, sigma.log() / 4)


# What a variance-preserving network predicts: (c_skip, c_out) of D(u, s) = c_skip u + c_out F(u / sqrt(1 + s^2), t(s)).
PREDICTIONS: dict[str, Callable[[Tensor], tuple[Tensor | float, Tensor | float]]] = {
    "epsilon": lambda s: (1.0, -s),  # the noise (Ho et al. 2020)
    "v_prediction": lambda s: (1 / (1 + s.square()), -s * (1 + s.square()).rsqrt()),  # Salimans and Ho 2022, app. D
    "sample": lambda s: (0.0, 1.0),  # the clean image
}


class DDPMDenoiser(nn.Module):
    """A variance-preserving network as a VE denoiser.

    ``D(u, s) = c_skip u + c_out F(u / sqrt(1 + s^2), t(s))`` with the coefficients of :data:`PREDICTIONS`, for an
    eps-predicting network ``u - s eps``; t(s) from the checkpoint's own betas (:class:`DiscreteSchedule`), passed
    to the network as a float.

    Args:
        net: ``F(v, t)``; output channels beyond those of ``v`` (a learned variance) are dropped.
        betas: the schedule the network was trained with.
        prediction: what it was trained to predict, a key of :data:`PREDICTIONS`.

    Example:
        >>> from invdiff.priors import DDPMDenoiser, linear_betas
        >>> def eps(v, t):  # at s = 3, for white images of variance 1: E[noise | v] = s / sqrt(1 + s^2) v
        ...     return 3 / 10**0.5 * v
        >>> D = DDPMDenoiser(eps, linear_betas())
        >>> round(D(torch.ones(1, 1, 1, 1), torch.tensor([3.0])).item(), 4)  # u / (1 + s^2)
        0.1
    """

    schedule: DiscreteSchedule | ContinuousVP | NoiseVariance

    def __init__(self, net: nn.Module, betas: Tensor | Sequence[float], prediction: str = "epsilon") -> None:
        super().__init__()
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}, got {prediction!r}.")
        self.net, self.schedule, self.prediction = net, DiscreteSchedule(betas), prediction

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        s = sigma.reshape(-1, *[1] * (x.ndim - 1))
        t = self.schedule.index(sigma.cpu()).to(x)
        c_skip, c_out = PREDICTIONS[self.prediction](s)
        return c_skip * x + c_out * self.net(x * (1 + s.square()).rsqrt(), t)[:, : x.shape[1]]


class VPDenoiser(DDPMDenoiser):
    """An eps-predicting network trained on the continuous variance-preserving process (EDM's ``VPPrecond``).

    Args:
        net: ``eps(v, t)``.
        beta_d, beta_min, steps: see :class:`ContinuousVP`.

    Example:
        >>> from invdiff.priors import VPDenoiser
        >>> D = VPDenoiser(lambda v, t: v)
        >>> round(D(torch.ones(1, 1, 1, 1), torch.tensor([0.75])).item(), 4)  # u - s v = 1 - 0.75 / 1.25
        0.4
    """

    def __init__(self, net: nn.Module, beta_d: float = 19.9, beta_min: float = 0.1, steps: int = 999) -> None:
        nn.Module.__init__(self)
        self.net, self.schedule, self.prediction = net, ContinuousVP(beta_d, beta_min, steps), "epsilon"


class VarianceDenoiser(DDPMDenoiser):
    """An eps-predicting network that is told the variance of the noise in its input, ``s^2 / (1 + s^2)``.

    Args:
        net: ``eps(v, variance)``.
    """

    def __init__(self, net: nn.Module) -> None:
        nn.Module.__init__(self)
        self.net, self.schedule, self.prediction = net, NoiseVariance(), "epsilon"


class VEDenoiser(nn.Module):
    """A network of score_sde or of EDM's ``VEPrecond``: ``D(x, s) = x + s F(x, ln(s / 2))``.

    The factor 1/2 belongs to data in [-1, 1]: a network trained on data in [0, 1] saw the level s / 2 there
    (Karras et al. 2022, table 1).

    Args:
        net: ``F(x, noise_label)``, the score times sigma.

    Example:
        >>> from invdiff.priors import VEDenoiser
        >>> D = VEDenoiser(lambda x, noise_label: -x / 2)
        >>> D(torch.ones(1, 1, 1, 1), torch.tensor([0.5])).item()  # x + s F
        0.75
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        s = sigma.reshape(-1, *[1] * (x.ndim - 1))
        return x + s * self.net(x, (sigma / 2).log())


class ScoreDenoiser(nn.Module):
    """A network that gives the score itself: ``D(x, s) = x + s^2 F(x, s)`` (Tweedie).

    Args:
        net: ``F(x, sigma)``, the gradient of the log-density of noisy images.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        s = sigma.reshape(-1, *[1] * (x.ndim - 1))
        return x + s.square() * self.net(x, sigma)


class Rescaled(nn.Module):
    """A denoiser of data in [lo, hi] as one of data in [-1, 1].

    Args:
        denoiser: ``D(v, sigma)`` in the data's own values.
        lo, hi: those that become -1 and +1.
    """

    def __init__(self, denoiser: nn.Module, lo: float, hi: float) -> None:
        super().__init__()
        if not lo < hi:
            raise ValueError(f"Need lo < hi, got {lo} and {hi}.")
        self.denoiser, self.scale, self.offset = denoiser, (hi - lo) / 2, (hi + lo) / 2

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return (self.denoiser(self.scale * x + self.offset, self.scale * sigma) - self.offset) / self.scale


class Counted:
    """A prior that counts denoiser evaluations: one per image, forwards only.

    Example:
        >>> from invdiff.priors import Counted, GaussianPrior, StationaryCovariance
        >>> D = Counted(GaussianPrior(torch.zeros(1, 2, 2), StationaryCovariance(torch.ones(1, 2, 2))))
        >>> _ = D(torch.zeros(5, 1, 2, 2), 1.0)
        >>> D.n
        5
    """

    def __init__(self, prior: Prior) -> None:
        self.prior, self.n = prior, 0

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        self.n += x.shape[0]
        return self.prior(x, sigma)
