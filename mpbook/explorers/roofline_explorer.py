"""The roofline explorer: work of any size under the roof of a device.

The reader chooses a device, a format and some work, and drags its sizes.  The point is the most
that this work can reach: on the slope it waits for bytes, on the level part for arithmetic.  A
whole training step lies below the roof, because its parts come one after another.

Taught in the chapter "Speed".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import traitlets

from mpbook.cost.roofline import STATED, Roof, Work, elementwise, gpt_step, matmul
from mpbook.explorers.base import BadTraitError, Checked, Explorer, one_of, static_facts
from mpbook.explorers.modules import STATIC, linked
from mpbook.explorers.roofs import as_roofs, plain
from mpbook.models import GPTConfig

OPERATIONS: dict[str, tuple[str, ...]] = {
    "matrix product": ("m", "k", "n"),
    "addition": ("elements",),
    "GPT step": ("batch", "context", "layers", "width", "vocabulary"),
}
"""What can be placed under the roof, and the sizes that it has."""

DEFAULT_SIZES = {
    **{"m": 4096, "k": 4096, "n": 4096, "elements": 2**24},
    **{"batch": 16, "context": 1024, "layers": 12, "width": 768, "vocabulary": 50257},
}
LARGEST = 2**30

_STEP_FORMATS = ("float32", "tfloat32", "float16", "bfloat16")


def _as_sizes(sizes: Any) -> dict[str, int]:
    unknown = [name for name in sizes if name not in DEFAULT_SIZES]
    if unknown:
        raise ValueError(f"sizes={unknown[0]!r}: expected names of {', '.join(DEFAULT_SIZES)}")
    for name, size in sizes.items():
        if type(size) is not int or not 1 <= size <= LARGEST:
            raise ValueError(f"sizes[{name!r}]={size!r}: expected an integer from 1 to 2**30")
    return {**DEFAULT_SIZES, **sizes}


class RooflineExplorer(Explorer):
    """The most that work of a chosen size can reach on a device, and what holds it back.

    The traits ``device``, ``format``, ``operation`` and ``sizes`` follow the reader, and the
    picture follows them: ``explorer.sizes = {"m": 1}``.  A format that the device has no peak for
    gives way to a 16-bit one that it has, or to float32.

    Args:
        device: the name of a roof to begin with; the first when not given.
        format: in which matrix products are.
        operation: ``"matrix product"``, ``"addition"`` of two tensors, or ``"GPT step"``.
        sizes: by name (``m``, ``k`` and ``n``; ``elements``; ``batch``, ``context``, ``layers``,
            ``width`` and ``vocabulary``), from 1 to 2**30; the others keep their defaults.
        roofs: the devices to choose from, such as ``[measure_roof(), *STATED.values()]``.

    Raises:
        ValueError: an argument that cannot be drawn; it names what would be right.

    >>> RooflineExplorer("H100 SXM", sizes={"m": 1}).sentences()[2]
    'On paper 10.0 µs; in float32 2.00 times as long.'
    """

    _esm = linked(STATIC / "roofline_explorer.mjs")
    _twin = "roofline_explorer"
    _twin_traits = ("roofs", "device", "format", "operation", "sizes")

    roofs = Checked(as_roofs, [], read_only=True).tag(sync=True, to_json=plain)
    device = traitlets.Unicode().tag(sync=True)
    format = Checked(
        one_of("format", ("float32", "tfloat32", "float16", "bfloat16", "float8_e4m3fn")),
        "bfloat16",
    ).tag(sync=True)
    operation = Checked(one_of("operation", tuple(OPERATIONS)), "matrix product").tag(sync=True)
    sizes = Checked(_as_sizes, dict(DEFAULT_SIZES)).tag(sync=True)

    def __init__(
        self,
        device: str | None = None,
        format: str = "bfloat16",
        operation: str = "matrix product",
        *,
        sizes: Mapping[str, int] | None = None,
        roofs: Sequence[Roof] = tuple(STATED.values()),
        **traits: Any,
    ) -> None:
        self.set_trait("roofs", roofs)
        super().__init__(
            device=_one_of_the(self.roofs, self.roofs[0].name if device is None else device),
            format=format,
            operation=operation,
            sizes=dict(sizes or {}),
            **traits,
        )

    @traitlets.validate("device")
    def _is_there(self, proposal: Any) -> str:
        try:
            return _one_of_the(self.roofs, proposal.value)
        except ValueError as error:
            raise BadTraitError(str(error)) from error

    @property
    def roof(self) -> Roof:
        """The roof of the chosen device."""
        return next(roof for roof in self.roofs if roof.name == self.device)

    @property
    def shown_format(self) -> str:
        """The chosen format, or the one in its place where the device or the work has none such."""
        offered = [f for f in self.roof.peaks if f in _STEP_FORMATS or self.operation != "GPT step"]
        return next(f for f in (self.format, "bfloat16", "float16", "float32") if f in offered)

    def parts(self, format: str) -> tuple[Work, ...]:
        """The work in a format: one piece, or the parts of a step."""
        s = self.sizes
        if self.operation == "matrix product":
            return (matmul(s["m"], s["k"], s["n"], format),)
        if self.operation == "addition":
            return (elementwise(s["elements"], format, reads=2),)
        config = GPTConfig(s["vocabulary"], s["context"], s["layers"], 1, s["width"])
        return gpt_step(config, batch=s["batch"], format=format)

    def sentences(self) -> list[str]:
        """What the work takes, what holds it back, and how long it takes on paper."""
        format, roof = self.shown_format, self.roof
        parts = self.parts(format)
        flops, moved = sum(p.flops for p in parts), sum(p.bytes for p in parts)
        seconds = self._seconds(format)
        first = (
            f"{_size(flops, 'flop')} over {_size(moved, 'B')}: "
            f"{_digits(flops / moved)} operations per byte."
        )
        if self.operation == "GPT step":
            second = _what_a_step_reaches(parts, roof, format, flops / seconds)
        else:
            second = _what_holds_it_back(parts[0], roof, format)
        last = f"On paper {_size(seconds, 's')}"
        if format == "float32":
            return [first, second, f"{last}."]
        ratio = _digits(self._seconds("float32") / seconds)
        return [first, second, f"{last}; in float32 {ratio} times as long."]

    def _seconds(self, format: str) -> float:
        return sum(self.roof.seconds(part, format) for part in self.parts(format))

    def _fallback(self) -> str:
        sizes = ", ".join(f"{n} {self.sizes[n]}" for n in OPERATIONS[self.operation])
        facts = {"device": self.device, "format": self.shown_format}
        facts |= {"work": self.operation, "sizes": sizes}
        title, *rest = self.sentences()
        return static_facts(title, facts, words=" ".join(rest))

    def __repr__(self) -> str:
        return " ".join(self.sentences())


def _one_of_the(roofs: list[Roof], name: Any) -> str:
    names = [roof.name for roof in roofs]
    if name not in names:
        raise ValueError(f"device={name!r}: expected one of {', '.join(names)}")
    return str(name)


def _what_holds_it_back(work: Work, roof: Roof, format: str) -> str:
    speed = format if work.product else "float32"
    peak, rate = roof.peak(speed), roof.attainable(work, format)
    where = f"on {roof.name} in {speed}, whose ridge is at {_digits(roof.ridge(speed))}"
    if roof.bound(work, format) == "compute":
        return f"Compute-bound {where}: at most the peak, {_size(peak, 'flop/s')}."
    share = _digits(100 * rate / peak)
    return f"Memory-bound {where}: at most {_size(rate, 'flop/s')}, {share}% of the peak."


def _what_a_step_reaches(parts: Sequence[Work], roof: Roof, format: str, rate: float) -> str:
    times = [roof.seconds(part, format) for part in parts]
    of_products = sum(t for t, part in zip(times, parts, strict=True) if part.product)
    share = _digits(100 * of_products / sum(times))
    mfu = _digits(100 * rate / roof.peak(format))
    return (
        f"On {roof.name} in {format}, {share}% of that time is matrix products: "
        f"{_size(rate, 'flop/s')}, an MFU of {mfu}%."
    )


_PREFIXES = {
    **{1e-9: "n", 1e-6: "µ", 1e-3: "m", 1.0: "", 1e3: "k"},
    **{1e6: "M", 1e9: "G", 1e12: "T", 1e15: "P", 1e18: "E"},
}


def _size(value: float, unit: str) -> str:
    """Three digits and a prefix, in a way that JavaScript repeats to the last digit."""
    scale = next((s for s in _PREFIXES if value < 999.5 * s), 1e18)
    return f"{_digits(value / scale)} {_PREFIXES[scale]}{unit}"


def _digits(value: float) -> str:
    """About three digits, rounded half up."""
    places = 2 if value < 9.995 else 1 if value < 99.95 else 0
    scale = 10**places
    units = math.floor(value * scale + 0.5)
    whole, part = divmod(units, scale)
    return f"{whole}.{part:0{places}d}" if places else str(whole)
