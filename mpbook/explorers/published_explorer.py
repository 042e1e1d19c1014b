"""The explorer of published measurements: every ratio a dot, and behind each dot its source.

The reader chooses what is compared and narrows it by GPU, baseline, kind of model and year.  The
sentences add up what is left, one baseline at a time; a click on a dot shows who measured it, where
it stands, and what to know before comparing.

Taught on the page "Published measurements".
"""

from __future__ import annotations

import html
import math
from typing import Any

import traitlets

from mpbook.evidence.published import Figures, published
from mpbook.evidence.published.figures import plural
from mpbook.evidence.published.reading import GENERATIONS
from mpbook.explorers.base import BadTraitError, Checked, Explorer, one_of
from mpbook.explorers.modules import STATIC, linked
from mpbook.synonyms import did_you_mean

QUANTITIES = {
    "speed": "times as fast",
    "memory": "times the memory",
    "batch": "times the batch",
    "quality": "times the baseline's score or loss",
    "peak": "times the stated peak",
}
"""What may be compared, and how its ratio is said."""

FILTERS = ("precision", "baseline", "generation", "kind_of_model", "year")
"""What narrows the choice; an empty string lets everything pass."""

UNNAMED = "not named"
"""How a GPU is called that the source does not name."""

NONE = "No published figure agrees with this choice. Widen it: choose “all” somewhere."


class PublishedExplorer(Explorer):
    """Published ratios by generation and baseline, with filters and the source of each.

    The traits ``quantity``, ``chosen`` (the id of the figure whose source is shown, or empty) and
    the filters ``precision``, ``baseline``, ``generation``, ``kind_of_model`` and ``year`` (each
    empty for all) follow the reader, and the picture follows them.

    Args:
        quantity: one of ``"speed"``, ``"memory"``, ``"batch"``, ``"quality"``, ``"peak"``.
        figures: what to choose from; by default every published figure with a ratio.
        **traits: the filters and ``chosen``.

    Raises:
        ValueError: a value that no figure has; it names what would be right.

    >>> print(PublishedExplorer("batch", generation="Volta").sentences()[0])
    Over float32: 15 figures of 2 sources, 1.50 to 2.50 times the batch; median 2.00.
    """

    _esm = linked(STATIC / "published_explorer.mjs")
    _twin = "published_explorer"
    _twin_traits = ("rows", "quantity", *FILTERS, "chosen")

    rows: Any = traitlets.List(read_only=True).tag(sync=True)
    quantity = Checked(one_of("quantity", tuple(QUANTITIES)), "speed").tag(sync=True)
    precision = traitlets.Unicode().tag(sync=True)
    baseline = traitlets.Unicode().tag(sync=True)
    generation = traitlets.Unicode().tag(sync=True)
    kind_of_model = traitlets.Unicode().tag(sync=True)
    year = traitlets.Unicode().tag(sync=True)
    chosen = traitlets.Unicode().tag(sync=True)

    def __init__(
        self, quantity: str = "speed", *, figures: Figures | None = None, **traits: Any
    ) -> None:
        self._figures = _oldest_first(published() if figures is None else figures)
        self.set_trait("rows", _rows(self._figures))
        super().__init__(quantity=quantity, **traits)

    @traitlets.validate(*FILTERS, "chosen")
    def _some_row_has_it(self, proposal: Any) -> str:
        name, value = proposal.trait.name, proposal.value
        field = "id" if name == "chosen" else name
        known = dict.fromkeys(row[field] for row in self.rows)
        if value and value not in known:
            hint = did_you_mean(value, known)
            names = ", ".join(known)
            raise BadTraitError(f"{name}={value!r}: expected one of {names}, or ''{hint}")
        return str(value)

    def selected(self) -> Figures:
        """The figures of the chosen quantity that pass every filter."""
        passed = {
            row["id"]
            for row in self.rows
            if row["quantity"] == self.quantity
            and all(getattr(self, name) in ("", row[name]) for name in FILTERS)
        }
        return self._figures.that(lambda figure: figure.id in passed)

    def sentences(self) -> list[str]:
        """What the selected figures add up to, one sentence for each baseline."""
        groups = self.selected().by("baseline")
        return [self._sentence(name, group) for name, group in groups.items()] or [NONE]

    def _sentence(self, baseline: str, group: Figures) -> str:
        found, unit = group.summary(), QUANTITIES[self.quantity]
        what = f"{plural(found.figures, 'figure')} of {plural(found.sources, 'source')}"
        said = f"Over {baseline}: {what}, {_digits(found.low)}"
        if found.figures == 1:
            return f"{said} {unit}."
        said += f" to {_digits(found.high)} {unit}; median {_digits(found.median)}"
        vote = f", with one vote a source {_digits(found.one_vote)}"
        return f"{said}{vote if found.sources > 2 else ''}."

    def _fallback(self) -> str:
        rows = (
            f"<tr><th scope='row'>{html.escape(f'{generation or UNNAMED}, over {baseline}')}</th>"
            f"<td>{len(group)}</td><td>{_digits(group.summary().median)}</td></tr>"
            for generation, part in self.selected().by("generation").items()
            for baseline, group in part.by("baseline").items()
        )
        title, *rest = map(html.escape, self.sentences())
        head = "<tr><th scope='col'>GPU</th><th scope='col'>figures</th><th scope='col'>median</th>"
        return (
            f"<figure class='mp-static'><figcaption>{title}</figcaption><p>{' '.join(rest)}</p>"
            f"<table><thead>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></figure>"
        )

    def __repr__(self) -> str:
        return " ".join(self.sentences())


def _oldest_first(figures: Figures) -> Figures:
    """Those with a ratio, the oldest generation first."""
    order = {name: place for place, name in enumerate((*GENERATIONS, ""))}
    return Figures(tuple(sorted(figures.compared, key=lambda figure: order[figure.generation])))


def _rows(figures: Figures) -> list[dict[str, Any]]:
    """Figures as the module reads them."""
    return [
        {
            "id": figure.id, "quantity": figure.quantity, "ratio": figure.ratio,
            "generation": figure.generation or UNNAMED, "baseline": figure.baseline,
            "precision": figure.precision, "kind_of_model": figure.kind_of_model,
            "year": str(figure.year or "not stated"), "source": figure.source, "url": figure.url,
            "model": figure.model, "hardware": figure.hardware, "from": figure.precision_a,
            "to": figure.precision_b, "where": figure.source_where, "caveat": figure.caveat or "",
            "values": f"{figure.value_a:g} to {figure.value_b:g} {figure.unit}",
        }
        for figure in figures
    ]  # fmt: skip


def _digits(value: float) -> str:
    """Two decimals, rounded half up, as JavaScript repeats to the last digit."""
    whole, part = divmod(math.floor(value * 100 + 0.5), 100)
    return f"{whole}.{part:02d}"
