"""`Probe` against counting by hand, on training that must not notice that it is watched."""

import copy
import math
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from watched_models import DEVICES, Puts, Wrapped, backward, batch, small_mlp, step, together

from mpbook.loss_scaling import DynamicLossScaler, StaticLossScaler
from mpbook.models import GPT, MLP, GPTConfig
from mpbook.precision import Precision
from mpbook.watch.binades import BinCounter
from mpbook.watch.histograms import log2_histogram
from mpbook.watch.probe import Probe
from mpbook.watch.report import KINDS

# --- What is counted ----------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_one_step_by_hand(device):
    model, x = small_mlp(device), batch(device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    outputs, y = {}, x
    for name, module in model.named_children():
        outputs[name] = y = module(y)
    gradients = dict(
        zip(outputs, torch.autograd.grad(y.square().mean(), outputs.values()), strict=True)
    )
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with Probe(model, optimizer) as probe:
        step(model, optimizer, x)
    for layer in outputs:
        assert probe.histogram("activations", layer) == log2_histogram(outputs[layer])
        expected = log2_histogram(gradients[layer])
        assert probe.histogram("activation_gradients", layer) == expected
    for name, parameter in model.named_parameters():
        assert probe.histogram("weights", name) == log2_histogram(before[name])
        assert probe.histogram("weight_gradients", name) == log2_histogram(parameter.grad)
        update = parameter.detach() - before[name]
        assert probe.histogram("updates", name) == log2_histogram(update)
    assert probe.histogram("activations") == together(outputs.values())
    assert probe.histogram("weights") == together(before.values())
    assert (probe.steps, probe.watched_steps) == (1, 1)


def test_layers_are_named_in_the_models_order():
    model = small_mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Probe(model, optimizer) as probe:
        step(model, optimizer, batch())
    for kind in ("activations", "activation_gradients"):
        assert probe.layers(kind) == ["0", "1", "2", "3", "4"]
    for kind in ("weights", "weight_gradients", "updates"):
        assert probe.layers(kind) == [name for name, _ in model.named_parameters()]


def test_a_model_that_is_one_module_is_named():
    model = nn.Linear(6, 3)
    with Probe(model) as probe:
        backward(model, batch())
    assert probe.layers("activation_gradients") == ["(model)"]
    assert probe.layers("weights") == ["weight", "bias"]


def test_other_modules_can_be_chosen():
    model = nn.Sequential(OrderedDict(a=small_mlp(), b=nn.Linear(3, 2)))
    with Probe(model, modules=lambda name, module: isinstance(module, MLP)) as probe:
        backward(model, batch())
    assert probe.layers("activations") == ["a"]
    with Probe(model, modules=lambda name, module: name in ("a.0", "(model)")) as probe:
        backward(model, batch())
    assert probe.layers("activations") == ["(model)", "a.0"]
    with pytest.raises(ValueError, match="modules: chooses none"):
        Probe(model, modules=lambda name, module: False)


def test_a_module_that_is_called_twice_counts_twice():
    model = Wrapped(nn.Linear(6, 6), lambda inner, x: inner(inner(x)))
    x = batch()
    first = model.inner(x)
    second = model.inner(first)
    gradients = torch.autograd.grad(second.square().mean(), (first, second))
    with Probe(model) as probe:
        backward(model, x)
    assert probe.histogram("activations", "inner") == together((first, second))
    assert probe.histogram("activation_gradients", "inner") == together(gradients)


def test_a_tied_weight_counts_once_under_its_first_name():
    model = GPT(GPTConfig(width=16, heads=2, layers=1, context=8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Probe(model, optimizer) as probe:
        step(model, optimizer, torch.arange(8)[None])
    for kind in ("weights", "weight_gradients", "updates"):
        assert "token_embedding.weight" in probe.layers(kind)
        assert "head.weight" not in probe.layers(kind)
        assert probe.histogram(kind, "token_embedding.weight").total == 256 * 16
    assert probe.histogram("activation_gradients", "head").total == 8 * 256


@pytest.mark.parametrize(
    "pack",
    [
        lambda x: (x, 2 * x),
        lambda x: [x, (2 * x,)],
        lambda x: {"a": x, "b": {"c": 2 * x}},
        lambda x: OrderedDict(a=x, b=[2 * x]),
        lambda x: (x, 2 * x, x.long(), x * 1j, None, "text", 3.0, x > 0),
    ],
)
def test_outputs_may_be_nested_and_hold_other_things(pack):
    packs = Puts(pack)

    def forward(inner, x):
        put = packs(inner(x))
        values = list(put.values()) if isinstance(put, dict) else put
        return values[0]

    model = Wrapped(nn.Linear(6, 6), forward)
    model.packs = packs
    x = batch()
    y = model.inner(x)
    with Probe(model) as probe:
        backward(model, x)
    assert probe.histogram("activations", "packs") == together((y, 2 * y))
    assert probe.histogram("activation_gradients", "packs").total == y.numel()


def test_a_recurrent_layer_has_several_outputs():
    model = nn.LSTM(6, 4)
    with Probe(model) as probe:
        output, (hidden, cell) = model(batch())
        output.sum().backward()
    assert probe.histogram("activations") == together((output, hidden, cell))


def test_without_gradients_there_are_activations_only():
    model = small_mlp().eval()
    with Probe(model) as probe, torch.no_grad():
        y = model(batch())
    assert probe.histogram("activations", "4") == log2_histogram(y)
    assert probe.layers("activation_gradients") == probe.layers("weight_gradients") == []
    with Probe(model) as probe, torch.inference_mode():
        model(batch())
    model(batch())
    with probe:
        model(batch())
    assert probe.histogram("activations", "4").total == 2 * y.numel()


def test_frozen_weights_have_no_gradients():
    model = small_mlp()
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1)
    with Probe(model, optimizer) as probe:
        step(model, optimizer, batch())
    assert probe.layers("weight_gradients")[0] == probe.layers("updates")[0] == "2.weight"
    assert probe.layers("weights")[0] == "0.weight"
    assert probe.layers("activation_gradients") == ["2", "3", "4"]


def test_updates_are_those_of_the_optimizers_own_weights():
    model = small_mlp()
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    with Probe(model, optimizer) as probe:
        step(model, optimizer, batch())
    assert probe.layers("updates") == ["2.weight", "2.bias"]
    assert len(probe.layers("weights")) == 6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_updates_are_subtracted_in_float32_or_float64(dtype):
    model = nn.Linear(1, 1, bias=False).to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    small = {torch.bfloat16: 2.0**-7, torch.float64: 2.0**-52}[dtype]
    nn.init.constant_(model.weight, 1 + small)
    with Probe(model, optimizer, kinds=["updates"]) as probe:
        model.weight.grad = torch.full_like(model.weight, 2 + small)
        optimizer.step()
    expected = {torch.bfloat16: 2.0, torch.float64: 2 + small}[dtype]
    before, after = torch.tensor([1 + small], dtype=dtype), model.weight.detach().flatten()
    assert (before.double() - after.double()).item() == pytest.approx(expected, rel=small)
    difference = after.double() - before.double()
    assert probe.histogram("updates") == log2_histogram(difference)


def test_an_update_that_bfloat16_swallows_is_zero():
    model = nn.Linear(4, 1, bias=False).bfloat16()
    nn.init.ones_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0**-10)
    with Probe(model, optimizer, kinds=["updates"]) as probe:
        model.weight.grad = torch.ones_like(model.weight)
        optimizer.step()
    assert probe.histogram("updates").fates("bfloat16").zero == 1


def test_in_place_modules_do_not_change_what_counts():
    plain, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), batch()
    in_place = copy.deepcopy(plain)
    in_place[1] = nn.ReLU(inplace=True)
    probes = []
    for model in (plain, in_place):
        with Probe(model) as probe:
            backward(model, x)
        probes.append(probe)
    for kind in ("activations", "activation_gradients", "weight_gradients"):
        assert probes[0].histogram(kind) == probes[1].histogram(kind)


def test_an_output_that_is_a_weight_is_left_to_the_weights():
    model = Wrapped(nn.Linear(6, 6), lambda inner, x: inner(x) + model.puts(x))
    weight = nn.Parameter(torch.ones(6))
    model.puts = Puts(lambda x: weight)
    model.weight = weight
    with Probe(model) as probe:
        for _ in range(3):
            backward(model, batch())
    assert probe.layers("activation_gradients") == ["(model)", "inner"]
    assert probe.histogram("activations", "puts").total == 18
    assert probe.histogram("weight_gradients", "weight").total == 18
    assert not weight._backward_hooks


def test_empty_outputs_are_no_layer():
    model = Wrapped(nn.Linear(6, 3), lambda inner, x: (inner(x[:0]).sum() + x.sum()).reshape(1))
    with Probe(model, kinds=["activations"]) as probe:
        model(batch())
    assert probe.layers("activations") == []


def test_a_sparse_gradient_counts_with_its_zeros():
    model = nn.Embedding(10, 3, sparse=True)
    with Probe(model) as probe:
        model(torch.tensor([2, 5])).sum().backward()
    gradients = probe.histogram("weight_gradients")
    assert (gradients.nonzero, gradients.zeros) == (6, 24)


def test_accumulated_gradients_count_each_on_its_own():
    model = small_mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gradients = []
    for seed in range(3):
        model.zero_grad()
        backward(model, batch(seed))
        gradients += [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    with Probe(model, optimizer) as probe:
        for seed in range(3):
            backward(model, batch(seed))
        optimizer.step()
    assert probe.histogram("weight_gradients") == together(gradients)
    assert probe.histogram("weights").total == sum(p.numel() for p in model.parameters())


def test_an_optimizer_may_call_the_model_itself():
    model = nn.Linear(6, 3)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)

    def closure():
        optimizer.zero_grad()
        return backward(model, batch())

    with Probe(model, optimizer) as probe:
        optimizer.step(closure)
    assert probe.histogram("updates").total == 21
    assert probe.histogram("weight_gradients").total >= 42


# --- Autocast and checkpointing -----------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_under_autocast_the_16_bit_numbers_count(dtype, device):
    model, x = small_mlp(device), batch(device=device)
    with Probe(model) as probe, torch.autocast(device, dtype=dtype):
        y = model(x)
        y.float().square().mean().backward()
    assert y.dtype == dtype
    assert probe.histogram("activations", "4") == log2_histogram(y)
    for kind in ("activations", "activation_gradients"):
        fates = probe.histogram(kind).fates(dtype)
        assert fates.underflows == fates.overflows == 0


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_counts_everything_once(reentrant):
    plain = small_mlp()
    probes = []
    for forward in (
        lambda inner, x: inner(x),
        lambda inner, x: checkpoint(inner, x, use_reentrant=reentrant),
    ):
        model, x = Wrapped(copy.deepcopy(plain), forward), batch().requires_grad_()
        with Probe(model) as probe:
            backward(model, x)
        probes.append(probe)
        assert probe.steps == 1
    for kind in ("activations", "activation_gradients", "weights", "weight_gradients"):
        assert probes[0].histogram(kind) == probes[1].histogram(kind)


def test_replaying_the_whole_model_is_no_step():
    model, x = small_mlp(), batch().requires_grad_()
    with Probe(model) as probe:
        checkpoint(model, x, use_reentrant=False).sum().backward()
    assert (probe.steps, probe.watched_steps) == (1, 1)
    assert probe.histogram("weights").total == sum(p.numel() for p in model.parameters())


# --- The loss scale -----------------------------------------------------------------------------


def scaled_gradients(scale: float, loss_scale) -> Probe:
    model = small_mlp()
    with Probe(model, loss_scale=loss_scale) as probe:
        backward(model, batch(), scale)
    return probe


@pytest.mark.parametrize("form", [float, lambda s: lambda: s, lambda s: lambda: torch.tensor(s)])
def test_gradients_count_without_the_loss_scale(form):
    scaled, plain = scaled_gradients(2.0**12, form(2.0**12)), scaled_gradients(1.0, None)
    for kind in KINDS[:4]:
        assert scaled.histogram(kind) == plain.histogram(kind)


def test_a_loss_scale_may_be_no_power_of_two():
    scaled, plain = scaled_gradients(1000.0, 1000), scaled_gradients(1.0, None)
    for kind in ("activation_gradients", "weight_gradients"):
        assert scaled.histogram(kind).total == plain.histogram(kind).total
        low, high = min(plain.histogram(kind).bins), max(plain.histogram(kind).bins)
        assert abs(min(scaled.histogram(kind).bins)[0] - low[0]) <= 1
        assert abs(max(scaled.histogram(kind).bins)[0] - high[0]) <= 1


def test_a_scale_that_changes_is_asked_for_each_time():
    model, scales = small_mlp(), iter([2.0**4, 2.0**8])
    now = [1.0]
    with Probe(model, kinds=["weight_gradients"], loss_scale=lambda: now[0]) as probe:
        for scale in scales:
            now[0] = scale
            model.zero_grad()
            backward(model, batch(), scale)
    once = scaled_gradients(1.0, None).histogram("weight_gradients")
    assert probe.histogram("weight_gradients") == once + once


@pytest.mark.parametrize("device", DEVICES)
def test_with_a_grad_scaler_a_skipped_step_is_watched_again(device):
    model, x = small_mlp(device), batch(device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler(device, init_scale=2.0**10)
    with Probe(model, optimizer, every=2, loss_scale=scaler.get_scale) as probe:
        for poison in (math.inf, 1.0, 1.0):
            optimizer.zero_grad()
            scaler.scale(model(x * poison).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
    size = sum(p.numel() for p in model.parameters())
    assert probe.histogram("weight_gradients").total == 2 * size
    assert probe.histogram("weight_gradients").fates("float16").nonfinite > 0
    assert probe.histogram("updates").total == probe.histogram("weights").total == size
    assert (probe.steps, probe.watched_steps) == (2, 1)


DOORS = {
    "static": StaticLossScaler,
    "dynamic": DynamicLossScaler,
    "update": lambda scale: [StaticLossScaler().update(scale)],
    "precision": lambda scale: Precision("mine", compute_dtype=torch.float16, loss_scale=scale),
    "probe": lambda scale: Probe(nn.Linear(1, 1), loss_scale=scale),
    "probe, asked": lambda scale: scaled_gradients(1.0, lambda: scale),
    "counter": lambda scale: BinCounter().add(torch.ones(1), divisor=scale),
}
ENDS = 2.0**-127, torch.finfo(torch.float32).max


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_every_door_lets_the_same_loss_scales_in_and_says_the_same_of_others(door):
    for scale in ENDS:
        door(scale)
    for scale in (math.nextafter(ENDS[0], 0), math.nextafter(ENDS[1], math.inf)):
        with pytest.raises(
            ValueError, match=r"=.*a positive number that float32 holds together wi"
        ):
            door(scale)


@pytest.mark.parametrize("scale", [0, -1.0, math.inf, math.nan, 2.0**128, "2", True])
def test_impossible_loss_scales_are_refused(scale):
    with pytest.raises(ValueError, match=r"loss_scale=.*expected a positive number that"):
        Probe(nn.Linear(1, 1), loss_scale=scale)
    with pytest.raises(ValueError, match=r"loss_scale=.*expected a positive number that"):
        scaled_gradients(1.0, lambda: scale)


# --- Steps --------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_optimizer", ["optimizer", "model alone"])
def test_every_third_step_is_watched(with_optimizer):
    model = small_mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe = Probe(model, optimizer if with_optimizer == "optimizer" else None, every=3)
    weights = []
    with probe:
        for index in range(8):
            if index % 3 == 0:
                weights += [p.detach().clone() for p in model.parameters()]
            step(model, optimizer, batch(index))
    assert (probe.steps, probe.watched_steps) == (8, 3)
    assert probe.histogram("weights") == together(weights)
    for kind in probe.kinds:
        one = sum(p.numel() for p in model.parameters()) if kind[:2] in ("we", "up") else 5 * 35
        assert probe.histogram(kind).total == 3 * one


@pytest.mark.parametrize("every", [0, -1, 1.0, True, None])
def test_every_is_a_number_of_steps(every):
    with pytest.raises(ValueError, match=r"every=.*expected a whole number of steps"):
        Probe(nn.Linear(1, 1), every=every)


def test_a_probe_may_be_entered_again_and_goes_on():
    model = small_mlp()
    probe = Probe(model)
    for _ in range(2):
        with probe:
            backward(model, batch())
        backward(model, batch())
    assert probe.histogram("activations", "4").total == 2 * 15
    with probe, pytest.raises(RuntimeError, match="is watching already"):
        probe.__enter__()
    with probe:
        backward(model, batch())
    assert probe.histogram("activations", "4").total == 3 * 15
    assert probe.histogram("weight_gradients", "4.weight").total == 3 * 24


def test_a_pause_inside_a_pause_does_not_end_it():
    model = small_mlp()
    with Probe(model) as probe:
        with probe.paused():
            with probe.paused():
                backward(model, batch())
            backward(model, batch())
        assert probe.steps == 0 and not probe._counters
        backward(model, batch())
    assert probe.steps == 1 and probe.histogram("activations", "4").total == 15


def test_a_module_that_runs_before_the_model_does_belongs_to_no_step():
    model = small_mlp()
    with Probe(model) as probe:
        model[0](batch()).sum().backward()
        assert not probe._counters
        backward(model, batch())
    assert probe.histogram("activations", "0").total == 40


# --- Leaving no trace ---------------------------------------------------------------------------


def trained(device: str, autocast: torch.dtype | None, watch) -> list[torch.Tensor]:
    """Losses and weights of a few steps with dropout, in-place ReLU and AdamW."""
    torch.manual_seed(0)
    layers = [nn.Linear(6, 16), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(16, 3)]
    model = nn.Sequential(*layers).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    with watch(model, optimizer), torch.autocast(device, autocast, enabled=autocast is not None):
        for index in range(6):
            losses.append(step(model, optimizer, batch(index, device)).detach())
    state = [value for s in optimizer.state.values() for value in s.values()]
    return [*losses, *(p.detach() for p in model.parameters()), *state, torch.get_rng_state()]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("every", [1, 2])
def test_the_training_does_not_change_by_a_bit(every, autocast, device):
    unwatched = trained(device, autocast, lambda model, optimizer: torch.enable_grad())
    watched = trained(device, autocast, lambda m, o: Probe(m, o, every=every))
    assert all(map(torch.equal, watched, unwatched))


def hooks_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    of_modules = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    of_weights = [len(p._backward_hooks or ()) for p in model.parameters()]
    of_steps = len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)
    return sum(of_modules) + sum(of_weights) + of_steps


@pytest.mark.parametrize("use_optimizer", ["optimizer", "model alone"])
def test_no_hook_stays_behind_even_after_an_error(use_optimizer):
    model = small_mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe = Probe(model, optimizer if use_optimizer == "optimizer" else None)
    assert hooks_of(model, optimizer) == 0

    def watched_step() -> None:
        with probe:
            assert hooks_of(model, optimizer) >= 5 + 6 + 1
            step(model, optimizer, batch())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        watched_step()
    assert hooks_of(model, optimizer) == 0
    assert probe.histogram("activations").total == 5 * 35


def test_no_hook_stays_behind_if_one_cannot_be_set(monkeypatch):
    model = small_mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monkeypatch.setattr(model[4], "register_forward_hook", lambda hook: 1 / 0)
    probe = Probe(model, optimizer)
    with pytest.raises(ZeroDivisionError):
        probe.__enter__()
    assert hooks_of(model, optimizer) == 0


def test_the_users_own_hooks_stay():
    model = small_mlp()
    seen = []
    model[0].register_forward_hook(lambda *_: seen.append("forward"))
    model[0].weight.register_hook(lambda *_: seen.append("gradient"))
    with Probe(model):
        pass
    backward(model, batch())
    assert seen == ["forward", "gradient"]


def test_gradients_that_come_after_the_context_do_not_count():
    model = small_mlp()
    with Probe(model) as probe:
        loss = model(batch()).sum()
    loss.backward()
    assert probe.layers("activation_gradients") == []
    assert probe.layers("activations") != []


def test_a_copy_of_the_model_is_not_watched():
    model = small_mlp()
    with Probe(model, kinds=["activations", "activation_gradients", "weights"]) as probe:
        backward(copy.deepcopy(model), batch())
        assert probe.layers("activations") == probe.layers("weights") == []
        backward(model, batch())
    assert probe.histogram("activations", "4").total == 15


@pytest.mark.parametrize("kinds", [["activations"], ["weight_gradients"], ["weights"]])
def test_only_what_is_asked_for_is_watched(kinds):
    model = small_mlp()
    with Probe(model, kinds=kinds) as probe:
        backward(model, batch())
    assert {kind for kind, _ in probe._counters} == set(kinds)


def test_no_copy_of_the_weights_stays_behind():
    model = small_mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Probe(model, optimizer) as probe:
        step(model, optimizer, batch())
        assert not probe._before
    optimizer.register_step_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), probe:
        optimizer.step()
    assert not probe._before


# --- Compiled models ----------------------------------------------------------------------------


def test_a_compiled_model_is_refused():
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="model: compiled"):
        Probe(torch.compile(model, backend="eager"))
    model.compile(backend="eager")
    with pytest.raises(ValueError, match="model: compiled"):
        Probe(model)


def test_compiled_calls_of_a_watched_model_show_in_the_weights_only():
    torch.compiler.reset()
    model, x = small_mlp(), batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with Probe(model, optimizer) as probe:
        for _ in range(2):
            step(compiled, optimizer, x)
    for kind in ("activations", "activation_gradients"):
        with pytest.raises(RuntimeError, match=f"has seen no {kind.replace('_', ' ')}.*compiled"):
            probe.histogram(kind)
    for kind in ("weights", "weight_gradients", "updates"):
        assert probe.histogram(kind).total == 2 * sum(p.numel() for p in model.parameters())
    with Probe(model) as alone:
        compiled(x)
    assert alone.steps == 0
    torch.compiler.reset()


# --- Waiting for the device ---------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only a GPU can be waited for")
def test_watching_does_not_wait_for_the_device():
    model, x = small_mlp("cuda"), batch(device="cuda")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scale = torch.tensor(1.0, device="cuda")
    with Probe(model, optimizer, loss_scale=lambda: scale) as probe:
        step(model, optimizer, x)
        torch.cuda.set_sync_debug_mode("error")
        try:
            step(model, optimizer, x)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert probe.watched_steps == 2
