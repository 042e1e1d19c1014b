"""What README and CONTRIBUTING point at is there."""

from __future__ import annotations

import re

import pytest
from visits import ROOT

PATH = re.compile(r"`((?:mpbook|book|tests|\.github)/[\w./-]*)`")


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_every_path_that_a_page_names_exists(page: str) -> None:
    named = PATH.findall((ROOT / page).read_text("utf-8"))
    invented = {"book/FOLDER/NAME.ipynb"}
    assert {path for path in named if not (ROOT / path).exists()} - invented == set()
