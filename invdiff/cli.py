"""The command line: ``invdiff demo | reconstruct | truth | bench | list | cite | train | prior``."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from invdiff.benchmark.cli import app as bench_app
from invdiff.progress import progress_bar

if TYPE_CHECKING:
    from invdiff.measurement import Measurement
    from invdiff.priors import PriorInfo

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Diffusion posterior sampling for imaging inverse problems.",
)  # fmt: skip
prior_app = typer.Typer(no_args_is_help=True, help="What is known about a prior; published checkpoints as priors.")
app.add_typer(prior_app, name="prior")
app.add_typer(bench_app, name="bench")
console = Console()


@app.callback()
def _program() -> None:
    from invdiff.priors.memory import keep_freed_memory

    keep_freed_memory()
    if "" not in sys.path:  # plug-ins of the current folder; last, where they hide nothing that is installed
        sys.path.append("")


Overwrite = Annotated[bool, typer.Option("--overwrite", help="Allow a non-empty output folder.")]

# What a wrong file, value or combination raises: shown as one line, with exit status 2. Anything else is a
# defect of the program and keeps its traceback.
USER_ERRORS = (ValueError, TypeError, KeyError, OSError, ArithmeticError, MemoryError)


def fail(error: BaseException) -> NoReturn:
    """Print an error as one line and leave with status 2."""
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    Console(stderr=True).print(f"[bold red]error:[/] {_plain(str(text))}", highlight=False, soft_wrap=True)
    raise typer.Exit(2)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("invdiff-demo"),
    samples: Annotated[int, typer.Option(min=2, help="Posterior samples per problem.")] = 8,
    seed: Annotated[int, typer.Option(help="Seed of the samples.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Sparse-view CT and accelerated MRI from real images, with shipped priors; offline, about a minute."""
    from invdiff.demo import run_demo
    from invdiff.posterior import peak_memory
    from invdiff.storage import require_empty

    try:
        require_empty(out, overwrite=overwrite)
        scores = run_demo(out, n_samples=samples, seed=seed, progress=progress_bar)
    except USER_ERRORS as error:
        fail(error)
    table = Table("problem", "reconstruction", "PSNR dB", "SSIM", "data chi2", "seconds", "network evaluations")
    for s in scores:
        table.add_row(
            s.problem, s.reconstruction, f"{s.psnr:.2f}", f"{s.ssim:.3f}", f"{s.chi2:.2f}", f"{s.seconds:.1f}",
            f"{s.nfe:.0f}",
        )  # fmt: skip
    console.print(table)
    console.print("Seconds are for all samples together, network evaluations per sample. chi2 is 1 for the truth.")
    console.print(
        f"Samples, mean, standard deviation and figure.png are in {out}/; peak memory {peak_memory() / 2**30:.1f} GB."
    )


@app.command()
def reconstruct(
    file: Annotated[Path, typer.Argument(help="A file (or a DICOM folder) in any known format, see 'invdiff list'.")],
    prior: Annotated[str, typer.Option(help="A shipped prior's name or a .safetensors file.")],
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    algorithm: Annotated[str, typer.Option(help="See 'invdiff list'.")] = "daps",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A parameter of the algorithm; repeatable."),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Posterior samples.")] = 8,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples at a time (default: all).")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the samples.")] = 0,
    open_: Annotated[
        list[str] | None,
        typer.Option("--open", metavar="NAME=VALUE", help="An option of the file's format, e.g. row=3; repeatable."),
    ] = None,
    views: Annotated[int | None, typer.Option(min=1, help="Use this many equispaced views (CT).")] = None,
    angles: Annotated[
        str | None, typer.Option(metavar="START:STOP", help="Use the views in this arc, degrees (CT).")
    ] = None,
    device: Annotated[str, typer.Option(help="'cpu' or 'cuda'.")] = "cpu",
    overwrite: Overwrite = False,
) -> None:
    """Reconstruct one file: samples, mean and standard deviation, as NIfTI too, and a figure (next to FBP for CT)."""
    from invdiff.algorithms import ALGORITHMS
    from invdiff.algorithms.configure import configure
    from invdiff.classical import FBP
    from invdiff.datasets import open_measurement
    from invdiff.operators import CT
    from invdiff.plot import Row, save_panels
    from invdiff.priors import load_prior
    from invdiff.storage import require_empty

    try:
        require_empty(out, overwrite=overwrite)
        if file.resolve() in [p.resolve() for p in earlier_results(out)]:
            raise ValueError(f"{file} is itself one of the results that --overwrite replaces. Choose another folder.")
        check_device(device)
        sampler = configure(lookup(ALGORITHMS, algorithm, "algorithm"), parse_assignments(set_ or []))
        loaded = load_prior(prior, device=device)
        options = parse_assignments(open_ or [], option="--open")
        options |= {k: v for k, v in (("views", views), ("angles", parse_arc(angles))) if v is not None}
        measurement = placed(open_measurement(file, **options)).to(device=device)
        loaded.in_model_units(measurement)  # do the two fit?
        if note := other_pixels(loaded.info, measurement):
            console.print(note, style="yellow", highlight=False, soft_wrap=True)
        posterior = sampler(
            loaded, measurement, n_samples=samples, seed=seed, batch_size=batch_size,
            callback=progress_bar(algorithm),
        )  # fmt: skip
        earlier = {path: path.stat().st_ino for path in earlier_results(out)}
        posterior.save(out, overwrite=overwrite)
        name = re.sub(r"[^\w.+-]+", "-", measurement.item) or file.name.split(".")[0]
        posterior.export(out / f"{name}.nii.gz", overwrite=True)
        classical = ("FBP", FBP()(None, measurement)) if isinstance(measurement.A, CT) else None
        row = Row(title=file.stem, posterior=posterior, classical=classical, reference=measurement.reference)
        save_panels([row], out / "figure.png")
        for path, inode in earlier.items():  # those that no file of this run has replaced
            if path.stat().st_ino == inode:
                path.unlink()
    except USER_ERRORS as error:
        fail(error)
    chi2, chi2_mean = float(measurement.chi2(posterior.samples).mean()), float(measurement.chi2(posterior.mean))
    console.print(repr(posterior), highlight=False, soft_wrap=True)
    console.print(f"data chi2: {chi2:.2f} per sample, {chi2_mean:.2f} of the mean; written to {out}/")


@app.command()
def truth(
    algorithm: Annotated[
        list[str] | None, typer.Option(help="A row of the bench, or all of an algorithm; repeatable. Default: all.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer measurements, draws and steps.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for truth.json and truth.png.")] = Path("invdiff-truth"),
    seed: Annotated[int, typer.Option(help="Seed of problems, data and samples.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes, one thread each.")] = min(os.cpu_count() or 1, 8),
    overwrite: Overwrite = False,
) -> None:
    """Measure algorithms against exactly known posteriors: calibration, bias, data fit, cost."""
    from tqdm import tqdm

    from invdiff.evaluation.truth import LEGEND, run_truth, save, select, tables
    from invdiff.storage import require_empty

    try:
        select(algorithm)
        require_empty(out, overwrite=overwrite)
        with tqdm(desc="truth bench", unit="row", dynamic_ncols=True) as bar:

            def callback(done: int, total: int, what: str) -> None:
                bar.total = total
                bar.set_postfix_str(what, refresh=False)
                bar.update(done - bar.n)

            records = run_truth(algorithm, quick=quick, seed=seed, workers=workers, callback=callback)
        for table in tables(records):
            console.print(table)
        console.print(LEGEND, highlight=False)
        save(records, out)
    except USER_ERRORS as error:
        fail(error)
    console.print(f"All numbers, with the parameters of every row: {out}/truth.json; figure: {out}/truth.png.")


@app.command("list")
def list_() -> None:
    """Operators, priors, algorithms, classical methods and file formats."""
    from invdiff.algorithms import ALGORITHMS
    from invdiff.classical import CLASSICAL
    from invdiff.datasets import formats
    from invdiff.operators import OPERATORS
    from invdiff.priors import shipped_priors

    for title, entries in (
        ("algorithms", {k: _first_line(v) for k, v in ALGORITHMS.items()}),
        ("classical", {k: _first_line(v) for k, v in CLASSICAL.items()}),
        ("priors", {k: _first_card_line(p) for k, p in shipped_priors().items()}),
        ("operators", {k: _first_line(v) for k, v in OPERATORS.items()}),
        ("formats", {k: _first_line(m) for k, m in formats().items()}),
    ):
        table = Table("name", "what", title=title, title_justify="left", show_header=False)
        for name, what in entries.items():
            table.add_row(name, _plain(what))
        console.print(table)


@app.command()
def cite(name: Annotated[str, typer.Argument(help="An algorithm or classical method.")]) -> None:
    """BibTeX of a method."""
    from invdiff.algorithms import ALGORITHMS
    from invdiff.classical import CLASSICAL

    try:
        bibtex = getattr(lookup({**ALGORITHMS, **CLASSICAL}, name, "method"), "bibtex", None)
        if not isinstance(bibtex, str):
            raise KeyError(f"The method {name!r} cannot be cited; it needs the class attribute bibtex, a text.")
    except USER_ERRORS as error:
        fail(error)
    typer.echo(bibtex)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="A training TOML file.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; the same folder continues it.")],
    data: Annotated[Path | None, typer.Option(help="Folder of the volumes; needed the first time.")] = None,
    max_minutes: Annotated[float, typer.Option(help="Stop, checkpointed, after this time.")] = float("inf"),
    device: Annotated[str | None, typer.Option(help="Default: an accelerator if there is one.")] = None,
    bfloat16: Annotated[bool | None, typer.Option(help="Mixed precision; default: on an accelerator only.")] = None,
) -> None:
    """Train a prior, or continue training it."""
    from tqdm import tqdm

    from invdiff.priors.configuration import TrainConfig
    from invdiff.priors.train import train as run

    try:
        if not config.is_file():
            raise FileNotFoundError(f"No such file: {config}")
        settings = TrainConfig.read(config)
        if device is not None:
            check_device(device)
        with tqdm(total=settings.total_steps, desc=settings.name, unit="step", dynamic_ncols=True) as bar:

            def callback(step: int, n_steps: int, loss: float) -> None:
                if bar.n == 0:  # a run that continues: its earlier steps took no time now
                    bar.initial = bar.n = step - 1
                bar.update(step - bar.n)
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)

            path = run(
                settings, out, data=data, max_minutes=max_minutes, device=device, bfloat16=bfloat16, callback=callback,
            )  # fmt: skip
    except USER_ERRORS as error:
        fail(error)
    console.print(
        f"Finished: {path}" if path else f"Stopped before the last step; the same command continues from {out}/."
    )


_CURVE = {"sigma": "sigma", "noisy": "noisy", "tv": "TV", "linear": "linear", "prior": "prior"}


PriorOptions = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="What the file leaves open, e.g. size=256; repeatable."),
]


@prior_app.command("info")
def prior_info(
    name: Annotated[str, typer.Argument(help="A shipped prior's name, a checkpoint, or a folder of diffusers.")],
    set_: PriorOptions = None,
) -> None:
    """Everything known about a prior."""
    from invdiff.priors import load_prior
    from invdiff.priors.latent import LatentPrior

    try:
        p = load_prior(name, **parse_assignments(set_ or []))
    except USER_ERRORS as error:
        fail(error)
    latent = " x ".join(map(str, p.shape)) if isinstance(p, LatentPrior) else ""
    shape, modules = (p.image_shape, p.modules) if isinstance(p, LatentPrior) else (p.shape, [p.module])
    n = sum(q.numel() for module in modules for q in module.parameters())
    table = Table("", "", show_header=False)
    for key, value in (
        ("name", p.info.name),
        ("image", " x ".join(map(str, shape))),
        *([("latent", latent)] if latent else []),
        ("values", f"{p.info.value_range[0]:g} to {p.info.value_range[1]:g}; 1 is {p.info.quantity}"),
        (
            "pixel size",
            "" if p.info.pixel_size is None else f"{p.info.pixel_size[0]:g} to {p.info.pixel_size[1]:g} mm",
        ),
        ("sigma", f"{p.sigma_min:g} to {p.sigma_max:g} ({'latent units' if latent else 'model units, range 2'})"),
        ("parameters", f"{n:,}"),
        ("trained on", p.info.trained_on),
        ("licence", p.info.licence),
        ("sha256", p.info.sha256),
        *((k, v) for k, v in p.info.details.items() if k != "denoising_psnr"),
    ):
        table.add_row(key, _plain(str(value)))
    console.print(table)
    if curve := p.info.details.get("denoising_psnr"):
        title = f"denoising {'the latents of ' if latent else ''}held-out slices, PSNR in dB"
        levels = Table(*(_CURVE[k] for k in curve[0]), title=title, title_justify="left")
        for r in curve:
            levels.add_row(*(f"{v:g}" if k == "sigma" else f"{v:.1f}" for k, v in r.items()))
        console.print(levels)


@prior_app.command("convert")
def prior_convert(
    source: Annotated[str, typer.Argument(help="A published checkpoint, or a folder of diffusers.")],
    out: Annotated[Path, typer.Argument(help="The prior's file, .safetensors.")],
    half: Annotated[bool, typer.Option("--half", help="Weights in fp16 rather than fp32.")] = False,
    set_: PriorOptions = None,
    trusted: Annotated[
        bool, typer.Option("--i-trust-this-file", help="Read a pickle too, in a process of its own.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Write a published checkpoint as a prior of this package."""
    import torch

    from invdiff.priors.checkpoints import read_checkpoint

    try:
        if out.exists() and not overwrite:
            raise FileExistsError(f"{out} exists. Choose another name, or allow replacing it (--overwrite).")
        options = parse_assignments(set_ or [])
        checkpoint = read_checkpoint(source, trusted=trusted, **options)
        checkpoint.prior()  # do the weights fit?
        checkpoint.save(out, dtype=torch.float16 if half else torch.float32)
    except USER_ERRORS as error:
        fail(error)
    console.print(f"Written: {out} ({out.stat().st_size / 1e6:.1f} MB, {'fp16' if half else 'fp32'})")


def earlier_results(folder: Path) -> list[Path]:
    """What an earlier ``reconstruct`` wrote into a folder."""
    name = r"posterior\.(safetensors|json)|figure\.png|.+_desc-(mean|std|samples)_image\.(nii\.gz|json)"
    return [p for p in folder.iterdir() if re.fullmatch(name, p.name)] if folder.is_dir() else []


def placed(measurement: Any) -> Any:
    """The measurement with the place of its pixels in its metadata, where only its CT geometry knows it."""
    from dataclasses import replace

    from invdiff.datasets.geometry import placement
    from invdiff.operators import CT

    if "affine" in measurement.metadata or not isinstance(measurement.A, CT):
        return measurement
    geometry = measurement.A.geometry
    place = placement(geometry.image_shape, geometry.pixel_spacing)
    return replace(measurement, metadata={**measurement.metadata, **place})


def other_pixels(info: PriorInfo, measurement: Measurement) -> str | None:
    """A line for the user whose pixels are smaller or larger than any that the prior has seen; None where they fit."""
    known = measurement.metadata.get("voxel_size_mm", measurement.metadata.get("pixel_size_mm"))
    if info.pixel_size is None or known is None:
        return None
    sizes = sorted({float(f"{v:.3g}") for v in (known[:2] if isinstance(known, list | tuple) else [known])})
    lo, hi = info.pixel_size
    if 0.95 * lo <= sizes[0] and sizes[-1] <= 1.05 * hi:
        return None
    return (
        f"Note: the prior {info.name} knows pixels of {lo:g} to {hi:g} mm, these are of "
        f"{' x '.join(f'{v:g}' for v in sizes)} mm. What it adds to the data has the look of another scale: trust the "
        f"posterior less, or reconstruct on pixels of a size that the prior knows."
    )


def check_device(device: str) -> None:
    """Raise ValueError for an unknown device, or one that this machine or this build of torch lacks."""
    import torch

    if device != "cpu" and not (device.split(":")[0] == "cuda" and torch.cuda.is_available()):
        raise ValueError(f"The device {device!r} is not available here; use 'cpu', or 'cuda' with an NVIDIA GPU.")


def parse_arc(text: str | None) -> tuple[float, float] | None:
    """``START:STOP`` in degrees. Raises ValueError."""
    if text is None:
        return None
    try:
        start, stop = (float(v) for v in text.split(":"))
    except ValueError:
        raise ValueError(f"--angles takes START:STOP in degrees, e.g. 0:90, got {text!r}.") from None
    return start, stop


def parse_assignments(texts: list[str], *, option: str = "--set") -> dict[str, Any]:
    """``NAME=VALUE`` pairs: numbers, booleans and lists as in TOML, anything else is text. Raises ValueError."""
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ValueError(f"{option} takes NAME=VALUE, got {text!r}.")
        values[name.strip()] = _value(value.strip())
    return values


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1]
    if text.startswith("[") and text.endswith("]"):
        return [_value(part.strip()) for part in text[1:-1].split(",") if part.strip()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def lookup(table: dict[str, type], name: str, what: str) -> Any:
    """An entry of a literal table, or a plug-in ``package.module:Class``. Raises KeyError with the known names."""
    if name in table:
        return table[name]
    if ":" in name:
        import importlib

        module, _, attribute = name.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, SyntaxError, ValueError, TypeError) as error:
            raise KeyError(f"Cannot load the {what} {name!r}: {error}.") from None
    raise KeyError(f"No {what} {name!r}; there are {', '.join(table)} (or package.module:Class).")


def _first_line(what: Any) -> str:
    """The first paragraph of a docstring, as plain text."""
    paragraph = " ".join((what.__doc__ or "").strip().split("\n\n")[0].split())
    return re.sub(r"(?<!\w)\*(\w[^*]*\w)\*(?!\w)", r"\1", re.sub(r":class:|`", "", paragraph))


def _first_card_line(path: Path) -> str:
    from safetensors import safe_open

    with safe_open(path, "pt") as f:
        return str(json.loads(f.metadata()["invdiff"])["info"]["trained_on"])
