"""What the plans of all transformers have in common: parameters, gradients, optimizer and loss.

`mpbook.cost.gpt_plan` and `mpbook.cost.decoder_plan` write down what their model saves and what its
last block holds for a moment; the sums over them are made here.

Taught in the chapter "Memory".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

from mpbook.cost.at_peak import MemoryPlan
from mpbook.cost.optimizer_memory import optimizer_state, update_temporaries
from mpbook.cost.parallelism import Parallelism, Weights
from mpbook.cost.rank_memory import RankMemory, rank_memory
from mpbook.cost.saved_tensors import SavedTensor
from mpbook.optimizers import named
from mpbook.precision import Precision

UpdateLoop = Literal["for-loop", "foreach", "fused"]


def transformer_plan(
    *,
    weights: Weights,
    saved: Sequence[SavedTensor],
    precision: Precision,
    optimizer: str,
    update_loop: UpdateLoop,
    accumulates: bool,
    logits: int,
    output_matrix: int,
    tied: bool,
    block_temporaries: int,
    parallelism: Parallelism,
    rank: int,
) -> MemoryPlan:
    """The plan of a transformer whose saved tensors are known.

    Args:
        weights: the parameters.
        saved: what autograd keeps.
        precision: of the training.
        optimizer: a name of `mpbook.optimizers.OPTIMIZERS`.
        update_loop: how torch's optimizer goes through the parameters.
        accumulates: whether the gradients of earlier micro-batches are there already.
        logits: numbers in the logits of a micro-batch, on this GPU.
        output_matrix: numbers in the matrix that makes them, on this GPU.
        tied: whether that is the embedding too.
        block_temporaries: bytes, see `MemoryPlan`.
        parallelism: how the training is spread over GPUs.
        rank: which of its data parallel ranks.
    """
    cure, itemsize = precision.cure, precision.parameter_dtype.itemsize
    held, count, owned, state, allocated = _of_the_weights(
        weights, parallelism, rank, precision, output_matrix if tied else 0, optimizer, update_loop
    )
    gradients = itemsize * held.gradients
    # A matrix that embedding and output share has two gradients, and then their sum; the sum is
    # what stays, unless it is to be added to the one that is there already.
    shared = ((2 if tied else 0) + accumulates) * itemsize * output_matrix
    if parallelism.shards:
        shared = 0  # of gathered weights: see `mpbook.cost.rank_memory`
    return MemoryPlan(
        parameter_count=count,
        parameters=itemsize * held.weights,
        master_copies=(cure.kept_bytes if cure else 0) * owned,
        gradients=gradients,
        held_gradients=gradients if accumulates else 0,
        optimizer_state=state,
        saved=tuple(saved),
        loss_temporaries=2 * 4 * logits,
        block_temporaries=block_temporaries,
        update_temporaries=max(shared, allocated),
        buckets=held.buckets,
        gathered_at_loss=held.gathered_at_loss,
        gathered_at_block=held.gathered_at_block,
        exchanges=held.exchanges,
        layers=weights.layers,
    )


class _OfTheWeights(NamedTuple):
    """What no batch changes: numbers of parameters, and bytes of the optimizer's step."""

    held: RankMemory
    parameters: int
    owned: int
    state: int
    allocated: int


@lru_cache(maxsize=64)
def _of_the_weights(
    weights: Weights,
    parallelism: Parallelism,
    rank: int,
    precision: Precision,
    tied_numbers: int,
    optimizer: str,
    update_loop: UpdateLoop,
) -> _OfTheWeights:
    """Summed over every parameter, and kept: a search for the largest batch asks it many times."""
    rules, local = named(optimizer), weights.on_one_of(parallelism.tensor_parallel)
    held = rank_memory(local, parallelism, rank, precision, tied_numbers=tied_numbers)
    return _OfTheWeights(
        held,
        parameters=sum(map(math.prod, weights.shapes)),
        owned=sum(map(math.prod, held.owned)),
        state=optimizer_state(held.owned, held.owned_hidden, precision, rules),
        allocated=update_temporaries(held.owned, held.owned_hidden, precision, rules, update_loop),
    )


def check_step(
    context: int, batch_size: int, time: int, accumulation_steps: int, update_loop: str
) -> None:
    """Refuse what is no step.

    Raises:
        ValueError: an argument out of range.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected at least 1")
    if accumulation_steps < 1:
        raise ValueError(f"accumulation_steps={accumulation_steps}: expected at least 1")
    if not 1 <= time <= context:
        raise ValueError(f"sequence_length={time}: expected 1 to the context, {context}")
    if update_loop not in ("for-loop", "foreach", "fused"):
        raise ValueError(f'update_loop="{update_loop}": expected "for-loop", "foreach" or "fused"')
