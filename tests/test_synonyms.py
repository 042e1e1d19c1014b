"""What people type is answered with the name that would be right, wherever a name is asked for."""

from collections.abc import Callable
from typing import Any

import pytest

from mpbook import plots
from mpbook.cost.roofline import STATED, gpt_step
from mpbook.evidence import published
from mpbook.explorers.base import one_of
from mpbook.formats import as_format
from mpbook.formats.block_description import as_block_format
from mpbook.models import GPTConfig
from mpbook.synonyms import did_you_mean

ASKED: dict[str, Callable[[str], Any]] = {
    "as_format": as_format,
    "plots.line": plots.line,
    "one_of": one_of("format", ("float32", "float16", "bfloat16")),
    "gpt_step": lambda f: gpt_step(GPTConfig(), batch=1, format=f),
    "Roof.peak": next(iter(STATED.values())).peak,
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize(("typed", "meant"), [("fp16", "float16"), ("FP16", "float16")])
def test_fp16_gets_a_hint_as_bf16_does(ask, typed, meant):
    with pytest.raises(ValueError, match=f"did you mean '{meant}'"):
        ask(typed)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("bf16", "bfloat16"),
        ("half", "float16"),
        ("fp32", "float32"),
        ("tf32", "tfloat32"),
        ("fp8", "float8_e4m3fn"),
        ("float8_e4m3", "float8_e4m3fn"),
        ("e5m2", "float8_e5m2"),
        ("fp4", "float4_e2m1fn"),
        ("bfloat", "bfloat16"),
        ("flaot16", "float16"),
    ],
)
def test_formats_have_many_names(typed, meant):
    with pytest.raises(ValueError, match=f"did you mean '{meant}'"):
        as_format(typed)


def test_block_formats_too():
    with pytest.raises(ValueError, match="did you mean 'nvfp4'"):
        as_block_format("NVFP4")


def test_the_published_figures_too():
    with pytest.raises(ValueError, match="did you mean 'TF32'"):
        published.published(precision="tf32")


def test_what_is_near_nothing_gets_none():
    assert did_you_mean("elephant", ["float16"]) == ""
    assert did_you_mean("", ["float16"]) == ""
    assert did_you_mean("fp16", []) == ""
    assert did_you_mean("float8_e5m2", ["float32", "float16"]) == ""
