"""A launch ends: with an answer a rank, or with the rank that failed and why; nothing stays."""

from __future__ import annotations

import inspect
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from mpbook.many_gpus.launch import RankError, _failure, cannot_launch, launch
from mpbook.many_gpus.rank import (
    FOLDER,
    LAUNCHER,
    PATIENCE,
    _as_json,
    _reported,
    _watch,
    run_rank,
)

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


def leaves_without_a_word():
    import os

    if dist.get_rank() == 1:
        os._exit(0)
    return "an answer"


def leaves_others_behind():
    """Rank 1 fails and leaves a process; rank 0 does not mind being told to end."""
    import signal
    import subprocess
    import time

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    dist.barrier()
    if dist.get_rank() == 1:
        subprocess.Popen(["sleep", "10000"])
        raise ValueError("no more")
    time.sleep(10_000)


def has_two_dtypes():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4).bfloat16())
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    model(torch.ones(1, 4))


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


def wait_until_gone(folder: Path) -> None:
    """A process that was killed takes a moment to be gone."""
    until = time.monotonic() + 60
    while left_over(folder) and time.monotonic() < until:
        time.sleep(0.1)


@pytest.fixture
def no_rank_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Launches put their files below this test's folder, by which their processes are known."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    yield
    wait_until_gone(tmp_path)
    assert left_over(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_rank_stays")
@pytest.mark.parametrize(
    ("program", "rank", "reason"),
    [
        (finds_a_nan, 1, "FloatingPointError: the loss is nan at step 3"),
        (is_killed, 1, "killed by SIGKILL"),
        (has_fewer_batches, 0, "rank 1 had finished"),
        (leaves_without_a_word, 1, "left without an answer"),
        (has_two_dtypes, None, "uniform original parameter dtype"),
    ],
)
def test_a_failed_rank_ends_all_with_its_name_and_reason(
    program, rank: int | None, reason: str, patience_s: float
) -> None:
    with pytest.raises(RankError, match=reason) as caught:
        launch(program, patience_s=patience_s)
    if rank is not None:  # else any may be the first
        assert caught.value.rank == rank
    assert str(caught.value).startswith(f"rank {caught.value.rank}: ")


@pytest.mark.usefixtures("no_rank_stays")
def test_what_does_not_end_after_an_error_is_killed_and_not_to_blame(
    patience_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["mpbook.many_gpus.launch"], "_GRACE_S", 5.0)
    with pytest.raises(RankError, match="rank 1: ValueError: no more"):
        launch(leaves_others_behind, patience_s=patience_s)


@pytest.mark.parametrize("how", ["SIGINT", "SIGKILL"])
def test_no_rank_outlives_its_launcher(how: str, patience_s: float, tmp_path: Path) -> None:
    """Whoever launched is interrupted, or killed, while the ranks wait for each other."""
    script = tmp_path / "launcher.py"
    lines = [
        "import signal",
        # A job in the background starts with a handler that ignores it.
        "signal.signal(signal.SIGINT, signal.default_int_handler)",
        "from mpbook.many_gpus.launch import launch",
        textwrap.dedent(inspect.getsource(waits_for_ever)),
        f"launch(waits_for_ever, patience_s={patience_s})",
    ]
    script.write_text("\n".join(lines))
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    launcher = subprocess.Popen(
        [sys.executable, str(script)], env=environment, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + patience_s
    while len(list(tmp_path.glob("*/*.process"))) < 2 and time.monotonic() < until:
        time.sleep(0.1)
    launcher.send_signal(getattr(signal, how))
    assert launcher.wait(timeout=patience_s) != 0
    wait_until_gone(tmp_path)
    assert left_over(tmp_path) == []


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
        ({"program": "sum"}, r"program='sum': expected one of .*\bsums\b"),
        ({"program": "sums", "ranks": 0}, "ranks=0"),
        ({"program": "sums", "ranks": 2.5}, r"ranks=2\.5"),
        ({"program": "sums", "ranks": "2"}, "ranks='2'"),
        ({"program": "sums", "patience_s": 0}, "patience_s=0"),
        ({"program": "sums", "patience_s": math.inf}, "patience_s=inf"),
        ({"program": "sums", "patience_s": math.nan}, "patience_s=nan"),
        ({"program": "sums", "options": {"sizes": [0] * 100_000}}, "300011 characters of JSON"),
        ({"program": "sums", "device": "tpu"}, "device='tpu'|device=\"tpu\""),
        ({"program": "sums", "ranks": 1000, "device": "cuda"}, "ranks=1000: torch sees"),
    ],
)
def test_what_is_refused(options, message: str, patience_s: float) -> None:
    with pytest.raises(ValueError, match=message):
        launch(**options)


def test_options_that_json_cannot_hold_are_refused(patience_s: float) -> None:
    with pytest.raises(TypeError, match=r"options=.*expected what JSON can hold; .*set"):
        launch("sums", options={"sizes": {3}}, patience_s=patience_s)


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


def test_a_rank_that_died_before_it_could_say_why_is_quoted(tmp_path: Path) -> None:
    printed = """
NameError: name 'WIDTH' is not defined
torch.distributed.elastic.multiprocessing.errors.ChildFailedError: program.py FAILED
  rank      : 1 (local_rank: 1)
  exitcode  : 1 (pid: 11)
"""
    found = failure(tmp_path, printed)
    assert found.rank == 1
    assert found.reason == (
        "ended with exit code 1 and no reason; a rank's last words were: NameError: name 'WIDTH' "
        "is not defined"
    )


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


class SilentError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("has no words")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (SystemExit(3), "SystemExit: 3"),
        (SilentError(), "SilentError"),
        (ValueError("\ud800 \u221e"), "ValueError: \ud800 \u221e"),
    ],
)
def test_any_error_has_a_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: BaseException, reason: str
) -> None:
    def fails() -> None:
        raise error

    monkeypatch.setenv(FOLDER, str(tmp_path))
    with pytest.raises(type(error)), _reported():
        fails()
    assert failure(tmp_path, ranks=1).reason == reason


def test_an_answer_that_json_cannot_hold_says_what_would_do() -> None:
    with pytest.raises(TypeError, match=r"returned a Tensor that JSON cannot hold.*tolist\(\)"):
        _as_json(torch.ones(1))
