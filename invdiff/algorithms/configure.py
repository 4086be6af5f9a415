"""Named parameters, from a command line or a plan, checked against a dataclass's fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from invdiff.algorithms.guidance import COVARIANCES
from invdiff.algorithms.kernels import KERNELS
from invdiff.priors.schedules import GRIDS

FAMILIES = (KERNELS, GRIDS, COVARIANCES)  # objects that stand for each other as a field's value


def configure(cls: type, parameters: Mapping[str, Any]) -> Any:
    """An instance of the dataclass ``cls``.

    Args:
        parameters: field names to values. A field that holds an object takes the object's name
            (``{"kernel": "langevin"}``) and, dotted, its parameters (``{"kernel.n_steps": 50}``).

    Raises:
        ValueError: unknown names or values of the wrong type, with the list of valid names.
        TypeError: ``cls`` is no dataclass.
    """
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise TypeError(f"An algorithm must be a dataclass, got {getattr(cls, '__name__', repr(cls))}.")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    nested: dict[str, dict[str, Any]] = {}
    for name, value in parameters.items():
        head, _, rest = name.partition(".")
        if head not in fields:
            raise ValueError(f"{cls.__name__} has no parameter {head!r}; it has {', '.join(fields)}.")
        if rest:
            nested.setdefault(head, {})[rest] = value
        else:
            values[head] = value
    for name, field in fields.items():
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if dataclasses.is_dataclass(default):
            family = next((f for f in FAMILIES if type(default) in f.values()), {})
            if name in values and values[name] not in family:
                raise ValueError(f"{cls.__name__}: {name} must be one of {', '.join(family)}, got {values[name]!r}.")
            if name in values or name in nested:
                chosen = family[values[name]] if name in values else type(default)
                values[name] = configure(chosen, nested.get(name, {}))
        elif name in nested:
            raise ValueError(f"{cls.__name__}: {name} is a number, it has no parameters of its own.")
        elif name in values:
            values[name] = _as_type(cls, name, values[name], default)
    return cls(**values)


def _as_type(cls: type, name: str, value: Any, default: Any) -> Any:
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if default is not None and default is not dataclasses.MISSING and type(value) is not type(default):
        raise ValueError(
            f"{cls.__name__}: {name} must be of type {type(default).__name__}, got {value!r} ({type(value).__name__})."
        )
    return value
