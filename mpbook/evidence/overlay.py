"""One line of a comparison: predicted, published, recorded, and what a record of yours says.

An `Overlay` is data: which case of which experiment is taken, and over which other.  So a page
without a kernel computes the same from a record that is dropped into it
(`mpbook.explorers.RecordExplorer`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from mpbook.cost.measure import Spread
from mpbook.evidence.published import published
from mpbook.evidence.records import Record

Case = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """What one line compares.

    Args:
        experiment: whose records it reads.
        label: what is compared.
        take: ``"speedup"``, tokens a second over those of ``over``; ``"saving"``, how much less
            memory at the peak than ``over``; ``"rate"``, tokens a second; ``"share"``, the best
            share of the stated peak among the cases that have ``of``.
        of: the values of the case that is taken.
        over: those of the case that it is compared with.
        predicted, published, recorded: as the page says them; empty for none.
    """

    experiment: str
    label: str
    take: Literal["speedup", "saving", "rate", "share"]
    of: Case
    over: Case = field(default_factory=dict)
    predicted: str = ""
    published: str = ""
    recorded: str = ""

    def value(self, record: Record) -> float | None:
        """What a record says; None if it has no such case, or one without a result."""
        here = [row["results"] for row in _measured(record, self.of)]
        there = [row["results"] for row in _measured(record, self.over)] if self.over else []
        if self.take == "share":
            shares = [_share(results) for results in here if results.get("stated_peak")]
            return max(shares, default=None)
        if len(here) != 1 or (self.over and len(there) != 1):
            return None
        if self.take == "saving":
            return 1 - _held(here[0]) / _held(there[0])
        rate = here[0]["tokens"] / _median(here[0])
        return rate if self.take == "rate" else rate / (there[0]["tokens"] / _median(there[0]))

    def text(self, record: Record) -> str:
        """The same as a page says it."""
        value = self.value(record)
        if value is None:
            return "no such result"
        if self.take in ("saving", "share"):
            return f"{_rounded(100 * value)}%"
        if self.take == "rate":
            return f"{_rounded(value):,}"
        units = _rounded(100 * value)
        return f"{units // 100}.{units % 100:02d}"

    def as_dict(self) -> dict[str, Any]:
        """As the module of the page reads it."""
        return asdict(self)


def _measured(record: Record, case: Case) -> list[dict[str, Any]]:
    return [
        row
        for row in record.cases
        if row["status"] == "measured" and case.items() <= row["case"].items()
    ]


def _median(results: Mapping[str, Any]) -> float:
    return Spread(tuple(results["seconds"])).median


def _held(results: Mapping[str, Any]) -> int:
    peak = results["peak"]
    return int(sum(results["memory"].values()) if peak is None else peak)


def _share(results: Mapping[str, Any]) -> float:
    return float(results["flops"] / _median(results) / results["stated_peak"])


def _rounded(value: float) -> int:
    """Half up, as JavaScript repeats to the last digit."""
    return math.floor(value + 0.5)


def of_experiment(overlays: Iterable[Overlay], experiment: str) -> list[Overlay]:
    """Those that read records of one experiment."""
    return [overlay for overlay in overlays if overlay.experiment == experiment]


def product_lines() -> list[Overlay]:
    """The best single products in 16 and 8 bits, beside those that others have published."""
    best = published(quantity="peak", model="single matrix product")
    lines = []
    for format, word in {"bfloat16": "bf16", "float8_e4m3fn": "fp8"}.items():
        found = best.that(lambda figure, word=word: word in figure.precision_b).summary()  # type: ignore[misc]
        said = f"{found.low:.0%} to {found.high:.0%}, median {found.median:.0%}"
        label = f"best product in {format}, of the stated peak"
        of = {"format": format}
        lines.append(
            Overlay(experiment="matmul_ladder", label=label, take="share", of=of, published=said)
        )
    return lines
