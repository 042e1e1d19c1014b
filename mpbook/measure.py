"""What a training step holds in memory, by category, and how long steps take.

A CPU's allocator keeps no count, and a GPU's counts everything together.  So the categories are
counted from the tensors themselves, each storage once, the same way on every device.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn


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


def count_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind the tensors, each counted once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    storages.pop(0, None)  # a tensor without elements has no storage of its own
    return sum(storages.values())


def state_tensors(state: Any) -> Iterator[Tensor]:
    """Every tensor in a nest of dicts, lists and tuples."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from state_tensors(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from state_tensors(value)


@contextmanager
def saved_for_backward(model: nn.Module) -> Iterator[Callable[[], int]]:
    """Count what autograd saves inside this context, apart from the model's own weights.

    Yields:
        A function that says how many bytes have been saved so far.
    """
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
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
