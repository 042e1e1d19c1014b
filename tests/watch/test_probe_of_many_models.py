"""`Probe` on models as others write them: what it must see, pass by, or refuse in words."""

import dataclasses
import math
from collections import UserDict
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from watched_models import backward, batch, small_mlp, step, together

from mpbook.watch.histograms import log2_histogram
from mpbook.watch.probe import Probe


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


# --- What modules put out -----------------------------------------------------------------------


@dataclasses.dataclass
class Output:
    """As the models of many libraries return."""

    loss: torch.Tensor
    logits: torch.Tensor
    hidden: list
    nothing: None = None


class Named(NamedTuple):
    loss: torch.Tensor
    logits: torch.Tensor
    hidden: list


class Puts(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.linear, self.kind = nn.Linear(6, 3), kind

    def forward(self, x):
        y = self.linear(x)
        return self.kind(loss=y.square().mean(), logits=y, hidden=[2 * y])


@pytest.mark.parametrize("kind", [Output, Named, dict, UserDict])
def test_outputs_with_names_are_seen(kind):
    model, x = Puts(kind), batch()
    with Probe(model, modules=lambda name, _: name == "(model)") as probe:
        output = model(x)
        (output["loss"] if kind in (dict, UserDict) else output.loss).backward()
    y = model.linear(x)
    assert probe.histogram("activations") == together((y.square().mean(), y, 2 * y))
    assert probe.histogram("activation_gradients").total == 16


def test_float8_and_complex_outputs():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.low = nn.Identity()
            self.spectrum = nn.Identity()
            self.linear = nn.Linear(6, 3)

        def forward(self, x):
            self.low(x.to(torch.float8_e4m3fn))
            return self.linear(self.spectrum(torch.complex(x, x)).real)

    model, x = Model(), batch()
    with Probe(model) as probe:
        backward(model, x)
    assert probe.layers("activations") == ["low", "linear"]
    rounded = x.to(torch.float8_e4m3fn).float()
    assert probe.histogram("activations", "low") == log2_histogram(rounded)


@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_count_without_padding(layout):
    parts = [batch(0)[:2], batch(1)[:3]]
    model, nest = nn.Linear(6, 3), torch.nested.nested_tensor(parts, layout=layout)
    with Probe(model) as probe:
        nest = model(nest)
        torch.nested.to_padded_tensor(nest, 0.0).square().sum().backward()
    outputs = [model(part) for part in parts]
    assert probe.histogram("activations").total == sum(y.numel() for y in outputs)
    assert probe.histogram("activation_gradients").total == sum(y.numel() for y in outputs)


# --- Which modules ------------------------------------------------------------------------------


def test_a_parametrized_module_is_one_module_and_its_weight_no_activation():
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(6, 4)),
        nn.Tanh(),
        parametrizations.spectral_norm(nn.Linear(4, 3, bias=False)),
    )
    x = batch()
    with Probe(model, sgd(model)) as probe:
        step(model, probe.optimizer, x)
    assert probe.layers("activations") == probe.layers("activation_gradients") == ["0", "1", "2"]
    assert probe.histogram("activations").total == 5 * (4 + 4 + 3)
    assert probe.layers("weights") == [name for name, _ in model.named_parameters()]
    assert all(parametrize.is_parametrized(model[i]) for i in (0, 2))


def test_an_attention_layer_whose_own_parts_are_never_called_is_seen():
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    x = torch.randn(2, 4, 8)
    with Probe(model) as probe:
        backward(model, x)
    attended, _ = model.self_attn(x, x, x, need_weights=False)
    assert "self_attn" in probe.layers("activations")
    assert probe.histogram("activations", "self_attn").total == attended.numel()
    assert "self_attn.out_proj" not in probe.layers("activations")


class LoRA(nn.Module):
    """An adapter with weights of its own around a frozen layer."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(2, base.in_features) / 8)
        self.up = nn.Parameter(torch.zeros(base.out_features, 2))

    def forward(self, x):
        return self.base(x) + x @ self.down.T @ self.up.T


def test_an_adapter_is_seen_beside_the_frozen_layer():
    torch.manual_seed(0)
    model = nn.Sequential(LoRA(nn.Linear(6, 4)), nn.ReLU(), nn.Linear(4, 3))
    optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    with Probe(model, optimizer) as probe:
        step(model, optimizer, batch())
    assert probe.layers("activations") == ["0", "0.base", "1", "2"]
    assert probe.layers("updates") == ["0.down", "0.up", "2.weight", "2.bias"]
    assert "0.base.weight" in probe.layers("weights")


# --- Which weights ------------------------------------------------------------------------------


def test_weights_that_are_unfrozen_are_seen_from_then_on():
    model = small_mlp()
    model[0].requires_grad_(False)
    with Probe(model, kinds=["weight_gradients"]) as probe:
        backward(model, batch())
        assert "0.weight" not in probe.layers("weight_gradients")
        model[0].requires_grad_(True)
        backward(model, batch())
        backward(model, batch())
    assert probe.histogram("weight_gradients", "0.weight").total == 2 * 48
    assert probe.histogram("weight_gradients", "2.weight").total == 3 * 64
    assert not model[0].weight._backward_hooks


def test_complex_weights_are_passed_by_and_do_not_stop_the_others():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.filter = nn.Parameter(torch.ones(6, 3, dtype=torch.complex64))
            self.linear = nn.Linear(3, 2)

        def forward(self, x):
            return self.linear((x.to(torch.complex64) @ self.filter).abs())

    model = Model()
    optimizer = torch.optim.Adam(model.parameters())
    with Probe(model, optimizer) as probe:
        step(model, optimizer, batch())
    assert probe.layers("weights") == probe.layers("updates") == ["linear.weight", "linear.bias"]


@pytest.mark.parametrize("make", [torch.optim.SparseAdam, torch.optim.SGD])
def test_a_sparse_gradient_counts_with_its_zeros(make):
    model = nn.Embedding(10, 4, sparse=True)
    optimizer = make(model.parameters(), lr=0.1)
    with Probe(model, optimizer) as probe:
        step(model, optimizer, torch.tensor([1, 1, 3]))
    for kind in ("weights", "weight_gradients", "updates"):
        assert probe.histogram(kind).total == 40
    assert probe.histogram("weight_gradients").zeros == 32
    assert probe.histogram("updates").zeros == 32


def test_two_probes_of_two_models_that_train_each_other():
    generator, critic = nn.Linear(2, 6), nn.Linear(6, 1)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (generator, critic)]
    with Probe(generator, optimizers[0]) as ours, Probe(critic, optimizers[1]) as theirs:
        for _ in range(2):
            z = torch.randn(4, 2)
            optimizers[1].zero_grad()
            (critic(generator(z).detach()) - critic(torch.randn(4, 6))).mean().backward()
            optimizers[1].step()
            optimizers[0].zero_grad()
            (-critic(generator(z)).mean()).backward()
            optimizers[0].step()
    assert (ours.steps, theirs.steps) == (2, 2)
    assert ours.histogram("updates").total == ours.histogram("weight_gradients").total == 2 * 18
    assert theirs.histogram("updates").total == 2 * 7
    assert theirs.histogram("weight_gradients").total == 4 * 7  # the generator's loss makes some


def test_a_gradient_penalty_goes_through_twice():
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1))
    with Probe(model) as probe:
        x = batch().requires_grad_()
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        slope.square().sum().backward()
    assert probe.histogram("weight_gradients", "0.weight").total == 24
    assert probe.histogram("activation_gradients", "1").total >= 20


# --- What cannot be watched ---------------------------------------------------------------------


def test_a_transform_of_torch_func_runs_unseen_and_unharmed():
    model, x = nn.Sequential(nn.Linear(6, 3), nn.ReLU()), batch()
    parameters = dict(model.named_parameters())

    def loss(values, x):
        return torch.func.functional_call(model, values, (x,)).square().sum()

    for_each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))
    expected = for_each(parameters, x)
    with Probe(model) as probe:
        found = for_each(parameters, x)
        with pytest.raises(RuntimeError, match=r"no activations.*by torch\.func"):
            probe.histogram("activations")
        backward(model, x)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert (probe.steps, probe.histogram("activations", "1").total) == (1, 15)


def test_a_lazy_model_is_to_be_called_first():
    model = nn.Sequential(nn.LazyLinear(4), nn.LazyLinear(2))
    with pytest.raises(ValueError, match=r"model: 0\.weight has no shape yet.*call the model once"):
        Probe(model)
    model(batch())
    with Probe(model) as probe:
        backward(model, batch())
    assert probe.histogram("weights").total == 28 + 10


def test_a_scripted_model_is_refused():
    scripted = torch.jit.script(nn.Sequential(nn.Linear(6, 3)))
    with pytest.raises(ValueError, match="model: compiled"):
        Probe(scripted)
    with pytest.raises(ValueError, match="model: compiled"):
        Probe(nn.Sequential(scripted, nn.ReLU()))


def test_what_is_no_number_in_a_weight_is_said():
    model = small_mlp()
    with torch.no_grad():
        model[2].weight[0, 0] = math.nan
    with Probe(model) as probe:
        backward(model, batch())
    assert probe.histogram("weights").fates("float16").nonfinite > 0
    assert probe.histogram("activations", "1").fates("float16").nonfinite == 0
    assert probe.histogram("activations", "2").fates("float16").nonfinite > 0
