"""The GPU explorer: the reader's own GPU, measured in the page that shows it.

A built page has no kernel and no torch, but WebGPU reaches the GPU behind the browser.  The module
measures what float16 is there bit for bit, how fast products and memory are, and trains a small
net on scikit-learn's digits.  What it finds is the reader's: nothing is stored or sent.

Shown on the page "Your GPU".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import traitlets

from mpbook.cost.roofline import STATED, Roof
from mpbook.data import digits
from mpbook.explorers.base import Checked, Explorer
from mpbook.explorers.modules import STATIC, linked
from mpbook.explorers.roofs import as_roofs, plain

EXAMPLES = 512
"""How many digits the page carries: a letter a pixel, some 10 KB on the wire."""

TILE = 64  # the side of a tile of a matrix product
LARGEST = 8192


def _as_sizes(sizes: Any) -> list[int]:
    listed = list(sizes)
    for n in listed:
        if type(n) is not int or n % TILE or not TILE <= n <= LARGEST:
            raise ValueError(f"sizes={n!r}: expected multiples of {TILE} up to {LARGEST}")
    if not listed or listed != sorted(listed):
        raise ValueError(f"sizes={listed}: expected at least one, in rising order")
    return listed


def _as_elements(elements: Any) -> int:
    if type(elements) is not int or not 2**11 <= elements <= 2**28 or elements.bit_count() != 1:
        raise ValueError(f"elements={elements!r}: expected a power of two from 2**11 to 2**28")
    return elements


def _as_steps(steps: Any) -> int:
    if type(steps) is not int or not 1 <= steps <= 10_000:
        raise ValueError(f"steps={steps!r}: expected an integer from 1 to 10000")
    return steps


def lettered_digits(count: int = EXAMPLES) -> dict[str, str]:
    """The first training digits as text that compresses well.

    Args:
        count: how many.

    Returns:
        ``pixels``, a letter from a (0) to q (16) a pixel, 64 an example; ``labels``, a digit each.
    """
    data = digits()
    inputs = data.inputs[:count]
    levels = ((inputs - data.inputs.min()) * 16).round().int().flatten().tolist()
    labels = "".join(map(str, data.targets[:count].tolist()))
    return {"pixels": "".join(chr(ord("a") + level) for level in levels), "labels": labels}


class GpuExplorer(Explorer):
    """What float16 is on the reader's GPU, how fast the GPU is, and a training on it.

    Everything runs in the browser, also in Jupyter: the kernel's device takes no part.

    Args:
        sizes: sides of the square matrices to multiply, multiples of 64 in rising order; the
            measurement ends before a size whose product would take the GPU about a second.
        elements: how many numbers the bandwidth is measured over, a power of two.
        steps: how long the training is.
        roofs: the data sheets that what was measured can be laid under.

    Raises:
        ValueError: an argument that cannot be measured; it names what would be right.
        ImportError: scikit-learn, whose digits are learnt, is not installed.
    """

    _esm = linked(STATIC / "gpu_explorer.mjs")
    _twin = "gpu_explorer"
    _twin_traits = ("digits", "sizes", "elements", "steps", "roofs")

    digits = traitlets.Dict(read_only=True).tag(sync=True)
    sizes = Checked(_as_sizes, [256]).tag(sync=True)
    elements = Checked(_as_elements, 2**25).tag(sync=True)
    steps = Checked(_as_steps, 600).tag(sync=True)
    roofs = Checked(as_roofs, [], read_only=True).tag(sync=True, to_json=plain)

    def __init__(
        self,
        *,
        sizes: Sequence[int] = (256, 512, 1024, 2048, 4096),
        elements: int = 2**25,
        steps: int = 600,
        roofs: Sequence[Roof] = tuple(STATED.values()),
        **traits: Any,
    ) -> None:
        self.set_trait("digits", lettered_digits())
        self.set_trait("roofs", roofs)
        super().__init__(sizes=list(sizes), elements=elements, steps=steps, **traits)

    def _fallback(self) -> str:
        return (
            "<figure class='mp-static'><figcaption>Your GPU, measured in this page</figcaption>"
            "<p>The measurement needs JavaScript and a browser with WebGPU.</p></figure>"
        )

    def __repr__(self) -> str:
        return "Your GPU, measured by the browser that shows it: needs WebGPU."
