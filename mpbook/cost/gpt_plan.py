"""The memory of training a `mpbook.models.GPT`, by formula.

`mpbook.cost.saved_tensors` writes down what a GPT saves; everything else here is a sum over it.

Taught in the chapter "Memory".
"""

from __future__ import annotations

import torch

from mpbook.cost.at_peak import MemoryPlan
from mpbook.cost.parallelism import Parallelism, chunk
from mpbook.cost.saved_tensors import (
    DeviceType,
    block_tensors,
    gpt_weights,
    saved_tensors,
)
from mpbook.cost.tensor_parallel import check_heads, on_one_of
from mpbook.cost.transformer_plan import UpdateLoop, check_step, transformer_plan
from mpbook.models import GPTConfig
from mpbook.precision import Precision, as_precision


def plan_gpt(
    config: GPTConfig,
    *,
    batch_size: int,
    precision: str | Precision,
    sequence_length: int | None = None,
    accumulation_steps: int = 1,
    optimizer: str = "adamw",
    update_loop: UpdateLoop = "foreach",
    checkpointing: bool = False,
    device: DeviceType = "cpu",
    parallelism: Parallelism | None = None,
    rank: int = 0,
) -> MemoryPlan:
    """The memory of training a `mpbook.models.GPT`, in bytes, without running anything.

    Args:
        config: the shape of the model; its attention is fused, as it is not in bfloat16 on a GPU
            without units for it: there each score is kept besides.
        batch_size: sequences that go through the model at once: a micro-batch.
        precision: a `Precision` or the name of one.
        sequence_length: tokens of each; as many as the context if None.
        accumulation_steps: micro-batches in a step.  From the second on, the gradients of those
            before stay through the forward and the backward pass.  They add up where they are, in
            the parameters' dtype, as in `mpbook.training.training_step`: no buffer beside them.
            The tokens of all micro-batches are there at once.
        optimizer: a name of `mpbook.optimizers.OPTIMIZERS`.
        update_loop: how torch's optimizer goes through the parameters: one by one, the default on
            a CPU; all at once with temporaries, the default on CUDA; or in one fused kernel.  Muon
            has the first only.
        checkpointing: whether each block computes its activations again in the backward pass.
        device: where; see `mpbook.cost.saved_tensors.saved_tensors`.
        parallelism: how the training is spread over GPUs; None for one GPU.  The batch is that of
            one data parallel rank.
        rank: which of these is planned, and of the GPUs that share its matrices the first.  An
            optimizer is planned as if it updated its rank's part by itself; Adafactor and Muon need
            whole matrices, and what they gather for that is not counted.

    Raises:
        ValueError: an argument out of range, or an unknown name.
    """
    precision = as_precision(precision)
    time = config.context if sequence_length is None else sequence_length
    check_step(config.context, batch_size, time, accumulation_steps, update_loop)
    parallelism = parallelism or Parallelism()
    parts, computed = parallelism.tensor_parallel, parallelism.computes_in(precision)
    check_heads(config.heads, parts)
    saved = saved_tensors(
        config,
        batch_size=batch_size,
        sequence_length=time,
        precision=computed,
        accumulation_steps=accumulation_steps,
        checkpointing=checkpointing,
        device=device,
    )
    return transformer_plan(
        weights=gpt_weights(config),
        saved=on_one_of(parts, saved, cast_numbers=0),
        precision=precision,
        optimizer=optimizer,
        update_loop=update_loop,
        accumulates=accumulation_steps > 1,
        logits=batch_size * time * chunk(config.vocabulary, parts),
        output_matrix=chunk(config.vocabulary, parts) * config.width,
        tied=True,
        block_temporaries=_block_temporaries(
            config, (batch_size, time), computed, checkpointing, device, parts
        ),
        parallelism=parallelism,
        rank=rank,
    )


def _block_temporaries(
    config: GPTConfig,
    tokens: tuple[int, int],
    precision: Precision,
    checkpointing: bool,
    device: DeviceType,
    parts: int,
) -> int:
    """What the backward pass of the last block's GELU holds beyond what was saved before it."""
    w, (batch, time) = config.width, tokens
    vocabulary, hidden = chunk(config.vocabulary, parts), 4 * w // parts
    compute, residual = precision.compute_dtype.itemsize, precision.parameter_dtype.itemsize
    freed = 4 * vocabulary + (compute + residual) * w  # the loss and the last norm
    made = residual * w + compute * hidden  # gradients of the stream and, net, around the GELU
    gradients = residual * (vocabulary * w + hidden * w)  # of the last two matrices
    if precision.is_mixed:
        gradients -= compute * vocabulary * w  # whose first cast is free again
    again = 0
    if checkpointing:
        statistics = torch.float32 if device == "cuda" else precision.parameter_dtype
        block = block_tensors(config, tokens, precision, statistics)
        again = sum(t.bytes for t in on_one_of(parts, block, cast_numbers=0))
        again -= residual * batch * time * w  # its input is there already
    return batch * time * (made - freed) + gradients + again
