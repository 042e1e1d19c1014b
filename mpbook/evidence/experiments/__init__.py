"""Experiments that leave a record: one file each, a pure function of a frozen configuration.

An experiment says what it asks, how large it is on a device, which cases it is made of, and how
one case is measured.  The recorder (`mpbook.evidence.recorder`) runs the cases one after another,
so that one that runs out of memory does not take the others along.  They need torch and numpy
alone, and on a CPU the same code runs at a small scale.
"""

from __future__ import annotations

from mpbook.evidence.experiments import (
    autocast_rules,
    bandwidth,
    bf16_pairs,
    gpt2_memory,
    gpt2_throughput,
    loss_scales,
    lost_weight_updates,
    low_precision_pairs,
    many_gpus,
    matmul_ladder,
    optimisation_ladder,
)
from mpbook.evidence.experiments.base import Case, Experiment, Results, model_flops_per_token

__all__ = ["EXPERIMENTS", "Case", "Experiment", "Results", "model_flops_per_token"]

EXPERIMENTS: dict[str, Experiment] = {
    module.EXPERIMENT.name: module.EXPERIMENT
    for module in (
        autocast_rules,
        bandwidth,
        matmul_ladder,
        lost_weight_updates,
        loss_scales,
        bf16_pairs,
        low_precision_pairs,
        many_gpus,
        gpt2_memory,
        gpt2_throughput,
        optimisation_ladder,
    )
}
"""By name, in the order in which they are recorded: the cheapest evidence first."""
