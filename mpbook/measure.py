"""What a training step holds in memory, by category, and how long steps take.

A CPU's allocator keeps no count, and a GPU's counts everything together.  So the categories are
counted from the tensors themselves, each storage once, the same way on every device.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Memory:
    """Bytes that one training step holds, by what they are for.

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
