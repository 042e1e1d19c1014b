"""What training costs: memory and time, counted, measured and planned.

* `mpbook.cost.measure` times and counts, `mpbook.cost.live_memory` watches a step's memory.
* `mpbook.cost.memory_plan` says before a run what it will hold, from what
  `mpbook.cost.saved_tensors` says a block saves; `mpbook.cost.measured_plan` says it of any model,
  from steps of two batch sizes; `mpbook.cost.activation_checkpointing` saves less, and
  `mpbook.cost.parallelism` spreads it over several GPUs.
* `mpbook.cost.roofline` says what bounds the speed, of any model by `mpbook.cost.traced_step`.

Taught in "Memory" and "Speed".
"""

from mpbook.cost.activation_checkpointing import Recompute, checkpoint_blocks
from mpbook.cost.at_peak import MemoryPlan
from mpbook.cost.live_memory import LiveMemory
from mpbook.cost.measure import (
    Memory,
    Spread,
    Stopwatch,
    count_bytes,
    count_flops,
    interleave,
    peak_memory,
    ratios,
    saved_for_backward,
    state_tensors,
    time_calls,
    utilisation,
)
from mpbook.cost.measured_plan import MeasuredPlan, MemoryMeasurement, measure_memory
from mpbook.cost.memory_plan import largest_batch, plan_memory
from mpbook.cost.parallelism import Parallelism
from mpbook.cost.roofline import Roof, Work, attainable, gpt_step, measure_roof, ridge_point
from mpbook.cost.saved_tensors import block_tensors
from mpbook.cost.traced_step import module_step

__all__ = [
    "LiveMemory",
    "MeasuredPlan",
    "Memory",
    "MemoryMeasurement",
    "MemoryPlan",
    "Parallelism",
    "Recompute",
    "Roof",
    "Spread",
    "Stopwatch",
    "Work",
    "attainable",
    "block_tensors",
    "checkpoint_blocks",
    "count_bytes",
    "count_flops",
    "gpt_step",
    "interleave",
    "largest_batch",
    "measure_memory",
    "measure_roof",
    "module_step",
    "peak_memory",
    "plan_memory",
    "ratios",
    "ridge_point",
    "saved_for_backward",
    "state_tensors",
    "time_calls",
    "utilisation",
]
