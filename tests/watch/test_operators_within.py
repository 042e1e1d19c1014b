"""What overflows between the outputs of modules: the verdict knows, or says that it does not."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from mpbook.formats import as_format
from mpbook.models import GPT, MLP, GPTConfig
from mpbook.watch.operators_within import OperatorsWithin
from mpbook.watch.probe import Probe


def inputs(*shape: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * scale


class Attention(nn.Module):
    """Scores that reach a million before their scale; the values do not."""

    def __init__(self, *, scale_first: bool = False):
        super().__init__()
        torch.manual_seed(1)
        self.qkv, self.out = nn.Linear(64, 192), nn.Linear(64, 2)
        self.scale_first = scale_first

    def forward(self, x):
        q, k, v = self.qkv(x * 150).chunk(3, -1)
        s = q.shape[-1] ** -0.5
        scores = (q * s) @ k.mT if self.scale_first else (q @ k.mT) * s
        return self.out((scores.softmax(-1) @ v).mean(1)) / 50


class OwnNorm(nn.Module):
    """A norm whose sum of squares is beyond 65504, for inputs near 300."""

    def __init__(self, square):
        super().__init__()
        self.square, self.out = square, nn.Linear(16, 2)

    def forward(self, x):
        x = 300 * x
        return self.out(x / (self.square(x).mean(-1, keepdim=True) + 1e-6).sqrt())


class Exponential(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(16, 2)

    def forward(self, x):
        return (self.inner(x) / 100 + 12.0).exp().log()


class Masked(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.inner, self.value = nn.Linear(16, 4), value

    def forward(self, x):
        scores = self.inner(x)
        return scores.masked_fill(torch.ones(4).cumsum(0) > 3, self.value).softmax(-1)


class AddsMask(Masked):
    def forward(self, x):
        return (self.inner(x) + torch.tensor([0, 0, 0, 1.0]) * self.value).softmax(-1)


def weighted(y: torch.Tensor) -> torch.Tensor:
    return (y * inputs(*y.shape)).sum()


def mean_square(y: torch.Tensor) -> torch.Tensor:
    return y.square().mean()


def dice(y: torch.Tensor) -> torch.Tensor:
    p = y.sigmoid().repeat(1, 20_000)
    target = (p > 0.5).float()
    return 1 - 2 * (p * target).sum() / (p.sum() + target.sum() + 1)


def watched(model: nn.Module, x: torch.Tensor, loss=mean_square, **options) -> Probe:
    with Probe(model, **options) as probe:
        loss(model(x)).backward()
    return probe


def large_weights() -> nn.Module:
    model = MLP(16, 8, 2)
    with torch.no_grad():
        model[0].weight.mul_(1e-6)[0, 0] = 7e4
    return model


OVERFLOWING = {
    "weights": (large_weights, (4, 16), 1e-6, "weights of 0.weight overflow float16"),
    "inputs": (lambda: MLP(16, 8, 2), (4, 16), 1e6, "float16"),
    "scores": (Attention, (4, 8, 64), 1.0, "bmm in \\(model\\) reaches .*, which overflows"),
    "own norm": (lambda: OwnNorm(lambda x: x * x), (4, 16), 1.0, "mul in \\(model\\) reaches"),
}


@pytest.mark.parametrize("case", OVERFLOWING.values(), ids=OVERFLOWING)
def test_no_loss_scale_helps_what_the_forward_pass_overflows(case):
    make, shape, scale, reason = case
    probe = watched(make(), inputs(*shape, scale=scale))
    verdict = probe.needs_loss_scaling("float16")
    assert (verdict.verdict, verdict.scale) == ("does not help", None)
    assert re.search(reason, verdict.reason)
    assert probe.needs_loss_scaling("bfloat16").verdict == "not needed"


PERHAPS = {
    "exp": (Exponential, (4, 16), mean_square, "exp in \\(model\\) reaches 1.6"),
    "pow": (lambda: OwnNorm(torch.square), (4, 16), mean_square, "pow in \\(model\\)"),
    "dice": (lambda: MLP(16, 8), (4, 16), dice, "sum outside of the model reaches"),
}


@pytest.mark.parametrize("case", PERHAPS.values(), ids=PERHAPS)
def test_what_may_be_computed_in_float32_leaves_the_verdict_open(case):
    make, shape, loss, reason = case
    torch.manual_seed(0)
    verdict = watched(make(), inputs(*shape), loss).needs_loss_scaling("float16")
    assert verdict.verdict != "not needed"
    assert re.search(reason, verdict.reason)
    assert "overflows float16 unless computed in float32" in verdict.reason


HEALTHY = {
    "MLP": (lambda: MLP(16, 8, 2), (4, 16)),
    "scaled first": (lambda: Attention(scale_first=True), (4, 8, 64)),
    "mask of -1e9": (lambda: Masked(-1e9), (4, 16)),
    "mask of -inf": (lambda: Masked(-torch.inf), (4, 16)),
    "adds finfo.min": (lambda: AddsMask(torch.finfo(torch.float32).min), (4, 16)),
    "LSTM": (lambda: nn.Sequential(nn.LSTM(16, 8), First(), nn.Linear(8, 2)), (4, 3, 16)),
    "transformer": (lambda: nn.TransformerEncoderLayer(16, 2, 32, 0.0), (4, 3, 16)),
}


class First(nn.Module):
    def forward(self, x):
        return x[0]


@pytest.mark.parametrize("case", HEALTHY.values(), ids=HEALTHY)
def test_healthy_models_raise_no_alarm(case):
    make, shape = case
    torch.manual_seed(0)
    verdict = watched(make(), inputs(*shape), weighted).needs_loss_scaling("float16")
    assert verdict.verdict == "not needed", verdict.reason


def test_a_gpt_raises_no_alarm():
    model = GPT(GPTConfig(width=16, heads=2, layers=1, context=8))
    tokens = torch.arange(32).view(4, 8)
    with Probe(model) as probe:
        F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
    assert probe.needs_loss_scaling("float16").verdict in ("not needed", "needed")
    assert "unless" not in probe.needs_loss_scaling("float16").reason


# --- What is not seen ---------------------------------------------------------------------------


def test_a_compiled_child_is_named_and_nothing_is_claimed():
    torch.compiler.reset()
    for compile_it in (
        lambda model: model[0].compile(backend="eager"),
        lambda model: model.__setitem__(0, torch.compile(model[0], backend="eager")),
    ):
        model = MLP(16, 8, 2)
        compile_it(model)
        verdict = watched(model, inputs(4, 16)).needs_loss_scaling("float16")
        assert verdict.verdict == "not known"
        assert "not seen: the inside of 0, compiled" in verdict.reason
    torch.compiler.reset()


def test_a_compiled_step_leaves_the_verdict_open():
    torch.compiler.reset()
    model = MLP(16, 8, 2)
    step = torch.compile(lambda x: model(x).square().mean(), backend="eager", fullgraph=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Probe(model, optimizer) as probe:
        step(inputs(4, 16)).backward()
        optimizer.step()
    verdict = probe.needs_loss_scaling("float16")
    assert verdict.verdict == "not known"
    assert "not seen: any activation: what trains is compiled" in verdict.reason
    torch.compiler.reset()


def test_a_function_that_is_compiled_stays_so_and_its_weights_are_named():
    torch.compiler.reset()
    compiled = []

    def backend(graph, _):
        compiled.append(graph)
        return graph.forward

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(16, 8), nn.Linear(8, 2)
            self.inside = torch.compile(self.first.forward, backend=backend, fullgraph=True)

        def forward(self, x):
            return self.last(self.inside(x))

    model = Model()
    watched(model, inputs(4, 16))
    assert len(compiled) == 1
    torch.compiler.reset()


def test_kinds_that_are_not_watched_are_not_seen():
    probe = watched(MLP(16, 8, 2), inputs(4, 16), kinds=["weight_gradients", "weights"])
    verdict = probe.needs_loss_scaling("float16")
    assert verdict.verdict == "not known"
    assert verdict.reason.endswith("not seen: activations, which are not watched")


def test_a_pass_that_is_not_its_own_can_be_left_out():
    """A GAN: the generator's step runs the discriminator too."""
    generator, discriminator = MLP(4, 16), MLP(16, 1)
    optimizer = torch.optim.SGD(discriminator.parameters(), lr=0.1)
    totals = []
    for leave_out in (False, True):
        with Probe(discriminator, optimizer) as probe:
            discriminator(inputs(4, 16)).mean().backward()
            optimizer.step()
            fake = generator(inputs(4, 4))
            if leave_out:
                with probe.paused():
                    discriminator(fake).mean().backward()
            else:
                discriminator(fake).mean().backward()
        totals.append(probe.histogram("weight_gradients").total)
    assert totals == [2 * 17, 17]


# --- How it looks -------------------------------------------------------------------------------


def test_training_does_not_change_and_nothing_stays_behind():
    plain, x = Attention(), inputs(4, 8, 64)
    watching = copy.deepcopy(plain)
    mean_square(plain(x)).backward()
    watched(watching, x)
    for a, b in zip(plain.parameters(), watching.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in watching.modules())
    assert torch._C._len_torch_dispatch_stack() == 0


def test_a_run_in_16_bits_leaves_out_what_it_computes_in_float32():
    model = Exponential()
    with Probe(model) as probe, torch.autocast("cpu", torch.bfloat16):
        with torch.autocast("cpu", enabled=False):
            y = model(inputs(4, 16))
        model.inner(inputs(4, 16))
        y.sum().backward()
    assert probe._within.exceeding(as_format("float16")) == []


def test_a_failed_forward_leaves_no_module_running():
    model = nn.Sequential(nn.Linear(16, 8), nn.Linear(9, 2))
    with Probe(model) as probe:
        with pytest.raises(RuntimeError):
            model(inputs(4, 16))
        model[0](inputs(4, 16, scale=1e4))
        with pytest.raises(RuntimeError):
            model(inputs(4, 16))
    assert probe.histogram("activations", "0").total == 3 * 4 * 8


def test_what_it_keeps_does_not_grow_with_the_steps():
    model = MLP(16, 8, 2)
    within = OperatorsWithin(model, lambda: True)
    sizes = []
    for _ in range(3):
        with within:
            model(inputs(4, 16))
        sizes.append(len(within._seen))
    assert sizes[0] > 0 and len(set(sizes)) == 1
