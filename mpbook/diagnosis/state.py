"""Writes that changed nothing: one ledger for weights, moments, averages, decay and buffers.

A small change added to a large number may round away.  It is the same accident wherever a state is
kept: an update that a 16-bit weight does not take, a decay of ``1 - lr * wd`` that rounds to 1, a
second moment that cannot fall because ``0.999 * v`` rounds to ``v``, an average of weights that
stands still, statistics of a batch norm.  So it is counted in one place: each operator that writes
in place to a state that lasts, while the model trains in float32.  What the state would have done
in 16 bits follows from the number before and the change: it stands still where the rounded number
plus the change rounds back to it.  A state that *is* in 16 bits is compared with what the operator
gives in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from mpbook.diagnosis.operators_seen import written
from mpbook.master_weights import SIXTEEN_BIT

_KAHAN_BITS = {torch.float16: 11, torch.bfloat16: 8}
"""By how many bits a compensation of the same dtype extends a weight."""
_COPIES = ("aten::copy_", "aten::_foreach_copy_")
"""What is copied comes from somewhere that holds it, such as a master copy of a weight."""
STANDS_STILL = 0.5
"""Share of the changed elements from which on a state counts as standing still."""


@dataclass
class Write:
    """What one operator's writes to one kind of state came to, over all steps.

    ``changed`` counts elements that float32 changed; ``swallowed`` those of them that a dtype would
    have left as they were, ``magnitude`` and ``lost`` the sums of the changes.
    """

    state: str
    name: str
    operator: str
    stored: torch.dtype
    changed: int = 0
    magnitude: float = 0.0

    def __post_init__(self) -> None:
        self.swallowed: dict[torch.dtype, int] = dict.fromkeys(SIXTEEN_BIT, 0)
        self.lost: dict[torch.dtype, float] = dict.fromkeys(SIXTEEN_BIT, 0.0)
        self.lost_by_kahan: dict[torch.dtype, float] = dict.fromkeys(SIXTEEN_BIT, 0.0)
        self.really_swallowed = 0

    def share(self, dtype: torch.dtype) -> float:
        """Of the changed elements: how many would have stood still in this dtype."""
        return self.swallowed[dtype] / self.changed if self.changed else 0.0

    def lost_share(self, dtype: torch.dtype, *, kahan: bool = False) -> float:
        """Of the sum of the changes: how much would have been lost."""
        lost = (self.lost_by_kahan if kahan else self.lost)[dtype]
        return lost / self.magnitude if self.magnitude else 0.0


class StateLedger:
    """Counts swallowed writes to the states of a model and of its optimizer."""

    def __init__(self) -> None:
        self.writes: dict[tuple[str, str], Write] = {}
        self._names: dict[int, tuple[str, str]] = {}
        self._model: nn.Module | None = None
        self._buffers: dict[str, Tensor] = {}

    def begin(self, model: nn.Module, optimizers: list[Any]) -> None:
        """A step begins: which states there are, and what the buffers hold."""
        self.know(model, optimizers)
        self._model = model
        self._buffers = {n: b.detach().clone() for n, b in model.named_buffers() if _is_kept(b)}

    def end(self) -> None:
        """A step has ended: buffers that were written by the way, or replaced, count too."""
        now = {} if self._model is None else dict(self._model.named_buffers())
        counted = {w.name for w in self.writes.values() if w.state == "buffers"}
        for name, before in self._buffers.items():
            after = now.get(name, before).detach()
            same_kind = (after.shape, after.dtype) == (before.shape, before.dtype)
            if name not in counted and same_kind and _is_kept(after):
                self._add("buffers", name, "a step", before, after, None)

    def know(self, model: nn.Module, optimizers: list[Any]) -> None:
        """Which tensors are states, and whose."""
        for name, parameter in model.named_parameters():
            state = "weights" if parameter.requires_grad else "weights without a gradient"
            self._names[parameter.untyped_storage().data_ptr()] = state, name
        for name, buffer in model.named_buffers():
            if _is_kept(buffer):
                self._names[buffer.untyped_storage().data_ptr()] = "buffers", name
        names = {id(p): n for n, p in model.named_parameters()}
        for parameter, kind, tensor in _states(optimizers):
            name = names.get(id(parameter), "a parameter")
            self._names[tensor.untyped_storage().data_ptr()] = kind, name

    def watch(self, func: Any, args: Any, kwargs: Any, run: Callable[[], Any]) -> Any:
        """Run an operator; if it writes to a state, count what became of the change."""
        if not func._schema.is_mutable or func._schema.name in _COPIES:
            return run()
        targets = [t for t in written(func, args, kwargs) if self._is_known(t)]
        if not targets:
            return run()
        before = [t.detach().clone() for t in targets]
        exact = _in_float32(func, args, kwargs) if any(_is_narrow(t) for t in targets) else None
        result = run()
        for number, (target, old) in enumerate(zip(targets, before, strict=True)):
            state, name = self._names[target.untyped_storage().data_ptr()]
            operator = func._schema.name.removeprefix("aten::").removeprefix("_foreach_")
            meant = exact[number] if exact and number < len(exact) else None
            self._add(state, name, operator, old, target.detach(), meant)
        return result

    def _is_known(self, tensor: Tensor) -> bool:
        return _is_kept(tensor) and tensor.untyped_storage().data_ptr() in self._names

    def _add(
        self, state: str, name: str, operator: str, old: Tensor, new: Tensor, meant: Tensor | None
    ) -> None:
        write = self.writes.setdefault((f"{state} {name}", operator),
                                       Write(state, name, operator, old.dtype))  # fmt: skip
        after = new.float() if meant is None else meant
        change = (after - old.float()).nan_to_num(0.0, 0.0, 0.0)
        moved = change != 0
        write.changed += int(moved.sum())
        write.magnitude += float(change.abs().sum())
        write.really_swallowed += int((moved & (new == old)).sum())
        for dtype in SIXTEEN_BIT:
            rounded = old.to(dtype)
            still = moved & ((rounded.float() + change).to(dtype) == rounded)
            write.swallowed[dtype] += int(still.sum())
            write.lost[dtype] += float(change[still].abs().sum())
            larger = change * 2.0 ** _KAHAN_BITS[dtype]
            still = moved & ((rounded.float() + larger).to(dtype) == rounded)
            write.lost_by_kahan[dtype] += float(change[still].abs().sum())

    def by_state(self) -> list[Write]:
        """The writes of all parameters together, by kind of state and operator."""
        found: dict[tuple[str, str], Write] = {}
        for write in self.writes.values():
            key = write.state, write.operator
            total = found.setdefault(key, Write(write.state, "", write.operator, write.stored))
            total.changed += write.changed
            total.magnitude += write.magnitude
            total.really_swallowed += write.really_swallowed
            for dtype in SIXTEEN_BIT:
                total.swallowed[dtype] += write.swallowed[dtype]
                total.lost[dtype] += write.lost[dtype]
                total.lost_by_kahan[dtype] += write.lost_by_kahan[dtype]
        return [write for write in found.values() if write.changed]


def _states(optimizers: list[Any]) -> Iterator[tuple[Any, str, Tensor]]:
    """Parameter, kind and tensor of each state that an optimizer keeps."""
    for optimizer in optimizers:
        for parameter, kept in list(getattr(optimizer, "state", {}).items()):
            for kind, tensor in kept.items() if isinstance(kept, dict) else ():
                if kind != "step" and isinstance(tensor, Tensor) and _is_kept(tensor):
                    yield parameter, kind, tensor


def _is_kept(tensor: Tensor) -> bool:
    plain = tensor.layout == torch.strided and tensor.is_floating_point()
    return plain and tensor.numel() > 0


def _is_narrow(tensor: Tensor) -> bool:
    return tensor.dtype in SIXTEEN_BIT


def _in_float32(func: Any, args: Any, kwargs: Any) -> list[Tensor] | None:
    """What the operator writes if its operands are float32; None where it does not run so."""

    def widen(value: Any) -> Any:
        is_float = isinstance(value, Tensor) and value.is_floating_point()
        return value.detach().clone().float() if is_float else value

    wide = tree_map(widen, (tuple(args), kwargs))
    try:
        func(*wide[0], **wide[1])
    except (RuntimeError, NotImplementedError, TypeError):
        return None
    return written(func, *wide)
