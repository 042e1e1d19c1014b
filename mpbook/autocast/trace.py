"""What autocast did to *your* model: which dtype each module met, and which casts were put in.

Autocast leaves no mark in the code of a model.  `trace_dtypes` runs one batch forward and backward
and watches from below, where every operator of torch arrives with its operands already cast.  So
it sees what a reader of the code does not:

* the dtypes in which each module *computed*, beside those it was given, holds and returned;
* every cast that was inserted, with the bytes that it read and wrote.  Casts are the price of mixed
  precision: in a small model they cost more than the faster products save;
* the weight cache.  The 16-bit copy of a float32 weight is made once, at its first use, and kept
  until the outermost autocast region ends.  A weight that is frozen (``requires_grad=False``) or
  reached through a view is not cached, and cast again at every use.

Backward runs in the dtypes that forward chose: the gradient of a cast is the cast back.

A dtype is what an operator's operands have.  It does not tell TF32 from float32, nor in which dtype
a kernel adds up.
"""

from __future__ import annotations

import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mpbook.autocast.dtype_grid import dtype_grid
from mpbook.autocast.policy import autocast_set, computes, dtype_name
from mpbook.copies import deep_copy
from mpbook.device import matmul_emulation, pick
from mpbook.nests import mapped, real_floats_to, tensors
from mpbook.notebook import Table
from mpbook.precision import Precision, as_precision, autocast, cast_module

if TYPE_CHECKING:
    from matplotlib.figure import Figure

What = Literal["weight", "activation", "gradient"]
Phase = Literal["forward", "backward"]
MODEL, LOSS = "(model)", "(loss)"


@dataclass(frozen=True)
class Cast:
    """One tensor copied into another floating dtype.

    ``parameter`` names the weight that was cast, and is empty for others.  ``cached`` says that
    autocast keeps the copy until its region ends, so that the next use of the weight costs nothing;
    a cast of a weight that the model's own code writes looks the same from below.
    """

    module: str
    what: What
    source: str
    target: str
    bytes_read: int
    bytes_written: int
    phase: Phase
    parameter: str = ""
    cached: bool = False

    @property
    def bytes(self) -> int:
        """What the cast moved: bytes read and bytes written."""
        return self.bytes_read + self.bytes_written


@dataclass
class ModuleDtypes:
    """The dtypes that one module met; a module that was never called met none.

    ``computed_in`` and ``backward_in`` are of the operands of kernels that the module ran itself,
    outside its submodules.
    """

    name: str
    kind: str
    weights: tuple[str, ...] = ()
    calls: int = 0
    inputs: tuple[str, ...] = ()
    computed_in: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    backward_in: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trace:
    """What one batch met on its way through a model in one precision."""

    precision: Precision
    modules: tuple[ModuleDtypes, ...]
    casts: tuple[Cast, ...]

    def of(self, module: str) -> ModuleDtypes:
        """The dtypes of one module, by the name that ``named_modules`` gives it.

        Raises:
            ValueError: no such module.
        """
        for row in self.modules:
            if row.name == (module or MODEL):
                return row
        known = ", ".join(row.name for row in self.modules)
        raise ValueError(f'module="{module}": expected one of {known}')

    @property
    def never_called(self) -> tuple[str, ...]:
        """Names of the modules that this batch did not reach."""
        return tuple(row.name for row in self.modules if not row.calls)

    @property
    def cast_bytes(self) -> int:
        """Bytes read and written by all casts together."""
        return sum(cast.bytes for cast in self.casts)

    @property
    def cache_bytes(self) -> int:
        """Bytes of 16-bit weights that autocast's cache holds when the forward pass ends."""
        return sum(c.bytes_written for c in self.casts if c.cached and c.phase == "forward")

    @property
    def repeated(self) -> tuple[Cast, ...]:
        """Casts of a weight that had been cast to the same dtype before."""
        seen: set[tuple[str, str]] = set()
        again = []
        for cast in self.casts:
            key = cast.parameter, cast.target
            if cast.what == "weight" and key in seen:
                again.append(cast)
            seen.add(key)
        return tuple(again)

    def table(self) -> Table:
        """One row a module, in the order of the model: dtypes, casts and their bytes."""
        header = "module kind input weight computed-in output backward-in casts cast-bytes".split()
        rows = [self._row(row) for row in self.modules]
        return Table([title.replace("-", " ") for title in header], rows, self.precision.name)

    def _row(self, row: ModuleDtypes) -> tuple[Any, ...]:
        own = [cast for cast in self.casts if cast.module == row.name]
        inputs = " + ".join(row.inputs) if row.calls else "never called"
        dtypes = [row.weights, row.computed_in, row.outputs, row.backward_in]
        cells = [" + ".join(d) or "-" for d in dtypes]
        return row.name, row.kind, inputs or "-", *cells, len(own), sum(c.bytes for c in own)

    def diagram(self) -> Figure:
        """One row for each module that computes or holds weights, as `dtype_grid` draws."""
        drawn = [row for row in self.modules if row.computed_in or row.weights]
        columns = {"in": "inputs", "weight": "weights", "compute": "computed_in", "out": "outputs"}
        columns |= {"backward": "backward_in"}
        return dtype_grid(
            {row.name: [getattr(row, field) for field in columns.values()] for row in drawn},
            list(columns),
        )

    def __repr__(self) -> str:
        return repr(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def trace_dtypes(
    model: nn.Module,
    batch: Any,
    precision: str | Precision = "16-mixed",
    *,
    loss: Callable[[Any], Tensor] | None = None,
    backward: bool = True,
) -> Trace:
    """Run one batch through a copy of the model, and note every dtype and every cast.

    As in `mpbook.training.train`, the model runs inside autocast, and the loss outside of it.  The
    model that is passed is not run: its weights, gradients, buffers and mode stay as they are, and
    so do the random numbers to come.

    Args:
        model: any module, on a CPU or a CUDA GPU.  A compiled one is traced as it was before.
        batch: a tensor, a tuple of positional or a mapping of keyword arguments, or any other
            nest as one argument, on the model's device.
        precision: a `Precision` or the name of one.
        loss: from the model's output to a scalar; the sum of the output if None.
        backward: run the backward pass too.  Without it the model runs under ``no_grad``, as in
            validation.

    Warns:
        UserWarning: 16-bit parameters under a mixed precision, which has float32 ones.

    Raises:
        ValueError: a device that is neither, an unknown precision.
        RuntimeError: a GPU without bfloat16, asked for it.
        Exception: whatever the model raises.
    """
    precision = as_precision(precision)
    if precision.recipe is not None:
        raise ValueError(
            f'precision="{precision.name}": a trace says what autocast casts, and its recipe '
            'quantises after that; trace "bf16-mixed", of the model as it is or converted'
        )
    original = getattr(model, "_orig_mod", model)  # a compiled model wraps the one it came from
    device = pick(_device(original, batch))
    _warn_of_narrow_weights(original, precision)
    ours = _uncompiled(deep_copy(original, what="model"))
    if not precision.is_mixed:
        ours = cast_module(ours, precision.parameter_dtype)
    args, kwargs = _arguments(batch, precision)
    recorder = _Recorder(ours, precision)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        # The caller's own autocast goes off by its switch: one more region around ours would keep
        # the weight cache alive into the backward pass.
        lower = torch.get_autocast_dtype(device.type)
        stack.enter_context(autocast_set(device.type, lower, enabled=False))
        stack.enter_context(torch.set_grad_enabled(backward))
        # A GPU's backward has a thread, and numbers of nodes, of its own unless it is told not to.
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        stack.enter_context(matmul_emulation(precision.compute_dtype, device))
        stack.enter_context(recorder.hooks())
        stack.enter_context(recorder)
        with autocast(precision, device):
            output = ours(*args, **kwargs)
        if backward:
            recorder.enter(LOSS)
            scalar = (loss or _sum)(output)
            recorder.leave()
            recorder.phase = "backward"
            scalar.backward()
    return recorder.trace(with_loss=backward)


def _uncompiled(model: nn.Module) -> nn.Module:
    """The model with its compiled parts as they were before: their hooks would not run."""
    for module in list(model.modules()):
        module._compiled_call_impl = None
        for name, child in list(module.named_children()):
            if hasattr(child, "_orig_mod") and isinstance(child._orig_mod, nn.Module):
                module._modules[name] = child._orig_mod
    return model


def _device(model: nn.Module, batch: Any) -> torch.device:
    tensors = [*model.parameters(), *model.buffers(), *_tensors(batch)]
    return tensors[0].device if tensors else torch.device("cpu")


def _warn_of_narrow_weights(model: nn.Module, precision: Precision) -> None:
    narrow = {p.dtype for p in model.parameters()} & {torch.float16, torch.bfloat16}
    if precision.is_mixed and narrow:
        held = " and ".join(sorted(map(dtype_name, narrow)))
        warnings.warn(
            f'model: holds {held} parameters, and "{precision.name}" means float32 ones that '
            'autocast casts; call model.float() first, or trace it as "16-true" or "bf16-true"',
            stacklevel=3,
        )


def _arguments(batch: Any, precision: Precision) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments; floating ones in the dtype of the parameters."""
    batch = mapped(real_floats_to(precision.parameter_dtype), batch)
    if isinstance(batch, Mapping):
        return (), dict(batch)
    by_position = isinstance(batch, tuple | list) and not hasattr(batch, "_fields")
    return tuple(batch) if by_position else (batch,), {}


def _sum(output: Any) -> Tensor:
    """The sum of everything in the output that has a gradient, in float32."""
    parts = [_real(t).float().sum() for t in _tensors(output) if t.requires_grad]
    if not parts:
        raise ValueError("model: its output has no gradient; pass backward=False")
    return torch.stack(parts).sum()


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _tensors(nest: Any) -> list[Tensor]:
    return list(tensors(nest))


def _dtypes(tensors: Iterable[Tensor]) -> tuple[str, ...]:
    return tuple(sorted({dtype_name(t.dtype) for t in tensors}))


def _union(old: tuple[str, ...], new: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({*old, *new}))


# --- Watching ---------------------------------------------------------------------------------


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


class _Recorder(TorchDispatchMode):
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
        row.inputs = _union(row.inputs, _dtypes(_tensors((args, kwargs))))
        if self.phase == "forward":  # checkpointing calls modules again during backward
            row.calls += 1
        self.enter(name)

    def _after(self, name: str, _module: nn.Module, _args: Any, output: Any) -> None:
        row = self.rows[name]
        row.outputs = _union(row.outputs, _dtypes(_tensors(output)))
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
            self._note_kernel(_dtypes(t for t in _tensors((args, kwargs)) if t.is_floating_point()))
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
