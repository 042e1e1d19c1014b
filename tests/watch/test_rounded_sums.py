"""Gradients that are rounding have no vote; those that are not keep theirs."""

import pytest
import torch
from torch import nn

from mpbook.watch.probe import Probe
from mpbook.watch.rounded_sums import RoundedSums, channel_of


def inputs(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


class Keys(nn.Module):
    """Attention with projections of its own for queries, keys and values, as BERT has it."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(32, 32) for _ in range(3))
        self.out = nn.Linear(32, 32)

    def forward(self, x):
        q, k, v = (
            m(x).view(*x.shape[:2], 4, 8).transpose(1, 2)
            for m in (self.query, self.key, self.value)
        )
        return self.out(
            nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        )


def normed(convolution: nn.Module, norm: nn.Module) -> nn.Module:
    return nn.Sequential(convolution, norm, nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))


WITHOUT_EFFECT = {
    "convolution before BatchNorm": (
        lambda: normed(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), (8, 3, 12, 12), "0.bias",
    ),
    "transposed convolution": (
        lambda: normed(nn.ConvTranspose2d(3, 8, 3), nn.BatchNorm2d(8)), (8, 3, 12, 12), "0.bias",
    ),
    "linear before BatchNorm": (
        lambda: normed(nn.Linear(12, 8), nn.BatchNorm1d(8)), (64, 12), "0.bias",
    ),
    "keys of attention": (Keys, (4, 16, 32), "key.bias"),
}  # fmt: skip


@pytest.mark.parametrize("case", WITHOUT_EFFECT.values(), ids=WITHOUT_EFFECT)
@pytest.mark.parametrize("seed", range(3))
def test_a_bias_without_effect_has_no_vote(case, seed):
    make, shape, name = case
    torch.manual_seed(seed)
    model = make()
    model(inputs(*shape))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Probe(model, optimizer) as probe:
        for _ in range(2):
            optimizer.zero_grad()
            (model(inputs(*shape)).square().mean() / 64).backward()
            optimizer.step()
    assert probe._sums.only_noise() == [name]
    biases = probe.histogram("weight_gradients", name)
    assert biases.lost("float16", of="magnitude") > 0.1  # what misled the verdict
    verdict = probe.needs_loss_scaling("float16")
    assert verdict.verdict == "not needed", verdict.reason


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("count", [4, 64, 4096])
def test_a_bias_of_random_terms_keeps_its_vote(count, dtype):
    torch.manual_seed(count)
    model = nn.Linear(6, 64).to(dtype)
    with Probe(model) as probe:
        terms = torch.randn(count, 64).to(dtype)
        (model(inputs(count, 6).to(dtype)) * terms).sum().backward()
    assert probe._sums.only_noise() == []


def test_each_gradient_is_compared_with_its_own_terms_alone():
    sums, terms = RoundedSums(), inputs(16, 4)
    noise = 512 * torch.finfo(torch.float32).eps / 2 * terms.square().sum(0).sqrt()
    for _ in range(9):  # the terms of all steps together would have three times as much
        sums.add_terms("above", terms, -1)
        sums.compare("above", 2 * noise)
        sums.add_terms("below", terms, -1)
        sums.compare("below", noise / 2)
        for half in terms.chunk(2):  # a module that is called twice
            sums.add_terms("twice", half, -1)
        sums.compare("twice", 0.9 * noise)
        sums.add_terms("zero", terms, -1)
        sums.compare("zero", torch.zeros(4))
        sums.compare("above", noise / 2)  # of no terms: nothing is known of it
    assert sums.only_noise() == ["below", "twice"]


SQUARE = {  # where a size tells no dimension from another
    "linear": (nn.Linear(4, 4), (4, 4, 4)),
    "layer norm": (nn.LayerNorm(4), (4, 4, 4)),
    "convolution": (nn.Conv2d(4, 4, 1), (4, 4, 4, 4)),
    "convolution in 1 dimension": (nn.Conv1d(4, 4, 1), (4, 4, 4)),
    "group norm": (nn.GroupNorm(2, 4), (4, 4, 4)),
    "batch norm": (nn.BatchNorm2d(4), (4, 4, 4, 4)),
}


@pytest.mark.parametrize("case", SQUARE.values(), ids=SQUARE)
def test_a_bias_gets_the_sum_over_all_dimensions_but_its_channel(case):
    module, shape = case
    y = module(inputs(*shape))
    terms = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad(y, module.bias, terms)
    channel = channel_of(module, y, module.bias)
    others = [dim for dim in range(len(shape)) if dim != channel % len(shape)]
    torch.testing.assert_close(gradient, terms.sum(others), rtol=1e-4, atol=1e-4)


def test_real_small_gradients_of_a_bias_still_decide():
    model = nn.Linear(6, 5)
    with Probe(model) as probe:
        (model(inputs(8, 6)).sum() * 1e-9).backward()
    assert probe.needs_loss_scaling("float16").verdict == "needed"


def test_a_scale_of_the_loss_changes_nothing():
    torch.manual_seed(0)
    model = normed(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    model(inputs(8, 3, 12, 12))
    with Probe(model, loss_scale=2.0**12) as probe:
        (model(inputs(8, 3, 12, 12)).square().mean() * 2.0**12).backward()
    assert probe._sums.only_noise() == ["0.bias"]
