"""The backward pass with its loss scaled, and each gradient divided again as it arrives.

A loop of one's own may do anything with gradients between ``backward()`` and the optimizer's step:
clip them, log them, or subtract them from the weights itself.  So nothing that it can reach is ever
scaled: a hook on each leaf of the graph divides what is added to its ``grad``.  What 16 bits do to
scaled gradients has happened by then, further up in the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mpbook.diagnosis.autocast_of import without_autocast
from mpbook.diagnosis.operators_seen import Recorder


@contextmanager
def scaled_backward(
    loss_scale: float,
    recorder: Recorder,
    parameters: Iterable[Tensor],
    *,
    begun: Callable[[Any], None],
    ended: Callable[[], None],
) -> Iterator[None]:
    """``backward()``, of a tensor or of `torch.autograd`, is a scaled one until the context ends.

    Args:
        loss_scale: that what is passed to ``backward()`` is multiplied by.
        recorder: told that a division is no part of the backward pass.
        parameters: whose gradients are divided, as those of the leaves that the graph shows are.
        begun: called before a backward pass with the tensors that it begins at.
        ended: called after it.
    """
    original, grad, known = torch.autograd.backward, torch.autograd.grad, list(parameters)

    def backward(tensors: Any, *args: Any, **kwargs: Any) -> None:
        roots = [tensors] if isinstance(tensors, Tensor) else list(tensors)
        inside_another = torch._C._current_autograd_node() is not None  # a checkpoint's
        if inside_another or not all(isinstance(root, Tensor) for root in roots):
            original(tensors, *args, **kwargs)
            return
        begun(roots)
        with without_autocast(roots[0].device):
            scaled = [_scaled(root, loss_scale) for root in roots]
            divided = _divided([*known, *leaves(scaled)], loss_scale, recorder)
            with divided, recorder.backward(second_order=_makes_a_graph(2, args, kwargs)):
                original(scaled, *args, **kwargs)
        ended()

    def unscaled(*args: Any, **kwargs: Any) -> Any:
        if not _makes_a_graph(4, args, kwargs):  # else part of a forward pass
            recorder.unseen[_BY_GRAD] += 1
        return grad(*args, **kwargs)

    setattr(torch.autograd, "backward", backward)  # noqa: B010
    setattr(torch.autograd, "grad", unscaled)  # noqa: B010
    try:
        yield
    finally:
        setattr(torch.autograd, "backward", original)  # noqa: B010
        setattr(torch.autograd, "grad", grad)  # noqa: B010


def _makes_a_graph(position: int, args: Any, kwargs: Any) -> bool:
    return bool(kwargs.get("create_graph", args[position : position + 1] == (True,)))


_BY_GRAD = "a loss scale: gradients by torch.autograd.grad were taken without one"


def _scaled(root: Tensor, loss_scale: float) -> Tensor:
    return (root if root.is_complex() else root.float()) * loss_scale


@contextmanager
def _divided(tensors: Iterable[Tensor], loss_scale: float, recorder: Recorder) -> Iterator[None]:
    """What arrives at these leaves is divided by the loss scale."""
    found = {id(t): t for t in tensors if t.is_leaf and t.requires_grad and loss_scale != 1.0}
    divide = partial(_divide, loss_scale, recorder)
    handles = [tensor.register_hook(divide) for tensor in found.values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _divide(loss_scale: float, recorder: Recorder, gradient: Tensor) -> Tensor:
    before, recorder.phase = recorder.phase, "update"
    divided = gradient * (1.0 / loss_scale)
    recorder.phase = before
    return divided


def leaves(roots: Iterable[Tensor]) -> list[Tensor]:
    """The tensors whose ``grad`` a backward pass from the roots adds to."""
    found: list[Tensor] = []
    left: list[Any] = [root.grad_fn for root in roots]
    seen: set[Any] = {None}
    while left:
        node = left.pop()
        if node not in seen:
            seen.add(node)
            left += [one for one, _ in node.next_functions]
            if node.name() == "torch::autograd::AccumulateGrad":
                found.append(node.variable)
    return found


@contextmanager
def grad_scalers_disabled() -> Iterator[None]:
    """Each `torch.amp.GradScaler` acts as one made with ``enabled=False``: a loss is scaled once.

    Its scale and its counts stay as they are.
    """
    kept = property(lambda scaler: False, lambda scaler, value: _set_enabled(scaler, value))
    setattr(torch.amp.GradScaler, "_enabled", kept)  # noqa: B010
    try:
        yield
    finally:
        delattr(torch.amp.GradScaler, "_enabled")


def _set_enabled(scaler: Any, value: bool) -> None:
    vars(scaler)["_enabled"] = value
