"""What a recipe is made of, as data: operands, products, and where scales and sums come from.

`mpbook.low_precision.recipes` puts them together and says what the three products are.

Taught in the chapter "FP8 and below".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch

from mpbook.formats.block_description import BlockFormat, as_block_format
from mpbook.formats.blocks import ScaleMode, check_scale_mode
from mpbook.formats.description import Rounding, check_rounding
from mpbook.low_precision.hadamard import random_signs

TensorName = Literal["x", "w", "dy"]
"""The tensors of a linear layer: its input, its weight, the gradient of its output."""

ProductName = Literal["fprop", "dgrad", "wgrad"]
"""The products of a linear layer: its output, the gradients of its input and of its weight."""

TENSORS: dict[ProductName, tuple[TensorName, TensorName]] = {
    "fprop": ("x", "w"),
    "dgrad": ("dy", "w"),
    "wgrad": ("dy", "x"),
}
"""What is multiplied in each product."""


@dataclass(frozen=True)
class Operand:
    """What becomes of one operand of a product.

    Args:
        block_format: what it is quantised to, a `BlockFormat` or the name of one; None leaves it
            in 16 or 32 bits.
        scale_mode: how a power-of-two scale is chosen, see `mpbook.formats.blocks`; needed there,
            and only there.
        rounding: of the elements, as in `mpbook.formats.round_to`.
        hadamard: None, or the size of the blocks, a power of two, in which the contracted dimension
            is rotated first, with random signs.  ``signs`` has them: drawn once for each size,
            they are the same in every operand, layer and step, as in published recipes.

    Raises:
        ValueError: options that have no meaning together.

    >>> Operand("mxfp4", "rceil", rounding="stochastic", hadamard=32)
    mxfp4 (rceil, stochastic, Hadamard 32)
    """

    block_format: BlockFormat | None = None
    scale_mode: ScaleMode | None = None
    rounding: Rounding = "nearest-even"
    hadamard: int | None = None
    signs: tuple[float, ...] = field(init=False, repr=False, compare=False, default=())

    def __post_init__(self) -> None:
        check_rounding(self.rounding)
        size = self.hadamard
        if size is not None and (type(size) is not int or size < 2 or size & (size - 1)):
            raise ValueError(f"hadamard={size!r}: expected None or a power of two, 16 for example")
        if size is not None:  # not when they are needed: compiled code has no generators
            signs = random_signs(size, torch.Generator().manual_seed(size))
            object.__setattr__(self, "signs", tuple(signs.tolist()))
        if self.block_format is not None:
            object.__setattr__(self, "block_format", as_block_format(self.block_format))
            check_scale_mode(self.block_format, self.scale_mode)
        elif self.scale_mode is not None or self.rounding != "nearest-even":
            raise ValueError(
                f"block_format=None: an operand that stays high has no scale and no rounding; it "
                f"was given scale_mode={self.scale_mode!r}, rounding={self.rounding!r}"
            )

    @property
    def tile(self) -> tuple[int, int]:
        """What its two dimensions must be multiples of; the second is the one contracted."""
        block = None if self.block_format is None else self.block_format.block
        rows, columns = block if isinstance(block, tuple) else (1, 1)
        return rows, math.lcm(columns, self.hadamard or 1)

    def __repr__(self) -> str:
        name = "high" if self.block_format is None else self.block_format.name
        rounding = None if self.rounding == "nearest-even" else self.rounding
        hadamard = self.hadamard and f"Hadamard {self.hadamard}"
        options = [option for option in (self.scale_mode, rounding, hadamard) if option]
        return f"{name} ({', '.join(options)})" if options else name


HIGH = Operand()
"""An operand that stays in 16 or 32 bits."""


@dataclass(frozen=True)
class Product:
    """The two operands of a product, in the order in which its formula has them.

    Raises:
        ValueError: one operand is rotated and the other is not, or in blocks of another size.

    >>> Product(Operand("nvfp4", hadamard=16), Operand("nvfp4"))
    Traceback (most recent call last):
    ValueError: hadamard is 16 on the left and None on the right: rotate both alike, or neither
    """

    left: Operand = HIGH
    right: Operand = HIGH

    def __post_init__(self) -> None:
        left, right = self.left.hadamard, self.right.hadamard
        if left != right:
            raise ValueError(
                f"hadamard is {left} on the left and {right} on the right: rotate both alike, or "
                "neither"
            )

    def __repr__(self) -> str:
        return f"{self.left!r} @ {self.right!r}"


@dataclass(frozen=True)
class Current:
    """Scales come from the tensor itself: current scaling, which torchao calls dynamic."""


@dataclass(frozen=True)
class Delayed:
    """One scale a tensor, which comes from its largest magnitudes, amax, in the steps before.

    Args:
        history: how many steps are remembered.
        margin: binades left free above the amax that counts.
        amax: which one counts, the largest (``"max"``) or the last (``"most_recent"``).

    Raises:
        ValueError: a value out of range.
    """

    history: int = 1024
    margin: int = 0
    amax: Literal["max", "most_recent"] = "max"

    def __post_init__(self) -> None:
        if type(self.history) is not int or self.history < 1:
            raise ValueError(f"history={self.history!r}: expected 1 step or more")
        if type(self.margin) is not int or not 0 <= self.margin < 64:
            raise ValueError(f"margin={self.margin!r}: expected whole binades, from 0 to 63")
        if self.amax not in ("max", "most_recent"):
            raise ValueError(f'amax={self.amax!r}: expected "max" or "most_recent"')


@dataclass(frozen=True)
class Fixed:
    """One scale for every tensor, whatever is in it: an element is ``x * scale``, rounded.

    Raises:
        ValueError: a scale that is not positive and finite.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        if not 2.0**-126 <= self.scale <= 2.0**126:
            raise ValueError(f"scale={self.scale!r}: expected a positive number within 2**±126")


Scaling = Current | Delayed | Fixed


@dataclass(frozen=True)
class Accumulation:
    """How a product is added up where it is not simply in float32.

    Args:
        bits: of the sum that are kept: products are aligned to the largest of them and to the sum
            so far, and what is below the last bit is cut off.  14 on Hopper.
        promote_every: after how many terms the sum is moved into a float32; None for never.
        step: how many products the unit adds at a time; 32 on Hopper in eight bits.

    Raises:
        ValueError: bits that are not 2 to 24, a step below 1, or a ``promote_every`` that the steps
            do not divide.

    Source: DeepSeek-V3, arXiv:2412.19437, section 3.3.2.
    """

    bits: int = 14
    promote_every: int | None = None
    step: int = 32

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 24 or self.step < 1:
            raise ValueError(f"bits={self.bits}, step={self.step}: expected 2 to 24, and 1 or more")
        every = self.promote_every
        if every is not None and (every < 1 or every % self.step):
            raise ValueError(f"promote_every={every}: expected a multiple of step={self.step}")
