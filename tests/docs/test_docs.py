"""The documentation: its examples run, its links lead somewhere, its pages build without a warning."""

from __future__ import annotations

import importlib.util
import re
import runpy
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

import pytest
import torch
from typer.testing import CliRunner

from invdiff import Posterior
from invdiff.cli import app

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [p for p in DOCS.rglob("*.md") if not {"_build", "_generated"} & set(p.relative_to(DOCS).parts)]


@pytest.mark.parametrize("name", ["own_operator", "prior"])
def test_examples_run_as_they_stand(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(DOCS / "examples" / f"{name}.py"))
    assert capsys.readouterr().out


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", DOCS / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_example_of_an_algorithm_samples_a_gaussian_posterior() -> None:
    from invdiff import GaussianNoise, Measurement
    from invdiff.operators import Inpainting, random_pixels
    from invdiff.priors import GaussianPrior, StationaryCovariance

    shape = (1, 8, 8)
    prior = GaussianPrior(torch.zeros(shape), StationaryCovariance(torch.full(shape, 0.25)))
    A = Inpainting(random_pixels(shape, 0.5, seed=0))
    m = Measurement.simulate(prior.sample(1, seed=1)[0], A, GaussianNoise(0.3), seed=0)
    p = example("algorithm").AnnealedLangevin(n_inner=10)(prior, m, n_samples=200)
    gain = 0.25 / (0.25 + 0.09)
    exact = A.mask * gain * m.y
    assert float((p.mean - exact).square().mean().sqrt()) < 0.12  # 0.035 is the sampling error
    assert float(p.std[~A.mask].mean()) == pytest.approx(0.5, rel=0.15)


def test_the_quick_start_reconstructs_an_own_sinogram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(DOCS / "examples" / "quickstart.py"))
    (tmp_path / "scan.toml").write_text((DOCS / "examples" / "scan.toml").read_text())
    command = re.search(r"^invdiff (reconstruct scan.npy.*)$", (DOCS / "quickstart.md").read_text(), re.M)
    assert command is not None
    arguments = command[1].replace("n_anneal=50", "n_anneal=20").replace("--samples 8", "--samples 2").split()
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    p = Posterior.load(tmp_path / "posterior")
    x = p.mean[0]
    assert float(x[60:68, 30:40].mean()) == pytest.approx(0.02, rel=0.1)  # the disc, 1/mm
    assert float(x[62:66, 77:81].mean()) == pytest.approx(0.005, abs=0.0025)  # its hole
    assert len(list((tmp_path / "posterior").glob("*.nii.gz"))) == 3


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(DOCS)))
def test_internal_links_and_pictures_exist(page: Path) -> None:
    text = page.read_text()
    targets = re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", text)
    targets += re.findall(r"```\{(?:literalinclude|include)\} (\S+)", text)
    targets += [t + ".md" for t in re.findall(r"^:link: (\S+)$", text, re.M)]
    missing = [t for t in targets if "_generated" not in t and not (page.parent / t).exists()]
    assert missing == []


def broken_links(site: Path) -> list[str]:
    """Links within a built site whose file or anchor does not exist."""
    text = {p: p.read_text() for p in site.rglob("*.html") if "_static" not in p.parts}  # without the theme's templates
    anchors = {page: set(re.findall(r'\bid="([^"]+)"', html)) for page, html in text.items()}
    assert site / "index.html" in text
    broken = []
    for page, html in text.items():
        for link in set(re.findall(r'\b(?:href|src)="([^"]*)"', html)):
            if re.match(r"[a-z]+:|//", link):
                continue
            address, _, anchor = unescape(link).partition("#")
            target = (page.parent / unquote(address.partition("?")[0])).resolve() if address else page
            if not target.exists() or (anchor and target in anchors and unquote(anchor) not in anchors[target]):
                broken.append(f"{page.relative_to(site)}: {link}")
    return broken


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="the extra 'docs' is not installed")
    pytest.importorskip("myst_nb", reason="the extra 'docs' is not installed")
    jupytext = pytest.importorskip("jupytext", reason="the extra 'docs' is not installed")
    docs = tmp_path / "docs"
    shutil.copytree(DOCS, docs, ignore=shutil.ignore_patterns("_build", "_generated", "*.ipynb"))
    for included in ("benchmarks", "invdiff"):
        (tmp_path / included).symlink_to(DOCS.parent / included)
    for script in (docs / "tutorials").glob("*.py"):  # as notebooks, not executed
        notebook = jupytext.read(script)
        notebook.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
        jupytext.write(notebook, script.with_suffix(".ipynb"))
    options = ["-W", "--keep-going", "-q", "-b", "html"]
    build = [sys.executable, "-m", "sphinx", *options, str(docs), str(tmp_path / "html")]
    run = subprocess.run(build, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert broken_links(tmp_path / "html") == []


def test_the_citation_file_follows_the_schema() -> None:
    """What version 1.2 of the Citation File Format requires and allows, as far as this file uses it."""
    yaml = pytest.importorskip("yaml", reason="the extra 'docs' is not installed")
    citation = yaml.safe_load((DOCS.parent / "CITATION.cff").read_text())
    required = {"authors", "cff-version", "message", "title"}
    allowed = required | {
        "abstract", "commit", "contact", "date-released", "doi", "identifiers", "keywords", "license", "license-url",
        "preferred-citation", "references", "repository", "repository-artifact", "repository-code", "type", "url",
        "version",
    }  # fmt: skip
    assert required <= set(citation) <= allowed
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] in ("software", "dataset")
    for author in citation["authors"]:  # an entity has a name, a person a given or a family name
        assert "name" in author or {"family-names", "given-names"} & set(author)
    assert len(set(citation["keywords"])) == len(citation["keywords"])
    project = (DOCS.parent / "pyproject.toml").read_text()
    assert f'version = "{citation["version"]}"' in project
    assert f'license = "{citation["license"]}"' in project


def test_the_pages_include_the_tested_files_and_hold_no_copies() -> None:
    included = {
        page: re.findall(r"```\{literalinclude\} examples/(\S+)", (DOCS / page).read_text())
        for page in ("extending.md", "quickstart.md")
    }
    assert included == {
        "extending.md": ["own_operator.py", "algorithm.py", "prior.py"],
        "quickstart.md": ["quickstart.py", "scan.toml"],
    }
    assert "```python" not in (DOCS / "extending.md").read_text()
    for name in included["extending.md"]:  # complete, and short enough to read
        assert 15 <= len([line for line in (DOCS / "examples" / name).read_text().splitlines() if line]) <= 40
