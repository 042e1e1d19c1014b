"""`mpbook.autocast.tiny` against `torch.autocast`, bit for bit, and its cache by hand."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mpbook.autocast.tiny import FLOAT32, LOWER_PRECISION, TinyAutocast
from mpbook.models import CNN, GPT, MLP, GPTConfig

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
DTYPES = [torch.bfloat16, torch.float16]

on_each_device = pytest.mark.parametrize("device", DEVICES)
in_each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def task(name: str, device: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A model with a batch of inputs and targets."""
    torch.manual_seed(0)
    tokens = torch.randint(256, (2, 16))
    classes = torch.randint(10, (8,))
    model, inputs, targets = {
        "GPT": lambda: (GPT(GPTConfig()), tokens, tokens.roll(-1, 1)),
        "MLP": lambda: (MLP(64, 32, 32, 10), torch.randn(8, 64), classes),
        "CNN": lambda: (CNN(), torch.randn(8, 1, 8, 8), classes),
    }[name]()
    return model.to(device), inputs.to(device), targets.to(device)


Loss = Callable[[Tensor, Tensor], Tensor]


def one_hot_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """A loss that is float32 on a CPU and on CUDA; there ``cross_entropy`` is not."""
    return functional.mse_loss(logits, functional.one_hot(targets, logits.shape[-1]).float())


def everything(
    task: tuple[nn.Module, Tensor, Tensor],
    region: AbstractContextManager[Any],
    loss_of: Loss = functional.cross_entropy,
) -> list[Tensor]:
    """Logits, loss and all gradients of a step under a kind of autocast."""
    model = copy.deepcopy(task[0])
    with region:
        logits = model(task[1])
        loss = loss_of(logits.flatten(0, -2), task[2].flatten())
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [logits, loss, *gradients]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    pairs = zip(left, right, strict=True)
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


# CUDA's own list is another: LayerNorm runs in float32 there, cross_entropy does not.
@in_each_dtype
@pytest.mark.parametrize("name", ["GPT", "MLP", "CNN"])
def test_it_is_torchs_autocast_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    given = task(name, "cpu")
    theirs = everything(given, torch.autocast("cpu", dtype=dtype))
    assert same(everything(given, TinyAutocast(dtype)), theirs)


@on_each_device
@in_each_dtype
def test_an_mlp_agrees_on_every_device(dtype: torch.dtype, device: str) -> None:
    given = task("MLP", device)
    theirs = everything(given, torch.autocast(device, dtype=dtype), one_hot_loss)
    assert same(everything(given, TinyAutocast(dtype), one_hot_loss), theirs)


def test_it_differs_from_float32() -> None:
    given = task("MLP", "cpu")
    with torch.autocast("cpu", enabled=False):
        full = everything(given, torch.enable_grad())
    assert not same(everything(given, TinyAutocast(torch.bfloat16)), full)


@pytest.mark.parametrize("name", ["linear", "conv2d", "scaled_dot_product_attention"])
def test_products_run_in_the_lower_precision(name: str) -> None:
    assert getattr(functional, name) in LOWER_PRECISION


@pytest.mark.parametrize(
    "product",
    [
        lambda a: a @ a,
        lambda a: a.matmul(a),
        lambda a: torch.matmul(a, a),
        lambda a: torch.bmm(a[None], a[None]),
        lambda a: functional.linear(input=a, weight=a),
        lambda a: functional.conv2d(a[None, None], a[None, None]),
        lambda a: functional.scaled_dot_product_attention(a[None], a[None], value=a[None]),
    ],
)
@in_each_dtype
def test_every_spelling_of_a_product_is_cast(product: Any, dtype: torch.dtype) -> None:
    a = torch.rand(3, 3)
    with torch.autocast("cpu", dtype=dtype):
        theirs = product(a)
    with TinyAutocast(dtype):
        ours = product(a)
    assert ours.dtype == theirs.dtype == dtype
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("loss", [functional.cross_entropy, functional.mse_loss])
def test_a_loss_of_16_bit_numbers_is_float32_as_in_torch(loss: Any) -> None:
    assert loss in FLOAT32
    a, b = torch.rand(2, 3, 3).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        theirs = loss(a, b)
    with TinyAutocast(torch.bfloat16):
        ours = loss(a, b)
    assert ours.dtype == theirs.dtype == torch.float32
    assert torch.equal(ours, theirs)


def test_what_is_on_no_list_runs_as_it_comes() -> None:
    a = torch.rand(3)
    with TinyAutocast(torch.bfloat16):
        assert torch.exp(a).dtype == torch.float32
        assert torch.exp(a.half()).dtype == torch.float16


def test_double_precision_and_integers_are_left_alone() -> None:
    region = TinyAutocast(torch.bfloat16)
    for value in (torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.int64), 3, None):
        assert region.cast(torch.bfloat16, value) is value


def test_a_16_bit_tensor_of_the_other_kind_is_cast_too() -> None:
    with TinyAutocast(torch.bfloat16):
        assert (torch.ones(2, 2).half() @ torch.ones(2, 2).half()).dtype == torch.bfloat16


def gradient_of_many_uses(region: AbstractContextManager[Any]) -> float:
    weight = nn.Parameter(torch.ones(1, 1))
    with region:
        outputs = [functional.linear(torch.ones(1, 1), weight).float() for _ in range(300)]
    torch.stack(outputs).sum().backward()
    assert weight.grad is not None
    return weight.grad.item()


def test_all_uses_of_a_parameter_share_one_copy_and_add_up_in_16_bits() -> None:
    theirs = gradient_of_many_uses(torch.autocast("cpu", dtype=torch.bfloat16))
    assert gradient_of_many_uses(TinyAutocast(torch.bfloat16)) == theirs == 256


def test_copies_are_kept_until_the_region_ends() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    region = TinyAutocast(torch.bfloat16)
    with region:
        first = region.cast(torch.bfloat16, weight)
        assert region.cast(torch.bfloat16, weight) is first
    assert not region.copies
    with region:
        assert region.cast(torch.bfloat16, weight) is not first


def test_copies_are_gone_after_an_error_too() -> None:
    region = TinyAutocast(torch.bfloat16)
    layer = nn.Linear(2, 2)
    with pytest.raises(RuntimeError), region:
        layer(torch.ones(1, 3))
    assert not region.copies


@pytest.mark.parametrize("tensor", [torch.ones(2), nn.Parameter(torch.ones(2)) * 1])
def test_only_parameters_that_train_are_kept(tensor: Tensor) -> None:
    region = TinyAutocast(torch.bfloat16)
    with region:
        assert region.cast(torch.bfloat16, tensor).dtype == torch.bfloat16
        assert not region.copies


def test_a_parameter_cast_up_is_not_kept() -> None:
    region = TinyAutocast(torch.bfloat16)
    with region:
        up = region.cast(torch.float32, nn.Parameter(torch.ones(2).half()))
        assert up.dtype == torch.float32
        assert not region.copies


def test_an_update_inside_the_region_is_not_seen_as_in_torch() -> None:
    outputs = []
    for region in (TinyAutocast(torch.bfloat16), torch.autocast("cpu", dtype=torch.bfloat16)):
        layer = nn.Linear(2, 2, bias=False)
        nn.init.ones_(layer.weight)
        with region:
            before = layer(torch.ones(1, 2))
            with torch.no_grad():
                layer.weight.zero_()
            outputs.append(torch.equal(layer(torch.ones(1, 2)), before))
    assert outputs == [True, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int16])
def test_another_dtype_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=r"dtype=.*expected torch.float16 or torch.bfloat16"):
        TinyAutocast(dtype)
