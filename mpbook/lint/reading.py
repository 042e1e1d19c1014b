"""A file as Python source: a module, or the code cells of a notebook one after another."""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from dataclasses import dataclass
from pathlib import Path

_SHELL = re.compile(r"^(\s*)(?:[%!?]|\w[\w., ]*=\s*[%!])|^(\s*)[\w.]+\?{1,2}\s*$")
_STILL_PYTHON = ("%%time", "%%timeit", "%%capture", "%%prun")


class UnreadableError(Exception):
    """A file that is no Python: what is wrong, and where."""

    def __init__(self, message: str, *, cell: int = 0, line: int = 1, column: int = 1) -> None:
        super().__init__(message)
        self.cell, self.line, self.column = cell, line, column


@dataclass(frozen=True, slots=True)
class Source:
    """Text to parse, and where each of its lines stands in the file.

    Attributes:
        text: Python.
        cells: for each line the notebook's cell and the line within it; empty for a Python file.
        broken: the cells that are no Python; they were left out.
    """

    text: str
    cells: tuple[tuple[int, int], ...] = ()
    broken: tuple[UnreadableError, ...] = ()

    def place(self, line: int) -> tuple[int, int]:
        """Cell (0 in a Python file) and line for a line of `text`."""
        return self.cells[line - 1] if self.cells else (0, line)


def read(path: Path) -> Source:
    """Read a ``.py`` file by its declared encoding, or the code cells of an ``.ipynb``.

    Raises:
        UnreadableError: bytes of another encoding, or a notebook that is no JSON.
        OSError: there is no such file.
    """
    raw = path.read_bytes()
    if path.suffix == ".ipynb":
        return _notebook(raw)
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(raw).readline)
        return Source(raw.decode(encoding).replace("\r\n", "\n").replace("\r", "\n"))
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UnreadableError(
            f"not {error.encoding}: {error.reason}; save it as UTF-8", line=line
        ) from None
    except SyntaxError as error:  # an encoding that Python does not know
        raise UnreadableError(f"{error.msg}; save it as UTF-8") from None


def parse(text: str, *, cell: int = 0) -> ast.Module:
    """The syntax tree.

    Raises:
        UnreadableError: no Python; it names the line.
    """
    try:
        return ast.parse(text)
    except SyntaxError as error:
        raise UnreadableError(
            f"no Python: {error.msg}",
            cell=cell,
            line=error.lineno or 1,
            column=error.offset or 1,
        ) from None
    except (ValueError, RecursionError, MemoryError) as error:  # null bytes; nested too deep
        raise UnreadableError(f"no Python: {error}", cell=cell) from None


def _notebook(raw: bytes) -> Source:
    try:
        cells = json.loads(raw.decode("utf-8"))["cells"]
        codes = [(i, "".join(c["source"])) for i, c in enumerate(cells, 1) if _is_code(c)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnreadableError(f"no notebook of format 4: {error}") from None
    lines: list[str] = []
    places: list[tuple[int, int]] = []
    broken = []
    for number, code in codes:
        cell = _without_magics(code)
        try:
            parse(cell, cell=number)
        except UnreadableError as error:
            broken.append(error)
            continue
        kept = cell.split("\n")
        lines += kept
        places += [(number, line) for line in range(1, len(kept) + 1)]
    return Source("\n".join(lines), tuple(places) or ((1, 1),), tuple(broken))


def _is_code(cell: dict[str, object]) -> bool:
    return cell["cell_type"] == "code"


def _without_magics(code: str) -> str:
    """The same lines, those of IPython or the shell replaced by ``pass``."""
    first = code.lstrip().split("\n")[0]
    if first.startswith("%%") and not first.startswith(_STILL_PYTHON):
        return "\n" * code.count("\n")
    lines = [
        _SHELL.sub(lambda m: f"{m[1] or m[2] or ''}pass  #", line) for line in code.split("\n")
    ]
    return "\n".join(lines)
