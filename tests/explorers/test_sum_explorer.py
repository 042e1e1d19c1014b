"""The sum explorer: its arithmetic against Python's, its page without a kernel, and its traits."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from accessibility import serious_violations
from explorer_pages import (
    Axis,
    LoadModule,
    OpenExplorer,
    as_number,
    curve,
    numbers_of,
    twin,
)
from playwright.sync_api import expect

from mpbook.explorers import SumExplorer
from mpbook.explorers.sum_explorer import (
    LONGEST,
    METHODS,
    ROUNDINGS,
    SOURCES,
    photograph,
    random_numbers,
    source_terms,
)
from mpbook.formats import FORMATS, FloatFormat, round_to, ulp
from mpbook.formats.sums import overflow_rule

NAMES = [name for name, format in FORMATS.items() if format.signed]
ALL = [FORMATS[name] for name in NAMES]


# --- The arithmetic -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def module(load_module: LoadModule) -> Callable[..., list[float]]:
    """What `evaluator` gives for the explorer's own module."""
    return evaluator(load_module, "sum_explorer")


@pytest.fixture(scope="module")
def rounding_module(load_module: LoadModule) -> Callable[..., list[float]]:
    """What `evaluator` gives for the module that rounds."""
    return evaluator(load_module, "rounding")


def evaluator(load_module: LoadModule, name: str) -> Callable[..., list[float]]:
    """Return a function that evaluates an expression over the module `m` and arguments `a`.

    What it gives is text that JSON does not lose: infinities and NaN included.
    """
    page = load_module(name)

    def evaluate(body: str, *arguments: Any) -> list[float]:
        script = """([body, a]) => {
          const results = new Function("m", "a", `return ${body}`)(window.m, a);
          return [...results].join(" ");
        }"""
        read = {"Infinity": "inf", "-Infinity": "-inf", "NaN": "nan"}
        said = page.evaluate(script, [body, list(arguments)])
        return [float(read.get(t, t)) for t in said.split()]

    return evaluate


def as_json(format: FloatFormat) -> dict[str, Any]:
    return SumExplorer(1, format).get_state("format")["format"]


@pytest.mark.browser
@pytest.mark.parametrize("format", ALL, ids=lambda format: format.name)
@pytest.mark.parametrize("rounding", ["nearest-even", "toward-zero"])
def test_rounding_equals_pythons(rounding_module: Any, format: FloatFormat, rounding: Any) -> None:
    generator = np.random.default_rng(0)
    sizes = np.exp2(generator.uniform(format.lowest_binade - 14, math.log2(format.max) + 1, 800))
    values = np.concatenate([sizes, -sizes, [0, format.max, 1.5 * format.max, np.inf, -np.inf]])
    coarse = round_to(torch.from_numpy(values), format, overflow=overflow_rule(format)).numpy()
    finite = coarse[np.isfinite(coarse)]
    ties = (finite[1:] + finite[:-1]) / 2  # of neighbours or not: exact either way
    halves = finite * (1 + 2.0 ** -(format.mantissa_bits + 1))
    values = np.concatenate([values, ties, halves])
    values = values[np.isfinite(values) | (np.abs(values) == np.inf)]
    ours = rounding_module(
        "a[0].map((x) => m.roundTo(Number(x), a[1], a[2]))",
        [repr(v).replace("inf", "Infinity") for v in values.tolist()],
        as_json(format),
        rounding,
    )
    expected = round_to(
        torch.from_numpy(values), format, rounding=rounding, overflow=overflow_rule(format)
    )
    np.testing.assert_array_equal(ours, expected.double().numpy())


@pytest.mark.browser
@pytest.mark.parametrize("format", ALL, ids=lambda format: format.name)
def test_gaps_equal_pythons(rounding_module: Any, format: FloatFormat) -> None:
    values = [0.0, format.smallest_normal / 4, 1.0, 1.9, 3.0, format.max]
    ours = rounding_module("a[0].map((x) => m.gap(x, a[1]))", values, as_json(format))
    assert ours == ulp(torch.tensor(values, dtype=torch.float64), format).tolist()


@pytest.mark.browser
def test_a_draw_below_the_discarded_fraction_rounds_away(rounding_module: Any) -> None:
    body = "a[0].map((draw) => m.roundTo(a[1], a[2], 'stochastic', draw))"
    draws = [0.0, 0.24, 0.25, 0.26, 0.99]
    bfloat16 = as_json(FORMATS["bfloat16"])
    assert rounding_module(body, draws, 256.5, bfloat16) == [258, 258, 256, 256, 256]
    assert rounding_module(body, draws, -256.5, bfloat16) == [-258, -258, -256, -256, -256]
    assert rounding_module(body, draws, 256, bfloat16) == [256] * 5


@pytest.mark.browser
def test_random_numbers_equal_pythons(module: Any) -> None:
    body = "(() => { const r = m.mulberry32(a[0]); return Array.from({length: 1000}, r); })()"
    for seed in (1, 2, 123456789):
        assert module(body, seed) == random_numbers(1000, seed)


@pytest.mark.browser
@pytest.mark.parametrize("source", list(SOURCES))
@pytest.mark.parametrize("name", ["float32", "bfloat16", "float8_e4m3fn"])
def test_terms_and_sums_equal_pythons(module: Any, source: Any, name: str) -> None:
    explorer = SumExplorer(300, name, source=source)
    pixels, format = explorer.pixels, as_json(FORMATS[name])
    terms = module("m.sourceTerms(...a)", source, 300, format, pixels)
    assert terms == source_terms(source, 300, FORMATS[name]).tolist()
    exact = module("[m.exactTotals(a[0]).at(-1)]", terms)
    assert exact == [explorer.exact()]
    for method in METHODS:
        for rounding in ("nearest-even", "toward-zero"):
            explorer.method, explorer.rounding = method, rounding
            lengths = list(range(1, 301))
            ours = module("m.totalsAt(...a)", terms, lengths, format, rounding, method)
            np.testing.assert_array_equal(ours, explorer.totals().numpy(), err_msg=method)


@pytest.mark.browser
def test_stochastic_sums_in_the_page_are_right_on_average(module: Any) -> None:
    body = "m.totalsAt(...a)"
    format = as_json(FORMATS["bfloat16"])
    total = module(body, [1.0] * 4096, [4096], format, "stochastic", "running")[0]
    assert abs(total / 4096 - 1) < 0.15
    assert total != 4096


@pytest.mark.browser
def test_a_sum_is_stuck_only_if_terms_keep_coming(module: Any) -> None:
    body = "[m.stuckAfter(a[0], a[1]) ?? -1]"
    totals = [*range(1, 257), *[256] * 244]
    assert module(body, totals, [1.0] * 500) == [256]
    assert module(body, totals, [1.0] * 256 + [0.0] * 244) == [-1]
    assert module(body, list(range(500)), [1.0] * 500) == [-1]


# --- The page without a kernel ------------------------------------------------------------------


@pytest.mark.browser
def test_the_page_says_and_marks_where_the_sum_is_stuck(open_explorer: OpenExplorer) -> None:
    page = open_explorer(SumExplorer(1000, "bfloat16"))
    said = page.locator(".mp-live")
    expect(said).to_have_text(
        "1000 terms in bfloat16, one by one, to nearest, even: "
        "256 instead of 1000, stuck after term 256"
    )
    assert said.get_attribute("aria-live") == "polite"
    expect(page.locator(".mp-chart .mp-marker-label")).to_have_text("stuck at 256 after term 256")
    page.get_by_label("Added").select_option("kahan")
    expect(said).to_contain_text("Kahan, to nearest, even: 1000 instead of 1000")
    expect(page.locator(".mp-chart .mp-marker-label")).to_have_count(0)


@pytest.mark.browser
def test_every_control_by_keyboard(open_explorer: OpenExplorer) -> None:
    page = open_explorer(SumExplorer(256, "bfloat16"))
    slider = page.get_by_role("slider")
    slider.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".mp-live")).to_contain_text("279 terms in bfloat16")
    expect(slider).to_have_attribute("aria-valuetext", "279 terms")
    page.keyboard.press("End")
    expect(page.locator(".mp-live")).to_contain_text("8192 terms")
    page.get_by_label("n", exact=True).fill("300")
    page.keyboard.press("Tab")
    expect(page.locator(".mp-live")).to_contain_text("300 terms in bfloat16")
    page.get_by_role("button", name="photograph in fp16").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".mp-live")).to_contain_text("8192 terms in float16")
    expect(page.locator(".mp-live")).to_contain_text("2048 instead of")


SHOWN: list[dict[str, Any]] = [
    dict(n=1000, format="bfloat16"), dict(n=300, format="bfloat16", method="kahan"),
    dict(n=700, format="float16", source="photograph", rounding="toward-zero"),
    dict(n=200, format="bfloat16", source="uniform"),
    dict(n=90, format="float8_e4m3fn", source="zero-mean", method="pairwise"),
    dict(n=600, format="float8_e5m2", source="uniform", method="float32"),
    dict(n=400, format="float32", source="zero-mean"),
]  # fmt: skip


@pytest.mark.browser
def test_every_fact_is_pythons(open_explorer: OpenExplorer) -> None:
    explorers = [SumExplorer(**one) for one in SHOWN]
    page = open_explorer(*explorers)
    for explorer, part in zip(explorers, page.locator(".mp-explorer").all(), strict=True):
        totals, terms = explorer.totals(), explorer._terms()
        total, exact = explorer.total(), explorer.exact()
        relative = abs(total - exact) / float(terms.abs().sum())
        cells = part.locator(".mp-facts dl")
        facts = dict(
            zip(*(cells.locator(t).all_text_contents() for t in ("dt", "dd")), strict=True)
        )
        wanted = {
            "exact": exact, "error": total - exact, "relative error": relative,
            "gap there": float(ulp(torch.tensor(total, dtype=torch.float64), explorer.format)),
        }  # fmt: skip
        for name, number in wanted.items():
            assert as_number(facts[name]) == pytest.approx(
                number, rel=0.06 if "rel" in name else 1e-3
            ), name
        assert as_number(part.locator(".mp-value").inner_text()) == pytest.approx(total, rel=1e-8)
        last = int((totals != total).nonzero().max()) + 2 if bool((totals != total).any()) else 1
        stuck = facts["stuck after term"]
        assert stuck in ("—", str(last))
        verdict = part.locator(".mp-kind").inner_text()
        if stuck != "—":
            assert verdict == "stuck"
        else:
            off = "exact" if total == exact else f"{facts['relative error']} off"
            assert verdict == off
        low, high = terms.min(), terms.max()
        least, most = {"1": (1, 1), "0 to 1": (0, 1), "−1 to 1": (-1, 1)}[facts["one term is"]]
        assert least <= low <= high <= most and (least < 0) == bool(low < 0)
        label = part.locator(".mp-chart svg").get_attribute("aria-label") or ""
        said = [as_number(text) for text in re.findall(r"to (\S+?),", label)]
        assert said == pytest.approx([total, exact], rel=1e-5)
        assert label.endswith(f"over {explorer.n} terms")


@pytest.mark.browser
def test_the_curves_are_the_sums_and_their_errors(open_explorer: OpenExplorer) -> None:
    explorers = [SumExplorer(**one) for one in SHOWN]
    page = open_explorer(*explorers)
    for explorer, chart in zip(explorers, page.locator(".mp-chart").all(), strict=True):
        totals, terms = explorer.totals(), explorer._terms()
        errors = (totals - terms.cumsum(0)).abs() / terms.abs().cumsum(0)
        labels = numbers_of(chart)
        column = [(y - 4, number) for x, y, number in labels if x == min(labels)[0]]
        row = [(x, number) for x, y, number in labels if y == max(y for _, y, _ in labels)]
        assert [number for _, number in column[-3:]] == [1, 1e-4, 1e-8]
        assert [number for _, number in row] == pytest.approx([0, explorer.n / 2, explorer.n])
        assert len(column) >= 5
        sums = Axis([number for _, number in column[:-3]], [y for y, _ in column[:-3]])
        logs = Axis([0, -4, -8], [y for y, _ in column[-3:]])
        counts = Axis([number for _, number in row], [x for x, _ in row])
        drawn = (
            (sums, terms.cumsum(0)), (sums, totals), (logs, errors.clamp(1e-8, 1).log10())
        )  # fmt: skip
        paths = chart.locator("path[class^=mp-sum]").all()
        for path, (axis, wanted) in zip(paths, drawn, strict=True):
            points = curve(path)
            places = [round(counts.value(x)) for x, _ in points]
            assert places[-1] == explorer.n
            expected = axis.pixel(wanted[torch.tensor(places) - 1].numpy())
            assert [y for _, y in points] == pytest.approx(expected, abs=2)


@pytest.mark.browser
def test_a_number_of_terms_out_of_range_is_brought_back(open_explorer: OpenExplorer) -> None:
    page = open_explorer(SumExplorer(100, "bfloat16"))
    count = page.get_by_label("n", exact=True)
    for typed, n in (("99999", LONGEST), ("0", 1), ("-5", 1), ("2.6", 3), ("", 1)):
        count.fill(typed)
        page.keyboard.press("Tab")
        expect(page.locator(".mp-live")).to_contain_text(f"{n} terms in bfloat16")


DRAW_ALL = """async () => {
  const broken = [];
  const frame = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  const selects = [...document.querySelectorAll(".mp-explorer select")];
  const choose = async (select, value) => {
    select.value = value;
    select.dispatchEvent(new Event("change"));
    await frame();
    const drawn = document.querySelector(".mp-chart svg").outerHTML;
    if (/NaN|Infinity|undefined/.test(drawn.replaceAll("to NaN", ""))) broken.push(value);
  };
  for (const source of selects[0].options) {
    await choose(selects[0], source.value);
    for (const select of selects.slice(1)) {
      for (const option of [...select.options]) await choose(select, option.value);
    }
  }
  return broken;
}"""


@pytest.mark.browser
def test_every_choice_is_drawn(open_explorer: OpenExplorer) -> None:
    page = open_explorer(SumExplorer(300, "float8_e4m3fnuz"))
    assert page.evaluate(DRAW_ALL) == []
    page.get_by_label("n", exact=True).fill("1")
    page.keyboard.press("Tab")
    assert page.evaluate(DRAW_ALL) == []


@pytest.mark.browser
@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 390)])
def test_axe_finds_nothing_serious_and_nothing_overflows(
    open_explorer: OpenExplorer, theme: str, width: int
) -> None:
    explorers = [SumExplorer(1000, "bfloat16"), SumExplorer(300, "float16", source="zero-mean")]
    page = open_explorer(*explorers, width=width, color_scheme=theme)
    assert serious_violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.browser
def test_without_javascript_the_numbers_stay(open_explorer: OpenExplorer) -> None:
    page = open_explorer(SumExplorer(1000, "bfloat16"), java_script_enabled=False)
    expect(page.locator(".mp-static")).to_contain_text("256 instead of 1000")


# --- The widget in the kernel --------------------------------------------------------------------


def test_totals_follow_the_traits() -> None:
    explorer = SumExplorer(1000, torch.bfloat16)
    assert (explorer.total(), explorer.exact()) == (256, 1000)
    explorer.method = "pairwise"
    assert explorer.total() == 1000
    assert explorer.totals()[-1] == 1000
    explorer.method, explorer.rounding = "running", "stochastic"
    assert explorer.total() == explorer.total() != 256


def test_the_photograph_is_one() -> None:
    assert len(photograph()) == 8192
    assert 100 < sum(photograph()) / 8192 < 200


@pytest.mark.parametrize(
    ("trait", "wrong", "right"),
    [
        ("n", 0, "from 1 to 8192"),
        ("n", 1.5, "from 1 to 8192"),
        ("format", "fp16", "expected one of float32"),
        ("format", "float8_e8m0fnu", "with a sign, a zero"),
        ("rounding", "up", "nearest-even"),
        ("method", "sorted", "pairwise"),
        ("source", "noise", "photograph"),
    ],
)
def test_bad_values_are_refused_and_change_nothing(trait: str, wrong: Any, right: str) -> None:
    explorer = SumExplorer()
    before = explorer.get_state()
    with pytest.raises(ValueError, match=right):
        setattr(explorer, trait, wrong)
    assert explorer.get_state() == before
    with pytest.raises(ValueError, match=right):
        SumExplorer(**{trait: wrong})


def test_outputs_are_the_same_on_every_run_and_hold_the_state() -> None:
    first, second = (twin(SumExplorer(10, "float16")) for _ in range(2))
    assert first == second
    state = json.loads(first.split('json">')[1].split("</script>")[0])
    assert {state[name] for name in ("rounding", "method", "source")} <= {
        *ROUNDINGS, *METHODS, *SOURCES
    }  # fmt: skip
    assert repr(SumExplorer(10)) == (
        "SumExplorer(n=10, format='float16', rounding='nearest-even', method='running', "
        "source='ones')"
    )
