"""The GPU explorer: its exact halves, what it says of GPUs that differ, its page, its traits."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import chromium
import numpy as np
import pytest
from accessibility import serious_violations
from conftest import require_browser
from explorer_pages import OpenExplorer, twin
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright
from software_gpu import evaluated

from mpbook.data import digits
from mpbook.explorers import GpuExplorer
from mpbook.explorers.gpu_explorer import EXAMPLES, lettered_digits
from mpbook.explorers.modules import STATIC, linked

PATIENCE_MS = 300_000  # a whole run on a software adapter, on a machine that is busy

# --- Halves, exactly ------------------------------------------------------------------------------


def test_every_edge_is_rounded_as_numpy_rounds() -> None:
    bits, codes = evaluated(
        "half", "(({ edges, floatOf, toHalf }) => [[...edges()], [...edges()].map("
        "(b) => toHalf(floatOf(b)))])(m)"
    )  # fmt: skip
    values = np.array(bits, np.uint32).view(np.float32)
    with np.errstate(over="ignore"):
        wanted = values.astype(np.float16)
    assert values.size > 250_000
    assert np.array_equal(np.array(codes, np.uint16).view(np.float16), wanted, equal_nan=True)
    numbers = ~np.isnan(values)
    assert numbers.sum() > 250_000
    assert np.array_equal(np.signbit(values[numbers]), np.array(codes)[numbers] > 0x7FFF)


def test_every_half_has_numpys_value() -> None:
    values = evaluated("half", "Array.from({ length: 0x7c00 }, (_, c) => m.fromHalf(c))")
    wanted = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    assert np.array_equal(values, wanted)


def test_toward_zero_never_grows() -> None:
    found = evaluated("half", "[2049, -2051, 65535, 2 ** -25].map((x) => m.toHalf(x, true))")
    assert np.array(found, np.uint16).view(np.float16).tolist() == [2048, -2050, 65504, 0]


def rounded_once(exact: Fraction) -> float:
    """A fraction as the nearest half, ties to even."""
    exponent = -14
    while abs(exact) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    unit = Fraction(2) ** (exponent - 10)
    nearest = float(round(exact / unit) * unit)
    return nearest if abs(nearest) <= 65504 else float(np.copysign(np.inf, nearest))


def test_a_fused_product_and_sum_is_rounded_once() -> None:
    random = np.random.default_rng(1)
    halves = random.integers(0, 0x7C00, (3000, 3)).astype(np.uint16) | (
        random.integers(0, 2, (3000, 3)).astype(np.uint16) << 15
    )
    triples = halves.view(np.float16).astype(float).tolist()
    got = evaluated("half", f"{triples}.map((t) => m.fromHalf(m.toHalf(m.fused(...t))) + 0 + '')")
    for (a, b, c), text in zip(triples, got, strict=True):
        assert float(text) == rounded_once(Fraction(a) * Fraction(b) + Fraction(c)), (a, b, c)


# --- GPUs that are made up ------------------------------------------------------------------------

MADE_UP = """await (async () => {
  const { flushed, floatOf, fromHalf, isSubnormal, toHalf } = await import(HALF);
  const RULES = {
    ieee: (x) => toHalf(x),
    flushes: (x) => flushed(toHalf(x)),
    truncates: (x) => toHalf(x, true),
    saturates: (x) => ((toHalf(x) & 0x7fff) === 0x7c00 && Number.isFinite(x) ? toHalf(x) - 1 : toHalf(x)),
    odd: (x) => toHalf(x) ^ 3,
  };
  const gpu = (rule) => async (name, input, count) => {
    const round = RULES[rule], operand = (c) => fromHalf(rule === "flushes" ? flushed(c) : c);
    const floats = (i) => (input instanceof Uint32Array ? floatOf(input[i]) : input[i]);
    const results = {
      pack: (i) => round(floats(i)), cast: (i) => round(floats(i)),
      unpack: (i) => bits(operand(input[i])), widen: (i) => bits(operand(input[i])),
      add: (i) => round(operand(input[2 * i]) + operand(input[2 * i + 1])),
      mul: (i) => round(operand(input[2 * i]) * operand(input[2 * i + 1])),
      fma: (i) => round(operand(input[4 * i]) * operand(input[4 * i + 1]) + operand(input[4 * i + 2])),
      madd: (i) => round(fromHalf(round(operand(input[4 * i]) * operand(input[4 * i + 1]))) + operand(input[4 * i + 2])),
      sum_packed: () => bits(ones(round)), sum32: () => bits(input.length), sum16: () => toHalf(ones(round)),
    };
    const bits = (x) => new Uint32Array(Float32Array.of(x).buffer)[0];
    const ones = (round) => { let t = 0; for (let k = 0; k < input.length; k++) t = fromHalf(round(t + 1)); return t; };
    return Uint32Array.from({ length: count }, (_, i) => results[name](i));
  };
  const found = await m.bits(gpu(RULE), { half: HAS_HALF, stop: new AbortController().signal });
  return [found, m.sentences(found)];
})()"""  # noqa: E501


def made_up(rule: str, *, half: bool = True) -> tuple[dict[str, Any], list[str]]:
    """What the module finds on a GPU that rounds by a rule, and what it says."""
    code = MADE_UP.replace("HALF)", json.dumps((STATIC / "half.mjs").as_uri()) + ")")
    code = code.replace("HAS_HALF", json.dumps(half)).replace("RULE)", json.dumps(rule) + ")")
    found, said = evaluated("gpu_bits", code)
    return found, said


def test_a_gpu_that_follows_ieee_is_said_to() -> None:
    found, said = made_up("ieee")
    assert said[0] == (
        "float32 to float16 in 16-bit storage (pack2x16float): here it rounds to nearest even, "
        "as IEEE 754 says, and keeps subnormals (all 253,960 cases). "
        "65519.996 becomes 65504 and 65520 becomes infinity, as IEEE 754 says."
    )
    assert "all 65,536 codes keep their value" in said[2]
    assert "they stop at 2048" in said[4] and "With the sum in float32: 4096." in said[4]
    assert [line for line in said if "rounds to nearest even" in line] == [*said[:2], *said[6:8]]
    assert found["add"]["exact"] == found["mul"]["exact"] == 2**15
    assert said[-1].endswith("a × b + c is rounded twice, after the product and after the sum.")
    assert "fma(a, b, c) in float16 is rounded once (fused)" in said[-1]


def test_a_gpu_that_flushes_is_found_by_every_subnormal() -> None:
    found, said = made_up("flushes")
    counted = found["conversions"]["cast"]
    with np.errstate(over="ignore"):
        halves = edges_of_numpy()
    subnormal = (np.abs(halves) < 2.0**-14) & (halves != 0)
    assert counted["flushed"] == subnormal.sum() > 8000
    assert counted["exact"] + counted["flushed"] == counted["of"]
    assert "as IEEE 754 says, but flushes subnormals to zero" in said[1]
    assert (
        found["widenings"]["widen"]["flushed"] == 2046 and "2,046 subnormals became zero" in said[3]
    )
    for name in ("add", "mul"):
        assert found[name]["flushed"] > 0
        assert found[name]["exact"] + found[name]["flushed"] == 2**15
    assert "fma(a, b, c) in float16 is rounded once" in said[-1]


def test_a_gpu_that_truncates_is_not_said_to_round_to_nearest() -> None:
    found, said = made_up("truncates")
    assert found["conversions"]["pack"]["truncated"] > 80_000
    for line in (*said[:2], *said[6:8]):
        assert "here it rounds toward zero, not to nearest even" in line
    assert "65520 becomes 65504; IEEE 754 says 65504 and infinity" in said[0]


def test_a_gpu_that_saturates_has_no_infinity_to_give() -> None:
    found, said = made_up("saturates")
    counted = found["conversions"]["cast"]
    assert counted["saturated"] > 0 and counted["exact"] + counted["saturated"] == counted["of"]
    assert "as IEEE 754 says, but saturates" in said[0]
    assert "65520 becomes 65504; IEEE 754 says" in said[0]
    assert found["mul"]["saturated"] > 0


def test_a_gpu_that_follows_no_rule_is_shown_by_an_example() -> None:
    found, said = made_up("odd", half=False)
    assert found["conversions"]["pack"]["other"] > 200_000
    assert "does not always round as IEEE 754 says" in said[0] and " by no rule (" in said[0]
    assert "0 gave 0x0003, not 0x0000" in said[0]
    assert len(said) == 3


def edges_of_numpy() -> np.ndarray[Any, Any]:
    bits = evaluated("half", "[...m.edges()]")
    return np.array(bits, np.uint32).view(np.float32).astype(np.float16)


# --- What was measured, under a roof --------------------------------------------------------------

ROWS = """
  const streams = [{ name: "float32", elements: 1e6, ms: 1.2, gbs: 10 }, { name: "float16", elements: 1e6, ms: 0.5, gbs: 12 }];
  const products = [
    { n: 64, name: "float32", bytes: 4, gflops: 50 }, { n: 64, name: "float16", bytes: 2, gflops: 90 },
    { n: 64, name: "float16, summed in float32", bytes: 2, gflops: 30 }, { n: 128, name: "float32", bytes: 4, gflops: 60 },
  ];
"""  # noqa: E501


def of_rows(expression: str) -> Any:
    """What an expression comes to in the explorer's module, over streams and products."""
    return evaluated("gpu_explorer", f"(() => {{ {ROWS} return {expression}; }})()")


def test_points_lie_where_counts_of_operations_and_bytes_put_them() -> None:
    points = of_rows("m.measured(streams, products)")
    found = [(point["intensity"], point["rate"]) for point in points]
    wanted = [
        *((2 / (3 * width), 2e6 / seconds) for width, seconds in ((4, 1.2e-3), (2, 0.5e-3))),
        *((128 / (3 * width), rate) for width, rate in ((4, 5e10), (2, 9e10), (2, 3e10))),
        (2 * 128 / 12, 6e10),
    ]  # fmt: skip
    assert np.allclose(found, wanted, rtol=1e-12)
    kinds = [point["kind"] for point in points]
    assert [kind == "mp-typed" for kind in kinds] == [True, False, True, False, False, True]


def test_the_measurements_own_roof_is_the_best_of_each() -> None:
    roof = of_rows(
        "(({ bandwidth, peaks }) => [bandwidth, [...peaks]])(m.ownRoof(streams, products))"
    )
    assert roof == [12e9, [["float32", 6e10], ["float16", 9e10]]]
    alone = of_rows("[...m.ownRoof(streams, products.filter((r) => r.bytes > 2)).peaks]")
    assert alone == [["float32", 6e10]]


def test_the_words_say_how_far_from_a_data_sheet_the_best_is() -> None:
    peaks = "new Map([['float32', 12e10], ['float16', 9e11]])"
    sheet = f"{{ name: 'a card', bandwidth: 24e9, peaks: {peaks} }}"
    said = of_rows(f"m.underTheRoof({sheet}, m.ownRoof(streams, products))")
    assert said.startswith(
        "Of the data sheet of a card: 50.0% of 24.0 GB/s, 50.0% of 120 Gflop/s in float32, "
        "10.0% of 900 Gflop/s in float16."
    )
    own = of_rows("((own) => m.underTheRoof(own, own))(m.ownRoof(streams, products))")
    assert own == (
        "The best of each: 12.0 GB/s, and 60.0 Gflop/s in float32, 90.0 Gflop/s in float16."
    )


# --- What was measured, in tables -----------------------------------------------------------------


def test_tables_say_how_many_times_as_fast_as_float32() -> None:
    wide = "{ n: 64, name: 'float32', ms: 4, low: 3, high: 5, gflops: 50, error: 2e-7 }"
    half = "{ n: 64, name: 'float16', ms: 1.6, low: 1, high: 2, gflops: 90, error: 0 }"
    products = of_rows(f"m.productTable([{wide}, {half}]).body")
    assert products == [
        ["64, float32", "4 ms (3 to 5)", "50", "1", "2e−7"],
        ["64, float16", "1.6 ms (1 to 2)", "90", "2.5", "0"],
    ]
    timed = "{ low: 0.1, high: 9 }"
    body = of_rows(f"m.streamTable(streams.map((row) => ({{ ...{timed}, ...row }}))).body")
    assert [row[2:] for row in body] == [["10", "1"], ["12", "2.4"]]


STEPS = """(losses, rest = {}) => losses.map((loss, i) =>
  ({ loss, updates: 100, lost: i < 5 ? 100 : 25, zero: 2405, ...rest }))"""


def test_a_trainings_row_is_the_mean_of_its_last_fifty_steps() -> None:
    losses = [9.0] * 30 + [1.5] * 50
    code = f"""((steps) => m.trainingTable([
      {{ name: "a", seen: steps({losses}), broken: null }},
      {{ name: "b", seen: steps({[2.0] * 40}), broken: 7 }},
      {{ name: "c", seen: [], broken: null }},
    ], 10, 0.03))({STEPS})"""
    table = evaluated("gpu_explorer", code)
    parameters = evaluated("gpu_training", "m.PARAMETERS")
    zero = f"{100 * 2405 / parameters:.0f}%"
    assert table["body"] == [["a", "1.5", "25%", zero], ["b", "NaN at step 7", "–", zero]]
    assert table["caption"].startswith("After 80 steps with learning rate 0.03 and loss scale 2^10")


def test_a_curve_is_the_mean_of_five_steps_and_ends_before_it_breaks() -> None:
    code = f"m.points(({STEPS})([2, 1, 0, 2, 1, 0, NaN, 1]), 100, 640)"
    found = np.array(evaluated("gpu_explorer", code))
    means = np.array([2, 1.5, 1, 1.25, 1.2, 0.8])
    assert np.allclose(found[:, 1], 190 - means / 2.6 * 178)
    assert np.allclose(np.diff(found[:, 0]), (640 - 34) / 100) and found[0, 0] == 26


CLOCKED = """await (async () => {
  let now = 0n, round = 0, cost = 0n;
  const ticks = [0n, 0n];
  const encoder = () => ({
    beginComputePass: ({ timestampWrites }) => {
      ticks[0] = now;
      return { setPipeline(kernel) { cost = kernel.cost(round); }, setBindGroup() {},
        dispatchWorkgroups() { now += cost; }, end() { ticks[1] = now; round += 1; } };
    },
    resolveQuerySet() {}, copyBufferToBuffer() {}, finish() {},
  });
  const buffer = ({ size }) => ({ size, destroy() {}, mapAsync: async () => {},
    getMappedRange: () => new BigUint64Array(ticks).buffer });
  const device = { createCommandEncoder: encoder, createBuffer: buffer, createQuerySet: () => ({}),
    queue: { submit() {}, writeBuffer() {} } };
  const g = { clock: true, device, lost: null };
  const kernel = (cost) => ({ pipeline: { cost }, group: {}, grid: [1] });
  const kernels = [kernel(() => 20_000_000n), kernel((round) => BigInt(1 + round) * 1_000_000n + 50_000_000n)];
  return m.compare(g, kernels, { throwIfAborted() {} });
})()"""  # noqa: E501


def test_a_kernels_time_is_the_median_of_its_rounds_by_the_gpus_clock() -> None:
    steady, slowing = evaluated("gpu", CLOCKED)
    assert steady == {"ms": 20, "low": 20, "high": 20}
    assert slowing["high"] - slowing["ms"] == slowing["ms"] - slowing["low"] == 4


# --- The page, on Chromium's software adapter -----------------------------------------------------

WEBGPU = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]
SMALL: dict[str, Any] = {"sizes": [64, 128], "elements": 2**12, "steps": 20}
BUTTONS = ["Measure float16", "Measure speed", "Train"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium with WebGPU on a software adapter."""
    arguments = [a for a in chromium.ARGUMENTS if a != "--disable-gpu"] + WEBGPU
    executable = require_browser()
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=executable, args=arguments)
        yield running
        running.close()


def with_adapter(page: Page) -> Page:
    """The page, if its browser has a GPU made of software."""
    if not page.evaluate("async () => Boolean(await navigator.gpu?.requestAdapter())"):
        pytest.skip("this Chromium has no software adapter for WebGPU")
    return page


def begin(page: Page, name: str) -> Locator:
    """Click a measurement's button; its status."""
    page.get_by_role("button", name=name, exact=True).click()
    return page.locator(".mp-status").nth(BUTTONS.index(name))


def finish(page: Page, name: str) -> None:
    expect(begin(page, name)).to_have_text("Done. Nothing has left this page.", timeout=PATIENCE_MS)


@pytest.mark.browser
def test_nothing_starts_before_a_click(open_explorer: OpenExplorer) -> None:
    page = open_explorer(GpuExplorer(**SMALL))
    page.add_init_script(
        "window.asked = 0; if (window.GPU) GPU.prototype.requestAdapter ="
        " async () => { window.asked += 1; return null; };"
    )
    page.reload()
    page.locator(".mp-explorer").wait_for()
    expect(page.locator(".mp-status").nth(0)).to_have_text("")
    assert page.evaluate("window.asked") == 0
    expect(page.get_by_role("button", name="Copy as text")).to_be_disabled()
    expect(begin(page, "Train")).to_contain_text("offers no GPU")
    assert page.evaluate("window.asked") == 1


@pytest.mark.browser
def test_a_whole_run_from_disk_and_its_text(open_explorer: OpenExplorer) -> None:
    page = with_adapter(open_explorer(GpuExplorer(**SMALL)))
    for name in BUTTONS:
        finish(page, name)
    section = page.locator("section")
    expect(section.nth(0).locator("li")).to_have_count(4)
    expect(section.nth(0)).to_contain_text("does not offer shader-f16")
    expect(section.nth(0)).to_contain_text("all 65,536 codes keep their value")
    expect(section.nth(1).locator("tbody tr")).to_have_count(4)
    expect(section.nth(1)).to_contain_text("128, float32")
    expect(section.nth(1)).to_contain_text("The best of each: ")
    rows = section.nth(1).locator("tbody tr")
    cells = [[*row.locator("th").all_text_contents(), *row.locator("td").all_text_contents()]
             for row in rows.all()]  # fmt: skip
    for name, time, rate, _, *rest in cells:
        seconds, n = float(time.split()[0]) / 1e3, int(name.split(",")[0]) if rest else 0
        width = 4 if name == "float32" else 2
        done = 2 * n**3 if rest else 3 * width * SMALL["elements"]  # reads x and y, writes y
        assert float(rate) * 1e9 * seconds == pytest.approx(done, rel=0.02), name
    assert section.nth(1).locator(".mp-roofs circle").count() == 4
    section.nth(1).get_by_role("combobox", name="Roof").select_option("T4")
    expect(section.nth(1)).to_contain_text("Of the data sheet of T4: ")
    drawing = section.nth(1).locator(".mp-roofs svg")
    expect(drawing).to_have_attribute("aria-label", "What was measured here, under the roof of T4")
    assert "NaN" not in drawing.inner_html()
    expect(section.nth(2).locator("tbody tr")).to_have_count(3)
    expect(section.nth(2).locator("caption")).to_contain_text("After 20 steps")
    trained = section.nth(2).locator("tbody tr")
    for row in trained.all():
        assert 0.2 < float(row.locator("td").first.inner_text()) < 2.6  # log(10) is 2.3
    assert page.locator(".mp-curve-master").get_attribute("d")
    expect(page.locator(".mp-explorer")).to_contain_text("This is a software adapter")
    page.get_by_role("button", name="Copy as text").click()
    text = page.get_by_label("The results as text").input_value()
    for part in (
        "cannot reach tensor cores",
        "pack2x16float",
        "128, float32",
        "best of each",
        "After 20 steps",
    ):
        assert part in text


@pytest.mark.browser
def test_stop_keeps_what_is_there_and_the_scale_moves_meanwhile(
    open_explorer: OpenExplorer,
) -> None:
    page = with_adapter(open_explorer(GpuExplorer(**{**SMALL, "steps": 10_000})))
    status = begin(page, "Train")
    cells = page.locator("section").nth(2).locator("tbody")
    expect(cells).to_contain_text("float16", timeout=PATIENCE_MS)
    expect(page.get_by_role("button", name="Measure speed")).to_be_disabled()
    page.get_by_role("slider").press("End")
    expect(page.get_by_role("slider")).to_have_attribute("aria-valuetext", "2 to the power 24")
    expect(cells).to_contain_text("NaN at step", timeout=PATIENCE_MS)
    expect(cells.locator("tr").first).not_to_contain_text("NaN")
    page.get_by_role("button", name="Stop").nth(2).click()
    expect(status).to_have_text("Stopped.", timeout=PATIENCE_MS)
    expect(cells).to_contain_text("NaN at step")
    expect(page.get_by_role("button", name="Measure speed")).to_be_enabled()
    expect(page.get_by_role("button", name="Stop").nth(2)).to_be_disabled()


@pytest.mark.browser
def test_a_lost_gpu_keeps_its_results_and_is_opened_anew(open_explorer: OpenExplorer) -> None:
    page = with_adapter(open_explorer(GpuExplorer(**{**SMALL, "steps": 10_000})))
    page.evaluate("""() => {
      const request = GPUAdapter.prototype.requestDevice;
      GPUAdapter.prototype.requestDevice = async function (...a) {
        return (window.device = await request.apply(this, a));
      };
    }""")
    status = begin(page, "Train")
    cells = page.locator("section").nth(2).locator("tbody")
    expect(cells).to_contain_text("float16", timeout=PATIENCE_MS)
    page.evaluate("window.device.destroy()")
    expect(status).to_contain_text("lost the GPU in the middle of the work", timeout=PATIENCE_MS)
    expect(cells.locator("tr")).to_have_count(3)
    finish(page, "Measure float16")


REFUSALS = [
    ("Object.defineProperty(Navigator.prototype, 'gpu', { value: undefined })",
     "This browser has no WebGPU, so the page cannot reach your GPU."),
    ("Object.defineProperty(Navigator.prototype, 'gpu', { value: undefined });"
     "Object.defineProperty(window, 'isSecureContext', { value: false })",
     "Browsers show their GPU only to pages from https"),
    ("GPU.prototype.requestAdapter = async () => null",
     "This browser has WebGPU but offers no GPU"),
    ("GPU.prototype.requestAdapter = async () => { throw new Error('no'); }",
     "This browser has WebGPU but offers no GPU"),
    ("GPUAdapter.prototype.requestDevice = async () => { throw new Error('it is busy'); }",
     "The browser found a GPU but would not open it: it is busy"),
    ("GPUDevice.prototype.popErrorScope = async () => ({ message: 'none left' })",
     "The GPU has too little free memory for this measurement."),
]  # fmt: skip


@pytest.mark.browser
def test_each_refusal_has_its_sentence(open_explorer: OpenExplorer) -> None:
    for number, (script, sentence) in enumerate(REFUSALS):
        page = open_explorer(GpuExplorer(**SMALL))
        if number > 1:
            with_adapter(page)
        page.evaluate(f"() => {{ {script} }}")
        name = BUTTONS[number % 3]
        expect(begin(page, name)).to_contain_text(sentence, timeout=PATIENCE_MS)
        expect(page.get_by_role("button", name=name, exact=True)).to_be_enabled()
        page.close()


@pytest.mark.browser
@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 390)])
def test_axe_finds_nothing_serious_and_nothing_overflows(
    open_explorer: OpenExplorer, theme: str, width: int
) -> None:
    page = with_adapter(open_explorer(GpuExplorer(**SMALL), width=width, color_scheme=theme))
    for name in BUTTONS:
        finish(page, name)
    assert serious_violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.browser
def test_without_javascript_the_page_says_what_is_missing(open_explorer: OpenExplorer) -> None:
    page = open_explorer(GpuExplorer(**SMALL), java_script_enabled=False)
    expect(page.locator(".mp-static")).to_contain_text("needs JavaScript and a browser with WebGPU")


# --- What the page carries, and the traits --------------------------------------------------------


def test_module_and_digits_stay_below_40_kilobytes_on_the_wire() -> None:
    parts = linked(STATIC / "gpu_explorer.mjs"), twin(GpuExplorer())
    assert sum(len(gzip.compress(part.encode())) for part in parts) < 40_000


def test_the_digits_are_scikit_learns() -> None:
    held, data = lettered_digits(), digits()
    levels = np.array([ord(letter) - ord("a") for letter in held["pixels"]]).reshape(-1, 64)
    assert levels.min() == 0 and levels.max() == 16 and len(levels) == EXAMPLES
    assert np.allclose(levels / 16 + float(data.inputs.min()), data.inputs[:EXAMPLES].numpy())
    assert [int(label) for label in held["labels"]] == data.targets[:EXAMPLES].tolist()


@pytest.mark.parametrize(
    ("trait", "wrong", "right"),
    [
        ("sizes", [100], "sizes=100: expected multiples of 64 up to 8192"),
        ("sizes", [64.0], "expected multiples of 64"),
        ("sizes", [], "expected at least one"),
        ("sizes", [128, 64], "in rising order"),
        ("elements", 3000, "a power of two from"),
        ("elements", 2**29, "a power of two from"),
        ("steps", 0, "an integer from 1 to 10000"),
        ("steps", True, "an integer from 1 to 10000"),
    ],
)
def test_bad_values_are_refused_and_change_nothing(trait: str, wrong: Any, right: str) -> None:
    found = GpuExplorer()
    before = found.get_state()
    with pytest.raises(ValueError, match=right):
        setattr(found, trait, wrong)
    assert found.get_state() == before
    with pytest.raises(ValueError, match=right):
        GpuExplorer(**{trait: wrong})


def test_roofs_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="expected Roof objects with a peak in float32"):
        GpuExplorer(roofs=["T4"])  # type: ignore[list-item]


def test_outputs_are_the_same_on_every_run() -> None:
    assert twin(GpuExplorer()) == twin(GpuExplorer())
