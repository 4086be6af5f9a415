"""Reading and writing priors: every known file becomes a :class:`Checkpoint`, and a checkpoint becomes a prior.

A format is a module of this folder with two functions, entered in :func:`formats`::

    matches(file: File) -> bool                               looks at names only, never raises
    read(file: File, *, <options>) -> Checkpoint              raises ValueError on a bad file

Our own format is one safetensors file. Its header holds, as JSON under the key ``invdiff``: the network's class and
constructor arguments, the parametrisation, image shape, noise range and the
:class:`~invdiff.priors.denoiser.PriorInfo`. A latent prior keeps both networks in the file; its header then has the
key ``autoencoder``. The networks of this package are stored in fp16 and loaded in fp32.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import math
import pickle
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from invdiff.priors.adm import ADMUNet
from invdiff.priors.autoencoder import Autoencoder
from invdiff.priors.denoiser import (
    DDPMDenoiser,
    EDMDenoiser,
    NetworkPrior,
    PriorInfo,
    Rescaled,
    ScoreDenoiser,
    VarianceDenoiser,
    VEDenoiser,
    VPDenoiser,
)
from invdiff.priors.edm import DhariwalUNet, SongUNet
from invdiff.priors.hub import SCHEME, fetch
from invdiff.priors.latent import LatentPrior
from invdiff.priors.networks import UNet
from invdiff.priors.zea import ZeaUNet

ZOO = Path(__file__).parent / "zoo"
_AUTOENCODER = "autoencoder."
_OLD, _NEW = "invdiff-prior-1", "invdiff-prior-2"  # the first: UNet and EDMDenoiser only, data in [-1, 1]
_FREQUENCIES = ("map_noise.freqs", "time_proj.weight")  # of Fourier embeddings: SongUNet's, and UNet2DModel's

# Classes that a checkpoint may name; those of diffusers are in loaders_diffusers.
NETWORKS: dict[str, type[nn.Module]] = {
    "UNet": UNet, "ADMUNet": ADMUNet, "SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet, "ZeaUNet": ZeaUNet,
    "Autoencoder": Autoencoder,
}  # fmt: skip
DENOISERS: dict[str, type[nn.Module]] = {
    "EDMDenoiser": EDMDenoiser, "DDPMDenoiser": DDPMDenoiser, "VPDenoiser": VPDenoiser, "VEDenoiser": VEDenoiser,
    "ScoreDenoiser": ScoreDenoiser, "VarianceDenoiser": VarianceDenoiser,
}  # fmt: skip


def shipped_priors() -> dict[str, Path]:
    """Name to file of the priors that come with the package.

    Example:
        >>> from invdiff.priors import shipped_priors
        >>> {"ct-128", "brain-mri-128"} <= set(shipped_priors())
        True
    """
    return {path.stem: path for path in sorted(ZOO.glob("*.safetensors"))}


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network as plain data.

    Attributes:
        name: a key of :data:`NETWORKS`, or a class of diffusers.
        arguments: of its constructor, as JSON can hold them.
        weights: its state dict.
        prefix: of the weights' names in the file, which messages repeat.
    """

    name: str
    arguments: dict[str, Any]
    weights: dict[str, Tensor]
    prefix: str = ""

    def build(self, source: str) -> nn.Module:
        """The module with its weights in fp32. Raises ValueError unless they fit key for key, shape for shape.

        No weight is allocated before that is known. (Constants of the networks are made on the processor: arithmetic on
        tensors without content costs seconds of imports.)
        """
        make, size = self._constructor(), sum(v.numel() for v in self.weights.values())
        listed = [n for v in self.arguments.values() for n in (v if isinstance(v, tuple | list) else (v,))]
        if self.name in NETWORKS and any(isinstance(n, int) and n > size for n in listed):
            raise ValueError(f"{source} does not fit its network: {size} weights are too few for {self.arguments}.")
        with torch.device("meta"), _explained(f"{source}: its {self.name} cannot be built from what the file says"):
            own = make(**self.arguments).state_dict()
        if set(own) != set(self.weights):
            missing, unexpected = (
                [self.prefix + k for k in sorted(a - b)][:3]
                for a, b in ((set(own), set(self.weights)), (set(self.weights), set(own)))
            )
            raise ValueError(f"{source} does not fit its network: missing {missing}, unexpected {unexpected}.")
        if wrong := [k for k, v in own.items() if v.shape != self.weights[k].shape]:
            k = wrong[0]
            raise ValueError(
                f"{source} does not fit its network in {len(wrong)} shapes: {self.prefix + k!r} should be "
                f"{tuple(own[k].shape)}, it is {tuple(self.weights[k].shape)}."
            )
        module = make(**self.arguments)
        module.load_state_dict({k: v.float() for k, v in self.weights.items()})
        return module

    @property
    def channels(self) -> int | None:
        """Of the images it takes; None where only its class knows."""
        known = self.arguments
        if self.name in NETWORKS:
            known = {k: p.default for k, p in inspect.signature(NETWORKS[self.name]).parameters.items()} | known
        return known.get("in_channels", known.get("channels"))

    def _constructor(self) -> Callable[..., nn.Module]:
        if self.name in NETWORKS:
            return NETWORKS[self.name]
        from invdiff.priors.loaders_diffusers import constructor

        return constructor(self.name)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn whatever a constructor raises at arguments from a file into a ValueError of one line."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what} ({type(error).__name__}: {' '.join(str(error).split())[:200]}).") from error


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a prior's file holds, as plain data: the one thing that every format is read into.

    Attributes:
        network: of the images, or of the latents.
        denoiser: ``{"class": a key of DENOISERS, its arguments besides the network, ...}``.
        shape: of the images or latents, (channel, y, x).
        sigma_min, sigma_max: in model units, in which images lie in [-1, 1].
        data_range: values (lo, hi) of the network's images that are -1 and +1 in model units.
        autoencoder: of a latent prior.
    """

    network: Network
    denoiser: dict[str, Any]
    shape: tuple[int, ...]
    sigma_min: float
    sigma_max: float
    info: PriorInfo
    data_range: tuple[float, float] = (-1.0, 1.0)
    autoencoder: Network | None = None

    def __post_init__(self) -> None:
        """Raises ValueError, saying which of the numbers makes no sense."""

        def require(name: str, value: Any, expected: str, holds: bool) -> None:
            if not holds:
                raise ValueError(f"{self.info.name}: {name} must be {expected}, got {value!r}.")

        sides = len(self.shape) in (3, 4) and all(isinstance(n, int) and n > 0 for n in self.shape)
        require("shape", self.shape, "(channel, [z,] y, x), whole numbers above 0", sides)
        for name in ("sigma_min", "sigma_max"):
            value = getattr(self, name)
            require(name, value, "a number above 0", _numbers([value]) and value > 0)
        if "sigma_data" in self.denoiser:
            value = self.denoiser["sigma_data"]
            require("sigma_data", value, "a number above 0", _numbers([value]) and value > 0)
        for name, pair in (("data_range", self.data_range), ("value_range", self.info.value_range)):
            require(name, pair, "two numbers, (lo, hi) with lo < hi", _numbers(pair, 2) and pair[0] < pair[1])
        if (mm := self.info.pixel_size) is not None:
            require("pixel_size", mm, "two numbers above 0, (lo, hi)", _numbers(mm, 2) and 0 < mm[0] <= mm[1])

    def prior(self, *, device: torch.device | str = "cpu") -> NetworkPrior | LatentPrior:
        """The prior. Raises ValueError unless the weights fit the networks key for key, and the shape the network."""
        net = _placed(self.network.build(self.info.name), device)
        if self.network.channels not in (None, self.shape[0]):
            raise ValueError(
                f"{self.info.name}: the images have the shape {self.shape}, but its network takes "
                f"{self.network.channels} channel(s)."
            )
        arguments = {k: v for k, v in self.denoiser.items() if k != "class"}
        if self.denoiser["class"] not in DENOISERS:
            raise ValueError(
                f"{self.info.name}: unknown denoiser {self.denoiser['class']!r}; known: {list(DENOISERS)}."
            )
        with _explained(f"{self.info.name}: its {self.denoiser['class']} cannot be built from what the file says"):
            module = DENOISERS[self.denoiser["class"]](net, **arguments)
        if tuple(self.data_range) != (-1.0, 1.0):
            module = Rescaled(module, *self.data_range)
        prior = NetworkPrior(
            module, self.shape, sigma_min=self.sigma_min, sigma_max=self.sigma_max, info=self.info
        )  # fmt: skip
        if self.autoencoder is None:
            return prior
        if self.autoencoder.name not in ("Autoencoder", "AutoencoderKL", "VQModel"):
            raise ValueError(f"{self.info.name}: a {self.autoencoder.name} is no autoencoder.")
        autoencoder = _placed(self.autoencoder.build(self.info.name), device)
        if not isinstance(autoencoder, Autoencoder):
            from invdiff.priors.loaders_diffusers import DiffusersAutoencoder

            autoencoder = DiffusersAutoencoder(autoencoder)
        return LatentPrior.from_autoencoder(autoencoder, prior)

    def save(self, path: Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write our format, atomically, with weights in ``dtype`` (float16 or float32).

        The frequencies of a Fourier embedding stay in float32: they are multiplied by the noise level and 2 pi, so
        that what rounding takes from them is no longer small.
        """
        from invdiff.storage import atomic_path, write_tensors

        if path.suffix != ".safetensors":
            raise ValueError(f"A prior file ends in .safetensors, got {path.name!r}.")
        if dtype not in (torch.float16, torch.float32):
            raise ValueError(f"Weights are written as float16 or float32, got {dtype}.")
        header = {
            "network": {"class": self.network.name, "arguments": self.network.arguments},
            "denoiser": self.denoiser,
            "shape": self.shape,
            "sigma_min": self.sigma_min,
            "sigma_max": self.sigma_max,
            "data_range": self.data_range,
            "info": {k: v for k, v in dataclasses.asdict(self.info).items() if k != "sha256"},
        }
        tensors, version = dict(self.network.weights), _NEW
        if self.autoencoder is not None:
            header["autoencoder"] = {"class": self.autoencoder.name, "arguments": self.autoencoder.arguments}
            tensors |= {_AUTOENCODER + k: v for k, v in self.autoencoder.weights.items()}
        plain = self.network.name == "UNet" and self.denoiser["class"] == "EDMDenoiser"
        if plain and tuple(self.data_range) == (-1.0, 1.0):
            version = _OLD
            header |= {"network": self.network.arguments, "sigma_data": self.denoiser["sigma_data"]}
            del header["denoiser"], header["data_range"]
            if self.autoencoder is not None:
                header["autoencoder"] = self.autoencoder.arguments
        weights = {
            k: v.detach().to("cpu", torch.float32 if k in _FREQUENCIES else dtype).contiguous().clone()
            for k, v in tensors.items()
        }
        if overflow := [k for k, v in weights.items() if not bool(v.isfinite().all())]:
            raise ValueError(f"{overflow[0]!r} is not finite in {dtype}; write float32 instead.")
        with atomic_path(path) as tmp:
            write_tensors(tmp, weights, {"format": version, "invdiff": json.dumps(header)})


def _numbers(values: Any, n: int = 1) -> bool:
    """Whether these are n finite numbers."""
    return (
        isinstance(values, tuple | list)
        and len(values) == n
        and all(isinstance(v, int | float) and math.isfinite(v) for v in values)
    )


def _placed(module: nn.Module, device: torch.device | str) -> nn.Module:
    # channels_last is the faster layout, but on the CPU torch's GroupNorm is about ten times less accurate in it:
    # published networks stay as they were trained (NetworkPrior.fast changes that)
    own = isinstance(module, UNet | Autoencoder)
    return module.to(device=device, memory_format=torch.channels_last if own else torch.preserve_format)  # type: ignore[call-overload]


def save_prior(
    path: Path,
    denoiser: EDMDenoiser,
    network: dict[str, Any],
    *,
    shape: tuple[int, ...],
    sigma_min: float,
    sigma_max: float,
    info: PriorInfo,
    autoencoder: Autoencoder | None = None,
) -> None:
    """Write a trained prior in fp16, atomically.

    Args:
        path: ends in ``.safetensors``.
        network: constructor arguments of :class:`~invdiff.priors.networks.UNet`.
        shape, sigma_min, sigma_max, info: see :class:`~invdiff.priors.denoiser.Prior`.
        autoencoder: of a latent prior; ``shape`` is that of its latents.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from invdiff.priors import EDMDenoiser, PriorInfo, load_prior, save_prior
        >>> from invdiff.priors.networks import UNet
        >>> network = {"widths": (8,), "n_blocks": 1}
        >>> net = EDMDenoiser(UNet(**network))  # not trained here
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "mine.safetensors")
        ...     save_prior(
        ...         file, net, network, shape=(1, 8, 8), sigma_min=0.01, sigma_max=80.0, info=PriorInfo(name="mine")
        ...     )
        ...     load_prior(file)
        NetworkPrior('mine', shape=(1, 8, 8), sigma=[0.01, 80])
    """
    part = None
    if autoencoder is not None:
        part = Network(name="Autoencoder", arguments=autoencoder.arguments, weights=autoencoder.state_dict())
    Checkpoint(
        network=Network(name="UNet", arguments=network, weights=denoiser.net.state_dict()),
        denoiser={"class": "EDMDenoiser", "sigma_data": denoiser.sigma_data},
        shape=shape, sigma_min=sigma_min, sigma_max=sigma_max, info=info, autoencoder=part,
    ).save(path, dtype=torch.float16)  # fmt: skip


@dataclass(frozen=True)
class File:
    """What a format recognises a file by.

    Attributes:
        path: of the file or folder.
        content: of a safetensors or torch file, what it holds: names to tensors, or nested dicts of them. Empty for
            a folder.
        metadata: of a safetensors file.
    """

    path: Path
    content: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, *, trusted: bool = False) -> File:
        """Look at ``path``; nothing in it is executed.

        Args:
            trusted: read pickles of arbitrary objects too, in another process (:mod:`invdiff.priors.pickles`).

        Raises:
            FileNotFoundError; ValueError: truncated, a pickle of arbitrary objects, or no weights at all.
        """
        if path.is_dir():
            return cls(path)
        if not path.is_file():
            raise FileNotFoundError(f"No such file: {path}")
        with path.open("rb") as f:
            start = f.read(16)
        if start[8:9] == b"{" or path.suffix == ".safetensors":
            tensors, metadata = read_safetensors(path)
            return cls(path, tensors, metadata)
        if path.suffix == ".npz":
            return cls(path, read_numpy(path))
        if start.startswith((b"PK\x03\x04", b"\x80")):
            return cls(path, _unpickled(path) if trusted else read_torch(path))
        raise ValueError(
            f"A prior is a .safetensors file, a torch file, an .npz file or a folder of diffusers; {path.name} is none."
        )

    def sha256(self) -> str:
        """Of the file."""
        with self.path.open("rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(f)


def _digest(f: Any) -> str:  # Python 3.10
    h = hashlib.sha256()
    while block := f.read(1 << 20):
        h.update(block)
    return h.hexdigest()


def _unpickled(path: Path) -> dict[str, Any]:
    from invdiff.priors.pickles import unpickle

    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain.pt"
        unpickle(path, plain)
        return torch.load(plain, map_location="cpu", weights_only=True)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata. Raises ValueError on a damaged file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as f:
            return {key: f.get_tensor(key) for key in f.keys()}, f.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path.name} is not a readable safetensors file; it may be truncated ({error}).") from None


def read_torch(path: Path) -> dict[str, Any]:
    """A dict written by ``torch.save``, without executing anything.

    Raises:
        ValueError: truncated, or it holds more than tensors, numbers, text and containers of them.
    """
    zipped = zipfile.is_zipfile(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch remarks on the pickle's protocol before it refuses
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True if zipped else None)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path.name} holds Python objects, not only weights. Pickles are not loaded, since they can run "
            f"any code. Convert it: invdiff prior convert {path.name} {path.stem}.safetensors --i-trust-this-file"
        ) from None
    except (RuntimeError, EOFError, OSError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path.name} is not a readable torch file; it may be truncated ({first}).") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds a {type(content).__name__}, expected a dict of weights.")
    return content


def read_numpy(path: Path) -> dict[str, Tensor]:
    """The arrays of an .npz file, without objects. Raises ValueError on a damaged file."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {k: torch.from_numpy(np.array(arrays[k])) for k in arrays.files}
    except (ValueError, OSError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path.name} is not a readable file of numpy arrays ({error}).") from None


def tensors(content: dict[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """The tensors whose names start with ``prefix``, without it."""
    return {
        k.removeprefix(prefix): v for k, v in content.items() if isinstance(v, Tensor) and str(k).startswith(prefix)
    }


def formats() -> dict[str, ModuleType]:
    """Name to module of every known format, the most specific first."""
    from invdiff.priors import (
        loaders_diffusers,
        loaders_edm,
        loaders_guided,
        loaders_ldm,
        loaders_own,
        loaders_score_sde,
        loaders_zea,
    )

    return {
        "invdiff prior": loaders_own,
        "diffusers folder": loaders_diffusers,
        "guided-diffusion": loaders_guided,
        "score_sde": loaders_score_sde,
        "CompVis latent diffusion": loaders_ldm,
        "EDM, InverseBench": loaders_edm,
        "zea, exported to numpy": loaders_zea,
    }


def read_checkpoint(name_or_path: str | Path, *, trusted: bool = False, **options: Any) -> Checkpoint:
    """What a prior's file holds. Arguments and errors as for :func:`load_prior`; ``trusted`` as for
    :meth:`File.open`."""
    path, address = Path(name_or_path), None
    if str(name_or_path).startswith(SCHEME):
        address = str(name_or_path)
        path = fetch(address, online=options.pop("online", False))
    elif str(name_or_path) in shipped_priors():
        path = shipped_priors()[str(name_or_path)]
    elif not path.exists():
        known = ", ".join(shipped_priors()) or "none"
        raise KeyError(f"No prior {str(name_or_path)!r}: it is neither a file nor a shipped prior ({known}).")
    file = File.open(path, trusted=trusted)
    name, module = next(((n, m) for n, m in formats().items() if m.matches(file)), ("", None))
    if module is None:
        some = f" (it holds {', '.join(repr(k) for k in list(file.content)[:4])}, ...)" if file.content else ""
        raise ValueError(
            f"{path.name or path} is not an invdiff prior, nor a known checkpoint{some}: {', '.join(formats())}."
        )
    known_options = [p for p in inspect.signature(module.read).parameters if p != "file"]
    if unknown := sorted(set(options) - set(known_options)):
        has = ", ".join(known_options) or "none"
        raise TypeError(f"The format {name!r} has no option {', '.join(unknown)}; it has {has}.")
    checkpoint = module.read(file, **options)
    if address is not None:
        details = checkpoint.info.details | {"source": address}
        name = address.removeprefix(SCHEME).split("@")[0].split("#")[0]
        checkpoint = replace(checkpoint, info=replace(checkpoint.info, name=name, details=details))
    return checkpoint


def load_prior(
    name_or_path: str | Path, *, device: torch.device | str = "cpu", info: PriorInfo | None = None, **options: Any
) -> NetworkPrior | LatentPrior:
    """A shipped prior by name (``invdiff list`` shows them), or one from a file, recognised by its content.

    Nothing in a file is executed. Known are safetensors files of this package, folders of diffusers, and checkpoints
    of guided-diffusion, score_sde, latent diffusion (CompVis), EDM, InverseBench and zea. Published files often leave
    out what the prior was trained on; state it by ``info``. An address ``hf://owner/name@commit`` is looked up in the
    local cache of huggingface_hub (:func:`invdiff.priors.hub.fetch`).

    Args:
        name_or_path: a shipped name, a file, a folder of diffusers, or an address.
        device: where the network works.
        info: replaces what the file says, but for the digest.
        options: what the file leaves open, by format: e.g. ``size=256`` of guided-diffusion. ``online=True`` downloads
            what an address names.

    Raises:
        KeyError: neither a shipped name nor a file.
        ValueError: an unknown or damaged file, a pickle, or weights that do not match the network key for key.
        TypeError: an option that the format does not have.

    Example:
        >>> from invdiff import load_prior
        >>> prior = load_prior("ct-128")
        >>> prior.shape, prior.info.quantity
        ((1, 128, 128), 'the attenuation of water')
    """
    checkpoint = read_checkpoint(name_or_path, trusted=False, **options)
    if info is not None:
        checkpoint = replace(checkpoint, info=replace(info, sha256=checkpoint.info.sha256))
    return checkpoint.prior(device=device)
