"""What is diagnosed, and one run of it: the same steps on a copy, in one dtype.

Nothing that the reader passes is run.  Model, optimizer and a loss that has parameters are copied
together, so that the copied optimizer updates the copied model; the random numbers start the same
in each run and are put back after all of them.  What a loop of one's own reaches by other ways than
its arguments is not a copy, and `Workload.check_untouched` says so.
"""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mpbook.cost.measure import count_bytes, saved_for_backward, state_tensors
from mpbook.device import matmul_emulation
from mpbook.diagnosis.autocast_of import autocast_of, without_autocast
from mpbook.diagnosis.batches import Call, map_tensors, tensors_in
from mpbook.diagnosis.float32_parts import Float32Lines, keep_in_float32
from mpbook.diagnosis.operators_seen import LOSS, MODEL, SIXTEEN_BIT, Place, Recorder
from mpbook.diagnosis.state import Ledger
from mpbook.watch.optimizer_steps import is_optimizer, with_wrapped

Target = Literal["cuda", "cpu"]
Step = Callable[[Any, Any, Any], Any]


@dataclass
class Run:
    """What one run of the steps left: what was seen, and whether it was finite."""

    dtype: torch.dtype
    loss_scale: float
    recorder: Recorder
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


class Workload:
    """A model, its batches, its loss or its step, and its optimizer, as they were passed.

    Args:
        model: any module; what is compiled or wrapped for many GPUs is taken out.
        batches: one for each step.
        loss, step, optimizer: as `mpbook.diagnosis.diagnose`.
        target: whose rules autocast follows.

    Raises:
        TypeError: a model that is no module, an optimizer that is none.
        ValueError: a model on the meta device.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: list[Any],
        *,
        loss: Any,
        step: Step | None,
        optimizer: Any,
        target: Target,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: a {type(model).__name__}; expected a torch.nn.Module")
        self.model, self.compiled = _unwrapped(model)
        self.batches, self.loss, self.step, self.target = batches, loss, step, target
        self.optimizer = _checked_optimizer(optimizer, self.model)
        self.device = _device(self.model, batches)
        self.given = {p.dtype for p in self.model.parameters() if p.is_floating_point()}
        self.call = Call(loss)

    def of_batches(self, batches: list[Any]) -> Workload:
        """The same model on other batches."""
        other = copy.copy(self)
        other.batches = batches
        return other

    @property
    def narrow(self) -> set[torch.dtype]:
        """The 16-bit dtypes of the weights as they were passed."""
        return self.given & set(SIXTEEN_BIT)

    def run(
        self,
        dtype: torch.dtype,
        *,
        steps: int,
        loss_scale: float = 1.0,
        histograms: bool = False,
        weights: torch.dtype | None = torch.float32,
        in_float32: Collection[Place] = (),
        writes: Ledger | None = None,
    ) -> Run:
        """The first steps in one dtype, on a fresh copy.

        Args:
            dtype: autocast's; float32 or float64 for none.
            steps: how many.
            loss_scale: that the loss is multiplied by, and the gradients divided by.
            histograms: of the gradients that are in 16 bits.
            weights: the dtype that the weights are converted to; None leaves them as passed.
            in_float32: places that are kept in float32, as a rescue does: a line, else a module.
            writes: a ledger of in-place writes, told which states there are.
        """
        model, optimizer, call = self._copies(weights)
        keep_in_float32(model, {_own_name(p) for p in in_float32 if not p.file} - {LOSS})
        call.in_float32 = any(p.module == LOSS and not p.file for p in in_float32)
        lines = [(p.file, p.line) for p in in_float32 if p.file]
        recorder = Recorder(model, histograms=histograms, loss_scale=loss_scale)
        run = Run(dtype, loss_scale, recorder)
        stepper = _Stepper(model, optimizer, run, self.device, writes)
        autocast = torch.float32 if dtype == torch.float64 else dtype
        inputs = weights or next(iter(self.narrow), None)
        with ExitStack() as stack:
            stack.enter_context(same_random_numbers(self.device))
            stack.enter_context(_eager())
            narrow = inputs if inputs in SIXTEEN_BIT else dtype
            stack.enter_context(matmul_emulation(narrow, self.device))
            stack.enter_context(recorder.hooks())
            stack.enter_context(torch.autograd.set_multithreading_enabled(False))
            stack.enter_context(torch.enable_grad())
            if lines:
                stack.enter_context(Float32Lines(lines))
            try:
                for number, batch in enumerate(self.batches[:steps]):
                    converted = map_tensors(partial(_converted, dtype=inputs), batch)
                    inside = partial(autocast_of, self.target, autocast, self.device)
                    stepper.run(number, self.step or call, converted, inside)
            except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
                run.error, run.error_place = error, recorder.place_of(error)
        stepper.finish()
        return run

    def is_repeatable(self, reference: Run) -> bool:
        """Whether the first step gives the same loss again."""
        again = self.run(torch.float32, steps=1)
        return not reference.losses or again.losses[:1] == reference.losses[:1]

    @contextmanager
    def left_alone(self) -> Iterator[None]:
        """Gradients, weights and buffers are as they were when this ends.

        Raises:
            RuntimeError: a weight was written to, by a step or loss that knows the model itself.
        """
        held = [*self.model.parameters(), *self.model.buffers()]
        before = [(t, t.grad if t.is_leaf else None, t._version) for t in held]
        saved = [None if self.step is None else t.detach().clone() for t in held]
        try:
            yield
        finally:
            written = []
            for (tensor, grad, version), copied in zip(before, saved, strict=True):
                if tensor.is_leaf:
                    tensor.grad = grad
                if tensor._version != version:
                    written.append(tensor)
                    if copied is not None:
                        tensor.data.copy_(copied)
        if written:
            raise RuntimeError(
                "step: writes to the model that it was made with, not to the copy that it is "
                "given; use its arguments, step(model, optimizer, batch), throughout"
            )

    def _copies(self, weights: torch.dtype | None) -> tuple[nn.Module, Any, Call]:
        loss = self.loss if isinstance(self.loss, nn.Module) else None
        memo = {id(t): t.detach().clone() for t in _made_by_hooks(self.model)}
        model, optimizer, loss = copy.deepcopy((self.model, self.optimizer, loss), memo)
        for one in _each(optimizer):
            for inner in with_wrapped(one):
                vars(inner).pop("step", None)  # a scheduler's, which would step the original
        if weights is not None:
            for module in (model, loss):
                if module is not None:
                    _convert(module, weights)
        call = Call(loss or self.loss)
        call._way = self.call._way if loss is None else None
        return model, optimizer, call

    def find_call(self) -> None:
        """Find how the model is called, before anything is measured.

        Raises:
            ValueError: no scalar loss.
            Exception: what the model raises.
        """
        if self.step is not None:
            return
        model, _, _ = self._copies(torch.float32)
        batch = map_tensors(partial(_converted, dtype=torch.float32), self.batches[0])
        with same_random_numbers(self.device), _eager():
            self.call(model, batch)


class _Stepper:
    """Runs steps, and knows when the optimizer's part begins: unscales, checks, skips."""

    def __init__(
        self, model: nn.Module, optimizer: Any, run: Run, device: torch.device, writes: Ledger | None
    ) -> None:
        self.model, self.optimizer, self.record, self.device = model, optimizer, run, device
        self.writes = writes
        self.number = 0
        for one in _each(optimizer):
            one.step = partial(self._guarded, one, one.step)

    def run(self, number: int, step: Any, batch: Any, autocast: Any) -> None:
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
        return [inner for one in _each(self.optimizer) for inner in with_wrapped(one)]

    def _step(self, step: Any, batch: Any, autocast: Any, recorder: Recorder) -> None:
        if not isinstance(step, Call):
            with recorder, _ScaledBackward(self.record, recorder), autocast():
                step(self.model, self.optimizer, batch)
            return
        for one in _each(self.optimizer):
            one.zero_grad()
        if self.optimizer is None:
            self.model.zero_grad()
        with recorder, saved_for_backward(self.model) as count:
            with autocast():
                loss = step(self.model, batch)
            self.record.activation_bytes = count()
        with recorder:
            self.record.losses.append(float(loss.detach()))
            (loss.float() * self.record.loss_scale).backward()
            if self.optimizer is None:
                self.record.skipped += not self._unscale(self.model.parameters())
        if self.optimizer is None:
            self._keep_gradients()
        for one in _each(self.optimizer):
            with recorder:
                one.step()

    def _guarded(self, optimizer: Any, original: Any, *args: Any, **kwargs: Any) -> Any:
        recorder = self.record.recorder
        before, recorder.phase = recorder.phase, "update"
        try:
            with without_autocast(self.device):
                parameters = [p for g in optimizer.param_groups for p in g["params"]]
                finite = self._unscale(parameters)
                self._keep_gradients()
                if not finite:
                    self.record.skipped += 1
                    return None
                if self.writes is not None:  # states that the first step has just made
                    self.writes._know(self.model, self._inner())
                return original(*args, **kwargs)
        finally:
            recorder.phase = before

    def _unscale(self, parameters: Any) -> bool:
        """Divide the gradients by the loss scale; whether all are finite."""
        finite = True
        for parameter in parameters:
            if parameter.grad is None:
                continue
            values = parameter.grad._values() if parameter.grad.is_sparse else parameter.grad
            if self.record.loss_scale != 1.0 and not getattr(parameter.grad, "_unscaled", False):
                values.mul_(1.0 / self.record.loss_scale)
            finite = finite and bool(values.isfinite().all())
        return finite

    def _keep_gradients(self) -> None:
        if self.number or self.record.gradients:
            return
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None:
                grad = parameter.grad.detach()
                self.record.gradients[name] = (grad.to_dense() if grad.is_sparse else grad).clone()

    def finish(self) -> None:
        """What is left of the weights and buffers."""
        record = self.record
        states = [t for o in self._inner() for t in state_tensors(dict(getattr(o, "state", {})))]
        held = [*self.model.parameters(), *self.model.buffers(), *record.gradients.values()]
        plain = [t for t in (*held, *states) if t.layout == torch.strided]
        record.kept_bytes = count_bytes(plain)
        record.nonfinite_weights = _nonfinite(self.model.named_parameters())
        record.nonfinite_buffers = _nonfinite(self.model.named_buffers())


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


# --- Copies and conversions -----------------------------------------------------------------


def _unwrapped(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """A model without what compiles or distributes it, and the names of compiled parts."""
    compiled = []
    if hasattr(model, "_orig_mod"):
        model, compiled = model._orig_mod, ["(model)"]
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        model = model.module
    for name, module in model.named_modules():
        is_wrapper = hasattr(module, "_orig_mod")
        if is_wrapper or getattr(module, "_compiled_call_impl", None) is not None:
            compiled.append(name or "(model)")
    return model, list(dict.fromkeys(compiled))


def _own_name(place: Place) -> str:
    """As ``named_modules`` has it."""
    return "" if place.module == MODEL else place.module


def _checked_optimizer(optimizer: Any, model: nn.Module) -> Any:
    """An optimizer, some of them, or none; a class or function is called on the parameters."""
    if optimizer is None:
        return None
    if isinstance(optimizer, Mapping | list | tuple):
        for one in _each(optimizer):
            _checked_optimizer(one, model)
        return optimizer
    if isinstance(optimizer, type) or not is_optimizer(optimizer):
        made = optimizer(model.parameters()) if callable(optimizer) else None
        if made is None or not is_optimizer(made):
            raise TypeError(
                f"optimizer: a {type(optimizer).__name__}; expected a torch.optim.Optimizer, or a "
                "function from parameters to one, such as functools.partial(AdamW, lr=1e-3)"
            )
        return made
    return optimizer


def _each(optimizer: Any) -> list[Any]:
    if optimizer is None:
        return []
    if isinstance(optimizer, Mapping):
        return list(optimizer.values())
    return list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]


def _device(model: nn.Module, batches: list[Any]) -> torch.device:
    tensors = [*model.parameters(), *model.buffers(), *tensors_in(batches[0])]
    if any(t.is_meta for t in tensors):
        raise ValueError(
            "model: has tensors on the meta device, which have no values; materialise it first "
            "with model.to_empty(device=...) and load its weights"
        )
    gpus = [t.device for t in tensors if t.device.type == "cuda"]
    return gpus[0] if gpus else torch.device("cpu")


def _made_by_hooks(model: nn.Module) -> Iterator[Tensor]:
    """Tensors that a hook makes of parameters, such as a weight norm's: no copy takes them."""
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                yield value


def _convert(module: nn.Module, dtype: torch.dtype) -> None:
    """Real floating weights and buffers in another dtype; complex ones stay complex."""
    for part in module.modules():
        for held in (part._parameters, part._buffers):
            for tensor in held.values():
                if tensor is not None and tensor.is_floating_point() and tensor.dtype != dtype:
                    tensor.data = tensor.data.to(dtype)


def _converted(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A batch's tensor as a copy, so that a model may write to it."""
    copied = tensor.detach().clone()
    if dtype is not None and copied.is_floating_point() and copied.layout == torch.strided:
        copied = copied.to(dtype)
    return copied.requires_grad_(tensor.requires_grad) if tensor.requires_grad else copied


def _nonfinite(named: Any) -> list[str]:
    floating = ((n, t.detach()) for n, t in named if t.is_floating_point() or t.is_complex())
    return [name for name, t in floating if t.numel() and not bool(t.isfinite().all())]


# --- Putting back ---------------------------------------------------------------------------


@contextmanager
def same_random_numbers(device: torch.device) -> Iterator[None]:
    """The same random numbers inside each time, and those of the caller untouched."""
    theirs = random.getstate(), numpy.random.get_state()
    on_gpu = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(on_gpu):
            torch.manual_seed(0)
            random.seed(0)
            numpy.random.seed(0)
            yield
    finally:
        random.setstate(theirs[0])
        numpy.random.set_state(theirs[1])


@contextmanager
def _eager() -> Iterator[None]:
    """Compiled parts run as they were written, so that each operator is seen."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
