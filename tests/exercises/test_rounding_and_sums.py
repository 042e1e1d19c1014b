"""The exercise `rounding_and_sums.frozen` on ties, with torch's product as the oracle."""

from __future__ import annotations

import pytest
import torch

from mpbook.exercises import check, find
from mpbook.formats import neighbours

TIES = [
    (1.0, 1 - 2.0**-9, "bfloat16", True),
    (1.0, 1 - 2.0**-12, "float16", True),
    (1.0078125, 257 / 258, "bfloat16", False),
]


@pytest.mark.parametrize(("value", "decay", "name", "stays"), TIES)
def test_a_tie_stays_where_the_code_is_even(
    value: float, decay: float, name: str, stays: bool
) -> None:
    below, _ = neighbours(value, name)
    assert below is not None and value - value * decay == (value - below) / 2
    cast = torch.tensor(value * decay, dtype=torch.float64).to(getattr(torch, name)).item()
    assert (cast == value) is stays
    assert find("rounding_and_sums.frozen").solution(value, decay, name) is stays


@pytest.mark.parametrize("frozen_on_a_tie", [False, True])
def test_an_answer_that_treats_all_ties_alike_is_told(
    frozen_on_a_tie: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    def frozen(value: float, decay: float, name: str) -> bool:
        lost, half = value - value * decay, (value - (neighbours(value, name)[0] or 0.0)) / 2
        return lost < half or (frozen_on_a_tie and lost == half)

    assert not check("rounding_and_sums.frozen", frozen)
    assert "a value with an " + ("odd" if frozen_on_a_tie else "even") in capsys.readouterr().out
