"""What the pages say of a version of torch, held against the records of `mpbook.evidence.versions`.

A sentence that names the version at which torch changed makes it a link into "Torch, by version":

    PyTorch saturates {ref}`from 2.13.0 on <version-e4m3fn-overflow>`.

`from X on`, `since X`, `before X` and a bare number name the first release that answers otherwise;
`up to X` names the last that answered as before. `in every version` says that none on record
differs. A number has two parts or three. The lint finds a version in prose that is no such link.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from nbformat import NotebookNode

NAMED = re.compile(
    r"(?:\b(?:torch|pytorch)(?:'s)?\s+(?:version\s+)?v?|\b(?:version|release|since|before|until)\s+v?"
    r"|\b(?:from|up to|after)\s+v?(?=2\.1))[12]\.\d{1,2}(?:\.\d+)?\b|(?<![\w.])2\.1\d\.\d(?![\w.])",
    re.I,
)
"""A version of torch, as prose names one: after a word for it, or with three parts."""

_LINK = re.compile(r"\{ref\}`(?P<said>[^`<]*?)\s*<?version-(?P<id>[\w-]+)>?`", re.S)
_SAYS = re.compile(
    r"(?P<up_to>up to )?(?:from |since |before )?(?P<version>2\.\d+(?:\.\d+)?)(?: on)?", re.I
)
_TARGET = re.compile(r"^\(version-(?P<id>[\w-]+)\)=$", re.M)
EVERY = "in every version"

Change = tuple[str, str]
"""The last release that answered as before, and the first that answers otherwise."""


class Said(NamedTuple):
    """One link: its cell, the behaviour, and what the sentence says of versions."""

    cell: int
    id: str
    text: str


def _markdown(page: NotebookNode) -> Iterator[tuple[int, str]]:
    return ((i, c.source) for i, c in enumerate(page.cells) if c.cell_type == "markdown")


def said_of_versions(page: NotebookNode) -> list[Said]:
    """Return every link to a behaviour on the page of versions; a bare one has an empty text."""
    return [
        Said(index, link["id"], " ".join(link["said"].split()))
        for index, source in _markdown(page)
        for link in _LINK.finditer(source)
    ]


def targets(page: NotebookNode) -> list[str]:
    """Return the behaviours that a page has a place for, in its order."""
    return [match["id"] for _, source in _markdown(page) for match in _TARGET.finditer(source)]


def agrees(text: str, changes: Sequence[Change]) -> bool:
    """Whether a link's text says of versions what is on record."""
    if text.lower() == EVERY:
        return not changes
    says = _SAYS.fullmatch(text)
    if says is None:
        return False
    parts = says["version"].count(".") + 1
    sides = (last if says["up_to"] else first for last, first in changes)
    return says["version"] in {".".join(side.split(".")[:parts]) for side in sides}


def disagreements(page: NotebookNode, changes: Mapping[str, Sequence[Change]]) -> list[str]:
    """Return what a page says of versions otherwise than the records."""
    found = []
    for cell, behaviour, text in said_of_versions(page):
        if behaviour not in changes:
            found.append(f"cell {cell}: there is no behaviour {behaviour!r}")
        elif not agrees(text, changes[behaviour]):
            known = ", ".join(f"up to {a}, from {b} on" for a, b in changes[behaviour]) or EVERY
            found.append(f"cell {cell}: {behaviour} is said to be {text!r}; on record: {known}")
    return found


def comments_and_docstrings(source: str) -> Iterator[str]:
    """Yield what a piece of Python says to people, one text for each comment and docstring."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, documented) and (text := ast.get_docstring(node)):
            yield text
