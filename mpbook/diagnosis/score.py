"""How often `diagnose` is right: hits, misses and false alarms over the zoo."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mpbook.diagnosis.diagnosing import diagnose
from mpbook.diagnosis.zoo import ZOO, Case, Outcome, outcome
from mpbook.notebook import Table


@dataclass(frozen=True)
class Graded:
    """One verdict beside what training then did."""

    case: str
    format: str
    verdict: str
    truth: str
    where: str
    foretold: bool
    headroom: float

    @property
    def is_hit(self) -> bool:
        """Whether the two agree."""
        return self.verdict == self.truth


def graded(case: Case, formats: Iterable[str] = ("float16", "bfloat16")) -> list[Graded]:
    """A case diagnosed, then trained, in each format."""
    model, batches = case.built()
    found = diagnose(
        model, batches, loss=case.loss, optimizer=case.optimizer, steps=case.steps, rescue=False
    )
    rows = []
    for format in formats:
        verdict, truth = found.of(format), outcome(case, format)  # type: ignore[arg-type]
        rows.append(_graded(case, verdict, truth))
    return rows


def _graded(case: Case, verdict: object, truth: Outcome) -> Graded:
    v = verdict
    where = str(v.failure) if v.failure else ""  # type: ignore[attr-defined]
    return Graded(
        case.name, v.format, v.survives, truth.survives, where,  # type: ignore[attr-defined]
        v.forecast is not None, v.headroom,  # type: ignore[attr-defined]
    )  # fmt: skip


def score(cases: Iterable[Case] = ZOO) -> list[Graded]:
    """Every case of the zoo, diagnosed and trained."""
    return [row for case in cases for row in graded(case)]


def table(rows: Iterable[Graded]) -> Table:
    """One row for each case and format."""
    cells = [(r.case, r.format, r.verdict, r.truth, "" if r.is_hit else "differs", r.where)
             for r in rows]  # fmt: skip
    return Table(["case", "format", "verdict", "training", "", "fails first"], cells)
