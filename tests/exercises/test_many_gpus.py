"""The right answers of the exercises on many GPUs, against the replay."""

from __future__ import annotations

import pytest
import torch

from mpbook.cost.memory_plan import plan_memory
from mpbook.cost.parallelism import Parallelism
from mpbook.decoder import DecoderConfig
from mpbook.exercises import find
from mpbook.many_gpus import all_reduce, ring_chunks


def test_a_ring_of_equal_parts_stalls_where_the_exercise_says() -> None:
    for name, dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        stalls_at = find("many_gpus.stalls_at").solution(name)
        for more in (0, 1, 300):
            ones = torch.ones(stalls_at + more, 1)
            assert all_reduce(ones, dtype=dtype, average="no").item() == stalls_at


def test_what_a_rank_sends_is_all_chunks_but_one_twice() -> None:
    for ranks, elements, size in find("many_gpus.sent_bytes").inputs():
        chunks = ring_chunks(elements, ranks, element_bytes=size)
        sent = sum(chunk.stop - chunk.start for chunk in chunks[1:]) * size
        assert find("many_gpus.sent_bytes").solution(ranks, elements, size) == 2 * sent


def test_nobody_skips_alone_unless_nothing_is_added_up() -> None:
    for engine, infinite in find("many_gpus.skips").inputs():
        skips = find("many_gpus.skips").solution(engine, infinite)
        assert len(skips) == len(infinite)
        assert engine == "no_sync" or len(set(skips)) == 1


def test_what_a_rank_keeps_is_what_the_planner_says() -> None:
    config = DecoderConfig(vocabulary=256, layers=8, width=256, hidden=512)
    for strategy, ranks in find("many_gpus.kept").inputs():
        plan = plan_memory(
            config,
            batch_size=1,
            precision="32-true",
            parallelism=Parallelism(ranks=ranks, strategy=strategy),
        )
        kept = (plan.kept + plan.gradients) / plan.parameter_count
        solution = find("many_gpus.kept").solution(strategy, ranks)
        # All rows divide; whole tensors of ZeRO-1 and counts of steps hardly matter.
        assert kept == pytest.approx(solution, rel=0.1 if strategy == "zero1" else 0.01, abs=0.02)
