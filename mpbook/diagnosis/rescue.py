"""The fewest parts to keep in float32: found, tried, and printed so that they can be pasted.

Where a run is not finite, what began it says which parts to try.  Where it is finite and wrong,
nothing does; nor where what fails was spoilt before: an ``acos`` of more than 1, the Cholesky
factor of a matrix that rounding has left indefinite.  Then the places of the forward pass are
halved, until those are left without which the gradients point elsewhere.
"""

from __future__ import annotations

import linecache
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from mpbook.autocast.policy import dtype_name
from mpbook.diagnosis.failures import in_16_bit, overflows, suspects
from mpbook.diagnosis.gradients import total_error
from mpbook.diagnosis.places import LOSS, Place, Seen, is_a_cell, is_installed
from mpbook.diagnosis.stepping import Run
from mpbook.diagnosis.verdicts import WRONG, is_right
from mpbook.diagnosis.workload import Workload

MOST = 8
"""Parts that are tried before a model counts as one to keep in another format altogether."""
FEW = 4
"""Of those that halving finds, which takes a handful of runs for each."""

Because = Literal["overflow", "whole numbers", "underflow", "rounding"]

_SUMS = frozenset("add add_ sub sub_ rsub".split())
"""What is exact below the normal numbers: only its operands can have been rounded."""


@dataclass(frozen=True)
class Rescue:
    """The parts to keep in float32, and whether the format then holds.

    ``places`` is empty where nothing was found.  ``because`` says what 16 bits do there, and
    ``total`` how far off float32's all gradients still are.  Where lines are a library's,
    ``classes`` has the modules to keep whole instead.
    """

    format: str
    places: tuple[Place, ...]
    holds: bool
    because: Because = "overflow"
    total: float = 0.0
    classes: tuple[str, ...] = ()

    @property
    def code(self) -> str:
        """Lines to paste: plain torch, no import of this package."""
        lines = [p for p in self.places if p.file and not (self.classes and is_installed(p.file))]
        modules = [p.module for p in self.places if not p.file and p.module != LOSS]
        parts = [_of_a_line(p) for p in lines]
        if any(p.module == LOSS and not p.file for p in self.places):
            parts.append(OF_THE_LOSS)
        if modules:
            parts.append(_KEEP + _OF_MODULES.format(names=modules))
        if self.classes:
            keep = "" if modules else _KEEP
            parts.append(keep + _OF_CLASSES.format(names=list(self.classes)))
        return "\n\n".join(parts)


def rescue(
    workload: Workload,
    failed: Run,
    reference: Run,
    noise: set[str],
    *,
    steps: int,
    sensitive: float,
) -> Rescue:
    """Search for the fewest parts that make the steps of a failed run finite and right.

    Args:
        workload: what is diagnosed.
        failed: the run in the format, at its loss scale.
        reference: the run in float32.
        noise: parameters whose gradients have no say.
        steps: to run.
        sensitive: how far float32's gradients move when the weights are rounded.
    """

    def with_float32(places: list[Place], steps: int = steps) -> Run:
        return workload.run_scaled(
            failed.dtype, steps=steps, loss_scale=failed.loss_scale, in_float32=places
        )

    def holds(run: Run) -> bool:
        return is_right(run, reference, noise, sensitive)

    few = reference.steps_to_gradients if failed.sound else steps

    def is_near(places: list[Place]) -> bool:
        run = with_float32(places, few)
        return run.sound and total_error(run, reference, noise) <= WRONG / 2

    kept = _of_suspects(failed, reference, with_float32, holds)
    told = not failed.sound and bool(kept)
    if not kept and not _is_infinite(failed, reference):
        kept = by_halving(failed, is_near)
    run = with_float32(kept) if kept else failed
    if not kept or not holds(run):
        return Rescue(dtype_name(failed.dtype), (), holds=False)
    whole = _whole_modules(workload.model, kept)
    classes: tuple[str, ...] = ()
    if whole and holds(with_whole := with_float32(whole)):
        run, classes = with_whole, _classes(workload.model, kept)
    return Rescue(
        dtype_name(failed.dtype),
        tuple(kept),
        holds=True,
        because="overflow" if told else _because(failed, reference, kept),
        total=total_error(run, reference, noise),
        classes=classes,
    )


def _is_infinite(failed: Run, reference: Run) -> bool:
    """Whether a result overflowed, which says where it began; a NaN, a 0 or an error need not."""
    found = (seen for seen in overflows(failed, reference) if seen.signs != {"nan"})
    return any(not seen.cause.endswith(" is 0") for seen in found)


def _classes(model: nn.Module, kept: list[Place]) -> tuple[str, ...]:
    """The kinds of modules in which a library's lines run."""
    modules = dict(model.named_modules())
    inside = [p.module for p in kept if is_installed(p.file) and p.module in modules]
    return tuple(dict.fromkeys(type(modules[name]).__name__ for name in inside))


def _whole_modules(model: nn.Module, kept: list[Place]) -> list[Place]:
    """The same places with whole modules for a library's lines; none where no line is a library's.

    A line is that of each module of a kind, and so are they all kept.
    """
    classes = _classes(model, kept)
    modules = [Place(n) for n, m in model.named_modules() if n and type(m).__name__ in classes]
    return [*modules, *(p for p in kept if not is_installed(p.file))] if modules else []


def _of_suspects(
    failed: Run,
    reference: Run,
    with_float32: Callable[[list[Place]], Run],
    holds: Callable[[Run], bool],
) -> list[Place]:
    """Places that failed, one after the other as each lets the next be seen; none if it is none."""
    kept: list[Place] = []
    run, good = failed, False
    while not good and len(kept) < MOST:
        new = next((p for p in suspects(run, reference) if p not in kept), None)
        if new is None:
            return []
        kept.append(new)
        run = with_float32(kept)
        good = holds(run)
    return _needed(kept, lambda places: holds(with_float32(places))) if good else []


def by_halving(failed: Run, is_near: Callable[[list[Place]], bool]) -> list[Place]:
    """Places of the forward pass without which float32's gradients are not reached, or none.

    The first place of the shortest end of the forward pass that suffices is needed; then the same
    is asked again with it kept.  From the end, because what is kept in float32 widens what follows.
    """
    seen = sorted(in_16_bit(failed, phase="forward"), key=lambda s: s.order, reverse=True)
    places = list(dict.fromkeys(s.key.place for s in seen))
    if not is_near(places):
        return []
    kept: list[Place] = []
    while len(kept) < FEW:
        too_short, enough = 0, len(places)
        while enough - too_short > 1:
            middle = (too_short + enough) // 2
            if is_near([*kept, *places[:middle]]):
                enough = middle
            else:
                too_short = middle
        kept.append(places[enough - 1])
        if is_near(kept):
            return _needed(kept, is_near)
        places = places[: enough - 1]
    return []


def _needed(kept: list[Place], suffices: Callable[[list[Place]], bool]) -> list[Place]:
    """Those of several places that cannot be left out."""
    for place in list(kept):
        without = [p for p in kept if p != place]
        if without and suffices(without):
            kept = without
    return kept


def _because(failed: Run, reference: Run, kept: list[Place]) -> Because:
    """What 16 bits do to the places that were found."""
    raised = failed.error is not None and "linalg" not in str(failed.error)
    if raised or _is_infinite(failed, reference):
        return "overflow"
    if set(kept) & set(failed.recorder.rounded):
        return "whole numbers"
    seen = [s for s in in_16_bit(failed, phase="forward") if s.key.place in kept]
    return "underflow" if any(_underflows(s, reference) for s in seen) else "rounding"


def _underflows(seen: Seen, reference: Run) -> bool:
    """Whether all of a result is below the normal numbers of its dtype, and no tensor of zeros.

    A sum that is 0, as 1 - 0.9999 in 16 bits, has underflowed only if it is as small in float32.
    """
    expected = reference.recorder.seen.get(seen.key, seen).largest
    tiny = torch.finfo(seen.dtype).tiny
    is_small = expected < tiny or seen.operator not in _SUMS
    return seen.largest < tiny and expected > 0 and is_small


def _of_a_line(place: Place) -> str:
    where = "a cell" if is_a_cell(place.file) else Path(place.file).name
    return (
        f"# {where}, line {place.line}, in {place.module}:\n"
        "with torch.autocast(device_type, enabled=False):\n"
        "    ...  # this line, its 16-bit tensors as .float()\n"
        f"    # now: {_source(place)}"
    )


def _source(place: Place) -> str:
    return linecache.getline(place.file, place.line).strip() or "(no source)"


OF_THE_LOSS = """with torch.autocast(device_type, enabled=False):
    loss = loss_function(output.float(), target)"""
"""A loss in float32."""

_KEEP = """from torch.utils._pytree import tree_map

def wide(x):
    is_narrow = torch.is_tensor(x) and x.dtype in (torch.float16, torch.bfloat16)
    return x.float() if is_narrow else x

def in_float32(module):
    forward = module.forward
    def run(*inputs, **named):
        inputs, named = tree_map(wide, (inputs, named))
        with torch.autocast(device_type, enabled=False):
            return forward(*inputs, **named)
    module.forward = run

"""
_OF_MODULES = """for name in {names}:
    in_float32(model.get_submodule(name if name != "(model)" else ""))"""
_OF_CLASSES = """for module in model.modules():
    if type(module).__name__ in {names}:
        in_float32(module)"""
