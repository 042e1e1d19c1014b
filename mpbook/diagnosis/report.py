"""What `mpbook.diagnosis.diagnose` found: a table, a dictionary, a figure, and HTML."""

from __future__ import annotations

import html
import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from mpbook.autocast.policy import dtype_name
from mpbook.diagnosis.advice import STATES, Advice
from mpbook.diagnosis.costs import Memory
from mpbook.diagnosis.format_report import FormatReport
from mpbook.diagnosis.places import Seen
from mpbook.diagnosis.state import Write
from mpbook.diagnosis.verdicts import WRONG, FormatVerdict, Survives
from mpbook.master_weights import SIXTEEN_BIT
from mpbook.notebook import Table
from mpbook.synonyms import did_you_mean

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Line:
    """One line of a report: what it is about, of which format, what was found, where, and how."""

    topic: str
    format: str
    finding: str
    place: str = ""
    how: str = ""


@dataclass
class Diagnosis:
    """The verdict on each format, with its evidence; see `mpbook.diagnosis`.

    ``formats`` has a report for each, ``writes`` the ledger of states, ``advice`` what to do and
    ``unseen`` what was not seen.
    """

    roof: str
    steps: int
    writes: tuple[Write, ...] = ()
    formats: dict[str, FormatReport] = field(default_factory=dict)
    without_vote: tuple[str, ...] = ()
    repeatable: bool = True
    memory_float32: Memory | None = None
    unseen: tuple[tuple[str, str], ...] = ()
    advice: tuple[Advice, ...] = ()

    def of(self, format: str) -> FormatVerdict:
        """The verdict on one format.

        Raises:
            ValueError: a format that was not asked for.
        """
        if format not in self.formats:
            hint = did_you_mean(format, self.formats)
            raise ValueError(f'format="{format}": expected one of {", ".join(self.formats)}{hint}')
        return self.formats[format].verdict

    def survives(self, format: str) -> Survives:
        """``"yes"``, ``"with a loss scale"``, ``"no"`` or ``"fails in float32 too"``."""
        return self.of(format).survives

    def lines(self) -> list[Line]:
        """Everything that is said, in the order of the report."""
        found: list[Line] = []
        for name, part in self.formats.items():
            found += [*_survival(part.verdict), *_scale(part.verdict)]
            found += _silent(name, part, repeatable=self.repeatable)
            found += _pure(name, part.pure)
        found += [line for write in self.writes for line in _state(write)]
        found += self._costs()
        if self.without_vote:
            found.append(Line("no vote", "", f"{len(self.without_vote)} gradients are nothing but "
                              "rounding", ", ".join(self.without_vote[:4]), "float64"))  # fmt: skip
        if not self.repeatable:
            said = "two float32 runs with one seed differ, and so may all that are compared"
            found.append(Line("not repeatable", "", said, "", "run"))
        return found + [Line("not seen", "", what, where) for what, where in self.unseen]

    def _costs(self) -> list[Line]:
        found = []
        if self.memory_float32 is not None:
            found.append(_memory("float32", self.memory_float32))
        for name, part in self.formats.items():
            if part.memory is not None:
                found.append(_memory(name, part.memory))
            if part.speed is not None:
                said = f"{part.speed:.1f} times float32's, by bytes and products alone"
                found.append(Line("speed, predicted", name, said, self.roof, "roofline"))
        return found

    def table(self) -> Table:
        """One row for each thing that is said."""
        rows = [tuple(vars(line).values()) for line in self.lines()]
        return Table(["about", "format", "finding", "place", "how it is known"], rows)

    def to_do(self) -> str:
        """What to do, ranked, with the lines to paste and the section of the book."""
        parts = [self._nothing_to_do()] if self._nothing_to_do() else []
        for number, one in enumerate(self.advice, 1):
            text = f"{number}. {one.format}: {one.what}"
            text += "".join(f"\n       {line}" for line in one.lines.splitlines())
            parts.append(text + (f"\n   see {one.page}" if one.page else ""))
        return "\n".join(parts)

    def _nothing_to_do(self) -> str:
        """A sentence where there is advice for states in 16 bits at most; else nothing."""
        needed = any(one.format != STATES for one in self.advice)
        return "" if needed else "Nothing to do: autocast around the forward pass is enough."

    def as_dict(self) -> dict[str, Any]:
        """The same in what JSON can hold."""
        return {
            "survives": {name: part.verdict.survives for name, part in self.formats.items()},
            "steps": self.steps,
            "lines": [asdict(line) for line in self.lines()],
            "advice": [asdict(one) for one in self.advice],
        }

    def figure(self) -> Figure:
        """The headroom of the operators nearest to overflow, in binades below 65504."""
        from mpbook import plots

        drawn, axis = plots.figure(figsize=(7, 3))
        part = next((p for p in self.formats.values() if p.verdict.tightest), None)
        seen = part.verdict.tightest[::-1] if part else ()
        values = [s.headroom for s in seen]
        axis.barh([_label(s) for s in seen], values, color=plots.COLOURS["float16"])
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set(xlabel="binades below 65504", title="Nearest to float16's largest number")
        return drawn

    def __repr__(self) -> str:
        return f"{self.table()!r}\n\nWhat to do\n{self.to_do()}"

    def _repr_html_(self) -> str:
        items = "".join(_html_item(one) for one in self.advice)
        nothing = self._nothing_to_do()
        to_do = f"<p>{nothing}</p>" if nothing else ""
        to_do += f"<ol>{items}</ol>" if items else ""
        return f"{self.table()._repr_html_()}<p><strong>What to do</strong></p>{to_do}"


def _label(seen: Seen) -> str:
    """Short enough to stand beside a bar."""
    place = seen.key.place
    return f"{seen.operator} in {place.module}" + (f"\nline {place.line}" if place.line else "")


def _html_item(one: Advice) -> str:
    code = f"<pre>{html.escape(one.lines)}</pre>" if one.lines else ""
    link = f' <a href="../{one.page}">Read why</a>.' if one.page else ""
    return f"<li>{html.escape(f'{one.format}: {one.what}')}.{link}{code}</li>"


# --- Lines ------------------------------------------------------------------------------------


def _survival(v: FormatVerdict) -> list[Line]:
    place = str(v.failure.key.place) if v.failure else ""
    found = [Line("survives", v.format, f"{v.survives}: {v.reason}", place, "run")]
    if v.forecast is not None:
        said = f"{v.forecast.operator} overflows: it reaches {v.forecast.largest:.3g}"
        found.append(Line("forecast", v.format, said, str(v.forecast.key.place), "magnitudes"))
    for seen in v.tightest:
        said = f"{seen.headroom:.1f} binades: {seen.operator} reaches {seen.largest:.3g}"
        found.append(Line("headroom", v.format, said, str(seen.key.place), "magnitudes"))
    if v.nonfinite_after:
        named = ", ".join(v.nonfinite_after[:4])
        found.append(Line("not finite after the steps", v.format, named, "", "run"))
    return found + [Line("contradicted", v.format, said, "", "run") for said in v.contradictions]


def _scale(v: FormatVerdict) -> list[Line]:
    if v.format != "float16" or v.survives in ("fails in float32 too", "no"):
        return []
    window = (
        f"2**{v.window[0]} to 2**{v.window[1]} fit" if v.window else "no scale fits every layer"
    )
    if v.loss_scale_needed:
        worst = max(v.lost, key=lambda name: v.lost[name])
        return [Line("loss scale", v.format, f"needed: {window}", worst, "run with and without")]
    said = f"not needed; where one is used, {window}"
    return [Line("loss scale", v.format, said, "", "run with and without")]


def _silent(name: str, part: FormatReport, *, repeatable: bool) -> list[Line]:
    v = part.verdict
    found = []
    if v.gradient_error and math.isfinite(v.total):
        worst = max(v.gradient_error, key=lambda key: v.gradient_error[key])
        said = f"gradients {v.total:.1%} off float32's, worst {v.gradient_error[worst]:.1%}"
        if v.total > WRONG and v.survives != "no" and repeatable:
            said += f"; rounding the weights alone moves them by {v.sensitive:.0%}: ill-conditioned"
        found.append(Line("rounding", name, said, worst, "run"))
    if v.survives != "no" and v.loss_error > WRONG and repeatable:
        said = f"its value is {v.loss_error:.0%} off float32's, whatever the first gradients are"
        found.append(Line("loss", name, said, "", "run"))
    for one in part.flipped:
        said = f"{one.operator} chooses differently in {one.share:.1%} of its rows"
        found.append(Line("ties", name, said, str(one.place), "run"))
    for place, (operator, share) in part.rounded.items():
        said = f"{operator} rounds {share:.0%} of its whole numbers: positions, times or indices"
        found.append(Line("whole numbers", name, said, str(place), "run"))
    return found


def _pure(name: str, v: FormatVerdict | None) -> list[Line]:
    if v is None:
        return []
    lines = [Line(f"{name} weights", name, f"{v.survives}: {v.reason}", "", "run without autocast")]
    if v.nonfinite_after:
        named = ", ".join(v.nonfinite_after[:4])
        lines.append(Line("not finite after the steps", f"{name} weights", named, "", "run"))
    return lines


def _state(write: Write) -> list[Line]:
    found = []
    what = {"mul_": "its decay", "lerp_": "its average"}.get(write.operator, write.operator)
    for dtype in SIXTEEN_BIT:
        share, lost = write.share(dtype), write.lost_share(dtype)
        name = dtype_name(dtype)
        if share < 0.01 or write.stored in SIXTEEN_BIT:  # then what it really did is said
            continue
        said = f"{write.state} ({what}): {share:.0%} of the writes change nothing, {lost:.0%} lost"
        if write.state == "weights" and write.operator != "mul_":
            kahan = write.lost_share(dtype, kahan=True)
            said += f"; master weights lose none, Kahan summation {kahan:.0%}"
        found.append(Line("stands still in 16 bits", name, said, write.operator, "float32 run"))
    if write.really_swallowed:
        said = f"{write.state}: {write.really_swallowed} writes changed nothing"
        found.append(Line("stood still", dtype_name(write.stored), said,
                          write.operator, "run"))  # fmt: skip
    return found


def _memory(name: str, memory: Memory) -> Line:
    said = "what is saved for backward was not measured"
    if memory.activations:
        said = f"{_bytes(memory.activations)} saved for backward"
    if memory.for_each_example is not None:
        four = memory.predicted(4 * memory.examples)
        said += f", {_bytes(memory.for_each_example)} an example (predicted for "
        said += f"{4 * memory.examples}: {_bytes(four or 0)})"
    said += f"; {_bytes(memory.kept)} of weights, gradients and states"
    how = "measured" if memory.for_each_example is None else "measured at two batches"
    return Line("memory", name, said, "", how)


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} GiB"
