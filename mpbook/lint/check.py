"""All rules over files: what `python -m mpbook lint` prints."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mpbook.lint import (
    autocast_rules,
    number_rules,
    scaler_order_rules,
    scaler_use_rules,
    weight_rules,
)
from mpbook.lint.module import Module
from mpbook.lint.reading import Source, UnreadableError, parse, read
from mpbook.lint.recognise import Code
from mpbook.lint.rule import Finding, Rule

RULES = {
    rule.id: rule
    for group in (
        scaler_order_rules,
        scaler_use_rules,
        autocast_rules,
        weight_rules,
        number_rules,
    )
    for rule in group.RULES
}
"""Every rule by its id."""

_IGNORE = re.compile(r"#\s*mpbook:\s*ignore\[([\w\s,-]+)\]")
_SKIPPED = {"__pycache__", "node_modules", "_build", "build", "dist", "venv"}


def lint_text(text: str, *, path: str = "<text>") -> list[Finding]:
    """Find the patterns in Python source.

    Args:
        text: Python.
        path: what the findings call it.

    Returns:
        The findings in the order of the source; one with the id ``cannot-read`` if it is no Python.

    >>> [finding.id for finding in lint_text("from torch.cuda.amp import autocast")]
    ['deprecated-amp']
    """
    return list(_findings(Source(text), path))


def lint_files(paths: Iterable[Path]) -> list[Finding]:
    """Find the patterns in ``.py`` files and notebooks; of a folder, in all that it holds.

    A file that is no Python, or not in the encoding that it declares, is a finding with the id
    ``cannot-read``.

    Raises:
        FileNotFoundError: a path that is not there.
    """
    found: list[Finding] = []
    for path in _files(paths):
        try:
            found += _findings(read(path), str(path))
        except UnreadableError as error:
            found.append(_cannot_read(error, str(path)))
    return found


def table(rules: Sequence[Rule] = tuple(RULES.values())) -> str:
    """The rules, each with what it looks for and where the book shows why."""
    width = max(len(rule.id) for rule in rules)
    return "\n".join(f"{rule.id:{width}}  {rule.looks_for} ({rule.link})" for rule in rules)


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
        if not path.is_dir():
            yield path
            continue
        for file in sorted(path.rglob("*")):
            inside = file.relative_to(path).parts
            hidden = any(part.startswith(".") or part in _SKIPPED for part in inside)
            if file.suffix in (".py", ".ipynb") and file.is_file() and not hidden:
                yield file


def _findings(source: Source, path: str) -> Iterator[Finding]:
    yield from (_cannot_read(error, path) for error in source.broken)
    try:
        code = Code(Module(parse(source.text)))
    except UnreadableError as error:
        yield _cannot_read(error, path)
        return
    lines = source.text.split("\n")
    found = set()
    for rule in RULES.values():
        for node in rule.find(code):
            last = node.end_lineno or node.lineno
            if not _is_ignored(rule.id, lines[node.lineno - 1 : last]):
                cell, line = source.place(node.lineno)
                column = node.col_offset + 1
                found.add(Finding(path, cell, line, column, rule.id, rule.reason, rule.link))
    yield from sorted(found)


def _is_ignored(rule: str, lines: Iterable[str]) -> bool:
    named = [
        name.strip() for line in lines for m in _IGNORE.finditer(line) for name in m[1].split(",")
    ]
    return rule in named


def _cannot_read(error: UnreadableError, path: str) -> Finding:
    return Finding(path, error.cell, error.line, error.column, "cannot-read", str(error))
