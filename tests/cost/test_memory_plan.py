"""`mpbook.cost.memory_plan`: bytes of a formula against bytes counted in real training steps."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from visits import needs_compiler

from mpbook.cost.activation_checkpointing import checkpoint_blocks
from mpbook.cost.at_peak import MemoryPlan
from mpbook.cost.device_room import DEVICE_GIB
from mpbook.cost.live_memory import LiveMemory
from mpbook.cost.measure import Memory, count_bytes, saved_for_backward, state_tensors
from mpbook.cost.memory_figure import draw
from mpbook.cost.memory_plan import (
    GPT2_SIZES,
    largest_batch,
    plan_memory,
)
from mpbook.cost.saved_tensors import (
    SavedTensor,
    block_tensors,
    hidden_matrix_shapes,
    parameter_shapes,
    saved_tensors,
)
from mpbook.data import ByteCorpus
from mpbook.device import compiled, native_16_bit
from mpbook.device_facts import memory_sizes
from mpbook.models import GPT, GPT2_124M, GPTConfig, parameter_count
from mpbook.optimizers import BUILT_BY_TORCH, Hyperparameters, build, hidden_matrices
from mpbook.precision import CURES, PRECISIONS, Precision, autocast
from mpbook.training import train
from mpbook.training.settings import cross_entropy

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
SHAPES = (
    # Head widths that are multiples of 8: flash attention pads the others.
    GPTConfig(vocabulary=101, context=16, layers=2, heads=3, width=24),
    GPTConfig(vocabulary=300, context=9, layers=1, heads=4, width=32, bias=False),
    GPTConfig(vocabulary=2080, context=32, layers=3, heads=1, width=32),
)
BF16 = dict(parameter_dtype=torch.bfloat16, compute_dtype=torch.bfloat16)
CURED = tuple(
    Precision(name, weight_update=name, **BF16)  # type: ignore[arg-type]
    for name in CURES
)
WAYS = (*PRECISIONS.values(), *CURED)
SMALL = dict(batch_size=3, precision="bf16-mixed")


def corpus(config: GPTConfig) -> ByteCorpus:
    text = torch.randint(0, 100, (4000,), generator=torch.Generator().manual_seed(0))
    return ByteCorpus(text, config.context, name="random")


def counted(config: GPTConfig, precision: Precision, device: str, **options: Any) -> Memory:
    """What `train` counts; enough steps that one is not skipped."""
    torch.manual_seed(0)
    options = dict(batch_size=3, learning_rate=1e-4, progress=False) | options
    model, data = GPT(config), corpus(config)
    return train(model, data, precision=precision, steps=6, device=device, **options).memory  # type: ignore[arg-type]


def tolerance(device: str) -> float:
    return 0 if device == "cpu" else 0.02  # CUDA's attention pads, and saves a generator's state


# --- The formula against real steps ------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", WAYS, ids=lambda precision: precision.name)
@pytest.mark.parametrize("config", SHAPES, ids=lambda config: f"width{config.width}")
@pytest.mark.filterwarnings("ignore:.*a CPU has no TF32")
def test_every_category_is_what_training_counts(
    config: GPTConfig, precision: Precision, device: str
) -> None:
    if precision.compute_dtype == torch.bfloat16 != native_16_bit(device):
        pytest.skip("without units for bfloat16 there is no fused attention in it")
    plan = plan_memory(config, batch_size=3, precision=precision, device=device)  # type: ignore[arg-type]
    found = counted(config, precision, device)
    assert vars(plan.memory) == pytest.approx(vars(found), rel=tolerance(device), abs=0)


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("name", ["32-true", "16-mixed", "bf16-mixed", "bf16-true"])
def test_every_category_is_what_training_with_accumulation_counts(name: str, parts: int) -> None:
    precision, options = PRECISIONS[name], dict(accumulation_steps=parts, device="cpu")
    plan = plan_memory(SHAPES[0], batch_size=3, precision=precision, **options)  # type: ignore[arg-type]
    assert vars(plan.memory) == vars(counted(SHAPES[0], precision, **options))  # type: ignore[arg-type]


def test_eight_bits_and_their_scales_by_hand() -> None:
    """Blocks of 256 with a float32 scale each, and float32 for what is small: bitsandbytes."""
    config = GPTConfig(vocabulary=1000, context=16, layers=1, heads=2, width=64)
    state = 0
    for shape in parameter_shapes(config):
        count = math.prod(shape)
        state += 2 * (4 * count if count < 4096 else count + 4 * -(-count // 256))
    for precision in ("32-true", "bf16-mixed"):
        plan = plan_memory(config, batch_size=1, precision=precision, optimizer="adamw-8bit")
        assert plan.optimizer_state == state
    large = plan_memory(GPT2_124M, batch_size=1, precision="bf16-mixed", optimizer="adamw-8bit")
    assert large.optimizer_state / large.parameter_count == pytest.approx(2 + 8 / 256, rel=0.01)


def test_what_adafactor_allocates_for_a_step() -> None:
    model = GPT(SHAPES[0])
    made = build("adafactor", model)
    model(torch.zeros(1, 4, dtype=torch.int64)).sum().backward()
    made.step()
    with LiveMemory() as live:
        made.step()
    plan = plan_memory(SHAPES[0], batch_size=3, precision="32-true", optimizer="adafactor")
    widest = max(math.prod(shape) for shape in parameter_shapes(SHAPES[0]))
    assert plan.update_temporaries == 2 * 4 * SHAPES[0].vocabulary * SHAPES[0].width
    rows_and_columns = SHAPES[0].vocabulary + SHAPES[0].width
    assert 4 * widest <= live.peak <= 4 * (widest + 6 * rows_and_columns)


@pytest.mark.parametrize("optimizer", BUILT_BY_TORCH)
@pytest.mark.parametrize("name", ["32-true", "bf16-true"])
def test_the_state_of_every_optimizer(name: str, optimizer: str) -> None:
    dtype = PRECISIONS[name].parameter_dtype
    model = GPT(SHAPES[0]).to(dtype)
    made = build(optimizer, model, Hyperparameters(learning_rate=1e-4))
    model(torch.zeros(1, 4, dtype=torch.int64)).float().sum().backward()
    made.step()
    plan = plan_memory(SHAPES[0], batch_size=3, precision=name, optimizer=optimizer)
    assert plan.optimizer_state == count_bytes(state_tensors(dict(made.state)))


@pytest.mark.parametrize("name", ["32-true", "bf16-true"])
@pytest.mark.parametrize("config", SHAPES, ids=lambda config: f"width{config.width}")
def test_what_muon_allocates_for_a_step(config: GPTConfig, name: str) -> None:
    model = GPT(config).to(PRECISIONS[name].parameter_dtype)
    made = build("muon", model, Hyperparameters(learning_rate=1e-4))
    for _ in range(2):  # the first makes the state
        model(torch.zeros(1, 4, dtype=torch.int64)).float().sum().backward()
        with LiveMemory() as live:
            made.step()
    itemsize = PRECISIONS[name].parameter_dtype.itemsize
    options = dict(batch_size=1, precision=name, update_loop="for-loop")
    adam = plan_memory(config, optimizer="adamw", **options)  # type: ignore[arg-type]
    muon = plan_memory(config, optimizer="muon", **options)  # type: ignore[arg-type]
    of_the_rest = 2 * itemsize * config.vocabulary * config.width
    assert adam.update_temporaries >= of_the_rest
    expected = max(live.peak, of_the_rest)
    assert muon.update_temporaries == pytest.approx(expected, rel=0.02)
    assert muon.optimizer_state < adam.optimizer_state


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("time", [1, 7, 16])
def test_batch_and_sequence_length(batch: int, time: int) -> None:
    config, precision = SHAPES[0], PRECISIONS["bf16-mixed"]
    plan = plan_memory(config, batch_size=batch, sequence_length=time, precision=precision)
    found, _ = one_step(config, precision, batch=batch, time=time)
    assert plan.memory.saved_for_backward == found


@pytest.mark.parametrize("name", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("config", SHAPES, ids=lambda config: f"width{config.width}")
def test_checkpointing_saves_the_inputs_of_blocks(config: GPTConfig, name: str) -> None:
    plan = plan_memory(config, batch_size=3, precision=name, checkpointing=True)
    found, _ = one_step(config, PRECISIONS[name], checkpointing=True)
    assert plan.memory.saved_for_backward == found


def one_step(
    config: GPTConfig,
    precision: Precision,
    *,
    batch: int = 3,
    time: int | None = None,
    checkpointing: bool = False,
    **options: Any,
) -> tuple[int, LiveMemory]:
    """Bytes saved in the first step, and the second step as it was watched."""
    torch.manual_seed(0)
    model = GPT(config).to(precision.parameter_dtype)
    model = checkpoint_blocks(model) if checkpointing else model  # type: ignore[assignment]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, **options)
    x, y = torch.randint(0, config.vocabulary, (2, batch, time or config.context))

    def step() -> None:
        optimizer.zero_grad()
        with autocast(precision, x.device):
            logits = model(x)
        loss = cross_entropy(logits.float(), y)
        del logits
        loss.backward()
        optimizer.step()

    with saved_for_backward(model) as saved:
        step()
    optimizer.zero_grad()
    with LiveMemory() as live:
        step()
    return saved(), live


PEAKS = [(1, "foreach"), (8, "foreach"), (1, "for-loop"), (1, "fused")]
LOOPS: dict[str, dict[str, Any]] = {
    "for-loop": dict(foreach=False),
    "foreach": dict(foreach=True),
    "fused": dict(fused=True),
}


@pytest.mark.parametrize(("batch", "loop"), PEAKS)
@pytest.mark.parametrize("name", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("config", SHAPES, ids=lambda config: f"width{config.width}")
def test_the_peak_is_the_one_that_is_watched(
    config: GPTConfig, name: str, batch: int, loop: Any
) -> None:
    plan = plan_memory(config, batch_size=batch, precision=name, update_loop=loop)
    _, live = one_step(config, PRECISIONS[name], batch=batch, **LOOPS[loop])
    assert live.peak == pytest.approx(plan.peak - plan.kept, rel=0.015)


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("name", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("config", SHAPES, ids=lambda config: f"width{config.width}")
def test_the_peak_with_checkpointing(config: GPTConfig, name: str, batch: int) -> None:
    plan = plan_memory(config, batch_size=batch, precision=name, checkpointing=True)
    _, live = one_step(config, PRECISIONS[name], batch=batch, checkpointing=True, foreach=True)
    assert live.peak == pytest.approx(plan.peak - plan.kept, rel=0.07)


def test_a_cure_allocates_float32_copies_in_the_update() -> None:
    plans = {p.name: plan_memory(SHAPES[0], batch_size=1, precision=p) for p in WAYS}
    count = plans["bf16-true"].parameter_count
    beyond = {
        name: plans[name].update_temporaries - 4 * count  # Adam's denominators
        for name in CURES
    }
    assert beyond == {
        "master_weights": 4 * count,
        "kahan_summation": 8 * count,
        "stochastic_rounding": 8 * count,
    }


# --- Accumulation: several micro-batches a step ------------------------------------------------


@dataclasses.dataclass
class Accumulated:
    """One accumulated step, as it was counted; a list has one entry a micro-batch."""

    saved: list[int]
    held: list[int]
    at_loss: list[int]
    peak: int


def accumulated_step(config: GPTConfig, precision: Precision, *, batch: int) -> Accumulated:
    """The second step of three micro-batches, with the gradients counted as each one begins."""
    torch.manual_seed(0)
    model = GPT(config).to(precision.parameter_dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=True)

    def drawn() -> list[tuple[torch.Tensor, torch.Tensor]]:
        x, y = torch.randint(0, config.vocabulary, (2, 3 * batch, config.context))
        return list(zip(x.chunk(3), y.chunk(3), strict=True))

    def loss_of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with autocast(precision, x.device):
            logits = model(x)
        return cross_entropy(logits.float(), y) / 3

    saved, held = [], []
    for x, y in drawn():  # the first step makes the state, and counts what each part saves
        with saved_for_backward(model) as count:
            loss_of(x, y).backward()
        saved.append(count())
    optimizer.step()
    optimizer.zero_grad()
    del x, y
    with LiveMemory() as live:
        for x, y in drawn():
            held.append(count_bytes(p.grad for p in model.parameters() if p.grad is not None))
            loss_of(x, y).backward()
        optimizer.step()
    at_loss = [
        live.timeline[i] for i, name in enumerate(live.operations) if "log_softmax_backward" in name
    ]
    return Accumulated(saved, held, at_loss, live.peak)


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("name", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("config", SHAPES, ids=lambda config: f"width{config.width}")
def test_an_accumulated_step_holds_what_is_planned(
    config: GPTConfig, name: str, batch: int
) -> None:
    options = dict(batch_size=batch, precision=name)
    plan = plan_memory(config, accumulation_steps=3, **options)  # type: ignore[arg-type]
    found = accumulated_step(config, PRECISIONS[name], batch=batch)
    assert set(found.saved) == {plan.memory.saved_for_backward}
    assert found.held == [0, plan.held_gradients, plan.held_gradients]
    first, *later = found.at_loss
    assert [peak - first for peak in later] == [plan.held_gradients] * 2
    assert found.peak == pytest.approx(plan.peak - plan.kept, rel=0.015)


def test_accumulation_adds_the_gradients_to_every_moment() -> None:
    one, several, many = (plan(accumulation_steps=n) for n in (1, 2, 9))
    assert one == plan() and several.held_gradients == many.held_gradients
    tokens = 2 * 8 * 3 * 16
    assert one.held_gradients == 0 and several.held_gradients == several.gradients
    for moment in ("peak_at_loss", "peak_at_block"):
        assert getattr(several, moment) == getattr(one, moment) + one.gradients + tokens
    saved = one.memory.saved_for_backward + tokens
    assert several.memory == dataclasses.replace(one.memory, saved_for_backward=saved)
    assert several.at_peak["gradients"] == several.gradients
    assert one.peak == one.peak_at_loss and one.at_peak["gradients"] == 0


def test_four_micro_batches_hold_less_than_one_batch_of_four_times_the_size() -> None:
    whole = plan_memory(GPT2_124M, batch_size=16, precision="bf16-mixed")
    parts = plan_memory(GPT2_124M, batch_size=4, accumulation_steps=4, precision="bf16-mixed")
    assert parts.peak < 0.45 * whole.peak


def test_the_matrix_that_is_shared_has_three_gradients_when_one_is_there_already() -> None:
    shared = 4 * 101 * 24
    for steps, times in ((1, 2), (2, 3)):
        found = plan(accumulation_steps=steps, update_loop="fused", optimizer="sgd")
        assert found.update_temporaries == times * shared


# --- Parameters --------------------------------------------------------------------------------


@pytest.mark.parametrize("config", SHAPES, ids=lambda config: f"width{config.width}")
def test_parameter_shapes_are_the_models(config: GPTConfig) -> None:
    shapes = sorted(tuple(p.shape) for p in GPT(config).parameters())
    assert sorted(parameter_shapes(config)) == shapes
    hidden = [tuple(p.shape) for p in hidden_matrices(GPT(config)).values()]
    assert sorted(hidden_matrix_shapes(config)) == sorted(hidden)


def test_the_sizes_of_gpt2_are_what_their_names_say() -> None:
    assert GPT2_SIZES["GPT-2 124M"] == GPT2_124M
    millions = {
        name: round(sum(map(math.prod, parameter_shapes(config))) / 1e6)
        for name, config in GPT2_SIZES.items()
    }
    assert millions == {
        "GPT-2 124M": 124, "GPT-2 355M": 355, "GPT-2 774M": 774, "GPT-2 1.5B": 1558
    }  # fmt: skip
    with torch.device("meta"):
        assert parameter_count(GPT(GPT2_124M)) == 124_439_808


# --- What is saved -----------------------------------------------------------------------------


def test_a_block_saves_64_or_36_or_32_bytes_a_token_and_width() -> None:
    width = SHAPES[0].width
    for name, expected in (("32-true", 64), ("bf16-mixed", 36), ("bf16-true", 32)):
        saved = block_tensors(SHAPES[0], (3, 16), PRECISIONS[name], torch.float32)
        wide = [t for t in saved if not t.is_weight_cast and t.shape[-1] % width == 0]
        assert sum(t.bytes for t in wide) == 3 * 16 * width * expected


def test_statistics_are_float32_on_cuda() -> None:
    options = dict(batch_size=2, sequence_length=4, precision=PRECISIONS["bf16-true"])
    here, there = (
        [t for t in saved_tensors(SHAPES[0], device=d, **options) if "statistics" in t.name]  # type: ignore[arg-type]
        for d in ("cpu", "cuda")
    )
    assert {t.dtype for t in here} == {torch.bfloat16}
    assert {t.dtype for t in there} == {torch.float32}
    assert sum(t.bytes for t in there) == 2 * sum(t.bytes for t in here)


def test_only_mixed_precision_casts_weights() -> None:
    shapes = [s for s in parameter_shapes(SHAPES[1]) if len(s) == 2 and s[0] != SHAPES[1].context]
    matrices = sum(map(math.prod, shapes))
    plans = {name: plan_memory(SHAPES[1], batch_size=3, precision=name) for name in PRECISIONS}
    casts = {name: plan.weight_casts for name, plan in plans.items()}
    mixed = {"16-mixed": 2 * matrices, "bf16-mixed": 2 * matrices}
    assert casts == dict.fromkeys(PRECISIONS, 0) | mixed


def test_bytes_of_a_saved_tensor() -> None:
    assert SavedTensor("x", (2, 3), torch.bfloat16, copies=5).bytes == 60
    assert SavedTensor("x", (), torch.float32).bytes == 4


def test_attention_is_planned_as_fused() -> None:
    def saved(backend: SDPBackend) -> int:
        q, k, v = torch.randn(3, 1, 2, 64, 16, requires_grad=True)
        module = torch.nn.Module()
        with saved_for_backward(module) as count, sdpa_kernel(backend):
            torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return count()

    block = block_tensors(
        GPTConfig(width=32, heads=2), (1, 64), PRECISIONS["32-true"], torch.float32
    )
    names = ("query, key and value", "logsumexp of attention", "mixed values")
    planned = sum(t.bytes for t in block if t.name in names)
    assert saved(SDPBackend.FLASH_ATTENTION) == planned
    assert saved(SDPBackend.MATH) > planned + 2 * 4 * 64 * 64


# --- The plan ----------------------------------------------------------------------------------


def plan(**options: Any) -> MemoryPlan:
    return plan_memory(SHAPES[0], **(SMALL | options))  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", [1, 50])
@pytest.mark.parametrize("precision", WAYS, ids=lambda precision: precision.name)
def test_the_categories_at_the_peak_sum_up_to_it(precision: Precision, batch: int) -> None:
    found = plan(precision=precision, batch_size=batch)
    assert sum(found.at_peak.values()) == found.peak
    assert min(found.at_peak.values()) >= 0
    assert found.peak == max(found.peak_at_loss, found.peak_at_block, found.peak_at_update)


def test_the_moment_decides_which_categories_there_are() -> None:
    few = plan_memory(GPT2_124M, batch_size=1, sequence_length=8, precision="32-true")
    many = plan_memory(GPT2_124M, batch_size=8, precision="32-true")
    assert few.peak == few.peak_at_update
    assert few.at_peak["gradients"] == few.gradients and "activations" not in few.at_peak
    assert few.at_peak["update, for a moment"] == few.update_temporaries
    assert many.peak == many.peak_at_loss
    assert many.at_peak["activations"] == many.activations and not many.at_peak["gradients"]
    assert many.at_peak["backward, for a moment"] == many.loss_temporaries


def test_parts_of_the_peak() -> None:
    found = plan()
    assert found.kept == found.parameters + found.master_copies + found.optimizer_state
    assert found.peak_at_loss == found.kept + found.memory.saved_for_backward + 8 * 3 * 16 * 101
    assert found.peak_at_update == found.kept + found.gradients + found.update_temporaries


def test_update_temporaries() -> None:
    count, largest = plan().parameter_count, 101 * 24
    shared = 2 * 4 * largest
    loops = {loop: plan(update_loop=loop).update_temporaries for loop in LOOPS}
    assert loops == {"foreach": 4 * count, "for-loop": shared, "fused": shared}
    assert plan(optimizer="sgd").update_temporaries == shared
    deep = dataclasses.replace(SHAPES[0], heads=2, width=64)
    wide = plan_memory(deep, update_loop="for-loop", **SMALL)  # type: ignore[arg-type]
    assert wide.update_temporaries == 2 * 4 * 4 * 64 * 64  # of the largest matrix


def test_the_default_sequence_is_the_context() -> None:
    assert plan() == plan(sequence_length=16)
    assert plan() != plan(sequence_length=15)


def test_fits_on_leaves_a_reserve() -> None:
    found = plan_memory(GPT2_124M, batch_size=13, precision="bf16-mixed")
    gib = found.peak / 2**30
    assert found.fits_on() == {name: gib <= 0.9 * size for name, size in DEVICE_GIB.items()}
    assert 0.9 * DEVICE_GIB["T4"] < gib <= DEVICE_GIB["T4"]
    assert not found.fits_on()["T4"] and found.fits_on(reserve=0.0)["T4"]


def test_the_devices_are_those_of_the_table_of_gpus() -> None:
    assert memory_sizes() == DEVICE_GIB and next(iter(DEVICE_GIB)) == "RTX 3070"


@pytest.mark.parametrize("reserve", [-0.1, 1.0])
def test_a_reserve_that_is_no_share_is_refused(reserve: float) -> None:
    with pytest.raises(ValueError, match="reserve="):
        plan().fits_on(reserve=reserve)


@pytest.mark.parametrize(
    ("options", "right"),
    [
        (dict(batch_size=0), "batch_size=0: expected at least 1"),
        (dict(sequence_length=17), "sequence_length=17: expected 1 to the context, 16"),
        (dict(sequence_length=0), "sequence_length=0"),
        (dict(accumulation_steps=0), "accumulation_steps=0: expected at least 1"),
        (dict(optimizer="lion"), "adamw, adam, momentum, sgd"),
        (dict(update_loop="loop"), '"for-loop", "foreach" or "fused"'),
        (dict(precision="bf16"), "ambiguous"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], right: str) -> None:
    with pytest.raises(ValueError, match=right):
        plan(**options)


def test_the_largest_batch_fits_and_one_more_does_not() -> None:
    for budget in (1e6, 3.3e6, 1e7):
        best = largest_batch(budget, SHAPES[0], precision="32-true")
        peaks = [plan(precision="32-true", batch_size=b).peak for b in (best, best + 1)]
        assert peaks[0] <= budget < peaks[1]
    exact = plan(precision="32-true", batch_size=6).peak
    assert largest_batch(exact, SHAPES[0], precision="32-true") == 6
    assert largest_batch(exact - 1, SHAPES[0], precision="32-true") == 5
    assert largest_batch(1000, SHAPES[0], precision="32-true") == 0


def test_the_table_gives_megabytes_and_bytes_a_parameter() -> None:
    found = plan_memory(GPT2_124M, batch_size=8, precision="bf16-mixed")
    rows = {row[0]: list(row[1:]) for row in found.table().rows}
    assert rows["parameters"] == [497.8, 4.0]
    assert rows["optimizer state"] == [995.5, 8.0]
    assert rows["together"][0] == round(found.peak / 1e6, 1)
    assert "master copies" not in rows
    assert "weight casts" in repr(found) and "weight casts" in found._repr_html_()


def test_bars_are_as_long_as_the_peaks() -> None:
    plans = {"one": plan(), "two": plan(precision="32-true", batch_size=9)}
    axes = draw(plans).axes[0]
    ends = [0.0, 0.0]
    for bar in axes.patches:
        (left, bottom), (right, top) = (
            bar.get_extents().transformed(axes.transData.inverted()).get_points()
        )
        assert left <= right
        row = round((bottom + top) / 2)
        ends[row] = max(ends[row], right)
    assert ends == pytest.approx([p.peak / 1e6 for p in plans.values()])
    with pytest.raises(ValueError, match="at least one"):
        draw({})


# --- What the plan does not have: other loops, other losses -------------------------------------

LOGITS = GPTConfig(vocabulary=4096, context=16, layers=1, heads=2, width=32)
"""Nearly all of whose memory is the logits."""


def logits_at_peak(precision: str, loop: str) -> float:
    """The peak of a step of an ordinary loop, in float32 tensors as large as the logits."""
    chosen = PRECISIONS[precision]
    torch.manual_seed(0)
    model = GPT(LOGITS).to(chosen.parameter_dtype)
    tokens = torch.zeros(64, 16, dtype=torch.int64)
    with LiveMemory() as live:
        with autocast(chosen, torch.device("cpu")):
            logits = model(tokens)
        wide = logits if loop == "16-bit loss" else logits.float()
        if loop == "planned":
            del logits
        loss = cross_entropy(wide, tokens)
        del wide
        loss.backward()
    return live.peak / (4 * tokens.numel() * LOGITS.vocabulary)


@pytest.mark.parametrize(
    ("precision", "loop", "expected"),
    [
        ("32-true", "planned", 3.0),
        ("bf16-mixed", "planned", 3.0),
        ("bf16-true", "planned", 3.0),
        ("32-true", "ordinary", 4.0),
        ("bf16-mixed", "ordinary", 3.5),
        ("bf16-true", "ordinary", 3.5),
        ("bf16-true", "16-bit loss", 2.0),
    ],
)
def test_a_variable_that_keeps_the_logits_keeps_their_bytes(
    precision: str, loop: str, expected: float
) -> None:
    assert logits_at_peak(precision, loop) == pytest.approx(expected, abs=0.2)


def test_cudas_autocast_keeps_more_for_a_loss_in_16_bits_than_for_one_in_float32() -> None:
    """The operators of `cross_entropy` under CUDA's autocast, one by one, on a CPU."""
    tokens, kept = torch.zeros(64, dtype=torch.int64), {}
    for narrow in (True, False):
        logits = torch.zeros(64, 512, dtype=torch.bfloat16, requires_grad=True)
        with saved_for_backward(torch.nn.Module()) as count:
            if narrow:  # what test_experiments.py sees CUDA's autocast do
                log_probabilities = torch.log_softmax(logits, -1).float()
            else:
                log_probabilities = torch.log_softmax(logits.float(), -1)
            torch.nn.functional.nll_loss(log_probabilities, tokens)
        kept[narrow] = count() / logits.numel()
    assert kept[True] == pytest.approx(6, abs=0.1) and kept[False] == pytest.approx(4, abs=0.1)


@needs_compiler
@pytest.mark.parametrize("mixed", [False, True])
def test_compiled_with_its_loss_a_model_has_one_tensor_of_logits(mixed: bool) -> None:
    """Three in eager mode; the code of Inductor allocates one, in 16 bits under autocast."""
    from torch._inductor.utils import run_and_get_code

    hidden, weight = torch.ones(48, 8, requires_grad=True), torch.ones(160, 8, requires_grad=True)

    def loss_of(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            logits = torch.nn.functional.linear(hidden, weight)
        return cross_entropy(logits.float(), torch.zeros(48, dtype=torch.int64))

    step = compiled(loss_of)
    _, sources = run_and_get_code(lambda: step(hidden, weight).backward())
    found = re.findall(r"empty_strided_cpu\(\(48, 160\), \(160, 1\), (\S+)\)", "".join(sources))
    assert found == ["torch.bfloat16" if mixed else "torch.float32"]


@pytest.mark.skipif(
    not hasattr(torch.nn.functional, "linear_cross_entropy"), reason="this torch has none"
)
@pytest.mark.parametrize("chunked", [False, True])
def test_linear_cross_entropy_keeps_no_logits_only_if_it_is_given_options(chunked: bool) -> None:
    functional: Any = torch.nn.functional
    options = torch.nn.LinearCrossEntropyOptions() if chunked else None  # type: ignore[attr-defined]
    hidden, weight = (torch.randn(n, 32, requires_grad=True) for n in (1024, 4096))
    with LiveMemory() as live:
        targets = torch.zeros(1024, dtype=torch.int64)
        functional.linear_cross_entropy(hidden, weight, targets, options=options).backward()
    units = live.peak / (4 * 1024 * 4096)
    assert units < 0.5 if chunked else 2.8 < units < 3.3


def test_state_tensors_of_a_plan_are_those_of_torch() -> None:
    model = GPT(SHAPES[0])
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros(1, 4, dtype=torch.int64)).sum().backward()
    optimizer.step()
    assert plan().optimizer_state == count_bytes(state_tensors(dict(optimizer.state)))
