"""The parts that experiments share, each against a number that others found."""

import copy
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from fake_cuda import operators_under_autocast
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mpbook.cost.measure import count_flops
from mpbook.device import pick
from mpbook.evidence.experiments import (
    EXPERIMENTS,
    base,
    bf16_pairs,
    gpt2_throughput,
    loss_scales,
    lost_weight_updates,
    model_flops_per_token,
)
from mpbook.many_gpus import cannot_launch
from mpbook.models import GPT, GPT2_124M, GPTConfig, parameter_count
from mpbook.precision import PRECISIONS
from mpbook.training import training_step
from mpbook.training.run import Run
from mpbook.training.settings import cross_entropy

CPU = torch.device("cpu")
SMALL = GPTConfig(vocabulary=300, context=16, layers=2, width=32)


def test_gpt2_takes_what_nanogpt_counts():
    # nanoGPT's estimate_mfu: 6 N + 12 L H Q T with N = 123,653,376 without the positions
    assert model_flops_per_token(GPT2_124M) == 6 * 123_653_376 + 12 * 12 * 12 * 64 * 1024


def test_the_formula_is_what_torch_counts():
    tokens = torch.randint(300, (4, 16))
    model = GPT(SMALL)
    with sdpa_kernel(SDPBackend.MATH):  # as products, which torch counts on every device
        counted = count_flops(lambda: cross_entropy(model(tokens), tokens).backward())
    vectors = sum(p.numel() for p in model.parameters() if p.dim() == 1)  # in no product
    assert counted == (model_flops_per_token(SMALL) - 6 * vectors) * tokens.numel()


def test_batches_are_successors_of_random_tokens_and_differ():
    batches = base.random_batches(SMALL, 3, CPU, sets=2)
    for inputs, targets in batches:
        assert inputs.shape == targets.shape == (3, 16)
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        assert int(inputs.max()) < 300
    assert not torch.equal(batches[0][0], batches[1][0])


@pytest.mark.parametrize("name", ["32-true", "bf16-mixed", "16-mixed"])
def test_the_plain_loop_makes_the_same_step_as_the_books(name):
    device = pick()
    options = {"compile": False, "fused": False}
    batch = base.random_batches(SMALL, 3, device, sets=1)[0]
    ends = []
    for plain in (False, True):
        torch.manual_seed(0)
        with base.gpt_trainer(SMALL, PRECISIONS[name], device, **options) as trainer:
            step = gpt2_throughput.plain_step(trainer) if plain else None
            for _ in range(3):
                step(*batch) if step else training_step(trainer, *batch)
            ends.append(copy.deepcopy(trainer.model.state_dict()))
    for key, ours in ends[0].items():  # within a part in a thousand of three steps of AdamW
        torch.testing.assert_close(ours, ends[1][key], rtol=0, atol=1e-3 * 3 * 3e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_plain_loss_is_float32_under_cudas_autocast_and_cross_entropy_alone_is_not(dtype):
    def work(device, loss):
        tokens = torch.zeros(2, 8, dtype=torch.int64, device=device)
        table = torch.empty(30, 4, device=device)
        return loss(
            lambda tokens: nn.functional.embedding(tokens, table) @ table.t(), tokens, tokens
        )

    def alone(model, inputs, targets):
        return nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())

    ours, plain = (
        operators_under_autocast(lambda device, loss=loss: work(device, loss), dtype)
        for loss in (gpt2_throughput.plain_loss, alone)
    )
    softmax = "aten._log_softmax.default"
    assert ours[0] == plain[0] == torch.float32  # both losses say float32
    assert (ours[1][softmax], plain[1][softmax]) == (torch.float32, dtype)


def test_products_are_named_by_their_format():
    formats = {name: gpt2_throughput.products_in(p) for name, p in PRECISIONS.items()}
    assert formats == {
        "32-true": "float32",
        "tf32": "tfloat32",
        "16-mixed": "float16",
        "bf16-mixed": "bfloat16",
        "16-true": "float16",
        "bf16-true": "bfloat16",
    }


def test_each_rung_of_the_ladder_keeps_those_before_it():
    experiment = EXPERIMENTS["optimisation_ladder"]
    gpu = torch.device("cuda")
    cases = experiment.cases(experiment.config(gpu), gpu)
    assert [c["precision"] for c in cases] == ["32-true", "tf32", *["bf16-mixed"] * 5]
    assert [c["compile"] for c in cases] == [False] * 3 + [True] * 4
    assert [c["fused"] for c in cases] == [False] * 4 + [True] * 3
    assert [c["padded"] for c in cases] == [False] * 5 + [True] * 2
    assert [c["doubled"] for c in cases] == [False] * 6 + [True]


# --- What each experiment measures, at a size that can be checked by hand ------------------------


def measured(name, changes=None, **case):
    """The results of the first case with these values, at a CPU's scale."""
    experiment = EXPERIMENTS[name]
    config = replace(experiment.config(CPU), **(changes or {}))
    cases = experiment.cases(config, CPU)
    chosen = next(c for c in cases if case.items() <= c.items())
    return experiment.measure(config, chosen, CPU)


def test_a_product_is_counted_as_two_operations_a_multiplication():
    results = measured("matmul_ladder", {"shapes": ((16, 32, 48),)}, format="bfloat16")
    assert results["flops"] == 2 * 16 * 32 * 48
    assert len(results["seconds"]) == 5
    assert results["stated_peak"] is None


@pytest.mark.parametrize(
    ("capability", "shapes"), [((7, 5), set()), ((8, 9), {(32, 16, 48)}), (None, {(32, 16, 48)})]
)
def test_float8_has_cases_only_where_its_kernels_take_them(capability, shapes, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    experiment, gpu = EXPERIMENTS["matmul_ladder"], torch.device("cuda")
    config = replace(experiment.config(CPU), shapes=((32, 16, 48), (33, 16, 48), (32, 24, 48)))
    cases = experiment.cases(config, gpu)
    found = {(c["m"], c["k"], c["n"]) for c in cases if c["format"] == "float8_e4m3fn"}
    assert found == shapes
    assert sum(c["format"] == "float16" for c in cases) == 3


def test_the_peak_of_a_step_leaves_out_what_came_before(monkeypatch):
    """The first calls compile, and the compiler's trials take memory that no later step takes."""
    calls, before = [], []

    @contextmanager
    def peak_memory(device):
        before.append(len(calls))
        yield lambda: 7

    monkeypatch.setattr(base, "peak_memory", peak_memory)
    results = base.timed_steps(lambda *_: calls.append(1), SMALL, 1, CPU, readings=3)
    assert results["peak_memory"] == 7
    assert before == [5] and len(calls) == 8


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("float16", 2)])
def test_elementwise_work_reads_and_writes_each_number_once(dtype, size):
    results = measured("bandwidth", {"elements": 2**16}, dtype=dtype, operation="gelu")
    assert results["bytes"] == 2 * 2**16 * size


@pytest.mark.parametrize(
    ("precision", "weight", "state"), [("32-true", 4, 4), ("bf16-mixed", 4, 4), ("bf16-true", 2, 2)]
)
def test_memory_is_that_of_weights_gradients_and_two_moments(precision, weight, state):
    small = EXPERIMENTS["gpt2_memory"].config(CPU).model
    model = GPT(small)
    count, tensors = parameter_count(model), len(list(model.parameters()))
    memory = measured("gpt2_memory", precision=precision, batch=1)["memory"]
    assert memory["parameters"] == memory["gradients"] == weight * count
    assert memory["optimizer_state"] == 2 * state * count + 4 * tensors  # and a step count each
    assert memory["saved_for_backward"] > 0


def test_two_sequences_keep_more_for_backward_than_one():
    one, two = (measured("gpt2_memory", batch=b)["memory"]["saved_for_backward"] for b in (1, 2))
    assert one < two < 2.1 * one


@pytest.mark.parametrize("mode", ["eager", "plain, eager"])
def test_throughput_counts_the_tokens_of_a_batch(mode):
    results = measured("gpt2_throughput", mode=mode)
    config = EXPERIMENTS["gpt2_throughput"].config(CPU)
    assert results["tokens"] == config.batch * config.model.context == 64
    assert results["flops_per_token"] == model_flops_per_token(config.model)
    assert len(results["seconds"]) == config.readings


def test_the_last_rung_has_twice_the_tokens():
    rungs = {"rungs": ("twice the batch",)}
    experiment = EXPERIMENTS["optimisation_ladder"]
    config = replace(experiment.config(CPU), **rungs)
    case = experiment.cases(config, CPU)[0] | {"compile": False, "fused": False}
    assert experiment.measure(config, case, CPU)["tokens"] == 2 * config.batch * 32


def test_the_trainer_clips_and_may_use_any_kernel():
    options = {"compile": False, "fused": False}
    with base.gpt_trainer(SMALL, PRECISIONS["32-true"], CPU, **options) as trainer:
        assert trainer.settings.clip_norm == 1.0
        assert not trainer.settings.deterministic


@pytest.mark.parametrize(
    ("scale", "expected"), [("none", None), ("dynamic", "dynamic"), ("2^-4", 0.0625), ("2^3", 8.0)]
)
def test_a_scale_is_the_power_of_two_that_it_says(scale, expected):
    assert loss_scales._precision(scale).loss_scale == expected


def test_too_large_a_scale_skips_every_step():
    results = measured("loss_scales", {"exponents": (60,)}, scale="2^60")
    assert results["skipped_steps"] == [0, 1, 2, 3, 4]
    assert measured("loss_scales", {"exponents": (4,)}, scale="2^4")["skipped_steps"] == []


def test_the_census_counts_every_kind_of_tensor():
    census = measured("loss_scales", kind="census")
    assert {"weights", "activations", "weight_gradients"} <= {k.replace(" ", "_") for k in census}


@pytest.mark.parametrize("weights", ["plain", "master_weights", "kahan_summation"])
def test_weights_are_updated_as_the_case_says(weights):
    precision = lost_weight_updates._precision(weights)
    assert precision.weight_update == weights
    assert precision.parameter_dtype == torch.bfloat16


def test_plain_16_bit_weights_lose_updates_and_float32_does_not():
    rates = {"learning_rates": (1e-5,)}
    plain, full = (
        measured("lost_weight_updates", rates, weights=w)["updates_lost"][-1][1]
        for w in ("plain", "32-true")
    )
    assert plain > 0.5 > 0.1 > full


def test_the_learning_rate_is_that_of_the_case():
    rates = {"learning_rates": (1e-4, 1e-2)}
    slow, fast = (
        measured("lost_weight_updates", rates, learning_rate=rate, weights="32-true")["losses"][-1]
        for rate in rates["learning_rates"]
    )
    assert fast < slow - 0.1


def test_the_control_starts_one_ulp_away(monkeypatch):
    """How far that moves the losses, if at all, is for the machine's kernels to say."""
    starts = []

    def remember(config, model, precision, **settings):
        starts.append((precision, nn.utils.parameters_to_vector(model.parameters()).detach()))
        return Run(PRECISIONS[precision], {}, losses=[1.0])

    monkeypatch.setattr(bf16_pairs.Config, "train", remember)
    pair = {"precisions": ("32-true", "1-ulp nudge")}
    for name in pair["precisions"]:
        measured("bf16_pairs", pair, precision=name)
    (full, before), (again, after) = starts
    assert full == again == "32-true"
    (place,) = (before != after).nonzero().flatten().tolist()
    assert after[place] == before[place].nextafter(2 * before[place])


@pytest.mark.parametrize(("gpus", "runs"), [(0, False), (1, False), (2, True), (8, True)])
def test_several_gpus_are_measured_only_where_there_are_several(gpus, runs, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("MPBOOK_SIZES", raising=False)
    experiment, gpu = EXPERIMENTS["many_gpus"], torch.device("cuda")
    reason = experiment.cannot(gpu)
    assert (reason is None) == (runs and cannot_launch() is None)
    cases = experiment.cases(experiment.config(gpu), gpu)
    assert max(case["ranks"] for case in cases) == max(2, gpus)
    if not runs:
        assert reason == f"it needs two GPUs or more, and torch sees {gpus}"


def test_two_ranks_reduce_every_dtype_and_step_under_every_policy(recorded_here):
    experiment = EXPERIMENTS["many_gpus"]
    if reason := experiment.cannot(CPU):
        pytest.skip(reason)
    config = experiment.config(CPU)
    ((case, results),) = recorded_here("many_gpus").measured()
    assert case == {"ranks": 2}
    sizes = {"float32": 4, "bfloat16": 2, "float16": 2}
    assert [(row["dtype"], row["bytes"]) for row in results["all_reduce"]] == [
        (name, size * count) for name, size in sizes.items() for count in config.elements
    ]
    assert [row["policy"] for row in results["fsdp2_step"]] == list(config.policies)
    for row in results["fsdp2_step"]:
        assert row["tokens"] == 2 * config.batch * config.model.context
    for row in (*results["all_reduce"], *results["fsdp2_step"]):
        assert len(row["seconds"]) == config.readings and min(row["seconds"]) > 0
