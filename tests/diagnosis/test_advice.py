"""What to do: each piece of advice points at a section that exists, and its lines are Python."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest
from visits import ROOT

from mpbook.diagnosis import advice

SOURCE = (ROOT / "mpbook" / "diagnosis" / "advice.py").read_text("utf-8")
PAGES = sorted(set(re.findall(r'"([a-z_0-9]+/[a-z_0-9]+\.html#[a-z0-9-]+)"', SOURCE)))


def snippets() -> Iterator[str]:
    yield from (lines for _, lines, _ in advice._BY_OPERATOR.values())
    yield from (lines for _, (_, lines, _) in advice._BY_MESSAGE)
    yield from (advice._LOOP.format(exponent=8), advice._BFLOAT16)


def test_there_are_pages_to_check() -> None:
    assert len(PAGES) >= 12


@pytest.mark.parametrize("page", PAGES)
def test_the_section_exists(page: str) -> None:
    name, _, target = page.partition(".html#")
    assert f"({target})=" in (ROOT / "book" / f"{name}.ipynb").read_text("utf-8")


@pytest.mark.parametrize("lines", sorted(set(snippets())))
def test_the_lines_to_paste_are_python(lines: str) -> None:
    ast.parse(lines)
