"""Checkpoints of a run on several ranks: folders, which load on any number of them.

`torch.distributed.checkpoint` writes the tensors: every rank its parts, and each of them once.
What is no tensor is in the file ``run.pt`` beside them (`mpbook.training.checkpoint_files`),
together with the shapes and dtypes of all tensors.  That file names the folder that its tensors are
in, and is replaced last, so that a run killed in the middle leaves a whole checkpoint.

torch reads its own list of what a folder holds with Python's unpickler, which runs what it is told
to: open no folder of a stranger.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mpbook.nests import mapped
from mpbook.training import checkpoint_files
from mpbook.training.parallel import Ranks

_FILE, _TENSORS = "run.pt", "tensors-"


def save(path: Path, state: dict[str, Any], ranks: Ranks) -> None:
    """Write a checkpoint into a folder; all ranks call it.

    Args:
        path: the folder, made if it is missing.
        state: dicts and lists of tensors, whole or shared, and of plain values.
        ranks: of the run.

    Raises:
        OSError: the folder cannot be written; on all ranks.
    """
    # Slow to import, and nothing for a run alone.
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_saver import save as save_tensors

    inner = _agreed(ranks, lambda: _new_folder(path))
    try:
        save_tensors(dict(named_tensors(state)), checkpoint_id=path / inner)
    except CheckpointException as error:  # a BaseException, with what each rank met
        raise OSError(f'checkpoint "{path}": cannot be written ({_first(error)})') from error
    _agreed(ranks, lambda: _commit(path, state, inner))


def load(path: Path) -> dict[str, Any]:
    """What a folder holds, with tensors on the ``meta`` device, of which `read` brings the numbers.

    Raises:
        RuntimeError: nothing in it that `save` wrote.
    """
    return checkpoint_files.load(path / _FILE)


def read(path: Path, state: dict[str, Any], ranks: Ranks) -> None:
    """Fill the tensors of a state, each rank its parts, from the folder; all ranks call it.

    Args:
        path: the folder.
        state: what `load` gave, with whole or shared tensors in the place of those on ``meta``.
        ranks: of the run that goes on.

    Raises:
        RuntimeError: files are missing or torn.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_loader import load as load_tensors

    alone = ranks.engine is None
    try:
        with warnings.catch_warnings():
            if alone:
                warnings.filterwarnings("ignore", "torch.distributed is")  # this is meant
            load_tensors(
                dict(named_tensors(state)), checkpoint_id=path / state["folder"], no_dist=alone
            )
    except (Exception, CheckpointException) as error:  # whatever reading a torn file raises
        reason = _first(error)
        said = f"{type(reason).__name__}: {reason}"
        raise RuntimeError(f'checkpoint "{path}": torn, or not whole ({said})') from error


def named_tensors(nest: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of nested dicts, lists and tuples, by its place.

    >>> dict(named_tensors({"model": {"bias": torch.tensor(1.0)}, "kept": [torch.tensor(2)]}))
    {'model.bias': tensor(1.), 'kept.0': tensor(2)}
    """
    if isinstance(nest, Tensor):
        yield name, nest
    elif isinstance(nest, Mapping | list | tuple):
        pairs = nest.items() if isinstance(nest, Mapping) else enumerate(nest)
        for key, value in pairs:
            yield from named_tensors(value, f"{name}.{key}" if name else str(key))


def _first(error: Any) -> BaseException:
    """What the first rank met that failed."""
    failures = getattr(error, "failures", None)
    found: BaseException = next(iter(failures.values()))[0] if failures else error
    return found


def _new_folder(path: Path) -> str:
    path.mkdir(exist_ok=True)
    return Path(tempfile.mkdtemp(dir=path, prefix=_TENSORS)).name


def _commit(path: Path, state: dict[str, Any], inner: str) -> str:
    """Let the checkpoint be this one, then remove the one before."""
    outline = mapped(lambda t: torch.empty(t.shape, dtype=t.dtype, device="meta"), state)
    checkpoint_files.save(path / _FILE, {**outline, "folder": inner})
    for other in path.glob(f"{_TENSORS}*"):
        if other.name != inner:
            shutil.rmtree(other, ignore_errors=True)
    return inner


def _agreed(ranks: Ranks, work: Any) -> str:
    """Do something on rank 0 alone, and let all ranks have what came of it, also an error."""
    found: Any = None
    if ranks.number == 0:
        try:
            found = work()
        except OSError as error:
            found = error
    found = ranks.gather(found)[0]
    if isinstance(found, OSError):
        raise found
    return str(found)
