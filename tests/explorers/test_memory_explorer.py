"""The memory planner: Python's formula and JavaScript's, its page, and its traits."""

from __future__ import annotations

import json
from dataclasses import asdict
from random import Random
from typing import Any

import pytest
from accessibility import serious_violations
from explorer_pages import LoadModule, OpenExplorer, twin
from playwright.sync_api import Page, expect

from mpbook.cost.device_room import BESIDE_ON_CUDA, DEVICE_GIB, RESERVE
from mpbook.cost.memory_plan import plan_memory
from mpbook.cost.parallelism import STRATEGIES
from mpbook.decoder import DecoderConfig
from mpbook.explorers import MemoryExplorer
from mpbook.explorers.census import percent
from mpbook.explorers.memory_explorer import LARGEST, LONGEST, MODELS, WAYS, size
from mpbook.models import GPTConfig
from mpbook.optimizers import OPTIMIZERS


def shapes(count: int) -> list[GPTConfig]:
    random = Random(0)
    return [
        GPTConfig(
            vocabulary=random.choice([1, 256, 50257, 200_000]),
            context=random.choice([1, 64, 1024]),
            layers=random.randint(1, 60),
            heads=(heads := random.randint(1, 30)),
            width=heads * random.choice([1, 16, 64]),
        )
        for _ in range(count)
    ]


def decoders(count: int) -> list[DecoderConfig]:
    random = Random(2)
    found = []
    for _ in range(count):
        groups, shared = random.randint(1, 8), random.choice([1, 2, 4])
        experts = random.choice([1, 1, 3, 8])
        heads = groups * shared
        found.append(
            DecoderConfig(
                vocabulary=random.choice([1, 256, 128256]),
                context=random.choice([1, 64, 1024]),
                layers=random.randint(1, 60),
                heads=heads,
                width=heads * random.choice([2, 64, 128]),
                key_value_heads=groups,
                hidden=random.choice([1, 177, 14336]),
                tied=random.random() < 0.5,
                experts=experts,
                experts_per_token=random.randint(1, experts),
            )
        )
    return found


def grid() -> list[MemoryExplorer]:
    """Every precision and optimizer, over shapes with a name and without."""
    random = Random(1)
    found = []
    for precision in WAYS:
        for optimizer in OPTIMIZERS:
            named = random.sample(list(MODELS.values()), 3)
            others = [random.choice(shapes(9)), random.choice(decoders(9))]
            for shape in (*named, *others):
                found.append(
                    MemoryExplorer(
                        shape,
                        random.choice([1, 2, 7, 64, 1000]),
                        sequence=random.randint(1, shape.context),
                        accumulation_steps=random.choice([1, 1, 2, 32]),
                        precision=precision,
                        optimizer=optimizer,
                        checkpointing=random.random() < 0.5,
                        ranks=random.choice([1, 2, 3, 8, 1000]),
                        strategy=random.choice(list(STRATEGIES)),
                        tensor_parallel=random.choice([1, 1, 2, 8]),
                    )
                )
    return found


# --- One formula, twice ------------------------------------------------------------------------

PLANS = """(states) => states.map((state) => {
  const s = m.readState((name) => state[name]);
  const p = s.plan;
  const saved = p.parameters + p.masterCopies + p.state + p.casts + p.activations;
  return {
    parameter_count: p.count, parameters: p.parameters, master_copies: p.masterCopies,
    gradients: p.gradients, held_gradients: p.heldGradients,
    optimizer_state: p.state, weight_casts: p.casts,
    activations: p.activations, loss_temporaries: p.atLoss, block_temporaries: p.atBlock,
    update_temporaries: p.atUpdate, buckets: p.buckets, moment: p.moment,
    gathered_at_loss: p.gatheredAtLoss, gathered_at_block: p.gatheredAtBlock,
    peak: p.peak, at_peak: p.atPeak,
    devices: s.devices.map(([label]) => label),
    batches: s.devices.map(([, gib]) => m.largestBatch(s.room * gib * m.GIB, s.options)),
    sentence: m.sentence(s),
  };
})"""


@pytest.mark.browser
def test_the_page_computes_what_python_computes(load_module: LoadModule) -> None:
    explorers = grid()
    states = [one.get_state(one._twin_traits) for one in explorers]
    found = load_module("memory_explorer").evaluate(PLANS, states)
    for one, page in zip(explorers, found, strict=True):
        plan = one.plan
        python = {name: getattr(plan, name) for name in page if hasattr(plan, name)}
        offered = one.largest_batches()
        python |= {"devices": list(offered), "batches": list(offered.values())}
        python |= {"sentence": repr(one)}
        assert page == python


def test_the_plan_is_that_of_the_planner() -> None:
    found = MemoryExplorer("GPT-2 355M", 4, sequence=512, precision="bf16-mixed")
    expected = plan_memory(
        MODELS["GPT-2 355M"],
        batch_size=4,
        sequence_length=512,
        precision="bf16-mixed",
        device="cuda",
    )
    assert found.plan == expected
    found.accumulation_steps = 4
    assert found.plan.held_gradients == expected.gradients
    found.checkpointing = True
    assert found.plan.activations < expected.activations
    found.optimizer = "sgd"
    assert found.plan.optimizer_state == 0


def test_a_sequence_may_be_longer_than_the_context() -> None:
    found = MemoryExplorer("GPT-2 124M", 1, sequence=2048)
    more = 1024 * 768  # positions
    assert found.plan.parameter_count == 124_439_808 + more


# --- What it says ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            dict(shape="GPT-2 124M", batch=8),
            "GPT-2 124M with 8 sequences of 1024 tokens, bf16-mixed and adamw: 8.79 GiB at the "
            "loss, 46.7% of it activations. It fits on RTX 5070, RTX 4070 Ti, RTX 3080 Ti (11.5 "
            "GiB).",
        ),
        (
            dict(shape="GPT-2 124M", batch=8, accumulation_steps=64),
            "GPT-2 124M with 64 times 8 sequences of 1024 tokens, bf16-mixed and adamw: 9.27 GiB "
            "at the loss, 44.4% of it activations. It fits on RTX 5070, RTX 4070 Ti, RTX 3080 Ti "
            "(11.5 GiB).",
        ),
        (
            dict(shape="GPT-2 124M", batch=8, precision="16-mixed"),
            "GPT-2 124M with 8 sequences of 1024 tokens, 16-mixed and adamw: 8.79 GiB at the "
            "loss, 46.7% of it activations. It fits on RTX 2080 Ti (10.6 GiB).",
        ),
        (
            dict(shape="GPT-2 1.5B", batch=64, precision="32-true"),
            "GPT-2 1.5B with 64 sequences of 1024 tokens, 32-true and adamw: 355 GiB at the loss, "
            "88.2% of it activations. It fits on none of the devices listed.",
        ),
        (
            dict(shape=GPTConfig(layers=1, width=64), batch=1, sequence=1, optimizer="sgd"),
            None,
        ),
    ],
)
def test_sentences(arguments: dict[str, Any], sentence: str | None) -> None:
    said = repr(MemoryExplorer(**arguments))
    if sentence:
        assert said == sentence
    else:
        assert said.startswith("A GPT of 1 block and width 64 with 1 sequence of 1 token, ")
        assert "at the update" in said


def test_a_decoder_is_named_and_planned() -> None:
    found = MemoryExplorer("Llama 3 8B", 1, precision="bf16-true", optimizer="adamw")
    assert found.plan.parameter_count == 8_030_261_248
    assert found.sequence == 4096
    said = repr(found)
    assert said.startswith("Llama 3 8B with 1 sequence of 4096 tokens, bf16-true and adamw: ")
    wider = MemoryExplorer(DecoderConfig(layers=3, width=128), 1)
    assert repr(wider).startswith("A decoder of 3 blocks and width 128 ")


@pytest.mark.browser
def test_another_width_keeps_a_decoder_whole(load_module: LoadModule) -> None:
    page = load_module("memory_explorer")
    shape = asdict(MODELS["Llama 3 8B"])
    changed = page.evaluate("(shape) => [1000, 2048, 8192].map((w) => m.ofWidth(shape, w))", shape)
    for one in changed:
        config = DecoderConfig(**one)  # refuses what does not divide
        assert config.head_width == 128 and config.heads == 4 * config.key_value_heads
    assert [one["width"] for one in changed] == [1024, 2048, 8192]
    assert changed[1]["hidden"] == 7168


def test_sizes_in_words() -> None:
    numbers = (999, 2**20, 2**20 - 1, 2**30, 141.4 * 2**30)
    words = ["0.976 KiB", "1 MiB", "1020 KiB", "1 GiB", "141 GiB"]
    assert [size(int(x)) for x in numbers] == words


def test_a_device_is_named_with_the_memory_that_it_reports() -> None:
    for (label, gib, _), (name, reported) in zip(
        MemoryExplorer().devices, DEVICE_GIB.items(), strict=True
    ):
        assert gib == reported and label.startswith(f"{name} (") and label.endswith(" GiB)")
        assert float(label.removeprefix(f"{name} (").split()[0]) == pytest.approx(gib, rel=5e-3)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_who_has_no_units_for_bfloat16_is_not_offered_it(precision: str) -> None:
    offered = ", ".join(MemoryExplorer(precision=precision).largest_batches())
    assert "T4" not in offered and "V100" not in offered and "RTX 5090 (31.3 GiB)" in offered
    everybody = MemoryExplorer(precision="16-mixed").largest_batches()
    assert list(everybody) == [label for label, *_ in MemoryExplorer().devices]
    assert len(everybody) == len(MemoryExplorer(precision=precision).largest_batches()) + 3


# --- The page without a kernel -----------------------------------------------------------------


def said(page: Page) -> Any:
    return page.locator(".mp-said")


@pytest.mark.browser
def test_presets_are_buttons(open_explorer: OpenExplorer) -> None:
    page = open_explorer(MemoryExplorer())
    for name, config in MODELS.items():
        page.get_by_role("button", name=name, exact=True).click()
        time = min(config.context, LONGEST)
        expect(said(page)).to_contain_text(f"{name} with 8 sequences of {time} tokens")
        expect(page.locator("button[aria-pressed=true]")).to_have_text(name)


@pytest.mark.browser
def test_the_batch_by_keyboard(open_explorer: OpenExplorer) -> None:
    page = open_explorer(MemoryExplorer())
    slider = page.get_by_label("Sequences in the batch")
    slider.press("ArrowRight")
    expect(said(page)).to_contain_text("16 sequences")
    expect(slider).to_have_attribute("aria-valuetext", "16 sequences")
    slider.press("Home")
    expect(said(page)).to_contain_text("1 sequence of")
    slider.press("End")
    expect(said(page)).to_contain_text("4096 sequences")
    assert said(page).get_attribute("aria-live") == "polite"


@pytest.mark.browser
def test_every_choice_reaches_the_plan(open_explorer: OpenExplorer) -> None:
    explorer = MemoryExplorer()
    page = open_explorer(explorer)
    page.get_by_label("Precision").select_option("bf16-true, kahan summation")
    page.get_by_label("Optimizer").select_option("momentum")
    page.get_by_label("Checkpointing").check()
    numbers = {"batch": 3, "tokens of each": 100, "accumulation steps": 4}
    for label, value in (numbers | {"Blocks": 5, "Vocabulary": 999}).items():
        page.get_by_label(label, exact=True).fill(str(value))
        page.keyboard.press("Enter")
    page.get_by_label("Width").fill("200")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Width")).to_have_value("192")
    expected = MemoryExplorer(
        GPTConfig(vocabulary=999, context=1024, layers=5, heads=3, width=192),
        3,
        sequence=100,
        accumulation_steps=4,
        precision="bf16-true, kahan summation",
        optimizer="momentum",
        checkpointing=True,
    )
    expect(said(page)).to_have_text(repr(expected))


@pytest.mark.browser
def test_ranks_strategy_and_tensor_parallelism_reach_the_plan(open_explorer: OpenExplorer) -> None:
    page = open_explorer(MemoryExplorer("GPT-2 1.5B", 2))
    expect(page.get_by_label("Strategy")).to_be_disabled()
    page.get_by_label("Ranks", exact=True).fill("8")
    page.keyboard.press("Enter")
    page.get_by_label("Strategy").select_option("ZeRO-2")
    expected = MemoryExplorer("GPT-2 1.5B", 2, ranks=8, strategy="zero2")
    expect(said(page)).to_have_text(repr(expected))
    assert "on each of 8 GPUs (zero2 over 8 ranks)" in repr(expected)
    page.get_by_label("Tensor parallel").select_option("4")
    indivisible = MemoryExplorer("GPT-2 1.5B", 2, ranks=8, strategy="zero2", tensor_parallel=4)
    expect(said(page)).to_have_text(repr(indivisible))
    assert repr(indivisible).endswith(" 4 GPUs do not divide 25 heads.")
    page.get_by_role("button", name="Llama 3 8B", exact=True).click()
    expect(said(page)).to_contain_text(
        "on each of 32 GPUs (zero2 over 8 ranks, each matrix over 4)"
    )


@pytest.mark.browser
def test_numbers_out_of_range_are_brought_back(open_explorer: OpenExplorer) -> None:
    page = open_explorer(MemoryExplorer())
    batch = page.get_by_label("batch", exact=True)
    for typed, value in (("0", "1"), ("9999", "4096"), ("", "1"), ("2.6", "3")):
        batch.fill(typed)
        batch.press("Enter")
        expect(batch).to_have_value(value)
        word = "sequence" if value == "1" else "sequences"
        expect(said(page)).to_contain_text(f"with {value} {word} of")


@pytest.mark.browser
@pytest.mark.parametrize(
    ("label", "least", "most"),
    [
        ("Ranks", 1, LARGEST["ranks"]), ("tokens of each", 1, LARGEST["sequence"]),
        ("accumulation steps", 1, LARGEST["accumulation_steps"]), ("batch", 1, LARGEST["batch"]),
        ("Blocks", 1, 200), ("Vocabulary", 1, 300_000), ("Width", 64, 16384),
    ],
)  # fmt: skip
def test_every_number_has_its_ends(
    open_explorer: OpenExplorer, label: str, least: int, most: int
) -> None:
    page = open_explorer(MemoryExplorer())
    field = page.get_by_label(label, exact=True)
    for typed, value in ((str(10**9), most), ("0", least), ("-3", least)):
        field.fill(typed)
        field.press("Enter")
        expect(field).to_have_value(str(value))
    assert "NaN" not in said(page).inner_text()


@pytest.mark.browser
def test_a_long_sequence_lengthens_the_context(open_explorer: OpenExplorer) -> None:
    page = open_explorer(MemoryExplorer())
    time = page.get_by_label("tokens of each")
    time.fill("2048")
    time.press("Enter")
    expected = MemoryExplorer(
        GPTConfig(vocabulary=50257, context=2048, layers=12, heads=12, width=768), 8
    )
    expect(said(page)).to_have_text(repr(expected))


@pytest.mark.browser
def test_the_tables_list_parts_and_devices(open_explorer: OpenExplorer) -> None:
    explorer = MemoryExplorer()
    page = open_explorer(explorer)
    parts, beside, fits = page.locator(".mp-plan table").all()
    stated = list(BESIDE_ON_CUDA)
    assert beside.locator("tbody th").all_text_contents() == stated
    assert beside.locator("tbody td").all_text_contents() == ["300 MiB", "32 MiB"]
    at_peak = {name: count for name, count in explorer.plan.at_peak.items() if count}
    assert parts.locator("tbody th").all_text_contents() == list(at_peak)
    assert parts.locator("tbody td:nth-child(2)").all_text_contents() == list(
        map(size, at_peak.values())
    )
    shares = [percent(count / explorer.plan.peak) for count in at_peak.values()]
    assert parts.locator("tbody td:nth-child(3)").all_text_contents() == shares
    found = explorer.largest_batches()
    assert fits.locator("tbody th").all_text_contents() == list(found)
    yes = ["yes" if explorer.batch <= largest else "no" for largest in found.values()]
    assert fits.locator("tbody td:nth-child(2)").all_text_contents() == yes
    batches = list(map(str, found.values()))
    assert fits.locator("tbody td:nth-child(3)").all_text_contents() == batches


@pytest.mark.browser
def test_every_part_has_a_colour_of_its_own(open_explorer: OpenExplorer) -> None:
    explorers = [
        MemoryExplorer("GPT-2 355M", 16),
        MemoryExplorer("GPT-2 1.5B", 1, accumulation_steps=2, ranks=8, strategy="ddp"),
        MemoryExplorer("GPT-2 124M", 1, sequence=1, precision="bf16-true, kahan summation"),
        MemoryExplorer("Llama 3 8B", 4, ranks=8, strategy="zero2", precision="bf16-mixed"),
        MemoryExplorer("Llama 3 8B", 1, sequence=8, ranks=512, accumulation_steps=2),
    ]
    page = open_explorer(*explorers)
    page.add_style_tag(content=":root { --pst-color-primary: #0a7d91 }")  # a theme's accent
    colours: dict[str, set[str]] = {}
    for explorer, part in zip(explorers, page.locator(".mp-explorer").all(), strict=True):
        names = [name for name, count in explorer.plan.at_peak.items() if count]
        for kind, style in ((".mp-swatch", "backgroundColor"), (".mp-bytes", "fill")):
            seen = part.locator(kind).evaluate_all(
                "(all, style) => all.map((one) => getComputedStyle(one)[style])", style
            )
            for name, colour in zip(names, seen, strict=True):
                colours.setdefault(name, set()).add(colour)
    assert {"gathered weights", "reduce buffers", "activations", "optimizer state"} <= set(colours)
    assert all(len(seen) == 1 for seen in colours.values()), colours
    assert len(set.union(*colours.values())) == len(colours), colours


@pytest.mark.browser
def test_the_bar_has_a_part_for_each_category(open_explorer: OpenExplorer) -> None:
    explorer = MemoryExplorer("GPT-2 355M", 16)
    page = open_explorer(explorer)
    widths = page.eval_on_selector_all(
        ".mp-bytes", "parts => parts.map((r) => Number(r.getAttribute('width')))"
    )
    counts = [count for count in explorer.plan.at_peak.values() if count]
    chart = page.locator(".mp-chart svg")
    marks = [
        (float(mark.get_attribute("x") or 0), (mark.text_content() or "").removesuffix(" GiB"))
        for mark in chart.locator("text").all()
    ]
    assert len(marks) >= 2
    for x, gib in marks[:-1]:  # the last may be moved into the picture
        assert x / sum(widths) == pytest.approx(float(gib) * 2**30 / sum(counts), rel=0.01)
    assert chart.get_attribute("aria-label") == (
        f"{size(explorer.plan.peak)} at the peak, in parts that the table lists"
    )
    assert [w / sum(widths) for w in widths] == pytest.approx(
        [c / sum(counts) for c in counts], abs=0.002
    )


@pytest.mark.browser
@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 390)])
def test_axe_finds_nothing_serious_and_nothing_overflows(
    open_explorer: OpenExplorer, theme: str, width: int
) -> None:
    explorers = [MemoryExplorer(), MemoryExplorer("GPT-2 1.5B", 64, checkpointing=True)]
    page = open_explorer(*explorers, width=width, color_scheme=theme)
    assert serious_violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.browser
def test_without_javascript_the_numbers_stay(open_explorer: OpenExplorer) -> None:
    page = open_explorer(MemoryExplorer(), java_script_enabled=False)
    expect(page.locator(".mp-static figcaption")).to_have_text(repr(MemoryExplorer()))
    row = page.locator(".mp-static tr", has_text="activations")
    assert row.locator("td").all_text_contents() == ["4.11 GiB"]
    explorer = MemoryExplorer()
    wanted = [f"{name}, beside the peak (stated by others)" for name in BESIDE_ON_CUDA]
    wanted += explorer.largest_batches()
    rows = page.locator(".mp-static tr")
    heads, cells = (rows.locator(tag).all_text_contents() for tag in ("th", "td"))
    assert heads[-len(wanted) :] == wanted
    batches = [f"batch {batch}" for batch in explorer.largest_batches().values()]
    assert cells[-len(batches) :] == batches


# --- The widget in the kernel ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch", 0), ("batch", 5000), ("batch", True), ("batch", 2.0), ("sequence", 0),
        ("ranks", 0), ("strategy", "zero3"), ("tensor_parallel", 3), ("tensor_parallel", True),
        ("accumulation_steps", 0), ("accumulation_steps", 1025),
        ("precision", "tf32"), ("optimizer", "lion"), ("shape", "GPT-3"),
        ("shape", GPTConfig(bias=False)),
    ],
)  # fmt: skip
def test_bad_values_are_refused_and_change_nothing(name: str, value: Any) -> None:
    explorer = MemoryExplorer()
    before = explorer.get_state()
    with pytest.raises(ValueError, match=name):
        setattr(explorer, name, value)
    assert explorer.get_state() == before


def test_outputs_are_the_same_on_every_run_and_hold_the_state() -> None:
    first, second = (twin(MemoryExplorer("GPT-2 774M", 3)) for _ in range(2))
    assert first == second
    state = json.loads(first.split('json">')[1].split("</script>")[0])
    assert sorted(state) == sorted(MemoryExplorer._twin_traits)
    assert state["shape"]["layers"] == 36 and state["batch"] == 3
    assert state["room"] == 1 - RESERVE
    assert [name for name, _ in state["presets"]] == list(MODELS)
