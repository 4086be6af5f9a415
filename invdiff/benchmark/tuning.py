"""Which of a method's values did best on the validation items."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from invdiff.benchmark.plan import SCORES, Method
from invdiff.benchmark.store import DamagedError, Store


@dataclass
class Search:
    """The search for a tuned method's parameters, on one problem with one prior: every value on every item.

    Attributes:
        by: the key of SCORES that decides.
        trials: name of the values to the method with them and the keys of its tasks; None: its data are not there yet.
        items, patients: what it was tried on.
    """

    by: str
    trials: dict[str, tuple[Method, list[str | None]]] = field(default_factory=dict)
    items: list[str] = field(default_factory=list)
    patients: list[str] = field(default_factory=list)
    _best: Method | None = None

    def add(self, method: Method, item: str, patient: str, key: str | None) -> None:
        """One more trial."""
        self.trials.setdefault(method.name, (method, []))[1].append(key)
        for found, value in ((self.items, item), (self.patients, patient)):
            if value and value not in found:
                found.append(value)

    def scores(self, store: Store) -> dict[str, float | None] | None:
        """Mean over the items, for each of the values; None for one that failed. None: trials are missing.

        Raises:
            ValueError: the results have no such number.
        """
        out: dict[str, float | None] = {}
        for name, (_, keys) in self.trials.items():
            values: list[float] = []
            for key in keys:
                try:
                    result = store.read(key) if key is not None and store.has(key) else None
                except DamagedError:
                    result = None
                if result is not None:
                    if self.by not in result.metrics:
                        raise ValueError(f"Nothing can be tuned by {self.by}: {', '.join(result.metrics)} are known.")
                    values.append(result.metrics[self.by])
                elif key is None or store.failure(key) is None:
                    return None
            out[name] = statistics.mean(values) if len(values) == len(keys) else None
        return out

    def best(self, store: Store) -> Method | None:
        """The method with the best values, the first of equals; None if trials are missing, or all failed."""
        if self._best is None:
            worked = {name: score for name, score in (self.scores(store) or {}).items() if score is not None}
            if worked:
                name = (max if SCORES[self.by] else min)(worked, key=worked.__getitem__)
                self._best = self.trials[name][0]
        return self._best
