"""What the search of the book knows: the sections of the built pages, and the symptoms they carry.

A hit opens at a section, so the sections are the documents: what stands below a heading, an entry
of the glossary, an object of the API. They are read from the pages as built, where every number is
in its sentence, and written as one script: a page opened from disk may load a script, and nothing
else. `search.js` indexes and ranks them; the reader's page and the tests run the same file.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal, TypeVar

import nbformat
from sphinx.application import Sphinx
from sphinx.builders.html import StandaloneHTMLBuilder
from symptoms import Symptom, asked, plain, symptoms

SCRIPT = "search_sections.js"
MAX_CODE = 800
MAX_OBJECT = 300
"""Characters that are searched of a section's code with what it prints, and of an object's text."""

SIGNS = {"times": "×", "cdot": "·", "le": "≤", "ge": "≥", "approx": "≈", "pm": "±", "to": "→"}
SIGNS |= dict.fromkeys("text mathrm mathbf mathit operatorname left right frac quad".split(), " ")

T = TypeVar("T")
Kind = Literal["section", "term", "object"]
_MATHS = re.compile(r"\\[(\[](.*?)\\[)\]]", re.S)
_HEADINGS = {"h1", "h2", "h3", "h4", "h5", "h6"}
_BLOCKS = _HEADINGS | set("p li td th tr div pre dt dd br caption figcaption section".split())
_SILENT = {"script", "style", "svg", "mp-widget"}
_SILENT_CLASSES = {"headerlink", "hide", "solution", "takeaway", "mp-kind"}
"""Beside what is no text: solutions, code that is folded away, what sums a whole page
up, and the symptoms, which their own sections carry."""


@dataclass
class Section:
    """One document of the search: the ids of its place, its title, its prose, and its code."""

    kind: Kind
    ids: list[str] = field(default_factory=list)
    title: str = ""
    text: str = ""
    code: str = ""

    @property
    def anchor(self) -> str:
        """The id to open at: a target, which stays when a heading is reworded, if there is one."""
        return self.ids[-1] if self.ids else ""


class _Page(HTMLParser):
    """Collects the sections of a page's article."""

    def __init__(self) -> None:
        super().__init__()
        self.sections: list[Section] = []
        self._open: list[tuple[str, Section | None]] = []  # what holds text, the innermost last
        self._silent: tuple[str, int] = ("", 0)  # in what nothing is read, and how deep
        self._in_title = False
        self._in_code = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        silent, depth = self._silent
        if depth:
            self._silent = (silent, depth + (tag == silent))
        elif tag in _SILENT or _SILENT_CLASSES & set((attributes.get("class") or "").split()):
            self._silent = (tag, 1)
        elif tag == "article" or self._open:
            self._start(tag, attributes)

    def _start(self, tag: str, attributes: Mapping[str, str | None]) -> None:
        place = attributes.get("id") or ""
        if tag in ("article", "dl"):
            self._open.append((tag, None))
        elif tag == "section":
            self._begin(tag, Section("section", [place]))
        elif tag == "dt" and place and self._open[-1][0] == "dl":
            kind: Kind = "term" if place.startswith("term-") else "object"
            self._open.pop()
            self._begin("dl", Section(kind, [place], place if kind == "object" else ""))
        elif tag == "span" and place and (here := self._here()) and not here.title:
            here.ids.append(place)
        self._in_title = self._in_title or tag in _HEADINGS or (tag == "dt" and place != "")
        self._in_code = self._in_code or tag == "pre"
        self._add(" " if tag in _BLOCKS else "")

    def _begin(self, tag: str, section: Section) -> None:
        self.sections.append(section)
        self._open.append((tag, section))

    def handle_endtag(self, tag: str) -> None:
        silent, depth = self._silent
        if depth:
            self._silent = (silent, depth - (tag == silent))
            return
        self._add(" " if tag in _BLOCKS else "")
        self._in_title = self._in_title and not (tag in _HEADINGS or tag == "dt")
        self._in_code = self._in_code and tag != "pre"
        if self._open and tag == self._open[-1][0]:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if not self._silent[1]:
            self._add(data)

    def _here(self) -> Section | None:
        return next((section for _, section in reversed(self._open) if section), None)

    def _add(self, text: str) -> None:
        here = self._here()
        if here is None or (self._in_title and here.kind == "object"):
            return
        if self._in_title:
            here.title += text
        elif self._in_code:
            here.code += text
        else:
            here.text += text


def readable(text: str) -> str:
    r"""Return a text with its formulas as one would type them: `2^-24` for `\(2^{-24}\)`."""

    def typed(match: re.Match[str]) -> str:
        words = re.sub(r"\\([a-zA-Z]+)", lambda found: SIGNS.get(found[1], found[1]), match[1])
        return re.sub(r"\\.|[{}]", "", words)

    return _MATHS.sub(typed, text)


def sections(html: str) -> list[Section]:
    """Return the sections of a built page, in its order."""
    page = _Page()
    page.feed(html)
    for section in page.sections:
        section.title = " ".join(readable(section.title).split())
        section.text = " ".join(readable(section.text).split())
        if section.kind == "object":
            section.text = section.text[:MAX_OBJECT]
        section.code = " ".join(section.code.split())[:MAX_CODE]
    return [x for x in page.sections if x.title and (x.text or x.code)]


def _entry(
    page: int, section: Section, symptom: Symptom | None, typed: Sequence[str]
) -> dict[str, Any]:
    """One section as `search.js` reads it."""
    entry: dict[str, Any] = {
        "page": page,
        "anchor": section.anchor,
        "ids": section.ids,
        "kind": section.kind,
        "title": section.title,
        "text": section.text,
        "code": section.code,
    }
    if symptom:
        entry |= {
            "seen": [plain(seen) for seen in symptom.seen],
            "means": plain(symptom.means),
            "words": list(symptom.words),
        }
    elif typed:
        entry["words"] = list(typed)
    return entry


def index(
    pages: Mapping[str, str],
    carried: Mapping[str, Mapping[str, Symptom]],
    typed: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
) -> dict[str, Any]:
    """Return what the search knows of some pages.

    Args:
        pages: the HTML of each page by its address.
        carried: the symptoms of each page by its address, by the target of their section.
        typed: what people type for sections that are no symptoms, in the same way.
    """
    found: dict[str, Any] = {"pages": [], "sections": []}
    for address, html in pages.items():
        here, known = sections(html), carried.get(address, {})
        asks = (typed or {}).get(address, {})
        if here:
            found["pages"].append({"address": address, "title": here[0].title})
            found["sections"] += [
                _entry(
                    len(found["pages"]) - 1,
                    section,
                    next(_of(section, known), None),
                    next(_of(section, asks), ()),
                )
                for section in here
            ]
    _tell_apart(found)
    return found


def _tell_apart(found: dict[str, Any]) -> None:
    """Name the page in a title that several pages use, such as that of their exercises."""
    used = Counter(entry["title"] for entry in found["sections"])
    for entry in found["sections"]:
        page = found["pages"][entry["page"]]["title"]
        if used[entry["title"]] > 1 and entry["title"] != page:
            entry["title"] = f"{entry['title']} ({page.partition(':')[0]})"


def _of(section: Section, known: Mapping[str, T]) -> Iterator[T]:
    return (known[place] for place in section.ids if place in known)


def write_index(app: Sphinx, error: Exception | None) -> None:
    """Write the sections of every page beside the other static files."""
    if error or app.builder.format != "html":
        return
    pages, carried, typed = {}, {}, {}
    for name in sorted(app.env.found_docs):
        address, source = app.builder.get_target_uri(name), Path(str(app.env.doc2path(name)))
        pages[address] = Path(app.outdir, address).read_text("utf-8")
        if source.suffix == ".ipynb":
            notebook = nbformat.read(source, as_version=4)
            carried[address] = {symptom.target: symptom for symptom in symptoms(notebook)}
            typed[address] = asked(notebook)
    known = json.dumps(index(pages, carried, typed), ensure_ascii=False, separators=(",", ":"))
    Path(app.outdir, "_static", SCRIPT).write_text(f"window.MPBOOK_SECTIONS = {known};\n", "utf-8")


def no_other_index(app: Sphinx) -> None:
    """Spare Sphinx its own index, of pages: nothing reads it."""
    if isinstance(app.builder, StandaloneHTMLBuilder):
        app.builder.search = False


def search_page(_app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """The page that shows what is found, by the template `search.html`."""
    yield "search", {}, "search.html"


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the handlers above."""
    app.connect("builder-inited", no_other_index)
    app.connect("html-collect-pages", search_page)
    app.connect("build-finished", write_index)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
