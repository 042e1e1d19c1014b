"""What a training step of a GPT saves for its backward pass, tensor by tensor.

Autograd keeps what the backward pass will need: the input of each LayerNorm, of each matrix product
and of GELU.  With w the width, s the bytes of a number in the residual stream and c those of a
number that is computed with, a block saves for each token

    (2 s + 14 c) w    two inputs of LayerNorm; then its two outputs, query, key and value (3 w),
                      the mixed values, and the input and output of GELU (4 w each)

and a few statistics.  Autocast leaves the residual stream in float32, so it saves 36 w bytes where
float32 saves 64 w, which is more than half; and it adds a 16-bit cast of every weight matrix.

Taught in the chapter "Memory".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from mpbook.cost.parallelism import Weight, Weights
from mpbook.models import GPTConfig
from mpbook.precision import Precision

DeviceType = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class SavedTensor:
    """One tensor that autograd keeps between the forward and the backward pass.

    ``copies`` says how often a model of this shape has it: once, or once for each block.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    copies: int = 1
    is_weight_cast: bool = False

    @property
    def bytes(self) -> int:
        """Bytes of all copies."""
        count = self.copies * self.dtype.itemsize
        for size in self.shape:
            count *= size
        return count


def parameter_shapes(config: GPTConfig) -> list[tuple[int, ...]]:
    """The shape of each parameter tensor of a `mpbook.models.GPT`.

    >>> from mpbook.models import GPT2_124M
    >>> shapes = parameter_shapes(GPT2_124M)
    >>> sum(torch.Size(shape).numel() for shape in shapes)
    124439808
    """
    return gpt_weights(config).shapes


def hidden_matrix_shapes(config: GPTConfig) -> list[tuple[int, ...]]:
    """The shape of each of a GPT's `mpbook.optimizers.hidden_matrices`: four in a block."""
    return gpt_weights(config).hidden


def gpt_weights(config: GPTConfig) -> Weights:
    """The parameters of a `mpbook.models.GPT`, and how tensor parallelism would cut them."""
    w = config.width
    matrices = (
        Weight((3 * w, w), 0),
        Weight((w, w), 1),
        Weight((4 * w, w), 0),
        Weight((w, 4 * w), 1),
    )
    vector = Weight((w,))
    biases = (Weight((3 * w,), 0), Weight((4 * w,), 0), *[vector] * 4) if config.bias else ()
    outside = (Weight((config.vocabulary, w), 0), Weight((config.context, w)))
    norm = (vector,) * (1 + config.bias)
    return Weights((*outside, *norm), (*matrices, vector, vector, *biases), config.layers)


def saved_tensors(
    config: GPTConfig,
    *,
    batch_size: int,
    sequence_length: int,
    precision: Precision,
    accumulation_steps: int = 1,
    checkpointing: bool = False,
    device: DeviceType = "cpu",
) -> list[SavedTensor]:
    """What a `mpbook.models.GPT` and its cross-entropy save for the backward pass.

    Args:
        config: the shape of the model; its attention is fused.
        batch_size: sequences that go through it at once.
        sequence_length: tokens of each.
        precision: in which; what is mixed saves casts of the weights too.
        accumulation_steps: micro-batches, of whose tokens one tensor holds all.
        checkpointing: whether each block keeps only its input and computes the rest again.
        device: LayerNorm's two statistics are float32 on CUDA, and of the dtype of its input on a
            CPU.  (CUDA's attention also saves the state of its generator, a few bytes.)

    Raises:
        ValueError: a precision that quantises.
    """
    if precision.recipe is not None:
        raise ValueError(
            f'precision="{precision.name}": what quantised layers save depends on the library that '
            "computes them, eight bits or the 16 that they came in; plan for 16, by "
            'precision="bf16-mixed", and measure'
        )
    tokens, compute = (batch_size, sequence_length), precision.compute_dtype
    residual = precision.parameter_dtype
    statistics = torch.float32 if device == "cuda" else residual
    if checkpointing:
        blocks = [SavedTensor("input of a block", (*tokens, config.width), residual)]
    else:
        blocks = block_tensors(config, tokens, precision, statistics)
    last = [
        SavedTensor("input of the last norm", (*tokens, config.width), residual),
        SavedTensor("statistics of the last norm", (*tokens, 2), statistics),
        SavedTensor("output of the last norm", (*tokens, config.width), compute),
        SavedTensor("log-probabilities", (*tokens, config.vocabulary), torch.float32),
        SavedTensor("tokens and targets", (2, accumulation_steps, *tokens), torch.int64),
        SavedTensor("positions", (sequence_length,), torch.int64),
        SavedTensor("count of targets", (), torch.float32),
    ]
    if precision.loss_scale is not None:
        last.append(SavedTensor("loss scale", (), torch.float32))
    if precision.is_mixed:
        shape = (config.vocabulary, config.width)
        last.append(SavedTensor("cast of the output matrix", shape, compute, is_weight_cast=True))
    layers = config.layers
    return [
        *(replace(tensor, copies=layers) for tensor in blocks),
        *last,
    ]


def block_tensors(
    config: GPTConfig,
    tokens: tuple[int, int],
    precision: Precision,
    statistics: torch.dtype,
) -> list[SavedTensor]:
    """What one block saves, in the order of its forward pass."""
    batch, time = tokens
    w, heads = config.width, config.heads
    stream, compute = precision.parameter_dtype, precision.compute_dtype
    logsumexp = (batch, heads, time)
    saved = [
        SavedTensor("inputs of both norms", (2, *tokens, w), stream),
        SavedTensor("statistics of both norms", (2, *tokens, 2), statistics),
        SavedTensor("outputs of both norms", (2, *tokens, w), compute),
        SavedTensor("query, key and value", (*tokens, 3 * w), compute),
        SavedTensor("logsumexp of attention", logsumexp, torch.float32),
        SavedTensor("mixed values", (*tokens, w), compute),
        SavedTensor("input of GELU", (*tokens, 4 * w), compute),
        SavedTensor("output of GELU", (*tokens, 4 * w), compute),
    ]
    if precision.is_mixed:
        casts = SavedTensor("casts of four matrices", (12, w, w), compute)
        saved.append(replace(casts, is_weight_cast=True))
    return saved
