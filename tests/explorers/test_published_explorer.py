"""The explorer of published measurements: its words in both languages, its page, its traits."""

from __future__ import annotations

import math
import re
import statistics
from random import Random
from typing import Any

import pytest
from accessibility import serious_violations
from explorer_pages import Axis, LoadModule, OpenExplorer, numbers_of, twin
from playwright.sync_api import Page, expect

from mpbook.evidence.published import Figures, published
from mpbook.explorers import PublishedExplorer
from mpbook.explorers.published_explorer import FILTERS, NONE, QUANTITIES

MIXED = {"precision": "mixed"}


def compared(**chosen: Any) -> Figures:
    """Published figures that have a ratio."""
    return published(**chosen).compared


def test_it_says_what_the_figures_add_up_to() -> None:
    sentences = PublishedExplorer(**MIXED, generation="Ampere").sentences()
    by_baseline = compared(quantity="speed", generation="Ampere", **MIXED).by("baseline")
    assert len(sentences) == len(by_baseline) > 1
    for said, (baseline, figures) in zip(sentences, by_baseline.items(), strict=True):
        found = figures.summary()
        assert said.startswith(f"Over {baseline}: {found.figures} figures of {found.sources} ")
        assert f"{found.low:.2f} to {found.high:.2f} times as fast" in said


def test_every_figure_with_a_ratio_can_be_chosen_and_no_other() -> None:
    rows = PublishedExplorer().rows
    assert {row["id"] for row in rows} == {f.id for f in compared()}
    assert {row["quantity"] for row in rows} == set(QUANTITIES)


def test_a_choice_that_no_figure_agrees_with_says_what_to_do() -> None:
    assert PublishedExplorer("batch", generation="Pascal").sentences() == [NONE]


def random_explorer(random: Random, explorer: PublishedExplorer) -> dict[str, Any]:
    rows = explorer.rows
    state: dict[str, Any] = {"quantity": random.choice(list(QUANTITIES)), "chosen": ""}
    for name in FILTERS:
        state[name] = random.choice(["", "", random.choice(rows)[name]])
    return state


@pytest.mark.browser
def test_the_page_says_what_python_says(load_module: LoadModule) -> None:
    random, explorer = Random(3), PublishedExplorer()
    states, expected = [], []
    for _ in range(300):
        state = random_explorer(random, explorer)
        for name, value in state.items():
            setattr(explorer, name, value)
        states.append(state)
        expected.append(explorer.sentences())
    said = load_module("published_explorer").evaluate(
        "([rows, states]) => states.map((s) => m.sentences(m.readState((n) => ({...s, rows})[n])))",
        [explorer.rows, states],
    )
    assert said == expected
    assert [NONE] in said and sum(len(one) > 1 for one in said) > 20


# --- The page without a kernel --------------------------------------------------------------------


def select(page: Page, label: str) -> Any:
    named = page.locator("label", has=page.get_by_text(label, exact=True))
    return named.locator("select")


@pytest.mark.browser
def test_filters_narrow_and_a_new_quantity_widens_again(open_explorer: OpenExplorer) -> None:
    page = open_explorer(PublishedExplorer(**MIXED))
    expect(page.locator(".mp-dot")).to_have_count(len(compared(quantity="speed", **MIXED)))
    select(page, "GPU").select_option("Volta")
    select(page, "Compared with").select_option("float32")
    volta = published(quantity="speed", generation="Volta", baseline="float32", **MIXED)
    expect(page.locator(".mp-words")).to_contain_text(f"Over float32: {len(volta)} figures")
    expect(page.locator(".mp-dot")).to_have_count(len(volta))
    select(page, "Ratio of").select_option("memory")
    assert select(page, "GPU").input_value() == ""
    expect(page.locator(".mp-dot")).to_have_count(len(compared(quantity="memory")))


@pytest.mark.browser
def test_a_click_on_a_dot_shows_its_source(open_explorer: OpenExplorer) -> None:
    page = open_explorer(PublishedExplorer(generation="Pascal", **MIXED))
    figure = max(
        published(quantity="speed", generation="Pascal", **MIXED), key=lambda f: f.ratio or 0
    )
    page.locator(f'[data-id="{figure.id}"]').click()
    source = page.locator(".mp-source")
    expect(source).to_contain_text(f"{figure.ratio:.2f} times as fast: {figure.model}")
    expect(source).to_contain_text(figure.source_where)
    expect(source.get_by_role("link")).to_have_attribute("href", figure.url)
    expect(page.locator(".mp-dot-chosen")).to_have_attribute("data-id", figure.id)
    if figure.caveat:
        expect(page.get_by_text("Before you compare")).to_contain_text(figure.caveat)


@pytest.mark.browser
def test_figures_are_stepped_through_by_keyboard(open_explorer: OpenExplorer) -> None:
    page = open_explorer(PublishedExplorer("batch", generation="Volta"))
    lower, higher = (page.get_by_role("button", name=name) for name in ("lower", "higher"))
    higher.focus()
    seen = []
    for _ in range(len(published(quantity="batch", generation="Volta"))):
        page.keyboard.press("Enter")
        seen.append(page.locator(".mp-dot-chosen").get_attribute("data-id"))
    ratios = {f.id: f.ratio for f in published(quantity="batch")}
    found = [ratios[str(name)] for name in seen]
    assert len(set(seen)) == len(seen) and found == sorted(found, key=lambda r: r or 0)
    expect(higher).to_be_disabled()
    lower.click()
    expect(page.locator(".mp-dot-chosen")).to_have_attribute("data-id", str(seen[-2]))


@pytest.mark.browser
def test_nothing_found_says_so_and_leaves_no_dot(open_explorer: OpenExplorer) -> None:
    page = open_explorer(PublishedExplorer("peak"))
    select(page, "GPU").select_option("AMD")
    select(page, "Model").select_option("Transformers")
    expect(page.locator(".mp-words")).to_have_text(NONE)
    assert page.locator(".mp-dot").count() == 0
    expect(page.get_by_role("button", name="higher")).to_be_disabled()


FOREST = """(svg) => {
  const all = (kind) => [...svg.querySelectorAll(kind)];
  return {
    rows: all(".mp-row-label").map((label) => label.textContent),
    medians: all(".mp-median").map((line) => [line.x1.baseVal.value, line.dataset.hue]),
    votes: all(".mp-vote").map((path) => Number(path.getAttribute("d").match(/M(\\S+)/)[1]) + 5),
    dots: all(".mp-dot").map((dot) => [dot.dataset.id, dot.cx.baseVal.value, dot.cy.baseVal.value, dot.dataset.hue]),
  };
}"""  # noqa: E501


@pytest.mark.browser
@pytest.mark.parametrize("quantity", QUANTITIES)
def test_every_dot_median_and_vote_stands_at_its_ratio(
    open_explorer: OpenExplorer, quantity: str
) -> None:
    explorer = PublishedExplorer(quantity)
    svg = open_explorer(explorer).locator(".mp-forest svg")
    labels = numbers_of(svg)
    axis = Axis([math.log(n) for *_, n in labels], [x for x, *_ in labels])
    found = svg.evaluate(FOREST)
    rows = {row["id"]: row for row in explorer.rows if row["quantity"] == quantity}
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows.values():
        groups.setdefault(f"{row['generation']}, over {row['baseline']}", []).append(row)
    counted = [f"{name} ({len(group)})" for name, group in groups.items()]
    assert sorted(found["rows"]) == sorted(counted)
    assert sorted(one[0] for one in found["dots"]) == sorted(rows)
    for name, x, _, hue in found["dots"]:
        assert x == pytest.approx(axis.pixel(math.log(rows[name]["ratio"])), abs=1)
        assert hue == hue_of(rows[name]["baseline"])
    for said, (median, hue), vote in zip(
        found["rows"], found["medians"], found["votes"], strict=True
    ):
        group = groups[re.sub(r" \(\d+\)$", "", said)]
        sources = {row["source"] for row in group}
        each = [[r["ratio"] for r in group if r["source"] == source] for source in sources]
        middle = statistics.median(row["ratio"] for row in group)
        assert median == pytest.approx(axis.pixel(math.log(middle)), abs=1)
        assert hue == hue_of(group[0]["baseline"])
        one_vote = statistics.median(map(statistics.median, each))
        assert vote == pytest.approx(axis.pixel(math.log(one_vote)), abs=1)
    noun = ("published ratio", "row")
    sizes = (len(rows), len(groups))
    parts = [f"{n} {word}{'' if n == 1 else 's'}" for n, word in zip(sizes, noun, strict=True)]
    expect(svg).to_have_attribute("aria-label", f"Forest plot of {' in '.join(parts)}")


def hue_of(baseline: str) -> str:
    """The format whose colour a baseline has."""
    return {"float32": "float32", "TF32": "tfloat32", "16 bits": "bfloat16"}.get(baseline, "other")


def test_every_baseline_with_a_colour_is_one() -> None:
    baselines = {row["baseline"] for row in PublishedExplorer().rows}
    assert {"float32", "TF32", "16 bits"} <= baselines


@pytest.mark.browser
def test_the_source_of_each_figure_is_told_whole(open_explorer: OpenExplorer) -> None:
    figures = [published(quantity=quantity).compared.rows[0] for quantity in QUANTITIES]
    explorers = [PublishedExplorer(f.quantity, chosen=f.id) for f in figures]
    page = open_explorer(*explorers)
    for figure, source in zip(figures, page.locator(".mp-source").all(), strict=True):
        expect(source).to_contain_text(
            f"{figure.model}, {figure.hardware}, {figure.year or 'not stated'}. "
            f"From {figure.precision_a} to {figure.precision_b}: {figure.value_a:g} to "
            f"{figure.value_b:g} {figure.unit}. Published by {figure.source}, "
        )


@pytest.mark.browser
def test_filters_offer_what_is_there_and_years_in_order(open_explorer: OpenExplorer) -> None:
    explorer = PublishedExplorer(generation="Ampere")
    page = open_explorer(explorer)
    rows = [row for row in explorer.rows if row["quantity"] == "speed"]
    assert select(page, "GPU").input_value() == "Ampere"
    for label, field in (("Year", "year"), ("GPU", "generation"), ("Model", "kind_of_model")):
        offered = select(page, label).locator("option").all_text_contents()
        values = list(dict.fromkeys(row[field] for row in rows))
        assert offered == ["all", *(sorted(values) if field == "year" else values)]


@pytest.mark.browser
def test_one_cannot_step_below_the_lowest(open_explorer: OpenExplorer) -> None:
    page = open_explorer(PublishedExplorer("batch", generation="Volta"))
    lower, higher = (page.get_by_role("button", name=name) for name in ("lower", "higher"))
    expect(lower).to_be_enabled()
    higher.click()
    expect(lower).to_be_disabled()
    higher.click()
    expect(lower).to_be_enabled()


DRAWN = """() => {
  const svg = document.querySelector("svg");
  const [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
  const at = (dot, name) => Number(dot.getAttribute(name));
  const out = [...svg.querySelectorAll("circle")].filter((dot) =>
    !(at(dot, "cx") >= 0 && at(dot, "cx") <= width && at(dot, "cy") <= height));
  return [/NaN|undefined|Infinity/.test(svg.outerHTML), out.length];
}"""


@pytest.mark.browser
@pytest.mark.parametrize("quantity", QUANTITIES)
def test_every_quantity_is_drawn_inside_the_picture(
    open_explorer: OpenExplorer, quantity: str
) -> None:
    assert open_explorer(PublishedExplorer(quantity), width=390).evaluate(DRAWN) == [False, 0]


@pytest.mark.browser
@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 390)])
def test_axe_finds_nothing_serious_and_nothing_overflows(
    open_explorer: OpenExplorer, theme: str, width: int
) -> None:
    chosen = published(quantity="speed").rows[0].id
    page = open_explorer(PublishedExplorer(**MIXED, chosen=chosen), width=width, color_scheme=theme)
    assert serious_violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.browser
def test_without_javascript_the_medians_stay(open_explorer: OpenExplorer) -> None:
    explorer = PublishedExplorer("batch")
    page = open_explorer(explorer, java_script_enabled=False)
    for sentence in explorer.sentences():
        expect(page.locator(".mp-static")).to_contain_text(sentence)
    volta = published(quantity="batch", generation="Volta")
    row = page.locator(".mp-static tr", has_text="Volta, over float32").locator("td")
    assert row.all_text_contents() == [str(len(volta)), f"{statistics.median(volta.ratios):.2f}"]


# --- The widget in the kernel ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trait", "wrong", "right"),
    [
        ("quantity", "power", "quantity='power': expected one of"),
        ("generation", "Pasqal", "generation='Pasqal': expected one of Pascal"),
        ("year", "1999", "year='1999': expected one of"),
        ("chosen", "nobody", "chosen='nobody': expected one of"),
    ],
)
def test_bad_values_are_refused_and_change_nothing(trait: str, wrong: str, right: str) -> None:
    found = PublishedExplorer()
    before = found.get_state()
    with pytest.raises(ValueError, match=right):
        setattr(found, trait, wrong)
    assert found.get_state() == before


def test_outputs_are_the_same_on_every_run() -> None:
    assert twin(PublishedExplorer()) == twin(PublishedExplorer())
