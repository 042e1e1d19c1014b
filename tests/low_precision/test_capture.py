"""What a linear layer multiplied, taken from a model that stays as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mpbook.low_precision.capture import capture


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(32, 16, generator=generator)
    return inputs, torch.randint(0, 16, (32,), generator=generator)


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(16, 48),
        nn.BatchNorm1d(48),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(48, 16),
    )


def test_products_of_what_is_captured_are_the_layers_own() -> None:
    net = nn.Sequential(nn.Linear(16, 48), nn.ReLU(inplace=True), nn.Linear(48, 16))
    inputs, targets = batch()
    nn.functional.cross_entropy(net(inputs), targets).backward()
    found = capture(net, [batch()])
    assert [(c.layer, c.batch) for c in found] == [("0", 0), ("2", 0)]
    for c, linear in zip(found, (net[0], net[2]), strict=True):
        left, right = c.operands()["wgrad"]
        torch.testing.assert_close(left @ right.T, linear.weight.grad)
        left, right = c.operands()["fprop"]
        torch.testing.assert_close(left @ right.T + linear.bias, linear(c.x))
        left, right = c.operands()["dgrad"]
        torch.testing.assert_close(left @ right.T, c.dy @ linear.weight)


def test_the_model_and_the_random_numbers_are_left_as_they_were() -> None:
    net = model()
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    capture(net, [batch(0), batch(1)])
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert not any(m._forward_hooks for m in net.modules())


def test_hooks_are_removed_when_the_loss_fails() -> None:
    net = model()
    with pytest.raises(RuntimeError):
        capture(net, [(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64))])
    assert not any(m._forward_hooks for m in net.modules())


def test_a_layer_that_is_called_twice_has_the_tokens_of_both_calls_in_order() -> None:
    linear = nn.Linear(8, 8, bias=False)
    first, second = torch.randn(3, 8), torch.randn(5, 8)
    net = nn.ModuleDict({"shared": linear})

    def loss(net: Any, pair: tuple[Tensor, Tensor]) -> Tensor:
        return net["shared"](pair[0]).sum() + 2 * net["shared"](pair[1]).sum()

    (found,) = capture(net, [(first, second)], loss=loss)
    assert torch.equal(found.x, torch.cat([first, second]))
    assert torch.equal(found.dy, torch.cat([torch.ones(3, 8), 2 * torch.ones(5, 8)]))


def test_an_input_that_is_changed_in_place_later_is_captured_as_it_was() -> None:
    """A frozen layer saves no input, so that autograd lets a residual stream be added to."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.frozen = nn.Linear(16, 16), nn.Linear(16, 16)
            self.frozen.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            x += self.frozen(x)
            return x

    torch.manual_seed(0)
    net = Residual()
    (found,) = capture(net, [batch()], layers=["frozen"])
    assert torch.equal(found.x, net.first(batch()[0]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ["3"]}, "'3' is no linear layer; there are 0, 4"),
        ({"layers": "0"}, "list of names"),
        ({"layers": []}, "none is named"),
        ({"loss": lambda net, pair: net(pair[0])}, "expected a scalar"),
        (
            {"loss": lambda net, pair: net[0](pair[0]).sum(), "layers": ["4"]},
            "on '4'; leave it out",
        ),
        ({"batches": []}, "at least one"),
    ],
)
def test_what_cannot_be_captured_is_named(options: dict[str, Any], message: str) -> None:
    batches = options.pop("batches", [batch()])
    with pytest.raises(ValueError, match=message):
        capture(model(), batches, **options)
