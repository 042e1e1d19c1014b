"""``python -m mpbook diagnose MODULE:FUNCTION``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mpbook.__main__ import main

TRAIN = """
import torch
from torch import nn

def healthy(scale=1.0):
    torch.manual_seed(0)
    batch = scale * torch.randn(8, 4), torch.arange(8) % 2
    return {"model": nn.Linear(4, 2), "batches": batch, "loss": nn.functional.cross_entropy}

def in_one_format():
    return {**healthy(), "formats": ["bfloat16"]}

def failing():
    return healthy(1e6)

def nothing():
    return 3
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train_of_the_command.py").write_text(TRAIN)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("here")
def test_it_prints_the_report_and_its_status_says_whether_a_format_fails(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["diagnose", "train_of_the_command:healthy", "--steps", "1"]) == 0
    assert "survives" in capsys.readouterr().out
    assert main(["diagnose", "train_of_the_command.py:failing", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["survives"]["float16"] == "no"


@pytest.mark.usefixtures("here")
def test_formats_that_a_function_names_itself_win_over_the_options() -> None:
    assert main(["diagnose", "train_of_the_command:in_one_format", "--steps", "1"]) == 0


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("train_of_the_command", "expected MODULE:FUNCTION"),
        ("train_of_the_command:missing", "has no function missing"),
        ("train_of_the_command:nothing", "returned a int; expected a dict"),
        ("no_such_module:f", "No module named"),
    ],
)
def test_what_is_wrong_is_told(what: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", what]) == 1
    assert said in capsys.readouterr().err
