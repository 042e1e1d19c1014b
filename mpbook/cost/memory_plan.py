"""Where every byte of a training step goes, computed before it runs.

Training holds two kinds of memory.  What stays from step to step grows with the *parameters*: the
weights, what an update keeps beside them, and the optimizer's state; gradients join them in each
backward pass.  What comes and goes within a step grows with the *tokens*: the tensors that autograd
saves for the backward pass, and on top of them, for a moment, the logits and their gradient.

`mpbook.cost.saved_tensors` writes down what a GPT saves; everything else here is a sum over it.

Taught in the chapter "Memory".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, overload

import torch
from torch import nn

from mpbook.cost.device_room import RESERVE, fits_on
from mpbook.cost.measure import Memory
from mpbook.cost.measured_plan import MeasuredPlan, measure_memory
from mpbook.cost.optimizer_memory import optimizer_state, update_temporaries
from mpbook.cost.saved_tensors import (
    DeviceType,
    SavedTensor,
    block_tensors,
    hidden_matrix_shapes,
    parameter_shapes,
    saved_tensors,
)
from mpbook.models import GPT, GPTConfig
from mpbook.notebook import Table
from mpbook.optimizers import named
from mpbook.precision import Precision, as_precision

UpdateLoop = Literal["for-loop", "foreach", "fused"]

GPT2_SIZES: dict[str, GPTConfig] = {
    name: GPTConfig(vocabulary=50257, context=1024, layers=layers, heads=heads, width=width)
    for name, layers, heads, width in (
        ("GPT-2 124M", 12, 12, 768),
        ("GPT-2 355M", 24, 16, 1024),
        ("GPT-2 774M", 36, 20, 1280),
        ("GPT-2 1.5B", 48, 25, 1600),
    )
}
"""The four shapes of Radford et al. 2019, named by their numbers of parameters."""


@dataclass(frozen=True)
class MemoryPlan:
    """The bytes of one training step, and the moment at which they are most.

    ``saved`` is what autograd keeps, tensor by tensor.  ``held_gradients`` are those of earlier
    micro-batches, which stay through the passes of the next; none without accumulation.  The
    temporaries are what comes on top for a moment: two gradients as large as the logits when the
    backward pass begins; the gradients of the last block's GELU, less what is freed by then; and
    what the optimizer's step allocates, or the backward pass just before it for the matrix that
    embedding and output share.

    The loss is planned as `mpbook.training.loss_of` computes it, in eager mode: on float32 logits,
    of which the caller keeps none.  A loop whose variable ``logits`` lives until the backward pass
    holds them as well, in the dtype of the products.
    """

    parameter_count: int
    parameters: int
    master_copies: int
    gradients: int
    held_gradients: int
    optimizer_state: int
    saved: tuple[SavedTensor, ...] = field(repr=False)
    loss_temporaries: int
    block_temporaries: int
    update_temporaries: int

    @property
    def weight_casts(self) -> int:
        """Bytes of the 16-bit weights that autocast makes and autograd keeps."""
        return sum(t.bytes for t in self.saved if t.is_weight_cast)

    @property
    def activations(self) -> int:
        """Bytes saved for the backward pass, but for the casts of weights."""
        return sum(t.bytes for t in self.saved if not t.is_weight_cast)

    @property
    def memory(self) -> Memory:
        """The categories that `mpbook.training.train` counts in ``Run.memory``."""
        return Memory(
            parameters=self.parameters,
            master_copies=self.master_copies,
            gradients=self.gradients,
            optimizer_state=self.optimizer_state,
            saved_for_backward=self.weight_casts + self.activations,
        )

    @property
    def kept(self) -> int:
        """Bytes that stay from one step to the next, once the gradients are set to None."""
        return self.parameters + self.master_copies + self.optimizer_state

    @property
    def peak_at_loss(self) -> int:
        """Bytes held when the backward pass begins."""
        return self._held_by_backward + self.loss_temporaries

    @property
    def peak_at_block(self) -> int:
        """Bytes held when the backward pass is at the last block's GELU."""
        return self._held_by_backward + self.block_temporaries

    @property
    def _held_by_backward(self) -> int:
        return self.kept + self.held_gradients + self.memory.saved_for_backward

    @property
    def peak_at_update(self) -> int:
        """Bytes held at the end of the backward pass and in the optimizer's step."""
        return self.kept + self.gradients + self.update_temporaries

    @property
    def peak(self) -> int:
        """The largest of the three moments: exact to about 1%, with checkpointing to 7%."""
        return max(self.peak_at_loss, self.peak_at_block, self.peak_at_update)

    @property
    def at_peak(self) -> dict[str, int]:
        """The categories at the moment of the peak, which sum up to it."""
        kept = {
            "parameters": self.parameters,
            "master copies": self.master_copies,
            "optimizer state": self.optimizer_state,
        }
        if self.peak_at_update == self.peak:
            now = {"gradients": self.gradients, "update, for a moment": self.update_temporaries}
            return kept | now
        return kept | {
            "gradients": self.held_gradients,
            "weight casts": self.weight_casts,
            "activations": self.activations,
            "backward, for a moment": self.peak - self._held_by_backward,
        }

    def fits_on(self, *, reserve: float = RESERVE) -> dict[str, bool]:
        """For each of `mpbook.cost.device_room.DEVICE_GIB`, whether the peak leaves the reserve.

        Raises:
            ValueError: a reserve that is no share.
        """
        return fits_on(self.peak, reserve=reserve)

    def table(self) -> Table:
        """The categories at the peak, in megabytes and in bytes a parameter."""
        rows = [
            (name, round(count / 1e6, 1), round(count / self.parameter_count, 2))
            for name, count in (*self.at_peak.items(), ("together", self.peak))
            if count
        ]
        return Table(["at the peak", "MB", "bytes a parameter"], rows)

    def __repr__(self) -> str:
        return repr(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


@overload
def plan_memory(config: GPTConfig | GPT, **options: Any) -> MemoryPlan: ...
@overload
def plan_memory(config: nn.Module, **options: Any) -> MemoryPlan | MeasuredPlan: ...


def plan_memory(config: GPTConfig | nn.Module, **options: Any) -> MemoryPlan | MeasuredPlan:
    """The memory of training a model: by formula where there is one, else measured.

    * A `GPTConfig`, or a `mpbook.models.GPT`: by formula, without running anything; the options
      are those of `plan_gpt`.
    * Any other module: by `mpbook.cost.measured_plan.measure_memory`, from steps of two batch
      sizes, with ``batch=(inputs, targets)``, ``loss=``, ``batch_size=``, ``precision=`` and, if
      wanted, ``optimizer=`` and ``sizes=``.

    Raises:
        TypeError: a module without a batch or a loss, or anything else.
        ValueError: an argument out of range, or an unknown name.
    """
    if isinstance(config, GPT):
        config = config.config
    if isinstance(config, GPTConfig):
        return plan_gpt(config, **options)
    if not isinstance(config, nn.Module):
        raise TypeError(f"config: a {type(config).__name__}, expected a GPTConfig or a module")
    if missing := [n for n in ("batch", "loss", "batch_size", "precision") if n not in options]:
        raise TypeError(
            f"plan_memory: a {type(config).__name__} has no formula and is measured, which needs "
            f"{', '.join(missing)} as well: batch=(inputs, targets), loss=a function of outputs "
            "and targets, batch_size=, precision="
        )
    size, batch, loss = (options.pop(name) for name in ("batch_size", "batch", "loss"))
    return measure_memory(config, batch, loss, **options).at(size)


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
    _check(config, batch_size, time, accumulation_steps, update_loop)
    saved = saved_tensors(
        config,
        batch_size=batch_size,
        sequence_length=time,
        precision=precision,
        accumulation_steps=accumulation_steps,
        checkpointing=checkpointing,
        device=device,
    )
    shapes, hidden = parameter_shapes(config), hidden_matrix_shapes(config)
    count = sum(map(math.prod, shapes))
    itemsize, cure = precision.parameter_dtype.itemsize, precision.cure
    accumulates = accumulation_steps > 1
    # The matrix that embedding and output share has two gradients, and then their sum; the sum is
    # what stays, unless it is to be added to the one that is there already.
    shared = (2 + accumulates) * itemsize * config.vocabulary * config.width
    return MemoryPlan(
        parameter_count=count,
        parameters=itemsize * count,
        master_copies=(cure.kept_bytes if cure else 0) * count,
        gradients=itemsize * count,
        held_gradients=itemsize * count if accumulates else 0,
        optimizer_state=optimizer_state(shapes, hidden, precision, named(optimizer)),
        saved=tuple(saved),
        loss_temporaries=2 * 4 * batch_size * time * config.vocabulary,
        block_temporaries=_block_temporaries(
            config, (batch_size, time), precision, checkpointing, device
        ),
        update_temporaries=max(
            shared, update_temporaries(shapes, hidden, precision, named(optimizer), update_loop)
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


def _check(
    config: GPTConfig, batch_size: int, time: int, accumulation_steps: int, update_loop: str
) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected at least 1")
    if accumulation_steps < 1:
        raise ValueError(f"accumulation_steps={accumulation_steps}: expected at least 1")
    if not 1 <= time <= config.context:
        raise ValueError(f"sequence_length={time}: expected 1 to the context, {config.context}")
    if update_loop not in ("for-loop", "foreach", "fused"):
        raise ValueError(f'update_loop="{update_loop}": expected "for-loop", "foreach" or "fused"')


def largest_batch(budget_bytes: float, config: GPTConfig, **options: Any) -> int:
    """The largest batch whose peak fits into so many bytes, 0 if none does.

    Args:
        budget_bytes: of the device, or what is left of it.
        config: the shape of the model.
        options: as for `plan_gpt`, but for the batch.
    """

    def fits(batch: int) -> bool:
        return plan_gpt(config, batch_size=batch, **options).peak <= budget_bytes

    high = 1
    while fits(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
