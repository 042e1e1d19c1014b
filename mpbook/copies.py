"""Copies of models and optimizers that may hold what Python cannot copy.

`copy.deepcopy` refuses a lock, although a copy has no use for the original's: a new one does.  What
else it refuses, an open file or a connection, may be part of how a model computes, so that is an
error with the name of the attribute.
"""

from __future__ import annotations

import copy
import threading
from typing import Any

from torch import nn

_LOCKS = {type(threading.Lock()): threading.Lock, type(threading.RLock()): threading.RLock}


def deep_copy(value: Any, *, what: str, memo: dict[int, Any] | None = None) -> Any:
    """A deep copy, with new locks for those that are in it.

    Args:
        value: a module, or the attributes of an optimizer.
        what: it is, for the error.
        memo: of `copy.deepcopy`: by id, what to put in the place of an object.

    Raises:
        ValueError: something in it that cannot be copied.
    """
    memo = {} if memo is None else memo
    _renew_locks(value, memo, seen=set())
    try:
        return copy.deepcopy(value, memo)
    except (TypeError, RuntimeError, NotImplementedError, AttributeError) as error:
        culprit = _culprit(value)
        raise ValueError(
            f"{what}: cannot be copied{culprit} ({error}); expected one that copy.deepcopy takes: "
            "give its class a __deepcopy__, or take that attribute off while it is watched"
        ) from error


def _renew_locks(value: Any, memo: dict[int, Any], seen: set[int]) -> None:
    """Put new locks into the memo for all that attributes and containers lead to."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if type(value) in _LOCKS:
        new = _LOCKS[type(value)]()
        memo.setdefault(id(value), new)
        return
    inner: list[Any] = []
    if isinstance(value, dict):
        inner += value.values()
    elif isinstance(value, list | tuple | set):
        inner.extend(one for one in value)  # a tuple of a class of its own may have no length
    elif not isinstance(value, type) and hasattr(value, "__dict__"):
        inner += vars(value).values()
    for one in inner:
        if not isinstance(one, str | int | float | bool | None):
            _renew_locks(one, memo, seen)


def _culprit(value: Any) -> str:
    """The first attribute or module that cannot be copied, in words; empty if none is found."""
    parts: dict[str, Any] = value if isinstance(value, dict) else {}
    if isinstance(value, nn.Module):
        parts = {
            ".".join(filter(None, (name, attribute))): held
            for name, module in value.named_modules()
            for attribute, held in vars(module).items()
            if not attribute.startswith("_")
        }
    for name, part in parts.items():
        try:
            memo: dict[int, Any] = {}
            _renew_locks(part, memo, seen=set())
            copy.deepcopy(part, memo)
        except (TypeError, RuntimeError, NotImplementedError):
            return f", because of its {name}, a {type(part).__name__}"
    return ""
