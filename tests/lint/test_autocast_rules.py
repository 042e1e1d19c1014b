"""The rules about autocast: what they find and what they leave alone."""

from __future__ import annotations

import pytest

from mpbook.lint import lint_text

CASES = {
    "the old scaler where the new one is not there": (
        "deprecated-amp",
        """
import torch
try:
    scaler = torch.amp.GradScaler('cuda')
except AttributeError:
    scaler = torch.cuda.amp.GradScaler()
""",
        False,
    ),
    "the old scaler by what torch has": (
        "deprecated-amp",
        """
import torch
if hasattr(torch.amp, 'GradScaler'):
    scaler = torch.amp.GradScaler('cuda')
else:
    scaler = torch.cuda.amp.GradScaler()
""",
        False,
    ),
    "the old scaler on a GPU": (
        "deprecated-amp",
        """
import torch
if on_gpu:
    scaler = torch.cuda.amp.GradScaler()
""",
        True,
    ),
    "a folder that is called like torch's": (
        "deprecated-amp",
        "from .torch.cuda.amp import autocast\n",
        False,
    ),
    "a device by position": (
        "device-for-old-autocast",
        """
from torch.cuda.amp import autocast
with autocast('cuda'):
    y = f(x)
""",
        True,
    ),
    "no device for the old region": (
        "device-for-old-autocast",
        """
from torch.cuda.amp import autocast
with autocast(True):
    y = f(x)
""",
        False,
    ),
    "a device among options": (
        "autocast-without-device",
        """
import torch
with torch.autocast(**options):
    y = f(x)
""",
        False,
    ),
    "a loop of backward passes alone": (
        "autocast-around-loop",
        """
import torch
with torch.autocast('cuda', dtype=torch.bfloat16):
    for x in loader:
        model(x).backward()
""",
        False,
    ),
    "a loop in a region that is off": (
        "autocast-around-loop",
        """
import torch
with torch.autocast('cuda', enabled=False):
    for x in loader:
        model(x).backward()
        optimizer.step()
""",
        False,
    ),
    "a loss of probabilities on a CPU": (
        "bce-in-autocast",
        """
import torch
from torch import nn
criterion = nn.BCELoss()
with torch.autocast('cpu', dtype=torch.bfloat16):
    loss = criterion(p, y)
""",
        False,
    ),
    "a cast model that is not trained": (
        "cast-model-in-autocast",
        """
import torch
model = model.bfloat16()
with torch.autocast('cuda', dtype=torch.bfloat16):
    y = model(x)
""",
        False,
    ),
    "statistics over ranks": (
        "batch-norm-in-16-bits",
        """
from torch import nn
model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SyncBatchNorm(8))
model.bfloat16()
""",
        True,
    ),
    "a transform of many dimensions": (
        "fft-in-16-bits",
        """
import torch
y = torch.fft.rfftn(x.half())
""",
        True,
    ),
    "the transform of a product in a region": (
        "fft-in-16-bits",
        """
import torch
with torch.autocast('cuda', dtype=torch.bfloat16):
    y = torch.fft.rfft(a @ b)
""",
        True,
    ),
    "the transform of a product outside": (
        "fft-in-16-bits",
        """
import torch
y = torch.fft.rfft(a @ b)
""",
        False,
    ),
}


@pytest.mark.parametrize(("rule", "text", "found"), CASES.values(), ids=CASES)
def test_a_region_is_judged_by_what_runs_in_it(rule: str, text: str, found: bool) -> None:
    assert (rule in [finding.id for finding in lint_text(text)]) == found
