"""The exercise `precision_formats.fate` at the tie above a format's largest number."""

from __future__ import annotations

import math

import pytest
import torch

from mpbook.exercises import check, find
from mpbook.formats import FORMATS

CASTS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float8_e5m2": torch.float8_e5m2}


def last_tie(name: str) -> float:
    """Half a gap above the largest number."""
    f = FORMATS[name]
    return f.max + f.eps / 4 * 2.0 ** math.frexp(f.max)[1]


@pytest.mark.parametrize("name", CASTS)
def test_where_the_largest_number_is_odd_the_tie_overflows(name: str) -> None:
    assert torch.tensor(last_tie(name)).to(CASTS[name]).float().isinf()
    assert find("precision_formats.fate").solution(last_tie(name), name) == "overflows"


@pytest.mark.parametrize(("value", "fate"), [(464.0, "rounded"), (465.0, "overflows")])
def test_448_is_even_and_keeps_its_tie(value: float, fate: str) -> None:
    assert last_tie("float8_e4m3fn") == 464
    assert find("precision_formats.fate").solution(value, "float8_e4m3fn") == fate


def test_an_answer_that_sends_464_to_overflow_is_told_why(
    capsys: pytest.CaptureFixture[str],
) -> None:
    right = find("precision_formats.fate").solution

    def fate(value: float, name: str) -> str:
        return "overflows" if value >= last_tie(name) else str(right(value, name))

    assert not check("precision_formats.fate", fate)
    assert "For 464.0 in float8_e4m3fn" in capsys.readouterr().out
