"""Start a program on several ranks of this machine, and read what each one found.

`launch` runs ``python -m torch.distributed.run --standalone``, torch's own engine, with as many
processes as there are ranks.  It gives back one answer a rank, or raises `RankError` with the rank
and its reason.  Either way it ends within its patience, and no process is left: the engine is asked
to stop, then the ranks are killed with what they have started, and each rank ends itself when its
launcher is gone.  After the first error of a rank the others have seconds to end, not the patience.

It runs on Linux and macOS, on one machine.  Windows is refused: torch calls its support for it a
prototype, and nothing of this was tried on it.

Taught in the chapter "Many GPUs".
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import torch

import mpbook
from mpbook.many_gpus.program_text import program_text
from mpbook.many_gpus.rank import FOLDER, LAUNCHER, PATIENCE

PROGRAMS = "mpbook.many_gpus.programs"
_GRACE_S = 20.0  # for the engine to end its ranks, on a busy machine, before they are killed
_POLL_S = 0.5
_LONGEST = 100_000  # characters of the options; Linux takes 128 KiB as one argument
_OF_AN_ENGINE = re.compile(
    r"((LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|(PET|TORCHELASTIC)_.*)"
)
"""Variables of `torch.distributed.run`: they would be a cluster's, or of a launch around this."""

_LAST_WORDS = re.compile(r"^(?!torch\.distributed)\w[\w.]*(?:Error|Exception): .*", re.MULTILINE)
_EXIT = re.compile(r"^\s*rank\s*:\s*(\d+).*\n\s*exitcode\s*:\s*(-?\d+)", re.MULTILINE)


class RankError(RuntimeError):
    """A rank died, or did not answer in time.

    Attributes:
        rank: the rank that failed first, or None if all of them only ran out of time.
        reason: what it said, or how it died.
        output: what all ranks had printed, to read when the reason is not enough.
    """

    def __init__(self, rank: int | None, reason: str, output: str = "") -> None:
        super().__init__(reason if rank is None else f"rank {rank}: {reason}")
        self.rank, self.reason, self.output = rank, reason, output


def cannot_launch() -> str | None:
    """Why programs cannot run on several ranks here; None if they can."""
    if sys.platform == "win32":
        return (
            "Windows: torch calls its support a prototype, and it was not tried; use Linux or WSL"
        )
    if not torch.distributed.is_available():
        return "this torch was built without torch.distributed"
    if not torch.distributed.is_gloo_available():
        return "this torch was built without gloo"
    return None


def launch(
    program: str | Callable[..., Any],
    *,
    ranks: int = 2,
    options: Mapping[str, Any] | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
    patience_s: float = 300.0,
) -> list[Any]:
    """Run a program on every rank, and return what each one found.

    Args:
        program: the name of a module in `mpbook.many_gpus.programs`, or a function whose source
            stands by itself, as `mpbook.many_gpus.program_text` says: one of a notebook's cell.
        ranks: processes to start, each with one thread.
        options: keyword arguments of the program, as JSON can hold them.
        device: ``"cpu"`` talks through gloo, also on a machine with GPUs; ``"cuda"`` gives each
            rank a GPU, and they talk through NCCL.
        patience_s: after how many seconds to give up.

    Returns:
        What the program returned, in the order of the ranks.

    Raises:
        RankError: a rank raised, died, left without an answer, or was too slow.
        RuntimeError: no ranks can be started here.
        TypeError: options that JSON cannot hold.
        ValueError: no such program, a function that needs something outside itself, less than one
            rank, more ranks than GPUs, or very long options.
    """
    if isinstance(program, str):
        _check_program(program)
        return _run(["-m", f"{PROGRAMS}.{program}"], None, ranks, options, device, patience_s)
    text = program_text([program], main=program.__name__)
    return _run([], text, ranks, options, device, patience_s)


def launch_all(
    functions: Sequence[Callable[[], Any]],
    *,
    ranks: int = 2,
    device: Literal["cpu", "cuda"] = "cpu",
    patience_s: float = 300.0,
) -> dict[str, list[Any]]:
    """Run several functions one after the other in one start, which is most of the time.

    They may call each other.  Functions that take arguments are helpers, and not run by themselves.

    Args:
        functions: as for `launch`.
        ranks: as for `launch`.
        device: as for `launch`.
        patience_s: as for `launch`, for all together.

    Returns:
        For each function's name, what it returned, in the order of the ranks.

    Raises:
        RankError: as for `launch`.
        RuntimeError: as for `launch`.
        ValueError: as for `launch`.
    """
    text = program_text(functions, main=None)
    found = _run([], text, ranks, None, device, patience_s)
    return {name: [answer[name] for answer in found] for name in found[0]}


def _check_program(name: str) -> None:
    folder = Path(__file__).parent / "programs"
    names = sorted(path.stem for path in folder.glob("[!_]*.py"))
    if name not in names:
        raise ValueError(f"program={name!r}: expected one of {', '.join(names)}, or a function")


def _run(
    command: list[str],
    text: str | None,
    ranks: int,
    options: Mapping[str, Any] | None,
    device: str,
    patience_s: float,
) -> list[Any]:
    _check(ranks, device, patience_s)
    given = _as_json(options or {})
    with tempfile.TemporaryDirectory(prefix="mpbook-ranks-") as name:
        folder = Path(name)
        if text is not None:
            script = folder / "program.py"
            script.write_text(text, "utf-8")
            command = [str(script)]
        engine = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        engine += ["--nnodes=1", f"--nproc-per-node={ranks}", "--local-addr=127.0.0.1"]
        engine += [*command, given]
        with (
            (folder / "output").open("wb") as output,
            _engine(engine, _environment(folder, device, patience_s), output, folder) as process,
        ):
            code = _wait(process, folder, patience_s)
        printed = (folder / "output").read_text("utf-8", errors="replace")
        if code != 0:
            raise _failure(folder, printed, ranks, patience_s if code is None else None)
        for rank in range(ranks):
            if not (folder / f"{rank}.answer").exists():
                raise RankError(rank, "left without an answer, with exit code 0", printed)
        return [json.loads((folder / f"{rank}.answer").read_text()) for rank in range(ranks)]


def _as_json(options: Mapping[str, Any]) -> str:
    try:
        given = json.dumps(dict(options))
    except (TypeError, ValueError) as error:
        raise TypeError(f"options={options!r}: expected what JSON can hold; {error}") from error
    if len(given) > _LONGEST:
        raise ValueError(
            f"options: {len(given)} characters of JSON, expected at most {_LONGEST}; let the "
            "program make or read its data itself"
        )
    return given


def _wait(process: subprocess.Popen[bytes], folder: Path, patience_s: float) -> int | None:
    """The engine's exit code; None when its time is up, or that of the ranks after an error."""
    until, failed = time.monotonic() + patience_s, False
    while (left := until - time.monotonic()) > 0:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(timeout=min(left, _POLL_S))
        if not failed and any(folder.glob("*.error")):
            failed, until = True, min(until, time.monotonic() + _GRACE_S)
    return None


def _check(ranks: int, device: str, patience_s: float) -> None:
    if reason := cannot_launch():
        raise RuntimeError(reason)
    if type(ranks) is not int or ranks < 1:
        raise ValueError(f"ranks={ranks!r}: expected a whole number, at least 1")
    if not 0 < patience_s < math.inf:
        raise ValueError(f"patience_s={patience_s}: expected more than 0, and an end")
    if device not in ("cpu", "cuda"):
        raise ValueError(f'device={device!r}: expected "cpu" or "cuda"')
    if device == "cuda" and ranks > torch.cuda.device_count():
        raise ValueError(f"ranks={ranks}: torch sees {torch.cuda.device_count()} GPUs here")


def _environment(folder: Path, device: str, patience_s: float) -> dict[str, str]:
    ours = {FOLDER: str(folder), LAUNCHER: str(os.getpid()), PATIENCE: str(patience_s)}
    path = [str(Path(mpbook.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    ours["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    if device == "cpu":
        ours["CUDA_VISIBLE_DEVICES"] = ""
    defaults = {"OMP_NUM_THREADS": "1"}
    # gloo looks up the machine's own name, which some networks answer wrongly or not at all.
    loopback = {name for _, name in socket.if_nameindex()} & {"lo", "lo0"}
    if loopback:
        defaults["GLOO_SOCKET_IFNAME"] = loopback.pop()
    theirs = {k: v for k, v in os.environ.items() if not _OF_AN_ENGINE.fullmatch(k)}
    return defaults | theirs | ours


@contextmanager
def _engine(
    command: list[str], environment: dict[str, str], output: Any, folder: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """The engine as a process that is gone, with all its ranks, when this context ends."""
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,  # a file: a pipe would stay open as long as any rank lives
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.terminate()  # it ends its ranks
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_GRACE_S / 4)
        _kill_ranks(folder)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_GRACE_S)
        process.kill()
        process.wait()
        _kill_ranks(folder)  # those that had not begun before


def _kill_ranks(folder: Path) -> None:
    """End the ranks, and what they have started and left running."""
    for path in folder.glob("*.process"):
        process, group = map(int, path.read_text().split())
        with suppress(ProcessLookupError, PermissionError):
            if process == group:  # the engine gives each rank a group of its own
                os.killpg(group, signal.SIGKILL)
            else:
                os.kill(process, signal.SIGKILL)


def _failure(folder: Path, printed: str, ranks: int, patience_s: float | None) -> RankError:
    """Who failed first, and why.

    A rank that vanished without a word comes first: the others only noticed that it was gone.
    """
    said = {int(path.stem): json.loads(path.read_text()) for path in folder.glob("*.error")}
    for rank, code in ((int(a), int(b)) for a, b in _EXIT.findall(printed)):
        if rank not in said and code != -signal.SIGTERM:
            return RankError(rank, _death(code, printed), printed)
    if said:
        first = min(said, key=lambda rank: said[rank]["at"])
        return RankError(first, said[first]["reason"] + _others(folder, ranks), printed)
    if patience_s is not None:
        reason = f"no answer within {patience_s:g} s{_others(folder, ranks)}"
        return RankError(None, reason, printed)
    last = printed.strip().splitlines()[-1:] or ["nothing was printed"]
    return RankError(None, f"the ranks did not start: {last[0]}", printed)


def _others(folder: Path, ranks: int) -> str:
    """The ranks that left, where the one that failed may only have felt it."""
    ended = {
        end: [rank for rank in range(ranks) if (folder / f"{rank}.{end}").exists()]
        for end in ("answer", "error")
    }
    silent = [rank for rank in range(ranks) if rank not in ended["answer"] + ended["error"]]
    said = [
        f"rank {', '.join(map(str, some))} {what}"
        for some, what in ((ended["answer"], "had finished"), (silent, "gave no answer"))
        if some
    ]
    return f" ({'; '.join(said)})" if said else ""


def _death(code: int, printed: str) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    last = _LAST_WORDS.findall(printed)
    words = f"; a rank's last words were: {last[-1]}" if last else ""
    return f"ended with exit code {code} and no reason{words}"
