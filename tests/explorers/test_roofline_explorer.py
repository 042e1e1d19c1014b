"""The roofline explorer: its words in both languages, its page, and its traits."""

from __future__ import annotations

import json
import math
from random import Random
from typing import Any

import pytest
from accessibility import serious_violations
from explorer_pages import Axis, LoadModule, OpenExplorer, curve, numbers_of, twin
from playwright.sync_api import Locator, Page, expect

from mpbook.cost.memory_plan import SIZES
from mpbook.cost.roofline import STATED, Roof, elementwise, gpt_step, matmul
from mpbook.explorers import RooflineExplorer
from mpbook.explorers.roofline_explorer import DEFAULT_SIZES, OPERATIONS, _digits, _size
from mpbook.models import GPTConfig

FORMATS = ("float32", "tfloat32", "float16", "bfloat16", "float8_e4m3fn")
OWN = Roof("my <GPU>", 2e10, {"float32": 8e10, "bfloat16": 1.5e11})
SMALL = {"batch": 2, "context": 8, "layers": 3, "width": 16, "vocabulary": 100}


def explorer(device: str = "H100 SXM", **options: Any) -> RooflineExplorer:
    return RooflineExplorer(device, roofs=[*STATED.values(), OWN], **options)


# --- What it says ---------------------------------------------------------------------------------


def test_a_large_product_is_compute_bound() -> None:
    assert explorer(sizes={"m": 1000, "k": 1000, "n": 1000}).sentences() == [
        "2.00 Gflop over 6.00 MB: 333 operations per byte.",
        "Compute-bound on H100 SXM in bfloat16, whose ridge is at 295: "
        "at most the peak, 990 Tflop/s.",
        "On paper 2.02 µs; in float32 14.8 times as long.",
    ]


def test_one_token_is_memory_bound_and_gains_two() -> None:
    first, second, third = explorer(sizes={"m": 1}).sentences()
    assert first == "33.6 Mflop over 33.6 MB: 1.00 operations per byte."
    assert second.startswith("Memory-bound") and second.endswith("3.35 Tflop/s, 0.34% of the peak.")
    assert third.endswith("in float32 2.00 times as long.")


def test_an_addition_runs_on_float32_units_and_moves_the_bytes_of_its_format() -> None:
    first, second, _ = explorer(operation="addition", sizes={"elements": 10**6}).sentences()
    assert first == "1.00 Mflop over 6.00 MB: 0.17 operations per byte."
    assert "on H100 SXM in float32, whose ridge is at 20.0" in second


def test_a_step_says_how_much_of_it_is_products_and_its_best_utilisation() -> None:
    found = explorer(operation="GPT step")
    roof, parts = STATED["H100 SXM"], gpt_step(
        GPTConfig(50257, 1024, 12, 12, 768), batch=16, format="bfloat16"
    )  # fmt: skip
    least = sum(roof.seconds(part, "bfloat16") for part in parts)
    mfu = 100 * sum(p.flops for p in parts) / least / 989.5e12
    assert found.sentences()[1].endswith(f"an MFU of {mfu:.1f}%.")
    assert "47.5% of that time is matrix products" in found.sentences()[1]
    assert found.sentences()[2] == "On paper 29.8 ms; in float32 7.44 times as long."


def test_float32_is_not_compared_with_itself() -> None:
    assert explorer(format="float32").sentences()[2] == "On paper 2.05 ms."


def test_the_parts_are_those_of_the_roofline() -> None:
    found = explorer(sizes={"m": 3, "k": 5, "n": 7, "elements": 9, **SMALL})
    assert found.parts("float16") == (matmul(3, 5, 7, "float16"),)
    found.operation = "addition"
    assert found.parts("float16") == (elementwise(9, "float16", reads=2),)
    found.operation = "GPT step"
    config = GPTConfig(vocabulary=100, context=8, layers=3, heads=4, width=16)
    assert found.parts("float16") == gpt_step(config, batch=2, format="float16")


@pytest.mark.parametrize(
    ("device", "format", "operation", "shown"),
    [
        ("T4", "bfloat16", "matrix product", "float16"),
        ("T4", "float16", "matrix product", "float16"),
        ("my <GPU>", "float16", "matrix product", "bfloat16"),
        ("H100 SXM", "float8_e4m3fn", "matrix product", "float8_e4m3fn"),
        ("H100 SXM", "float8_e4m3fn", "GPT step", "bfloat16"),
        ("V100 SXM2", "tfloat32", "GPT step", "float16"),
    ],
)
def test_a_format_that_is_not_there_gives_way(
    device: str, format: str, operation: str, shown: str
) -> None:
    found = explorer(device, format=format, operation=operation)
    assert found.shown_format == shown and f"in {shown}" in found.sentences()[1]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.001, "0.00"),
        (9.994, "9.99"),
        (9.996, "10.0"),
        (99.94, "99.9"),
        (99.96, "100"),
        (1e4, "10000"),
    ],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert _digits(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (999.4, "999 B"),
        (999.6, "1.00 kB"),
        (2e-9, "2.00 ns"),
        (3e-12, "0.00 ns"),
        (5e21, "5000 EB"),
    ],
)
def test_sizes_have_a_prefix(value: float, text: str) -> None:
    assert _size(value, text[-1]) == text


def test_the_largest_size_is_one() -> None:
    assert explorer(sizes={"m": 2**30}).sizes["m"] == 2**30


def random_explorer(random: Random) -> RooflineExplorer:
    sizes = {name: round(2 ** random.uniform(0, 12)) for name in DEFAULT_SIZES}
    return explorer(
        random.choice([*STATED, OWN.name]),
        format=random.choice(FORMATS),
        operation=random.choice(list(OPERATIONS)),
        sizes=sizes,
    )


SENTENCES = "(states) => states.map((s) => m.sentences(m.readState((name) => s[name])))"


@pytest.mark.browser
def test_the_page_says_what_python_says(load_module: LoadModule) -> None:
    random = Random(1)
    found = [random_explorer(random) for _ in range(400)]
    states = [one.get_state(one._twin_traits) for one in found]
    page = load_module("roofline_explorer")
    assert page.evaluate(SENTENCES, states) == [one.sentences() for one in found]


WORK = """(states) => states.map((s) => {
  const { work, format } = m.readState((name) => s[name]);
  return [format, work.parts.map((p) => [p.flops, p.bytes, p.product])];
})"""


@pytest.mark.browser
def test_the_page_counts_what_python_counts(load_module: LoadModule) -> None:
    random = Random(2)
    found = [random_explorer(random) for _ in range(200)]
    states = [one.get_state(one._twin_traits) for one in found]
    counted = load_module("roofline_explorer").evaluate(WORK, states)
    for one, (format, parts) in zip(found, counted, strict=True):
        assert format == one.shown_format
        # JavaScript has no integers above 2**53: what it writes down is the float64 beside them.
        exact = [[float(p.flops), float(p.bytes), p.product] for p in one.parts(format)]
        assert [[float(n), float(size), product] for n, size, product in parts] == exact


# --- The page without a kernel --------------------------------------------------------------------


def choice(page: Page, name: str) -> Locator:
    return page.locator("select").nth(["Device", "Format", "Work"].index(name))


def said(page: Page) -> Locator:
    return page.locator(".mp-said")


@pytest.mark.browser
def test_a_size_by_keyboard(open_explorer: OpenExplorer) -> None:
    page = open_explorer(explorer())
    expect(said(page)).to_contain_text("Compute-bound on H100 SXM in bfloat16")
    m = page.get_by_role("slider").first
    m.focus()
    page.keyboard.press("ArrowLeft")
    expect(m).to_have_attribute("aria-valuetext", "3072")
    page.keyboard.press("Home")
    expect(page.get_by_text("m 1", exact=True)).to_be_visible()
    expect(said(page)).to_contain_text("Memory-bound on H100 SXM in bfloat16")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(m).to_have_attribute("aria-valuetext", "3")
    expect(m).to_be_focused()
    assert page.locator(".mp-words").get_attribute("aria-live") == "polite"


@pytest.mark.browser
def test_keys_in_quick_succession_all_count(open_explorer: OpenExplorer) -> None:
    page = open_explorer(explorer(sizes={"m": 8, "k": 8}))
    steps = """() => {
      const [m, k] = document.querySelectorAll("input");
      for (const slider of [m, k]) {
        slider.value = Number(slider.value) + 1;
        slider.dispatchEvent(new Event("input"));
      }
      return Promise.resolve().then(() => [m, k].map((s) => s.getAttribute("aria-valuetext")));
    }"""
    assert page.evaluate(steps) == ["12", "12"]


@pytest.mark.browser
def test_a_size_beside_the_grid_is_shown_as_it_is(open_explorer: OpenExplorer) -> None:
    page = open_explorer(explorer(operation="GPT step"))
    expect(page.get_by_text("vocabulary 50257")).to_be_visible()
    last = page.get_by_role("slider").last
    last.press("ArrowRight")
    expect(page.get_by_text("vocabulary 65536")).to_be_visible()


@pytest.mark.browser
def test_work_device_and_format_are_chosen(open_explorer: OpenExplorer) -> None:
    page = open_explorer(explorer(format="float8_e4m3fn"))
    choice(page, "Work").select_option("GPT step")
    expect(said(page)).to_contain_text("On H100 SXM in bfloat16")
    assert page.get_by_role("slider").count() == 5
    format = choice(page, "Format")
    assert format.locator("option").all_text_contents() == list(FORMATS[:4])
    choice(page, "Device").select_option("T4")
    expect(said(page)).to_contain_text("On T4 in float16")
    assert format.locator("option").all_text_contents() == ["float32", "float16"]
    expect(page.locator("svg")).to_have_attribute(
        "aria-label", "Roofline of T4, with this work in float16"
    )
    page.get_by_role("button", name="tiny").click()
    expect(page.get_by_text("width 64")).to_be_visible()
    format.select_option("float32")
    expect(page.locator(".mp-words")).not_to_contain_text("times as long")
    choice(page, "Work").select_option("addition")
    assert page.get_by_role("slider").count() == 1


@pytest.mark.browser
def test_the_point_stands_where_the_words_say(open_explorer: OpenExplorer) -> None:
    page = open_explorer(explorer(sizes={"m": 1}))
    here = page.locator(".mp-here")
    hollow = page.locator(".mp-typed")
    low = [float(here.get_attribute(a) or 0) for a in ("cx", "cy")]
    wide = [float(hollow.get_attribute(a) or 0) for a in ("cx", "cy")]
    assert wide[0] < low[0] and wide[1] > low[1]  # half the intensity, half the rate
    page.get_by_role("button", name="square").click()
    expect(said(page)).to_contain_text("Compute-bound")
    high = [float(here.get_attribute(a) or 0) for a in ("cx", "cy")]
    assert high[0] > low[0] and high[1] < low[1]
    assert page.locator(".mp-roof").count() == 1
    assert page.locator(".mp-roof-other").count() == 4


@pytest.mark.browser
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    ("device", "format"),
    [("H100 SXM", "bfloat16"), ("T4", "float16"), ("A100 SXM 80GB", "float32")],
)
def test_roofs_and_points_stand_where_python_puts_them(
    open_explorer: OpenExplorer, device: str, format: str, operation: str
) -> None:
    found = explorer(device, format=format, operation=operation, sizes={"m": 64})
    page, roof = open_explorer(found), found.roof
    svg = page.locator(".mp-roofs svg")
    labels = numbers_of(svg)
    row = [(x, n) for x, y, n in labels if y == max(y for _, y, _ in labels)]
    column = [(y - 4, n) for x, y, n in labels if x == min(labels)[0]]
    x, y = (
        Axis([math.log10(n) for _, n in one], [pixel for pixel, _ in one]) for one in (row, column)
    )

    def place(intensity: float, rate: float) -> Any:
        at = (x.pixel(math.log10(intensity)), y.pixel(math.log10(rate)))
        return pytest.approx(at, abs=1)

    shown = found.shown_format if operation != "addition" else "float32"
    for kind, formats in (
        ("mp-roof", [shown]),
        ("mp-roof-other", [f for f in roof.peaks if f != shown]),
    ):
        for line, name in zip(svg.locator(f"path.{kind}").all(), formats, strict=True):
            start, ridge, end = curve(line)
            assert ridge == place(roof.ridge(name), roof.peak(name))
            assert end[1] == ridge[1]
            low = 10 ** x.value(start[0])
            assert start == place(low, low * roof.bandwidth)
    texts = svg.locator("text").all_text_contents()
    assert f"peak in {shown}: {_size(roof.peak(shown), 'flop/s')}" in texts
    assert f"ridge {_digits(roof.ridge(shown))}" in texts
    points = {"mp-here": found.shown_format} | (
        {} if format == "float32" else {"mp-typed": "float32"}
    )
    assert svg.locator("circle").count() == len(points)
    for kind, name in points.items():
        parts = found.parts(name)
        flops, moved = (sum(getattr(part, what) for part in parts) for what in ("flops", "bytes"))
        rate = flops / sum(roof.seconds(part, name) for part in parts)
        point = svg.locator(f"circle.{kind}")
        at = tuple(float(point.get_attribute(one) or 0) for one in ("cx", "cy"))
        assert at == place(flops / moved, rate)
    stem = svg.locator(".mp-stem")
    assert stem.get_attribute("x1") == svg.locator(".mp-here").get_attribute("cx")


@pytest.mark.browser
def test_presets_have_the_sizes_of_the_models_that_they_name(open_explorer: OpenExplorer) -> None:
    page = open_explorer(explorer())
    gpt2 = SIZES["GPT-2 124M"]

    def sizes() -> dict[str, int]:
        texts = page.locator(".mp-size span").all_text_contents()
        return {name: int(number) for name, number in map(str.split, texts)}

    page.get_by_role("button", name="GPT-2's MLP").click()
    expect(page.get_by_text(f"k {gpt2.width}", exact=True)).to_be_visible()
    assert sizes() == {"m": 16 * gpt2.context, "k": gpt2.width, "n": 4 * gpt2.width}
    page.get_by_role("button", name="one token of it").click()
    expect(page.get_by_text("m 1", exact=True)).to_be_visible()
    assert sizes() == {"m": 1, "k": gpt2.width, "n": 4 * gpt2.width}
    choice(page, "Work").select_option("GPT step")
    page.get_by_role("button", name="tiny").click()
    page.get_by_role("button", name="GPT-2 124M").click()
    expect(page.get_by_text(f"width {gpt2.width}", exact=True)).to_be_visible()
    wanted = {name: getattr(gpt2, name) for name in ("context", "layers", "width", "vocabulary")}
    assert sizes() == {"batch": 16, **wanted}


DRAW_ALL = """async () => {
  const broken = [];
  const frame = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  const [devices, , works] = document.querySelectorAll("select");
  const choose = async (control, value, event) => {
    control.value = value;
    control.dispatchEvent(new Event(event));
    await frame();
  };
  for (const device of [...devices.options].map((o) => o.value)) for (const work of [...works.options].map((o) => o.value)) {
    await choose(devices, device, "change");
    await choose(works, work, "change");
    for (const end of ["min", "max"]) {
      for (const slider of document.querySelectorAll("input")) await choose(slider, slider[end], "input");
      const svg = document.querySelector("svg");
      const [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
      const { x, y } = { x: +svg.querySelector(".mp-here").getAttribute("cx"), y: +svg.querySelector(".mp-here").getAttribute("cy") };
      if (/NaN|undefined|Infinity/.test(svg.outerHTML) || !(x >= 0 && x <= width && y >= 0 && y <= height)) broken.push([device, work, end, x, y]);
    }
  }
  return broken;
}"""  # noqa: E501


@pytest.mark.browser
def test_every_choice_is_drawn_inside_the_picture(open_explorer: OpenExplorer) -> None:
    assert open_explorer(explorer(), width=390).evaluate(DRAW_ALL) == []


@pytest.mark.browser
@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 390)])
def test_axe_finds_nothing_serious_and_nothing_overflows(
    open_explorer: OpenExplorer, theme: str, width: int
) -> None:
    page = open_explorer(
        explorer(), explorer(operation="GPT step"), width=width, color_scheme=theme
    )
    assert serious_violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.browser
def test_without_javascript_the_numbers_stay(open_explorer: OpenExplorer) -> None:
    page = open_explorer(explorer("my <GPU>"), java_script_enabled=False)
    for sentence in explorer("my <GPU>").sentences():
        expect(page.locator(".mp-static")).to_contain_text(sentence)
    cells = page.locator(".mp-static td").all_text_contents()
    assert cells == ["my <GPU>", "bfloat16", "matrix product", "m 4096, k 4096, n 4096"]


# --- The widget in the kernel ---------------------------------------------------------------------


def test_sizes_may_be_given_in_part_and_the_rest_is_kept_at_its_default() -> None:
    found = explorer(sizes={"m": 2})
    assert found.sizes == {**DEFAULT_SIZES, "m": 2}
    found.sizes = {"k": 3}
    assert found.sizes == {**DEFAULT_SIZES, "k": 3}


def test_the_first_roof_is_shown_and_a_measured_one_can_be() -> None:
    assert RooflineExplorer().device == next(iter(STATED))
    assert RooflineExplorer(roofs=[OWN]).roof is OWN


@pytest.mark.parametrize(
    ("trait", "wrong", "right"),
    [
        ("device", "H1000", "expected one of H100 SXM, H100 PCIe"),
        ("format", "fp16", "format='fp16': expected one of"),
        ("operation", "matmul", "operation='matmul': expected one of"),
        ("sizes", {"q": 1}, "sizes='q': expected names of m, k, n"),
        ("sizes", {"m": 0}, "from 1 to 2"),
        ("sizes", {"m": 2**30 + 1}, "from 1 to 2"),
        ("sizes", {"m": 1.0}, "from 1 to 2"),
    ],
)
def test_bad_values_are_refused_and_change_nothing(trait: str, wrong: Any, right: str) -> None:
    found = explorer()
    before = found.get_state()
    with pytest.raises(ValueError, match=right):
        setattr(found, trait, wrong)
    assert found.get_state() == before
    with pytest.raises(ValueError, match=right):
        RooflineExplorer(**{trait: wrong})


@pytest.mark.parametrize(
    ("roofs", "message"),
    [
        ([], "at least one"),
        ([Roof("r", 1.0, {"float16": 1.0})], "with a peak in float32"),
        (["H100"], "expected Roof objects"),
    ],
)
def test_bad_roofs_are_refused_and_good_ones_stay(roofs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RooflineExplorer(roofs=roofs)
    with pytest.raises(Exception, match="read-only"):
        explorer().roofs = [OWN]


def test_outputs_are_the_same_on_every_run_and_hold_the_state() -> None:
    first, second = (twin(explorer()) for _ in range(2))
    assert first == second
    state = json.loads(first.split('json">')[1].split("</script>")[0])
    assert sorted(state) == sorted(RooflineExplorer._twin_traits)
    assert state["roofs"][-1] == {
        "name": OWN.name,
        "bandwidth": 2e10,
        "peaks": [["float32", 8e10], ["bfloat16", 1.5e11]],
    }
    assert state["sizes"] == DEFAULT_SIZES
