"""The reduction explorer: its sums against Python's, its page without a kernel, and its traits."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch
from accessibility import serious_violations
from explorer_pages import Axis, LoadModule, OpenExplorer, as_number, curve, numbers_of, twin
from playwright.sync_api import expect
from torch import Tensor

from mpbook.explorers import ReductionExplorer
from mpbook.explorers.reduction_explorer import NAMES, Values, parts_of
from mpbook.many_gpus import Algorithm, Average, all_reduce, divisors, error_bound, ring_chunks
from mpbook.many_gpus.reductions import DTYPES
from mpbook.many_gpus.wire import on_the_wire

ALGORITHMS, AVERAGES = get_args(Algorithm), get_args(Average)


# --- The arithmetic -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def module(load_module: LoadModule) -> Callable[..., Any]:
    """Evaluate an expression over the module `m` and arguments `a`.

    Arguments and results are numbers as text, which keeps infinities, NaN and -0.
    """
    page = load_module("reductions")

    def evaluate(body: str, *arguments: Any) -> list[float]:
        script = """([body, a]) => {
          const text = (x) => Object.is(x, -0) ? "-0" : String(x);
          return [...new Function("m", "a", `return ${body}`)(window.m, a)].map(text).join(" ");
        }"""
        read = {"Infinity": "inf", "-Infinity": "-inf", "NaN": "nan"}
        said = page.evaluate(script, [body, list(arguments)])
        return [float(read.get(t, t)) for t in said.split()]

    return evaluate


def as_text(values: Tensor) -> list[list[str]]:
    """For JavaScript's Number: each column's parts."""
    words = {"inf": "Infinity", "-inf": "-Infinity", "nan": "NaN"}
    return [[words.get(repr(x), repr(x)) for x in column] for column in values.t().tolist()]


def hostile(ranks: int, elements: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Parts that overflow, underflow, cancel, tie and are no numbers; float32."""
    generator = torch.Generator().manual_seed(seed)
    limits = torch.finfo(dtype)
    lowest = int(math.log2(limits.smallest_normal * limits.eps)) - 1
    shape = (ranks, elements)
    alike = torch.randn(shape, generator=generator)
    exponents = torch.randint(lowest, int(math.log2(limits.max)) + 1, shape, generator=generator)
    wild = alike * torch.ldexp(torch.ones(shape), exponents)
    whole = torch.randint(-9, 10, shape, generator=generator) * (1 + limits.eps / 2)  # casts tie
    parts = torch.cat([alike, wild, whole, alike.abs() * limits.max / ranks, alike * 0], 1)
    parts[0, -1], parts[1, -1] = -0.0, limits.smallest_normal * limits.eps / 2
    special = torch.zeros(ranks, 4)
    special[-1, 0], special[0, 1], special[0, 2] = math.inf, -math.inf, math.nan
    special[0, 3], special[1, 3] = math.inf, -math.inf
    return torch.cat([parts, special], 1)


def same(ours: list[float], expected: Tensor) -> None:
    wanted = expected.double().numpy()
    np.testing.assert_array_equal(ours, wanted)
    numbers = ~np.isnan(wanted)
    np.testing.assert_array_equal(np.signbit(ours)[numbers], np.signbit(wanted)[numbers])


@pytest.mark.browser
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("ranks", [2, 4, 8, 64, 256, 1024])
def test_sums_equal_pythons_bit_for_bit(
    module: Any, dtype: torch.dtype, algorithm: Any, ranks: int
) -> None:
    parts = hostile(ranks, max(2, 32 // ranks), dtype, seed=ranks)
    columns, elements = as_text(parts), parts.shape[1]
    chunks = ring_chunks(elements, ranks, element_bytes=dtype.itemsize)
    chunk = [
        next(c for c, s in enumerate(chunks) if s.start <= j < s.stop) for j in range(elements)
    ]
    for average in AVERAGES:
        options = {"dtype": str(dtype)[6:], "algorithm": algorithm, "average": average}
        body = "a[0].map((parts, j) => m.allReduce(parts.map(Number), a[1], a[2][j]))"
        expected = all_reduce(parts, dtype=dtype, algorithm=algorithm, average=average)
        same(module(body, columns, options, chunk), expected)


@pytest.mark.browser
@pytest.mark.parametrize("ranks", [3, 5, 12])
def test_rings_and_trees_of_other_numbers_of_ranks_equal_pythons(module: Any, ranks: int) -> None:
    parts = hostile(ranks, 1, torch.bfloat16, seed=ranks)[:, :1]
    for algorithm in ("ring", "tree"):
        for average in AVERAGES:
            options = {"dtype": "bfloat16", "algorithm": algorithm, "average": average}
            expected = all_reduce(parts, **options | {"dtype": torch.bfloat16})
            same(
                module("[m.allReduce(a[0][0].map(Number), a[1])]", as_text(parts), options),
                expected,
            )


@pytest.mark.browser
@pytest.mark.parametrize("name", NAMES)
def test_parts_bound_and_divisors_equal_pythons(module: Any, name: str) -> None:
    dtype = getattr(torch, name)
    for values in get_args(Values):
        for ranks, exponent in ((2, 0), (64, -24), (1024, 16)):
            parts = parts_of(values, ranks, exponent)
            same(module("m.partsOf(...a)", values, ranks, exponent), parts[:, 0])
            cases = [{"algorithm": one, "average": two} for one in ALGORITHMS for two in AVERAGES]
            body = "a[1].map((one) => m.errorBound(a[0][0].map(Number), {dtype: a[2], ...one}))"
            ours = module(body, as_text(parts), cases, name)
            wanted = [error_bound(parts, dtype=dtype, **case).item() for case in cases]  # type: ignore[arg-type]
            assert ours == pytest.approx(wanted, rel=1e-9)
    for average in AVERAGES:
        for ranks in (2, 32, 4096):
            assert tuple(module("m.divisors(...a)", ranks, average)) == divisors(ranks, average)


@pytest.mark.browser
def test_bytes_equal_pythons(module: Any) -> None:
    for name in NAMES:
        size = getattr(torch, name).itemsize
        for algorithm in ALGORITHMS:
            for ranks in (2, 8, 4096):
                wire = on_the_wire(ranks, 12_345, element_bytes=size, algorithm=algorithm)
                ours = module("Object.values(m.onTheWire(...a))", ranks, 12_345, name, algorithm)
                assert ours == [wire.bytes, wire.messages, wire.in_a_row]


@pytest.mark.browser
def test_each_step_of_the_way_counts_its_ranks_and_knows_the_exact_sum(module: Any) -> None:
    body = "m.way(a[0], {dtype: 'bfloat16', algorithm: a[1], average: 'no'}).flatMap(Object.values)"
    ones = [1.0] * 512
    ring = np.reshape(module(body, ones, "ring"), (-1, 4))
    assert ring[:, 0].tolist() == list(range(1, 513))
    assert (ring[:, 2] == ring[:, 0]).all() and (ring[:, 3] == ring[:, 0]).all()
    assert ring[:, 1].tolist() == [*range(1, 257), *[256] * 256]
    for algorithm in ("tree", "halving"):
        steps = np.reshape(module(body, ones, algorithm), (-1, 4))
        assert steps[:, 0].tolist() == [2**k for k in range(10)]
        assert (steps[:, 1:] == steps[:, :1]).all()


# --- The page without a kernel ------------------------------------------------------------------


@pytest.mark.browser
def test_the_page_marks_where_a_ring_stalls_and_a_tree_does_not(
    open_explorer: OpenExplorer,
) -> None:
    page = open_explorer(ReductionExplorer(1024, "bfloat16"))
    said = page.locator(".mp-live")
    expect(said).to_have_text(
        "1024 ranks, bfloat16, ring, divided after the sum: 0.25 instead of 1, "
        "stalls after 256 of 1024 ranks, 75% off"
    )
    expect(page.locator(".mp-chart .mp-marker-label")).to_have_text("stalls after 256 ranks")
    page.get_by_label("Algorithm").select_option("tree")
    expect(said).to_contain_text("1 instead of 1, exact")
    expect(page.locator(".mp-chart .mp-marker-label")).to_have_count(0)
    expect(page.locator(".mp-table .mp-chosen th")).to_have_text("tree")


@pytest.mark.browser
def test_float16_overflows_unless_it_is_divided_before(open_explorer: OpenExplorer) -> None:
    page = open_explorer(ReductionExplorer(2048, "float16", exponent=6))
    said = page.locator(".mp-live")
    expect(said).to_contain_text("∞ instead of 64, overflows after 1024 of 2048 ranks")
    for average in ("before", "split"):
        page.get_by_label("Divided by the ranks").select_option(average)
        expect(said).to_contain_text("64 instead of 64, exact")


@pytest.mark.browser
def test_every_control_by_keyboard(open_explorer: OpenExplorer) -> None:
    page = open_explorer(ReductionExplorer(256, "float32"))
    ranks = page.get_by_role("slider", name="Ranks:")
    size = page.get_by_role("slider", name="Size of a gradient")
    ranks.focus()
    page.keyboard.press("End")
    expect(ranks).to_have_attribute("aria-valuetext", "4096 ranks")
    size.focus()
    page.keyboard.press("ArrowRight")
    expect(size).to_have_attribute("aria-valuetext", "2")
    expect(page.locator(".mp-live")).to_contain_text("4096 ranks, float32, ring")
    page.get_by_label("Parameters, millions").fill("1")
    page.get_by_label("GB/s of a rank").fill("1")
    page.keyboard.press("Tab")
    expect(page.locator(".mp-table .mp-chosen td").first).to_have_text("8 MB")
    expect(page.locator(".mp-table .mp-chosen td").last).to_have_text("8 ms")
    page.get_by_role("button", name="fp16 overflows").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".mp-live")).to_contain_text("2048 ranks, float16")


@pytest.mark.browser
def test_a_size_that_is_none_changes_nothing(open_explorer: OpenExplorer) -> None:
    page = open_explorer(ReductionExplorer(2, "float32"))
    before = page.locator(".mp-table .mp-chosen").inner_text()
    for label in ("Parameters, millions", "GB/s of a rank"):
        for wrong in ("0", "-3", "", "1e99"):
            page.get_by_label(label).fill(wrong)
            page.keyboard.press("Tab")
            assert page.locator(".mp-table .mp-chosen").inner_text() == before


@pytest.mark.browser
def test_a_sum_stalls_where_a_sixteenth_of_its_steps_or_more_change_nothing(
    load_module: LoadModule,
) -> None:
    page = load_module("reduction_explorer")
    for moving, still, stalled in (
        (300, 20, True), (300, 19, False), (256, 768, True), (10, 4, True), (10, 3, False),
        (1000, 70, True), (1000, 60, False),
    ):  # fmt: skip
        totals = [*range(1, moving + 1), *[moving] * still]
        steps = [{"count": k, "total": total} for k, total in enumerate(totals, 1)]
        found = page.evaluate("(steps) => m.stalledAfter(steps)", steps)
        assert found == (moving if stalled else None), (moving, still)


SHOWN: list[dict[str, Any]] = [
    dict(ranks=1024, dtype="bfloat16"), dict(ranks=64, dtype="float16", algorithm="tree"),
    dict(ranks=256, dtype="bfloat16", values="noisy", average="before", exponent=-9),
    dict(ranks=512, dtype="float16", values="signs", algorithm="halving", average="split"),
    dict(ranks=128, dtype="bfloat16", values="one_large", average="no", exponent=5),
    dict(ranks=2048, dtype="float32", values="noisy", exponent=3),
]  # fmt: skip


@pytest.mark.browser
def test_every_fact_is_pythons(open_explorer: OpenExplorer) -> None:
    explorers = [ReductionExplorer(**one) for one in SHOWN]
    page = open_explorer(*explorers)
    for explorer, part in zip(explorers, page.locator(".mp-explorer").all(), strict=True):
        exact, reduced = explorer.exact(), explorer.reduced()
        names, texts = (part.locator(tag).all_text_contents() for tag in ("dt", "dd"))
        facts = dict(zip(names, map(as_number, texts), strict=True))
        off, most = (x / abs(exact) for x in (abs(reduced - exact), explorer.bound()))
        assert as_number(part.locator(".mp-value").inner_text()) == pytest.approx(reduced, rel=1e-4)
        assert facts["exact"] == pytest.approx(exact, rel=1e-4)
        assert facts["relative error"] == pytest.approx(off, rel=0.06)
        assert facts["at most, by the formula"] == pytest.approx(most, rel=0.06)
        verdict = part.locator(".mp-kind").inner_text()
        assert verdict.endswith("exact" if off == 0 else f"{texts[1]} off")
        label = part.locator(".mp-chart svg").get_attribute("aria-label")
        assert label == f"The sum on its way over {explorer.ranks} ranks: {verdict}"


@pytest.mark.browser
def test_the_curves_are_the_sums_on_their_way_and_their_errors(open_explorer: OpenExplorer) -> None:
    explorers = [ReductionExplorer(**one) for one in SHOWN]
    page = open_explorer(*explorers)
    for explorer, chart in zip(explorers, page.locator(".mp-chart").all(), strict=True):
        labels = numbers_of(chart)
        column = [(y - 4, number) for x, y, number in labels if x == min(labels)[0]]
        row = [(x, number) for x, y, number in labels if y == max(y for _, y, _ in labels)]
        assert [number for _, number in column[-3:]] == [1, 1e-4, 1e-8]
        assert len(column) >= 5
        sums = Axis([number for _, number in column[:-3]], [y for y, _ in column[:-3]])
        logs = Axis([0, -4, -8], [y for y, _ in column[-3:]])
        ends = [1.0, float(explorer.ranks)]
        assert [number for _, number in row] == [1, explorer.ranks / 2, explorer.ranks]
        counts = Axis(ends, [row[0][0], row[-1][0]])
        exact, total, most, error = (curve(path) for path in chart.locator("path").all())
        _, after = divisors(explorer.ranks, explorer.average)
        for line, axis, number in (
            (exact, sums, explorer.exact() * after), (total, sums, explorer.reduced() * after)
        ):  # fmt: skip
            assert line[0][0] == pytest.approx(counts.pixel(1), abs=1)
            assert line[-1][0] == pytest.approx(counts.pixel(explorer.ranks), abs=1)
            assert line[-1][1] == pytest.approx(axis.pixel(number), abs=1.5)
        size = float(explorer.parts().abs().sum()) / (explorer.ranks / after)
        if explorer.average == "no":
            size *= explorer.ranks
        off = abs(explorer.reduced() - explorer.exact()) * after / size
        assert error[-1][1] == pytest.approx(logs.pixel(math.log10(max(off, 1e-8))), abs=1.5)
        assert all(high[1] <= low[1] + 0.2 for high, low in zip(most, error, strict=True))


UNITS = {
    "TB": 1e12,
    "GB": 1e9,
    "MB": 1e6,
    "kB": 1e3,
    "B": 1,
    "s": 1,
    "ms": 1e-3,
    "µs": 1e-6,
    "ns": 1e-9,
}


@pytest.mark.browser
@pytest.mark.parametrize(
    ("parameters", "rate"),
    [(10**12, 900.0), (10**9, 50.0), (3 * 10**6, 0.5), (777, 3.0), (1, 400.0)],
)
def test_every_row_on_the_wire_is_pythons(
    open_explorer: OpenExplorer, parameters: int, rate: float
) -> None:
    explorer = ReductionExplorer(
        64, "float16", parameters=parameters, gigabytes_per_second=rate, algorithm="tree"
    )
    page = open_explorer(explorer)
    for algorithm, row in zip(ALGORITHMS, page.locator(".mp-table tbody tr").all(), strict=True):
        wire = on_the_wire(64, parameters, element_bytes=2, algorithm=algorithm)
        sends, messages, takes = row.locator("td").all_text_contents()
        for text, wanted in ((sends, wire.bytes), (takes, wire.in_a_row / (1e9 * rate))):
            number, unit = text.split()
            assert float(number) * UNITS[unit] == pytest.approx(wanted, rel=6e-3), text
            assert 1 <= float(number) <= 1000 or unit in ("TB", "ns")
        assert int(messages) == wire.messages


DRAW_ALL = """async () => {
  const broken = [];
  const frame = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  const set = async (control, value, event) => {
    control.value = value;
    control.dispatchEvent(new Event(event));
    await frame();
    const drawn = document.querySelector(".mp-chart svg").outerHTML;
    if (/NaN|Infinity|undefined/.test(drawn)) broken.push(`${control.max} ${value}`);
  };
  const [ranks, size] = document.querySelectorAll("input[type=range]");
  for (const exponent of [-30, 0, 16]) {
    await set(size, exponent, "input");
    for (const doublings of [1, 6, 12]) {
      await set(ranks, doublings, "input");
      for (const select of document.querySelectorAll(".mp-explorer select"))
        for (const option of [...select.options]) await set(select, option.value, "change");
    }
  }
  return broken;
}"""


@pytest.mark.browser
def test_every_choice_is_drawn(open_explorer: OpenExplorer) -> None:
    page = open_explorer(ReductionExplorer(64, "float16"))
    assert page.evaluate(DRAW_ALL) == []


@pytest.mark.browser
@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 390)])
def test_axe_finds_nothing_serious_and_nothing_overflows(
    open_explorer: OpenExplorer, theme: str, width: int
) -> None:
    explorers = [ReductionExplorer(), ReductionExplorer(64, "float16", algorithm="tree")]
    page = open_explorer(*explorers, width=width, color_scheme=theme)
    assert serious_violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.browser
def test_without_javascript_the_numbers_stay(open_explorer: OpenExplorer) -> None:
    page = open_explorer(ReductionExplorer(), java_script_enabled=False)
    expect(page.locator(".mp-static")).to_contain_text("0.25, exactly 1")


# --- The widget in the kernel --------------------------------------------------------------------


@pytest.mark.parametrize("average", AVERAGES)
def test_what_stands_there_without_javascript_is_right(average: Any) -> None:
    explorer = ReductionExplorer(256, "bfloat16", average=average, exponent=-3, parameters=10**9)
    exact = 2.0**-3 * (256 if average == "no" else 1)
    assert explorer.exact() == exact
    picture = explorer._fallback()
    bytes_sent = 2 * 2 * 10**9 * 255 / 256
    for text in (f"exactly {exact:.6g}", f"{explorer.bound():.2g}, where nothing overflows",
                 f"{bytes_sent / 1e9:.4g} GB for 1,000,000,000 parameters"):  # fmt: skip
        assert text in picture
    found = re.findall("<td>(.*?)</td>", picture)
    assert found[2:4] == [f"{explorer.reduced():.6g}", f"{exact:.6g}"]


def test_results_follow_the_traits() -> None:
    explorer = ReductionExplorer(1024, torch.bfloat16)
    assert (explorer.reduced(), explorer.exact()) == (0.25, 1)
    explorer.algorithm = "tree"
    assert explorer.reduced() == 1
    explorer.algorithm, explorer.values = "ring", "one_large"
    assert explorer.reduced() == 1 and explorer.exact() == 2 - 2**-10
    assert abs(explorer.reduced() - explorer.exact()) <= explorer.bound()
    assert explorer.wire().bytes == 2 * 2 * 10**9 * 1023 / 1024


@pytest.mark.parametrize(
    ("trait", "wrong", "right"),
    [
        ("ranks", 1, "a power of two from 2 to 4096"),
        ("ranks", 12, "a power of two"),
        ("ranks", 2.0, "a power of two"),
        ("dtype", "fp16", "float16"),
        ("dtype", torch.float64, "float32"),
        ("algorithm", "star", "halving"),
        ("average", "later", "after"),
        ("values", "noise", "noisy"),
        ("exponent", 17, "from -30 to 16"),
        ("parameters", 0, "from 1 to"),
        ("gigabytes_per_second", -1.0, "above 0"),
        ("gigabytes_per_second", math.nan, "above 0"),
    ],
)
def test_bad_values_are_refused_and_change_nothing(trait: str, wrong: Any, right: str) -> None:
    explorer = ReductionExplorer()
    before = explorer.get_state()
    with pytest.raises(ValueError, match=right):
        setattr(explorer, trait, wrong)
    assert explorer.get_state() == before
    with pytest.raises(ValueError, match=right):
        ReductionExplorer(**{trait: wrong})


def test_outputs_are_the_same_on_every_run_and_hold_the_state() -> None:
    first, second = (twin(ReductionExplorer(64, "float16")) for _ in range(2))
    assert first == second
    state = json.loads(first.split('json">')[1].split("</script>")[0])
    assert state["ranks"] == 64 and state["dtype"] == "float16"
    assert repr(ReductionExplorer(2)) == (
        "ReductionExplorer(2, 'bfloat16', algorithm='ring', average='after', values='equal', "
        "exponent=0)"
    )
