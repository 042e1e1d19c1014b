"""How many weight updates does rounding swallow?  Counted on a live run, layer by layer.

An update is **lost** where a float32 weight would have moved and what is stored of the weight does
not change at all: the weight itself, with the master copy or the compensation that
`mpbook.master_weights` keeps beside it.  Float32 weights lose none, by this definition.  It is lost
as well where float32 would have had a finite weight and the stored one becomes infinite or NaN, as
with Adam's in float16, whose ``eps`` of 1e-8 is 0 there.

Two more things are counted beside the updates, since no update shows them.  **Not finite**: weights
that a step, for whatever reason, has made infinite or NaN.  **Additions lost**: where gradients of
several backward passes add up in a 16-bit ``grad``, those that it swallows; the step that follows
takes what is left for the gradient.

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

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mpbook.master_weights import (
    SIXTEEN_BIT,
    Float32Updates,
    StochasticRounding,
    parameters_of,
)
from mpbook.notebook import Table
from mpbook.shards import groups_of, is_shared, own_part
from mpbook.watch.float32_shadow import differ, moves_in_float32
from mpbook.watch.optimizer_steps import told_to_skip, with_wrapped


@dataclass
class LostUpdates:
    """The updates of a run, counted by parameter and by step.

    A fraction is NaN where there was no update at all.

    Attributes:
        names: of the watched parameters, as the model names them.
        steps: which of the steps that the optimizer made were looked at, counted from 0.
        counts: for each of them int64 (parameters, 3): updates, lost ones, and those after which
            the weight itself had not moved.
        nonfinite_counts: for each of them int64 (parameters, 2): weights that were finite before,
            and those of them that no longer are.
        addition_counts: by parameter, int64 (2): numbers that were not 0 and were added to a
            16-bit gradient, and those that left it as it was.
    """

    names: list[str]
    steps: list[int] = field(default_factory=list)
    counts: list[Tensor] = field(default_factory=list, repr=False)
    nonfinite_counts: list[Tensor] = field(default_factory=list, repr=False)
    addition_counts: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def fraction(self) -> float:
        """Lost updates, as a fraction of all."""
        return _ratio(self._totals().sum(0), of=1)

    @property
    def unmoved(self) -> float:
        """Updates that left the weight itself where it was, as a fraction of all."""
        return _ratio(self._totals().sum(0), of=2)

    @property
    def nonfinite(self) -> float:
        """Weights that a step made infinite or NaN, as a fraction of all that were finite."""
        if not self.nonfinite_counts:
            return math.nan
        return _ratio(torch.stack(self.nonfinite_counts).cpu().sum((0, 1)), of=1)

    @property
    def additions_lost(self) -> float:
        """Additions to 16-bit gradients that changed nothing, as a fraction of all.

        NaN where no gradient was added to one that was there already.
        """
        counts = [count.cpu() for count in self.addition_counts.values()]
        return _ratio(torch.stack(counts).sum(0), of=1) if counts else math.nan

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
        """Updates, and the fractions that are lost, unmoved and so on, by parameter and for all.

        Weights that are not finite and additions that are lost have a column if there are any.
        """
        totals = self._totals()
        named = [*zip(self.names, totals, strict=True), ("all", totals.sum(0))]
        rows = [[name, int(row[0]), _ratio(row, of=1), _ratio(row, of=2)] for name, row in named]
        header = ["parameter", "updates", "lost", "weight unmoved"]
        if self.nonfinite > 0:
            header.append("not finite after")
            counts = torch.stack(self.nonfinite_counts).cpu().sum(0)
            for row, count in zip(rows, [*counts, counts.sum(0)], strict=True):
                row.append(_ratio(count, of=1))
        if self.addition_counts:
            header.append("additions lost")
            none = torch.zeros(2)
            for row in rows[:-1]:
                row.append(_ratio(self.addition_counts.get(str(row[0]), none), of=1))
            rows[-1].append(self.additions_lost)
        return Table(header, rows)

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

    Weights that a step leaves infinite or NaN are counted too, and so are the additions to 16-bit
    gradients, of several backward passes, that round to nothing: these in every step.

    Training goes on exactly as without: not a bit of weights, optimizer or random state differs.
    Any torch optimizer whose step needs no closure will do, over float16, bfloat16 or float32
    parameters, and any wrapper of `mpbook.master_weights`, also inside the wrapper of another
    library.  A step that is skipped, or that fails, is not counted.  Under `fully_shard` every rank
    has to watch, and the counts are those of all ranks.

    Args:
        model: whose parameters the optimizer updates; they are counted under its names.
        optimizer: the one whose ``step()`` is called.
        every: look at the first step and then at each ``every``-th.

    Yields:
        The counts, which grow with each step.

    Raises:
        ValueError: ``every`` below 1, or an optimizer that has no parameter of this model; at a
            step, a closure for an optimizer that is not wrapped, or an optimizer that holds what
            cannot be copied (a lock can).

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
        *watch.on_additions(),
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
        self.sound: list[Tensor] = []

    def on_additions(self) -> list[Any]:
        """Hooks that count what is added to 16-bit gradients."""
        return [
            parameter.register_hook(partial(self._added, name, parameter))
            for name, parameter in zip(self.lost.names, self.parameters, strict=True)
            if parameter.requires_grad and parameter.dtype in SIXTEEN_BIT
        ]

    @torch.no_grad()
    def _added(self, name: str, parameter: Tensor, gradient: Tensor) -> None:
        """Count what the coming addition swallows: the same sum, in the same dtype."""
        held = parameter.grad
        strided = gradient.layout is torch.strided
        if held is None or not strided or held.dtype not in SIXTEEN_BIT:
            return
        added = (gradient != 0) & gradient.isfinite() & held.isfinite()
        swallowed = added & (held + gradient.to(held.dtype) == held)
        counts = torch.stack([added.sum(), swallowed.sum()])
        before = self.lost.addition_counts.get(name)
        self.lost.addition_counts[name] = counts if before is None else before + counts

    @torch.no_grad()
    def before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Note what there is, and let the shadow of a plain optimizer take its step."""
        self.moves, self.start, self.stepping = [], [], False
        if told_to_skip(with_wrapped(self.outer)):
            return
        self.stepping = True
        if self.steps % self.every:
            return
        self.stored = [[tensor.clone() for tensor in self._stored(p)] for p in self.parameters]
        if self.wrapper is not None:
            self.start = [own_part(tensor).clone() for tensor in self.updating]
        elif any(closure is not None for closure in (*args[1:], *kwargs.values())):
            raise ValueError("closure: gradients that step() computes itself cannot be watched")
        else:
            self.moves, self.sound = moves_in_float32(optimizer, self.parameters)

    @torch.no_grad()
    def updated(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Note what a wrapped optimizer has changed in float32, before it is rounded."""
        if self.start:
            updated = list(map(own_part, self.updating))
            self.moves = list(map(differ, updated, self.start))
            self.sound = [tensor.isfinite() for tensor in updated]

    @torch.no_grad()
    def after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Compare what is stored now with what float32 would have moved."""
        if not self.stepping:  # a step that calls its parent's runs the hooks twice, nested
            return
        if self.moves:
            given = (self.parameters, self.stored, self.moves, self.sound)
            counts = [self._count(*one) for one in zip(*given, strict=True)]
            self.lost.steps.append(self.steps)
            self.lost.counts.append(self._on_all_ranks(counts))
            broken = [
                _broken(own_part(p), old[0])
                for p, old in zip(self.parameters, self.stored, strict=True)
            ]
            self.lost.nonfinite_counts.append(self._on_all_ranks(broken))
        self.stored, self.start, self.moves, self.sound = [], [], [], []
        self.stepping = False
        self.steps += 1

    def _stored(self, parameter: Tensor) -> list[Tensor]:
        """The weight, and what is kept beside it; of shared ones this rank's parts."""
        kept = {} if self.wrapper is None else self.wrapper.kept
        tensors = [parameter, kept[parameter]] if parameter in kept else [parameter]
        return list(map(own_part, tensors))

    def _on_all_ranks(self, counts: list[Tensor]) -> Tensor:
        """Counts of all parameters on the device of the first; of shared ones, of all ranks."""
        mine = torch.stack([count.to(counts[0].device) for count in counts])
        total = mine.clone()
        for group in groups_of(self.parameters):
            torch.distributed.all_reduce(total, group=group)
        shared = torch.tensor([is_shared(p) for p in self.parameters], device=mine.device)
        return torch.where(shared[:, None], total, mine)

    def _count(
        self, parameter: Tensor, stored: list[Tensor], moves: Tensor, sound: Tensor
    ) -> Tensor:
        """Updates, lost ones, and those after which the weight has not moved."""
        changes = list(map(differ, self._stored(parameter), stored))
        unmoved = moves & ~changes[0]
        lost = moves & ~torch.stack(changes).any(0)
        if isinstance(self.wrapper, StochasticRounding):
            lost = torch.zeros_like(lost)  # another draw would have moved it
        lost |= moves & sound & ~own_part(parameter).isfinite()
        return torch.stack([moves.sum(), lost.sum(), unmoved.sum()])


def _broken(parameter: Tensor, before: Tensor) -> Tensor:
    """Weights that were finite, and those of them that no longer are."""
    finite = before.isfinite()
    return torch.stack([finite.sum(), (finite & ~parameter.isfinite()).sum()])


def _that_updates(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The wrapper of `mpbook.master_weights` or the plain optimizer inside whatever wraps it."""
    found = with_wrapped(optimizer)
    return next((one for one in found if isinstance(one, Float32Updates)), found[-1])
