"""One published figure, with all that is needed to find it again, and the checks that it passes."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mpbook.evidence.published import reading
from mpbook.evidence.published.reading import Quantity

DATA = Path(__file__).parent / "measurements.json"
ROUNDING = 6e-5
"""Published ratios are kept to four decimals."""


@dataclass(frozen=True)
class Measurement:
    """What a source measured of two precisions, or of one.

    ``precision_a`` is the baseline and ``precision_b`` what is compared with it, both in the
    source's words; ``value_a`` and ``value_b`` are in ``unit``.  ``ratio`` reads: speed, above 1
    means that B is faster; memory, batch and quality, B over A; peak, achieved over the data
    sheet's.  It is None where the source gives one value only.  ``caveat`` is what to know before
    comparing.

    Raises:
        ValueError: no source, a word that is not known, or a ratio that does not follow from the
            two values.
    """

    id: str
    claim: str
    model: str
    hardware: str
    precision_a: str | None
    precision_b: str
    batch: str | None
    sequence: str | None
    value_a: float | None
    value_b: float
    unit: str
    ratio: float | None
    software: str | None
    date: str | None
    source_repository: str | None
    source_path: str
    source_commit: str | None
    source_where: str
    caveat: str | None

    def __post_init__(self) -> None:
        for name in ("source", "source_path", "source_where"):
            if not str(getattr(self, name) or "").strip():
                raise ValueError(f"{self.id}: {name} is empty; a figure needs its source")
        expected, stated = self._expected_ratio(), self.ratio
        if (expected is None) != (stated is None):
            raise ValueError(f"{self.id}: ratio={stated}, but the values give {expected}")
        if expected is not None and stated is not None and abs(expected - stated) > ROUNDING:
            raise ValueError(f"{self.id}: ratio={stated}, but the values give {expected:.4f}")

    def _expected_ratio(self) -> float | None:
        if self.value_a is None:
            return None
        faster = self.quantity == "speed" and reading.less_is_faster(self.unit)
        return self.value_a / self.value_b if faster else self.value_b / self.value_a

    @property
    def improvement(self) -> float | None:
        """By how much B's quality is better, relative to A's; below 0 it is worse.

        From the values and not from the rounded ratio; None for one value alone.
        """
        if self.value_a is None or self.quantity != "quality":
            return None
        difference = self.value_b / self.value_a - 1
        return difference if "higher is better" in self.unit else -difference

    @property
    def quantity(self) -> Quantity:
        """What is compared: speed, memory, batch, quality, a peak, or nothing (a count)."""
        return "peak" if self.baseline == "data sheet" else reading.quantity(self.unit)

    @property
    def baseline(self) -> str:
        """The class of ``precision_a``: ``"float32"``, ``"TF32"``, ``"16 bits"``, ..."""
        return reading.baseline(self.precision_a)

    @property
    def precision(self) -> str:
        """The class of ``precision_b``: ``"mixed"``, ``"16-bit weights"``, ``"8 bits"``, ...

        ``"compiled"`` where the code is compiled and the baseline's is not.
        """
        if "eager" in (self.precision_a or "") and "compile" in self.precision_b:
            return "compiled"
        return reading.precision(self.precision_b)

    @property
    def compiled(self) -> bool:
        """Whether both precisions ran compiled code."""
        return all("compiled" in name for name in (self.precision_a or "", self.precision_b))

    @property
    def whole_step(self) -> bool:
        """Whether a figure of memory covers a training step with the state of its optimizer."""
        passes = "forward" in f"{self.model}, {self.unit}"
        return not passes and "no optimizer state" not in (self.caveat or "")

    @property
    def generation(self) -> str:
        """The GPU's generation, empty where the source names none."""
        return reading.generation(self.hardware)

    @property
    def card(self) -> str:
        """The GPU's model, as "RTX 3090", empty where the source names none."""
        return reading.card(self.hardware)

    @property
    def kind_of_model(self) -> str:
        """``"Transformers"``, ``"convolutional nets"``, ... or ``"single layers"``."""
        return reading.kind_of_model(self.model)

    @property
    def year(self) -> int | None:
        """When it was measured, None where nothing says it."""
        return reading.year(self.date, self.software)

    @property
    def source(self) -> str:
        """What counts as one source: a repository, else the address of a page."""
        return self.source_repository or self.source_path

    @property
    def url(self) -> str:
        """The address of the file at the commit that was read, or of the page or thread."""
        if stated := re.search(r"https?://\S+", f"{self.source_path} {self.source_where}"):
            return stated[0]
        path = self.source_path.partition(" and ")[0].strip()
        file = quote(f"{self.source_commit}/{path}")
        return f"https://github.com/{self.source_repository}/blob/{file}"


@cache
def load(path: Path = DATA) -> tuple[Measurement, ...]:
    """Every published figure, in the order of the file.

    Raises:
        ValueError: a row that lacks a field or has one too many, an id that occurs twice, or what
            `Measurement` refuses.
    """
    rows: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))
    names = {field.name for field in fields(Measurement)}
    for row in rows:
        if wrong := names ^ set(row):
            raise ValueError(f"{row.get('id')}: fields {sorted(wrong)} are missing or not known")
    figures = tuple(Measurement(**row) for row in rows)
    ids = [figure.id for figure in figures]
    if twice := {name for name in ids if ids.count(name) > 1}:
        raise ValueError(f"ids that occur twice: {sorted(twice)}")
    return figures
