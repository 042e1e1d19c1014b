"""`train`: one loop, in which the precision is the only variable.

Every chapter trains with this loop and changes nothing but `mpbook.precision.Precision`, so that
what differs between two runs is the precision and nothing else: the same seed gives the same
initial weights, the same batches and the same order of operations on every device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpbook.cost.measure import Memory, Stopwatch, count_bytes, saved_for_backward, state_tensors
from mpbook.data import Data
from mpbook.device import name as device_name
from mpbook.device import pick
from mpbook.master_weights import Float32Updates
from mpbook.models import parameter_count
from mpbook.nests import kind
from mpbook.notebook import Progress
from mpbook.precision import Precision, as_precision
from mpbook.training import resume
from mpbook.training.environment import environment
from mpbook.training.parallel import Parallel
from mpbook.training.run import History, Run
from mpbook.training.settings import Settings
from mpbook.training.step import Trainer, prepare, training_step
from mpbook.watch.lost_updates import updates_lost


def train(
    model: nn.Module,
    data: Data,
    *,
    precision: str | Precision,
    steps: int,
    device: str | torch.device | None = None,
    compile: bool = False,
    parallel: Parallel | None = None,
    progress: bool = True,
    save_to: str | Path | None = None,
    save_every: int | None = None,
    resume_from: str | Path | None = None,
    **settings: Any,
) -> Run:
    """Train a copy of the model in one precision.

    The model that is passed stays as it is, so a loop over precisions starts each run from the
    same weights; the trained copy is ``Run.model``.

    Args:
        model: any module.  A tuple of inputs reaches it by position, a mapping by name, all else
            as one argument; what it returns goes to the loss.
        data: `mpbook.data.Examples`, a `ByteCorpus`, or anything with their methods.
        precision: a `Precision` or the name of one.
        steps: updates to make.
        device: ``"cuda"``, ``"cpu"`` or None for the best there is.
        compile: run the model and the loss through `torch.compile`.
        parallel: on several ranks, torch's engine: a function that is given the copy and returns
            ``DistributedDataParallel(copy)``, or the copy after ``fully_shard``.  Every rank calls
            ``train`` with the same arguments and takes its part of each batch: ``batch_size`` is of
            all ranks together.  See `mpbook.training.parallel`.
        progress: show a progress line to a person who waits; it leaves no trace.
        save_to: where to keep a checkpoint, whole or not at all, at the end of the run: a file, or
            with ``parallel`` a folder.
        save_every: keep one there every so many steps too.
        resume_from: a checkpoint of a run with the same model and settings, to go on from, on the
            same number of ranks bit for bit; ``steps`` counts from the beginning of that run.
        **settings: see `Settings`: batch_size, accumulation_steps, learning_rate, optimizer ...

    Raises:
        ValueError: a setting out of range, a model with nothing to train, a checkpoint of another
            model or other settings; on several ranks, what they could not train the same.
        RuntimeError: no such device, a checkpoint that cannot be read, or ``parallel`` without a
            process group.
        TypeError: data without the methods, or ``parallel`` that is no function to an engine.
    """
    precision, chosen = as_precision(precision), pick(device)
    options = Settings(steps=steps, **settings)
    _check_data(data)
    if save_every is not None and (save_to is None or save_every < 1):
        raise ValueError(f"save_every={save_every}: expected at least 1, and save_to, the file")
    data = data.to(chosen)
    with environment(precision, options, chosen):
        trainer = prepare(model, precision, options, chosen, compile=compile, parallel=parallel)
        run = Run(precision, _config(model, data, trainer), model=trainer.model)
        asked = {"steps": steps, "save_to": save_to, "save_every": save_every}
        asked |= {"resume_from": resume_from, "data": data.name}
        resume.check_ranks_agree(trainer, run, asked)
        if resume_from is not None:
            resume.load(Path(resume_from), trainer, run)
        save = partial(resume.save, Path(save_to), trainer, run) if save_to is not None else None
        shown = progress and trainer.ranks.number == 0
        _loop(trainer, data, run, save=save, save_every=save_every, progress=shown)
        if not run.stopped_on_nan:  # else the last good checkpoint is worth more
            _validate(trainer, data, run)
            if save:
                save()
    return run


def _loop(
    trainer: Trainer,
    data: Data,
    run: Run,
    *,
    save: Callable[[], None] | None,
    save_every: int | None,
    progress: bool,
) -> None:
    """Make the steps that are still to be made."""
    settings, first, earlier = trainer.settings, run.steps, run.seconds
    watch, history = Stopwatch(trainer.device), History(run)
    base_rates = [group["initial_lr"] for group in trainer.optimizer.param_groups]
    with Progress(settings.steps - first, label=trainer.precision.name, enabled=progress) as line:
        for step in range(first, settings.steps):
            for group, rate in zip(trainer.optimizer.param_groups, base_rates, strict=True):
                group["lr"] = rate * settings.rate_factor(step)
            inputs, targets = _pair(data.sample(_examples(settings), trainer.generator))
            scale = trainer.scaler.loss_scale
            if step == first:  # outside the clock: it counts memory, and warms caches up
                loss, norm, updated = _measured_step(trainer, run, inputs, targets, step)
                watch.start()
            else:
                loss, norm, updated = _watched_step(trainer, run, inputs, targets, step)
            history.add(loss, norm, scale, updated=updated)
            line.update(step - first + 1)
            if settings.stop_on_nan and not bool(loss.isfinite()):
                run.stopped_on_nan = True
                break
            due = settings.validate_every and (step + 1) % settings.validate_every == 0
            saves = save and save_every and (step + 1) % save_every == 0
            if (due or saves) and step + 1 < settings.steps:
                run.seconds = earlier + watch.stop()
                history.flush()
                if due:
                    _validate(trainer, data, run)
                if save and saves:
                    save()
                watch.start()
    history.flush()
    if run.steps > first:
        seconds = watch.stop()
        run.seconds = earlier + seconds
        _finish(trainer, data, run, seconds, timed_steps=run.steps - first - 1)


def _check_data(data: Any) -> None:
    missing = [name for name in ("to", "sample", "validation") if not hasattr(data, name)]
    if missing:
        raise TypeError(
            f"data: a {kind(data)}, which has no {missing[0]}(); expected mpbook.data.Examples("
            "inputs, targets), whose inputs may be a tensor, a tuple or a dict of them"
        )


def _pair(batch: Any) -> tuple[Any, Any]:
    """A batch as inputs and targets."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise TypeError(
            f"data: sample() gives a {kind(batch)}, expected a pair of inputs and targets; of a "
            'dict that has both: (batch, batch["labels"])'
        )
    return batch[0], batch[1]


def _examples(settings: Settings) -> int:
    """Of a step: of all its micro-batches."""
    return settings.batch_size * settings.accumulation_steps


def _finish(trainer: Trainer, data: Data, run: Run, seconds: float, *, timed_steps: int) -> None:
    """Note what the steps made here cost."""
    items = timed_steps * _examples(trainer.settings) * data.items_per_example
    run.items_per_second = items / seconds if timed_steps else math.nan
    run.memory = replace(run.memory, optimizer_state=_optimizer_bytes(trainer.optimizer))
    if trainer.device.type == "cuda":
        run.peak_memory_bytes = torch.cuda.max_memory_allocated(trainer.device)
    else:
        run.peak_memory_bytes = run.memory.total


def _watched_step(
    trainer: Trainer, run: Run, inputs: Any, targets: Any, step: int
) -> tuple[Tensor, Tensor, bool]:
    """One step, which counts the updates that rounding swallows if it is time to."""
    every = trainer.settings.count_lost_updates_every
    if every is None or step % every:
        return training_step(trainer, inputs, targets)
    with updates_lost(trainer.model, trainer.optimizer) as lost:
        result = training_step(trainer, inputs, targets)
    fraction = lost.fraction
    if not math.isnan(fraction):
        run.updates_lost.append((step, fraction))
    return result


def _measured_step(
    trainer: Trainer, run: Run, inputs: Any, targets: Any, step: int
) -> tuple[Tensor, Tensor, bool]:
    """The first step, which also counts what a step holds in memory.

    What a compiled model saves for the backward pass is not counted: hooks would break its graph.
    """
    with _most_saved(trainer) as saved:
        result = _watched_step(trainer, run, inputs, targets, step)
    parameters = list(trainer.model.parameters())
    kept = trainer.optimizer.kept if isinstance(trainer.optimizer, Float32Updates) else {}
    run.memory = Memory(
        parameters=count_bytes(parameters),
        master_copies=count_bytes(kept.values()),
        gradients=count_bytes(p.grad for p in parameters if p.grad is not None),
        saved_for_backward=saved(),
    )
    return result


@contextmanager
def _most_saved(trainer: Trainer) -> Iterator[Callable[[], int]]:
    """Count what autograd saves for one micro-batch at a time, and yield the most of them."""
    if trainer.compiled:
        yield lambda: 0
        return
    counts: list[Callable[[], int]] = []
    loss_of_batch = trainer.loss

    def loss(inputs: Any, targets: Any) -> Tensor:
        counting.close()  # the backward pass of the one before has freed what it had saved
        counts.append(counting.enter_context(saved_for_backward(trainer.model)))
        return loss_of_batch(inputs, targets)

    with ExitStack() as counting:
        trainer.loss = loss  # type: ignore[method-assign]
        try:
            yield lambda: max(count() for count in counts)
        finally:
            del trainer.loss


def _optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of optimizer state, counted at the end: a skipped first step has made none yet."""
    return count_bytes(state_tensors(optimizer.state_dict()["state"]))


@torch.no_grad()
def _validate(trainer: Trainer, data: Data, run: Run) -> None:
    """Append the mean loss over the held-out batches, if there are any."""
    if run.validation_losses and run.validation_losses[-1][0] == run.steps:
        return
    trainer.model.eval()
    total, count = torch.zeros((), dtype=torch.float64), 0
    for batch in data.validation(trainer.settings.batch_size):
        inputs, targets, examples = trainer.ranks.held_out_share(*_pair(batch))
        loss = trainer.loss(inputs, targets).double().cpu()
        total += loss * examples if examples else 0.0  # not even NaN of one that does not count
        count += examples
    trainer.model.train()
    sums = torch.tensor([total, count], dtype=torch.float64, device=trainer.device)
    total, count = trainer.ranks.total(sums).tolist()
    if count:
        run.validation_losses.append((run.steps, total / count))


def _config(model: nn.Module, data: Data, trainer: Trainer) -> dict[str, Any]:
    """The exact configuration, in numbers and strings."""
    return {
        "model": type(model).__name__,
        "parameters": parameter_count(model),
        "data": data.name,
        "item": "token" if data.items_per_example > 1 else "example",
        "precision": trainer.precision.described(),
        "settings": trainer.settings.as_dict(),
        "optimizer": resume.optimizer_options(trainer.optimizer),
        "compile": trainer.compiled,
        "parallel": trainer.ranks.kind,
        "ranks": trainer.ranks.count,
        "device": device_name(trainer.device),
        "torch": torch.__version__,
    }
