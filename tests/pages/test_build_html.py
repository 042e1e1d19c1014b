"""`build_html`: current pages are known to be, and no warning is lost between two builds."""

from __future__ import annotations

import subprocess
from pathlib import Path

import build_html
import pytest


class Builder:
    """Stands in for Jupyter Book: writes a page, and warns as often as it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.commands: list[list[str]] = []
        self.fails = False
        monkeypatch.setattr(build_html.subprocess, "run", self.run)

    def run(self, command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        html = Path(command[-1]) / "_build" / "html"
        html.mkdir(parents=True, exist_ok=True)
        (html / "index.html").touch()
        said = "\x1b[91mWARNING: no alt text\x1b[0m" if self.fails else ""
        return subprocess.CompletedProcess(command, int(self.fails), "", said)


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> Builder:
    return Builder(monkeypatch)


@pytest.fixture
def tree(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A small book; what is built from it goes into tmp_path / "out"."""
    for name in ("_config.yml", "_toc.yml", "book/index.md", "mpbook/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("first\n")
    monkeypatch.setattr(build_html, "ROOT", tmp_path)
    return tmp_path


def is_current(tree: Path) -> bool:
    return build_html.is_current(tree / "out" / "_build")


def test_what_was_built_from_these_sources_is_current(tree: Path, builder: Builder) -> None:
    assert not is_current(tree)
    assert build_html.build(tree / "out") == tree / "out" / "_build" / "html"
    assert is_current(tree)
    assert {"-W", "-n", "--keep-going"} <= set(builder.commands[0])


@pytest.mark.parametrize("name", ["_toc.yml", "book/index.md", "mpbook/__init__.py", "book/new.md"])
def test_a_source_that_changed_or_came_makes_it_stale(
    tree: Path, builder: Builder, name: str
) -> None:
    build_html.build(tree / "out")
    (tree / name).write_text("second\n")
    assert not is_current(tree)


def test_a_source_that_went_makes_it_stale_and_its_page_goes(tree: Path, builder: Builder) -> None:
    html = build_html.build(tree / "out")
    (html / "gone.html").touch()
    build_html.build(tree / "out")
    assert (html / "gone.html").exists(), "an unchanged book is built from what is there"
    (tree / "book" / "index.md").unlink()
    build_html.build(tree / "out")
    assert not (html / "gone.html").exists()


def test_what_only_running_makes_is_no_source(tree: Path, builder: Builder) -> None:
    build_html.build(tree / "out")
    for name in ("mpbook/__pycache__/a.pyc", "book/.ipynb_checkpoints/a.ipynb"):
        (tree / name).parent.mkdir()
        (tree / name).touch()
    assert is_current(tree)


def test_another_repository_or_torch_makes_it_stale(
    tree: Path, builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_html.build(tree / "out")
    with monkeypatch.context() as changed:
        changed.setenv("MPBOOK_REPOSITORY", "owner/name")
        assert not is_current(tree)
    monkeypatch.setattr(build_html, "version", lambda tool: "0.0")
    assert not is_current(tree)


def test_a_build_that_fails_is_not_current_and_the_next_reads_every_page(
    tree: Path, builder: Builder
) -> None:
    html = build_html.build(tree / "out")
    builder.fails = True
    with pytest.raises(
        build_html.BuildError, match="the book does not build\nWARNING: no alt text"
    ):
        build_html.build(tree / "out", quiet=True)
    assert not is_current(tree)
    (html / "left.html").touch()
    builder.fails = False
    build_html.build(tree / "out")
    assert not (html / "left.html").exists()


def test_a_broken_note_is_as_none(tree: Path, builder: Builder) -> None:
    build_html.build(tree / "out")
    (tree / "out" / "_build" / build_html.NOTE).write_text("{")
    assert not is_current(tree)
