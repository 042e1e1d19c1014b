"""The path of "My loss is NaN" follows its page, and bfloat16 lists all its traps."""

import re

import lint
from symptoms import symptoms

CHAPTER = lint.BOOK / "formats_that_need_less" / "bf16.ipynb"
TRAPS = CHAPTER.with_name("bf16_traps.ipynb")
NAN = lint.BOOK / "reference" / "nan.ipynb"
LINK = re.compile(r"\{ref\}`(?:[^`<]*<)?([\w-]+)>?`")


def cell_with(path, text: str) -> str:
    (found,) = [
        cell.source for _, cell in lint.cells(lint.read(path), "markdown") if text in cell.source
    ]
    return found


def test_the_chapter_lists_every_trap_in_the_order_of_their_page() -> None:
    listed = LINK.findall(cell_with(CHAPTER, "(bf16-traps)="))
    targets = [symptom.target for symptom in symptoms(lint.read(TRAPS))]
    assert len(targets) > 15
    assert [target for target in listed if target in targets] == targets


def test_each_question_leads_to_a_section_and_they_come_in_that_order() -> None:
    path = cell_with(NAN, "(nan-path)=")
    questions = re.findall(r"^(\d)\. .*?No: \{ref\}`([\w-]+)`$", path, re.M | re.S)
    assert [number for number, _ in questions] == list("123456")
    sections = [symptom.target for symptom in symptoms(lint.read(NAN))]
    answers = [target for _, target in questions]
    assert [target for target in sections if target in answers] == answers
