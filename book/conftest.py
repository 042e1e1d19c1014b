"""How pytest compares the book's notebooks: strict nbval, with what it needs to be right.

nbval 0.11 has two quirks that would fail a correct notebook: it ignores a trailing `;`, and it
compares SVG pictures byte by byte while it only asks that a PNG is there.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from nbval.kernel import RunningKernel
from nbval.plugin import IPyNbFile

SANITIZER = Path(__file__).parent / "_tools" / "nbval_sanitize.cfg"


def _execute(kernel: RunningKernel, source: str, allow_stdin: bool | None = None) -> str:
    """Run a cell as a reader does: without `store_history` a trailing `;` means nothing."""
    options = {"store_history": True, "allow_stdin": allow_stdin, "stop_on_error": False}
    return str(kernel.kc.execute(source, **options))


def pytest_configure(config: pytest.Config) -> None:
    """Mend nbval, and name its sanitiser by a path that holds from any working directory."""
    RunningKernel.execute_cell_input = _execute
    config.option.nbval_sanitize_with = str(SANITIZER)
    # Idle OpenMP threads that spin make a shared machine's kernels many times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # torch's compiler says of Python 3.13.0 that it is slower there, in the output of a cell.
    given = os.environ.get("PYTHONWARNINGS", "").split(",")
    ours = "ignore::RuntimeWarning:torch._dynamo.guards"
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [*given, ours]))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ask of an SVG picture only that it is there, as nbval does for a PNG."""
    for notebook in {item.parent for item in items if isinstance(item.parent, IPyNbFile)}:
        notebook.skip_compare = (*notebook.skip_compare, "image/svg+xml")
