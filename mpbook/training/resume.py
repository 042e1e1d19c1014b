"""Saving a run, and going on from it bit for bit.

A checkpoint says what it was saved under: the model's shapes, the settings with every function and
its arguments, the precision, what the optimizer was built with, and compilation.  A run goes on
from it only if all of that is the same, and exactly known.

On how many ranks it was saved, and under which engine, may differ.  One process saves a file,
several ranks a folder, and each reads both.  On as many ranks as before a run goes on bit for bit;
on another number the sums over ranks round in another order, and dropout draws anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mpbook.master_weights import Float32Updates
from mpbook.training import checkpoint_files, checkpoint_folders
from mpbook.training.description import describe, is_exact
from mpbook.training.placement import placed
from mpbook.training.run import Run
from mpbook.training.step import Trainer

_RECORDED = ("losses", "gradient_norms", "loss_scales", "skipped_steps", "seconds")
_RECORDED_PAIRS = ("validation_losses", "updates_lost")


def save(path: Path, trainer: Trainer, run: Run) -> None:
    """Write everything that the rest of the run depends on."""
    on_cuda = trainer.device.type == "cuda"
    cuda_rng = torch.cuda.get_rng_state(trainer.device) if on_cuda else None
    state = {
        "identity": _identity(trainer, run),
        "model": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "batches": trainer.generator.get_state(),
        "random": trainer.ranks.gather([torch.get_rng_state(), cuda_rng]),
        "run": {name: getattr(run, name) for name in _RECORDED},
        **{name: [list(pair) for pair in getattr(run, name)] for name in _RECORDED_PAIRS},
    }
    if trainer.ranks.engine is None:
        checkpoint_files.save(path, state)
    else:
        checkpoint_folders.save(path, state, trainer.ranks)


def load(path: Path, trainer: Trainer, run: Run) -> None:
    """Go on from a checkpoint of the same model, settings, precision and optimizer.

    Raises:
        ValueError: a checkpoint of another run, or one of which that cannot be said.
        RuntimeError: a file that cannot be read.
    """
    from_folder = path.is_dir()
    state = checkpoint_folders.load(path) if from_folder else checkpoint_files.load(path)
    for part, expected in _identity(trainer, run).items():
        saved = state["identity"][part]
        _check_exact(path, part, saved, expected)
        if saved != expected:
            raise ValueError(
                f'resume_from="{path}": saved with another {part}: {_difference(saved, expected)}'
            )
    state = placed(state, trainer)
    if from_folder:
        checkpoint_folders.read(path, state, trainer.ranks)
    trainer.model.load_state_dict(state["model"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.scaler.load_state_dict(state["scaler"])
    trainer.generator.set_state(state["batches"])
    for name in _RECORDED:
        setattr(run, name, state["run"][name])
    for name in _RECORDED_PAIRS:
        setattr(run, name, [(step, value) for step, value in state[name]])
    _restore_random(trainer, state["random"], run.steps)
    if run.steps >= trainer.settings.steps:
        raise ValueError(
            f'steps={trainer.settings.steps}: "{path}" has done {run.steps} already; '
            "steps counts from the beginning of the saved run"
        )


def _restore_random(trainer: Trainer, saved: list[list[Tensor | None]], steps: int) -> None:
    """Each rank's own state, but on another number of ranks a new one: there is none for each."""
    ranks, device = trainer.ranks, trainer.device
    if len(saved) != ranks.count:
        seed = trainer.settings.seed + steps  # not what the run began with, once more
        torch.manual_seed(seed)
        ranks.seed(seed)
        return
    on_cpu, on_cuda = saved[ranks.number]
    if on_cpu is not None:
        torch.set_rng_state(on_cpu)
    if device.type == "cuda" and on_cuda is not None:
        torch.cuda.set_rng_state(on_cuda, device)


def check_ranks_agree(trainer: Trainer, run: Run, arguments: dict[str, Any]) -> None:
    """Refuse ranks that were asked for different runs, before they wait for each other for ever.

    Args:
        trainer: of this rank.
        run: of this rank.
        arguments: whatever else has to be the same.

    Raises:
        ValueError: on all of them, with the first that differs from rank 0.
    """
    asked = {name: str(value) for name, value in arguments.items()}
    mine = {**_identity(trainer, run), "run": asked}
    first, *others = trainer.ranks.gather(mine)
    for rank, other in enumerate(others, 1):
        for part, expected in first.items():
            if other[part] != expected:
                raise ValueError(
                    f"rank {rank}: was asked for another {part} than rank 0: "
                    f"{_difference(expected, other[part])}; call train with the same arguments on "
                    "every rank"
                )


def _identity(trainer: Trainer, run: Run) -> dict[str, dict[str, str]]:
    """What must be the same for a run to be the continuation of another."""
    settings = {k: str(v) for k, v in run.config["settings"].items()}
    if trainer.settings.decay == "none":
        del settings["steps"]  # without decay a longer run begins like a shorter one
    shapes = {name: str(tuple(p.shape)) for name, p in trainer.model.named_parameters()}
    return {
        "model": shapes,
        "settings": settings,
        "precision": run.config["precision"],
        "optimizer": run.config["optimizer"],
        "way to run": {"compile": str(run.config["compile"])},
    }


def optimizer_options(optimizer: torch.optim.Optimizer) -> dict[str, str]:
    """What an optimizer was built with: its kind, and the options of each group of parameters."""
    inner = optimizer.optimizer if isinstance(optimizer, Float32Updates) else optimizer
    options = {"kind": describe(type(inner))}
    for index, group in enumerate(inner.param_groups):
        shown = {name: value for name, value in group.items() if name not in ("params", "lr")}
        options[f"group {index}: parameters"] = str(len(group["params"]))
        options |= {f"group {index}: {name}": describe(value) for name, value in shown.items()}
    return options


def _check_exact(path: Path, part: str, saved: dict[str, str], expected: dict[str, str]) -> None:
    for name, value in [*saved.items(), *expected.items()]:
        if not is_exact(value):
            raise ValueError(
                f'resume_from="{path}": whether the {part} are the same cannot be known: {name} '
                f"is {value}; expected a function, a functools.partial, or an object of plain "
                "values, tensors and functions"
            )


def _difference(saved: dict[str, str], expected: dict[str, str]) -> str:
    keys = sorted(saved.keys() | expected.keys())
    key = next(k for k in keys if saved.get(k) != expected.get(k))
    return f"{key} was {saved.get(key, 'absent')}, is {expected.get(key, 'absent')}"
