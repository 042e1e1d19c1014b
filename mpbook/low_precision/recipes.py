"""A recipe for training in eight or four bits, as data: what becomes of each operand of each product.

A linear layer ``y = x @ w.T`` is three matrix products, named by what they give:

* *fprop*, the output:              ``y  = x    @ w.T``, which contracts the input features;
* *dgrad*, the gradient of ``x``:   ``dx = dy   @ w``, which contracts the output features;
* *wgrad*, the gradient of ``w``:   ``dw = dy.T @ x``, which contracts the tokens.

Each has two operands, and an `Operand` says what becomes of one: its format, how a scale is chosen,
how it is rounded, and whether a random Hadamard transform comes first.  Blocks lie along the
dimension that a product contracts, so that a scale can leave the sum.  Hence ``x`` is quantised
twice: along its features for fprop, along the tokens for wgrad.

A `Recipe` has the three products, how scales follow from the data (`Scaling`), and which layers
stay as they are.  `RECIPES` has those that people use, under their names in torchao and
TransformerEngine.

Its chapter, "FP8 and below", is not written yet.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields, replace
from typing import get_args

from mpbook.formats.block_description import BLOCK_FORMATS, BlockFormat, as_block_format
from mpbook.formats.blocks import ScaleMode
from mpbook.formats.description import Rounding, as_format


@dataclass(frozen=True)
class Operand:
    """What becomes of one operand of a product.

    Args:
        block_format: what it is quantised to; None leaves it in 16 or 32 bits.
        scale_mode: how a power-of-two scale is chosen, see `mpbook.formats.blocks`; needed there,
            and only there.
        rounding: of the elements.
        hadamard: size of the blocks, a power of two, in which the dimension that is contracted is
            rotated before it is quantised, with random signs.  Both operands are rotated alike, so
            that their product stays what it was.

    Raises:
        ValueError: options that have no meaning together.
    """

    block_format: BlockFormat | None = None
    scale_mode: ScaleMode | None = None
    rounding: Rounding = "nearest-even"
    hadamard: int | None = None

    def __post_init__(self) -> None:
        if self.block_format is None:
            if (self.scale_mode, self.rounding) != (None, "nearest-even"):
                raise ValueError(
                    "block_format=None: what is not quantised has no scale_mode or rounding"
                )
            return
        object.__setattr__(self, "block_format", as_block_format(self.block_format))

    @property
    def turns_with_its_tensor(self) -> bool:
        """Whether quantising a transposed tensor gives the transposed result."""
        if self.block_format is None:
            return self.hadamard is None
        block = self.block_format.block
        square = isinstance(block, tuple) and block[0] == block[1]
        return (
            (block == "tensor" or square)
            and self.hadamard is None
            and self.rounding != "stochastic"
        )


@dataclass(frozen=True)
class Product:
    """The two operands of a product, in the order of the module's formulas."""

    left: Operand = Operand()
    right: Operand = Operand()


@dataclass(frozen=True)
class Current:
    """Scales from the tensor that they are for ("dynamic" in torchao)."""


@dataclass(frozen=True)
class Delayed:
    """One scale a tensor, from the largest magnitudes of the steps before.

    Args:
        history: how many steps are remembered.
        margin: binades left free above the largest of them.
        amax: whether the largest of the history counts or the most recent.
    """

    history: int = 1024
    margin: int = 0
    amax: str = "max"


@dataclass(frozen=True)
class Fixed:
    """One number for every tensor, whatever is in it; an element is ``round(x * scale)``."""

    scale: float = 1.0


Scaling = Current | Delayed | Fixed


@dataclass(frozen=True)
class Recipe:
    """How linear layers compute.

    Args:
        name: e.g. ``"mxfp8"``.
        fprop: of ``x`` and ``w``.
        dgrad: of ``dy`` and ``w``.
        wgrad: of ``dy`` and ``x``.
        scaling: how the scales follow from the data.
        last_layers_high: how many of a model's last linear layers stay as they are.
        stays_high: shell patterns of the names of layers that stay as they are.
    """

    name: str
    fprop: Product
    dgrad: Product
    wgrad: Product
    scaling: Scaling = Current()
    last_layers_high: int = 1
    stays_high: tuple[str, ...] = ()


def _everywhere(name: str, x: Operand, w: Operand, dy: Operand, **options: object) -> Recipe:
    """A recipe in which a tensor is treated alike in both products that it enters."""
    return Recipe(name, Product(x, w), Product(dy, w), Product(dy, x), **options)  # type: ignore[arg-type]


def _with_hadamard(recipe: Recipe, block: int) -> Recipe:
    """The same, with both operands of wgrad rotated."""
    left, right = recipe.wgrad.left, recipe.wgrad.right
    rotated = Product(replace(left, hadamard=block), replace(right, hadamard=block))
    return replace(recipe, wgrad=rotated)


def _recipes() -> dict[str, Recipe]:
    e4m3, e5m2 = as_format("float8_e4m3fn"), as_format("float8_e5m2")
    e8m0 = as_format("float8_e8m0fnu")
    per_tensor = Operand(BLOCK_FORMATS["fp8_per_tensor"])
    wide_gradient = Operand(
        BlockFormat("fp8_e5m2_per_tensor", e5m2, "tensor", as_format("float32"))
    )
    row = Operand(BlockFormat("fp8_per_row_e8m0", e4m3, "row", e8m0), "rceil")
    line = Operand(BlockFormat("fp8_1x128_e8m0", e4m3, (1, 128), e8m0), "rceil")
    square = Operand(BlockFormat("fp8_128x128_e8m0", e4m3, (128, 128), e8m0), "rceil")
    mxfp8 = Operand(BLOCK_FORMATS["mxfp8_e4m3"], "rceil")
    mxfp4 = Operand(BLOCK_FORMATS["mxfp4"], "rceil")
    nvfp4 = Operand(BLOCK_FORMATS["nvfp4"])
    nvfp4_weight = Operand(replace(BLOCK_FORMATS["nvfp4"], name="nvfp4_16x16", block=(16, 16)))

    def drawn(operand: Operand) -> Operand:
        return replace(operand, rounding="stochastic")

    described = (
        _everywhere("float8_tensorwise", per_tensor, per_tensor, wide_gradient),
        _everywhere("float8_delayed", per_tensor, per_tensor, wide_gradient, scaling=Delayed()),
        _everywhere("float8_rowwise", row, row, row),
        _everywhere("float8_blockwise", line, square, line),
        _everywhere("mxfp8", mxfp8, mxfp8, mxfp8),
        _with_hadamard(_everywhere("mxfp4", mxfp4, mxfp4, drawn(mxfp4)), 32),
        _with_hadamard(_everywhere("nvfp4", nvfp4, nvfp4_weight, drawn(nvfp4)), 16),
        _everywhere("unscaled_e4m3", per_tensor, per_tensor, per_tensor, scaling=Fixed()),
    )
    return {recipe.name: recipe for recipe in described}


RECIPES: dict[str, Recipe] = _recipes()
"""Recipes by name."""


def as_recipe(recipe: str | Recipe) -> Recipe:
    """The `Recipe` that a name stands for.

    Raises:
        ValueError: a name that is not in `RECIPES`.
        TypeError: neither a name nor a recipe.

    >>> as_recipe("nvfp4").wgrad.right.hadamard
    16
    """
    if isinstance(recipe, Recipe):
        return recipe
    if not isinstance(recipe, str):
        raise TypeError(f"recipe={recipe!r}: expected a name or a Recipe")
    if recipe not in RECIPES:
        close = difflib.get_close_matches(recipe, RECIPES, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"recipe={recipe!r}: expected one of {', '.join(RECIPES)}{hint}")
    return RECIPES[recipe]
