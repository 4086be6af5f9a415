"""What the ultrasound beamformers share: channel data focused on every pixel, packed as a point estimate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from invdiff.classical.point import point_estimate
from invdiff.measurement import Measurement
from invdiff.operators.base import LinearComposition, LinearOperator, Operator
from invdiff.operators.ultrasound import PlaneWave, find_plane_wave, receive_weights
from invdiff.operators.ultrasound_delays import StoredDelays
from invdiff.operators.ultrasound_image import analytic
from invdiff.posterior import Posterior


def beamform(
    method: Any,
    combine: Callable[[Tensor, Tensor], Tensor],
    measurement: Measurement,
    *,
    f_number: float | None,
    aperture: str,
    n_samples: int,
    seed: int,
) -> Posterior:
    """Focus, average over transmits (coherent compounding), and ``combine`` over elements.

    RF data are made analytic along time first, and the image is the real part of the result, so that ``combine``
    sees complex numbers in any case. The pulse is not compensated.

    Args:
        combine: channels (n_pixels, n_elements), complex, in order of the elements' position, zero outside the
            receive aperture, and the weights of the aperture, same shape, real, to (n_pixels,).
        f_number: None: the operator's.
        aperture: key of :data:`invdiff.operators.ultrasound.APERTURES`.

    Raises:
        TypeError: the operator is not a plane-wave one (possibly masked, or after ViewAsComplex).
    """
    A = measurement.A
    wave = find_plane_wave(A)
    if wave is None or not isinstance(A, LinearOperator) or A.out_shape != wave.out_shape:
        raise TypeError(f"{type(method).__name__} needs a plane-wave ultrasound operator, got {A!r}.")

    def reconstruct() -> Tensor:
        return _pull_back(A, wave, _image(wave, measurement, f_number, aperture, combine))

    return point_estimate(method, reconstruct, measurement, n_samples=n_samples, seed=seed)


def _image(
    wave: PlaneWave,
    measurement: Measurement,
    f_number: float | None,
    aperture: str,
    combine: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    y, observed = measurement.y, measurement.A.observed
    if not y.is_complex():
        y = analytic(y, -1)
    seen = torch.ones(y.shape[:2], dtype=torch.bool) if observed is None else observed.expand(y.shape).any(-1).cpu()
    order = sorted(range(wave.scan.n_elements), key=wave.scan.element_positions.__getitem__)
    elements = [e for e in order if seen[:, e].any()]  # what a mask took away does not count as silence
    transmits = [k for k in range(wave.scan.n_transmits) if seen[k].any()]
    scan = replace(
        wave.scan.subset(transmits), element_positions=tuple(wave.scan.element_positions[e] for e in elements)
    )
    weights = receive_weights(scan, wave.f_number if f_number is None else f_number, aperture)
    # the phase of the delay belongs to IQ data only; of RF data the samples are taken as they are
    delays = StoredDelays(scan, weights != 0, iq=wave.iq).to(dtype=wave.dtype, device=y.device)
    share = seen[transmits][:, elements].sum(0).to(y.device)
    w = torch.from_numpy(weights).to(y.device, wave.dtype)
    pixels, begin = [], 0
    for echoes in delays.echoes(y[transmits][:, elements]):
        channels = echoes.sum(0) / share
        pixels.append(combine(channels, w[begin : begin + len(channels)]))
        begin += len(channels)
    image = torch.cat(pixels).reshape(wave.in_shape)
    return image if wave.iq else image.real.contiguous()


def _pull_back(A: Operator, wave: PlaneWave, image: Tensor) -> Tensor:
    """The image of the plane-wave operator as one of ``A``, which may take it in another form."""
    if A is wave:
        return image
    assert isinstance(A, LinearComposition)
    if find_plane_wave(A.outer) is None:
        return _pull_back(A.inner, wave, image)
    return A.inner.H(_pull_back(A.outer, wave, image))
