"""The memory of training a `mpbook.models.GPT`, by formula.

`mpbook.cost.saved_tensors` writes down what a GPT saves; everything else here is a sum over it.

Taught in the chapter "Memory".
"""

from __future__ import annotations

import torch

from mpbook.cost.at_peak import MemoryPlan
from mpbook.cost.saved_tensors import (
    DeviceType,
    block_tensors,
    hidden_matrix_shapes,
    parameter_shapes,
    saved_tensors,
)
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
) -> MemoryPlan:
    """The memory of training a `mpbook.models.GPT`, in bytes, without running anything.

    Args:
        config: the shape of the model; its attention is fused.
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

    Raises:
        ValueError: an argument out of range, or an unknown name.
    """
    precision = as_precision(precision)
    time = config.context if sequence_length is None else sequence_length
    check_step(config.context, batch_size, time, accumulation_steps, update_loop)
    saved = saved_tensors(
        config,
        batch_size=batch_size,
        sequence_length=time,
        precision=precision,
        accumulation_steps=accumulation_steps,
        checkpointing=checkpointing,
        device=device,
    )
    return transformer_plan(
        shapes=parameter_shapes(config),
        hidden=hidden_matrix_shapes(config),
        saved=saved,
        precision=precision,
        optimizer=optimizer,
        update_loop=update_loop,
        accumulates=accumulation_steps > 1,
        logits=batch_size * time * config.vocabulary,
        output_matrix=config.vocabulary * config.width,
        tied=True,
        block_temporaries=_block_temporaries(
            config, (batch_size, time), precision, checkpointing, device
        ),
    )


def _block_temporaries(
    config: GPTConfig,
    tokens: tuple[int, int],
    precision: Precision,
    checkpointing: bool,
    device: DeviceType,
) -> int:
    """What the backward pass of the last block's GELU holds beyond what was saved before it."""
    w, (batch, time) = config.width, tokens
    compute, residual = precision.compute_dtype.itemsize, precision.parameter_dtype.itemsize
    freed = 4 * config.vocabulary + (compute + residual) * w  # the loss and the last norm
    made = residual * w + 4 * compute * w  # gradients of the stream and, net, around the GELU
    gradients = residual * (config.vocabulary * w + 4 * w * w)  # of the last two matrices
    if precision.is_mixed:
        gradients -= compute * config.vocabulary * w  # whose first cast is free again
    again = 0
    if checkpointing:
        statistics = torch.float32 if device == "cuda" else precision.parameter_dtype
        again = sum(t.bytes for t in block_tensors(config, tokens, precision, statistics))
        again -= residual * batch * time * w  # its input is there already
    return batch * time * (made - freed) + gradients + again
