"""Sphinx configuration. ``make -C docs html`` builds the site; warnings are errors."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

from invdiff import __version__

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))

project = "invdiff"
author = "The invdiff developers"
release = version = __version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_design",
]
exclude_patterns = ["_build", "tutorials/*.py", "examples"]
html_theme = "pydata_sphinx_theme"
html_title = "invdiff"
html_theme_options = {
    "show_prev_next": False,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "header_links_before_dropdown": 5,
}
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_sidebars = {page: [] for page in (  # the pages without a section of their own
    "index", "install", "quickstart", "conventions", "formats", "priors", "algorithms", "gallery", "uncertainty",
    "limits", "benchmarks", "extending", "references", "genindex", "search",
)}  # fmt: skip
html_show_sourcelink = False
nb_execution_mode = "off"  # docs/tutorials.py runs the notebooks beforehand
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
autosummary_generate = True
autodoc_typehints = "none"  # they stand in the signature
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "exclude-members": "bibtex"}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_param = False  # as a list: a field for "n_pixel, n_latent" would read "n_latent (n_pixel,)"
napoleon_use_rtype = False
napoleon_custom_sections = [("Attributes", "params_style")]
suppress_warnings = ["mystnb.unknown_mime_type"]


def bibliography() -> str:
    """Every method's BibTeX entry: what ``invdiff cite`` prints."""
    from invdiff.algorithms import ALGORITHMS
    from invdiff.classical import CLASSICAL

    parts = []
    for title, table in (("Algorithms", ALGORITHMS), ("Classical reconstructions", CLASSICAL)):
        parts.append(f"## {title}\n")
        for name, method in table.items():
            parts.append(f"### `{name}`\n\n{first_line(method)}\n\n```bibtex\n{method.bibtex}\n```\n")
    return "\n".join(parts)


def first_line(obj: object) -> str:
    """First paragraph of a docstring, as Markdown text."""
    text = " ".join((inspect.getdoc(obj) or "").split("\n\n")[0].split())
    return re.sub(r":\w+:`~?([\w.]+)`", r"`\1`", text).replace("``", "`")


def formats() -> str:
    """One row per file format, from the first line of its reader."""
    from invdiff.datasets import formats

    rows = [f"| {name} | {first_line(module)} |" for name, module in formats().items()]
    return "\n".join(["| format | what |", "|---|---|", *rows]) + "\n"


def checkpoints() -> str:
    """One row per layout of published checkpoints."""
    from invdiff.priors.checkpoints import formats

    rows = [f"| {name} | {first_line(module)} |" for name, module in formats().items()]
    return "\n".join(["| layout | what |", "|---|---|", *rows]) + "\n"


def labels() -> str:
    """One row per algorithm: its label, what it costs, and its row of the truth bench."""
    from invdiff.algorithms import ALGORITHMS

    rows = []
    for name, cls in ALGORITHMS.items():
        text = " ".join((inspect.getdoc(cls) or "").split())
        label = re.search(r"Label: \*(.+?)\*", text)
        bench = re.search(r"Truth bench, (.+?)\. ", text + " ")
        assert label, name
        assert bench, name
        rows.append(f"| [`{name}`](#invdiff.algorithms.{cls.__name__}) | {label[1]} | {bench[1]} |")
    return "\n".join(["| algorithm | targets | truth bench |", "|---|---|---|", *rows]) + "\n"


def found_by_name(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Lead a reference to the public name of what it means: ``CT``, or ``invdiff.priors.interop.from_deepinv``."""
    from sphinx.util.nodes import make_refnode

    if node.get("refdomain") != "py" or app.builder is None:
        return None
    package, _, name = node["reftarget"].rpartition(".")
    objects = {
        full: entry
        for full, entry in env.get_domain("py").objects.items()
        if full.rpartition(".")[2] == name and entry.objtype in ("class", "function", "exception") and not entry.aliased
    }
    near = [full for full in objects if package and full.split(".")[:2] == package.split(".")[:2]] or list(objects)
    if len(near) != 1:
        return None
    entry = objects[near[0]]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content, near[0])


def setup(app: Any) -> None:
    app.connect("missing-reference", found_by_name)


def generate() -> None:
    """Pages that come from the code, written before Sphinx reads the sources."""
    folder = DOCS / "_generated"
    folder.mkdir(exist_ok=True)
    for name, make in (
        ("bibliography", bibliography), ("checkpoints", checkpoints), ("formats", formats), ("labels", labels),
    ):  # fmt: skip
        (folder / f"{name}.md").write_text(make())


generate()
exclude_patterns.append("_generated")
