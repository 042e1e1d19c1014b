"""Execute the book's notebooks and write them back in one normal form.

    python book/_tools/refresh.py [NOTEBOOK ...]

Without arguments it takes every notebook of the book. Nothing is written until all of them have
run, and each file is replaced whole, so an error leaves the tree as it was. The normal form holds
no timestamps, no widget state and no editor's metadata: a second refresh changes nothing that the
tests compare.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

BOOK = Path(__file__).resolve().parents[1]
CELL_TIMEOUT_S = 900
KEPT_CELL_METADATA = {"tags", "mystnb", "symptoms", "asked"}
KEPT_NOTEBOOK_METADATA = {"mystnb"}
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
KERNEL = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def notebooks() -> list[Path]:
    """Return the book's notebooks, in a fixed order."""
    found = BOOK.rglob("*.ipynb")
    return sorted(path for path in found if ".ipynb_checkpoints" not in path.parts)


def merge_streams(outputs: Iterable[NotebookNode]) -> list[NotebookNode]:
    """Join neighbouring pieces of one stream: where a kernel splits them is a matter of timing."""
    merged: list[NotebookNode] = []
    for output in outputs:
        last = merged[-1] if merged else None
        if last and output.output_type == "stream" and last.get("name") == output.name:
            last.text += output.text
        else:
            merged.append(output)
    return merged


def normalise_output(output: NotebookNode, execution_count: int | None) -> NotebookNode:
    """Drop from one output what differs between two equal runs."""
    if "execution_count" in output:
        output.execution_count = execution_count
    data = output.get("data", {})
    if "text/html" in data:  # the explorer's twin; the widget's model lives in one kernel only
        data.pop(WIDGET_VIEW, None)
    if "metadata" in output:
        output.metadata = {key: value for key, value in output.metadata.items() if value}
    return output


def normalise_cell(cell: NotebookNode, execution_count: int | None) -> NotebookNode:
    """Keep of a cell its id, source, tags and outputs; number it `execution_count`."""
    kept = {key: value for key, value in cell.metadata.items() if key in KEPT_CELL_METADATA}
    cell.metadata = NotebookNode({key: value for key, value in kept.items() if value})
    cell.source = cell.source.rstrip()
    if cell.cell_type == "code":
        cell.execution_count = execution_count
        outputs = merge_streams(cell.outputs)
        cell.outputs = [normalise_output(output, execution_count) for output in outputs]
    return cell


def name_cells(cells: Iterable[NotebookNode]) -> None:
    """Give every cell without an id, or with another cell's, one that follows from its source."""
    taken: set[str] = set()
    for index, cell in enumerate(cells):
        if not cell.get("id") or cell.id in taken:
            cell.id = hashlib.sha256(f"{index} {cell.source}".encode()).hexdigest()[:8]
        taken.add(cell.id)


def normalise(notebook: NotebookNode) -> NotebookNode:
    """Return a copy of `notebook` in the book's normal form; idempotent."""
    result = nbformat.from_dict(notebook)
    kept = {k: v for k, v in result.metadata.items() if k in KEPT_NOTEBOOK_METADATA}
    result.metadata = nbformat.from_dict({**KERNEL, **kept})
    result.nbformat, result.nbformat_minor = 4, 5
    name_cells(result.cells)
    count = 0
    for cell in result.cells:
        executed = cell.cell_type == "code" and cell.execution_count is not None
        count += executed
        normalise_cell(cell, count if executed else None)
    return result


def execute(path: Path) -> NotebookNode:
    """Run a notebook from top to bottom in this Python, in its own folder.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell not tagged `raises-exception` raised.
    """
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    options: dict[str, Any] = {"store_widget_state": False, "record_timing": False}
    folder = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(
        notebook, timeout=CELL_TIMEOUT_S, kernel_name="python3", resources=folder, **options
    )
    return client.execute()


def write_all(texts: dict[Path, str]) -> None:
    """Write every text beside its target first, and only then put them all in place."""
    drafts = {path: path.with_name(f".{path.name}.tmp") for path in texts}
    try:
        for path, draft in drafts.items():
            draft.write_text(texts[path], "utf-8")
        for path, draft in drafts.items():
            draft.replace(path)
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)


def refresh(paths: Iterable[Path]) -> None:
    """Execute and normalise the notebooks at `paths`: all of them, or none."""
    texts = {}
    for path in paths:
        print(f"running {path}", flush=True)
        texts[path] = nbformat.writes(normalise(execute(path))) + "\n"
    write_all(texts)


def main() -> None:
    """Refresh the notebooks named on the command line, or all."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    refresh([Path(name) for name in sys.argv[1:]] or notebooks())


if __name__ == "__main__":
    main()
