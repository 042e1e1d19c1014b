"""Batches and outputs of any kind: tensors in tuples, lists, dicts and dataclasses.

A model may take and give a tensor, several by position, several by name, or an object with fields,
as Hugging Face's outputs are.  Here is the one rule of how to go through them:

* tuples, lists and sets of them, mappings and dataclasses are gone into, anything else is a leaf;
* `called` hands a plain tuple or list to a model by position, a mapping by name, and all else,
  named tuples and dataclasses included, as one argument.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def tensors(nest: object) -> Iterator[Tensor]:
    """Every tensor in a nest, in order.

    >>> [t.item() for t in tensors({"a": torch.tensor(1), "b": (torch.tensor(2), "text")})]
    [1, 2]
    """
    if isinstance(nest, Tensor):
        yield nest
    elif isinstance(nest, Mapping):
        for value in nest.values():
            yield from tensors(value)
    elif isinstance(nest, tuple | list):
        for value in nest:
            yield from tensors(value)
    elif _is_dataclass(nest):
        for field in dataclasses.fields(nest):  # type: ignore[arg-type]
            yield from tensors(getattr(nest, field.name, None))


def mapped(function: Callable[[Tensor], Tensor], nest: Any) -> Any:
    """The same nest with a function of each of its tensors; what is no tensor stays.

    >>> mapped(lambda t: t + 1, {"a": torch.tensor(1), "b": None})
    {'a': tensor(2), 'b': None}
    """
    if isinstance(nest, Tensor):
        return function(nest)
    if isinstance(nest, Mapping):
        new = {name: mapped(function, value) for name, value in nest.items()}
        return new if type(nest) is dict else _refilled(nest, new)
    if isinstance(nest, tuple | list):
        values = [mapped(function, value) for value in nest]
        if hasattr(nest, "_fields"):
            return type(nest)(*values)
        return tuple(values) if isinstance(nest, tuple) else values
    if _is_dataclass(nest):
        changed = copy.copy(nest)
        for field in dataclasses.fields(nest):
            if hasattr(nest, field.name):
                value = mapped(function, getattr(nest, field.name))
                object.__setattr__(changed, field.name, value)  # a frozen one too
        return changed
    return nest


def _refilled(nest: Mapping[Any, Any], new: dict[Any, Any]) -> Any:
    """A copy of a mapping of some other kind, with these values."""
    changed: Any = copy.copy(nest)
    if not hasattr(changed, "__setitem__"):
        return new
    for name, value in new.items():
        changed[name] = value
    return changed


def _is_dataclass(nest: object) -> bool:
    return dataclasses.is_dataclass(nest) and not isinstance(nest, type)


def called(function: Callable[..., Any], batch: Any) -> Any:
    """What a model makes of a batch: by position, by name, or as one argument.

    >>> called(max, (1, 3, 2))
    3
    """
    if isinstance(batch, Mapping):
        return function(**batch)
    if isinstance(batch, tuple | list) and not hasattr(batch, "_fields"):
        return function(*batch)
    return function(batch)


def length(nest: object) -> int:
    """How many examples a batch has: the first dimension of its tensors.

    Raises:
        ValueError: no tensor with a dimension, or tensors that differ in it.
    """
    found = {len(t) for t in tensors(nest) if t.dim()}
    if len(found) != 1:
        what = f"tensors of {sorted(found)} examples" if found else f"a {kind(nest)} without any"
        raise ValueError(f"batch: {what}, expected tensors of one length")
    return found.pop()


def chunks(nest: Any, parts: int) -> list[Any]:
    """A batch in so many parts of one size; what has no dimension is in each.

    Raises:
        ValueError: as `length`.
    """
    size = length(nest) // parts
    return [rows(nest, slice(index * size, (index + 1) * size)) for index in range(parts)]


def rows(nest: Any, chosen: slice) -> Any:
    """Some examples of a batch; what has no dimension is in each part.

    >>> rows({"x": torch.arange(4), "scale": torch.tensor(2)}, slice(1, 3))
    {'x': tensor([1, 2]), 'scale': tensor(2)}
    """
    return mapped(lambda t: t[chosen] if t.dim() else t, nest)


def real_floats_to(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Casts real floating-point tensors, and leaves integers and complex numbers."""
    return lambda t: t.to(dtype) if t.is_floating_point() else t


def kind(nest: object) -> str:
    """What a nest is, in words, for an error.

    >>> kind({"logits": torch.ones(1), "loss": torch.ones(())})
    'dict of logits, loss'
    """
    if isinstance(nest, Mapping):
        return f"{type(nest).__name__} of {', '.join(map(str, nest))}"
    if _is_dataclass(nest):
        names = ", ".join(field.name for field in dataclasses.fields(nest))  # type: ignore[arg-type]
        return f"{type(nest).__name__} with {names}"
    if isinstance(nest, tuple | list):
        return f"{type(nest).__name__} of {len(nest)}"
    return type(nest).__name__
