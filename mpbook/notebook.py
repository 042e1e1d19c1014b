"""What a cell leaves on the page: tables, numbers for the prose, and a progress line.

Nothing here needs Jupyter: in a plain Python process a table prints as text, a glued number is
returned, and the progress line goes to a terminal's stderr or nowhere.
"""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

GLUE_PREFIX = "application/papermill.record/"


@dataclass(frozen=True)
class Table:
    """Rows under a header, as aligned text in a terminal and as an HTML table in a notebook.

    Cells are shown by ``str``, a ``float`` with six significant digits.  Columns whose cells are
    all numbers (``int`` or ``float``) are set flush right.  ``caption`` says what the table shows.

    Raises:
        ValueError: a row that is not as long as the header.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(
                    f"rows: {row!r} has {len(row)} cells, expected {len(self.header)} as the header"
                )

    def _numeric(self) -> list[bool]:
        columns = zip(*self.rows, strict=True) if self.rows else [()] * len(self.header)
        return [all(isinstance(cell, int | float) for cell in column) for column in columns]

    def __repr__(self) -> str:
        cells = [list(map(str, self.header)), *([_text(c) for c in row] for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        numeric = self._numeric()
        lines = [
            "  ".join(
                cell.rjust(width) if right else cell.ljust(width)
                for cell, width, right in zip(row, widths, numeric, strict=True)
            ).rstrip()
            for row in cells
        ]
        rule = "  ".join("-" * width for width in widths)
        return "\n".join([*([self.caption] if self.caption else []), lines[0], rule, *lines[1:]])

    def _repr_html_(self) -> str:
        numeric = self._numeric()
        head = "".join(
            f'<th scope="col"{_alignment(right)}>{html.escape(str(title))}</th>'
            for title, right in zip(self.header, numeric, strict=True)
        )
        caption = f"<caption>{html.escape(self.caption)}</caption>" if self.caption else ""
        body = "".join(f"<tr>{_html_row(row, numeric)}</tr>" for row in self.rows)
        return (
            f'<div class="mp-table"><table>{caption}<thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )


def _text(cell: Any) -> str:
    return f"{cell:.6g}" if isinstance(cell, float) else str(cell)


def _alignment(right: bool) -> str:
    return f' style="text-align:{"right" if right else "left"}"'


def _html_row(row: Sequence[Any], numeric: Sequence[bool]) -> str:
    cells = []
    for i, (cell, right) in enumerate(zip(row, numeric, strict=True)):
        tag, scope = ("th", ' scope="row"') if i == 0 else ("td", "")
        cells.append(f"<{tag}{scope}{_alignment(right)}>{html.escape(_text(cell))}</{tag}>")
    return "".join(cells)


def glue(name: str, value: Any) -> Any:
    """Keep a measured value under a name, for ``{glue:text}`` in the prose; return the value.

    The same record that ``myst_nb.glue`` leaves, without importing Sphinx.  The page shows a string
    as it reads, so format a number first: ``glue("speedup", f"{ratio:.1f}")``.
    """
    shell = _ipython()
    if shell is not None:
        from IPython.display import display

        data = {GLUE_PREFIX + "text/plain": repr(value)}
        metadata = {"scrapbook": {"name": name, "mime_prefix": GLUE_PREFIX}}
        display(data, metadata=metadata, raw=True)
    return value


def _ipython() -> Any:
    """The running IPython shell, if this process has one; never imports IPython by itself."""
    module = sys.modules.get("IPython")
    return module.get_ipython() if module else None


def _has_interactive_frontend() -> bool:
    """Whether a person's notebook is attached.

    JupyterLab allows a cell to ask for input; nbclient, nbval and nbconvert do not.  What they
    record must not depend on how fast the machine was.
    """
    kernel = getattr(_ipython(), "kernel", None)
    return bool(getattr(kernel, "_allow_stdin", False))


class Progress:
    """A progress line for long work, shown only to a person and gone when the work ends.

    The first line appears after ``quiet_s`` seconds, and at most twice a second after that.
    """

    def __init__(self, total: int, *, label: str, quiet_s: float = 2.0, enabled: bool = True):
        self.total, self.label = total, label
        self._started = time.perf_counter()
        self._next = self._started + quiet_s
        self._shown = False
        self._handle: Any = None
        self._in_notebook = _has_interactive_frontend()
        self._enabled = enabled and (self._in_notebook or sys.stderr.isatty())

    def update(self, done: int, note: str = "") -> None:
        """Say that ``done`` of ``total`` units are done."""
        now = time.perf_counter()
        if not self._enabled or now < self._next:
            return
        self._next = now + 0.5
        remaining = (now - self._started) / max(done, 1) * (self.total - done)
        self._write(f"{self.label}: {done}/{self.total}, about {remaining:.0f} s left  {note}")

    def close(self) -> None:
        """Erase the line."""
        if self._shown:
            self._write("")

    def _write(self, line: str) -> None:
        if self._in_notebook:
            self._write_to_notebook(line)
        else:
            sys.stderr.write(f"\r\x1b[2K{line}")
            sys.stderr.flush()
        self._shown = bool(line)

    def _write_to_notebook(self, line: str) -> None:
        from IPython.display import display

        data = {"text/plain": line}
        if self._handle is None:
            self._handle = display(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
