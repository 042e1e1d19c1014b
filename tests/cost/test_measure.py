"""`mpbook.cost.measure`: bytes counted by hand, and a clock that counts only what it should."""

import pytest
import torch
from torch import nn

from mpbook.cost import measure
from mpbook.cost.measure import (
    Memory,
    Spread,
    Stopwatch,
    count_bytes,
    saved_for_backward,
    state_tensors,
)


def test_bytes_count_each_storage_once():
    x = torch.zeros(10, dtype=torch.float32)
    assert count_bytes([x]) == 40
    assert count_bytes([x, x.view(2, 5), x[3:]]) == 40
    assert count_bytes([x, x.clone(), torch.zeros(3, dtype=torch.bfloat16)]) == 86
    assert count_bytes([torch.zeros(0), torch.zeros(0)]) == 0
    assert count_bytes([torch.zeros(5, device="meta")]) == 0  # takes no memory
    assert count_bytes([]) == 0


def test_state_tensors_finds_every_tensor_in_a_nest():
    a, b, c = torch.ones(1), torch.ones(2), torch.ones(3)
    nest = {"state": {0: {"m": a, "step": 3}}, "more": [b, (c, "x")], "none": None}
    assert [t.numel() for t in state_tensors(nest)] == [1, 2, 3]


def test_what_linear_and_relu_save_is_what_the_formula_says():
    batch, inputs, hidden, outputs = 32, 7, 11, 5
    model = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
    x = torch.randn(batch, inputs)
    with saved_for_backward(model) as saved:
        model(x).sum().backward()
    activations = batch * (inputs + hidden)  # each layer's input; ReLU saves its output, shared
    assert saved() == 4 * activations


def test_autocast_saves_16_bit_activations_and_casts_of_the_weights():
    batch, width = 32, 16
    model = nn.Sequential(nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False))
    x = torch.randn(batch, width)
    with saved_for_backward(model) as saved, torch.autocast("cpu", dtype=torch.bfloat16):
        model(x).sum().backward()
    inputs, second_weight = 2 * batch * width, width * width
    assert saved() == 2 * (inputs + second_weight)  # the input needs no gradient: first not kept


def test_buffers_are_the_models_own_as_weights_are():
    model = nn.Linear(6, 1, bias=False)
    model.register_buffer("mask", torch.ones(1, 6))
    with saved_for_backward(model) as saved:
        (model.weight * model.mask).sum().backward()
    assert saved() == 0


def test_a_view_that_is_saved_keeps_its_whole_storage():
    model, x = nn.Linear(6, 1, bias=False), torch.ones(50, 6)
    with saved_for_backward(model) as saved:
        (model.weight * x[:1]).sum().backward()
    assert saved() == 4 * 50 * 6


def test_memory_is_the_sum_of_its_parts():
    assert Memory(1, 20, 300, 4000, 50000).total == 54321


def test_the_stopwatch_adds_up_only_what_lies_between_start_and_stop(monkeypatch):
    clock = iter([10.0, 11.5, 100.0, 102.0])
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    watch = Stopwatch(torch.device("cpu"))
    watch.start()
    assert watch.stop() == 1.5
    watch.start()
    assert watch.stop() == 3.5


def test_the_stopwatch_waits_for_the_device_before_it_reads_the_clock(monkeypatch):
    events = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: events.append("wait"))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: events.append("read") or 0.0)
    for device in ("cuda", "cpu"):
        watch = Stopwatch(torch.device(device))
        watch.start()
        watch.stop()
    assert events == ["wait", "read", "wait", "read", "read", "read"]


def test_a_spread_is_the_middle_and_the_ends_of_its_readings():
    odd, even = Spread((2.0, 1.0, 9.0)), Spread((9.0, 1.0, 4.0, 2.0))
    assert (odd.low, odd.median, odd.high) == (1, 2, 9)
    assert (even.low, even.median, even.high) == (1, 3, 9)


def test_interleaving_takes_turns_and_drops_the_first_round():
    calls = []

    def reader(name, values):
        readings = iter(values)
        return lambda: calls.append(name) or next(readings)

    work = {"a": reader("a", [9.0, 1.0, 3.0, 2.0]), "b": reader("b", [9.0, 2.0, 3.0, 8.0])}
    spreads = measure.interleave(work, rounds=3)
    assert calls == ["a", "b"] * 4
    assert spreads["a"].readings == (1, 3, 2)
    assert (spreads["a"].low, spreads["a"].median, spreads["a"].high) == (1, 2, 3)
    relative = measure.ratios(spreads, to="a")
    assert relative["b"].readings == (2, 1, 4) and relative["a"].median == 1


@pytest.mark.parametrize(("work", "rounds"), [({}, 1), ({"a": lambda: 1.0}, 0)])
def test_nothing_to_interleave_is_refused(work, rounds):
    with pytest.raises(ValueError, match="at least 1 of 1"):
        measure.interleave(work, rounds=rounds)


# --- Calls, operations and peaks ----------------------------------------------------------------


def test_calls_are_warmed_up_counted_and_given_their_inputs_in_turn():
    seen = []
    spread = measure.time_calls(
        lambda x, y: seen.append((x, y)),
        [(1, 2), (3, 4), (5, 6)],
        device=torch.device("cpu"),
        readings=2,
        calls=2,
        warm_up=1,
    )
    assert seen == [(1, 2), (3, 4), (5, 6), (1, 2), (3, 4)]
    assert len(spread.readings) == 2


def test_a_reading_is_the_mean_of_its_calls(monkeypatch):
    clock = iter([10.0, 16.0, 20.0, 32.0])
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    spread = measure.time_calls(
        lambda: None, [()], device=torch.device("cpu"), readings=2, calls=3, warm_up=0
    )
    assert spread.readings == (2.0, 4.0)


@pytest.mark.parametrize("wrong", [{"inputs": []}, {"readings": 0}, {"calls": 0}, {"warm_up": -1}])
def test_nothing_to_time_is_an_error(wrong):
    options = {"inputs": [()], "device": torch.device("cpu"), **wrong}
    with pytest.raises(ValueError, match="expected at least 1 of each"):
        measure.time_calls(lambda: None, options.pop("inputs"), **options)


@pytest.mark.parametrize(
    ("readings", "wide"),
    [
        ((1.0,), False),
        ((1.0, 1.0, 1.0, 9.0), True),
        ((1.0, 1.0, 1.0, 1.0, 9.0), False),
        ((1.0, 1.05, 1.1, 1.15, 1.2), False),
        ((1.0, 1.1, 1.2, 1.3, 1.4), True),
    ],
)
def test_a_spread_is_wide_when_its_middle_half_is(readings, wide):
    assert Spread(readings).is_wide is wide


def test_a_product_counts_two_operations_for_each_multiplication():
    a, b = torch.randn(3, 5), torch.randn(5, 7)
    assert measure.count_flops(lambda: a @ b) == 2 * 3 * 5 * 7


def test_backward_counts_two_products_for_each_of_forward():
    layer, x = nn.Linear(5, 7), torch.randn(3, 5, requires_grad=True)
    assert measure.count_flops(lambda: layer(x).sum().backward()) == 3 * 2 * 3 * 5 * 7


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CPU keeps no count")
def test_the_peak_counts_what_came_and_went():
    device = torch.device("cuda")
    with measure.peak_memory(device) as peak:
        before = peak()
        x = torch.zeros(2**24, device=device)
        del x
        assert peak() - before == 2**26


def test_a_cpu_keeps_no_count_of_its_peak():
    with measure.peak_memory(torch.device("cpu")) as peak:
        assert peak() is None


def test_utilisation_is_a_share_of_the_peak():
    assert measure.utilisation(6e12, 2.0, 12e12) == 0.25
    with pytest.raises(ValueError, match="expected positive ones"):
        measure.utilisation(6e12, 0.0, 12e12)


def test_a_sparse_tensor_counts_by_its_parts():
    sparse = torch.eye(4).to_sparse()
    assert measure.count_bytes([sparse, sparse]) == 8 * 2 * 4 + 4 * 4


@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
def test_a_nested_tensor_counts_by_its_values_and_offsets():
    nested = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)], layout=torch.jagged)
    assert measure.count_bytes([nested, nested]) == 4 * 6 * 3 + 8 * 3


@pytest.mark.filterwarnings("ignore:Sparse CS")
@pytest.mark.parametrize("layout", [torch.sparse_csr, torch.sparse_csc])
def test_compressed_sparse_tensors_count_too(layout):
    sparse = torch.eye(4).to_sparse(layout=layout)
    assert measure.count_bytes([sparse]) >= 8 * 9 + 4 * 4
