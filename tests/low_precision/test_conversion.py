"""`convert` in models that nobody wrote for it."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from mpbook.low_precision import (
    RECIPES,
    QuantizedLinear,
    all_but_last,
    convert,
    linear_layers,
)
from mpbook.models import CNN, GPT, MLP, GPTConfig

ALL = replace(RECIPES["mxfp8"], name="all", last_layers_high=0)


def quantized(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, QuantizedLinear)]


def test_all_linear_layers_but_the_last_are_converted_in_place():
    model = GPT(GPTConfig())
    plain = [n for n, m in model.named_modules() if type(m) is nn.Linear]
    assert convert(model, "mxfp8") is model
    assert quantized(model) == plain[:-1] and plain[-1] == "head"
    assert quantized(convert(GPT(GPTConfig()), ALL)) == plain


def test_parameters_hooks_and_tied_weights_stay_what_they_are():
    model = GPT(GPTConfig())
    called, before = [], list(model.parameters())
    model.blocks[0].expand.register_forward_hook(lambda *args: called.append(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    convert(model, ALL)
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True))
    assert model.head.weight is model.token_embedding.weight
    tokens = torch.randint(0, 256, (2, 16))
    model(tokens).square().mean().backward()
    weight = model.head.weight.clone()
    optimizer.step()
    assert called and not torch.equal(weight, model.head.weight)


def test_a_layer_that_a_model_has_twice_is_converted_once():
    shared = nn.Linear(32, 32)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(32, 32))
    convert(model, "mxfp8")
    assert model[0] is model[2] and quantized(model) == ["0"]


def test_a_model_that_is_a_linear_layer_itself_is_converted():
    linear = nn.Linear(32, 32)
    assert type(convert(linear, "mxfp8", filter=lambda module, name: True)) is QuantizedLinear


def test_a_filter_alone_decides():
    model = GPT(GPTConfig())
    convert(model, ALL, filter=lambda module, name: name in ("blocks.0.expand", "head"))
    assert quantized(model) == ["blocks.0.expand", "head"]
    model = GPT(GPTConfig())
    convert(model, ALL, filter=all_but_last(model, 3))
    linears = [n for n, m in GPT(GPTConfig()).named_modules() if isinstance(m, nn.Linear)]
    assert quantized(model) == linears[:-3]
    assert all(all_but_last(model, 0)(module, name) for name, module in model.named_modules())
    with pytest.raises(ValueError, match="layers=-1: expected 0 or more"):
        all_but_last(model, -1)


def test_a_recipe_keeps_layers_high_by_name():
    model = convert(GPT(GPTConfig()), replace(ALL, stays_high=("blocks.1.*", "head")))
    assert quantized(model) == [
        f"blocks.0.{part}"
        for part in ("attention.query_key_value", "attention.project", "expand", "contract")
    ]


class Adapter(nn.Linear):
    """A linear layer with a low-rank path beside it, as adapters have."""

    def __init__(self):
        super().__init__(32, 32)
        self.down, self.up = nn.Linear(32, 4, bias=False), nn.Linear(4, 32, bias=False)

    def forward(self, x):
        return super().forward(x) + self.up(self.down(x))


def test_subclasses_are_left_alone_with_the_reason():
    attention = nn.MultiheadAttention(32, 2, batch_first=True)
    weight_norm = parametrizations.weight_norm(nn.Linear(32, 32))
    parts = {"attention": attention, "adapter": Adapter(), "norm": weight_norm}
    model = nn.ModuleDict(parts | {"plain": nn.Linear(32, 32)})
    convert(model, replace(ALL, stays_high=("adapter.*",)))
    assert quantized(model) == ["plain"]
    said = {row[0]: row[2] for row in linear_layers(model).rows}
    assert said["plain"] == "by all" and said["adapter.down"] == "high"
    for name, kind in (("attention.out_proj", "NonDyn"), ("adapter", "Adapter"), ("norm", "Param")):
        assert said[name].startswith(f"high: a {kind}")
    x = torch.randn(2, 32, 32)
    assert attention(x, x, x)[0].isfinite().all()


def test_a_filter_that_chooses_a_subclass_is_told_why_not():
    model = nn.Sequential(Adapter())
    with pytest.raises(TypeError, match='layer "0" is a Adapter, with a forward pass of its own'):
        convert(model, ALL, filter=lambda module, name: isinstance(module, Adapter))


def test_a_layer_in_two_filters_is_refused():
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32))
    convert(model, "mxfp8", filter=lambda module, name: name in "01")
    convert(model, "mxfp8", filter=lambda module, name: name in "01")  # the same again
    message = 'layer "1" is quantised by "mxfp8" already, and chosen for "nvfp4" too'
    with pytest.raises(ValueError, match=message):
        convert(model, "nvfp4", filter=lambda module, name: name in "12")
    assert quantized(model) == ["0", "1"] and model[2].weight is not None
    convert(model, "nvfp4", filter=lambda module, name: name == "2")
    assert [module.recipe.name for module in model] == ["mxfp8", "mxfp8", "nvfp4"]
    with pytest.raises(ValueError, match='layer "0" is quantised by "mxfp8" already'):
        convert(model, "nvfp4")


def test_the_same_recipe_twice_keeps_the_history():
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    convert(model, "float8_delayed")
    model(torch.ones(4, 32)).sum().backward()
    convert(model, "float8_delayed")
    assert model[0].amax_history[0, 0] == 1


@pytest.mark.parametrize(
    ("sizes", "recipe", "message"),
    [
        ((48, 64), "mxfp8", 'layer "0": in_features=48 is no multiple of 32, .* pad it to 64'),
        ((64, 100), "mxfp8", 'layer "0": out_features=100 is no multiple of 32, .* pad it to 128'),
        ((64, 128), "float8_blockwise", r"in_features=64 is no multiple of 128, .*stays_high"),
        ((24, 32), "nvfp4", "in_features=24 is no multiple of 16"),
    ],
)
def test_features_that_the_blocks_do_not_divide_are_refused(sizes, recipe, message):
    model = nn.Sequential(nn.Linear(*sizes), nn.Linear(sizes[1], 32))
    with pytest.raises(ValueError, match=message):
        convert(model, recipe)
    assert not quantized(model)


def test_nothing_is_changed_where_one_layer_is_refused():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 33), nn.Linear(33, 2))
    with pytest.raises(ValueError, match='layer "1": out_features=33'):
        convert(model, "mxfp8")
    assert not quantized(model)


def test_a_weight_that_is_no_real_floating_point_tensor_is_refused():
    model = nn.Sequential(nn.Linear(32, 32, dtype=torch.complex64), nn.Linear(32, 32))
    with pytest.raises(TypeError, match=r'layer "0": its weight has dtype torch\.complex64'):
        convert(model, "mxfp8")


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (lambda: CNN(), {}, r"no linear layer of CNN is left to quantise: it has 1, and last_lay"),
        (lambda: nn.Conv2d(1, 1, 1), {}, "it has none of the class torch.nn.Linear itself"),
        (lambda: MLP(32, 32, 2), {"filter": lambda m, n: False}, "filter= refused all 2"),
    ],
)
def test_a_model_with_nothing_to_quantise_is_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        convert(model(), "mxfp8", **options)


def test_a_copy_keeps_the_original_as_it_was():
    model = MLP(32, 32, 2)
    convert(copy.deepcopy(model), "mxfp8")
    assert not quantized(model)
