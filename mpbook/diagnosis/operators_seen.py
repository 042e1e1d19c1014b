"""Every operator of a step, below autocast and autograd: where it stands and how large its result.

One dispatch mode over forward, loss, backward and update sees what hooks on modules do not:
attention scores before their scale, the sums inside a loss, norms written by hand, the casts of
inputs and weights.  Each result is known by its *place*:

* in the forward pass, the module that is running and the innermost line outside of torch;
* in the backward pass, the place where the node of the graph was made: nodes are numbered in the
  order of creation, and each operator that makes some notes how far the numbers have come.

What a checkpoint computes again in the backward pass was noted in the forward pass.

Of each result it keeps the dtype, the largest magnitude, and whether it is the first that is not
finite; of gradients in 16 bits a histogram too, for the loss scale.
"""

from __future__ import annotations

import math
import sys
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from mpbook.cost.flops import torchs_counter
from mpbook.diagnosis.float32_parts import widened
from mpbook.diagnosis.places import (
    LOSS,
    MASKED_FROM,
    MODEL,
    OPTIMIZER,
    OVERFLOWS,
    PASS_ON,
    Key,
    Phase,
    Place,
    Seen,
    is_a_mask,
    is_theirs,
    line_of_the_caller,
)
from mpbook.diagnosis.same_draws import run_drawing_float32
from mpbook.master_weights import SIXTEEN_BIT
from mpbook.watch.histograms import log2_histogram


@dataclass(frozen=True)
class Choice:
    """Indices that an operator chose: of a top-k, an argmax or a sort."""

    key: Key
    indices: Tensor


class Recorder(TorchDispatchMode):
    """Notes every operator that runs inside, by the place of its call.

    Args:
        model: whose modules are named.
        histograms: whether to count the gradients that are in 16 bits.
        loss_scale: by which gradients are multiplied; histograms are of the unscaled ones.
        most: operators that may run.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        histograms: bool = False,
        loss_scale: float = 1.0,
        most: float = math.inf,
    ) -> None:
        super().__init__()
        self.most, self.operators = most, 0
        self.model, self.histograms, self.loss_scale = model, histograms, loss_scale
        self.phase: Phase = "forward"
        self.of_second_order = False
        self.step = 0
        self.last_module = MODEL
        self._writes, self._written_finite = False, True
        self.seen: dict[Key, Seen] = {}
        self.choices: list[Choice] = []
        self.unseen: Counter[str] = Counter()
        self.called: set[str] = set()
        self.rounded: dict[Place, tuple[str, float]] = {}
        self.work: list[tuple[torch.dtype, int, int]] = []
        self.watch_writes: Callable[[Any, Any, Any, Callable[[], Any]], Any] | None = None
        self._running: list[str] = []
        self._numbers: list[int] = []
        self._places: list[Place] = []
        self._nth: Counter[tuple[Any, ...]] = Counter()

    # --- Which module is running ------------------------------------------------------------

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Note when each module begins and ends."""
        handles: list[Any] = []
        for name, module in self.model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):  # it takes no hooks
                self.unseen[f"TorchScript in {name or MODEL}: its modules and lines"] += 1
                continue
            before = partial(self._before, name or MODEL)
            handles.append(module.register_forward_pre_hook(before, prepend=True))
            handles.append(module.register_forward_hook(self._after, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, name: str, _module: nn.Module, _args: Any) -> None:
        self.called.add(name)
        self._running.append(name)
        self.last_module = name

    def _after(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        if self._running:
            self._running.pop()
        if sys.exc_info()[0] is None:
            self.last_module = self._running[-1] if self._running else LOSS

    def begin(self, step: int) -> None:
        """A new step: operators are counted from the first again."""
        self.step, self.phase = step, "forward"
        self._nth.clear()
        self._numbers.clear()
        self._places.clear()
        self._running.clear()

    @contextmanager
    def backward(self, *, second_order: bool) -> Iterator[None]:
        """A backward pass from a loss; one of second order makes a graph of the gradients."""
        before, self.phase, self.of_second_order = self.phase, "backward", second_order
        try:
            yield
        finally:
            self.phase = before

    def _place(self) -> Place:
        if self.phase == "update":
            return Place(OPTIMIZER)
        node = torch._C._current_autograd_node()
        at = len(self._places) if node is None else bisect_right(self._numbers, node._sequence_nr())
        place = self._places[at] if at < len(self._places) else Place(LOSS)
        if node is None or self._is_again():
            module = self._running[-1] if self._running else place.module
            place = Place(module, *line_of_the_caller())
        if node is None or torch.is_grad_enabled():
            self._numbers.append(torch._C._autograd._get_sequence_nr())
            self._places.append(place)
        return place

    def _phase(self) -> Phase:
        if self.phase == "update" or torch._C._current_autograd_node() is None:
            return "update" if self.phase == "update" else "forward"
        return "inner" if self.phase == "forward" and torch.is_grad_enabled() else "backward"

    def _is_again(self) -> bool:
        """Whether a checkpoint computes again what it did not save."""
        return self.phase == "backward" and not self.of_second_order and torch.is_grad_enabled()

    def place_of(self, error: BaseException) -> Place:
        """Where an error was raised: the innermost line that is neither torch's nor ours."""
        frames = []
        trace = error.__traceback__
        while trace is not None:
            frames.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
            trace = trace.tb_next
        theirs = [frame for frame in frames if is_theirs(frame[0])]
        return Place(self.last_module, *(theirs[-1] if theirs else ()))

    # --- What an operator put out -----------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run one operator of torch."""
        kwargs = kwargs or {}
        self.operators += 1
        if self.operators > self.most:
            raise RuntimeError(_TOO_MANY)
        self._writes = func._schema.is_mutable
        self._written_finite = not self._writes or _all_finite(written(func, args, kwargs))
        run = partial(_run, func, args, kwargs)
        result = self.watch_writes(func, args, kwargs, run) if self.watch_writes else run()
        space, _, name = func._schema.name.partition("::")
        if space not in ("aten", "prims", "profiler"):
            self.unseen[f"custom operator {space}::{name}"] += 1
        if not func.is_view and name not in _NO_NUMBERS:
            self._note(name, args, kwargs, result)
            self._note_work(func, args, kwargs, result)
        return result

    def _note(self, name: str, args: Any, kwargs: Any, result: Any) -> None:
        phase, place = self._phase(), self._place()
        if self._is_again():
            return
        results = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        chose = name in _CHOOSES and results and not results[-1].is_floating_point()
        if chose and self.step == 0:  # a maximum of all has a value alone
            indices = results[-1].detach().cpu()
            self.choices.append(Choice(self._key(phase, place, f"{name} (indices)"), indices))
        for tensor in results:
            if not _has_numbers(tensor):
                continue
            if not tensor.is_floating_point() or tensor.layout != torch.strided:
                self._note_unseen(tensor, place)
            elif tensor.numel():
                self._count(self._key(phase, place, name), tensor, args, kwargs)
                if phase == "forward" and tensor.dtype in SIXTEEN_BIT and not self.step:
                    self._note_integers(name, place, tensor, args)

    def _note_work(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """What a roofline needs: operations of products, and bytes read and written."""
        if self.step or self.phase == "update":
            return
        operands, results = _floats((args, kwargs)), _floats(result)
        if not operands or not results:
            return
        count = torchs_counter().flop_registry.get(func._overloadpacket)
        flops = count(*args, **kwargs, out_val=result) if count else 0
        moved = sum(t.numel() * t.element_size() for t in (*operands, *results))
        self.work.append((operands[0].dtype, int(flops), moved))

    def _note_integers(self, name: str, place: Place, tensor: Tensor, args: Any) -> None:
        """Whole numbers that 16 bits cannot tell apart: positions, times, indices."""
        share = 0.0
        if name == "arange":
            share = 1 - len(tensor.unique()) / tensor.numel()
        elif name == "_to_copy" and isinstance(args[0], Tensor):
            source = args[0].detach()
            if not source.is_floating_point() or bool((source == source.round()).all()):
                share = float((tensor.double() != source.double()).float().mean())
        if share:
            self.rounded[place] = name, share

    def _note_unseen(self, tensor: Tensor, place: Place) -> None:
        if tensor.layout != torch.strided:
            self.unseen[f"{str(tensor.layout).removeprefix('torch.')} tensors in {place}"] += 1
        elif tensor.is_complex():
            self.unseen[f"complex numbers in {place}"] += 1

    def _key(self, phase: Phase, place: Place, name: str) -> Key:
        found = phase, place, name
        self._nth[found] += 1
        return Key(*found, self._nth[found])

    def _count(self, key: Key, tensor: Tensor, args: Any, kwargs: Any) -> None:
        value = tensor.detach()
        low, high = (x.item() for x in torch.aminmax(value))
        seen = self.seen.get(key)
        if seen is None:
            seen = Seen(key, value.dtype, len(self.seen), tuple(value.shape), step=self.step)
            self.seen[key] = seen
            if key.phase == "inner":
                module = self._running[-1] if self._running else LOSS
                seen.caller = Place(module, *line_of_the_caller())
        largest = max(abs(low), abs(high))
        seen.highest = max(seen.highest, high if math.isfinite(high) else math.inf)
        if seen.operator in PASS_ON and not low > -MASKED_FROM:
            others = self._but_for_its_own(value, tree_leaves((args, kwargs)))
            seen.of_a_mask = seen.of_a_mask or any(map(is_a_mask, others))
        if not math.isfinite(largest):
            self._note_nonfinite(seen, value, (args, kwargs))
            largest = _largest_finite(value)
        if key.phase == "backward":
            largest /= self.loss_scale
            self._count_gradient(seen, value, args)
        if largest > seen.largest:
            if seen.largest < OVERFLOWS <= largest:
                seen.overflows_at = self.step
            seen.largest = largest
            seen.step = seen.step if seen.nonfinite else self.step

    def _note_nonfinite(self, seen: Seen, value: Tensor, operands: Any) -> None:
        if not seen.nonfinite:
            seen.nonfinite, seen.step = True, self.step
        if value.isnan().any():
            seen.signs.add("nan")
        if (value == math.inf).any():
            seen.signs.add("+")
        if (value == -math.inf).any():
            seen.signs.add("-")
        others = self._but_for_its_own(value, _floats(operands))
        if not seen.began_nan and "nan" in seen.signs:
            seen.began_nan = not any(bool(t.isnan().any()) for t in others)
        if not seen.began and self._written_finite and _all_finite(others):
            seen.began = True
            seen.cause = _cause(seen.operator, operands)

    def _but_for_its_own(self, result: Tensor, operands: list[Any]) -> list[Any]:
        """Operands without the result, which is among those of an operator in place."""
        if not self._writes:
            return operands
        own = result.data_ptr()
        return [t for t in operands if not isinstance(t, Tensor) or t.data_ptr() != own]

    def _count_gradient(self, seen: Seen, value: Tensor, args: Any) -> None:
        if not self.histograms or value.dtype not in SIXTEEN_BIT or self.step:
            return
        seen.cancelled = seen.cancelled or _is_cancelled(value, args)
        counted = log2_histogram(value.float())
        seen.histogram = counted if seen.histogram is None else seen.histogram + counted


_NO_NUMBERS = frozenset(
    "empty empty_like empty_strided new_empty new_empty_strided resize_ detach clone alias "
    "lift_fresh _unsafe_view _reshape_alias _local_scalar_dense set_".split()
)
_TOO_MANY = (
    "many times as many operators as in float32: an adaptive solver, or a loop, waits for a "
    "precision that 16 bits do not have"
)
_CHOOSES = frozenset("topk argmax argmin max min sort kthvalue".split())


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    """The operator; where a CPU alone lacks it in 16 bits, as a GPU would compute it."""
    try:
        return run_drawing_float32(func, args, kwargs)
    except (RuntimeError, NotImplementedError) as error:
        lacks = ("not implemented for 'Half'", "not implemented for 'BFloat16'")
        if not any(words in str(error) for words in lacks) or _is_algebra(func):
            raise
    narrow = next(t.dtype for t in tree_leaves((args, kwargs)) if _is_narrow(t))
    wide_args, wide_kwargs = tree_map(widened, (args, kwargs))
    result = func(*wide_args, **wide_kwargs)
    return tree_map(lambda t: t.to(narrow) if _is_float32(t) else t, result)


def _is_algebra(func: Any) -> bool:
    """Decompositions have no 16-bit kernels on a GPU either."""
    name = func._schema.name
    return "linalg" in name or any(word in name for word in ("cholesky", "lu", "qr", "svd", "inv"))


def _is_narrow(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in SIXTEEN_BIT


def _is_float32(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float32


def _has_numbers(tensor: Tensor) -> bool:
    """Derivatives in forward mode have zeros without storage, and shapes worked out beside."""
    return not tensor.is_meta and not tensor._is_zerotensor()


def _floats(nest: Any) -> list[Tensor]:
    leaves = [t for t in tree_leaves(nest) if isinstance(t, Tensor) and t.is_floating_point()]
    plain = (t for t in leaves if t.layout == torch.strided and _has_numbers(t))
    return [t.detach() for t in plain if t.numel()]


def written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors that an operator writes to."""
    found = []
    for number, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[number] if number < len(args) else kwargs.get(argument.name)
            found += [t for t in tree_leaves(value) if isinstance(t, Tensor)]
    return found


def _all_finite(nest: Any) -> bool:
    return all(bool(t.isfinite().all()) for t in _floats(nest))


def _largest_finite(value: Tensor) -> float:
    finite = torch.where(value.isfinite(), value, torch.zeros_like(value)).abs()
    return float(finite.max())


def _is_cancelled(result: Tensor, args: Any) -> bool:
    """Whether a sum is nothing but the rounding of its terms: below their eps, added at random."""
    floats = _floats(args)
    if not floats or result.numel() * 2 > floats[0].numel():
        return False
    terms = floats[0].float()
    noise = terms.norm() * torch.finfo(floats[0].dtype).eps
    return bool(result.float().norm() <= 2 * noise)


def _cause(operator: str, operands: Any) -> str:
    """Why finite operands give a result that is not finite."""
    floats = _floats(operands)
    if operator in ("div", "div_", "reciprocal") and floats and bool((floats[-1] == 0).any()):
        return "its divisor is 0"
    if operator in ("log", "rsqrt", "log2", "log10") and floats and bool((floats[0] == 0).any()):
        return "its operand is 0"
    if operator in ("_to_copy", "copy_"):
        return "the cast overflows"
    return ""
