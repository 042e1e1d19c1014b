"""Published figures, selected and added up: one quantity, one baseline, one vote a source."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mpbook.evidence.published.measurement import Measurement, load
from mpbook.evidence.published.reading import GENERATIONS
from mpbook.evidence.published.sources import SOURCES
from mpbook.notebook import Table
from mpbook.synonyms import did_you_mean

FIELDS: dict[str, Callable[[Measurement], Any]] = {
    "claim": lambda figure: figure.claim,
    "quantity": lambda figure: figure.quantity,
    "baseline": lambda figure: figure.baseline,
    "precision": lambda figure: figure.precision,
    "generation": lambda figure: figure.generation,
    "card": lambda figure: figure.card,
    "kind_of_model": lambda figure: figure.kind_of_model,
    "source": lambda figure: figure.source,
    "kind_of_source": lambda figure: SOURCES[figure.source].kind,
    "year": lambda figure: figure.year,
}
"""What figures are selected and grouped by."""


@dataclass(frozen=True)
class Summary:
    """What some figures add up to: how many, of how many sources, and their ratios.

    ``one_vote`` is the median over the sources of each source's median: a source of forty figures
    counts no more than one of a single figure.
    """

    figures: int
    sources: int
    low: float
    median: float
    high: float
    one_vote: float

    @property
    def caption(self) -> str:
        """How a ledger names this evidence."""
        what = f"{plural(self.figures, 'figure')}, {plural(self.sources, 'source')}"
        return f"published: {what}, median {self.median:.2f}"


@dataclass(frozen=True)
class Figures:
    """Some of the published figures, in the order of the collection."""

    rows: tuple[Measurement, ...]

    def __iter__(self) -> Iterator[Measurement]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, *, model: str = "", hardware: str = "", **chosen: Any) -> Figures:
        """Those that agree with every argument.

        Args:
            model: a regular expression that occurs in the model's name, whatever the case.
            hardware: the same for the GPU's.
            **chosen: a value of `FIELDS`, or several in a tuple, list or set: ``claim``,
                ``quantity``, ``baseline``, ``precision``, ``generation``, ``card``,
                ``kind_of_model``, ``source``, ``kind_of_source``, ``year``.

        Raises:
            ValueError: a field that figures do not have, or a value that none of them has.
        """
        wanted = {name: _several(name, value) for name, value in chosen.items()}
        return self.that(
            lambda figure: (
                all(FIELDS[name](figure) in values for name, values in wanted.items())
                and re.search(model, figure.model, re.I) is not None
                and re.search(hardware, figure.hardware, re.I) is not None
            )
        )

    def that(self, agrees: Callable[[Measurement], bool]) -> Figures:
        """Those for which a condition holds."""
        return Figures(tuple(filter(agrees, self)))

    @property
    def compared(self) -> Figures:
        """Those with a ratio: what a source gives as one value alone is left out."""
        return self.that(lambda figure: figure.ratio is not None)

    def by(self, field: str) -> dict[Any, Figures]:
        """Groups by a field, in the order of the collection; generations, the oldest first.

        Raises:
            ValueError: a field that figures do not have.
        """
        read = _field(field)
        groups: dict[Any, list[Measurement]] = {}
        for figure in self:
            groups.setdefault(read(figure), []).append(figure)
        if field == "generation":
            groups = {name: groups[name] for name in (*GENERATIONS, "") if name in groups}
        return {value: Figures(tuple(rows)) for value, rows in groups.items()}

    @property
    def ratios(self) -> list[float]:
        """The ratios, of those that have one."""
        return [figure.ratio for figure in self if figure.ratio is not None]

    @property
    def counts(self) -> str:
        """How many figures with a ratio, of how many sources, as "22 figures, 2 sources"."""
        found = self.compared
        return f"{plural(len(found), 'figure')}, {plural(len(found.by('source')), 'source')}"

    def share(self, holds: Callable[[float], bool]) -> float:
        """The share of the ratios for which a condition holds.

        Raises:
            LookupError: no figure has a ratio.
        """
        if not (ratios := self.ratios):
            raise LookupError("no published figure with a ratio")
        return sum(map(holds, ratios)) / len(ratios)

    def summary(self) -> Summary:
        """What they add up to.

        Raises:
            LookupError: no figure has a ratio.
            ValueError: two baselines, or two quantities: their ratios mean different things.
        """
        compared = self.compared
        for name in ("baseline", "quantity"):
            if len(found := compared.by(name)) > 1:
                raise ValueError(f"{name}: {', '.join(found)}; add up one at a time")
        if not (ratios := compared.ratios):
            raise LookupError("no published figure with a ratio")
        votes = [statistics.median(group.ratios) for group in compared.by("source").values()]
        return Summary(
            len(ratios), len(votes), min(ratios), statistics.median(ratios), max(ratios),
            statistics.median(votes),
        )  # fmt: skip

    def table(self, by: str = "generation", *, caption: str = "") -> Table:
        """`summaries` of the groups by a field.

        Raises:
            ValueError: a field that figures do not have, or two baselines in one group.
        """
        groups = {str(name) or "not named": group for name, group in self.by(by).items()}
        return summaries(groups, by=by.replace("_", " "), caption=caption)

    def _repr_markdown_(self) -> str:
        head = "| GPU | model | from | to | ratio | source | note |\n|---|---|---|---|---|---|---|"
        return "\n".join([head, *map(_listed, self)])


def published(**chosen: Any) -> Figures:
    """The published figures, all or those that agree with `Figures.where`'s arguments.

    >>> published(claim="2x-batch", generation="Volta").summary().caption
    'published: 15 figures, 2 sources, median 2.00'
    """
    return Figures(load()).where(**chosen)


def _several(name: str, value: Any) -> Collection[Any]:
    """The values that are wanted of a field, all of which some published figure has."""
    read = _field(name)
    wanted = value if isinstance(value, tuple | list | set | frozenset) else (value,)
    known = dict.fromkeys(map(read, load()))
    if unknown := [one for one in wanted if one not in known]:
        hint = did_you_mean(unknown[0], map(str, known))
        names = ", ".join(map(repr, known))
        raise ValueError(f"{name}={unknown[0]!r}: expected one of {names}{hint}")
    return wanted


def _field(name: str) -> Callable[[Measurement], Any]:
    if name not in FIELDS:
        raise ValueError(f"{name!r}: expected one of {', '.join(FIELDS)}")
    return FIELDS[name]


def summaries(groups: Mapping[str, Figures], *, by: str, caption: str = "") -> Table:
    """One row for each group in which something is compared: figures, sources and ratios.

    Args:
        groups: by the name of their row.
        by: what the names are, the head of their column.
        caption: what the ratios are of.

    Raises:
        ValueError: two baselines, or two quantities, in one group.
    """
    header = [by, "figures", "sources", "lowest", "median", "highest", "one vote a source"]
    rows: list[list[Any]] = []
    for name, group in groups.items():
        if group.ratios:
            found = group.summary()
            ratios = (found.low, found.median, found.high, found.one_vote)
            rows.append([name, found.figures, found.sources, *(f"{r:.2f}" for r in ratios)])
    return Table(header, rows, caption=caption)


def _listed(figure: Measurement) -> str:
    cells = (
        figure.hardware, figure.model, figure.precision_a or "", figure.precision_b,
        "" if figure.ratio is None else f"{figure.ratio:.2f}",
        f"[{figure.source}]({figure.url})", figure.caveat or "",
    )  # fmt: skip
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def plural(count: int, noun: str) -> str:
    """A count with its noun.

    >>> plural(1, "source"), plural(2, "source")
    ('1 source', '2 sources')
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"
