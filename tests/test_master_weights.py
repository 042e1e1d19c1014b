"""The three cures against float32 optimizers, textbook Kahan and torchao; and as optimizers."""

import copy
import io
import itertools
import math
import pickle
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mpbook.formats import neighbours, round_to
from mpbook.master_weights import (
    Float32Updates,
    KahanSummation,
    MasterWeights,
    StochasticRounding,
    in_float32,
    parameters_of,
)

F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
KINDS = ["master", "stochastic", "kahan"]
sgd = partial(torch.optim.SGD, lr=1.0)
adamw = partial(torch.optim.AdamW, lr=6e-4)
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "adam": partial(torch.optim.Adam, lr=0.01),
    "adamw": partial(torch.optim.AdamW, lr=0.01),
    "rmsprop": partial(torch.optim.RMSprop, lr=0.01, momentum=0.5),
    "adagrad": partial(torch.optim.Adagrad, lr=0.05, initial_accumulator_value=0.125),
}


def wrap(kind: str, optimizer: torch.optim.Optimizer, seed: int = 0) -> Float32Updates:
    if kind == "stochastic":
        device = parameters_of(optimizer)[0].device
        generator = torch.Generator(device).manual_seed(seed)
        return StochasticRounding(optimizer, generator=generator)
    return {"master": MasterWeights, "kahan": KahanSummation}[kind](optimizer)


def weight(
    value: float = 1.0, dtype: torch.dtype = BF16, device: str = "cpu", size: int = 1000
) -> nn.Parameter:
    return nn.Parameter(torch.full((size,), value, dtype=dtype, device=device))


def steps(
    optimizer: torch.optim.Optimizer, parameter: Tensor, gradient: float = 1.0, *, count: int = 1
) -> None:
    for _ in range(count):
        parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step()
        optimizer.zero_grad()


def model(dtype: torch.dtype = BF16, device: str = "cpu", seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)).to(device, dtype)


def two_groups(net: nn.Module) -> list[dict]:
    first, *others = net.parameters()
    return [{"params": [first], "weight_decay": 0.1}, {"params": others, "lr": 0.003}]


def random_gradients(net: nn.Module, seed: int, dtype: torch.dtype = BF16) -> None:
    """Gradients that a 16-bit dtype holds, in the dtype of each parameter."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        drawn = torch.randn(parameter.shape, generator=generator).to(dtype)
        parameter.grad = drawn.to(parameter.device, parameter.dtype)


def values(net: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def saved_and_read(state: dict) -> dict:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


# --- the failure, and the cures ---------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_a_bfloat16_weight_of_1_never_moves_under_adamw(device):
    parameter, reference = weight(device=device), weight(dtype=F32, device=device)
    steps(adamw([parameter]), parameter, count=100)
    steps(adamw([reference]), reference, count=100)
    assert parameter.eq(1).all()
    assert reference.lt(0.95).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_each_cure_follows_float32(kind, device):
    parameter, reference = weight(device=device), weight(dtype=F32, device=device)
    steps(wrap(kind, adamw([parameter])), parameter, count=100)
    steps(adamw([reference]), reference, count=100)
    gap = 1 / 256  # between two bfloat16 numbers below 1
    margin = {
        "master": gap / 2,
        "kahan": gap / 2 + 100 * 2**-18,  # each step rounds a compensation of at most gap / 2
        "stochastic": 5 * gap / 2 * math.sqrt(100 / 1000),  # 100 coin flips, 1000 weights
    }
    gaps = parameter.float() - reference
    assert (gaps.mean() if kind == "stochastic" else gaps).abs().max() <= margin[kind]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
def test_a_weight_that_outgrows_its_format_is_infinite(dtype, kind, device):
    parameter = weight(torch.finfo(dtype).max, dtype, device)
    optimizer = wrap(kind, sgd([parameter], lr=torch.finfo(dtype).max))
    steps(optimizer, parameter, -0.9)
    assert parameter.isposinf().all()


# --- equal to float32 -------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
def test_master_weights_are_what_a_float32_optimizer_makes(dtype, name, device):
    net = model(dtype, device)
    reference = copy.deepcopy(net).float()
    optimizer = MasterWeights(OPTIMIZERS[name](two_groups(net)))
    plain = OPTIMIZERS[name](two_groups(reference))
    for seed in range(20):
        random_gradients(net, seed, dtype)
        random_gradients(reference, seed, dtype)
        optimizer.step()
        plain.step()
    assert same([optimizer.copies[p] for p in net.parameters()], values(reference))
    assert same(values(net), [p.to(dtype) for p in reference.parameters()])
    for ours, theirs in zip(parameters_of(optimizer), parameters_of(plain), strict=True):
        for key, expected in plain.state[theirs].items():
            assert torch.equal(optimizer.state[ours][key], expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_float32_parameters_pass_through(name, kind, device):
    net, reference = model(F32, device), model(F32, device)
    optimizer = wrap(kind, OPTIMIZERS[name](two_groups(net)))
    plain = OPTIMIZERS[name](two_groups(reference))
    for seed in range(5):
        random_gradients(net, seed)
        random_gradients(reference, seed)
        optimizer.step()
        plain.step()
    assert same(values(net), values(reference))
    assert optimizer.copies == {} and optimizer.kept == {}
    assert all(map(lambda a, b: a is b, parameters_of(optimizer), net.parameters()))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_update_starts_from_the_16_bit_weight_and_is_made_in_float32(name, dtype, kind, device):
    net = model(dtype, device)
    reference = copy.deepcopy(net).float()
    optimizer = wrap(kind, OPTIMIZERS[name](two_groups(net)))
    plain = OPTIMIZERS[name](two_groups(reference))
    random_gradients(net, 0, dtype)
    random_gradients(reference, 0, dtype)
    optimizer.step()
    plain.step()
    for parameter, exact in zip(net.parameters(), values(reference), strict=True):
        if kind == "stochastic":
            low, high = (round_to(exact, dtype, rounding=r, overflow="inf") for r in ("down", "up"))
            assert ((parameter == low) | (parameter == high)).all()
        else:
            assert torch.equal(parameter, exact.to(dtype))
        if kind == "kahan":
            kept = optimizer.kept[parameter]
            assert torch.equal(kept, (exact - parameter).to(dtype)) and kept.any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_mixed_bag_updates_each_parameter_in_its_way(kind):
    net = model()
    net[2].float()
    optimizer = wrap(kind, adamw(net.parameters()))
    assert set(optimizer.copies) == set(net[0].parameters())
    assert [p.dtype for p in parameters_of(optimizer)] == [F32] * 4
    reference = copy.deepcopy(net[2])
    plain = adamw(reference.parameters())
    for seed in range(3):
        random_gradients(net, seed)
        for ours, theirs in zip(net[2].parameters(), reference.parameters(), strict=True):
            theirs.grad = ours.grad.clone()
        before = values(net)
        optimizer.step()
        plain.step()
        optimizer.zero_grad()
    assert same(values(net[2]), values(reference))
    assert not same(values(net), before)
    assert all(p.grad is None for p in net.parameters())


def test_float64_parameters_pass_through_as_well():
    parameter = weight(dtype=torch.float64)
    steps(MasterWeights(sgd([parameter], lr=1e-12)), parameter)
    assert parameter.eq(1 - 1e-12).all()


# --- master weights ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_loaded_after_wrapping_are_where_training_goes_on(kind):
    net = model()
    optimizer = wrap(kind, sgd(net.parameters(), lr=0.25))
    net.load_state_dict(model(seed=1).state_dict())
    random_gradients(net, 0)
    before = values(net)
    optimizer.step()
    for parameter, start in zip(net.parameters(), before, strict=True):
        exact = start.float() - 0.25 * parameter.grad.float()
        torch.testing.assert_close(parameter.float(), exact, rtol=2**-7, atol=0)


def test_master_weights_keep_what_rounding_discarded_where_the_weights_were_not_changed():
    parameter = weight(size=4)
    optimizer = MasterWeights(sgd([parameter], lr=2**-10))
    steps(optimizer, parameter)
    with torch.no_grad():
        parameter[:2] = 3.0
    steps(optimizer, parameter, count=2)
    changed, kept = 3 - 2 * 2**-10, 1 - 3 * 2**-10
    assert optimizer.copies[parameter].tolist() == [changed, changed, kept, kept]


def test_master_weights_that_are_loaded_win_over_weights_that_were_changed_before():
    trained, other = weight(size=2), weight(size=2)
    optimizer, resumed = (MasterWeights(sgd([p], lr=2**-10)) for p in (trained, other))
    steps(optimizer, trained, count=3)
    with torch.no_grad():
        other.fill_(3.0)
    resumed.load_state_dict(saved_and_read(optimizer.state_dict()))
    steps(resumed, other)
    assert resumed.copies[other].eq(1 - 4 * 2**-10).all()


# --- stochastic rounding ----------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
@pytest.mark.parametrize("start", [1.0, -3.0, 0.01])
def test_stochastic_rounding_is_right_in_the_mean(start, dtype, device):
    n = 50_000
    parameter = weight(start, dtype, device, size=n)
    begin = parameter[0].item()
    gap = abs(neighbours(begin, str(dtype)[6:])[0] - begin)
    optimizer = wrap("stochastic", sgd([parameter], lr=1.0))
    gradient = torch.tensor(0.3 * gap, dtype=dtype).item()
    steps(optimizer, parameter, gradient)
    moved = parameter.double() != begin
    p = gradient / abs(neighbours(begin, str(dtype)[6:])[0] - begin)
    z = (moved.double().mean().item() - p) / math.sqrt(p * (1 - p) / n)
    assert abs(z) < 5
    assert set(parameter.tolist()) == {begin, neighbours(begin, str(dtype)[6:])[0]}


def test_stochastic_rounding_drifts_like_float32_over_many_steps():
    n, count, gap = 20_000, 50, 2**-8
    parameter = weight(size=n)
    steps(wrap("stochastic", sgd([parameter], lr=gap / 10)), parameter, count=count)
    # Each step moves a weight down one gap with probability 1/10: binomial.
    expected, deviation = 1 - count * gap / 10, gap * math.sqrt(count * 0.1 * 0.9)
    z = (parameter.double().mean().item() - expected) / (deviation / math.sqrt(n))
    assert abs(z) < 5
    assert parameter.double().std().item() == pytest.approx(deviation, rel=0.05)


def test_stochastic_rounding_follows_its_generator_and_not_the_global_state():
    def run(seed: int, state: int) -> Tensor:
        torch.manual_seed(state)
        parameter = weight()
        steps(wrap("stochastic", sgd([parameter], lr=1e-3), seed), parameter, count=3)
        return parameter.detach()

    assert torch.equal(run(1, 5), run(1, 6))
    assert not torch.equal(run(1, 5), run(2, 5))


def test_stochastic_rounding_leaves_the_global_state_alone():
    torch.manual_seed(0)
    parameter, before = weight(), torch.get_rng_state()
    steps(wrap("stochastic", sgd([parameter], lr=1e-3)), parameter)
    assert torch.equal(torch.get_rng_state(), before)


def test_stochastic_rounding_never_moves_a_weight_without_an_update():
    parameter = nn.Parameter(torch.randn(1000).bfloat16())
    before = parameter.detach().clone()
    steps(wrap("stochastic", sgd([parameter])), parameter, gradient=0.0, count=5)
    assert torch.equal(parameter, before)


def test_stochastic_rounding_equals_torchaos_in_distribution():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optim = pytest.importorskip("torchao.optim")
    n, count = 20_000, 10
    ours, theirs = weight(size=n), weight(size=n)
    options = dict(lr=6e-4, weight_decay=0.0)
    peer = optim._AdamW([theirs], bf16_stochastic_round=True, **options)
    torch.manual_seed(0)
    with warnings.catch_warnings(), torch.compiler.set_stance("force_eager"):
        warnings.simplefilter("ignore")
        steps(peer, theirs, count=count)
    steps(wrap("stochastic", torch.optim.AdamW([ours], **options)), ours, count=count)
    a, b = ours.detach().double(), theirs.detach().double()
    assert abs(a.mean() - b.mean()) < 5 * math.sqrt((a.var() + b.var()) / n)
    assert a.std().item() == pytest.approx(b.std().item(), rel=0.05)
    assert a.mean() < 1 - 0.9 * count * 6e-4


def test_a_generator_on_another_device_is_refused():
    parameter = nn.Parameter(torch.ones(2, dtype=BF16, device="meta"))
    with pytest.raises(ValueError, match="generator: is on cpu, expected meta"):
        StochasticRounding(sgd([parameter]), generator=torch.Generator())
    wide = nn.Parameter(torch.ones(2, device="meta"))  # needs no random bits
    assert not StochasticRounding(sgd([wide, weight()]), generator=torch.Generator()).kept


# --- Kahan summation --------------------------------------------------------------------------


def textbook_kahan(start: float, updates: list[float], dtype: type) -> tuple[float, float]:
    """Kahan's own formulas, each operation exact in float64 and then rounded to 16 bits."""

    def rounded(x: float) -> float:
        return float(np.float64(x).astype(dtype))

    w, c = rounded(start), 0.0
    for update in updates:
        y = rounded(update - c)
        t = rounded(w + y)
        c = rounded(rounded(t - w) - y)
        w = t
    return w, -c


def our_kahan(start: float, updates: list[float], dtype: torch.dtype) -> tuple[float, float]:
    parameter = weight(start, dtype, size=1)
    optimizer = KahanSummation(sgd([parameter]))
    for update in updates:
        steps(optimizer, parameter, -update)
    return parameter.item(), optimizer.kept[parameter].item()


def numpy_type(dtype: torch.dtype) -> type:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    return np.float16 if dtype == F16 else ml_dtypes.bfloat16


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-96, 96), max_size=12))
def test_kahan_equals_the_textbook_where_nothing_else_is_rounded(dtype, counts):
    # Every compensated update is a multiple of 2**-15, small enough to fit 8 bits.
    updates = [count * 2.0**-15 for count in counts]
    assert our_kahan(1.0, updates, dtype) == textbook_kahan(1.0, updates, numpy_type(dtype))


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-(2**-9), 2**-9, width=16), min_size=1, max_size=12))
def test_kahan_and_the_textbook_differ_by_the_rounding_of_the_compensation(dtype, updates):
    kind = numpy_type(dtype)
    updates = [float(np.float64(update).astype(kind)) for update in updates]
    ours = sum(our_kahan(1.0, updates, dtype))
    theirs = sum(textbook_kahan(1.0, updates, kind))
    exact = 1 + math.fsum(updates)
    eps = torch.finfo(dtype).eps
    bound = len(updates) * eps * eps  # half an ulp of what is at most half an ulp of 1, twice over
    assert abs(ours - exact) <= bound and abs(theirs - exact) <= bound


def test_kahan_follows_a_sum_that_16_bits_cannot():
    w, c = our_kahan(1.0, [1e-4] * 1000, BF16)
    step = torch.tensor(1e-4, dtype=BF16).item()
    assert w + c == pytest.approx(1 + 1000 * step, abs=1000 * 2**-17)
    assert abs(c) <= 2**-8


def test_kahan_in_float16_cannot_hold_less_than_its_smallest_subnormal():
    for size, moves in ((2**-24, True), (2**-26, False)):
        parameter = weight(0.25, F16, size=1)
        optimizer = KahanSummation(sgd([parameter], lr=size))
        steps(optimizer, parameter, count=2)
        assert bool(optimizer.kept[parameter].any()) == moves
    wide = weight(1.0, BF16, size=1)
    optimizer = KahanSummation(sgd([wide], lr=2**-23))
    steps(optimizer, wide, count=2)
    assert optimizer.kept[wide].item() == -(2**-22)


# --- memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("kind", "kept"), [("master", 4), ("stochastic", 0), ("kahan", 2)])
def test_bytes_kept_between_steps(kind, kept, device):
    parameter = weight(device=device)
    optimizer = wrap(kind, sgd([parameter]))

    def kept_bytes() -> list[int]:
        tensors = [*optimizer.kept.values(), *optimizer.copies.values()]
        storages = [tensor.untyped_storage() for tensor in tensors]
        return sorted({s.data_ptr(): s.nbytes() for s in storages}.values())

    a_released_copy = [4]
    expected = {"master": [4000], "stochastic": a_released_copy, "kahan": [*a_released_copy, 2000]}[
        kind
    ]
    assert kept_bytes() == expected
    assert sum(t.numel() * t.element_size() for t in optimizer.kept.values()) == kept * 1000
    steps(optimizer, parameter)
    assert kept_bytes() == expected
    assert all(copy.grad is None for copy in optimizer.copies.values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_has_the_shape_of_its_parameter_between_steps(kind):
    net = model()
    optimizer = wrap(kind, sgd(net.parameters()))
    for _ in range(2):
        for parameter, stand_in in optimizer.copies.items():
            assert stand_in.shape == parameter.shape and stand_in.dtype == F32
            assert kind == "master" or stand_in.isnan().all()
        random_gradients(net, 0)
        optimizer.step()


# --- gradients --------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_copied_to_float32_and_stay_with_the_parameters(kind, device):
    parameter, unused = weight(device=device), weight(device=device)
    optimizer = wrap(kind, sgd([parameter, unused]))
    parameter.grad = torch.full_like(parameter, 0.5)
    (gradient,) = optimizer.take_gradients()
    assert gradient.dtype == F32 and gradient.eq(0.5).all()
    assert parameter.grad.dtype == BF16 and unused.grad is None
    optimizer.step()
    assert parameter.grad.eq(0.5).all()
    assert parameter.eq(0.5).all() and unused.eq(1).all()


def test_the_float32_gradients_are_all_that_the_update_uses():
    net = model()
    net[2].float()
    optimizer = MasterWeights(sgd(net.parameters()))
    random_gradients(net, 0)
    taken = optimizer.take_gradients()
    assert same(taken, [p.grad.float() for p in net.parameters()])
    assert taken[2] is net[2].weight.grad and taken[0] is not net[0].weight.grad


def test_the_float32_gradients_belong_to_no_graph():
    parameter = weight()
    optimizer = MasterWeights(sgd([parameter]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of the reference cycle
        parameter.float().square().sum().backward(create_graph=True)
    assert parameter.grad.requires_grad
    assert not optimizer.take_gradients()[0].requires_grad
    optimizer.zero_grad(set_to_none=False)
    assert not parameter.grad.requires_grad


def test_gradients_can_be_changed_before_the_step():
    parameter = weight()
    optimizer = MasterWeights(sgd([parameter]))
    parameter.grad = torch.full_like(parameter, 0.5)
    for gradient in optimizer.take_gradients():
        gradient.mul_(0.5)
    assert parameter.grad.eq(0.5).all()
    optimizer.step()
    assert parameter.eq(0.75).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_float32_gradients_are_gone_after_the_step(kind):
    parameter = weight()
    optimizer = wrap(kind, sgd([parameter]))
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert optimizer.copies[parameter].grad is None


def test_gradients_are_taken_anew_in_the_next_step():
    parameter = weight()
    optimizer = MasterWeights(sgd([parameter]))
    parameter.grad = torch.full_like(parameter, 0.5)
    optimizer.take_gradients()[0].mul_(0.5)
    optimizer.step()
    optimizer.step()
    assert parameter.eq(1 - 0.25 - 0.5).all()


def test_taking_again_overwrites():
    parameter = weight()
    optimizer = MasterWeights(sgd([parameter]))
    parameter.grad = torch.full_like(parameter, math.inf)
    optimizer.take_gradients()  # and skip the step
    parameter.grad = torch.full_like(parameter, 0.25)
    assert optimizer.take_gradients()[0].eq(0.25).all()
    parameter.grad = None
    assert optimizer.take_gradients() == []


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_skipped_step_leaves_nothing_behind_after_zero_grad(kind, set_to_none):
    parameter = weight()
    optimizer = wrap(kind, sgd([parameter]))
    parameter.grad = torch.full_like(parameter, math.inf)
    optimizer.take_gradients()
    optimizer.zero_grad(set_to_none)
    assert all(stand_in.grad is None for stand_in in optimizer.copies.values())
    parameter.grad = torch.full_like(parameter, 0.25)
    optimizer.step()
    assert parameter.eq(0.75).all()
    optimizer.zero_grad(set_to_none)
    optimizer.step()
    assert parameter.eq(0.75).all()


@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
def test_zero_grad_sets_to_none_or_to_zero_as_any_optimizer(dtype):
    parameter = weight(dtype=dtype)
    optimizer = MasterWeights(sgd([parameter]))
    parameter.grad = torch.ones_like(parameter)
    gradient = parameter.grad
    optimizer.zero_grad(set_to_none=False)
    assert parameter.grad is gradient and gradient.eq(0).all()
    optimizer.zero_grad()
    assert parameter.grad is None
    optimizer.zero_grad(set_to_none=False)
    assert parameter.grad is None


def test_gradients_that_autograd_gathers_in_float32_are_used_as_they_are():
    parameter = weight(size=1)
    parameter.grad_dtype = F32
    optimizer = MasterWeights(sgd([parameter]))
    for _ in range(1000):
        (parameter * 1e-3).sum().backward()
    optimizer.step()
    assert parameter.grad.dtype == F32
    # Each is 1e-3 rounded to bfloat16.
    gathered = 1000 * torch.tensor(1e-3).bfloat16().item()
    assert optimizer.copies[parameter].item() == pytest.approx(1 - gathered, abs=1e-4)


@pytest.mark.parametrize("gradients", [F32, BF16])
def test_a_plain_adamw_refuses_float32_gradients_of_bfloat16_weights_and_sgd_does_not(gradients):
    parameter = weight()
    parameter.grad_dtype = gradients
    (parameter * 1.0).sum().backward()
    sgd([parameter]).step()
    for options in (dict(foreach=False), dict(fused=True)):
        optimizer = adamw([parameter], **options)
        if gradients == F32:
            with pytest.raises(RuntimeError):
                optimizer.step()
        else:
            optimizer.step()


def test_a_gradient_in_float32_of_a_16_bit_parameter_is_copied_too():
    parameter = weight()
    try:
        parameter.grad_dtype = F32
    except (AttributeError, RuntimeError):
        pytest.skip("this torch has no grad_dtype")
    parameter.grad = torch.full((1000,), 0.5)
    optimizer = MasterWeights(sgd([parameter]))
    optimizer.take_gradients()[0].zero_()
    assert parameter.grad.eq(0.5).all()


@pytest.mark.parametrize("kind", KINDS)
def test_sparse_gradients_are_refused_and_nothing_is_taken(kind):
    dense, table = weight(), nn.Embedding(5, 3, sparse=True, dtype=BF16)
    optimizer = wrap(kind, sgd([dense, *table.parameters()]))
    dense.grad = torch.ones_like(dense)
    table(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(ValueError, match=r"shape \(5, 3\) is torch.sparse_coo.*sparse=False"):
        optimizer.step()
    assert dense.eq(1).all() and all(c.grad is None for c in optimizer.copies.values())


# --- with torch.amp.GradScaler ----------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_grad_scaler_unscales_clips_and_skips(kind, device):
    def run(scale: float | None) -> tuple[list[Tensor], list[bool]]:
        net, updated = model(F16, device), []
        net[2].float()
        optimizer = wrap(kind, torch.optim.AdamW(net.parameters(), lr=0.01))
        scaler = torch.amp.GradScaler(device, init_scale=scale or 1.0, enabled=scale is not None)
        generator = torch.Generator().manual_seed(0)
        for step in range(6):
            x = torch.randn(4, 6, generator=generator).to(device, F16)
            before = values(net)
            optimizer.zero_grad()
            outputs = net[2](torch.tanh(net[0](x)).float())
            loss = outputs.square().mean() * (math.inf if step == 3 else 1.0)
            if step == 3 and scale is None:
                updated.append(False)
                continue
            scaler.scale(loss).backward()
            optimizer.take_gradients()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(parameters_of(optimizer), 0.1)
            scaler.step(optimizer)
            scaler.update()
            updated.append(not same(values(net), before))
        return values(net), updated

    scaled, updated = run(2.0**6)
    assert updated == [True, True, True, False, True, True]
    assert all(w.isfinite().all() for w in scaled)
    plain, _ = run(None)
    for ours, theirs in zip(scaled, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-3)


def test_a_grad_scaler_without_take_gradients_says_so():
    parameter = weight(dtype=F16)
    optimizer = MasterWeights(sgd([parameter]))
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(parameter.float().sum()).backward()
    with pytest.raises(AssertionError, match="No inf checks were recorded"):
        scaler.step(optimizer)


# --- an optimizer like any other --------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrapper_is_an_optimizer_with_the_groups_of_the_one_inside(kind):
    net = model()
    inner = torch.optim.AdamW(two_groups(net), lr=0.5)
    optimizer = wrap(kind, inner)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.param_groups is inner.param_groups and optimizer.state is inner.state
    assert optimizer.defaults is inner.defaults
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.003]
    assert "Parameter Group 1" in repr(optimizer) and type(optimizer).__name__ in repr(optimizer)


@pytest.mark.parametrize("kind", KINDS)
def test_schedulers_set_its_learning_rate_without_warnings(kind):
    parameter = weight(dtype=BF16)
    optimizer = wrap(kind, sgd([parameter], lr=0.5))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    for lr in (0.5, 0.25):
        before = parameter[0].item()
        steps(optimizer, parameter, 0.5)
        assert before - parameter[0].item() == 0.5 * lr
        scheduler.step()
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    plateau.step(1.0)
    plateau.step(2.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0125)


def test_a_scheduler_may_come_before_the_wrapper():
    parameter = weight()
    inner = sgd([parameter], lr=0.5)
    scheduler = torch.optim.lr_scheduler.StepLR(inner, step_size=1, gamma=0.5)
    optimizer = MasterWeights(inner)
    steps(optimizer, parameter, 0.5)
    scheduler.step()
    steps(optimizer, parameter, 0.5)
    assert parameter.eq(1 - 0.25 - 0.125).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_can_be_added(kind):
    first, second, third = weight(), weight(), weight(dtype=F32)
    optimizer = wrap(kind, sgd([first]))
    optimizer.add_param_group({"params": [second, third], "lr": 0.25})
    optimizer.add_param_group({"params": weight()})
    for parameter in (first, second, third):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert first.eq(0).all() and second.eq(0.75).all() and third.eq(0.75).all()
    optimizer.zero_grad()
    assert first.grad is None and second.grad is None and third.grad is None


@pytest.mark.parametrize("bad", ["again", "complex", "again in float32"])
def test_a_group_that_cannot_be_added_changes_nothing(bad):
    first, second = weight(), weight(dtype=F32)
    optimizer = MasterWeights(sgd([first, second]))
    refused = {
        "again": first,
        "complex": nn.Parameter(torch.zeros(2, dtype=torch.complex64)),
        "again in float32": second,
    }[bad]
    with pytest.raises(ValueError, match=r"param"):
        optimizer.add_param_group({"params": [weight(), refused]})
    assert len(optimizer.param_groups) == 1 and len(optimizer.copies) == 1
    steps(optimizer, first, 0.5)
    assert first.eq(0.5).all()


def test_hooks_run_around_the_step_and_see_the_wrapper():
    parameter, seen = weight(), []
    inner = sgd([parameter])
    optimizer = MasterWeights(inner)
    note = lambda name: lambda opt, args, kwargs: seen.append((name, opt, parameter[0].item()))  # noqa: E731
    inner.register_step_post_hook(note("inner"))
    optimizer.register_step_pre_hook(note("pre"))
    handle = optimizer.register_step_post_hook(note("post"))
    steps(optimizer, parameter, 0.5)
    assert seen == [("pre", optimizer, 1.0), ("inner", inner, 1.0), ("post", optimizer, 0.5)]
    handle.remove()
    steps(optimizer, parameter, 0.0)
    assert [name for name, *_ in seen[3:]] == ["pre", "inner"]


def test_hooks_on_the_state_run_whichever_optimizer_they_are_registered_on():
    parameter, seen = weight(), []
    inner = sgd([parameter])
    optimizer = MasterWeights(inner)
    optimizer.register_state_dict_pre_hook(lambda opt: seen.append("pre"))
    optimizer.register_state_dict_post_hook(lambda opt, state: seen.append("post"))
    inner.register_load_state_dict_pre_hook(lambda opt, state: seen.append("load pre"))
    optimizer.register_load_state_dict_post_hook(lambda opt: seen.append("load post"))
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == ["pre", "post", "load pre", "load post"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_closure_gives_the_same_step_and_its_loss(name, kind):
    def run(with_closure: bool) -> tuple[list[Tensor], list[float]]:
        net, losses = model(), []
        optimizer = wrap(kind, OPTIMIZERS[name](two_groups(net)))
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(0)).bfloat16()

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = net(x).float().square().mean()
            loss.backward()
            return loss

        for _ in range(4):
            if with_closure:
                loss = optimizer.step(closure)
            else:
                loss = closure()
                assert optimizer.step() is None
            losses.append(loss.item())
        return values(net), losses

    (ours, losses), (expected, expected_losses) = run(True), run(False)
    assert same(ours, expected) and losses == expected_losses


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
def test_lbfgs_evaluates_its_closure_at_the_rounded_weights(line_search):
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    options = dict(lr=0.5, max_iter=5, line_search_fn=line_search)

    def loss_of(net: nn.Module) -> Tensor:
        loss = (net(x).float() - 1).square().mean()
        loss.backward()
        return loss

    net = model()
    optimizer = MasterWeights(torch.optim.LBFGS(net.parameters(), **options))

    def ours() -> Tensor:
        optimizer.zero_grad()
        return loss_of(net)

    rounded, weights = model(), [nn.Parameter(w.float()) for w in values(model())]
    plain = torch.optim.LBFGS(weights, **options)

    def by_hand() -> Tensor:
        rounded.zero_grad()
        with torch.no_grad():
            for parameter, exact in zip(rounded.parameters(), weights, strict=True):
                parameter.copy_(exact)
        loss = loss_of(rounded)
        for parameter, exact in zip(rounded.parameters(), weights, strict=True):
            exact.grad = parameter.grad.float()
        return loss

    first = loss_of(model())
    for _ in range(3):
        assert torch.equal(optimizer.step(ours), plain.step(by_hand))
    assert same([optimizer.copies[p] for p in net.parameters()], [w.detach() for w in weights])
    assert same(values(net), [w.detach().bfloat16() for w in weights])
    assert ours() < 0.5 * first


@pytest.mark.parametrize("kind", ["stochastic", "kahan"])
def test_lbfgs_trains_with_the_other_cures(kind):
    net, x = model(), torch.randn(16, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    optimizer = wrap(kind, torch.optim.LBFGS(net.parameters(), lr=0.5, max_iter=5))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (net(x).float() - 1).square().mean()
        loss.backward()
        return loss

    first = optimizer.step(closure)
    for _ in range(3):
        optimizer.step(closure)
    assert closure() < 0.5 * first


@pytest.mark.parametrize("kind", KINDS)
def test_a_closure_does_not_use_gradients_that_were_taken_before(kind):
    parameter = weight()
    optimizer = wrap(kind, sgd([parameter]))
    parameter.grad = torch.full_like(parameter, 0.5)
    optimizer.take_gradients()

    def closure() -> float:
        parameter.grad = torch.full_like(parameter, 0.25)
        return 7.0

    assert optimizer.step(closure) == 7.0
    assert parameter.eq(0.75).all()


class WithoutGradMode(torch.optim.SGD):
    """SGD that leaves it to its caller whether autograd is on while the closure runs."""

    def step(self, closure=None):
        loss = closure()
        super().step()
        return loss


def test_a_closure_runs_with_autograd_on_whatever_the_optimizer_does():
    parameter = weight()
    optimizer = MasterWeights(WithoutGradMode([parameter], lr=0.5))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = parameter.sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert parameter.eq(0.5).all()


# --- shapes, ties, options --------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_one_parameter_used_twice_is_updated_once(kind):
    net = model()
    net[2].weight = net[0].weight = nn.Parameter(torch.ones(3, 3, dtype=BF16))
    optimizer = wrap(kind, sgd(net.parameters()))
    assert len(optimizer.copies) == 3
    steps(optimizer, net[0].weight, 0.25)
    assert net[2].weight.eq(0.75).all()


def test_a_parameter_listed_twice_in_a_group_has_one_copy():
    parameter = weight()
    with pytest.warns(UserWarning, match="duplicate parameters"):
        inner = sgd([parameter, parameter])
    optimizer = MasterWeights(inner)
    first, second = optimizer.param_groups[0]["params"]
    assert first is second is optimizer.copies[parameter]
    parameter.grad = torch.ones_like(parameter)
    assert len(optimizer.take_gradients()) == 1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.ones(4, 6).t(),
        lambda: torch.ones(6, 8)[::2, ::2],
        lambda: torch.ones(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        lambda: torch.ones(()),
        lambda: torch.ones(0, 3),
    ],
    ids=["transposed", "strided", "channels last", "scalar", "empty"],
)
def test_any_layout_and_shape_trains(make, kind, device):
    parameter = nn.Parameter(make().to(device, BF16))
    strides = parameter.stride()
    optimizer = wrap(kind, sgd([parameter], lr=0.25))
    gradient = torch.arange(parameter.numel(), device=device).view(parameter.shape) % 4 / 4
    for _ in range(2):
        parameter.grad = gradient.to(BF16)
        optimizer.step()
    assert torch.equal(parameter, (1 - gradient / 2).to(BF16))
    assert parameter.stride() == strides


@pytest.mark.parametrize("kind", KINDS)
def test_empty_groups_and_frozen_parameters_do_no_harm(kind):
    frozen, free = weight().requires_grad_(False), weight()
    optimizer = wrap(kind, sgd([{"params": []}, {"params": [free, frozen]}]))
    steps(optimizer, free, 0.5)
    assert free.eq(0.5).all() and frozen.eq(1).all()
    assert not optimizer.copies[frozen].requires_grad and optimizer.copies[free].requires_grad
    assert optimizer.take_gradients() == []


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("option", ["foreach", "fused"])
def test_foreach_and_fused_optimizers_do_the_same(option, kind, device):
    results = []
    for options in ({option: True}, {"foreach": False}):
        net = model(device=device)
        optimizer = wrap(kind, torch.optim.AdamW(two_groups(net), lr=0.01, **options))
        for seed in range(4):
            random_gradients(net, seed)
            optimizer.step()
        results.append(values(net))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=2**-6, atol=1e-6)


def test_momentum_goes_on_while_a_parameter_has_no_gradient_only_as_plain_torch_says():
    first, second, reference = weight(), weight(), weight(dtype=F32)
    optimizer = MasterWeights(torch.optim.SGD([first, second], lr=0.25, momentum=0.5))
    plain = torch.optim.SGD([reference], lr=0.25, momentum=0.5)
    for gradient in (1.0, None, 1.0):
        for parameter in (first, reference):
            parameter.grad = None if gradient is None else torch.full_like(parameter, gradient)
        optimizer.step()
        plain.step()
    assert torch.equal(optimizer.copies[first], reference) and second.eq(1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_state_that_exists_already_moves_along_in_float32(kind):
    parameter = weight(size=3)
    inner = torch.optim.AdamW([parameter], lr=1e-3)
    steps(inner, parameter, 0.5, count=3)
    before = copy.deepcopy(inner.state[parameter])
    optimizer = wrap(kind, inner)
    assert list(optimizer.state) == [optimizer.copies[parameter]]
    state = optimizer.state[optimizer.copies[parameter]]
    assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == F32
    assert torch.equal(state["exp_avg"], before["exp_avg"].float())
    assert torch.equal(state["step"], before["step"])


def test_nested_state_is_converted_and_the_rest_left_alone():
    half, whole, wide = torch.ones(2, dtype=F16), torch.ones(2, dtype=torch.int64), torch.ones(2)
    state = in_float32({"a": [half, 3, {"b": (half, whole)}], "c": wide, "d": None})
    assert state["a"][0].dtype == state["a"][2]["b"][0].dtype == F32
    assert state["a"][2]["b"][1] is whole and state["c"] is wide
    assert state["a"][1] == 3 and state["d"] is None and isinstance(state["a"][2]["b"], tuple)


# --- saving and going on ----------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("weights_first", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_saved_state_goes_on_bit_for_bit(name, kind, weights_first, device):
    def build(seed: int) -> tuple[nn.Module, Float32Updates]:
        net = model(device=device, seed=seed)
        net[2].weight.data = net[2].weight.data.float()
        return net, wrap(kind, OPTIMIZERS[name](two_groups(net)), seed)

    def train(net: nn.Module, optimizer: Float32Updates, seeds: range) -> None:
        for seed in seeds:
            random_gradients(net, seed)
            optimizer.step()

    net, optimizer = build(0)
    train(net, optimizer, range(5))
    saved = saved_and_read({"net": net.state_dict(), "optimizer": optimizer.state_dict()})
    train(net, optimizer, range(5, 10))

    other, resumed = build(1)
    train(other, resumed, range(2))
    loads = [(other, "net"), (resumed, "optimizer")]
    for thing, part in loads if weights_first else loads[::-1]:
        thing.load_state_dict(saved[part])
    train(other, resumed, range(5, 10))
    assert same(values(net), values(other))
    assert same(list(optimizer.kept.values()), list(resumed.kept.values()))


@pytest.mark.parametrize("kind", KINDS)
def test_the_saved_state_has_torchs_own_parts(kind):
    net = model()
    optimizer = wrap(kind, torch.optim.AdamW(net.parameters(), lr=0.5))
    random_gradients(net, 0)
    optimizer.step()
    state = optimizer.state_dict()
    assert state["param_groups"][0]["lr"] == 0.5
    assert {s["exp_avg"].dtype for s in state["state"].values()} == {F32}
    assert state["wrapper"] == type(optimizer).__name__
    assert [t.requires_grad for t in state["kept"]] == [False] * (0 if kind == "stochastic" else 4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_of_something_else_is_refused_and_changes_nothing(kind):
    def trained(
        kind: str | None, *sizes: int, dtype: torch.dtype = BF16, groups: int = 1, lr: float = 2e-3
    ) -> tuple:
        parameters = [weight(size=size, dtype=dtype) for size in sizes]
        split = len(sizes) // groups
        rows = [parameters[i : i + split] for i in range(0, len(sizes), split)]
        optimizer = torch.optim.AdamW([{"params": row} for row in rows], lr=lr)
        optimizer = optimizer if kind is None else wrap(kind, optimizer)
        for parameter in parameters:
            steps(optimizer, parameter)
        return parameters, optimizer

    names = dict(zip(KINDS, ("MasterWeights", "StochasticRounding", "KahanSummation"), strict=True))
    refused = [
        (trained(other, 4, 6), f"is of {names[other]}, expected of {names[kind]}")
        for other in KINDS
        if other != kind
    ]
    refused += [
        (trained(None, 4, 6), "is of an optimizer that was not wrapped, expected of"),
        (trained(kind, 4), "is of 1 parameters, expected 2"),
        (trained(kind, 4, 6, 6), "is of 3 parameters, expected 2"),
        (trained(kind, 4, 5), r"parameter 1 was torch.bfloat16 \(5,\), expected .*16 \(6,\)"),
        (trained(kind, 6, 4), "parameter 0 was"),
        (trained(kind, 4, 6, dtype=F16), "parameter 0 was torch.float16"),
        (trained(kind, 4, 6, dtype=F32), "parameter 0 was torch.float32"),
        (trained(kind, 4, 6, groups=2), "different number of parameter groups"),
    ]
    _, optimizer = trained(kind, 4, 6, lr=1e-3)
    before = copy.deepcopy(optimizer.state_dict())
    for (_, other), message in refused:
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(other.state_dict())
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert same(after["kept"], before["kept"])
    for index, state in before["state"].items():
        assert all(torch.equal(after["state"][index][key], state[key]) for key in state)
    if kind == "stochastic":
        assert torch.equal(after["generator"], before["generator"])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_of_model_and_optimizer_goes_on_by_itself(kind, copied):
    net = model()
    optimizer = wrap(kind, adamw(two_groups(net)))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=100)
    random_gradients(net, 0)
    optimizer.step()
    scheduler.step()
    before = values(net)
    other, twin = copied((net, optimizer))
    random_gradients(other, 1)
    twin.step()
    assert same(values(net), before) and not same(values(other), before)
    random_gradients(net, 1)
    optimizer.step()
    assert same(values(net), values(other))


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", [torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.int32], ids=str
)
def test_parameters_that_cannot_be_wrapped_are_refused(dtype):
    odd = nn.Parameter(torch.zeros(2, dtype=dtype), requires_grad=False)
    inner = sgd([weight(), odd])
    before = list(inner.param_groups[0]["params"])
    with pytest.raises(ValueError, match=rf"shape \(2,\) is {dtype}, expected torch.float16"):
        MasterWeights(inner)
    assert all(map(lambda a, b: a is b, inner.param_groups[0]["params"], before))


@pytest.mark.parametrize("thing", [None, [weight()], nn.Linear(1, 1)])
def test_what_is_no_optimizer_is_refused(thing):
    with pytest.raises(TypeError, match=r"optimizer: is a .*, expected a torch.optim"):
        MasterWeights(thing)


@pytest.mark.parametrize(("inner", "outer"), itertools.product(KINDS, KINDS))
def test_a_second_wrapper_is_refused(inner, outer):
    wrapped = wrap(inner, sgd([weight()]))
    with pytest.raises(TypeError, match=f"wrapped in {type(wrapped).__name__} already"):
        wrap(outer, wrapped)


@pytest.mark.parametrize("start", [BF16, F32], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_is_cast_after_wrapping_is_named(kind, start):
    net = model(start)
    optimizer = wrap(kind, sgd(net.parameters()))
    net.to(F16)
    random_gradients(net, 0)
    with pytest.raises(RuntimeError, match=rf"was {start} on cpu .* is torch.float16.*cast the mo"):
        optimizer.step()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_is_moved_after_wrapping_is_named(kind):
    net = model()
    optimizer = wrap(kind, sgd(net.parameters()))
    net.to("cuda")
    random_gradients(net, 0)
    with pytest.raises(RuntimeError, match=r"was torch.bfloat16 on cpu .* on cuda.*move and cast"):
        optimizer.step()
