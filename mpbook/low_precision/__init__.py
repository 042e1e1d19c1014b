"""Training in eight and four bits: recipes as data, and linear layers that compute by them.

* `mpbook.low_precision.recipes` says what becomes of each operand of the three products of a linear
  layer, and has the recipes that people use.
* `mpbook.low_precision.linear` is the layer, and `convert`, which puts it into any model.
* `mpbook.low_precision.scaling` keeps the scales that come from earlier steps.

Its chapter, "FP8 and below", is not written yet.
"""

from mpbook.low_precision.linear import QuantizedLinear, convert
from mpbook.low_precision.recipes import (
    RECIPES,
    Current,
    Delayed,
    Fixed,
    Operand,
    Product,
    Recipe,
    as_recipe,
)
from mpbook.low_precision.scaling import advance

__all__ = [
    "RECIPES",
    "Current",
    "Delayed",
    "Fixed",
    "Operand",
    "Product",
    "QuantizedLinear",
    "Recipe",
    "advance",
    "as_recipe",
    "convert",
]
