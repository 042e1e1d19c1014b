"""Symptoms as the pages' cells carry them: what people see, what it means, the lines that help.

A Markdown cell that opens with a heading may carry, in its metadata,

    "symptoms": {"kind": "error", "seen": ["No inf checks were recorded prior to update"],
                 "means": "One sentence.", "words": ["AMP", "GradScaler"]}

`seen` holds error messages and symptoms word for word, `words` what people type and the section
does not say. The lines that help are the code cell with the tag `cure` in the same section: plain
torch. A section that is no symptom may carry `"asked": ["fp16 vs bf16"]` alone: what people type.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from nbformat import NotebookNode

KINDS = {
    "error": "An error message",
    "nan": "NaN and infinity",
    "stuck": "It does not learn",
    "worse": "It learns, but worse",
    "memory": "Out of memory",
    "slow": "No faster, or slower",
    "dtype": "Another dtype than I asked for",
}
"""The kinds of symptom, in the order in which the page of symptoms lists them."""
KEYS = {"kind", "seen", "means", "words"}
MAX_CURE_LINES = 12
_HEADING = re.compile(r"(?:\(([\w-]+)\)=\s*\n)?(#{2,4}) +(.+)")
_MARKED = re.compile(
    r"\{[\w:]+\}`([^`<]*?)\s*(?:<[^`]*>)?`|`+([^`]+)`+|!?\[([^]]*)\]\([^)]*\)|\*+([^*\s][^*]*)\*+"
)


@dataclass(frozen=True)
class Symptom:
    """One section's symptoms: the cell of its heading, its target, its title, and its lines."""

    cell: int
    target: str
    title: str
    kind: str
    seen: tuple[str, ...]
    means: str
    words: tuple[str, ...]
    cure: str


def symptoms(page: NotebookNode) -> list[Symptom]:
    """Return the symptoms of a page, in its order; `problems` says what is wrong with them."""
    found = []
    for index, cell in enumerate(page.cells):
        if carried := cell.metadata.get("symptoms"):
            heading = _HEADING.match(cell.source)
            cures = _cures(page, index)
            found.append(
                Symptom(
                    index, (heading and heading[1]) or "", heading[3] if heading else "",
                    carried.get("kind", ""), tuple(carried.get("seen", [])),
                    carried.get("means", ""), tuple(carried.get("words", [])),
                    cures[0] if len(cures) == 1 else "",
                )
            )  # fmt: skip
    return found


def asked(page: NotebookNode) -> dict[str, tuple[str, ...]]:
    """Return what people type for the sections of a page that are no symptoms, by their targets."""
    carried = {cell.source: cell.metadata.asked for cell in page.cells if "asked" in cell.metadata}
    return {_target(source): tuple(typed) for source, typed in carried.items()}


def problems(page: NotebookNode) -> list[tuple[int, str]]:
    """Return the index of each cell whose symptoms cannot be used, and why."""
    found = [
        (
            index,
            "`asked` needs a cell with a target, a heading and no `symptoms`",
        )
        for index, cell in enumerate(page.cells)
        if "asked" in cell.metadata and (not _target(cell.source) or "symptoms" in cell.metadata)
    ]
    for symptom in symptoms(page):
        carried = page.cells[symptom.cell].metadata["symptoms"]
        lines = symptom.cure.strip().count("\n") + 1
        wrong = {
            f"keys {sorted(set(carried) - KEYS)} are not among {sorted(KEYS)}": set(carried) - KEYS,
            "the cell does not open with a target, (name)=, and a heading": not symptom.target,
            f"kind {symptom.kind!r} is not among {list(KINDS)}": symptom.kind not in KINDS,
            "nothing is `seen`": not symptom.seen,
            "`means` is not one sentence": not symptom.means.endswith((".", "!", "?")),
            "the section has not exactly one code cell tagged `cure`": not symptom.cure,
            f"the cure has {lines} lines, at most {MAX_CURE_LINES}": lines > MAX_CURE_LINES,
            "the cure is not plain torch": "mpbook" in symptom.cure,
        }
        found += [(symptom.cell, reason) for reason, holds in wrong.items() if holds]
    return found


def _target(source: str) -> str:
    heading = _HEADING.match(source)
    return (heading and heading[1]) or ""


def plain(text: str) -> str:
    """Return a sentence without its Markdown: of roles, code and links the words alone."""
    return _MARKED.sub(lambda match: next(filter(None, match.groups()), ""), text)


def _cures(page: NotebookNode, start: int) -> list[str]:
    """The sources of the cells tagged `cure` in the section whose heading is in cell `start`."""
    heading = _HEADING.match(page.cells[start].source)
    depth, found = len(heading[2]) if heading else 4, []
    for cell in page.cells[start + 1 :]:
        if cell.cell_type == "markdown":
            if re.search(rf"^#{{1,{depth}}} ", cell.source, re.M):
                break
        elif "cure" in cell.metadata.get("tags", []):
            found.append(cell.source)
    return found
