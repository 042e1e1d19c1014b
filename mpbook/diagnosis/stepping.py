"""One run: what it left, and how its steps are made."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mpbook.autocast.policy import autocast_set
from mpbook.cost.measure import count_bytes, state_tensors
from mpbook.diagnosis.autocast_of import without_autocast
from mpbook.diagnosis.batches import Call
from mpbook.diagnosis.copies import each, nonfinite
from mpbook.diagnosis.operators_seen import Recorder
from mpbook.diagnosis.places import OPTIMIZER, Place
from mpbook.diagnosis.scaled_backward import grad_scalers_disabled, scaled_backward
from mpbook.diagnosis.state import StateLedger
from mpbook.watch.optimizer_steps import with_wrapped


@dataclass
class Run:
    """What one run of the steps left: what was seen, and whether it was finite.

    ``steps_to_gradients`` is how many steps it took until each gradient was used: more than one
    where a loop accumulates them, or has several optimizers that take turns.
    """

    dtype: torch.dtype
    loss_scale: float
    recorder: Recorder
    steps: int
    losses: list[float] = field(default_factory=list)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    steps_to_gradients: int = 1
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
    def trains(self) -> bool:
        """Whether gradients and weights were finite, and nothing was raised."""
        broken = self.error or self.skipped or self.nonfinite_weights or self.nonfinite_buffers
        return not broken

    @property
    def sound(self) -> bool:
        """Whether losses were finite as well."""
        return self.trains and self.finite_losses


class Stepper:
    """Runs steps, and knows when gradients are about to be used: keeps, checks, skips."""

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
        self.infinite = {*nonfinite(model.named_parameters()), *nonfinite(model.named_buffers())}
        for one in self._inner():  # a wrapper may call what it wraps by other ways than its step
            one.step = partial(self._guarded, one, one.step)

    def run(self, number: int, step: Any, batch: Any, autocast: Any) -> None:
        """One step on one batch, its forward pass inside the context that ``autocast`` makes."""
        recorder = self.record.recorder
        self.number = number
        recorder.begin(number)
        if self.writes is not None:
            recorder.watch_writes = self.writes.watch
            self.writes.begin(self.model, self._inner())
        try:
            self._step(step, batch, autocast)
        except _NotFinite:
            self.record.skipped += 1
        if self.writes is not None:
            self.writes.end()

    def _inner(self) -> list[Any]:
        return [inner for one in each(self.optimizer) for inner in with_wrapped(one)]

    def _step(self, step: Any, batch: Any, autocast: Any) -> None:
        if not isinstance(step, Call):
            with self.watching, grad_scalers_disabled(), autocast() as forget, self._scaled(forget):
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
        with self.watching, self._scaled():
            loss.backward()
        for one in each(self.optimizer):
            with self.watching:
                one.step()

    def _scaled(self, forget: Callable[[], None] = lambda: None) -> AbstractContextManager[None]:
        """Where each backward pass is scaled, and ``forget`` is called as the forward one ends."""

        def begun(roots: list[Tensor]) -> None:
            self.record.losses += [float(one.detach()) for one in roots if one.numel() == 1]
            forget()

        def ended() -> None:
            if self.optimizer is None:
                self._make_ready(list(self.model.parameters()))

        parameters = [p for one in self._inner() for g in one.param_groups for p in g["params"]]
        return scaled_backward(
            self.record.loss_scale,
            self.record.recorder,
            [*self.model.parameters(), *parameters],
            begun=begun,
            ended=ended,
        )

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
        """One that an optimizer calls for a loss and new gradients: under autocast."""
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
        """Keep the first gradients that are about to be used, and refuse those not finite."""
        self._keep_gradients(parameters)
        gradients = [p.grad for p in parameters if p.grad is not None]
        values = [g._values() if g.is_sparse else g for g in gradients]
        if not all(bool(v.isfinite().all()) for v in values):
            raise _NotFinite

    def _keep_gradients(self, parameters: Iterable[Tensor]) -> None:
        """The first of each weight that are about to be used: others are not yet made."""
        used = {id(p) for p in parameters}
        for name, parameter in self.model.named_parameters():
            kept = name in self.record.gradients or id(parameter) not in used
            if parameter.grad is not None and not kept:
                grad = parameter.grad.detach()
                self.record.steps_to_gradients = self.number + 1
                self.record.gradients[name] = (grad.to_dense() if grad.is_sparse else grad).clone()

    def finish(self) -> None:
        """Note what is held in the end, and which weights and buffers are no longer finite."""
        record = self.record
        if not (record.gradients or record.error or record.skipped):  # left for a later step
            try:
                self._make_ready(list(self.model.parameters()))
            except _NotFinite:
                record.skipped += 1
        states = [t for o in self._inner() for t in state_tensors(dict(getattr(o, "state", {})))]
        held = [*self.model.parameters(), *self.model.buffers(), *record.gradients.values()]
        plain = [t for t in (*held, *states) if t.layout == torch.strided]
        record.kept_bytes = count_bytes(plain)
        record.nonfinite_weights = self._become_nonfinite(self.model.named_parameters())
        record.nonfinite_buffers = self._become_nonfinite(self.model.named_buffers())

    def _become_nonfinite(self, named: Any) -> list[str]:
        """Not those that were so before, as a mask or a bound is."""
        return [name for name in nonfinite(named) if name not in self.infinite]


class _NotFinite(Exception):  # noqa: N818
    """Gradients are not, and the step that would use them is skipped."""
