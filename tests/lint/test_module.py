"""Names, scopes, branches and numbers, as rules ask for them."""

from __future__ import annotations

import pytest

from mpbook.lint import lint_text

CASES = {
    "a module of one's own by a known name": (
        "bce-in-autocast",
        """
import torch
from .nn import BCELoss
criterion = BCELoss()
with torch.autocast('cuda'):
    loss = criterion(p, y)
""",
        False,
    ),
    "a function that a loop defines": (
        "scaler-made-again",
        """
import torch
for trial in trials:
    def objective(loss):
        scaler = torch.amp.GradScaler('cuda')
        scaler.scale(loss).backward()
""",
        False,
    ),
    "a loop that waits": (
        "scaler-made-again",
        """
import torch
while True:
    scaler = torch.amp.GradScaler('cuda')
    scaler.scale(loss).backward()
""",
        True,
    ),
    "an arm that goes on with the next turn": (
        "clip-without-unscale",
        """
for x in loader:
    if amp:
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        continue
    loss.backward()
    clip_grad_norm_(parameters, 1.0)
""",
        False,
    ),
    "after a branch, always": (
        "step-around-scaler",
        """
if training:
    scaler.scale(loss).backward()
optimizer.step()
""",
        True,
    ),
    "only in a branch": (
        "stepped-twice",
        """
scaler.step(optimizer)
scaler.update()
if once_more:
    optimizer.step()
""",
        False,
    ),
    "given further down, outside of the function": (
        "adam-on-float16",
        """
import torch
def build():
    return torch.optim.Adam(model.parameters())
model = Net().half()
""",
        True,
    ),
    "a parameter of the same name": (
        "eps-vanishes",
        """
eps = 1e-12
def scaled(x, eps):
    x = x.half()
    return x / (x.norm() + eps)
""",
        False,
    ),
    "a parameter by keyword of the same name": (
        "eps-vanishes",
        """
eps = 1e-12
def scaled(x, *, eps):
    x = x.half()
    return x / (x.norm() + eps)
""",
        False,
    ),
    "a constant of the file": (
        "eps-vanishes",
        """
eps = 1e-12
def scaled(x):
    x = x.half()
    return x / (x.norm() + eps)
""",
        True,
    ),
    "what is done after an error": (
        "stepped-twice",
        """
try:
    scaler.step(optimizer)
    scaler.update()
except RuntimeError:
    optimizer.step()
""",
        False,
    ),
    "the other arm returns": (
        "stepped-twice",
        """
def step():
    if not amp:
        pass
    else:
        scaler.step(optimizer)
        scaler.update()
        return
    optimizer.step()
""",
        False,
    ),
    "True is no number": (
        "scale-for-a-device",
        """
import torch
scaler = torch.amp.GradScaler(True)
""",
        False,
    ),
    "a power of two": (
        "eps-vanishes",
        """
x = x.half()
y = x / (x.norm() + 2**-30)
""",
        True,
    ),
    "a number as text": (
        "mask-beyond-float16",
        """
model.half()
w = w.masked_fill(b, float('-1e9'))
""",
        True,
    ),
}


@pytest.mark.parametrize(("rule", "text", "found"), CASES.values(), ids=CASES)
def test_a_rule_fires_where_the_source_says_so(rule: str, text: str, found: bool) -> None:
    assert (rule in [finding.id for finding in lint_text(text)]) == found
