"""The table of optimizers: each entry against the optimizer that it builds, and Muon with AdamW."""

import copy
import importlib.util
import io

import pytest
import torch
from torch import nn

from mpbook.master_weights import KahanSummation, MasterWeights
from mpbook.models import CNN, GPT, MLP, GPTConfig
from mpbook.optimizers import (
    BUILT_BY_TORCH,
    OPTIMIZERS,
    Hyperparameters,
    MuonWithAdamW,
    build,
    hidden_matrices,
    named,
)
from mpbook.watch import updates_lost

SMALL = GPTConfig(vocabulary=32, context=8, layers=2, heads=2, width=16)


def gpt(dtype=torch.float32):
    torch.manual_seed(0)
    return GPT(SMALL).to(dtype)


def give_gradients(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        gradient = torch.randn(parameter.shape, generator=generator)
        parameter.grad = gradient.to(parameter.dtype)


def steps(model, optimizer, count, first=0):
    for step in range(first, first + count):
        give_gradients(model, seed=step)
        optimizer.step()


def same(left, right):
    pairs = zip(left.parameters(), right.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


# --- the table --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILT_BY_TORCH)
def test_an_entry_says_what_its_optimizer_keeps_for_each_parameter(name):
    model = gpt()
    optimizer = build(name, model)
    steps(model, optimizer, 1)
    hidden = hidden_matrices(model)
    for parameter_name, parameter in model.named_parameters():
        rule = named(name).rule_for(hidden=parameter_name in hidden)
        tensors = [t for t in optimizer.state[parameter].values() if isinstance(t, torch.Tensor)]
        if rule.keeps == "factors" and parameter.dim() > 1:
            rows, columns = parameter.shape
            assert sorted(t.numel() for t in tensors) == sorted([rows, columns, 1])
            continue
        alike = [t for t in tensors if t.shape == parameter.shape]
        assert len(alike) == rule.state_tensors
        counters = [(t.dtype, t.dim()) for t in tensors if t.shape != parameter.shape]
        assert counters == [(torch.float32, 0)] * rule.counts_steps


def test_what_another_library_builds_says_so():
    if importlib.util.find_spec("bitsandbytes"):
        pytest.skip("bitsandbytes is installed")
    assert set(OPTIMIZERS) - set(BUILT_BY_TORCH) == {"adamw-8bit"}
    with pytest.raises(RuntimeError, match="needs bitsandbytes, which is not installed"):
        build("adamw-8bit", gpt())


@pytest.mark.parametrize("name", BUILT_BY_TORCH)
def test_an_optimizer_of_the_table_lowers_a_loss(name):
    model = gpt()
    tokens = torch.arange(64).view(8, 8) % 32
    optimizer = build(name, model, Hyperparameters(learning_rate=1e-2))
    losses = []
    for _ in range(20):
        logits = model(tokens)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.02


@pytest.mark.parametrize("name", BUILT_BY_TORCH)
def test_an_optimizer_holds_each_trainable_parameter_once_and_no_other(name):
    model = gpt()
    model.final_norm.requires_grad_(False)
    held = [p for group in build(name, model).param_groups for p in group["params"]]
    expected = [p for p in model.parameters() if p.requires_grad]
    assert len(held) == len(expected) and set(held) == set(expected)


@pytest.mark.parametrize("name", BUILT_BY_TORCH)
def test_an_optimizer_gets_its_hyperparameters(name):
    chosen = Hyperparameters(learning_rate=0.3, weight_decay=0.2, betas=(0.5, 0.6), momentum=0.7)
    for group in build(name, gpt(), chosen).param_groups:
        assert (group["lr"], group["weight_decay"]) == (0.3, 0.2)
        assert group.get("betas", (0.5, 0.6)) == (0.5, 0.6)
        assert group.get("momentum", 0.7) == 0.7
        assert "betas" in group or "momentum" in group or name == "adafactor"


@pytest.mark.parametrize(("name", "momentum"), [("sgd", 0.0), ("momentum", 0.9), ("muon", 0.95)])
def test_momentum_has_a_default_for_each_optimizer(name, momentum):
    assert build(name, gpt()).param_groups[0]["momentum"] == momentum


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match='optimizer="lion": expected one of adamw, adam, mom'):
        build("lion", gpt())


# --- hidden matrices --------------------------------------------------------------------------


def test_the_hidden_matrices_of_a_gpt_are_those_of_its_blocks():
    found = list(hidden_matrices(gpt()))
    parts = ("attention.query_key_value", "attention.project", "expand", "contract")
    assert found == [f"blocks.{block}.{part}.weight" for block in range(2) for part in parts]


def test_an_output_of_its_own_is_no_hidden_matrix():
    model = gpt()
    tied = list(hidden_matrices(model))
    model.head.weight = nn.Parameter(torch.zeros(32, 16))
    assert list(hidden_matrices(model)) == tied


def test_without_an_embedding_the_first_matrix_is_the_input():
    assert list(hidden_matrices(MLP(4, 5, 6, 7, 3))) == ["2.weight", "4.weight"]
    assert hidden_matrices(MLP(4, 5, 3)) == hidden_matrices(CNN()) == {}


def test_with_an_embedding_a_matrix_that_is_registered_first_is_hidden():
    parts = {"first": nn.Linear(4, 4), "table": nn.Embedding(5, 4), "last": nn.Linear(4, 5)}
    assert list(hidden_matrices(nn.ModuleDict(parts))) == ["first.weight"]


def test_a_momentum_of_zero_is_none_by_default():
    built = build("momentum", MLP(4, 5, 3), Hyperparameters(momentum=0.0))
    assert built.param_groups[0]["momentum"] == 0.0


def test_a_frozen_matrix_is_not_handed_out():
    model = MLP(4, 5, 6, 7, 3)
    model[2].requires_grad_(False)
    assert list(hidden_matrices(model)) == ["4.weight"]


# --- Muon with AdamW --------------------------------------------------------------------------


def test_muon_with_adamw_is_the_two_of_torch_bit_for_bit():
    ours, theirs = gpt(), gpt()
    chosen = Hyperparameters(learning_rate=0.01, weight_decay=0.1, momentum=0.8)
    hidden = hidden_matrices(theirs)
    rest = [p for name, p in theirs.named_parameters() if name not in hidden]
    options = dict(lr=0.01, weight_decay=0.1)
    muon = torch.optim.Muon(
        hidden.values(), momentum=0.8, adjust_lr_fn="match_rms_adamw", **options
    )
    adamw = torch.optim.AdamW(rest, betas=(0.9, 0.95), **options)
    optimizer = build("muon", ours, chosen)
    for seed in range(3):
        for model in (ours, theirs):
            give_gradients(model, seed)
        optimizer.step()
        muon.step()
        adamw.step()
    assert same(ours, theirs) and not same(ours, gpt())


@pytest.mark.parametrize("wrapper", [MasterWeights, KahanSummation])
def test_muon_is_saved_and_loaded_bare_and_wrapped(wrapper):
    for wrap, dtype in ((lambda optimizer: optimizer, torch.float32), (wrapper, torch.bfloat16)):
        whole, half, resumed = gpt(dtype), gpt(dtype), gpt(dtype)
        steps(whole, wrap(build("muon", whole)), 6)
        first = wrap(build("muon", half))
        steps(half, first, 3)
        saved = io.BytesIO()
        torch.save([half.state_dict(), first.state_dict()], saved)
        saved.seek(0)
        weights, state = torch.load(saved, weights_only=True)
        resumed.load_state_dict(weights)
        second = wrap(build("muon", resumed))
        second.load_state_dict(state)
        steps(resumed, second, 3, first=3)
        assert same(whole, resumed)


def test_muon_can_be_copied():
    model = gpt()
    optimizer = build("muon", model)
    steps(model, optimizer, 2)
    other, another = copy.deepcopy((model, optimizer))
    for pair in ((model, optimizer), (other, another)):
        steps(*pair, 2, first=2)
    assert same(model, other)


def test_muons_rate_follows_a_scheduler():
    model = gpt()
    optimizer = build("muon", model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    before = [p.clone() for p in model.parameters()]
    steps(model, optimizer, 2)
    schedule.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_muon_takes_a_closure_and_returns_its_loss():
    model = gpt()
    tokens = torch.arange(8)[None]

    def closure():
        optimizer.zero_grad()
        loss = model(tokens).logsumexp(-1).mean()
        loss.backward()
        return loss

    optimizer = build("muon", model)
    assert optimizer.step(closure).item() > optimizer.step(closure).item()


def test_a_group_may_be_added_to_muon_with_the_defaults_of_its_kind():
    optimizer = MuonWithAdamW([nn.Parameter(torch.ones(2, 2))])
    weight = nn.Parameter(torch.ones(2))
    optimizer.add_param_group({"params": [weight], "use_muon": False, "lr": 0.5})
    weight.grad = torch.ones(2)
    optimizer.step()
    assert weight.tolist() == pytest.approx([0.495, 0.495])  # weight decay 0.01, then the rate
    with pytest.raises(ValueError, match='no "use_muon", expected True or False'):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    with pytest.raises(ValueError, match="2D"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "use_muon": True})


def test_lost_updates_of_muon_are_counted_and_do_not_change_it():
    watched, alone = gpt(torch.bfloat16), gpt(torch.bfloat16)
    optimizers = [build("muon", model) for model in (watched, alone)]
    with updates_lost(watched, optimizers[0]) as lost:
        steps(watched, optimizers[0], 2)
    steps(alone, optimizers[1], 2)
    assert same(watched, alone) and 0 < lost.fraction < 1


def test_a_model_without_hidden_matrices_is_no_case_for_muon():
    with pytest.raises(ValueError, match=r'MLP has no trainable matrix between .* use "adamw"'):
        build("muon", MLP(4, 5, 3))


def test_a_torch_without_muon_is_named(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(RuntimeError, match=r"has no torch.optim.Muon; it came with 2\.9"):
        build("muon", gpt())
