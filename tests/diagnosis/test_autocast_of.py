"""CUDA's autocast on CPU tensors, against what this torch's dispatcher says of CUDA."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mpbook.autocast.operators import OPERATORS
from mpbook.autocast.policy import _input, _run, measure_policy
from mpbook.diagnosis.autocast_of import autocast_of, rules

CPU = torch.device("cpu")
FAMILIES = ("products", "convolutions", "elementwise", "reductions", "softmax and norms", "losses")


def test_dtypes_are_those_that_cuda_has() -> None:
    asked = [op for op in OPERATORS if op.family in FAMILIES]
    policy = measure_policy("cuda", torch.float16, tensors="fake", operators=asked)
    compared = 0
    for operator in asked:
        for inputs, dtype in (("float32", torch.float32), ("float16", torch.float16)):
            expected = policy.of(operator.name).on(inputs)
            tensors = [_input(s, dtype, CPU, fake=False) for s in operator.shapes]
            with torch.no_grad(), autocast_of("cuda", torch.float16, CPU):
                got = _run(operator.call, tensors)
            if expected.output and "not implemented for 'Half'" not in got.error:
                assert got.output == expected.output, (operator.name, inputs, got.error)
                compared += 1
    assert compared > 120


def test_the_refusal_of_binary_cross_entropy_is_cudas() -> None:
    half = torch.rand(4)
    with (
        autocast_of("cuda", torch.float16, CPU),
        pytest.raises(RuntimeError, match="unsafe to autocast"),
    ):
        nn.functional.binary_cross_entropy(half, half)


def test_a_weight_that_was_written_to_or_is_another_is_cast_again() -> None:
    x = torch.ones(1, 1)
    with autocast_of("cuda", torch.float16, CPU):
        for value in range(20):  # each at the address of the one before, if nobody kept that
            weight = nn.Parameter(torch.full((1, 1), float(value)))
            assert nn.functional.linear(x, weight).item() == value
            with torch.no_grad():
                weight += 1
            assert nn.functional.linear(x, weight).item() == value + 1
            del weight


def test_float64_stays_and_what_was_cast_under_no_grad_is_cast_again() -> None:
    x, weight = torch.ones(1, 1), nn.Parameter(torch.ones(1, 1))
    with autocast_of("cuda", torch.float16, CPU):
        assert nn.functional.linear(x.double(), weight.double()).dtype == torch.float64
        with torch.no_grad():
            nn.functional.linear(x, weight)
        nn.functional.linear(x, weight).sum().backward()
    assert weight.grad is not None


def test_what_a_recurrent_layer_switches_off_is_as_it_was() -> None:
    before = torch._C._get_mkldnn_enabled()
    for enabled in (True, False):
        torch._C._set_mkldnn_enabled(enabled)
        try:
            with autocast_of("cuda", torch.float16, CPU):
                nn.GRU(2, 2)(torch.ones(1, 2))
            assert torch._C._get_mkldnn_enabled() is enabled
        finally:
            torch._C._set_mkldnn_enabled(before)


def test_the_cpus_own_autocast_is_back_afterwards() -> None:
    x = torch.ones(4)

    def dtypes() -> list[torch.dtype]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return [f(x).dtype for f in (torch.exp, lambda t: t[None] @ t[:, None], torch.sum)]

    before = dtypes()

    def interrupted() -> None:
        with autocast_of("cuda", torch.float16, CPU):
            assert torch.exp(x.half()).dtype == torch.float32
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert dtypes() == before
    assert not torch.is_autocast_enabled("cpu")


def test_a_weight_is_cast_once_and_collects_its_gradients_in_the_copy() -> None:
    layer = nn.Linear(2, 2, bias=False)
    with autocast_of("cuda", torch.float16, CPU):
        first, second = layer(torch.ones(1, 2)), layer(torch.ones(1, 2))
    weight = [out.grad_fn.next_functions for out in (first, second)]  # type: ignore[union-attr]
    nodes = [{f for f, _ in functions if f is not None} for functions in weight]
    casts = [{g for f in found for g, _ in f.next_functions if g is not None} for found in nodes]
    assert casts[0] & casts[1] or nodes[0] & nodes[1]


def test_a_recurrent_layer_runs_in_16_bits_as_cudnns() -> None:
    x = torch.randn(2, 3, 4)
    for kind in (nn.LSTM, nn.GRU, nn.RNN):
        with autocast_of("cuda", torch.float16, CPU):
            assert kind(4, 4)(x)[0].dtype == torch.float16


def test_the_lists_are_this_torchs() -> None:
    found = rules()
    assert found["aten::linear"] == "lower precision"
    assert found["aten::exp"] == "float32"
    assert found["aten::addcmul"] == "widest input"
    assert found["aten::cross_entropy_loss"] is None  # a CPU's autocast alone has it


def test_an_inner_region_has_its_own_dtype_and_cudas_rules_without_an_outer_one_too() -> None:
    layer, x = nn.Linear(2, 2), torch.ones(1, 2)
    for dtype in (torch.float16, torch.float32):
        with autocast_of("cuda", dtype, CPU), torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
            assert torch.exp(layer(x)).dtype == torch.float32
