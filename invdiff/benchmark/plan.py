"""A plan: a grid of problems, priors, methods and seeds, read from TOML and checked before any work.

    n_samples = 8                    # posterior samples of each task
    seeds = [0]
    keep = 4                         # of the samples, how many are stored (default 4)
    time_limit = 600                 # seconds that a task may take (default: none)

    [[problem]]
    make = "sparse_view_ct"          # an entry of PROBLEMS, or "package.module:function"
    with = { n_views = [20, 40] }    # its arguments; a list of values makes one problem of each
    items = { seed = [0, 1, 2] }     # what results are averaged and paired over; the same arguments
    validation = { seed = [7, 8] }   # items to tune methods on, none of the above; may give what "with" gives anew
    prior = "ct-128"                 # a shipped prior, a file, or "package.module:function"; also a list
    name = "CT"                      # default: make

    [[method]]
    algorithm = "daps"               # an algorithm or classical method (invdiff list), or "package.module:Class"
    set = { n_anneal = [50, 100] }   # its parameters; a list of values makes one method of each
    tune = { n_steps = [5, 10] }     # parameters whose best value is looked for on the problem's validation items
    by = "psnr"                      # best by the mean of this number over them: a key of SCORES (default psnr)
    prior = "ct-128-latent"          # instead of the problem's (optional)
    problems = ["CT*"]               # only on these (optional)
    n_samples = 2                    # instead of the plan's (optional)
    name = "DAPS"                    # default: algorithm

A tuned method is tried with every combination of the values of ``tune``, for each problem and prior anew. These trials
are tasks like all others, and run first; the best one's parameters are then the method's. A value with which a trial
fails is out.

A value that is itself a list is written as a list in a list. Arguments that are files are relative to the data folder.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import importlib
import inspect
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from invdiff.algorithms import ALGORITHMS
from invdiff.algorithms.configure import FAMILIES, configure
from invdiff.benchmark.problems import PROBLEMS
from invdiff.classical import CLASSICAL
from invdiff.measurement import Measurement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


# What a search can go by, and whether more is better.
SCORES: dict[str, bool] = {
    "psnr": True, "psnr_sample": True, "ssim": True, "ssim_sample": True, "crps": False,
}  # fmt: skip


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values, equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def sha256(data: str | bytes) -> str:
    """As 64 hexadecimal digits."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def lookup(table: Mapping[str, Any], name: str, what: str) -> Any:
    """An entry of a literal table, or ``package.module:attribute``. Raises ValueError with the known names."""
    if name in table:
        return table[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ValueError(f"No {what} {name!r}; there are {', '.join(table)} (or package.module:name).")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"Cannot load the {what} {name!r}: {error}.") from None


def version_of(item: Any) -> str:
    """``__version__`` of the package that defines a class or function, or "" if it has none; with the ``version`` that
    the class itself has, of what it wraps."""
    package = str(getattr(sys.modules.get(item.__module__.split(".")[0]), "__version__", ""))
    return f"{package} {item.version}" if getattr(item, "version", "") else package


def full_parameters(instance: Any) -> dict[str, Any]:
    """All fields of a dataclass as :func:`~invdiff.algorithms.configure.configure` takes them: objects by their
    names, their fields dotted."""
    values: dict[str, Any] = {}
    for f in dataclasses.fields(instance):
        value = getattr(instance, f.name)
        if dataclasses.is_dataclass(value):
            names = {cls: name for family in FAMILIES for name, cls in family.items()}
            if type(value) in names:
                values[f.name] = names[type(value)]
            values |= {f"{f.name}.{k}": v for k, v in full_parameters(value).items()}
        else:
            values[f.name] = value
    return values


@dataclass(frozen=True)
class Recipe:
    """How a measurement is made.

    Attributes:
        make: an entry of :data:`~invdiff.benchmark.problems.PROBLEMS` or ``package.module:function``.
        arguments: of that function, as in the plan (files by their relative names).
        files: name to sha256 of the files among the arguments.
        version: of the package that defines the function.
    """

    make: str
    arguments: Mapping[str, Any]
    files: Mapping[str, str] = field(default_factory=dict)
    version: str = ""

    @property
    def key(self) -> str:
        """What names the measurement in the store."""
        return sha256(canonical(dataclasses.asdict(self)))

    def build(self, data: Path | None = None) -> Measurement:
        """Call the function. ``data``: folder of the files.

        Raises:
            TypeError: the function did not return a Measurement; and what it raises itself.
        """
        make = lookup(PROBLEMS, self.make, "problem")
        arguments = dict(self.arguments)
        for name in self.files:
            arguments[name] = (data or Path()) / arguments[name]
        m = make(**arguments)
        if not isinstance(m, Measurement):
            raise TypeError(f"{self.make} must return a Measurement, got {type(m).__name__}.")
        return m


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """Everything that a result depends on, as JSON. Its digest is the result's key.

    Attributes:
        recipe: how the measurement is made.
        data: digest of the measurement's values.
        dtype: of the images.
        prior: name, file or function; "" for a classical method.
        prior_sha256: of its weights.
        method: key of ALGORITHMS or CLASSICAL, or ``package.module:Class``.
        parameters: of the method, every one of them.
        version: of the package that defines the method.
        seed, n_samples: of the draw.
        keep: how many samples are stored.

    Example:
        >>> from dataclasses import replace
        >>> from invdiff.benchmark import TaskSpec
        >>> from invdiff.benchmark.plan import Recipe
        >>> task = TaskSpec(
        ...     recipe=Recipe("sparse_view_ct", {"n_views": 20}), data="", dtype="float32", prior="", prior_sha256="",
        ...     method="fbp", parameters={"window": "hann"}, version="0.1.0", seed=0, n_samples=1, keep=1,
        ... )
        >>> len(task.key), task.key != replace(task, seed=1).key, TaskSpec.from_json(task.to_json()) == task
        (64, True, True)
    """

    recipe: Recipe
    data: str
    dtype: str
    prior: str
    prior_sha256: str
    method: str
    parameters: Mapping[str, Any]
    version: str
    seed: int
    n_samples: int
    keep: int

    def to_json(self) -> str:
        """Canonical JSON."""
        return canonical({f.name: getattr(self, f.name) for f in dataclasses.fields(self)} | {
            "recipe": dataclasses.asdict(self.recipe)
        })  # fmt: skip

    @classmethod
    def from_json(cls, text: str) -> TaskSpec:
        """What :meth:`to_json` wrote. Raises ValueError, TypeError or KeyError for anything else."""
        values = json.loads(text)
        return cls(**{**values, "recipe": Recipe(**values["recipe"])})

    @property
    def key(self) -> str:
        """sha256 of the canonical JSON. A prior counts by its weights, wherever its file lies."""
        values = json.loads(self.to_json())
        if self.prior_sha256:
            del values["prior"]
        return sha256(canonical(values))


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A problem of the plan: what one row of tables and one line of plots is about.

    Attributes:
        name: unique in the plan.
        items: label to recipe; results are averaged and paired over them.
        validation: label to recipe, of the items that methods are tuned on.
        priors: to try.
    """

    name: str
    items: Mapping[str, Recipe]
    validation: Mapping[str, Recipe]
    priors: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Method:
    """A configured method of the plan.

    Attributes:
        name: unique in the plan.
        key: of ALGORITHMS or CLASSICAL, or ``package.module:Class``.
        parameters: all of them, see :func:`full_parameters`.
        version: of the package that defines it.
        point: it makes one image.
        takes_prior: it needs a prior.
        priors: instead of the problem's, or None.
        problems: patterns of the names of the problems it runs on.
        n_samples: of each task.
        candidates: of a tuned method, itself with each of the values to try, named by them; they are not tuned.
        by: the key of SCORES that decides between them.
    """

    name: str
    key: str
    parameters: Mapping[str, Any]
    version: str
    point: bool
    takes_prior: bool
    priors: Sequence[str] | None
    problems: Sequence[str]
    n_samples: int
    candidates: Sequence[Method] = ()
    by: str = "psnr"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One task of the plan, before its data were looked at.

    Attributes:
        search: of a trial on a validation item, the name of the tuned method; else "".
    """

    problem: str
    item: str
    recipe: Recipe
    prior: str
    method: Method
    label: str
    seed: int
    keep: int
    search: str = ""

    def spec(self, m: Method, data: str, dtype: str, prior_sha256: str) -> TaskSpec:
        """The task, given the method, not a tuned one, and what is known of data and prior."""
        return TaskSpec(
            recipe=self.recipe, data=data, dtype=dtype, prior=self.prior, prior_sha256=prior_sha256, method=m.key,
            parameters=m.parameters, version=m.version, seed=self.seed, n_samples=m.n_samples,
            keep=min(self.keep, m.n_samples),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A checked plan.

    Attributes:
        name: the file's stem.
        text: the file.
        problems, methods, seeds, keep: the grid.
        time_limit: seconds that a task may take, or None.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from invdiff.benchmark import Plan
        >>> text = '''
        ... n_samples = 8
        ... seeds = [0, 1]
        ... [[problem]]
        ... make = "sparse_view_ct"
        ... with = { n_views = [20, 40] }
        ... prior = "ct-128"
        ... [[method]]
        ... algorithm = "daps"
        ... '''
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "plan.toml")
        ...     _ = file.write_text(text)
        ...     plan = Plan.read(file)
        >>> plan.name, len(list(plan.cells()))  # two problems, two seeds
        ('plan', 4)
    """

    name: str
    text: str
    problems: Sequence[Problem]
    methods: Sequence[Method]
    seeds: Sequence[int]
    keep: int
    time_limit: float | None

    @classmethod
    def read(cls, path: str | Path, *, data: Path | None = None) -> Plan:
        """Read and check a plan.

        Args:
            path: a TOML file.
            data: folder that file arguments are relative to (default: the working directory).

        Raises:
            FileNotFoundError: no such plan or data file.
            ValueError: not TOML, an unknown key, name or parameter, or a value of the wrong type.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"No such plan: {path}")
        text = path.read_text()
        try:
            return _parse(path.stem, text, data)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path.name}: {error.args[0] if error.args else error}") from None

    def cells(self) -> Iterator[Cell]:
        """All tasks, item by item, so that an unfinished run has complete rows; before a problem's items the trials of
        its tuned methods, with the first seed."""
        for problem, seed in itertools.product(self.problems, self.seeds):
            chosen = [m for m in self.methods if any(fnmatch.fnmatchcase(problem.name, p) for p in m.problems)]
            trials = [(t, m.name) for m in chosen for t in m.candidates] if seed == self.seeds[0] else []
            for items, methods in ((problem.validation, trials), (problem.items, [(m, "") for m in chosen])):
                for (item, recipe), (method, search) in itertools.product(items.items(), methods):
                    own = problem.priors if method.priors is None else method.priors
                    priors = own if method.takes_prior else [""]
                    for prior in priors:
                        label = ", ".join(filter(None, (search, method.name, prior if len(priors) > 1 else "")))
                        yield Cell(
                            problem=problem.name, item=item, recipe=recipe, prior=prior, method=method, label=label,
                            seed=seed, keep=self.keep, search=search,
                        )  # fmt: skip


_PLAN: dict[str, tuple[type, ...]] = {
    "problem": (list,), "method": (list,), "n_samples": (int,), "seeds": (list,), "keep": (int,),
    "time_limit": (int, float),
}  # fmt: skip
_PROBLEM: dict[str, tuple[type, ...]] = {
    "name": (str,), "make": (str,), "with": (dict,), "items": (dict,), "validation": (dict,),
    "prior": (str, list),
}  # fmt: skip
_METHOD: dict[str, tuple[type, ...]] = {
    "name": (str,), "algorithm": (str,), "set": (dict,), "tune": (dict,), "by": (str,),
    "prior": (str, list), "problems": (list,), "n_samples": (int,),
}  # fmt: skip


def _parse(name: str, text: str, data: Path | None) -> Plan:
    values = tomllib.loads(text)
    _check(values, _PLAN, "the plan", required=("problem", "method"))
    n_samples, seeds = values.get("n_samples", 8), values.get("seeds", [0])
    keep, limit = values.get("keep", 4), values.get("time_limit")
    if n_samples < 1 or keep < 0 or (limit is not None and limit <= 0):
        raise ValueError("n_samples and time_limit must be positive, keep at least 0.")
    if not seeds or any(type(s) is not int for s in seeds) or len(set(seeds)) < len(seeds):
        raise ValueError("seeds must be a list of different integers.")
    problems = [p for entry in values["problem"] for p in _problems(entry, data)]
    methods = [m for entry in values["method"] for m in _methods(entry, n_samples)]
    for what, names in (("problem", [p.name for p in problems]), ("method", [m.name for m in methods])):
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"Two {what}s are named {twice[0]!r}; give them names (name = ...).")
    for m in methods:
        for pattern in m.problems:
            if not any(fnmatch.fnmatchcase(p.name, pattern) for p in problems):
                known = ", ".join(p.name for p in problems)
                raise ValueError(f"The method {m.name!r} is for {pattern!r}, but the problems are {known}.")
    for p in problems:
        needy = [m.name for m in methods if m.takes_prior and m.priors is None]
        on = [
            n for n in needy if any(fnmatch.fnmatchcase(p.name, q) for m in methods if m.name == n for q in m.problems)
        ]
        if on and not p.priors:
            raise ValueError(f"The problem {p.name!r} needs a prior for {on[0]!r} (prior = ...).")
        for m in methods:
            if m.candidates and not p.validation and any(fnmatch.fnmatchcase(p.name, q) for q in m.problems):
                raise ValueError(f"The problem {p.name!r} needs validation items for {m.name!r} (validation = ...).")
    return Plan(
        name=name, text=text, problems=problems, methods=methods, seeds=seeds, keep=keep,
        time_limit=None if limit is None else float(limit),
    )  # fmt: skip


def _check(values: Any, known: Mapping[str, tuple[type, ...]], what: str, *, required: Sequence[str] = ()) -> None:
    if not isinstance(values, dict):
        raise ValueError(f"{what} must be a table.")
    for key, value in values.items():
        if key not in known:
            raise ValueError(f"{what} has no key {key!r}; it has {', '.join(known)}.")
        if not isinstance(value, known[key]) or isinstance(value, bool):
            kinds = " or ".join(t.__name__ for t in known[key])
            raise ValueError(f"{what}: {key} must be of type {kinds}, got {value!r}.")
    for key in required:
        if key not in values:
            raise ValueError(f"{what} needs the key {key!r}.")


def _grid(values: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Every combination of the values, with a label made of those that vary."""
    varying = [name for name, value in values.items() if isinstance(value, list)]
    for name in varying:
        if not values[name]:
            raise ValueError(f"{name} is an empty list; it must hold at least one value.")
    for chosen in itertools.product(*(values[name] for name in varying)):
        point = dict(zip(varying, chosen, strict=True))
        label = ", ".join(f"{k}={v}" for k, v in point.items() if len(values[k]) > 1)
        yield {**values, **point}, label


def _priors(entry: Mapping[str, Any]) -> list[str]:
    prior = entry.get("prior", [])
    priors = [prior] if isinstance(prior, str) else prior
    for p in priors:
        if not isinstance(p, str):
            raise ValueError(f"prior must be a name or a list of names, got {p!r}.")
    return priors


def _problems(entry: Any, data: Path | None) -> Iterator[Problem]:
    _check(entry, _PROBLEM, "a [[problem]]", required=("make",))
    name, make = entry.get("name", entry["make"]), lookup(PROBLEMS, entry["make"], "problem")
    for arguments, label in _grid(entry.get("with", {})):
        items: dict[str, Recipe] = {}
        for varied, _ in _grid(entry.get("items", {})):
            if both := sorted(set(varied) & set(arguments)):
                raise ValueError(f"The problem {name!r} gives {both[0]!r} both in with and in items.")
            recipe = _recipe(entry["make"], make, {**arguments, **varied}, data)
            items[", ".join(str(v) for v in varied.values()) or name] = recipe
        validation: dict[str, Recipe] = {}
        for varied, _ in _grid(entry["validation"]) if "validation" in entry else ():
            recipe = _recipe(entry["make"], make, {**arguments, **varied}, data)
            if recipe.key in {r.key for r in items.values()}:
                raise ValueError(f"The problem {name!r}: {dict(varied)} is both in items and in validation.")
            validation[", ".join(str(v) for v in varied.values())] = recipe
        title = f"{name}, {label}" if label else name
        yield Problem(name=title, items=items, validation=validation, priors=_priors(entry))


def _recipe(name: str, make: Callable[..., Measurement], arguments: dict[str, Any], data: Path | None) -> Recipe:
    parameters = inspect.signature(make).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for key in arguments:
            if key not in parameters:
                raise ValueError(f"{name} has no argument {key!r}; it has {', '.join(parameters) or 'none'}.")
    for key, p in parameters.items():
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and key not in arguments:
            raise ValueError(f"{name} needs the argument {key!r}.")
    files = {}
    for key, value in arguments.items():
        if key in parameters and parameters[key].annotation in (Path, "Path"):
            path = (data or Path()) / value
            if not path.is_file():
                raise FileNotFoundError(f"No such data file: {path} (the data folder is chosen with --data).")
            files[key] = sha256_of_file(path)
    return Recipe(name, arguments, files, version_of(make))


def sha256_of_file(path: Path) -> str:
    """Digest of a file's content."""
    h = hashlib.sha256()
    with path.open("rb") as f:
        while block := f.read(1 << 20):
            h.update(block)
    return h.hexdigest()


def _methods(entry: Any, n_samples: int) -> Iterator[Method]:
    _check(entry, _METHOD, "a [[method]]", required=("algorithm",))
    key = entry["algorithm"]
    name, cls = entry.get("name", key), lookup({**ALGORITHMS, **CLASSICAL}, key, "method")
    point = key in CLASSICAL or bool(getattr(cls, "point", False))
    n = 1 if point else entry.get("n_samples", n_samples)
    if n < 1:
        raise ValueError(f"The method {name!r}: n_samples must be at least 1, got {n}.")
    by, tune, fixed = entry.get("by", "psnr"), entry.get("tune", {}), entry.get("set", {})
    if by not in SCORES:
        raise ValueError(f"The method {name!r} cannot be tuned by {by!r}; there are {', '.join(SCORES)}.")
    if "by" in entry and not tune:
        raise ValueError(f"The method {name!r} has by, but nothing to tune (tune = ...).")
    for parameter, values in tune.items():
        if parameter in fixed or not isinstance(values, list):
            raise ValueError(f"The method {name!r}: tune takes a list of values of {parameter!r}, and set none.")

    def method(title: str, overrides: Mapping[str, Any], candidates: Sequence[Method] = ()) -> Method:
        return Method(
            name=title, key=key, parameters={} if candidates else full_parameters(configure(cls, overrides)),
            version=version_of(cls), point=point, takes_prior=bool(getattr(cls, "takes_prior", not point)),
            priors=_priors(entry) if "prior" in entry else None, problems=entry.get("problems", ["*"]), n_samples=n,
            candidates=candidates, by=by,
        )  # fmt: skip

    for overrides, label in _grid(fixed):
        trials = [
            method(", ".join(f"{k}={v}" for k, v in values.items()), {**overrides, **values})
            for values, _ in (_grid(tune) if tune else ())
        ]
        yield method(f"{name}, {label}" if label else name, overrides, trials)
