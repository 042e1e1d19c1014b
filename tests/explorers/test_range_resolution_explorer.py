"""The range-and-resolution explorer: its splits, its words, its page, and its traits."""

from __future__ import annotations

import json
import math
import re
from random import Random
from typing import Any

import ml_dtypes
import pytest
import torch
from accessibility import serious_violations
from explorer_pages import (
    Axis,
    LoadModule,
    OpenExplorer,
    drag,
    drawn_bars,
    drawn_ends,
    numbers_of,
    random_histogram,
    twin,
)
from playwright.sync_api import Locator, Page, expect

from mpbook.explorers import RangeResolutionExplorer
from mpbook.explorers.census import Fates
from mpbook.explorers.range_resolution_explorer import EXPONENT_BITS, PRESETS, split
from mpbook.formats import FORMATS, FloatFormat

TENSORS = {
    "weights": {"zeros": 0, "binades": [[-8, 500], [-3, 1499], [-26, 1]], "largest": 0.2},
    "activations": {"zeros": 50, "binades": [[-2, 900], [9, 100]]},
    "gradients": {"zeros": 9, "binades": [[-60, 40], [-30, 360], [-20, 600]], "largest": 1.5e-6},
    "updates": {"zeros": 0, "binades": [[-30, 1], [-14, 1999]]},
}
SPLITS = [(bits, e) for bits, (low, high) in EXPONENT_BITS.items() for e in range(low, high + 1)]


def explorer(format: Any = "float16") -> RangeResolutionExplorer:
    return RangeResolutionExplorer(TENSORS, format)


# --- Splits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "exponent_bits"), SPLITS)
def test_a_split_is_an_ieee_format_of_its_width(bits: int, exponent_bits: int) -> None:
    format = split(bits, exponent_bits)
    assert (format.bits, format.exponent_bits) == (bits, exponent_bits)
    assert format.specials == "inf_nan"
    assert format.bias == 2 ** (exponent_bits - 1) - 1


def test_splits_with_a_name_have_it() -> None:
    assert split(16, 5) == FORMATS["float16"]
    assert split(16, 8) == FORMATS["bfloat16"]
    assert split(8, 5) == FORMATS["float8_e5m2"]
    assert (split(16, 6).name, split(16, 7).name, split(8, 4).name) == (
        "DLFloat16", "e7m8", "float8_e4m3"
    )  # fmt: skip


def test_presets_end_where_their_namesakes_do() -> None:
    for format in PRESETS:
        if format.name != "DLFloat16":
            assert format.max == float(ml_dtypes.finfo(getattr(ml_dtypes, format.name, "f2")).max)


@pytest.mark.parametrize(
    ("bits", "exponent_bits", "right"),
    [(32, 8, "16 or 8"), (16, 9, "2 to 8 of 16"), (16, 1, "2 to 8"), (8, 7, "2 to 6 of 8")],
)
def test_a_split_that_leaves_no_format_is_refused(
    bits: int, exponent_bits: int, right: str
) -> None:
    with pytest.raises(ValueError, match=right):
        split(bits, exponent_bits)


# --- What it says ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "sentence"),
    [
        (
            "float16",
            "float16, 5 exponent and 10 mantissa bits: 40% of gradients and less than 0.1% of "
            "weights and updates round to zero, nothing overflows; a normal number is off by at "
            "most 0.0488% (2^-11).",
        ),
        (
            "bfloat16",
            "bfloat16, 8 exponent and 7 mantissa bits: nothing rounds to zero, nothing overflows; "
            "a normal number is off by at most 0.391% (2^-8).",
        ),
        (
            split(16, 4),
            "e4m11, 4 exponent and 11 mantissa bits: 100% of gradients and less than 0.1% of "
            "weights and updates round to zero, 10% of activations overflow; a normal number "
            "is off by at most 0.0244% (2^-12).",
        ),
        (
            split(8, 6),
            "e6m1, 6 exponent and 1 mantissa bit: 4% of gradients round to zero, nothing "
            "overflows; a normal number is off by at most 25% (2^-2).",
        ),
    ],
)
def test_sentences(format: Any, sentence: str) -> None:
    assert repr(explorer(format)) == sentence


def test_what_may_overflow_is_a_bound() -> None:
    tensors = {"x": {"binades": [[15, 1], [0, 3]]}, "y": {"binades": [[16, 1], [15, 1], [0, 2]]}}
    said = repr(RangeResolutionExplorer(tensors))
    assert "up to 25% of x and 25% to 50% of y overflow" in said


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e5m2])
def test_a_normal_number_is_off_by_no_more_than_is_said(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = 1 + torch.rand(100_000, generator=generator, dtype=torch.float64)
    worst = ((x.to(dtype).double() - x) / x).abs().max()
    bound = explorer(dtype).rounding_error
    assert bound / 1.2 < worst <= bound


SENTENCES = "(states) => states.map((s) => m.sentence(m.readState((name) => s[name])))"


@pytest.mark.browser
def test_the_page_says_what_python_says(load_module: LoadModule) -> None:
    random = Random(2)
    formats = [*(split(*one) for one in SPLITS), *PRESETS] * 5
    found = [
        RangeResolutionExplorer({n: random_histogram(random) for n in "abcd"}, format)
        for format in formats
    ]
    states = [one.get_state(one._twin_traits) for one in found]
    page = load_module("range_resolution_explorer")
    assert page.evaluate(SENTENCES, states) == [repr(one) for one in found]


@pytest.mark.browser
def test_the_page_splits_as_python_does(load_module: LoadModule) -> None:
    presets = explorer().presets
    page = load_module("range_resolution_explorer")
    call = "([splits, presets]) => splits.map(([bits, e]) => m.split(bits, e, presets))"
    found = page.evaluate(call, [SPLITS, presets])
    assert found == [vars(split(*one)) for one in SPLITS]


# --- The page without a kernel --------------------------------------------------------------------


def slider(page: Page) -> Locator:
    return page.get_by_label("Exponent bits")


def said(page: Page) -> Locator:
    return page.locator(".mp-said")


def limit(page: Page, name: str) -> Locator:
    return page.locator(".mp-limits dl > div", has_text=name).locator("dd")


@pytest.mark.browser
def test_bits_go_over_by_keyboard(open_explorer: OpenExplorer) -> None:
    page = open_explorer(explorer())
    slider(page).focus()
    page.keyboard.press("ArrowRight")
    expect(said(page)).to_contain_text("DLFloat16, 6 exponent and 9 mantissa bits")
    expect(slider(page)).to_have_attribute(
        "aria-valuetext", "6 exponent bits, 9 mantissa bits, DLFloat16"
    )
    page.keyboard.press("End")
    expect(said(page)).to_contain_text("bfloat16, 8 exponent and 7 mantissa bits: nothing rounds")
    page.keyboard.press("Home")
    expect(said(page)).to_contain_text("e2m13, 2 exponent and 13 mantissa bits")
    assert said(page).get_attribute("aria-live") == "polite"


@pytest.mark.browser
def test_the_edge_is_dragged(open_explorer: OpenExplorer) -> None:
    page = open_explorer(explorer())
    bits = page.locator(".mp-part-bits span")
    drag(page, bits.nth(6), bits.nth(8))  # from the middle of one bit to that of another
    expect(slider(page)).to_have_value("8")
    box = bits.nth(5).bounding_box()
    assert box
    page.mouse.click(box["x"] + 2, box["y"] + 9)  # the left edge of the fifth exponent bit
    expect(slider(page)).to_have_value("4")
    drag(page, bits.nth(4), bits.nth(0))
    expect(slider(page)).to_have_value("2")
    page.mouse.move(box["x"] + 200, box["y"] + 9)
    expect(slider(page)).to_have_value("2")


@pytest.mark.browser
def test_the_bits_are_drawn(open_explorer: OpenExplorer) -> None:
    page = open_explorer(explorer())
    for role, count in (("sign", 1), ("exponent", 5), ("mantissa", 10)):
        expect(page.locator(f".mp-part-{role} span")).to_have_count(count)
    expect(page.locator(".mp-part-exponent")).to_have_text("exponent, 5 bits")
    page.get_by_label("Bits in all").select_option("8")
    slider(page).press("End")
    expect(page.locator(".mp-part-mantissa")).to_have_text("mantissa, 1 bit")


@pytest.mark.browser
def test_eight_bits_leave_fewer_to_choose(open_explorer: OpenExplorer) -> None:
    page = open_explorer(explorer("bfloat16"))
    page.get_by_label("Bits in all").select_option("8")
    expect(said(page)).to_contain_text("e6m1, 6 exponent and 1 mantissa bit:")
    expect(slider(page)).to_have_attribute("max", "6")
    page.get_by_label("Bits in all").select_option("16")
    expect(said(page)).to_contain_text("DLFloat16, 6 exponent and 9 mantissa bits")
    expect(slider(page)).to_have_attribute("max", "8")


@pytest.mark.browser
def test_every_preset_is_a_button_with_a_note(open_explorer: OpenExplorer) -> None:
    page = open_explorer(explorer(split(16, 7)))
    expect(page.locator(".mp-words .mp-hint")).to_have_text("A split without a name.")
    expect(page.locator("button[aria-pressed=true]")).to_have_count(0)
    for preset in PRESETS:
        page.get_by_role("button", name=preset.name, exact=True).click()
        expect(page.locator("button[aria-pressed=true]")).to_have_text(preset.name)
        expect(page.locator(".mp-words .mp-hint")).not_to_have_text("A split without a name.")
        expect(said(page)).to_contain_text(f"{preset.name}, {preset.exponent_bits} exponent")
    slider(page).press("ArrowRight")
    expect(said(page)).to_contain_text("float8_e5m2, 5 exponent")
    slider(page).press("ArrowLeft")
    expect(said(page)).to_contain_text("float8_e4m3, 4 exponent")


@pytest.mark.browser
def test_the_limits_of_a_split(open_explorer: OpenExplorer) -> None:
    page = open_explorer(explorer())
    for format, texts in {
        "float16": ["65504", "6.104e−5", "5.960e−8", "0.0488%"],
        "bfloat16": ["3.390e38", "1.175e−38", "9.184e−41", "0.391%"],
        "float8_e4m3": ["240", "0.015625", "0.0019531", "6.25%"],
        "float8_e4m3fn": ["448", "0.015625", "0.0019531", "6.25%"],
    }.items():
        page.get_by_role("button", name=format, exact=True).click()
        expect(said(page)).to_contain_text(f"{format},")
        names = ("largest", "smallest normal", "smallest subnormal", "off by at most")
        assert [limit(page, name).text_content() for name in names] == texts


@pytest.mark.browser
def test_a_row_for_each_tensor(open_explorer: OpenExplorer) -> None:
    page = open_explorer(explorer())
    strips = page.locator(".mp-tensor")
    assert strips.locator("strong").all_text_contents() == list(TENSORS)
    assert strips.locator(".mp-shares").all_text_contents() == [
        "0.05% to zero, 0% subnormal, 0% overflow",
        "0% to zero, 0% subnormal, 0% overflow",
        "40% to zero, 60% subnormal, 0% overflow",
        "0.05% to zero, 0% subnormal, 0% overflow",
    ]
    expect(strips.nth(2).locator("svg")).to_have_attribute(
        "aria-label", "gradients in float16: 40% to zero, 60% subnormal, 0% overflow"
    )
    page.get_by_role("button", name="bfloat16").click()
    expect(strips.nth(2).locator(".mp-shares")).to_contain_text("0% to zero, 0% subnormal")


@pytest.mark.browser
def test_every_strip_stands_over_the_same_axis(open_explorer: OpenExplorer) -> None:
    page = open_explorer(explorer())
    for preset in PRESETS:
        page.get_by_role("button", name=preset.name, exact=True).click()
        expect(said(page)).to_contain_text(f"{preset.name},")
        labels = numbers_of(page.locator(".mp-chart > svg").last)
        axis = Axis([math.log2(n) for *_, n in labels], [x for x, *_ in labels])
        survives = preset.lowest_binade - preset.mantissa_bits - 1
        for tensor, strip in zip(
            TENSORS.values(), page.locator(".mp-tensor svg").all(), strict=True
        ):
            lefts = [left for _, left, *_ in drawn_bars(strip)]
            binades = sorted(binade for binade, _ in tensor["binades"])
            assert lefts == pytest.approx([axis.pixel(binade) for binade in binades], abs=1)
            zero = drawn_ends(strip).get("zero", (0.0, 0.0))
            assert zero[1] == pytest.approx(max(0, axis.pixel(survives)), abs=1)


@pytest.mark.browser
def test_a_note_that_names_an_end_names_the_right_one(open_explorer: OpenExplorer) -> None:
    fnuz = [FORMATS["float8_e4m3fnuz"], FORMATS["float8_e5m2fnuz"]]
    formats = [*PRESETS, *fnuz]
    page = open_explorer(*map(explorer, formats))
    notes = page.locator(".mp-words .mp-hint").all_text_contents()
    named = 0
    for format, note in zip(formats, notes, strict=True):
        for end in re.findall(r"(?:it ends at|it reaches) (\d+)", note):
            assert float(end) == format.max
            named += 1
        for bias in re.findall(r"bias is (\d+)", note):
            assert int(bias) == format.bias
    assert named >= 3


DRAW_ALL = """async () => {
  const broken = [];
  const frame = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  const slider = document.querySelector("input[type=range]");
  const bits = document.querySelector("select");
  for (const width of ["16", "8"]) {
    bits.value = width;
    bits.dispatchEvent(new Event("change"));
    await frame();
    for (let e = Number(slider.min); e <= Number(slider.max); e += 1) {
      slider.value = e;
      slider.dispatchEvent(new Event("input"));
      await frame();
      const drawn = document.querySelector(".mp-chart").outerHTML;
      if (/NaN|undefined/.test(drawn)) broken.push([width, e]);
    }
  }
  return broken;
}"""


@pytest.mark.browser
def test_every_split_is_drawn(open_explorer: OpenExplorer) -> None:
    page = open_explorer(explorer(), width=390)
    assert page.evaluate(DRAW_ALL) == []
    expect(said(page)).to_contain_text("e6m1")


@pytest.mark.browser
@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 390)])
def test_axe_finds_nothing_serious_and_nothing_overflows(
    open_explorer: OpenExplorer, theme: str, width: int
) -> None:
    explorers = [explorer(), explorer("float8_e4m3fn")]
    page = open_explorer(*explorers, width=width, color_scheme=theme)
    assert serious_violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.browser
def test_without_javascript_the_numbers_stay(open_explorer: OpenExplorer) -> None:
    page = open_explorer(explorer(), java_script_enabled=False)
    expect(page.locator(".mp-static figcaption")).to_have_text(repr(explorer()))
    row = page.locator(".mp-static tr", has_text="gradients")
    assert row.locator("td").all_text_contents() == ["40%", "60%", "0%"]


# --- The widget in the kernel ---------------------------------------------------------------------


def test_fates_follow_the_format() -> None:
    found = explorer()
    assert found.fates()["gradients"] == Fates(9, 400, 600, 0, 0, 0)
    assert found.rounding_error == 2.0**-11
    found.format = split(16, 8)
    assert found.fates()["gradients"] == Fates(9, 0, 0, 1000, 0, 0)
    assert list(found.fates()) == list(TENSORS)


@pytest.mark.parametrize(
    "wrong",
    [
        "fp16", "float32", "tfloat32", "float4_e2m1fn", "float8_e8m0fnu",
        FloatFormat("e9m6", 9, 6), FloatFormat("e6m1", 7, 0, specials="none"),
    ],
)  # fmt: skip
def test_bad_formats_are_refused_and_change_nothing(wrong: Any) -> None:
    found = explorer()
    before = found.get_state()
    with pytest.raises(ValueError, match="format="):
        found.format = wrong
    assert found.get_state() == before
    with pytest.raises(ValueError, match="format="):
        explorer(wrong)


def test_a_bad_histogram_is_refused_and_a_good_one_stays() -> None:
    with pytest.raises(ValueError, match="none given"):
        RangeResolutionExplorer({})
    with pytest.raises(Exception, match="read-only"):
        explorer().histograms = TENSORS


def test_outputs_are_the_same_on_every_run_and_hold_the_state() -> None:
    first, second = (twin(explorer("bfloat16")) for _ in range(2))
    assert first == second
    state = json.loads(first.split('json">')[1].split("</script>")[0])
    assert sorted(state) == sorted(RangeResolutionExplorer._twin_traits)
    assert state["format"] == vars(FORMATS["bfloat16"])
    assert [preset["name"] for preset in state["presets"]] == [preset.name for preset in PRESETS]
    assert state["limits"] == [[16, 2, 8], [8, 2, 6]]


def test_a_name_cannot_become_html() -> None:
    html = twin(RangeResolutionExplorer({"</script><b>": TENSORS["weights"]}))
    assert html.count("</script>") == 1
    assert "<b>" not in html.split("</script>")[1]
