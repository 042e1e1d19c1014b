"""Everything that was found out about one format."""

from __future__ import annotations

from dataclasses import dataclass, field

from mpbook.diagnosis.choices import Flipped
from mpbook.diagnosis.costs import Memory
from mpbook.diagnosis.places import Place
from mpbook.diagnosis.rescue import Rescue
from mpbook.diagnosis.verdicts import FormatVerdict


@dataclass
class FormatReport:
    """Everything about one format.

    ``pure`` is about weights that are in it themselves, and ``given`` says that they were passed
    so.  ``rounded`` has the places that round whole numbers, ``total_without`` the error of all
    gradients where those are kept in float32; None where that was not tried.
    """

    verdict: FormatVerdict
    rescue: Rescue | None = None
    flipped: tuple[Flipped, ...] = ()
    rounded: dict[Place, tuple[str, float]] = field(default_factory=dict)
    total_without: float | None = None
    memory: Memory | None = None
    pure: FormatVerdict | None = None
    given: bool = False
    speed: float | None = None
