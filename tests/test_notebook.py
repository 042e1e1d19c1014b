"""`mpbook.notebook`: tables by the character, glue against myst_nb, progress by a fake clock."""

import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import myst_nb  # type: ignore[import-untyped]
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import RichOutput, capture_output
from traitlets.config import Config

from mpbook import notebook
from mpbook.notebook import Progress, Table, glue

# --- tables as text ---------------------------------------------------------------------------


def test_a_table_prints_in_aligned_columns() -> None:
    table = Table(
        ["precision", "loss", "steps", "note"],
        [["32-true", 0.5, 1000, "slow"], ["16-mixed", 12.25, 7, ""], ["tf32", 3, 50, "fast, too"]],
    )
    assert repr(table).splitlines() == [
        "precision   loss  steps  note",
        "---------  -----  -----  ---------",
        "32-true      0.5   1000  slow",
        "16-mixed   12.25      7",
        "tf32           3     50  fast, too",
    ]


def test_a_caption_comes_first() -> None:
    assert repr(Table(["a"], [[1]], caption="What it shows")).splitlines() == [
        "What it shows",
        "a",
        "-",
        "1",
    ]


def test_floats_show_six_digits_and_other_cells_as_they_are() -> None:
    table = Table(["x"], [[1 / 3], [123456789.0], [2.0], [123456789], [None]])
    cells = [line.strip() for line in repr(table).splitlines()[2:]]
    assert cells == ["0.333333", "1.23457e+08", "2", "123456789", "None"]


def test_one_word_makes_a_column_of_text() -> None:
    assert repr(Table(["long title"], [[1], [22]])).splitlines()[2:] == [
        "         1",
        "        22",
    ]
    assert repr(Table(["long title"], [[1], ["x"]])).splitlines()[2:] == ["1", "x"]


def test_a_table_may_have_no_rows() -> None:
    assert repr(Table(["a", "bc"], [])).splitlines() == ["a  bc", "-  --"]
    assert "<tbody></tbody>" in Table(["a"], [])._repr_html_()


@pytest.mark.parametrize("row", [[1], [1, 2, 3], []])
def test_a_row_of_another_length_is_refused(row: list[int]) -> None:
    message = rf"rows: .* has {len(row)} cells, expected 2 as the header"
    with pytest.raises(ValueError, match=message):
        Table(["a", "b"], [[1, 2], row])


# --- tables as HTML ---------------------------------------------------------------------------


class Reader(HTMLParser):
    """Cells of an HTML table, by row: tag, scope, alignment, text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[list[Any]]] = []
        self.caption: str | None = None
        self.path: list[str] = []
        self.feed(html)
        assert self.path == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Open a row or a cell."""
        found = dict(attributes)
        self.path.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            aligned = (found.get("style") or "").removeprefix("text-align:")
            self.rows[-1].append([tag, found.get("scope"), aligned, ""])

    def handle_endtag(self, tag: str) -> None:
        """Close what was opened last."""
        assert self.path.pop() == tag

    def handle_data(self, data: str) -> None:
        """Keep the text of a cell or caption."""
        if self.path[-1] == "caption":
            self.caption = data
        else:
            self.rows[-1][-1][3] += data


def test_a_table_shows_as_html_with_headers_for_rows_and_columns() -> None:
    html = Table(["name", "loss"], [["a", 1 / 3], ["b", 2]], caption="What it shows")._repr_html_()
    reader = Reader(html)
    assert reader.caption == "What it shows"
    assert reader.rows == [
        [["th", "col", "left", "name"], ["th", "col", "right", "loss"]],
        [["th", "row", "left", "a"], ["td", None, "right", "0.333333"]],
        [["th", "row", "left", "b"], ["td", None, "right", "2"]],
    ]
    assert html.startswith('<div class="mp-table"><table><caption>')
    assert html.index("<thead>") < html.index("loss</th></tr></thead><tbody>")


def test_html_is_escaped_everywhere() -> None:
    hostile = '<b title="x">&'
    html = Table([hostile, "n"], [[hostile, hostile]], caption=hostile)._repr_html_()
    reader = Reader(html)
    assert reader.caption == hostile
    assert [cell[3] for row in reader.rows for cell in row] == [hostile, "n", hostile, hostile]
    assert "<b" not in html


def test_no_caption_leaves_no_empty_element() -> None:
    assert "caption" not in Table(["a"], [[1]])._repr_html_()


# --- glue -------------------------------------------------------------------------------------


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[InteractiveShell]:
    """Yield an IPython shell that keeps no history and ends with the test."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    running = InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    yield running
    running.restore_sys_module_state()
    InteractiveShell.clear_instance()


def outputs(function: Callable[[], object]) -> list[RichOutput]:
    with capture_output() as captured:
        function()
    assert captured.stdout == captured.stderr == ""
    return list(captured.outputs)


@pytest.mark.usefixtures("shell")
@pytest.mark.parametrize("value", [3, 0.25, -1e-9, True, None, [1, 2], (1, "x"), "1.5", "it's"])
def test_glue_leaves_the_record_of_myst_nb(value: Any) -> None:
    (ours,) = outputs(lambda: glue("answer", value))
    (theirs,) = outputs(lambda: myst_nb.glue("answer", value, display=False))
    assert ours.data == theirs.data
    assert ours.metadata == theirs.metadata


@pytest.mark.usefixtures("shell")
def test_the_name_is_part_of_the_record() -> None:
    (output,) = outputs(lambda: glue("speedup", "1.5"))
    assert output.metadata["scrapbook"]["name"] == "speedup"
    assert list(output.data) == ["application/papermill.record/text/plain"]


@pytest.mark.usefixtures("shell")
def test_glue_returns_the_value_itself() -> None:
    value = [1.5]
    with capture_output():
        assert glue("list", value) is value


def test_without_ipython_glue_only_returns_the_value(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(notebook, "_ipython", lambda: None)
    assert glue("x", 3.5) == 3.5
    assert capsys.readouterr() == ("", "")


def test_the_running_shell_is_found_and_ipython_is_not_imported_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running = object()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: running))
    assert notebook._ipython() is running
    monkeypatch.delitem(sys.modules, "IPython")
    assert notebook._ipython() is None
    assert "IPython" not in sys.modules


def test_the_module_needs_neither_ipython_nor_torch() -> None:
    script = (
        "import sys, mpbook.notebook as n; n.glue('x', 1); n.Progress(3, label='x').update(1)\n"
        "heavy = {'IPython', 'torch', 'matplotlib', 'myst_nb'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    command = [sys.executable, "-c", script]
    root = Path(notebook.__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    assert done.stderr == ""
    assert done.returncode == 0


# --- progress ---------------------------------------------------------------------------------

ERASE = "\r\x1b[2K"


class Terminal(io.StringIO):
    """A stderr that a person looks at, or not."""

    def __init__(self, *, tty: bool) -> None:
        super().__init__()
        self.tty = tty
        self.flushed = ""

    def isatty(self) -> bool:
        """Tell whether a person looks at it."""
        return self.tty

    def flush(self) -> None:
        """Note what a person can see now."""
        self.flushed = self.getvalue()


class Clock:
    """A clock that a test sets."""

    now = 100.0

    def perf_counter(self) -> float:
        """Tell the time."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the clock that the progress line reads."""
    fake = Clock()
    monkeypatch.setattr(notebook, "time", fake)
    return fake


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Return a stderr that is a terminal, outside any notebook."""
    fake = Terminal(tty=True)
    # Not sys.stderr itself: pytest puts its own there between a fixture and its test.
    monkeypatch.setattr(notebook, "sys", SimpleNamespace(stderr=fake))
    monkeypatch.setattr(notebook, "_ipython", lambda: None)
    return fake


def test_nothing_is_written_where_nobody_looks(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, terminal: Terminal
) -> None:
    terminal.tty = False
    with Progress(10, label="work", quiet_s=0) as progress:
        for done in range(10):
            clock.now += 5
            progress.update(done)
    assert terminal.getvalue() == ""


def test_nothing_is_written_when_disabled(clock: Clock, terminal: Terminal) -> None:
    with Progress(10, label="work", quiet_s=0, enabled=False) as progress:
        clock.now += 50
        progress.update(5)
    assert terminal.getvalue() == ""


def test_the_line_says_how_far_and_how_long_and_goes_away(clock: Clock, terminal: Terminal) -> None:
    with Progress(10, label="training", quiet_s=2.0) as progress:
        clock.now += 6
        progress.update(4, "loss 1.25")
        line = f"{ERASE}training: 4/10, about 9 s left  loss 1.25"
        assert terminal.flushed == line
    assert terminal.flushed == line + ERASE
    progress.close()
    assert terminal.flushed == line + ERASE  # erased once


def test_no_unit_done_is_no_division_by_zero(clock: Clock, terminal: Terminal) -> None:
    progress = Progress(10, label="work")
    clock.now += 3
    progress.update(0)
    assert terminal.flushed == f"{ERASE}work: 0/10, about 30 s left  "


def test_the_first_line_waits_for_the_quiet_period(clock: Clock, terminal: Terminal) -> None:
    progress = Progress(10, label="work", quiet_s=4.0)
    clock.now += 3.9
    progress.update(1)
    assert terminal.getvalue() == ""
    progress.close()
    assert terminal.getvalue() == ""
    clock.now += 0.1
    progress.update(2)
    assert terminal.getvalue() != ""


def test_the_quiet_period_is_two_seconds(clock: Clock, terminal: Terminal) -> None:
    progress = Progress(10, label="work")
    clock.now += 1.99
    progress.update(1)
    assert terminal.getvalue() == ""
    clock.now += 0.02
    progress.update(1)
    assert terminal.getvalue() != ""


def test_lines_come_twice_a_second_at_most(clock: Clock, terminal: Terminal) -> None:
    progress = Progress(1000, label="work", quiet_s=0)
    for done in range(1, 81):  # ten seconds, eight updates a second
        clock.now += 0.125
        progress.update(done)
    assert terminal.getvalue().count(ERASE) == 20
    assert terminal.getvalue().count("work: 1/1000") == 1
    assert "work: 5/1000" in terminal.getvalue()
    assert "work: 4/1000" not in terminal.getvalue()


def test_the_line_goes_away_when_the_work_fails(clock: Clock, terminal: Terminal) -> None:
    def work() -> None:
        with Progress(10, label="work", quiet_s=0) as progress:
            clock.now += 1
            progress.update(5)
            raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        work()
    assert terminal.flushed.endswith(ERASE)


@pytest.fixture
def in_notebook(
    shell: InteractiveShell, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> Callable[[bool], None]:
    """Return a function that starts a kernel, with or without a person at it."""

    def start(a_person_looks: bool) -> None:
        kernel = SimpleNamespace(_allow_stdin=a_person_looks)
        monkeypatch.setattr(notebook, "_ipython", lambda: SimpleNamespace(kernel=kernel))
        terminal.tty = False

    return start


def test_in_a_notebook_one_output_is_updated_and_emptied(
    clock: Clock, in_notebook: Callable[[bool], None], terminal: Terminal
) -> None:
    in_notebook(True)
    with capture_output() as captured, Progress(10, label="work", quiet_s=0) as progress:
        for done in (4, 5):
            clock.now += 2
            progress.update(done)
    first, *updates = captured.outputs
    texts = [output.data["text/plain"] for output in captured.outputs]
    assert texts == ["work: 4/10, about 3 s left  ", "work: 5/10, about 4 s left  ", ""]
    assert all(update.transient == first.transient for update in updates)
    assert all(update.update for update in updates)
    assert not first.update
    assert terminal.getvalue() == ""


def test_a_notebook_that_is_executed_for_the_record_shows_no_progress(
    clock: Clock, in_notebook: Callable[[bool], None], terminal: Terminal
) -> None:
    in_notebook(False)
    with capture_output() as captured, Progress(10, label="work", quiet_s=0) as progress:
        clock.now += 5
        progress.update(5)
    assert captured.outputs == []
    assert terminal.getvalue() == ""
