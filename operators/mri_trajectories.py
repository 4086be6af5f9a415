"""Non-Cartesian k-space trajectories.

Coordinates are ``(ky, kx)`` in cycles per field of view: for an image of ``n`` pixels along an axis they lie in
``[-n / 2, n / 2]``, and whole numbers are the points of the Cartesian grid. Trajectories are float64 tensors
(n_readouts, n_samples, 2).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

GOLDEN_ANGLE = math.pi * (math.sqrt(5) - 1) / 2  # 111.246 degrees


def radial_trajectory(n: int, *, n_spokes: int, n_samples: int | None = None) -> Tensor:
    """Spokes through the centre, equispaced over half a turn.

    Args:
        n: pixels along each side of the image.
        n_spokes: Nyquist sampling at the rim takes ``pi / 2 * n``.
        n_samples: along each spoke, from -n/2 to just below n/2, zero included; default ``2 n``, twofold oversampled.

    Example:
        >>> from invdiff.operators import radial_trajectory
        >>> k = radial_trajectory(16, n_spokes=5)
        >>> tuple(k.shape), bool(k[:, 16].abs().max() < 1e-6)  # every spoke passes through zero
        ((5, 32, 2), True)
    """
    return _spokes(n, n_samples, math.pi * torch.arange(n_spokes, dtype=torch.float64) / max(n_spokes, 1))


def golden_angle_trajectory(n: int, *, n_spokes: int, n_samples: int | None = None) -> Tensor:
    """Spokes that advance by the golden angle, so that any run of successive spokes covers k-space evenly.

    Winkelmann et al., "An optimal radial profile order based on the golden ratio for time-resolved MRI", IEEE
    Transactions on Medical Imaging 26 (2007). Arguments as in :func:`radial_trajectory`.

    Args:
        n, n_spokes, n_samples: as of :func:`radial_trajectory`.

    Example:
        >>> from invdiff.operators import golden_angle_trajectory
        >>> k = golden_angle_trajectory(16, n_spokes=5)
        >>> tuple(k.shape), bool(k.abs().max() <= 8)
        ((5, 32, 2), True)
    """
    return _spokes(n, n_samples, GOLDEN_ANGLE * torch.arange(n_spokes, dtype=torch.float64))


def spiral_trajectory(n: int, *, n_arms: int, n_samples: int | None = None, acceleration: float = 1.0) -> Tensor:
    """Archimedean spiral arms from the centre to the rim of k-space, turned copies of each other.

    Neighbouring turns lie ``acceleration`` cycles per field of view apart (1: Nyquist), samples are equally far apart
    along the arm (constant speed).

    Args:
        n: pixels along each side of the image.
        n_arms: interleaved arms.
        n_samples: along each arm; default: half a cycle per field of view apart.

    Example:
        >>> from invdiff.operators import spiral_trajectory
        >>> k = spiral_trajectory(16, n_arms=2)
        >>> k.shape[0], bool(k[:, 0].abs().max() < 1e-6), bool(k.norm(dim=-1).max() <= 8)
        (2, True, True)
    """
    _check_positive(n=n, n_arms=n_arms, acceleration=acceleration)
    a = math.pi * n / (n_arms * acceleration)  # total angle of an arm

    def arc(t: Tensor) -> Tensor:
        """Length of the arm k = n/2 t exp(i a t) up to t."""
        return n / 4 * (t * torch.hypot(torch.ones_like(t), a * t) + torch.asinh(a * t) / a)

    end = torch.ones((), dtype=torch.float64)
    n_samples = math.ceil(2 * float(arc(end))) + 1 if n_samples is None else n_samples
    _check_positive(n_samples=n_samples)
    goal = arc(end) * torch.linspace(0, 1, n_samples, dtype=torch.float64)
    lo, hi = torch.zeros_like(goal), torch.ones_like(goal)
    for _ in range(60):
        middle = (lo + hi) / 2
        below = arc(middle) < goal
        lo, hi = torch.where(below, middle, lo), torch.where(below, hi, middle)
    t = hi
    angle = a * t + 2 * math.pi * torch.arange(n_arms, dtype=torch.float64)[:, None] / n_arms
    return n / 2 * t[:, None] * torch.stack([angle.sin(), angle.cos()], -1)


def _spokes(n: int, n_samples: int | None, angles: Tensor) -> Tensor:
    n_samples = 2 * n if n_samples is None else n_samples
    _check_positive(n=n, n_spokes=len(angles), n_samples=n_samples)
    k = (torch.arange(n_samples, dtype=torch.float64) - n_samples // 2) * (n / n_samples)
    return k[:, None] * torch.stack([angles.sin(), angles.cos()], -1)[:, None]


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}.")
