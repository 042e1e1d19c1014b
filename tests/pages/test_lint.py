"""The book's lint: every rule on good and on falsified input, and all of them on the book."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lint
import pytest
import refresh
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

PNG = {"image/png": "iVBORw0KGgo="}


def code(source: str = "1 + 1", *outputs: NotebookNode, **metadata: Any) -> NotebookNode:
    return new_code_cell(source, outputs=list(outputs), metadata=metadata, execution_count=1)


def prose(source: str, **metadata: Any) -> NotebookNode:
    return new_markdown_cell(source, metadata=metadata)


def page(*cells: NotebookNode) -> NotebookNode:
    """Return a notebook in normal form, its executed cells numbered in order."""
    return refresh.normalise(new_notebook(cells=list(cells)))


def shown(data: dict[str, str], **metadata: Any) -> NotebookNode:
    return new_output("display_data", data=data, metadata=metadata)


def chapter() -> NotebookNode:
    """Return a notebook with every part and three hidden solutions."""
    parts = [prose(part, tags=[f"part:{part}"]) for part in lint.PARTS]
    solutions = [code(f'check("exercise {i}", {i})', tags=["hide-cell"]) for i in range(3)]
    return page(*parts, *solutions)


def findings(rule: lint.Rule, *cells: NotebookNode) -> int:
    return len(rule(page(*cells)))


# The book itself.


@pytest.mark.parametrize("path", lint.pages(), ids=lambda path: path.stem)
def test_the_book_is_clean(path: Path) -> None:
    assert lint.lint(path) == []


RAW = re.compile(r"^ {0,3}<!--.*?-->[ \t]*\S", re.MULTILINE)


@pytest.mark.parametrize("path", lint.pages(), ids=lambda path: path.stem)
def test_no_line_goes_on_after_a_comment_that_it_begins_with(path: Path) -> None:
    """Markdown takes the rest of such a line for HTML: its stars and backticks would show."""
    assert [cell.source for cell in lint.read(path).cells if RAW.search(cell.source)] == []


def test_a_line_that_goes_on_after_its_comment_is_found() -> None:
    assert RAW.search("A fact.\n<!-- lint: cited: x --> A *word*")
    assert not RAW.search("A fact. <!-- lint: cited: x --> A *word*\n<!-- lint: cited: y -->\nB")


def test_every_public_module_is_in_the_reference() -> None:
    rooms = (lint.BOOK / "reference" / "api").glob("*.md")
    text = "".join(room.read_text("utf-8") for room in rooms)
    package = lint.BOOK.parent / "mpbook"
    # Their package speaks for them.
    of_one_page = {"exercises", "explorers", "claims", "experiments", "frameworks", "versions"}
    found = [p for p in package.rglob("*.py") if p.parent.name not in of_one_page]
    found += package.rglob("__init__.py")
    names = {".".join(p.relative_to(package.parent).with_suffix("").parts) for p in found}
    names = {name.removesuffix(".__init__") for name in names} - {"mpbook"}
    public = {name for name in names if not name.rpartition(".")[2].startswith("_")}
    assert {name for name in public if f"automodule:: {name}\n" not in text} == set()


# Executed, in order, without errors.


def test_cells_executed_in_order_pass() -> None:
    assert findings(lint.executed, code(), prose("text"), code()) == 0


@pytest.mark.parametrize("count", [None, 3])
def test_a_cell_not_executed_or_out_of_order_is_found(count: int | None) -> None:
    bad = page(code(), code())
    bad.cells[1].execution_count = count
    assert [found.cell for found in lint.executed(bad)] == [1]


def test_an_error_is_found_unless_it_is_meant() -> None:
    error = new_output("error", ename="ValueError", evalue="", traceback=[])
    assert findings(lint.no_stray_errors, code("f()", error)) == 1
    assert findings(lint.no_stray_errors, code("f()", error, tags=["raises-exception"])) == 0


def test_text_on_stderr_is_found_unless_it_is_meant() -> None:
    warning = new_output("stream", name="stderr", text="careful")
    assert findings(lint.no_stray_errors, code("f()", warning)) == 1
    assert findings(lint.no_stray_errors, code("f()", warning, tags=["shows-stderr"])) == 0


# Alt text.


@pytest.mark.parametrize(
    "source",
    [
        "![A curve that falls.](curve.png)",
        "```{image} curve.png\n:alt: A curve that falls.\n```",
        ":::{figure} curve.png\n:name: fig-curve\n:alt: A curve that falls.\n:::",
        '<img src="curve.png" alt="A curve that falls.">',
        "```html\n<img src='shown-as-code.png'>\n```",
    ],
)
def test_markdown_pictures_with_alt_text_pass(source: str) -> None:
    assert findings(lint.alt_text, prose(source)) == 0


@pytest.mark.parametrize(
    "source",
    [
        "![](curve.png)",
        "```{image} curve.png\n:width: 80%\n```",
        ":::{figure} curve.png\n:name: fig-curve\n\nA caption is no alt text.\n:::",
        '<img src="curve.png">',
        '<img src="curve.png" alt=" ">',
    ],
)
def test_markdown_pictures_without_alt_text_are_found(source: str) -> None:
    assert findings(lint.alt_text, prose(source)) == 1


def test_output_pictures_need_alt_text_from_their_output_or_their_cell() -> None:
    from_output = shown(PNG, **{"image/png": {"alt": "A curve."}})
    from_cell = {"mystnb": {"image": {"alt": "A curve."}}}
    assert findings(lint.alt_text, code("f()", from_output)) == 0
    assert findings(lint.alt_text, code("f()", shown(PNG), **from_cell)) == 0
    assert findings(lint.alt_text, code("f()", shown(PNG))) == 1
    assert findings(lint.alt_text, code("f()", shown({"text/html": "<img src='x'>"}))) == 1


# Links to the top of a long page.


@pytest.mark.parametrize(
    "text",
    [
        "[Loss scaling](../recipe/loss_scaling.ipynb) is a chapter.",
        "Traps have [a page of their own](loss_scaling.ipynb) beside {doc}`the chapter <memory>`.",
        "[Memory](memory.ipynb), and {doc}`Memory: where every byte goes <memory>`.",
        "[windows](#ls-window), {ref}`a scale <ls-window>`, {ref}`ls-why`",
        "[The entries](../reference/bibliography.md) are few. [So](https://a.b/memory.html).",
        "Go on with [rounding](rounding_and_sums.ipynb).\n<!-- lint: whole page: the next one -->",
    ],
)
def test_a_link_to_a_section_or_to_a_page_by_its_title_passes(text: str) -> None:
    assert findings(lint.no_link_to_a_top, prose(text)) == 0


@pytest.mark.parametrize(
    "text",
    [
        "It loses [its updates](../recipe/loss_scaling.ipynb).",
        "It needs a [loss scaling](loss_scaling.ipynb).",
        "See {doc}`here <../practice/memory>`.",
        "`mpbook` has [a probe](../reference/api/watch.md).",
        "Go on with [rounding](rounding_and_sums.ipynb). <!-- lint: whole page: -->",
    ],
)
def test_a_link_to_the_top_of_a_long_page_is_found(text: str) -> None:
    assert findings(lint.no_link_to_a_top, prose(text)) == 1
    shown_by_a_cell = code("f()", shown({"text/markdown": text}))
    assert findings(lint.no_link_to_a_top, shown_by_a_cell) == 1


# Measured numbers.


@pytest.mark.parametrize(
    "text",
    [
        "It takes 12 s.",
        "It takes about 0.4 ms per step.",
        "That is 1.8x faster.",
        "That is 1.8× faster.",
        "Memory falls by 40%.",
        "Memory falls by 40 percent.",
        "It needs 300 MB.",
        "It needs 1.5 GiB.",
        "It trains at 450,000 tokens/s.",
        "A core reaches 2.5 TFLOP/s.",
        "It is 3 times faster.",
        "1e-3 s go by.",
        "```{admonition} Takeaway\n:class: takeaway\nIt saves 40% of memory.\n```",
        "- one\n- two, at 12 ms",
    ],
)
def test_a_measured_number_in_prose_is_found(text: str) -> None:
    assert findings(lint.no_measured_literal, prose(text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "float16 has 5 exponent bits, 10 mantissa bits and a largest number of 65504.",
        "The smallest subnormal is $2^{-24}$, not 6e-5.",
        "A parameter takes 4 bytes.",
        "A 256x256 matrix; a 2 x 2 one; 3x(a + b).",
        "On 2 CPU cores with torch 2.13 and Python 3.11.",
        "It takes {glue:text}`seconds:.1f` s.",
        "It takes `12 s`.",
        "```python\nsleep_s = '12 s'\n```",
        "```{math}\n12 s\n```",
        "| kernel | 12 ms |",
        '> "It was 12 s faster."',
        "67% of them were zero {cite}`micikevicius2018`.",
        "A T4 has 16 GB. <!-- lint: exact: the data sheet says so -->",
        "It was 12 s there. <!-- lint: cited: the linked thread -->",
        "Step 3 of 100; seeds 0, 1 and 2; 10 epochs.",
    ],
)
def test_a_number_that_is_no_measurement_passes(text: str) -> None:
    assert findings(lint.no_measured_literal, prose(text)) == 0


def test_an_escape_needs_a_reason_and_covers_one_paragraph() -> None:
    assert findings(lint.no_measured_literal, prose("12 s <!-- lint: exact -->")) == 1
    two = "12 s <!-- lint: exact: a budget -->\n\nand 13 s"
    assert findings(lint.no_measured_literal, prose(two)) == 1


# A version of torch is a link.


@pytest.mark.parametrize(
    "text",
    [
        "It saturates from torch 2.13 on.",
        "Before version 2.12, it chose NaN.",
        "PyTorch saturates from\n2.12 on ([a thread](https://example.org/2.12)).",
        "Since PyTorch 2.0 it does.",
        "In torch's version 2.14.1 it does.",
        "With 2.13.0 it does.",
        "(PyTorch 1.7 to 1.11 had it on.)",
        "```{note}\nUp to 2.12 it is NaN.\n```",
        "After 2.12 it is {ref}`448 <version-x>`.",
    ],
)
def test_a_version_by_hand_is_found(text: str) -> None:
    assert findings(lint.no_bare_version, prose("# Title"), prose(text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "It saturates {ref}`from 2.13.0 on <version-e4m3fn-overflow>`.",
        "torch 1.7 had it on. <!-- lint: cited: the notes -->",
        "torch 1.7 had it on {cite}`notes`.",
        "Pin `torch==2.13.0`, see [the notes](https://docs.pytorch.org/docs/2.2/amp.html).",
        "```python\nprint('torch 2.13')\n```",
        "The peak is 2.13 GB, from 2.03 to 2.61, and 2.13 in one case.",
        "Chapter 2.13 of another book; Python 3.12; 2.11x.",
        "> torch 2.12 gives NaN",
    ],
)
def test_a_version_with_its_evidence_passes(text: str) -> None:
    assert findings(lint.no_bare_version, prose(text)) == 0


# Size and form.


def test_a_cell_of_thirty_lines_passes_and_one_more_is_found() -> None:
    assert findings(lint.short_cells, code("\n".join(["x = 1"] * 30))) == 0
    assert findings(lint.short_cells, code("\n".join(["x = 1"] * 31))) == 1


def test_a_notebook_over_its_size_budget_is_found() -> None:
    big = new_output("stream", name="stdout", text="x" * lint.MAX_NOTEBOOK_BYTES)
    assert findings(lint.size_budget, code("f()")) == 0
    assert findings(lint.size_budget, code("f()", big)) == 1


def with_widget_state(notebook: NotebookNode) -> None:
    notebook.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {}}


def with_timestamps(notebook: NotebookNode) -> None:
    notebook.cells[0].metadata["execution"] = {"iopub.execute_input": "2026-01-01"}


def with_editor_metadata(notebook: NotebookNode) -> None:
    notebook.cells[0].metadata["collapsed"] = False


def with_equal_ids(notebook: NotebookNode) -> None:
    notebook.cells[1].id = notebook.cells[0].id


@pytest.mark.parametrize(
    "falsify", [with_widget_state, with_timestamps, with_editor_metadata, with_equal_ids]
)
def test_a_notebook_out_of_normal_form_is_found(falsify: Callable[[NotebookNode], None]) -> None:
    notebook = page(code(), prose("text"))
    assert lint.normal_form(notebook) == []
    falsify(notebook)
    assert len(lint.normal_form(notebook)) == 1


def test_normalising_twice_changes_nothing_more() -> None:
    pieces = [new_output("stream", name="stdout", text=text) for text in ("a", "b")]
    once = page(code("f()", *pieces, tags=["x"], collapsed=True), prose("text "))
    assert once == refresh.normalise(once)
    assert [output.text for output in once.cells[0].outputs] == ["ab"]


def test_a_widget_without_a_twin_is_found() -> None:
    view = {refresh.WIDGET_VIEW: "{}"}
    assert findings(lint.widgets_have_a_twin, code("w", shown(view))) == 1
    assert findings(lint.widgets_have_a_twin, code("w", shown({**view, "text/html": "<b>"}))) == 0


def test_a_line_said_twice_is_found() -> None:
    line = "device, and say which peak you mean.\n"
    assert findings(lint.no_doubled_line, prose(f"```{{glossary}}\nMFU\n  {line}  {line}```")) == 1
    assert findings(lint.no_doubled_line, prose(f"{line}\n{line}")) == 0


def test_a_todo_is_found() -> None:
    assert findings(lint.no_todo, prose("TO" + "DO: explain")) == 1
    assert findings(lint.no_todo, prose("All is done.")) == 0


# A chapter.


def test_a_whole_chapter_passes() -> None:
    assert lint.has_all_parts(chapter()) == []
    assert lint.hidden_solutions(chapter()) == []


@pytest.mark.parametrize("part", lint.PARTS)
def test_a_missing_part_is_found(part: str) -> None:
    notebook = chapter()
    notebook.cells = [cell for cell in notebook.cells if f"part:{part}" not in lint.tags(cell)]
    assert [found.message for found in lint.has_all_parts(notebook)] == [
        f"no cell is tagged part:{part}"
    ]


def test_an_unknown_part_and_a_wrong_order_are_found() -> None:
    unknown = chapter()
    unknown.cells.append(prose("more", tags=["part:more"]))
    assert "unknown" in lint.has_all_parts(unknown)[0].message
    swapped = chapter()
    swapped.cells[2:4] = reversed(swapped.cells[2:4])
    assert "order" in lint.has_all_parts(swapped)[0].message


def test_a_chapter_of_too_many_words_is_found_and_solutions_do_not_count() -> None:
    long = "word " * lint.MAX_WORDS
    assert findings(lint.short_enough, prose(long)) == 0
    assert findings(lint.short_enough, prose(long), code("more")) == 1
    assert findings(lint.short_enough, prose(long), code("more", tags=["hide-cell"])) == 0
    start, end = prose("x\n```{solution-start} y"), prose("```{solution-end}\n```")
    assert findings(lint.short_enough, prose(long[:-100]), start, code(long), end) == 0


SYMPTOMS = {
    "kind": "error",
    "seen": ["No inf checks"],
    "means": "Nothing was unscaled.",
    "words": [],
}


def trap(
    source: str = "(a-trap)=\n## A trap", cure: str = "1 + 1", **symptoms: Any
) -> list[NotebookNode]:
    return [prose(source, symptoms=SYMPTOMS | symptoms), code(cure, tags=["cure"])]


def test_symptoms_with_all_they_need_pass() -> None:
    assert findings(lint.usable_symptoms, *trap(), *trap()) == 0
    assert findings(lint.traps_have_symptoms, *trap()) == 0
    assert findings(lint.usable_symptoms, prose("(a)=\n## A section", asked=["fp16"])) == 0


@pytest.mark.parametrize(
    "cells",
    [
        trap(kind="odd"),
        trap(seen=[]),
        trap(means="no sentence"),
        trap(more="?"),
        trap("## A trap without a target"),
        trap(cure="1\n" * 13),
        trap(cure="from mpbook.training import train"),
        trap()[:1],
        [*trap(), code("1 + 1", tags=["cure"])],
        [trap()[0], prose("## Another section"), trap()[1]],
        [prose("(a)=\n## A section", asked=["fp16"], symptoms=SYMPTOMS), trap()[1]],
        [prose("## A section without a target", asked=["fp16"])],
    ],
)
def test_symptoms_that_cannot_be_used_are_found(cells: list[NotebookNode]) -> None:
    assert findings(lint.usable_symptoms, *cells) == 1


def test_a_trap_without_symptoms_is_found() -> None:
    assert findings(lint.traps_have_symptoms, prose("(a)=\n## A trap"), prose("text")) == 1


def solution(*, hidden: bool) -> list[NotebookNode]:
    start = "```{solution-start} ex\n" + (":class: dropdown\n" if hidden else "") + "```"
    return [prose(start), code('check("x", 1)'), prose("```{solution-end}\n```")]


def solutions(*hidden: bool) -> list[NotebookNode]:
    return [cell for each in hidden for cell in solution(hidden=each)]


def test_solutions_must_be_hidden() -> None:
    assert findings(lint.hidden_solutions, *solutions(True, True, True)) == 0
    assert findings(lint.hidden_solutions, *solutions(True, True, False)) == 1
    assert findings(lint.hidden_solutions, *solutions(True, True), code('check("x", 1)')) == 1


# Built pages.


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://cdn.example/x.js"></script>',
        '<link rel="stylesheet" href="//cdn.example/x.css">',
        '<img src="http://example.org/x.png" alt="x">',
        '<style>@import "https://example.org/x.css";</style>',
        "<p style=\"background: url('https://example.org/x.png')\">x</p>",
    ],
)
def test_a_load_from_another_site_is_found(html: str) -> None:
    assert len(lint.external_loads(html)) == 1


def test_links_and_own_files_are_no_loads_from_another_site() -> None:
    html = '<a href="https://example.org">x</a><script src="../_static/x.js"></script>'
    assert lint.external_loads(html) == []
    assert lint.external_css_loads("@font-face { src: url(fonts/x.woff2) }") == []
