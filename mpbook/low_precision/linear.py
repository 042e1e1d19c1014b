"""A linear layer whose three products take quantised operands.

This is the whole of training in eight or four bits, on one screen: `LinearProducts` has the three
products, `mpbook.low_precision.quantisation` what becomes of an operand.  The weight stays in
float32, for the optimizer, and so do all sums; only what enters a product is rounded.

The arithmetic is *emulated*: an operand is rounded to the numbers that its format holds, and torch
multiplies them in float32.  There a product of two elements is exact, and sums round as a tensor
core's do, or less.  `mpbook.low_precision.accumulator` emulates sums that keep fewer bits, and
`mpbook.low_precision.native` has the hardware's own products.

**NaN and infinity.**  Either becomes NaN in all that shares a scale with it: in the whole tensor,
a row or a block.  So the loss shows it, and a loss scaler finds it in the gradients.

Taught in the chapter "FP8 and below".
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from mpbook.low_precision.accumulator import accumulated
from mpbook.low_precision.native import native_product
from mpbook.low_precision.operands import TENSORS, Delayed, Fixed, ProductName
from mpbook.low_precision.quantisation import factored, quantised
from mpbook.low_precision.recipes import Recipe
from mpbook.low_precision.scaling import COLUMNS, begin_row_, next_scale, note_amax


class LinearProducts(torch.autograd.Function):
    """``x @ w.T`` and its two gradients, of quantised operands."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w: Tensor,
        recipe: Recipe,
        scale: Tensor | None,
        history: Tensor | None,
    ) -> Tensor:
        """Shapes (tokens, inputs) and (outputs, inputs) to (tokens, outputs), in the dtype of x."""
        ctx.save_for_backward(x, w)
        ctx.recipe, ctx.scale, ctx.history = recipe, scale, history
        if history is not None:
            note_amax(history, "x", x)
            note_amax(history, "w", w)
        return product("fprop", x, w, recipe, scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        """The gradients of x and w, where they are needed."""
        x, w = ctx.saved_tensors
        dx = dw = None
        if ctx.history is not None:
            note_amax(ctx.history, "dy", dy)
        # A backward pass inside of a region would round the operands to 16 bits.
        with torch.autocast(dy.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                dx = product("dgrad", dy, w.T, ctx.recipe, ctx.scale).to(x.dtype)
            if ctx.needs_input_grad[1]:
                dw = product("wgrad", dy.T, x.T, ctx.recipe, ctx.scale).to(x.dtype).to(w.dtype)
        return dx, dw, None, None, None


FORGETS_WHEN_COMPILED = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 12)
"""Whether torch drops what compiled code writes to a history in its backward pass."""


def _products(*arguments: Any) -> Any:
    return LinearProducts.apply(*arguments)


# What torch.compiler.disable does, but that the compiler is imported by the first call only.
_uncompiled_products: Any = _disable_dynamo(_products)


def product(
    name: ProductName, left: Tensor, right: Tensor, recipe: Recipe, scale: Tensor | None = None
) -> Tensor:
    """``left @ right.T``, in float32, of matrices quantised along what is contracted, their rows.

    Args:
        name: which of the three.
        left: (m, k).
        right: (n, k).
        recipe: what becomes of the operands.
        scale: (3,), the scales of ``x``, ``w`` and ``dy``, where they do not follow from them.
    """
    operands = getattr(recipe, name)
    a, b = (None if scale is None else scale[COLUMNS[tensor]] for tensor in TENSORS[name])
    if recipe.engine == "emulated" and recipe.accumulation is None:
        return quantised(left, operands.left, scale=a) @ quantised(right, operands.right, scale=b).T
    parts = factored(left, operands.left, scale=a), factored(right, operands.right, scale=b)
    if recipe.accumulation is None:
        formats = operands.left.block_format.element, operands.right.block_format.element
        return native_product(*parts, formats)
    (left, left_factor), (right, right_factor) = parts
    return accumulated(left, right, recipe.accumulation) * left_factor * right_factor.T


class QuantizedLinear(nn.Linear):
    """`torch.nn.Linear` that computes by a recipe; `mpbook.low_precision.convert` makes them.

    With delayed scaling it has two buffers: ``scale``, of (x, w, dy), and ``amax_history``, of
    (steps, 3).  Otherwise its ``state_dict`` is that of `torch.nn.Linear`, which says in its
    metadata by which recipe it was trained.
    """

    recipe: Recipe
    layer_name: str
    scale: Tensor | None
    amax_history: Tensor | None

    def adopt(self, recipe: Recipe, name: str) -> None:
        """Become a layer of this recipe, with this name in errors."""
        self.recipe, self.layer_name = recipe, name
        scaling, device = recipe.scaling, self.weight.device
        scale = history = None
        if isinstance(scaling, Fixed):
            scale = torch.full((3,), scaling.scale, device=device)
        elif isinstance(scaling, Delayed):
            scale = torch.ones(3, device=device)
            history = torch.zeros(scaling.history, 3, device=device)
        self.register_buffer("scale", scale, persistent=history is not None)
        self.register_buffer("amax_history", history)

    def forward(self, input: Tensor) -> Tensor:
        """Shape (..., inputs) to (..., outputs), in autocast's dtype, else in that of the input.

        Raises:
            TypeError: an input that is no real floating-point tensor.
            ValueError: tokens that the recipe's blocks do not divide.
        """
        self._check(input)
        device = input.device.type
        mixed = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if mixed else input.dtype
        with torch.autocast(device, enabled=False):
            x = input.to(dtype).reshape(-1, self.in_features)
            history = self.amax_history if self.training else None
            notes = history is not None and FORGETS_WHEN_COMPILED
            products = _uncompiled_products if notes else LinearProducts.apply
            y = products(x, self.weight, self.recipe, self.scale, history)
            y = cast(Tensor, y).view(*input.shape[:-1], self.out_features)
            return y if self.bias is None else y + self.bias.to(y.dtype)

    def advance(self) -> None:
        """End a step of delayed scaling: find the next scale, begin a new row of the history."""
        scaling, recipe = self.recipe.scaling, self.recipe
        if not isinstance(scaling, Delayed) or self.scale is None or self.amax_history is None:
            return
        elements = [recipe.element(tensor) for tensor in COLUMNS]
        largest = torch.tensor([1.0 if e is None else e.max for e in elements]).to(self.scale)
        self.scale.copy_(next_scale(self.amax_history, self.scale, largest, scaling))
        begin_row_(self.amax_history)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move the scales with the layer, but keep them in float32 where the layer is cast."""
        before = self.scale, self.amax_history
        super()._apply(fn, recurse)
        for name, buffer in zip(("scale", "amax_history"), before, strict=True):
            if buffer is not None:
                setattr(self, name, buffer.to(getattr(self, name).device))
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if hasattr(destination, "_metadata"):
            destination._metadata[prefix[:-1]]["recipe"] = self.recipe.name

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: dict[str, Any], *others: Any
    ) -> None:
        saved, (_, missing, _, errors) = local_metadata.get("recipe"), others
        if saved is not None and saved != self.recipe.name:
            errors.append(
                f'layer "{self.layer_name}": trained by the recipe "{saved}", loaded into one of '
                f'"{self.recipe.name}"; convert the model with "{saved}", or load before convert, '
                "to change the recipe"
            )
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *others)
        if f"{prefix}amax_history" in missing:
            errors.append(
                f'layer "{self.layer_name}": no amax history in the checkpoint, which delayed '
                "scaling goes on from; load into the model before convert, and begin a new one"
            )

    def extra_repr(self) -> str:
        """As torch's, with the recipe."""
        return f"{super().extra_repr()}, recipe={self.recipe.name!r}"

    def _check(self, input: Tensor) -> None:
        if not input.is_floating_point():
            raise TypeError(
                f'layer "{self.layer_name}": input has dtype {input.dtype}, expected a real '
                "floating-point tensor"
            )
        if input.shape[-1] != self.in_features:
            raise ValueError(
                f'layer "{self.layer_name}": input has shape {tuple(input.shape)}, expected '
                f"in_features={self.in_features} last"
            )
        tokens = math.prod(input.shape[:-1])
        has_gradient = torch.is_grad_enabled() and self.weight.requires_grad
        multiple = self.recipe.multiple_of("tokens", backward=has_gradient)
        if tokens % multiple:
            what = "the gradient of its weight contracts" if has_gradient else "blocks span"
            raise ValueError(
                f'layer "{self.layer_name}": input has {tokens} tokens, of shape '
                f"{tuple(input.shape)}, and {what} them in {self.recipe.name}'s blocks of "
                f"{multiple}; make the product of batch and length a multiple of {multiple}, "
                f"{-(-tokens // multiple) * multiple} for example, or keep the layer high"
            )
