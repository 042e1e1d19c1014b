"""The memory of training a `mpbook.decoder.Decoder`, by formula: Llama's shape, and Mixtral's.

With w the width, k that of keys and values together, h that of the gated MLP, s the bytes of a
number in the residual stream and c those of a number that is computed with, a block saves for each
token

    4 s w             inputs of both norms, and both divided by their roots of mean squares
    2 c w             outputs of both norms; under autocast 5 casts of them, one for each matrix
    2 c w + c k       query, mixed values, keys and values
    4 c h             gate, its SiLU, up, and their product

and a few statistics.  An RMSNorm that is written in PyTorch saves twice what LayerNorm's kernel
does.  With experts, each token's part of the MLP is there once for each expert that it takes, with
the input and the output of that expert.

Taught in the chapter "Memory".
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from mpbook.cost.at_peak import MemoryPlan
from mpbook.cost.parallelism import Parallelism, Weight, Weights, chunk
from mpbook.cost.saved_tensors import DeviceType, SavedTensor
from mpbook.cost.tensor_parallel import check_heads, on_one_of
from mpbook.cost.transformer_plan import UpdateLoop, check_step, transformer_plan
from mpbook.decoder import DecoderConfig
from mpbook.precision import Precision, as_precision


def decoder_hidden_shapes(config: DecoderConfig) -> list[tuple[int, ...]]:
    """The shape of each matrix between embedding and output."""
    return decoder_weights(config).hidden


def decoder_shapes(config: DecoderConfig) -> list[tuple[int, ...]]:
    """The shape of each parameter tensor of a `mpbook.decoder.Decoder`.

    >>> from mpbook.decoder import LLAMA3_8B, MIXTRAL_8X7B
    >>> [sum(map(math.prod, decoder_shapes(c))) for c in (LLAMA3_8B, MIXTRAL_8X7B)]
    [8030261248, 46702792704]
    """
    return decoder_weights(config).shapes


def decoder_weights(config: DecoderConfig) -> Weights:
    """The parameters of a `mpbook.decoder.Decoder`, and how tensor parallelism would cut them."""
    w, h, k = config.width, config.hidden, config.key_value_heads * config.head_width
    wide, narrow, vector = Weight((h, w), 0), Weight((w, h), 1), Weight((w,))
    attention = (Weight((w, w), 0), Weight((k, w), 0), Weight((k, w), 0), Weight((w, w), 1))
    router = (Weight((config.experts, w)),) if config.experts > 1 else ()
    experts = (wide, wide, narrow) * config.experts
    ends = (Weight((config.vocabulary, w), 0),) * (1 if config.tied else 2)
    return Weights((*ends, vector), (*attention, *router, *experts, vector, vector), config.layers)


def decoder_block_tensors(
    config: DecoderConfig, tokens: tuple[int, int], precision: Precision
) -> list[SavedTensor]:
    """What one block saves."""
    batch, time = tokens
    w, k = config.width, config.key_value_heads * config.head_width
    stream, compute, mixed = precision.parameter_dtype, precision.compute_dtype, precision.is_mixed
    taken = 3 + (1 if config.experts > 1 else 2)  # matrices that take a norm's output
    saved = [
        SavedTensor("inputs of both norms", (2, *tokens, w), stream),
        SavedTensor("roots of their mean squares", (2, *tokens, 1), stream),
        SavedTensor("both divided by them", (2, *tokens, w), stream),
        SavedTensor("inputs of matrices", (taken if mixed else 2, *tokens, w), compute),
        SavedTensor("query", (*tokens, w), compute),
        SavedTensor("key and value", (2, *tokens, k), compute),
        SavedTensor("logsumexp of attention", (batch, config.heads, time), torch.float32),
        SavedTensor("mixed values", (*tokens, w), compute),
        *_mlp_tensors(config, batch * time, precision),
    ]
    if mixed:
        rotary = (2, time, config.head_width)
        saved.append(SavedTensor("casts of the rotary tables", rotary, compute))
        per_block = sum(map(math.prod, decoder_hidden_shapes(replace(config, layers=1))))
        casts = SavedTensor("casts of the matrices", (per_block,), compute, is_weight_cast=True)
        saved.append(casts)
    return saved


def _mlp_tensors(config: DecoderConfig, tokens: int, precision: Precision) -> list[SavedTensor]:
    w, h = config.width, config.hidden
    stream, compute = precision.parameter_dtype, precision.compute_dtype
    if config.experts == 1:
        return [SavedTensor("gate, its SiLU, up and their product", (4, tokens, h), compute)]
    rows = tokens * config.experts_per_token
    inputs = 2 if precision.is_mixed else 1
    return [
        SavedTensor("chosen experts and their places", (3, rows), torch.int64),
        SavedTensor("shares of experts", (rows,), torch.float32),
        SavedTensor("shares by expert", (rows,), stream),
        SavedTensor("inputs of experts", (inputs, rows, w), compute),
        SavedTensor("gate, its SiLU, up and their product", (4, rows, h), compute),
        SavedTensor("outputs of experts", (rows, w), compute),
        SavedTensor("outputs times their shares", (rows, w), stream),
    ]


def decoder_saved_tensors(
    config: DecoderConfig,
    *,
    batch_size: int,
    sequence_length: int,
    precision: Precision,
    accumulation_steps: int = 1,
    checkpointing: bool = False,
) -> list[SavedTensor]:
    """What a `mpbook.decoder.Decoder` and its cross-entropy save for the backward pass.

    With experts, as if the tokens' choices were even; under a mixed precision, as if each expert
    was chosen by some token, so that its matrices are cast.

    Args:
        config: the shape of the model; its attention is fused.
        batch_size: sequences that go through it at once.
        sequence_length: tokens of each.
        precision: in which.
        accumulation_steps: micro-batches, of whose tokens one tensor holds all.
        checkpointing: whether each block keeps only its input and computes the rest again.
    """
    tokens, w = (batch_size, sequence_length), config.width
    stream, compute = precision.parameter_dtype, precision.compute_dtype
    if checkpointing:
        blocks = [SavedTensor("input of a block", (*tokens, w), stream)]
    else:
        blocks = decoder_block_tensors(config, tokens, precision)
    last = [
        SavedTensor("input of the last norm", (*tokens, w), stream),
        SavedTensor("root of its mean square", (*tokens, 1), stream),
        SavedTensor("divided by it", (*tokens, w), stream),
        SavedTensor("output of the last norm", (*tokens, w), compute),
        SavedTensor("log-probabilities", (*tokens, config.vocabulary), torch.float32),
        SavedTensor("tokens and targets", (2, accumulation_steps, *tokens), torch.int64),
        SavedTensor("count of targets", (), torch.float32),
    ]
    if precision.loss_scale is not None:
        last.append(SavedTensor("loss scale", (), torch.float32))
    if precision.is_mixed:
        shape = (config.vocabulary, w)
        last.append(SavedTensor("cast of the output matrix", shape, compute, is_weight_cast=True))
    return [*(replace(tensor, copies=config.layers) for tensor in blocks), *last]


def plan_decoder(
    config: DecoderConfig,
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
    """The memory of training a `mpbook.decoder.Decoder`, in bytes, without running anything.

    Args:
        config: the shape of the model.
        batch_size: sequences that go through the model at once: a micro-batch.
        precision: a `Precision` or the name of one.
        sequence_length: tokens of each; as many as the context if None.
        accumulation_steps: as for `mpbook.cost.gpt_plan.plan_gpt`.
        optimizer: a name of `mpbook.optimizers.OPTIMIZERS`.
        update_loop: how torch's optimizer goes through the parameters.
        checkpointing: whether each block computes its activations again in the backward pass.
        device: changes nothing: what is saved is the same on both.
        parallelism: as for `mpbook.cost.gpt_plan.plan_gpt`.
        rank: as for `mpbook.cost.gpt_plan.plan_gpt`.

    Raises:
        ValueError: an argument out of range, or an unknown name.
    """
    precision = as_precision(precision)
    time = config.context if sequence_length is None else sequence_length
    check_step(config.context, batch_size, time, accumulation_steps, update_loop)
    parallelism = parallelism or Parallelism()
    parts, computed = parallelism.tensor_parallel, parallelism.computes_in(precision)
    check_heads(config.key_value_heads, parts)
    saved = decoder_saved_tensors(
        config,
        batch_size=batch_size,
        sequence_length=time,
        precision=computed,
        accumulation_steps=accumulation_steps,
        checkpointing=checkpointing,
    )
    return transformer_plan(
        weights=decoder_weights(config),
        saved=on_one_of(parts, saved, cast_numbers=_cast_numbers(config, parts)),
        precision=precision,
        optimizer=optimizer,
        update_loop=update_loop,
        accumulates=accumulation_steps > 1,
        logits=batch_size * time * chunk(config.vocabulary, parts),
        output_matrix=chunk(config.vocabulary, parts) * config.width,
        tied=config.tied,
        block_temporaries=_block_temporaries(
            config, (batch_size, time), computed, checkpointing, parts
        ),
        parallelism=parallelism,
        rank=rank,
    )


def _cast_numbers(config: DecoderConfig, parts: int) -> int:
    """In the casts of a block's matrices, on the first of so many GPUs that share them."""
    local = decoder_weights(replace(config, layers=1)).on_one_of(parts)
    return sum(map(math.prod, local.hidden))


def _block_temporaries(
    config: DecoderConfig,
    tokens: tuple[int, int],
    precision: Precision,
    checkpointing: bool,
    parts: int,
) -> int:
    """What the backward pass of the last block's MLP holds beyond what was saved before it."""
    w, (batch, time) = config.width, tokens
    h, vocabulary = chunk(config.hidden, parts), chunk(config.vocabulary, parts)
    c, s = precision.compute_dtype.itemsize, precision.parameter_dtype.itemsize
    freed = 4 * vocabulary + (c + 2 * s) * w
    # Of one expert at a time, with its share of the tokens.
    made = 2 * s * w + 3 * c * h * config.experts_per_token // config.experts
    gradients = s * (vocabulary * w + w * h)  # of the output matrix and of the last down
    if precision.is_mixed:
        gradients -= c * vocabulary * w  # whose cast is free again
    again = 0
    if checkpointing:
        block = decoder_block_tensors(config, tokens, precision)
        casts = _cast_numbers(config, parts)
        again = sum(t.bytes for t in on_one_of(parts, block, cast_numbers=casts))
        again -= s * batch * time * w
    return batch * time * (made - freed) + gradients + again
