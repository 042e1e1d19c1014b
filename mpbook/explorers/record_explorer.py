"""A place for your own records: a file dropped on the page, checked, and laid over what is known.

``python -m mpbook record`` writes files.  The page reads them without a kernel and sends them
nowhere: it checks the schema and the digest as `mpbook.evidence.records.load` does, shows where,
when and by which code the file was measured, and puts its values beside those that were predicted
and published.

Taught in "GPT-2: a famous claim on trial".
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import traitlets

from mpbook.evidence.experiments import EXPERIMENTS
from mpbook.evidence.overlay import Overlay, of_experiment
from mpbook.evidence.records import SCHEMA, Record
from mpbook.explorers.base import Explorer
from mpbook.explorers.modules import STATIC, linked

HEADER = ("", "predicted", "published", "recorded", "yours")


class RecordExplorer(Explorer):
    """Drop a record of yours here: it is laid over what was predicted and published.

    Args:
        overlays: the lines to compare, see `mpbook.evidence.overlay.Overlay`.

    Raises:
        ValueError: an overlay of an experiment that does not exist.
    """

    _esm = linked(STATIC / "record_explorer.mjs")
    _twin = "record_explorer"
    _twin_traits = ("schema", "experiments", "overlays")

    schema: Any = traitlets.Int(SCHEMA, read_only=True).tag(sync=True)
    experiments: Any = traitlets.Dict(read_only=True).tag(sync=True)
    overlays: Any = traitlets.List(read_only=True).tag(sync=True)

    def __init__(self, overlays: Sequence[Overlay] = ()) -> None:
        for overlay in overlays:
            if overlay.experiment not in EXPERIMENTS:
                raise ValueError(
                    f"experiment={overlay.experiment!r}: expected one of {', '.join(EXPERIMENTS)}"
                )
        self._overlays = tuple(overlays)
        questions = {name: experiment.question for name, experiment in EXPERIMENTS.items()}
        self.set_trait("experiments", questions)
        self.set_trait("overlays", [overlay.as_dict() for overlay in overlays])
        super().__init__()

    def rows(self, record: Record) -> list[list[str]]:
        """What the page shows of a record: label, predicted, published, recorded, yours."""
        return [
            [o.label, o.predicted, o.published, o.recorded, o.text(record)]
            for o in of_experiment(self._overlays, record.experiment)
        ]

    def _fallback(self) -> str:
        head = "".join(f"<th scope='col'>{name}</th>" for name in HEADER[:-1])
        body = "".join(
            f"<tr><th scope='row'>{html.escape(o.label)}</th><td>{html.escape(o.predicted)}</td>"
            f"<td>{html.escape(o.published)}</td><td>{html.escape(o.recorded)}</td></tr>"
            for o in self._overlays
        )
        return (
            "<figure class='mp-static'><figcaption>With JavaScript, records of yours are laid over "
            f"these.</figcaption><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
            "</table></figure>"
        )

    def __repr__(self) -> str:
        names = dict.fromkeys(overlay.experiment for overlay in self._overlays)
        return f"A place for records of {', '.join(names) or 'any experiment'}."
