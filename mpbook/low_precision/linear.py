"""A linear layer whose three products take quantised operands: the lesson, in one function each.

The arithmetic is emulated: operands are rounded to what their format holds, multiplied in float32,
which is exact for products of such numbers, and added up in float32.

Its chapter, "FP8 and below", is not written yet.
"""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from mpbook.formats.blocks import fake_quantise
from mpbook.formats.counter_hash import keys_of
from mpbook.low_precision.recipes import Delayed, Fixed, Operand, Product, Recipe, as_recipe
from mpbook.low_precision.scaling import next_scale, scaled_and_rounded


class QuantisedLinear(torch.autograd.Function):
    """``x @ w.T`` and its two gradients, from quantised operands."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, recipe: Recipe, state: Any) -> Tensor:
        """Shapes (tokens, inputs) and (outputs, inputs) to (tokens, outputs)."""
        ctx.save_for_backward(x, w)
        ctx.recipe, ctx.state = recipe, state
        return product(x, w, recipe.fprop, state, ("x", "w")).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, w = ctx.saved_tensors
        recipe, state, dx, dw = ctx.recipe, ctx.state, None, None
        if ctx.needs_input_grad[0]:
            dx = product(dy, w.T, recipe.dgrad, state, ("dy", "w")).to(x.dtype)
        if ctx.needs_input_grad[1]:
            dw = product(dy.T, x.T, recipe.wgrad, state, ("dy", "x")).to(x.dtype)
        return dx, dw, None, None


def product(
    left: Tensor, right: Tensor, operands: Product, state: Any, names: tuple[str, str]
) -> Tensor:
    """``left @ right.T`` of two matrices whose rows are quantised along their last dimension."""
    a = quantised(left, operands.left, None if state is None else state.use(names[0], left))
    b = quantised(right, operands.right, None if state is None else state.use(names[1], right))
    return a @ b.T


def quantised(x: Tensor, operand: Operand, scale: Tensor | None = None) -> Tensor:
    """The numbers that an operand becomes, in float32; blocks lie along the last dimension."""
    x = x.float()
    if operand.hadamard is not None:
        from mpbook.low_precision.hadamard import hadamard_transform, random_signs

        signs = random_signs(operand.hadamard, torch.Generator().manual_seed(0)).to(x)
        x = hadamard_transform(x, operand.hadamard, signs=signs)
    if operand.block_format is None:
        return x
    if scale is not None:
        return scaled_and_rounded(x, operand.block_format.element, scale)
    keys = drawn_keys(x.device) if operand.rounding == "stochastic" else None
    return fake_quantise(
        x, operand.block_format, scale_mode=operand.scale_mode, rounding=operand.rounding, keys=keys
    )


def drawn_keys(device: torch.device) -> Tensor:
    """The keys of stochastic rounding, from torch's own generator, as dropout draws its masks."""
    return keys_of(torch.randint(-(2**31), 2**31, (2,), dtype=torch.int32, device=device))


class QuantizedLinear(nn.Linear):
    """`torch.nn.Linear` with a recipe; made by `convert`."""

    recipe: Recipe

    def forward(self, input: Tensor) -> Tensor:
        """Shapes (..., inputs) to (..., outputs)."""
        if torch.is_autocast_enabled(input.device.type):
            input = input.to(torch.get_autocast_dtype(input.device.type))
        with torch.autocast(input.device.type, enabled=False):
            rows = input.reshape(-1, input.shape[-1])
            y = QuantisedLinear.apply(rows, self.weight, self.recipe, None)
            y = y.reshape(*input.shape[:-1], self.out_features)
            return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, recipe={self.recipe.name!r}"


def convert(
    model: nn.Module,
    recipe: str | Recipe,
    *,
    filter: Callable[[nn.Module, str], bool] | None = None,
) -> nn.Module:
    """Let the linear layers of a model compute by a recipe, in place; the model is returned too."""
    recipe = as_recipe(recipe)
    linears = [(name, m) for name, m in model.named_modules() if type(m) is nn.Linear]
    if filter is None:
        linears = linears[: len(linears) - recipe.last_layers_high]
        chosen = [
            (n, m) for n, m in linears if not any(fnmatchcase(n, p) for p in recipe.stays_high)
        ]
    else:
        chosen = [(n, m) for n, m in linears if filter(m, n)]
    for _name, module in chosen:
        module.__class__ = QuantizedLinear
        module.recipe = recipe
    return model
