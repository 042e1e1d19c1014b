"""The chapters of the recipe: what they open with, what their traps say, where interviews lead."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import lint
import pytest
import torch
from nbformat import NotebookNode
from symptoms import Symptom, symptoms
from torch.amp import grad_scaler
from torch.optim import lr_scheduler

PREFIXES = {"loss_scaling": "ls", "master_weights": "mw"}
CHAPTERS = list(PREFIXES)
FOLDER = lint.BOOK / "recipe"


def page(name: str) -> NotebookNode:
    return lint.read(Path(FOLDER / f"{name}.ipynb"))


def cells_of_part(page: NotebookNode, part: str) -> list[NotebookNode]:
    """The cells from the one that is tagged with a part to the one with the next part."""
    found: list[NotebookNode] = []
    for cell in page.cells:
        parts = {tag for tag in lint.tags(cell) if tag.startswith("part:")}
        if f"part:{part}" in parts or (found and not parts):
            found.append(cell)
        elif found:
            break
    return found


def links(text: str) -> set[str]:
    """The targets that a text links to by {ref}."""
    inside = re.findall(r"\{ref\}`([^`]+)`", text)
    return {re.sub(r".*<(.+)>", r"\1", link) for link in inside}


@pytest.mark.parametrize("name", CHAPTERS)
def test_the_recipe_is_a_dozen_lines_of_plain_torch(name: str) -> None:
    code = [c for c in cells_of_part(page(name), "recipe") if c.cell_type == "code"]
    recipe = next(cell for cell in code if "hide-input" not in lint.tags(cell))
    assert 4 <= len(recipe.source.splitlines()) <= 12
    assert "mpbook" not in recipe.source and "glue" not in recipe.source
    assert "autocast" in recipe.source and "backward()" in recipe.source


HELD = re.compile(
    r"zero_grad\(.*\n\s*(scaler\.scale\()?(loss\b(?!\()|cross_entropy\((logits|outputs?)\b).*\.backward"
)


@pytest.mark.parametrize("path", lint.pages(), ids=lambda path: path.stem)
def test_no_loop_holds_the_last_gradients_through_its_forward_pass(path: Path) -> None:
    code = [cell.source for cell in lint.read(path).cells if cell.cell_type == "code"]
    text = path.read_text("utf-8") if path.suffix == ".md" else "\n\n".join(code)
    assert HELD.search(text) is None


def test_a_loop_that_frees_gradients_after_the_forward_pass_is_found() -> None:
    late = "logits = model(x)\noptimizer.zero_grad()\nloss.backward()"
    assert HELD.search(late)
    assert HELD.search(late.replace("loss.", "scaler.scale(loss)."))
    assert not HELD.search("optimizer.zero_grad()\nlogits = model(x)\nloss.backward()")
    assert not HELD.search("optimizer.zero_grad()\nmodel(x).sum().backward()")
    assert not HELD.search("optimizer.zero_grad()\nloss(model(x), y).backward()")


@pytest.mark.parametrize("name", CHAPTERS)
def test_the_chapter_links_to_each_of_its_traps_and_to_no_other(name: str) -> None:
    traps = {trap.target for trap in symptoms(page(f"{name}_traps"))}
    (section,) = [c for c in page(name).cells if "part:traps" in lint.tags(c)]
    assert links(section.source) - {f"{PREFIXES[name]}-traps"} == traps


@pytest.mark.parametrize("name", CHAPTERS)
def test_an_interview_line_answers_a_question_and_links_to_what_proves_it(name: str) -> None:
    (section,) = [c for c in page(name).cells if "part:interview" in lint.tags(c)]
    lines = re.findall(r"^\d\. (.+?)(?=^\d\. |\Z)", section.source, re.M | re.S)
    assert len(lines) == 5
    for line in lines:
        assert re.match(r"\*[^*]+\?\*", line), line
        assert links(line), line


def strings_of(module: object) -> str:
    """All literal strings of a module's source, joined, as its messages are written."""
    constants = (
        node.value
        for node in ast.walk(ast.parse(inspect.getsource(module)))  # type: ignore[arg-type]
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    return " ".join(" ".join(constants).split())


ELSEWHERE = {"ls-float64"}
"""Traps whose messages other devices than a CPU or CUDA say."""


def errors(name: str) -> list[tuple[Symptom, str]]:
    """Every error message that a page of traps names and this torch can say, with its trap."""
    traps = [trap for trap in symptoms(page(f"{name}_traps")) if trap.target not in ELSEWHERE]
    return [(trap, message) for trap in traps if trap.kind == "error" for message in trap.seen]


@pytest.mark.parametrize(
    "message", [m for _, m in errors("loss_scaling")], ids=lambda message: message[:40]
)
def test_torch_still_says_the_message_word_for_word(message: str) -> None:
    said = strings_of(grad_scaler) + strings_of(lr_scheduler)
    found = re.fullmatch(r"Attempted (\w+) but _scale is None\.( .*)?", " ".join(message.split()))
    if found:  # torch puts the call's name and the advice into it
        assert "but _scale is None." in said
        assert found[1] in ("step", "unscale_", "update")
        assert found[2] is None or found[2].strip() in said
    else:
        assert " ".join(message.split()) in said


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_torch_still_says_that_a_cast_came_too_late_word_for_word(dtype: torch.dtype) -> None:
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(layer.parameters(), foreach=False)
    said = ""
    for each in (torch.float32, dtype):
        layer.to(each)
        optimizer.zero_grad()
        layer(torch.ones(1, 2, dtype=each)).sum().backward()
        try:
            optimizer.step()
        except RuntimeError as error:
            said = str(error)
    assert said in [message for _, message in errors("master_weights")]


@pytest.mark.parametrize("name", CHAPTERS)
def test_an_error_trap_is_headed_by_its_message_or_a_question(name: str) -> None:
    for trap, _ in errors(name):
        heading = " ".join(trap.title.strip("`").replace("`", "").split()).rstrip(".")
        messages = [" ".join(m.replace("`", "").split()) for m in trap.seen]
        assert heading.endswith("?") or any(m.startswith(heading) for m in messages), heading
