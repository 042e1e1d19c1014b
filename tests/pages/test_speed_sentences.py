"""Sentences about speed and hardware that were on the pages and are false: none comes back.

What decides most of them is a cell or a test elsewhere: the casts of a step are counted in the
chapter "Speed", what a CPU multiplies in `tests/test_device.py`, an H100's peak in
`tests/evidence/test_claims.py`.
"""

import re
from pathlib import Path

import lint
import pytest

FALSE = {
    "seven tensors are cast, not what layers hand on": r"every weight, bias and activation is cast",
    "a GPU call has begun; it has not finished": r"returns before the work has begun",
    "a roofline is a model, and no bound": r"no kernel, however clever"
    r"|No loop that moves every tensor can pass|times (?:as fast )?at best",
    "a ratio of stated peaks is no ceiling": r"the ceiling is 2",
    "an RTX 20 reaches 4": r"\b2 on a GeForce\b",
    "half the bytes alone are faster": r"Speed comes from hardware units, not from the bits"
    r"|faster only if the hardware has 16-bit units",
    "a CPU multiplies float8": r"no (?:general )?CPU (?:matrix )?product in (?:it|float8)",
    "that issue reports the opposite": r"issues/50036",
    "only the frozen parameters of LoRA": r"convert such a model with `\.to\(torch\.bfloat16\)`",
    "one sequence of 1024 tokens is 1024 rows": r"Then every weight that is read serves one token",
    "losses inside CUDA's autocast are not float32": r"exponentials, sums and losses in float32",
}


def words(path: Path) -> str:
    """The sources of a page's cells, lines joined."""
    return re.sub(r"\s+", " ", "\n".join(cell.source for cell in lint.read(path).cells))


@pytest.mark.parametrize("path", lint.pages(), ids=lambda path: path.stem)
def test_no_page_says_again_what_is_false(path: Path) -> None:
    text = words(path)
    assert {why for why, said in FALSE.items() if re.search(said, text)} == set()


def test_the_patterns_find_what_the_pages_said() -> None:
    said = (
        "every weight, bias and activation is cast first",
        "`model(x)` on a GPU returns before the work has begun",
        "Then no kernel, however clever, beats the roofline",
        "No loop that moves every tensor can pass these",
        'print(f"GPT-2 on an H100, at best: 1.26"), 1.26 times as fast at best',
        "runs in TF32, the ceiling is 2.",
        "2 over TF32, 2 on a GeForce.",
        "It is faster only if the hardware has 16-bit units and your matrices are large.",
        "torch has no general CPU matrix product in it",
        "(see pytorch#50036: https://github.com/pytorch/pytorch/issues/50036)",
        "convert such a model with `.to(torch.bfloat16)` once",
        "Then every weight that is read serves one token",
        "autocast on a GPU runs exponentials, sums and losses in float32",
    )
    found = {why for why, pattern in FALSE.items() for s in said if re.search(pattern, s)}
    assert found == set(FALSE)
