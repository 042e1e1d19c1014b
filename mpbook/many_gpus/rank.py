"""One rank of a program: it joins the others, works, and says what it found, or why it died.

A program is a function that every rank runs, in plain torch.  ``run_rank(main)`` at the end of its
file makes it a script for ``python -m torch.distributed.run``: on GPUs the ranks talk through NCCL,
on a CPU through gloo.  Under `mpbook.many_gpus.launch.launch` the rank leaves its answer or its
error in a file, and ends by itself when the one who launched it has gone or has no more patience.

Taught in the chapter "Many GPUs".
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

FOLDER = "MPBOOK_RANKS_FOLDER"
"""The environment variable that names where a launched rank leaves its files."""

LAUNCHER = "MPBOOK_RANKS_LAUNCHER"
"""The one that holds the process id of the launcher."""

PATIENCE = "MPBOOK_RANKS_PATIENCE_S"
"""The one that holds the seconds after which a launched rank ends itself."""


def device() -> torch.device:
    """This rank's own device: its GPU where there is one for each rank here, else the CPU."""
    local, all_local = _number("LOCAL_RANK", 0), _number("LOCAL_WORLD_SIZE", 1)
    if torch.cuda.is_available() and torch.cuda.device_count() >= all_local:
        return torch.device("cuda", local)
    return torch.device("cpu")


def run_rank(main: Callable[..., Any], *, at_least: int = 1) -> None:
    """Run the program as this rank of a process group; the script's whole last line.

    The options of `launch` arrive as the first argument on the command line, as JSON.  What
    ``main`` returns has to be JSON too.  Started without `launch`, the rank prints it.

    Args:
        main: the program.
        at_least: how many ranks it needs.

    Raises:
        ValueError: fewer ranks than the program needs.
        Exception: whatever ``main`` raises, after the reason has been written down.
    """
    options = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
    folder, rank, ranks = os.environ.get(FOLDER), _number("RANK", 0), _number("WORLD_SIZE", 1)
    with _reported():
        if ranks < at_least:
            raise ValueError(f"ranks={ranks}: this program needs at least {at_least}")
        if folder is not None:
            threading.Thread(target=_watch, daemon=True).start()
        with joined():
            answer = _as_json(main(**options))
            if folder is not None:  # before this rank leaves the group, which the others feel
                _write(Path(folder) / f"{rank}.answer", answer)
    if folder is None:
        print(f"rank {rank}: {answer}", flush=True)


@contextmanager
def joined() -> Iterator[None]:
    """A process group of all ranks inside this context, as patient as the launcher."""
    ours = device()
    if ours.type == "cuda":
        torch.cuda.set_device(ours)
    patience_s = float(os.environ.get(PATIENCE, "600"))
    dist.init_process_group(
        "nccl" if ours.type == "cuda" else "gloo", timeout=timedelta(seconds=patience_s)
    )
    # A rank that had left already would break the connections that others still make.
    dist.barrier(device_ids=[ours.index] if ours.type == "cuda" else None)
    try:
        yield
    finally:
        # After an error the others may wait for this rank; destroying would wait for them.
        if sys.exc_info()[0] is None:
            dist.destroy_process_group()


@contextmanager
def _reported() -> Iterator[None]:
    """Leave the reason of a failure in a file, and the process's id before that."""
    folder, rank = os.environ.get(FOLDER), _number("RANK", 0)
    if folder is None:
        yield
        return
    _write(Path(folder) / f"{rank}.process", f"{os.getpid()} {os.getpgrp()}")
    try:
        yield
    except BaseException as error:
        reason = {"at": time.time(), "reason": _in_words(error)}
        _write(Path(folder) / f"{rank}.error", json.dumps(reason))
        raise


def _in_words(error: BaseException) -> str:
    """The error's name and what it says; some say nothing, and some fail to."""
    name = type(error).__name__
    try:
        return ": ".join(filter(None, (name, str(error))))
    except Exception:
        return name


def _as_json(answer: Any) -> str:
    try:
        return json.dumps(answer)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"the program returned a {type(answer).__name__} that JSON cannot hold: {error}; "
            "return numbers, text, lists and dictionaries, of a tensor its tolist()"
        ) from error


def _watch() -> None:
    """End this process when its launcher is gone, or when its time is up."""
    launcher = _number(LAUNCHER, 0)
    until = time.monotonic() + float(os.environ[PATIENCE])
    while time.monotonic() < until and _lives(launcher):
        time.sleep(0.5)
    os._exit(1)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives, and is another user's
        return True
    return True


def _number(name: str, default: int) -> int:
    return int(os.environ.get(name, default))


def _write(path: Path, text: str) -> None:
    """Whole or not at all: a rank may be killed at any time."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(text, "utf-8")
    unfinished.replace(path)
