"""The configuration of a training run, as its TOML file states it.

Everything in it is checked when it is read, before any work: names, kinds and ranges by the annotations of the classes
that take the values, and the networks by applying them to an image of zeros.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import torch

from invdiff.datasets.npy_toml import read_toml
from invdiff.datasets.slices import MODALITIES
from invdiff.priors.augment import Augmentation
from invdiff.priors.autoencoder import Autoencoder
from invdiff.priors.denoiser import EDMDenoiser
from invdiff.priors.networks import UNet

MAY_BE_0 = {"n_blocks", "seed", "rotation", "gain", "gamma", "bias", "phase", "noise", "l1"}
AT_MOST_1 = {"remap", "ema"}  # numbers of a configuration; those in neither set, but for p_mean, are positive


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """The table ``[autoencoder]``: the first stage of a latent prior.

    Attributes:
        latent_channels, widths, n_blocks: see :class:`~invdiff.priors.autoencoder.Autoencoder`.
        n_steps, batch_size, learning_rate: of its training, as for the denoiser.
        noise: standard deviation added to the latents, which have 0.5, in training.
        l1: weight of the mean absolute error next to the mean squared error.
    """

    latent_channels: int = 4
    widths: tuple[int, ...] = (32, 96)
    n_blocks: int = 2
    n_steps: int = 2000
    batch_size: int = 4
    learning_rate: float = 1e-3
    noise: float = 0.01
    l1: float = 0.1

    def network(self) -> dict[str, Any]:
        """Constructor arguments of the autoencoder."""
        return {"latent_channels": self.latent_channels, "widths": self.widths, "n_blocks": self.n_blocks}


@dataclass(frozen=True, kw_only=True)
class PhantomVolume:
    """A table ``[[phantoms]]``: images that are made, next to or in place of those of files.

    Attributes:
        make: ``package.module:Class`` of a dataset of images (1, y, x) in the modality's stored units, constructed
            with ``n`` and ``seed`` and knowing its ``pixel_size``, such as those of :mod:`invdiff.datasets.phantoms`.
        n, seed: how many, and of which random streams.
        split: "train" or "validation".
    """

    make: str
    n: int
    seed: int = 0
    split: str = "train"

    @property
    def name(self) -> str:
        return f"{self.make.partition(':')[2]} {self.seed}"

    def images(self) -> Any:
        """The dataset. Raises ValueError where there is no such class."""
        module, _, name = self.make.partition(":")
        try:
            return getattr(import_module(module), name)(self.n, seed=self.seed)
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"[[phantoms]] make = {self.make!r}: expected package.module:Class ({error}).") from None


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One prior, from data to weights; the fields of a training TOML file.

    Attributes:
        name: of the prior and its file.
        modality: a key of ``invdiff.datasets.slices.MODALITIES``.
        train, validation: volume files, relative to the data folder.
        phantoms: tables of :class:`PhantomVolume`.
        trained_on, licence, quantity: for the model card.
        augmentation: table of :class:`~invdiff.priors.augment.Augmentation`.
        network: table of constructor arguments of :class:`~invdiff.priors.networks.UNet`.
        autoencoder: table of :class:`AutoencoderConfig`; None: a prior of pixels.
        n_steps, batch_size: length of the run and images per step.
        learning_rate: of Adam, warmed up over 100 steps, cosine decay to 2 % of it.
        p_mean, p_std: of ln sigma in training.
        sigma_min, sigma_max: stated range of the prior.
        ema: largest decay of the weight average per step.
        seed: of everything random.
    """

    name: str
    modality: str
    train: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    phantoms: tuple[PhantomVolume, ...] = ()
    trained_on: str = ""
    licence: str = ""
    quantity: str = "relative value"
    augmentation: Augmentation = field(default_factory=Augmentation)
    network: dict[str, Any] = field(default_factory=dict)
    autoencoder: AutoencoderConfig | None = None
    n_steps: int = 2000
    batch_size: int = 16
    learning_rate: float = 1e-3
    p_mean: float = -1.2
    p_std: float = 1.4
    sigma_min: float = 0.005
    sigma_max: float = 100.0
    ema: float = 0.999
    seed: int = 0

    @classmethod
    def read(cls, path: Path) -> TrainConfig:
        """From a TOML file. Raises ValueError naming an entry that is unknown, missing, or of a wrong kind or range."""
        table = read_toml(path)
        network = _arguments(UNet, table.pop("network", {}), f"{path.name} [network]")
        config = cls(network=network, **_arguments(cls, table, path.name))
        if not re.fullmatch(r"[\w-][\w.-]*", config.name):
            raise ValueError(
                f"{path.name}: name becomes a file name: expected letters, digits, '_', '-' and, not first, '.', got "
                f"{config.name!r}."
            )
        augmentation, stage, phantoms = config.augmentation, config.autoencoder, config.phantoms
        if augmentation.pixel_size[0] > augmentation.pixel_size[1]:
            raise ValueError(
                f"{path.name} [augmentation]: expected pixel_size = [smallest, largest], got "
                f"{list(augmentation.pixel_size)}."
            )
        if config.sigma_min >= config.sigma_max:
            raise ValueError(
                f"{path.name}: expected sigma_min below sigma_max, got {config.sigma_min} and {config.sigma_max}."
            )
        if config.modality not in MODALITIES:
            raise ValueError(
                f"{path.name}: unknown modality {config.modality!r}; it must be one of {list(MODALITIES)}."
            )
        splits = [p.split for p in phantoms] + ["train"] * len(config.train) + ["validation"] * len(config.validation)
        if set(splits) != {"train", "validation"}:
            raise ValueError(
                f"{path.name}: expected images for training and for validation, got {sorted(set(splits))}."
            )
        channels = config.network.get("channels", 1)
        expected = stage.latent_channels if stage else augmentation.channels
        if channels != expected:
            raise ValueError(
                f"{path.name}: the denoiser must have the channels of what it denoises: expected "
                f"[network] channels = {expected}, got {channels}."
            )
        try:
            config.try_networks()
        except (RuntimeError, ValueError, IndexError, ArithmeticError) as error:
            raise ValueError(
                f"{path.name}: the networks do not take images of {augmentation.size} x {augmentation.size} pixels "
                f"({' '.join(str(error).split())}). Give one or more widths, multiples of 8, and a size (with an "
                f"autoencoder: of the latents) that unshuffle * 2^(number of widths - 1) divides."
            ) from None
        return config

    def try_networks(self) -> None:
        """Build the networks and apply them to an image of zeros; an error is what torch makes of it."""
        x = torch.zeros(1, self.augmentation.channels, self.augmentation.size, self.augmentation.size)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            if self.autoencoder is not None:
                autoencoder = Autoencoder(**self.autoencoder.network())
                x = autoencoder.encode(x)
                autoencoder.decode(x)
            EDMDenoiser(UNet(**self.network))(x, torch.ones(1))

    def of_slices(self) -> dict[str, str]:
        """Digests of what a slice file is made from, by name."""
        phantoms = [dataclasses.asdict(p) for p in self.phantoms]
        return _digests(
            {"modality": self.modality, "train": self.train, "validation": self.validation, "phantoms": phantoms,
             "largest pixel_size": self.augmentation.pixel_size[1]}
        )  # fmt: skip

    def of_autoencoder(self) -> dict[str, str]:
        """Digests of what the training of an autoencoder may not change half-way, by name."""
        stage = self.autoencoder
        first = None if stage is None else {**stage.network(), "noise": stage.noise, "l1": stage.l1}
        return _digests({**dataclasses.asdict(self.augmentation), "[autoencoder]": first})

    def of_denoiser(self) -> dict[str, str]:
        """The same for the denoiser."""
        network = {k: p.default for k, p in inspect.signature(UNet).parameters.items()} | self.network
        return {**self.of_autoencoder(), **_digests({**network, "p_mean": self.p_mean, "p_std": self.p_std})}

    @property
    def total_steps(self) -> int:
        """Of all stages."""
        return self.n_steps + (self.autoencoder.n_steps if self.autoencoder else 0)


def _arguments(of: Callable[..., Any], table: Any, where: str) -> dict[str, Any]:
    """A TOML table as arguments of the class ``of``, by its annotations. Raises ValueError."""
    if not isinstance(table, dict):
        raise ValueError(f"{where}: expected a table, got {table!r}.")
    known = inspect.signature(of).parameters
    if unknown := sorted(set(table) - set(known)):
        raise ValueError(f"{where}: no parameter {', '.join(map(repr, unknown))}; it has {', '.join(known)}.")
    if missing := [n for n, p in known.items() if n not in table and p.default is p.empty]:
        raise ValueError(f"{where}: missing {', '.join(missing)}.")
    kinds = get_type_hints(of.__init__)
    return {name: _value(value, kinds[name], name, where) for name, value in table.items()}


def _value(value: Any, kind: Any, name: str, where: str) -> Any:
    """One entry of a table, of the annotated kind. Raises ValueError."""
    if get_origin(kind) is UnionType:  # with None, which TOML cannot say
        kind = get_args(kind)[0]
    if dataclasses.is_dataclass(kind):
        return kind(**_arguments(kind, value, f"{where} [{name}]"))  # type: ignore[arg-type, operator]
    if get_origin(kind) in (tuple, Sequence):
        item, pair = get_args(kind)[0], get_args(kind)[1:] == (float,)
        if not isinstance(value, list) or (pair and len(value) != 2):
            raise ValueError(f"{where}: {name} must be a list{' of two numbers' * pair}, got {value!r}.")
        return tuple(_value(v, item, f"[{name}]" if dataclasses.is_dataclass(item) else name, where) for v in value)
    expected = {str: "text", int: "an integer", float: "a number"}[kind]
    allowed, words = _range(name) if kind is not str else (lambda text: True, "")
    right = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
    if not right or not allowed(value):
        raise ValueError(f"{where}: {name} must be {expected}{words}, got {value!r}.")
    return kind(value)


def _range(name: str) -> tuple[Callable[[float], bool], str]:
    """What a number of this name may be: as a function and in words."""
    if name == "p_mean":
        return math.isfinite, ""
    if name in AT_MOST_1:
        return lambda v: 0 <= v <= 1, " from 0 to 1"
    if name in MAY_BE_0:
        return lambda v: 0 <= v < math.inf, ", 0 or more"
    return lambda v: 0 < v < math.inf, " above 0"


def _digests(settings: dict[str, Any]) -> dict[str, str]:
    return {k: hashlib.sha256(json.dumps(v).encode()).hexdigest()[:16] for k, v in settings.items()}
