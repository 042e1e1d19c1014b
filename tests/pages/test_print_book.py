"""The book as a PDF: its order, its links, its contents, and that nothing is cut off."""

from __future__ import annotations

import shutil
from pathlib import Path

import print_book
import pytest
import yaml
from conftest import require_browser
from print_book import Book, Chapter, PrintError
from pypdf import PdfReader
from visits import ROOT

LONG = "word_" * 40
"""A line of code of two hundred signs, without a place to break it."""

PAGE = """<html><head><link rel="stylesheet" href="../_static/book.css"></head><body>
<article class="bd-article">{}</article></body></html>"""
FIRST = """<section id="one"><h1>One<a class="headerlink" href="#one">#</a></h1>
<p><a href="two.html">page</a> <a href="../b/two.html#here">section</a> <a href="#one">own</a>
<a href="https://example.org/x">site</a> <a href="api/room.html">room</a></p>
<img src="../_images/a.png" alt="A curve."><script>play()</script>
<div class="cell tag_hide-input"><details><summary>Show</summary><pre>plumbing</pre></details></div>
<div class="cell tag_hide-cell"><details><summary>Show</summary><pre>solution</pre></details></div>
</section>"""
SECOND = f"""<section id="two"><h1>Two</h1><section id="here"><span id="old"></span><h2>Here</h2>
<pre>{LONG}</pre><table><tr>{"<td>0123456789</td>" * 30}</tr></table></section></section>"""
PAGES = {"book/b/one": FIRST, "book/b/two": SECOND}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Two built pages, one of which links to the other and has a picture."""
    picture = tmp_path / "html" / "book" / "_images" / "a.png"
    picture.parent.mkdir(parents=True)
    shutil.copy(ROOT / "book" / "_static" / "readme.png", picture)
    for name, body in PAGES.items():
        page = tmp_path / "html" / f"{name}.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(PAGE.format(body), "utf-8")
    return tmp_path / "html"


@pytest.fixture
def book(site: Path) -> Book:
    chapters = [Chapter("book/b/one", "Part"), Chapter("book/b/two", "Part")]
    return print_book.join(site, chapters, title="A title", author="Somebody")


def links(book: Book) -> list[str]:
    return [str(tag["href"]) for tag in book.articles[0].select("a[href]")]


def link_targets(pdf: Path) -> tuple[list[str], list[str]]:
    """The places within a PDF that its links name, and the addresses elsewhere."""
    within, elsewhere = [], []
    for page in PdfReader(pdf).pages:
        for link in (a.get_object() for a in page.get("/Annots") or []):
            action = link.get("/A", {}).get_object() if "/A" in link else {}
            if action.get("/S") == "/URI":
                elsewhere.append(str(action["/URI"]))
            elif link.get("/Subtype") == "/Link":
                within.append(str(link.get("/Dest", action.get("/D"))).removeprefix("/"))
    return within, elsewhere


# Order.


def test_every_page_of_the_contents_is_printed_but_the_rooms_of_the_package() -> None:
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))
    names = [chapter.name for chapter in print_book.chapters(toc)]
    assert names[:2] == ["book/index", "book/quickstart"] and len(set(names)) == len(names) > 15
    assert [name for name in names if "/api/" in name] == ["book/reference/api/index"]


def test_a_page_below_another_follows_it() -> None:
    below = {"file": "book/a_traps"}
    part = {"caption": "Part", "chapters": [{"file": "book/a", "sections": [below]}]}
    found = print_book.chapters({"root": "book/index", "parts": [part]})
    assert [(c.name, c.depth, c.anchor) for c in found] == [
        ("book/index", 0, "index"), ("book/a", 0, "a"), ("book/a_traps", 1, "a-traps"),
    ]  # fmt: skip


# Links, ids, and what only a screen has.


def test_links_lead_within_the_pdf_or_to_another_site(book: Book) -> None:
    assert links(book) == ["#b-two", "#b-two--here", "#b-one--one", "https://example.org/x"]
    assert "room" in book.articles[0].get_text(), "a link to a page left out stays as text"


def test_ids_of_two_pages_do_not_meet(book: Book) -> None:
    ids = [str(tag["id"]) for article in book.articles for tag in article.select("[id]")]
    assert ids == ["b-one--one", "b-two--two", "b-two--here", "b-two--old"]


def test_a_solution_is_open_and_the_code_of_a_figure_is_gone(book: Book) -> None:
    text = book.articles[0].get_text()
    assert "solution" in text and "plumbing" not in text and "play()" not in text
    assert all(tag.has_attr("open") for tag in book.articles[0].select("details"))


def test_pictures_keep_their_alt_text_and_get_a_full_address(book: Book, site: Path) -> None:
    (image,) = book.articles[0].select("img")
    assert image["alt"] == "A curve."
    assert image["src"] == (site / "book/_images/a.png").as_uri()


def test_the_contents_name_parts_pages_and_sections_with_their_numbers(book: Book) -> None:
    text = print_book.contents(book, {"b-one": 3, "b-two--here": 5})
    assert text.count("Part</p>") == 1
    assert text.index('href="#b-one" data-page="3"') < text.index("b-two--here")
    assert 'href="#b-two--here" data-page="5"' in text


def test_a_page_that_was_not_built_is_named(site: Path) -> None:
    with pytest.raises(PrintError, match=r"three\.html: not built"):
        print_book.join(site, [Chapter("book/b/three")], title="", author="")


# On paper.


@pytest.mark.browser
def test_a_small_book_is_printed_with_contents_links_and_whole_lines(
    book: Book, tmp_path: Path
) -> None:
    require_browser()
    pdf = tmp_path / "pdf" / "small.pdf"
    assert print_book.print_book(book, pdf) == 4, "title, contents, and a page each"
    reader = PdfReader(pdf)
    assert (reader.metadata.title, reader.metadata.author) == ("A title", "Somebody")
    title, contents, one, two = (page.extract_text() for page in reader.pages)
    assert "A title" in title and contents.startswith("Contents")
    assert [line for line in contents.split() if line.isdigit()] == ["3", "4", "4", "2"]
    assert one.strip().endswith("3"), "the page's number"
    assert two.replace("\n", "").replace(" ", "").count(LONG) == 1
    assert two.replace("\n", "").count("0123456789") == 30
    within, elsewhere = link_targets(pdf)
    places = {name.removeprefix("/") for name in reader.named_destinations}
    assert {"b-one", "b-two", "b-two--here", "b-one--one"} == set(within) <= places
    assert elsewhere == ["https://example.org/x"]
    assert b"/Alt (A curve" in pdf.read_bytes()


@pytest.mark.browser
def test_what_cannot_be_fitted_is_an_error(book: Book, tmp_path: Path) -> None:
    require_browser()
    for tag in book.articles[1].select("h2"):
        tag["style"] = "width: 2000px"
    with pytest.raises(PrintError, match=r"cut off on paper:\nb-two: <h2> Here"):
        print_book.print_book(book, tmp_path / "cut.pdf")


@pytest.mark.browser
@pytest.mark.book
def test_two_pages_of_the_book_as_they_are_printed(book_html: Path, tmp_path: Path) -> None:
    require_browser()
    chosen = [Chapter("book/index"), Chapter("book/reference/interview", "Reference")]
    book = print_book.join(book_html, chosen, title="Two pages", author="Somebody")
    pdf = tmp_path / "two.pdf"
    assert 5 <= print_book.print_book(book, pdf) <= 12
    reader = PdfReader(pdf)
    within, elsewhere = link_targets(pdf)
    places = {name.removeprefix("/") for name in reader.named_destinations}
    assert set(within) <= places and any("iv-published" in place for place in within)
    assert any("arxiv.org" in a or "github.com" in a for a in elsewhere)
    assert not any(address.startswith("file:") for address in elsewhere)
    text = "".join(page.extract_text() for page in reader.pages)
    assert "scaler.unscale_(optimizer)" in text and "Interview questions" in text
    assert reader.outline, "an outline of the headings"


def test_without_a_browser_the_printer_says_what_to_install(
    book: Book, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(print_book, "executable", lambda: None)
    with pytest.raises(PrintError, match="apt install chromium"):
        print_book.print_book(book, tmp_path / "none.pdf")
