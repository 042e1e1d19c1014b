"""Where an optimizer's step begins and ends, whatever is wrapped around the optimizer.

Much of what is called an optimizer wraps another.  `mpbook.master_weights` and Apex keep float32
copies of the weights in it, accelerate and Lightning decide whether it steps at all, a sharded
optimizer hands its results to the other processes.  One rule serves them all:

* An optimizer **wraps** what it has as an attribute, or in a list or dict that is one, and that has
  ``param_groups`` and a ``step``.
* Together they **hold** those parameters of a model that are in the groups of any of them, or that
  the attributes of a wrapper refer to.
* A step **begins** when one that wraps no other begins to step, so a call that comes to nothing is
  none, and **ends** when the outermost whose step is running returns: by then copies are rounded.
* A **skipped** step is none.  A fused optimizer is called all the same, and skips by itself: then
  `torch.amp.GradScaler` has told it so by an attribute ``found_inf``, which has to be waited for.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from types import FrameType, MethodType
from typing import Any

from torch import Tensor


def is_optimizer(value: object) -> bool:
    """Whether something has what makes an optimizer: groups of parameters, and a step."""
    return hasattr(value, "param_groups") and callable(getattr(value, "step", None))


def with_wrapped(optimizer: Any) -> list[Any]:
    """An optimizer and all that it wraps, outermost first, each once.

    >>> import torch
    >>> from mpbook.master_weights import MasterWeights
    >>> inner = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    >>> [type(optimizer).__name__ for optimizer in with_wrapped(MasterWeights(inner))]
    ['MasterWeights', 'SGD']
    """
    found: list[Any] = []
    _collect(optimizer, found)
    return found


def _collect(optimizer: Any, found: list[Any]) -> None:
    if not any(optimizer is one for one in found):
        found.append(optimizer)
        for inner in _wrapped_by(optimizer):
            _collect(inner, found)


def _wrapped_by(optimizer: Any) -> list[Any]:
    """The optimizers that one refers to itself."""
    values = list(vars(optimizer).values())
    for value in list(values):
        values += value.values() if isinstance(value, dict) else ()
        values += value if isinstance(value, list | tuple) else ()
    return [value for value in values if value is not optimizer and is_optimizer(value)]


def grouped(optimizer: Any) -> list[Tensor]:
    """The parameters in the groups of an optimizer and of all that it wraps."""
    groups = [group for one in with_wrapped(optimizer) for group in one.param_groups]
    return [parameter for group in groups for parameter in group["params"]]


def held_besides(optimizer: Any) -> set[int]:
    """Ids of the tensors that the attributes of its wrappers refer to."""
    wrappers = [one for one in with_wrapped(optimizer) if _wrapped_by(one)]
    kept = ({k: v for k, v in vars(one).items() if k != "param_groups"} for one in wrappers)
    return {id(tensor) for attributes in kept for tensor in _tensors(attributes, depth=4)}


def _tensors(nest: object, *, depth: int) -> Iterator[Tensor]:
    """The tensors in a nest of lists, tuples, sets and dicts, the keys of dicts included."""
    if isinstance(nest, Tensor):
        yield nest
    elif depth and isinstance(nest, dict | list | tuple | set | frozenset):
        for value in (*nest, *nest.values()) if isinstance(nest, dict) else nest:
            yield from _tensors(value, depth=depth - 1)


def told_to_skip(optimizers: list[Any]) -> bool:
    """Whether `torch.amp.GradScaler` has told one of them, a fused one, to skip by itself."""
    found = [vars(optimizer).get("found_inf") for optimizer in optimizers]
    return any(bool(one) for one in found if one is not None)


class StepWatch:
    """Calls one function when a step begins and another when it has ended.

    Args:
        optimizer: the outermost; what it wraps is watched, too.
        begun: called when it is certain that a step is made, before a weight has changed.
        ended: called after it, when all weights have changed.
    """

    def __init__(self, optimizer: Any, begun: Callable[[], None], ended: Callable[[], None]):
        self.optimizers = with_wrapped(optimizer)
        self._innermost = {id(one) for one in self.optimizers if not _wrapped_by(one)}
        self._begun, self._ended = begun, ended
        self._outermost: FrameType | None = None  # the running step that the others are inside of
        self._made = False

    def register(self) -> list[Any]:
        """Set the hooks; what is returned has a ``remove()`` each."""
        handles: list[Any] = []
        for optimizer in self.optimizers:
            if _has_hooks(optimizer):
                handles.append(optimizer.register_step_pre_hook(self._before))
                handles.append(optimizer.register_step_post_hook(self._after))
            else:
                handles.append(_PatchedStep(optimizer, self._before, self._after))
        return handles

    def _before(self, optimizer: Any, *_: Any) -> None:
        if self._outermost is not None and not _is_running(self._outermost):
            self._forget()  # that step has failed
        if self._outermost is None:
            self._outermost = sys._getframe(1)
        if (
            not self._made
            and id(optimizer) in self._innermost
            and not told_to_skip(self.optimizers)
        ):
            self._made = True
            self._begun()

    def _after(self, _optimizer: Any, *_: Any) -> None:
        if sys._getframe(1) is self._outermost:
            made = self._made
            self._forget()
            if made:
                self._ended()

    def _forget(self) -> None:
        self._outermost, self._made = None, False


def _has_hooks(optimizer: Any) -> bool:
    """Whether torch calls hooks of this optimizer's step; a wrapper may look as if it did."""
    hooked = getattr(type(optimizer).step, "hooked", False)
    return bool(hooked) and "_optimizer_step_pre_hooks" in vars(optimizer)


def _is_running(frame: FrameType) -> bool:
    """Whether a call is still going on."""
    running: FrameType | None = sys._getframe(1)
    while running is not None and running is not frame:
        running = running.f_back
    return running is not None


class _PatchedStep:
    """Hooks for the step of one optimizer that has none, until `remove`."""

    def __init__(self, optimizer: Any, before: Callable[..., None], after: Callable[..., None]):
        self.optimizer, self.active = optimizer, True
        self.own = vars(optimizer).get("step")
        original = optimizer.step

        @functools.wraps(original)
        def step(_self: Any, *arguments: Any, **options: Any) -> Any:
            if not self.active:
                return original(*arguments, **options)
            before(optimizer)
            result = original(*arguments, **options)
            after(optimizer)
            return result

        # A method, because learning-rate schedulers look for what a method has.
        self.patch = optimizer.step = MethodType(step, optimizer)

    def remove(self) -> None:
        """Put back what was there; a patch over this one stays, and this one does nothing."""
        self.active = False
        if vars(self.optimizer).get("step") is self.patch:
            if self.own is None:
                del self.optimizer.step
            else:
                self.optimizer.step = self.own
