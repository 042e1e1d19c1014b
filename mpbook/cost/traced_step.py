"""The work of a training step of any model: its operations and bytes, from real steps.

Each operator of a step is noted as it runs: the operations of products by the formulas of
`mpbook.cost.flops` and torch's, the bytes of what it reads and writes from its tensors.  Two batch
sizes give a straight line for each kind of work, as `mpbook.cost.measured_plan` has it for memory,
and `mpbook.cost.roofline.Roof.seconds` says what each takes on a device.

Every operand counts as moved, once for each operator that takes it, as in eager mode.

Taught in the chapter "Speed".
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mpbook.cost.flops import formulas, torchs_counter
from mpbook.cost.measure import parts_of
from mpbook.cost.own_step import Loss, MakeOptimizer, OwnStep, prepare_step
from mpbook.cost.roofline import Work
from mpbook.nests import tensors
from mpbook.precision import Precision, as_precision

_FREE = frozenset("detach alias empty empty_like empty_strided _local_scalar_dense".split())


class _Tally(TorchDispatchMode):
    """Adds up operations and bytes by kind of work."""

    def __init__(self) -> None:
        super().__init__()
        counter = torchs_counter().FlopCounterMode(display=False, custom_mapping=formulas())
        self._formulas = counter.flop_registry
        self.phase = ""
        self.flops: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet, name = func._overloadpacket, func._schema.name.rpartition("::")[2]
        if packet not in self._formulas and func not in self._formulas:
            taken_apart = func.decompose(*args, **kwargs)
            if taken_apart is not NotImplemented:
                return taken_apart
        result = func(*args, **kwargs)
        if func.is_view or name in _FREE:
            return result
        moved = sum(part.nbytes for t in tensors((args, kwargs, result)) for part in parts_of(t))
        kind = self.phase or self._kind(packet, name)
        self.bytes[kind] += moved
        if packet in self._formulas:
            self.flops[kind] += self._formulas[packet](*args, **kwargs, out_val=result)
        return result

    def _kind(self, packet: Any, name: str) -> str:
        if packet in self._formulas:
            return name.removesuffix("_backward")
        return "casts" if name in ("_to_copy", "copy_") else "elementwise"


def _tally(step: OwnStep) -> _Tally:
    step.forward().backward()  # makes the optimizer's state, and warms caches up
    step.optimizer.step()
    step.optimizer.zero_grad()
    tally = _Tally()
    with tally:
        step.forward().backward()
        tally.phase = "optimizer"
        step.optimizer.step()
    return tally


def module_step(
    model: nn.Module,
    batch: tuple[Any, Any],
    loss: Loss,
    *,
    batch_size: int,
    precision: str | Precision,
    optimizer: str | MakeOptimizer = "adamw",
    sizes: tuple[int, int] = (2, 4),
) -> tuple[Work, ...]:
    """The parts of one eager training step of any model: forward, backward and update.

    Counted in steps of two batch sizes, and extrapolated to ``batch_size`` unless it is one of
    them: then a part's name ends in "(extrapolated)".

    Args:
        model: stays as it is.
        batch: a pair of inputs and targets, whose examples are repeated or left out.
        loss: of float32 outputs and targets, to a scalar.
        batch_size: examples of the step.
        precision: a `Precision` or the name of one.
        optimizer: a name of `mpbook.optimizers.OPTIMIZERS`, or a function from parameters.
        sizes: the two that are run.

    Returns:
        Each product by the name of its operator, elementwise work, casts, and the optimizer.

    Raises:
        TypeError: a batch that is no pair.
        ValueError: sizes that are none or the same, a model with nothing to train, or one
            that ranks share.
    """
    if not 1 <= sizes[0] < sizes[1] or batch_size < 1:
        raise ValueError(
            f"batch_size={batch_size}, sizes={sizes}: expected at least 1, and two sizes, the "
            "smaller one first"
        )
    chosen = as_precision(precision)
    found = []
    for size in sizes:
        step = prepare_step(
            model, batch, loss, batch_size=size, precision=chosen, optimizer=optimizer
        )
        gpus = [step.device] if step.device.type == "cuda" else []
        with torch.random.fork_rng(gpus):
            found.append(_tally(step))
    small, large = found
    share = (batch_size - sizes[0]) / (sizes[1] - sizes[0])
    mark = "" if batch_size in sizes else " (extrapolated)"

    def line(a: int, b: int) -> int:
        return max(0, round(a + share * (b - a)))

    return tuple(
        Work(
            kind + mark,
            line(small.flops[kind], large.flops[kind]),
            line(small.bytes[kind], large.bytes[kind]),
            product=bool(large.flops[kind]),
        )
        for kind in large.bytes
    )
