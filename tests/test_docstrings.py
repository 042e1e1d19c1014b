"""What a docstring shows after ``>>>`` is what comes out."""

from __future__ import annotations

import doctest
import importlib

import pytest
from visits import ROOT

FILES = sorted((ROOT / "mpbook").rglob("*.py"))
SHOWN = [
    ".".join(file.relative_to(ROOT).with_suffix("").parts)
    for file in FILES
    if ">>> " in file.read_text("utf-8")
]


@pytest.mark.parametrize("module", SHOWN)
def test_an_example_gives_what_it_shows(module: str) -> None:
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted and not result.failed
