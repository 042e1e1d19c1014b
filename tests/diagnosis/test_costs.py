"""Memory by example and time by a roofline, on made-up runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from mpbook.cost.roofline import STATED
from mpbook.diagnosis import diagnose
from mpbook.diagnosis.costs import memory, seconds

A100 = STATED["A100 SXM 80GB"]


def test_the_slope_is_of_the_examples_that_were_left_out() -> None:
    def run(bytes: int) -> Any:
        return SimpleNamespace(activation_bytes=bytes, kept_bytes=7, error=None, dtype=None,
                               loss_scale=1.0)  # fmt: skip

    def of_batches(batches: list[Any]) -> Any:  # 100 bytes, and 10 for each example
        return SimpleNamespace(run=lambda *_, **__: run(100 + 10 * len(batches[0])))

    workload: Any = SimpleNamespace(batches=[torch.ones(5)], step=None, of_batches=of_batches)
    found = memory(workload, run(150))
    assert found.for_each_example == 10 and found.predicted(20) == 300


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        ((torch.float32, 10**12, 1), 10**12 / A100.peaks["float32"]),
        ((torch.float16, 10**12, 1), 10**12 / A100.peaks["float16"]),
        ((torch.float16, 0, 10**9), 10**9 / A100.bandwidth),
    ],
)
def test_an_operator_takes_what_its_roof_allows(work: Any, expected: float) -> None:
    run: Any = SimpleNamespace(recorder=SimpleNamespace(work=[work, work]))
    assert seconds(run, A100) == pytest.approx(2 * expected)


def test_large_products_are_predicted_to_be_faster_in_16_bits() -> None:
    model = nn.Sequential(nn.Linear(512, 512), nn.Linear(512, 512))
    found = diagnose(model, (torch.randn(512, 512), torch.arange(512)), loss=F.cross_entropy,
                     formats=["bfloat16"], steps=1, rescue=False)  # fmt: skip
    speed = found.formats["bfloat16"].speed
    assert speed is not None and speed > 1
