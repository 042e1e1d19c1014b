"""Verdicts on the zoo against what training then does.

Each case is a test, so that workers can share them; the aims of the score are its cases together:
no missed overflow, no false alarm.  The thresholds are far from every case: the gradients of those
that fail are off by 0.43 or more, of the others by 0.12 at most (see `verdicts.WRONG`), and their
weights end astray by 0.7 or more, the others' by 0.2 at most (`truth.ASTRAY`).
"""

from __future__ import annotations

import linecache

import pytest

from mpbook.diagnosis import score
from mpbook.diagnosis.diagnosing import diagnose
from mpbook.diagnosis.zoo import FAILING, HEALTHY, NEAR_MISSES, ZOO, Case

FAILS_AT: dict[str, tuple[str, str]] = {
    "inputs of 1e5": ("_to_copy", ""),
    "a weight of 7e4": ("_to_copy", ""),
    "scores before their scale": ("bmm", "(q @ k.mT) * scale"),
    "activations that grow": ("convolution", ""),
    "a norm by x * x": ("mul", "(x * x).sum"),
    "eps of 1e-8 under a row of zeros": ("div", "x.amax(-1, keepdim=True) + 1e-8"),
    "variance in one pass": ("sqrt", "(variance + 1e-5).sqrt()"),
    "softmax by powers of two": ("_to_copy", "powers.to(x.dtype)"),
    "log with an eps of 1e-8": ("log", "torch.log(1 - p + 1e-8)"),
    "a sum as a product with ones": ("mm", "@ ones"),
    "contrast of long features": ("div", "/ temperature"),
    "a fourth power by products": ("mul", "output * output * output"),
    "Gram matrices of large images": ("bmm", "flat @ flat.mT"),
    "a cube with a backward pass of its own": ("mul", "x * x * x"),
    "a batch norm's buffers": ("_to_copy", ""),
}
"""By case: the operator that fails first in float16, and what stands on its line, if it has one."""

RAISES_AT = {"a mask of -1e9, filled": "masked_fill", "binary_cross_entropy": "cross_entropy"}


@pytest.mark.parametrize("case", ZOO, ids=lambda case: case.name)
def test_the_verdict_is_what_training_then_does(case: Case) -> None:
    for row in score.graded(case):
        assert row.verdict == row.truth, row
        if case.name in FAILS_AT and row.format == "float16":
            assert row.where.startswith(FAILS_AT[case.name][0]), row


@pytest.mark.parametrize("name", FAILS_AT)
def test_the_operator_is_named_with_its_line_before_it_fails(name: str) -> None:
    case = next(case for case in FAILING if case.name == name)
    model, batches = case.built()
    found = diagnose(model, batches, loss=case.loss, formats=["float16"], steps=1, rescue=False)
    verdict, (operator, snippet) = found.of("float16"), FAILS_AT[name]
    assert verdict.failure is not None and verdict.failure.operator == operator
    place = verdict.failure.key.place
    assert snippet in linecache.getline(place.file, place.line)
    if verdict.headroom < 0:  # an overflow, and not a division by what has become 0
        assert verdict.forecast is not None and verdict.forecast.largest > 65504


@pytest.mark.parametrize("name", RAISES_AT)
def test_what_raises_is_named_with_its_line(name: str) -> None:
    case = next(case for case in FAILING if case.name == name)
    model, batches = case.built()
    found = diagnose(model, batches, loss=case.loss, formats=["float16"], steps=1, rescue=False)
    place = found.of("float16").suspects[0]
    assert RAISES_AT[name] in linecache.getline(place.file, place.line)


def test_the_zoo_is_large_and_has_every_kind() -> None:
    assert len(ZOO) >= 60
    assert len({case.name for case in ZOO}) == len(ZOO)
    assert min(map(len, (HEALTHY, FAILING, NEAR_MISSES))) >= 15


def test_a_score_adds_up() -> None:
    rows = score.score(HEALTHY[:1])
    summary = score.summary(rows)
    assert summary.verdicts == len(rows) == 2
    assert summary.hits + summary.misses + summary.false_alarms + summary.others == 2
    worst = score.Graded("x", "float16", "yes", "no", "", False, 1.0)
    alarm = score.Graded("y", "float16", "no", "yes", "", True, -1.0)
    assert score.summary([worst, alarm]).misses == 1
    assert score.summary([worst, alarm]).false_alarms == 1
