"""A launch ends: with an answer a rank, or with the rank that failed and why; nothing stays."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mpbook.many_gpus.launch import RankError, _failure, cannot_launch, launch
from mpbook.many_gpus.rank import FOLDER, LAUNCHER, PATIENCE, _watch, run_rank

# ruff: noqa: F821  a program's imports come from `mpbook.many_gpus.program_text.PRELUDE`


def finds_a_nan():
    if dist.get_rank() == 1:
        raise FloatingPointError("the loss is nan at step 3")
    dist.barrier()


def is_killed():
    import os
    import signal

    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def has_fewer_batches():
    model = DistributedDataParallel(nn.Linear(2, 2))
    for _ in range(3 - dist.get_rank()):
        model(torch.ones(1, 2)).sum().backward()


def waits_for_ever():
    import time

    if dist.get_rank() == 1:
        time.sleep(10_000)
    dist.barrier()


def left_over(folder: Path) -> list[int]:
    """The processes whose environment names this folder, where the system tells."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes()
        except OSError:
            continue
        if f"{FOLDER}={folder}".encode() in environment and int(process.name) != os.getpid():
            found.append(int(process.name))
    return found


@pytest.fixture
def no_rank_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Launches put their files below this test's folder, by which their processes are known."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    yield
    until = time.monotonic() + 60  # a process that was killed takes a moment to be gone
    while left_over(tmp_path) and time.monotonic() < until:
        time.sleep(0.1)
    assert left_over(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_rank_stays")
@pytest.mark.parametrize(
    ("program", "rank", "reason"),
    [
        (finds_a_nan, 1, "FloatingPointError: the loss is nan at step 3"),
        (is_killed, 1, "killed by SIGKILL"),
        (has_fewer_batches, 0, "rank 1 had finished"),
    ],
)
def test_a_failed_rank_ends_all_with_its_name_and_reason(
    program, rank: int, reason: str, patience_s: float
) -> None:
    with pytest.raises(RankError, match=reason) as caught:
        launch(program, patience_s=patience_s)
    assert caught.value.rank == rank
    assert str(caught.value).startswith(f"rank {rank}: ")


@pytest.mark.usefixtures("no_rank_stays", "patience_s")
def test_ranks_that_wait_for_ever_are_ended() -> None:
    with pytest.raises(RankError, match="no answer within 6 s") as caught:
        launch(waits_for_ever, patience_s=6)
    assert caught.value.rank is None


def test_windows_is_refused_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert "Windows" in (cannot_launch() or "")
    with pytest.raises(RuntimeError, match="Windows"):
        launch("sums")


def test_a_torch_without_gloo_is_refused_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("torch.distributed.is_available", lambda: False)
    with pytest.raises(RuntimeError, match=r"without torch\.distributed"):
        launch("sums")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"program": "sum"}, "program='sum': expected one of fine_tune, sums"),
        ({"program": "sums", "ranks": 0}, "ranks=0"),
        ({"program": "sums", "patience_s": 0}, "patience_s=0"),
        ({"program": "sums", "device": "tpu"}, "device='tpu'|device=\"tpu\""),
        ({"program": "sums", "ranks": 1000, "device": "cuda"}, "ranks=1000: torch sees"),
    ],
)
def test_what_is_refused(options, message: str, patience_s: float) -> None:
    with pytest.raises(ValueError, match=message):
        launch(**options)


def ended_by_its_watch(monkeypatch: pytest.MonkeyPatch, launcher: int, patience_s: float) -> bool:
    """Whether the watch of a rank, run in this process, ends it; a real rank has it in a thread."""

    class EndedError(Exception):
        pass

    def end(_code: int) -> None:
        raise EndedError

    monkeypatch.setenv(LAUNCHER, str(launcher))
    monkeypatch.setenv(PATIENCE, str(patience_s))
    monkeypatch.setattr(os, "_exit", end)
    try:
        _watch()
    except EndedError:
        return True
    return False


def test_a_rank_ends_itself_when_its_launcher_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    started = time.monotonic()
    assert ended_by_its_watch(monkeypatch, gone.pid, patience_s=10_000)
    assert time.monotonic() - started < 5_000


def test_a_rank_ends_itself_when_its_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    started = time.monotonic()
    assert ended_by_its_watch(monkeypatch, os.getpid(), patience_s=1)
    assert time.monotonic() - started >= 1


def failure(folder: Path, printed: str = "", ranks: int = 2) -> RankError:
    return _failure(folder, printed, ranks, None)


def test_the_first_rank_that_says_why_is_to_blame(tmp_path: Path) -> None:
    (tmp_path / "0.error").write_text('{"at": 12.0, "reason": "RuntimeError: peer gone"}')
    (tmp_path / "1.error").write_text('{"at": 11.5, "reason": "ValueError: odd"}')
    found = failure(tmp_path)
    assert (found.rank, found.reason) == (1, "ValueError: odd")


def test_a_rank_that_vanished_is_to_blame_before_those_that_noticed(tmp_path: Path) -> None:
    (tmp_path / "0.error").write_text('{"at": 12.0, "reason": "RuntimeError: peer gone"}')
    printed = """
  rank      : 0 (local_rank: 0)
  exitcode  : 1 (pid: 10)
  rank      : 2 (local_rank: 2)
  exitcode  : -15 (pid: 12)
  rank      : 1 (local_rank: 1)
  exitcode  : -9 (pid: 11)
"""
    found = failure(tmp_path, printed, ranks=3)
    assert (found.rank, found.reason) == (1, "killed by SIGKILL")
    assert found.output == printed


def test_an_engine_that_never_started_says_its_last_line(tmp_path: Path) -> None:
    found = failure(tmp_path, "a warning\nerror: no such option\n")
    assert found.rank is None
    assert found.reason == "the ranks did not start: error: no such option"


def test_a_program_for_two_ranks_says_so_to_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    monkeypatch.setenv(PATIENCE, "1000")
    monkeypatch.setenv(LAUNCHER, str(os.getpid()))
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(ValueError, match="ranks=1: this program needs at least 2"):
        run_rank(lambda: 3, at_least=2)
    found = failure(tmp_path, ranks=1)
    assert (found.rank, found.reason[:19]) == (0, "ValueError: ranks=1")
