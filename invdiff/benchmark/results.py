"""Stored results as a table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from invdiff.benchmark.plan import canonical
from invdiff.benchmark.store import DamagedError, Result, Store
from invdiff.storage import atomic_path

if TYPE_CHECKING:
    import pandas as pd


def row(result: Result) -> dict[str, Any]:
    """One line of the table."""
    s, env = result.spec, result.env
    return {
        "key": result.key, **result.labels, "algorithm": s.method, "parameters": canonical(s.parameters),
        "prior": s.prior, "seed": s.seed, "n_samples": s.n_samples, **result.metrics, "dtype": s.dtype,
        "version": s.version, "commit": env.get("commit", ""), "host": env.get("host", ""),
        "device": env.get("device", ""), "threads": env.get("threads", 0), "finished": env.get("finished", ""),
        "total_seconds": env.get("total_seconds", float("nan")),
    }  # fmt: skip


def load_results(store: str | Path | Store) -> pd.DataFrame:
    """All results of a store, one line for each, as a pandas DataFrame.

    Columns: key, the plan's names (problem, item, method, patient), what was run (algorithm, parameters as JSON, prior,
    seed, n_samples), the numbers of :func:`invdiff.benchmark.engine.measure`, and where it ran. Results already in
    ``index.parquet`` are taken from there; the rest is read and added to it. Damaged results are left out.

    Raises:
        ImportError: pandas or pyarrow is missing (``pip install invdiff[bench]``).
        FileNotFoundError: no such store.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from invdiff.benchmark import Plan, load_results, run
        >>> text = '''
        ... n_samples = 1
        ... seeds = [0]
        ... [[problem]]
        ... make = "accelerated_mri"
        ... with = { n_coils = 2 }
        ... prior = "brain-mri-128"
        ... [[method]]
        ... algorithm = "zero-filled"
        ... '''
        >>> with tempfile.TemporaryDirectory() as folder:  # a table needs the extra "bench"
        ...     file = Path(folder, "plan.toml")
        ...     _ = file.write_text(text)
        ...     _ = run(Plan.read(file), f"{folder}/results")
        ...     table = load_results(f"{folder}/results")
        >>> table["algorithm"].tolist(), bool(table["psnr"][0] > 15)
        (['zero-filled'], True)
    """
    try:
        import pandas as pd
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"The table of results needs pandas and pyarrow: pip install 'invdiff[bench]' ({error})."
        ) from None
    store = store if isinstance(store, Store) else Store(store)
    index, keys = store.path / "index.parquet", list(store.keys())
    known = pd.DataFrame()
    if index.is_file():
        try:
            known = pd.read_parquet(index)
            known = known[known["key"].isin(set(keys))]
            if "ranks" in known:
                known["ranks"] = [v if v is None else list(map(int, v)) for v in known["ranks"]]
        except (OSError, ValueError, KeyError):
            known = pd.DataFrame()  # a torn cache is made again
    have, rows = set(known["key"]) if len(known) else set(), []
    for key in keys:
        if key not in have:
            try:
                rows.append(row(store.read(key)))
            except DamagedError:
                continue
    if not rows and len(known) == len(have) and index.is_file():
        return known.reset_index(drop=True)
    table = pd.concat([known, pd.DataFrame(rows)], ignore_index=True) if len(known) else pd.DataFrame(rows)
    try:
        with atomic_path(index) as tmp:
            table.to_parquet(tmp)
    except OSError:
        pass  # a store that can only be read
    return table
