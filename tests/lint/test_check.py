"""The linter over files: what it prints, what it skips, and what it cannot read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mpbook.__main__ import main
from mpbook.lint import RULES, lint_files, lint_text

OLD = "from torch.cuda.amp import autocast"


def notebook(path: Path, *cells: str) -> Path:
    """A notebook of a Markdown cell and these code cells."""
    sources = [("markdown", "# Title"), *(("code", cell) for cell in cells)]
    made = [{"cell_type": kind, "source": text.splitlines(True)} for kind, text in sources]
    path.write_text(json.dumps({"cells": made}), "utf-8")
    return path


def test_a_finding_prints_its_place_id_reason_and_section() -> None:
    (finding,) = lint_text("import torch\n\nx = [torch.cuda.amp.GradScaler()]\n", path="train.py")
    rule = RULES["deprecated-amp"]
    link = "recipe/autocast_traps.html#torch-cuda-amp"
    assert str(finding) == f"train.py:3:6: deprecated-amp {rule.reason} ({link})"


def test_findings_come_in_the_order_of_the_lines() -> None:
    text = f"import torch\nlow = torch.arange(9999).half()\n{OLD}\n"
    assert [finding.line for finding in lint_text(text)] == [2, 3]


@pytest.mark.parametrize("named", ["deprecated-amp", "other-rule, deprecated-amp"])
def test_a_comment_suppresses_a_rule_on_its_line(named: str) -> None:
    assert lint_text(f"{OLD}  # mpbook: ignore[{named}]\n") == []


def test_a_comment_suppresses_on_any_line_of_a_call() -> None:
    call = "import torch\nscaler = torch.amp.GradScaler(\n    1024.0,  # mpbook: ignore[{}]\n)\n"
    assert lint_text(call.format("scale-for-a-device")) == []
    assert len(lint_text(call.format("clip-before-unscale"))) == 1


def test_a_comment_leaves_other_lines_alone() -> None:
    assert len(lint_text(f"{OLD}\nx = 1  # mpbook: ignore[deprecated-amp]\n")) == 1


def test_a_file_that_is_no_python_is_a_finding(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("x = 1\nfor x in:\n")
    (finding,) = lint_files([file])
    assert (finding.id, finding.line) == ("cannot-read", 2)
    assert "no Python" in finding.message


def test_bytes_that_are_no_utf_8_are_a_finding_and_the_next_file_is_read(tmp_path: Path) -> None:
    latin, old = tmp_path / "a.py", tmp_path / "b.py"
    latin.write_bytes(b"x = 1\n# caf\xe9\n")
    old.write_text(OLD)
    found = lint_files([latin, old])
    assert [f.id for f in found] == ["cannot-read", "deprecated-amp"]
    assert found[0].line == 2 and "UTF-8" in found[0].message


def test_a_declared_encoding_is_obeyed(tmp_path: Path) -> None:
    file = tmp_path / "latin.py"
    file.write_bytes(b"# -*- coding: latin-1 -*-\n# caf\xe9\n" + OLD.encode())
    assert [f.line for f in lint_files([file])] == [3]


@pytest.mark.parametrize("text", ["", "\ufeff" + OLD, OLD.replace("\n", "\r\n") + "\r\n"])
def test_empty_files_marks_and_line_ends(tmp_path: Path, text: str) -> None:
    file = tmp_path / "file.py"
    file.write_bytes(text.encode())
    assert len(lint_files([file])) == bool(text)


def test_a_comment_suppresses_whatever_ends_the_lines(tmp_path: Path) -> None:
    file = tmp_path / "file.py"
    file.write_bytes(f"x = 1\r{OLD}  # mpbook: ignore[deprecated-amp]\ry = 2\r".encode())
    assert lint_files([file]) == []


@pytest.mark.parametrize("error", [RecursionError, MemoryError])
def test_source_that_is_nested_too_deep_is_a_finding(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def parse(text: str) -> None:
        raise error("too deep")

    monkeypatch.setattr("mpbook.lint.reading.ast.parse", parse)
    (finding,) = lint_text("x = 1")
    assert finding.id == "cannot-read" and "too deep" in finding.message


def test_null_bytes_are_a_finding(tmp_path: Path) -> None:
    file = tmp_path / "null.py"
    file.write_bytes(b"x = 1\0\n")
    assert [f.id for f in lint_files([file])] == ["cannot-read"]


def test_a_notebook_names_the_cell_and_the_line_in_it(tmp_path: Path) -> None:
    path = notebook(tmp_path / "a.ipynb", "%matplotlib inline\n!pip install torch", f"x = 1\n{OLD}")
    (finding,) = lint_files([path])
    assert (finding.cell, finding.line) == (3, 2)
    assert str(finding).startswith(f"{path}:cell 3:2:1: deprecated-amp ")


def test_the_cells_of_a_notebook_are_one_program(tmp_path: Path) -> None:
    cells = "import torch", "model.half()", "o = torch.optim.Adam(model.parameters())"
    (finding,) = lint_files([notebook(tmp_path / "a.ipynb", *cells)])
    assert (finding.id, finding.cell) == ("adam-on-float16", 4)


def test_a_broken_cell_does_not_hide_the_others(tmp_path: Path) -> None:
    path = notebook(tmp_path / "a.ipynb", "for x in:", OLD, "%%bash\nls -l", "model?")
    found = [(f.cell, f.id) for f in lint_files([path])]
    assert found == [(2, "cannot-read"), (3, "deprecated-amp")]


@pytest.mark.parametrize("first", ["%%time", "%%capture out", "files = !ls", "a, b = %sx ls"])
def test_what_follows_a_magic_is_read(tmp_path: Path, first: str) -> None:
    (finding,) = lint_files([notebook(tmp_path / "a.ipynb", f"{first}\n{OLD}")])
    assert (finding.id, finding.line) == ("deprecated-amp", 2)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"cells": [1]}'])
def test_json_that_is_no_notebook_is_a_finding(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.ipynb"
    path.write_text(text)
    assert [f.id for f in lint_files([path])] == ["cannot-read"]


def test_a_folder_is_searched_and_hidden_folders_are_not(tmp_path: Path) -> None:
    for name in ("src", ".venv", "build"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "old.py").write_text(OLD)
    assert [Path(f.path).parent.name for f in lint_files([tmp_path])] == ["src"]


def test_a_folder_is_searched_for_notebooks_too(tmp_path: Path) -> None:
    notebook(tmp_path / "a.ipynb", OLD)
    (tmp_path / "a.txt").write_text(OLD)
    assert [Path(f.path).name for f in lint_files([tmp_path])] == ["a.ipynb"]


def test_a_folder_that_is_named_is_searched_whatever_it_is_called(tmp_path: Path) -> None:
    folder = tmp_path / "build" / ".hidden"
    folder.mkdir(parents=True)
    (folder / "old.py").write_text(OLD)
    assert len(lint_files([folder])) == 1


def test_nothing_in_the_file_runs(tmp_path: Path) -> None:
    file = tmp_path / "danger.py"
    file.write_text(f"open({str(tmp_path / 'written')!r}, 'w')\nraise SystemExit\n")
    assert lint_files([file]) == []
    assert not (tmp_path / "written").exists()


def test_the_command_says_1_with_findings_and_0_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = tmp_path / "old.py", tmp_path / "new.py"
    old.write_text(OLD)
    new.write_text("from torch.amp import autocast")
    assert main(["lint", str(new)]) == 0
    assert capsys.readouterr().out == ""
    assert main(["lint", str(new), str(old)]) == 1
    assert capsys.readouterr().out.startswith(f"{old}:1:1: deprecated-amp ")


def test_the_command_lists_the_rules(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", "--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(RULES)


@pytest.mark.parametrize("arguments", [[], ["nowhere.py"]])
def test_the_command_says_what_is_missing(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lint", *arguments]) == 1
    assert "FILE" in capsys.readouterr().err or arguments


def test_the_linter_imports_no_torch() -> None:
    code = "import sys, mpbook.lint; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
