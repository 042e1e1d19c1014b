"""Every built page in a real Chromium: from disk and over http, light and dark, desk and phone."""

from __future__ import annotations

import pytest
from accessibility import serious_violations
from lint import pages
from playwright.sync_api import Browser, Page, expect
from visits import ROOT, Look, OpenPage, Scheme, Theme, Visit

pytestmark = [pytest.mark.browser, pytest.mark.book]

SOURCES = [path.relative_to(ROOT).with_suffix(".html").as_posix() for path in pages()]
PAGES = [*SOURCES, "search.html", "genindex.html"]
LOAD_LIMIT_S = 1.0
PLAIN_PAGE = "book/reference/bibliography.html"


AXE: list[tuple[Theme, int]] = [("light", 1280), ("dark", 390), ("light", 390), ("dark", 1280)]


def axe_looks(page: str) -> int:
    """In how many of the four axe looks at a page.

    Two; at the front page, which has the same frame, all; at a room of the package one, because
    all rooms are made by the same directive.
    """
    if page == "book/index.html":
        return 4
    return 1 if "/api/" in page and not page.endswith("index.html") else 2


FIRST = [Look(page, "http", *AXE[0]) for page in SOURCES]
LOOKED_AT_BY_AXE = FIRST + [
    Look(page, "http", *look) for page in SOURCES for look in AXE[1 : axe_looks(page)]
]
# The lists begin alike, because pytest groups tests by the place of their parameter.  A page is
# loaded in the first of its looks and turned into the others: at a desk over http, on a phone from
# disk.
SCHEMES: dict[Scheme, list[tuple[Theme, int]]] = {"http": AXE, "file": [*AXE[2:0:-1], *AXE[::-3]]}
EVERY = [
    Look(page, scheme, *look)
    for page in PAGES
    for scheme, looks in SCHEMES.items()
    for look in looks
]
EVERY_LOOK = list(dict.fromkeys(LOOKED_AT_BY_AXE + EVERY))


@pytest.mark.parametrize("opened", EVERY_LOOK, ids=str, indirect=True)
def test_a_page_works_alone_and_fits(request: pytest.FixtureRequest, opened: Visit) -> None:
    wide, room, theme, cut = opened.page.evaluate(
        "() => { const {scrollWidth, clientWidth, dataset} = document.documentElement;"
        " const contents = [...document.querySelectorAll('.bd-sidebar-secondary')];"
        " const cut = contents.some(list => list.scrollWidth > list.clientWidth);"
        " return [scrollWidth, clientWidth, dataset.theme, cut] }"
    )
    assert opened.external_requests == []
    assert opened.errors == []
    assert wide <= room, "the page scrolls sideways"
    assert not cut, "a word of the contents is wider than their column"
    assert theme == request.node.callspec.params["opened"].theme


@pytest.mark.parametrize("opened", LOOKED_AT_BY_AXE, ids=str, indirect=True)
def test_axe_finds_no_serious_violation(opened: Visit) -> None:
    assert serious_violations(opened.page) == []


def test_axe_finds_the_one_pale_word_of_a_long_listing(browser: Browser) -> None:
    words = '<span class="n">name</span> <span class="o">=</span>\n' * 40
    listing = f'{words}<span class="pale">return</span>\n{words}'
    style = "<style>body { background: white } .pale { color: #aaa }</style>"
    page = browser.new_page()
    page.set_content(f'{style}<div class="highlight"><pre>{listing}</pre></div>')
    found = [line for line in serious_violations(page) if line.startswith("color-contrast")]
    assert ['class="pale"' in line for line in found] == [True]
    assert page.locator("[data-seen-before]").count() > 100
    page.close()


def test_the_front_door_opens_from_disk(visit: OpenPage) -> None:
    seen = visit("index.html", scheme="file")
    seen.page.wait_for_url("**/book/index.html")
    expect(seen.page.locator("article h1")).to_be_visible()
    assert seen.errors == []


def cpu_s_of_loading(page: Page) -> float:
    """Processor time of the page's own thread until it is ready: other work does not change it."""
    client = page.context.new_cdp_session(page)
    client.send("Performance.enable", {"timeDomain": "threadTicks"})

    def spent() -> float:
        metrics = client.send("Performance.getMetrics")["metrics"]
        return float(next(m["value"] for m in metrics if m["name"] == "TaskDuration"))

    before = spent()
    page.reload()
    return spent() - before


@pytest.mark.parametrize("opened", FIRST, ids=str, indirect=True)
def test_a_page_is_ready_within_a_second_from_localhost(opened: Visit, visit: OpenPage) -> None:
    plain = own = float("inf")
    for _ in range(5):
        own = min(own, cpu_s_of_loading(opened.page))
        if own <= LOAD_LIMIT_S:
            return
        plain = min(plain, cpu_s_of_loading(visit(PLAIN_PAGE).page))
    # On a machine that is slow altogether: what the heaviest page takes of a plain one, and a half.
    assert own <= 12 * plain
