"""What a training step holds in memory, how long steps take, and how many operations they are.

A CPU's allocator keeps no count, and a GPU's counts everything together.  So the categories are
counted from the tensors themselves, each storage once, the same way on every device.

A GPU works while Python runs ahead.  So time there is taken between two events in the GPU's own
queue, after calls that warm up, over several sets of inputs (one set would stay in the cache), and
every reading is kept: a median without its spread says nothing.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mpbook import nests
from mpbook.cost.flops import Uncounted, formulas, torchs_counter


@dataclass(frozen=True)
class Memory:
    """Bytes that one training step holds, by what they are for.

    ``master_copies`` is what is kept of the weights beside them: float32 master weights, or Kahan's
    16-bit compensation.  ``gradients`` are those of the backward pass; the float32 copies that an
    update in float32 makes of them, and of weights whose copies are not kept, come and go with it.
    ``saved_for_backward`` is what autograd keeps between the forward and the backward pass:
    activations, and the 16-bit casts of weights that autocast makes.
    """

    parameters: int = 0
    master_copies: int = 0
    gradients: int = 0
    optimizer_state: int = 0
    saved_for_backward: int = 0

    @property
    def total(self) -> int:
        """The sum of all categories, in bytes."""
        return sum(asdict(self).values())


def parts_of(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors with storage that one is made of: indices and values, if it is sparse.

    Nothing for one without any, as on the ``meta`` device or oneDNN's own layout.

    >>> [part.nbytes for part in parts_of(torch.eye(3).to_sparse())]
    [48, 12]
    """
    if tensor.layout is torch.strided:
        if hasattr(tensor, "__tensor_flatten__"):
            for inner in (getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]):
                if isinstance(inner, Tensor):  # a DTensor names its mesh too
                    yield from parts_of(inner)
        else:
            yield tensor
    elif tensor.layout is torch.sparse_coo:
        yield from (tensor._indices(), tensor._values())
    elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        yield from (tensor.crow_indices(), tensor.col_indices(), tensor.values())
    elif tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        yield from (tensor.ccol_indices(), tensor.row_indices(), tensor.values())
    elif tensor.layout is torch.jagged:
        nested: Any = tensor
        yield from (nested.values(), nested.offsets())


def count_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind the tensors, each counted once; of sparse ones, their parts'.

    These are bytes of this process: of a tensor that ranks share, its own part's.
    """
    parts = (part.untyped_storage() for tensor in tensors for part in parts_of(tensor))
    storages = {storage.data_ptr(): storage.nbytes() for storage in parts}
    storages.pop(0, None)  # a tensor without elements has no storage of its own
    return sum(storages.values())


state_tensors = nests.tensors
"""Every tensor of an optimizer's state, or of any other nest."""


@contextmanager
def saved_for_backward(model: nn.Module) -> Iterator[Callable[[], int]]:
    """Count what autograd saves inside this context, apart from the model's own weights.

    Yields:
        A function that says how many bytes have been saved so far.  Under `fully_shard` the
        weights that a rank puts together for a while are part of them.
    """
    held = (part for p in (*model.parameters(), *model.buffers()) for part in parts_of(p))
    own = {part.untyped_storage().data_ptr() for part in held}
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        for part in parts_of(tensor):
            storage = part.untyped_storage()
            if storage.data_ptr() not in own:
                saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield lambda: sum(saved.values())


class Stopwatch:
    """Seconds of work on a device, which is waited for at both ends."""

    def __init__(self, device: torch.device):
        self.device, self.seconds, self._since = device, 0.0, 0.0

    def start(self) -> None:
        """Start, or go on."""
        self._wait()
        self._since = time.perf_counter()

    def stop(self) -> float:
        """Stop, and return the seconds so far."""
        self._wait()
        self.seconds += time.perf_counter() - self._since
        return self.seconds

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True)
class Spread:
    """Repeated readings of one quantity, as a median with the smallest and the largest."""

    readings: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle reading."""
        return statistics.median(self.readings)

    @property
    def low(self) -> float:
        """The smallest reading."""
        return min(self.readings)

    @property
    def high(self) -> float:
        """The largest reading."""
        return max(self.readings)

    @property
    def is_wide(self) -> bool:
        """Whether the middle half of the readings spans more than a tenth of the median.

        Then something else was at work too: another process, or a device that throttles.
        """
        if len(self.readings) < 2:
            return False
        lower, _, upper = statistics.quantiles(self.readings, n=4, method="inclusive")
        return upper - lower > 0.1 * abs(self.median)


def interleave(work: Mapping[str, Callable[[], float]], *, rounds: int) -> dict[str, Spread]:
    """Take readings in turn, so that whatever slows the machine down slows all of them.

    Args:
        work: by name, a function that does the work once and returns its reading.
        rounds: how often each is called, after one round that is not kept.

    Raises:
        ValueError: fewer than one round, or no work.
    """
    if rounds < 1 or not work:
        raise ValueError(f"rounds={rounds} of {len(work)} kinds of work: expected at least 1 of 1")
    readings: dict[str, list[float]] = {name: [] for name in work}
    for kept in range(rounds + 1):
        for name, function in work.items():
            reading = function()
            if kept:
                readings[name].append(reading)
    return {name: Spread(tuple(values)) for name, values in readings.items()}


def ratios(readings: Mapping[str, Spread], *, to: str) -> dict[str, Spread]:
    """Each reading divided by the one of ``to`` in the same round."""
    base = readings[to].readings
    return {
        name: Spread(tuple(a / b for a, b in zip(spread.readings, base, strict=True)))
        for name, spread in readings.items()
    }


def time_calls(
    function: Callable[..., Any],
    inputs: Sequence[tuple[Any, ...]],
    *,
    device: torch.device,
    readings: int = 10,
    calls: int = 1,
    warm_up: int = 3,
) -> Spread:
    """Seconds of ``function(*inputs[i])``, with the sets of inputs taken in turn.

    Args:
        function: what to time; on CUDA it may return before the work is done.
        inputs: sets of arguments, more of them together than the caches hold.
        device: whose clock to read: events in its queue on CUDA, the wall clock on a CPU.
        readings: how many to keep.
        calls: in one reading, which is their mean; more for what is shorter than a clock's tick.
        warm_up: calls before the first reading, not kept.

    Raises:
        ValueError: no inputs, or a count below 1 (``warm_up``: below 0).
    """
    if not inputs or readings < 1 or calls < 1 or warm_up < 0:
        raise ValueError(
            f"{len(inputs)} inputs, readings={readings}, calls={calls}, warm_up={warm_up}: "
            "expected at least 1 of each, and warm_up at least 0"
        )
    turn = 0

    def work(times: int) -> None:
        nonlocal turn
        for _ in range(times):
            function(*inputs[turn % len(inputs)])
            turn += 1

    work(warm_up)
    clock = _gpu_seconds if device.type == "cuda" else _cpu_seconds
    return Spread(tuple(clock(work, calls, device) / calls for _ in range(readings)))


def _cpu_seconds(work: Callable[[int], None], calls: int, device: torch.device) -> float:
    since = time.perf_counter()
    work(calls)
    return time.perf_counter() - since


def _gpu_seconds(work: Callable[[int], None], calls: int, device: torch.device) -> float:
    with torch.cuda.device(device):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        first.record()
        work(calls)
        last.record()
        torch.cuda.synchronize()
    return float(first.elapsed_time(last)) / 1000


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Callable[[], int | None]]:
    """The most bytes that tensors held on the device inside this context, all of them counted.

    Yields:
        A function that says how many so far; None on a CPU, whose allocator keeps no count.
    """
    if device.type != "cuda":
        yield lambda: None
        return
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    yield lambda: torch.cuda.max_memory_allocated(device)


def count_flops(function: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products, convolutions and attention in a call.

    Forward and backward: a multiplication and an addition count as two, everything elementwise as
    none, and causal attention as if it were full.  `torch.utils.flop_counter.FlopCounterMode`
    counts, with the formulas of `mpbook.cost.flops` beside its own: recurrent layers, bilinear
    ones, and the fused attention of a CPU.

    Warns:
        UserWarning: a custom kernel, or an operator that multiplies and has no formula.

    >>> layer, x = nn.Bilinear(2, 3, 4), torch.ones(5, 2)
    >>> count_flops(lambda: layer(x, torch.ones(5, 3)))
    240
    """
    counter = torchs_counter().FlopCounterMode(display=False, custom_mapping=formulas())
    uncounted = Uncounted(set(counter.flop_registry))
    with counter, uncounted:
        function()
    if uncounted.names:
        warnings.warn(
            f"count_flops: no formula for {', '.join(sorted(uncounted.names))}, whose operations "
            "count as 0",
            stacklevel=2,
        )
    return int(counter.get_total_flops())


def utilisation(flops: float, seconds: float, peak: float) -> float:
    """Model FLOPs utilisation, MFU: the share of a peak rate that the model's operations make.

    Args:
        flops: operations of the model's own formula, recomputation not counted.
        seconds: that they took.
        peak: operations a second; say which peak, the stated one or one measured beside it.

    Raises:
        ValueError: anything that is not positive.
    """
    if not (flops > 0 and seconds > 0 and peak > 0):
        raise ValueError(f"flops={flops}, seconds={seconds}, peak={peak}: expected positive ones")
    return flops / seconds / peak
