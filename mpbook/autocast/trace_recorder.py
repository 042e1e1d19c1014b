"""Watching the operators of a model below autocast, and knowing which module runs each.

`mpbook.autocast.trace.trace_dtypes` runs a model under a `Recorder`.  Taught in "Autocast".
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mpbook import nests
from mpbook.autocast.policy import computes, dtype_name
from mpbook.autocast.trace_report import LOSS, MODEL, Cast, ModuleDtypes, Phase, Trace, What
from mpbook.precision import Precision


def _runs(module: nn.Module) -> bool:
    """Whether a module has a forward pass of its own, of its class or of this instance."""
    return type(module).forward is not nn.Module.forward or "forward" in vars(module)


@dataclass
class _Place:
    """From which autograd sequence number on which module was running."""

    numbers: list[int] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)

    def note(self, module: str) -> None:
        self.numbers.append(torch._C._autograd._get_sequence_nr())
        self.modules.append(module)

    def of(self, node: Any) -> str:
        """The module that ran when the node of the graph was made."""
        at = bisect_right(self.numbers, node._sequence_nr()) - 1
        return self.modules[at] if at >= 0 else MODEL


class Recorder(TorchDispatchMode):
    """Sees each operator below autocast and autograd, and knows which module is running.

    Forward knows it from hooks.  Backward has none to ask: each node of the graph has a number in
    the order of creation, so the module that ran at that number made it.
    """

    def __init__(self, model: nn.Module, precision: Precision):
        super().__init__()
        self.model, self.precision = model, precision
        self.phase: Phase = "forward"
        self.rows = {
            name or MODEL: ModuleDtypes(
                name or MODEL,
                type(module).__name__,
                _dtypes(p for p in module.parameters(recurse=False)),
            )
            for name, module in model.named_modules()
            if _runs(module)  # a ModuleList runs nothing
        }
        self.rows[LOSS] = ModuleDtypes(LOSS, "", calls=1)
        # By storage, so that a view of a weight is known too; an empty one has none of its own.
        named = [(name, p) for name, p in model.named_parameters() if p.numel()]
        self.weights = {p.untyped_storage().data_ptr(): name for name, p in named}
        self.casts: list[Cast] = []
        self.running: list[str] = []
        self.place = _Place()

    # Which module is running

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Note when each module begins and ends."""
        handles: list[Any] = []
        for name, module in self.model.named_modules():
            if (name or MODEL) not in self.rows:
                continue
            before = partial(self._before, name or MODEL)
            after = partial(self._after, name or MODEL)
            handles += [
                module.register_forward_pre_hook(before, with_kwargs=True, prepend=True),
                module.register_forward_hook(after, always_call=True),
            ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def enter(self, name: str) -> None:
        """From here on ``name`` is running."""
        self.running.append(name)
        self._note_place()

    def leave(self) -> None:
        """From here on the one before is running again."""
        self.running.pop()
        self._note_place()

    def _note_place(self) -> None:
        self.place.note(self.running[-1] if self.running else MODEL)

    def _before(self, name: str, _module: nn.Module, args: Any, kwargs: Any) -> None:
        row = self.rows[name]
        row.inputs = _union(row.inputs, _dtypes(nests.tensors((args, kwargs))))
        if self.phase == "forward":  # checkpointing calls modules again during backward
            row.calls += 1
        self.enter(name)

    def _after(self, name: str, _module: nn.Module, _args: Any, output: Any) -> None:
        row = self.rows[name]
        row.outputs = _union(row.outputs, _dtypes(nests.tensors(output)))
        self.leave()

    def _current(self) -> str:
        if self.running:
            return self.running[-1]
        node = torch._C._current_autograd_node()
        return self.place.of(node) if node is not None else MODEL

    # What it does

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run one operator of torch."""
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default:
            self._note_cast(args[0], result)
        elif computes(func):
            self._note_kernel(
                _dtypes(t for t in nests.tensors((args, kwargs)) if t.is_floating_point())
            )
        return result

    def _note_kernel(self, dtypes: tuple[str, ...]) -> None:
        row = self.rows[self._current()]
        if self.phase == "forward":
            row.computed_in = _union(row.computed_in, dtypes)
        elif not self.running:  # what checkpointing runs again is forward work
            row.backward_in = _union(row.backward_in, dtypes)

    def _note_cast(self, source: Tensor, result: Tensor) -> None:
        floating = source.is_floating_point() and result.is_floating_point()
        if not floating or source.dtype == result.dtype:
            return
        parameter = self.weights.get(source.untyped_storage().data_ptr(), "")
        in_backward = self.phase == "backward" and not self.running
        plain: What = "gradient" if in_backward else "activation"
        self.casts.append(
            Cast(
                module=self._current(),
                what="weight" if parameter else plain,
                source=dtype_name(source.dtype),
                target=dtype_name(result.dtype),
                bytes_read=source.nbytes,
                bytes_written=result.nbytes,
                phase=self.phase,
                parameter=parameter,
                cached=bool(parameter) and self._is_cached(source, result.dtype),
            )
        )

    def _is_cached(self, weight: Tensor, target: torch.dtype) -> bool:
        """Whether autocast keeps this copy: the rule of ``cached_cast`` in autocast_mode.cpp."""
        trains = weight.requires_grad and not weight._is_view()
        narrows = weight.dtype == torch.float32 and target == self.precision.compute_dtype
        return trains and narrows and torch.is_autocast_cache_enabled()

    def trace(self, *, with_loss: bool) -> Trace:
        """What was seen."""
        rows = [row for row in self.rows.values() if with_loss or row.name != LOSS]
        return Trace(self.precision, tuple(rows), tuple(self.casts))


def _dtypes(tensors: Iterable[Tensor]) -> tuple[str, ...]:
    return tuple(sorted({dtype_name(t.dtype) for t in tensors}))


def _union(old: tuple[str, ...], new: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({*old, *new}))
