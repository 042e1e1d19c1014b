"""`compare`: several precisions over several seeds, trained so that they can be compared.

An honest comparison of precisions is more than two runs side by side:

* *Paired seeds.*  Each seed trains every precision on the same batches, and from the same initial
  weights; `mpbook.training.paired` says what the differences within the pairs settle.
* *Taking turns.*  A seed is one turn in which each precision trains once, and the next turn begins
  with another one, so whatever slows the machine down slows all of them.
* *A control.*  Training amplifies any difference, however small.  The control trains in the
  baseline's own precision after one weight was moved to the next number (`mpbook.training.nudge`):
  what that alone does to the loss is chaos, and no merit or fault of a precision.

`mpbook.training.comparison` says what the runs show, `mpbook.training.comparison_figure` draws it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from mpbook.data import Data
from mpbook.notebook import Progress
from mpbook.precision import Precision, as_precision
from mpbook.training.comparison import Comparison, one_of
from mpbook.training.loop import train
from mpbook.training.nudge import nudged
from mpbook.training.run import Run

CONTROL = "1-ulp nudge"
"""What tables and figures call the control."""

_TRAIN_ONLY = ("precision", "seed", "save_to", "save_every", "resume_from")


def compare(
    model: nn.Module | Callable[[int], nn.Module],
    data: Data,
    precisions: Sequence[str | Precision],
    *,
    steps: int,
    seeds: int | Sequence[int] = 8,
    baseline: str | None = None,
    control: Literal["none", "1-ulp nudge"] = "none",
    keep_models: Literal["none", "all"] = "none",
    progress: bool = True,
    **settings: Any,
) -> Comparison:
    """Train a model in each precision from each seed.

    Args:
        model: a module, from whose weights every run starts; or a function from a seed to a module,
            called once a seed, with torch's generator seeded so: initial weights of its own.
        data: as for `mpbook.training.loop.train`.
        precisions: names or `Precision` objects, each with a name of its own.
        steps: updates of each run.
        seeds: how many, counted from 0, or which.
        baseline: the name of the precision to compare with; the first one if None.
        control: whether to train the baseline's precision once more, from a start that is
            `mpbook.training.nudge.nudged`; it is called so in ``runs``.
        keep_models: whether each `Run` keeps its trained model, which a metric may need.
        progress: show a progress line to a person who waits.
        **settings: of every run, as for `mpbook.training.loop.train`.

    Raises:
        ValueError: no precision, an unknown one, two of one name, a baseline that is not among
            them, no seed, one given twice, a setting that each run needs for itself.
        TypeError: a name where a list of names is meant, a function that gives no module.
    """
    one_of("keep_models", keep_models, ("none", "all"))
    one_of("control", control, ("none", CONTROL))
    if taken := [name for name in _TRAIN_ONLY if name in settings]:
        raise ValueError(
            f"{taken[0]}={settings[taken[0]]!r}: cannot be the same for every run; "
            "use precisions=, seeds= and keep_models="
        )
    chosen, entries = _seeds(seeds), _precisions(precisions)
    base = one_of("baseline", next(iter(entries)) if baseline is None else baseline, entries)
    if control == CONTROL:
        entries = _with_control(entries, base)
    settings |= {"steps": steps, "progress": False}
    runs: dict[str, list[Run]] = {name: [] for name in entries}
    with Progress(len(chosen) * len(entries), label="comparing", enabled=progress) as line:
        for turn, seed in enumerate(chosen):
            starts = dict.fromkeys(entries, _initial(model, seed))
            if control == CONTROL:
                starts[CONTROL] = nudged(starts[base], dtype=entries[base].parameter_dtype)
            for name in _rotated(list(entries), turn):
                line.update(sum(map(len, runs.values())), f"seed {seed}, {name}")
                run = train(starts[name], data, precision=entries[name], seed=seed, **settings)
                runs[name].append(run if keep_models == "all" else replace(run, model=nn.Module()))
    return Comparison(runs, chosen, base)


def _rotated(names: list[str], turn: int) -> list[str]:
    first = turn % len(names)
    return names[first:] + names[:first]


def _initial(model: nn.Module | Callable[[int], nn.Module], seed: int) -> nn.Module:
    """The model that the runs of a seed start from; the global random state stays as it is."""
    if isinstance(model, nn.Module):
        return model
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        made = model(seed)
    if not isinstance(made, nn.Module):
        raise TypeError(f"model: gave {made!r} for seed {seed}, expected a torch module")
    return made


def _seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    chosen = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not chosen:
        raise ValueError(f"seeds={seeds!r}: expected at least 1, and 2 for an interval")
    if repeated := [seed for seed in chosen if chosen.count(seed) > 1]:
        raise ValueError(f"seeds: {repeated[0]} is there more than once; repeats prove nothing")
    return chosen


def _precisions(precisions: Sequence[str | Precision]) -> dict[str, Precision]:
    if isinstance(precisions, str | Precision):
        raise TypeError(f"precisions={precisions!r}: expected a list of names or Precisions")
    entries: dict[str, Precision] = {}
    for precision in map(as_precision, precisions):
        if precision.name in entries:
            raise ValueError(f'precisions: two are called "{precision.name}"; rename one')
        entries[precision.name] = precision
    if not entries:
        raise ValueError("precisions: none given, expected at least one")
    return entries


def _with_control(entries: dict[str, Precision], baseline: str) -> dict[str, Precision]:
    if CONTROL in entries:
        raise ValueError(f'precisions: "{CONTROL}" is what the control is called; rename it')
    return entries | {CONTROL: replace(entries[baseline], name=CONTROL)}
