"""Start a program on several ranks of this machine, and read what each one found.

`launch` runs ``python -m torch.distributed.run --standalone``, torch's own engine, with as many
processes as there are ranks.  It gives back one answer a rank, or raises `RankError` with the rank
and its reason.  Either way it ends within its patience, and no process is left: the engine is asked
to stop, then the ranks are, and each rank ends itself when its launcher is gone.

It runs on Linux and macOS, on one machine.  Windows is refused: torch calls its support for it a
prototype, and nothing of this was tried on it.

Taught in the chapter "Many GPUs".
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import torch

import mpbook
from mpbook.many_gpus.program_text import program_text
from mpbook.many_gpus.rank import FOLDER, LAUNCHER, PATIENCE

PROGRAMS = "mpbook.many_gpus.programs"
_GRACE_S = 20.0  # for the engine to end its ranks, on a busy machine, before it is killed
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
        RankError: a rank raised, died, or was too slow.
        RuntimeError: no ranks can be started here.
        ValueError: no such program, a function that needs something outside itself, less than one
            rank, or more ranks than GPUs.
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
    with tempfile.TemporaryDirectory(prefix="mpbook-ranks-") as name:
        folder = Path(name)
        if text is not None:
            script = folder / "program.py"
            script.write_text(text, "utf-8")
            command = [str(script)]
        engine = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        engine += [f"--nproc-per-node={ranks}", "--local-addr=127.0.0.1", *command]
        engine += [json.dumps(dict(options or {}))]
        with (
            (folder / "output").open("wb") as output,
            _engine(engine, _environment(folder, device, patience_s), output, folder) as process,
        ):
            try:
                code = process.wait(timeout=patience_s)
            except subprocess.TimeoutExpired:
                code = None
        printed = (folder / "output").read_text("utf-8", errors="replace")
        if code != 0:
            raise _failure(folder, printed, ranks, patience_s if code is None else None)
        return [json.loads((folder / f"{rank}.answer").read_text()) for rank in range(ranks)]


def _check(ranks: int, device: str, patience_s: float) -> None:
    if reason := cannot_launch():
        raise RuntimeError(reason)
    if ranks < 1:
        raise ValueError(f"ranks={ranks}: expected at least 1")
    if patience_s <= 0:
        raise ValueError(f"patience_s={patience_s}: expected more than 0")
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
    return defaults | dict(os.environ) | ours


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
            process.wait(timeout=_GRACE_S)
        process.kill()
        process.wait()
        for path in folder.glob("*.process"):
            with suppress(ProcessLookupError, PermissionError):
                os.kill(int(path.read_text()), signal.SIGKILL)


def _failure(folder: Path, printed: str, ranks: int, patience_s: float | None) -> RankError:
    """Who failed first, and why.

    A rank that vanished without a word comes first: the others only noticed that it was gone.
    """
    said = {int(path.stem): json.loads(path.read_text()) for path in folder.glob("*.error")}
    for rank, code in ((int(a), int(b)) for a, b in _EXIT.findall(printed)):
        if rank not in said and code != -signal.SIGTERM:
            return RankError(rank, _death(code), printed)
    if said:
        first = min(said, key=lambda rank: said[rank]["at"])
        return RankError(first, said[first]["reason"] + _others(folder, ranks), printed)
    if patience_s is not None:
        return RankError(None, f"no answer within {patience_s:g} s", printed)
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


def _death(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code} and no reason"
    return f"killed by {signal.Signals(-code).name}"
