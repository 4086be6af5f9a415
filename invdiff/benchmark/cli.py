"""``invdiff bench run | status | report | show``."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(no_args_is_help=True, help="Benchmarks: a plan, a store of results, a report.")
console = Console()

PlanFile = Annotated[Path, typer.Argument(metavar="PLAN", help="A TOML file, see invdiff.benchmark.plan.")]
StoreFolder = Annotated[Path, typer.Option("--store", help="Folder of the results.")]
DataFolder = Annotated[
    Path | None, typer.Option("--data", help="Folder of the files that the plan names (default: here).")
]


def _fail(error: BaseException) -> None:
    from invdiff.cli import fail

    fail(error)


def _errors() -> tuple[type[BaseException], ...]:
    from invdiff.benchmark.store import LockedError
    from invdiff.cli import USER_ERRORS

    return (*USER_ERRORS, LockedError, ImportError, SyntaxError)


@app.command()
def run(
    plan: PlanFile,
    store: StoreFolder,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Worker processes on this machine (default: this process alone).")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="A running dask scheduler, e.g. tcp://127.0.0.1:8786.")
    ] = None,
    slurm: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TOML with the arguments of dask_jobqueue.SLURMCluster.")
    ] = None,
    data: DataFolder = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch in each worker.")] = 1,
    device: Annotated[str, typer.Option(help="'cpu' or 'cuda'; each worker has one GPU.")] = "cpu",
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples at a time (default: all).")] = None,
    attempts: Annotated[int, typer.Option(min=1, help="How often a task is tried.")] = 3,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try failed tasks of earlier runs again.")
    ] = False,
) -> None:
    """Compute what the store lacks of a plan. The same command continues an interrupted run."""
    from tqdm import tqdm

    from invdiff.benchmark import engine
    from invdiff.benchmark.plan import Plan
    from invdiff.cli import check_device

    try:
        if sum(option is not None for option in (workers, scheduler, slurm)) > 1:
            raise ValueError("Choose one of --workers, --scheduler and --slurm.")
        check_device(device)
        checked = Plan.read(plan, data=data)
        with (
            _executor(workers, scheduler, slurm, threads, device) as executor,
            tqdm(desc=checked.name, unit="task", dynamic_ncols=True, disable=None) as bar,
        ):

            def callback(ended: int, total: int, outcome: engine.Outcome | None) -> None:
                bar.total = total
                bar.update(ended - bar.n)
                if outcome is not None and outcome.state != "done":
                    more = "" if outcome.state == "failed" else " (will be tried again)"
                    bar.write(f"{outcome.key[:12]}: {outcome.message}{more}")

            summary = engine.run(
                checked, store, executor=executor, data=data, device=device, threads=threads, batch_size=batch_size,
                attempts=attempts, retry_failed=retry_failed, callback=callback,
            )  # fmt: skip
    except KeyboardInterrupt:
        console.print(f"Interrupted; the same command continues from {store}/.")
        raise typer.Exit(130) from None
    except _errors() as error:
        _fail(error)
    for path in summary.damaged:
        console.print(f"A damaged result was set aside and computed again: {path}", highlight=False, soft_wrap=True)
    console.print(
        f"{summary.total} tasks: {summary.done} computed now, {summary.stored} found in {store}/, "
        f"{len(summary.failed)} failed.", highlight=False, soft_wrap=True,
    )  # fmt: skip
    for key, message in list(summary.failed.items())[:20]:
        first = message.splitlines()[0] if message else ""
        console.print(f"  failed {key[:12]}: {first}", highlight=False, soft_wrap=True, markup=False)
    if summary.failed:
        show = f"invdiff bench show KEY --store {shlex.quote(str(store))}"
        text = f"The tracebacks: {show}\nTo try again, add --retry-failed to this command."
        console.print(text, highlight=False, soft_wrap=True, markup=False)
        raise typer.Exit(1)


def _executor(workers: int | None, scheduler: str | None, slurm: Path | None, threads: int, device: str) -> Any:
    import contextlib

    from invdiff.benchmark import engine

    if workers is None and scheduler is None and slurm is None:
        return contextlib.nullcontext(engine.serial)
    from invdiff.benchmark import cluster

    if scheduler is not None:
        return cluster.connect(scheduler)
    if slurm is not None:
        return cluster.slurm(slurm, threads=threads)
    assert workers is not None
    return cluster.local(workers, threads=threads, device=device)


@app.command()
def status(plan: PlanFile, store: StoreFolder, data: DataFolder = None) -> None:
    """What of a plan is done, failed, running or missing."""
    from collections import Counter

    from invdiff.benchmark import engine
    from invdiff.benchmark.plan import Plan
    from invdiff.benchmark.store import Store

    try:
        checked, opened = Plan.read(plan, data=data), Store(store)
        counts: dict[tuple[str, str], Counter[str]] = {}
        running, failures, seen = opened.all_running(), [], set[str]()
        for cell, task in engine.tasks(checked, opened, make=False):
            state = "missing"
            if task is not None:
                if task.key in seen:
                    continue
                seen.add(task.key)
                if opened.has(task.key):
                    state = "done"
                elif task.key in running:
                    state = "running"
                elif failure := opened.failure(task.key):
                    state = "failed"
                    error = failure["errors"][-1]
                    failures.append((task.key, len(failure["errors"]), f"{error['kind']}: {error['message']}"))
            problem = f"{cell.problem}, validation" if cell.search else cell.problem
            counts.setdefault((problem, cell.label), Counter())[state] += 1
    except _errors() as error:
        _fail(error)
    states = ("done", "running", "failed", "missing")
    table = Table("problem", "method", *states)
    for (problem, method), c in counts.items():
        table.add_row(problem, method, *(str(c[s]) if c[s] else "" for s in states))
    total = sum(counts.values(), Counter[str]())
    table.add_section()
    table.add_row("all", "", *(str(total[s]) for s in states))
    console.print(table)
    for key, n, message in failures[:20]:
        text = f"failed {key[:12]} ({n} attempts): {message.splitlines()[0]}"
        console.print(text, highlight=False, soft_wrap=True, markup=False)


@app.command()
def show(key: Annotated[str, typer.Argument(help="A task's key, or its first digits.")], store: StoreFolder) -> None:
    """Everything about one task: what it is, its numbers, its log, or its tracebacks."""
    from invdiff.benchmark.store import Store

    try:
        opened = Store(store)
        full = opened.find(key)
        failure = opened.failure(full)
        result = opened.read(full) if opened.has(full) else None
    except _errors() as error:
        _fail(error)

    def section(title: str, values: Any) -> None:
        console.print(f"[bold]{title}[/]")
        console.print(json.dumps(values, indent=1), highlight=False, soft_wrap=True, markup=False)

    console.print(f"[bold]{full}[/] {'done' if result else 'failed'}", highlight=False)
    if result is not None:
        section("labels", dict(result.labels))
        section("task", json.loads(result.spec.to_json()))
        section("numbers", dict(result.metrics))
        section("environment", dict(result.env))
        if (log := opened.folder(full) / "log.txt").is_file():
            console.print("[bold]log[/]")
            console.print(log.read_text(), highlight=False, markup=False)
    elif failure is not None:
        section("labels", failure["labels"])
        section("task", failure["spec"])
        for n, attempt in enumerate(failure["errors"], 1):
            console.print(f"[bold]attempt {n}[/], {attempt['time']} on {attempt['host']}", highlight=False)
            text = f"{attempt['kind']}: {attempt['message']}\n{attempt['traceback']}"
            console.print(text, highlight=False, markup=False)


@app.command()
def report(
    plan: PlanFile,
    store: StoreFolder,
    out: Annotated[Path, typer.Option(help="The HTML file.")] = Path("report.html"),
    table: Annotated[Path | None, typer.Option(help="Also the tables alone, as text.")] = None,
    data: DataFolder = None,
) -> None:
    """One self-contained HTML file: tables, plots, and a viewer of the images."""
    from invdiff.benchmark.plan import Plan
    from invdiff.benchmark.report import write_report, write_tables
    from invdiff.benchmark.store import Store

    try:
        checked, opened = Plan.read(plan, data=data), Store(store)
        n = write_report(checked, opened, out, data=data)
        if table is not None:
            write_tables(checked, opened, table)
    except _errors() as error:
        _fail(error)
    console.print(f"{n} results in {out}", highlight=False, soft_wrap=True)
