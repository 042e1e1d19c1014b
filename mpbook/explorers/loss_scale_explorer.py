"""The loss-scale explorer: gradients under a slider of the loss scale.

Multiplying the loss by 2**k moves the histogram of every gradient k binades to the right: out of
what a format rounds to zero, and toward what overflows it.  Between the two lies a window of
scales that keep nearly everything, and the explorer lights it on the slider.

Taught in the chapter "Loss scaling".
"""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Mapping
from typing import Any

import torch
import traitlets

from mpbook.explorers.base import BadTraitError, Checked, Explorer, format_trait
from mpbook.explorers.census import (
    SHIFTS,
    Census,
    Fates,
    as_censuses,
    fates,
    overflow_share,
    percent,
    window,
)
from mpbook.explorers.modules import STATIC, linked
from mpbook.formats import FORMATS, FloatFormat, as_format
from mpbook.loss_scaling import GROWTH_INTERVAL

OFFERED = ("float16", "bfloat16", "float8_e5m2", "float8_e4m3fn")


def _as_exponent(exponent: Any) -> int:
    if type(exponent) is not int or exponent not in SHIFTS:
        raise ValueError(
            f"exponent={exponent!r}: expected an integer from {SHIFTS[0]} to {SHIFTS[-1]}; "
            "the loss scale is 2**exponent"
        )
    return exponent


def _as_gradient_format(format: Any) -> FloatFormat:
    found = as_format(format)
    if not found.signed or not found.subnormals:
        raise ValueError(f"format={found.name!r}: expected one with a sign and a zero")
    return found


def _as_lost(lost: Any) -> float:
    if not isinstance(lost, int | float) or not (lost == 0 or 1e-4 <= lost < 1):
        raise ValueError(f"lost={lost!r}: expected 0, or a share from 0.0001 to below 1")
    return float(lost)


class LossScaleExplorer(Explorer):
    """What a loss scale saves from rounding to zero, and what it pushes over the top.

    The traits ``exponent``, ``tensor`` and ``format`` follow the reader, and the picture follows
    them: ``explorer.exponent = 12``.

    Args:
        histograms: unscaled gradients by name; see `mpbook.explorers.census.as_censuses`.  Choose
            names that read in a sentence, such as ``"activation gradients"``.
        exponent: the loss scale is ``2**exponent``; from -16 to 32.
        tensor: the name of the histogram to begin with; the first when not given.
        format: name, torch dtype or `FloatFormat` that the gradients are rounded to.
        lost: the share of the non-zero values that may round to zero inside the window.

    Raises:
        ValueError: an argument that cannot be drawn; it names what would be right.
        TypeError: a format or a histogram that is none.

    >>> gradients = {"gradients": {"zeros": 0, "binades": [[-30, 1], [-20, 99]]}}
    >>> LossScaleExplorer(gradients, lost=0.05).window()
    (-5, 32)
    """

    _esm = linked(STATIC / "loss_scale_explorer.mjs")
    _twin = "loss_scale_explorer"
    _twin_traits = ("histograms", "exponent", "tensor", "format", "lost", "formats")

    histograms = Checked(as_censuses, [], read_only=True).tag(sync=True)
    exponent = Checked(_as_exponent, 0).tag(sync=True)
    tensor = traitlets.Unicode().tag(sync=True)
    format = format_trait(_as_gradient_format, FORMATS["float16"])
    lost = Checked(_as_lost, 0.01).tag(sync=True)
    formats = traitlets.List([dataclasses.asdict(FORMATS[name]) for name in OFFERED]).tag(sync=True)

    def __init__(
        self,
        histograms: Mapping[str, Any],
        exponent: int = 0,
        *,
        tensor: str | None = None,
        format: str | torch.dtype | FloatFormat = "float16",
        lost: float = 0.01,
        **traits: Any,
    ) -> None:
        self.set_trait("histograms", histograms)
        chosen = self.histograms[0]["name"] if tensor is None else tensor
        super().__init__(
            exponent=_as_exponent(exponent),
            tensor=_one_of_the(self.histograms, chosen),
            format=_as_gradient_format(format),
            lost=_as_lost(lost),
            **traits,
        )

    @traitlets.validate("tensor")
    def _is_there(self, proposal: Any) -> str:
        try:
            return _one_of_the(self.histograms, proposal.value)
        except ValueError as error:
            raise BadTraitError(str(error)) from error

    @property
    def loss_scale(self) -> float:
        """What the loss is multiplied by."""
        return 2.0**self.exponent

    def fates(self) -> Fates:
        """How many values of the chosen tensor round to zero, stay, or overflow at this scale."""
        return fates(self._census(), self.format, self.exponent)

    def window(self) -> tuple[int, int] | None:
        """Exponents of the smallest and the largest scale on the slider that fit; None if none."""
        return window(self._census(), self.format, self.lost)

    def _census(self) -> Census:
        return next(c for c in self.histograms if c["name"] == self.tensor)

    def sentences(self) -> list[str]:
        """What happens at this scale, what GradScaler would do, and which scales fit."""
        next_up = fates(self._census(), self.format, self.exponent + 1)
        return [
            _what_happens(self.fates(), self.tensor, self.format, self.exponent),
            _what_grad_scaler_does(self.fates(), next_up, self.format, self.exponent),
            _which_fit(self.window(), self.lost),
        ]

    def _fallback(self) -> str:
        seen = self.fates()
        shares = {
            "round to zero": percent(seen.underflow / seen.nonzero),
            "subnormal": percent(seen.subnormal / seen.nonzero),
            "overflow": overflow_share(seen) or "0%",
        }
        head = f"<tr><th scope='row'>loss scale</th><td>2<sup>{self.exponent}</sup></td></tr>"
        rows = (f"<tr><th scope='row'>{n}</th><td>{share}</td></tr>" for n, share in shares.items())
        title, *rest = map(html.escape, self.sentences())
        return (
            f"<figure class='mp-static'><figcaption>{title}</figcaption>"
            f"<table>{head}{''.join(rows)}</table><p>{' '.join(rest)}</p></figure>"
        )

    def __repr__(self) -> str:
        return " ".join(self.sentences())


def _one_of_the(censuses: list[Census], name: Any) -> str:
    names = [census["name"] for census in censuses]
    if name not in names:
        raise ValueError(f"tensor={name!r}: expected one of {', '.join(names)}")
    return str(name)


def _what_happens(seen: Fates, name: str, format: FloatFormat, exponent: int) -> str:
    zero = f"none of the non-zero {name} rounds to zero"
    if seen.underflow:
        zero = f"{percent(seen.underflow / seen.nonzero)} of the non-zero {name} round to zero"
    subnormal = f"{percent(seen.subnormal / seen.nonzero)} are subnormal"
    parts = [zero, subnormal] if seen.subnormal else [zero]
    over = overflow_share(seen)
    parts.append(f"{over} overflow" if over else "none overflows")
    return f"At 2^{exponent} in {format.name}, {', '.join(parts)}."


def _what_grad_scaler_does(seen: Fates, next_up: Fates, format: FloatFormat, exponent: int) -> str:
    back, up = f"back off to 2^{exponent - 1}", f"2^{exponent + 1}"
    if seen.overflow and not format.has_inf:
        return (
            f"GradScaler would {back} where the cast makes NaN of an overflow; "
            "a cast that saturates hides it."
        )
    if seen.overflow:
        return f"GradScaler would skip this step and {back}."
    if seen.doubtful:
        return f"GradScaler may have to skip this step and {back}."
    stay = f"GradScaler would stay here, and try {up} after {GROWTH_INTERVAL} such steps"
    if next_up.overflow:
        return f"{stay}, which overflows."
    return f"{stay}, which may overflow." if next_up.doubtful else f"{stay}."


def _which_fit(fitting: tuple[int, int] | None, lost: float) -> str:
    terms = f"at most {percent(lost)} to zero"
    if fitting is None:
        ends = f"2^{SHIFTS[0]} to 2^{SHIFTS[-1]}"
        return f"No scale from {ends} loses {terms} and overflows nothing."
    low = f"2^{fitting[0]}" + (" or less" if fitting[0] == SHIFTS[0] else "")
    high = f"2^{fitting[1]}" + (" or more" if fitting[1] == SHIFTS[-1] else "")
    return f"Scales from {low} to {high} lose {terms} and overflow nothing."
