"""The rules about what is stored in 16 bits: what they find and what they leave alone."""

from __future__ import annotations

import pytest

from mpbook.lint import lint_text

CASES = {
    "an eps that float16 has": (
        "adam-on-float16",
        """
import torch
model.half()
optimizer = torch.optim.Adam(model.parameters(), eps=1e-4)
""",
        False,
    ),
    "an eps that float16 has not": (
        "adam-on-float16",
        """
import torch
model.half()
optimizer = torch.optim.Adam(model.parameters(), eps=1e-10)
""",
        True,
    ),
    "an eps that float16 has, and no master weights": (
        "no-master-weights",
        """
import torch
model.half()
optimizer = torch.optim.Adam(model.parameters(), eps=1e-4)
""",
        True,
    ),
    "a kernel that computes in float32": (
        "adam-on-float16",
        """
import torch
model.half()
optimizer = torch.optim.Adam(model.parameters(), fused=True)
""",
        False,
    ),
    "another rule with a second moment": (
        "adam-on-float16",
        """
import torch
model.half()
optimizer = torch.optim.NAdam(model.parameters())
""",
        True,
    ),
    "adapters by the trainer": (
        "trained-as-loaded",
        """
import torch
model = M.from_pretrained(n, dtype=torch.bfloat16)
SFTTrainer(model=model, peft_config=config)
""",
        False,
    ),
    "an average that is only used": (
        "average-in-16-bits",
        """
ema = ema.half()
y = ema(x)
""",
        False,
    ),
    "added once": (
        "counter-in-16-bits",
        """
import torch
total = torch.zeros((), dtype=torch.bfloat16)
total += 1
""",
        False,
    ),
    "begun anew at each turn": (
        "counter-in-16-bits",
        """
import torch
for x in loader:
    total = torch.zeros((), dtype=torch.bfloat16)
    total += f(x)
""",
        False,
    ),
    "a sum of others": (
        "counter-in-16-bits",
        """
import torch
total = torch.zeros((), dtype=torch.bfloat16)
for x in loader:
    total = x + y
""",
        False,
    ),
    "the last integer that bfloat16 has": (
        "positions-in-16-bits",
        """
import torch
p = torch.arange(256, dtype=torch.bfloat16)
""",
        False,
    ),
    "one integer more": (
        "positions-in-16-bits",
        """
import torch
p = torch.arange(257, dtype=torch.bfloat16)
""",
        True,
    ),
    "an end by keyword": (
        "positions-in-16-bits",
        """
import torch
p = torch.arange(end=n, dtype=torch.bfloat16)
""",
        True,
    ),
    "a default that is set back": (
        "default-dtype-in-16-bits",
        """
import torch
torch.set_default_dtype(torch.bfloat16)
model = Net()
torch.set_default_dtype(torch.float32)
optimizer = torch.optim.Adam(model.parameters())
""",
        False,
    ),
    "a default of a file that does not train": (
        "default-dtype-in-16-bits",
        """
import torch
torch.set_default_dtype(torch.bfloat16)
y = Net()(x)
""",
        False,
    ),
    "what NumPy has": (
        "bfloat16-to-numpy",
        "array = x.half().numpy()\n",
        False,
    ),
}


@pytest.mark.parametrize(("rule", "text", "found"), CASES.values(), ids=CASES)
def test_what_is_stored_in_16_bits_is_judged_by_what_becomes_of_it(
    rule: str, text: str, found: bool
) -> None:
    assert (rule in [finding.id for finding in lint_text(text)]) == found
