"""The search: what people type finds the section that answers, and the page of the search works."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lint
import pytest
import search_index
from accessibility import serious_violations
from playwright._impl._driver import compute_driver_executable
from playwright.sync_api import Browser, expect
from queries import QUERIES
from symptoms import Symptom
from visits import OpenPage, PageUrl, Theme

FIRST = 3
DOWNLOAD_BUDGET_BYTES = 450_000
SCRIPTS = lint.BOOK / "_static" / "search"
RUNNER = Path(__file__).with_name("run_search.js")

Hits = list[dict[str, Any]]


def run_search(folder: Path, sections: Path, queries: Sequence[str]) -> list[Hits]:
    """The hits of each query, by the scripts of the reader's page, in Playwright's own Node."""
    node, _ = compute_driver_executable()
    command = [node, str(RUNNER), str(folder), str(sections)]
    asked = json.dumps(list(queries))
    done = subprocess.run(command, input=asked, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# What people type finds what answers.


@pytest.fixture(scope="module")
def hits(book_html: Path) -> dict[str, Hits]:
    """The hits of every query in the built book."""
    static = book_html / "_static"
    found = run_search(static / "search", static / search_index.SCRIPT, list(QUERIES))
    return dict(zip(QUERIES, found, strict=True))


@pytest.mark.book
@pytest.mark.parametrize("query", QUERIES)
def test_what_people_type_finds_the_section_that_answers(
    query: str, hits: dict[str, Hits], book_html: Path
) -> None:
    first = hits[query][:FIRST]
    if not any(QUERIES[query] & set(hit["ids"]) for hit in first):
        script = (book_html / "_static" / search_index.SCRIPT).read_text("utf-8")
        known = {place for place in QUERIES[query] if f'"{place}"' in script}
        pytest.fail(
            f"{query!r} finds {[(hit['title'], hit['ids']) for hit in first]};"
            f" wanted {sorted(QUERIES[query])}, of which the book has {sorted(known)}"
        )


def test_there_are_sixty_queries() -> None:
    assert len(QUERIES) >= 60 and all(QUERIES.values())


@pytest.mark.book
def test_a_search_downloads_little(book_html: Path) -> None:
    static = book_html / "_static"
    scripts = [static / search_index.SCRIPT, *(static / "search").glob("*.js")]
    assert len(scripts) == 4
    sent = sum(len(gzip.compress(script.read_bytes(), 6)) for script in scripts)
    assert 50_000 < sent <= DOWNLOAD_BUDGET_BYTES


def test_the_library_is_the_one_that_the_readme_names() -> None:
    said = re.search(r"SHA-256 `([0-9a-f]{64})`", (SCRIPTS / "README.md").read_text("utf-8"))
    assert said
    assert said[1] == hashlib.sha256((SCRIPTS / "minisearch.js").read_bytes()).hexdigest()


# The ranking itself, on a book of five sections.

PAGE = """<article><section id="page"><h1>A page</h1><p>About numbers.</p>{}</section></article>"""
SECTION = '<section id="s-{0}"><span id="{0}"></span><h2>{1}</h2><p>{2}</p></section>'
SECTIONS = [
    ("scaler", "No inf checks", "A scaler that saw no gradient complains."),
    ("talks", "A talk", "No inf checks were recorded, no inf checks, and float16 again."),
    ("adam", "Why is Adam stuck?", "An update in bfloat16 is rounded away."),
    ("shards", "Many devices", "FSDP keeps what it was given."),
    ("budget", "Where bytes go", "The largest float16 is 65,504; half the memory is no rule."),
]
SEEN = Symptom(
    0, "scaler", "No inf checks", "error", ("No inf checks were recorded for this optimizer",),
    "Nothing was unscaled.", ("accelerate",), "scaler.update()",
)  # fmt: skip


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    html = PAGE.format("".join(SECTION.format(*section) for section in SECTIONS))
    typed = {"page.html": {"shards": ["memory of many cards"]}}
    known = search_index.index({"page.html": html}, {"page.html": {"scaler": SEEN}}, typed)
    script = tmp_path_factory.mktemp("search") / "sections.js"
    script.write_text(f"window.MPBOOK_SECTIONS = {json.dumps(known)};", "utf-8")
    return script


RANKED = {
    "AssertionError: no inf checks were recorded for this optimizer (rank 3)": "scaler",
    "accelerate": "scaler",
    "bf16 updates": "adam",
    "FSDP2": "shards",
    "fully_shard": "shards",
    "memory of many cards": "shards",  # which its text does not say
    "difference between shards and FSDP": "shards",
    "65504": "budget",
    "gradeint scalr": "scaler",
    "xyzzy": "",
    "why is it": "",
    "": "",
}


def test_a_symptom_outranks_a_text_and_words_that_mean_the_same_find_the_same(
    made_up: Path,
) -> None:
    found = zip(RANKED, run_search(SCRIPTS, made_up, list(RANKED)), strict=True)
    assert {query: hits[0]["ids"][-1] if hits else "" for query, hits in found} == RANKED


def test_an_english_half_in_a_text_is_no_float16(made_up: Path) -> None:
    (found,) = run_search(SCRIPTS, made_up, ["half"])
    assert {hit["ids"][-1] for hit in found} == {"talks", "budget"}
    (found,) = run_search(SCRIPTS, made_up, ["fp16"])
    assert {hit["ids"][-1] for hit in found} == {"talks", "budget"}


def test_an_excerpt_marks_what_was_found(made_up: Path) -> None:
    ((hit, *_),) = run_search(SCRIPTS, made_up, ["bf16"])
    assert hit["shown"] == [
        ["An update in ", False], ["bfloat16", True], [" is rounded away.", False],
    ]  # fmt: skip


# What is read from a page.


def test_sections_terms_and_objects_are_read_apart() -> None:
    html = """<nav>Aside</nav><article class="bd-article"><section id="top"><h1>Top<a
      class="headerlink">#</a></h1><p>Before <em>it</em>.</p><section id="below">
      <span id="target"></span><h2>Below</h2><div class="highlight"><pre>x = <span>1</span></pre>
      </div><p>At \\(2^{-24}\\).</p><div class="solution dropdown admonition"><p>Hush.</p><div>
      </div></div><p>After.</p></section><dl class="glossary"><dt id="term-ulp">ulp</dt><dd>A gap.
      </dd><dt id="term-eps">eps</dt><dd>Another.</dd></dl><dl class="py function"><dt class="sig"
      id="mpbook.f">f(x)</dt><dd><p>It rounds.</p></dd></dl><p>End.</p></section></article>"""
    found = search_index.sections(html)
    assert [(x.kind, x.anchor, x.title, x.text, x.code) for x in found] == [
        ("section", "top", "Top", "Before it. End.", ""),
        ("section", "target", "Below", "At 2^-24. After.", "x = 1"),
        ("term", "term-ulp", "ulp", "A gap.", ""),
        ("term", "term-eps", "eps", "Another.", ""),
        ("object", "mpbook.f", "mpbook.f", "It rounds.", ""),
    ]
    assert found[1].ids == ["below", "target"]


# The page of the search.


@pytest.mark.browser
@pytest.mark.book
def test_from_disk_and_by_keyboard_a_message_leads_to_its_section(visit: OpenPage) -> None:
    seen = visit("book/quickstart.html", scheme="file")
    seen.page.keyboard.press("Control+k")
    seen.page.keyboard.type("no inf checks were recorded prior to update")
    seen.page.keyboard.press("Enter")
    seen.page.wait_for_url("**/search.html?q=*")
    expect(seen.page.locator("#search-results a").first).to_contain_text("prior to update")
    seen.page.keyboard.press("ArrowDown")
    seen.page.keyboard.press("Enter")
    seen.page.wait_for_url(re.compile(r"\.html#.+"))
    heading = "xpath=ancestor-or-self::section[1]/*[self::h2 or self::h3]"
    expect(seen.page.locator(":target").locator(heading)).to_be_in_viewport()
    assert seen.errors == [] and seen.external_requests == []


@pytest.mark.browser
@pytest.mark.book
@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 390)])
def test_hits_show_their_page_and_pass_axe(visit: OpenPage, theme: Theme, width: int) -> None:
    seen = visit("search.html?q=fp16+mask", theme=theme, width=width)
    first = seen.page.locator("#search-results li").first
    expect(first.locator("mark").first).to_be_visible()
    expect(first.locator(".mp-hit-page")).to_contain_text("in ")
    expect(seen.page.locator("#search-help")).to_be_hidden()
    room = "document.documentElement.clientWidth - document.documentElement.scrollWidth"
    assert seen.page.evaluate(room) >= 0
    assert serious_violations(seen.page) == []


@pytest.mark.browser
@pytest.mark.book
def test_an_unknown_word_is_told_what_to_do(visit: OpenPage) -> None:
    seen = visit("search.html?q=xyzzyplugh", scheme="file")
    expect(seen.page.get_by_role("status").first).to_contain_text("xyzzyplugh")
    expect(seen.page.locator("#search-help")).to_contain_text("leave out shapes")
    seen.page.locator("#search-help a", has_text="Symptoms").click()
    seen.page.wait_for_url("**/symptoms.html")


@pytest.mark.browser
@pytest.mark.book
def test_without_a_script_the_page_says_so_and_where_to_look(
    browser: Browser, page_url: PageUrl
) -> None:
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(page_url("search.html?q=nan", "file"))
        expect(page.locator("noscript strong")).to_have_text(re.compile("needs JavaScript"))
        expect(page.locator("noscript strong")).to_be_visible()
        expect(page.locator("#search-help a", has_text="Symptoms")).to_be_visible()
