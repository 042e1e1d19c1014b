"""What ranks share of a run, and what is refused; real ranks: `tests/many_gpus/test_train.py`."""

from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from one_rank import group_of_one, sharded
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from training_cases import data, model

from mpbook.data import Examples
from mpbook.doctor import cpp_compiler
from mpbook.low_precision import advance, convert
from mpbook.precision import PRECISIONS, as_precision
from mpbook.training import resume, train
from mpbook.training.parallel import (
    ALONE,
    Ranks,
    _broadcast,
    check_optimizer,
    share_among_ranks,
)

OPTIONS = dict(steps=4, batch_size=16, device="cpu", progress=False)
BF16 = dict(param_dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def group():
    with group_of_one():
        yield


# --- What each rank takes of a batch ------------------------------------------------------------


@given(st.integers(1, 9), st.integers(1, 5))
def test_the_parts_of_a_batch_are_the_batch_in_order(count, size):
    inputs, targets = torch.arange(count * size), {"y": torch.arange(count * size) + 0.5}
    parts = [Ranks(number, count).share(inputs, targets) for number in range(count)]
    assert torch.cat([x for x, _ in parts]).equal(inputs)
    assert torch.cat([y["y"] for _, y in parts]).equal(targets["y"])
    assert {len(x) for x, _ in parts} == {size}


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"batch_size: 7 examples go through .* which 2 ranks do"):
        Ranks(1, 2).share(torch.ones(7), torch.ones(7))


@given(st.integers(1, 9), st.integers(1, 30))
def test_each_held_out_example_counts_once_and_every_rank_has_one_to_run(count, examples):
    inputs = torch.arange(examples)
    parts = [Ranks(n, count).held_out_share(inputs, inputs) for n in range(count)]
    assert all(len(x) >= 1 and x.equal(y) for x, y, _ in parts)
    counting = [x[:number] for x, _, number in parts if number]
    assert torch.cat(counting).equal(inputs)
    assert max(n for _, _, n in parts) - min(n for _, _, n in parts) <= 1


def test_ranks_draw_other_numbers_and_one_process_those_of_its_seed():
    def drawn(ranks, seed):
        torch.manual_seed(seed)
        ranks.seed(seed)
        return tuple(torch.rand(4).tolist())

    assert drawn(ALONE, 3) == tuple(torch.rand(4, generator=torch.Generator().manual_seed(3)))
    assert len({drawn(Ranks(number, 4), seed) for number in range(4) for seed in range(4)}) == 16


# --- One rank under an engine --------------------------------------------------------------------


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed", "bf16-true"])
@pytest.mark.parametrize("engine", ["DDP", "FSDP2", "FSDP2, autocast"])
def test_one_rank_trains_as_one_process(precision, engine):
    chosen = PRECISIONS[precision]
    policy = dict(param_dtype=chosen.compute_dtype) if chosen.is_mixed else {}
    parallel = {
        "DDP": DistributedDataParallel,
        "FSDP2": partial(sharded, **policy),
        "FSDP2, autocast": sharded,
    }[engine]
    options = OPTIONS | dict(precision=chosen, clip_norm=0.5, accumulation_steps=2)
    alone, one = train(model(), data(), **options), train(
        model(), data(), parallel=parallel, **options
    )  # fmt: skip
    assert one.losses == pytest.approx(alone.losses, rel=1e-2 if "16" in precision else 1e-5)
    assert one.validation_losses[0][1] == pytest.approx(alone.validation_loss, rel=1e-2)
    assert (one.config["parallel"], one.config["ranks"]) == (engine[:5].rstrip(","), 1)
    assert (alone.config["parallel"], alone.config["ranks"]) == ("none", 1)


@pytest.mark.slow
@pytest.mark.skipif(cpp_compiler() is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # torch's compiler has its own to say of DDP and FSDP2
@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("parallel", [DistributedDataParallel, partial(sharded, **BF16)])
def test_a_rank_compiles(parallel):
    options = OPTIONS | dict(precision="bf16-mixed", steps=2)
    examples = Examples(data().inputs, data().targets)  # none held out: one graph to compile
    alone = train(model(), examples, **options)
    one = train(model(), examples, parallel=parallel, compile=True, **options)
    assert one.losses == pytest.approx(alone.losses, rel=1e-2)


SENT = {
    "turned": torch.arange(6, dtype=torch.int16).view(2, 3).t(),
    "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "complex": torch.tensor(1 + 2j),
    "bfloat16": torch.tensor([1.5, float("inf")]).bfloat16(),
    "none": torch.ones(0, 3),
}


@pytest.mark.parametrize("name", SENT)
def test_numbers_of_any_dtype_and_strides_are_those_of_rank_0(name, monkeypatch):
    sent = SENT[name]
    mine = torch.empty_strided(sent.shape, sent.stride(), dtype=sent.dtype).fill_(7)

    def broadcast(numbers, src):
        assert src == 0
        numbers.copy_(sent.contiguous().flatten().view(torch.uint8))

    monkeypatch.setattr(dist, "broadcast", broadcast)
    _broadcast(mine)
    assert mine.equal(sent) and mine.stride() == sent.stride()


@pytest.mark.usefixtures("group")
def test_parameters_and_buffers_are_those_of_rank_0(monkeypatch):
    def broadcast(numbers, src):
        numbers.copy_(torch.full((numbers.numel() // 4,), 3.0).view(torch.uint8))

    net = nn.Linear(2, 2)
    net.register_buffer("table", torch.rand(3))
    monkeypatch.setattr(dist, "broadcast", broadcast)
    share_among_ranks(net, sharded, PRECISIONS["32-true"])
    state = {
        name: getattr(t, "full_tensor", lambda t=t: t)() for name, t in net.state_dict().items()
    }
    assert state.keys() == {"weight", "bias", "table"}
    assert all((tensor == 3).all() for tensor in state.values())


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize(("policy", "autocasts"), [({}, True), (BF16, False)])
def test_autocast_leaves_alone_what_the_policy_casts(policy, autocasts):
    seen = set()

    class Spy(nn.Linear):
        def forward(self, x):
            seen.add((torch.is_autocast_enabled("cpu"), self.weight.dtype))
            return super().forward(x)

    parallel = partial(sharded, **policy)
    train(Spy(12, 3), data(), precision="bf16-mixed", parallel=parallel, **OPTIONS | dict(steps=1))
    assert seen == {(autocasts, torch.float32 if autocasts else torch.bfloat16)}


@pytest.mark.usefixtures("group")
def test_the_trained_model_is_the_module_without_a_wrapper_and_the_given_one_stays():
    given = model()
    before = [p.clone() for p in given.parameters()]
    run = train(given, data(), precision="32-true", parallel=DistributedDataParallel, **OPTIONS)
    assert type(run.model) is nn.Sequential
    assert [n for n, _ in run.model.named_parameters()] == [n for n, _ in given.named_parameters()]
    assert all(map(torch.equal, before, given.parameters()))


def test_delayed_scales_follow_the_largest_amax_of_all_ranks(monkeypatch):
    layers = convert(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), "float8_delayed")
    layers[0].amax_history[0] = torch.tensor([2.0, 3.0, 4.0])
    of_the_other = torch.tensor([[1.0, 5.0, 4.0], [7.0, 7.0, 7.0]])

    def all_reduce(numbers, op):
        assert op == dist.ReduceOp.MAX
        numbers.copy_(torch.maximum(numbers, of_the_other[: len(numbers)]))

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    Ranks(0, 2).agree_on_amax(layers)
    assert layers[0].amax_history[0].tolist() == [2, 5, 4]
    advance(layers)
    assert layers[0].scale[1] == 448 / 5


@pytest.mark.usefixtures("group")
def test_before_the_last_micro_batch_engines_keep_gradients_to_themselves():
    ddp, asked = DistributedDataParallel(nn.Linear(1, 1)), []
    for last in (False, True):
        with Ranks(engine=ddp).accumulating(last=last):
            assert ddp.require_backward_grad_sync is last
    fsdp2 = nn.Linear(1, 1)
    fsdp2.set_requires_gradient_sync = asked.append
    for last in (False, True):
        with Ranks(engine=fsdp2).accumulating(last=last):
            assert asked[-1] is last
    with ALONE.accumulating(last=False):
        assert len(asked) == 2


# --- What is refused -----------------------------------------------------------------------------


def test_without_a_process_group_it_says_how_to_start(monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    with pytest.raises(RuntimeError, match=r"no process group; start the program with torchrun"):
        train(model(), data(), precision="32-true", parallel=DistributedDataParallel, **OPTIONS)


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("wrap", [DistributedDataParallel, sharded])
def test_a_model_that_is_wrapped_already_is_refused(wrap):
    with pytest.raises(ValueError, match=r"already, and train copies .*; pass the plain model"):
        train(wrap(model()), data(), precision="32-true", **OPTIONS)


def only_a_block(module):
    fully_shard(module[0], mesh=init_device_mesh("cpu", (1,)))
    return module


def but_not_the_last(module):
    """The whole, but with a parameter that fully_shard is told to ignore."""
    ignored = {module[3].bias}
    fully_shard(module, mesh=init_device_mesh("cpu", (1,)), ignored_params=ignored)
    return module


def on_a_square(module):
    mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("copies", "parts"))
    fully_shard(module, mesh=mesh)
    return module


def in_two_dtypes(module):
    mesh = init_device_mesh("cpu", (1,))
    fully_shard(module[0], mesh=mesh, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    fully_shard(module, mesh=mesh)
    return module


REFUSED = {
    "a word": (dict(parallel="ddp"), TypeError, "parallel='ddp': expected a function"),
    "the module as it was": (dict(parallel=lambda m: m), TypeError, "returns a Sequential"),
    "another module": (
        dict(parallel=lambda m: DistributedDataParallel(nn.Linear(1, 1))),
        TypeError,
        "wraps another module",
    ),
    "a block alone": (dict(parallel=only_a_block), TypeError, "the model after fully_shard"),
    "a parameter left out": (dict(parallel=but_not_the_last), ValueError, '"3.bias" is in no unit'),
    "a mesh of two dimensions": (dict(parallel=on_a_square), ValueError, "one dimension of 1"),
    "another dtype": (
        dict(parallel=partial(sharded, **BF16)),
        ValueError,
        'computes in torch.bfloat16, and precision="32-true" in torch.float32; expected Mixed',
    ),
    "a narrower dtype": (
        dict(parallel=partial(sharded, param_dtype=torch.float16), precision="bf16-mixed"),
        ValueError,
        r"in torch.float16, .* MixedPrecisionPolicy\(param_dtype=torch.bfloat16, reduce_dtype=",
    ),
    "two dtypes": (
        dict(parallel=in_two_dtypes, precision="bf16-mixed"),
        ValueError,
        "torch.bfloat16 and torch.float32, .* for every unit, or none",
    ),
    "eight bits": (
        dict(parallel=sharded, precision="float8_tensorwise-mixed"),
        ValueError,
        "quantise weights .*; use parallel=DistributedDataParallel",
    ),
    "stochastic rounding": (
        dict(
            parallel=sharded,
            precision=replace(PRECISIONS["bf16-true"], weight_update="stochastic_rounding"),
        ),
        ValueError,
        "StochasticRounding does not update; use MasterWeights",
    ),
    "a compensation": (
        dict(
            parallel=sharded,
            precision=replace(PRECISIONS["bf16-true"], weight_update="kahan_summation"),
        ),
        ValueError,
        "KahanSummation does not update; use MasterWeights",
    ),
    "means of rows": (
        dict(parallel=sharded, optimizer="adafactor"),
        ValueError,
        'Adafactor .* use "adamw", or parallel=DistributedDataParallel',
    ),
}


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_train_the_same_is_refused_with_what_can(name):
    changes, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        train(model(), data(), **{"precision": "32-true", **OPTIONS, **changes})


@pytest.mark.usefixtures("group")
def test_statistics_of_a_part_of_a_batch_are_refused():
    normed = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    options = dict(precision="32-true", parallel=DistributedDataParallel, **OPTIONS)
    with pytest.raises(ValueError, match=r'"1" is a BatchNorm1d, .*use GroupNorm'):
        train(normed, data(), **options)


def test_adafactor_is_refused_for_shards_alone():
    made = torch.optim.Adafactor(model().parameters())
    check_optimizer(made, ALONE)
    with pytest.raises(ValueError, match="whole rows"):
        check_optimizer(made, Ranks(0, 2, engine=nn.Linear(1, 1)))


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("precision", as_precision("bf16-mixed").described(), "another precision .*compute_dtype"),
        ("settings", dict(learning_rate="0.5"), "another settings .* learning_rate was 0.001, is"),
        ("run", dict(steps="7"), "another run .* steps was 4, is 7"),
        ("run", dict(save_every="1"), "another run .* save_every was None, is 1"),
    ],
)
def test_a_rank_that_was_asked_for_another_run_is_named(part, changes, message, monkeypatch):
    def gather(ranks, asked):
        return [asked, asked, {**asked, part: asked[part] | changes}]

    monkeypatch.setattr(Ranks, "gather", gather)
    with pytest.raises(ValueError, match=f"rank 2: was asked for {message}"):
        train(model(), data(), precision="32-true", **OPTIONS)


# --- Checkpoints ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("name", ["16-mixed", "master"])
@pytest.mark.parametrize("saved_by", [None, sharded], ids=["a process", "a rank"])
@pytest.mark.parametrize("read_by", [None, sharded], ids=["a process", "a rank"])
def test_a_process_and_a_rank_read_what_the_other_saved(name, saved_by, read_by, tmp_path):
    master = replace(PRECISIONS["bf16-true"], weight_update="master_weights")
    precision = master if name == "master" else PRECISIONS[name]
    path = tmp_path / "run"
    options = OPTIONS | dict(precision=precision, optimizer="adam", loss_scale_growth_interval=3)
    whole = train(model(0.2), data(), parallel=read_by, **options | dict(steps=9))
    train(model(0.2), data(), parallel=saved_by, save_to=path, **options | dict(steps=5))
    assert path.is_dir() is (saved_by is sharded)
    options |= dict(steps=9, resume_from=path, parallel=read_by)
    resumed = train(model(0.2, seed=7), data(), **options)
    exact = saved_by is read_by
    assert resumed.losses == (whole.losses if exact else pytest.approx(whole.losses, rel=1e-2))
    assert resumed.loss_scales == whole.loss_scales
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        ours, theirs = (getattr(p, "full_tensor", lambda p=p: p)() for p in (ours, theirs))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0 if exact else 0.02)


@pytest.mark.usefixtures("group")
def test_a_rank_refuses_the_checkpoint_of_another_run(tmp_path):
    options = OPTIONS | dict(precision="32-true", parallel=sharded)
    train(model(), data(), save_to=tmp_path / "run", **options)
    options |= dict(steps=9, resume_from=tmp_path / "run")
    with pytest.raises(ValueError, match=r"another settings: learning_rate was 0.001, is 0.5"):
        train(model(), data(), learning_rate=0.5, **options)


def test_the_random_state_of_another_number_of_ranks_is_not_taken(tmp_path):
    trainer_of = type("Trainer", (), {})
    trainer = trainer_of()
    trainer.ranks, trainer.device = Ranks(1, 2), torch.device("cpu")
    trainer.settings = type("Settings", (), {"seed": 5})()
    torch.manual_seed(0)
    states = [[torch.manual_seed(n).get_state(), None] for n in (10, 11, 12)]
    resume._restore_random(trainer, states[:2], steps=7)
    assert torch.get_rng_state().equal(states[1][0])
    resume._restore_random(trainer, states, steps=7)
    drawn = torch.rand(3)
    Ranks(1, 2).seed(12)
    assert torch.rand(3).equal(drawn)
    trainer.ranks = ALONE
    resume._restore_random(trainer, states, steps=7)
    assert torch.rand(3).equal(torch.rand(3, generator=torch.Generator().manual_seed(12)))
