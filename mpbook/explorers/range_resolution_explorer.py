"""The range-and-resolution explorer: split 16 or 8 bits between exponent and mantissa yourself.

The exponent's bits buy range, so fewer tensors round to zero or overflow; each one is taken from
the mantissa and doubles the rounding error of every number.  The tensors are those of a real
model, so the split that loses nothing and rounds least can be looked for.

Taught in the chapter "bfloat16".
"""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Mapping
from typing import Any

import torch
import traitlets

from mpbook.explorers.base import Checked, Explorer, format_trait
from mpbook.explorers.census import (
    Fates,
    as_censuses,
    digits,
    fates,
    listed,
    overflow_share,
    percent,
)
from mpbook.explorers.modules import STATIC, linked
from mpbook.formats import FORMATS, FloatFormat, as_format

EXPONENT_BITS = {16: (2, 8), 8: (2, 6)}
"""Fewest and most exponent bits, by width."""

TRACE = 0.001
"""Losses below this share are named together."""

PRESETS: tuple[FloatFormat, ...] = (
    FORMATS["float16"],
    FORMATS["bfloat16"],
    FloatFormat("DLFloat16", 6, 9),
    FORMATS["float8_e5m2"],
    FloatFormat("float8_e4m3", 4, 3),
    FORMATS["float8_e4m3fn"],
)
"""Splits with a name.  Two are not what the name says, and the explorer says so: DLFloat16 itself
has no subnormals (Agrawal et al., ARITH 2019), and float8_e4m3 is IEEE's, of ml_dtypes."""


def _as_split(format: Any) -> FloatFormat:
    found = as_format(format)
    low, high = EXPONENT_BITS.get(found.bits, (0, 0))
    drawable = found.signed and found.subnormals and found.mantissa_bits > 0
    if not drawable or not low <= found.exponent_bits <= high:
        raise ValueError(
            f"format={found.name!r}: expected 16 bits with 2 to 8 exponent bits, or 8 bits with "
            "2 to 6, one of them the sign"
        )
    return found


def split(bits: int, exponent_bits: int) -> FloatFormat:
    """The IEEE-like format of so many bits, with its name if it has one.

    Raises:
        ValueError: another width than 16 or 8, or exponent bits that leave no format.

    >>> split(16, 8).name, split(16, 4).name
    ('bfloat16', 'e4m11')
    """
    if bits not in EXPONENT_BITS:
        raise ValueError(f"bits={bits!r}: expected 16 or 8")
    low, high = EXPONENT_BITS[bits]
    if not low <= exponent_bits <= high:
        raise ValueError(f"exponent_bits={exponent_bits!r}: expected {low} to {high} of {bits}")
    mantissa_bits = bits - 1 - exponent_bits
    made = FloatFormat(f"e{exponent_bits}m{mantissa_bits}", exponent_bits, mantissa_bits)
    same = (p for p in PRESETS if dataclasses.replace(p, name=made.name) == made)
    return next(same, made)


class RangeResolutionExplorer(Explorer):
    """Which tensors survive in 16 or 8 bits, and at what rounding error, for every split.

    The trait ``format`` follows the reader, and the picture follows it:
    ``explorer.format = "bfloat16"``, or ``explorer.format = split(16, 6)``.

    Args:
        histograms: tensors by name; see `mpbook.explorers.census.as_censuses`.
        format: name, torch dtype or `FloatFormat` of 16 bits with 2 to 8 exponent bits, or of
            8 bits with 2 to 6.

    Raises:
        ValueError: an argument that cannot be drawn; it names what would be right.
        TypeError: a format or a histogram that is none.

    >>> explorer = RangeResolutionExplorer({"x": {"zeros": 0, "binades": [[-30, 1], [0, 1]]}})
    >>> explorer.fates()["x"].underflow
    1
    """

    _esm = linked(STATIC / "range_resolution_explorer.mjs")
    _twin = "range_resolution_explorer"
    _twin_traits = ("histograms", "format", "presets", "limits")

    histograms = Checked(as_censuses, [], read_only=True).tag(sync=True)
    format = format_trait(_as_split, FORMATS["float16"])
    presets = traitlets.List([dataclasses.asdict(preset) for preset in PRESETS]).tag(sync=True)
    limits = traitlets.List([[bits, *ends] for bits, ends in EXPONENT_BITS.items()]).tag(sync=True)

    def __init__(
        self,
        histograms: Mapping[str, Any],
        format: str | torch.dtype | FloatFormat = "float16",
        **traits: Any,
    ) -> None:
        self.set_trait("histograms", histograms)
        super().__init__(format=_as_split(format), **traits)

    def fates(self) -> dict[str, Fates]:
        """What becomes of each tensor in this format, by name."""
        return {census["name"]: fates(census, self.format) for census in self.histograms}

    @property
    def rounding_error(self) -> float:
        """The largest relative error of rounding a normal number to nearest, 2**-(m+1)."""
        return 2.0 ** -(self.format.mantissa_bits + 1)

    def _fallback(self) -> str:
        heads = ("tensor", "round to zero", "subnormal", "overflow")
        head = "".join(f"<th scope='col'>{text}</th>" for text in heads)
        rows = "".join(_row(name, seen) for name, seen in self.fates().items())
        return (
            f"<figure class='mp-static'><figcaption>{html.escape(repr(self))}</figcaption>"
            f"<table><tr>{head}</tr>{rows}</table></figure>"
        )

    def __repr__(self) -> str:
        f, seen = self.format, self.fates()
        return (
            f"{f.name}, {f.exponent_bits} exponent and {f.mantissa_bits} mantissa "
            f"bit{'' if f.mantissa_bits == 1 else 's'}: {_zero_losses(seen)}, "
            f"{_overflow_losses(seen)}; a normal number is off by at most "
            f"{digits(100 * self.rounding_error, 3)}% (2^-{f.mantissa_bits + 1})."
        )


def _zero_losses(seen: Mapping[str, Fates]) -> str:
    shares = {name: s.underflow / s.nonzero for name, s in seen.items()}
    named = [f"{percent(share)} of {name}" for name, share in shares.items() if share >= TRACE]
    traces = [name for name, share in shares.items() if 0 < share < TRACE]
    if traces:
        named.append(f"less than {percent(TRACE)} of {listed(traces)}")
    return f"{listed(named)} round to zero" if named else "nothing rounds to zero"


def _overflow_losses(seen: Mapping[str, Fates]) -> str:
    over = [f"{share} of {name}" for name, s in seen.items() if (share := overflow_share(s))]
    return f"{listed(over)} overflow" if over else "nothing overflows"


def _row(name: str, seen: Fates) -> str:
    shares = (
        percent(seen.underflow / seen.nonzero),
        percent(seen.subnormal / seen.nonzero),
        overflow_share(seen) or "0%",
    )
    cells = "".join(f"<td>{share}</td>" for share in shares)
    return f"<tr><th scope='row'>{html.escape(name)}</th>{cells}</tr>"
