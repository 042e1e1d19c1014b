"""The answers of the exercises on one's own model, against float16 itself."""

from typing import Any

import pytest
import torch

from mpbook.exercises import find


def solution(name: str, *arguments: object) -> Any:
    return find(f"own_model.{name}").solution(*arguments)


def inputs(name: str) -> list[tuple[Any, ...]]:
    return list(find(f"own_model.{name}").inputs())


@pytest.mark.parametrize("largest", [row[0] for row in inputs("headroom")])
def test_headroom_is_the_power_of_two_up_to_the_largest_number(largest: float) -> None:
    reached = largest * 2 ** solution("headroom", largest)
    assert reached == pytest.approx(torch.finfo(torch.float16).max)


@pytest.mark.parametrize(("smallest", "largest"), inputs("window"))
def test_the_window_is_what_float16_holds(smallest: float, largest: float) -> None:
    half = torch.finfo(torch.float16)
    fits = [
        n for n in range(-60, 61) if smallest * 2.0**n >= half.tiny and largest * 2.0**n <= half.max
    ]
    expected = (fits[0], fits[-1]) if fits else None
    assert solution("window", smallest, largest) == expected


@pytest.mark.parametrize(("size", "count"), inputs("overflows"))
def test_what_overflows_is_what_float16_makes_infinite(size: float, count: int) -> None:
    terms = torch.full((count,), size, dtype=torch.float16).square()
    total = torch.tensor(float(size * size * count)).half()
    expected = "term" if terms.isinf().any() else "sum" if total.isinf() else "nothing"
    assert solution("overflows", size, count) == expected


def test_every_answer_of_the_overflow_is_asked_for() -> None:
    answers = {solution("overflows", *row) for row in inputs("overflows")}
    assert answers == {"nothing", "sum", "term"}


@pytest.mark.parametrize("pairs", [row[0] for row in inputs("graded")])
def test_misses_and_false_alarms_are_the_wrong_ones(pairs: list[tuple[bool, bool]]) -> None:
    assert sum(solution("graded", pairs)) == sum(said != truth for said, truth in pairs)
