"""The page of symptoms: made from the notebooks at each build, and left to the words in its box."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lint
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from playwright.sync_api import Browser, Page, expect
from symptoms import KINDS, symptoms

CURE = 'with torch.autocast("cuda", torch.bfloat16):\n    loss = model(x) < 1'
ENTRIES: dict[str, dict[str, Any]] = {
    "a-no-checks": {
        "kind": "error",
        "seen": ["No inf checks were recorded", "AssertionError: <no> inf *checks*, got 3"],
        "means": "No gradient was unscaled: see `update` and {ref}`the other one <b-nan>`.",
        "words": ["AMP", "accelerate"],
    },
    "b-nan": {
        "kind": "nan",
        "seen": ['The loss is NaN with "fp16"'],
        "means": "An activation is beyond 65504.",
        "words": ["OOM"],
    },
    "c-stuck": {
        "kind": "error",
        "seen": ["expected scalar type Half but found Float"],
        "means": "Two dtypes meet.",
        "words": [],
    },
}


def notebook(entries: dict[str, dict[str, Any]]) -> nbformat.NotebookNode:
    cells = [new_markdown_cell("# Traps of a book that is made up")]
    for target, carried in entries.items():
        source = f"({target})=\n## Section {target}"
        cells.append(new_markdown_cell(source, metadata={"symptoms": carried}))
        cells.append(new_code_cell(CURE, metadata={"tags": ["cure"]}))
    language = {"name": "python", "pygments_lexer": "python"}
    return new_notebook(cells=cells, metadata={"language_info": language})


def build(folder: Path, entries: dict[str, dict[str, Any]]) -> Path:
    """Build a book of one page of traps and the page of symptoms; return the latter."""
    nbformat.write(notebook(entries), folder / "traps.ipynb")
    options = {
        "extensions": "myst_nb,symptoms_page",
        "nb_execution_mode": "off",
        "html_static_path": str(lint.BOOK / "_static"),
        "html_theme": "basic",
    }
    defined = [f"-D{name}={value}" for name, value in options.items()]
    tools = f"import sys; sys.path.insert(0, {str(lint.BOOK / '_tools')!r})\n"
    run = "from sphinx.cmd.build import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", tools + run, "-q", "-W", "-n", "-C", *defined]
    done = subprocess.run([*command, ".", "../out"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder.parent / "out" / "symptoms.html"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("made_up") / "source"
    made.mkdir()
    (made / "index.md").write_text("# Book\n\n```{toctree}\nsymptoms\ntraps\n```\n", "utf-8")
    (made / "symptoms.md").write_text("# Symptoms\n\n```{symptoms}\n```\n", "utf-8")
    return made


@pytest.fixture(scope="module")
def built(folder: Path) -> str:
    return build(folder, ENTRIES).read_text("utf-8")


def words(shown: str) -> str:
    """What a piece of HTML says."""
    return html.unescape(re.sub(r"<[^>]+>", "", shown))


def test_an_entry_has_what_is_seen_what_it_means_the_lines_and_the_proof(built: str) -> None:
    entry = built.partition('id="symptom-a-no-checks"')[2].partition("</section>")[0]
    text = words(entry)
    assert "<h3><code" in entry and "No inf checks were recorded" in text
    assert "AssertionError: <no> inf *checks*, got 3" in text  # word for word
    assert "No gradient was unscaled: see update and the other one." in text
    assert 'class="highlight-python' in entry and CURE in text
    assert 'href="traps.html#a-no-checks"' in entry and "Section a-no-checks" in text


def test_a_symptom_is_shown_word_for_word(built: str) -> None:
    assert 'The loss is NaN with "fp16"' in words(built)


def test_kinds_come_in_their_order_and_entries_by_the_alphabet(built: str) -> None:
    places = re.findall(r'<section class="mp-\w+" id="([\w-]+)"', built)
    assert places == [
        "symptoms-error", "symptom-c-stuck", "symptom-a-no-checks", "symptoms-nan", "symptom-b-nan",
    ]  # fmt: skip
    assert f'href="#symptoms-error">{KINDS["error"]}</a> (2)' in built


def test_a_symptom_that_changes_or_goes_leaves_no_copy(folder: Path, built: str) -> None:
    changed = {"b-nan": ENTRIES["b-nan"] | {"means": "Look at the *first* layer."}}
    before, after = words(built), words(build(folder, changed).read_text("utf-8"))
    assert "Look at the first layer." in after and "Look at" not in before
    for gone in ("65504", "No inf checks", "c-stuck"):
        assert gone in before and gone not in after


# The box.


@pytest.fixture(scope="module")
def page(browser: Browser, tmp_path_factory: pytest.TempPathFactory, built: str) -> Iterator[Page]:
    file = tmp_path_factory.mktemp("box") / "symptoms.html"
    script = lint.BOOK / "_static" / "symptoms.js"
    file.write_text(built.replace("_static/symptoms.js", script.as_uri()), "utf-8")
    page = browser.new_page()
    page.goto(file.as_uri())
    yield page
    page.close()


def left(page: Page, typed: str) -> list[str]:
    """Type into the box, as a keyboard does; return the entries that stay."""
    page.get_by_role("searchbox").focus()
    page.keyboard.press("Control+a")
    page.keyboard.press("Delete")
    page.keyboard.type(typed)
    shown = page.locator(".mp-symptom:visible")
    return [str(entry.get_attribute("id")) for entry in shown.all()]


@pytest.mark.browser
@pytest.mark.parametrize(
    ("typed", "entries"),
    [
        ("", ["c-stuck", "a-no-checks", "b-nan"]),
        ("inf che", ["a-no-checks"]),
        ("RuntimeError: expected scalar type Half but found BFloat16", ["c-stuck"]),
        ("oom", ["b-nan"]),
        ("xyzzy", []),
    ],
)
def test_the_box_leaves_the_entries_with_the_words(
    page: Page, typed: str, entries: list[str]
) -> None:
    assert left(page, typed) == [f"symptom-{entry}" for entry in entries]


@pytest.mark.browser
def test_where_nothing_matches_the_page_says_what_to_do(page: Page) -> None:
    left(page, "xyzzy & plugh")
    expect(page.get_by_role("status")).to_contain_text("Type fewer of them")
    link = page.get_by_role("link", name="search the whole book")
    assert link.get_attribute("href").endswith("search.html?q=xyzzy%20%26%20plugh")
    left(page, "")
    expect(page.get_by_role("status")).to_be_empty()


@pytest.mark.browser
def test_a_link_to_an_entry_shows_it_whatever_is_typed(page: Page) -> None:
    left(page, "xyzzy")
    page.evaluate("location.hash = 'symptom-b-nan'")
    expect(page.locator("#symptom-b-nan")).to_be_visible()


@pytest.mark.browser
def test_without_a_script_the_page_is_complete_and_has_no_box(
    browser: Browser, folder: Path, built: str, tmp_path: Path
) -> None:
    (tmp_path / "symptoms.html").write_text(built, "utf-8")
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto((tmp_path / "symptoms.html").as_uri())
        assert page.locator(".mp-symptom:visible").count() == len(ENTRIES)
        assert page.get_by_role("searchbox").count() == 0


# The book's own.


@pytest.mark.book
def test_the_page_of_the_book_has_every_symptom_that_its_notebooks_carry(book_html: Path) -> None:
    notebooks = [lint.read(path) for path in lint.pages() if path.suffix == ".ipynb"]
    carried = {symptom.target for page in notebooks for symptom in symptoms(page)}
    shown = (book_html / "book" / "reference" / "symptoms.html").read_text("utf-8")
    assert set(re.findall(r'class="mp-symptom" id="symptom-([\w-]+)"', shown)) == carried
    assert len(carried) >= 30, "the book's traps carry their symptoms"
    index = json.loads((book_html / "_static" / "search_sections.js").read_text("utf-8")[25:-2])
    assert sum("seen" in section for section in index["sections"]) == len(carried)
