"""How many bytes of tensors are alive, operation by operation: a step's memory over time.

A CUDA allocator reports its peak and not the moment of it; a CPU's reports nothing.  `LiveMemory`
stands between PyTorch and its operators, notes each new storage that one returns, and is told when
it dies.  It sees what operators return; a workspace inside of one stays unseen.

Taught in the chapter "Memory".
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mpbook.cost.measure import parts_of


class LiveMemory(TorchDispatchMode):
    """Count the bytes of tensors made inside this context and still alive.

    Attributes:
        timeline: bytes alive after each operation.
        operations: the name of each, such as ``aten.addmm.default``.

    >>> import torch
    >>> with LiveMemory() as live:
    ...     x = torch.ones(256)
    ...     y = x + x
    ...     del x
    ...     z = y.view(16, 16).neg()
    >>> live.timeline
    [1024, 2048, 1024, 2048]
    """

    def __init__(self) -> None:
        super().__init__()
        self.timeline: list[int] = []
        self.operations: list[str] = []
        self._bytes = 0
        self._known: set[int] = set()

    @property
    def alive(self) -> int:
        """The bytes alive now."""
        return self._bytes

    @property
    def peak(self) -> int:
        """The most bytes alive at once."""
        return max(self.timeline, default=0)

    @property
    def peak_operation(self) -> str:
        """The operation after which they were; empty before the first."""
        return self.operations[self.timeline.index(self.peak)] if self.timeline else ""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Any = (),
        kwargs: Any = None,
    ) -> Any:
        """Run the operation, and note what it makes."""
        kwargs = kwargs or {}
        for tensor in _tensors((args, kwargs)):
            self._note(tensor, new=False)
        result = func(*args, **kwargs)
        for tensor in _tensors(result):
            self._note(tensor, new=True)
        self.timeline.append(self._bytes)
        self.operations.append(str(func))
        return result

    def _note(self, tensor: Tensor, *, new: bool) -> None:
        """Follow a storage until it dies; an older one counts nothing."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            self._known.add(key)
            count = storage.nbytes() if new else 0
            self._bytes += count
            weakref.finalize(storage, self._forget, key, count)

    def _forget(self, key: int, count: int) -> None:
        self._known.discard(key)
        self._bytes -= count


def _tensors(nest: Any) -> Iterator[Tensor]:
    """The tensors with storage of a nest; of a sparse one, its indices and values."""
    leaves = (leaf for leaf in tree_leaves(nest) if isinstance(leaf, Tensor))
    return (part for leaf in leaves for part in parts_of(leaf))
