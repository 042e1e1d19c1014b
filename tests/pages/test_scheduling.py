"""`scheduling`: what `pytest -n` deals out together, and in which order."""

from __future__ import annotations

import pytest
import test_browser
from scheduling import rank, unit


@pytest.mark.parametrize(
    ("nodeid", "name"),
    [
        ("tests/test_data.py::test_a[book/index.html]", "tests/test_data.py"),
        ("tests/test_data.py::Group::test_a", "tests/test_data.py"),
        ("book/quickstart::ipynb::Cell 0", "book/quickstart.ipynb"),
        ("book/quickstart.ipynb::Cell 0", "book/quickstart.ipynb"),
        ("tests/pages/test_browser.py::test_search", "tests/pages/test_browser.py"),
    ],
)
def test_a_file_stays_together(nodeid: str, name: str) -> None:
    assert unit(nodeid) == name


def test_the_tests_of_one_page_stay_together_apart_from_other_pages() -> None:
    file = "tests/pages/test_browser.py"
    units = {look.page: set() for look in test_browser.EVERY_LOOK}  # type: ignore[var-annotated]
    for look in test_browser.EVERY_LOOK:
        for test in ("test_a_page_works_alone_and_fits", "test_axe_finds_no_serious_violation"):
            units[look.page].add(unit(f"{file}::{test}[{look}]"))
    assert units == {page: {f"{file}::{page}"} for page in test_browser.PAGES}


def test_the_pages_are_built_first_then_the_notebooks_run_then_the_browser() -> None:
    order = [
        "tests/pages/test_built_pages.py::test_a",
        "book/quickstart::ipynb::Cell 0",
        "tests/pages/test_browser.py::test_a[book/index.html-http]",
        "tests/explorers/test_census.py::test_a",
        "tests/evidence/test_recorder.py::test_a",
        "tests/test_data.py::test_a",
    ]
    assert [rank(unit(test)) for test in order] == list(range(len(order)))
