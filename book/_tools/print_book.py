"""Print the built book into one PDF: title, contents with page numbers, chapters, links that work.

    python book/_tools/print_book.py

The built pages are joined into one page, in the order of the contents, and Chromium prints it: so
links between chapters are links within the PDF, its outline is that of the headings, and pictures
keep their alt texts. Explorers show the picture that a page without scripts shows. What is wider
than the paper is shrunk, and broken where that is not enough; if something is still cut off, that
is an error. The reference of the package, a page a room, is left to the HTML.
"""

from __future__ import annotations

import html
import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml
from bs4 import BeautifulSoup, Tag
from build_html import ROOT
from chromium import ARGUMENTS, MISSING, executable
from playwright.sync_api import Browser, Page, sync_playwright
from pypdf import PdfReader, PdfWriter

PDF = ROOT / "_build" / "pdf" / "mixed-precision.pdf"
STYLE, FIT = (Path(__file__).with_name(name) for name in ("print.css", "print.js"))
LEFT_OUT = re.compile(r"book/reference/api/(?!index$)")
"""Pages of the contents that are not printed."""
PAPER_WIDTH_PX = 665  # of A4, 210 mm at 96 pixels an inch, less the margins of print.css
TIMEOUT_MS = 600_000
FOOTER = (
    '<div style="width: 100%; font: 8px sans-serif; text-align: center">'
    '<span class="pageNumber"></span></div>'
)
MATHS_IS_SET = "() => !window.MathJax || window.MathJax.startup?.promise.then(() => true)"


class PrintError(Exception):
    """The book cannot be printed as it should be."""


@dataclass(frozen=True)
class Chapter:
    """A page of the book, as the contents name it: ``book/recipe/autocast``.

    ``part`` is the caption above it, or empty; ``depth`` is 1 for a page below another.
    """

    name: str
    part: str = ""
    depth: int = 0

    @property
    def anchor(self) -> str:
        """The id of the page in the joined one."""
        return re.sub(r"[/_]", "-", self.name.removeprefix("book/"))


@dataclass
class Book:
    """Chapters in order, what each holds, and what a browser loads to show them."""

    title: str
    author: str
    chapters: list[Chapter]
    articles: list[Tag] = field(default_factory=list)
    head: dict[str, None] = field(default_factory=dict)


# --- what is printed, and in which order ---------------------------------------------------------


def chapters(toc: Mapping[str, Any]) -> list[Chapter]:
    """Return the pages of the contents, in order, without those that are left out."""
    found = [Chapter(toc["root"])]
    for part in toc.get("parts", []):
        found += _entries(part["chapters"], part["caption"], 0)
    return [chapter for chapter in found if not LEFT_OUT.match(chapter.name)]


def _entries(entries: Sequence[Mapping[str, Any]], part: str, depth: int) -> Iterator[Chapter]:
    for entry in entries:
        yield Chapter(entry["file"], part, depth)
        yield from _entries(entry.get("sections", []), part, depth + 1)


# --- joining the pages ---------------------------------------------------------------------------


def join(folder: Path, wanted: list[Chapter], *, title: str, author: str) -> Book:
    """Read the chapters' built pages, with ids and links that hold in one page of all.

    Raises:
        PrintError: a page that was not built.
    """
    book, anchors = Book(title, author, wanted), {each.name: each.anchor for each in wanted}
    for chapter in wanted:
        page = folder / f"{chapter.name}.html"
        soup = BeautifulSoup(page.read_text("utf-8") if page.exists() else "", "html.parser")
        article = soup.select_one("article.bd-article")
        if article is None:
            raise PrintError(f"{page}: not built, or no page of the book; run `make book`")
        book.head |= dict.fromkeys(_loads(soup, page))
        for_paper(article)
        own_links(article, page, folder, anchors)
        own_ids(article, chapter.anchor)
        book.articles.append(article)
    return book


def _loads(soup: BeautifulSoup, page: Path) -> Iterator[str]:
    """The tags of a page's head that paper needs: style sheets and maths, by full address."""
    for tag in soup.select('link[rel~="stylesheet"]'):
        yield f'<link rel="stylesheet" href="{_address(tag["href"], page)}">'
    for tag in soup.select("script"):
        if (tag.string or "").strip().startswith("window.MathJax"):
            yield f"<script>{tag.string}</script>"
        elif "mathjax" in str(tag.get("src")):
            yield f'<script src="{_address(tag["src"], page)}"></script>'


def _address(relative: object, page: Path) -> str:
    return (page.parent / unquote(urlsplit(str(relative)).path)).resolve().as_uri()


def for_paper(article: Tag) -> None:
    """Take out what only a screen has, and the code of figures; open what is folded."""
    for tag in article.select("a.headerlink, script, .tag_hide-input details, button"):
        tag.decompose()
    for tag in article.select("details"):
        tag["open"] = ""


def own_links(article: Tag, page: Path, folder: Path, anchors: Mapping[str, str]) -> None:
    """Let links between printed pages lead within the PDF; one to a page left out is none.

    Links to other sites stay.
    """
    for tag in article.select("img[src]"):
        tag["src"] = _address(tag["src"], page)
    for tag in article.select("a[href]"):
        link = urlsplit(str(tag["href"]))
        if link.scheme:
            continue
        path = (page.parent / unquote(link.path)).resolve() if link.path else page.resolve()
        name = path.with_suffix("").as_posix().removeprefix(f"{folder.resolve().as_posix()}/")
        if path.suffix != ".html" or name not in anchors:
            tag.unwrap()
        else:
            tag["href"] = f"#{_own(anchors[name], link.fragment)}"


def own_ids(article: Tag, anchor: str) -> None:
    """Make each id one of its page, but for those within a drawing, which its style names."""
    for tag in article.select("[id]"):
        if tag.find_parent("svg") is None:
            tag["id"] = _own(anchor, str(tag["id"]))


def _own(anchor: str, fragment: str) -> str:
    return f"{anchor}--{unquote(fragment)}" if fragment else anchor


# --- the page that is printed --------------------------------------------------------------------


def as_html(book: Book, numbers: Mapping[str, int]) -> str:
    """Return the joined page; ``numbers`` are the PDF's pages by id, for the contents."""
    head = "\n".join([*book.head, f"<style>{STYLE.read_text('utf-8')}</style>"])
    body = "\n".join(
        f'<div class="mp-page" id="{chapter.anchor}">{article}</div>'
        for chapter, article in zip(book.chapters, book.articles, strict=True)
    )
    return (
        '<!doctype html><html lang="en" data-theme="light" data-mode="light"><head>'
        f'<meta charset="utf-8"><title>{html.escape(book.title)}</title>{head}</head>'
        f"<body>{_title_page(book)}{contents(book, numbers)}{body}</body></html>"
    )


def _title_page(book: Book) -> str:
    return (
        f'<div class="mp-title bd-article"><h1>{html.escape(book.title)}</h1>'
        f"<p>{html.escape(book.author)}</p><p>Text and figures: CC BY 4.0. Code: MIT License.</p>"
        "<p>Each chapter is a notebook that you can run. Left out of print: the code that draws "
        "figures, and the reference of the package.</p></div>"
    )


def contents(book: Book, numbers: Mapping[str, int]) -> str:
    """Return the contents: parts, chapters and their sections, with the pages they begin on."""
    lines, part = ['<nav class="mp-page mp-contents bd-article"><h1>Contents</h1>'], ""
    for chapter, article in zip(book.chapters, book.articles, strict=True):
        if chapter.part != part:
            part = chapter.part
            lines.append(f'<p class="mp-part">{html.escape(part)}</p>')
        lines.append(f"<ol><li>{_entry(_heading(article, 'h1'), chapter.anchor, numbers)}<ol>")
        for section in article.select("section > section"):
            if section.find("h2", recursive=False) and section.get("id"):
                title = _heading(section, "h2")
                lines.append(f"<li>{_entry(title, str(section['id']), numbers)}</li>")
        lines.append("</ol></li></ol>")
    return "".join([*lines, "</nav>"])


def _heading(tag: Tag, name: str) -> str:
    heading = tag.find(name)
    return heading.get_text() if heading else ""


def _entry(title: str, anchor: str, numbers: Mapping[str, int]) -> str:
    page = numbers.get(anchor, "")
    plain = re.sub(r"\\\((.*?)\\\)", r"\1", title)  # maths in a heading
    text = f"{html.escape(plain)}<span></span>"
    return f'<a href="#{html.escape(anchor)}" data-page="{page}">{text}</a>'


# --- printing ------------------------------------------------------------------------------------


def print_book(book: Book, target: Path) -> int:
    """Print into ``target``, and beside it the joined page; return the number of pages.

    It is printed twice: the first PDF says on which pages the contents' entries are.

    Raises:
        PrintError: no browser, or something that is cut off.
    """
    path = executable()
    if path is None:
        raise PrintError(MISSING)
    target.parent.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        numbers: dict[str, int] = {}
        for _ in range(2):
            _print(browser, as_html(book, numbers), target)
            numbers = page_numbers(target)
        browser.close()
    return finish(book, target)


def _print(browser: Browser, text: str, target: Path) -> None:
    joined = target.with_suffix(".html")
    joined.write_text(text, "utf-8")
    page = browser.new_page(viewport={"width": PAPER_WIDTH_PX, "height": 1000})
    page.set_default_timeout(TIMEOUT_MS)
    page.emulate_media(media="print", color_scheme="light")
    page.goto(joined.as_uri(), wait_until="load")
    page.wait_for_function(MATHS_IS_SET)
    if found := clipped(page):
        raise PrintError("cut off on paper:\n" + "\n".join(found))
    page.pdf(
        path=target, prefer_css_page_size=True, print_background=True, outline=True, tagged=True,
        display_header_footer=True, header_template="<span></span>", footer_template=FOOTER,
    )  # fmt: skip
    page.close()


def clipped(page: Page) -> list[str]:
    """Fit what is wider than the paper, and return what is still cut off, one line each."""
    return list(page.evaluate(FIT.read_text("utf-8")))


def page_numbers(pdf: Path) -> dict[str, int]:
    """Return the number of the page, from 1, of each id that something in a PDF links to."""
    logging.getLogger("pypdf").setLevel(logging.ERROR)  # Chromium miscounts its objects
    reader = PdfReader(pdf)
    places = reader.named_destinations.items()
    found = {name: reader.get_destination_page_number(place) for name, place in places}
    return {name.removeprefix("/"): page + 1 for name, page in found.items() if page is not None}


def finish(book: Book, pdf: Path) -> int:
    """Write title and author into a PDF; return its number of pages."""
    writer = PdfWriter(clone_from=pdf)
    writer.add_metadata({"/Title": book.title, "/Author": book.author})
    writer.write(pdf)
    return len(writer.pages)


def main() -> int:
    """Print the built book; return the exit status."""
    toc, config = (yaml.safe_load((ROOT / f).read_text()) for f in ("_toc.yml", "_config.yml"))
    try:
        book = join(
            ROOT / "_build" / "html", chapters(toc), title=config["title"], author=config["author"]
        )
        pages = print_book(book, PDF)
    except PrintError as error:
        print(f"print_book: {error}", file=sys.stderr)
        return 1
    print(f"The book is in {PDF}, {pages} pages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
