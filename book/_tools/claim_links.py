"""What the pages say of a claim, held against the verdict that is computed.

A sentence that states the verdict of a claim makes the verdict a link into "Claims on trial":

    Does float16 underflow below 6e-5? That is {ref}`false <claim-fp16-underflows-below-6e-5>`.

The reader sees the word and can follow it; the test compares the word with the ledger. So a
sentence and its evidence cannot drift apart, and a verdict that changes names every page to mend.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from nbformat import NotebookNode

_LINK = re.compile(r"\{ref\}`(?P<inside>[^`]*\bclaim-[^`]*)`")
_TITLED = re.compile(r"(?P<said>.+?)\s*<claim-(?P<id>[\w-]+)>", re.S)
_TARGET = re.compile(r"^\(claim-(?P<id>[\w-]+)\)=$", re.M)

# What a sentence may call a kind of verdict, in words that read well in it.
_WORDS = {
    "holds": re.compile(r"holds|true"),
    "holds when ...": re.compile(r"(holds|true)( only)? (when|where|if)"),
}


class Said(NamedTuple):
    """One link: its cell, the claim, and the verdict that the sentence states."""

    cell: int
    id: str
    verdict: str


def _markdown(page: NotebookNode) -> Iterator[tuple[int, str]]:
    return ((i, c.source) for i, c in enumerate(page.cells) if c.cell_type == "markdown")


def said_of_claims(page: NotebookNode) -> list[Said]:
    """Return every link to a claim; one without a verdict as its text has an empty verdict."""
    found = []
    for index, source in _markdown(page):
        for link in _LINK.finditer(source):
            titled = _TITLED.fullmatch(link["inside"].strip())
            bare = link["inside"].strip().removeprefix("claim-")
            said = " ".join(titled["said"].lower().split()) if titled else ""
            found.append(Said(index, titled["id"] if titled else bare, said))
    return found


def targets(page: NotebookNode) -> list[str]:
    """Return the claims that a page has a place for, in its order."""
    return [match["id"] for _, source in _markdown(page) for match in _TARGET.finditer(source)]


def _says(said: str, kind: str) -> bool:
    return bool(_WORDS[kind].fullmatch(said)) if kind in _WORDS else said == kind


def disagreements(page: NotebookNode, kinds: Mapping[str, str]) -> list[str]:
    """Return what a page says otherwise than the ledger; "true only when" is a "holds when ..."."""
    found = []
    for cell, claim, said in said_of_claims(page):
        if claim not in kinds:
            found.append(f"cell {cell}: there is no claim {claim!r}")
        elif not _says(said, kind := kinds[claim]):
            short = kind.removesuffix(" ...")
            found.append(f"cell {cell}: {claim} is said to be {said!r}; the verdict is {short!r}")
    return found
