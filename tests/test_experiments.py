"""The parts that experiments share, each against a number that others found."""

import copy

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from mpbook.device import pick
from mpbook.experiments import EXPERIMENTS, base, gpt2_throughput, model_flops_per_token
from mpbook.measure import count_flops
from mpbook.models import GPT, GPT2_124M, GPTConfig
from mpbook.precision import PRECISIONS
from mpbook.runs import cross_entropy
from mpbook.training import training_step

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


@pytest.mark.parametrize("name", ["32-true", "bf16-mixed", "16-mixed", "bf16-true"])
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
    for key, ours in ends[0].items():
        torch.testing.assert_close(ours, ends[1][key], rtol=1e-2, atol=2e-3)


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
