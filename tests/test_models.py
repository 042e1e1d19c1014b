"""`mpbook.models` against GPT-2's published shape, hand-written attention and init statistics."""

import dataclasses
import inspect
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mpbook.models
from mpbook.models import (
    CNN,
    GPT,
    GPT2_124M,
    MLP,
    Attention,
    Block,
    GPTConfig,
    ResidualMLP,
    parameter_count,
)

SMALL = GPTConfig(vocabulary=19, context=12, layers=2, heads=2, width=16)


def small_gpt(seed: int = 0, **changes: Any) -> GPT:
    torch.manual_seed(seed)
    return GPT(dataclasses.replace(SMALL, **changes))


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(SMALL.vocabulary, shape, generator=torch.Generator().manual_seed(seed))


# --- MLP and CNN ------------------------------------------------------------------------------


def test_an_mlp_is_linear_layers_with_relu_between_them() -> None:
    torch.manual_seed(0)
    model = MLP(5, 7, 6, 3)
    assert [type(layer) for layer in model] == [nn.Linear, nn.ReLU] * 2 + [nn.Linear]
    shapes = [tuple(p.shape) for p in model.parameters()]
    assert shapes == [(7, 5), (7,), (6, 7), (6,), (3, 6), (3,)]
    x = torch.randn(4, 5)
    w = list(model.parameters())
    hidden = ((x @ w[0].T + w[1]).relu() @ w[2].T + w[3]).relu()
    assert torch.allclose(model(x), hidden @ w[4].T + w[5], atol=1e-6)
    assert len(MLP(5, 3)) == 1


def test_an_mlp_is_he_initialised() -> None:
    torch.manual_seed(0)
    model = MLP(500, 300, 200)
    for layer in model:
        if isinstance(layer, nn.Linear):
            assert layer.weight.std().item() == pytest.approx(
                math.sqrt(2 / layer.in_features), rel=0.02
            )
            assert abs(layer.weight.mean().item()) < 0.01
            assert layer.weight.abs().max() > 3.5 * layer.weight.std()  # normal, not uniform
            assert not layer.bias.any()


@pytest.mark.parametrize("sizes", [(), (5,)])
def test_an_mlp_needs_an_input_and_an_output(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"sizes=.*: expected the features of input and output"):
        MLP(*sizes)


def test_a_residual_mlp_adds_to_its_input_what_a_linear_layer_makes_of_the_relu() -> None:
    model = ResidualMLP(depth=2, width=8, inputs=3, classes=4)
    x = torch.randn(5, 3)
    hidden = model[0](x)
    for block in list(model)[1:3]:
        hidden = hidden + block.linear(hidden.clamp(min=0))
    assert torch.equal(model(x), model[4](model[3](hidden)))
    assert model(x).shape == (5, 4)


@pytest.mark.parametrize("seed", range(3))
def test_a_residual_mlp_of_40_blocks_outgrows_float16_and_is_finite_in_float32(seed: int) -> None:
    torch.manual_seed(seed)
    model = ResidualMLP()
    hidden = model[0](torch.rand(64, 64))
    for block in list(model)[1:41]:
        hidden = block(hidden)
    assert hidden.abs().max() > 4 * 65504
    assert hidden.isfinite().all()


@pytest.mark.parametrize("name", ["depth", "width", "inputs", "classes"])
def test_a_residual_mlp_has_at_least_one_of_each(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=0: expected 1 or more"):
        ResidualMLP(**{name: 0})


def test_a_cnn_is_two_convolutions_and_a_linear_layer() -> None:
    model = CNN()
    shapes = [tuple(p.shape) for p in model.parameters()]
    assert shapes == [(32, 1, 3, 3), (32,), (64, 32, 3, 3), (64,), (10, 64 * 4), (10,)]
    kinds = [nn.Conv2d, nn.ReLU, nn.MaxPool2d] * 2 + [nn.Flatten, nn.Linear]
    assert [type(layer) for layer in model] == kinds
    assert model(torch.ones(3, 1, 8, 8)).shape == (3, 10)


@pytest.mark.parametrize(("size", "channels", "classes"), [(4, 2, 3), (12, 3, 2), (28, 4, 10)])
def test_a_cnn_takes_images_of_its_size(size: int, channels: int, classes: int) -> None:
    model = CNN(image_size=size, channels=channels, classes=classes)
    assert model(torch.ones(2, 1, size, size)).shape == (2, classes)
    x, sides = torch.ones(2, 1, size, size), []
    for layer in list(model)[:6]:
        x = layer(x)
        sides.append(x.shape[-1])
    assert sides == [size, size, size // 2, size // 2, size // 2, size // 4]
    assert x.shape[1] == model[3].out_channels
    assert model[3].out_channels == 2 * channels


@pytest.mark.parametrize("size", [6, 9, 0, 2, -4])
def test_a_cnn_refuses_images_that_cannot_be_halved_twice(size: int) -> None:
    with pytest.raises(ValueError, match=f"image_size={size}: expected a multiple of 4"):
        CNN(image_size=size)


# --- GPT: shape -------------------------------------------------------------------------------


def test_gpt2_has_its_124_439_808_parameters() -> None:
    with torch.device("meta"):
        assert parameter_count(GPT(GPT2_124M)) == 124_439_808


def test_gpt2_has_the_shape_of_its_paper() -> None:
    shape = dict(vocabulary=50257, context=1024, layers=12, heads=12, width=768, bias=True)
    assert dataclasses.asdict(GPT2_124M) == shape


def test_a_gpt_without_biases_has_none() -> None:
    model = small_gpt(bias=False)
    assert not any(name.endswith("bias") for name, _ in model.named_parameters())
    per_layer = 12 * 16 * 16 + 2 * 16
    assert parameter_count(model) == (19 + 12) * 16 + 2 * per_layer + 16
    with_bias = small_gpt()
    biases = [n for n, _ in with_bias.named_parameters() if n.endswith("bias")]
    assert len(biases) == 2 * 6 + 1
    assert "head.bias" not in biases


def test_the_default_gpt_reads_bytes() -> None:
    config = dict(vocabulary=256, context=64, layers=2, heads=4, width=64, bias=True)
    assert dataclasses.asdict(GPT().config) == config
    assert GPT(SMALL).config is SMALL


def test_embedding_and_output_are_one_matrix() -> None:
    model = small_gpt()
    assert model.head.weight is model.token_embedding.weight
    assert "head.weight" not in dict(model.named_parameters())
    model(tokens(2, 5)).square().mean().backward()
    assert model.head.weight.grad is model.token_embedding.weight.grad


def test_shared_parameters_are_counted_once() -> None:
    linear = nn.Linear(3, 4)
    assert parameter_count(nn.Sequential(linear, nn.ReLU(), linear)) == 16
    assert parameter_count(nn.ReLU()) == 0


@pytest.mark.parametrize("field", ["vocabulary", "context", "layers", "heads", "width"])
@pytest.mark.parametrize("value", [0, -2])
def test_a_size_below_one_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{field}={value}: expected at least 1"):
        GPTConfig(**{field: value})


def test_the_heads_divide_the_width() -> None:
    with pytest.raises(ValueError, match="width=64: expected a multiple of heads=5"):
        GPTConfig(heads=5)
    assert GPTConfig(vocabulary=1, context=1, layers=1, heads=1, width=1).width == 1


def test_a_sequence_longer_than_the_context_is_refused() -> None:
    model = small_gpt()
    assert model(tokens(1, 12)).shape == (1, 12, 19)
    assert model(tokens(3, 1)).shape == (3, 1, 19)
    with pytest.raises(ValueError, match="tokens: 13 a sequence, expected at most 12"):
        model(tokens(1, 13))


# --- GPT: initialisation ----------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 3, 8])
def test_weights_have_gpt2s_standard_deviations(layers: int) -> None:
    model = small_gpt(vocabulary=500, context=200, layers=layers, heads=2, width=64)
    residual = 0.02 / math.sqrt(2 * layers)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            joins = name.endswith(("attention.project.weight", "contract.weight"))
            expected = residual if joins else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.06), name
            assert abs(parameter.mean().item()) < 0.06 * expected, name
        else:
            assert (parameter == float(name.endswith("weight"))).all(), name
    joining = [
        n for n, _ in model.named_parameters() if n.endswith(("project.weight", "ct.weight"))
    ]
    assert len(joining) == 2 * layers


def test_weights_follow_the_global_seed() -> None:
    first, second, other = small_gpt(1), small_gpt(1), small_gpt(2)
    assert all(map(torch.equal, first.parameters(), second.parameters()))
    assert not torch.equal(first.head.weight, other.head.weight)


def test_a_fresh_gpt_knows_nothing() -> None:
    logits = small_gpt(vocabulary=256)(tokens(4, 12))
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens(4, 12, seed=1).flatten())
    assert loss.item() == pytest.approx(math.log(256), rel=0.02)


# --- GPT: what it computes --------------------------------------------------------------------


def attention_by_hand(module: Attention, x: Tensor) -> Tensor:
    """Softmax attention, one sequence, one head and one place at a time."""
    size = x.shape[-1] // module.heads
    query, key, value = module.query_key_value(x).split(x.shape[-1], dim=-1)
    mixed = torch.zeros_like(x)
    for b, head, t in itertools.product(range(x.shape[0]), range(module.heads), range(x.shape[1])):
        part = slice(head * size, (head + 1) * size)
        scores = key[b, : t + 1, part] @ query[b, t, part] / math.sqrt(size)
        weights = scores.exp() / scores.exp().sum()
        mixed[b, t, part] = weights @ value[b, : t + 1, part]
    projected = mixed @ module.project.weight.T
    return projected if module.project.bias is None else projected + module.project.bias


def strong(module: nn.Module) -> Any:
    """The module in float64, with weights so large that every part matters."""
    generator = torch.Generator().manual_seed(3)
    module = module.double()
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).double() * 0.5
    return module


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(4)).double()


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_attention_is_a_causal_softmax(heads: int, bias: bool) -> None:
    module = strong(Attention(dataclasses.replace(SMALL, heads=heads, bias=bias)))
    x = drawn(2, 7, 16)
    assert torch.allclose(module(x), attention_by_hand(module, x), atol=1e-10)


def gelu(x: Tensor) -> Tensor:
    """GPT-2's approximation.  Source: Hendrycks and Gimpel 2016."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * norm.weight + norm.bias


def block_by_hand(block: Block, x: Tensor) -> Tensor:
    x = x + attention_by_hand(block.attention, layer_norm(block.attention_norm, x))
    normed = layer_norm(block.mlp_norm, x)
    hidden = gelu(normed @ block.expand.weight.T + block.expand.bias)
    return x + hidden @ block.contract.weight.T + block.contract.bias


def test_a_block_adds_attention_and_an_mlp_each_after_its_norm() -> None:
    block = strong(Block(SMALL))
    x = drawn(2, 6, 16)
    assert torch.allclose(block(x), block_by_hand(block, x), atol=1e-9)


def test_a_gpt_is_embeddings_blocks_a_norm_and_the_embedding_again() -> None:
    model = strong(small_gpt())
    read = tokens(2, 12)
    x = model.token_embedding.weight[read] + model.position_embedding.weight
    for block in model.blocks:
        x = block_by_hand(block, x)
    logits = layer_norm(model.final_norm, x) @ model.token_embedding.weight.T
    assert len(model.blocks) == 2
    assert torch.allclose(model(read), logits, atol=1e-8)


@pytest.mark.parametrize("place", range(8))
def test_a_token_changes_its_own_logits_and_later_ones_but_none_before(place: int) -> None:
    model = strong(small_gpt())
    read = tokens(1, 8)
    changed = read.clone()
    changed[0, place] = (read[0, place] + 1) % SMALL.vocabulary
    moved = (model(read) - model(changed)).abs().amax(dim=(0, 2))
    assert moved[:place].eq(0).all()
    assert moved[place:].gt(1e-6).all()


def test_a_sequence_does_not_see_the_others_of_its_batch() -> None:
    model = strong(small_gpt())
    read = tokens(3, 8)
    alone = torch.cat([model(read[i : i + 1]) for i in range(3)])
    assert torch.allclose(model(read), alone, atol=1e-10)


def test_positions_matter() -> None:
    model = strong(small_gpt())
    same = torch.full((1, 5), 3)
    logits = model(same)
    assert all(not torch.allclose(logits[0, i], logits[0, i + 1]) for i in range(4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_dtype_is_changed_from_outside(dtype: torch.dtype) -> None:
    for model, x in (
        (small_gpt(), tokens(2, 4)),
        (CNN(channels=2), torch.ones(1, 1, 8, 8, dtype=dtype)),
        (MLP(3, 4, 2), torch.ones(1, 3, dtype=dtype)),
    ):
        output = model.to(dtype)(x)
        assert output.dtype == dtype
        assert output.isfinite().all()


def test_no_dtype_is_written_in_a_model() -> None:
    source = inspect.getsource(mpbook.models)
    assert not any(f"torch.{name}" in source for name in ("float", "half", "bfloat16", "double"))


def test_every_parameter_of_a_gpt_learns() -> None:
    model = small_gpt()
    model(tokens(2, 12)).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
