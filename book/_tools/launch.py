"""Write the notebooks as Colab and Binder open them: each begins by getting the book's package.

    python book/_tools/launch.py --repository OWNER/NAME --commit SHA --out DIR

A notebook in the book's own tree imports `mpbook` and nothing before it. In a fresh runtime there
is no `mpbook`, so here each notebook gets a first cell that installs it from this commit, and does
nothing where it is installed. Binder installs from the `requirements.txt` written beside them. The
workflow publishes the folder as the branch `notebooks`, which the pages' launch buttons name.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat
from refresh import BOOK, notebooks

BRANCH = "notebooks"
SETUP_ID = "get-mpbook"
SETUP = """\
# In a fresh runtime, such as Colab's, this gets the book's package; elsewhere it does nothing.
import importlib.util

if importlib.util.find_spec("mpbook") is None:
    %pip install --quiet "{requirement}"\
"""


def requirement(repository: str, commit: str) -> str:
    """Return what pip installs: the package with what notebooks need, at one commit."""
    return f"mpbook[notebook] @ git+https://github.com/{repository}@{commit}"


def with_setup(notebook: nbformat.NotebookNode, wanted: str) -> nbformat.NotebookNode:
    """Return the notebook, its outputs kept, with the setup as its first code cell."""
    cell = nbformat.v4.new_code_cell(SETUP.format(requirement=wanted), id=SETUP_ID)
    first = next((i for i, c in enumerate(notebook.cells) if c.cell_type == "code"), 0)
    cells = [*notebook.cells[:first], cell, *notebook.cells[first:]]
    return nbformat.from_dict({**notebook, "cells": cells})


def write(out: Path, *, repository: str, commit: str) -> list[Path]:
    """Write every notebook of the book and Binder's requirements into an empty or new folder.

    Returns:
        The notebooks.

    Raises:
        ValueError: a repository that is not OWNER/NAME, a commit that is no hash.
        FileExistsError: the folder holds something.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ValueError(f"--repository {repository}: expected OWNER/NAME")
    if not re.fullmatch(r"[0-9a-f]{7,64}", commit):
        raise ValueError(f"--commit {commit}: expected a commit's hash")
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"--out {out}: expected an empty folder")
    wanted, written = requirement(repository, commit), []
    for source in notebooks():
        target = out / source.relative_to(BOOK.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(with_setup(nbformat.read(source, as_version=4), wanted), target)
        written.append(target)
    (out / "requirements.txt").write_text(f"jupyterlab\n{wanted}\n", "utf-8")
    shutil.copy(BOOK.parent / "LICENSE", out)
    return written


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repository", required=True, metavar="OWNER/NAME", help="on GitHub")
    parser.add_argument("--commit", required=True, metavar="SHA", help="to install mpbook from")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="an empty folder")
    chosen = parser.parse_args(arguments)
    try:
        written = write(chosen.out, repository=chosen.repository, commit=chosen.commit)
    except (ValueError, OSError) as error:
        print(f"launch: {error}", file=sys.stderr)
        return 1
    print(f"{len(written)} notebooks in {chosen.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
