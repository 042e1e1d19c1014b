"""The rules about a `GradScaler`: what they find and what they leave alone."""

from __future__ import annotations

import pytest

from mpbook.lint import lint_text

CASES = {
    "clipping by value": (
        "clip-without-unscale",
        """
scaler.scale(loss).backward()
clip_grad_value_(parameters, 1.0)
scaler.step(optimizer)
scaler.update()
""",
        True,
    ),
    "a function that clips and steps": (
        "clip-without-unscale",
        """
def update(scaler):
    clip_grad_norm_(parameters, 1.0)
    scaler.step(optimizer)
    scaler.update()
""",
        True,
    ),
    "a second optimizer that is not scaled": (
        "step-around-scaler",
        """
scaler.scale(loss).backward()
scaler.step(generator_optimizer)
scaler.update()
critic_optimizer.step()
""",
        False,
    ),
    "unscaled once before each update": (
        "unscaled-twice",
        """
scaler.scale(loss).backward()
scaler.unscale_(optimizer)
scaler.step(optimizer)
scaler.update()
scaler.scale(loss).backward()
scaler.unscale_(optimizer)
scaler.step(optimizer)
scaler.update()
""",
        False,
    ),
    "unscaled after the update": (
        "unscale-after-step",
        """
scaler.scale(loss).backward()
scaler.step(optimizer)
scaler.update()
scaler.scale(loss).backward()
scaler.unscale_(optimizer)
""",
        False,
    ),
    "a closure by keyword": (
        "scaler-with-closure",
        "scaler.step(optimizer, closure=compute)\n",
        True,
    ),
    "a closure that is handed on": (
        "scaler-with-closure",
        """
def step(optimizer, closure=None):
    scaler.step(optimizer, closure)
""",
        False,
    ),
    "no closure, written out": (
        "scaler-with-closure",
        "scaler.step(optimizer, None)\n",
        False,
    ),
    "the scale is asked for elsewhere": (
        "penalty-of-scaled-gradients",
        """
import torch
def log():
    print(scaler.get_scale())
def step(loss):
    g = torch.autograd.grad(scaler.scale(loss), weights)
""",
        True,
    ),
    "a scaled loss by keyword": (
        "penalty-of-scaled-gradients",
        """
import torch
g = torch.autograd.grad(outputs=scaler.scale(loss), inputs=weights)
""",
        True,
    ),
    "one scaler for a whole training": (
        "scaler-made-again",
        """
import torch
def train_model(loader):
    scaler = torch.amp.GradScaler('cuda')
    for x in loader:
        scaler.scale(model(x)).backward()
""",
        False,
    ),
    "one scaler for each epoch": (
        "scaler-made-again",
        """
import torch
def train_epoch(loader):
    scaler = torch.amp.GradScaler('cuda')
    for x in loader:
        scaler.scale(model(x)).backward()
""",
        True,
    ),
    "the state is saved elsewhere": (
        "scaler-not-saved",
        """
import torch
scaler = torch.amp.GradScaler('cuda')
state = scaler.state_dict()
torch.save({'optimizer': optimizer.state_dict()}, path)
""",
        False,
    ),
    "made and saved in one function": (
        "scaler-not-saved",
        """
import torch
def train():
    scaler = torch.amp.GradScaler('cuda')
    torch.save({'optimizer': optimizer.state_dict()}, path)
""",
        True,
    ),
    "saved in a function of its own": (
        "scaler-not-saved",
        """
import torch
def train():
    scaler = torch.amp.GradScaler('cuda')
def save():
    torch.save({'optimizer': optimizer.state_dict()}, path)
""",
        False,
    ),
    "a scale of one's own": (
        "float16-without-scaler",
        """
import torch
with torch.autocast('cuda'):
    loss = model(x)
scale_loss(loss).backward()
""",
        False,
    ),
    "a float16 region that is off": (
        "float16-without-scaler",
        """
import torch
with torch.autocast('cuda', enabled=False):
    loss = model(x)
loss.backward()
""",
        False,
    ),
    "the old scaler's first argument": (
        "scale-for-a-device",
        """
import torch
scaler = torch.cuda.amp.GradScaler(1024.0)
""",
        False,
    ),
    "one region of two is bfloat16": (
        "bfloat16-with-scaler",
        """
import torch
scaler = torch.amp.GradScaler('cuda')
with torch.autocast('cuda', dtype=torch.float16):
    loss = model(x)
with torch.autocast('cuda', dtype=torch.bfloat16):
    loss = model(x)
""",
        False,
    ),
    "the only region that is on is bfloat16": (
        "bfloat16-with-scaler",
        """
import torch
scaler = torch.amp.GradScaler('cuda')
with torch.autocast('cuda', enabled=False):
    loss = model(x)
with torch.autocast('cuda', dtype=torch.bfloat16):
    loss = model(x)
""",
        True,
    ),
    "a scaler with a switch": (
        "bfloat16-with-scaler",
        """
import torch
scaler = torch.amp.GradScaler('cuda', enabled=on)
with torch.autocast('cuda', dtype=torch.bfloat16):
    loss = model(x)
""",
        False,
    ),
    "a float16 model and a step": (
        "float16-gradients",
        """
import torch
model.half()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scaler.step(optimizer)
""",
        True,
    ),
    "a bfloat16 model and a step": (
        "float16-gradients",
        """
import torch
model.bfloat16()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scaler.step(optimizer)
""",
        False,
    ),
}


@pytest.mark.parametrize(("rule", "text", "found"), CASES.values(), ids=CASES)
def test_a_scaler_is_judged_by_the_calls_around_it(rule: str, text: str, found: bool) -> None:
    assert (rule in [finding.id for finding in lint_text(text)]) == found
