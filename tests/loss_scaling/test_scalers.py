"""The loss scalers against `torch.amp.GradScaler`, step for step and bit for bit."""

import copy
import math
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mpbook.loss_scaling import (
    BACKOFF_FACTOR,
    GROWTH_FACTOR,
    GROWTH_INTERVAL,
    INITIAL_SCALE,
    DynamicLossScaler,
    NoLossScaler,
    StaticLossScaler,
    all_finite,
    gradients_of,
    nonfinite_gradients,
)
from mpbook.master_weights import MasterWeights

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
SEEDS, STEPS = range(20), 22
NEVER = 2**31 - 1
ALMOST_ONE = math.nextafter(1, 0)  # times a float32, rounded to float32, it changes nothing


# --- One loop for both scalers ----------------------------------------------------------------


def grad_scaler(device: str, scale: float = 2.0**16, **options):
    return torch.amp.GradScaler(device, init_scale=scale, **options)


def ours(_device: str, scale: float = 2.0**16, **options):
    return DynamicLossScaler(scale, **options)


def scale_of(scaler) -> float:
    return scaler.get_scale() if isinstance(scaler, torch.amp.GradScaler) else scaler.loss_scale


def small_model(seed: int, device: str) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).to(device)


def optimizer_for(name: str, model: nn.Module, **options) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, **options)
    return torch.optim.AdamW(model.parameters(), lr=1e-3, **options)


def schedule(seed: int) -> dict[str, float]:
    """Factors and scales, of which few are powers of two."""
    draw = torch.Generator().manual_seed(seed)
    pick = lambda *values: values[torch.randint(len(values), (), generator=draw)]  # noqa: E731
    return dict(
        scale=pick(2.0**16, 1000.3, 0.3, 77.0),
        growth_factor=pick(2.0, 1.7, 1.001, 4.0),
        backoff_factor=pick(0.5, 0.3, 0.999),
        growth_interval=pick(1, 2, 3, 5),
    )


def poisoned(seed: int) -> set[int]:
    """Steps whose gradients are infinite: one alone, three in a row, one that the seed picks."""
    return {3, 9, 10, 11, 13 + seed % 7}


@dataclass
class Trace:
    """What must be equal: numbers as text, so that NaN equals NaN, and tensors bit for bit."""

    numbers: list[str] = field(default_factory=list)
    scales: list[float] = field(default_factory=list)
    tensors: list[torch.Tensor] = field(default_factory=list)

    def note(self, scaler, *losses: torch.Tensor) -> None:
        self.numbers += [repr(loss.item()) for loss in losses]
        self.scales.append(scale_of(scaler))

    def keep(self, *models: nn.Module) -> "Trace":
        self.tensors += [p.detach().clone() for model in models for p in model.parameters()]
        return self


def assert_equal(actual: Trace, expected: Trace) -> None:
    assert actual.numbers == expected.numbers
    assert actual.scales == expected.scales
    for mine, theirs in zip(actual.tensors, expected.tensors, strict=True):
        assert mine.dtype == theirs.dtype and same_bits(mine, theirs)


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    left, right = (t.flatten().view(torch.uint8) for t in (left, right))
    return torch.equal(left, right)


def batch(seed: int, step: int, device: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * seed + step)
    return torch.randn(8, 6, generator=generator).to(device)


def loss_of(model: nn.Module, x: torch.Tensor, *, infinite: bool = False) -> torch.Tensor:
    return model(x).square().mean() * (math.inf if infinite else 1.0)


def plain_loop(make, optimizer_name: str, seed: int, device: str) -> Trace:
    """Scale, backward, step, update: the gradients are unscaled on the way."""
    model = small_model(seed, device)
    scaler, optimizer = make(device, **schedule(seed)), optimizer_for(optimizer_name, model)
    trace = Trace()
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(model, batch(seed, step, device), infinite=step in poisoned(seed))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        trace.note(scaler, loss)
    return trace.keep(model)


def clipped_loop(make, optimizer_name: str, seed: int, device: str) -> Trace:
    model = small_model(seed, device)
    scaler, optimizer = make(device, **schedule(seed)), optimizer_for(optimizer_name, model)
    trace = Trace()
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(model, batch(seed, step, device), infinite=step in poisoned(seed))
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        scaler.step(optimizer)
        scaler.update()
        trace.note(scaler, loss, norm)
    return trace.keep(model)


def accumulating_loop(make, optimizer_name: str, seed: int, device: str) -> Trace:
    """Three backward passes under one scale; a poisoned step overflows in its second."""
    model = small_model(seed, device)
    scaler, optimizer = make(device, **schedule(seed)), optimizer_for(optimizer_name, model)
    trace = Trace()
    for step in range(STEPS):
        optimizer.zero_grad()
        for part in range(3):
            infinite = part == 1 and step in poisoned(seed)
            loss = loss_of(model, batch(seed, 3 * step + part, device), infinite=infinite) / 3
            scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        trace.note(scaler, loss)
    return trace.keep(model)


def two_optimizers_loop(make, optimizer_name: str, seed: int, device: str) -> Trace:
    """Two models, two losses scaled together, and one optimizer skipped while the other steps."""
    models = [small_model(seed, device), small_model(seed + 100, device)]
    optimizers = [optimizer_for(optimizer_name, model) for model in models]
    scaler, trace = make(device, **schedule(seed)), Trace()
    for step in range(STEPS):
        losses = []
        for which, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
            optimizer.zero_grad()
            infinite = step in poisoned(seed) and step % 3 != which
            losses.append(loss_of(model, batch(seed, step, device), infinite=infinite))
        for loss in scaler.scale(losses):
            loss.backward()
        scaler.unscale_(optimizers[1])
        for optimizer in optimizers:
            scaler.step(optimizer)
        scaler.update()
        trace.note(scaler, *losses)
    return trace.keep(*models)


def autocast_loop(make, optimizer_name: str, seed: int, device: str) -> Trace:
    """Float16 by autocast, with overflows that come by themselves."""
    model = small_model(seed, device)
    options = dict(scale=2.0**22 * (1 + seed / 20), growth_factor=1.7, growth_interval=2)
    scaler, optimizer = make(device, **options), optimizer_for(optimizer_name, model)
    trace = Trace()
    for step in range(STEPS):
        optimizer.zero_grad()
        with torch.autocast(device, dtype=torch.float16):
            outputs = model(batch(seed, step, device))
        loss = outputs.float().square().mean()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        trace.note(scaler, loss)
    return trace.keep(model)


def resumed_loop(make, optimizer_name: str, seed: int, device: str, *, resume_with=None) -> Trace:
    """Halfway all is saved and built anew, the scaler with other settings, then loaded."""
    model, trace = small_model(seed, device), Trace()
    scaler, optimizer = make(device, **schedule(seed)), optimizer_for(optimizer_name, model)
    for step in range(STEPS):
        if step == 8 + seed % 5:
            saved = [part.state_dict() for part in (model, optimizer, scaler)]
            saved = copy.deepcopy(saved)
            model = small_model(seed + 1, device)
            optimizer = optimizer_for(optimizer_name, model)
            scaler = (resume_with or make)(device, scale=3.0, growth_interval=90)
            for part, state in zip((model, optimizer, scaler), saved, strict=True):
                part.load_state_dict(state)
        optimizer.zero_grad()
        loss = loss_of(model, batch(seed, step, device), infinite=step in poisoned(seed))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        trace.note(scaler, loss)
    return trace.keep(model)


LOOPS = [
    plain_loop,
    clipped_loop,
    accumulating_loop,
    two_optimizers_loop,
    autocast_loop,
    resumed_loop,
]


# --- Equal to GradScaler ----------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("optimizer_name", ["sgd", "adamw"])
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("seed", SEEDS)
def test_dynamic_scaling_equals_grad_scaler(seed, loop, optimizer_name, device):
    expected = loop(grad_scaler, optimizer_name, seed, device)
    assert_equal(loop(ours, optimizer_name, seed, device), expected)
    pairs = list(zip(expected.scales, expected.scales[1:], strict=False))
    assert any(b < a for a, b in pairs) and any(b > a for a, b in pairs)  # it fell and it grew
    assert all(p.isfinite().all() for p in expected.tensors)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("optimizer_name", ["sgd", "adamw"])
@pytest.mark.parametrize("loop", LOOPS[:5])
def test_static_scaling_equals_a_grad_scaler_that_cannot_change(loop, optimizer_name, device):
    def frozen(device, scale, **_options):
        return grad_scaler(device, scale, growth_interval=NEVER, backoff_factor=ALMOST_ONE)

    def static(_device, scale, **_options):
        return StaticLossScaler(scale)

    for seed in range(4):
        expected = loop(frozen, optimizer_name, seed, device)
        assert_equal(loop(static, optimizer_name, seed, device), expected)
        assert len(set(expected.scales)) == 1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("optimizer_name", ["sgd", "adamw"])
@pytest.mark.parametrize("loop", LOOPS)
def test_no_scaling_equals_a_grad_scaler_that_is_not_enabled(loop, optimizer_name, device):
    expected = loop(disabled, optimizer_name, 0, device)
    assert_equal(loop(off, optimizer_name, 0, device), expected)
    assert set(expected.scales) == {1.0}


@pytest.mark.parametrize(("first", "second"), [(grad_scaler, ours), (ours, grad_scaler)])
@pytest.mark.parametrize("seed", range(5))
def test_a_run_saved_with_one_scaler_goes_on_with_the_other(seed, first, second):
    expected = resumed_loop(grad_scaler, "adamw", seed, "cpu")
    assert_equal(resumed_loop(first, "adamw", seed, "cpu", resume_with=second), expected)


@pytest.mark.parametrize("device", DEVICES)
def test_fused_optimizers_that_skip_by_themselves_in_torch_end_up_the_same(device):
    def run(make):
        model = small_model(0, device)
        optimizer = optimizer_for("adamw", model, fused=True)
        scaler, trace = make(device, growth_interval=3), Trace()
        for step in range(STEPS):
            optimizer.zero_grad()
            loss = loss_of(model, batch(0, step, device), infinite=step in poisoned(0))
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            trace.note(scaler, loss)
        return trace.keep(model)

    assert_equal(run(ours), run(grad_scaler))


def with_gradient(value: torch.Tensor) -> tuple[nn.Parameter, torch.optim.Optimizer]:
    parameter = nn.Parameter(torch.zeros_like(value))
    parameter.grad = value.clone()
    return parameter, torch.optim.SGD([parameter], lr=1.0)


GRADIENTS = {
    "float32": torch.tensor([1.0, -3e38, 1e-45, 0.0, -0.0]),
    "bfloat16": torch.linspace(-1000, 1000, 77).bfloat16(),
    "float64": torch.tensor([1.0, 1e300], dtype=torch.float64),
    "empty": torch.zeros(0, 3),
    "strided": torch.arange(12.0).view(3, 4).T,
    "one infinity": torch.tensor([[1.0, 2.0], [math.inf, 3.0]]),
    "minus infinity": torch.tensor([1.0, -math.inf]),
    "one NaN": torch.tensor([1.0, math.nan, 2.0]),
    "NaN beside infinities": torch.tensor([math.nan, math.inf, -math.inf]),
    "float64 beyond float32": torch.tensor([-1e300, math.nan], dtype=torch.float64),
    "bfloat16 infinity": torch.tensor([1.0, math.inf], dtype=torch.bfloat16),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("scale", [2.0**16, 1000.3, 2.0**-20, 2.0**127, 2.0**-127])
@pytest.mark.parametrize("gradient", GRADIENTS.values(), ids=GRADIENTS)
def test_gradients_are_unscaled_and_judged_as_grad_scaler_does(gradient, scale, device):
    """Also where unscaling itself overflows, which both look for too early."""
    seen = []
    for scaler in (grad_scaler(device, scale, backoff_factor=0.9), ours(device, scale)):
        parameter, optimizer = with_gradient(gradient.to(device))
        scaler.scale(torch.zeros((), device=device))
        scaler.unscale_(optimizer)
        unscaled = parameter.grad.clone()
        scaler.step(optimizer)
        scaler.update()
        assert parameter.grad.stride() == gradient.stride()
        seen.append((unscaled, parameter.detach(), scale_of(scaler) < scale))
    assert same_bits(seen[0][0], seen[1][0]) and same_bits(seen[0][1], seen[1][1])
    assert seen[0][2] == seen[1][2]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("infinite", [False, True])
def test_sparse_gradients_are_unscaled_as_grad_scaler_does(infinite, device):
    tables = []
    for scaler in (grad_scaler(device, 1000.3), ours(device, 1000.3)):
        torch.manual_seed(0)
        table = nn.Embedding(5, 3, sparse=True).to(device)
        optimizer = torch.optim.SGD(table.parameters(), lr=1.0)
        before = table.weight.detach().clone()
        indices = torch.tensor([1, 1, 4], device=device)  # one of them twice
        scaler.scale(table(indices).square().sum() * (math.inf if infinite else 1)).backward()
        if infinite:
            assert nonfinite_gradients(table) == ["weight"]
        scaler.unscale_(optimizer)
        assert table.weight.grad.is_sparse
        scaler.step(optimizer)
        assert torch.equal(table.weight, before) == infinite
        tables.append(table.weight.detach())
    assert same_bits(*tables)


LOSSES = {
    "float32": torch.tensor(0.7),
    "float16": torch.tensor(2.0, dtype=torch.float16),
    "float16 vector": torch.tensor([2.0, 0.1], dtype=torch.float16),
    "bfloat16": torch.tensor(0.7, dtype=torch.bfloat16),
    "float64": torch.tensor(0.7, dtype=torch.float64),
    "vector": torch.tensor([0.1, 0.7]),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("scale", [2.0**16, 1000.3])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_losses_are_scaled_as_grad_scaler_does(loss, scale, device):
    """A scalar float16 loss becomes float32; its gradient is float16 and overflows at 2**16."""
    results = []
    for scaler in (grad_scaler(device, scale), ours(device, scale)):
        leaf = loss.to(device).requires_grad_()
        scaled = scaler.scale(leaf)
        scaled.sum().backward()
        results.append((scaled.detach(), leaf.grad))
    for theirs, mine in zip(*results, strict=True):
        assert mine.dtype == theirs.dtype and same_bits(mine, theirs)


def test_a_list_of_losses_is_scaled_one_by_one():
    scaler = StaticLossScaler(4.0)
    losses = [torch.tensor(1.0), torch.tensor(2.0)]
    for given_losses in (losses, tuple(losses)):
        scaled = scaler.scale(given_losses)
        assert type(scaled) is type(given_losses)
        assert [loss.item() for loss in scaled] == [4, 8]
    assert scaler.scale([]) == []


NESTS = {
    "list": lambda a, b: [a, b],
    "tuple": lambda a, b: (a, b),
    "nest": lambda a, b: [a, (b, [a])],
    "generator": lambda a, b: (loss for loss in (a, b)),
    "dictionary's values": lambda a, b: {"a": a, "b": b}.values(),
    "empty": lambda a, b: (),
}


def described(nest):
    """A nest as text, with every tensor as its number and dtype."""
    if isinstance(nest, torch.Tensor):
        return nest.item(), nest.dtype
    return type(nest).__name__, [described(one) for one in nest]


@pytest.mark.parametrize("nest", NESTS.values(), ids=NESTS)
def test_nests_of_losses_are_scaled_as_grad_scaler_does(nest):
    losses = torch.tensor(0.5), torch.tensor(3.0, dtype=torch.float16)
    theirs, mine = (make("cpu", 1000.3).scale(nest(*losses)) for make in (grad_scaler, ours))
    assert described(mine) == described(theirs)


CALLS = [
    "no gradient 0",
    "no gradient 1",
    "closure 0",
    "unscale 0",
    "unscale 1",
    "step 0",
    "step 1",
    "update",
    "new scale",
    "infinity",
    "backward",
]


@settings(max_examples=200)
@given(st.lists(st.sampled_from(CALLS), max_size=25))
def test_any_order_of_calls_is_an_error_where_it_is_one_in_grad_scaler(calls):
    """After an error both go on as if the call had not been made."""
    theirs, mine = grad_scaler("cpu", growth_interval=2), ours("cpu", growth_interval=2)
    theirs.scale(torch.zeros(()))
    sides = []
    for scaler in (theirs, mine):
        pairs = [with_gradient(torch.ones(2)), with_gradient(torch.ones(3))]
        sides.append((scaler, [p for p, _ in pairs], [o for _, o in pairs]))
    for call in calls:
        failed = [made_and_failed(call, *side) for side in sides]
        assert failed[0] == failed[1], call
        assert theirs.state_dict() == mine.state_dict()
        for left, right in zip(sides[0][1], sides[1][1], strict=True):
            assert same_bits(left.detach(), right.detach())
            assert (left.grad is None) == (right.grad is None)
            assert left.grad is None or same_bits(left.grad, right.grad)


def made_and_failed(call, scaler, parameters, optimizers) -> bool:
    if call == "infinity":
        parameters[0].grad = torch.full_like(parameters[0], math.inf)
    if call == "backward":
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, 4096.0)
    if call.startswith("no gradient"):
        parameters[int(call[-1])].grad = None
    try:
        if call.startswith("closure"):
            scaler.step(optimizers[int(call[-1])], closure=lambda: 0.0)
        if call.startswith("unscale"):
            scaler.unscale_(optimizers[int(call[-1])])
        if call.startswith("step"):
            scaler.step(optimizers[int(call[-1])])
        if call == "update":
            scaler.update()
        if call == "new scale":
            scaler.update(1234.5)
    except (RuntimeError, AssertionError, ValueError):
        return True
    return False


# --- No scale, as in a GradScaler that is not enabled -----------------------------------------


def off(_device: str, **_options):
    return NoLossScaler()


def disabled(device: str, **_options):
    return grad_scaler(device, enabled=False)


QUIET_CALLS = [*CALLS, "no optimizer", "step with a closure", "load", "scale"]


def answer(call, scaler, parameters, optimizers):
    """What a call gives back, or the type of its error; as text where it is a tensor's."""
    optimizer = optimizers[int(call[-1])] if call[-1].isdigit() else optimizers[0]
    made = {
        "infinity": lambda: parameters[0].grad.fill_(math.inf) and None,
        "backward": lambda: [p.grad.fill_(8.0) for p in parameters if p.grad is not None] and None,
        "no gradient": lambda: setattr(parameters[int(call[-1])], "grad", None),
        "unscale": lambda: scaler.unscale_(optimizer),
        "step": lambda: scaler.step(optimizer),
        "step with a closure": lambda: scaler.step(optimizer, lambda: "the loss"),
        "closure": lambda: scaler.step(optimizer, closure=lambda: "the loss"),
        "update": scaler.update,
        "new scale": lambda: scaler.update(1234.5),
        "no optimizer": lambda: scaler.unscale_(None),
        "load": lambda: scaler.load_state_dict(dict(scale=3.0)),
        "scale": lambda: scaler.scale(7),
    }
    try:
        return repr(made[call.rstrip(" 01")]())
    except (AttributeError, RuntimeError, AssertionError, ValueError) as error:
        return type(error)


@settings(max_examples=200)
@given(st.lists(st.sampled_from(QUIET_CALLS), max_size=25))
def test_without_a_scale_every_call_does_what_it_does_in_a_grad_scaler_that_is_off(calls):
    sides = []
    for scaler in (disabled("cpu"), NoLossScaler()):
        pairs = [with_gradient(torch.ones(2)), with_gradient(torch.ones(3))]
        sides.append((scaler, [p for p, _ in pairs], [o for _, o in pairs]))
    for call in calls:
        theirs, mine = (answer(call, *side) for side in sides)
        assert mine == (repr(True) if call.startswith("step ") and theirs == "None" else theirs)
        assert sides[0][0].state_dict() == sides[1][0].state_dict() == {}
        for left, right in zip(sides[0][1], sides[1][1], strict=True):
            assert same_bits(left.detach(), right.detach())


def test_both_say_that_they_are_off_and_have_a_scale_of_one():
    for scaler in (disabled("cpu"), NoLossScaler()):
        assert (scaler.is_enabled(), scaler.get_scale()) == (False, 1.0)
    for scaler in (grad_scaler("cpu", 8.0), StaticLossScaler(8.0), DynamicLossScaler(8.0)):
        assert (scaler.is_enabled(), scaler.get_scale()) == (True, 8.0)


def test_without_a_scale_whatever_is_scaled_comes_back_itself():
    for scaler in (disabled("cpu"), NoLossScaler()):
        for loss in (torch.tensor(3.0), [torch.tensor(1.0)], (1, 2), iter([1]), "loss", None):
            assert scaler.scale(loss) is loss


def test_lbfgs_trains_the_same_without_a_scale():
    weights = []
    for make in (disabled, off):
        model, scaler = small_model(0, "cpu"), make("cpu")
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)

        def closure():
            optimizer.zero_grad()  # noqa: B023
            loss = loss_of(model, batch(0, 0, "cpu"))  # noqa: B023
            scaler.scale(loss).backward()  # noqa: B023
            return loss

        losses = [scaler.step(optimizer, closure).item() for _ in range(3)]
        assert losses[2] < losses[0]
        weights.append([*losses, *(p.detach() for p in model.parameters())])
    assert weights[0][:3] == weights[1][:3]
    assert all(map(same_bits, weights[0][3:], weights[1][3:]))


def test_a_model_without_any_gradient_makes_a_step_without_a_scale():
    parameter = nn.Parameter(torch.ones(2))
    for scaler in (disabled("cpu"), NoLossScaler()):
        optimizer = torch.optim.SGD([parameter], lr=1.0)
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    assert parameter.tolist() == [1, 1]


@pytest.mark.parametrize("after", ["step", "update", "load_state_dict"])
def test_without_a_scale_a_wrapper_takes_its_gradients_once_a_step(after):
    """A second `unscale_` would undo what clipping did to the gradients that the first took."""
    parameter = nn.Parameter(torch.ones(2, dtype=torch.float16))
    optimizer, scaler = Copies(parameter), NoLossScaler()
    parameter.grad = torch.ones_like(parameter)
    for _ in range(2):
        scaler.unscale_(optimizer)
        optimizer.copy.grad *= 0.5
    assert optimizer.taken == 1 and optimizer.copy.grad.tolist() == [0.25, 0.25]
    done = {"step": optimizer, "update": None, "load_state_dict": {}}[after]
    getattr(scaler, after)(done)
    scaler.unscale_(optimizer)
    assert optimizer.taken == 2


FACTORS = dict(
    scale=st.floats(2.0**-100, 3e38),
    growth_factor=st.floats(1, 1e30, exclude_min=True),
    backoff_factor=st.floats(1e-20, 1, exclude_max=True),
    growth_interval=st.integers(1, 4),
)


@settings(max_examples=200)
@given(st.fixed_dictionaries(FACTORS), st.lists(st.booleans(), max_size=30))
def test_any_schedule_moves_as_grad_scalers_does(options, steps):
    """Down to a scale of zero, and up to the largest float32."""
    theirs, mine = grad_scaler("cpu", **options), ours("cpu", **options)
    theirs.scale(torch.zeros(()))
    for finite in steps:
        for scaler in (theirs, mine):
            _, optimizer = with_gradient(torch.tensor([1.0 if finite else math.inf]))
            scaler.unscale_(optimizer)
            scaler.update()
        assert mine.state_dict() == theirs.state_dict()
        assert math.isfinite(mine.loss_scale)


def test_the_schedule_backs_off_at_once_and_grows_after_a_clean_interval():
    scaler = DynamicLossScaler(1024, growth_interval=3)
    seen = []
    for finite in (True, True, False, True, True, True, True, False, False):
        make_a_step(scaler, finite=finite)
        seen.append(scaler.loss_scale)
    assert seen == [1024, 1024, 512, 512, 512, 1024, 1024, 512, 256]


def make_a_step(scaler: StaticLossScaler, *, finite: bool = True) -> bool:
    _, optimizer = with_gradient(torch.tensor([1.0 if finite else math.nan]))
    updated = scaler.step(optimizer)
    scaler.update()
    return updated


def test_a_scale_does_not_grow_past_float32():
    scaler = DynamicLossScaler(2.0**126, growth_interval=1)
    for _ in range(3):
        make_a_step(scaler)
    assert scaler.loss_scale == 2.0**127 and scaler.finite_steps == 0


def test_a_scale_that_has_fallen_too_far_poisons_the_weights_as_in_grad_scaler():
    for scaler in (grad_scaler("cpu", 2.0**-126), ours("cpu", 2.0**-126)):
        scaler.scale(torch.zeros(()))
        for _ in range(30):
            _, optimizer = with_gradient(torch.tensor([math.inf]))
            scaler.step(optimizer)
            scaler.update()
        assert scale_of(scaler) == 0
        parameter, optimizer = with_gradient(torch.zeros(2))
        scaler.step(optimizer)
        assert parameter.isnan().all()


def test_the_defaults_are_those_of_grad_scaler():
    theirs, mine = torch.amp.GradScaler("cpu"), DynamicLossScaler()
    assert mine.state_dict() == theirs.state_dict()
    assert StaticLossScaler().loss_scale == theirs.get_scale() == INITIAL_SCALE
    assert theirs.get_growth_factor() == GROWTH_FACTOR
    assert theirs.get_backoff_factor() == BACKOFF_FACTOR
    assert theirs.get_growth_interval() == GROWTH_INTERVAL
    assert NoLossScaler().loss_scale == torch.amp.GradScaler("cpu", enabled=False).get_scale()


def test_a_scale_is_kept_in_float32():
    assert DynamicLossScaler(0.1).loss_scale == torch.tensor(0.1).item() != 0.1
    scaler = StaticLossScaler(2)
    scaler.update(1000.3)
    assert scaler.loss_scale == torch.tensor(1000.3).item()


@pytest.mark.parametrize("kind", [StaticLossScaler, DynamicLossScaler, NoLossScaler])
def test_a_step_says_whether_it_was_made(kind):
    assert make_a_step(kind()) is True
    assert make_a_step(kind(), finite=False) is (kind is NoLossScaler)


@pytest.mark.parametrize("kind", [StaticLossScaler, NoLossScaler])
def test_only_a_dynamic_scale_changes(kind):
    scaler = kind()
    before = scaler.loss_scale
    for finite in (True, False, False):
        make_a_step(scaler, finite=finite)
    assert scaler.loss_scale == before


def test_a_new_scale_is_used_from_the_next_step_and_the_count_goes_on():
    scaler = DynamicLossScaler(64, growth_interval=3)
    make_a_step(scaler)
    scaler.update(10)
    assert scaler.loss_scale == 10 and scaler.scale(torch.tensor(1.0)).item() == 10
    make_a_step(scaler)
    make_a_step(scaler)
    assert scaler.loss_scale == 20


def test_a_new_scale_closes_the_step():
    scaler = StaticLossScaler(2.0)
    parameter, optimizer = with_gradient(torch.tensor([math.inf]))
    scaler.unscale_(optimizer)
    scaler.update(8.0)
    parameter.grad = torch.tensor([16.0])
    assert scaler.step(optimizer) and parameter.item() == -2


# --- Waiting for the device -------------------------------------------------------------------


class Waits(TorchDispatchMode):
    """Counts how often a tensor's number is brought to Python."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function == torch.ops.aten._local_scalar_dense.default
        return function(*args, **kwargs or {})


def waits_of_a_step(scaler, optimizers: int, *, clip: bool) -> int:
    models = [small_model(seed, "cpu") for seed in range(optimizers)]
    made = [optimizer_for("sgd", model) for model in models]
    losses = [loss_of(model, batch(0, 0, "cpu")) for model in models]
    scaler.scale(torch.zeros(()))
    with Waits() as waits:
        for loss in scaler.scale(losses):
            loss.backward()
        for optimizer in made:
            if clip:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
        scaler.update()
    return waits.count


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("optimizers", [1, 3])
def test_a_step_waits_once_for_each_optimizer_as_in_grad_scaler(optimizers, clip):
    assert waits_of_a_step(grad_scaler("cpu"), optimizers, clip=clip) == optimizers
    for scaler in (DynamicLossScaler(), DynamicLossScaler(growth_interval=1), StaticLossScaler()):
        assert waits_of_a_step(scaler, optimizers, clip=clip) == optimizers
    assert waits_of_a_step(NoLossScaler(), optimizers, clip=clip) == 0


def test_unscaling_does_not_wait():
    _, optimizer = with_gradient(torch.ones(3))
    with Waits() as waits:
        DynamicLossScaler().unscale_(optimizer)
    assert waits.count == 0


# --- Optimizers with 16-bit weights -----------------------------------------------------------


class Copies:
    """A wrapper: float32 copies in its groups, and gradients that it takes when it is told to."""

    def __init__(self, parameter: nn.Parameter):
        self.parameter = parameter
        self.copy = nn.Parameter(parameter.detach().float())
        self.param_groups = [{"params": [self.copy]}]
        self.taken = 0

    def take_gradients(self):
        self.taken += 1
        self.copy.grad = self.parameter.grad.float()
        return [self.copy.grad]

    def step(self):
        with torch.no_grad():
            self.copy -= self.copy.grad
            self.parameter.copy_(self.copy)


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("kind", [StaticLossScaler, DynamicLossScaler, NoLossScaler])
def test_a_wrapper_takes_its_gradients_once_before_they_are_unscaled(kind, early):
    parameter = nn.Parameter(torch.ones(2, dtype=torch.float16))
    optimizer, scaler = Copies(parameter), kind()
    parameter.grad = torch.full((2,), 2**-10 * scaler.loss_scale, dtype=torch.float16)
    if early:
        scaler.unscale_(optimizer)
        assert optimizer.copy.grad.tolist() == [2**-10] * 2
    scaler.step(optimizer)
    scaler.update()
    assert optimizer.taken == 1
    assert parameter.tolist() == [1 - 2**-10] * 2
    assert parameter.grad.tolist() == [2**-10 * scaler.loss_scale] * 2


def test_an_infinity_of_a_16_bit_weight_skips_the_step_of_its_copy():
    parameter = nn.Parameter(torch.ones(2, dtype=torch.float16))
    optimizer = Copies(parameter)
    parameter.grad = torch.tensor([math.inf, 1.0], dtype=torch.float16)
    assert DynamicLossScaler().step(optimizer) is False
    assert parameter.tolist() == [1, 1]


def test_16_bit_weights_with_float32_updates_train_under_a_scale():
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.zeros(4, dtype=torch.float16))
    optimizer = MasterWeights(torch.optim.SGD([parameter], lr=1.0))
    scaler = DynamicLossScaler(2.0**14)
    for _ in range(4):
        optimizer.zero_grad()
        loss = parameter.sum() * 2**-24  # whose half would be nothing in float16
        scaler.scale(loss / 2).backward()
        scaler.step(optimizer)
        scaler.update()
    assert optimizer.copies[parameter].tolist() == [-4 * 2**-25] * 4


# --- Which parameter it is --------------------------------------------------------------------


def deep_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Linear(4, 4) for _ in range(5)])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("make", [grad_scaler, ours])
@pytest.mark.parametrize("unscaled", [False, True])
def test_the_last_name_is_where_the_backward_pass_overflowed_first(unscaled, make, device):
    model = deep_model().to(device)
    model[2].register_full_backward_hook(lambda _module, into, _out: (into[0] * math.inf,))
    optimizer, scaler = torch.optim.SGD(model.parameters()), make(device)
    scaler.scale(model(torch.ones(2, 4, device=device)).sum()).backward()
    if unscaled:
        scaler.unscale_(optimizer)
    assert nonfinite_gradients(model) == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_every_name_is_there_if_the_forward_pass_overflowed():
    model = deep_model()
    loss_of(model, torch.ones(2, 4), infinite=True).backward()
    assert nonfinite_gradients(model) == [name for name, _ in model.named_parameters()]


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_one_bad_element_is_enough_to_be_named(bad):
    model = deep_model()
    loss_of(model, torch.ones(2, 4)).backward()
    assert nonfinite_gradients(model) == []
    model[1].bias.grad[2] = bad
    model[3].weight.grad = None
    model[4].weight.grad[0, 3] = bad
    assert nonfinite_gradients(model) == ["1.bias", "4.weight"]


def test_gradients_of_several_dtypes_are_named_too():
    model = deep_model()
    for layer, dtype in zip(model, (torch.float16, torch.bfloat16, torch.float64), strict=False):
        layer.to(dtype)
        for parameter in layer.parameters():
            parameter.grad = torch.ones_like(parameter)
    model[0].weight.grad[0, 0] = math.inf
    model[2].bias.grad.fill_(1e300)
    assert nonfinite_gradients(model) == ["0.weight"]


def test_a_model_without_gradients_has_nothing_to_name():
    with pytest.raises(ValueError, match=r"between backward\(\) and zero_grad\(\)"):
        nonfinite_gradients(deep_model())


def test_all_finite_sees_every_tensor_and_stays_on_its_device():
    assert all_finite([torch.ones(2), torch.zeros(0)])
    assert all_finite([])
    assert not all_finite([torch.tensor([math.nan]), torch.ones(2)])
    assert not all_finite([torch.ones(2), torch.tensor([-math.inf, 0.0])])
    for device in DEVICES:
        verdict = all_finite([torch.ones(2, device=device), torch.zeros(3)])
        assert verdict.device.type == device and verdict.shape == () and verdict.item() is True


def test_gradients_of_every_group_count_without_those_that_are_none():
    a, b, c = (nn.Parameter(torch.zeros(n)) for n in (1, 2, 3))
    optimizer = torch.optim.SGD([{"params": [a, b]}, {"params": [c]}])
    assert gradients_of(optimizer) == []
    b.grad, c.grad = torch.ones(2), torch.ones(3)
    assert [g is p.grad for g, p in zip(gradients_of(optimizer), (b, c), strict=True)] == [True] * 2


# --- Saving -----------------------------------------------------------------------------------


def test_a_saved_scaler_goes_on_where_it_stopped():
    scaler = DynamicLossScaler(64, growth_interval=3, growth_factor=4.0, backoff_factor=0.25)
    make_a_step(scaler)
    make_a_step(scaler)
    other = DynamicLossScaler(2, growth_interval=50)
    other.load_state_dict(scaler.state_dict())
    assert other.state_dict() == scaler.state_dict()
    make_a_step(other)
    assert other.loss_scale == 256 and scaler.loss_scale == 64
    make_a_step(other, finite=False)
    assert other.loss_scale == 64


def test_a_saved_state_does_not_change_with_the_scaler():
    scaler = DynamicLossScaler(64)
    saved = scaler.state_dict()
    make_a_step(scaler, finite=False)
    assert saved["scale"] == 64 and scaler.loss_scale == 32


@pytest.mark.parametrize("kind", [StaticLossScaler, DynamicLossScaler, NoLossScaler])
def test_a_loaded_scaler_begins_a_new_step(kind):
    scaler = kind()
    _, optimizer = with_gradient(torch.ones(2))
    scaler.unscale_(optimizer)
    scaler.load_state_dict(scaler.state_dict())
    scaler.unscale_(optimizer)


def test_a_static_scaler_keeps_its_scale_when_saved():
    scaler = StaticLossScaler(3.0)
    scaler.load_state_dict(StaticLossScaler(5.0).state_dict())
    assert scaler.loss_scale == 5


def test_a_scaler_can_be_copied_between_steps():
    scaler = DynamicLossScaler(64)
    other = copy.deepcopy(scaler)
    make_a_step(other, finite=False)
    assert (scaler.loss_scale, other.loss_scale) == (64, 32)


STATE = DynamicLossScaler(64).state_dict()


@pytest.mark.parametrize(
    ("kind", "state", "message"),
    [
        (DynamicLossScaler, dict(scale=2.0), "a DynamicLossScaler needs"),
        (DynamicLossScaler, torch.amp.GradScaler("cpu", enabled=False).state_dict(), "keys \\[\\]"),
        (DynamicLossScaler, STATE | dict(more=1), "'more'"),
        (StaticLossScaler, STATE, "a StaticLossScaler needs \\['scale'\\]"),
        (StaticLossScaler, {}, "a StaticLossScaler needs"),
        (StaticLossScaler, dict(scale=0.0), "scale=0.0"),
        (DynamicLossScaler, STATE | dict(scale=0.0), "scale=0.0"),
        (DynamicLossScaler, STATE | dict(scale=math.nan), "scale=nan"),
        (DynamicLossScaler, STATE | dict(growth_factor=1.0), "growth_factor=1.0"),
        (DynamicLossScaler, STATE | dict(backoff_factor=2.0), "backoff_factor=2.0"),
        (DynamicLossScaler, STATE | dict(growth_interval=0), "growth_interval=0"),
        (DynamicLossScaler, STATE | dict(_growth_tracker=-1), "_growth_tracker=-1"),
        (DynamicLossScaler, STATE | dict(_growth_tracker=2000), "fewer than growth_interval=2000"),
        (DynamicLossScaler, STATE | dict(_growth_tracker=1.5), "_growth_tracker=1.5"),
        (DynamicLossScaler, STATE | dict(_growth_tracker=True), "_growth_tracker=True"),
    ],
)
def test_an_impossible_state_is_refused_and_nothing_of_it_is_taken(kind, state, message):
    scaler = kind(7.0)
    _, optimizer = with_gradient(torch.ones(2))
    scaler.unscale_(optimizer)
    with refusal(scaler, ValueError, message):
        scaler.load_state_dict(state)


def test_the_highest_count_of_finite_steps_can_be_loaded():
    scaler = DynamicLossScaler()
    scaler.load_state_dict(STATE | dict(_growth_tracker=1999))
    make_a_step(scaler)
    assert scaler.loss_scale == 128


# --- Bad input --------------------------------------------------------------------------------


class refusal:  # noqa: N801
    """`pytest.raises` which checks that the scaler and the parameters are as they were."""

    def __init__(self, scaler, error, message, *parameters):
        self.scaler, self.parameters = scaler, parameters
        self.raises = pytest.raises(error, match=message)

    def __enter__(self):
        self.before = self.snapshot()
        return self.raises.__enter__()

    def __exit__(self, *exception):
        done = self.raises.__exit__(*exception)
        assert self.snapshot() == self.before
        return done

    def snapshot(self):
        tensors = [t for p in self.parameters for t in (p, p.grad) if t is not None]
        return repr(vars(self.scaler)), [t.tolist() for t in tensors]


@pytest.fixture(params=[StaticLossScaler, DynamicLossScaler])
def scaler(request):
    return request.param()


def test_unscaling_twice_is_refused(scaler):
    parameter, optimizer = with_gradient(torch.ones(2))
    scaler.unscale_(optimizer)
    with refusal(scaler, RuntimeError, r"unscale_\(\) is called for the second time", parameter):
        scaler.unscale_(optimizer)


def test_unscaling_after_the_step_is_refused(scaler):
    parameter, optimizer = with_gradient(torch.ones(2))
    scaler.step(optimizer)
    with refusal(scaler, RuntimeError, r"unscale_\(\) is called after step\(\)", parameter):
        scaler.unscale_(optimizer)


def test_a_second_step_without_an_update_is_refused(scaler):
    parameter, optimizer = with_gradient(torch.ones(2))
    scaler.step(optimizer)
    with refusal(scaler, RuntimeError, r"step\(\) has already been called on this SGD", parameter):
        scaler.step(optimizer)


def test_a_second_step_after_a_skipped_one_is_refused():
    scaler = DynamicLossScaler()
    parameter, optimizer = with_gradient(torch.tensor([math.inf]))
    scaler.step(optimizer)
    with refusal(scaler, RuntimeError, r"has already been called", parameter):
        scaler.step(optimizer)


def test_an_update_before_any_check_is_refused(scaler):
    with refusal(scaler, RuntimeError, r"no gradients were checked"):
        scaler.update()
    make_a_step(scaler)
    with refusal(scaler, RuntimeError, r"expected unscale_\(\) or step\(\)"):
        scaler.update()


def test_a_step_without_any_gradient_is_refused_with_torchs_words_too(scaler):
    parameter = nn.Parameter(torch.ones(2))
    optimizer, theirs = torch.optim.SGD([parameter]), torch.amp.GradScaler("cpu")
    for each in (scaler, theirs):
        each.scale(torch.zeros(()))
        each.unscale_(optimizer)
    with pytest.raises(AssertionError) as said:
        theirs.step(optimizer)
    with refusal(scaler, ValueError, "no parameter of this SGD has a gradient", parameter) as mine:
        scaler.step(optimizer)
    assert str(said.value) in str(mine.value)
    with pytest.raises(AssertionError):
        theirs.update()
    with refusal(scaler, RuntimeError, "no gradients were checked"):
        scaler.update()


@pytest.mark.parametrize("optimizer", [nn.Linear(1, 1), [torch.ones(1)], None])
def test_what_is_no_optimizer_is_refused(scaler, optimizer):
    for call in (scaler.unscale_, scaler.step):
        with refusal(scaler, TypeError, r"optimizer: a \w+; expected a torch.optim.Optimizer"):
            call(optimizer)


@pytest.mark.parametrize("kind", [StaticLossScaler, DynamicLossScaler])
def test_float16_gradients_are_refused_in_torchs_words_and_none_is_touched(kind):
    first, second = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, dtype=torch.float16))
    first.grad, second.grad = torch.ones(2), torch.ones(2, dtype=torch.float16)
    optimizer, scaler = torch.optim.SGD([first, second]), kind(2.0)
    theirs = torch.amp.GradScaler("cpu")
    theirs.scale(torch.zeros(()))
    with pytest.raises(ValueError, match=r"^Attempting to unscale FP16 gradients\.$") as error:
        theirs.unscale_(optimizer)
    first.grad.fill_(1.0)
    for call in (scaler.unscale_, scaler.step):
        with refusal(scaler, ValueError, str(error.value), first, second) as mine:
            call(optimizer)
        assert "float32 parameters" in str(mine.value) and "MasterWeights" in str(mine.value)


def test_without_a_scale_float16_gradients_are_used_as_they_are():
    parameter, optimizer = with_gradient(torch.ones(2, dtype=torch.float16))
    assert NoLossScaler().step(optimizer) and parameter.tolist() == [-1, -1]


def test_closures_are_refused_with_torchs_words_too(scaler):
    parameter, optimizer = with_gradient(torch.ones(2))
    with pytest.raises(RuntimeError) as said:
        torch.amp.GradScaler("cpu").step(optimizer, closure=lambda: 0.0)
    with refusal(scaler, RuntimeError, "closure: expected None.*LBFGS", parameter) as mine:
        scaler.step(optimizer, lambda: 0.0)
    assert str(said.value) in str(mine.value)


def test_a_step_that_fails_can_be_made_again():
    scaler = StaticLossScaler(2.0)
    parameter, optimizer = with_gradient(torch.ones(2))
    failures = iter([True])

    def fail_once(*_arguments):
        if next(failures, False):
            raise KeyboardInterrupt

    optimizer.register_step_pre_hook(fail_once)
    with pytest.raises(KeyboardInterrupt):
        scaler.step(optimizer)
    assert scaler.step(optimizer) and parameter.tolist() == [-0.5, -0.5]


@pytest.mark.parametrize("kind", [StaticLossScaler, DynamicLossScaler])
@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (torch.tensor(3), r"loss: torch.int64; expected a floating-point tensor"),
        (torch.tensor(True), r"loss: torch.bool"),
        (0.5, r"loss: a float; expected a tensor"),
        ("loss", r"loss: a str"),
        (None, r"loss: a NoneType"),
        ([torch.tensor(1.0), 2], r"loss: a int"),
        ({"loss": torch.tensor(1.0)}, r"loss: a dict"),
    ],
)
def test_a_loss_that_cannot_be_scaled_is_refused(loss, message, kind):
    scaler = kind()
    with refusal(scaler, TypeError, message):
        scaler.scale(loss)


NO_SCALES = [0.0, -1.0, math.inf, -math.inf, math.nan, True, "65536", 1e39, 1e-39, 10**400, 2j]


@pytest.mark.parametrize("scale", NO_SCALES, ids=str)
@pytest.mark.parametrize("kind", [StaticLossScaler, DynamicLossScaler])
def test_impossible_scales_are_refused(kind, scale):
    with pytest.raises(
        ValueError, match=r"^scale=.*: expected a positive number that float32 holds"
    ):
        kind(scale)
    scaler = kind(4.0)
    parameter, optimizer = with_gradient(torch.ones(2))
    scaler.step(optimizer)
    with refusal(scaler, ValueError, r"^new_scale=.*: expected a positive number", parameter):
        scaler.update(scale)


def test_the_smallest_and_the_largest_scale_are_possible():
    for scale in (2.0**-127, torch.finfo(torch.float32).max):
        scaler = StaticLossScaler(scale)
        parameter, optimizer = with_gradient(torch.tensor([scale]))
        scaler.step(optimizer)
        assert scaler.loss_scale == scale and parameter.item() == pytest.approx(-1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(growth_factor=1.0), "growth_factor=1.0: expected a number above 1"),
        (dict(growth_factor=math.inf), "growth_factor=inf"),
        (dict(growth_factor=math.nan), "growth_factor=nan"),
        (dict(growth_factor="2"), "growth_factor='2'"),
        (dict(backoff_factor=1.0), "backoff_factor=1.0: expected between 0 and 1"),
        (dict(backoff_factor=0.0), "backoff_factor=0.0"),
        (dict(backoff_factor=math.nan), "backoff_factor=nan"),
        (dict(backoff_factor=None), "backoff_factor=None"),
        (dict(growth_interval=0), "growth_interval=0: expected 1, 2, ... steps"),
        (dict(growth_interval=2.5), "growth_interval=2.5"),
        (dict(growth_interval=True), "growth_interval=True"),
    ],
)
def test_impossible_schedules_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DynamicLossScaler(**options)


# --- What the chapter says of torch's scaler ----------------------------------------------------


def one_step(scale: float, *, gradient: float = 1.0, **options):
    """A weight of 1 and torch's scaler, after a step with a constant gradient at a rate of 0.5."""
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.5, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1)
    scaler.scale(gradient * weight.sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    return weight.item(), scaler.get_scale()


def test_torch_s_scale_ends_at_the_largest_power_of_two_and_steps_go_on_there():
    assert one_step(2.0**126) == (0.5, 2.0**127)
    assert one_step(2.0**127) == (0.5, 2.0**127)
    assert one_step(2.0**127, gradient=2.0) == (1.0, 2.0**126)  # overflows, and is skipped
    top = ours("cpu", 2.0**127, growth_interval=1)
    _, optimizer = with_gradient(torch.tensor([1.0]))
    assert top.step(optimizer)
    top.update()
    assert top.loss_scale == 2.0**127


def test_at_the_top_a_cpu_that_flushes_subnormals_divides_every_gradient_to_0():
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush subnormal numbers")
    try:
        assert one_step(2.0**127)[0] == 1.0
        assert one_step(2.0**126)[0] == 0.5
    finally:
        torch.set_flush_denormal(False)


def test_below_2_to_minus_128_only_an_optimizer_that_divides_still_steps_right():
    assert one_step(2.0**-130)[0] == -math.inf
    assert one_step(2.0**-130, fused=True)[0] == 0.5


@pytest.mark.parametrize("inputs", [1.0, 1e-6])
def test_tiny_inputs_take_the_weights_gradients_down_before_the_activations(inputs):
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(32, 10)
    outputs = layer(inputs * torch.randn(64, 32, generator=generator))
    outputs.retain_grad()
    nn.functional.cross_entropy(outputs, torch.arange(64) % 10).backward()
    lost = [(gradient.half() == 0).float().mean() for gradient in (outputs.grad, layer.weight.grad)]
    assert lost[0] == 0 and (lost[1] > 0.2) == (inputs < 1)
