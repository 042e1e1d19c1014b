"""Files that are written whole or not at all, and read without trusting them.

A checkpoint holds tensors, numbers, strings, lists and dicts.  It is read by torch's restricted
unpickler, which builds nothing else, so a file from a stranger cannot run code.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch

_VERSION = 3


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint, so that the file at ``path`` is at every moment a whole one.

    Raises:
        OSError: the folder does not exist or cannot be written.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save({"mpbook_checkpoint": _VERSION, **state}, file)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint, its tensors on the CPU.

    Raises:
        RuntimeError: no such file, a torn one, or one that `save` did not write.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise RuntimeError(f'checkpoint "{path}": there is no such file') from None
    except Exception as error:  # the unpickler may raise anything on what is no pickle
        reason = f"{type(error).__name__}: {error}"
        message = f'checkpoint "{path}": torn, or not written by mpbook ({reason})'
        raise RuntimeError(message) from error
    if not isinstance(state, dict) or state.get("mpbook_checkpoint") != _VERSION:
        raise RuntimeError(f'checkpoint "{path}": not written by this version of mpbook')
    return state
