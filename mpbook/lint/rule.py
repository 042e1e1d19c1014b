"""What a rule is, and what it finds."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mpbook.lint.recognise import Code


@dataclass(frozen=True, slots=True)
class Rule:
    """A pattern in source code that the book has shown to fail.

    Attributes:
        id: its name, as a finding prints it and ``# mpbook: ignore[...]`` takes it.
        looks_for: the pattern, in a few words.
        reason: what goes wrong, and what to write instead; the finding's message.
        section: where the book shows it, as page and target: ``reference/nan#nan-loss``.
        bad: source that has the pattern.
        good: the same, mended.
        find: yields the nodes that have the pattern.
    """

    id: str
    looks_for: str
    reason: str
    section: str
    bad: str
    good: str
    find: Callable[[Code], Iterable[ast.expr | ast.stmt]]

    @property
    def link(self) -> str:
        """The section in the built book."""
        page, target = self.section.split("#")
        return f"{page}.html#{target}"


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One place where a rule's pattern stands, or a file that cannot be read.

    Attributes:
        path: the file, as it was given.
        cell: of a notebook, counted from 1 over all cells; 0 in a Python file.
        line: counted from 1, within the cell.
        column: counted from 1.
        id: the rule's, or ``cannot-read``.
        message: what goes wrong.
        link: the section in the built book; empty where there is none.
    """

    path: str
    cell: int
    line: int
    column: int
    id: str
    message: str
    link: str = ""

    def __str__(self) -> str:
        cell = f"cell {self.cell}:" if self.cell else ""
        link = f" ({self.link})" if self.link else ""
        return f"{self.path}:{cell}{self.line}:{self.column}: {self.id} {self.message}{link}"
