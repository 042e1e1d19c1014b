"""`train`: one loop, in which the precision is the only variable.

Every chapter trains with this loop and changes nothing but `mpbook.precision.Precision`, so that
what differs between two runs is the precision and nothing else: the same seed gives the same
initial weights, the same batches and the same order of operations on every device.

`training_step` is the whole of mixed-precision training on one screen: autocast, scale, backward,
unscale, and an update that is skipped when a gradient is not finite.
"""

from __future__ import annotations

import copy
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpbook.cost.measure import Memory, Stopwatch, count_bytes, saved_for_backward, state_tensors
from mpbook.data import Data
from mpbook.device import compiled, matmul_emulation, pick
from mpbook.device import name as device_name
from mpbook.loss_scaling import DynamicLossScaler, NoLossScaler, StaticLossScaler, gradients_of
from mpbook.master_weights import (
    Float32Updates,
    KahanSummation,
    MasterWeights,
    StochasticRounding,
)
from mpbook.models import parameter_count
from mpbook.notebook import Progress
from mpbook.precision import Precision, as_precision, autocast
from mpbook.training import checkpoint_files
from mpbook.training.runs import History, Loss, Run, Settings
from mpbook.watch.lost_updates import updates_lost

# --- One step ---------------------------------------------------------------------------------


@dataclass
class Trainer:
    """What changes during a run: the model, the optimizer, the loss scale, the random states."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: StaticLossScaler
    precision: Precision
    settings: Settings
    device: torch.device
    generator: torch.Generator
    compiled: bool = False

    def __post_init__(self) -> None:
        # The loss function too: float32 logits are the largest tensor of a language model.
        self._loss_of = compiled(loss_of) if self.compiled else loss_of

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of a batch: the model in its precision, the loss function in float32."""
        return self._loss_of(self.model, self.precision, self.settings.loss, inputs, targets)


def loss_of(
    model: nn.Module, precision: Precision, loss: Loss, inputs: Tensor, targets: Tensor
) -> Tensor:
    """The loss of a batch: the model in a precision, the loss function in float32."""
    if inputs.is_floating_point():
        inputs = inputs.to(precision.parameter_dtype)
    with autocast(precision, targets.device):
        outputs = model(inputs)
    return loss(outputs.float(), targets)


def training_step(
    trainer: Trainer,
    inputs: Tensor,
    targets: Tensor,
) -> tuple[Tensor, Tensor, bool]:
    """One step of training: the recipe of this book.

    Returns:
        The loss and the norm of the unscaled gradients, as 0-dimensional
        float32 tensors, and whether the weights were updated.
    """
    scaler, optimizer = trainer.scaler, trainer.optimizer
    optimizer.zero_grad()

    loss = trainer.loss(inputs, targets)  # forward in 16 bits
    scaler.scale(loss).backward()  # backward in 16 bits

    scaler.unscale_(optimizer)  # in float32
    gradients = gradients_of(optimizer)
    norm = gradient_norm(gradients)
    if trainer.settings.clip_norm is not None:
        clip(gradients, norm, trainer.settings.clip_norm)

    updated = scaler.step(optimizer)  # in float32, if the weights are
    scaler.update()
    return loss.detach(), norm, updated


def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of all gradients together, computed in float32."""
    norms = [torch.linalg.vector_norm(g, dtype=torch.float32) for g in gradients]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.tensor(0.0)


def clip(gradients: Sequence[Tensor], norm: Tensor, largest: float) -> None:
    """Scale the gradients down in place so that their norm is at most ``largest``."""
    factor = (largest / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor.to(gradient.dtype))


# --- The loop ---------------------------------------------------------------------------------


def train(
    model: nn.Module,
    data: Data,
    *,
    precision: str | Precision,
    steps: int,
    device: str | torch.device | None = None,
    compile: bool = False,
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
        model: any module from one input tensor to one output tensor.
        data: `mpbook.data.Examples`, a `ByteCorpus`, or anything with their methods.
        precision: a `Precision` or the name of one.
        steps: updates to make.
        device: ``"cuda"``, ``"cpu"`` or None for the best there is.
        compile: run the model and the loss through `torch.compile`.
        progress: show a progress line to a person who waits; it leaves no trace.
        save_to: where to keep a checkpoint, whole or not at all, at the end of the run.
        save_every: keep one there every so many steps too.
        resume_from: a checkpoint of a run with the same model and settings, to go on from bit for
            bit; ``steps`` counts from the beginning of that run.
        **settings: see `Settings`: batch_size, learning_rate, optimizer, clip_norm, seed ...

    Raises:
        ValueError: a setting out of range, a model with nothing to train, a checkpoint of another
            model or other settings.
        RuntimeError: no such device, or a checkpoint that cannot be read.
    """
    precision, chosen = as_precision(precision), pick(device)
    options = Settings(steps=steps, **settings)
    if save_every is not None and (save_to is None or save_every < 1):
        raise ValueError(f"save_every={save_every}: expected at least 1, and save_to, the file")
    data = data.to(chosen)
    with environment(precision, options, chosen):
        trainer = prepare(model, precision, options, chosen, compile=compile)
        run = Run(precision, _config(model, data, trainer), model=trainer.model)
        if resume_from is not None:
            _load(Path(resume_from), trainer, run)
        save = partial(_save, Path(save_to), trainer, run) if save_to is not None else None
        _loop(trainer, data, run, save=save, save_every=save_every, progress=progress)
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
            inputs, targets = data.sample(settings.batch_size, trainer.generator)
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


def _finish(trainer: Trainer, data: Data, run: Run, seconds: float, *, timed_steps: int) -> None:
    """Note what the steps made here cost."""
    items = timed_steps * trainer.settings.batch_size * data.items_per_example
    run.items_per_second = items / seconds if timed_steps else math.nan
    run.memory = replace(run.memory, optimizer_state=_optimizer_bytes(trainer.optimizer))
    if trainer.device.type == "cuda":
        run.peak_memory_bytes = torch.cuda.max_memory_allocated(trainer.device)
    else:
        run.peak_memory_bytes = run.memory.total


def _watched_step(
    trainer: Trainer, run: Run, inputs: Tensor, targets: Tensor, step: int
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
    trainer: Trainer, run: Run, inputs: Tensor, targets: Tensor, step: int
) -> tuple[Tensor, Tensor, bool]:
    """The first step, which also counts what a step holds in memory.

    What a compiled model saves for the backward pass is not counted: hooks would break its graph.
    """
    counting = nullcontext(lambda: 0) if trainer.compiled else saved_for_backward(trainer.model)
    with counting as saved:
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
    for inputs, targets in data.validation(trainer.settings.batch_size):
        total += trainer.loss(inputs, targets).double().cpu() * len(inputs)
        count += len(inputs)
    trainer.model.train()
    if count:
        run.validation_losses.append((run.steps, (total / count).item()))


def prepare(
    model: nn.Module,
    precision: Precision,
    settings: Settings,
    device: torch.device,
    *,
    compile: bool = False,
) -> Trainer:
    """A copy of the model in its precision, with optimizer, loss scaler and generators.

    For a loop of your own around `training_step`; run it inside `environment`.

    Raises:
        ValueError: a model with nothing to train.
    """
    ours = copy.deepcopy(model).to(device=device, dtype=precision.parameter_dtype).train()
    parameters = [p for p in ours.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(f"model: {type(model).__name__} has no trainable parameters")
    optimizer = _prepare_optimizer(parameters, precision, settings, device)
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    return Trainer(
        model=ours,
        optimizer=optimizer,
        scaler=_prepare_scaler(precision, settings),
        precision=precision,
        settings=settings,
        device=device,
        generator=torch.Generator().manual_seed(settings.seed),
        compiled=compile,
    )


def _prepare_optimizer(
    parameters: list[nn.Parameter], precision: Precision, settings: Settings, device: torch.device
) -> torch.optim.Optimizer:
    optimizer = settings.make_optimizer(parameters)
    match precision.weight_update:
        case "master_weights":
            return MasterWeights(optimizer)
        case "stochastic_rounding":
            generator = torch.Generator(device).manual_seed(settings.seed + 1)
            return StochasticRounding(optimizer, generator=generator)
        case "kahan_summation":
            return KahanSummation(optimizer)
    return optimizer


def _prepare_scaler(precision: Precision, settings: Settings) -> StaticLossScaler:
    if precision.loss_scale is None:
        return NoLossScaler()
    if precision.loss_scale == "dynamic":
        return DynamicLossScaler(growth_interval=settings.loss_scale_growth_interval)
    return StaticLossScaler(float(precision.loss_scale))


def _config(model: nn.Module, data: Data, trainer: Trainer) -> dict[str, Any]:
    """The exact configuration, in numbers and strings."""
    return {
        "model": type(model).__name__,
        "parameters": parameter_count(model),
        "data": data.name,
        "item": "token" if data.items_per_example > 1 else "example",
        "precision": {k: str(v) for k, v in asdict(trainer.precision).items()},
        "settings": trainer.settings.as_dict(),
        "device": device_name(trainer.device),
        "torch": torch.__version__,
    }


@contextmanager
def environment(precision: Precision, settings: Settings, device: torch.device) -> Iterator[None]:
    """The global switches that a run needs, set back afterwards."""
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        torch.manual_seed(settings.seed)
        stack.enter_context(_float32_matmul(precision, device))
        stack.enter_context(matmul_emulation(precision.compute_dtype, device))
        if settings.deterministic and device.type == "cuda":
            stack.enter_context(_deterministic())
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        yield


@contextmanager
def _float32_matmul(precision: Precision, device: torch.device) -> Iterator[None]:
    """Whether float32 products of matrices and convolutions may run in TF32."""
    tf32 = precision.float32_matmul == "tf32"
    if tf32 and device.type == "cpu":
        warnings.warn(
            'precision="tf32": a CPU has no TF32; its float32 products run in full float32',
            stacklevel=4,
        )
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@contextmanager
def _deterministic() -> Iterator[None]:
    """Only kernels that repeat bit for bit, where CUDA has them."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    warned_only = torch.is_deterministic_algorithms_warn_only_enabled()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*deterministic.*")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=warned_only)


# --- Saving and going on ----------------------------------------------------------------------

_RECORDED = ("losses", "gradient_norms", "loss_scales", "skipped_steps", "seconds")
_RECORDED_PAIRS = ("validation_losses", "updates_lost")


def _save(path: Path, trainer: Trainer, run: Run) -> None:
    """Write everything that the rest of the run depends on."""
    on_cuda = trainer.device.type == "cuda"
    state = {
        "identity": _identity(trainer, run),
        "model": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "batches": trainer.generator.get_state(),
        "torch_rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state(trainer.device) if on_cuda else None,
        "run": {name: getattr(run, name) for name in _RECORDED},
        **{name: [list(pair) for pair in getattr(run, name)] for name in _RECORDED_PAIRS},
    }
    checkpoint_files.save(path, state)


def _load(path: Path, trainer: Trainer, run: Run) -> None:
    """Go on from a checkpoint of the same model, settings and precision."""
    state = checkpoint_files.load(path)
    for part, expected in _identity(trainer, run).items():
        saved = state["identity"][part]
        if saved != expected:
            raise ValueError(
                f'resume_from="{path}": saved with another {part}: {_difference(saved, expected)}'
            )
    trainer.model.load_state_dict(state["model"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.scaler.load_state_dict(state["scaler"])
    trainer.generator.set_state(state["batches"])
    torch.set_rng_state(state["torch_rng"])
    if trainer.device.type == "cuda" and state["cuda_rng"] is not None:
        torch.cuda.set_rng_state(state["cuda_rng"], trainer.device)
    for name in _RECORDED:
        setattr(run, name, state["run"][name])
    for name in _RECORDED_PAIRS:
        setattr(run, name, [(step, value) for step, value in state[name]])
    if run.steps >= trainer.settings.steps:
        raise ValueError(
            f'steps={trainer.settings.steps}: "{path}" has done {run.steps} already; '
            "steps counts from the beginning of the saved run"
        )


def _identity(trainer: Trainer, run: Run) -> dict[str, dict[str, str]]:
    """What must be the same for a run to be the continuation of another."""
    settings = {k: str(v) for k, v in run.config["settings"].items()}
    if trainer.settings.decay == "none":
        del settings["steps"]  # without decay a longer run begins like a shorter one
    shapes = {name: str(tuple(p.shape)) for name, p in trainer.model.named_parameters()}
    return {"model": shapes, "settings": settings, "precision": run.config["precision"]}


def _difference(saved: dict[str, str], expected: dict[str, str]) -> str:
    keys = sorted(saved.keys() | expected.keys())
    key = next(k for k in keys if saved.get(k) != expected.get(k))
    return f"{key} was {saved.get(key, 'absent')}, is {expected.get(key, 'absent')}"
