"""Which expressions the linter takes for 16-bit, by rules that need to know."""

from __future__ import annotations

import pytest

from mpbook.lint import lint_text

CASES = {
    "a dtype by its name as text": (
        "trained-as-loaded",
        """
model = M.from_pretrained(n, torch_dtype='torch.bfloat16')
Trainer(model=model)
""",
        True,
    ),
    "the old tensor types": (
        "positions-in-16-bits",
        """
import torch
p = torch.arange(4096).type(torch.HalfTensor)
""",
        True,
    ),
    "one arm of a choice": (
        "adam-on-float16",
        """
import torch
model = Net() if exact else Net().half()
optimizer = torch.optim.Adam(model.parameters())
""",
        True,
    ),
    "back in float64": (
        "adam-on-float16",
        """
import torch
model.half()
model.double()
optimizer = torch.optim.Adam(model.parameters())
""",
        False,
    ),
    "a product with what is not known": (
        "eps-vanishes",
        """
import torch
x = z.half() * w
y = x / (x.norm() + 1e-8)
""",
        False,
    ),
    "a product with a number on the left": (
        "eps-vanishes",
        """
import torch
x = 2 * z.half()
y = x / (x.norm() + 1e-8)
""",
        True,
    ),
    "a product with a number on the right": (
        "eps-vanishes",
        """
import torch
x = z.half() / 2
y = x / (x.norm() + 1e-8)
""",
        True,
    ),
    "a cast to a dtype that is not known": (
        "eps-vanishes",
        """
import torch
x = z.half().to(dtype)
y = x / (x.norm() + 1e-8)
""",
        False,
    ),
    "moved to a device in a variable": (
        "eps-vanishes",
        """
import torch
x = z.half().to(device)
y = x / (x.norm() + 1e-8)
""",
        True,
    ),
    "moved to a device by name": (
        "eps-vanishes",
        """
import torch
x = z.half().to('xpu:0')
y = x / (x.norm() + 1e-8)
""",
        True,
    ),
    "another model after the cast": (
        "adam-on-float16",
        """
import torch
model.half()
model = Net()
optimizer = torch.optim.Adam(model.parameters())
""",
        False,
    ),
    "a cast at the end of a chain": (
        "adam-on-float16",
        """
import torch
model.eval().cuda().half()
optimizer = torch.optim.Adam(model.parameters())
""",
        True,
    ),
}


@pytest.mark.parametrize(("rule", "text", "found"), CASES.values(), ids=CASES)
def test_a_dtype_is_read_from_the_source(rule: str, text: str, found: bool) -> None:
    assert (rule in [finding.id for finding in lint_text(text)]) == found
