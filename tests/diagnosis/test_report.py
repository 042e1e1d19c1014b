"""The lines of a report: what each says, and when it is there."""

from __future__ import annotations

import pytest
import torch

from mpbook.diagnosis.costs import Memory
from mpbook.diagnosis.report import FormatReport as Report
from mpbook.diagnosis.report import _bytes, _memory, _scale, _silent, _state
from mpbook.diagnosis.state import Write
from mpbook.diagnosis.verdicts import FormatVerdict, Survives


@pytest.mark.parametrize(
    ("count", "said"), [(1023, "1023 B"), (1536, "1.5 KiB"), (2**20, "1 MiB"), (3 * 2**30, "3 GiB")]
)
def test_bytes_are_in_units_of_1024(count: int, said: str) -> None:
    assert _bytes(count) == said


def test_memory_for_four_times_the_batch_follows_from_the_slope() -> None:
    line = _memory("float16", Memory(5 * 1024, 1024.0, 4, 10))
    assert "5 KiB saved for backward, 1 KiB an example (predicted for 16: 17 KiB)" in line.finding
    assert line.how == "measured at two batches"
    assert _memory("float16", Memory(5 * 1024, None, 4, 10)).how == "measured"


@pytest.mark.parametrize(("swallowed", "lines"), [(9, 0), (10, 1)])
def test_a_state_has_a_line_from_one_write_in_a_hundred(swallowed: int, lines: int) -> None:
    write = Write("weights", "", "add_", torch.float32, changed=1000, magnitude=1.0)
    write.swallowed[torch.bfloat16] = swallowed
    found = _state(write)
    assert len(found) == lines and all("Kahan" in line.finding for line in found)
    decay = Write("weights", "", "mul_", torch.float32, changed=1000, magnitude=1.0)
    decay.swallowed[torch.bfloat16] = 1000
    assert not any("Kahan" in line.finding for line in _state(decay))


def test_only_float16_has_a_line_on_loss_scales() -> None:
    assert _scale(FormatVerdict("float16", "yes", "")) and not _scale(
        FormatVerdict("bfloat16", "yes", "")
    )


@pytest.mark.parametrize(
    ("survives", "repeatable", "said"),
    [("yes", True, True), ("no", True, False), ("yes", False, False)],
)
def test_ill_conditioned_is_said_of_a_finite_run_that_no_format_is_to_blame_for(
    survives: Survives, repeatable: bool, said: bool
) -> None:
    verdict = FormatVerdict("float16", survives, "", total=0.5, gradient_error={"w": 0.5})
    (line,) = _silent("float16", Report(verdict), repeatable=repeatable)
    assert ("ill-conditioned" in line.finding) is said
