"""Where every byte of a training step goes, computed before it runs.

`plan_memory` has a formula for the models of this book, and measures any other: see
`mpbook.cost.gpt_plan`, `mpbook.cost.decoder_plan` and `mpbook.cost.measured_plan`, and
`mpbook.cost.at_peak` for what a plan says.

Taught in the chapter "Memory".
"""

from __future__ import annotations

from typing import Any, overload

from torch import nn

from mpbook.cost.at_peak import MemoryPlan
from mpbook.cost.decoder_plan import plan_decoder
from mpbook.cost.gpt_plan import plan_gpt
from mpbook.cost.measured_plan import MeasuredPlan, measure_memory
from mpbook.decoder import LLAMA2_7B, LLAMA3_8B, MIXTRAL_8X7B, Decoder, DecoderConfig
from mpbook.models import GPT, GPTConfig

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

SIZES: dict[str, GPTConfig | DecoderConfig] = {
    **GPT2_SIZES,
    "GPT-3 1.3B": GPTConfig(vocabulary=50257, context=2048, layers=24, heads=32, width=2048),
    "Llama 2 7B": LLAMA2_7B,
    "Llama 3 8B": LLAMA3_8B,
    "Mixtral 8x7B": MIXTRAL_8X7B,
}
"""Shapes by name and number of parameters.  GPT-3's "XL" of 1.3B has 24 heads of 128 numbers in
its paper, which its width of 2048 does not hold; here it has 32 of 64, and as many parameters.

Sources: Radford et al. 2019, Brown et al. 2020, and those of `mpbook.decoder`.
"""


@overload
def plan_memory(
    config: GPTConfig | GPT | DecoderConfig | Decoder, **options: Any
) -> MemoryPlan: ...
@overload
def plan_memory(config: nn.Module, **options: Any) -> MemoryPlan | MeasuredPlan: ...


def plan_memory(
    config: GPTConfig | DecoderConfig | nn.Module, **options: Any
) -> MemoryPlan | MeasuredPlan:
    """The memory of training a model: by formula where there is one, else measured.

    * A `GPTConfig`, a `DecoderConfig` or a model of one: by formula, without running anything;
      the options are those of `mpbook.cost.gpt_plan.plan_gpt`.
    * Any other module: by `mpbook.cost.measured_plan.measure_memory`, from steps of two batch
      sizes, with ``batch=(inputs, targets)``, ``loss=``, ``batch_size=``, ``precision=`` and, if
      wanted, ``optimizer=`` and ``sizes=``.

    Raises:
        TypeError: a module without a batch or a loss, or anything else.
        ValueError: an argument out of range, or an unknown name.
    """
    if isinstance(config, GPT | Decoder):
        config = config.config
    if isinstance(config, GPTConfig):
        return plan_gpt(config, **options)
    if isinstance(config, DecoderConfig):
        return plan_decoder(config, **options)
    if not isinstance(config, nn.Module):
        raise TypeError(
            f"config: a {type(config).__name__}, expected a GPTConfig, a DecoderConfig or a module"
        )
    if missing := [n for n in ("batch", "loss", "batch_size", "precision") if n not in options]:
        raise TypeError(
            f"plan_memory: a {type(config).__name__} has no formula and is measured, which needs "
            f"{', '.join(missing)} as well: batch=(inputs, targets), loss=a function of outputs "
            "and targets, batch_size=, precision="
        )
    size, batch, loss = (options.pop(name) for name in ("batch_size", "batch", "loss"))
    return measure_memory(config, batch, loss, **options).at(size)


def largest_batch(budget_bytes: float, config: GPTConfig | DecoderConfig, **options: Any) -> int:
    """The largest batch whose peak fits into so many bytes, 0 if none does.

    Args:
        budget_bytes: of the device, or what is left of it.
        config: the shape of the model.
        options: as for `plan_gpt`, but for the batch.
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
