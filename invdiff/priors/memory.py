"""How many images at a time: the memory that a denoiser's tensors need, measured once on one image; and what becomes
of memory that is freed."""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from invdiff.priors.denoiser import Prior


class _Peak(TorchDispatchMode):
    """Bytes of the tensors made under it that live at a time, at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return out

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def memory_per_image(prior: Prior, *, gradient: bool) -> int:
    """Bytes of tensors that denoising one more image takes at its peak, without the weights.

    Args:
        prior: whose denoiser is run once or twice, on its device.
        gradient: with a backpropagation to the image (DPS, PiGDM ...) or without (DAPS, RED-Diff ...).

    The workspaces of convolutions are not seen: leave a quarter of the memory for them.

    Example:
        >>> from invdiff.priors import GaussianPrior, StationaryCovariance, memory_per_image
        >>> prior = GaussianPrior(torch.zeros(1, 16, 16), StationaryCovariance(torch.ones(1, 16, 16)))
        >>> memory_per_image(prior, gradient=True) >= 4 * 16 * 16  # at least one image in float32
        True
    """

    def peak(n: int) -> int:
        x = torch.zeros(n, *prior.shape, dtype=prior.dtype, device=prior.device, requires_grad=gradient)
        with torch.set_grad_enabled(gradient), _Peak() as counter:
            out = prior(x, prior.sigma_max)
            if gradient:
                torch.autograd.grad(out.sum(), x)
            del out
        return counter.peak

    return max(peak(2) - peak(1), 1)


def batch_within(prior: Prior, memory: float, *, gradient: bool) -> int:
    """Images at a time whose denoising fits into ``memory`` bytes beside the weights: ``batch_size`` of algorithms.

    Args:
        prior: a network on any device.
        gradient: as of :func:`memory_per_image`.

    Raises:
        ValueError: not even one fits.

    Example:
        >>> from invdiff.priors import GaussianPrior, StationaryCovariance, batch_within, memory_per_image
        >>> prior = GaussianPrior(torch.zeros(1, 16, 16), StationaryCovariance(torch.ones(1, 16, 16)))
        >>> one = memory_per_image(prior, gradient=False)
        >>> batch_within(prior, 10 * one, gradient=False)
        10
    """
    need = memory_per_image(prior, gradient=gradient)
    if memory < need:
        raise ValueError(
            f"Denoising one image of {prior.info.name!r} takes {need / 2**20:.0f} MiB, more than the "
            f"{memory / 2**20:.0f} MiB allowed; use Tiled, a smaller prior, or an algorithm without backpropagation."
        )
    return int(memory // need)


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, up to 32 MiB a piece; does nothing where libc is not glibc's.

    The outputs of a network's layers are some MiB each. By default glibc gives them back to the system and takes new
    pages for the next layer; on a virtual machine that was a quarter of a denoiser's time (``benchmarks/overhead.py``
    with and without ``--give-back-memory``). It is a property of the process, so a program calls it at its start, as
    the command line does; a library must not.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):
        return
    mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD, at its upper limit
    mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
