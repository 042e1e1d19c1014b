"""The rules about numbers that 16 bits do not hold, at their borders."""

from __future__ import annotations

import pytest

from mpbook.lint import lint_text

CASES = {
    "just beyond float16": (
        "mask-beyond-float16",
        """
model.half()
w = w.masked_fill(b, -65520.0)
""",
        True,
    ),
    "the largest float16": (
        "mask-beyond-float16",
        """
model.half()
w = w.masked_fill(b, -65504.0)
""",
        False,
    ),
    "minus infinity": (
        "mask-beyond-float16",
        """
model.half()
w = w.masked_fill(b, -float('inf'))
""",
        False,
    ),
    "a value by keyword": (
        "mask-beyond-float16",
        """
model.half()
w = w.masked_fill(mask=b, value=-1e9)
""",
        True,
    ),
    "a bfloat16 tensor in a file that uses float16": (
        "mask-beyond-float16",
        """
model.half()
w = w.bfloat16()
w[b] = -1e9
""",
        False,
    ),
    "the minimum added to zeros": (
        "minimum-plus-score",
        """
import torch
b = torch.zeros_like(s) + (1 - m) * torch.finfo(s.dtype).min
""",
        False,
    ),
    "filled scores and a bias": (
        "minimum-plus-score",
        """
import torch
low = s.masked_fill(m, torch.finfo(s.dtype).min)
s = low + bias
""",
        False,
    ),
    "a filled mask": (
        "minimum-plus-score",
        """
import torch
mask = m.masked_fill(b, torch.finfo(s.dtype).min)
s = s + mask
""",
        True,
    ),
    "half of the smallest float16": (
        "eps-vanishes",
        """
x = x.half()
y = x / (x.norm() + 2.0**-25)
""",
        True,
    ),
    "the smallest float16": (
        "eps-vanishes",
        """
x = x.half()
y = x / (x.norm() + 2.0**-24)
""",
        False,
    ),
    "nothing added": (
        "eps-vanishes",
        """
x = x.half()
y = x / (x.norm() + 0)
""",
        False,
    ),
    "normalize by a bound that float16 has": (
        "eps-vanishes",
        """
import torch.nn.functional as F
y = F.normalize(x.half(), eps=1e-4)
""",
        False,
    ),
    "a bound from below": (
        "eps-vanishes",
        "y = x.half().clamp_min(1e-8)\n",
        True,
    ),
    "a bound by keyword": (
        "eps-vanishes",
        "y = x.half().clamp(max=1.0, min=1e-8)\n",
        True,
    ),
    "squares added up in float32": (
        "squares-in-float16",
        """
import torch
x = x.half()
y = x.pow(2).mean(-1, dtype=torch.float32)
""",
        False,
    ),
    "a product of two": (
        "squares-in-float16",
        """
x = x.half()
y = (x * x.flip(0)).sum()
""",
        False,
    ),
    "a product with itself": (
        "squares-in-float16",
        """
x = x.half()
y = (x * x).sum()
""",
        True,
    ),
    "a cast that is added up in float32": (
        "cast-before-sum",
        """
import torch
total = losses.half().sum(dtype=torch.float32)
""",
        False,
    ),
    "an exponential below the largest": (
        "softmax-by-hand",
        """
import torch
z = z.half()
e = torch.exp(z - z.max())
p = e / e.sum(-1)
""",
        False,
    ),
    "a softmax in float32": (
        "log-of-probability",
        """
import torch
p = torch.softmax(z.half(), -1, dtype=torch.float32).log()
""",
        False,
    ),
    "the logarithm of a sigmoid": (
        "log-of-probability",
        """
z = z.half()
loss = -z.sigmoid().log()
""",
        True,
    ),
    "a tolerance by one name": (
        "loose-comparison",
        """
import torch
torch.testing.assert_close(x.bfloat16(), y.bfloat16(), atol=0.1)
""",
        False,
    ),
    "a comparison with what is not known": (
        "loose-comparison",
        """
import torch
torch.testing.assert_close(x.bfloat16(), y)
""",
        False,
    ),
    "a comparison in float16": (
        "loose-comparison",
        """
import torch
torch.testing.assert_close(x.half(), y.half())
""",
        False,
    ),
}


@pytest.mark.parametrize(("rule", "text", "found"), CASES.values(), ids=CASES)
def test_a_number_is_judged_by_what_16_bits_make_of_it(rule: str, text: str, found: bool) -> None:
    assert (rule in [finding.id for finding in lint_text(text)]) == found
