"""`TinyAutocast`: the whole of `torch.autocast` on one screen, to read rather than to use.

Torch's own autocast is a layer of its dispatcher: before an operator runs, its name is looked up in
two lists, its operands are cast, and the operator is called again.  Nothing of the model changes,
and nothing is decided by values, only by names and dtypes.  A `TorchFunctionMode` can do the same
in Python, because it too sees each call before it happens:

* an operator in `LOWER_PRECISION` gets its floating operands in float16 or bfloat16;
* one in `FLOAT32` gets them in float32;
* every other one runs on what it is given.

The 16-bit copy of a parameter is kept until the region ends.  That is the *weight cache*, and it is
one node of the graph: all uses of the weight share the copy, and add their gradients up in it.

The backward pass needs no rule of its own.  Autograd recorded the casts, and the gradient of a cast
is the cast back, so each operator's backward runs in the dtype of its forward.

The lists here are a CPU's, cut down to what the models of this book call; `mpbook.autocast.policy`
measures the full ones, CUDA's too.  Taught in the chapter "Autocast".
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

LOWER_PRECISION: frozenset[Any] = frozenset(
    {
        functional.linear,
        functional.conv2d,
        functional.scaled_dot_product_attention,
        torch.matmul,
        torch.Tensor.matmul,
        torch.bmm,
    }
)
"""Products of matrices: what tensor cores speed up."""

FLOAT32: frozenset[Any] = frozenset({functional.cross_entropy, functional.mse_loss})
"""Losses, as a CPU has them.  CUDA's list has many more (exponentials, norms, softmax, sums), and
``cross_entropy`` is not among them: there it takes the logarithms of 16-bit logits in 16 bits.
``mse_loss`` is on both."""


class TinyAutocast(TorchFunctionMode):
    """Inside this region, casts the operands of products down and those of losses up.

    Args:
        dtype: float16 or bfloat16.

    Raises:
        ValueError: another dtype.
    """

    def __init__(self, dtype: torch.dtype):
        if dtype not in (torch.float16, torch.bfloat16):
            raise ValueError(f"dtype={dtype}: expected torch.float16 or torch.bfloat16")
        super().__init__()
        self.dtype = dtype
        self.copies: dict[Tensor, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look the function up, cast its operands, and call it."""
        kwargs = kwargs or {}
        if func in LOWER_PRECISION:
            dtype = self.dtype
        elif func in FLOAT32:
            dtype = torch.float32
        else:
            return func(*args, **kwargs)
        args, kwargs = tree_map(partial(self.cast, dtype), (args, kwargs))
        return func(*args, **kwargs)

    def cast(self, dtype: torch.dtype, value: Any) -> Any:
        """A floating tensor in another dtype, a parameter through the cache."""
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        if value.dtype in (dtype, torch.float64):  # doubles stay as they are
            return value
        is_parameter = value.is_leaf and value.requires_grad
        if not is_parameter or dtype == torch.float32:  # keep narrow ones
            return value.to(dtype)
        if value not in self.copies:
            self.copies[value] = value.to(dtype)
        return self.copies[value]

    def __exit__(self, *exception: Any) -> None:
        self.copies.clear()
        super().__exit__(*exception)
