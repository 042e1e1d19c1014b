"""Histograms by binade: against rounding the tensors themselves, and in JavaScript as in Python."""

from __future__ import annotations

from collections import Counter
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from explorer_pages import LoadModule, random_histogram
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mpbook.explorers.census import (
    SHIFTS,
    Census,
    Fates,
    as_censuses,
    digits,
    fates,
    fits,
    last_binade,
    listed,
    overflow_share,
    overflows,
    percent,
    window,
)
from mpbook.formats import FORMATS, FloatFormat, round_to
from mpbook.formats.sums import overflow_rule

FLOAT16 = FORMATS["float16"]
SPLITS = [FloatFormat(f"e{e}m{15 - e}", e, 15 - e) for e in range(2, 9)]
SPLITS += [FloatFormat(f"e{e}m{7 - e}", e, 7 - e) for e in range(2, 7)]
NAMED = [FORMATS[name] for name in ("bfloat16", "float8_e4m3fn", "float4_e2m1fn", "float16")]
ALL = [*SPLITS, *NAMED]


def census(*binades: tuple[int, int], zeros: int = 0, largest: float | None = None) -> Census:
    rows = [list(pair) for pair in binades]
    return as_censuses({"x": {"zeros": zeros, "binades": rows, "largest": largest}})[0]


def census_of(x: Tensor) -> Census:
    """The census of a tensor, with its largest magnitude."""
    magnitudes = x[x != 0].abs().double()
    exponents = torch.frexp(magnitudes).exponent - 1
    rows = sorted(Counter(exponents.tolist()).items())
    return census(*rows, zeros=int((x == 0).sum()), largest=float(magnitudes.max()))


# --- Against rounding itself --------------------------------------------------------------------


@pytest.mark.parametrize("format", ALL, ids=lambda format: format.name)
@pytest.mark.parametrize("shift", [-5, 0, 9])
def test_counts_are_those_of_rounding_every_value(format: FloatFormat, shift: int) -> None:
    generator = torch.Generator().manual_seed(format.bits * 100 + format.exponent_bits)
    low, high = format.lowest_binade - format.mantissa_bits - 12, last_binade(format) + 3
    spread = torch.rand(4000, generator=generator, dtype=torch.float64) * (high - low) + low
    x = torch.cat([torch.exp2(spread), -torch.exp2(spread), torch.zeros(7, dtype=torch.float64)])
    scaled = x * 2.0**shift
    rounded = round_to(scaled, format, overflow=overflow_rule(format))
    if overflow_rule(format) == "saturate":
        limit = format.max + 2.0 ** (last_binade(format) - format.mantissa_bits - 1)
        rounded[scaled.abs() >= limit] = torch.inf
    seen = fates(census_of(x), format, shift)
    underflow = int(((rounded == 0) & (x != 0)).sum())
    overflow = int((~rounded.isfinite()).sum())
    below_normal = int((scaled.abs() < format.smallest_normal).sum()) - 7 - underflow
    assert seen.zeros == 7
    assert seen.underflow == underflow
    assert seen.subnormal == below_normal
    assert seen.overflow <= overflow <= seen.overflow + seen.doubtful
    assert seen.nonzero == 8000
    in_last = torch.frexp(scaled).exponent - 1 == last_binade(format)
    assert seen.doubtful <= int(in_last.sum())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e5m2])
def test_the_limit_of_overflow_is_torchs(dtype: torch.dtype) -> None:
    format = FORMATS[str(dtype).removeprefix("torch.")]
    limit = format.max + 2.0 ** (last_binade(format) - format.mantissa_bits - 1)
    below = torch.tensor(limit, dtype=torch.float64).nextafter(torch.zeros((), dtype=torch.float64))
    assert overflows(limit, format) and torch.tensor(limit).to(dtype).isinf()
    assert not overflows(float(below), format)


def test_a_tie_stays_where_the_largest_code_is_even() -> None:
    e4m3fn = FORMATS["float8_e4m3fn"]
    assert not overflows(464.0, e4m3fn)
    assert overflows(464.1, e4m3fn)


def test_the_tie_at_the_lower_end_is_counted_with_its_binade() -> None:
    x = torch.tensor([2.0**-25])
    assert x.half() == 0
    assert fates(census_of(x), FLOAT16).underflow == 0
    assert fates(census_of(x / 1.01), FLOAT16).underflow == 1


# --- What is doubtful ---------------------------------------------------------------------------


def test_the_last_binade_is_doubtful_until_the_largest_is_known() -> None:
    rows = ((3, 10), (15, 4))
    assert fates(census(*rows), FLOAT16) == Fates(0, 0, 0, 10, 4, 0)
    assert fates(census(*rows, largest=65519.0), FLOAT16) == Fates(0, 0, 0, 14, 0, 0)
    assert fates(census(*rows, largest=65520.0), FLOAT16) == Fates(0, 0, 0, 10, 3, 1)


def test_the_largest_says_nothing_of_a_binade_below_its_own() -> None:
    assert fates(census((15, 4), (16, 1), largest=65536.0), FLOAT16) == Fates(0, 0, 0, 0, 4, 1)


def test_the_largest_is_shifted_with_the_rest() -> None:
    x = census((5, 4), largest=63.99)
    assert fates(x, FLOAT16, 10).overflow == 1
    assert fates(x, FLOAT16, 9) == Fates(0, 0, 0, 4, 0, 0)


# --- The window ---------------------------------------------------------------------------------


def test_a_window_is_all_that_fits_and_only_that() -> None:
    x = census((-30, 2), (-20, 98), zeros=1000)
    assert window(x, FLOAT16, 0.0) == (5, 32)
    assert window(x, FLOAT16, 0.02) == (-5, 32)
    assert window(x, FLOAT16, 0.019) == (5, 32)


def test_a_window_ends_where_an_overflow_is_possible() -> None:
    assert window(census((-10, 1)), FLOAT16, 0.0) == (-15, 24)
    assert window(census((-10, 1), largest=2.0**-10), FLOAT16, 0.0) == (-15, 25)


def test_there_may_be_no_window() -> None:
    assert window(census((-30, 1), (15, 1)), FLOAT16, 0.0) is None


@given(seed=st.integers(0, 10**6), lost=st.sampled_from([0.0, 0.01, 0.3]))
def test_what_fits_is_one_stretch(seed: int, lost: float) -> None:
    x = as_censuses({"x": random_histogram(Random(seed))})[0]
    fitting = [shift for shift in SHIFTS if fits(x, FLOAT16, shift, lost)]
    found = window(x, FLOAT16, lost)
    assert fitting == ([] if found is None else list(range(found[0], found[1] + 1)))


# --- In words -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0, "0%"), (1e-9, "less than 0.01%"), (0.0001, "0.01%"), (0.031, "3.1%"), (0.0625, "6.3%"),
        (0.0996, "10%"), (0.1, "10%"), (0.1234, "12.3%"), (0.9994, "99.9%"),
        (0.99999, "more than 99.9%"), (1, "100%"),
    ],
)  # fmt: skip
def test_a_share_in_words(share: float, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(
    ("doubtful", "overflow", "text"),
    [(0, 0, ""), (5, 0, "up to 5%"), (0, 5, "5%"), (5, 5, "5% to 10%")],
)
def test_a_share_that_overflows_in_words(doubtful: int, overflow: int, text: str) -> None:
    seen = Fates(50, 0, 0, 100 - doubtful - overflow, doubtful, overflow)
    assert overflow_share(seen) == text


def test_names_in_a_sentence() -> None:
    assert [listed(list(names)) for names in ("", "a", "ab", "abc")] == [
        "", "a", "a and b", "a, b and c"
    ]  # fmt: skip


# --- Taking a histogram -------------------------------------------------------------------------


def test_a_dict_an_object_and_a_list_are_the_same() -> None:
    saved = {"zeros": 3, "binades": [[1, 5], [-2, 7]], "largest": 2.5}
    counted = SimpleNamespace(zeros=3, counts={1: 5, -2: 7}, largest=2.5)
    wanted = [{"name": "x", "zeros": 3, "binades": [[-2, 7], [1, 5]], "largest": 2.5}]
    for given_as in ({"x": saved}, {"x": counted}, [{"name": "x", **saved}], wanted):
        assert as_censuses(given_as) == wanted


def test_an_empty_binade_is_dropped_and_the_largest_may_be_unknown() -> None:
    found = as_censuses({"x": SimpleNamespace(zeros=0, counts={0: 1, 5: 0})})
    assert found == [{"name": "x", "zeros": 0, "binades": [[0, 1]], "largest": None}]


@pytest.mark.parametrize(
    ("histograms", "right"),
    [
        ({}, "none given"),
        ([{"name": "x", "binades": [[0, 1]]}] * 2, "names repeat"),
        ({"x": {"zeros": 5, "binades": []}}, "no value but zero"),
        ({"x": {"binades": [[0.5, 1]]}}, "integers"),
        ({"x": {"binades": [[0, 1.5]]}}, "integers"),
        ({"x": {"zeros": 1.0, "binades": [[0, 1]]}}, "integers"),
        ({"x": {"zeros": -1, "binades": [[0, 1]]}}, "negative"),
        ({"x": {"binades": [[0, -1]]}}, "negative"),
        ({"x": {"binades": [[0, 1], [0, 2]]}}, "occurs twice"),
        ({"x": {"binades": [[0, 1]], "largest": 2.0}}, "highest binade"),
        ({"x": {"binades": [[0, 1]], "largest": 0.99}}, "highest binade"),
    ],
)
def test_counts_that_cannot_be_are_refused(histograms: Any, right: str) -> None:
    with pytest.raises(ValueError, match=right):
        as_censuses(histograms)


@pytest.mark.parametrize("histograms", [{"x": 3}, {"x": {"zeros": 3}}, {7: {"binades": [[0, 1]]}}])
def test_what_is_no_histogram_is_refused(histograms: Any) -> None:
    with pytest.raises(TypeError, match="expected a name and a dict"):
        as_censuses(histograms)


# --- The same in JavaScript ---------------------------------------------------------------------

PARITY = """(cases) => cases.map(({census, format, shift, lost}) => {
  const seen = m.fates(census, format, shift);
  const order = ["zeros", "underflow", "subnormal", "normal", "doubtful", "overflow", "nonzero"];
  return [order.map((name) => seen[name]), m.overflowShare(seen), m.fittingScales(census, format, lost)];
})"""  # noqa: E501


@pytest.mark.browser
@pytest.mark.parametrize("format", ALL, ids=lambda format: format.name)
def test_fates_and_windows_equal_pythons(load_module: LoadModule, format: FloatFormat) -> None:
    random = Random(format.name)
    cases = [
        {
            "census": as_censuses({"x": random_histogram(random)})[0],
            "format": vars(format),
            "shift": random.choice(SHIFTS),
            "lost": random.choice([0, 0.01, 0.2]),
        }
        for _ in range(200)
    ]
    expected = []
    for case in cases:
        x, shift, lost = case["census"], case["shift"], case["lost"]
        seen, found = fates(x, format, shift), window(x, format, lost)
        expected.append(
            [[*seen, seen.nonzero], overflow_share(seen), None if found is None else list(found)]
        )
    assert load_module("census").evaluate(PARITY, cases) == expected


@pytest.mark.browser
def test_numbers_in_words_equal_pythons(load_module: LoadModule) -> None:
    page, random = load_module("census"), Random(0)
    shares = [random.random() ** random.choice([1, 3, 9]) for _ in range(2000)]
    shares += [k / 1024 for k in range(1025)] + [k / 20000 for k in range(60)] + [0.1, 0.9999, 1e-4]
    assert page.evaluate("(x) => x.map(m.percent)", shares) == [percent(x) for x in shares]
    bounds = [100 * 2.0**-k for k in range(2, 15)]
    found = page.evaluate("(x) => x.map((y) => m.digits(y, 3))", bounds)
    assert found == [digits(x, 3) for x in bounds]
    names = [["a"], ["a", "b"], ["a", "b", "c"]]
    assert page.evaluate("(x) => x.map(m.listed)", names) == [listed(n) for n in names]
