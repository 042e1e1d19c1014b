"""What a claim is, what decides it, and how the decisions are shown."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Literal

import torch

from mpbook import device as devices
from mpbook.evidence import records
from mpbook.evidence.published import Figures, published
from mpbook.evidence.records import Record

Kind = Literal["holds", "holds when ...", "false", "not recorded yet"]
NOT_RECORDED: Kind = "not recorded yet"
Finding = tuple[Kind, str]
"""A kind, and one sentence that says why, with the numbers."""

MICIKEVICIUS = "[Micikevicius et al. 2018](https://arxiv.org/abs/1710.03740)"
"""The source of several claims."""

EXACT = "live, exact"
"""The evidence of what comes out the same on every device."""


@dataclass(frozen=True)
class Verdict:
    """What became of a claim.

    ``why`` is one sentence with the numbers behind ``kind``.  ``evidence`` is ``"live, exact"``
    where every device gives the same, ``"live, "`` and a device where it was measured just now, or
    the caption of a record.
    """

    kind: Kind
    why: str
    evidence: str


@dataclass(frozen=True)
class Evidence:
    """What claims are decided by: a device to run on, and what was recorded and published."""

    device: torch.device = field(default_factory=devices.pick)
    find: Callable[[str], Record | None] = records.find
    figures: Callable[[], Figures] = published


Decide = Callable[[Evidence], Verdict]


@dataclass(frozen=True)
class Claim:
    """A sentence that people say.

    ``source`` is who says it, in Markdown; ``section`` is where it is worked out, as a
    path below ``book/`` without its ending, "#" and its target, or empty.
    """

    id: str
    sentence: str
    source: str
    decide: Decide
    section: str = ""


@dataclass(frozen=True)
class Ledger:
    """Claims with their verdicts: a table in a terminal, and one with links in a notebook."""

    rows: tuple[tuple[Claim, Verdict], ...]

    def __iter__(self) -> Iterator[tuple[Claim, Verdict]]:
        return iter(self.rows)

    def kinds(self) -> dict[str, Kind]:
        """The kind of each verdict, by the claim's id."""
        return {claim.id: verdict.kind for claim, verdict in self}

    def __repr__(self) -> str:
        rows = [(f"{c.sentence} [{c.id}]", v.kind, v.why, v.evidence) for c, v in self]
        rule = tuple("-" * width for width in _WIDTHS)
        return "\n".join([_lines(_HEADER), _lines(rule), *(_lines(row) + "\n" for row in rows)])

    def _repr_markdown_(self) -> str:
        head = [_cells(_HEADER), _cells(("---",) * len(_HEADER))]
        return "\n".join([*head, *(_row(claim, verdict) for claim, verdict in self)])


_HEADER = ("Claim", "Verdict", "Why", "Evidence")
_WIDTHS = (40, 16, 44, 16)


def _lines(row: Sequence[str]) -> str:
    """A row of text whose cells are wrapped, each to the width of its column."""
    wrapped = (
        textwrap.wrap(cell, width, break_on_hyphens=False)
        for cell, width in zip(row, _WIDTHS, strict=True)
    )
    return "\n".join(
        "  ".join(part.ljust(width) for part, width in zip(line, _WIDTHS, strict=True)).rstrip()
        for line in zip_longest(*wrapped, fillvalue="")
    )


def _row(claim: Claim, verdict: Verdict) -> str:
    """One row of Markdown; the links are relative to the page of claims."""
    said = f"{claim.sentence} ({claim.source})"
    page, _, section = claim.section.partition("#")
    title = page.rpartition("/")[2].replace("_", " ").replace(" traps", ": traps")
    worked = f" See [{title}](../{page}.ipynb#{section})." if claim.section else ""
    return _cells((said, f"**{verdict.kind}**", verdict.why + worked, verdict.evidence))


def _cells(row: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |"


# --- Ways to decide -----------------------------------------------------------------------------


def exactly(find_out: Callable[[], Finding]) -> Decide:
    """Decide by a computation that gives the same bits on every device."""

    def decide(evidence: Evidence) -> Verdict:
        return Verdict(*find_out(), EXACT)

    return decide


def live(
    find_out: Callable[[torch.device], Finding], *, otherwise: Verdict | None = None
) -> Decide:
    """Decide by running something on the device at hand; where it cannot say, as others report."""

    def decide(evidence: Evidence) -> Verdict:
        kind, why = find_out(evidence.device)
        if kind == NOT_RECORDED and otherwise:
            return otherwise
        return Verdict(kind, why, f"live, {devices.name(evidence.device)}")

    return decide


ByFigures = Callable[[Figures], tuple[Finding, Figures]]
"""Decides by published figures: kind and reason, and the figures that were counted."""


def recorded(
    experiment: str, find_out: Callable[[Record], Finding], *, otherwise: ByFigures | None = None
) -> Decide:
    """Decide by a record of a GPU; without one, by what others have published.

    A record outranks the published figures, which are then named beside it.  Where neither decides,
    the verdict says what is missing.
    """

    def decide(evidence: Evidence) -> Verdict:
        theirs = _by_published(evidence, otherwise)
        record = evidence.find(experiment)
        if record is None:
            return theirs or _open(f"It takes a record of {experiment} on a GPU.")
        try:
            kind, why = find_out(record)
        except LookupError as missing:
            return theirs or _open(f"The record lacks what it takes: {missing}.")
        beside = f"; {theirs.evidence}" if theirs else ""
        return Verdict(kind, why, record.caption + beside)

    return decide


def by_figures(find_out: ByFigures) -> Decide:
    """Decide by what others have published alone, where no experiment of ours asks the question."""

    def decide(evidence: Evidence) -> Verdict:
        return _by_published(evidence, find_out) or _open("No published figures bear on it.")

    return decide


def _open(why: str) -> Verdict:
    return Verdict(NOT_RECORDED, why, "none")


def _by_published(evidence: Evidence, find_out: ByFigures | None) -> Verdict | None:
    """What the published figures say; None where there are none that bear on the claim."""
    if find_out is None:
        return None
    try:
        finding, counted = find_out(evidence.figures())
    except LookupError:
        return None
    if not counted.ratios:
        return None
    return Verdict(*finding, f"published: {counted.counts}")


def by_share(held: Sequence[bool]) -> Kind:
    """The kind of a claim that was tried in several cases: in all, in some, in none.

    Raises:
        LookupError: it was tried in none.

    >>> by_share([True, True]), by_share([False, True]), by_share([False])
    ('holds', 'holds when ...', 'false')
    """
    if not held:
        raise LookupError("no two cases to compare")
    if all(held):
        return "holds"
    return "holds when ..." if any(held) else "false"
