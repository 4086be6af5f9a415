"""Per-sample random streams: a sample depends on the seed, its item and its index, and on nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


class SampleStreams:
    """One random stream per posterior sample, drawn on the CPU, then moved.

    Stream ``i`` of item ``item`` is a Mersenne twister seeded with ``h(seed, item) + i mod 2^32``, ``h`` being
    the first 32 bits of a SHA-256. So sample 3 of 8 is sample 3 of 64, in any micro-batch, on any device.
    Two samples of one item never share a stream; streams of different items coincide with probability 2^-32
    a pair (torch seeds its CPU generator with 32 bits).

    Args:
        seed: any integer (0 is a seed like the others).
        indices: which samples, e.g. ``range(8)``.
        item: identifies the slice, frame or subject within a study.
    """

    def __init__(self, seed: int, indices: Sequence[int], item: str = "") -> None:
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise TypeError(f"seed must be an integer, got {seed!r}.")
        digest = hashlib.sha256(f"{seed}|{item}".encode()).digest()
        base = int.from_bytes(digest[:4], "big")
        self._generators = [torch.Generator().manual_seed((base + i) % 2**32) for i in indices]

    def __len__(self) -> int:
        return len(self._generators)

    def randn(
        self, shape: Sequence[int], *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Standard normal numbers, (n_samples, \\*shape); complex dtypes have unit variance per component."""
        real = {torch.complex64: torch.float32, torch.complex128: torch.float64}.get(dtype)
        if real is not None:
            return torch.view_as_complex(self.randn((*shape, 2), dtype=real)).to(device)
        out = torch.empty(len(self), *shape, dtype=dtype)
        for row, generator in zip(out, self._generators, strict=True):
            torch.randn(tuple(shape), generator=generator, dtype=dtype, out=row)
        return out.to(device)

    def rand(self, shape: Sequence[int]) -> Tensor:
        """Uniform numbers in [0, 1), (n_samples, \\*shape), float64, on the CPU."""
        return torch.stack([torch.rand(tuple(shape), generator=g, dtype=torch.float64) for g in self._generators])
