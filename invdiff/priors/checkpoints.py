"""Reading and writing priors: one safetensors file with everything in its header.

The header holds, as JSON under the key ``invdiff``: the network's constructor arguments, the parametrisation,
image shape, noise range and the :class:`~invdiff.priors.denoiser.PriorInfo`. Weights are stored in fp16 and
loaded in fp32. A latent prior keeps both networks in the file; its header then has the key ``autoencoder``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from invdiff.priors.autoencoder import Autoencoder
from invdiff.priors.denoiser import EDMDenoiser, NetworkPrior, PriorInfo
from invdiff.priors.latent import LatentPrior
from invdiff.priors.networks import UNet

ZOO = Path(__file__).parent / "zoo"
_AUTOENCODER = "autoencoder."


def shipped_priors() -> dict[str, Path]:
    """Name to file of the priors that come with the package."""
    return {path.stem: path for path in sorted(ZOO.glob("*.safetensors"))}


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
    """Write a prior, atomically.

    Args:
        network: constructor arguments of :class:`~invdiff.priors.networks.UNet`.
        shape, sigma_min, sigma_max, info: see :class:`~invdiff.priors.denoiser.Prior`.
        autoencoder: of a latent prior; ``shape`` is that of its latents.
    """
    from safetensors.torch import save_file

    from invdiff.storage import atomic_path

    header = {
        "network": network,
        "sigma_data": denoiser.sigma_data,
        "shape": shape,
        "sigma_min": sigma_min,
        "sigma_max": sigma_max,
        "info": {k: v for k, v in dataclasses.asdict(info).items() if k != "sha256"},
    }
    tensors = dict(denoiser.net.state_dict())
    if autoencoder is not None:
        header["autoencoder"] = autoencoder.arguments
        tensors |= {_AUTOENCODER + k: v for k, v in autoencoder.state_dict().items()}
    weights = {k: v.detach().to("cpu", torch.float16).contiguous() for k, v in tensors.items()}
    with atomic_path(path) as tmp:
        save_file(weights, tmp, metadata={"format": "invdiff-prior-1", "invdiff": json.dumps(header)})


def load_prior(name_or_path: str | Path, *, device: torch.device | str = "cpu") -> NetworkPrior | LatentPrior:
    """A shipped prior by name (``invdiff list`` shows them), or one from a ``.safetensors`` file.

    Raises:
        KeyError: neither a shipped name nor a file.
        ValueError: a file of another kind, or weights that do not match the network key for key.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(name_or_path)
    if str(name_or_path) in shipped_priors():
        path = shipped_priors()[str(name_or_path)]
    elif not path.is_file():
        known = ", ".join(shipped_priors()) or "none"
        raise KeyError(f"No prior {str(name_or_path)!r}: it is neither a file nor a shipped prior ({known}).")
    if path.suffix != ".safetensors":
        raise ValueError(f"A prior is a .safetensors file, got {path.name!r}. Pickles are not loaded.")
    try:
        with safe_open(path, "pt") as f:
            metadata = f.metadata() or {}
            weights = {key: f.get_tensor(key).float() for key in f.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path.name} is not a readable safetensors file; it may be truncated ({error}).") from None
    if metadata.get("format") != "invdiff-prior-1":
        raise ValueError(f"{path.name} is a safetensors file, but not an invdiff prior (no format 'invdiff-prior-1').")
    header = json.loads(metadata["invdiff"])
    net = UNet(**header["network"])
    autoencoder = Autoencoder(**header["autoencoder"]) if "autoencoder" in header else None
    wanted, got = set(net.state_dict()), set(weights)
    if autoencoder is not None:
        wanted |= {_AUTOENCODER + k for k in autoencoder.state_dict()}
    if wanted != got:
        raise ValueError(
            f"{path.name} does not fit its network: missing {sorted(wanted - got)[:3]}, "
            f"unexpected {sorted(got - wanted)[:3]}."
        )
    net.load_state_dict({k: weights[k] for k in net.state_dict()})
    net.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    info = header["info"]
    for key in ("value_range", "pixel_size"):
        info[key] = tuple(info[key]) if info[key] else None
    info = PriorInfo(**info, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    prior = NetworkPrior(
        EDMDenoiser(net, header["sigma_data"]), tuple(header["shape"]), sigma_min=header["sigma_min"],
        sigma_max=header["sigma_max"], info=info,
    )  # fmt: skip
    if autoencoder is None:
        return prior
    autoencoder.load_state_dict({k: weights[_AUTOENCODER + k] for k in autoencoder.state_dict()})
    autoencoder.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return LatentPrior.from_autoencoder(autoencoder, prior)
