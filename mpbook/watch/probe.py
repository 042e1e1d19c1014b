"""Where the numbers of a training run lie: will this model survive float16, and which layer not?

A `Probe` watches a live model through hooks and counts, in exact histograms of ``log2|x|``
(`mpbook.watch.histograms`), five kinds of numbers, layer by layer: **activations**, **activation
gradients**, **weights**, **weight gradients** and **updates**.  What it can tell of them, it has
from `mpbook.watch.report.Report`.

Use it around any training loop::

    with Probe(model, optimizer) as probe:
        ...  # any training loop, any autocast, any optimizer
    probe.table("float16")
    probe.needs_loss_scaling("float16").reason

The training that is watched does not change by a bit.  Watch it in float32 or bfloat16: what
float16 has flushed to zero already, nobody can count.

What counts once.  An output counts each time its module runs, but not when checkpointing runs it
again for the backward pass.  A weight gradient counts in each backward pass, as that pass made it;
where several passes accumulate, each counts on its own, and not their sum.  A weight that layers
share is one weight, under its first name.  Tensors that are not real floating-point are passed by,
and so is what compiled code computes, or a transform of `torch.func`.

What is computed inside of a module, or outside of the model in the loss, is not counted.  But where
activations are watched, each operator of the forward pass is looked at once it has run
(`mpbook.watch.operators_within`), so that the verdict knows of products of attention beyond 65504
before their scale.  What the verdict has not seen, it names: then it is not "not needed".

What counts that you may not mean.  Every pass through the model counts, whoever makes it: the
discriminator of a GAN also runs in the generator's step, and those gradients are no part of its
own.  Leave a pass out by ``with probe.paused():``.

Several ranks.  Under DistributedDataParallel and `fully_shard` each rank counts what it sees: its
own batches, and a weight gradient as its own backward pass made it, before the ranks' mean is
taken.  Of a sharded weight it counts its part.  So no rank reads its own counts by accident: every
one calls `over_ranks`, and has a report of all.

What it costs.  Counting takes a few operations an element, in float64 on a GPU, which is not
waited for, but by a fused optimizer under a `torch.amp.GradScaler`; `updates` keep a copy of the
weights during the optimizer's step.  ``every=10`` watches every tenth step, at a tenth of the cost.

Source: the census of Micikevicius et al. 2018, section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mpbook.distributed import is_another_copy
from mpbook.shards import is_shared, own_part
from mpbook.watch.binades import BinCounter
from mpbook.watch.histograms import Histogram
from mpbook.watch.operators_within import OperatorsWithin
from mpbook.watch.optimizer_steps import StepWatch, grouped, held_besides
from mpbook.watch.over_ranks import RankReport
from mpbook.watch.report import KINDS, OF_MODULES, Kind, Sights
from mpbook.watch.rounded_sums import RoundedSums, channel_of
from mpbook.watch.unsharded_weights import await_unsharded
from mpbook.watch.watchable import (
    Entered,
    Scale,
    check_model,
    check_optimizer,
    check_scale,
    check_sharding,
    chosen_modules,
    compiled_parts,
    floating_tensors,
    is_replay,
    out_of_reach,
)


class Probe(RankReport):
    """Counts the numbers of a model while it trains; a context manager that leaves no hook behind.

    A step ends with ``optimizer.step()``; without an optimizer, each call of the model is one.  A
    step that a loss scaler skips is watched again.  An optimizer may be wrapped, as accelerate,
    Lightning and `mpbook.master_weights` do: see `mpbook.watch.optimizer_steps`.

    Args:
        model: the model itself, not its compiled version or a copy.
        optimizer: over parameters of the model; needed for ``updates``.
        kinds: what to watch; all that is possible when not given.
        every: watch one step, then pass ``every - 1`` by.
        loss_scale: what the loss was multiplied by, or a function that says so; gradients count
            as divided by it.  A function may return a tensor, which is not waited for.
        modules: says from a module's name and the module whether to watch its outputs; by
            default, the modules that have no module inside, or weights of their own.

    Raises:
        TypeError: an optimizer without ``param_groups`` or a ``step``.
        ValueError: an unknown kind, ``updates`` without an optimizer, an optimizer of other
            parameters, a loss scale out of range, a compiled model, one that is sharded by
            tensor parallelism or by FSDP1.
        RuntimeError: counts are read of one rank of several; `over_ranks` has those of all.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        kinds: Sequence[Kind] | None = None,
        every: int = 1,
        loss_scale: Scale | Callable[[], Scale] | None = None,
        modules: Callable[[str, nn.Module], bool] | None = None,
    ):
        if kinds is None:
            kinds = [kind for kind in KINDS if kind != "updates" or optimizer is not None]
        self._modules = chosen_modules(model, modules)
        self._parameters = {n: p for n, p in model.named_parameters() if p.is_floating_point()}
        super().__init__(
            kinds,
            modules=self._modules,
            parameters=self._parameters,
            scaled=loss_scale is not None,
        )
        self.model, self.optimizer, self.every = model, optimizer, every
        self.loss_scale, self.steps = loss_scale, 0
        self._handles: list[Any] = []
        self._hooked: set[str] = set()
        self._before: dict[str, Tensor] = {}
        self._paused = False
        self._unsharded: dict[str, Tensor] = {}
        self._within = OperatorsWithin(model, lambda: self._watching)
        self._sums, self._inputs = RoundedSums(), BinCounter()
        self._check()

    def _check(self) -> None:
        if type(self.every) is not int or self.every < 1:
            raise ValueError(f"every={self.every!r}: expected a whole number of steps, at least 1")
        check_model(self.model)
        check_sharding(self.model)
        if self.optimizer is None:
            if "updates" in self.kinds:
                raise ValueError('kinds: "updates" need an optimizer, whose steps make them')
        else:
            check_optimizer(self.optimizer, self.model)
        if self.loss_scale is not None and not callable(self.loss_scale):
            check_scale(self.loss_scale)

    def __enter__(self) -> Probe:
        if self._handles:
            raise RuntimeError("probe: is watching already; leave its context first")
        self._count_for_this_rank()
        try:
            self._register()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._remove()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count nothing inside: a pass through the model that is not its own, as in a GAN.

        >>> layer = nn.Linear(1, 1)
        >>> with Probe(layer) as probe, probe.paused():
        ...     _ = layer(torch.ones(1, 1))
        >>> probe.steps, probe.layers("activations")
        (0, [])
        """
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def count(self, kind: Kind, layer: str, x: Tensor, *, divisor: float | Tensor = 1.0) -> None:
        """Count the values of ``x / divisor``; of a sharded tensor, this rank's part."""
        with self._within.paused():
            super().count(kind, layer, own_part(x.detach()), divisor=divisor)

    def _copies(self) -> set[str]:
        named = self._parameters.items()
        return {name for name, p in named if is_another_copy(p, self._rank)}

    def _sights(self) -> Sights:
        """What the verdict has to know besides the counts."""
        gradients = self.layers("weight_gradients") if "weight_gradients" in self.kinds else []
        elsewhere = [name for name in gradients if name not in self._within.used]
        return Sights(
            inputs=Histogram(*self._inputs.counts()),
            exceeding=self._within.exceeding,
            compiled=compiled_parts(self.model),
            elsewhere=elsewhere,
            noise=self._sums.only_noise(),
        )

    def _register(self) -> None:
        on_call = self._on_call()
        self._handles.append(self.model.register_forward_pre_hook(on_call, with_kwargs=True))
        if self.optimizer is not None:
            watch = StepWatch(self.optimizer, self._before_step, self._after_step)
            self._handles += watch.register()
        if any(kind in self.kinds for kind in OF_MODULES):
            for name, module in self._modules.items():
                hook = self._on_output(name, module)
                self._handles.append(module.register_forward_hook(hook))
        if "activations" in self.kinds:
            self._look_within()
        self._handles += await_unsharded(self.model, self._parameters, self._on_unsharded)
        self._hook_gradients()

    def _look_within(self) -> None:
        """Note each operator from here on, and in which module it runs."""
        for name, module in self.model.named_modules():
            before = self._on_enter(name or "(model)", module)
            self._handles.append(module.register_forward_pre_hook(before))
            self._handles.append(module.register_forward_hook(self._on_leave(module)))
        self._within.__enter__()
        self._handles.append(Entered(self._within))

    def _on_enter(self, name: str, module: nn.Module) -> Callable[..., None]:
        def hook(called: nn.Module, _arguments: Any) -> None:
            if called is module and not out_of_reach():
                self._within.enter(name, is_model=module is self.model)

        return hook

    def _on_leave(self, module: nn.Module) -> Callable[..., None]:
        def hook(called: nn.Module, _arguments: Any, _output: Any) -> None:
            if called is module and not out_of_reach():
                self._within.leave()

        return hook

    def _hook_gradients(self) -> None:
        """Set the hooks of weight gradients, and later on those of weights that were frozen."""
        for name, parameter in self._parameters.items() if "weight_gradients" in self.kinds else ():
            if parameter.requires_grad and name not in self._hooked:
                self._hooked.add(name)
                if not is_shared(parameter):  # a whole one gets it in its place
                    hook = self._on_gradient("weight_gradients", name)
                    self._handles.append(parameter.register_hook(hook))

    def _on_unsharded(self, name: str, whole: Tensor) -> None:
        """Watch the tensor that a sharded weight is while its module runs."""
        self._within.weight_is_at(name, whole)
        wanted = "weight_gradients" in self.kinds and whole.requires_grad
        if wanted and self._unsharded.get(name) is not whole:
            self._unsharded[name] = whole
            hook = self._on_gradient("weight_gradients", name)
            self._handles.append(whole.register_hook(hook))

    def _remove(self) -> None:
        for handle in reversed(self._handles):
            handle.remove()
        self._handles.clear()
        self._hooked.clear()
        self._before.clear()
        self._unsharded.clear()

    @property
    def _watching(self) -> bool:
        """Whether this step is one to watch, and the hooks are meant to be there."""
        step = self.steps - 1 if self.optimizer is None else self.steps
        return bool(self._handles) and not self._paused and step % self.every == 0 and step >= 0

    def _count_weights(self) -> None:
        self.watched_steps += 1
        if "weights" in self.kinds:
            for name, parameter in self._parameters.items():
                self.count("weights", name, parameter)

    def _on_call(self) -> Callable[..., None]:
        """What ends a step where no optimizer does."""

        def hook(called: nn.Module, arguments: Any, options: Any) -> None:
            if called is not self.model or out_of_reach() or is_replay() or self._paused:
                return
            self._hook_gradients()
            if self.optimizer is None:
                self.steps += 1
                if self._watching:
                    self._count_weights()
            if self._watching and "activations" in self.kinds:
                with self._within.paused():
                    for x in floating_tensors([arguments, options]):
                        if x.numel():
                            self._inputs.add(x)

        return hook

    def _on_output(self, name: str, module: nn.Module) -> Callable[..., None]:
        """Counts what a module puts out, and waits for the gradient."""

        def hook(called: nn.Module, _arguments: Any, output: Any) -> None:
            # A deep copy of the model takes the hooks along; it is not the one to watch.
            if called is not module or out_of_reach() or not self._watching:
                return
            for x in floating_tensors(output):
                if "activations" in self.kinds and not is_replay():
                    self.count("activations", name, x)
                # A hook on a leaf would stay there, and count again for every later output.
                if x.requires_grad and not x.is_leaf:
                    if "activation_gradients" in self.kinds:
                        x.register_hook(self._on_gradient("activation_gradients", name))
                    self._hook_sums(name, module, x)

        return hook

    def _hook_sums(self, name: str, module: nn.Module, output: Tensor) -> None:
        """Note the terms of which the gradients of a module's biases are sums."""
        prefix = "" if name == "(model)" else f"{name}."
        for own, parameter in module.named_parameters(recurse=False):
            channel = channel_of(module, output, parameter)
            if channel is not None and f"{prefix}{own}" in self._hooked:

                def hook(gradient: Tensor, own: str = own, channel: int = channel) -> None:
                    if self._watching and not out_of_reach():
                        with self._within.paused():
                            self._sums.add_terms(f"{prefix}{own}", gradient, channel)

                output.register_hook(hook)

    def _on_gradient(self, kind: Kind, layer: str) -> Callable[[Tensor], None]:
        """Counts a gradient, without the loss scale."""

        def hook(gradient: Tensor) -> None:
            if self._watching and not out_of_reach():
                self.count(kind, layer, gradient, divisor=self._current_scale())
                if kind == "weight_gradients":
                    with self._within.paused():
                        self._sums.compare(layer, gradient)

        return hook

    def _current_scale(self) -> Scale:
        if not callable(self.loss_scale):
            return 1.0 if self.loss_scale is None else self.loss_scale
        scale: Scale = self.loss_scale()
        check_scale(scale)
        return scale

    def _before_step(self) -> None:
        if self._watching:
            self._count_weights()
            if "updates" in self.kinds:
                updated = self._updated().items()
                self._before = {n: own_part(p.detach()).clone() for n, p in updated}

    def _after_step(self) -> None:
        for name, before in self._before.items():
            after = own_part(self._parameters[name].detach())
            if after.element_size() < 4:
                after, before = after.float(), before.float()
            self.count("updates", name, after - before)
        self._before = {}
        self.steps += 1

    def _updated(self) -> dict[str, Tensor]:
        """The parameters that the optimizer is about to change."""
        held = {id(parameter) for parameter in grouped(self.optimizer)}
        held |= held_besides(self.optimizer)
        return {name: p for name, p in self._parameters.items() if id(p) in held}
