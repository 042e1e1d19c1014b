"""Where the numbers of a training run lie: will this model survive float16, and which layer not?

A `Probe` watches a live model through hooks and counts, in exact histograms of ``log2|x|``
(`mpbook.watch.histograms`), five kinds of numbers, layer by layer:

* **activations**: what modules put out,
* **activation gradients**: with respect to those outputs; the smallest numbers of a training run,
  and the reason for loss scaling,
* **weights**, **weight gradients** and **updates**, what an optimizer step adds to the weights.

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
share is one weight, under its first name.  Tensors that are not real floating-point are passed by.

What it costs.  Counting takes a few operations an element, in float64 on a GPU, which is not
waited for; `updates` keep a copy of the weights during the optimizer's step.  ``every=10`` watches
every tenth step, at a tenth of the cost.

Source: the census of Micikevicius et al. 2018, section 3.2.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from mpbook.formats import FORMATS, FloatFormat, as_format
from mpbook.notebook import Table
from mpbook.watch.binades import BinCounter
from mpbook.watch.histograms import Fates, Histogram, log2_histogram, plot
from mpbook.watch.scaling_verdict import ScalingVerdict, judge, listed, words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["KINDS", "Fates", "Histogram", "Kind", "Probe", "ScalingVerdict", "log2_histogram"]

Kind = Literal["activations", "activation_gradients", "weights", "weight_gradients", "updates"]
Scale = float | Tensor

KINDS: tuple[Kind, ...] = get_args(Kind)
"""What a probe can watch."""

_OF_MODULES = ("activations", "activation_gradients")


# --- The probe --------------------------------------------------------------------------------


class Probe:
    """Counts the numbers of a model while it trains; a context manager that leaves no hook behind.

    A step ends with ``optimizer.step()``; without an optimizer, each call of the model is one.  A
    step that a loss scaler skips is watched again.

    Args:
        model: the model itself, not its compiled version or a copy.
        optimizer: over parameters of the model; needed for ``updates``.
        kinds: what to watch; all that is possible when not given.
        every: watch one step, then pass ``every - 1`` by.
        loss_scale: what the loss was multiplied by, or a function that says so; gradients count
            as divided by it.  A function may return a tensor, which is not waited for.
        modules: says from a module's name and the module whether to watch its outputs; by
            default, the modules that have no module inside.

    Raises:
        TypeError: an optimizer that is no `torch.optim.Optimizer`.
        ValueError: an unknown kind, ``updates`` without an optimizer, an optimizer of other
            parameters, a loss scale out of range, a compiled model.
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
        self.model, self.optimizer = model, optimizer
        self.kinds, self.every, self.loss_scale = _checked_kinds(kinds), every, loss_scale
        self.steps = self.watched_steps = 0
        self._modules = _chosen_modules(model, modules)
        self._parameters = {
            name: p for name, p in model.named_parameters() if p.is_floating_point()
        }
        self._counters: dict[tuple[Kind, str], BinCounter] = {}
        self._dtypes: dict[Kind, set[torch.dtype]] = {}
        self._handles: list[Any] = []
        self._before: dict[str, Tensor] = {}
        self._check()

    def _check(self) -> None:
        if type(self.every) is not int or self.every < 1:
            raise ValueError(f"every={self.every!r}: expected a whole number of steps, at least 1")
        if hasattr(self.model, "_orig_mod") or self.model._compiled_call_impl is not None:
            raise ValueError(
                "model: compiled, and hooks of modules do not run in compiled code; watch a model "
                "that is not, and call that one"
            )
        if self.optimizer is None:
            if "updates" in self.kinds:
                raise ValueError('kinds: "updates" need an optimizer, whose steps make them')
        else:
            _check_optimizer(self.optimizer, self.model)
        if self.loss_scale is not None and not callable(self.loss_scale):
            _check_scale(self.loss_scale)

    # --- Watching -----------------------------------------------------------------------------

    def __enter__(self) -> Probe:
        if self._handles:
            raise RuntimeError("probe: is watching already; leave its context first")
        try:
            self._register()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._remove()

    def _register(self) -> None:
        handles = self._handles
        if self.optimizer is None:
            handles.append(self.model.register_forward_pre_hook(self._on_call()))
        else:
            handles.append(self.optimizer.register_step_pre_hook(lambda *_: self._before_step()))
            handles.append(self.optimizer.register_step_post_hook(lambda *_: self._after_step()))
        if any(kind in self.kinds for kind in _OF_MODULES):
            for name, module in self._modules.items():
                handles.append(module.register_forward_hook(self._on_output(name, module)))
        if "weight_gradients" in self.kinds:
            for name, parameter in self._parameters.items():
                if parameter.requires_grad:
                    hook = self._on_gradient("weight_gradients", name)
                    handles.append(parameter.register_hook(hook))

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._before.clear()

    @property
    def _watching(self) -> bool:
        """Whether this step is one to watch, and the hooks are meant to be there."""
        step = self.steps - 1 if self.optimizer is None else self.steps
        return bool(self._handles) and step % self.every == 0 and step >= 0

    def _count(self, kind: Kind, layer: str, x: Tensor, *, divisor: Scale = 1.0) -> None:
        if not x.numel():
            return
        self._dtypes.setdefault(kind, set()).add(x.dtype)
        self._counters.setdefault((kind, layer), BinCounter()).add(x, divisor=divisor)

    def _count_weights(self) -> None:
        self.watched_steps += 1
        if "weights" in self.kinds:
            for name, parameter in self._parameters.items():
                self._count("weights", name, parameter)

    def _on_call(self) -> Callable[..., None]:
        """What ends a step where no optimizer does."""

        def hook(called: nn.Module, _arguments: Any) -> None:
            compiling = torch.compiler.is_compiling()
            if called is self.model and not compiling and not _is_replay():
                self.steps += 1
                if self._watching:
                    self._count_weights()

        return hook

    def _on_output(self, name: str, module: nn.Module) -> Callable[..., None]:
        """Counts what a module puts out, and waits for the gradient."""

        def hook(called: nn.Module, _arguments: Any, output: Any) -> None:
            # A deep copy of the model takes the hooks along; it is not the one to watch.
            if called is not module or torch.compiler.is_compiling() or not self._watching:
                return
            for x in _floating_tensors(output):
                if "activations" in self.kinds and not _is_replay():
                    self._count("activations", name, x)
                # A hook on a leaf would stay there, and count again for every later output.
                if "activation_gradients" in self.kinds and x.requires_grad and not x.is_leaf:
                    x.register_hook(self._on_gradient("activation_gradients", name))

        return hook

    def _on_gradient(self, kind: Kind, layer: str) -> Callable[[Tensor], None]:
        """Counts a gradient, without the loss scale."""

        def hook(gradient: Tensor) -> None:
            if self._watching:
                self._count(kind, layer, gradient, divisor=self._current_scale())

        return hook

    def _current_scale(self) -> Scale:
        if not callable(self.loss_scale):
            return 1.0 if self.loss_scale is None else self.loss_scale
        scale: Scale = self.loss_scale()
        _check_scale(scale)
        return scale

    def _before_step(self) -> None:
        if self._watching:
            self._count_weights()
            if "updates" in self.kinds:
                self._before = {n: p.detach().clone() for n, p in self._updated().items()}

    def _after_step(self) -> None:
        for name, parameter in self._updated().items() if self._before else ():
            after, before = parameter.detach(), self._before[name]
            if after.element_size() < 4:
                after, before = after.float(), before.float()
            self._count("updates", name, after - before)
        self._before = {}
        self.steps += 1

    def _updated(self) -> dict[str, Tensor]:
        """The parameters that the optimizer is about to change, or has."""
        assert self.optimizer is not None  # only its hooks call this
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        return {name: p for name, p in self._parameters.items() if id(p) in held}

    # --- Reading ------------------------------------------------------------------------------

    def layers(self, kind: Kind) -> list[str]:
        """The layers with numbers of this kind, in the model's order.

        Modules by name for the first two kinds, ``"(model)"`` for the model itself; parameters by
        name for the others.

        Raises:
            ValueError: a kind that is not watched.
        """
        if kind not in self.kinds:
            raise ValueError(f"kind={kind!r}: expected one that is watched: {listed(self.kinds)}")
        names: Iterable[str] = self._modules if kind in _OF_MODULES else self._parameters
        return [name for name in names if (kind, name) in self._counters]

    def histogram(self, kind: Kind, layer: str | None = None) -> Histogram:
        """All numbers of one kind, of all layers together or of one.

        Raises:
            ValueError: a kind or a layer that is not watched.
            RuntimeError: nothing of the kind has been seen yet.
        """
        layers = self.layers(kind)
        if not layers:
            raise self._nothing(words(kind))
        if layer is not None and layer not in layers:
            close = difflib.get_close_matches(layer, layers, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"expected one of {listed(layers)}"
            raise ValueError(f"layer={layer!r}: has no {words(kind)}; {hint}")
        counters = [self._counters[kind, name] for name in (layers if layer is None else [layer])]
        return sum((Histogram(*counter.counts()) for counter in counters), Histogram())

    def _nothing(self, what: str) -> RuntimeError:
        return RuntimeError(
            f"probe: has seen no {what} in {self.watched_steps} watched steps; train inside its "
            "context, with this very model, and not compiled"
        )

    def _shown(self, kinds: Sequence[Kind] | None) -> list[Kind]:
        """The kinds among these, or among all that are watched, of which something was seen."""
        shown = [
            k for k in (self.kinds if kinds is None else _checked_kinds(kinds)) if self.layers(k)
        ]
        if not shown:
            raise self._nothing("numbers")
        return shown

    def _histograms(self, kinds: Iterable[Kind]) -> dict[tuple[str, str], Histogram]:
        """What was seen of some kinds, layer by layer."""
        return {
            (kind, layer): self.histogram(kind, layer)
            for kind in kinds
            for layer in self.layers(kind)
        }

    def table(
        self,
        format: str | torch.dtype | FloatFormat,
        *,
        by: Literal["kind", "layer"] = "kind",
        kinds: Sequence[Kind] | None = None,
    ) -> Table:
        """What the format would make of the numbers: the `Fates` in percent, a row for each.

        Args:
            format: name, dtype or `FloatFormat`.
            by: a row for each kind, or for each layer of each kind.
            kinds: some of those that are watched; all of them when not given.

        Raises:
            ValueError: another ``by``, or a kind that is not watched.
            RuntimeError: nothing has been seen yet.
        """
        if by not in ("kind", "layer"):
            raise ValueError(f'by={by!r}: expected "kind" or "layer"')
        format = as_format(format)
        rows = []
        for kind in self._shown(kinds):
            for layer in self.layers(kind) if by == "layer" else (None,):
                histogram = self.histogram(kind, layer)
                names = [words(kind), *([] if layer is None else [layer])]
                rows.append([*names, histogram.total, *histogram.fates(format).percent()])
        header = ["", *(["layer"] if by == "layer" else []), "values", *Fates.__dataclass_fields__]
        caption = f"In {format.name}, percent of the values in {self.watched_steps} watched steps"
        return Table(header, rows, caption=caption)

    def needs_loss_scaling(
        self, format: str | torch.dtype | FloatFormat, *, lost: float = 0.1
    ) -> ScalingVerdict:
        """Whether gradients of this format need a loss scale, and which one would do.

        The layer that is worst off decides: see `mpbook.watch.scaling_verdict.judge`.  Where
        activations are watched and overflow the format, the verdict says that no loss scale helps.

        Args:
            format: what gradients and activations would be computed in.
            lost: the share of a layer's sum of ``|gradient|`` that may underflow.

        Raises:
            ValueError: no kind of gradients is watched, or ``lost`` is no share below 1.
            RuntimeError: no gradient that is finite and not zero has been seen yet.
        """
        format = as_format(format)
        kinds: list[Kind] = [kind for kind in self.kinds if kind.endswith("gradients")]
        if not kinds:
            raise ValueError(f"kinds: no gradients are watched, only {listed(self.kinds)}")
        gradients = self._histograms(kinds)
        if not any(histogram.nonzero for histogram in gradients.values()):
            raise self._nothing("gradients but zeros")
        activations = self._histograms([k for k in self.kinds if k == "activations"])
        return judge(
            gradients,
            format,
            lost=lost,
            overflowing=[
                layer for (_, layer), seen in activations.items() if seen.fates(format).overflows
            ],
            flushed=self._flushed(format, kinds),
        )

    def _flushed(self, format: FloatFormat, kinds: Iterable[Kind]) -> list[str]:
        """Dtypes of unscaled gradients in which what underflows in the format has done so."""
        if self.loss_scale is not None:
            return []
        dtypes = {dtype for kind in kinds for dtype in self._dtypes.get(kind, ())}
        names = {str(dtype).removeprefix("torch.") for dtype in dtypes if dtype.itemsize < 4}
        seen = [FORMATS[name] for name in names if name in FORMATS]
        return sorted(f.name for f in seen if _smallest(f) >= _smallest(format))

    def plot(
        self, format: str | torch.dtype | FloatFormat, *, kinds: Sequence[Kind] | None = None
    ) -> Figure:
        """Shares by binade, a panel for each kind, with the format's regions behind them.

        A figure to `plots.show`.

        Raises:
            ValueError: a kind that is not watched.
            RuntimeError: nothing has been seen yet.
        """
        return plot({words(kind): self.histogram(kind) for kind in self._shown(kinds)}, format)


# --- Checks and small helpers -----------------------------------------------------------------


def _checked_kinds(kinds: Sequence[Kind]) -> tuple[Kind, ...]:
    """The kinds in their usual order, each once."""
    unknown = [kind for kind in ([kinds] if isinstance(kinds, str) else kinds) if kind not in KINDS]
    if isinstance(kinds, str) or unknown or not kinds:
        raise ValueError(f"kinds={kinds!r}: expected a list, of {listed(KINDS)}")
    return tuple(kind for kind in KINDS if kind in kinds)


def _check_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer is a {type(optimizer).__name__}: expected a torch.optim.Optimizer over the "
            "model's parameters"
        )
    own = {id(parameter) for parameter in model.parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) not in own:
                raise ValueError(
                    f"optimizer: holds a parameter of shape {tuple(parameter.shape)} that is not "
                    "the model's; expected one built from model.parameters() of this very model"
                )


def _check_scale(scale: Scale) -> None:
    """Refuse a number that is no loss scale; a tensor is not waited for."""
    valid = not isinstance(scale, bool) and isinstance(scale, int | float)
    if isinstance(scale, Tensor) or (valid and 2.0**-126 <= scale <= 2.0**127):
        return
    raise ValueError(f"loss_scale={scale!r}: expected a number from 2**-126 to 2**127")


def _chosen_modules(
    model: nn.Module, chosen: Callable[[str, nn.Module], bool] | None
) -> dict[str, nn.Module]:
    """The modules whose outputs to watch, by name, each once."""
    named = {name or "(model)": module for name, module in model.named_modules()}
    if chosen is None:
        return {name: module for name, module in named.items() if not list(module.children())}
    found = {name: module for name, module in named.items() if chosen(name, module)}
    if not found:
        raise ValueError("modules: chooses none of the model's modules")
    return found


def _floating_tensors(output: Any) -> Iterator[Tensor]:
    """Every real floating-point tensor in a nest of tuples, lists and dicts."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _floating_tensors(value)
    elif isinstance(output, tuple | list):
        for value in output:
            yield from _floating_tensors(value)


def _smallest(format: FloatFormat) -> int:
    """log2 of the smallest positive number."""
    return format.lowest_binade - format.mantissa_bits


def _is_replay() -> bool:
    """Whether a module runs inside a backward pass, as checkpointing makes it."""
    return bool(torch._C._current_graph_task_id() != -1)
