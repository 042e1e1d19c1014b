"""What tensor parallelism leaves of a block's activations on one GPU.

The GPUs that share a matrix each compute some of its heads or of the MLP's numbers; what lies
between such a pair of matrices is cut, and the residual stream with its norms is whole on each.
The logits and their loss are cut by the vocabulary.

Sources: Shoeybi et al. 2019, section 3; Korthikanti et al. 2022, equation 2, for the activations.

Taught in the chapter "Many GPUs".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mpbook.cost.parallelism import chunk
from mpbook.cost.saved_tensors import SavedTensor

CUT: dict[str, int] = {
    "query, key and value": -1,
    "query": -1,
    "key and value": -1,
    "logsumexp of attention": 1,
    "mixed values": -1,
    "input of GELU": -1,
    "output of GELU": -1,
    "gate, its SiLU, up and their product": -1,
    "casts of four matrices": 1,
    "log-probabilities": -1,
    "cast of the output matrix": 0,
}
"""The saved tensors that are cut, and along which dimension."""


def on_one_of(
    tensor_parallel: int, saved: Sequence[SavedTensor], *, cast_numbers: int
) -> list[SavedTensor]:
    """The saved tensors of the first of so many GPUs.

    Args:
        tensor_parallel: GPUs.
        saved: what one GPU alone would save.
        cast_numbers: in the casts of a block's matrices on this GPU.
    """
    return [_cut(tensor, tensor_parallel, cast_numbers) for tensor in saved]


def _cut(tensor: SavedTensor, parts: int, cast_numbers: int) -> SavedTensor:
    if tensor.name == "casts of the matrices":
        return replace(tensor, shape=(cast_numbers,))
    if tensor.name not in CUT:
        return tensor
    shape = list(tensor.shape)
    shape[CUT[tensor.name]] = chunk(shape[CUT[tensor.name]], parts)
    return replace(tensor, shape=tuple(shape))


def check_heads(heads: int, tensor_parallel: int) -> None:
    """Refuse GPUs that cannot have as many heads each.

    Args:
        heads: of keys and values, where they are fewer.
        tensor_parallel: GPUs.

    Raises:
        ValueError: they do not divide the heads.
    """
    if heads % tensor_parallel:
        raise ValueError(f"tensor_parallel={tensor_parallel}: expected a divisor of {heads} heads")
