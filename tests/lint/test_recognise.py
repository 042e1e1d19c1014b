"""What the linter takes for a scaler, an optimizer, a model, a region of autocast."""

from __future__ import annotations

import pytest

from mpbook.lint import lint_text

CASES = {
    "a scaler by a bare name": (
        "scaler-never-updated",
        """
from torch.amp import *
scaler = GradScaler('cuda')
scaler.step(optimizer)
""",
        True,
    ),
    "a scaler without an argument": (
        "stepped-twice",
        """
scaler.step()
optimizer.step()
""",
        False,
    ),
    "a scaler that is on in one arm": (
        "clip-without-unscale",
        """
import torch
if amp:
    scaler = torch.amp.GradScaler('cuda')
else:
    scaler = torch.amp.GradScaler('cuda', enabled=False)
scaler.scale(loss).backward()
clip_grad_norm_(parameters, 1.0)
scaler.step(optimizer)
scaler.update()
""",
        True,
    ),
    "a scaler that is off": (
        "clip-without-unscale",
        """
import torch
scaler = torch.amp.GradScaler('cuda', enabled=False)
scaler.scale(loss).backward()
clip_grad_norm_(parameters, 1.0)
scaler.step(optimizer)
scaler.update()
""",
        False,
    ),
    "a scaler that is off needs no float16": (
        "mask-beyond-float16",
        """
import torch
scaler = torch.amp.GradScaler('cuda', enabled=False)
w = w.masked_fill(b, -1e9)
""",
        False,
    ),
    "a step that computes the loss anew": (
        "step-around-scaler",
        """
scaler.scale(loss).backward()
optimizer.step(closure)
""",
        False,
    ),
    "an optimizer under a name of its own": (
        "step-around-scaler",
        """
import torch
adam = torch.optim.Adam(parameters)
scaler.scale(loss).backward()
adam.step()
""",
        True,
    ),
    "parameters by keyword": (
        "adam-on-float16",
        """
import torch
model.half()
optimizer = torch.optim.Adam(params=model.parameters())
""",
        True,
    ),
    "parameters with their names": (
        "adam-on-float16",
        """
import torch
model.half()
optimizer = torch.optim.Adam([p for _, p in model.named_parameters()])
""",
        True,
    ),
    "wrapped further down, by keyword": (
        "no-master-weights",
        """
import torch
model.bfloat16()
inner = torch.optim.SGD(model.parameters(), lr=0.1)
optimizer = MasterWeights(optimizer=inner)
""",
        False,
    ),
    "quantised weights, with an optimizer": (
        "no-master-weights",
        """
import torch
model = M.from_pretrained(n, dtype=torch.bfloat16, quantization_config=q)
optimizer = torch.optim.AdamW(model.parameters())
""",
        False,
    ),
    "quantised weights, loaded": (
        "trained-as-loaded",
        """
import torch
model = M.from_pretrained(n, dtype=torch.bfloat16, quantization_config=q)
Trainer(model=model)
""",
        False,
    ),
    "a dtype by position": (
        "bfloat16-with-scaler",
        """
import torch
scaler = torch.amp.GradScaler('cuda')
with torch.autocast('cuda', torch.bfloat16):
    loss = model(x)
""",
        True,
    ),
    "the old region, turned off by position": (
        "backward-in-autocast",
        """
import torch
with torch.cuda.amp.autocast(False):
    loss.backward()
""",
        False,
    ),
    "the old region of a CPU": (
        "bce-in-autocast",
        """
import torch
import torch.nn.functional as F
with torch.cpu.amp.autocast():
    loss = F.binary_cross_entropy(p, y)
""",
        False,
    ),
    "a GPU by its number": (
        "float16-without-scaler",
        """
import torch
with torch.autocast('cuda:0'):
    loss = model(x)
loss.backward()
""",
        True,
    ),
    "a CPU's own dtype": (
        "bfloat16-with-scaler",
        """
import torch
scaler = torch.amp.GradScaler('cuda')
with torch.autocast('cpu'):
    loss = model(x)
""",
        True,
    ),
    "a region that is off inside of one that is on": (
        "backward-in-autocast",
        """
import torch
with torch.autocast('cuda', dtype=torch.bfloat16):
    with torch.autocast('cuda', enabled=False):
        loss.backward()
""",
        False,
    ),
    "a region that is on inside of one that is off": (
        "backward-in-autocast",
        """
import torch
with torch.autocast('cuda', enabled=False):
    with torch.autocast('cuda', dtype=torch.bfloat16):
        loss.backward()
""",
        True,
    ),
    "a function that a region defines": (
        "backward-in-autocast",
        """
import torch
with torch.autocast('cuda', dtype=torch.bfloat16):
    def step(loss):
        loss.backward()
""",
        False,
    ),
    "a region after another context": (
        "backward-in-autocast",
        """
import torch
with timer(), torch.autocast('cuda', dtype=torch.bfloat16):
    loss.backward()
""",
        True,
    ),
    "float16 that is turned off": (
        "mask-beyond-float16",
        """
import torch
with torch.autocast('cuda', enabled=False):
    w = w.masked_fill(b, -1e9)
""",
        False,
    ),
    "a model in half that computes in float32": (
        "eps-vanishes",
        """
from torch import nn
class Norm(nn.Module):
    def forward(self, x):
        return x / (x.float().norm() + 1e-8)
model = Norm().half()
""",
        False,
    ),
}


@pytest.mark.parametrize(("rule", "text", "found"), CASES.values(), ids=CASES)
def test_a_part_of_training_is_known_by_its_looks(rule: str, text: str, found: bool) -> None:
    assert (rule in [finding.id for finding in lint_text(text)]) == found
