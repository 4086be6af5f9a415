"""A Measurement written by Measurement.save (.h5)."""

from __future__ import annotations

from pathlib import Path

from invdiff.datasets.files import Head
from invdiff.measurement import Measurement


def matches(head: Head) -> bool:
    """An HDF5 file with this package's format attribute."""
    return {"format", "precision", "image_scale"} <= head.attributes


def read(path: Path) -> Measurement:
    """As :meth:`invdiff.Measurement.load`. Raises ValueError, OSError: damaged."""
    try:
        return Measurement.load(path)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"{path.name} holds no valid measurement: {' '.join(str(error).split())[:500]}") from error
