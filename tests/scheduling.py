"""How `pytest -n` deals out the tests: a file at a time, the long ones first.

A file's tests share what is dear: a notebook its kernel, an explorer's tests a browser. The tests
of built pages are dealt out page by page, for that one file would keep a worker busy alone. What
takes long goes first, so that no worker ends with it while the others are idle; the pages are
built before anybody opens one.
"""

from __future__ import annotations

import re
from typing import Any

from xdist.scheduler import LoadScopeScheduling

# What a unit's name holds, the longest first; what is not named comes last.
FIRST = ("test_built_pages.py", ".ipynb", "test_browser.py", "tests/explorers", "tests/evidence")


def unit(nodeid: str) -> str:
    """The name of the unit that a test belongs to: its file, or its page of the book."""
    # nbval calls a notebook's cell "book/quickstart::ipynb::Cell 0".
    file, _, name = nodeid.replace("::ipynb::", ".ipynb::").partition("::")
    page = re.search(r"\[(\S+?\.html)", name) if file.endswith("test_browser.py") else None
    return f"{file}::{page[1]}" if page else file


def rank(unit: str) -> int:
    """When a unit is dealt out: 0 first."""
    return next((place for place, part in enumerate(FIRST) if part in unit), len(FIRST))


class LongestFirst(LoadScopeScheduling):
    """xdist's own dealer, by other units and in another order."""

    def _split_scope(self, nodeid: str) -> str:
        return unit(nodeid)

    def _assign_work_unit(self, node: Any) -> None:
        self.workqueue.move_to_end(min(self.workqueue, key=rank), last=False)
        super()._assign_work_unit(node)
