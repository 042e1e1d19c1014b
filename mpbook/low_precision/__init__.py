"""Training in eight and four bits: recipes as data, and linear layers that compute by them.

* `mpbook.low_precision.recipes` says what becomes of each operand of the three products of a linear
  layer, and has the recipes that people use; `mpbook.low_precision.operands` is what they are made
  of, `mpbook.low_precision.names` who calls what how.
* `mpbook.low_precision.quantisation` says what an operand becomes,
  `mpbook.low_precision.linear` is the layer, `mpbook.low_precision.conversion` puts it into any
  model.
* `mpbook.low_precision.scaling` keeps scales that come from earlier steps,
  `mpbook.low_precision.hadamard` rotates.
* `mpbook.low_precision.noise_gauge` says how much of a gradient is noise of rounding.
* `mpbook.low_precision.capture` takes tensors from a model, `mpbook.low_precision.tricks` tries
  every trick on them: the combinations are in `mpbook.low_precision.variants`, the verdicts in
  `mpbook.low_precision.trial`, the heat map in `mpbook.low_precision.trial_figure`.
* `mpbook.low_precision.accumulator` adds up with fewer bits, `mpbook.low_precision.native` on the
  units that a device has for it.

Taught in the chapter "FP8 and below".
"""

from mpbook.low_precision.capture import Captured, capture
from mpbook.low_precision.conversion import advance, all_but_last, convert, linear_layers
from mpbook.low_precision.linear import LinearProducts, QuantizedLinear, product
from mpbook.low_precision.noise_gauge import forecast, read_gauge
from mpbook.low_precision.operands import (
    HIGH,
    Accumulation,
    Current,
    Delayed,
    Fixed,
    Operand,
    Product,
)
from mpbook.low_precision.quantisation import factored, quantised
from mpbook.low_precision.recipes import RECIPES, Recipe, as_recipe, of_tensors, rotated
from mpbook.low_precision.trial import Trial
from mpbook.low_precision.tricks import trial_of, which_trick_pays
from mpbook.low_precision.variants import Variant

__all__ = [
    "HIGH",
    "RECIPES",
    "Accumulation",
    "Captured",
    "Current",
    "Delayed",
    "Fixed",
    "LinearProducts",
    "Operand",
    "Product",
    "QuantizedLinear",
    "Recipe",
    "Trial",
    "Variant",
    "advance",
    "all_but_last",
    "as_recipe",
    "capture",
    "convert",
    "factored",
    "forecast",
    "linear_layers",
    "of_tensors",
    "product",
    "quantised",
    "read_gauge",
    "rotated",
    "trial_of",
    "which_trick_pays",
]
