"""What the pages say of a version of torch is what the releases on record answered."""

from itertools import pairwise
from pathlib import Path

import lint
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from version_links import (
    NAMED,
    agrees,
    comments_and_docstrings,
    disagreements,
    said_of_versions,
    targets,
)

from mpbook.evidence import versions

PAGE = lint.BOOK / "reference" / "versions.ipynb"
PAGES = [path for path in lint.pages() if path != PAGE]
SOURCES = sorted((lint.BOOK.parent / "mpbook").rglob("*.py"))
CHANGES = {"changed": [("2.12.1", "2.13.0")], "twice": [("2.11.0", "2.12.1"), ("2.14.1", "2.15.0")]}
CHANGES |= {"constant": []}


def name_of(path: Path) -> str:
    return path.relative_to(lint.BOOK).with_suffix("").as_posix()


def page(*sources):
    return new_notebook(cells=[new_markdown_cell(source) for source in sources])


def recorded_changes() -> dict[str, list[tuple[str, str]]]:
    found, records = {}, versions.load()
    for probe in versions.PROBES.values():
        spans = versions.spans(probe, records)
        found[probe.id] = [(before.last, after.first) for before, after in pairwise(spans)]
    return found


# The book itself.


@pytest.mark.parametrize("path", lint.pages(), ids=lambda path: path.stem)
def test_a_page_says_of_versions_what_is_on_record(path: Path) -> None:
    assert disagreements(lint.read(path), recorded_changes()) == []


def test_each_behaviour_names_the_pages_that_rest_on_it() -> None:
    resting = {(said.id, name_of(p)) for p in PAGES for said in said_of_versions(lint.read(p))}
    named = {(probe.id, page) for probe in versions.PROBES.values() for page in probe.pages}
    assert resting == named


def test_every_behaviour_has_its_place_on_the_page_of_versions() -> None:
    assert targets(lint.read(PAGE)) == list(versions.PROBES)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_comment_of_the_package_names_a_version_by_hand(path: Path) -> None:
    """A comment that has to name one says which behaviour: `version-ID` beside it, on record."""
    changes = recorded_changes()
    for text in comments_and_docstrings(path.read_text("utf-8")):
        for line in filter(NAMED.search, text.splitlines()):
            known = [name for name in changes if f"version-{name}" in line]
            assert known, f"{path.name}: {line!r} names a version without `version-ID`"
            bounds = {side for name in known for pair in changes[name] for side in pair}
            said = NAMED.search(line)[0].split()[-1]
            assert any(bound.startswith(said) for bound in bounds), line


# The check itself.


@pytest.mark.parametrize(
    "text", ["2.13.0", "2.13", "from 2.13 on", "From 2.13.0 on", "since 2.13", "before 2.13.0",
             "up to 2.12.1", "up to 2.12"],
)  # fmt: skip
def test_a_boundary_that_is_on_record_passes(text: str) -> None:
    assert agrees(text, CHANGES["changed"])


@pytest.mark.parametrize(
    "text", ["2.12", "from 2.12.1 on", "before 2.12", "up to 2.13.0", "since 2.1", "2.130", "",
             "in every version", "newer versions"],
)  # fmt: skip
def test_any_other_is_refused(text: str) -> None:
    assert not agrees(text, CHANGES["changed"])


def test_each_of_several_changes_may_be_named() -> None:
    assert agrees("from 2.12 on", CHANGES["twice"]) and agrees("up to 2.14", CHANGES["twice"])
    assert not agrees("from 2.13 on", CHANGES["twice"])


def test_only_what_never_changed_holds_in_every_version() -> None:
    assert agrees("in every version", []) and not agrees("2.13", [])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("It does {ref}`from 2.12 on <version-changed>`.", "on record: up to 2.12.1, from 2.13.0"),
        ("See {ref}`version-changed`.", "said to be ''"),
        ("It does {ref}`since\n2.13 <version-unheard>`.", "no behaviour 'unheard'"),
        ("It does {ref}`since 2.13 <version-constant>`.", "on record: in every version"),
    ],
)
def test_what_disagrees_is_found_by_cell(source: str, message: str) -> None:
    (found,) = disagreements(page("text", source), CHANGES)
    assert found.startswith("cell 1: ") and message in found


def test_a_link_may_break_over_a_line_and_code_says_nothing() -> None:
    broken = page("It does {ref}`from\n2.13.0 on <version-changed>`.")
    assert disagreements(broken, CHANGES) == [] and len(said_of_versions(broken)) == 1
    code = new_notebook(cells=[new_code_cell('"{ref}`2.12 <version-changed>`"')])
    assert said_of_versions(code) == []


def test_comments_and_docstrings_are_read_and_other_strings_are_not() -> None:
    source = '"""About."""\nx = "torch 2.13"  # why\ndef f():\n    """How."""\n'
    assert list(comments_and_docstrings(source)) == ["# why", "About.", "How."]
