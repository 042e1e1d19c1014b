"""Releases side by side, equal neighbours joined, so that a change is seen at a glance."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from mpbook.evidence.records import Record
from mpbook.evidence.versions.base import Probe, release
from mpbook.evidence.versions.recording import answers
from mpbook.notebook import Table


@dataclass(frozen=True)
class Span:
    """Releases in a row that answered the same: the first, the last, how many, and what."""

    first: str
    last: str
    count: int
    answer: str


def spans(probe: Probe, found: Mapping[str, Record]) -> list[Span]:
    """What a behaviour was over the releases on record, oldest first; more than one if it changed.

    Releases that were not asked are left out.
    """
    said = [item for item in answers(probe, found).items() if item[1] != "not recorded"]
    runs = (list(run) for _, run in groupby(said, key=lambda item: item[1]))
    return [Span(run[0][0], run[-1][0], len(run), run[0][1]) for run in runs]


@dataclass(frozen=True)
class Timeline:
    """Behaviours by release: lines of text in a terminal, one table in a notebook."""

    probes: Sequence[Probe]
    found: Mapping[str, Record]

    def __repr__(self) -> str:
        rows = []
        for probe in self.probes:
            said = answers(probe, self.found)
            rows.append([probe.id, *(said[version] for version in self.found)])
        return repr(Table(["behaviour", *self.found], rows))

    def _repr_html_(self) -> str:
        titles = ["behaviour", *(f"torch {version}" for version in self.found), "what to do"]
        head = "".join(f'<th scope="col">{title}</th>' for title in titles)
        body = "".join(f"<tr>{self._row(probe)}</tr>" for probe in self.probes)
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        return f'<div class="mp-table mp-versions" {_SCROLLS}>{table}</div>'

    def _row(self, probe: Probe) -> str:
        said = answers(probe, self.found)
        runs = [(answer, len(list(run))) for answer, run in groupby(said.values())]
        cells = [
            f'<td colspan="{count}"{_CHANGED if number else ""}>{_breakable(answer)}</td>'
            for number, (answer, count) in enumerate(runs)
        ]
        question = f'<th scope="row">{_with_code(probe.question)}</th>'
        return "".join([question, *cells, f"<td>{_with_code(probe.advice)}</td>"])


def _breakable(answer: str) -> str:
    """An answer as HTML, in which a line may end within the name of an error."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "<wbr>", html.escape(answer))


_CHANGED = ' class="mp-changed"'
_SCROLLS = 'tabindex="0" role="region" aria-label="Behaviour by version"'  # for a keyboard


def _with_code(text: str) -> str:
    """Text as HTML, with what stands between backticks as code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(text, quote=False))


class Here(Table):
    """What the torch at hand answers, and which releases on record answered the same."""

    def __init__(
        self, probes: Sequence[Probe], found: Mapping[str, Record], said: Mapping[str, str]
    ) -> None:
        rows = [(p.id, said[p.id], _same(said[p.id], spans(p, found))) for p in probes]
        super().__init__(["behaviour", f"here: torch {release()}", "as on record"], rows)


def _same(answer: str, recorded: Sequence[Span]) -> str:
    if answer.startswith("not here: "):
        return ""
    equal = [s.first if s.count == 1 else f"{s.first} to {s.last}" for s in recorded
             if s.answer == answer]  # fmt: skip
    return ", ".join(equal) or "none"
