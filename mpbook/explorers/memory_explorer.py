"""The memory planner: a GPT, a batch and a precision in, every byte of a training step out.

The formula is `mpbook.cost.memory_plan`'s, written a second time in JavaScript, so that the built
page answers without a kernel; the tests compare the two.

Taught in the chapter "Memory".
"""

from __future__ import annotations

import html
from dataclasses import asdict
from typing import Any, get_args

import traitlets

from mpbook.cost.memory_plan import (
    DEVICE_GIGABYTES,
    GPT2_SIZES,
    KEPT_BYTES,
    RESERVE,
    MemoryPlan,
    Optimizer,
    largest_batch,
    plan_memory,
)
from mpbook.explorers.base import Checked, Explorer, one_of
from mpbook.explorers.census import digits, percent
from mpbook.explorers.modules import STATIC, linked
from mpbook.models import GPTConfig
from mpbook.precision import PRECISIONS, Precision, WeightUpdate

MODELS: dict[str, GPTConfig] = {**GPT2_SIZES, "the book's small GPT": GPTConfig()}
"""Shapes with a name."""

LARGEST = {"batch": 4096, "sequence": 131072}


def _ways() -> dict[str, Precision]:
    cures: tuple[WeightUpdate, ...] = ("master_weights", "stochastic_rounding", "kahan_summation")
    plain = PRECISIONS["bf16-true"]
    cured = {
        f"bf16-true, {cure.replace('_', ' ')}": Precision(
            cure, plain.parameter_dtype, plain.compute_dtype, weight_update=cure
        )
        for cure in cures
    }
    return {name: p for name, p in PRECISIONS.items() if name != "tf32"} | cured


WAYS: dict[str, Precision] = _ways()
"""What can be chosen: every precision, and bfloat16 with each cure (tf32 is as 32-true)."""


def _numbers(name: str, precision: Precision) -> dict[str, Any]:
    """What the formula needs to know of a precision."""
    copied = {"plain": 0, "master_weights": 4}.get(precision.weight_update, 8)
    return {
        "name": name,
        "parameter_bytes": precision.parameter_dtype.itemsize,
        "compute_bytes": precision.compute_dtype.itemsize,
        "state_bytes": precision.optimizer_state_dtype.itemsize,
        "kept_bytes": KEPT_BYTES[precision.weight_update],
        "copied_bytes": copied,
        "loss_scale": precision.loss_scale is not None,
    }


def _as_shape(shape: Any) -> dict[str, int]:
    """The fields of a GPT that the page knows; one without bias it does not."""
    if isinstance(shape, str):
        if shape not in MODELS:
            raise ValueError(f"shape={shape!r}: expected one of {', '.join(MODELS)}")
        shape = MODELS[shape]
    config = shape if isinstance(shape, GPTConfig) else GPTConfig(**shape)
    if not config.bias:
        raise ValueError("shape: has no bias, expected a GPTConfig with bias=True")
    fields = asdict(config)
    del fields["bias"]
    return fields


def _count(name: str) -> Any:
    def check(value: Any) -> int:
        if type(value) is not int or not 1 <= value <= LARGEST[name]:
            raise ValueError(f"{name}={value!r}: expected an integer from 1 to {LARGEST[name]}")
        return value

    return check


def size(count: int) -> str:
    """Bytes in words.

    >>> size(9_443_000_000), size(1234)
    ('9.44 GB', '1.23 kB')
    """
    units = ((1e9, "GB"), (1e6, "MB"))
    unit, name = next((found for found in units if count >= found[0]), (1e3, "kB"))
    return f"{digits(count / unit, 3)} {name}"


class MemoryExplorer(Explorer):
    """Where every byte of training a GPT goes, and on which device it fits.

    The traits ``shape``, ``batch``, ``sequence``, ``precision``, ``optimizer`` and
    ``checkpointing`` follow the reader, and the picture follows them: ``explorer.batch = 16``.

    Args:
        shape: a name of `MODELS`, or a `GPTConfig`.
        batch: sequences that go through the model at once.
        sequence: tokens of each; as many as the context if None.
        precision: a name of `WAYS`.
        optimizer: ``"adamw"``, ``"adam"``, ``"momentum"`` or ``"sgd"``.
        checkpointing: whether blocks compute their activations again in the backward pass.

    Raises:
        ValueError: an argument that cannot be drawn; it names what would be right.

    >>> MemoryExplorer("GPT-2 124M", 8).plan.parameter_count
    124439808
    """

    _esm = linked(STATIC / "memory_explorer.mjs")
    _twin = "memory_explorer"
    _twin_traits = (
        "shape", "batch", "sequence", "precision", "optimizer", "checkpointing",
        "precisions", "presets", "devices", "room",
    )  # fmt: skip

    shape = Checked(_as_shape, _as_shape("GPT-2 124M")).tag(sync=True)
    batch = Checked(_count("batch"), 8).tag(sync=True)
    sequence = Checked(_count("sequence"), 1024).tag(sync=True)
    precision = Checked(one_of("precision", tuple(WAYS)), "bf16-mixed").tag(sync=True)
    optimizer = Checked(one_of("optimizer", get_args(Optimizer)), "adamw").tag(sync=True)
    checkpointing = traitlets.Bool(False).tag(sync=True)
    precisions = traitlets.List([_numbers(*way) for way in WAYS.items()]).tag(sync=True)
    presets = traitlets.List([[n, _as_shape(c)] for n, c in MODELS.items()]).tag(sync=True)
    devices = traitlets.List([list(pair) for pair in DEVICE_GIGABYTES.items()]).tag(sync=True)
    room = traitlets.Float(1 - RESERVE).tag(sync=True)

    def __init__(
        self,
        shape: str | GPTConfig = "GPT-2 124M",
        batch: int = 8,
        *,
        sequence: int | None = None,
        precision: str = "bf16-mixed",
        optimizer: Optimizer = "adamw",
        checkpointing: bool = False,
        **traits: Any,
    ) -> None:
        found = _as_shape(shape)
        chosen = dict(precision=precision, optimizer=optimizer, checkpointing=checkpointing)
        length = found["context"] if sequence is None else sequence
        super().__init__(shape=found, batch=batch, sequence=length, **chosen, **traits)

    @property
    def plan(self) -> MemoryPlan:
        """The bytes, by `mpbook.cost.memory_plan.plan_memory`, on a GPU."""
        return plan_memory(self._config, batch_size=self.batch, **self._options)

    @property
    def _config(self) -> GPTConfig:
        """The shape, with a context that is long enough."""
        shape = {**self.shape, "context": max(self.shape["context"], self.sequence)}
        return GPTConfig(**shape)

    @property
    def _options(self) -> dict[str, Any]:
        return {
            "sequence_length": self.sequence,
            "precision": WAYS[self.precision],
            "optimizer": self.optimizer,
            "checkpointing": self.checkpointing,
            "device": "cuda",
        }

    @property
    def _name(self) -> str:
        same = (name for name, config in MODELS.items() if _as_shape(config) == self.shape)
        blocks, width = self.shape["layers"], self.shape["width"]
        return next(same, f"A GPT of {_in_words(blocks, 'block')} and width {width}")

    def largest_batches(self) -> dict[str, int]:
        """By device, the largest batch whose peak leaves the reserve free."""
        return {
            name: largest_batch(self.room * gigabytes * 1e9, self._config, **self._options)
            for name, gigabytes in DEVICE_GIGABYTES.items()
        }

    def _fallback(self) -> str:
        plan = self.plan
        parts = "".join(
            f"<tr><th scope='row'>{name}</th><td>{size(count)}</td></tr>"
            for name, count in plan.at_peak.items()
            if count
        )
        batches = "".join(
            f"<tr><th scope='row'>{name}</th><td>batch {batch}</td></tr>"
            for name, batch in self.largest_batches().items()
        )
        return (
            f"<figure class='mp-static'><figcaption>{html.escape(repr(self))}</figcaption>"
            f"<table>{parts}{batches}</table></figure>"
        )

    def __repr__(self) -> str:
        plan = self.plan
        how = f"{self.precision} and {self.optimizer}"
        if self.checkpointing:
            how = f"{self.precision}, {self.optimizer} and checkpointing"
        most, count = max(plan.at_peak.items(), key=lambda pair: pair[1])
        fits = [name for name, fit in plan.fits_on(reserve=1 - self.room).items() if fit]
        where = f"It fits on {fits[0]}." if fits else "It fits on none of the devices listed."
        return (
            f"{self._name} with {_in_words(self.batch, 'sequence')} of "
            f"{_in_words(self.sequence, 'token')}, {how}: {size(plan.peak)} at {_moment(plan)}, "
            f"{percent(count / plan.peak)} of it {most}. {where}"
        )


def _in_words(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _moment(plan: MemoryPlan) -> str:
    if plan.peak_at_update == plan.peak:
        return "the update"
    return "the loss" if plan.peak_at_loss == plan.peak else "the last block"
