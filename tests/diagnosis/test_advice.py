"""What to do: when it is said, that its section exists, and that its lines are Python."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from visits import ROOT

from mpbook.diagnosis import advice, cures
from mpbook.diagnosis.format_report import FormatReport
from mpbook.diagnosis.places import Key, Place, Seen
from mpbook.diagnosis.state import Write
from mpbook.diagnosis.verdicts import FormatVerdict

SOURCE = "".join(
    (ROOT / "mpbook" / "diagnosis" / name).read_text("utf-8") for name in ("advice.py", "cures.py")
)
PAGES = sorted(set(re.findall(r'"([a-z_0-9]+/[a-z_0-9]+\.html#[a-z0-9-]+)"', SOURCE)))


def snippets() -> Iterator[str]:
    named = (value for value in vars(cures).values() if isinstance(value, tuple))
    yield from (cure[1] for cure in named if len(cure) == 3 and isinstance(cure[1], str))
    yield from (lines for _, lines, _ in cures.BY_OPERATOR.values())
    yield from (lines for _, (_, lines, _) in cures.BY_MESSAGE)
    for loss in (advice.WITH_A_LOSS, "...  # as your step has it"):
        yield from (cures.LOOP.format(exponent=8, loss=loss), cures.BFLOAT16.format(loss=loss))


def test_there_are_pages_to_check() -> None:
    assert len(PAGES) >= 12


@pytest.mark.parametrize("page", PAGES)
def test_the_section_exists(page: str) -> None:
    name, _, target = page.partition(".html#")
    assert f"({target})=" in (ROOT / "book" / f"{name}.ipynb").read_text("utf-8")


@pytest.mark.parametrize("lines", sorted(set(snippets())))
def test_the_lines_to_paste_are_python(lines: str) -> None:
    ast.parse(lines)


def verdict(format: str, survives: Any, **options: Any) -> FormatVerdict:
    seen = Seen(Key("forward", Place("layer"), "mm", 1), torch.float16, 0, (1,))
    return FormatVerdict(format, survives, "a reason", tightest=(seen,), **options)


def said(*verdicts: FormatVerdict, writes: Sequence[Write] = ()) -> list[str]:
    found = advice.advise({v.format: FormatReport(v) for v in verdicts}, list(writes))
    return [one.what for one in found]


def still(state: str, operator: str = "add_") -> Write:
    """A state of which bfloat16 would lose every change."""
    write = Write(state, "", operator, torch.float32, changed=1, magnitude=1.0)
    write.lost[torch.bfloat16] = 1.0
    return write


@pytest.mark.parametrize(
    ("survives", "total", "named"), [("yes", 0.2, True), ("yes", 0.4, False), ("no", 0.2, False)]
)
def test_bfloat16_is_named_only_where_it_holds(survives: str, total: float, named: bool) -> None:
    found = said(verdict("float16", "no"), verdict("bfloat16", survives, total=total))
    assert any("train in bfloat16" in what for what in found) is named


@pytest.mark.parametrize(("scale", "too_large"), [(2.0**-4, True), (1.0, False), (2.0**9, False)])
def test_a_loss_that_only_fits_scaled_down_is_to_be_brought_down(
    scale: float, too_large: bool
) -> None:
    (found,) = said(verdict("float16", "with a loss scale", loss_scale=scale))
    assert ("standardise its targets" in found) is too_large


def test_what_fails_already_is_not_watched_besides() -> None:
    assert any("watch" in what for what in said(verdict("float16", "yes", headroom=1.0)))
    assert not any("watch" in what for what in said(verdict("float16", "no", headroom=1.0)))


def test_a_run_that_fails_in_float32_is_told_once() -> None:
    broken = [verdict(format, "fails in float32 too") for format in ("float16", "bfloat16")]
    assert len(said(*broken)) == 1


@pytest.mark.parametrize(
    ("write", "parts"),
    [
        (still("weights"), ["keep the weights in float32"]),
        (still("weights", "mul_"), []),  # a decay
        (still("exp_avg"), []),
        (still("exp_avg_sq", "mul_"), ["second moment"]),
        (still("buffers"), ["keep buffers in float32"]),
    ],
    ids=lambda value: getattr(value, "state", ""),
)
def test_each_state_that_stands_still_has_its_own_advice(write: Write, parts: list[str]) -> None:
    found = said(writes=[write])
    assert len(found) == len(parts) and all(map(operator.contains, found, parts))
