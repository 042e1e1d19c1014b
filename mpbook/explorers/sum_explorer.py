"""The sum explorer: a sum that rounds after every addition, beside the exact one.

Taught in the chapter "Rounding and sums".
"""

from __future__ import annotations

import base64
import dataclasses
import functools
from typing import Any, Literal, get_args

import torch
import traitlets
from torch import Tensor

from mpbook.explorers.base import Checked, Explorer, format_trait, one_of, static_facts
from mpbook.explorers.modules import STATIC, linked
from mpbook.formats import FORMATS, FloatFormat, Rounding, as_format, round_to
from mpbook.formats.sums import exact_sum, kahan_sums, overflow_rule, pairwise_sum, running_sums

Method = Literal["running", "pairwise", "kahan", "float32"]
Source = Literal["ones", "photograph", "uniform", "zero-mean"]
ROUNDINGS = ("nearest-even", "toward-zero", "stochastic")
LONGEST = 8192
SEED = 1

METHODS = {
    "running": "one by one",
    "pairwise": "pairwise",
    "kahan": "Kahan",
    "float32": "float32 accumulator",
}
SOURCES = {
    "ones": "ones",
    "photograph": "pixels of a photograph",
    "uniform": "random numbers from 0 to 1",
    "zero-mean": "random numbers from −1 to 1",
}


# --- The data, the same here and in the page ---------------------------------------------------


@functools.cache
def photograph() -> bytes:
    """Grey levels of 8192 pixels of scikit-learn's sample photograph, row by row.

    Every sixth row and every fifth column, from the top, the mean of the three colours.
    """
    from sklearn.datasets import load_sample_image

    pixels = load_sample_image("china.jpg")[::6, ::5].astype(int)[:64]
    return bytes((pixels.sum(-1) // 3).reshape(-1).tolist())


def random_numbers(count: int, seed: int = SEED) -> list[float]:
    """Uniform numbers in [0, 1) from the mulberry32 generator, which JavaScript computes too.

    >>> random_numbers(1)
    [0.6270739405881613]
    """
    numbers, state = [], seed
    for _ in range(count):
        state = (state + 0x6D2B79F5) & 0xFFFFFFFF
        t = (state ^ state >> 15) * (1 | state) & 0xFFFFFFFF
        t = (t + ((t ^ t >> 7) * (61 | t) & 0xFFFFFFFF) & 0xFFFFFFFF) ^ t
        numbers.append((t ^ t >> 14) / 2**32)
    return numbers


def source_terms(source: Source, count: int, format: FloatFormat) -> Tensor:
    """The first terms of a source, rounded to the format; float64 of shape (count,)."""
    if source == "ones":
        values = torch.ones(count, dtype=torch.float64)
    elif source == "photograph":
        values = torch.tensor(list(photograph()[:count]), dtype=torch.float64) / 255
    else:
        values = torch.tensor(random_numbers(count), dtype=torch.float64)
        values = values if source == "uniform" else 2 * values - 1
    return round_to(values, format, overflow=overflow_rule(format))


# --- The widget --------------------------------------------------------------------------------


def _as_count(n: Any) -> int:
    if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= LONGEST:
        raise ValueError(f"n={n!r}: expected an integer from 1 to {LONGEST}")
    return n


def _as_summable(format: Any) -> FloatFormat:
    found = as_format(format)
    if not found.signed or not found.subnormals or found.mantissa_bits > 23:
        raise ValueError(
            f"format={found.name!r}: expected one with a sign, a zero and 23 mantissa bits at most"
        )
    return found


class SumExplorer(Explorer):
    """A sum that rounds after every addition: drag its length, choose how it is added.

    The traits ``n``, ``format``, ``rounding``, ``method`` and ``source`` follow the reader, and
    the picture follows them: ``explorer.n = 3000``.

    Args:
        n: how many terms to add, up to 8192.
        format: name, torch dtype or `FloatFormat` that terms and totals are rounded to.
        rounding: ``"nearest-even"``, ``"toward-zero"`` or ``"stochastic"`` (with a fixed seed).
        method: ``"running"``, ``"pairwise"``, ``"kahan"``, or ``"float32"``: a float32
            accumulator that is rounded to the format at the end.
        source: ``"ones"``, ``"photograph"``, ``"uniform"`` or ``"zero-mean"``.

    Raises:
        ValueError: an argument that cannot be drawn; it names what would be right.
        TypeError: a format that is not a name, a dtype or a `FloatFormat`.

    >>> SumExplorer(1000, "bfloat16").total()
    256.0
    """

    _esm = linked(STATIC / "sum_explorer.mjs")
    _twin = "sum_explorer"
    _twin_traits = ("n", "format", "rounding", "method", "source", "formats", "pixels")

    n = Checked(_as_count, LONGEST // 2).tag(sync=True)
    format = format_trait(_as_summable, FORMATS["float16"])
    rounding = Checked(one_of("rounding", ROUNDINGS), "nearest-even").tag(sync=True)
    method = Checked(one_of("method", get_args(Method)), "running").tag(sync=True)
    source = Checked(one_of("source", get_args(Source)), "ones").tag(sync=True)
    formats = traitlets.List([dataclasses.asdict(f) for f in FORMATS.values() if f.signed]).tag(
        sync=True
    )
    pixels = traitlets.Unicode().tag(sync=True)

    def __init__(
        self,
        n: int = LONGEST // 2,
        format: str | torch.dtype | FloatFormat = "float16",
        *,
        rounding: Rounding = "nearest-even",
        method: Method = "running",
        source: Source = "ones",
        **traits: Any,
    ) -> None:
        chosen = dict(rounding=rounding, method=method, source=source)
        pixels = base64.b64encode(photograph()).decode()
        super().__init__(n=n, format=_as_summable(format), pixels=pixels, **chosen, **traits)

    def totals(self) -> Tensor:
        """Every total on the way, the sum of the first 1, 2, ... n terms; float64.

        With stochastic rounding the page draws other bits than torch, so totals differ there.
        """
        terms, options = self._terms(), self._options()
        if self.method == "pairwise":
            lengths = range(1, self.n + 1)
            return torch.stack([pairwise_sum(terms[:k], self.format, **options) for k in lengths])
        if self.method == "float32":
            options["overflow"] = overflow_rule(self.format)
            return round_to(running_sums(terms, "float32"), self.format, **options)
        sums = kahan_sums if self.method == "kahan" else running_sums
        return sums(terms, self.format, **options)

    def total(self) -> float:
        """The sum as it is computed; `exact` is what it should be."""
        if self.method == "pairwise":
            return float(pairwise_sum(self._terms(), self.format, **self._options()))
        return float(self.totals()[-1])

    def exact(self) -> float:
        """The sum of the same terms in exact arithmetic, rounded once, to float64."""
        return exact_sum(self._terms())

    def _terms(self) -> Tensor:
        return source_terms(self.source, self.n, self.format)

    def _options(self) -> dict[str, Any]:
        stochastic = self.rounding == "stochastic"
        generator = torch.Generator().manual_seed(SEED) if stochastic else None
        return {"rounding": self.rounding, "generator": generator}

    def _fallback(self) -> str:
        total, exact = self.total(), self.exact()
        what = f"{self.n} terms, {SOURCES[self.source]}"
        rows = {
            "terms": what,
            "added": f"{METHODS[self.method]}, in {self.format.name}, {self.rounding}",
            "computed": f"{total:.9g}",
            "exact": f"{exact:.9g}",
        }
        title = f"A sum in {self.format.name}: {total:.9g} instead of {exact:.9g}"
        return static_facts(title, rows)

    def __repr__(self) -> str:
        return (
            f"SumExplorer(n={self.n}, format={self.format.name!r}, rounding={self.rounding!r}, "
            f"method={self.method!r}, source={self.source!r})"
        )
