"""One run: what it left, and how its steps are made."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mpbook.autocast.policy import autocast_set
from mpbook.cost.measure import count_bytes, state_tensors
from mpbook.diagnosis.autocast_of import without_autocast
from mpbook.diagnosis.batches import Call
from mpbook.diagnosis.copies import each, nonfinite
from mpbook.diagnosis.operators_seen import Recorder
from mpbook.diagnosis.places import OPTIMIZER, Place
from mpbook.diagnosis.state import StateLedger
from mpbook.watch.optimizer_steps import with_wrapped


@dataclass
class Run:
    """What one run of the steps left: what was seen, and whether it was finite."""

    dtype: torch.dtype
    loss_scale: float
    recorder: Recorder
    steps: int
    losses: list[float] = field(default_factory=list)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    skipped: int = 0
    nonfinite_weights: list[str] = field(default_factory=list)
    nonfinite_buffers: list[str] = field(default_factory=list)
    activation_bytes: int = 0
    kept_bytes: int = 0
    error: Exception | None = None
    error_place: Place | None = None

    @property
    def finite_losses(self) -> bool:
        """Whether each loss was."""
        return all(abs(loss) < float("inf") for loss in self.losses)

    @property
    def sound(self) -> bool:
        """Whether losses, gradients and weights were finite, and nothing was raised."""
        broken = self.error or self.skipped or self.nonfinite_weights or self.nonfinite_buffers
        return not broken and self.finite_losses


class Stepper:
    """Runs steps, and knows when the optimizer's part begins: unscales, checks, skips."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        run: Run,
        device: torch.device,
        writes: StateLedger | None,
        watching: AbstractContextManager[Any],
    ) -> None:
        self.model, self.optimizer, self.record, self.device = model, optimizer, run, device
        self.writes, self.watching = writes, watching
        self.number = 0
        for one in each(optimizer):
            one.step = partial(self._guarded, one, one.step)

    def run(self, number: int, step: Any, batch: Any, autocast: Any) -> None:
        """One step on one batch, its forward pass inside the context that ``autocast`` makes."""
        recorder = self.record.recorder
        self.number = number
        recorder.begin(number)
        if self.writes is not None:
            recorder.watch_writes = self.writes.watch
            self.writes.begin(self.model, self._inner())
        self._step(step, batch, autocast, recorder)
        if self.writes is not None:
            self.writes.end()

    def _inner(self) -> list[Any]:
        return [inner for one in each(self.optimizer) for inner in with_wrapped(one)]

    def _step(self, step: Any, batch: Any, autocast: Any, recorder: Recorder) -> None:
        if not isinstance(step, Call):
            with self.watching, _ScaledBackward(self.record, recorder), autocast():
                step(self.model, self.optimizer, batch)
            return
        for one in each(self.optimizer):
            one.zero_grad()
        if self.optimizer is None:
            self.model.zero_grad()
        with self.watching, step.saved(self.model) as count:
            with autocast():
                loss = step(self.model, batch)
            self.record.activation_bytes = count()
        with self.watching:
            self.record.losses.append(float(loss.detach()))
            (loss.float() * self.record.loss_scale).backward()
            if self.optimizer is None:
                self.record.skipped += not self._unscale(self.model.parameters())
        if self.optimizer is None:
            self._keep_gradients(self.model.parameters())
        for one in each(self.optimizer):
            with self.watching:
                one.step()

    def _guarded(self, optimizer: Any, original: Any, *args: Any, **kwargs: Any) -> Any:
        recorder = self.record.recorder
        before, recorder.phase = recorder.phase, "update"
        parameters = [p for g in optimizer.param_groups for p in g["params"]]
        closure = args[0] if args else kwargs.get("closure")
        try:
            if callable(closure):
                run, rest = self._closure(closure, parameters), args[1:]
                args, kwargs = rest, {**kwargs, "closure": run}
            else:
                self._make_ready(parameters)
            if self.writes is not None:  # states that the first step has just made
                self.writes.know(self.model, self._inner())
            with without_autocast(self.device):
                return original(*args, **kwargs)
        except _NotFinite:
            self.record.skipped += 1
            return None
        except Exception:
            if recorder.phase == "update":  # and not a closure's forward pass
                recorder.last_module = OPTIMIZER
            raise
        finally:
            recorder.phase = before

    def _closure(self, closure: Callable[[], Any], parameters: list[Tensor]) -> Callable[[], Any]:
        """One that an optimizer calls for a loss and new gradients: under autocast, unscaled."""
        kind, recorder = self.device.type, self.record.recorder
        dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)

        def run() -> Any:
            before, recorder.phase = recorder.phase, "forward"
            with autocast_set(kind, dtype, enabled=enabled):
                loss = closure()
            recorder.phase = before
            self._make_ready(parameters)
            return loss

        return run

    def _make_ready(self, parameters: list[Tensor]) -> None:
        """Unscale the gradients that an optimizer is about to use, and keep the first ones."""
        finite = self._unscale(parameters)
        self._keep_gradients(parameters)
        if not finite:
            raise _NotFinite

    def _unscale(self, parameters: Any) -> bool:
        """Divide the gradients by the loss scale; whether all are finite."""
        finite = True
        for parameter in parameters:
            if parameter.grad is None:
                continue
            values = parameter.grad._values() if parameter.grad.is_sparse else parameter.grad
            if self.record.loss_scale != 1.0:
                values.mul_(1.0 / self.record.loss_scale)
            finite = finite and bool(values.isfinite().all())
        return finite

    def _keep_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Those that an optimizer is about to use: another's are not yet unscaled, or not made."""
        if self.number:
            return
        used = {id(p) for p in parameters}
        for name, parameter in self.model.named_parameters():
            kept = name in self.record.gradients or id(parameter) not in used
            if parameter.grad is not None and not kept:
                grad = parameter.grad.detach()
                self.record.gradients[name] = (grad.to_dense() if grad.is_sparse else grad).clone()

    def finish(self) -> None:
        """Note what is held in the end, and which weights and buffers are not finite."""
        record = self.record
        states = [t for o in self._inner() for t in state_tensors(dict(getattr(o, "state", {})))]
        held = [*self.model.parameters(), *self.model.buffers(), *record.gradients.values()]
        plain = [t for t in (*held, *states) if t.layout == torch.strided]
        record.kept_bytes = count_bytes(plain)
        record.nonfinite_weights = nonfinite(self.model.named_parameters())
        record.nonfinite_buffers = nonfinite(self.model.named_buffers())


class _NotFinite(Exception):  # noqa: N818
    """Gradients are not, and the optimizer's step is skipped."""


class _ScaledBackward(TorchFunctionMode):
    """``loss.backward()`` of a loop of one's own, with the loss scaled."""

    def __init__(self, run: Run, recorder: Recorder) -> None:
        super().__init__()
        self.record, self.recorder = run, recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one function of torch."""
        if func is torch.Tensor.backward and args[0].numel() == 1:
            self.record.losses.append(float(args[0].detach()))
            with without_autocast(args[0].device):
                scaled = args[0].float() * self.record.loss_scale
                return func(scaled, *args[1:], **(kwargs or {}))
        return func(*args, **(kwargs or {}))
