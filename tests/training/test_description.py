"""Descriptions: equal for what is the same, different for what is not, the same in any process."""

import functools
import json
import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn

from mpbook.training import cross_entropy
from mpbook.training.description import describe, is_exact

RATE = 0.5


def scaled(factor):
    return lambda outputs, targets: factor * cross_entropy(outputs, targets)


def reads_a_global(outputs, targets):
    return RATE * cross_entropy(outputs, targets)


def with_a_default(outputs, targets, factor=2.0):
    return factor * cross_entropy(outputs, targets)


class Smoothed:
    def __init__(self, amount):
        self.amount = amount

    def __call__(self, outputs, targets):
        return self.amount * cross_entropy(outputs, targets)

    def method(self, outputs, targets):
        return self(outputs, targets)


class Slotted:
    __slots__ = ("amount",)

    def __init__(self, amount):
        self.amount = amount

    def __call__(self, outputs, targets):
        return self.amount * cross_entropy(outputs, targets)


ADAMW = torch.optim.AdamW
PAIRS = {
    "a partial's keyword": (partial(ADAMW, lr=1e-3), partial(ADAMW, lr=2e-3)),
    "a partial's argument": (partial(scaled, 1.0), partial(scaled, 2.0)),
    "a partial's function": (partial(ADAMW, lr=1e-3), partial(torch.optim.Adam, lr=1e-3)),
    "a partial in a partial": (
        partial(partial(ADAMW, betas=(0.9, 0.95)), lr=1e-3),
        partial(partial(ADAMW, betas=(0.9, 0.99)), lr=1e-3),
    ),
    "a partial's function in a list": (partial(map, [scaled(1.0)]), partial(map, [scaled(2.0)])),
    "a closed-over value": (scaled(1.0), scaled(2.0)),
    "a lambda's constant": (lambda p: ADAMW(p, lr=1.0), lambda p: ADAMW(p, lr=2.0)),
    "a lambda's call": (lambda p: torch.optim.SGD(p), lambda p: torch.optim.Adam(p)),
    "a lambda in a lambda": (lambda p: (lambda: 1), lambda p: (lambda: 2)),
    "an object's state": (Smoothed(0.1), Smoothed(0.2)),
    "a bound method's object": (Smoothed(0.1).method, Smoothed(0.2).method),
    "a method's function": (Smoothed(0.1).method, Smoothed(0.1).__call__),
    "a module's option": (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1)),
    "a module's weight": (
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0])),
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0])),
    ),
    "a built-in": (max, min),
    "a number's type": (partial(scaled, 1), partial(scaled, True)),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_what_differs_is_described_differently(name):
    one, other = map(describe, PAIRS[name])
    assert one != other and is_exact(one) and is_exact(other)


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_a_description_is_plain_and_without_addresses(pair):
    for value in pair:
        text = describe(value)
        assert json.loads(json.dumps(text)) == text == describe(value)
        assert "0x" not in text and " at " not in text


def test_what_is_the_same_is_described_alike():
    assert describe(scaled(1.0)) == describe(scaled(1.0))
    assert describe(Smoothed(0.1)) == describe(Smoothed(0.1))
    assert describe(partial(ADAMW, lr=1e-3)) == "partial(torch.optim.adamw.AdamW, lr=0.001)"


def test_a_global_that_a_function_reads_belongs_to_it(monkeypatch):
    before = describe(reads_a_global)
    monkeypatch.setitem(reads_a_global.__globals__, "RATE", 0.25)
    assert describe(reads_a_global) != before


def test_a_default_belongs_to_a_function(monkeypatch):
    before = describe(with_a_default)
    monkeypatch.setattr(with_a_default, "__defaults__", (3.0,))
    assert describe(with_a_default) != before


def test_the_code_of_an_objects_class_belongs_to_it(monkeypatch):
    before = describe(Smoothed(0.1))
    monkeypatch.setattr(Smoothed, "__call__", lambda self, outputs, targets: 0)
    assert describe(Smoothed(0.1)) != before


def test_a_function_that_refers_to_itself_is_described():
    def again(depth):
        return again(depth - 1) if depth else 0

    assert is_exact(describe(again))


@pytest.mark.parametrize(
    "value",
    [Slotted(0.1), iter([1]), (x for x in [1]), torch.Generator(), Smoothed(object())],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_described_is_marked(value):
    assert not is_exact(describe(partial(scaled, value)))


def test_a_function_of_a_decorator_is_described_by_what_it_wraps():
    def logged(function):
        @functools.wraps(function)
        def wrapper(*arguments):
            return function(*arguments)

        return wrapper

    assert describe(logged(scaled(1.0))) != describe(logged(scaled(2.0)))


CODE = """
from functools import partial
import torch
from torch import nn
from mpbook.training.description import describe
def closure(factor, names):
    return lambda outputs, targets: factor * outputs.sum() if outputs in {"a", "b", "c"} else names
print(describe(closure(2.0, {"x", "y", "z"})), describe(partial(torch.optim.AdamW, lr=0.1)),
      describe(nn.CrossEntropyLoss(weight=torch.ones(2))))
"""


def test_another_process_describes_it_the_same():
    command = [sys.executable, "-c", CODE]
    found = [
        subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]
    assert found[0] == found[1] and "AdamW" in found[0]


def test_many_references_to_each_other_are_described_in_no_time():
    nested = 1.0
    for _ in range(60):
        nested = [nested, nested]
    other = 2.0
    for _ in range(60):
        other = [other, other]
    assert len(describe(nested)) < 3000 and describe(nested) != describe(other)
    assert is_exact(describe(nested)) and not is_exact(describe([object(), list(range(999))]))


def test_an_object_that_raises_when_it_is_looked_at_is_marked():
    assert not is_exact(describe(partial(scaled, torch.eye(2).to_sparse())))
