"""README and the reference show the tools to take home, in lines that run as they are written."""

from __future__ import annotations

import contextlib
import io
import re

import pytest
from visits import ROOT

PAGES = ("README.md", "book/reference/api/index.md")


def first_example(page: str) -> str:
    """The first Python listing of a page."""
    found = re.search(r"^```python\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.M | re.S)
    assert found, page
    return found[1]


def tools(listing: str) -> list[str]:
    """The lines after the imports and what stands for the reader's own model."""
    return listing.rpartition("\n\n")[2].strip().splitlines()


def test_the_tools_are_shown_in_eight_lines() -> None:
    listing = first_example("README.md")
    assert len(tools(listing)) <= 8
    for name in ("Probe(", "updates_lost(", "trace_dtypes(", "plan_memory(", 'help("mpbook")'):
        assert any(name in line for line in tools(listing)), name


def test_readme_and_the_reference_show_the_same_lines() -> None:
    assert len({first_example(page) for page in PAGES}) == 1


@pytest.mark.parametrize("page", PAGES)
def test_the_lines_run_as_written(page: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(compile(first_example(page), page, "exec"), {})
    for told in ("in float16", "weight unmoved", "computed in", "at the peak", "mpbook.watch"):
        assert told in said.getvalue(), told
