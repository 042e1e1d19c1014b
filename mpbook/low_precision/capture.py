"""The three tensors of a linear layer, taken from a model as it trains: x, w and dy.

Taught in the chapter "FP8 and below".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mpbook.distributed import BEFORE_SHARDING, refuse_sharded, without_data_parallel

Loss = Callable[[nn.Module, Any], Tensor]
"""``loss(model, batch)``, the scalar whose gradients are looked at."""

_Calls = dict[str, list[tuple[Tensor, list[Tensor]]]]
"""By layer, the input of each call and the gradient of its output, once that is there."""


@dataclass(frozen=True, eq=False)
class Captured:
    """What one linear layer multiplied in one batch; float32, on the model's device.

    Args:
        layer: name of the layer.
        batch: number of the batch, from 0.
        x: (tokens, inputs).
        w: (outputs, inputs).
        dy: (tokens, outputs), the gradient of the loss.
    """

    layer: str
    batch: int
    x: Tensor
    w: Tensor
    dy: Tensor

    def operands(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The two matrices of each product, whose rows are contracted."""
        return {
            "fprop": (self.x, self.w),
            "dgrad": (self.dy, self.w.T),
            "wgrad": (self.dy.T, self.x.T),
        }


def next_token_loss(model: nn.Module, batch: Any) -> Tensor:
    """Cross entropy of ``model(inputs)`` for a batch of inputs and int64 targets."""
    inputs, targets = batch
    logits = model(inputs)
    return functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))


def capture(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    layers: Sequence[str] | None = None,
    loss: Loss = next_token_loss,
) -> list[Captured]:
    """Run forward and backward on each batch and keep what linear layers multiplied.

    The model is left as it was: no gradient is added, buffers and torch's generators are put back,
    and no hook stays.

    Args:
        model: any module; of DistributedDataParallel, the one inside.
        batches: what ``loss`` takes, one after another.
        layers: names of `torch.nn.Linear` layers; all by default.
        loss: cross entropy of ``(inputs, targets)`` by default.

    Raises:
        ValueError: a name that is no linear layer, no batch, a loss that is no scalar with a
            gradient, a layer that the loss does not depend on, or a sharded model.
    """
    model = without_data_parallel(model)
    refuse_sharded(model, instead=BEFORE_SHARDING)
    chosen = _chosen(model, layers)
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = []
    for number, batch in enumerate(batches):
        seen: _Calls = {name: [] for name in chosen}
        with _as_it_was(model), _watching(chosen, seen), torch.enable_grad():
            value = loss(model, batch)
            if value.numel() != 1 or not value.requires_grad:
                raise ValueError(
                    f"loss: gave shape {tuple(value.shape)}, requires_grad={value.requires_grad}; "
                    "expected a scalar that depends on parameters which require a gradient"
                )
            torch.autograd.grad(value, parameters, allow_unused=True)
        found += [_joined(name, number, chosen[name], seen[name]) for name in chosen]
    if not found:
        raise ValueError("batches: there is none, expected at least one")
    return found


def _chosen(model: nn.Module, layers: Sequence[str] | None) -> dict[str, nn.Linear]:
    linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    if isinstance(layers, str):
        raise ValueError(f"layers={layers!r}: expected a list of names")
    names = list(linear) if layers is None else list(layers)
    if not names:
        raise ValueError(f"layers: {type(model).__name__} has no torch.nn.Linear, or none is named")
    for name in names:
        if name not in linear:
            raise ValueError(f"layers: {name!r} is no linear layer; there are {', '.join(linear)}")
    return {name: linear[name] for name in names}


@contextmanager
def _watching(chosen: dict[str, nn.Linear], seen: _Calls) -> Iterator[None]:
    """Note the inputs of the layers, and the gradients of their outputs when they come."""

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            gradients: list[Tensor] = []
            if output.requires_grad:  # on the tensor, as an in-place ReLU may come next
                output.register_hook(lambda dy: gradients.append(dy.detach().float().clone()))
            seen[name].append((inputs[0].detach().float().clone(), gradients))

        return hook

    handles = [layer.register_forward_hook(watch(name)) for name, layer in chosen.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Put buffers and torch's generators back: running averages and dropout would go on."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.random.fork_rng(range(torch.cuda.device_count())):  # unnamed, torch warns
        try:
            yield
        finally:
            with torch.no_grad():
                for name, buffer in model.named_buffers():
                    buffer.copy_(buffers[name])


def _joined(
    name: str, batch: int, layer: nn.Linear, calls: list[tuple[Tensor, list[Tensor]]]
) -> Captured:
    """All calls of a layer in one batch as one."""
    if not calls or not all(gradients for _, gradients in calls):
        raise ValueError(f"layers: the loss does not depend on {name!r}; leave it out")
    x = torch.cat([x.reshape(-1, x.shape[-1]) for x, _ in calls])
    dy = torch.cat([dy.reshape(-1, dy.shape[-1]) for _, (dy, *_) in calls])
    return Captured(name, batch, x, layer.weight.detach().float().clone(), dy)
