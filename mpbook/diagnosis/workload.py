"""What is diagnosed, and one run of it: the same steps on a copy, in one dtype.

Nothing that the reader passes is run.  Model, optimizer and a loss that has parameters are copied
together, so that the copied optimizer updates the copied model; the random numbers start the same
in each run and are put back after all of them.  What a loop of one's own reaches by other ways than
its arguments is not a copy: what a step knows is put back (`mpbook.diagnosis.outside`), and what
trains or runs the model itself is refused (`mpbook.diagnosis.left_alone`).
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mpbook.copies import deep_copy
from mpbook.cost.measure import parts_of
from mpbook.device import matmul_emulation
from mpbook.diagnosis.autocast_of import as_on_a_gpu, autocast_of
from mpbook.diagnosis.batches import Call
from mpbook.diagnosis.copies import (
    checked_optimizer,
    complete,
    convert,
    convert_states,
    converted,
    convertible,
    copy_of_module,
    device_of,
    each,
    eager,
    made_by_hooks,
    must_own_weights,
    nonfinite,
    own_name,
    same_random_numbers,
    unwrapped,
    without_master_copies,
)
from mpbook.diagnosis.float32_parts import Float32Lines, keep_in_float32
from mpbook.diagnosis.left_alone import NOT_THE_COPY, left_alone
from mpbook.diagnosis.operators_seen import Recorder
from mpbook.diagnosis.outside import Outside
from mpbook.diagnosis.places import LOSS, Place
from mpbook.diagnosis.same_draws import SameDraws
from mpbook.diagnosis.state import StateLedger
from mpbook.diagnosis.stepping import Run, Stepper
from mpbook.distributed import BEFORE_SHARDING, is_data_parallel, refuse_sharded
from mpbook.master_weights import SIXTEEN_BIT
from mpbook.nests import mapped, tensors
from mpbook.watch.optimizer_steps import with_wrapped

Target = Literal["cuda", "cpu"]
Step = Callable[[Any, Any, Any], Any]

MANY_TIMES = 10
"""As many operators as the reference: what runs more is not waited for."""

_AT_ITS_END = (
    "step: an iterator that it draws from is at its end, and each format runs the steps again; "
    "expected a step that computes on the batch that it is given: pass the batches as batches="
)


class Workload:
    """A model, its batches, its loss or its step, and its optimizer, as they were passed.

    Args:
        model: any module; what is compiled or wrapped for many GPUs is taken out.
        batches: one for each step.
        loss, step, optimizer: as `mpbook.diagnosis.diagnose`.
        target: whose rules autocast follows.

    Raises:
        TypeError: a model that is no module, an optimizer that is none.
        ValueError: a model on the meta device, or one that is sharded; an optimizer of another
            model.
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
        self.model, self.compiled = unwrapped(model)
        self.distributed = is_data_parallel(model) and not hasattr(self.model, "module")
        refuse_sharded(self.model, instead=BEFORE_SHARDING)
        self.batches, self.loss, self.step, self.target = batches, loss, step, target
        self.device = device_of(self.model, batches)
        self.optimizer = checked_optimizer(optimizer, self.model, own_step=step is not None)
        must_own_weights(self.optimizer, self.model)
        self.given = {p.dtype for p in self.model.parameters() if p.is_floating_point()}
        self.call = Call(loss)
        self.most = math.inf
        by_itself = step if isinstance(loss, nn.Module) or loss is None else loss
        self.outside = Outside(by_itself, each(self.optimizer), but=self.model)

    def limit_operators(self, reference: Run) -> None:
        """No watched run after it runs many times its operators, as an endless solver would."""
        self.most = MANY_TIMES * reference.recorder.operators + 1_000

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
        changed: Callable[[nn.Module], None] | None = None,
        writes: StateLedger | None = None,
        watched: bool = True,
    ) -> Run:
        """The first steps in one dtype, on a fresh copy.

        Args:
            dtype: autocast's; float32 or float64 for none.
            steps: how many.
            loss_scale: that the loss is multiplied by, and the gradients divided by.
            histograms: of the gradients that are in 16 bits.
            weights: the dtype that the weights are converted to; None leaves them as passed.
            changed: what is done to the copy, once, before the first step.
            in_float32: places that are kept in float32, as a rescue does: a line, else a module.
            watched: whether operators are noted; without, a run is as fast as the model.
            writes: a ledger of in-place writes, told which states there are.
        """
        model, optimizer, call = self._copies(weights)
        if self.distributed:  # what a step may ask of the wrapper
            vars(model).update(module=model, no_sync=nullcontext)
        if changed is not None:
            changed(model)
        keep_in_float32(model, {own_name(p) for p in in_float32 if not p.file} - {LOSS})
        call.in_float32 = any(p.module == LOSS and not p.file for p in in_float32)
        lines = [(p.file, p.line) for p in in_float32 if p.file]
        recorder = Recorder(model, histograms=histograms, loss_scale=loss_scale, most=self.most)
        run = Run(dtype, loss_scale, recorder, steps)
        watching = recorder if watched else SameDraws()
        stepper = Stepper(model, optimizer, run, self.device, writes, watching)
        autocast = torch.float32 if dtype == torch.float64 else dtype
        inputs = weights or next(iter(self.narrow), None)
        computed = inputs if inputs in SIXTEEN_BIT else dtype
        inside = partial(autocast_of, self.target, autocast, self.device)
        self.outside.put_back()
        with self._surroundings(recorder, computed, lines):
            try:
                for number, batch in enumerate(self.batches[:steps]):
                    own = mapped(partial(converted, dtype=inputs, given=self.given), batch)
                    stepper.run(number, self.step or call, own, inside)
            except Exception as error:
                if isinstance(error, StopIteration) and self.step is not None:
                    raise RuntimeError(_AT_ITS_END) from error
                run.error, run.error_place = error, recorder.place_of(error)
        stepper.finish()
        return run

    @contextmanager
    def _surroundings(
        self, recorder: Recorder, computed: torch.dtype, lines: list[tuple[str, int]]
    ) -> Iterator[None]:
        """What every step of a run is inside of, whichever it is."""
        with ExitStack() as stack:
            stack.enter_context(same_random_numbers(self.device))
            stack.enter_context(eager())
            stack.enter_context(as_on_a_gpu(self.target, self.device))
            stack.enter_context(matmul_emulation(computed, self.device))
            stack.enter_context(recorder.hooks())
            stack.enter_context(torch.autograd.set_multithreading_enabled(False))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(warnings.catch_warnings())  # of the optimizer, for its copy steps
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            if lines:
                stack.enter_context(Float32Lines(lines))
            yield

    @property
    def written_loss(self) -> str:
        """The loss as one writes it in a loop."""
        return "...  # as your step has it" if self.step is not None else self.call.written

    def run_scaled(self, dtype: torch.dtype, *, loss_scale: float, **options: Any) -> Run:
        """A run at a loss scale; at a lower one, where gradients overflow, as a scaler goes."""
        run = self.run(dtype, loss_scale=loss_scale, **options)
        while run.skipped and run.finite_losses and run.error is None and loss_scale > 2.0**-8:
            loss_scale /= 2**6
            run = self.run(dtype, loss_scale=loss_scale, **options)
        return run

    def is_repeatable(self, reference: Run) -> bool:
        """Whether the first step gives the same loss again, and once more if it is one's own.

        One that draws from a cycle of batches may be at the same one after as many steps.
        """
        times = 1 if self.step is None else 2
        again = [self.run(torch.float32, steps=1, watched=False) for _ in range(times)]
        first = reference.losses[:1]
        return not first or all(run.losses[:1] == first for run in again)

    def not_finite(self, steps: int) -> str:
        """Which weights are not finite as they were passed, or which batch; "" where all are.

        A mask's minus infinity in a batch is no fault of it.
        """
        weights = nonfinite(self.model.named_parameters())
        if weights:
            return f"not finite before the first step: {', '.join(weights[:4])}"
        for number, batch in enumerate(self.batches[:steps], 1):
            given = list(tensors(batch))
            broken = next((i for i, t in enumerate(given, 1) if _has_nan(t)), None)
            if broken is not None:
                return f"batch {number} holds NaN or infinity: tensor {broken} of {len(given)}"
        return ""

    @contextmanager
    def left_alone(self) -> Iterator[None]:
        """Gradients, weights, buffers and what the step knows are as they were when this ends."""
        modules = [m for m in (self.model, self.loss) if isinstance(m, nn.Module)]
        with left_alone(*modules, own_step=self.step is not None):
            try:
                yield
            finally:
                self.outside.put_back(for_good=True)

    def must_have_reached_the_copy(self, reference: Run) -> None:
        """A sound run in float32 that gave the copy no gradient was a run of something else.

        Raises:
            ValueError: it was.
        """
        if reference.sound and self.step is None and not reference.gradients:
            raise ValueError(f"model: its copy got no gradient: {NOT_THE_COPY}")

    def _copies(self, weights: torch.dtype | None) -> tuple[nn.Module, Any, Call]:
        memo = {id(t): t.detach().clone() for t in made_by_hooks(self.model)}
        model = copy_of_module(self.model, memo, what="model")
        is_module = isinstance(self.loss, nn.Module)
        loss = copy_of_module(self.loss, memo, what="loss") if is_module else None
        optimizer = deep_copy(self.optimizer, what="optimizer", memo=memo)
        for one, theirs in zip(each(optimizer), each(self.optimizer), strict=True):
            for nth, original in enumerate(with_wrapped(theirs)):
                inner = with_wrapped(one)[nth]  # which the one around it has got by now
                vars(inner).pop("step", None)  # a scheduler's, which would step the original
                complete(inner, original, memo)
        if weights is not None:
            if self.narrow:
                optimizer = without_master_copies(optimizer, model)
            dtypes = convertible(self.given)
            for module in (model, loss):
                if module is not None:
                    convert(module, weights, dtypes)
            convert_states(optimizer, weights, dtypes)
        return model, optimizer, self.call.with_loss(self.loss if loss is None else loss)

    def find_call(self) -> None:
        """Find how the model is called, before anything is measured.

        Raises:
            ValueError: no scalar loss.
            Exception: what the model raises.
        """
        if self.step is not None:
            return
        model, _, call = self._copies(torch.float32)
        own = partial(converted, dtype=torch.float32, given=self.given)
        imitated = as_on_a_gpu(self.target, self.device)
        with same_random_numbers(self.device), eager(), imitated:
            # A saved tensor that was changed is told here alone: hooks on what is saved hide it.
            call(model, mapped(own, self.batches[0])).backward()
            call.find_saved(model, mapped(own, self.batches[0]))
        self.call = call.with_loss(self.loss)


def _has_nan(tensor: Tensor) -> bool:
    """Or plus infinity, which no mask holds."""
    parts = parts_of(tensor.detach()) if tensor.is_floating_point() else []
    return any(bool((part.isnan() | part.isposinf()).any()) for part in parts)
