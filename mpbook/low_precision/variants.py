"""The ways to compute a product of a linear layer in a format: every combination of tricks.

Taught in the chapter "FP8 and below".
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from mpbook.formats.block_description import BlockFormat, as_block_format
from mpbook.formats.blocks import ScaleMode
from mpbook.low_precision.operands import Operand


@dataclass(frozen=True)
class Variant:
    """One way to compute a product.

    Args:
        block_format: of both operands, a name in `BLOCK_FORMATS`.
        scale_mode: where scales are powers of two.
        stochastic: whether dy is rounded stochastically.
        hadamard: size of the blocks in which both operands are rotated, or None.
        square: whether a block of the weight is as high as it is wide.
    """

    block_format: str
    scale_mode: ScaleMode | None = None
    stochastic: bool = False
    hadamard: int | None = None
    square: bool = False

    @property
    def format_name(self) -> str:
        """The format with its scale mode: what the tricks are added to."""
        return f"{self.block_format}, {self.scale_mode}" if self.scale_mode else self.block_format

    @property
    def tricks(self) -> str:
        """The tricks in words."""
        hadamard = f"Hadamard {self.hadamard}" if self.hadamard else ""
        words = ("stochastic" * self.stochastic, hadamard, "square blocks" * self.square)
        return ", ".join(filter(None, words)) or "none"

    def operands(self, product: str) -> tuple[Operand, Operand]:
        """What becomes of the left and the right matrix of a product."""
        block_format = as_block_format(self.block_format)
        plain = Operand(block_format, self.scale_mode, hadamard=self.hadamard)
        left = right = plain
        if self.stochastic and product != "fprop":
            left = replace(plain, rounding="stochastic")
        if self.square and product != "wgrad":
            size = operand_width(block_format)
            if size is None:
                raise ValueError(f"square=True: {block_format.name} has no blocks within a row")
            tiled = replace(block_format, name=f"{self.block_format}_square", block=(size, size))
            right = replace(plain, block_format=tiled)
        return left, right


def operand_width(block_format: BlockFormat) -> int | None:
    """How many numbers of a row share a scale; None where blocks are no parts of one row."""
    block = block_format.block
    return block[1] if isinstance(block, tuple) and block[0] == 1 else None


def variants(
    product: str,
    formats: Sequence[str],
    scale_modes: Sequence[ScaleMode],
    hadamard: Sequence[int],
) -> Iterator[Variant]:
    """Every combination that has a meaning in a product, those without tricks first."""
    for name in formats:
        block_format = as_block_format(name)
        modes = scale_modes if block_format.has_power_of_two_scale else (None,)
        stochastic = (False,) if product == "fprop" else (False, True)
        has_square = operand_width(block_format) is not None and product != "wgrad"
        square = (False, True) if has_square else (False,)
        for options in itertools.product(modes, stochastic, (None, *hadamard), square):
            yield Variant(name, *options)
