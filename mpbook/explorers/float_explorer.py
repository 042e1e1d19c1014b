"""The float explorer: the bits of a number, what they mean, and what rounding did to it.

Taught in the chapter "Precision formats".
"""

from __future__ import annotations

import dataclasses
import html
import math
from decimal import Decimal
from typing import Any, Literal, get_args

import torch
import traitlets

from mpbook.explorers.base import BadTraitError, Checked, Explorer, format_trait, one_of
from mpbook.explorers.modules import STATIC, linked
from mpbook.formats import (
    FORMATS,
    FloatFormat,
    Overflow,
    as_format,
    decode,
    encode,
    fields,
    neighbours,
)

Kind = Literal["normal", "subnormal", "zero", "infinity", "NaN"]

MOST_BITS = 32  # as many as a picture has room for


def usable_overflow(wish: Overflow, format: FloatFormat) -> Overflow:
    """What an overflow rule becomes in a format without a code for it: inf, nan, saturate.

    >>> usable_overflow("inf", FORMATS["float8_e4m3fn"])
    'nan'
    """
    if wish == "inf" and format.has_inf:
        return "inf"
    return "saturate" if wish == "saturate" or not format.has_nan else "nan"


def _as_number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"value={value!r}: expected a number or its text, e.g. 0.1") from None


def _as_drawable(format: Any) -> FloatFormat:
    found = as_format(format)
    if found.bits > MOST_BITS:
        raise ValueError(
            f"format={found.name!r} has {found.bits} bits: expected {MOST_BITS} at most"
        )
    return found


_as_overflow = one_of("overflow", get_args(Overflow))


def _as_code(code: Any) -> int:
    if not isinstance(code, int) or isinstance(code, bool):
        raise ValueError(f"code={code!r}: expected an integer, the bits read as a binary number")
    return code


def _number_to_json(value: float, widget: Any = None) -> str:
    return repr(value)  # as text, since JSON has no infinity and no NaN


class FloatExplorer(Explorer):
    """The bits of a number in any format: click them, drag across them, or type a number.

    The traits ``value``, ``format``, ``code`` and ``overflow`` follow the reader's clicks, and
    the picture follows them: ``explorer.value = 3.14``.  ``code`` is the code of the number that
    ``value`` rounds to; setting it sets ``value``.

    Args:
        value: the number to round, a float or its text; infinities and NaN are numbers too.
        format: name, torch dtype or `FloatFormat` of at most 32 bits, your own included.
        overflow: ``"inf"``, ``"saturate"`` or ``"nan"``.  A format that has no code for it uses
            the next possible of inf, nan, saturate.

    Raises:
        ValueError: an argument that cannot be drawn; it names what would be right.
        TypeError: a format that is not a name, a dtype or a `FloatFormat`.

    >>> hex(FloatExplorer(0.1, "float16").code)
    '0x2e66'
    """

    _esm = linked(STATIC / "float_explorer.mjs")
    _twin = "float_explorer"
    _twin_traits = ("value", "format", "code", "overflow", "formats")

    value = Checked(_as_number, 0.1).tag(sync=True, to_json=_number_to_json)
    format = format_trait(_as_drawable, FORMATS["float16"])
    code = Checked(_as_code, 0).tag(sync=True)
    overflow = Checked(_as_overflow, "inf").tag(sync=True)
    formats = traitlets.List([dataclasses.asdict(f) for f in FORMATS.values()]).tag(sync=True)

    def __init__(
        self,
        value: float | str = 0.1,
        format: str | torch.dtype | FloatFormat = "float16",
        overflow: Overflow = "inf",
        **traits: Any,
    ) -> None:
        number, described, rule = _as_number(value), _as_drawable(format), _as_overflow(overflow)
        code = _code_of(number, described, rule)
        super().__init__(value=number, format=described, overflow=rule, code=code, **traits)

    @traitlets.validate("value", "format", "code")
    def _has_a_code(self, proposal: Any) -> Any:
        """Refuse a number or a code that the format does not have, before anything changes."""
        new = {"value": self.value, "format": self.format, proposal.trait.name: proposal.value}
        try:
            if proposal.trait.name == "code":
                decode(proposal.value, self.format)
            else:
                _code_of(new["value"], new["format"], self.overflow)
        except ValueError as error:
            raise BadTraitError(str(error)) from error
        return proposal.value

    @traitlets.observe("value", "format", "code", "overflow")
    def _follow(self, change: Any) -> None:
        """Keep ``value`` and ``code`` in step; a message from the picture is so already."""
        if self._in_step():
            return
        if change.name == "code":
            self.value = decode(self.code, self.format)
        else:
            self.code = _code_of(self.value, self.format, self.overflow)

    def _in_step(self) -> bool:
        if self.code >= 2**self.format.bits:
            return False
        shown = decode(self.code, self.format)
        same = repr(shown) == repr(self.value)  # NaN is NaN here, and -0 is not 0
        return same or _code_of(self.value, self.format, self.overflow) == self.code

    def _fallback(self) -> str:
        return _static_picture(self.value, self.code, self.format)

    def __repr__(self) -> str:
        return (
            f"FloatExplorer(value={self.value!r}, format={self.format.name!r}, "
            f"overflow={self.overflow!r})"
        )


def _code_of(value: float, format: FloatFormat, overflow: Overflow) -> int:
    return encode(value, format, overflow=usable_overflow(overflow, format))


# --- The static picture -----------------------------------------------------------------------


def classify(code: int, format: FloatFormat) -> Kind:
    """Which kind of number a code stands for.

    >>> classify(1, FORMATS["float16"])
    'subnormal'
    """
    value = decode(code, format)
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "infinity"
    if value == 0:
        return "zero"
    _, exponent, _ = fields(code, format)
    return "subnormal" if format.subnormals and exponent == 0 else "normal"


def exact_decimal(value: float) -> str:
    """Every digit of a float, which is a fraction of a power of two, and so ends.

    >>> exact_decimal(2.0**-10)
    '0.0009765625'
    """
    if not math.isfinite(value) or value == 0:
        return repr(value).removesuffix(".0")
    if 1e-5 <= abs(value) < 1e21:
        return f"{Decimal(value):f}"
    digits, exponent = f"{Decimal(value):e}".split("e")
    return f"{digits.rstrip('0').rstrip('.') if '.' in digits else digits}e{int(exponent)}"


def _static_picture(value: float, code: int, format: FloatFormat) -> str:
    rounded = decode(code, format)
    title = f"{value!r} in {format.name} is {exact_decimal(rounded)} ({classify(code, format)})"
    rows = zip(("field", "bits", "meaning"), *_columns(code, format), strict=True)
    head, *body = (f"<th scope='row'>{first}</th>{_cells(rest)}" for first, *rest in rows)
    return (
        f"<figure class='mp-static'><figcaption>{html.escape(title)}</figcaption>"
        f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in body)}</table>"
        f"<p>{_surroundings(value, rounded, format)}</p></figure>"
    )


def _cells(texts: list[str]) -> str:
    return "".join(f"<td>{text}</td>" for text in texts)


def _columns(code: int, format: FloatFormat) -> list[tuple[str, str, str]]:
    """Name, bits and meaning of each field."""
    sign, exponent, mantissa = fields(code, format)
    normal = exponent > 0 or not format.subnormals
    power = f"2<sup>{exponent if normal else 1} − {format.bias}</sup>"
    if not math.isfinite(decode(code, format)):
        power = "special"
    hidden, parts = int(normal), 2**format.mantissa_bits
    columns = [
        ("exponent", f"{exponent:0{format.exponent_bits}b}", power),
        ("mantissa", _bits(mantissa, format.mantissa_bits), f"{hidden} + {mantissa}/{parts}"),
    ]
    return [("sign", str(sign), "−" if sign else "+"), *columns] if format.signed else columns


def _bits(field: int, width: int) -> str:
    return f"{field:0{width}b}" if width else "none"


def _surroundings(value: float, rounded: float, format: FloatFormat) -> str:
    if math.isnan(rounded):
        return "NaN has no neighbours."
    below, above = ("none" if n is None else f"{n:.9g}" for n in neighbours(rounded, format))
    error = rounded - value if math.isfinite(rounded) and math.isfinite(value) else math.nan
    said = "" if math.isnan(error) else f"Rounding error {error:.3g}. "
    return f"{said}Neighbours: {below} below, {above} above."
