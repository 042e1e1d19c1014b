"""Published figures against the collection's own summary, and what they refuse to mix."""

from __future__ import annotations

import dataclasses
import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

from mpbook.evidence.published import SOURCES, Figures, Measurement, forest, load, published
from mpbook.evidence.published.figures import summaries
from mpbook.evidence.published.measurement import DATA
from mpbook.evidence.published.reading import GENERATIONS

SPEED = {"claim": "2-4x-throughput"}
GPT2 = {"claim": "gpt2-2x-tokens", "quantity": "speed"}
SMALL = "small|124M"
CARDS = ("RTX 4090", "RTX 5090")
FP8 = {"claim": "fp8-speed"}

# Whoever collected the figures added them up by hand: figures, sources, lowest, median, highest.
BY_HAND: list[tuple[dict[str, Any], tuple[int, int, float, float, float]]] = [
    (SPEED | {"baseline": "float32", "precision": "mixed", "generation": "Pascal"},
     (3, 3, 0.99, 1.00, 1.23)),
    (SPEED | {"baseline": "float32", "precision": "mixed", "generation": "Volta"},
     (49, 5, 1.33, 2.70, 5.50)),
    (SPEED | {"baseline": "float32", "precision": "mixed", "generation": "Turing"},
     (19, 4, 1.46, 2.01, 4.17)),
    (SPEED | {"baseline": "float32", "precision": "mixed", "generation": ("Volta", "Turing")},
     (68, 7, 1.33, 2.61, 5.50)),
    (SPEED | {"precision": "16-bit weights"}, (12, 1, 1.07, 1.41, 1.55)),
    (SPEED | {"baseline": "TF32", "generation": "Ampere"}, (50, 2, 0.84, 1.77, 2.66)),
    (SPEED | {"baseline": "TF32", "generation": "Ada"}, (10, 1, 1.69, 1.80, 2.17)),
    (SPEED | {"baseline": "TF32", "generation": "Hopper"}, (17, 1, 1.36, 1.81, 2.26)),
    (SPEED | {"baseline": "TF32", "generation": "Blackwell"}, (5, 1, 0.98, 1.64, 1.97)),
    (SPEED | {"baseline": "TF32"}, (82, 2, 0.84, 1.79, 2.66)),
    (GPT2 | {"baseline": "TF32", "precision": "mixed"}, (6, 4, 1.18, 1.30, 2.14)),
    (GPT2 | {"baseline": "float32", "precision": "mixed", "model": SMALL},
     (35, 15, 0.75, 1.37, 2.26)),
    ({"claim": "achievable-peak", "baseline": "float32", "precision": "16 bits",
      "generation": "Turing"}, (8, 3, 0.56, 2.28, 10.05)),
    ({"claim": "2x-batch", "generation": "Volta"}, (15, 2, 1.50, 2.00, 2.50)),
    ({"claim": "achievable-peak", "generation": "Hopper", "model": "single matrix product",
      "hardware": "SXM"}, (5, 1, 0.71, 0.78, 0.84)),
]  # fmt: skip


@pytest.mark.parametrize(("chosen", "expected"), BY_HAND)
def test_summaries_are_those_that_were_added_up_by_hand(
    chosen: dict[str, Any], expected: tuple[int, int, float, float, float]
) -> None:
    found = published(**chosen).summary()
    assert (found.figures, found.sources) == expected[:2]
    assert [found.low, found.median, found.high] == pytest.approx(list(expected[2:]), abs=0.0051)


def test_a_baseline_that_is_not_stated_is_kept_apart() -> None:
    small = published(**GPT2, precision="mixed", model=SMALL)
    apart, float32 = small.where(baseline="float32 or TF32"), small.where(baseline="float32")
    assert len(apart) == 7 and float32.summary().figures == 35
    together = [*float32.ratios, *apart.ratios]
    assert round(statistics.median(together), 2) == 1.35 and sum(r < 1 for r in together) == 10


def test_none_is_dropped_and_every_source_is_named() -> None:
    rows = json.loads(DATA.read_text("utf-8"))
    assert [figure.id for figure in load()] == [row["id"] for row in rows]
    assert len(load()) == 653 and {figure.source for figure in load()} == set(SOURCES)


def test_generations_are_told_apart_oldest_first() -> None:
    groups = published().by("generation")
    known = [name for name in groups if name]
    assert known == [name for name in GENERATIONS if name in groups] and len(known) >= 7
    assert sum(map(len, groups.values())) == len(load()) and list(groups)[-1] == ""


def test_every_figure_is_classified_and_can_be_found_again() -> None:
    for figure in load():
        assert figure.precision and figure.quantity
        assert bool(figure.baseline) == (figure.precision_a is not None)
        assert figure.generation in (*GENERATIONS, "")
        assert figure.url.startswith("https://") and " " not in figure.url
        assert figure.year is None or 2017 <= figure.year <= 2026


def test_one_vote_a_source_is_the_median_of_medians() -> None:
    both = published(**SPEED, baseline="float32", precision="mixed", generation=("Volta", "Turing"))
    assert both.summary().one_vote == pytest.approx(1.98, abs=0.0051)


def test_shares_count_what_the_collection_counts() -> None:
    over_tf32 = published(**SPEED, baseline="TF32")
    assert round(over_tf32.share(lambda ratio: ratio >= 2) * len(over_tf32)) == 22


@pytest.mark.parametrize(
    "chosen", [SPEED | {"precision": "mixed"}, {"baseline": "float32", "precision": "mixed"}]
)
def test_two_baselines_or_two_quantities_are_not_added_up(chosen: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="add up one at a time"):
        published(**chosen).summary()


def test_what_is_not_known_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"generation='Pasqal': expected one of .*'Pascal'"):
        published(generation="Pasqal")
    with pytest.raises(ValueError, match="'gpu': expected one of claim"):
        published(gpu="A100")
    with pytest.raises(ValueError, match="'colour'"):
        published().by("colour")


def test_nothing_to_add_up_is_an_error() -> None:
    nothing = published(model="no such model")
    for add in (nothing.summary, lambda: nothing.share(bool), lambda: forest(nothing, xlabel="x")):
        with pytest.raises(LookupError, match="no published figure"):
            add()
    assert nothing.table().rows == []


def changed(**values: Any) -> Measurement:
    return dataclasses.replace(load()[0], **values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"source_repository": None, "source_path": " "}, "needs its source"),
        ({"source_where": ""}, "source_where is empty"),
        ({"ratio": 2.64}, "the values give 2.6333"),
        ({"ratio": None}, "the values give 2.633"),
        ({"value_a": None}, "the values give None"),
        ({"unit": "furlongs"}, "unit='furlongs': no pattern"),
        ({"precision_a": "posit16"}, "precision_a='posit16': no pattern"),
    ],
)
def test_a_figure_that_does_not_follow_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        changed(**values)


@pytest.mark.parametrize(
    ("values", "whole"),
    [
        ({}, True),
        ({"unit": "GiB peak, forward+backward"}, False),
        ({"model": "GPT-2, forward only"}, False),
        ({"caveat": "no optimizer state"}, False),
    ],
)
def test_a_step_without_its_optimizer_is_no_whole_step(values: dict[str, Any], whole: bool) -> None:
    step = {"model": "GPT-2", "unit": "GiB", "value_a": 5.0, "value_b": 4.0, "ratio": 0.8}
    assert changed(**step | values).whole_step == whole


def test_the_memory_of_whole_steps_of_the_small_shape() -> None:
    found = published(claim="gpt2-40-percent-memory", precision="mixed")
    steps = found.that(lambda figure: figure.whole_step).summary()
    assert (steps.figures, steps.sources) == (6, 2)
    assert (round(steps.low, 2), round(steps.high, 2)) == (0.79, 0.84)


def test_what_pages_say_of_products_in_bfloat16() -> None:
    products = published(claim="achievable-peak", baseline="float32", precision="16 bits")
    found = products.that(lambda figure: figure.precision_b == "bf16")
    said = {
        r"P40|V100|T4|RTX 20": (0.5, 0.7),  # half to three quarters
        r"RTX (30|40)": (3.1, 3.4),
        "": (0.5, 13.8),  # 0.5 to 14
    }
    for cards, (low, high) in said.items():
        some = found.that(lambda figure, cards=cards: re.search(cards, figure.hardware) is not None)
        assert (round(min(some.ratios), 1), round(max(some.ratios), 1)) == (low, high), cards


def test_what_pages_say_of_trainings_in_fp8() -> None:
    whole = published(claim="fp8-speed").where(kind_of_model="Transformers")
    rowwise = whole.that(lambda figure: "rowwise" in figure.precision_b)
    found = whole.summary()
    assert (found.figures, found.sources, len(rowwise)) == (41, 9, 5)
    assert (round(found.median, 2), round(found.high, 2)) == (1.17, 1.55)
    assert round(rowwise.summary().median, 1) == 1.0  # no faster
    cards = {card: whole.that(lambda f, card=card: card in f.hardware).ratios for card in CARDS}
    assert [round(ratio, 2) for ratio in cards["RTX 4090"]] == [1.04]
    assert [round(edge(cards["RTX 5090"]), 2) for edge in (min, max)] == [1.4, 1.55]


def test_what_a_page_says_of_nvfp4_over_fp8() -> None:
    pairs = published(quantity="quality", precision="4 bits", baseline="8 bits")
    percent = {pair.id: round(100 * (pair.improvement or 0), 1) for pair in pairs}
    assert [by for name, by in percent.items() if name.endswith("loss")] == [-0.3, -0.4]
    assert (percent["nvfp4-paper-code"], percent["nvfp4-paper-mmlu-pro"]) == (-4.8, -0.1)


def test_a_pair_is_compiled_where_both_sides_are() -> None:
    pairs = [figure for figure in published(**GPT2, precision="mixed") if figure.compiled]
    assert [figure.baseline for figure in pairs] == ["TF32", "float32 or TF32"]
    assert not changed(precision_a="fp32, eager", precision_b="fp32, compiled").compiled
    assert not changed(
        precision_a=None, value_a=None, ratio=None, precision_b="bf16, compiled"
    ).compiled


@pytest.mark.parametrize(
    ("hardware", "card"),
    [
        ("1x RTX 3090 24GB", "RTX 3090"),
        ("1x RTX 3090 Ti", "RTX 3090 Ti"),
        ("1x RTX 2070 Super", "RTX 2070 Super"),
        ("1x RTX 4060 Laptop 8GB", "RTX 4060 Laptop"),
        ("NVIDIA A100 PCIe", "A100"),
        ("1x A10 24GB", "A10"),
        ("AMD MI300X", "AMD MI300X"),
        ("4x Blackwell (184 GiB class)", ""),
        ("A100 and V100", ""),
        ("not stated", ""),
    ],
)
def test_a_card_is_named_without_count_memory_and_board(hardware: str, card: str) -> None:
    assert changed(hardware=hardware).card == card


def test_every_card_is_of_one_generation() -> None:
    for card, figures in Figures(load()).by("card").items():
        assert not card or len(figures.by("generation")) == 1


@pytest.mark.parametrize(
    ("unit", "improvement"),
    [
        ("training loss (lower is better)", 0.25),
        ("accuracy (higher is better)", -0.25),
        ("GiB", None),
    ],
)
def test_better_is_told_by_the_unit(unit: str, improvement: float | None) -> None:
    assert changed(value_a=4.0, value_b=3.0, ratio=0.75, unit=unit).improvement == improvement
    alone = changed(value_a=None, value_b=3.0, ratio=None, unit=unit)
    assert alone.improvement is None


def test_an_address_has_no_letters_that_an_address_may_not_have() -> None:
    found = changed(source_path="students/\u9648/a (1).md and b.md").url
    assert found.endswith("/students/%E9%99%88/a%20%281%29.md")


@pytest.mark.parametrize(
    ("hardware", "generation"),
    [
        ("1x RTX 2070 Super", "Turing"),
        ("1x RTX 3060 12GB", "Ampere"),
        ("1x A800-SXM4 80GB", "Ampere"),
        ("1x RTX 3090 Ti", "Ampere"),
        ("1x L4", "Ada"),
        ("1x RTX 4070", "Ada"),
        ("1x RTX 5090", "Blackwell"),
        ("1x RTX PRO 6000 96GB", "Blackwell"),
        ("1x RTX 6000 Ada 48GB", "Ada"),
        ("1x Titan V", "Volta"),
        ("1x Titan RTX", "Turing"),
    ],
)
def test_consumer_cards_have_their_generation(hardware: str, generation: str) -> None:
    assert changed(hardware=hardware).generation == generation


def test_a_time_and_a_rate_give_the_same_ratio() -> None:
    rate = changed(value_a=2.0, value_b=3.0, unit="images/s", ratio=1.5)
    time = changed(value_a=3.0, value_b=2.0, unit="ms per step", ratio=1.5)
    assert (rate.quantity, time.quantity) == ("speed", "speed")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.append(rows[0]), "occur twice"),
        (lambda rows: rows[3].pop("caveat"), "'caveat'"),
        (lambda rows: rows[3].update(colour="red"), "'colour'"),
    ],
)
def test_a_file_that_was_damaged_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    rows = json.loads(DATA.read_text("utf-8"))
    change(rows)
    (tmp_path / "damaged.json").write_text(json.dumps(rows), "utf-8")
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "damaged.json")


def test_a_forest_has_a_row_for_each_generation_and_baseline() -> None:
    mixed = published(**SPEED, precision="mixed")
    axes = forest(mixed, xlabel="times as fast").axes[0]
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert labels[0].startswith("Pascal, over float32") and "3 figures, 3 sources" in labels[0]
    assert len(labels) == len({(f.generation, f.baseline) for f in mixed})
    dots = sum(len(c.get_offsets()) for c in axes.collections if hasattr(c, "get_sizes"))
    assert dots >= len(mixed.ratios) + len(labels)


def test_a_forest_of_two_quantities_is_refused() -> None:
    with pytest.raises(ValueError, match="draw one at a time"):
        forest(published(), xlabel="x")


def of(*ratios: float, **values: Any) -> Figures:
    """Speeds that are these ratios."""
    speed = {"unit": "images/s", "value_a": 1.0}
    return Figures(tuple(changed(value_b=r, ratio=r, **speed | values) for r in ratios))


ALONE: dict[str, Any] = {"precision_a": None, "value_a": None, "ratio": None}


def test_a_forest_shows_medians_and_one_vote_a_source_on_axes_of_its_own() -> None:
    one = {"source_repository": "karpathy/nanoGPT"}
    figures = Figures((*of(1.0, 1.0, 1.0, 5.0), *of(2.0, **one)))
    axes = forest(figures, xlabel="times", mark=1.5).axes[0]
    dots, diamond = (c for c in axes.collections if hasattr(c, "get_sizes"))
    (bar,) = (c for c in axes.collections if hasattr(c, "get_segments"))
    assert len({tuple(place) for place in dots.get_offsets().tolist()}) == 5  # none hides another
    assert {x for x, _ in bar.get_segments()[0].tolist()} == {1.0}
    assert diamond.get_offsets().tolist() == [[1.5, 0.0]]
    assert list(axes.lines[0].get_xdata()) == [1.5, 1.5]


def test_a_forest_has_the_oldest_on_top_and_a_colour_for_each_baseline() -> None:
    from matplotlib.colors import to_rgba

    from mpbook.plots import COLOURS

    tf32 = {"precision_a": "tf32", "hardware": "1x A100"}
    float32 = {"precision_a": "fp32", "hardware": "1x V100"}
    both = Figures((*of(1.0, **tf32), *of(2.0, **float32)))
    axes = forest(both, xlabel="times").axes[0]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    bars = [c.get_colors()[0] for c in axes.collections if hasattr(c, "get_segments")]
    assert [tuple(bar) for bar in bars] == [to_rgba(COLOURS[n]) for n in ("32-true", "tf32")]


def test_a_model_is_looked_for_whatever_the_case() -> None:
    assert 0 < len(published(model="resnet")) == len(published(model="RESNET"))
    assert 0 < len(published(hardware="a100")) == len(published(hardware="A100"))


def test_what_has_no_ratio_is_no_part_of_a_share_a_count_or_a_table() -> None:
    figures = Figures((*of(1.0, 3.0), changed(**ALONE)))
    assert figures.share(lambda ratio: ratio >= 2) == 1 / 2
    assert figures.counts == "2 figures, 1 source"
    apart = summaries({"some": figures, "none": Figures((changed(**ALONE),))}, by="kind")
    assert [(row[0], row[1]) for row in apart.rows] == [("some", 2)]


def test_a_group_without_a_name_says_so() -> None:
    unknown = of(1.0, hardware="not stated")
    assert [row[0] for row in unknown.table("generation").rows] == ["not named"]


def test_a_bar_in_a_name_does_not_end_a_cell() -> None:
    shown = of(1.0, model="GPT-2 | small")._repr_markdown_()
    assert r"GPT-2 \| small" in shown


def test_a_ratio_is_refused_where_its_fourth_decimal_is_wrong() -> None:
    value = dict(value_a=3.0, value_b=2.0, unit="images/s")
    assert changed(ratio=0.6667, **value).ratio == 0.6667
    with pytest.raises(ValueError, match=r"ratio=0.6668, but the values give 0.6667"):
        changed(ratio=0.6668, **value)


def test_an_address_is_that_of_the_commit_that_was_read() -> None:
    assert changed(source_commit="abc123").url.split("/blob/")[1].startswith("abc123/")


@pytest.mark.parametrize(
    ("name", "baseline"),
    [
        ("fp32", "float32"),
        ("fp32 weights, bf16 activations", "float32 weights"),
        ("fp32 (TF32 setting not stated)", "float32 or TF32"),
        ("fp32, hence tf32 on this card", "TF32"),
        ("bf16", "16 bits"),
    ],
)
def test_a_baseline_is_read_by_what_it_computes_in(name: str, baseline: str) -> None:
    assert changed(precision_a=name).baseline == baseline


def test_figures_are_listed_with_their_source_and_caveat() -> None:
    shown = Figures(load()[:1])._repr_markdown_()
    assert load()[0].url in shown and str(load()[0].caveat) in shown
