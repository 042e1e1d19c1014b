"""Every built page in a real Chromium: from disk and over http, light and dark, desk and phone."""

from __future__ import annotations

import pytest
from axe_playwright_python.sync_playwright import Axe
from lint import pages
from playwright.sync_api import expect
from visits import ROOT, OpenPage, Scheme, Theme

pytestmark = [pytest.mark.browser, pytest.mark.book]

SOURCES = [path.relative_to(ROOT).with_suffix(".html").as_posix() for path in pages()]
PAGES = [*SOURCES, "search.html", "genindex.html"]
LOAD_LIMIT_S = 1.0
PLAIN_PAGE = "book/reference/bibliography.html"
SEARCHED = "subnormal"


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("scheme", ["http", "file"])
@pytest.mark.parametrize("page", PAGES)
def test_a_page_works_alone_and_fits(
    visit: OpenPage, page: str, scheme: Scheme, theme: Theme, width: int
) -> None:
    seen = visit(page, scheme=scheme, theme=theme, width=width)
    wide, room = seen.page.evaluate(
        "() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert seen.external_requests == []
    assert seen.errors == []
    assert wide <= room, "the page scrolls sideways"
    assert seen.page.locator("html").get_attribute("data-theme") == theme


# Each page on two of the four, the front page, which has the same frame, on all of them.
LOOKS: list[tuple[Theme, int]] = [("light", 1280), ("dark", 390), ("dark", 1280), ("light", 390)]


@pytest.mark.parametrize(
    ("page", "theme", "width"),
    [
        (page, *look)
        for page in SOURCES
        for look in LOOKS[: 4 if page.endswith("index.html") else 2]
    ],
)
def test_axe_finds_no_serious_violation(
    visit: OpenPage, page: str, theme: Theme, width: int
) -> None:
    seen = visit(page, scheme="http", theme=theme, width=width)
    violations = Axe().run(seen.page).response["violations"]
    serious = [
        f"{found['id']}: {node['html'][:200]} {node['failureSummary'][:300]}"
        for found in violations
        if found["impact"] in ("serious", "critical")
        for node in found["nodes"]
    ]
    assert serious == []


def test_the_front_door_opens_from_disk(visit: OpenPage) -> None:
    seen = visit("index.html", scheme="file")
    seen.page.wait_for_url("**/book/index.html")
    expect(seen.page.locator("article h1")).to_be_visible()
    assert seen.errors == []


def test_search_works_from_disk(visit: OpenPage) -> None:
    seen = visit(f"search.html?q={SEARCHED}", scheme="file")
    link = seen.page.locator("#search-results a", has_text="Glossary").first
    expect(link).to_be_visible()
    link.click()
    seen.page.wait_for_url("**/glossary.html*")
    assert seen.errors == []


def cpu_s_of_loading(visit: OpenPage, page: str) -> float:
    """Processor time of the page's own thread until it is ready: other work does not change it."""
    seen = visit(page)
    client = seen.page.context.new_cdp_session(seen.page)
    client.send("Performance.enable", {"timeDomain": "threadTicks"})

    def spent() -> float:
        metrics = client.send("Performance.getMetrics")["metrics"]
        return float(next(m["value"] for m in metrics if m["name"] == "TaskDuration"))

    before = spent()
    seen.page.reload()
    return spent() - before


@pytest.mark.parametrize("page", SOURCES)
def test_a_page_is_ready_within_a_second_from_localhost(visit: OpenPage, page: str) -> None:
    plain = own = float("inf")
    for _ in range(5):
        own = min(own, cpu_s_of_loading(visit, page))
        if own <= LOAD_LIMIT_S:
            return
        plain = min(plain, cpu_s_of_loading(visit, PLAIN_PAGE))
    # On a machine that is slow altogether: what the heaviest page takes of a plain one, and a half.
    assert own <= 12 * plain
