"""What counts as a mask, what as an overflow, and whose lines are named."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from mpbook.diagnosis import diagnose
from mpbook.diagnosis.places import (
    OVERFLOWS,
    Key,
    Place,
    Seen,
    is_a_mask,
    is_like_a_mask,
    is_theirs,
)


def result(operator: str = "add", **options: Any) -> Seen:
    given = {"dtype": torch.float32, "order": 0, "shape": (1,), "of_a_mask": True}
    return Seen(Key("forward", Place("layer"), operator, 1), **(given | options))


def test_float16_overflows_from_half_a_step_beyond_its_largest_number() -> None:
    below, at = torch.tensor([OVERFLOWS - 0.01, OVERFLOWS]).half().tolist()
    assert (below, at) == (65504.0, float("inf"))


@pytest.mark.parametrize(
    ("values", "mask"),
    [
        ([0.0, -7e4], False),
        ([0.0, -7e4, -7e4], True),
        ([0.0, -7e4, -9e4], False),
        ([0.0, -1e9], True),
        ([0.0, -6e4, -6e4], False),
        ([1.0, 2.0], False),
    ],
)
def test_a_mask_is_huge_or_one_value_several_times(values: list[float], mask: bool) -> None:
    assert is_a_mask(torch.tensor(values)) is mask


def test_a_result_of_a_mask_is_like_one_only_below_zero() -> None:
    assert is_like_a_mask(result(largest=7e4, highest=1.0))
    assert not is_like_a_mask(result(largest=7e4, highest=7e4))
    assert not is_like_a_mask(result(largest=7e4, highest=1.0, of_a_mask=False))
    assert not is_like_a_mask(result(largest=100.0, highest=1.0))
    assert is_like_a_mask(result(nonfinite=True, signs={"-"}))
    assert not is_like_a_mask(result(nonfinite=True, signs={"-", "+"}))


def test_a_constant_that_is_written_is_meant() -> None:
    assert is_like_a_mask(result("masked_fill", nonfinite=True, signs={"+"}, of_a_mask=False))


def test_headroom_is_counted_from_the_largest_number_of_float16() -> None:
    assert result(largest=65504.0 / 8).headroom == 3.0


def test_lines_of_torch_and_of_what_runs_a_step_are_nobodys() -> None:
    for file in (contextlib.__file__, torch.__file__, F.__file__, "<string>"):
        assert not is_theirs(str(file))
    assert is_theirs(__file__)
    found = diagnose(nn.Linear(8, 3), (torch.ones(4, 8), torch.arange(4) % 3),
                     loss=F.cross_entropy, formats=["float16"], steps=1)  # fmt: skip
    tightest = found.of("float16").tightest
    assert tightest and {one.key.place.file for one in tightest} == {""}
