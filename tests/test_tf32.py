"""The TF32 switches: off or on inside, and as they were afterwards, whatever they were."""

import functools
import json
import subprocess
import sys

import pytest
import torch

from mpbook.tf32 import allowed

STATES = {
    "untouched": "",
    "high": 'torch.set_float32_matmul_precision("high")',
    "medium": 'torch.set_float32_matmul_precision("medium")',
    "old products on": "b.cuda.matmul.allow_tf32 = True",
    "old products off": "b.cuda.matmul.allow_tf32 = False",
    "old cudnn off": "b.cudnn.allow_tf32 = False",
    "old cudnn on": "b.cudnn.allow_tf32 = True",
    "new products tf32": 'b.cuda.matmul.fp32_precision = "tf32"',
    "new products ieee": 'b.cuda.matmul.fp32_precision = "ieee"',
    "new products none": 'b.cuda.matmul.fp32_precision = "none"',
    "new top tf32": 'b.fp32_precision = "tf32"',
    "new top ieee": 'b.fp32_precision = "ieee"',
    "new top bf16": 'b.fp32_precision = "bf16"',
    "new cuda tf32": 'b.cudnn.fp32_precision = "tf32"',
    "new cuda ieee": 'b.cudnn.fp32_precision = "ieee"',
    "new conv ieee": 'b.cudnn.conv.fp32_precision = "ieee"',
    "new conv none": 'b.cudnn.conv.fp32_precision = "none"',
    "new rnn ieee": 'b.cudnn.rnn.fp32_precision = "ieee"',
    "new conv and rnn": 'b.cudnn.conv.fp32_precision = b.cudnn.rnn.fp32_precision = "ieee"',
    "new mkldnn": 'b.mkldnn.fp32_precision = "bf16"',
    "new mkldnn alone": 'b.mkldnn.set_flags(_fp32_precision="tf32")',
    "new mkldnn products": 'b.mkldnn.matmul.fp32_precision = "bf16"',
    "new mkldnn conv": 'b.mkldnn.conv.fp32_precision = "bf16"',
    "old, then new": 'torch.set_float32_matmul_precision("high");'
    'b.cuda.matmul.fp32_precision = "ieee"',
    "new, then old": 'b.cuda.matmul.fp32_precision = "tf32";'
    'torch.set_float32_matmul_precision("medium"); b.cudnn.allow_tf32 = False',
    "top, then none": 'b.fp32_precision = "tf32"; b.cudnn.conv.fp32_precision = "none"',
    "old cudnn off, new on": 'b.cudnn.allow_tf32 = False;'
    'b.cudnn.conv.fp32_precision = b.cudnn.rnn.fp32_precision = "tf32"',
}  # fmt: skip

# What can be read, and what can be read once the levels above change: a word that was "none"
# follows them and one that was "ieee" does not.
STATE = '''
import torch
b = torch.backends
READS = (
    torch.get_float32_matmul_precision, lambda: b.cuda.matmul.allow_tf32,
    lambda: b.cudnn.allow_tf32, lambda: b.fp32_precision, lambda: b.cudnn.fp32_precision,
    lambda: b.cuda.matmul.fp32_precision, lambda: b.cudnn.conv.fp32_precision,
    lambda: b.cudnn.rnn.fp32_precision, lambda: b.mkldnn.fp32_precision,
    lambda: b.mkldnn.matmul.fp32_precision, lambda: b.mkldnn.conv.fp32_precision,
    lambda: b.mkldnn.rnn.fp32_precision,
)
def read():
    found = []
    for one in READS:
        try:
            found.append(one())
        except RuntimeError:
            found.append("raises")
    return found
def set_cuda(word): b.cudnn.fp32_precision = word
def set_cpu(word): b.mkldnn.set_flags(_fp32_precision=word)
def set_top(word): b.fp32_precision = word
def state():
    found = [read()]
    for setter in (set_top, set_cuda, set_cpu):
        for word in ("ieee", "tf32", "none"):
            setter(word)
            found.append(read())
    return found
'''  # fmt: skip


ON = """
from mpbook.tf32 import float32_products
with float32_products(tf32=True):
    pass
"""

CONTEXTS = """
from mpbook.tf32 import allowed, float32_products
for on in (True, False):
    with float32_products(tf32=on):
        inside = read()
        assert "raises" not in inside, inside
        assert allowed() == (on, on) == (b.cuda.matmul.allow_tf32, b.cudnn.allow_tf32)
        assert b.cudnn.rnn.fp32_precision == "tf32" or not on
        assert {b.mkldnn.matmul.fp32_precision, b.mkldnn.conv.fp32_precision,
                b.mkldnn.rnn.fp32_precision} <= {"ieee", "none"}
        with float32_products(tf32=not on):
            assert allowed() == (not on, not on)
        assert read() == inside
    assert read() == before, (read(), before)
    try:
        with float32_products(tf32=on):
            raise KeyError
    except KeyError:
        pass
    assert read() == before
"""


FORKS = """
import json, os, sys
import mpbook.tf32
for name, code in json.loads(sys.argv[1]).items():
    if not os.fork():  # switches that cannot be set back are a process's own
        names = {}
        try:
            exec(code, names)
            found = names["state"]()
        except BaseException as error:
            found = repr(error)
        print(json.dumps([name, found]), flush=True)
        os._exit(0)
    os.wait()
"""


def _first_words_written(setting):
    """From torch 2.13 on cuDNN's first words cannot be written back, only what they amount to."""
    code = ""
    for part in ("conv", "rnn"):
        if f"cudnn.{part}" not in setting and "cudnn.allow" not in setting:
            word = f"b.cudnn.{part}.fp32_precision"
            code += f'{word} = "tf32" if {word} == "tf32" else "none"\n'
    return code


@functools.cache
def found():
    """By name, what the switches are like at the end of each piece of code."""
    codes = {"on": f"{STATE}{ON}", "first": STATE}
    for name, setting in STATES.items():
        codes[f"{name}: alone"] = f"{STATE}\n{setting}\n{_first_words_written(setting)}"
        codes[f"{name}: with"] = f"{STATE}\n{setting}\nbefore = read()\n{CONTEXTS}"
    arguments = [sys.executable, "-c", FORKS, json.dumps(codes)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(map(json.loads, done.stdout.splitlines()))


@pytest.mark.parametrize("name", STATES)
def test_the_switches_are_as_they_were_in_every_state_that_they_can_be_in(name):
    assert found()[f"{name}: with"] == found()[f"{name}: alone"]
    assert isinstance(found()[f"{name}: alone"], list)


def test_a_context_with_tf32_leaves_cudnns_first_words_alone():
    assert found()["on"] == found()["first"]


def test_the_states_differ_and_some_of_them_raise():
    first = {name: str(found()[f"{name}: alone"]) for name in STATES}
    assert len(set(first.values())) > 15
    assert sum("raises" in state for state in first.values()) > 10


def test_what_is_allowed_can_be_read_when_the_old_fields_raise():
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        assert allowed() == (True, torch.backends.cudnn.conv.fp32_precision == "tf32")
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
