"""What the pages say of a claim is what the ledger computes."""

from functools import cache
from pathlib import Path

import lint
import pytest
from claim_links import disagreements, said_of_claims, targets
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from mpbook.evidence import case_study
from mpbook.evidence.claims import CLAIMS, ledger

KINDS = {"a-claim": "false", "another-1": "holds when ...", "third": "not recorded yet"}
KINDS["fourth"] = "holds"


@pytest.fixture(autouse=True)
def train_once(monkeypatch, trained_pairs):
    monkeypatch.setattr(case_study, "short_runs", trained_pairs)


@cache
def kind(claim: str) -> str:
    return ledger(claim).kinds()[claim]


def page(*sources):
    return new_notebook(cells=[new_markdown_cell(source) for source in sources])


# The book itself.


@pytest.mark.parametrize("path", lint.pages(), ids=lambda path: path.stem)
def test_a_page_says_of_a_claim_what_the_ledger_says(path: Path) -> None:
    content = lint.read(path)
    said = {one.id for one in said_of_claims(content)} & set(CLAIMS)
    assert disagreements(content, {claim: kind(claim) for claim in said}) == []


def test_several_chapters_state_verdicts() -> None:
    stating = [path.stem for path in lint.pages() if said_of_claims(lint.read(path))]
    assert len(stating) >= 3


def test_every_claim_has_its_place_on_the_page_of_claims() -> None:
    found = targets(lint.read(lint.BOOK / "reference" / "claims.ipynb"))
    assert found == list(CLAIMS)


# The check itself.


@pytest.mark.parametrize(
    "source",
    [
        "It is {ref}`false <claim-a-claim>`.",
        "It is {ref}`False <claim-a-claim>`.",
        "That {ref}`holds when <claim-another-1>` it rains.",
        "That {ref}`holds\nwhen <claim-another-1>` it rains.",
        "That is {ref}`true only\nwhen <claim-another-1>` it rains.",
        "That is {ref}`True if <claim-another-1>` it rains, {ref}`true where <claim-another-1>`",
        "That {ref}`holds <claim-fourth>`, so it is {ref}`true <claim-fourth>`.",
        "It is {ref}`not recorded yet<claim-third>`.",
        "{ref}`false <claim-a-claim>`, and {ref}`holds when <claim-another-1>`",
        "No claim, but {ref}`a section <proclaim-nothing>` and {doc}`claims`.",
    ],
)
def test_what_agrees_passes(source: str) -> None:
    assert disagreements(page("text", source), KINDS) == []


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "It {ref}`holds <claim-a-claim>`.",
            "a-claim is said to be 'holds'; the verdict is 'false'",
        ),
        ("It {ref}`holds <claim-another-1>`.", "the verdict is 'holds when'"),
        ("It is {ref}`true <claim-another-1>`.", "the verdict is 'holds when'"),
        ("It is {ref}`true only when <claim-fourth>` dry.", "the verdict is 'holds'"),
        ("It is {ref}`not true <claim-fourth>`.", "the verdict is 'holds'"),
        ("It is {ref}`true when <claim-a-claim>` dry.", "the verdict is 'false'"),
        ("It is {ref}`true <claim-a-claim>`.", "said to be 'true'"),
        ("See {ref}`claim-a-claim`.", "said to be ''"),
        ("It {ref}`holds <claim-unheard-of>`.", "there is no claim 'unheard-of'"),
        ("See {ref}`claim-unheard-of`.", "there is no claim 'unheard-of'"),
    ],
)
def test_what_disagrees_is_found_by_cell(source: str, message: str) -> None:
    (found,) = disagreements(page("text", source), KINDS)
    assert found.startswith("cell 1: ") and message in found


def test_each_of_several_links_is_compared() -> None:
    source = "{ref}`false <claim-a-claim>` or {ref}`holds <claim-a-claim>`; {ref}`no <claim-third>`"
    assert len(disagreements(page(source), KINDS)) == 2


def test_code_says_nothing_of_claims() -> None:
    notebook = new_notebook(cells=[new_code_cell('"{ref}`true <claim-a-claim>`"')])
    assert said_of_claims(notebook) == []


def test_targets_are_whole_lines() -> None:
    assert targets(page("(claim-b-1)=\n(claim-a)=\n## Title\n\ntext (claim-c)= text")) == [
        "b-1",
        "a",
    ]
