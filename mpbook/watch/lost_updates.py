"""How many weight updates does rounding swallow?  Counted on a live run, layer by layer.

An update is **lost** where a float32 weight would have moved and what is stored of the weight does
not change at all: the weight itself, with the master copy or the compensation that
`mpbook.master_weights` keeps beside it.  Float32 weights lose none, by this definition.

What float32 would have done is not estimated.  For a plain optimizer, just before its step a
*shadow* of it is made: the same gradients, the same state and the same options, all in float32.
The shadow takes the step first, then the optimizer does, and the two results are compared, weight
by weight.  That costs a second optimizer step and its memory each time; ``every=10`` looks at each
tenth step only.  A wrapper of `mpbook.master_weights` computes its update in float32 itself, so
there the wrapped optimizer is watched instead.

Stochastic rounding leaves most weights where they are, too, but not for good: a weight moves with
a probability in proportion to its update, so the updates arrive in the mean.  They count as
*unmoved*, and none as lost.  So do those that a master copy or a compensation has taken in.

Taught in the chapter "Master weights".
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mpbook.master_weights import (
    SIXTEEN_BIT,
    Float32Updates,
    StochasticRounding,
    in_float32,
    parameters_of,
    without_hooks,
)
from mpbook.notebook import Table
from mpbook.watch.optimizer_steps import with_wrapped


@dataclass
class LostUpdates:
    """The updates of a run, counted by parameter and by step.

    A fraction is NaN where there was no update at all.

    Attributes:
        names: of the watched parameters, as the model names them.
        steps: which of the steps that the optimizer made were looked at, counted from 0.
        counts: for each of them int64 (parameters, 3): updates, lost ones, and those after which
            the weight itself had not moved.
    """

    names: list[str]
    steps: list[int] = field(default_factory=list)
    counts: list[Tensor] = field(default_factory=list, repr=False)

    @property
    def fraction(self) -> float:
        """Lost updates, as a fraction of all."""
        return _ratio(self._totals().sum(0), of=1)

    @property
    def unmoved(self) -> float:
        """Updates that left the weight itself where it was, as a fraction of all."""
        return _ratio(self._totals().sum(0), of=2)

    @property
    def by_step(self) -> list[float]:
        """Lost updates as a fraction of all, for each of `steps`."""
        return [_ratio(counts.sum(0), of=1) for counts in self._stacked()]

    @property
    def by_parameter(self) -> dict[str, float]:
        """Lost updates as a fraction of all, by the parameter's name."""
        totals = self._totals()
        return {name: _ratio(row, of=1) for name, row in zip(self.names, totals, strict=True)}

    def table(self) -> Table:
        """Updates, and the fractions that are lost and unmoved, by parameter and for all."""
        totals = self._totals()
        named = [*zip(self.names, totals, strict=True), ("all", totals.sum(0))]
        rows = [[name, int(row[0]), _ratio(row, of=1), _ratio(row, of=2)] for name, row in named]
        return Table(["parameter", "updates", "lost", "weight unmoved"], rows)

    def _stacked(self) -> Tensor:
        """All counts on the CPU, fetched at once: (steps, parameters, 3)."""
        if not self.counts:
            return torch.zeros(0, len(self.names), 3, dtype=torch.int64)
        return torch.stack(self.counts).cpu()

    def _totals(self) -> Tensor:
        return self._stacked().sum(0)


def _ratio(counts: Tensor, *, of: int) -> float:
    updates = int(counts[0])
    return int(counts[of]) / updates if updates else math.nan


@contextmanager
def updates_lost(
    model: nn.Module, optimizer: torch.optim.Optimizer, *, every: int = 1
) -> Iterator[LostUpdates]:
    """Count the updates that rounding swallows while the ``with`` block trains.

    Training goes on exactly as without: not a bit of weights, optimizer or random state differs.
    Any torch optimizer whose step needs no closure will do, over float16, bfloat16 or float32
    parameters, and any wrapper of `mpbook.master_weights`, also inside the wrapper of another
    library.  A step that is skipped, or that fails, is not counted.

    Args:
        model: whose parameters the optimizer updates; they are counted under its names.
        optimizer: the one whose ``step()`` is called.
        every: look at the first step and then at each ``every``-th.

    Yields:
        The counts, which grow with each step.

    Raises:
        ValueError: ``every`` below 1, or an optimizer that has no parameter of this model; at a
            step, a closure for an optimizer that is not wrapped.

    >>> layer = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    >>> weight = nn.init.ones_(layer.weight)
    >>> optimizer = torch.optim.SGD(layer.parameters(), lr=1e-3)
    >>> with updates_lost(layer, optimizer) as lost:
    ...     weight.grad = torch.ones_like(weight)  # 1 - 0.001 is nearer to 1 than to 1 - 1/256
    ...     optimizer.step()
    >>> lost.fraction
    1.0
    """
    watch = _Watch(model, optimizer, every)
    handles = [
        watch.watched.register_step_pre_hook(watch.before),
        watch.watched.register_step_post_hook(watch.updated),
        watch.outer.register_step_post_hook(watch.after),  # a wrapper has rounded only by now
    ]
    try:
        yield watch.lost
    finally:
        for handle in handles:
            handle.remove()


class _Watch:
    """The hooks of `updates_lost`, and what they hand on from one to the next."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, every: int):
        if every < 1:
            raise ValueError(f"every={every}: expected at least 1")
        optimizer = _that_updates(optimizer)
        self.wrapper = optimizer if isinstance(optimizer, Float32Updates) else None
        self.outer = optimizer
        self.watched = optimizer if self.wrapper is None else self.wrapper.optimizer
        stands_in = {} if self.wrapper is None else self.wrapper.copies
        held = set(parameters_of(optimizer))
        named = {n: p for n, p in model.named_parameters() if stands_in.get(p, p) in held}
        if not named:
            raise ValueError("optimizer: has none of the model's parameters")
        self.parameters: list[Tensor] = list(named.values())
        self.updating = [stands_in.get(p, p) for p in self.parameters]  # what the optimizer changes
        self.every, self.steps, self.lost = every, 0, LostUpdates(list(named))
        self.stepping = False
        self.stored: list[list[Tensor]] = []
        self.start: list[Tensor] = []
        self.moves: list[Tensor] = []

    @torch.no_grad()
    def before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Note what there is, and let the shadow of a plain optimizer take its step."""
        self.moves, self.start, self.stepping = [], [], True
        if self.steps % self.every:
            return
        self.stored = [[tensor.clone() for tensor in self._stored(p)] for p in self.parameters]
        if self.wrapper is not None:
            self.start = [tensor.clone() for tensor in self.updating]
        elif any(closure is not None for closure in (*args[1:], *kwargs.values())):
            raise ValueError("closure: gradients that step() computes itself cannot be watched")
        else:
            self.moves = _moves_in_float32(optimizer, self.parameters)

    @torch.no_grad()
    def updated(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Note what a wrapped optimizer has changed in float32, before it is rounded."""
        if self.start:
            self.moves = list(map(_differ, self.updating, self.start))

    @torch.no_grad()
    def after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Compare what is stored now with what float32 would have moved."""
        if not self.stepping:  # a step that calls its parent's runs the hooks twice, nested
            return
        if self.moves:
            counts = list(map(self._count, self.parameters, self.stored, self.moves))
            self.lost.steps.append(self.steps)
            self.lost.counts.append(torch.stack([count.to(counts[0].device) for count in counts]))
        self.stored, self.start, self.moves, self.stepping = [], [], [], False
        self.steps += 1

    def _stored(self, parameter: Tensor) -> list[Tensor]:
        """The weight, and what is kept beside it."""
        kept = {} if self.wrapper is None else self.wrapper.kept
        return [parameter, kept[parameter]] if parameter in kept else [parameter]

    def _count(self, parameter: Tensor, stored: list[Tensor], moves: Tensor) -> Tensor:
        """Updates, lost ones, and those after which the weight has not moved."""
        changes = list(map(_differ, self._stored(parameter), stored))
        unmoved = moves & ~changes[0]
        lost = moves & ~torch.stack(changes).any(0)
        if isinstance(self.wrapper, StochasticRounding):
            lost = torch.zeros_like(lost)  # another draw would have moved it
        return torch.stack([moves.sum(), lost.sum(), unmoved.sum()])


def _that_updates(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The wrapper of `mpbook.master_weights` or the plain optimizer inside whatever wraps it."""
    found = with_wrapped(optimizer)
    return next((one for one in found if isinstance(one, Float32Updates)), found[-1])


def _moves_in_float32(optimizer: torch.optim.Optimizer, parameters: list[Tensor]) -> list[Tensor]:
    """Where the optimizer's coming step would move a float32 weight."""
    shadow, stands_in = _float32_shadow(optimizer)
    step: Any = type(optimizer).step
    if hasattr(step, "hooked"):  # hooks on all optimizers are not meant for shadows
        step = step.__wrapped__
    devices = {p.device for p in parameters if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        step(shadow)
    return [_differ(stands_in[p], p.to(stands_in[p].dtype)) for p in parameters]


def _float32_shadow(
    optimizer: torch.optim.Optimizer,
) -> tuple[torch.optim.Optimizer, dict[Tensor, Tensor]]:
    """A copy of the optimizer over float32 copies of its parameters, with gradients and state.

    Whatever the optimizer refers to is copied with it; the memo of `copy.deepcopy` puts the float32
    copies wherever the parameters stood.
    """
    stands_in = {p: _in_float32_with_gradient(p) for p in parameters_of(optimizer)}
    memo: dict[int, Any] = {id(p): stand_in for p, stand_in in stands_in.items()}
    shadow = object.__new__(type(optimizer))
    shadow.__dict__.update(copy.deepcopy(without_hooks(optimizer), memo))
    torch.optim.Optimizer.__setstate__(shadow, {})  # no hooks
    for parameter in shadow.state:
        shadow.state[parameter] = in_float32(shadow.state[parameter])
    return shadow, stands_in


def _in_float32_with_gradient(parameter: Tensor) -> Tensor:
    dtype = torch.float32 if parameter.dtype in SIXTEEN_BIT else parameter.dtype
    stand_in = nn.Parameter(parameter.detach().to(dtype, copy=True), parameter.requires_grad)
    if parameter.grad is not None:
        stand_in.grad = parameter.grad.to(dtype, copy=True)
    return stand_in


def _differ(left: Tensor, right: Tensor) -> Tensor:
    """Where two tensors differ; NaN does not differ from NaN, nor 0 from -0."""
    return (left != right) & ~(left.isnan() & right.isnan())
