"""Claims about training on many GPUs that a replay of their sums, or the memory planner, decides.

The planner's formula is held against what ranks of torch hold: `mpbook.many_gpus.programs.held`.
"""

from __future__ import annotations

import torch

from mpbook.cost.at_peak import MemoryPlan
from mpbook.cost.memory_plan import plan_memory
from mpbook.cost.parallelism import Parallelism
from mpbook.decoder import LLAMA2_7B
from mpbook.evidence.claims.base import Claim, Finding, by_share, exactly
from mpbook.many_gpus.reductions import Algorithm, all_reduce

_FEW, _MANY = 8, 1024
_CUT = ("parameters", "gradients", "optimizer_state")


def _mean(ranks: int, algorithm: Algorithm) -> float:
    """Of a gradient of 1 on every rank."""
    ones = torch.ones(ranks, 1)
    return all_reduce(ones, dtype=torch.bfloat16, algorithm=algorithm).item()


def _reduced_in_bfloat16() -> Finding:
    few, ring, tree = _mean(_FEW, "ring"), _mean(_MANY, "ring"), _mean(_MANY, "tree")
    why = (
        f"The mean of equal gradients of 1 is {few:g} over {_FEW} ranks; over {_MANY} it is "
        f"{tree:g} by a tree and {ring:g} by a ring. "
        "In bfloat16 each addition rounds, too: name reduce_dtype=torch.float32."
    )
    return by_share([few == 1, tree == 1, ring == 1]), why


def _planned(parallelism: Parallelism) -> MemoryPlan:
    """One sequence of 4096 tokens on each GPU, with recomputed activations."""
    return plan_memory(
        LLAMA2_7B,
        batch_size=1,
        precision="bf16-mixed",
        checkpointing=True,
        device="cuda",
        parallelism=parallelism,
    )


def _divided(ranks: int) -> tuple[float, float]:
    """How many times less FSDP2 holds of weights, gradients and state, and at the peak."""
    alone, spread = _planned(Parallelism()), _planned(Parallelism(ranks=ranks))
    cut = [sum(getattr(plan, name) for name in _CUT) for plan in (alone, spread)]
    return cut[0] / cut[1], alone.peak / spread.peak


def _zero3_divides() -> Finding:
    found = {ranks: _divided(ranks) for ranks in (8, 64)}
    kept, peaks = zip(*found.values(), strict=True)
    close = [abs(times / ranks - 1) < 0.05 for ranks, times in zip(found, kept, strict=True)]
    close += [abs(times / ranks - 1) < 0.05 for ranks, times in zip(found, peaks, strict=True)]
    why = (
        f"Of Llama 2 7B, weights, gradients and AdamW's state are {kept[0]:.1f} and {kept[1]:.1f} "
        f"times less on 8 and 64 GPUs. The peak is {peaks[0]:.1f} and {peaks[1]:.1f} times less: "
        "activations, logits and the gathered weights stay."
    )
    return by_share(close), why


def _sixteen_bytes() -> Finding:
    views = (False, True)
    spread = [Parallelism(ranks=8, strategy="ddp", gradient_as_bucket_view=v) for v in views]
    plans = [_planned(each) for each in spread]
    default, view = ((p.kept + p.gradients) / p.parameter_count for p in plans)
    why = (
        f"DDP holds {default:.0f} with AdamW, because its buckets are a copy of the gradients, and "
        f"{view:.0f} with gradient_as_bucket_view=True."
    )
    return by_share([round(default) == 16, round(view) == 16]), why


CLAIMS = (
    Claim(
        "gradients-may-be-reduced-in-bf16",
        "Gradients may be added up over GPUs in bfloat16.",
        "often said",
        exactly(_reduced_in_bfloat16),
        "practice/many_gpus#mg-sum",
    ),
    Claim(
        "zero3-divides-memory-by-the-gpus",
        "FSDP and ZeRO-3 divide the memory by the number of GPUs.",
        "often said",
        exactly(_zero3_divides),
        "practice/many_gpus#mg-planner",
    ),
    Claim(
        "data-parallel-holds-16-bytes",
        "In data parallel training with Adam every GPU holds 16 bytes a parameter.",
        "[Rajbhandari et al. 2020](https://arxiv.org/abs/1910.02054)",
        exactly(_sixteen_bytes),
        "practice/many_gpus#mg-memory",
    ),
)
