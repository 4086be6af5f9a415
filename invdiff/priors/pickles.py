"""Weights out of a pickle without running what it asks for: ``python -m invdiff.priors.pickles IN OUT``.

Unpickling calls any function that the file names. Here a name outside the short table :data:`ALLOWED` gives an inert
:class:`Stub`, which remembers what it was given. Modules (those of EDM, with their source code inside, which is
ignored) become their state dict and their plain attributes; what remains is written as a torch file that
``torch.load(weights_only=True)`` reads. It runs in a process of its own, started by
``invdiff prior convert --i-trust-this-file``, in case the table is not as harmless as it looks.
"""

from __future__ import annotations

import collections
import io
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # at the start of torch files before version 1.6


class Stub:
    """Stands for an object of a class that is not run.

    Attributes:
        args: what it was called with. state: what it was given to hold. items: what it held as a list or dict.
    """

    name = ""
    args: tuple[Any, ...]
    state: Any
    items: dict[Any, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Stub:
        self = object.__new__(cls)
        self.args, self.state, self.items = args, None, {}
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def append(self, value: Any) -> None:
        self.items[len(self.items)] = value

    def extend(self, values: Any) -> None:
        for value in values:
            self.append(value)

    def __call__(self, *args: Any, **kwargs: Any) -> Stub:
        return Stub(*args)

    def __hash__(self) -> int:
        return id(self)


def _storage(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _new(cls: Any, base: Any = None, state: Any = None) -> Any:
    return cls.__new__(cls)


# The names that are run as they are, or by a harmless equivalent.
ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch", "Size"): torch.Size,
    ("copyreg", "_reconstructor"): _new,
    **{("torch", str(t).removeprefix("torch.")): t for t in (torch.float32, torch.float64, torch.float16)},
    **{
        ("torch", f"{kind}Storage"): getattr(torch, f"{kind}Storage")
        for kind in ("Float", "Double", "Half", "Long", "Int", "Byte", "Bool", "BFloat16")
    },
}


class Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in ALLOWED:
            return ALLOWED[module, name]
        return type(name.rpartition(".")[2], (Stub,), {"name": f"{module}.{name}"})


def _load(file: Any, **kwargs: Any) -> Any:
    return Unpickler(file, **kwargs).load()


def read(path: Path) -> Any:
    """The content of a pickle or a torch file, objects being stubs."""
    with path.open("rb") as file:
        start = file.read(64)
    if zipfile.is_zipfile(path) or MAGIC in start:
        shim: Any = SimpleNamespace(__name__="invdiff.priors.pickles", Unpickler=Unpickler, load=_load)
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=shim)
    with path.open("rb") as file:
        return _load(file)


def plain(value: Any, depth: int = 0) -> Any:
    """Tensors, numbers, text, None, and dicts and lists of them; a module as ``{"class", "attributes",
    "state_dict"}``; anything else is None."""
    if depth > 50:
        return None
    if isinstance(value, Tensor):
        return value.detach().clone()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {k: plain(v, depth + 1) for k, v in value.items() if isinstance(k, str | int)}
    if isinstance(value, list | tuple):
        return [plain(v, depth + 1) for v in value]
    state = _state(value)
    if isinstance(state, dict) and "_parameters" in state:
        weights: dict[str, Tensor] = {}
        _collect(state, "", weights)
        return {
            "class": _class_name(value),
            "attributes": {k: v for k, v in state.items() if isinstance(v, bool | int | float | str)},
            "state_dict": weights,
        }
    return None


def _persistent(value: Any) -> Any:
    """EDM pickles ``_reconstruct_persistent_obj(meta)``; meta holds class_name and state."""
    meta = value.args[0] if isinstance(value, Stub) and len(value.args) == 1 else None
    return (meta.items | (meta.state or {})) if isinstance(meta, Stub) else meta if isinstance(meta, dict) else None


def _state(value: Any) -> Any:
    meta = _persistent(value)
    return meta.get("state") if meta and "state" in meta else getattr(value, "state", None)


def _class_name(value: Any) -> str:
    meta = _persistent(value)
    return str(meta["class_name"]) if meta and "class_name" in meta else value.name.rpartition(".")[2]


def _collect(state: dict[str, Any], prefix: str, into: dict[str, Tensor]) -> None:
    for name, tensor in (state.get("_parameters") or {}).items():
        if isinstance(tensor, Tensor):
            into[prefix + name] = tensor.detach().clone()
    transient = state.get("_non_persistent_buffers_set") or ()
    for name, tensor in (state.get("_buffers") or {}).items():
        if isinstance(tensor, Tensor) and name not in transient:
            into[prefix + name] = tensor.detach().clone()
    for name, module in (state.get("_modules") or {}).items():
        child = _state(module)
        if isinstance(child, dict):
            _collect(child, f"{prefix}{name}.", into)


def unpickle(path: Path, out: Path) -> None:
    """Run this module on ``path`` in a process of its own. Raises ValueError if no weights come out."""
    command = [sys.executable, "-m", __name__, str(path), str(out)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        last = (run.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"{path.name} cannot be unpickled: {last}")


if __name__ == "__main__":
    content = plain(read(Path(sys.argv[1])))
    if not isinstance(content, dict):
        raise SystemExit("it holds no dict of weights")
    torch.save(content, sys.argv[2])
