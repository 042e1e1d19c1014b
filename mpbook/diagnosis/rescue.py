"""The smallest rescue: the fewest lines or modules to keep in float32 so that a format holds.

The part that fails first is kept in float32 and the steps run again, until they are finite and
right, or nothing new fails.  Then each part is left out once: what holds without it is not needed.
"""

from __future__ import annotations

import linecache
from dataclasses import dataclass
from pathlib import Path

from mpbook.autocast.policy import dtype_name
from mpbook.diagnosis.failures import suspects
from mpbook.diagnosis.places import LOSS, Place, is_a_cell
from mpbook.diagnosis.stepping import Run
from mpbook.diagnosis.verdicts import is_right
from mpbook.diagnosis.workload import Workload

MOST = 8
"""Parts that are tried before a model counts as one to keep in another format altogether."""


@dataclass(frozen=True)
class Rescue:
    """The parts to keep in float32, and whether the format then holds.

    ``places`` is empty where nothing was found.
    """

    format: str
    places: tuple[Place, ...]
    holds: bool

    @property
    def code(self) -> str:
        """Lines to paste: plain torch, no import of this package."""
        lines = [p for p in self.places if p.file]
        modules = [p.module for p in self.places if not p.file and p.module != LOSS]
        parts = [_of_a_line(p) for p in lines]
        if any(p.module == LOSS and not p.file for p in self.places):
            parts.append(_OF_THE_LOSS)
        if modules:
            parts.append(_OF_MODULES.format(names=modules))
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

    def holds(places: list[Place]) -> tuple[bool, Run]:
        run = workload.run_scaled(
            failed.dtype, steps=steps, loss_scale=failed.loss_scale, in_float32=places
        )
        return is_right(run, reference, noise, sensitive), run

    format = dtype_name(failed.dtype)
    kept: list[Place] = []
    run, good = failed, False
    while not good and len(kept) < MOST:
        new = next((p for p in suspects(run, reference) if p not in kept), None)
        if new is None:
            return Rescue(format, (), holds=False)
        kept.append(new)
        good, run = holds(kept)
    for place in list(kept) if good and len(kept) > 1 else []:
        without = [p for p in kept if p != place]
        if without and holds(without)[0]:
            kept = without
    return Rescue(format, tuple(kept) if good else (), holds=good)


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


_OF_THE_LOSS = """with torch.autocast(device_type, enabled=False):
    loss = loss_function(output.float(), target)"""

_OF_MODULES = """def in_float32(module):
    forward = module.forward
    def run(*inputs):
        with torch.autocast(device_type, enabled=False):
            return forward(*(x.float() if x.is_floating_point() else x for x in inputs))
    module.forward = run

for name in {names}:
    in_float32(model.get_submodule(name if name != "(model)" else ""))"""
