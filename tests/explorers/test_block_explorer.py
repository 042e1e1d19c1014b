"""The block explorer: its arithmetic against Python's, its page without a kernel, and its traits."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, get_args

import numpy as np
import pytest
import torch
from explorer_pages import LoadModule
from playwright.sync_api import Page
from torch import Tensor

from mpbook.explorers.block_explorer import BLOCKS, ELEMENTS, NUMBERS, quantised
from mpbook.formats import FORMATS, ulp
from mpbook.formats.block_description import BlockFormat
from mpbook.formats.blocks import ScaleMode

# --- The arithmetic -----------------------------------------------------------------------------

SEED = 7
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
    "the largest float32": with_values(torch.finfo(torch.float32).max, -(2.0**-149)),
}
COMPANIONS = (0.0, 2.0**-140, 1.0, 3e5, 3e38, float("inf"), float("nan"))
"""Largest magnitudes in the rest of the tensor."""

COMPUTE = """([values, amaxes, formats, keys]) => {
  const numbers = (bits) => Array.from(new Float32Array(Uint32Array.from(bits).buffer));
  const bitsOf = (xs) => [...new Uint32Array(Float32Array.from(xs).buffer)];
  const rows = values.map(numbers), amax = numbers(amaxes);
  return formats.map((format) => rows.map((row, i) => {
    const most = m.largestOf([...row, amax[i]]);
    const { elements, scales, numbers } = m.quantise(row, most, format, keys && m.keysOf(keys));
    return [elements, scales, numbers].map(bitsOf);
  }));
}"""


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


@pytest.fixture(scope="module")
def arithmetic(load_module: LoadModule) -> Page:
    return load_module("blocks")


@pytest.mark.browser
@pytest.mark.parametrize("seed", [None, SEED], ids=["nearest", "stochastic"])
@pytest.mark.parametrize("element", ELEMENT_FORMATS, ids=lambda element: element.name)
def test_elements_scales_and_numbers_equal_pythons(
    arithmetic: Page, element: Any, seed: int | None
) -> None:
    rows = [row for row in ROWS.values() for _ in COMPANIONS]
    others = torch.tensor(COMPANIONS * len(ROWS))
    described = [
        (BlockFormat("tried", element, block if block == "tensor" else (1, block), scale, two), mode)  # type: ignore[arg-type]
        for block in BLOCKS
        for scale, two, mode in SCALED
    ]
    given = [[bits(row) for row in rows], bits(others), [as_json(*one) for one in described]]
    found = arithmetic.evaluate(COMPUTE, [*given, None if seed is None else [seed, 0]])
    for (format, mode), of_rows in zip(described, found, strict=True):
        for row, other, ours in zip(rows, others, of_rows, strict=True):
            pair = torch.stack([row, torch.full_like(row, 0.0)])
            pair[1, 0] = other
            blocks = quantised(pair, format, scale_mode=mode or "rceil", seed=seed)
            wanted = [blocks.values[0], blocks.scales[0], blocks.dequantise()[0]]
            for mine, theirs in zip(ours, wanted, strict=True):
                words = np.array(mine, np.uint32).view(np.float32)
                assert_same(words, theirs.numpy(), f"{format} {mode}")


def assert_same(ours: Any, wanted: Any, where: str) -> None:
    """Equal as numbers, NaN to NaN and -0 to -0."""
    np.testing.assert_array_equal(ours, wanted, err_msg=where)
    finite = ~np.isnan(wanted)
    np.testing.assert_array_equal(
        np.signbit(ours[finite]), np.signbit(wanted[finite]), err_msg=where
    )
