"""Turn the tutorial scripts into executed notebooks.

    python docs/tutorials.py [NAME ...] [--force]

A script that has not changed since its notebook was made is left alone. Kernels run in a scratch folder, with
docs/tutorials/ as nothing but the place where the notebooks go.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "tutorials"


def notebook(script: Path) -> Any:
    """A script as a notebook that JupyterLab opens without asking for a kernel; not executed."""
    import jupytext

    made = jupytext.read(script)
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    made.metadata["script_sha256"] = hashlib.sha256(script.read_bytes()).hexdigest()
    return made


def make(script: Path, *, force: bool = False) -> None:
    """Execute one script as a notebook beside it. Raises what the notebook raised."""
    import nbformat
    from nbclient import NotebookClient

    target, made = script.with_suffix(".ipynb"), notebook(script)
    digest = made.metadata["script_sha256"]
    if not force and target.is_file() and nbformat.read(target, 4).metadata.get("script_sha256") == digest:
        return
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        place = {"metadata": {"path": scratch}}
        NotebookClient(made, timeout=600, kernel_name="python3", resources=place).execute()
    tmp = target.with_suffix(".tmp")
    nbformat.write(made, tmp)
    tmp.replace(target)
    print(f"{script.name}: {time.monotonic() - begun:.0f} s", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="without .py; default: all")
    parser.add_argument("--force", action="store_true")
    arguments = parser.parse_args()
    scripts = sorted(FOLDER.glob("*.py"))
    if unknown := set(arguments.names) - {s.stem for s in scripts}:
        print(f"No tutorial {', '.join(sorted(unknown))}; there are {', '.join(s.stem for s in scripts)}.")
        return 2
    for script in scripts:
        if not arguments.names or script.stem in arguments.names:
            make(script, force=arguments.force)
    return 0


if __name__ == "__main__":
    sys.exit(main())
