"""The bytes of an all-reduce, against each algorithm played through, message by message."""

from __future__ import annotations

import pytest

from mpbook.many_gpus.wire import on_the_wire


def ring(ranks: int) -> tuple[float, int, float]:
    """What a rank sends in tensors, the rounds, and the tensors of all rounds in a row."""
    rounds = [1 / ranks] * (2 * (ranks - 1))
    return sum(rounds), len(rounds), sum(rounds)


def halving(ranks: int) -> tuple[float, int, float]:
    """Half of what is left goes to a partner each time, and comes back in the other order."""
    sizes, left = [], 1.0
    while ranks > 1:
        left, ranks = left / 2, ranks // 2
        sizes.append(left)
    return 2 * sum(sizes), 2 * len(sizes), 2 * sum(sizes)


def tree(ranks: int) -> tuple[float, int, float]:
    """Up, the odd ones of those left send; down, those who have it send to those who have not."""
    sent, rounds = [0] * ranks, 0
    gap = 1
    while gap < ranks:
        for rank in range(gap, ranks, 2 * gap):
            sent[rank] += 1
        gap, rounds = 2 * gap, rounds + 1
    while gap > 1:
        gap, rounds = gap // 2, rounds + 1
        for rank in range(0, ranks - gap, 2 * gap):
            sent[rank] += 1
    return max(sent), rounds, rounds


@pytest.mark.parametrize("algorithm", [ring, tree, halving], ids=lambda f: f.__name__)
@pytest.mark.parametrize("ranks", [2, 4, 8, 256])
def test_bytes_and_messages_are_those_of_the_algorithm(algorithm, ranks):
    tensors, messages, in_a_row = algorithm(ranks)
    wire = on_the_wire(ranks, 1000, element_bytes=2, algorithm=algorithm.__name__)
    assert wire.bytes == pytest.approx(2000 * tensors)
    assert wire.messages == messages
    assert wire.in_a_row == pytest.approx(2000 * in_a_row)
    assert wire.seconds(1e6) == pytest.approx(2e-3 * in_a_row)


@pytest.mark.parametrize("ranks", [1, 3, 6])
def test_rings_and_trees_take_any_number_of_ranks(ranks):
    for algorithm in (ring, tree):
        wire = on_the_wire(ranks, 1000, element_bytes=4, algorithm=algorithm.__name__)
        assert wire.messages == algorithm(ranks)[1]
    assert on_the_wire(1, 1000, element_bytes=4).bytes == 0


@pytest.mark.parametrize(
    ("ranks", "elements", "size", "algorithm", "match"),
    [
        (0, 1, 4, "ring", "ranks=0"),
        (3, 1, 4, "halving", "no power of two"),
        (2, 1, 4, "star", "expected one of"),
        (2, -1, 4, "ring", "elements=-1"),
        (2, 1, 0, "tree", "element_bytes=0"),
    ],
)
def test_what_makes_no_sense_is_refused(ranks, elements, size, algorithm, match):
    with pytest.raises(ValueError, match=match):
        on_the_wire(ranks, elements, element_bytes=size, algorithm=algorithm)


@pytest.mark.parametrize("rate", [0, -1.0, float("nan")])
def test_a_rate_is_above_zero(rate):
    with pytest.raises(ValueError, match="expected more than 0"):
        on_the_wire(2, 1, element_bytes=4).seconds(rate)
