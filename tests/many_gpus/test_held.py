"""What two real ranks hold, against the memory planner, rank by rank.

``MPBOOK_RANKS=4`` asks four ranks instead.
"""

from __future__ import annotations

import os
import statistics
from typing import Any

import pytest
import torch

from mpbook.cost.at_peak import MemoryPlan
from mpbook.cost.memory_plan import plan_memory
from mpbook.cost.parallelism import STRATEGIES, Parallelism
from mpbook.decoder import DecoderConfig
from mpbook.many_gpus.launch import launch
from mpbook.models import GPTConfig

RANKS = int(os.environ.get("MPBOOK_RANKS", "2"))

# Odd sizes, which no number of ranks divides; many tokens, or hardly any.
DECODER = {
    "vocabulary": 257, "context": 32, "layers": 3, "width": 64, "heads": 4, "key_value_heads": 2,
    "hidden": 177,
}  # fmt: skip
TIED = {"vocabulary": 65, "context": 8, "layers": 4, "heads": 2, "width": 128}
ONE_BLOCK = DECODER | {"layers": 1, "width": 32, "hidden": 3, "vocabulary": 3, "tied": True}
SHAPES = [(DECODER, 8), (TIED, 2), (ONE_BLOCK, 4)]
DTYPES = {
    "bf16-mixed": {"compute": "bfloat16", "loaded": "float32"},
    "32-true": {"compute": "float32", "loaded": "float32"},
    "bf16-true": {"compute": "bfloat16", "loaded": "bfloat16"},
}
CASES = [
    {"strategy": strategy, "shape": shape, "batch_size": batch, **dtypes}
    for shape, batch in SHAPES
    for strategy in STRATEGIES
    for dtypes in DTYPES.values()
]
VIEW = {"strategy": "ddp", "shape": TIED, "batch_size": 2, "bucket_view": True, **DTYPES["32-true"]}
SGD = {"strategy": "fsdp2", "shape": DECODER, "optimizer": "SGD", **DTYPES["bf16-mixed"]}
NARROW = {"strategy": "fsdp2", "shape": TIED, "batch_size": 2, "reduce": "bfloat16"}
TENSOR = {
    "strategy": "tensor",
    "shape": DECODER | {"heads": 8, "key_value_heads": 4, "hidden": 176, "vocabulary": 256},
}
LAST = [VIEW, SGD, NARROW, TENSOR | DTYPES["32-true"]]
HELD = ("parameters", "gradients", "optimizer_state", "buckets")


@pytest.fixture(scope="module")
def found(patience_s: float) -> list[list[dict[str, int]]]:
    """What each rank holds in each case; all in one start."""
    return launch("held", ranks=RANKS, options={"cases": CASES + LAST}, patience_s=patience_s)


def planned(case: dict[str, Any], rank: int, **spread: Any) -> MemoryPlan:
    shape = case["shape"]
    dtypes = {name: case.get(name, value) for name, value in DTYPES["bf16-mixed"].items()}
    return plan_memory(
        DecoderConfig(**shape) if "hidden" in shape else GPTConfig(**shape),
        batch_size=case.get("batch_size", 4),
        precision=next(name for name, known in DTYPES.items() if known == dtypes),
        optimizer=case.get("optimizer", "AdamW").lower(),
        parallelism=Parallelism(**({"ranks": RANKS, "strategy": case["strategy"]} | spread)),
        rank=rank,
    )


def held(plan: MemoryPlan) -> dict[str, int]:
    return {name: getattr(plan, name) for name in HELD}


@pytest.mark.parametrize("case", range(len(CASES)))
def test_every_rank_holds_what_is_planned_to_the_byte(found: Any, case: int) -> None:
    for rank in range(RANKS):
        ours = {name: found[rank][case][name] for name in HELD}
        assert ours == held(planned(CASES[case], rank)), (rank, CASES[case])


@pytest.mark.parametrize("case", [i for i, case in enumerate(CASES) if case["shape"] != ONE_BLOCK])
def test_the_peak_is_the_one_that_the_profiler_hears(found: Any, case: int) -> None:
    """Measured: from 4% below the plan, on torch 2.15, to 4% above.

    The bound leaves room for one more unit's buffer, which a thread of gloo's may free unheard.
    """
    ratios = [found[r][case]["peak"] / planned(CASES[case], r).peak for r in range(RANKS)]
    assert 0.9 < statistics.median(ratios) < 1.3


def test_buckets_can_be_the_gradients(found: Any) -> None:
    index = CASES.index({k: v for k, v in VIEW.items() if k != "bucket_view"})
    for rank in found:
        view, apart = rank[len(CASES)], rank[index]
        assert view["buckets"] == apart["buckets"] == apart["gradients"]
        plan = planned(VIEW, 0, gradient_as_bucket_view=True)
        assert plan.buckets == view["buckets"] and plan.gradients == 0
        assert plan.kept + apart["gradients"] == planned(VIEW, 0).kept + plan.buckets


def test_an_optimizer_without_state(found: Any) -> None:
    for rank in range(RANKS):
        ours = {name: found[rank][len(CASES) + 1][name] for name in HELD}
        assert ours == held(planned(SGD, rank))
        assert ours["optimizer_state"] == 0


def test_gradients_that_are_added_up_in_16_bits_change_no_shard(found: Any) -> None:
    for rank in range(RANKS):
        case = found[rank][len(CASES) + 2]
        plan = planned(NARROW, rank, reduce_dtype=torch.bfloat16)
        assert {name: case[name] for name in HELD} == held(plan)


def test_tensor_parallelism_cuts_matrices_and_leaves_norms(found: Any) -> None:
    case = found[0][-1]
    spread = {"ranks": 1, "strategy": "fsdp2", "tensor_parallel": RANKS}
    if DECODER["key_value_heads"] % RANKS:
        pytest.skip(f"{RANKS} ranks do not divide the heads of keys and values")
    plan = planned(LAST[-1], 0, **spread)
    for name in ("parameters", "optimizer_state"):  # one gradient lies in a larger storage
        assert case[name] == getattr(plan, name)
