"""Any batch, any output, any loss: how a model is called on a batch, and where its loss comes from.

A batch is a tensor, a tuple, a mapping, or an object of one's own.  What a model takes of it, and
what a loss takes of both, is found once, by trying the ways in the order in which people mean them:

* a mapping goes in by keyword, as far as ``forward`` has the names (Hugging Face's batches);
* of a tuple, the last element is the target where a loss takes two arguments, and goes to the loss;
* a loss gets ``(output, batch)``, ``(output, target)`` or ``(output)``;
* without a loss it is the model's own: a scalar output, or ``.loss``, or ``["loss"]``, or the first
  scalar of a tuple.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mpbook.cost.measure import saved_for_backward
from mpbook.diagnosis.copies import random_numbers_kept
from mpbook.nests import mapped, real_floats_to, tensors

Loss = Callable[..., Any]
Way = Callable[["Call", nn.Module, Any], Any]
"""A call's own: from a model and a batch to a loss."""
WITH_A_LOSS = "loss_function(model(inputs), target)"
"""How a loss that is passed is written in lines to paste."""


class Arguments(NamedTuple):
    """A way from a batch to what a model is called with, and how one writes it."""

    written: str
    of: Callable[[Any], tuple[tuple[Any, ...], dict[Any, Any]]]


def as_batches(batches: Any, steps: int, loss: Loss | None = None) -> list[Any]:
    """One batch for each step; fewer are used again.

    A list, a generator or a loader holds batches; a tensor, a tuple, a mapping or a dataclass is
    one.  So is a list of tensors as ``next(iter(loader))`` gives it: they are not alike, or there
    are two and the loss is one of torch's, of an output and a target.

    Raises:
        ValueError: no batch, or no step.
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: expected at least 1")
    with random_numbers_kept(torch.device("cpu")):  # a loader draws from them
        found = (
            list(itertools.islice(batches, steps)) if _holds_batches(batches, loss) else [batches]
        )
    if not found or found == [None]:
        raise ValueError(
            "batches: has no batch; expected one (a tensor, tuple, dict or dataclass), or a list "
            "or loader of them (an exhausted generator is empty: make a new one)"
        )
    return [found[i % len(found)] for i in range(steps)]


def _holds_batches(batches: Any, loss: Loss | None) -> bool:
    one = isinstance(batches, Tensor | tuple | Mapping) or dataclasses.is_dataclass(batches)
    if isinstance(batches, list) and all(isinstance(t, Tensor) for t in batches):
        takes_a_target = loss is not None and _is_of_torch(loss) and len(batches) == 2
        one = takes_a_target or len({(t.dtype, t.dim()) for t in batches}) > 1
    return not one and isinstance(batches, Iterable) and not hasattr(batches, "keys")


class Call:
    """Output and loss of a model on a batch; the way that worked first is kept.

    ``written`` is an expression for the loss, once the way is found.
    """

    def __init__(self, loss: Loss | None) -> None:
        self.loss, self.in_float32, self._shows_saved = loss, False, True
        self.written = WITH_A_LOSS
        self._called = False
        self._way: Way | None = None

    def with_loss(self, loss: Loss | None) -> Call:
        """The same way of calling, with a copy of the loss."""
        other = copy.copy(self)
        other.loss = loss
        return other

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """The scalar loss.

        Raises:
            ValueError: a loss that is no scalar, or none to be found.
            Exception: what the model raises, where no way of calling it works.
        """
        if self._way is None:
            self._way = self._find(model, batch)
        return _scalar(self._way(self, model, batch))

    def find_saved(self, model: nn.Module, batch: Any) -> None:
        """Find whether what autograd saves can be counted: inside `torch.func.grad` it cannot."""
        try:
            with self.saved(model):
                self(model, batch)
        except RuntimeError:
            self._shows_saved = False

    def saved(self, model: nn.Module) -> AbstractContextManager[Callable[[], int]]:
        """Counts the bytes that autograd saves inside, 0 where they cannot be counted."""
        return saved_for_backward(model) if self._shows_saved else nullcontext(lambda: 0)

    def _find(self, model: nn.Module, batch: Any) -> Way:
        """The first way that gives a tensor."""
        raised: list[tuple[bool, Exception]] = []
        for way in self._ways(model, batch):
            self._called = False
            try:
                result = way(self, model, batch)
                if isinstance(result, Tensor):
                    return way
                if self.loss is not None and _has_loss(result):  # with logs beside it
                    return lambda c, m, b: _own_loss(way(c, m, b))
                who = "the model" if self.loss is None else "it"
                said = _NO_LOSS.format(who, type(result).__name__)
                error: Exception = ValueError(said)
            except Exception as e:  # whatever a model raises, another way may fit it
                error = e
            raised.append((self._called, error))
        # What went wrong after the model had been called says more than a way that does not fit it,
        # and so does anything but a number of arguments.
        told = min(raised, key=lambda one: (not one[0], isinstance(one[1], TypeError)))[1]
        names = _accepted(model) if isinstance(batch, Mapping) else None
        if names is not None and not names & set(batch):
            told.add_note(_OTHER_NAMES.format(", ".join(map(str, batch)), ", ".join(names)))
        raise told

    def _ways(self, model: nn.Module, batch: Any) -> Iterable[Way]:
        for arguments, losses in itertools.product(
            _argument_ways(model, batch, targets=_arity(self.loss) > 1), self._loss_ways(batch)
        ):

            def way(c: Call, m: nn.Module, b: Any, a: Any = arguments, f: Any = losses) -> Any:
                positional, named = a.of(b)
                output = m(*positional, **named)
                c._called = True
                if c.loss is None:
                    c.written = f"model({a.written}){_where_its_loss_is(output)}"
                if not c.in_float32:
                    return f(c.loss, output, b)
                with torch.autocast(next(tensors(b)).device.type, enabled=False):
                    return f(c.loss, mapped(real_floats_to(torch.float32), output), b)

            yield way

    def _loss_ways(self, batch: Any) -> list[Callable[[Any, Any, Any], Any]]:
        """Ways from a loss, an output and a batch to a scalar, likeliest first."""
        if self.loss is None:
            return [lambda _loss, output, _batch: _own_loss(output)]
        alone, with_batch, with_target, with_logits = _OF_A_LOSS
        if _arity(self.loss) < 2:
            return [alone]
        if isinstance(batch, tuple | list) and _is_of_torch(self.loss):
            return [with_target, with_batch, with_logits, alone]
        return [with_batch, with_target, with_logits, alone]


_OF_A_LOSS: tuple[Callable[[Any, Any, Any], Any], ...] = (
    lambda f, o, _b: f(o),
    lambda f, o, b: f(o, b),
    lambda f, o, b: f(o, _target(b)),
    lambda f, o, b: f(_tensor_of(o), _target(b)),
)

_TARGETS = ("labels", "label", "target", "targets", "y")
_OTHER_NAMES = (
    "batches: a mapping of {}, and forward takes {}: name its entries so, or pass a tuple"
)
_NO_LOSS = (
    "loss: {} returned a {} without a loss in it; pass loss=, a function of the output and "
    "the batch that returns a scalar, or step= for a loop of your own"
)


def _scalar(value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1:
        what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"loss: gave {what}, expected a tensor with one element; take its .mean() or .sum()"
        )
    if not value.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "loss: has no gradient; expected a loss that depends on parameters with "
            "requires_grad=True (is it detached, or made under no_grad?)"
        )
    return value.reshape(())


def _own_loss(output: Any) -> Any:
    """The loss that is in an output."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping) and "loss" in output:
        return output["loss"]
    if getattr(output, "loss", None) is not None:
        return output.loss
    if isinstance(output, tuple | list):
        scalars = [t for t in output if _is_scalar(t)]
        if scalars:
            return scalars[0]
    raise ValueError(_NO_LOSS.format("the model", type(output).__name__))


def _where_its_loss_is(output: Any) -> str:
    """What follows a call of the model whose loss is its own."""
    if isinstance(output, Tensor):
        return ""
    if isinstance(output, tuple | list):
        return f"[{next((i for i, t in enumerate(output) if _is_scalar(t)), 0)}]"
    return ".loss" if hasattr(output, "loss") else '["loss"]'


def _is_scalar(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() == 1


def _has_loss(output: Any) -> bool:
    try:
        return isinstance(_own_loss(output), Tensor)
    except ValueError:
        return False


_OF_A_TUPLE = (
    Arguments("*batch[:-1]", lambda b: (tuple(b[:-1]), {})),
    Arguments("*batch", lambda b: (tuple(b), {})),
    Arguments("batch[0]", lambda b: ((b[0],), {})),
    Arguments("batch", lambda b: ((b,), {})),
)


def _argument_ways(model: nn.Module, batch: Any, *, targets: bool) -> list[Arguments]:
    """Ways from a batch to positional and keyword arguments of the model, likeliest first."""
    without_target, whole, first, as_one = _OF_A_TUPLE
    if isinstance(batch, Mapping):
        names = _accepted(model)
        if names is None or names & set(batch):
            taken = list(batch) if names is None else [k for k in batch if k in names]
            written = ", ".join(f'{k}=batch["{k}"]' for k in taken)
            by_name = Arguments(
                "**batch" if len(taken) == len(batch) else written,
                lambda b: ((), {k: b[k] for k in b if names is None or k in names}),
            )
            either = names is None and _needs_one(model, batch)
            return [by_name, as_one] if either else [by_name]
        return [as_one]
    if not isinstance(batch, tuple | list):
        return [as_one]
    ways = [without_target, whole] if targets and len(batch) > 1 else [whole, without_target]
    return [*ways, first, as_one]


def _accepted(model: nn.Module) -> set[str] | None:
    """The names of the arguments of ``forward``, None if it takes any."""
    parameters = inspect.signature(model.forward).parameters.values()
    if any(p.kind == p.VAR_KEYWORD for p in parameters):
        return None
    return {p.name for p in parameters}


def _needs_one(model: nn.Module, batch: Any) -> bool:
    """Whether ``forward`` needs an argument by position that no name of the batch is for."""
    parameters = inspect.signature(model.forward).parameters.values()
    needed = (p for p in parameters if p.default is p.empty and p.name not in batch)
    return any(p.kind not in (p.VAR_KEYWORD, p.KEYWORD_ONLY) for p in needed)


def _arity(loss: Loss | None) -> int:
    """How many positional arguments a loss wants; 2 if it does not say.

    One that has the name of a target is wanted even where it may be left out (``labels=None``).
    """
    if loss is None:
        return 1
    try:
        called = loss.forward if isinstance(loss, nn.Module) else loss
        parameters = list(inspect.signature(called).parameters.values())
    except (TypeError, ValueError):
        return 2
    if any(p.kind == p.VAR_POSITIONAL for p in parameters):
        return 2
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    taken = [p for p in parameters if p.kind in positional]
    needed = [p for p in taken if p.default is p.empty or p.name in _TARGETS]
    return max(len(needed), 1)


def _is_of_torch(loss: Loss) -> bool:
    home = str(getattr(type(loss) if isinstance(loss, nn.Module) else loss, "__module__", ""))
    return home.partition(".")[0] == "torch"


def _target(batch: Any) -> Any:
    if isinstance(batch, Mapping):
        for name in _TARGETS:
            if name in batch:
                return batch[name]
        raise KeyError("the batch has no labels, target or y")
    if isinstance(batch, tuple | list):
        return batch[-1]
    return batch


def _tensor_of(output: Any) -> Tensor:
    """The first tensor of an output: the logits of a Hugging Face model that has no loss."""
    if getattr(output, "logits", None) is not None:
        return output.logits
    return next(tensors(output))
