"""Delay and interpolate: echoes of every pixel at every element, as a sparse matrix or from stored delays.

An echo that arrives between two samples is shared between them by linear interpolation. Delays are computed in
float64: in float32 a delay of 3000 samples would be wrong by 2e-4 of one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from invdiff.operators.ct_matrix import SparsePair
from invdiff.operators.ultrasound_geometry import PlaneWaveScan

CACHE_LINE = 16  # numbers
BLOCK = 2**18  # (pixel, element) pairs handled at a time: bounds temporary memory and stays in the cache


def delay_matrix(scan: PlaneWaveScan, weights: np.ndarray, *, iq: bool) -> scipy.sparse.csr_array:
    """The echo operator as a real sparse matrix, float32.

    Args:
        weights: of each pixel at each element, (n_pixels, n_elements).
        iq: whether echoes carry the phase ``exp(-2 pi i f delay)``.

    Returns:
        (n_transmits * n_elements * record_length(n_samples), n_pixels); for IQ the real parts on top of the imaginary
        parts. What a record holds beyond its ``n_samples`` is empty.
    """
    receive, n_samples, length = scan.receive_delays(), scan.n_samples, record_length(scan.n_samples)
    parts: list[list[scipy.sparse.csr_array]] = [[], []]
    n_pixels = len(receive)
    shape = (n_pixels, scan.n_elements * length)
    step = max(1, BLOCK // scan.n_elements)
    for transmit, start in zip(scan.transmit_delays(), np.atleast_1d(scan.start_times), strict=True):
        counts, columns, values = [], [], []
        for begin in range(0, n_pixels, step):
            block = slice(begin, begin + step)
            delay = transmit[block, None] + receive[block]
            position = (delay - start) * scan.sampling_frequency
            lower = np.floor(position)
            fraction = position - lower
            # a delay far outside the record must not overflow the integer
            sample = np.clip(lower, -2, n_samples).astype(np.int64)[..., None] + np.arange(2)
            weight = weights[block, :, None] * np.stack([1 - fraction, fraction], -1)
            if iq:
                weight = weight * _phase(scan, delay)[..., None]
            keep = (sample >= 0) & (sample < n_samples) & (weight != 0)
            counts.append(keep.sum((1, 2)))
            columns.append((sample + length * np.arange(scan.n_elements)[:, None])[keep].astype(np.int32))
            values.append(weight[keep].astype(np.complex64 if iq else np.float32))
        indptr = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
        value, column = np.concatenate(values), np.concatenate(columns)
        for part, data in zip(parts, (value.real, value.imag) if iq else (value,), strict=False):
            part.append(scipy.sparse.csr_array((data, column, indptr), shape=shape).T.tocsr())
    matrix = scipy.sparse.csr_array(scipy.sparse.vstack([*parts[0], *parts[1]], format="csr"))
    matrix.indices, matrix.indptr = matrix.indices.astype(np.int32), matrix.indptr.astype(np.int32)
    return matrix


def record_length(n_samples: int) -> int:
    """The distance between the records of neighbouring elements: at least ``n_samples``, and an odd number of cache
    lines. A pixel's echoes lie at nearly the same place in every record; at 1536 or 2048 samples they would share a
    few sets of the processor's cache, and the adjoint would be four times slower."""
    lines = -(-n_samples // CACHE_LINE)
    return CACHE_LINE * (lines + 1 - lines % 2)


class StoredDelays:
    """The same operator from one delay per (pixel, element) and one per (transmit, pixel), for what is too large as
    a matrix. Ten to thirty times slower.

    Delays are kept as whole samples (int32) and a fraction of one (float32), so that their sum is still exact to
    1e-7 of a sample; phases as complex factors, whose product is the phase of the sum.

    Args:
        scan, weights, iq: as in :func:`delay_matrix`.
    """

    def __init__(self, scan: PlaneWaveScan, weights: np.ndarray, *, iq: bool) -> None:
        fs = scan.sampling_frequency
        receive, transmit = scan.receive_delays(), scan.transmit_delays()
        self.n_samples, self.n_elements = scan.n_samples, scan.n_elements
        late = transmit - np.atleast_1d(scan.start_times)[:, None]
        self._whole, self._fraction = _split(receive * fs)
        self._transmit_whole, self._transmit_fraction = _split(late * fs)
        weighted = weights * _phase(scan, receive) if iq else weights
        self._weight = torch.from_numpy(weighted).to(torch.complex64 if iq else torch.float32)
        self._transmit_phase = torch.from_numpy(_phase(scan, transmit)).to(torch.complex64) if iq else None
        # of each element's first sample, in a record with one sample of margin at both ends
        self._first = torch.arange(self.n_elements, dtype=torch.int32) * (self.n_samples + 2) + 1

    def _blocks(self) -> Iterator[slice]:
        step = max(1, BLOCK // self.n_elements)
        return (slice(begin, begin + step) for begin in range(0, len(self._whole), step))

    def _taps(self, k: int, block: slice) -> tuple[Tensor, Tensor]:
        """For transmit ``k`` and a block of pixels: the indices of the two samples of each (pixel, element), in one
        list, and their weights (2, pixel, element)."""
        fraction = self._fraction[block] + self._transmit_fraction[k, block, None]
        carry = fraction >= 1
        fraction = fraction - carry.to(fraction.dtype)
        whole = self._whole[block] + self._transmit_whole[k, block, None] + carry
        weight = self._weight[block]
        if self._transmit_phase is not None:
            weight = weight * self._transmit_phase[k, block, None]
        first, second = (self._first + (whole + i).clamp(-1, self.n_samples) for i in (0, 1))
        return torch.stack([first, second]).flatten(), torch.stack([weight * (1 - fraction), weight * fraction])

    def apply(self, x: Tensor) -> Tensor:
        """(n_pixels, B) to (n_transmits, n_elements, n_samples, B)."""
        columns = x.T.contiguous()  # one at a time: torch adds to rows of one number many times faster
        shape = (len(self._transmit_whole), len(columns), self.n_elements, self.n_samples + 2)
        records = x.new_zeros(shape).flatten(2)
        for k, record in enumerate(records):
            for block in self._blocks():
                rows, weights = self._taps(k, block)
                for row, column in zip(record, columns, strict=True):
                    row.index_add_(0, rows, (weights * column[block, None]).flatten())
        return records.view(shape)[..., 1:-1].movedim(1, -1)

    def apply_adjoint(self, y: Tensor) -> Tensor:
        """(n_transmits, n_elements, n_samples, B) to (n_pixels, B)."""
        records = y.movedim(-1, 0)
        columns = [torch.cat([echoes.sum((0, 2)) for echoes in self.echoes(record)]) for record in records]
        return torch.stack(columns, 1)

    def echoes(self, y: Tensor) -> Iterator[Tensor]:
        """What :meth:`apply_adjoint` adds up, (n_transmits, n_pixels, n_elements) in consecutive blocks of pixels:
        each element's record (n_transmits, n_elements, n_samples) at the echo of each pixel."""
        records = torch.nn.functional.pad(y, (1, 1)).flatten(1)
        for block in self._blocks():
            parts = []
            for k, record in enumerate(records):
                rows, weights = self._taps(k, block)
                parts.append((weights.conj() * record.index_select(0, rows).view(weights.shape)).sum(0))
            yield torch.stack(parts)

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> StoredDelays:
        """A copy in another precision (the stored numbers are rounded or widened) and/or on another device."""
        from invdiff.operators.base import _cast

        new = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(new, name, _cast(value, dtype, device))
        return new


class DelayMatrix:
    """:func:`delay_matrix` with its transpose; IQ data as pairs of real columns.

    Args:
        scan, weights, iq: as in :func:`delay_matrix`.
    """

    def __init__(self, scan: PlaneWaveScan, weights: np.ndarray, *, iq: bool) -> None:
        self.pair = SparsePair(delay_matrix(scan, weights, iq=iq))
        self.n_samples, self.length = scan.n_samples, record_length(scan.n_samples)
        self.records = (scan.n_transmits, scan.n_elements)

    def apply(self, x: Tensor) -> Tensor:
        """(n_pixels, B) to (n_transmits, n_elements, n_samples, B)."""
        if not x.is_complex():
            return self.pair.apply(x).view(*self.records, self.length, -1)[:, :, : self.n_samples]
        parts = self.pair.apply(torch.cat([x.real, x.imag], 1)).view(2, *self.records, self.length, 2, -1)
        real, imaginary = parts[..., : self.n_samples, :, :]  # (Re A + i Im A) (Re x + i Im x)
        return torch.complex(real[..., 0, :] - imaginary[..., 1, :], real[..., 1, :] + imaginary[..., 0, :])

    def apply_adjoint(self, y: Tensor) -> Tensor:
        """(n_transmits, n_elements, n_samples, B) to (n_pixels, B)."""
        padded = torch.nn.functional.pad(y, (0, 0, 0, self.length - self.n_samples)).flatten(0, 2)
        if not y.is_complex():
            return self.pair.apply_transpose(padded)
        re, im = padded.real, padded.imag
        columns = torch.cat([torch.cat([re, im], 1), torch.cat([im, -re], 1)])
        real, imaginary = self.pair.apply_transpose(columns).chunk(2, 1)
        return torch.complex(real, imaginary)

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> DelayMatrix:
        """A copy in another precision and/or on another device."""
        new = copy.copy(self)
        new.pair = self.pair.to(dtype=dtype, device=device)
        return new


def _phase(scan: PlaneWaveScan, delay: np.ndarray) -> np.ndarray:
    return np.exp(-2j * np.pi * (scan.centre_frequency * delay))


def _split(position: np.ndarray) -> tuple[Tensor, Tensor]:
    """Whole samples and the rest."""
    whole = np.floor(position)
    limit = 2**29  # far outside any record, and the sum of two still an int32
    return (
        torch.from_numpy(np.clip(whole, -limit, limit).astype(np.int32)),
        torch.from_numpy((position - whole).astype(np.float32)),
    )
