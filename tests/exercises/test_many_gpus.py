"""The right answers of the exercises on many GPUs, against the replay."""

from __future__ import annotations

import torch

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
