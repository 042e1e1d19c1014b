"""What a step knows by other ways than its arguments: no copy is made of it, so it is put back.

A scheduler, an average of the weights, a generator of random numbers: a step, or a loss that is a
function, finds them in its closure, in globals, or in the object that it is a method of.  Whatever
of these has a state has it again before each run and after all of them.
"""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mpbook.diagnosis.left_alone import Held
from mpbook.watch.optimizer_steps import grouped, is_optimizer, with_wrapped

_DEPTH = 6
_LONGEST = 100
"""Of a list or dict that is looked through: a longer one holds data."""
_PLAIN = bool | int | float | complex | str | bytes | None


class Outside:
    """The states of what a step knows, as they were.

    Args:
        step: it, or a loss: a function, a method, or an object that can be called; or None.
        optimizers: that were passed, since a scheduler changes them.
        but: what is looked after elsewhere.
    """

    def __init__(self, step: Any, optimizers: list[Any], but: Any) -> None:
        self.changed: set[str] = set()
        self._kept: list[tuple[Any, Any]] = []
        self._plain: list[tuple[Any, list[tuple[Any, Any]]]] = []
        self._tensors: list[tuple[str, Held]] = []
        if step is None:
            return
        not_theirs = {id(t) for t in _tensors(but)} if isinstance(but, nn.Module) else set()
        self._plain = [(held, list(_plain_of(held))) for held in _holders(step)]
        known = [inner for one in optimizers for inner in with_wrapped(one)]
        for one in {id(one): one for one in (*known, *_reached(step))}.values():
            if one is but:
                continue
            if isinstance(one, nn.Module):
                own = (t for t in _tensors(one) if id(t) not in not_theirs)
                self._tensors += [(type(one).__name__, Held.of(t)) for t in own]
            elif _has_state(one):
                with suppress(Exception):  # whatever its state is made of
                    self._kept.append((one, copy.deepcopy(_state(one), _memo(one))))

    def put_back(self, *, for_good: bool = False) -> None:
        """Each that has changed has its state again, and is named in ``changed``.

        Gradients of a module's weights are None until they are put back ``for_good``.
        """
        for held, values in self._plain:
            _set_plain(held, values)
        for name, held in self._tensors:
            if held.put_back():
                self.changed.add(name)
            if not for_good and held.tensor.is_leaf:
                held.tensor.grad = None
        for one, before in self._kept:
            if _differ(_state(one), before):
                _put_back(one, copy.deepcopy(before, _memo(one)))
                if _random(one) is None:
                    self.changed.add(type(one).__name__)


# --- States -----------------------------------------------------------------------------------


def _random(one: Any) -> tuple[Callable[[], Any], Callable[[Any], Any]] | None:
    """How to read and to set the state of a generator of random numbers."""
    if isinstance(one, torch.Generator):
        return one.get_state, one.set_state
    if isinstance(one, random.Random):
        return one.getstate, one.setstate
    if isinstance(one, numpy.random.RandomState):
        return one.get_state, one.set_state
    if isinstance(one, numpy.random.Generator):
        bits = one.bit_generator
        return lambda: bits.state, functools.partial(setattr, bits, "state")
    return None


def _has_state(one: Any) -> bool:
    kind = type(one)  # an object may answer to any name; its class does not
    named = hasattr(kind, "state_dict") and hasattr(kind, "load_state_dict")
    return named or (hasattr(kind, "step") and is_optimizer(one)) or _random(one) is not None


def _state(one: Any) -> Any:
    if found := _random(one):
        return found[0]()
    if is_optimizer(one):  # its own way back would cast what it keeps
        return {"groups": [dict(g) for g in one.param_groups], "state": getattr(one, "state", {})}
    return one.state_dict()


def _memo(one: Any) -> dict[int, Any]:
    """For a copy: an optimizer's parameters stay what they are."""
    return {id(p): p for p in grouped(one)} if is_optimizer(one) else {}


def _put_back(one: Any, state: Any) -> None:
    if found := _random(one):
        found[1](state)
    elif is_optimizer(one):
        for group, before in zip(one.param_groups, state["groups"], strict=False):
            group.clear()
            group.update(before)
        if state["state"] or getattr(one, "state", None):
            one.state.clear()
            one.state.update(state["state"])
    else:
        one.load_state_dict(state)


def _differ(one: Any, other: Any) -> bool:
    """Whether any number or text in two states does."""
    ours, theirs = tree_leaves(one), tree_leaves(other)
    return len(ours) != len(theirs) or any(map(_leaves_differ, ours, theirs))


def _leaves_differ(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is not other and not torch.equal(one, other)
    if isinstance(one, numpy.ndarray):
        return not numpy.array_equal(one, other)
    return isinstance(one, _PLAIN) and bool(one != other)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


# --- Numbers that a step counts with ----------------------------------------------------------


def _holders(step: Any) -> list[Any]:
    """Functions and objects that hold plain values: counters, the numbers of a step."""
    objects = (value for value in _walked(step) if not _has_state(value))
    return [v for v in objects if isinstance(v, FunctionType) or hasattr(v, "__dict__")]


def _plain_of(held: Any) -> Iterator[tuple[Any, Any]]:
    """Names, or cells, with the plain values that they have."""
    if not isinstance(held, FunctionType):
        yield from ((n, v) for n, v in vars(held).items() if isinstance(v, _PLAIN))
        return
    for cell in held.__closure__ or ():
        with suppress(ValueError):
            if isinstance(cell.cell_contents, _PLAIN):
                yield cell, cell.cell_contents
    for name in _names(held.__code__) & held.__globals__.keys():
        if isinstance(held.__globals__[name], _PLAIN):
            yield name, held.__globals__[name]


def _set_plain(held: Any, values: list[tuple[Any, Any]]) -> None:
    names = held.__globals__ if isinstance(held, FunctionType) else vars(held)
    for name, value in values:
        if isinstance(name, CellType):
            name.cell_contents = value
        else:
            names[name] = value


# --- What a step knows ------------------------------------------------------------------------


def _reached(step: Any) -> Iterator[Any]:
    """Whatever has a state and is known to a function, or to what it knows."""
    return filter(_has_state, _walked(step))


def _walked(step: Any) -> Iterator[Any]:
    """A function and what it knows, as far as that is neither plain nor has a state."""
    seen: set[int] = set()
    left = [(step, _DEPTH)]
    while left:
        value, depth = left.pop()
        if id(value) in seen or isinstance(value, _PLAIN | Tensor | ModuleType | type):
            continue
        seen.add(id(value))
        yield value
        if depth and not _has_state(value):
            left += [(one, depth - 1) for one in _known_to(value)]


def _known_to(value: Any) -> list[Any]:
    if isinstance(value, MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, FunctionType):
        return _known_to_a_function(value)
    if isinstance(value, dict):
        return list(value.values()) if len(value) <= _LONGEST else []
    if isinstance(value, list | tuple | set):
        return list(value) if len(value) <= _LONGEST else []
    return [*getattr(value, "__dict__", {}).values(), vars(type(value)).get("__call__")]


def _known_to_a_function(function: FunctionType) -> list[Any]:
    if str(function.__module__).partition(".")[0] == "torch":
        return []
    found = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # one that is not filled yet
            found.append(cell.cell_contents)
    names = _names(function.__code__)
    return found + [v for name, v in function.__globals__.items() if name in names]


def _names(code: CodeType) -> set[str]:
    inner = [_names(one) for one in code.co_consts if isinstance(one, CodeType)]
    return set(code.co_names).union(*inner)
