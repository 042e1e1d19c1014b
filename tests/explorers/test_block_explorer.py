"""The block explorer: its arithmetic against Python's, its page without a kernel, its traits."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
from typing import Any, get_args

import numpy as np
import pytest
import torch
from accessibility import serious_violations
from explorer_pages import Axis, LoadModule, OpenExplorer, as_number, numbers_of, twin
from playwright.sync_api import Locator, Page, expect
from torch import Tensor

from mpbook.explorers import BlockExplorer
from mpbook.explorers.block_explorer import (
    BLOCKS,
    ELEMENTS,
    NUMBERS,
    PRESETS,
    ROTATIONS,
    as_rows,
    quantised,
)
from mpbook.formats import FORMATS, FloatFormat, decode, round_to, ulp
from mpbook.formats.block_description import BLOCK_FORMATS, BlockFormat
from mpbook.formats.blocks import ScaleMode
from mpbook.low_precision.hadamard import hadamard_transform, random_signs

# --- The arithmetic -----------------------------------------------------------------------------

ELEMENT_FORMATS = [FORMATS[name] for name in ELEMENTS]
SCALED = [
    ("float32", False, None), ("float8_e4m3fn", False, None), ("float8_e4m3fn", True, None),
    *(("float8_e8m0fnu", False, mode) for mode in get_args(ScaleMode)),
]  # fmt: skip


def anywhere(low: float, high: float, seed: int = 0) -> Tensor:
    """Numbers of both signs, evenly spread over these powers of two."""
    numbers = np.random.default_rng(seed)
    sizes = np.exp2(numbers.uniform(low, high, NUMBERS)) * numbers.choice([-1, 1], NUMBERS)
    return torch.from_numpy(sizes).float()


def with_values(*values: float, every: int = 16) -> Tensor:
    """Ordinary numbers, and in each block one of these after another."""
    row = anywhere(-3, 1)
    for i, value in zip(range(3, NUMBERS, every), itertools.cycle(values), strict=False):
        row[i] = value
    return row


def ties(exponent: int) -> Tensor:
    """Numbers of the elements, the middles between them, and the float32 on either side of each."""
    found = []
    for element in ELEMENT_FORMATS:
        start = torch.tensor([1.0, 1.5, 2.0, 3.0, element.max / 2, element.smallest_normal])
        middles = start.double() + ulp(start, element) / 2
        found += [start, middles.float(), -middles.float()]
    row = torch.cat(found)
    row = torch.cat([row, torch.nextafter(row, torch.tensor(0.0)), row * (1 + 2.0**-23)])
    row = row[torch.randperm(len(row), generator=torch.Generator().manual_seed(0))][:NUMBERS]
    row[::16] = 6.0  # so that a scale is a power of two, or 1, in some formats
    return row * 2.0**exponent


def thresholds() -> Tensor:
    """In each block a largest magnitude at which a scale mode changes its mind, or beside it."""
    tops = torch.tensor([1.0, 1.25, 1.5, 1.75, 1.875, 1.9375, 1.96875, 2.0])
    row = anywhere(-4, -0.5)
    row[::16] = torch.nextafter(tops, torch.tensor(0.0))
    row[1::16] = tops * torch.tensor([1, 0.5]).repeat(4)
    return row


LARGEST = "the largest float32"
ROWS: dict[str, Tensor] = {
    "ordinary": anywhere(-6, 2),
    "a huge spread": anywhere(-149, 128, 1),
    "tiny": anywhere(-149, -120, 2),
    "large": anywhere(110, 128, 3),
    "ties": ties(0),
    "ties, small": ties(-130),
    "thresholds": thresholds(),
    "zeros of both signs": torch.tensor([0.0, -0.0] * (NUMBERS // 2)),
    "a block of zeros": torch.cat([torch.zeros(64), anywhere(-3, 1)[:64]]),
    "an outlier": with_values(1e4, 1.0, 1.0, 1.0),
    "infinities": with_values(float("inf"), 1.0, float("-inf"), 3.0),
    "NaN": with_values(float("nan"), 1.0, 2.0, 1.0),
    "the smallest float32": 2.0**-149 * torch.arange(NUMBERS).remainder(3) - 2.0**-149,
    LARGEST: with_values(torch.finfo(torch.float32).max, -(2.0**-149)),
}
TENSORS = {
    "a tensor": torch.stack([anywhere(-12, 2, seed) for seed in range(8)]),
    "an outlier": with_values(1e4, 1.0, 1.0, 1.0)[None],
}
LABELS = {
    "tensor": "Row of", "element": "Elements", "block": "A scale for", "scale": "Scale",
    "scale_mode": "Scale mode", "rounding": "Rounding", "hadamard": "Hadamard",
}  # fmt: skip

COMPANIONS = (0.0, 2.0**-140, 1.0, 3e5, 3e38, float("inf"), float("nan"))
"""Largest magnitudes in the rest of the tensor."""

PAIRS = [
    *zip(ROWS.values(), itertools.cycle(COMPANIONS), strict=False),
    *((ROWS["ordinary"], other) for other in COMPANIONS),
]


def scales_at_ties(element: FloatFormat) -> list[tuple[Tensor, float]]:
    """Rows, and their tensors' largest magnitude, where an E4M3 scale needs both roundings.

    The scale's quotient is a tie of E4M3, or beside it, after one rounding to float32, and not
    after two, or the other way round.
    """
    numbers, most = np.random.default_rng(0), np.float32(element.max)
    amaxes = numbers.uniform(512, 1024, 1000).astype(np.float32)
    tensor_scales = amaxes / np.float32(448 * element.max)
    ties = numbers.integers(8, 15, 1000) + 0.5
    tops = (ties * element.max * tensor_scales.astype(np.float64)).astype(np.float32)
    twice = tops / most / tensor_scales
    once = (tops.astype(np.float64) / element.max / tensor_scales).astype(np.float32)
    scales = [
        round_to(torch.from_numpy(quotients), "float8_e4m3fn", overflow="saturate")
        for quotients in (once, twice)
    ]
    differ = (scales[0] != scales[1]).nonzero()[:8, 0]
    assert len(differ) == 8
    rows = [torch.zeros(NUMBERS).index_fill(0, torch.tensor([5]), float(tops[i])) for i in differ]
    return [(row, float(amaxes[i])) for row, i in zip(rows, differ, strict=True)]


def quotients_at_ties(element: FloatFormat) -> Tensor:
    """Numbers whose quotient is a tie of the elements in float32, and beside it in exact terms."""
    numbers = np.random.default_rng(1)
    values = np.array([decode(code, element) for code in range(1, element.max_code + 1)])
    blocks = []
    while len(blocks) < NUMBERS // 16:
        amax = np.float32(numbers.uniform(512, 1024))
        scale = amax / np.float32(element.max)
        ties = numbers.choice((values[1:] + values[:-1]) / 2, 1000)
        x = (ties * scale.astype(np.float64)).astype(np.float32)
        beside = (x / scale == ties) & (x.astype(np.float64) / scale.astype(np.float64) != ties)
        if beside.sum() >= 15:
            blocks.append(np.concatenate([[amax], x[beside][:15]]))
    return torch.from_numpy(np.concatenate(blocks)).float()


def pairs_for(element: FloatFormat) -> list[tuple[Tensor, float]]:
    """Rows, each with the largest magnitude in the rest of its tensor."""
    return [*PAIRS, *scales_at_ties(element), (quotients_at_ties(element), 0.0)]


# One text there and one back: of a list, Playwright looks at every number by itself.
COMPUTE = """(given) => {
  const [values, amaxes, formats, keys] = JSON.parse(given);
  const numbers = (bits) => Array.from(new Float32Array(Uint32Array.from(bits).buffer));
  const rows = values.map(numbers), amax = numbers(amaxes);
  return JSON.stringify(formats.map((format) => {
    const found = rows.map((row, i) => {
      const most = m.largestOf([...row, amax[i]]);
      return m.quantise(row, most, format, keys && m.keysOf(keys));
    });
    return ["elements", "scales", "numbers"].map((what) =>
      [...new Uint32Array(Float32Array.from(found.flatMap((q) => q[what])).buffer)]);
  }));
}"""

Described = tuple[BlockFormat, ScaleMode | None]


def bits(x: Tensor) -> list[int]:
    return [int(word) for word in x.contiguous().numpy().view(np.uint32)]


def as_json(format: BlockFormat, mode: ScaleMode | None) -> dict[str, Any]:
    return {
        "element": dataclasses.asdict(format.element),
        "scale": dataclasses.asdict(format.scale),
        "block": format.block[1] if isinstance(format.block, tuple) else format.block,
        "tensorScale": format.tensor_scale,
        "mode": mode,
    }


def every_format(element: FloatFormat) -> list[Described]:
    """With these elements, each block and each kind of scale."""
    return [
        (BlockFormat("tried", element, _shape(block), FORMATS[scale], tensor_scale=two), mode)
        for block in BLOCKS
        for scale, two, mode in SCALED
    ]


def _shape(block: int | str) -> Any:
    return block if block == "tensor" else (1, block)


def in_python(format: BlockFormat, mode: ScaleMode | None, seed: int | None) -> list[Tensor]:
    """Elements, scales and numbers of all rows, one after another."""
    found = []
    for row, other in pairs_for(format.element):
        pair = torch.stack([row, torch.zeros(NUMBERS)])
        pair[1, 0] = other
        blocks = quantised(pair, format, scale_mode=mode or "rceil", seed=seed)
        found.append([blocks.values[0], blocks.scales[0], blocks.dequantise()[0]])
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


@pytest.mark.browser
@pytest.mark.parametrize("seed", [None, 2**31 - 1], ids=["nearest", "stochastic"])
@pytest.mark.parametrize("element", ELEMENT_FORMATS, ids=lambda element: element.name)
def test_elements_scales_and_numbers_equal_pythons(
    load_module: LoadModule, element: FloatFormat, seed: int | None
) -> None:
    formats = every_format(element)
    rows, others = zip(*pairs_for(element), strict=True)
    keys = None if seed is None else [seed, 0]
    given = [[*map(bits, rows)], bits(torch.tensor(others)), [as_json(*f) for f in formats], keys]
    found = json.loads(load_module("blocks").evaluate(COMPUTE, json.dumps(given)))
    for (format, mode), ours in zip(formats, found, strict=True):
        for mine, theirs in zip(ours, in_python(format, mode, seed), strict=True):
            numbers = np.array(mine, np.uint32).view(np.float32)
            assert_same(numbers, theirs.numpy(), f"{format} {mode}")


def assert_same(ours: Any, wanted: Any, where: str) -> None:
    """Equal as numbers, NaN to NaN and -0 to -0."""
    np.testing.assert_array_equal(ours, wanted, err_msg=where)
    finite = ~np.isnan(wanted)
    np.testing.assert_array_equal(np.signbit(ours[finite]), np.signbit(wanted[finite]), where)


@pytest.mark.browser
def test_neighbouring_seeds_draw_other_numbers(load_module: LoadModule) -> None:
    """Otherwise the seed of the test above could be left out of the draws."""
    body = "(seed) => m.quantise(Array(128).fill(1.1), 1.5, a.format, m.keysOf([seed, 0])).elements"
    format = as_json(BLOCK_FORMATS["mxfp4"], "rceil")
    page = load_module("blocks")
    drawn = [page.evaluate(f"(a) => ({body})(a.seed)", dict(format=format, seed=s)) for s in (0, 1)]
    assert all(set(elements) == {2, 3} or set(elements) == {4, 6} for elements in drawn)
    assert drawn[0] != drawn[1]


# --- What became of a row -----------------------------------------------------------------------


@pytest.mark.browser
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("hadamard", ROTATIONS)
def test_the_fate_of_a_row_equals_pythons(
    load_module: LoadModule, preset: str, hadamard: int | None
) -> None:
    explorer = BlockExplorer(TENSORS, preset, scale_mode="floor", hadamard=hadamard)
    for name in TENSORS:
        explorer.tensor = name
        (row, amax), fate = explorer.row(), explorer.fate()
        found = load_module("blocks").evaluate(
            "([row, amax, f]) => m.fateOf(row, m.quantise(row, amax, f), f)",
            [row.tolist(), amax, as_json(explorer.format(), "floor")],
        )
        assert (found["zeros"], found["saturated"]) == (fate.zeros, fate.saturated)
        ours = [found["error"], found["medianError"], found["bits"]]
        assert ours == pytest.approx([fate.error, fate.median_error, fate.bits], rel=1e-9)


def test_zeros_and_saturated_numbers_are_counted_by_hand() -> None:
    row = torch.ones(128)
    row[:4] = torch.tensor([6.9, 7.5, 0.2, -0.0])  # floor: 2**2 lies on 4, the scale is 1
    explorer = BlockExplorer({"x": row[None]}, "MXFP4", scale_mode="floor")
    assert explorer.blocks().scales[0, 0] == 1
    fate = explorer.fate()
    assert (fate.zeros, fate.saturated, fate.bits) == (1, 1, 4.25)
    off = torch.tensor([0.9, 1.5, 0.2]).norm() / row.norm()
    assert fate.error == pytest.approx(off.item(), rel=1e-6)
    assert fate.median_error == 0
    explorer.scale_mode = "rceil"
    assert explorer.fate().saturated == 0


def test_the_scale_of_a_tensor_comes_from_all_of_it() -> None:
    explorer = BlockExplorer({"x": (torch.tensor([[1.0], [1000.0]]).expand(2, 128), 0)})
    for block, zeros in (("tensor", 128), (128, 0), (16, 0)):
        explorer.block = block
        assert explorer.fate().zeros == zeros
    explorer.block, explorer.scale = 16, "float8_e4m3fn"
    assert explorer.blocks().tensor_scale == pytest.approx(1000 / (448 * 6), rel=1e-6)


def test_a_rotated_row_is_that_of_the_rotated_tensor() -> None:
    explorer = BlockExplorer({"x": (TENSORS["a tensor"], 3)}, hadamard=32)
    row, amax = explorer.row()
    signs = random_signs(32, torch.Generator().manual_seed(0))
    rotated = hadamard_transform(TENSORS["a tensor"].double(), 32, signs=signs)
    torch.testing.assert_close(row.double(), rotated[3, :128], rtol=0, atol=1e-5)
    assert amax == pytest.approx(rotated.abs().max().item(), rel=1e-5)


def test_the_row_of_the_most_lopsided_numbers_is_shown() -> None:
    tensor = torch.ones(5, 256)
    tensor[2, 200] = 100.0  # beyond the 128 that are shown
    tensor[3, 5] = -50.0
    assert as_rows({"x": tensor})[0]["row"] == 3


# --- The page without a kernel ------------------------------------------------------------------


def open_one(open_explorer: OpenExplorer, preset: str = "FP4, tensorwise", **options: Any) -> Page:
    return open_explorer(BlockExplorer(TENSORS, preset), **options)


def chooser(page: Page, name: str) -> Locator:
    return page.get_by_role("combobox", name=name, exact=True)


@pytest.mark.browser
def test_a_preset_and_each_choice_change_what_is_lost(open_explorer: OpenExplorer) -> None:
    page, explorer = open_one(open_explorer), BlockExplorer(TENSORS, "FP4, tensorwise")
    said, rings = page.locator(".mp-live"), page.locator("circle.mp-block-zero")
    assert explorer.fate().zeros > 60
    expect(said).to_contain_text(f"of 128 numbers {explorer.fate().zeros} became zero")
    expect(rings).to_have_count(explorer.fate().zeros)
    page.get_by_role("button", name="NVFP4").click()
    for choices in (dict(element="float4_e2m1fn", block=16, scale="float8_e4m3fn"),
                    dict(block=64), dict(hadamard=16), dict(element="float8_e4m3fn"),
                    dict(scale="float8_e8m0fnu"), dict(element="float4_e2m1fn"),
                    dict(scale_mode="floor"), dict(tensor="an outlier"),
                    dict(rounding="stochastic")):  # fmt: skip
        for trait, value in choices.items():
            setattr(explorer, trait, value)
            chooser(page, LABELS[trait]).select_option(str(value))
        expect(rings).to_have_count(explorer.fate().zeros)
        expect(page.locator("path.mp-block-saturated")).to_have_count(explorer.fate().saturated)
        edges = explorer.blocks().scales.shape[1] - 1
        expect(page.locator("line.mp-block-edge")).to_have_count(edges)
    explorer.seed = 1
    page.get_by_role("button", name="Draw again").click()
    expect(rings).to_have_count(explorer.fate().zeros)


@pytest.mark.browser
def test_a_scale_mode_is_for_powers_of_two_alone(open_explorer: OpenExplorer) -> None:
    page = open_one(open_explorer, "MXFP8")
    mode, again = chooser(page, "Scale mode"), page.get_by_role("button", name="Draw again")
    expect(mode).to_be_enabled()
    expect(again).to_be_hidden()
    page.get_by_role("button", name="NVFP4").click()
    expect(mode).to_be_disabled()
    pressed = page.get_by_role("button", name="NVFP4")
    expect(pressed).to_have_attribute("aria-pressed", "true")
    expect(page.locator("tr.mp-chosen th")).to_have_text("NVFP4")
    chooser(page, "A scale for").select_option("32")
    expect(pressed).to_have_attribute("aria-pressed", "false")


@pytest.mark.browser
def test_one_number_step_by_step_by_keyboard_and_by_pointer(open_explorer: OpenExplorer) -> None:
    row = torch.ones(128)
    row[:4] = torch.tensor([12.0, -2.75, 0.2, 6.5])
    page = open_explorer(BlockExplorer({"x": row[None]}, "MXFP4"))
    cells, title = page.locator(".mp-steps dd"), page.locator(".mp-steps p")
    page.get_by_label("Look at number").focus()
    page.keyboard.press("ArrowRight")
    expect(title).to_have_text("Number 1: −2.75 becomes −3, off by 9.1%")
    expect(cells).to_have_text(["12", "2¹", "−1.375", "−1.5", "1 01 1", "−3"])
    page.keyboard.press("ArrowRight")
    expect(title).to_have_text("Number 2: 0.2 becomes 0, off by 100%")
    svg = page.locator(".mp-block-chart svg")
    box = svg.bounding_box()
    assert box
    slot = (box["width"] - 34) / 128
    svg.click(position={"x": 30 + 3.5 * slot, "y": 100})
    expect(title).to_have_text("Number 3: 6.5 becomes 6, off by 7.7%")
    chooser(page, "Scale mode").select_option("floor")
    page.keyboard.press("Tab")
    page.get_by_label("Look at number").press("Home")
    expect(title).to_have_text("Number 0: 12 becomes 12, exactly")


SHOWN: list[dict[str, Any]] = [
    *(dict(preset=name) for name in PRESETS), dict(preset="MXFP4", scale_mode="floor"),
    dict(preset="NVFP4", tensor="an outlier", number=3), dict(preset="MXFP8", number=127),
    dict(preset="MXFP4", rounding="stochastic", number=5, seed=3),
    dict(preset="NVFP4", hadamard=16, number=100), dict(preset="FP4, tensorwise", number=64),
]  # fmt: skip


def off_by(text: str) -> float:
    return as_number(text.split(" (")[0])


@pytest.mark.browser
def test_every_fate_is_pythons(open_explorer: OpenExplorer) -> None:
    explorers = [BlockExplorer(TENSORS, **one) for one in SHOWN]
    page = open_explorer(*explorers)
    for explorer, part in zip(explorers, page.locator(".mp-explorer").all(), strict=True):
        fate = explorer.fate()
        zeros, saturated, error, median, width = part.locator(".mp-fate dd").all_text_contents()
        assert (zeros, saturated) == (f"{fate.zeros} of 128", f"{fate.saturated} of 128")
        assert off_by(error) == pytest.approx(fate.error, rel=0.06)
        if fate.error:
            decibels = as_number(re.findall(r"\((\S+) dB\)", error)[0])
            assert decibels == pytest.approx(-20 * math.log10(fate.error), abs=0.51)
        assert off_by(median) == pytest.approx(fate.median_error, rel=0.06)
        assert float(width) == fate.bits
        label = part.locator(".mp-block-chart svg").get_attribute("aria-label") or ""
        assert label.endswith(f"{fate.zeros} became zero, {fate.saturated} saturated")
        rows = part.locator(".mp-table tbody tr")
        for (name, format), row in zip(PRESETS.items(), rows.all(), strict=True):
            fate = explorer.fate(format)
            cells = row.locator("td").all_text_contents()
            assert cells[:2] == [str(fate.zeros), str(fate.saturated)], name
            wanted = [fate.error, fate.median_error, fate.bits]
            assert [*map(as_number, cells[2:])] == pytest.approx(wanted, rel=0.06), name


@pytest.mark.browser
def test_every_step_of_a_number_is_pythons(open_explorer: OpenExplorer) -> None:
    explorers = [BlockExplorer(TENSORS, **one) for one in SHOWN]
    page = open_explorer(*explorers)
    for explorer, part in zip(explorers, page.locator(".mp-explorer").all(), strict=True):
        i, (row, amax), blocks = explorer.number, explorer.row(), explorer.blocks()
        size = NUMBERS if explorer.block == "tensor" else int(explorer.block)
        block = slice(i // size * size, (i // size + 1) * size)
        scale = float(blocks.scales[0, i // size])
        tensor_scale = 1.0 if blocks.tensor_scale is None else float(blocks.tensor_scale)
        becomes = float(blocks.dequantise()[0, i])
        most = amax if explorer.block == "tensor" else float(row[block].abs().max())
        texts = part.locator(".mp-steps dd").all_text_contents()
        scales = [as_number(text) for text in texts[1].split(" × ")]
        element = float(blocks.values[0, i])
        wanted = [most, float(row[i]) / (scale * tensor_scale), element, becomes]
        found = [as_number(texts[k]) for k in (0, 2, 3, 5)]
        assert found == pytest.approx(wanted, rel=1e-3)
        assert scales[0] == pytest.approx(scale, rel=6e-3)
        if blocks.tensor_scale is not None:
            assert scales[1] == pytest.approx(tensor_scale, rel=1e-3)
        code = int(texts[4].replace(" ", ""), 2)
        assert decode(code, explorer.format().element) == element
        said = part.get_by_label("Look at number").get_attribute("aria-valuetext") or ""
        index, before, after = re.fullmatch(r"number (\d+), (\S+) becomes (\S+)", said).groups()  # type: ignore[union-attr]
        assert int(index) == i
        given = [as_number(before), as_number(after)]
        assert given == pytest.approx([float(row[i]), becomes], rel=6e-3)


DRAWN = """(svg) => {
  const boxes = (kind) => [...svg.querySelectorAll(kind)].map((part) =>
    ["x", "y", "width", "height"].map((name) => Number(part.getAttribute(name))));
  return [boxes(".mp-block-band"), boxes(".mp-block-column")];
}"""


@pytest.mark.browser
def test_bands_and_the_chosen_number_stand_where_they_should(open_explorer: OpenExplorer) -> None:
    explorers = [BlockExplorer(TENSORS, **one) for one in SHOWN]
    page = open_explorer(*explorers)
    for explorer, svg in zip(explorers, page.locator(".mp-block-chart svg").all(), strict=True):
        labels = [label for label in numbers_of(svg) if label[0] == 25 and label[2]]
        axis = Axis([math.log2(n) for _, _, n in labels], [y - 4 for _, y, _ in labels])
        bands, (column,) = svg.evaluate(DRAWN)
        blocks, element = explorer.blocks(), explorer.format().element
        scales = blocks.scales[0].double()
        scales = scales if blocks.tensor_scale is None else scales * blocks.tensor_scale
        top, floor = 34, 34 + 250
        assert len(bands) == len(scales)
        for (_, y, _, height), scale in zip(bands, scales.tolist(), strict=True):
            least = 2.0**element.lowest_binade / 2**element.mantissa_bits / 2
            ends = [axis.pixel(math.log2(size * scale)) for size in (element.max, least)]
            wanted = [min(max(end, top), floor) for end in ends]
            assert [y, y + height] == pytest.approx(wanted, abs=1)
        slot = column[2]
        first = min(band[0] for band in bands) - 0.5
        assert column[0] == pytest.approx(first + explorer.number * slot, abs=1)


DRAW_ALL = """async () => {
  const broken = [];
  const selects = [...document.querySelectorAll(".mp-explorer select")];
  const choose = async (select, value) => {
    select.value = value;
    select.dispatchEvent(new Event("change"));
    await new Promise((done) => setTimeout(done));
    const drawn = document.querySelector(".mp-explorer").textContent
      + document.querySelector(".mp-block-chart svg").outerHTML;
    if (/NaN|Infinity|undefined/.test(drawn)) broken.push([select.value, value]);
  };
  for (const row of selects[4].options) {
    await choose(selects[4], row.value);
    for (const select of selects.slice(0, 4)) {
      for (const { value } of select.options) await choose(select, value);
    }
  }
  return broken;
}"""


@pytest.mark.browser
def test_every_choice_is_drawn_of_rows_of_any_size(open_explorer: OpenExplorer) -> None:
    names = ("a huge spread", "a block of zeros", "zeros of both signs", LARGEST)
    page = open_explorer(BlockExplorer({name: ROWS[name][None] for name in names}))
    assert page.evaluate(DRAW_ALL) == []


@pytest.mark.browser
@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 390)])
def test_axe_finds_nothing_serious_and_nothing_overflows(
    open_explorer: OpenExplorer, theme: str, width: int
) -> None:
    page = open_one(open_explorer, "NVFP4", width=width, color_scheme=theme)
    assert serious_violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.browser
def test_without_javascript_the_numbers_stay(open_explorer: OpenExplorer) -> None:
    page = open_one(open_explorer, java_script_enabled=False)
    fate = BlockExplorer(TENSORS, "NVFP4").fate()
    row = page.locator(".mp-static tr", has_text="NVFP4").locator("td")
    assert row.all_text_contents()[:2] == [str(fate.zeros), str(fate.saturated)]
    assert row.last.text_content() == "4.5"
    errors = [as_number(text) for text in row.all_text_contents()[2:4]]
    assert errors == pytest.approx([fate.error, fate.median_error], rel=0.06)


# --- The widget in the kernel --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trait", "wrong", "right"),
    [
        ("tensor", "y", "expected one of .*a tensor"),
        ("element", "float8_e4m3fnuz", "float8_e4m3fn"),
        ("block", 8, "expected one of"),
        ("block", True, "expected one of"),
        ("scale", "bfloat16", "float8_e8m0fnu"),
        ("scale_mode", "up", "rceil"),
        ("rounding", "toward-zero", "stochastic"),
        ("hadamard", 8, "16"),
        ("seed", -1, "from 0"),
        ("number", 128, "from 0 to 127"),
    ],
)
def test_bad_values_are_refused_and_change_nothing(trait: str, wrong: Any, right: str) -> None:
    explorer = BlockExplorer(TENSORS)
    before = explorer.get_state()
    with pytest.raises(ValueError, match=right):
        setattr(explorer, trait, wrong)
    assert explorer.get_state() == before
    with pytest.raises(ValueError, match=right):
        BlockExplorer(TENSORS, **{trait: wrong})


@pytest.mark.parametrize(
    ("tensors", "error", "right"),
    [
        ({}, ValueError, "at least one"),
        ({"x": torch.ones(128)}, ValueError, r"'x'.*shape \(128,\).*multiple of 128"),
        ({"x": torch.ones(2, 100)}, ValueError, "multiple of 128"),
        ({"x": torch.ones(0, 128)}, ValueError, "multiple of 128"),
        ({"x": torch.ones(2, 128).int()}, TypeError, "'x'.*int32"),
        ({"x": [1.0]}, TypeError, "'x'.*list"),
        ({"x": (torch.ones(2, 128), 2)}, ValueError, "row=2, expected 0 to 1"),
        ({"x": torch.full((2, 128), float("nan"))}, ValueError, "NaN or infinity"),
    ],
)
def test_tensors_that_cannot_be_drawn_are_named(tensors: Any, error: Any, right: str) -> None:
    with pytest.raises(error, match=right):
        BlockExplorer(tensors)


def test_a_preset_that_nobody_knows_is_named() -> None:
    with pytest.raises(ValueError, match="MXFP4"):
        BlockExplorer(TENSORS, "mxfp4 ")


def test_outputs_are_the_same_on_every_run_and_small() -> None:
    first, second = (twin(BlockExplorer(TENSORS)) for _ in range(2))
    assert first == second
    assert len(first) < 12_000
    assert repr(BlockExplorer(TENSORS)) == (
        "BlockExplorer(tensor='a tensor', element='float4_e2m1fn', block=32, "
        "scale='float8_e8m0fnu', rounding='nearest-even', hadamard=None)"
    )
