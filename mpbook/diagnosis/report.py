"""What `mpbook.diagnosis.diagnose` found, as a table, a dictionary, a figure and HTML."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mpbook.diagnosis.verdicts import FormatVerdict
from mpbook.diagnosis.workload import Run, Workload
from mpbook.notebook import Table


@dataclass(frozen=True)
class Line:
    """One line of a report: what is said, of which format, its number, its place, and how."""

    topic: str
    format: str
    finding: str
    place: str = ""
    how: str = ""


@dataclass
class Diagnosis:
    """The verdicts on each format, and what they rest on."""

    workload: Workload = field(repr=False)
    reference: Run = field(repr=False)
    wide: Run | None = field(repr=False)
    formats: dict[str, FormatVerdict]
    without_vote: set[str] = field(default_factory=set)

    def lines(self) -> list[Line]:
        """Everything that is said, in the order of the report."""
        found: list[Line] = []
        for verdict in self.formats.values():
            found += _survives(verdict)
        return found

    def table(self) -> Table:
        """One row for each thing that is said."""
        rows = [tuple(vars(line).values()) for line in self.lines()]
        return Table(["about", "format", "finding", "place", "how it is known"], rows)

    def __repr__(self) -> str:
        return repr(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def as_dict(self) -> dict[str, Any]:
        """The same in what JSON can hold."""
        return {"lines": [vars(line) for line in self.lines()]}


def _survives(v: FormatVerdict) -> list[Line]:
    place = str(v.failure.key.place) if v.failure else ""
    lines = [Line("survives", v.format, f"{v.survives}: {v.reason}", place, "run")]
    lines += [Line("headroom", v.format, f"{s.headroom:.1f} binades: {s.operator} "
                   f"reaches {s.largest:.3g}", str(s.key.place), "magnitudes")
              for s in v.tightest[:3]]  # fmt: skip
    lines += [Line("contradicted", v.format, said) for said in v.contradictions]
    return lines
