"""The operations of products for which torch's counter has no formula, and those that have none.

`torch.utils.flop_counter` counts what it has a formula for, and passes over the rest in silence: an
LSTM on a CPU, ``nn.Bilinear``, the fused attention of a CPU and products with a vector are 0 to it.
`FORMULAS` adds them, in its convention: a multiplication and an addition count as two.
"""

from __future__ import annotations

import importlib
import logging
import math
import re
from collections.abc import Callable, Sequence
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

Shape = Sequence[int]


@cache
def torchs_counter() -> ModuleType:
    """The module `torch.utils.flop_counter`, imported without a word.

    A build for CUDA that has no Triton, as on Windows, says on stderr that it counts no kernel of
    Triton's.
    """
    logger = logging.getLogger("torch.utils.flop_counter")
    before, logger.disabled = logger.disabled, True
    try:
        return importlib.import_module("torch.utils.flop_counter")
    finally:
        logger.disabled = before


def _mv(matrix: Shape, vector: Shape, **_: Any) -> int:
    return 2 * math.prod(matrix)


def _addmv(_added: Shape, matrix: Shape, vector: Shape, **_: Any) -> int:
    return 2 * math.prod(matrix)


def _dot(a: Shape, b: Shape, **_: Any) -> int:
    return 2 * math.prod(a)


def _addbmm(_added: Shape, a: Shape, b: Shape, *_: Any, **__: Any) -> int:
    return 2 * math.prod(a) * b[-1]


def _trilinear(a: Shape, b: Shape, c: Shape, *new: Any, **_: Any) -> int:
    """Two for each element of the product of all three, before it is summed over.

    ``new`` says which dimensions each of the three has to be given first.
    """
    dims = len(a) + len(new[0])
    sizes = [1] * dims
    for shape, added in zip((a, b, c), new, strict=False):
        own = iter(shape)
        for dim in range(dims):
            if dim not in added:
                sizes[dim] = max(sizes[dim], next(own))
    return 2 * math.prod(sizes)


def _rnn_layer(inputs: Shape, from_input: Shape, from_hidden: Shape, *_: Any, **__: Any) -> int:
    """One layer in one direction: each step multiplies by two matrices."""
    steps = math.prod(inputs[:-1])
    return 2 * steps * (math.prod(from_input) + math.prod(from_hidden))


def _cudnn_rnn(inputs: Shape, weights: Sequence[Shape], *_: Any, **__: Any) -> int:
    steps = math.prod(inputs[:-1])
    return 2 * steps * sum(math.prod(w) for w in weights if len(w) == 2)


def _attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    scores = math.prod(query[:-1]) * key[-2]
    return 2 * scores * (query[-1] + value[-1])


def _attention_backward(
    gradient: Shape, query: Shape, key: Shape, value: Shape, *_: Any, **__: Any
) -> int:
    """As for CUDA's: the scores once more, then two gradients of each product."""
    scores = math.prod(query[:-1]) * key[-2]
    return 2 * scores * (3 * query[-1] + 2 * value[-1])


def _twice(formula: Callable[..., int]) -> Callable[..., int]:
    return lambda *shapes, **options: 2 * formula(*shapes, **options)


_BY_NAME: dict[str, Callable[..., int]] = {
    "mv": _mv,
    "addmv": _addmv,
    "dot": _dot,
    "vdot": _dot,
    "addbmm": _addbmm,
    "_trilinear": _trilinear,
    "mkldnn_rnn_layer": _rnn_layer,
    "mkldnn_rnn_layer_backward": _twice(_rnn_layer),
    "_cudnn_rnn": _cudnn_rnn,
    "_cudnn_rnn_backward": _twice(_cudnn_rnn),
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
}

_PRODUCTS = re.compile(
    r"(^|_)(mm|bmm|matmul|gemm|rnn|lstm|gru|linear|conv\w*|attention|cdist|fft|linalg|cholesky|lu"
    r"|svd|qr|solve|inv\w*|einsum)(_|$)"
)
_ELEMENTWISE = re.compile(r"fused_(lstm|gru)_cell|check_errors|^linalg_(vector_norm|norm|cross)")


def formulas() -> dict[Any, Callable[..., int]]:
    """By operator of this torch, its operations from the shapes of its arguments."""
    found = {getattr(torch.ops.aten, name, None): rule for name, rule in _BY_NAME.items()}
    found.pop(None, None)
    return found


class Uncounted(TorchDispatchMode):
    """Notes the operators that multiply, by their names, or are not torch's, without a formula.

    Args:
        known: operators that have one.
    """

    def __init__(self, known: set[Any]):
        super().__init__()
        self._known = known
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator, and note it."""
        space, _, name = func._schema.name.partition("::")
        if func._overloadpacket not in self._known:
            multiplies = _PRODUCTS.search(name) and not _ELEMENTWISE.search(name)
            if space not in ("aten", "prim", "prims", "profiler") or multiplies:
                self.names.add(f"{space}::{name}")
        return func(*args, **(kwargs or {}))
