"""Ordered subsets of a scan's views, for OSEM and OSTR."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from invdiff.operators.base import LinearOperator

GOLDEN = (math.sqrt(5) - 1) / 2


def view_subsets(method: Any, A: LinearOperator, n_subsets: int) -> list[tuple[LinearOperator, Tensor]]:
    """The operator of every ``n_subsets``-th view and the numbers of these views (dimension 1 of the data).

    Subsets that follow one another are far apart in angle. One subset: the operator itself, any linear one.

    Raises:
        TypeError: several subsets of an operator whose geometry has no views.
        ValueError: more subsets than views.
    """
    geometry: Any = getattr(A, "geometry", None)
    if n_subsets == 1:
        return [(A, torch.arange(A.out_shape[1] if len(A.out_shape) > 1 else 1, device=A.device))]
    if not hasattr(geometry, "subset"):
        raise TypeError(
            f"{type(method).__name__}: only the views of a CT operator can be divided into subsets, got {A!r}. "
            "Use n_subsets=1."
        )
    if n_subsets > geometry.n_views:
        raise ValueError(f"{type(method).__name__}: n_subsets must not exceed {geometry.n_views} views.")
    out = []
    for first in sorted(range(n_subsets), key=lambda k: k * GOLDEN % 1):
        views = torch.arange(first, geometry.n_views, n_subsets)
        part: LinearOperator = type(A)(**{**A.init_args(), "geometry": geometry.subset(views.tolist())})
        out.append((part.to(dtype=A.dtype, device=A.device), views.to(A.device)))
    return out
