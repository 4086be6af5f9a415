"""Inpainting masks: what they promise about the pixels they hide."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.ndimage import binary_erosion, label

from invdiff.operators import box_mask, brush_mask


def test_a_box_hides_exactly_one_rectangle_inside_the_margin() -> None:
    places = set()
    for seed in range(40):
        mask = box_mask((3, 20, 30), (6, 9), seed=seed, margin=4)
        y, x = (~mask[0]).nonzero().T
        assert len(y) == 54
        assert (int(y.max() - y.min()), int(x.max() - x.min())) == (5, 8)
        assert int(y.min()) >= 4
        assert int(y.max()) <= 15
        assert int(x.min()) >= 4
        assert int(x.max()) <= 25
        assert bool((mask == mask[0]).all())
        places.add((int(y.min()), int(x.min())))
    assert {p[0] for p in places} == set(range(4, 11))  # every row that fits, and both ends of it
    assert torch.equal(box_mask((1, 20, 30), (6, 9), seed=1), box_mask((1, 20, 30), (6, 9), seed=1))


@pytest.mark.parametrize("fraction", [0.9, 0.6, 0.2])
def test_brush_strokes_hide_what_they_were_asked_to(fraction: float) -> None:
    for seed in range(5):
        mask = brush_mask((2, 64, 48), fraction, seed=seed)
        seen = float(mask.float().mean())
        # no more than one piece beyond: at most 16 pixels long and 6 wide with round ends, of 3072
        assert fraction - (16 * 7 + 49) / 3072 <= seen <= fraction
        assert bool((mask == mask[0]).all())
        assert torch.equal(mask, brush_mask((2, 64, 48), fraction, seed=seed))


def test_brush_strokes_are_strokes() -> None:
    hidden = ~brush_mask((1, 128, 128), 0.7, seed=0, width=10)[0].numpy()
    # each connected region holds a quarter disc of the narrowest brush (width / 4) at least: no scattered pixels
    regions, n = label(hidden)
    assert min((regions == i + 1).sum() for i in range(n)) >= math.pi / 4 * 2.5**2
    assert binary_erosion(hidden, iterations=1).sum() > 0.5 * hidden.sum()
    narrow = ~brush_mask((1, 128, 128), 0.7, seed=0, width=2)[0].numpy()
    assert binary_erosion(narrow, iterations=2).sum() < 0.1 * narrow.sum()


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        box_mask((1, 10, 10), (9, 9), seed=0, margin=1)
    with pytest.raises(ValueError, match="fraction of seen pixels"):
        brush_mask((1, 10, 10), 1.0, seed=0)
    with pytest.raises(ValueError, match="width must be"):
        brush_mask((1, 10, 10), 0.5, seed=0, width=0.5)
