"""Saved tensors, each where the run that goes on has its own: whole, or cut among its ranks.

A saved tensor is whole, whoever saved it.  Under `fully_shard` the run has parts of the weights, of
the optimizer's state of the same shape, and of what `mpbook.master_weights` keeps beside them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from mpbook.master_weights import Float32Updates, parameters_of
from mpbook.nests import mapped
from mpbook.shards import is_shared
from mpbook.training.step import Trainer


def placed(state: dict[str, Any], trainer: Trainer) -> dict[str, Any]:
    """A saved state with its tensors as the trainer has them; those on ``meta`` without numbers."""
    model, optimizer = trainer.model.state_dict(), trainer.optimizer
    weights, saved = state["model"], state["optimizer"]
    for name, tensor in weights.items():  # in place: torch keeps notes on the dictionary itself
        weights[name] = _as(model.get(name), tensor)
    parameters = parameters_of(optimizer)
    for index, values in saved["state"].items():
        saved["state"][index] = mapped(partial(_as, parameters[index]), values)
    if isinstance(optimizer, Float32Updates):
        kept = optimizer.kept.values()
        saved["kept"] = [_as(k, s) for k, s in zip(kept, saved["kept"], strict=True)]
    filled: dict[str, Any] = mapped(partial(_as, None), state)
    return filled


def _as(ours: Tensor | None, saved: Tensor) -> Tensor:
    """A whole tensor, or a place for one, cut as ours is, if that is cut and of the same shape."""
    if ours is None or not is_shared(ours) or ours.shape != saved.shape:
        return torch.empty_like(saved, device="cpu") if saved.is_meta else saved
    if saved.is_meta:
        return torch.empty_like(ours, dtype=saved.dtype)
    from torch.distributed.tensor import distribute_tensor

    cut: Any = ours
    return distribute_tensor(saved.to(ours.device), cut.device_mesh, cut.placements)
