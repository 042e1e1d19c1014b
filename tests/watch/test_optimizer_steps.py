"""Where a step begins and ends, for optimizers in wrappers of others: against counts by hand."""

import copy
import functools
import math

import pytest
import torch
from torch import nn
from wrapped_optimizers import WRAPPED, Accelerated, Apex, Fabric, Lookahead, Several, adamw

from mpbook.master_weights import MasterWeights
from mpbook.watch.histograms import Histogram, log2_histogram
from mpbook.watch.lost_updates import updates_lost
from mpbook.watch.optimizer_steps import StepWatch, with_wrapped
from mpbook.watch.probe import Probe


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).bfloat16()


def backward(model: nn.Module, seed: int, factor: float = 1.0) -> torch.Tensor:
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed)).bfloat16()
    loss = model(x).float().square().mean()
    (loss * factor).backward()
    return loss


def weights_of(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("make", WRAPPED.values(), ids=WRAPPED)
def test_updates_are_what_the_outermost_step_does_to_the_models_weights(make):
    model = small_model()
    optimizer, expected = make(list(model.parameters())), Histogram()
    with Probe(model, optimizer, every=2) as probe:
        for seed in range(5):
            optimizer.zero_grad()
            backward(model, seed)
            before = weights_of(model)
            optimizer.step()
            if seed % 2 == 0:
                changes = zip(weights_of(model), before, strict=True)
                expected += sum(
                    (log2_histogram(a.float() - b.float()) for a, b in changes), Histogram()
                )
    assert (probe.steps, probe.watched_steps) == (5, 3)
    assert probe.histogram("updates") == expected
    size = sum(p.numel() for p in model.parameters())
    assert probe.histogram("weights").total == probe.histogram("weight_gradients").total == 3 * size


@pytest.mark.parametrize("make", WRAPPED.values(), ids=WRAPPED)
def test_training_is_the_same_and_nothing_stays_behind(make):
    runs = []
    for watch in (lambda *_: torch.enable_grad(), Probe):
        model = small_model()
        optimizer = make(list(model.parameters()))
        attributes = [set(vars(one)) for one in with_wrapped(optimizer)]
        with watch(model, optimizer):
            for seed in range(3):
                optimizer.zero_grad()
                backward(model, seed)
                optimizer.step()
        runs.append(weights_of(model))
        for one, names in zip(with_wrapped(optimizer), attributes, strict=True):
            assert set(vars(one)) == names
            assert not vars(one).get("_optimizer_step_pre_hooks")
            assert not vars(one).get("_optimizer_step_post_hooks")
    assert all(map(torch.equal, *runs))


def test_a_call_that_comes_to_nothing_is_no_step():
    model = small_model()
    optimizer = Accelerated(adamw(model.parameters()))
    with Probe(model, optimizer) as probe:
        for seed in range(6):
            optimizer.complete = seed % 3 == 2
            optimizer.zero_grad()
            backward(model, seed)
            optimizer.step()
    size = sum(p.numel() for p in model.parameters())
    assert (probe.steps, probe.watched_steps) == (2, 2)
    assert probe.histogram("weights").total == probe.histogram("updates").total == 2 * size
    assert probe.histogram("weight_gradients").total == 6 * size


SKIPPING = {
    "scaler outside": lambda p, scaler: (torch.optim.SGD(p, lr=0.1), None),
    "scaler outside, fused": lambda p, scaler: (torch.optim.AdamW(p, fused=True), None),
    "scaler inside": lambda p, scaler: (Accelerated(torch.optim.SGD(p, lr=0.1), scaler), "inside"),
    "scaler inside, fused": lambda p, scaler: (
        Accelerated(torch.optim.AdamW(p, fused=True), scaler),
        "inside",
    ),
}


@pytest.mark.parametrize("make", SKIPPING.values(), ids=SKIPPING)
def test_a_step_that_a_scaler_skips_is_none(make):
    model, scaler = small_model().float(), torch.amp.GradScaler("cpu", init_scale=8.0)
    optimizer, inside = make(list(model.parameters()), scaler)
    x, size = torch.ones(3, 4), sum(p.numel() for p in model.parameters())
    with Probe(model, optimizer, loss_scale=scaler.get_scale) as probe:
        for factor in (1.0, math.inf, math.inf, 1.0):
            optimizer.zero_grad()
            scaler.scale(model(x).square().mean() * factor).backward()
            if inside:
                optimizer.step()
            else:
                scaler.step(optimizer)
                scaler.update()
    assert (probe.steps, probe.watched_steps) == (2, 2)
    assert probe.histogram("weights").total == probe.histogram("updates").total == 2 * size
    assert probe.histogram("updates").fates("float32").nonfinite == 0


def test_an_overflow_that_a_wrapper_skips_by_itself_is_no_step():
    model = small_model()
    optimizer = Apex(adamw(list(model.parameters())))
    with Probe(model, optimizer) as probe:
        for seed, factor in enumerate((1.0, math.inf, 1.0)):
            optimizer.zero_grad()
            backward(model, seed, factor)
            optimizer.step()
    assert (probe.steps, probe.watched_steps) == (2, 2)


@pytest.mark.parametrize("wrap", [lambda o: o, MasterWeights, Accelerated, Fabric])
def test_a_step_with_a_closure_is_one_step(wrap):
    model = small_model()
    optimizer = wrap(torch.optim.LBFGS(model.parameters(), lr=0.01, max_iter=3))

    def closure():
        optimizer.zero_grad()
        return backward(model, 0)

    with Probe(model, optimizer) as probe:
        for _ in range(2):
            optimizer.step(closure)
    size = sum(p.numel() for p in model.parameters())
    assert (probe.steps, probe.watched_steps) == (2, 2)
    assert probe.histogram("updates").total == 2 * size


@pytest.mark.parametrize("name", ["plain", "derived", "apex", "accelerate, master weights"])
def test_a_step_that_fails_is_none_and_the_next_one_counts(name):
    model = small_model()
    optimizer = WRAPPED[name](list(model.parameters()))
    now = []
    innermost = with_wrapped(optimizer)[-1]
    innermost.register_step_post_hook(lambda *_: 1 / 0 if now[-1] in (1, 2) else None)
    with Probe(model, optimizer) as probe:
        for seed in range(4):
            now.append(seed)
            optimizer.zero_grad()
            backward(model, seed)
            try:
                optimizer.step()
            except ZeroDivisionError:
                assert seed in (1, 2)
    assert probe.steps == 2
    assert probe.histogram("updates").total == 2 * sum(p.numel() for p in model.parameters())


def test_a_scheduler_can_be_made_while_the_step_is_watched():
    model = small_model()
    optimizer = Lookahead(torch.optim.SGD(model.parameters(), lr=1.0))
    optimizer.defaults = {}
    with Probe(model, optimizer) as probe:
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        for seed in range(2):
            backward(model, seed)
            optimizer.step()
            scheduler.step()
    backward(model, 3)
    optimizer.step()
    assert probe.steps == 2 and optimizer.param_groups[0]["lr"] == 0.25


class Foreign:
    """An optimizer that torch knows nothing of."""

    def __init__(self, params):
        self.param_groups = [{"params": list(params)}]

    @torch.no_grad()
    def step(self):
        for weight in self.param_groups[0]["params"]:
            weight -= weight.grad


def test_a_step_that_someone_else_patches_meanwhile_stays_theirs_and_is_watched_no_longer():
    model, theirs = small_model(), []
    optimizer = Foreign(model.parameters())
    with Probe(model, optimizer) as probe:
        ours = optimizer.step
        optimizer.step = lambda: (theirs.append(1), ours())
        backward(model, 0)
        optimizer.step()
    before = weights_of(model)
    optimizer.step()
    assert probe.steps == 1 and len(theirs) == 2
    assert not torch.equal(before[0], weights_of(model)[0])


def test_a_patch_that_was_there_before_is_there_after():
    model = small_model()
    optimizer = Foreign(model.parameters())
    earlier = optimizer.step = functools.partial(Foreign.step, optimizer)
    with Probe(model, optimizer) as probe:
        backward(model, 0)
        optimizer.step()
    assert probe.steps == 1 and optimizer.step is earlier


def test_an_optimizer_of_a_hooked_class_that_was_never_initialised_is_watched():
    class Never(torch.optim.SGD):
        def __init__(self, inner):
            self.inner, self.param_groups = inner, inner.param_groups
            self.step = inner.step

    model = small_model()
    optimizer = Never(torch.optim.SGD(model.parameters(), lr=0.1))
    with Probe(model, optimizer) as probe:
        backward(model, 0)
        optimizer.step()
    assert probe.steps == 1


def test_the_inner_optimizer_may_step_without_its_wrapper():
    """As DeepSpeed does, whose engine steps, while the wrapper's step does nothing."""
    model = small_model()
    optimizer = Accelerated(adamw(model.parameters()))
    with Probe(model, optimizer) as probe:
        backward(model, 0)
        optimizer.optimizer.step()
    assert probe.steps == 1
    assert probe.histogram("updates").nonzero > 0


def test_wrappers_are_found_outermost_first_and_cycles_end():
    inner = adamw([nn.Parameter(torch.ones(1))])
    middle = MasterWeights(inner)
    outer = Accelerated(middle)
    inner.owner = outer  # as back references are
    assert [id(one) for one in with_wrapped(outer)] == [id(outer), id(middle), id(inner)]
    assert with_wrapped(adamw([nn.Parameter(torch.ones(1))]))[1:] == []


@pytest.mark.parametrize("kind", [list, tuple, lambda pair: dict(enumerate(pair))])
def test_wrapped_optimizers_are_found_in_lists_and_dicts_too(kind):
    inner = [adamw([nn.Parameter(torch.ones(1))]) for _ in range(2)]
    outer = Several(*inner)
    outer.optimizers = kind(inner)
    assert [id(one) for one in with_wrapped(outer)] == [id(outer), *map(id, inner)]


@pytest.mark.parametrize("wrap", [lambda o: o, Accelerated, Fabric, Lookahead])
def test_a_wrapper_without_copies_may_not_hold_others_beside_the_models_weights(wrap):
    model = small_model()
    stale = nn.Linear(6, 2)  # a head that was replaced after the optimizer was built
    optimizer = wrap(adamw([*model.parameters(), *stale.parameters()]))
    with pytest.raises(
        ValueError, match=r"holds a parameter of shape \(2, 6\) that is not the mod"
    ):
        Probe(model, optimizer)


def test_begun_and_ended_come_once_a_step_and_in_this_order():
    model, calls = small_model(), []
    optimizer = Accelerated(MasterWeights(adamw(model.parameters())))
    handles = StepWatch(
        optimizer, lambda: calls.append("begun"), lambda: calls.append("ended")
    ).register()
    for _ in range(2):
        backward(model, 0)
        optimizer.step()
    for handle in handles:
        handle.remove()
    backward(model, 0)
    optimizer.step()
    assert calls == ["begun", "ended"] * 2


@pytest.mark.parametrize("wrap", [Accelerated, Fabric, Apex, MasterWeights])
def test_a_wrapped_optimizer_of_other_weights_is_refused(wrap):
    model = small_model()
    other = wrap(adamw(list(copy.deepcopy(model).parameters())))
    with pytest.raises(ValueError, match=r"holds a parameter of shape .* not the model's"):
        Probe(model, other)


@pytest.mark.parametrize("wrap", [lambda o: o, Accelerated, Fabric])
def test_a_group_that_is_added_is_watched_from_then_on(wrap):
    model = small_model()
    model[0].requires_grad_(False)
    inner = torch.optim.SGD(model[2].parameters(), lr=0.1)
    optimizer = wrap(inner)
    with Probe(model, optimizer) as probe:
        for seed in range(3):
            if seed == 1:
                model[0].requires_grad_(True)
                inner.add_param_group({"params": list(model[0].parameters())})
            optimizer.zero_grad()
            backward(model, seed)
            optimizer.step()
    for kind in ("weight_gradients", "updates"):
        seen = {layer: probe.histogram(kind, layer).total for layer in probe.layers(kind)}
        assert seen == {"0.weight": 48, "0.bias": 12, "2.weight": 36, "2.bias": 6}


@pytest.mark.parametrize("wrap", [Accelerated, Fabric])
@pytest.mark.parametrize("inner", ["plain", "master weights", "stochastic rounding", "kahan"])
def test_lost_updates_are_counted_inside_the_wrappers_of_others(inner, wrap):
    counts = []
    for outer in (lambda optimizer: optimizer, wrap):
        model = small_model()
        optimizer = outer(WRAPPED[inner](list(model.parameters())))
        with updates_lost(model, optimizer) as lost:
            for seed in range(2):
                optimizer.zero_grad()
                backward(model, seed)
                optimizer.step()
        counts.append([c.tolist() for c in lost.counts])
        assert lost.steps == [0, 1]
    assert counts[0] == counts[1]


def test_accelerate_itself_is_watched():
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = small_model()
    prepared, optimizer = accelerator.prepare(model, MasterWeights(adamw(model.parameters())))
    with Probe(model, optimizer) as probe, updates_lost(model, optimizer) as lost:
        for seed in range(4):
            with accelerator.accumulate(prepared):
                optimizer.zero_grad()
                x = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))
                accelerator.backward(prepared(x.bfloat16()).float().square().mean())
                optimizer.step()
    assert (probe.steps, lost.steps) == (2, [0, 1])
    assert probe.histogram("updates").total == 2 * sum(p.numel() for p in model.parameters())
