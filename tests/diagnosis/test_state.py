"""The ledger of writes that change nothing, against sums that can be done by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mpbook.diagnosis.operators_seen import Recorder
from mpbook.diagnosis.state import StateLedger, Write

HALF, BRAIN = torch.float16, torch.bfloat16


class Ones(nn.Module):
    """A weight of ones and an average of it."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8, dtype=dtype))
        self.register_buffer("average", torch.ones(8, dtype=dtype))


def ledger_of(model: nn.Module, function: object) -> dict[tuple[str, str], Write]:
    """What a function's writes come to."""
    ledger, recorder = StateLedger(), Recorder(model)
    recorder.watch_writes = ledger.watch
    ledger.begin(model, [])
    with torch.no_grad(), recorder:
        function(model)  # type: ignore[operator]
    ledger.end()
    return {(w.state, w.operator): w for w in ledger.by_state()}


def test_half_an_ulp_decides_in_each_format() -> None:
    # Above 1 bfloat16 has steps of 2**-7 and float16 of 2**-10: half of them is the border.
    for change, lost in ((2**-6, ()), (2**-9, (BRAIN,)), (2**-12, (BRAIN, HALF))):
        found = ledger_of(Ones(), lambda m, c=change: m.weight.add_(c))["weights", "add_"]
        assert found.changed == 8
        for dtype in (HALF, BRAIN):
            assert found.share(dtype) == float(dtype in lost)
            assert found.lost_share(dtype) == float(dtype in lost)


def test_kahan_summation_keeps_what_its_compensation_can_hold() -> None:
    kept = ledger_of(Ones(), lambda m: m.weight.add_(2**-12))["weights", "add_"]
    assert kept.lost_share(BRAIN) == 1 and kept.lost_share(BRAIN, kahan=True) == 0
    gone = ledger_of(Ones(), lambda m: m.weight.add_(2**-20))["weights", "add_"]
    assert gone.lost_share(BRAIN, kahan=True) == 1


@pytest.mark.parametrize(("dtype", "kept"), [(BRAIN, 2**-15), (HALF, 2**-21)])
def test_kahan_summation_keeps_as_many_bits_again_as_a_weight_has(
    dtype: torch.dtype, kept: float
) -> None:
    for change, lost in ((kept, 0), (kept / 4, 1)):
        found = ledger_of(Ones(), lambda m, c=change: m.weight.add_(c))["weights", "add_"]
        assert found.lost_share(dtype) == 1 and found.lost_share(dtype, kahan=True) == lost


def test_a_change_is_added_to_the_rounded_weight() -> None:
    model = Ones()
    model.weight.data += 2**-9  # rounds to 1 in bfloat16, and so does what is added
    found = ledger_of(model, lambda m: m.weight.add_(0.9 * 2**-8))["weights", "add_"]
    assert found.share(BRAIN) == 1


def test_a_decay_that_rounds_to_one_is_swallowed() -> None:
    found = ledger_of(Ones(), lambda m: m.weight.mul_(1 - 1e-4))["weights", "mul_"]
    assert found.share(BRAIN) == 1 and found.share(HALF) == 1


def test_an_average_in_a_buffer_is_a_state_too() -> None:
    found = ledger_of(Ones(), lambda m: m.average.lerp_(torch.zeros(8), 1e-3))
    assert found["buffers", "lerp_"].share(BRAIN) == 1


def test_a_buffer_that_a_kernel_writes_by_the_way_is_compared_at_the_end_of_the_step() -> None:
    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4, momentum=1e-4)

    model = Norm()
    model.norm.running_var.fill_(4.0)  # type: ignore[union-attr, operator]
    found = ledger_of(model, lambda m: m.norm(torch.randn(16, 4)))
    assert any(w.state == "buffers" and w.share(BRAIN) > 0.4 for w in found.values())


def test_a_buffer_that_is_replaced_is_compared_by_its_name() -> None:
    def replace(model: nn.Module) -> None:
        model.average = model.average * 0.999  # type: ignore[operator]

    assert ledger_of(Ones(), replace)["buffers", "a step"].share(BRAIN) == 1


def test_a_buffer_of_another_dtype_is_another_state() -> None:
    def replace(model: nn.Module) -> None:
        model.average = model.average.half() * 0.5  # type: ignore[operator]

    assert ledger_of(Ones(), replace) == {}


def test_a_buffer_that_was_watched_is_not_compared_once_more() -> None:
    assert set(ledger_of(Ones(), lambda m: m.average.mul_(0.5))) == {("buffers", "mul_")}


def test_frozen_weights_have_a_name_of_their_own() -> None:
    model = Ones()
    model.weight.requires_grad_(False)
    assert set(ledger_of(model, lambda m: m.weight.mul_(0.5))) == {
        ("weights without a gradient", "mul_")
    }


def test_copies_from_elsewhere_are_no_updates() -> None:
    values = [torch.zeros(8)]
    assert ledger_of(Ones(), lambda m: m.weight.copy_(values[0])) == {}
    assert ledger_of(Ones(), lambda m: torch._foreach_copy_([m.weight], values)) == {}


def test_the_count_of_steps_is_no_state_that_rounds() -> None:
    model, ledger = Ones(), StateLedger()
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    recorder = Recorder(model)
    recorder.watch_writes = ledger.watch
    for _ in range(2):
        model.weight.grad = torch.ones(8)
        ledger.begin(model, [optimizer])
        with recorder:
            optimizer.step()
        ledger.end()
    assert {write.state for write in ledger.by_state()} == {"weights", "exp_avg", "exp_avg_sq"}


def test_what_is_in_16_bits_itself_is_compared_with_float32() -> None:
    found = ledger_of(Ones(BRAIN), lambda m: m.weight.add_(2**-9))["weights", "add_"]
    assert found.really_swallowed == 8 and found.changed == 8
    moved = ledger_of(Ones(BRAIN), lambda m: m.weight.add_(2**-6))["weights", "add_"]
    assert moved.really_swallowed == 0 and moved.changed == 8
    some = torch.tensor([2**-9] + [0.0] * 7).to(BRAIN)
    partly = ledger_of(Ones(BRAIN), lambda m: m.weight.add_(some))["weights", "add_"]
    assert partly.really_swallowed == 1 and partly.changed == 1


def test_a_list_of_several_dtypes_is_written_once() -> None:
    model = Ones(BRAIN)
    model.average = model.average.float()  # type: ignore[operator]
    found = ledger_of(model, lambda m: torch._foreach_add_([m.weight, m.average], 2**-9))
    assert found["weights", "add_"].really_swallowed == 8
    assert model.average.tolist() == [1 + 2**-9] * 8  # type: ignore[operator, union-attr]


def test_lists_of_tensors_count_as_their_tensors() -> None:
    found = ledger_of(Ones(), lambda m: torch._foreach_add_([m.weight, m.average], 2**-9))
    assert {state for state, _ in found} == {"weights", "buffers"}


def test_an_operator_of_lists_is_named_as_that_of_tensors() -> None:
    found = ledger_of(Ones(), lambda m: torch._foreach_mul_([m.weight, m.average], 1 - 2**-12))
    assert set(found) == {("weights", "mul_"), ("buffers", "mul_")}


def test_other_tensors_are_nobodys_state() -> None:
    def write(_: nn.Module) -> Tensor:
        return torch.ones(8).add_(1e-9)

    assert ledger_of(Ones(), write) == {}
