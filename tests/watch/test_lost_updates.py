"""`updates_lost` against counts by hand, and the promise that watching changes nothing."""

import copy
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from mpbook.master_weights import Float32Updates, KahanSummation, MasterWeights, StochasticRounding
from mpbook.watch.lost_updates import LostUpdates, updates_lost

F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
KINDS = ["plain", "master", "stochastic", "kahan"]


class Noisy(torch.optim.SGD):
    """SGD that adds noise from the global generator, and holds on to its list of parameters."""

    def __init__(self, params, lr):
        super().__init__(params, lr=lr)
        self.everything = self.param_groups[0]["params"]
        self.steps_taken = 0

    @torch.no_grad()
    def step(self, closure=None):
        for parameter in self.everything:
            if parameter.grad is not None:
                noise = torch.randn(parameter.shape).to(parameter)
                parameter.add_(parameter.grad + noise, alpha=-self.defaults["lr"])
        self.steps_taken += 1


class Derived(torch.optim.SGD):
    """An optimizer whose step is its parent's, and a count."""

    def __init__(self, params, lr):
        super().__init__(params, lr=lr)
        self.steps_taken = 0

    def step(self, closure=None):
        self.steps_taken += 1
        return super().step(closure)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1),
    "adamw, fused": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
    "adamw, lr a tensor": lambda p: torch.optim.AdamW(p, lr=torch.tensor(1e-3), foreach=False),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "derived": lambda p: Derived(p, lr=1e-3),
    "noisy": lambda p: Noisy(p, lr=1e-3),
}


def wrapped(kind: str, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    if kind == "plain":
        return optimizer
    if kind == "stochastic":
        device = optimizer.param_groups[0]["params"][0].device
        return StochasticRounding(optimizer, generator=torch.Generator(device).manual_seed(0))
    return {"master": MasterWeights, "kahan": KahanSummation}[kind](optimizer)


def model(dtype: torch.dtype = BF16, device: str = "cpu") -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 4)).to(device, dtype)


def layer(*values: float, dtype: torch.dtype = BF16) -> nn.Linear:
    net = nn.Linear(len(values), 1, bias=False, dtype=dtype)
    net.weight.data = torch.tensor([values], dtype=dtype)
    return net


def give_gradients(net: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter)


def bits(tensors: list[Tensor]) -> list[list[int]]:
    return [t.detach().cpu().contiguous().view(-1).view(torch.uint8).tolist() for t in tensors]


# --- what is counted --------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
def test_the_count_for_sgd_is_the_one_by_hand(dtype, device):
    net, lr = model(dtype, device), 2**-8 * torch.finfo(dtype).eps ** 0.5  # products are exact
    lr = 2.0 ** round(math.log2(lr))
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    expected = []
    with updates_lost(net, optimizer) as lost:
        for seed in range(4):
            give_gradients(net, seed)
            row = []
            for p in net.parameters():
                exact = p.float() - lr * p.grad.float()
                moves = exact != p.float()
                row.append((int(moves.sum()), int((moves & (exact.to(dtype) == p)).sum())))
            optimizer.step()
            expected.append(row)
    assert [[tuple(row[:2]) for row in counts.tolist()] for counts in lost.counts] == expected
    updates, gone = (sum(pair[i] for row in expected for pair in row) for i in (0, 1))
    assert lost.fraction == gone / updates and 0.01 < lost.fraction < 0.95
    assert lost.by_step == [sum(g for _, g in row) / sum(u for u, _ in row) for row in expected]
    assert lost.by_parameter == {
        name: sum(row[i][1] for row in expected) / sum(row[i][0] for row in expected)
        for i, (name, _) in enumerate(net.named_parameters())
    }


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad])
def test_the_shadow_is_what_torchs_own_state_dict_makes_in_float32(kind, device):
    net = model(device=device)
    options = dict(lr=3e-3, weight_decay=0.1)
    groups = [{"params": net[0].parameters()}, {"params": net[2].parameters(), "lr": 1e-3}]
    optimizer, expected = kind(groups, **options), []
    with updates_lost(net, optimizer) as lost:
        for seed in range(5):
            give_gradients(net, seed)
            wide = copy.deepcopy(net).float()
            for ours, theirs in zip(net.parameters(), wide.parameters(), strict=True):
                theirs.grad = ours.grad.float()
            start = [p.detach().clone() for p in wide.parameters()]
            shadow = kind([{"params": wide[0].parameters()}, {"params": wide[2].parameters()}])
            shadow.load_state_dict(optimizer.state_dict())  # casts to the parameters' dtype
            shadow.step()
            optimizer.step()
            moves = [p != s for p, s in zip(wide.parameters(), start, strict=True)]
            stays = [p.float() == s for p, s in zip(net.parameters(), start, strict=True)]
            gone = sum(int((m & s).sum()) for m, s in zip(moves, stays, strict=True))
            expected.append(gone / sum(int(m.sum()) for m in moves))
    assert lost.by_step == expected
    assert 0.01 < lost.fraction < 0.95


def test_every_update_of_a_frozen_bfloat16_weight_is_lost():
    net = layer(1.0, 1.0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=6e-4)
    with updates_lost(net, optimizer) as lost:
        for _ in range(100):
            net.weight.grad = torch.ones_like(net.weight)
            optimizer.step()
    assert lost.fraction == lost.unmoved == 1.0 and lost.by_step == [1.0] * 100
    assert net.weight.eq(1).all()


def test_an_update_of_zero_is_no_update():
    net = layer(1.0, 1.0, 1.0, 0.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    with updates_lost(net, optimizer) as lost:
        net.weight.grad = torch.tensor([[0.0, 1e-4, 0.5, 0.0]], dtype=BF16)
        optimizer.step()
        net.weight.grad = torch.zeros_like(net.weight)
        optimizer.step()
    assert lost.counts[0].tolist() == [[2, 1, 1]]
    assert lost.by_step[0] == 0.5 and math.isnan(lost.by_step[1])
    assert lost.fraction == 0.5


def test_weight_decay_is_part_of_the_update():
    net = layer(1.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4, weight_decay=1.0)
    net.weight.grad = torch.zeros_like(net.weight)
    with updates_lost(net, optimizer) as lost:
        optimizer.step()
    assert lost.fraction == 1.0


def test_the_sign_of_zero_is_no_update():
    net = layer(-0.0, dtype=F32)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    net.weight.grad = torch.tensor([[-0.0]])
    with updates_lost(net, optimizer) as lost:
        optimizer.step()
    assert lost.counts[0].tolist() == [[0, 0, 0]]


def test_a_weight_that_is_nan_is_neither_moved_nor_lost():
    net = layer(math.nan, 1.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    net.weight.grad = torch.ones_like(net.weight)
    with updates_lost(net, optimizer) as lost:
        optimizer.step()
    assert lost.counts[0].tolist() == [[1, 0, 0]]
    assert lost.nonfinite == 0 and lost.nonfinite_counts[0].tolist() == [[1, 0]]


@pytest.mark.parametrize("kind", KINDS)
def test_float32_weights_lose_nothing(kind):
    net = model(F32)
    optimizer = wrapped(kind, torch.optim.SGD(net.parameters(), lr=1e-7))
    with updates_lost(net, optimizer) as lost:
        for seed in range(3):
            give_gradients(net, seed)
            optimizer.step()
    assert lost.fraction == lost.unmoved == 0
    assert 0 < int(lost.counts[0][:, 0].sum()) < sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("device", DEVICES)
def test_the_cures_lose_nothing_though_most_weights_stay(device):
    found = {}
    for kind in KINDS:
        net = model(device=device)
        optimizer = wrapped(kind, torch.optim.SGD(net.parameters(), lr=1e-4))
        with updates_lost(net, optimizer) as lost:
            for seed in range(5):
                give_gradients(net, seed)
                optimizer.step()
        found[kind] = (lost.fraction, lost.unmoved)
    assert found["plain"][0] == found["plain"][1] > 0.6
    assert found["master"][0] == found["stochastic"][0] == 0
    assert found["kahan"][0] < 0.01
    for kind in ("master", "stochastic", "kahan"):
        assert 0.5 < found[kind][1] < 1


def test_kahan_in_float16_loses_what_its_compensation_cannot_hold():
    net = layer(0.25, 0.25, dtype=F16)
    optimizer = KahanSummation(torch.optim.SGD(net.parameters(), lr=2**-26))
    with updates_lost(net, optimizer) as lost:
        net.weight.grad = torch.tensor([[1.0, 64.0]], dtype=F16)
        optimizer.step()
    assert lost.counts[0].tolist() == [[2, 1, 2]]  # updates, lost, unmoved


def test_an_update_that_only_the_master_copy_takes_in_is_not_lost():
    net = layer(1.0)
    optimizer = MasterWeights(torch.optim.SGD(net.parameters(), lr=2**-12))
    with updates_lost(net, optimizer) as lost:
        for _ in range(20):
            net.weight.grad = torch.ones_like(net.weight)
            optimizer.step()
    assert lost.by_step == [0.0] * 20
    assert 0.8 < lost.unmoved < 1


def test_a_mixed_bag_is_counted_parameter_by_parameter():
    net = model()
    net[2].float()
    optimizer = MasterWeights(torch.optim.SGD(net.parameters(), lr=1e-4))
    with updates_lost(net, optimizer) as lost:
        give_gradients(net, 0)
        optimizer.step()
    unmoved = dict(zip(lost.names, (lost.counts[0][:, 2] > 0).tolist(), strict=True))
    assert unmoved == {"0.weight": True, "0.bias": True, "2.weight": False, "2.bias": False}


# --- which steps, which parameters ------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("every", "expected"), [(1, [0, 1, 2, 3, 4]), (2, [0, 2, 4]), (7, [0])])
def test_every_says_which_steps_to_look_at(every, expected, kind):
    net = model()
    optimizer = wrapped(kind, torch.optim.SGD(net.parameters(), lr=1e-3))
    with updates_lost(net, optimizer, every=every) as lost:
        for seed in range(5):
            give_gradients(net, seed)
            optimizer.step()
    assert lost.steps == expected and len(lost.by_step) == len(lost.counts) == len(expected)


@pytest.mark.parametrize("device", DEVICES)
def test_a_step_that_a_grad_scaler_skips_is_not_counted(device):
    net = model(F32, device)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler(device)
    with updates_lost(net, optimizer) as lost:
        for factor in (1.0, math.inf, 1.0):
            optimizer.zero_grad()
            scaler.scale(net(torch.ones(2, 20, device=device)).sum() * factor).backward()
            scaler.step(optimizer)
            scaler.update()
    assert lost.steps == [0, 1]


def test_parameters_that_are_not_the_models_or_the_optimizers_are_left_out():
    net, other = model(), layer(1.0)
    optimizer = torch.optim.SGD([*net[0].parameters(), *other.parameters()], lr=1e-3)
    with updates_lost(net, optimizer) as lost:
        give_gradients(net, 0)
        optimizer.step()
    assert lost.names == ["0.weight", "0.bias"]
    assert lost.counts[0][:, 0].gt(0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_shared_parameter_is_counted_once(kind):
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)).bfloat16()
    net[1].weight = net[0].weight
    optimizer = wrapped(kind, torch.optim.SGD(net.parameters(), lr=1.0))
    with updates_lost(net, optimizer) as lost:
        net[0].weight.grad = torch.ones_like(net[0].weight)
        optimizer.step()
    assert lost.names == ["0.weight"] and lost.counts[0][0, 0] == 9


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_without_gradient_have_no_updates(kind):
    net = model()
    optimizer = wrapped(kind, torch.optim.SGD(net.parameters(), lr=1e-3))
    with updates_lost(net, optimizer) as lost:
        net[0].weight.grad = torch.ones_like(net[0].weight)
        optimizer.step()
    assert lost.counts[0][:, 0].gt(0).tolist() == [True, False, False, False]
    assert math.isnan(lost.by_parameter["2.bias"])


def test_only_weights_that_ranks_share_are_counted_over_ranks(monkeypatch):
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    found = []
    for shared in ({}, {2}, {1, 2}):  # by how many dimensions a weight has
        monkeypatch.setattr("mpbook.watch.lost_updates.groups_of", lambda _: ["all"])
        monkeypatch.setattr(
            "mpbook.watch.lost_updates.is_shared", lambda p, shared=shared: p.dim() in shared
        )
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda counts, group: counts.mul_(4))
        with updates_lost(net, optimizer) as lost:
            give_gradients(net, 0)
            with torch.no_grad():
                before = [p.clone() for p in net.parameters()]
                optimizer.step()
                for p, old in zip(net.parameters(), before, strict=True):
                    p.copy_(old)
        found.append(torch.cat([lost.counts[0], lost.nonfinite_counts[0]], dim=1))
    alone, matrices, every = found
    assert every.equal(4 * alone)
    assert matrices[[0, 2]].equal(4 * alone[[0, 2]]) and matrices[[1, 3]].equal(alone[[1, 3]])
    assert alone[:, 0].gt(0).all()


def test_nothing_watched_is_nan():
    net = model()
    with updates_lost(net, torch.optim.SGD(net.parameters(), lr=1.0)) as lost:
        pass
    assert math.isnan(lost.fraction) and math.isnan(lost.unmoved) and lost.by_step == []
    assert set(map(math.isnan, lost.by_parameter.values())) == {True}


# --- watching changes nothing -----------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_training_that_is_watched_does_not_change_by_a_bit(name, kind, device):
    def run(watch: bool) -> tuple:
        net = model(device=device)
        optimizer = wrapped(kind, OPTIMIZERS[name](net.parameters()))
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        torch.manual_seed(1)

        def train() -> None:
            for seed in range(4):
                give_gradients(net, seed)
                optimizer.step()
                scheduler.step()

        if watch:
            with updates_lost(net, optimizer) as lost:
                train()
            assert lost.steps == [0, 1, 2, 3] and lost.unmoved > 0
        else:
            train()
        state = [v for s in optimizer.state_dict()["state"].values() for v in s.values()]
        tensors = [*net.parameters(), *(p.grad for p in net.parameters())]
        tensors += [v for v in state if isinstance(v, Tensor)]
        kept = list(optimizer.kept.values()) if isinstance(optimizer, Float32Updates) else []
        inner = optimizer.optimizer if isinstance(optimizer, Float32Updates) else optimizer
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        return bits([*tensors, *kept, torch.get_rng_state()]), rates, vars(inner).get("steps_taken")

    assert run(watch=True) == run(watch=False)


def test_hooks_on_all_optimizers_do_not_see_the_shadow():
    seen, net = [], model()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    handle = register_optimizer_step_post_hook(lambda opt, args, kwargs: seen.append(opt))
    try:
        with updates_lost(net, optimizer):
            give_gradients(net, 0)
            optimizer.step()
    finally:
        handle.remove()
    assert seen == [optimizer]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fails", [False, True])
def test_no_hook_is_left_behind_even_after_an_exception(kind, fails):
    net = model()
    optimizer = wrapped(kind, torch.optim.SGD(net.parameters(), lr=1e-3))
    give_gradients(net, 0)
    try:
        with updates_lost(net, optimizer) as lost:
            optimizer.step()
            if fails:
                raise KeyError("stop")
    except KeyError:
        pass
    optimizer.step()
    assert lost.steps == [0] and len(lost.counts) == 1
    for each in {optimizer, getattr(optimizer, "optimizer", optimizer)}:
        assert not each._optimizer_step_pre_hooks and not each._optimizer_step_post_hooks


@pytest.mark.parametrize("every", [1, 2])
def test_a_step_that_failed_is_forgotten(every):
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    with updates_lost(net, optimizer, every=every) as lost:
        give_gradients(net, 0)
        optimizer.param_groups[0]["lr"] = "fast"
        with pytest.raises(TypeError):
            optimizer.step()
        optimizer.param_groups[0]["lr"] = 1e-3
        optimizer.step()
        optimizer.step()
    assert lost.steps == {1: [0, 1], 2: [0]}[every]


# --- closures and refusals --------------------------------------------------------------------


def test_a_closure_of_a_wrapped_optimizer_is_watched():
    net = model()
    optimizer = MasterWeights(torch.optim.LBFGS(net.parameters(), max_iter=3))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = net(torch.ones(2, 20, dtype=BF16)).float().square().sum()
        loss.backward()
        return loss

    with updates_lost(net, optimizer) as lost:
        optimizer.step(closure)
    assert lost.steps == [0] and lost.fraction == 0 and lost.counts[0][:, 0].gt(0).any()


@pytest.mark.parametrize("keyword", [False, True])
def test_a_closure_of_a_plain_optimizer_is_refused_before_anything_changes(keyword):
    net, called = layer(1.0), []
    closure = partial(called.append, 1)
    arguments, options = ((), {"closure": closure}) if keyword else ((closure,), {})
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    net.weight.grad = torch.ones_like(net.weight)
    with (
        updates_lost(net, optimizer),
        pytest.raises(ValueError, match=r"closure: gradients that step\(\) computes"),
    ):
        optimizer.step(*arguments, **options)
    assert net.weight.item() == 1 and not called
    with updates_lost(net, optimizer) as lost:
        optimizer.step(closure=None)
    assert lost.steps == [0]


@pytest.mark.parametrize("every", [0, -3])
def test_every_below_1_is_refused(every):
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    with (
        pytest.raises(ValueError, match=f"every={every}: expected at least 1"),
        updates_lost(net, optimizer, every=every),
    ):
        pass


@pytest.mark.parametrize("kind", KINDS)
def test_an_optimizer_of_another_model_is_refused(kind):
    optimizer = wrapped(kind, torch.optim.SGD(model().parameters(), lr=1e-3))
    with (
        pytest.raises(ValueError, match="optimizer: has none of the model's parameters"),
        updates_lost(model(), optimizer),
    ):
        pass


# --- as a table -------------------------------------------------------------------------------


def test_the_table_has_a_row_for_each_parameter_and_one_for_all():
    counts = [torch.tensor([[10, 5, 6], [0, 0, 0]]), torch.tensor([[10, 0, 2], [5, 5, 5]])]
    lost = LostUpdates(["a", "b"], steps=[0, 10], counts=counts)
    table = lost.table()
    assert list(table.header) == ["parameter", "updates", "lost", "weight unmoved"]
    assert table.rows == [["a", 20, 0.25, 0.4], ["b", 5, 1.0, 1.0], ["all", 25, 0.4, 13 / 25]]
    assert lost.by_step == [0.5, 5 / 15] and lost.unmoved == 13 / 25


# --- What no update shows -----------------------------------------------------------------------


def test_adam_in_float16_that_leaves_no_finite_weight_has_lost_all():
    """CLIP issue 40: eps of 1e-8 is 0 in float16, and so are small squares."""
    torch.manual_seed(0)
    net = nn.Linear(32, 8).to(F16)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4, foreach=False)
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 2.0**-20)
    with updates_lost(net, optimizer) as lost:
        optimizer.step()
    assert not any(p.isfinite().any() for p in net.parameters())
    assert lost.fraction == lost.nonfinite == 1.0
    assert list(lost.table().header)[-1] == "not finite after"
    assert lost.table().rows[-1][2:] == [1.0, 0.0, 1.0]


def test_weights_that_float32_would_have_lost_too_are_not_lost_by_rounding():
    net = layer(1.0, 1.0, dtype=BF16)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    net.weight.grad = torch.tensor([[math.inf, 1.0]], dtype=BF16)
    with updates_lost(net, optimizer) as lost:
        optimizer.step()
    assert (lost.fraction, lost.nonfinite) == (0.0, 0.5)


@pytest.mark.parametrize("wrap", [MasterWeights, KahanSummation])
def test_wrapped_updates_that_overflow_16_bits_are_lost(wrap):
    net = layer(60000.0, 1.0, dtype=F16)
    optimizer = wrap(torch.optim.SGD(net.parameters(), lr=1.0))
    net.weight.grad = torch.tensor([[-60000.0, -1.0]], dtype=F16)
    with updates_lost(net, optimizer) as lost:
        optimizer.step()
    assert net.weight.isinf().tolist() == [[True, False]]
    assert (lost.fraction, lost.nonfinite) == (0.5, 0.5)


def test_gradients_that_a_16_bit_sum_swallows_are_counted():
    net = layer(0.0, 0.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    with updates_lost(net, optimizer) as lost:
        for _ in range(1000):  # 256 + 1 is 256 in bfloat16
            net(torch.ones(1, 2, dtype=BF16)).sum().backward()
        optimizer.step()
    assert net.weight.tolist() == [[-256.0, -256.0]]
    assert lost.fraction == 0.0
    assert lost.additions_lost == (1000 - 256) / 999
    assert list(lost.table().header)[-1] == "additions lost"
    assert lost.table().rows[-1][-1] == lost.additions_lost


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
def test_additions_are_counted_as_torch_adds_them_and_a_zero_is_none(dtype):
    net, generator = layer(*[0.0] * 64, dtype=dtype), torch.Generator().manual_seed(0)
    sizes = torch.exp2(torch.randint(-12, 4, (5, 1, 64), generator=generator).float())
    gradients = (torch.randn(5, 1, 64, generator=generator).relu() * sizes).to(dtype)
    added = swallowed = 0
    with updates_lost(net, torch.optim.SGD(net.parameters(), lr=1.0)) as lost:
        for number, gradient in enumerate(gradients):
            before = None if number == 0 else net.weight.grad.clone()
            (net.weight * gradient).sum().backward()
            if before is not None:
                added += int((gradient != 0).sum())
                swallowed += int(((gradient != 0) & (net.weight.grad == before)).sum())
    assert lost.addition_counts["weight"].tolist() == [added, swallowed]
    assert 0 < swallowed < added < 4 * 64


def test_float32_gradients_and_single_passes_have_no_additions():
    for dtype, passes in ((F32, 3), (BF16, 1)):
        net = layer(0.0, 0.0, dtype=dtype)
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        with updates_lost(net, optimizer) as lost:
            for _ in range(passes):
                net(torch.ones(1, 2, dtype=dtype)).sum().backward()
            optimizer.step()
        assert math.isnan(lost.additions_lost)
        assert list(lost.table().header) == ["parameter", "updates", "lost", "weight unmoved"]
        assert not net.weight._backward_hooks


def test_what_is_added_to_an_infinite_gradient_is_not_counted():
    net = layer(0.0, 0.0, dtype=BF16)
    with updates_lost(net, torch.optim.SGD(net.parameters(), lr=1.0)) as lost:
        net.weight.grad = torch.tensor([[math.inf, 256.0]], dtype=BF16)
        net(torch.ones(1, 2, dtype=BF16)).sum().backward()
    assert lost.addition_counts["weight"].tolist() == [1, 1]


@pytest.mark.parametrize("fused", [False, True])
def test_a_skipped_step_is_none_fused_or_not(fused):
    net = layer(1.0, 1.0, dtype=F32)
    optimizer = torch.optim.AdamW(net.parameters(), fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    with updates_lost(net, optimizer) as lost:
        for factor in (1.0, math.inf, 1.0):
            optimizer.zero_grad()
            scaler.scale(net(torch.ones(1, 2)).sum() * factor).backward()
            scaler.step(optimizer)
            scaler.update()
    assert lost.steps == [0, 1]
    assert lost.nonfinite == 0.0
