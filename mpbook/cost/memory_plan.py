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
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch

from mpbook.cost.measure import Memory
from mpbook.cost.saved_tensors import (
    DeviceType,
    SavedTensor,
    block_tensors,
    hidden_matrix_shapes,
    parameter_shapes,
    saved_tensors,
)
from mpbook.device_facts import GIB, memory_sizes
from mpbook.models import GPTConfig
from mpbook.notebook import Table
from mpbook.optimizers import NamedOptimizer, UpdateRule, named
from mpbook.precision import Precision, as_precision

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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

DEVICE_GIB: dict[str, float] = memory_sizes()
"""The memory that GPUs report, in gibibytes: `mpbook.device_facts.memory_sizes`."""

RESERVE = 0.1
"""Share of a device's memory left free for what no formula here counts: CUDA's context, the
libraries' workspaces, fragmentation.  A round allowance, not a measurement."""


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
        """For each of `DEVICE_GIB`, whether the peak leaves the reserve free.

        Raises:
            ValueError: a reserve that is no share.
        """
        if not 0 <= reserve < 1:
            raise ValueError(f"reserve={reserve}: expected a share of the memory, 0 to below 1")
        return {name: self.peak <= (1 - reserve) * gib * GIB for name, gib in DEVICE_GIB.items()}

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


def plan_memory(
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
    count = sum(map(math.prod, parameter_shapes(config)))
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
        optimizer_state=_optimizer_state(config, precision, named(optimizer)),
        saved=tuple(saved),
        loss_temporaries=2 * 4 * batch_size * time * config.vocabulary,
        block_temporaries=_block_temporaries(
            config, (batch_size, time), precision, checkpointing, device
        ),
        update_temporaries=max(
            shared, _update_temporaries(config, precision, named(optimizer), update_loop)
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


def _by_rule(
    config: GPTConfig, optimizer: NamedOptimizer
) -> list[tuple[UpdateRule, list[tuple[int, ...]]]]:
    """The shapes of the parameters that each rule of an optimizer updates."""
    shapes = parameter_shapes(config)
    if optimizer.hidden_rule is None:
        return [(optimizer.rule, shapes)]
    hidden = hidden_matrix_shapes(config)
    rest = list((Counter(shapes) - Counter(hidden)).elements())
    return [(optimizer.rule, rest), (optimizer.hidden_rule, hidden)]


def _optimizer_state(config: GPTConfig, precision: Precision, optimizer: NamedOptimizer) -> int:
    itemsize, total = precision.optimizer_state_dtype.itemsize, 0
    for rule, shapes in _by_rule(config, optimizer):
        total += rule.state_tensors * itemsize * sum(map(math.prod, shapes))
        total += 4 * len(shapes) if rule.counts_steps else 0  # the count is a float32
    return total


def _update_temporaries(
    config: GPTConfig, precision: Precision, optimizer: NamedOptimizer, update_loop: str
) -> int:
    """What the step allocates, rule after rule, beside a cure's float32 copies."""
    itemsize = precision.optimizer_state_dtype.itemsize
    most = 0
    for rule, shapes in _by_rule(config, optimizer):
        sizes = list(map(math.prod, shapes))
        if rule.allocates == "denominators":
            at_once = {"for-loop": 2 * max(sizes), "foreach": sum(sizes), "fused": 0}
            most = max(most, at_once[update_loop] * itemsize)
        elif rule.allocates == "Newton-Schulz":
            most = max(most, *(_newton_schulz(shape, itemsize) for shape in shapes))
    copied = precision.cure.copied_bytes if precision.cure else 0
    return most + copied * sum(map(math.prod, parameter_shapes(config)))


def _newton_schulz(shape: tuple[int, ...], itemsize: int) -> int:
    """The update as it was, and in bfloat16 the iterate, the next one and two square matrices."""
    return (itemsize + 2 * 2) * math.prod(shape) + 2 * 2 * min(shape) ** 2


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
        options: as for `plan_memory`, but for the batch.
    """

    def fits(batch: int) -> bool:
        return plan_memory(config, batch_size=batch, **options).peak <= budget_bytes

    high = 1
    while fits(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


CATEGORY_COLOURS: dict[str, str] = {
    "parameters": "#1a1a1a",
    "master copies": "#3d3d3d",
    "optimizer state": "#6b6b6b",
    "gradients": "#8f8f8f",
    "update, for a moment": "#b3b3b3",
    "weight casts": "#6b3d1e",
    "activations": "#b88a66",
    "backward, for a moment": "#ead9cb",
}
"""Greys grow with the parameters, browns come and go in a step; no precision has these colours."""


def draw(plans: dict[str, MemoryPlan]) -> Figure:
    """Stacked bars of several plans at their peaks, as a figure to `mpbook.plots.show`.

    Raises:
        ValueError: no plan.
    """
    if not plans:
        raise ValueError("plans: none given, expected at least one")
    from mpbook import plots

    figure, axes = plots.figure(figsize=(5.6, 1.9 + 0.45 * len(plans)))
    lefts = [0.0] * len(plans)
    for category, colour in CATEGORY_COLOURS.items():
        widths = [plan.at_peak.get(category, 0) / 1e6 for plan in plans.values()]
        if any(widths):
            options = dict(color=colour, edgecolor="white", label=category)
            axes.barh(range(len(plans)), widths, left=lefts, **options)
            lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
    axes.set_yticks(range(len(plans)), list(plans))
    axes.invert_yaxis()
    axes.set(xlabel="MB at the peak")
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside lower center", ncols=2)
    return figure
