"""Copies of what holds a lock; and what cannot be copied is named."""

import copy
import threading

import pytest
import torch
from torch import nn

from mpbook.autocast.trace import trace_dtypes
from mpbook.copies import deep_copy
from mpbook.data import Examples
from mpbook.training import train
from mpbook.watch.lost_updates import updates_lost


class Locked(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.lock = nn.Linear(2, 2), threading.RLock()
        self.helpers = [{"lock": threading.Lock()}]

    def forward(self, x):
        with self.lock, self.helpers[0]["lock"]:
            return self.layer(x)


class LockedSGD(torch.optim.SGD):
    def __init__(self, params, lr):
        super().__init__(params, lr=lr)
        self.lock = threading.Lock()

    def step(self, closure=None):
        with self.lock:
            return super().step(closure)


def test_a_lock_becomes_a_new_one():
    model = Locked()
    ours = deep_copy(model, what="model")
    assert ours.lock is not model.lock and ours.helpers[0]["lock"] is not model.helpers[0]["lock"]
    assert torch.equal(ours.layer.weight, model.layer.weight)
    assert ours.layer.weight is not model.layer.weight


def test_without_locks_it_is_pythons_copy():
    model = nn.LSTM(2, 3)
    state = deep_copy(model, what="model").state_dict()
    for name, value in copy.deepcopy(model).state_dict().items():
        assert torch.equal(value, state[name])


def test_what_cannot_be_copied_is_named():
    model = Locked()
    model.log = (line for line in "text")
    with pytest.raises(ValueError, match="copied, because of its log, a generator"):
        deep_copy(model, what="model")


def test_a_model_with_a_lock_trains_and_is_traced():
    x = torch.randn(8, 2)
    run = train(Locked(), Examples(x, x.argmax(-1)), precision="bf16-mixed", steps=2, device="cpu")
    assert run.steps == 2
    assert trace_dtypes(Locked(), x, "bf16-mixed").of("layer").computed_in == ("bfloat16",)


def test_an_optimizer_with_a_lock_is_watched():
    model = nn.Linear(2, 2)
    optimizer = LockedSGD(model.parameters(), lr=0.1)
    lock = optimizer.lock
    with updates_lost(model, optimizer) as lost:
        model(torch.randn(3, 2)).sum().backward()
        optimizer.step()
    assert lost.fraction == 0 and optimizer.lock is lock


def test_an_optimizer_that_cannot_be_copied_is_refused_with_its_attribute():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.log = (line for line in "text")
    model(torch.randn(3, 2)).sum().backward()
    with updates_lost(model, optimizer), pytest.raises(ValueError, match="because of its log"):
        optimizer.step()
