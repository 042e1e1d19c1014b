"""A recipe for training in eight or four bits, as data: what becomes of each operand.

A linear layer ``y = x @ w.T`` is three matrix products, named by what they give:

* *fprop*, the output ``y = x @ w.T``, which contracts the input features;
* *dgrad*, the gradient of the data ``dx = dy @ w``, which contracts the output features;
* *wgrad*, the gradient of the weight ``dw = dy.T @ x``, which contracts the tokens.

Each has two operands, and an `Operand` says what becomes of one: its format, how a scale is chosen,
how it is rounded, and whether a Hadamard transform comes first.  Blocks lie along the dimension
that a product contracts, so that scales can leave the sum.  Hence ``x`` is quantised twice: along
its features for fprop, along the tokens for wgrad.

A `Recipe` has the three products, where scales come from, and which layers stay as they are;
`RECIPES` has those that people use.

Sources: torchao, "Float8 training" and "MX training"; TransformerEngine, "Low precision training";
DeepSeek-V3, arXiv:2412.19437; NVIDIA, "Pretraining Large Language Models with NVFP4",
arXiv:2509.25149.  `mpbook.low_precision.names` says who calls what how.

Taught in the chapter "FP8 and below".
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from mpbook.formats.block_description import BLOCK_FORMATS, BlockFormat
from mpbook.formats.description import FORMATS, FloatFormat
from mpbook.low_precision.operands import (
    TENSORS,
    Accumulation,
    Current,
    Delayed,
    Fixed,
    Operand,
    Product,
    ProductName,
    Scaling,
    TensorName,
)
from mpbook.synonyms import did_you_mean

CURRENT = Current()
Engine = Literal["emulated", "native"]
Dimension = Literal["in_features", "out_features", "tokens"]

NATIVE_MULTIPLE = 16
"""What the hardware wants the dimensions of a product to be multiples of."""

_DIMENSIONS: dict[tuple[ProductName, TensorName], tuple[Dimension, Dimension]] = {
    ("fprop", "x"): ("tokens", "in_features"),
    ("fprop", "w"): ("out_features", "in_features"),
    ("dgrad", "dy"): ("tokens", "out_features"),
    ("dgrad", "w"): ("in_features", "out_features"),
    ("wgrad", "dy"): ("out_features", "tokens"),
    ("wgrad", "x"): ("in_features", "tokens"),
}
"""The dimensions of each operand as it enters its product; the second one is contracted."""


@dataclass(frozen=True)
class Recipe:
    """How the linear layers of a model compute.

    Args:
        name: e.g. ``"mxfp8"``.
        fprop: of ``x`` and ``w``.
        dgrad: of ``dy`` and ``w``.
        wgrad: of ``dy`` and ``x``.
        scaling: where scales come from.
        last_layers_high: how many of a model's last linear layers stay as they are; the last one
            alone by default, as most published recipes keep the output layer.
        stays_high: shell patterns of the names of more layers that stay as they are.
        accumulation: how products are added up; None for float32.
        engine: ``"emulated"`` everywhere, or ``"native"``: `mpbook.low_precision.native`.

    Raises:
        ValueError: a mixture that has no meaning; the message names the product.
        TypeError: ``stays_high`` is one string.
    """

    name: str
    fprop: Product
    dgrad: Product
    wgrad: Product
    scaling: Scaling = CURRENT
    last_layers_high: int = 1
    stays_high: tuple[str, ...] = ()
    accumulation: Accumulation | None = None
    engine: Engine = "emulated"

    def __post_init__(self) -> None:
        if self.engine not in get_args(Engine):
            raise ValueError(f"engine={self.engine!r}: expected one of {get_args(Engine)}")
        if self.last_layers_high < 0:
            raise ValueError(f"last_layers_high={self.last_layers_high}: expected 0 or more")
        if isinstance(self.stays_high, str):
            raise TypeError(f"stays_high={self.stays_high!r}: expected a tuple of patterns")
        if self.engine == "native" and self.accumulation is not None:
            raise ValueError('engine="native" adds up as its device does; leave accumulation out')
        if not isinstance(self.scaling, Current):
            self._check_one_scale_a_tensor()

    def operands(self) -> Iterator[tuple[ProductName, TensorName, Operand]]:
        """Each operand with the name of its product and of its tensor."""
        for name, (left, right) in TENSORS.items():
            product: Product = getattr(self, name)
            yield name, left, product.left
            yield name, right, product.right

    def element(self, tensor: TensorName) -> FloatFormat | None:
        """The format of a tensor's elements, of the first product that quantises it."""
        formats = [o.block_format for _, name, o in self.operands() if name == tensor]
        return next((f.element for f in formats if f is not None), None)

    def multiple_of(self, dimension: Dimension, *, backward: bool = True) -> int:
        """What a dimension of a layer must be a multiple of.

        Args:
            dimension: ``"in_features"``, ``"out_features"`` or ``"tokens"``.
            backward: whether the gradients are computed too.

        >>> [RECIPES["mxfp8"].multiple_of("tokens", backward=b) for b in (False, True)]
        [1, 32]
        """
        products = ("fprop", "dgrad", "wgrad") if backward else ("fprop",)
        multiples = [
            size
            for product, tensor, operand in self.operands()
            for name, size in zip(_DIMENSIONS[product, tensor], operand.tile, strict=True)
            if product in products and name == dimension
        ]
        return math.lcm(*multiples, NATIVE_MULTIPLE if self.engine == "native" else 1)

    def described(self) -> dict[str, str]:
        """Everything that it says, as short words by name."""
        operands = {f"{product} {t}": repr(o) for product, t, o in self.operands()}
        others = ("scaling", "last_layers_high", "stays_high", "accumulation", "engine")
        return operands | {name: str(getattr(self, name)) for name in others}

    def _check_one_scale_a_tensor(self) -> None:
        kind = type(self.scaling).__name__
        for product, tensor, operand in self.operands():
            block_format, element = operand.block_format, self.element(tensor)
            where = f'recipe "{self.name}", {product}, {tensor}'
            if block_format is None:
                continue
            if block_format.block != "tensor" or block_format.scale.name != "float32":
                raise ValueError(
                    f"{where}: {kind} scaling has one float32 scale a tensor, {block_format.name} "
                    "has others; use Current(), or a format per tensor"
                )
            if operand.hadamard is not None:
                raise ValueError(f"{where}: {kind} scaling knows no amax of a rotated tensor")
            if block_format.element != element:
                raise ValueError(
                    f"{where}: {block_format.element.name} here and {element.name} in another "  # type: ignore[union-attr]
                    f"product; {kind} scaling has one scale for both"
                )


def of_tensors(name: str, *, x: Operand, w: Operand, dy: Operand, **options: Any) -> Recipe:
    """A recipe that treats a tensor alike in both products that it enters.

    Args:
        name: of the recipe.
        x: the input of a layer.
        w: its weight.
        dy: the gradient of its output.
        **options: of `Recipe`.
    """
    return Recipe(name, Product(x, w), Product(dy, w), Product(dy, x), **options)


def rotated(recipe: Recipe, block: int) -> Recipe:
    """The same recipe with a random Hadamard transform of both operands of wgrad."""
    left, right = recipe.wgrad.left, recipe.wgrad.right
    product = Product(replace(left, hadamard=block), replace(right, hadamard=block))
    return replace(recipe, wgrad=product)


def _recipes() -> dict[str, Recipe]:
    e4m3, e5m2, e8m0 = (FORMATS[f"float8_{name}"] for name in ("e4m3fn", "e5m2", "e8m0fnu"))
    tensor = Operand(BLOCK_FORMATS["fp8_per_tensor"])
    gradient = Operand(BlockFormat("fp8_e5m2_per_tensor", e5m2, "tensor", FORMATS["float32"]))
    row = Operand(BlockFormat("fp8_per_row_e8m0", e4m3, "row", e8m0), "rceil")
    line = Operand(BlockFormat("fp8_1x128_e8m0", e4m3, (1, 128), e8m0), "rceil")
    square = Operand(BlockFormat("fp8_128x128_e8m0", e4m3, (128, 128), e8m0), "rceil")
    mxfp8 = Operand(BLOCK_FORMATS["mxfp8_e4m3"], "rceil")
    mxfp4 = Operand(BLOCK_FORMATS["mxfp4"], "rceil")  # clips nothing, which would bias a draw
    nvfp4 = Operand(BLOCK_FORMATS["nvfp4"])
    nvfp4_weight = Operand(replace(BLOCK_FORMATS["nvfp4"], name="nvfp4_16x16", block=(16, 16)))
    four_bits = (
        of_tensors("mxfp4", x=mxfp4, w=mxfp4, dy=replace(mxfp4, rounding="stochastic")),
        of_tensors("nvfp4", x=nvfp4, w=nvfp4_weight, dy=replace(nvfp4, rounding="stochastic")),
    )
    described = (
        of_tensors("float8_tensorwise", x=tensor, w=tensor, dy=gradient),
        of_tensors("float8_delayed", x=tensor, w=tensor, dy=gradient, scaling=Delayed()),
        of_tensors("float8_rowwise", x=row, w=row, dy=row),
        of_tensors("float8_blockwise", x=line, w=square, dy=line),
        of_tensors("mxfp8", x=mxfp8, w=mxfp8, dy=mxfp8),
        rotated(four_bits[0], 32),
        rotated(four_bits[1], 16),
        of_tensors("unscaled_e4m3", x=tensor, w=tensor, dy=tensor, scaling=Fixed()),
    )
    return {recipe.name: recipe for recipe in described}


RECIPES: dict[str, Recipe] = _recipes()
"""Recipes by name.

* ``"float8_tensorwise"``: E4M3, gradients in E5M2, one float32 scale a tensor, from the tensor.
* ``"float8_delayed"``: the same formats, scales from the steps before.
* ``"float8_rowwise"``: E4M3, a power-of-two scale for each row along the contracted dimension.
* ``"float8_blockwise"``: E4M3, power-of-two scales for 1x128 numbers, and 128x128 of a weight.
* ``"mxfp8"``: E4M3, a power-of-two scale for each 32 numbers.
* ``"mxfp4"``: E2M1, likewise; gradients rounded stochastically, wgrad rotated in blocks of 32.
* ``"nvfp4"``: E2M1, an E4M3 scale for each 16 numbers, and 16x16 of a weight; gradients rounded
  stochastically, wgrad rotated in blocks of 16.
* ``"unscaled_e4m3"``: E4M3 without any scale, which fails.
"""


def as_recipe(recipe: str | Recipe) -> Recipe:
    """The `Recipe` that a name stands for; a `Recipe` is returned as it is.

    Raises:
        ValueError: a name that is not in `RECIPES`.
        TypeError: neither a name nor a recipe.

    >>> as_recipe("nvfp4").wgrad
    nvfp4 (stochastic, Hadamard 16) @ nvfp4 (Hadamard 16)
    """
    if isinstance(recipe, Recipe):
        return recipe
    if not isinstance(recipe, str):
        raise TypeError(f"recipe={recipe!r}: expected a name or a Recipe")
    if recipe not in RECIPES:
        hint = did_you_mean(recipe, RECIPES)
        raise ValueError(f"recipe={recipe!r}: expected one of {', '.join(RECIPES)}{hint}")
    return RECIPES[recipe]
