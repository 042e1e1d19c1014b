"""The float explorer: its arithmetic against Python's, its page without a kernel, and its traits.

The JavaScript runs in the browser that readers have, as a module imported from a blob: URL, which
is how the built page imports it.
"""

from __future__ import annotations

import base64
import dataclasses
import importlib
import itertools
import json
import math
import re
import sys
from collections.abc import Iterator
from typing import Any

import comm
import numpy as np
import pytest
import torch
from accessibility import serious_violations
from comm.base_comm import BaseComm
from explorer_pages import LoadModule, OpenExplorer, as_number, drag, twin
from numpy.typing import NDArray
from playwright.sync_api import Locator, Page, expect

from mpbook.explorers import FloatExplorer
from mpbook.explorers.float_explorer import classify, exact_decimal, usable_overflow
from mpbook.formats import (
    FORMATS,
    FloatFormat,
    Overflow,
    decode,
    encode,
    encode_tensor,
    neighbours,
    ulp,
)

OTHERS = (
    FloatFormat("odd_bias", 4, 3, bias=-3),
    FloatFormat("fixed_like", 1, 4, specials="none"),
    FloatFormat("unsigned", 5, 3, signed=False),
    FloatFormat("unsigned_numbers", 4, 2, specials="none", signed=False, subnormals=False),
)
ALL = {format.name: format for format in (*FORMATS.values(), *OTHERS)}
NARROW = [name for name, format in ALL.items() if format.bits <= 16]
TINY = [name for name, format in ALL.items() if format.bits <= 9]
WIDE = [name for name, format in ALL.items() if format.bits > 16]
OVERFLOWS: tuple[Overflow, ...] = ("inf", "saturate", "nan")

Doubles = NDArray[np.float64]


# --- The arithmetic -----------------------------------------------------------------------------

CALL_ON_DOUBLES = """([body, bytes, format, rest]) => {
  const decoded = Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0));
  const f = new Function("m", "x", "f", "rest", `return ${body}`);
  const results = Float64Array.from(new Float64Array(decoded.buffer), (x) => {
    try { return f(window.m, x, format, rest) ?? NaN; } catch { return -12345.5; }
  });
  let text = "";
  for (const byte of new Uint8Array(results.buffer)) text += String.fromCharCode(byte);
  return btoa(text);
}"""
REFUSED = -12345.5


class Numbers:
    """The module's pure functions, mapped over arrays of doubles: nothing is lost on the way."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def map(self, body: str, x: Any, format: FloatFormat, *rest: str) -> Doubles:
        """Evaluate `body`, which sees the module `m`, an element `x`, the format `f`, `rest`."""
        raw = base64.b64encode(np.asarray(x, np.float64).tobytes()).decode()
        arguments = [body, raw, as_json(format), list(rest)]
        return np.frombuffer(base64.b64decode(self.page.evaluate(CALL_ON_DOUBLES, arguments)))

    def text(self, body: str, x: str, format: FloatFormat = FORMATS["float16"]) -> Any:
        """Evaluate `body` once, for functions from or to text."""
        script = "([body, x, f]) => new Function('m', 'x', 'f', `return ${body}`)(window.m, x, f)"
        return self.page.evaluate(script, [body, x, as_json(format)])


def as_json(format: FloatFormat) -> dict[str, Any]:
    return FloatExplorer(1.0, format).get_state("format")["format"]


@pytest.fixture(scope="module")
def numbers(load_module: LoadModule) -> Numbers:
    return Numbers(load_module("codes"))


@pytest.fixture(scope="module")
def words(load_module: LoadModule) -> Numbers:
    return Numbers(load_module("float_explorer"))


def assert_same(ours: Doubles, expected: Any) -> None:
    """Equal as numbers, NaN to NaN and -0 to -0."""
    wanted = np.asarray(expected, np.float64)
    np.testing.assert_array_equal(ours, wanted)
    finite = ~np.isnan(wanted)
    np.testing.assert_array_equal(np.signbit(ours[finite]), np.signbit(wanted[finite]))


def edge_codes(format: FloatFormat) -> NDArray[np.int64]:
    """Codes around every power of two, zero and the special ones, and a few thousand at random."""
    binades = np.arange(2 ** (format.bits - format.mantissa_bits)) << format.mantissa_bits
    edges = (binades[:, None] + np.arange(-3, 4)).ravel() % 2**format.bits
    anywhere = np.random.default_rng(0).integers(0, 2**format.bits, 4000)
    return np.concatenate([edges, anywhere])


def telling_values(format: FloatFormat) -> Doubles:
    """Every number, every midpoint, the doubles next to both, and what lies beyond the ends."""
    codes = range(2**format.bits) if format.bits <= 16 else edge_codes(format).tolist()
    finite = np.unique([v for v in (decode(c, format) for c in codes) if math.isfinite(v)])
    midpoints = (finite[1:] + finite[:-1]) / 2
    beyond = format.max * np.array([1 + 2.0**-k for k in range(format.mantissa_bits + 3)])
    values = np.concatenate([finite, midpoints, beyond, -beyond, [1e300, 5e-324, -1e-300]])
    return np.concatenate([np.nextafter(values, -np.inf), values, np.nextafter(values, np.inf),
                           [0.0, -0.0, np.inf, -np.inf]])  # fmt: skip


def possible_overflows(format: FloatFormat) -> list[Overflow]:
    return [rule for rule in OVERFLOWS if usable_overflow(rule, format) == rule]


@pytest.mark.browser
@pytest.mark.parametrize("name", NARROW)
def test_decode_equals_pythons_on_every_code(numbers: Numbers, name: str) -> None:
    codes = range(2 ** ALL[name].bits)
    ours = numbers.map("m.decode(x, f)", codes, ALL[name])
    assert_same(ours, [decode(code, ALL[name]) for code in codes])


@pytest.mark.browser
@pytest.mark.parametrize("name", WIDE)
def test_decode_equals_pythons_at_the_edges_of_wide_formats(numbers: Numbers, name: str) -> None:
    codes = edge_codes(ALL[name])
    ours = numbers.map("m.decode(x, f)", codes, ALL[name])
    assert_same(ours, [decode(code, ALL[name]) for code in codes.tolist()])


@pytest.mark.browser
@pytest.mark.parametrize("name", ALL)
def test_encode_equals_pythons_on_numbers_and_midpoints(numbers: Numbers, name: str) -> None:
    format = ALL[name]
    values = telling_values(format)
    if not format.has_nan and not format.signed:
        values = values[~(values < 0)]
    for rule in possible_overflows(format):
        ours = numbers.map("m.encode(x, f, rest[0])", values, format, rule)
        expected = encode_tensor(torch.from_numpy(values), format, overflow=rule)
        np.testing.assert_array_equal(ours, expected.numpy(), err_msg=rule)


@pytest.mark.browser
@pytest.mark.parametrize("name", TINY)
def test_encode_equals_the_exact_reference(numbers: Numbers, name: str) -> None:
    format, values = ALL[name], telling_values(ALL[name])
    for rule in possible_overflows(format):
        ours = numbers.map("m.encode(x, f, rest[0])", values, format, rule)
        expected = [encode_or_refuse(value, format, rule) for value in values.tolist()]
        np.testing.assert_array_equal(ours, expected, err_msg=rule)


def encode_or_refuse(value: float, format: FloatFormat, rule: Overflow) -> float:
    try:
        return encode(value, format, overflow=rule)
    except ValueError:
        return REFUSED


@pytest.mark.browser
@pytest.mark.parametrize("name", ALL)
def test_nan_and_impossible_overflow_as_in_python(numbers: Numbers, name: str) -> None:
    format = ALL[name]
    for rule in OVERFLOWS:
        ours = numbers.map("m.encode(x, f, rest[0])", [math.nan, 1.0], format, rule)
        expected = [encode_or_refuse(value, format, rule) for value in (math.nan, 1.0)]
        np.testing.assert_array_equal(ours, expected, err_msg=rule)


@pytest.mark.browser
@pytest.mark.parametrize("name", ALL)
def test_neighbours_and_ulp_equal_pythons(numbers: Numbers, name: str) -> None:
    format = ALL[name]
    values = telling_values(format)[:: 1 if name in TINY else 97]
    expected = [neighbours(value, format) for value in values.tolist()]
    for side in (0, 1):
        ours = numbers.map(f"m.neighbours(x, f)[{side}]", values, format)
        wanted = [math.nan if pair[side] is None else pair[side] for pair in expected]
        np.testing.assert_array_equal(ours, wanted)
    gaps = ulp(torch.from_numpy(values.copy()), format)
    np.testing.assert_array_equal(numbers.map("m.ulp(x, f)", values, format), gaps.numpy())


@pytest.mark.browser
@pytest.mark.parametrize("name", TINY)
def test_kinds_equal_pythons(numbers: Numbers, name: str) -> None:
    kinds = ["normal", "subnormal", "zero", "infinity", "NaN"]
    body = f"{json.dumps(kinds)}.indexOf(m.classify(x, f))"
    ours = numbers.map(body, range(2 ** ALL[name].bits), ALL[name])
    assert [kinds[int(i)] for i in ours] == [
        classify(code, ALL[name]) for code in range(2 ** ALL[name].bits)
    ]


@pytest.mark.browser
@pytest.mark.parametrize("name", TINY)
def test_a_rounding_interval_is_all_that_rounds_to_its_number(numbers: Numbers, name: str) -> None:
    format = ALL[name]
    codes = [code for code in range(2**format.bits) if not math.isnan(decode(code, format))]
    for rule in possible_overflows(format):
        low, high = (
            numbers.map(f"m.roundingInterval(x, f, rest[0])[{side}]", codes, format, rule)
            for side in (0, 1)
        )
        for code, start, end in zip(codes, low.tolist(), high.tolist(), strict=True):
            number = decode(code, format)
            if math.isinf(number) and rule != "inf":
                continue  # nothing rounds to it
            inside = [math.nextafter(start, math.inf), math.nextafter(end, -math.inf)]
            outside = [math.nextafter(start, -math.inf), math.nextafter(end, math.inf)]
            for value in inside:
                assert decode(encode(value, format, overflow=rule), format) == number, value
            for value, edge in zip(outside, (start, end), strict=True):
                if math.isfinite(edge) and (value >= 0 or format.signed):
                    assert decode(encode(value, format, overflow=rule), format) != number, value


@pytest.mark.browser
@pytest.mark.parametrize("name", ALL)
def test_overflow_rule_falls_back_as_in_python(numbers: Numbers, name: str) -> None:
    ours = [numbers.text("m.usableOverflow(x, f)", rule, ALL[name]) for rule in OVERFLOWS]
    assert ours == [usable_overflow(rule, ALL[name]) for rule in OVERFLOWS]


@pytest.mark.browser
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.1", 0.1), (" −1e-8 ", -1e-8), ("65_520", 65520.0), (".5", 0.5), ("1e5", 1e5),
        ("1/3", 1 / 3), ("-2/4", -0.5), ("2^-24", 2.0**-24), ("-2**3", -8.0),
        ("inf", math.inf), ("-Infinity", -math.inf), ("nan", math.nan),
        ("", None), ("fp16", None), ("1/0", None), ("1/2/3", None), ("0x10", None), ("1,5", None),
        ("1.7e308", 1.7e308), ("-5e-324", -5e-324), ("0e-400", 0.0), ("-0/3", -0.0), ("0e400", 0.0),
        ("1e400", None), ("1e-400", None), ("2^-2000", None), ("1/1e400", None),
        ("1e9/1e-308", None),
    ],
)  # fmt: skip
def test_reads_what_a_reader_types(words: Numbers, text: str, value: float | None) -> None:
    read = words.text("m.parseNumber(x) === null ? null : m.textOf(m.parseNumber(x))", text)
    assert (read is None) == (value is None)
    assert value is None or repr(float(read)) == repr(value)


@pytest.mark.browser
@pytest.mark.parametrize(
    "value", [0.1, 1 / 3, 65504.0, 2.0**-149, 2.0**127, 1e-5, 9.99e-6, 1e21, -0.5, 0.0, 3.4e38]
)
def test_text_holds_every_digit(words: Numbers, value: float) -> None:
    assert words.text("m.exactDecimal(Number(x))", repr(value)) == exact_decimal(value)
    assert float(words.text("m.textOf(Number(x))", repr(value))) == value


@pytest.mark.browser
@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2.0**-127, "5.8774717541114375…e-39"), (-(2.0**127), "-1.7014118346046923…e38"),
        (0.1, "0.10000000000000000…"), (7 / 3, "2.3333333333333334…"),
        (2.0**60, "1152921504606846976"),
        (2.0**-24, "5.9604644775390625e-8"), (65504.0, "65504"),
    ],
)  # fmt: skip
def test_long_decimals_are_cut(words: Numbers, value: float, text: str) -> None:
    assert words.text("m.exactDecimal(Number(x), 17)", repr(value)) == text


# --- The page without a kernel ------------------------------------------------------------------


def said(page: Page) -> Locator:
    return page.locator(".mp-live").first


def bits(page: Page) -> str:
    return "".join(page.locator(".mp-bit").all_text_contents())


def view(page: Page) -> str:
    return page.locator(".mp-stage svg").get_attribute("aria-label") or ""


def type_number(page: Page, text: str) -> None:
    page.get_by_label("Number", exact=True).fill(text)


def fact(page: Page, name: str) -> Locator:
    return page.locator(".mp-facts dl > div", has_text=name).locator("dd")


@pytest.mark.browser
def test_a_click_flips_a_bit_and_says_the_number(open_explorer: OpenExplorer) -> None:
    page = open_explorer(FloatExplorer(1.0))
    page.get_by_label("sign bit").click()
    expect(said(page)).to_have_text("float16: −1, exact")
    page.get_by_label("mantissa bit, worth 1/2", exact=True).click()
    expect(said(page)).to_have_text("float16: −1.5, exact")
    assert said(page).get_attribute("aria-live") == "polite"
    expect(page.get_by_label("Number", exact=True)).to_have_value("-1.5")


@pytest.mark.browser
def test_a_drag_sets_every_bit_on_its_way(open_explorer: OpenExplorer) -> None:
    page = open_explorer(FloatExplorer(1.0))
    start = page.get_by_label("mantissa bit, worth 1/2", exact=True)
    drag(page, start, page.get_by_label("mantissa bit, worth 1/64", exact=True), steps=20)
    page.mouse.move(700, 100)
    expect(said(page)).to_have_text("float16: 1.984375, exact")
    assert bits(page) == "0" + "01111" + "1111110000"


@pytest.mark.browser
def test_bits_by_keyboard(open_explorer: OpenExplorer) -> None:
    page = open_explorer(FloatExplorer(1.0))
    assert page.locator(".mp-bit[tabindex='0']").count() == 1
    page.locator(".mp-bit[tabindex='0']").focus()
    for key in ("End", "Space", "ArrowLeft", "Enter", "Home", "ArrowLeft", "Space"):
        page.keyboard.press(key)
    assert bits(page) == "1" + "01111" + "0000000011"
    page.keyboard.press("ArrowRight")
    expect(page.get_by_label("exponent bit, worth 16")).to_be_focused()
    expect(page.locator(".mp-bit[tabindex='0']")).to_have_count(1)


@pytest.mark.browser
@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("65520", "float16: inf, overflow, from 65520"),
        ("2^-24", "float16: 5.96046447754e−8, subnormal, exact"),
        ("1e-8", "float16: 0, underflow, from 1e−8"),
        ("nan", "float16: NaN"),
        ("-0", "float16: −0, exact"),
    ],
)
def test_a_number_typed(open_explorer: OpenExplorer, typed: str, sentence: str) -> None:
    page = open_explorer(FloatExplorer())
    page.get_by_label("Number", exact=True).fill(typed)
    expect(said(page)).to_have_text(sentence)
    expect(page.get_by_label("Number", exact=True)).to_have_value(typed)


@pytest.mark.browser
def test_text_that_is_no_number_changes_nothing(open_explorer: OpenExplorer) -> None:
    page = open_explorer(FloatExplorer(2.0))
    page.get_by_label("Number", exact=True).fill("two")
    expect(page.get_by_role("alert")).to_contain_text("Write 0.1, 1e-8, 1/3, 2^-24, inf or nan")
    expect(page.get_by_label("Number", exact=True)).to_have_attribute("aria-invalid", "true")
    expect(said(page)).to_have_text("float16: 2, exact")
    page.get_by_label("Number", exact=True).fill("3")
    expect(page.get_by_role("alert")).to_be_empty()


@pytest.mark.browser
@pytest.mark.parametrize(
    ("typed", "advice"),
    [
        ("1,5", "Use a point for decimals"),
        ("abc", "Write 0.1"),
        ("", "Write 0.1"),
        ("1e400", "doubles go from 4.9e-324 to 1.8e308"),
        ("1e-400", "doubles go from 4.9e-324 to 1.8e308"),
        ("2^5000", "doubles go from 4.9e-324 to 1.8e308"),
    ],
)
def test_unreadable_text_dims_the_old_answer(
    open_explorer: OpenExplorer, typed: str, advice: str
) -> None:
    page = open_explorer(FloatExplorer(2.0))
    parts = [page.locator(part) for part in (".mp-bits", ".mp-facts", ".mp-line", ".mp-table")]
    type_number(page, typed)
    expect(page.get_by_role("alert")).to_contain_text(advice)
    for part in parts:
        expect(part).to_have_css("opacity", "0.35")
    expect(page.locator(".mp-controls")).to_have_css("opacity", "1")
    page.get_by_label("sign bit").click()
    expect(page.get_by_label("Number", exact=True)).to_have_value("-2")
    expect(page.get_by_role("alert")).to_be_empty()
    for part in parts:
        expect(part).to_have_css("opacity", "1")


BADGES = [
    ("0.5", "float16", "exact"), ("0.1", "float16", "rounded"), ("-0", "float16", "exact"),
    ("2^-24", "float16", "subnormal, exact"), ("2e-5", "float16", "subnormal, rounded"),
    ("65519", "float16", "rounded"), ("65520", "float16", "overflow"), ("inf", "float16", "exact"),
    ("1e-8", "float16", "underflow"), ("-7", "float4_e2m1fn", "overflow"),
    ("inf", "float8_e4m3fn", "no infinity"), ("-0", "float8_e4m3fnuz", "no −0"),
    ("0", "float8_e8m0fnu", "no zero"), ("-0", "float8_e8m0fnu", "no zero"),
    ("-1", "float8_e8m0fnu", "no sign"), ("1e-40", "float8_e8m0fnu", "too small"),
    ("4.4e-39", "float8_e8m0fnu", "too small"), ("4.5e-39", "float8_e8m0fnu", "rounded"),
]  # fmt: skip


@pytest.mark.browser
@pytest.mark.parametrize("name", sorted({name for _, name, _ in BADGES}))
def test_the_badge_and_the_table_say_what_became_of_it(
    open_explorer: OpenExplorer, name: str
) -> None:
    page = open_explorer(FloatExplorer(1.0, ALL[name]))
    for typed, badge in [(typed, badge) for typed, format, badge in BADGES if format == name]:
        type_number(page, typed)
        expect(page.locator(".mp-kind")).to_have_text(badge)
        if name in FORMATS:
            expect(page.locator(".mp-chosen td").last).to_have_text(badge)


@pytest.mark.browser
def test_nan_has_no_error_and_no_verdict(open_explorer: OpenExplorer) -> None:
    page = open_explorer(FloatExplorer(math.nan))
    expect(page.locator(".mp-result .mp-value").first).to_have_text("NaN")
    expect(page.locator(".mp-kind")).to_be_hidden()
    expect(fact(page, "rounding error")).to_have_text("—")
    expect(fact(page, "relative error")).to_have_text("—")
    cells = page.locator(".mp-table tr", has_text="bfloat16").locator("td")
    assert cells.all_text_contents() == ["NaN", "—", ""]
    type_number(page, "-inf")
    expect(fact(page, "rounding error")).to_have_text("—")
    type_number(page, "2")
    expect(fact(page, "rounding error")).to_have_text("0")


@pytest.mark.browser
def test_a_long_decimal_is_cut_and_opens(open_explorer: OpenExplorer) -> None:
    page = open_explorer(FloatExplorer(0.0, "float8_e8m0fnu"), width=390)
    expect(page.locator(".mp-result strong")).to_have_text("5.8774717541114375…e−39")
    page.get_by_text("all digits").click()
    expect(page.get_by_text(exact_decimal(2.0**-127).replace("-", "−"))).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    type_number(page, "1")
    expect(page.get_by_text("all digits")).to_be_hidden()


@pytest.mark.browser
def test_the_code_is_labelled_with_its_bits(open_explorer: OpenExplorer) -> None:
    page = open_explorer(FloatExplorer(448.0, "tfloat32"))
    expect(fact(page, "19-bit code")).to_have_text("0x21F00")
    page.get_by_label("Format").select_option("float8_e4m3fn")
    expect(fact(page, "8-bit code")).to_have_text("0x7E")


@pytest.mark.browser
def test_a_number_without_a_code_is_refused_in_words(open_explorer: OpenExplorer) -> None:
    page = open_explorer(FloatExplorer(2.0, "float4_e2m1fn"))
    page.get_by_label("Number", exact=True).fill("nan")
    expect(page.get_by_role("alert")).to_contain_text("float4_e2m1fn has no NaN")
    expect(said(page)).to_have_text("float4_e2m1fn: 2, exact")


@pytest.mark.browser
def test_the_overflow_rule_offers_what_the_format_has(open_explorer: OpenExplorer) -> None:
    page = open_explorer(FloatExplorer(65520.0))
    page.get_by_label("Overflow").select_option("saturate")
    expect(said(page)).to_have_text("float16: 65504, overflow, from 65520")
    page.get_by_label("Overflow").select_option("nan")
    expect(said(page)).to_have_text("float16: NaN, overflow, from 65520")
    page.get_by_label("Format").select_option("float8_e4m3fn")
    assert page.get_by_label("Overflow").locator("option").all_text_contents() == [
        "saturate at max", "to NaN"
    ]  # fmt: skip


@pytest.mark.browser
def test_the_same_number_in_every_format(open_explorer: OpenExplorer) -> None:
    page = open_explorer(FloatExplorer(1e-8))
    row = page.get_by_role("row", name=re.compile(r"^float8_e5m2\b"))
    expect(row).to_contain_text("underflow")
    row.get_by_role("button").click()
    expect(said(page)).to_have_text("float8_e5m2: 0, underflow, from 1e−8")
    expect(page.get_by_label("Format")).to_have_value("float8_e5m2")
    page.get_by_role("button", name="65520").click()
    expect(row).to_contain_text("overflow")
    assert page.locator(".mp-table tbody tr").count() == len(FORMATS)


@pytest.mark.browser
def test_stepping_to_the_neighbours(open_explorer: OpenExplorer) -> None:
    page = open_explorer(FloatExplorer(65504.0))
    page.get_by_role("button", name="go to the number above").click()
    expect(said(page)).to_have_text("float16: inf, exact")
    for _ in range(2):
        page.get_by_role("button", name="go to the number below").click()
    expect(said(page)).to_have_text("float16: 65472, exact")


@pytest.mark.browser
def test_the_readers_own_format(open_explorer: OpenExplorer) -> None:
    page = open_explorer(FloatExplorer(0.3))
    page.get_by_label("Format").select_option("custom")
    for name, count in (("Exponent bits", "3"), ("Mantissa bits", "2")):
        page.get_by_label(name).fill(count)
        page.get_by_label(name).press("Enter")
    page.get_by_label("Top codes mean").select_option("none")
    own = FloatFormat("custom", 3, 2, specials="none")
    assert int(bits(page), 2) == encode(0.3, own, overflow="saturate")
    page.get_by_label("Mantissa bits").fill("99")
    page.get_by_label("Mantissa bits").press("Enter")
    expect(page.get_by_label("Mantissa bits")).to_have_value("23")


@pytest.mark.browser
def test_a_format_given_from_python(open_explorer: OpenExplorer) -> None:
    ours = dataclasses.replace(FORMATS["float8_e4m3fnuz"], name="ours")
    page = open_explorer(FloatExplorer(0.3, ours))
    expect(said(page)).to_have_text("ours: 0.3125, rounded, from 0.3")
    page.get_by_label("sign bit").click()
    expect(said(page)).to_have_text("ours: −0.3125, exact")


@pytest.mark.browser
def test_the_wheel_is_the_pages(open_explorer: OpenExplorer) -> None:
    page = open_explorer(FloatExplorer())
    stage = page.locator(".mp-stage")
    page.mouse.move(10, 10)
    stage.hover()
    before = view(page)
    page.mouse.wheel(0, 200)
    page.wait_for_function("scrollY === 200")
    assert view(page) == before


@pytest.mark.browser
@pytest.mark.parametrize("by", ["Ctrl", "focus"])
def test_the_wheel_zooms_with_ctrl_or_focus(open_explorer: OpenExplorer, by: str) -> None:
    page = open_explorer(FloatExplorer())
    stage = page.locator(".mp-stage")
    before = view(page)
    stage.hover()
    if by == "focus":
        stage.focus()
    else:
        page.keyboard.down("Control")
    page.mouse.wheel(0, -200)
    page.wait_for_function("(old) => document.querySelector('svg').ariaLabel !== old", arg=before)
    assert page.evaluate("scrollY") == 0


@pytest.mark.browser
def test_ctrl_and_wheel_never_zoom_the_page(open_explorer: OpenExplorer) -> None:
    page = open_explorer(FloatExplorer())
    kept = """() => {
      const wheel = () => new WheelEvent("wheel", {deltaY: 400, ctrlKey: true, cancelable: true});
      const stage = document.querySelector(".mp-stage");
      return Array.from({length: 100}, () => stage.dispatchEvent(wheel())).includes(true);
    }"""
    assert page.evaluate(kept) is False  # every event is taken, at the end of the zoom too


@pytest.mark.browser
def test_the_number_line_by_drag(open_explorer: OpenExplorer) -> None:
    page = open_explorer(FloatExplorer())
    before = view(page)
    drag(page, page.locator(".mp-stage"), (-100, 0))
    assert view(page) != before
    expect(page.get_by_label("Number", exact=True)).to_have_value("0.1")


@pytest.mark.browser
def test_the_view_goes_to_a_typed_number_and_a_format(open_explorer: OpenExplorer) -> None:
    page = open_explorer(FloatExplorer(500.0, "float4_e2m1fn"))
    assert view(page) == "Number line from −784.4 to 796.4, linear"
    for typed, shown in [
        ("-1", "−4 to 2"),
        ("0", "−3 to 3"),
        ("6", "−6 to 18"),
        ("nan", "−6 to 18"),
    ]:
        type_number(page, typed)
        assert view(page) == f"Number line from {shown}, linear"
    page.get_by_label("Format").select_option("float8_e8m0fnu")
    assert view(page) == "Number line from −40 to 56, linear"
    page.get_by_role("button", name="65520").click()
    assert view(page) == "Number line from −327680 to 458752, linear"


@pytest.mark.browser
def test_the_view_stays_for_steps_bits_and_clicks_inside_it(open_explorer: OpenExplorer) -> None:
    page = open_explorer(FloatExplorer(1.0))
    page.get_by_role("button", name="pan right").click()
    before = view(page)
    page.get_by_role("button", name="go to the number above").click()
    page.get_by_label("mantissa bit, worth 1/512").click()
    page.locator(".mp-stage").click(position={"x": 500, "y": 60})
    expect(page.get_by_label("Number", exact=True)).not_to_have_value("1")
    assert view(page) == before
    page.get_by_label("sign bit").click()
    assert view(page) != before
    type_number(page, "2")
    assert view(page) == "Number line from 1.98828 to 2.01172, linear"


@pytest.mark.browser
def test_all_is_logarithmic_and_holds_every_number(open_explorer: OpenExplorer) -> None:
    page = open_explorer(FloatExplorer(0.1))
    page.get_by_role("button", name="show the whole range").click()
    whole = view(page)
    assert whole.endswith("logarithmic")
    for number in (65504.0, 1e-8, -1.0):
        type_number(page, str(number))
        assert view(page) == whole
    type_number(page, "1e30")
    assert float(view(page).split(" to ")[1].split(",")[0]) > 1e30
    page.get_by_role("button", name="the number", exact=True).click()
    assert view(page).endswith("linear")


@pytest.mark.browser
def test_the_number_line_by_keyboard(open_explorer: OpenExplorer) -> None:
    page = open_explorer(FloatExplorer())
    page.locator(".mp-stage").focus()
    seen = [view(page)]
    for key in ("-", "+", "+", "ArrowRight", "ArrowLeft", "w", "0"):
        page.keyboard.press(key)
        seen.append(view(page))
    assert all(a != b for a, b in itertools.pairwise(seen))
    assert seen[-1] == seen[0]


@pytest.mark.browser
def test_a_click_on_the_number_line_puts_the_number_there(open_explorer: OpenExplorer) -> None:
    page = open_explorer(FloatExplorer(1.0, "float8_e4m3fn"))
    page.get_by_role("button", name="show the whole range").click()
    page.locator(".mp-stage").click(position={"x": 718, "y": 60})
    typed = float(page.get_by_label("Number", exact=True).input_value())
    assert int(bits(page), 2) == encode(typed, "float8_e4m3fn", overflow="nan")
    assert typed > 300


SHOWN = [
    (0.1, "float16"), (-0.1, "float16"), (1 / 3, "bfloat16"), (3e-6, "float16"), (0.0, "float16"),
    (65519.0, "float16"), (1e6, "float16"), (-500.0, "float8_e4m3fn"), (0.003, "float8_e4m3fn"),
    (2.0**-126 / 3, "float32"), (1.1, "tfloat32"), (5.1, "float4_e2m1fn"), (0.3, "float8_e8m0fnu"),
    (0.04, "float8_e5m2fnuz"), (7.3, "odd_bias"), (1.3, "fixed_like"),
]  # fmt: skip


def shown(page: Page) -> Iterator[tuple[FloatExplorer, Locator]]:
    """Explorers of `SHOWN`, each with its part of a page that holds them all."""
    explorers = [FloatExplorer(value, ALL[name], "saturate") for value, name in SHOWN]
    yield from zip(explorers, page.locator(".mp-explorer").all(), strict=True)


def open_shown(open_explorer: OpenExplorer) -> Page:
    return open_explorer(*(FloatExplorer(v, ALL[name], "saturate") for v, name in SHOWN))


@pytest.mark.browser
def test_every_fact_is_pythons(open_explorer: OpenExplorer) -> None:
    for explorer, part in shown(open_shown(open_explorer)):
        value, format = explorer.value, explorer.format
        rounded = decode(explorer.code, format)
        below, above = neighbours(rounded, format)
        gap = float(ulp(torch.tensor(rounded, dtype=torch.float64), format))
        error = rounded - value
        relative = abs(error / value) if error else 0.0
        facts = part.locator(".mp-facts dl")
        names, texts = (facts.locator(tag).all_text_contents() for tag in ("dt", "dd"))
        wanted = [below, above, gap, error, relative]
        for name, text, number in zip(names, texts, wanted, strict=False):
            if number is None:
                assert text == "none", (explorer, name)
            else:
                assert as_number(text.strip("◂ ▸")) == pytest.approx(number, rel=5e-3), (
                    explorer,
                    name,
                )
        for side, neighbour in zip(("below", "above"), texts, strict=False):
            if neighbour != "none":
                button = facts.get_by_label(f"go to the number {side}, {neighbour.strip('◂ ▸')}")
                expect(button).to_have_count(1)
        assert int(texts[5], 16) == explorer.code
        assert len(texts[5]) == 2 + math.ceil(format.bits / 4)


@pytest.mark.browser
def test_formula_and_meanings_come_to_the_number(open_explorer: OpenExplorer) -> None:
    for explorer, part in shown(open_shown(open_explorer)):
        number = decode(explorer.code, explorer.format)
        line = part.locator(".mp-formula").inner_html().replace("−", "-")
        found = re.search(
            r"(?:([+-])1 × )?2<sup>(\d+) - (-?\d+)</sup> × (?:\((\d) \+ (\d+)/(\d+)\)|1)", line
        )
        assert found, line
        sign, exponent, bias, whole, parts, of = found.groups()
        factor = int(whole) + int(parts) / int(of) if whole else 1
        power = 2.0 ** (int(exponent) - int(bias))
        assert (-1 if sign == "-" else 1) * power * factor == number

        def meaning(role: str, part: Locator = part) -> str:
            return part.locator(f"[data-role={role}] .mp-meaning").text_content() or ""

        power_text, binade = meaning("exponent").replace("−", "-").split(" = ")
        assert re.fullmatch(rf"{exponent} - {bias}", power_text)
        assert 2.0 ** int(binade) == power
        hidden = (part.locator(".mp-hidden-bit").text_content() or "").removesuffix(".")
        mantissa = meaning("mantissa")
        parts, of = (0, 1) if mantissa == "no bits" else map(int, mantissa.split("/"))
        assert (int(hidden) + parts / of) * power == abs(number)


@pytest.mark.browser
def test_what_is_pressed_is_what_is_chosen(open_explorer: OpenExplorer) -> None:
    for explorer, part in shown(open_shown(open_explorer)):
        bits_of = part.locator(".mp-bit")
        pressed = "(bits) => bits.every((b) => b.ariaPressed === String(b.textContent === '1'))"
        assert bits_of.evaluate_all(pressed)
        chosen = part.locator(".mp-table button[aria-pressed=true]").all_text_contents()
        assert chosen == [explorer.format.name] * (explorer.format.name in FORMATS)


@pytest.mark.browser
def test_the_number_line_says_what_was_typed_and_what_it_became(
    open_explorer: OpenExplorer,
) -> None:
    page = open_explorer(FloatExplorer(0.3, "float4_e2m1fn"))
    labels = page.locator(".mp-marker-label")
    expect(labels).to_have_text(["0.5", "typed 0.3"])
    type_number(page, "2")
    expect(labels).to_have_text(["2"])


def ends_of_view(page: Page) -> tuple[float, float]:
    low, high = re.fullmatch(r"Number line from (\S+) to (\S+), \w+", view(page)).groups()  # type: ignore[union-attr]
    return as_number(low), as_number(high)


@pytest.mark.browser
def test_panning_and_zooming_go_the_way_that_they_say(open_explorer: OpenExplorer) -> None:
    page = open_explorer(FloatExplorer(1.0, "float8_e4m3fn"))
    stage = page.locator(".mp-stage")

    def button(name: str) -> Any:
        return lambda: page.get_by_role("button", name=name).click()

    def key(name: str) -> Any:
        return lambda: stage.press(name)

    def wheel(by: int) -> Any:
        return lambda: stage.evaluate(
            "(el, y) => el.dispatchEvent(new WheelEvent('wheel', {deltaY: y, ctrlKey: true}))",
            by,
        )

    for act, up in [(button("pan right"), 1), (button("pan left"), -1), (key("ArrowRight"), 1),
                    (key("ArrowLeft"), -1), (lambda: drag(page, stage, (-100, 0)), 1),
                    (lambda: drag(page, stage, (100, 0)), -1)]:  # fmt: skip
        before = ends_of_view(page)
        act()
        assert all(
            (new - old) * up > 0 for old, new in zip(before, ends_of_view(page), strict=True)
        )
    for act, wider in [(button("zoom out"), 1), (button("zoom in"), -1), (key("-"), 1),
                       (key("+"), -1), (wheel(200), 1), (wheel(-200), -1)]:  # fmt: skip
        before = ends_of_view(page)
        act()
        after = ends_of_view(page)
        assert ((after[1] - after[0]) - (before[1] - before[0])) * wider > 0


LINE = """(line) => {
  const at = (part) => Number(part.getAttribute("x") ?? part.getAttribute("x1"));
  const all = (kind) => [...line.querySelectorAll(kind)];
  return {
    pixels: line.querySelector("svg").viewBox.baseVal.width,
    labels: all(".mp-axis-label").map((label) => [at(label), label.textContent]),
    overflow: all(".mp-zone-overflow").map((zone) => [at(zone), at(zone) + Number(zone.getAttribute("width"))]),
    ticks: line.querySelector(".mp-ticks").getAttribute("d").split("M").length - 1,
    skyline: line.querySelector(".mp-skyline").getAttribute("d"),
  };
}"""  # noqa: E501


@pytest.mark.browser
@pytest.mark.parametrize("scale", ["linear", "logarithmic"])
@pytest.mark.parametrize(
    ("value", "name"),
    [
        (0.1, "float16"), (-3.0, "float4_e2m1fn"), (65519.0, "float16"), (460.0, "float8_e4m3fn"),
        (3e-9, "float16"), (1e-30, "bfloat16"), (0.0, "float8_e5m2"), (0.3, "float8_e8m0fnu"),
    ],
)  # fmt: skip
def test_labels_and_the_end_of_the_format_stand_where_they_should(
    open_explorer: OpenExplorer, value: float, name: str, scale: str
) -> None:
    format = ALL[name]
    page = open_explorer(FloatExplorer(value, format))
    if scale == "logarithmic":
        page.get_by_role("button", name="show the whole range").click()
    unit = 2.0**format.lowest_binade

    def drawn(x: float) -> float:
        """Its place on an axis with one unit per binade outside of the subnormals."""
        if scale == "linear":
            return x
        return math.copysign(abs(x) / unit if abs(x) <= unit else 1 + math.log2(abs(x) / unit), x)

    found = page.locator(".mp-line").evaluate(LINE)
    low, high = map(drawn, ends_of_view(page))

    def pixel(x: float) -> float:
        return float((drawn(x) - low) / (high - low) * found["pixels"])

    assert len(found["labels"]) >= 2
    for x, text in found["labels"]:
        assert pixel(as_number(text)) == pytest.approx(x, abs=2), text
    limit = format.max + float(ulp(torch.tensor(format.max, dtype=torch.float64), format)) / 2
    if 0 < pixel(limit) < found["pixels"]:
        assert found["overflow"][0] == pytest.approx([pixel(limit), found["pixels"]], abs=2)
    else:
        assert [zone for zone in found["overflow"] if zone[1] == found["pixels"]] == []


@pytest.mark.browser
@pytest.mark.parametrize("value", [0.0, -1.5, 3.0])
def test_every_number_of_the_format_has_a_tick(open_explorer: OpenExplorer, value: float) -> None:
    format = ALL["float4_e2m1fn"]
    page = open_explorer(FloatExplorer(value, format))
    found = page.locator(".mp-line").evaluate(LINE)
    low, high = ends_of_view(page)
    numbers = {decode(code, format) for code in range(2**format.bits)}
    assert found["skyline"] == ""
    assert found["ticks"] == sum(low < number <= high for number in numbers)


@pytest.mark.browser
@pytest.mark.parametrize(
    ("label", "typed", "becomes"),
    [
        ("Exponent bits", "99", "8"), ("Exponent bits", "1", "2"), ("Exponent bits", "", "2"),
        ("Mantissa bits", "99", "23"), ("Mantissa bits", "0", "1"), ("Mantissa bits", "-4", "1"),
    ],
)  # fmt: skip
def test_the_readers_own_format_is_always_one(
    open_explorer: OpenExplorer, label: str, typed: str, becomes: str
) -> None:
    page = open_explorer(FloatExplorer(0.3))
    page.get_by_label("Format").select_option("custom")
    page.get_by_label(label).fill(typed)
    page.get_by_label(label).press("Enter")
    expect(page.get_by_label(label)).to_have_value(becomes)
    exponent, mantissa = (
        int(page.get_by_label(f"{name} bits").input_value()) for name in ("Exponent", "Mantissa")
    )
    own = FloatFormat("custom", exponent, mantissa)
    assert int(bits(page), 2) == encode(0.3, own, overflow="inf")


ZOOM_EVERYWHERE = """() => [...document.querySelectorAll(".mp-line")].flatMap((line, n) => {
  const stage = line.querySelector(".mp-stage");
  const broken = [];
  for (const kind of ["0", "w"]) {
    const keys = [..."+".repeat(30), kind, ..."-".repeat(20), "ArrowRight", ..."+".repeat(60)];
    for (const key of [kind, ...keys]) {
      stage.dispatchEvent(new KeyboardEvent("keydown", {key}));
      const drawn = stage.innerHTML.replaceAll("overflow to NaN", "");
      if (/NaN|Infinity|undefined/.test(drawn) || drawn.length > 40000) broken.push([n, kind, key]);
    }
  }
  return broken;
})"""


@pytest.mark.browser
@pytest.mark.parametrize(
    "name", ["float32", "float8_e4m3fn", "float4_e2m1fn", "float8_e8m0fnu", "odd_bias"]
)
def test_the_number_line_draws_every_kind_at_every_zoom(
    open_explorer: OpenExplorer, name: str
) -> None:
    values = [0.1, -0.0, 1e30, math.inf] + [math.nan] * ALL[name].has_nan
    page = open_explorer(*[FloatExplorer(value, ALL[name]) for value in values])
    assert page.evaluate(ZOOM_EVERYWHERE) == []


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_nothing_serious_and_nothing_overflows(
    open_explorer: OpenExplorer, theme: str, width: int
) -> None:
    explorers = [
        FloatExplorer(1 / 3, "float32"),
        FloatExplorer(65520.0),
        FloatExplorer(0.3, OTHERS[0]),
    ]
    page = open_explorer(*explorers, width=width, color_scheme=theme)
    assert serious_violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = (
        "[...document.querySelectorAll('.mp-explorer')].map((e) => e.scrollWidth - e.clientWidth)"
    )
    assert page.evaluate(wide) == [0, 0, 0]


@pytest.mark.browser
def test_dark_theme_turns_the_explorer_dark(open_explorer: OpenExplorer) -> None:
    def brightness(theme: str) -> int:
        page = open_explorer(FloatExplorer(), color_scheme=theme)
        colour = "getComputedStyle(document.querySelector('.mp-explorer')).backgroundColor"
        return int(page.evaluate(f"Number({colour}.match(/\\d+/)[0])"))

    assert brightness("light") > 200
    assert brightness("dark") < 60


@pytest.mark.browser
def test_reduced_motion_stills_the_bits(open_explorer: OpenExplorer) -> None:
    page = open_explorer(FloatExplorer(), reduced_motion="reduce")
    style = "getComputedStyle(document.querySelector('.mp-bit'))"
    assert page.evaluate(f"{style}.transitionProperty") == "none"


@pytest.mark.browser
def test_explorers_on_one_page_are_independent(open_explorer: OpenExplorer) -> None:
    page = open_explorer(FloatExplorer(1.0), FloatExplorer(2.0))
    page.get_by_label("sign bit").first.click()
    expect(page.locator(".mp-live").nth(0)).to_have_text("float16: −1, exact")
    expect(page.locator(".mp-live").nth(1)).to_have_text("float16: 2, exact")


@pytest.mark.browser
def test_without_javascript_the_picture_stays(open_explorer: OpenExplorer) -> None:
    page = open_explorer(FloatExplorer(0.1), java_script_enabled=False)
    picture = page.locator(".mp-static")
    expect(picture).to_be_visible()
    for text in ("0.1 in float16 is 0.0999755859375 (normal)", "01011", "1001100110"):
        expect(picture).to_contain_text(text)


# --- The widget in the kernel --------------------------------------------------------------------


class RecordingComm(BaseComm):
    """A comm with nobody at the other end, which keeps what was sent."""

    sent: list[dict[str, Any]]

    def publish_msg(
        self,
        msg_type: str,
        data: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
        buffers: list[bytes] | None = None,
        **keys: Any,
    ) -> None:
        self.__dict__.setdefault("sent", []).append({"type": msg_type, **(data or {})})


@pytest.fixture
def explorer(monkeypatch: pytest.MonkeyPatch) -> Iterator[FloatExplorer]:
    monkeypatch.setattr(comm, "create_comm", lambda **options: RecordingComm(**options))
    widget = FloatExplorer(0.1, "float16")
    yield widget
    widget.close()


def click(explorer: FloatExplorer, **state: Any) -> None:
    """Deliver what a front end sends after a click."""
    data = {"method": "update", "state": state, "buffer_paths": []}
    explorer._handle_msg({"content": {"data": data}, "buffers": []})


def test_a_click_in_the_picture_changes_the_traits(explorer: FloatExplorer) -> None:
    click(explorer, value="-0.0999755859375", code=0xAE66)
    assert (explorer.value, explorer.code) == (-0.0999755859375, 0xAE66)


def test_a_payload_nan_that_was_clicked_is_kept(explorer: FloatExplorer) -> None:
    click(explorer, value="nan", code=0x7C01)
    assert math.isnan(explorer.value)
    assert explorer.code == 0x7C01


def test_a_format_chosen_in_the_picture_is_a_float_format(explorer: FloatExplorer) -> None:
    own = FloatFormat("custom", 3, 2, specials="none")
    click(explorer, format=as_json(own), code=1)
    assert explorer.format == own
    assert explorer.code == encode(0.1, own, overflow="saturate")


def test_a_value_set_in_python_moves_the_picture(explorer: FloatExplorer) -> None:
    explorer.comm.sent.clear()
    explorer.value = 3.14
    sent: dict[str, Any] = {}
    for message in explorer.comm.sent:
        sent |= message["state"]
    assert sent == {"value": "3.14", "code": 0x4248}


def test_every_digit_of_a_value_reaches_the_picture(explorer: FloatExplorer) -> None:
    explorer.value = 0.1 + 0.2
    assert explorer.get_state("value") == {"value": "0.30000000000000004"}


def test_a_code_may_be_too_long_for_the_format_that_follows(explorer: FloatExplorer) -> None:
    explorer.code = 2**8  # 2**-16, the smallest number of float8_e5m2
    explorer.format = "float8_e5m2"
    assert (explorer.value, explorer.code) == (2.0**-16, 1)


def test_a_format_of_32_bits_has_room() -> None:
    assert FloatExplorer(0.1, "float32").code == 0x3DCCCCCD


def test_code_and_format_set_in_python_keep_step(explorer: FloatExplorer) -> None:
    explorer.code = 1
    assert explorer.value == 2.0**-24
    explorer.format = "bfloat16"
    assert explorer.format == FORMATS["bfloat16"]
    assert explorer.code == encode(2.0**-24, "bfloat16", overflow="inf")
    explorer.format = torch.float16
    explorer.value = 1e6
    explorer.overflow = "saturate"
    assert explorer.code == FORMATS["float16"].max_code


@pytest.mark.parametrize(
    ("trait", "wrong", "right"),
    [
        ("value", "a tenth", "expected a number or its text"),
        ("format", "fp16", "expected one of float32"),
        ("format", FloatFormat("wide", 8, 40), "expected 32 at most"),
        ("overflow", "wrap", "expected one of"),
        ("code", 2**16, "float16 has codes 0 to 65535"),
        ("code", 1.5, "expected an integer"),
        ("code", True, "expected an integer"),
    ],
)
def test_bad_values_are_refused_and_change_nothing(
    explorer: FloatExplorer, trait: str, wrong: Any, right: str
) -> None:
    before = explorer.get_state()
    with pytest.raises(ValueError, match=right):
        setattr(explorer, trait, wrong)
    assert explorer.get_state() == before
    if trait != "code":
        with pytest.raises(ValueError, match=right):
            FloatExplorer(**{trait: wrong})


def test_a_nan_where_the_format_has_none_is_refused(explorer: FloatExplorer) -> None:
    with pytest.raises(ValueError, match="float4_e2m1fn has no NaN"):
        FloatExplorer(math.nan, "float4_e2m1fn")
    explorer.value = math.nan
    with pytest.raises(ValueError, match="float4_e2m1fn has no NaN"):
        explorer.format = "float4_e2m1fn"
    assert explorer.format == FORMATS["float16"]


PICTURES = [
    (
        -0.1, "float16",
        "-0.1 in float16 is -0.0999755859375 (normal)",
        [("sign", "1", "−"), ("exponent", "01011", "2 11 − 15"),
         ("mantissa", "1001100110", "1 + 614/1024")],
        "Rounding error 2.44e-05. Neighbours: -0.100036621 below, -0.0999145508 above.",
    ),
    (
        2.0**-24, "float16",
        "5.960464477539063e-08 in float16 is 5.9604644775390625e-8 (subnormal)",
        [("sign", "0", "+"), ("exponent", "00000", "2 1 − 15"),
         ("mantissa", "0000000001", "0 + 1/1024")],
        "Rounding error 0. Neighbours: 0 below, 1.1920929e-07 above.",
    ),
    (
        1e6, "float16",
        "1000000.0 in float16 is inf (infinity)",
        [("sign", "0", "+"), ("exponent", "11111", "special"),
         ("mantissa", "0000000000", "1 + 0/1024")],
        "Neighbours: 65504 below, none above.",
    ),
    (
        2.0**-127, "float8_e8m0fnu",
        "5.877471754111438e-39 in float8_e8m0fnu is 5.8774717541114375",
        [("exponent", "00000000", "2 0 − 127"), ("mantissa", "none", "1 + 0/1")],
        "Rounding error 0. Neighbours: none below, 1.17549435e-38 above.",
    ),
    (
        math.nan, "float8_e4m3fn",
        "nan in float8_e4m3fn is nan (NaN)",
        [("sign", "0", "+"), ("exponent", "1111", "special"), ("mantissa", "111", "1 + 7/8")],
        "NaN has no neighbours.",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("value", "name", "title", "columns", "around"), PICTURES)
def test_the_static_picture_says_what_the_bits_mean(
    value: float, name: str, title: str, columns: list[tuple[str, ...]], around: str
) -> None:
    picture = FloatExplorer(value, name)._fallback()
    assert picture.startswith(f"<figure class='mp-static'><figcaption>{title}")
    found = re.findall("<td>(.*?)</td>", picture)
    cells = [" ".join(re.sub("<[^>]+>", " ", cell).split()) for cell in found]
    assert cells == [cell for row in zip(*columns, strict=True) for cell in row]
    assert f"<p>{around}</p>" in picture


def test_outputs_are_the_same_on_every_run() -> None:
    first, second = (FloatExplorer(0.1)._repr_mimebundle_()[0] for _ in range(2))
    widget = "application/vnd.jupyter.widget-view+json"  # nbval does not compare this one
    assert first.pop(widget) != second.pop(widget)
    assert first == second
    assert first["text/plain"] == "FloatExplorer(value=0.1, format='float16', overflow='inf')"


@pytest.mark.parametrize(
    ("code", "name", "kind"),
    [
        (0, "float16", "zero"),
        (0x8000, "float16", "zero"),
        (0x03FF, "float16", "subnormal"),
        (0x0400, "float16", "normal"),
        (0x7BFF, "float16", "normal"),
        (0xFC00, "float16", "infinity"),
        (0x7C01, "float16", "NaN"),
        (0, "float8_e8m0fnu", "normal"),
    ],
)
def test_the_kind_of_a_code(code: int, name: str, kind: str) -> None:
    assert classify(code, FORMATS[name]) == kind


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.0, "-0"),
        (math.inf, "inf"),
        (-0.1, "-0.1000000000000000055511151231257827021181583404541015625"),
        (2.0**60, "1152921504606846976"),
        (2.0**-16, "0.0000152587890625"),
        (-(2.0**-17), "-7.62939453125e-6"),
        (1e22, "1e22"),
        (2.0**70, "1.180591620717411303424e21"),
    ],
)
def test_a_float_with_all_its_digits(value: float, text: str) -> None:
    assert exact_decimal(value) == text


@pytest.mark.parametrize(
    ("wish", "name", "used"),
    [
        ("inf", "float16", "inf"),
        ("nan", "float16", "nan"),
        ("saturate", "float16", "saturate"),
        ("inf", "float8_e4m3fn", "nan"),
        ("inf", "float4_e2m1fn", "saturate"),
        ("nan", "float4_e2m1fn", "saturate"),
    ],
)
def test_an_overflow_rule_becomes_one_that_the_format_has(
    wish: Overflow, name: str, used: Overflow
) -> None:
    assert usable_overflow(wish, FORMATS[name]) == used


def test_a_name_cannot_close_the_script_element() -> None:
    format = FloatFormat("</script><b>", 3, 2)
    html = twin(FloatExplorer(0.1, format))
    assert html.count("</script>") == 1
    assert "<b>" not in html.split("</script>")[1]


def test_without_anywidget_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("mpbook.explorers")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "anywidget", None)
    fresh = importlib.import_module("mpbook.explorers")
    with pytest.raises(ImportError, match=r'pip install "mpbook\[notebook\]"'):
        _ = fresh.FloatExplorer
