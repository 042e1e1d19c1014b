"""How often `mpbook.diagnose` is right: hits, misses and false alarms over the zoo."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mpbook.diagnosis.diagnosing import FORMATS, Format, diagnose
from mpbook.diagnosis.verdicts import FormatVerdict
from mpbook.diagnosis.zoo import ZOO, Case, Outcome, outcome
from mpbook.notebook import Table

_HARM = {"yes": 0, "with a loss scale": 1, "no": 2, "fails in float32 too": 3}


@dataclass(frozen=True)
class Graded:
    """One verdict beside what training then did.

    ``where`` names the operator that was said to fail, ``foretold`` whether magnitudes alone said
    so, and ``headroom`` is in binades.
    """

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


@dataclass(frozen=True)
class Summary:
    """Counts of verdicts.

    A miss says less harm than came, a false alarm more; ``others`` are zero, or a bug.
    ``calibration`` has, by headroom in binades, how many overflowed of how many.
    """

    verdicts: int
    hits: int
    misses: int
    false_alarms: int
    others: int
    calibration: tuple[tuple[str, int, int], ...]


def graded(case: Case, formats: Sequence[Format] = FORMATS) -> list[Graded]:
    """A case diagnosed, then trained, in each format."""
    model, batches = case.built()
    found = diagnose(
        model,
        batches,
        loss=case.loss,
        optimizer=case.optimizer,
        formats=formats,
        steps=case.steps,
        rescue=False,
    )
    return [_graded(case, found.of(format), outcome(case, format)) for format in formats]


def _graded(case: Case, v: FormatVerdict, truth: Outcome) -> Graded:
    where = str(v.failure) if v.failure else ""
    return Graded(case.name, v.format, v.survives, truth.survives, where, v.forecast is not None,
                  v.headroom)  # fmt: skip


def score(cases: Iterable[Case] = ZOO) -> list[Graded]:
    """Every case of the zoo, diagnosed and trained."""
    return [row for case in cases for row in graded(case)]


def summary(rows: Sequence[Graded]) -> Summary:
    """How often the verdicts were right, and how they erred."""
    hits = sum(row.is_hit for row in rows)
    misses = sum(_HARM[row.verdict] < _HARM[row.truth] for row in rows)
    alarms = sum(_HARM[row.verdict] > _HARM[row.truth] for row in rows)
    others = len(rows) - hits - misses - alarms
    return Summary(len(rows), hits, misses, alarms, others, _calibration(rows))


def _calibration(rows: Sequence[Graded]) -> tuple[tuple[str, int, int], ...]:
    """By forecast headroom: how many of these failed in training, of how many."""
    halves = [row for row in rows if row.format == "float16" and row.truth in ("yes", "no")]
    bounds = [(-1e9, 0.0, "below 0"), (0.0, 2.0, "0 to 2"), (2.0, 8.0, "2 to 8"),
              (8.0, 1e9, "8 and more")]  # fmt: skip
    found = []
    for low, high, name in bounds:
        inside = [row for row in halves if low <= row.headroom < high]
        found.append((name, sum(row.truth == "no" for row in inside), len(inside)))
    return tuple(found)


def table(rows: Iterable[Graded]) -> Table:
    """One row for each case and format."""
    cells = [
        (r.case, r.format, r.verdict, r.truth, "" if r.is_hit else "differs", r.where) for r in rows
    ]
    return Table(["case", "format", "verdict", "training", "", "fails first"], cells)
