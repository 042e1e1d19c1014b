"""The book's own lint: what strict nbval and a build with `-W` let pass.

    python book/_tools/lint.py [PAGE ...]

Each rule is a function from a page to its findings. A page is a notebook; a Markdown page counts
as a notebook of one cell. CONTRIBUTING says what an author does about each finding.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import nbformat
from nbformat import NotebookNode
from refresh import WIDGET_VIEW, normalise
from symptoms import problems
from version_links import NAMED

BOOK = Path(__file__).resolve().parents[1]
CHAPTERS = ("numbers", "recipe", "formats_that_need_less", "practice")
PARTS = (
    "question recipe outcomes fail why scratch ship cost traps takeaway exercises interview".split()
)
TRAPS = "_traps"
"""A chapter of many words gives its traps to the page NAME_traps, which is no chapter."""
MAX_WORDS = 5_000
MANY_WORDS = 1_500
"""A link to a page of more words than these names the section that it means."""
MAX_CELL_LINES = 30
MAX_NOTEBOOK_BYTES = 1_500_000
MIN_EXERCISES = 3


class Finding(NamedTuple):
    """One thing to mend: the index of the cell, or None for the whole page, and what it is."""

    cell: int | None
    message: str


Rule = Callable[[NotebookNode], list[Finding]]


def read(path: Path) -> NotebookNode:
    """Read a page: a notebook as it is, a Markdown file as one Markdown cell."""
    if path.suffix == ".ipynb":
        return nbformat.read(path, as_version=4)
    text = path.read_text("utf-8")
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])


def cells(page: NotebookNode, kind: str) -> Iterator[tuple[int, NotebookNode]]:
    """Yield the index and the cell of every cell of one kind, empty ones left out."""
    for index, cell in enumerate(page.cells):
        if cell.cell_type == kind and cell.source.strip():
            yield index, cell


def tags(cell: NotebookNode) -> set[str]:
    """Return a cell's tags."""
    return set(cell.metadata.get("tags", []))


# --- what nbval does not see ---------------------------------------------------------------------


def executed(page: NotebookNode) -> list[Finding]:
    """Every code cell was run, once, from top to bottom; nbval passes one that was not."""
    counts = [(index, cell.execution_count) for index, cell in cells(page, "code")]
    return [
        Finding(index, f"execution_count is {count}, expected {expected}: run `make refresh`")
        for expected, (index, count) in enumerate(counts, start=1)
        if count != expected
    ]


def no_stray_errors(page: NotebookNode) -> list[Finding]:
    """No cell shows a traceback unless it is tagged raises-exception, nor text on stderr."""
    found = []
    for index, cell in cells(page, "code"):
        kinds = {(output.output_type, output.get("name")) for output in cell.outputs}
        if ("error", None) in kinds and "raises-exception" not in tags(cell):
            found.append(Finding(index, "error in the output; tag it raises-exception if meant"))
        if ("stream", "stderr") in kinds and "shows-stderr" not in tags(cell):
            found.append(Finding(index, "text on stderr; tag the cell shows-stderr if meant"))
    return found


def normal_form(page: NotebookNode) -> list[Finding]:
    """No widget state, timestamps or editor's metadata; ids unique; counts in order."""
    if page.get("nbformat_minor") == 5 and page == normalise(page):
        return []
    return [Finding(None, "not in normal form (widget state, stray metadata): run `make refresh`")]


def widgets_have_a_twin(page: NotebookNode) -> list[Finding]:
    """A widget has a `text/html` twin: without one it is blank in the page."""
    return [
        Finding(index, "a widget without text/html: blank in the page")
        for index, cell in cells(page, "code")
        for output in cell.outputs
        if WIDGET_VIEW in output.get("data", {}) and "text/html" not in output.data
    ]


def size_budget(page: NotebookNode) -> list[Finding]:
    """A notebook stays small enough to load and to review."""
    size = len(json.dumps(page).encode())
    if size <= MAX_NOTEBOOK_BYTES:
        return []
    return [Finding(None, f"{size:,} bytes; the budget is {MAX_NOTEBOOK_BYTES:,}")]


# --- what a reader needs -------------------------------------------------------------------------

_MARKDOWN_IMAGE = re.compile(r"!\[(?P<alt>[^\]]*)\]\(")
_IMAGE_DIRECTIVE = re.compile(
    r"^[`:~]{3,}\{(?:image|figure)\}.*\n(?P<options>(?:\s*:\w.*\n)*)", re.M
)
_FENCE = re.compile(
    r"^(?P<fence>`{3,}|~{3,})(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=fence)[`~]*\s*$", re.M | re.S
)


def without_alt(html: str) -> list[str]:
    """Return the source of every `<img>` of a piece of HTML that has no alt text."""
    found = []

    class Images(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            attributes = dict(attrs)
            if tag == "img" and not (attributes.get("alt") or "").strip():
                found.append(attributes.get("src") or "?")

    Images().feed(html)
    return found


def _text_without_alt(text: str) -> list[str]:
    """Return what is wrong with the pictures of a Markdown text."""
    plain = _FENCE.sub(lambda m: m[0] if "{" in m["info"] else "", text)
    bad = [f"<img {source}>" for source in without_alt(plain)]
    bad += [match[0] for match in _MARKDOWN_IMAGE.finditer(plain) if not match["alt"].strip()]
    directives = _IMAGE_DIRECTIVE.finditer(plain)
    return bad + [m[0].splitlines()[0] for m in directives if ":alt: " not in m["options"]]


def alt_text(page: NotebookNode) -> list[Finding]:
    """Every picture has alt text, in one place: its output's metadata, or the cell's."""
    found = [
        Finding(index, f"picture without alt text: {bad}")
        for index, cell in cells(page, "markdown")
        for bad in _text_without_alt(cell.source)
    ]
    for index, cell in cells(page, "code"):
        from_cell = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
        for output in cell.outputs:
            for mime in (m for m in output.get("data", {}) if m.startswith("image/")):
                alt = output.get("metadata", {}).get(mime, {}).get("alt", "") or from_cell
                if not alt.strip():
                    found.append(Finding(index, f"{mime} without alt text: use mpbook.plots.show"))
            html = "".join(output.get("data", {}).get("text/html", ""))
            found += [Finding(index, f"<img {bad}> without alt text") for bad in without_alt(html)]
    return found


def short_cells(page: NotebookNode) -> list[Finding]:
    """A code cell fits on a screen: at most 30 lines, better 15."""
    return [
        Finding(index, f"{lines} lines; at most {MAX_CELL_LINES}, better 15")
        for index, cell in cells(page, "code")
        if (lines := len(cell.source.splitlines())) > MAX_CELL_LINES
    ]


def no_todo(page: NotebookNode) -> list[Finding]:
    """Nothing is left to do on a published page."""
    word = re.compile(r"\b(TODO|FIXME|XXX)\b")
    return [
        Finding(index, f"unresolved {match[0]}")
        for index, cell in enumerate(page.cells)
        if (match := word.search(cell.source))
    ]


def no_doubled_line(page: NotebookNode) -> list[Finding]:
    """No paragraph says a line twice, as a merge that went wrong leaves it."""
    found = []
    for index, cell in cells(page, "markdown"):
        for paragraph in re.split(r"\n\s*\n", _FENCE.sub(_unfence, cell.source)):
            lines = [line.strip() for line in paragraph.splitlines()]
            doubled = {line for line in lines if len(line) > 20 and lines.count(line) > 1}
            found += [Finding(index, f"twice in a paragraph: {line!r}") for line in sorted(doubled)]
    return found


# --- no measured number typed by hand ------------------------------------------------------------

_UNITS = (
    r"[nµμum]?s|min|h|(?:milli|micro)?seconds?|minutes?|hours?|[kKMGT]i?B|percent"
    r"|[kKMG]?(?:tok|tokens?|it|steps?|samples?|images?)/s(?:ec)?|[kKMGTP]?FLOPS?(?:/s)?"
    r"|times (?:as|faster|slower|smaller|larger|less|more)"
)
MEASURED = re.compile(
    r"(?<![\w.^-])\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?[ \u00a0\u202f]?"
    rf"(?:%|[x×](?!\w|\s?[\d(])|(?:{_UNITS})(?![\w/]))"
)
_ESCAPE = re.compile(r"<!--\s*lint:\s*(?:cited|exact)\b(?P<reason>.*?)-->", re.S)
_NOT_PROSE = re.compile(
    r"\$\$.*?\$\$|\$[^$\n]+\$|\{[\w:.-]+\}`[^`]*`|`+[^`]*`+|<!--.*?-->|\]\([^)]*\)|<[^>]+>", re.S
)
_PROSE_DIRECTIVES = (
    "admonition attention caution danger dropdown exercise glossary hint important margin note"
    " seealso sidebar solution tip warning"
).split()


def _unfence(match: re.Match[str]) -> str:
    """Keep of a fenced block its body if it is prose, and nothing if it is code or maths."""
    name = match["info"].strip().removeprefix("{").partition("}")[0]
    return f"\n\n{match['body']}\n\n" if name in _PROSE_DIRECTIVES else "\n\n"


def measured_literals(text: str) -> list[str]:
    """Return the measured numbers typed into a Markdown text, and the escapes without a reason.

    A paragraph with a citation is left alone, and so is one with the comment
    `<!-- lint: cited: WHERE -->` or `<!-- lint: exact: WHY -->`. Code, maths, roles, quotations and
    tables are not prose.
    """
    found = []
    for paragraph in _paragraphs(text):
        escape = _ESCAPE.search(paragraph)
        if escape and not escape["reason"].strip(" :,-\n"):
            found.append("an escape without its reason")
        found += _unsupported(MEASURED, paragraph)
    return found


def _paragraphs(text: str) -> list[str]:
    return re.split(r"\n\s*\n", _FENCE.sub(_unfence, text))


def _unsupported(pattern: re.Pattern[str], paragraph: str) -> list[str]:
    """Return what a pattern finds in a paragraph's prose, if it has no citation and no escape."""
    if _ESCAPE.search(paragraph) or "{cite" in paragraph:
        return []
    lines = paragraph.splitlines()
    prose = "\n".join(x for x in lines if not x.lstrip().startswith((">", "|")))
    return [match[0] for match in pattern.finditer(_NOT_PROSE.sub(" ", prose))]


def no_measured_literal(page: NotebookNode) -> list[Finding]:
    """A measured number enters a sentence through glue; one from elsewhere carries a citation."""
    return [
        Finding(index, f"measured number in prose: {literal!r} (glue it, cite it, or escape it)")
        for index, cell in cells(page, "markdown")
        for literal in measured_literals(cell.source)
    ]


def no_bare_version(page: NotebookNode) -> list[Finding]:
    """A version of torch in a sentence is a link to the records of what it decides."""
    return [
        Finding(index, f"version in prose: {version!r} (make it a link to version-ID, or cite it)")
        for index, cell in cells(page, "markdown")
        for paragraph in _paragraphs(cell.source)
        for version in _unsupported(NAMED, paragraph)
    ]


# --- no link to the top of a long page -----------------------------------------------------------

_PAGE_LINK = re.compile(
    r"(?<!!)\[(?P<text>[^\]]+)\]\((?:[\w./-]*/)?(?P<page>\w+\.(?:ipynb|md))\)"
    r"|\{(?:doc|ref)\}`(?P<said>[^`<]*?)\s*<?(?:[\w./-]*/)?(?P<place>[\w-]+)>?`"
)
_WHOLE_PAGE = re.compile(r"<!--\s*lint:\s*whole page\b(?P<reason>.*?)-->", re.S)
_TOP = re.compile(r"(?:^\((?P<target>[\w-]+)\)=\s*\n)?^# +(?P<title>.+)$", re.M)


@functools.cache
def _long_pages(book: Path = BOOK) -> dict[str, set[str]]:
    """The titles by which a link may mean the whole of a long page, by its file and its target."""
    found: dict[str, set[str]] = {}
    for path in pages(book):
        page = read(path)
        top = next(
            (top for _, c in cells(page, "markdown") if (top := _TOP.search(c.source))), None
        )
        api = any("automodule::" in cell.source for cell in page.cells)
        if top and (api or count_words(page) > MANY_WORDS):
            title = top["title"].replace("`", "").strip()
            for name in (path.name, path.stem, top["target"] or path.stem):
                found.setdefault(name, set()).update({title, title.partition(":")[0]})
    return found


def links_to_tops(text: str) -> list[str]:
    """Return the links of a Markdown text that land on the top of a long page and mean a section.

    A link means the whole page if its text is the page's title, or the title up to its colon, or
    says "chapter" or "page"; else the paragraph says so: `<!-- lint: whole page: WHY -->`.
    """
    found = []
    for paragraph in _paragraphs(text):
        escape = _WHOLE_PAGE.search(paragraph)
        if escape and escape["reason"].strip(" :,-\n"):
            continue
        for link in _PAGE_LINK.finditer(paragraph):
            said = " ".join((link["text"] or link["said"] or "").replace("`", "").split())
            place = link["page"] or link["place"]
            whole = not said or re.search(r"\b(?:chapter|page)s?\b", said)
            if not whole and said not in _long_pages().get(place, {said}):
                found.append(f"{said!r} to {place}")
    return found


def no_link_to_a_top(page: NotebookNode) -> list[Finding]:
    """No link, made by a cell or written, lands on the top of a long page and means a section."""
    texts = [(index, cell.source) for index, cell in cells(page, "markdown")]
    texts += [
        (index, "".join(output.data["text/markdown"]))
        for index, cell in cells(page, "code")
        for output in cell.outputs
        if "text/markdown" in output.get("data", {})
    ]
    return [
        Finding(index, f"link to the top of a long page: {link} (name the section, or say that the"
                " whole page is meant)")
        for index, text in texts
        for link in links_to_tops(text)
    ]  # fmt: skip


# --- what a chapter has --------------------------------------------------------------------------


def count_words(page: NotebookNode) -> int:
    """Count a page's words, code included, outputs and solutions not."""
    words, hidden = 0, False
    for cell in page.cells:
        hidden = "{solution-start}" in cell.source or (hidden and cell.cell_type == "code")
        if not hidden and "hide-cell" not in tags(cell):
            words += len(cell.source.split())
    return words


def short_enough(page: NotebookNode) -> list[Finding]:
    """A chapter can be read at one sitting."""
    words = count_words(page)
    if words <= MAX_WORDS:
        return []
    return [
        Finding(None, f"{words} words; at most {MAX_WORDS}: give the traps a page, NAME{TRAPS}")
    ]


def usable_symptoms(page: NotebookNode) -> list[Finding]:
    """The symptoms that a heading carries have their sentence, and their lines in plain torch."""
    return [Finding(index, f"symptoms: {reason}") for index, reason in problems(page)]


def traps_have_symptoms(page: NotebookNode) -> list[Finding]:
    """On a page of traps each section says in its metadata what people see."""
    return [
        Finding(index, "a trap without `symptoms` in its cell's metadata")
        for index, cell in cells(page, "markdown")
        if re.search(r"^## ", cell.source, re.M) and "symptoms" not in cell.metadata
    ]


def has_all_parts(page: NotebookNode) -> list[Finding]:
    """A chapter has every part, each marked by a tag `part:NAME` on a cell, in the usual order."""
    marks = [tag for cell in page.cells for tag in cell.metadata.get("tags", [])]
    seen = [tag.removeprefix("part:") for tag in marks if tag.startswith("part:")]
    missing = [part for part in PARTS if part not in seen]
    unknown = sorted(set(seen) - set(PARTS))
    found = [Finding(None, f"no cell is tagged part:{part}") for part in missing]
    found += [Finding(None, f"unknown tag part:{part}; known: {PARTS}") for part in unknown]
    first = [part for part in dict.fromkeys(seen) if part in PARTS]
    if first != [part for part in PARTS if part in first]:
        found.append(Finding(None, f"parts in the order {first}, expected {PARTS}"))
    return found


def hidden_solutions(page: NotebookNode) -> list[Finding]:
    """A chapter has at least three executed solutions, hidden, each of which calls `check`."""
    hidden, count = False, 0
    for cell in page.cells:
        if cell.cell_type == "markdown":
            starts = cell.source.rfind("{solution-start}")
            hidden = hidden if starts < 0 else "dropdown" in cell.source[starts:]
            hidden = hidden and "{solution-end}" not in cell.source[max(starts, 0) :]
        elif re.search(r"\bcheck\(", cell.source):
            count += hidden or bool(tags(cell) & {"hide-cell", "hide-input"})
    if count >= MIN_EXERCISES:
        return []
    return [Finding(None, f"{count} hidden solutions that call check(); at least {MIN_EXERCISES}")]


# --- built pages ---------------------------------------------------------------------------------

_LOADING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
_ELSEWHERE = re.compile(r"^\s*(?:https?:)?//", re.I)
_CSS_LOAD = re.compile(r"(?:@import\s+|url\(\s*)[\"']?((?:https?:)?//[^\"')\s;]+)", re.I)


def external_loads(html: str) -> list[str]:
    """Return every address on another site that a page would load (a plain link loads nothing)."""
    found = []

    class Loads(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            attributes = dict(attrs)
            address = attributes.get(_LOADING.get(tag, "")) or ""
            canonical = tag == "link" and attributes.get("rel") == "canonical"
            if _ELSEWHERE.match(address) and not canonical:
                found.append(address)

    Loads().feed(html)
    return found + external_css_loads(html)


def external_css_loads(css: str) -> list[str]:
    """Return every address on another site that a style sheet would load."""
    return _CSS_LOAD.findall(css)


# --- the command ---------------------------------------------------------------------------------

PAGE_RULES: tuple[Rule, ...] = (
    alt_text, no_bare_version, no_doubled_line, no_link_to_a_top, no_measured_literal, no_todo,
)  # fmt: skip
NOTEBOOK_RULES: tuple[Rule, ...] = (
    executed, no_stray_errors, normal_form, widgets_have_a_twin, size_budget, short_cells,
    usable_symptoms,
)  # fmt: skip
CHAPTER_RULES: tuple[Rule, ...] = (has_all_parts, hidden_solutions, short_enough)
TRAPS_RULES: tuple[Rule, ...] = (traps_have_symptoms,)


def pages(book: Path = BOOK) -> list[Path]:
    """Return every page of the book, in a fixed order."""
    found = [*book.rglob("*.ipynb"), *book.rglob("*.md")]
    return sorted(p for p in found if not any(x[0] in "._" for x in p.relative_to(book).parts))


def rules_for(path: Path) -> tuple[Rule, ...]:
    """Return the rules that hold for a page, by its kind and its folder."""
    notebook = NOTEBOOK_RULES if path.suffix == ".ipynb" else ()
    if path.parent.name not in CHAPTERS:
        return PAGE_RULES + notebook
    return PAGE_RULES + notebook + (TRAPS_RULES if path.stem.endswith(TRAPS) else CHAPTER_RULES)


def lint(path: Path) -> list[str]:
    """Return the findings of every rule on one page, one line each."""
    page = read(path)
    return [
        f"{path}{'' if cell is None else f':cell {cell}'}: {message} [{rule.__name__}]"
        for rule in rules_for(path)
        for cell, message in rule(page)
    ]


def main() -> int:
    """Lint the pages named on the command line, or all; return the exit status."""
    paths = [Path(name) for name in sys.argv[1:]] or pages()
    findings = [line for path in paths for line in lint(path)]
    print("\n".join([*findings, f"{len(paths)} pages, {len(findings)} findings"]))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
