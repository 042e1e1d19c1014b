"""What modules compute inside, and what the loss does: which operators leave a format's range.

A module's output does not show what it computed on the way.  The products of queries and keys
before their scale, the squares of a norm written by hand, a sum inside of a loss may all be beyond
65504 while every output is near 1.  `OperatorsWithin` stands where each operator of the forward
pass arrives, and keeps of each whether it was the *origin*: a result out of range from operands
within it.  Of a product of matrices, which autocast gives 16-bit operands, it keeps as well whether
an operand was out of range.

What only writes a constant, such as ``masked_fill`` with -1e9 or ``torch.finfo(...).min``, is no
origin: a model takes another constant in another dtype.

It sees what torch runs operator by operator; a compiled part shows none, and neither does the
inside of a kernel, such as fused attention.  The weights that an operator took are remembered, so
that what was computed elsewhere can be told from what was not computed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mpbook.formats import FORMATS, FloatFormat
from mpbook.watch.binades import PARTS, borders

LOSS = "(outside of the model)"

PRODUCTS = frozenset(
    "mm addmm bmm baddbmm addbmm mv addmv dot linear convolution _convolution _trilinear "
    "mkldnn_linear mkldnn_convolution mkldnn_rnn_layer _cudnn_rnn _scaled_dot_product_attention "
    "_scaled_dot_product_attention_math _scaled_dot_product_flash_attention "
    "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_efficient_attention "
    "_scaled_dot_product_cudnn_attention".split()
)
"""Operators to which autocast gives 16-bit operands, by name below autocast."""

FLOAT32_ON_CUDA = frozenset(
    "exp expm1 pow rsqrt reciprocal log log2 log10 log1p tan cosh sinh sum prod cumsum cumprod "
    "norm linalg_vector_norm dist _cdist_forward softplus mse_loss l1_loss smooth_l1_loss "
    "huber_loss nll_loss_forward binary_cross_entropy".split()
)
"""Operators that CUDA's autocast computes in float32, and a CPU's does not, or not all.

Source: the float32 list of torch's documentation of `torch.autocast`."""

_CONSTANTS = frozenset("masked_fill fill where scatter index_fill constant_pad_nd".split())
_WITH_NUMBERS = frozenset("add sub rsub mul clamp clamp_min".split())
"""Of these a number among the arguments is one more operand, that may be out of range itself."""


@dataclass(frozen=True)
class Exceeding:
    """An operator that leaves a format's range: the largest magnitude, and whose it was.

    ``operand`` says that a product was given it; else it is a result, of operands in range.
    """

    place: str
    operator: str
    operand: bool
    largest: float

    @property
    def float32_on_cuda(self) -> bool:
        """Whether CUDA's autocast computes this operator in float32."""
        return not self.operand and self.operator in FLOAT32_ON_CUDA

    def __str__(self) -> str:
        takes = f"{self.operator} in {self.place}"
        if self.place == LOSS:
            takes = f"{self.operator} outside of the model"
        return f"{'an operand of ' if self.operand else ''}{takes} reaches {self.largest:.3g}"


@functools.cache
def _limits() -> tuple[tuple[str, float], ...]:
    """By format, the smallest magnitude that overflows it, for those that float32 exceeds."""
    found = []
    for name, format in FORMATS.items():
        if format.signed and format.subnormals and format.bits <= 16:
            binade, part = borders(format).overflows
            found.append((name, PARTS[part][0] * 2.0**binade))
    return tuple(found)


class _Beyond:
    """By format, whether results came out of range from operands in it, and operands were out."""

    def __init__(self, device: torch.device):
        count = len(_limits())
        self.origin = torch.zeros(count, dtype=torch.bool, device=device)
        self.operand = torch.zeros(count, dtype=torch.bool, device=device)
        self.largest = torch.zeros(2, device=device)

    def add(self, result: Tensor, operands: Tensor, limits: Tensor) -> None:
        self.origin = self.origin | ((result >= limits) & (operands < limits))
        self.operand = self.operand | (operands >= limits)
        self.largest = torch.maximum(self.largest, torch.stack([result, operands]))


class OperatorsWithin(TorchDispatchMode):
    """Watches the forward passes of a model and of its loss, while it is entered.

    Args:
        model: whose modules operators are attributed to.
        wanted: whether this moment is one to watch.
    """

    def __init__(self, model: nn.Module, wanted: Callable[[], bool]):
        super().__init__()
        self._wanted, self._paused = wanted, False
        self._running: list[str] = []
        self._seen: dict[tuple[str, str, torch.dtype], _Beyond] = {}
        self._weights = {_address(p): n for n, p in model.named_parameters() if _is_plain(p)}
        self.used: set[str] = set()

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Torch's compiler would not compile anything inside of another kind of mode."""
        return True

    @contextmanager
    def paused(self) -> Iterator[None]:
        """See nothing: the counting of others."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def weight_is_at(self, name: str, weight: Tensor) -> None:
        """A sharded weight has been put together, for a while, in other memory than before."""
        self._weights = {at: n for at, n in self._weights.items() if n != name}
        self._weights[_address(weight)] = name

    def enter(self, module: str, *, is_model: bool) -> None:
        """From here on a module is running; nothing else is, if it is the model itself."""
        if is_model:
            self._running.clear()  # what an exception has left there
        self._running.append(module)

    def leave(self) -> None:
        """The module has run."""
        if self._running:
            self._running.pop()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operator, and look at what it took and gave."""
        result = func(*args, **(kwargs or {}))
        if not self._paused and self._is_forward() and self._wanted():
            self._look(func, (args, kwargs), result)
        return result

    def _is_forward(self) -> bool:
        in_backward = torch._C._current_graph_task_id() != -1
        return not in_backward and (bool(self._running) or torch.is_grad_enabled())

    def _look(self, func: Any, arguments: Any, result: Any) -> None:
        leaves = tree_leaves(arguments)
        operands = [t for t in leaves if _is_plain(t)]
        place = self._running[-1] if self._running else LOSS
        if not operands or (place is LOSS and not any(t.requires_grad for t in operands)):
            return
        self.used.update(self._weights.get(_address(t), "") for t in operands)
        name = func._schema.name.rpartition("::")[2].removesuffix("_")
        results = [t for t in tree_leaves(result) if _is_plain(t)]
        if func.is_view or name in _CONSTANTS or not results:
            return
        numbers = [abs(x) for x in leaves if isinstance(x, int | float) and name in _WITH_NUMBERS]
        key = (place, name, results[0].dtype)
        device = results[0].device
        beyond = self._seen.setdefault(key, _Beyond(device))
        largest = torch.stack([_largest(t).to(device) for t in operands])
        constant = max((float(x) for x in numbers if x < float("inf")), default=0.0)
        made = torch.stack([_largest(t) for t in results[:1]]).amax()
        beyond.add(made, largest.amax().clamp(min=min(constant, 3.4e38)), _limits_on(device))

    def exceeding(self, format: FloatFormat) -> list[Exceeding]:
        """What left the range of a format, in the order in which it was first seen.

        Where the run itself computed in 16 bits, what it left in float32 is left out.
        """
        names = [name for name, _ in _limits()]
        if format.name not in names:
            return []
        at, found = names.index(format.name), []
        mixed = any(dtype.itemsize == 2 for *_, dtype in self._seen)
        for (place, operator, dtype), beyond in self._seen.items():
            if mixed and dtype.itemsize > 2:
                continue
            made, taken = beyond.largest.tolist()
            if bool(beyond.origin[at]):
                found.append(Exceeding(place, operator, False, made))
            if operator in PRODUCTS and bool(beyond.operand[at]):
                found.append(Exceeding(place, operator, True, taken))
        return found


def _is_plain(value: object) -> bool:
    """Whether a value is a real tensor with numbers in memory, of a dtype to look at."""
    return (
        type(value) in (Tensor, nn.Parameter)
        and isinstance(value, Tensor)
        and value.layout is torch.strided
        and not value.is_nested
        and value.device.type != "meta"
        and value.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
        and value.numel() > 0
    )


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _largest(tensor: Tensor) -> Tensor:
    """The largest finite magnitude, as a 0-dimensional float32 tensor."""
    return tensor.detach().abs().nan_to_num_(0.0, 0.0, 0.0).amax().float()


@functools.cache
def _limits_on(device: torch.device) -> Tensor:
    return torch.tensor([limit for _, limit in _limits()], device=device)
