"""What a reader downloads: nothing from another site, and little."""

from __future__ import annotations

import gzip
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import lint
import pytest

from mpbook.formats import FORMATS
from mpbook.plots import COLOURS

pytestmark = pytest.mark.book

PLAIN_BUDGET_BYTES = 1_000_000
MATHS_BUDGET_BYTES = 2_500_000
# What the browser sends over the wire as it is: already compressed.
COMPRESSED = {".png", ".jpg", ".jpeg", ".gif", ".woff", ".woff2"}
# The theme's style sheet names its fonts; a page with icons of every kind fetches these.
ICON_FONTS = "_static/vendor/fontawesome/*/webfonts/fa-{solid-900,brands-400,regular-400}.woff2"


class _Assets(HTMLParser):
    """Collects what a page loads with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag in ("script", "img"):
            self.addresses.add(attributes.get("src") or "")
        elif tag == "link" and attributes.get("rel") in ("stylesheet", "preload", "icon"):
            self.addresses.add(attributes.get("href") or "")


def html_pages(folder: Path) -> list[Path]:
    found = folder.rglob("*.html")
    return sorted(page for page in found if "_static" not in page.relative_to(folder).parts)


def assets(page: Path) -> list[Path]:
    """Return the files that a page loads, in the page's own site."""
    parser = _Assets()
    parser.feed(page.read_text("utf-8"))
    parts = [unquote(urlsplit(address).path) for address in parser.addresses]
    local = {(page.parent / part).resolve() for part in parts if part}
    return sorted(local)


def wire_bytes(path: Path) -> int:
    """Return how many bytes a file takes on the wire."""
    data = path.read_bytes()
    return len(data) if path.suffix in COMPRESSED else len(gzip.compress(data, 6))


def icon_fonts(folder: Path) -> list[Path]:
    head, _, rest = ICON_FONTS.partition("{")
    names, _, tail = rest.partition("}")
    return [font for name in names.split(",") for font in folder.glob(f"{head}{name}{tail}")]


def maths_files(folder: Path) -> list[Path]:
    """Return the fonts that MathJax fetches for common formulas, generously."""
    return list(folder.glob("_static/mathjax/output/chtml/fonts/woff-v2/*.woff"))


def test_no_page_loads_anything_from_another_site(book_html: Path) -> None:
    found = {
        str(page.relative_to(book_html)): loads
        for page in html_pages(book_html)
        if (loads := lint.external_loads(page.read_text("utf-8")))
    }
    assert found == {}


def test_no_style_sheet_that_a_page_loads_names_another_site(book_html: Path) -> None:
    sheets = {a for page in html_pages(book_html) for a in assets(page) if a.suffix == ".css"}
    assert sheets
    found = {sheet.name: lint.external_css_loads(sheet.read_text("utf-8")) for sheet in sheets}
    assert {name: loads for name, loads in found.items() if loads} == {}


def test_every_file_that_a_page_loads_exists(book_html: Path) -> None:
    missing = [(p.name, a.name) for p in html_pages(book_html) for a in assets(p) if not a.exists()]
    assert missing == []


def test_every_picture_of_every_page_has_alt_text(book_html: Path) -> None:
    found = {
        page.name: bad
        for page in html_pages(book_html)
        if (bad := lint.without_alt(page.read_text("utf-8")))
    }
    assert found == {}


def test_maths_is_loaded_where_there_is_maths_and_only_there(book_html: Path) -> None:
    for page in html_pages(book_html):
        text = page.read_text("utf-8")
        assert ("tex-chtml.js" in text) == ('class="math ' in text), page


def test_explorers_are_loaded_where_there_is_one_and_only_there(book_html: Path) -> None:
    for page in html_pages(book_html):
        text = page.read_text("utf-8")
        held = set(re.findall(r'<mp-widget data-widget="(\w+)"', text))
        assert ("explorers_bundle.js" in text) == bool(held - {"gpu_explorer"}), page
        assert ("gpu_explorer.js" in text) == ("gpu_explorer" in held), page


def test_a_page_stays_within_its_weight(book_html: Path) -> None:
    fonts = sum(map(wire_bytes, icon_fonts(book_html)))
    assert fonts, "the theme's icon fonts moved: count them again"
    for page in html_pages(book_html):
        weight = wire_bytes(page) + fonts + sum(map(wire_bytes, assets(page)))
        budget = PLAIN_BUDGET_BYTES
        if "tex-chtml.js" in page.read_text("utf-8"):
            weight += sum(map(wire_bytes, maths_files(book_html)))
            budget = MATHS_BUDGET_BYTES
        assert weight <= budget, f"{page.relative_to(book_html)}: {weight:,} bytes on the wire"


def test_a_precision_has_the_same_colour_on_the_page_as_in_the_plots() -> None:
    css = (lint.BOOK / "_static" / "book.css").read_text("utf-8")
    light = css.partition('html[data-theme="dark"]')[0]
    stated = dict(re.findall(r"--mp-([\w-]*float[\w-]+): (#[0-9a-f]{6})", light))
    assert stated == {name.replace("_", "-"): COLOURS[name] for name in FORMATS}
