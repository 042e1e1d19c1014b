"""The memory planner: a model, a batch and a precision in, every byte of a training step out.

The formula is `mpbook.cost.memory_plan`'s, written a second time in JavaScript, so that the built
page answers without a kernel; the tests compare the two.

Taught in the chapter "Memory".
"""

from __future__ import annotations

import html
import math
from dataclasses import asdict
from typing import Any

import torch
import traitlets

from mpbook.cost.at_peak import MemoryPlan
from mpbook.cost.device_room import BESIDE_ON_CUDA, DEVICE_GIB, RESERVE
from mpbook.cost.memory_plan import (
    SIZES,
    largest_batch,
    plan_memory,
)
from mpbook.cost.parallelism import Parallelism
from mpbook.decoder import DecoderConfig
from mpbook.device_facts import GIB, GPUS
from mpbook.explorers.base import Checked, Explorer, one_of
from mpbook.explorers.census import digits, percent
from mpbook.explorers.modules import STATIC, linked
from mpbook.models import GPTConfig
from mpbook.optimizers import OPTIMIZERS, NamedOptimizer
from mpbook.precision import CURES, PRECISIONS, Precision

MODELS: dict[str, GPTConfig | DecoderConfig] = {**SIZES, "the book's small GPT": GPTConfig()}
"""Shapes with a name."""

LONGEST = 4096
"""Tokens of a sequence that a preset begins with, though its context may be longer."""

LARGEST = {"batch": 4096, "sequence": 131072, "accumulation_steps": 1024, "ranks": 4096}

STRATEGY_NAMES: dict[str, str] = {
    "ddp": "DDP",
    "zero1": "ZeRO-1",
    "zero2": "ZeRO-2",
    "fsdp2": "ZeRO-3 (FSDP2)",
}
"""`mpbook.cost.parallelism.STRATEGIES` as the page calls them."""

TENSOR_PARALLEL = (1, 2, 4, 8, 16)
"""GPUs that can be asked to share each matrix; as many do as divide the heads."""


def _ways() -> dict[str, Precision]:
    plain = PRECISIONS["bf16-true"]
    cured = {
        f"bf16-true, {cure.replace('_', ' ')}": Precision(
            cure, plain.parameter_dtype, plain.compute_dtype, weight_update=cure
        )
        for cure in CURES
    }
    return {name: p for name, p in PRECISIONS.items() if name != "tf32"} | cured


WAYS: dict[str, Precision] = _ways()
"""What can be chosen: every precision, and bfloat16 with each cure (tf32 is as 32-true)."""


def _numbers(name: str, precision: Precision) -> dict[str, Any]:
    """What the formula needs to know of a precision."""
    cure = precision.cure
    return {
        "name": name,
        "parameter_bytes": precision.parameter_dtype.itemsize,
        "compute_bytes": precision.compute_dtype.itemsize,
        "state_bytes": precision.optimizer_state_dtype.itemsize,
        "kept_bytes": cure.kept_bytes if cure else 0,
        "copied_bytes": cure.copied_bytes if cure else 0,
        "loss_scale": precision.loss_scale is not None,
        "bfloat16": precision.compute_dtype == torch.bfloat16,
    }


def _rules(name: str, optimizer: NamedOptimizer) -> dict[str, Any]:
    """What the formula needs to know of an optimizer."""
    rules = {hidden: asdict(optimizer.rule_for(hidden=hidden)) for hidden in (False, True)}
    apart = optimizer.hidden_rule is not None
    return {"name": name, "rule": rules[False], "hidden_rule": rules[True] if apart else None}


def _devices() -> list[list[Any]]:
    """The memory of GPUs in GiB, with a label that says it too, and one for bfloat16.

    The second leaves out who has no units for it, such as a T4 and a V100: there PyTorch's fused
    attention, which the plan counts on, does not take it.  It is empty where nobody is left.
    """
    native = {gpu.model for gpu in GPUS.values() if "bfloat16" in gpu.dense_peaks}
    found: list[list[Any]] = []
    for names, gib in DEVICE_GIB.items():
        some = ", ".join(name for name in names.split(", ") if name in native)
        room = f" ({digits(gib, 3)} GiB)"
        found.append([f"{names}{room}", gib, f"{some}{room}" if some else ""])
    return found


def _as_shape(shape: Any) -> dict[str, int]:
    """The fields of a model that the page knows; a GPT without bias it does not."""
    if isinstance(shape, str):
        if shape not in MODELS:
            raise ValueError(f"shape={shape!r}: expected one of {', '.join(MODELS)}")
        shape = MODELS[shape]
    config = shape if isinstance(shape, GPTConfig | DecoderConfig) else _config_of(shape)
    fields = asdict(config)
    if isinstance(config, GPTConfig):
        if not config.bias:
            raise ValueError("shape: has no bias, expected a GPTConfig with bias=True")
        del fields["bias"]
    return fields


def _config_of(fields: dict[str, Any]) -> GPTConfig | DecoderConfig:
    return DecoderConfig(**fields) if "hidden" in fields else GPTConfig(**fields)


def _count(name: str) -> Any:
    def check(value: Any) -> int:
        if type(value) is not int or not 1 <= value <= LARGEST[name]:
            raise ValueError(f"{name}={value!r}: expected an integer from 1 to {LARGEST[name]}")
        return value

    return check


def _tensor_parallel(value: Any) -> int:
    if type(value) is not int or value not in TENSOR_PARALLEL:
        known = ", ".join(map(str, TENSOR_PARALLEL))
        raise ValueError(f"tensor_parallel={value!r}: expected one of {known}")
    return value


def size(count: int) -> str:
    """Bytes in words, in the units of torch's messages.

    >>> size(9 * 2**30 + 2**29), size(1024)
    ('9.5 GiB', '1 KiB')
    """
    units = ((2**30, "GiB"), (2**20, "MiB"))
    unit, name = next((found for found in units if count >= found[0]), (2**10, "KiB"))
    return f"{digits(count / unit, 3)} {name}"


class MemoryExplorer(Explorer):
    """Where every byte of training a model goes, and on which device it fits.

    The traits ``shape``, ``batch``, ``sequence``, ``accumulation_steps``, ``precision``,
    ``optimizer``, ``checkpointing``, ``ranks``, ``strategy`` and ``tensor_parallel`` follow the
    reader, and the picture follows them: ``explorer.batch = 16``.

    Args:
        shape: a name of `MODELS`, a `GPTConfig` or a `DecoderConfig`.
        batch: sequences that go through the model at once.
        sequence: tokens of each; as many as the context, but at most `LONGEST`, if None.
        accumulation_steps: how many such micro-batches make a step.
        precision: a name of `WAYS`.
        optimizer: a name of `mpbook.optimizers.OPTIMIZERS`.
        checkpointing: whether blocks compute their activations again in the backward pass.
        ranks: data parallel ranks, each with such a batch; the first of them is planned.
        strategy: a name of `STRATEGY_NAMES`.
        tensor_parallel: one of `TENSOR_PARALLEL`.

    Raises:
        ValueError: an argument that cannot be drawn; it names what would be right.

    >>> MemoryExplorer("GPT-2 124M", 8).plan.parameter_count
    124439808
    """

    _esm = linked(STATIC / "memory_explorer.mjs")
    _twin = "memory_explorer"
    _twin_traits = (
        "shape", "batch", "sequence", "accumulation_steps", "precision", "optimizer",
        "checkpointing", "ranks", "strategy", "tensor_parallel", "strategies", "tensors",
        "precisions", "optimizers", "presets", "devices", "room", "beside",
    )  # fmt: skip

    shape = Checked(_as_shape, _as_shape("GPT-2 124M")).tag(sync=True)
    batch = Checked(_count("batch"), 8).tag(sync=True)
    sequence = Checked(_count("sequence"), 1024).tag(sync=True)
    accumulation_steps = Checked(_count("accumulation_steps"), 1).tag(sync=True)
    precision = Checked(one_of("precision", tuple(WAYS)), "bf16-mixed").tag(sync=True)
    optimizer = Checked(one_of("optimizer", tuple(OPTIMIZERS)), "adamw").tag(sync=True)
    checkpointing = traitlets.Bool(False).tag(sync=True)
    ranks = Checked(_count("ranks"), 1).tag(sync=True)
    strategy = Checked(one_of("strategy", tuple(STRATEGY_NAMES)), "fsdp2").tag(sync=True)
    tensor_parallel = Checked(_tensor_parallel, 1).tag(sync=True)
    strategies = traitlets.List([list(pair) for pair in STRATEGY_NAMES.items()]).tag(sync=True)
    tensors = traitlets.List(list(TENSOR_PARALLEL)).tag(sync=True)
    precisions = traitlets.List([_numbers(*way) for way in WAYS.items()]).tag(sync=True)
    optimizers = traitlets.List([_rules(*one) for one in OPTIMIZERS.items()]).tag(sync=True)
    presets = traitlets.List([[n, _as_shape(c)] for n, c in MODELS.items()]).tag(sync=True)
    devices = traitlets.List(_devices()).tag(sync=True)
    room = traitlets.Float(1 - RESERVE).tag(sync=True)
    beside = traitlets.List([list(pair) for pair in BESIDE_ON_CUDA.items()]).tag(sync=True)

    def __init__(
        self,
        shape: str | GPTConfig | DecoderConfig = "GPT-2 124M",
        batch: int = 8,
        *,
        sequence: int | None = None,
        accumulation_steps: int = 1,
        precision: str = "bf16-mixed",
        optimizer: str = "adamw",
        checkpointing: bool = False,
        ranks: int = 1,
        strategy: str = "fsdp2",
        tensor_parallel: int = 1,
        **traits: Any,
    ) -> None:
        found = _as_shape(shape)
        chosen: dict[str, Any] = dict(precision=precision, optimizer=optimizer)
        chosen |= dict(accumulation_steps=accumulation_steps, checkpointing=checkpointing)
        chosen |= dict(ranks=ranks, strategy=strategy, tensor_parallel=tensor_parallel)
        length = min(found["context"], LONGEST) if sequence is None else sequence
        super().__init__(shape=found, batch=batch, sequence=length, **chosen, **traits)

    @property
    def plan(self) -> MemoryPlan:
        """The bytes, by `mpbook.cost.memory_plan.plan_memory`, on a GPU."""
        return plan_memory(self._config, batch_size=self.batch, **self._options)

    @property
    def _config(self) -> GPTConfig | DecoderConfig:
        """The shape, with a context that is long enough."""
        return _config_of({**self.shape, "context": max(self.shape["context"], self.sequence)})

    @property
    def _options(self) -> dict[str, Any]:
        return {
            "sequence_length": self.sequence,
            "accumulation_steps": self.accumulation_steps,
            "precision": WAYS[self.precision],
            "optimizer": self.optimizer,
            "checkpointing": self.checkpointing,
            "device": "cuda",
            "parallelism": self._parallelism,
        }

    @property
    def _heads(self) -> int:
        return int(self.shape.get("key_value_heads", self.shape["heads"]))

    @property
    def _parallelism(self) -> Parallelism:
        """As asked for, with as many GPUs to a matrix as divide the heads."""
        tensor = math.gcd(self.tensor_parallel, self._heads)
        return Parallelism(ranks=self.ranks, strategy=self.strategy, tensor_parallel=tensor)

    @property
    def _name(self) -> str:
        same = (name for name, config in MODELS.items() if _as_shape(config) == self.shape)
        blocks, width = self.shape["layers"], self.shape["width"]
        kind = "decoder" if "hidden" in self.shape else "GPT"
        return next(same, f"A {kind} of {_in_words(blocks, 'block')} and width {width}")

    def largest_batches(self) -> dict[str, int]:
        """By device, the largest batch whose peak leaves the reserve free."""
        return {
            name: largest_batch(self.room * gib * GIB, self._config, **self._options)
            for name, gib in self._candidates()
        }

    def _candidates(self) -> list[tuple[str, float]]:
        """The devices that have units for the precision: their labels and their memory in GiB."""
        in_bfloat16 = WAYS[self.precision].compute_dtype == torch.bfloat16
        named = [(short if in_bfloat16 else label, gib) for label, gib, short in self.devices]
        return [(label, gib) for label, gib in named if label]

    def _fallback(self) -> str:
        plan = self.plan
        parts = "".join(
            f"<tr><th scope='row'>{name}</th><td>{size(count)}</td></tr>"
            for name, count in plan.at_peak.items()
            if count
        )
        parts += "".join(
            f"<tr><th scope='row'>{name}, beside the peak (stated by others)</th>"
            f"<td>{size(count)}</td></tr>"
            for name, count in BESIDE_ON_CUDA.items()
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
        fits = [name for name, gib in self._candidates() if plan.peak <= self.room * gib * GIB]
        times = f"{self.accumulation_steps} times " if self.accumulation_steps > 1 else ""
        where = f"It fits on {fits[0]}." if fits else "It fits on none of the devices listed."
        where += self._indivisible()
        return (
            f"{self._name} with {times}{_in_words(self.batch, 'sequence')} of "
            f"{_in_words(self.sequence, 'token')}, {how}{self._spread()}: {size(plan.peak)} at "
            f"{plan.moment}, {percent(count / plan.peak)} of it {most}. {where}"
        )

    def _spread(self) -> str:
        """Over how many GPUs, and how."""
        ranks, tensor = self.ranks, self._parallelism.tensor_parallel
        if ranks * tensor == 1:
            return ""
        how = [f"{self.strategy} over {ranks} ranks"] if ranks > 1 else []
        how += [f"each matrix over {tensor}"] if tensor > 1 else []
        return f", on each of {ranks * tensor} GPUs ({', '.join(how)})"

    def _indivisible(self) -> str:
        if self._heads % self.tensor_parallel == 0:
            return ""
        of = " of keys and values" if "hidden" in self.shape else ""
        return f" {self.tensor_parallel} GPUs do not divide {_in_words(self._heads, 'head')}{of}."


def _in_words(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
