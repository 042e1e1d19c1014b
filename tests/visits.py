"""The types of the fixtures in conftest.py, for the tests that annotate with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import pytest
from playwright.sync_api import Page

from mpbook import doctor

ROOT = Path(__file__).resolve().parents[1]

needs_compiler = pytest.mark.skipif(
    doctor.cpp_compiler() is None,
    reason=f"no C++ compiler, which torch.compile needs: {doctor.HOW_TO_COMPILE}",
)

Scheme = Literal["http", "file"]
Theme = Literal["light", "dark"]


class Look(NamedTuple):
    """A page, how it is fetched, and how it is looked at."""

    page: str
    scheme: Scheme
    theme: Theme
    width: int

    def __str__(self) -> str:
        return "-".join(map(str, self))


class PageUrl(Protocol):
    """Says where a built page is."""

    def __call__(self, page: str, scheme: Scheme = "http") -> str: ...


@dataclass
class Visit:
    """One page, open in the browser, and what has gone wrong on it so far."""

    page: Page
    errors: list[str] = field(default_factory=list)
    external_requests: list[str] = field(default_factory=list)


class OpenPage(Protocol):
    """Opens a page in a fresh browser context."""

    def __call__(
        self, page: str, *, scheme: Scheme = "http", theme: Theme = "light", width: int = 1280
    ) -> Visit: ...
