"""Putting quantised linear layers into a model that nobody wrote for them.

`convert` changes the class of the layers it chooses and nothing else: the parameters stay the same
objects, so an optimizer, tied weights, hooks and ``state_dict`` keys stay right.  It works in place
and returns the model, as torchao's ``convert_to_float8_training`` does; to keep the original, pass
``copy.deepcopy(model)``.

Taught in the chapter "FP8 and below".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase

from torch import nn

from mpbook.distributed import refuse_sharded
from mpbook.low_precision.linear import QuantizedLinear
from mpbook.low_precision.native import check_native
from mpbook.low_precision.recipes import Dimension, Recipe, as_recipe
from mpbook.notebook import Table

Filter = Callable[[nn.Module, str], bool]


def convert(model: nn.Module, recipe: str | Recipe, *, filter: Filter | None = None) -> nn.Module:
    """Let linear layers of a model compute by a recipe; in place, and the model is returned.

    Subclasses of `torch.nn.Linear` have a forward pass of their own and are left alone: adapters,
    parametrised layers, the projection inside `torch.nn.MultiheadAttention`, which torch reads and
    never calls.  `linear_layers` lists what became of each layer, and why.

    With delayed scaling, call `advance(model)` after each ``optimizer.step()``, or once and for
    all ``optimizer.register_step_post_hook(lambda *_: advance(model))``.

    Each rank of several finds the scales of its own activations and gradients.  Convert first, then
    wrap: DistributedDataParallel takes a converted model as it is, and so does `fully_shard`.

    Args:
        model: any module.
        recipe: a name in `RECIPES`, or a `Recipe`.
        filter: ``filter(module, name)`` says whether a linear layer is to be quantised; it alone
            decides.  By default all are, but those that the recipe keeps high: its
            ``last_layers_high``, in the order in which the model has them, and ``stays_high``.
            `all_but_last` makes a filter.

    Raises:
        ValueError: no layer is left to quantise, one is quantised by another recipe already, its
            features are no multiple of the recipe's blocks, or the model is sharded.
        TypeError: the filter chose a subclass, or a layer whose weight is not floating-point.
        RuntimeError: the recipe asks for the native engine, and the device lacks it.
    """
    recipe = as_recipe(recipe)
    refuse_sharded(model, instead="convert(model, ...) first, and fully_shard(model) after it")
    chosen = _chosen(model, recipe, filter)
    if not chosen:
        raise ValueError(
            f'recipe "{recipe.name}": no linear layer of {type(model).__name__} is left to '
            f"quantise: {_why_none(model, recipe, filter)}"
        )
    for name, linear in chosen:  # all checks before the first change
        _check(name, linear, recipe)
    for name, linear in chosen:
        if not isinstance(linear, QuantizedLinear):
            linear.__class__ = QuantizedLinear  # a new module would lose hooks and shared places
            linear.adopt(recipe, name)  # type: ignore[operator]
    return model


def all_but_last(model: nn.Module, layers: int) -> Filter:
    """A filter for `convert` that keeps the last linear layers of a model high.

    Args:
        model: whose layers are counted, in the order in which it has them.
        layers: how many to keep.

    Raises:
        ValueError: a negative number.
    """
    if layers < 0:
        raise ValueError(f"layers={layers}: expected 0 or more")
    names = [name for name, _ in _linears(model)]
    kept = set(names[len(names) - layers :]) if layers else set()
    return lambda module, name: name not in kept


def advance(model: nn.Module) -> None:
    """End a step of all delayed scales of a model; nothing to do where there are none."""
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            module.advance()


def linear_layers(model: nn.Module) -> Table:
    """Each linear layer of a model, with its recipe, or why it has none."""
    rows = [
        (name or "(the model)", f"{module.in_features} to {module.out_features}", _state(module))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    return Table(["layer", "features", "computes"], rows)


def _state(module: nn.Linear) -> str:
    if isinstance(module, QuantizedLinear):
        return f"by {module.recipe.name}"
    if type(module) is nn.Linear:
        return "high"
    return f"high: a {type(module).__name__} has a forward pass of its own"


def _linears(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """The layers that can be quantised, or are already; each once."""
    for name, module in model.named_modules():
        if type(module) in (nn.Linear, QuantizedLinear):
            yield name, module


def _chosen(model: nn.Module, recipe: Recipe, filter: Filter | None) -> list[tuple[str, nn.Linear]]:
    if filter is None:
        keep = all_but_last(model, recipe.last_layers_high)
        return [
            (name, linear)
            for name, linear in _linears(model)
            if keep(linear, name) and not any(fnmatchcase(name, p) for p in recipe.stays_high)
        ]
    linears = ((n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear))
    return [(name, linear) for name, linear in linears if filter(linear, name)]


def _why_none(model: nn.Module, recipe: Recipe, filter: Filter | None) -> str:
    found = sum(1 for _ in _linears(model))
    if not found:
        return "it has none of the class torch.nn.Linear itself"
    if filter is not None:
        return f"filter= refused all {found}"
    return (
        f"it has {found}, and last_layers_high={recipe.last_layers_high} and "
        f"stays_high={recipe.stays_high} keep them; use dataclasses.replace(recipe, "
        "last_layers_high=0), or filter="
    )


def _check(name: str, linear: nn.Linear, recipe: Recipe) -> None:
    if isinstance(linear, QuantizedLinear) and linear.recipe != recipe:
        raise ValueError(
            f'layer "{name}" is quantised by "{linear.recipe.name}" already, and chosen for '
            f'"{recipe.name}" too: let one filter leave it out'
        )
    if type(linear) not in (nn.Linear, QuantizedLinear):
        raise TypeError(
            f'layer "{name}" is a {type(linear).__name__}, with a forward pass of its own that '
            "would be lost: let filter leave it out, and choose the plain torch.nn.Linear inside it"
        )
    if not linear.weight.is_floating_point():
        raise TypeError(
            f'layer "{name}": its weight has dtype {linear.weight.dtype}, expected a real '
            "floating-point one; let filter leave it out"
        )
    dimensions: tuple[Dimension, ...] = ("in_features", "out_features")
    for dimension in dimensions:
        size, multiple = getattr(linear, dimension), recipe.multiple_of(dimension)
        if size % multiple:
            raise ValueError(
                f'layer "{name}": {dimension}={size} is no multiple of {multiple}, as the blocks '
                f'of "{recipe.name}" need it; pad it to {-(-size // multiple) * multiple}, or keep '
                "the layer high, by filter= or the recipe's stays_high"
            )
    if recipe.engine == "native":
        check_native(name, linear, recipe)
