"""Strict nbval really compares: with the book's own settings, a falsified notebook fails.

A small notebook is executed for real, then compared in a pytest of its own: as it is, and with
one output changed. What nbval cannot see, an unexecuted cell, the book's lint must.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import lint
import nbformat
import pytest
import refresh
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from visits import ROOT

pytestmark = pytest.mark.slow

CELLS = [
    new_markdown_cell("# A small notebook"),
    new_code_cell("print(0.1 + 0.2)"),
    new_code_cell("2**-24"),
    new_code_cell("0.5;"),
    new_code_cell('from IPython.display import HTML\nHTML("<b>65504</b>")'),
    new_code_cell("1 / 0", metadata={"tags": ["raises-exception"]}),
    new_code_cell("import time\ntime.time()", metadata={"tags": ["nbval-ignore-output"]}),
    new_code_cell("object()"),
]


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> NotebookNode:
    """Return the notebook, executed and normalised as `make refresh` does."""
    path = tmp_path_factory.mktemp("small") / "small.ipynb"
    nbformat.write(new_notebook(cells=CELLS), path)
    return refresh.normalise(refresh.execute(path))


def falsify_stdout(cells: list[NotebookNode]) -> None:
    cells[1].outputs[0].text = "0.3\n"


def falsify_result(cells: list[NotebookNode]) -> None:
    cells[2].outputs[0].data["text/plain"] = "5.960464477539063e-09"


def falsify_html(cells: list[NotebookNode]) -> None:
    cells[4].outputs[0].data["text/html"] = "<b>65520</b>"


def drop_an_output(cells: list[NotebookNode]) -> None:
    cells[2].outputs = []


def falsify_the_exception(cells: list[NotebookNode]) -> None:
    cells[5].outputs[0].ename = "ValueError"


def break_an_ignored_cell(cells: list[NotebookNode]) -> None:
    cells[6].source = "raise RuntimeError"


FALSIFIED: dict[Callable[[list[NotebookNode]], None], int] = {
    falsify_stdout: 0,
    falsify_result: 1,
    falsify_html: 3,
    drop_an_output: 1,
    falsify_the_exception: 4,
    break_an_ignored_cell: 5,
}
"""What is done to the notebook, and the code cell that must fail for it."""


@pytest.fixture(scope="module")
def outcomes(
    executed: NotebookNode, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[int, str]]:
    """How pytest, with the book's own settings, judges each cell of each of the notebooks."""
    folder = tmp_path_factory.mktemp("judged")
    (folder / "book").mkdir()
    shutil.copy(ROOT / "pyproject.toml", folder)
    shutil.copy(ROOT / "book" / "conftest.py", folder / "book")
    shutil.copytree(ROOT / "book" / "_tools", folder / "book" / "_tools")
    nbformat.write(executed, folder / "book" / "as_executed.ipynb")
    for falsify in FALSIFIED:
        notebook = nbformat.from_dict(executed)
        falsify(notebook.cells)
        nbformat.write(notebook, folder / "book" / f"{falsify.__name__}.ipynb")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-rA", "book"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    found: dict[str, dict[int, str]] = {}
    line = r"^(PASSED|FAILED) book/(\w+)(?:\.ipynb|::ipynb)::Cell (\d+)"
    for outcome, name, cell in re.findall(line, done.stdout, re.MULTILINE):
        found.setdefault(name, {})[int(cell)] = outcome
    assert found, done.stdout + done.stderr
    return found


def test_the_notebook_as_executed_passes(outcomes: dict[str, dict[int, str]]) -> None:
    assert outcomes["as_executed"] == dict.fromkeys(range(7), "PASSED")


@pytest.mark.parametrize("falsify", FALSIFIED)
def test_a_falsified_notebook_fails_at_that_cell_alone(
    outcomes: dict[str, dict[int, str]], falsify: Callable[[list[NotebookNode]], None]
) -> None:
    wanted = {**dict.fromkeys(range(7), "PASSED"), FALSIFIED[falsify]: "FAILED"}
    assert outcomes[falsify.__name__] == wanted


def test_an_unexecuted_cell_passes_nbval_but_not_the_lint(executed: NotebookNode) -> None:
    notebook = nbformat.from_dict(executed)
    notebook.cells[2].execution_count, notebook.cells[2].outputs = None, []
    assert lint.executed(executed) == []
    assert lint.executed(notebook) != []


def test_a_refresh_that_fails_writes_nothing(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.ipynb", tmp_path / "later_bad.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell("1")]), good)
    nbformat.write(new_notebook(cells=[new_code_cell("1 / 0")]), bad)
    before = good.read_bytes()
    with pytest.raises(Exception, match="ZeroDivisionError"):
        refresh.refresh([good, bad])
    assert good.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [good, bad]


def test_a_second_refresh_changes_nothing(executed: NotebookNode, tmp_path: Path) -> None:
    path = tmp_path / "again.ipynb"
    cells = [cell for cell in executed.cells if "nbval-ignore-output" not in lint.tags(cell)][:-1]
    nbformat.write(nbformat.from_dict({**executed, "cells": cells}), path)
    refresh.refresh([path])
    once = path.read_bytes()
    refresh.refresh([path])
    assert path.read_bytes() == once
