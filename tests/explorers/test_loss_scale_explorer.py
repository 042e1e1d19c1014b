"""The loss-scale explorer: its words against torch's scaler, its page, and its traits."""

from __future__ import annotations

import json
import math
import re
from random import Random
from typing import Any

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

from mpbook.explorers import LossScaleExplorer
from mpbook.explorers.census import Fates
from mpbook.explorers.loss_scale_explorer import GROWTH_INTERVAL, OFFERED
from mpbook.formats import FORMATS, FloatFormat

# 5% at 2**-30, the rest up to just below 2**-10: scales from 2**5 to 2**25 lose nothing.
GRADIENTS = {
    "zeros": 100,
    "binades": [[-30, 50], [-20, 700], [-12, 249], [-11, 1]],
    "largest": 2.0**-10 * 0.9999,
}
HIGH = {"zeros": 0, "binades": [[0, 9], [14, 1]], "largest": 30000.0}
WIDE = {"zeros": 0, "binades": [[-60, 50], [10, 50]]}


def explorer(exponent: int = 0, **options: Any) -> LossScaleExplorer:
    histograms = {"activation gradients": GRADIENTS, "weight gradients": HIGH, "wide ones": WIDE}
    return LossScaleExplorer(histograms, exponent, **options)


# --- What it says ---------------------------------------------------------------------------------


def test_growth_interval_and_factors_are_grad_scalers() -> None:
    scaler = torch.amp.GradScaler("cpu")
    assert scaler.get_growth_interval() == GROWTH_INTERVAL == explorer().growth_interval
    assert (scaler.get_growth_factor(), scaler.get_backoff_factor()) == (2, 0.5)


@pytest.mark.parametrize("exponent", [0, 14, 24, 25, 26, 27, 30])
def test_it_backs_off_where_grad_scaler_does(exponent: int) -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**exponent)
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scaler.scale(torch.zeros(()))
    gradients = torch.tensor([2.0**-30, GRADIENTS["largest"]])
    parameter.grad = (gradients * 2.0**exponent).half().float()
    scaler.step(optimizer)
    scaler.update()
    backs_off = f"back off to 2^{exponent - 1}" in explorer(exponent).sentences()[1]
    assert backs_off == (scaler.get_scale() == 2.0 ** (exponent - 1))


@pytest.mark.parametrize(
    ("options", "sentences"),
    [
        (
            {"exponent": 0},
            [
                "At 2^0 in float16, 5% of the non-zero activation gradients round to zero, "
                "70% are subnormal, none overflows.",
                "GradScaler would stay here, and try 2^1 after 2000 such steps.",
                "Scales from 2^5 to 2^25 lose at most 1% to zero and overflow nothing.",
            ],
        ),
        (
            {"exponent": 25, "lost": 0.05},
            [
                "At 2^25 in float16, none of the non-zero activation gradients rounds to zero, "
                "none overflows.",
                "GradScaler would stay here, and try 2^26 after 2000 such steps, which overflows.",
                "Scales from 2^-5 to 2^25 lose at most 5% to zero and overflow nothing.",
            ],
        ),
        (
            {"exponent": 27},
            [
                "At 2^27 in float16, none of the non-zero activation gradients rounds to zero, "
                "0.1% to 25% overflow.",
                "GradScaler would skip this step and back off to 2^26.",
                "Scales from 2^5 to 2^25 lose at most 1% to zero and overflow nothing.",
            ],
        ),
        (
            {"exponent": 19, "format": "float8_e4m3fn"},
            [
                "At 2^19 in float8_e4m3fn, 5% of the non-zero activation gradients round to zero, "
                "up to 0.1% overflow.",
                "GradScaler may have to skip this step and back off to 2^18.",
                "No scale from 2^-16 to 2^32 loses at most 1% to zero and overflows nothing.",
            ],
        ),
    ],
)
def test_sentences(options: dict[str, Any], sentences: list[str]) -> None:
    found = explorer(**options)
    if options.get("format") == "float8_e4m3fn":  # nobody noted the largest
        histogram = {**GRADIENTS, "largest": None}
        found = LossScaleExplorer({"activation gradients": histogram}, **options)
    assert found.sentences() == sentences
    assert repr(found) == " ".join(sentences)


def test_a_saturating_cast_hides_an_overflow_from_grad_scaler() -> None:
    said = explorer(30, format="float8_e4m3fn").sentences()[1]
    assert said == (
        "GradScaler would back off to 2^29 where the cast makes NaN of an overflow; "
        "a cast that saturates hides it."
    )


def test_the_next_scale_may_overflow() -> None:
    found = LossScaleExplorer({"g": {"binades": [[-11, 1]]}}, 25)
    assert found.sentences()[1].endswith("try 2^26 after 2000 such steps, which may overflow.")


def test_a_window_at_the_end_of_the_slider_may_go_on() -> None:
    said = explorer(format="bfloat16").sentences()[2]
    assert said.startswith("Scales from 2^-16 or less to 2^32 or more lose")


SENTENCES = "(states) => states.map((s) => m.sentences(m.readState((name) => s[name])))"


@pytest.mark.browser
def test_the_page_says_what_python_says(load_module: LoadModule) -> None:
    random = Random(1)
    found = [
        LossScaleExplorer(
            {"a": random_histogram(random), "b": random_histogram(random)},
            random.randint(-16, 32),
            tensor=random.choice(["a", "b"]),
            format=random.choice(OFFERED),
            lost=random.choice([0, 0.0001, 0.01, 0.125]),
        )
        for _ in range(150)
    ]
    for one in found:
        one.set_trait("growth_interval", random.choice([1, 20, 2000]))
    states = [one.get_state(one._twin_traits) for one in found]
    page = load_module("loss_scale_explorer")
    assert page.evaluate(SENTENCES, states) == [one.sentences() for one in found]


# --- The page without a kernel --------------------------------------------------------------------


def slider(page: Page) -> Locator:
    return page.get_by_role("slider")


def said(page: Page) -> Locator:
    return page.locator(".mp-said")


@pytest.mark.browser
def test_the_slider_by_keyboard(open_explorer: OpenExplorer) -> None:
    page = open_explorer(explorer(5))
    slider(page).focus()
    page.keyboard.press("ArrowLeft")
    expect(said(page)).to_contain_text("At 2⁴ in float16, 5% of the non-zero activation gradients")
    expect(slider(page)).to_have_attribute("aria-valuetext", "2⁴, does not fit")
    page.keyboard.press("m")
    expect(said(page)).to_contain_text("At 2²⁵ in float16, none")
    expect(slider(page)).to_have_attribute("aria-valuetext", "2²⁵, fits")
    page.keyboard.press("ArrowRight")
    expect(said(page)).to_contain_text("At 2²⁶ in float16, none of the non-zero")
    expect(slider(page)).to_have_attribute("aria-valuetext", "2²⁶, does not fit")
    page.keyboard.press("0")
    expect(slider(page)).to_have_value("0")
    page.keyboard.press("Control+m")
    expect(slider(page)).to_have_value("0")
    page.keyboard.press("Home")
    expect(slider(page)).to_have_value("-16")
    expect(page.get_by_text("Loss scale 2⁻¹⁶ = 0.0000152587890625")).to_be_visible()
    assert page.locator(".mp-words").get_attribute("aria-live") == "polite"


@pytest.mark.browser
def test_the_slider_says_what_fits_at_both_ends_of_the_window(open_explorer: OpenExplorer) -> None:
    page = open_explorer(explorer())
    low, high = explorer().window() or (0, 0)
    for exponent in (low - 1, low, high, high + 1):
        slider(page).fill(str(exponent))
        fits = "fits" if low <= exponent <= high else "does not fit"
        expect(slider(page)).to_have_attribute("aria-valuetext", re.compile(rf", {fits}$"))


@pytest.mark.browser
@pytest.mark.parametrize("format", ["float16", "float8_e4m3fn", "bfloat16"])
@pytest.mark.parametrize("tensor", ["activation gradients", "wide ones"])
def test_bars_and_the_ends_of_the_format_stand_where_they_should(
    open_explorer: OpenExplorer, format: str, tensor: str
) -> None:
    f, found = FORMATS[format], explorer(format=format, tensor=tensor)
    page = open_explorer(found)
    chart = page.locator(".mp-chart svg")
    binades = dict(GRADIENTS if tensor == "activation gradients" else WIDE)["binades"]
    most = max(count for _, count in binades)
    for exponent in (0, 7, -16, 32):
        slider(page).fill(str(exponent))
        said_exponent = f"times 2{superscript(exponent)} over the range of {format}"
        expect(chart).to_have_attribute("aria-label", f"Histogram of {tensor} {said_exponent}")
        labels = numbers_of(chart)
        axis = Axis([math.log2(n) for *_, n in labels], [x for x, *_ in labels])
        bars = drawn_bars(chart)
        step = axis.pixel(1) - axis.pixel(0)
        assert len(bars) == len(binades)
        found.exponent = exponent
        for (binade, count), (fate, left, _, height, width) in zip(binades, bars, strict=True):
            assert left == pytest.approx(axis.pixel(binade + exponent), abs=1)
            assert width == pytest.approx(step, abs=1.1)
            assert height == pytest.approx(max(2, 168 * count / most), abs=0.1)
            scaled = 2.0 ** (binade + exponent)
            if scaled < 2.0 ** (f.lowest_binade - f.mantissa_bits - 1):
                assert fate == "underflow"
            elif scaled < f.smallest_normal:
                assert fate == "subnormal"
            elif 2 * scaled <= f.max:
                assert fate == "normal"
            elif scaled > f.max:
                assert fate == "overflow"
        ends = drawn_ends(chart)
        survives, normal = f.lowest_binade - f.mantissa_bits - 1, f.lowest_binade
        over = math.floor(math.log2(f.max)) + 1
        for name, low, high in (("subnormal", survives, normal), ("normal", normal, over)):
            assert ends[name] == pytest.approx((axis.pixel(low), axis.pixel(high)), abs=1)
        assert ends["zero"] == pytest.approx((0, axis.pixel(survives)), abs=1)
        assert ends["over"][0] == pytest.approx(axis.pixel(over), abs=1)
    beyond = {"infinity", "overflow"} & {*chart.locator(".mp-zone-label").all_text_contents()}
    wide = ends["over"][1] - ends["over"][0] > 100  # else there is no room for the word
    assert beyond == ({"infinity" if f.has_inf else "overflow"} if wide else set())


def superscript(n: int) -> str:
    return str(n).translate(str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"))


@pytest.mark.browser
def test_keys_in_quick_succession_all_count(open_explorer: OpenExplorer) -> None:
    page = open_explorer(explorer())
    steps = """() => {
      const slider = document.querySelector("input");
      slider.dispatchEvent(new KeyboardEvent("keydown", {key: "m"}));
      return Promise.resolve().then(() => slider.value);
    }"""
    assert page.evaluate(steps) == "25"


@pytest.mark.browser
def test_buttons_find_the_largest_scale_and_reset(open_explorer: OpenExplorer) -> None:
    page = open_explorer(explorer(7))
    page.get_by_role("button", name="largest scale that fits").click()
    expect(slider(page)).to_have_value("25")
    expect(page.locator(".mp-words")).to_contain_text("try 2²⁶ after 2000 such steps, which")
    page.get_by_role("button", name="no scaling").click()
    expect(slider(page)).to_have_value("0")


@pytest.mark.browser
def test_the_lit_part_of_the_track_is_the_window(open_explorer: OpenExplorer) -> None:
    page = open_explorer(explorer())
    lit = page.locator(".mp-lit")
    box = lit.bounding_box()
    assert box
    for x, value in ((box["x"] + 9, "5"), (box["x"] + box["width"] - 9, "25")):
        page.mouse.click(x, box["y"] + box["height"] / 2)
        expect(slider(page)).to_have_value(value)


@pytest.mark.browser
def test_where_nothing_fits_nothing_is_lit(open_explorer: OpenExplorer) -> None:
    page = open_explorer(explorer())
    page.get_by_label("Tensor").select_option("wide ones")
    expect(page.locator(".mp-lit")).to_be_hidden()
    expect(page.get_by_role("button", name="largest scale that fits")).to_be_disabled()
    slider(page).press("m")
    expect(slider(page)).to_have_value("0")
    expect(slider(page)).to_have_attribute("aria-valuetext", "2⁰, does not fit")
    page.get_by_label("Tensor").select_option("weight gradients")
    expect(page.locator(".mp-lit")).to_be_visible()
    expect(said(page)).to_contain_text("non-zero weight gradients")
    expect(page.locator("svg")).to_have_attribute(
        "aria-label", "Histogram of weight gradients times 2⁰ over the range of float16"
    )


@pytest.mark.browser
def test_a_drag_moves_the_histogram_and_the_scale(open_explorer: OpenExplorer) -> None:
    page = open_explorer(explorer())
    chart = page.locator(".mp-chart svg")
    width = float((chart.get_attribute("viewBox") or "").split()[2])
    low, high = -60 - 16, 14 + 32 + 1  # every tensor at every scale
    step = width / (high - low)
    drag(page, chart, (10 * step, 0))
    expect(slider(page)).to_have_value("10")
    drag(page, chart, (-3 * step, 0))
    expect(slider(page)).to_have_value("7")
    drag(page, chart, (-300, 0))
    expect(slider(page)).to_have_value("-16")
    chart.hover()
    page.mouse.move(20, 20)
    expect(slider(page)).to_have_value("-16")


@pytest.mark.browser
def test_bars_are_solid_where_they_survive_and_hollow_where_not(
    open_explorer: OpenExplorer,
) -> None:
    page = open_explorer(explorer())

    def kinds() -> list[str]:
        classes = page.locator(".mp-bar").evaluate_all("(bars) => bars.map((b) => b.classList[1])")
        return sorted(name.removeprefix("mp-bar-") for name in classes)

    assert kinds() == ["normal", "subnormal", "underflow"]
    slider(page).fill("25")
    expect(said(page)).to_contain_text("2²⁵")
    assert kinds() == ["normal"]
    slider(page).fill("27")
    expect(said(page)).to_contain_text("2²⁷")
    assert kinds() == ["doubtful", "normal", "overflow"]


@pytest.mark.browser
def test_formats_are_offered_and_an_own_one_is_kept(open_explorer: OpenExplorer) -> None:
    own = FloatFormat("own", 6, 9)
    page = open_explorer(explorer(format=own))
    format = page.get_by_label("Format")
    assert format.locator("option").all_text_contents() == [*OFFERED, "own"]
    expect(said(page)).to_contain_text("in own")
    format.select_option("bfloat16")
    expect(said(page)).to_contain_text("in bfloat16")
    expect(page.locator(".mp-words")).to_contain_text("2⁻¹⁶ or less to 2³² or more")
    hue = "getComputedStyle(document.querySelector('.mp-bar-normal')).fill"
    assert page.evaluate(hue) == "rgb(0, 114, 178)"


DRAW_ALL = """async () => {
  const broken = [];
  const frame = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  const [tensors, formats] = document.querySelectorAll("select");
  const slider = document.querySelector("input[type=range]");
  for (const tensor of tensors.options) for (const format of formats.options) for (const k of [-16, 3, 32]) {
    for (const [control, value, event] of [[tensors, tensor.value, "change"], [formats, format.value, "change"], [slider, k, "input"]]) {
      control.value = value;
      control.dispatchEvent(new Event(event));
      await frame();
    }
    if (/NaN|undefined/.test(document.querySelector("svg").outerHTML)) broken.push([tensor.value, format.value, k]);
  }
  return broken;
}"""  # noqa: E501


@pytest.mark.browser
def test_every_choice_is_drawn(open_explorer: OpenExplorer) -> None:
    assert open_explorer(explorer(), width=390).evaluate(DRAW_ALL) == []


@pytest.mark.browser
@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 390)])
def test_axe_finds_nothing_serious_and_nothing_overflows(
    open_explorer: OpenExplorer, theme: str, width: int
) -> None:
    page = open_explorer(explorer(), explorer(tensor="wide ones"), width=width, color_scheme=theme)
    assert serious_violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.browser
def test_without_javascript_the_numbers_stay(open_explorer: OpenExplorer) -> None:
    page = open_explorer(explorer(), java_script_enabled=False)
    for sentence in explorer().sentences():
        expect(page.locator(".mp-static")).to_contain_text(sentence)
    cells = page.locator(".mp-static td").all_text_contents()
    assert cells == ["20", "5%", "70%", "0%"]


# --- The widget in the kernel ---------------------------------------------------------------------


def test_fates_and_window_follow_the_traits() -> None:
    found = explorer()
    assert found.fates() == Fates(100, 50, 700, 250, 0, 0)
    found.exponent = 5
    assert found.loss_scale == 32
    assert found.fates().underflow == 0
    found.tensor = "weight gradients"
    assert found.window() == (-16, 1)
    found.format = torch.bfloat16
    assert found.window() == (-16, 32)


def test_the_first_histogram_is_shown_and_another_can_be() -> None:
    assert explorer().tensor == "activation gradients"
    assert explorer(tensor="wide ones").fates().nonzero == 100


@pytest.mark.parametrize(
    ("trait", "wrong", "right"),
    [
        ("exponent", 33, "from -16 to 32"),
        ("exponent", -17, "from -16 to 32"),
        ("exponent", 1.0, "from -16 to 32"),
        ("exponent", True, "from -16 to 32"),
        ("tensor", "biases", "expected one of activation gradients, weight gradients, wide ones"),
        ("format", "fp16", "expected one of float32"),
        ("format", "float8_e8m0fnu", "with a sign and a zero"),
        ("lost", 1.0, "from 0.0001 to below 1"),
        ("lost", 1e-5, "from 0.0001 to below 1"),
        ("lost", "1%", "from 0.0001 to below 1"),
    ],
)
def test_bad_values_are_refused_and_change_nothing(trait: str, wrong: Any, right: str) -> None:
    found = explorer()
    before = found.get_state()
    with pytest.raises(ValueError, match=right):
        setattr(found, trait, wrong)
    assert found.get_state() == before
    with pytest.raises(ValueError, match=right):
        explorer(**{trait: wrong})


def test_a_bad_histogram_is_refused_and_a_good_one_stays() -> None:
    with pytest.raises(ValueError, match="no value but zero"):
        LossScaleExplorer({"g": {"zeros": 1, "binades": []}})
    with pytest.raises(Exception, match="read-only"):
        explorer().histograms = {"g": GRADIENTS}


def test_outputs_are_the_same_on_every_run_and_hold_the_state() -> None:
    first, second = (twin(explorer(3)) for _ in range(2))
    assert first == second
    state = json.loads(first.split('json">')[1].split("</script>")[0])
    assert sorted(state) == sorted(LossScaleExplorer._twin_traits)
    assert state["histograms"][0] == {"name": "activation gradients", **GRADIENTS}
    assert [f["name"] for f in state["formats"]] == list(OFFERED)
    assert state["formats"][0] == vars(FORMATS["float16"])


def test_a_name_cannot_close_the_script_element() -> None:
    html = twin(LossScaleExplorer({"</script><b>": GRADIENTS}))
    assert html.count("</script>") == 1
    assert "<b>" not in html.split("</script>")[1]
