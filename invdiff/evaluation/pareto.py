"""What is best in quality or in cost."""

from __future__ import annotations

from collections.abc import Mapping


def pareto_front(points: Mapping[str, tuple[float, float]], *, lower_is_better: bool = False) -> list[str]:
    """Names of the points (cost, quality) that no other one beats in both, by rising cost.

    Args:
        lower_is_better: of the quality (CRPS, error).
    """
    sign = 1 if lower_is_better else -1
    front: list[str] = []
    for name in sorted(points, key=lambda n: (points[n][0], sign * points[n][1])):
        if not front or sign * points[name][1] < sign * points[front[-1]][1]:
            front.append(name)
    return front
