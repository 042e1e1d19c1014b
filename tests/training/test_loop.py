"""`train` against plain PyTorch loops, bit for bit; and what a `Run` says."""

import copy
import dataclasses
import json
import math
from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from torch import nn
from training_cases import CURES, DEVICES, NAMES, data, model, same, weights

from mpbook.cost.measure import Memory
from mpbook.data import ByteCorpus, Examples
from mpbook.device import matmul_emulation
from mpbook.models import GPT, MLP, GPTConfig
from mpbook.precision import PRECISIONS, Precision
from mpbook.training import loop, train
from mpbook.training.settings import cross_entropy


def by_hand(precision: Precision, steps: int, device: str, lr: float = 1e-2):
    """What a careful reader of PyTorch's AMP tutorial would write."""
    net = model().to(device, precision.parameter_dtype)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    scaler = torch.amp.GradScaler(device, enabled=precision.loss_scale == "dynamic")
    generator, examples = torch.Generator().manual_seed(0), data().to(torch.device(device))
    losses, norms, scales = [], [], []
    for _ in range(steps):
        x, y = examples.sample(16, generator)
        mixed = dict(dtype=precision.compute_dtype, enabled=precision.is_mixed)
        with matmul_emulation(precision.compute_dtype, torch.device(device)):
            with torch.autocast(device, **mixed):
                logits = net(x.to(precision.parameter_dtype))
            loss = nn.functional.cross_entropy(logits.float(), y)
            optimizer.zero_grad()
            scales.append(scaler.get_scale())
            scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norms.append(torch.cat([p.grad.float().flatten() for p in net.parameters()]).norm().item())
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    return losses, norms, scales, weights(net)


# --- the loop ------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", NAMES)
def test_training_equals_a_plain_pytorch_loop_bit_for_bit(name, device):
    precision = PRECISIONS[name]
    losses, norms, scales, expected = by_hand(precision, 25, device)
    run = train(
        model(), data(), precision=name, steps=25, batch_size=16, learning_rate=1e-2, device=device
    )
    assert run.losses == losses
    assert run.gradient_norms == pytest.approx(norms, rel=1e-5)
    assert run.loss_scales == scales
    assert same(weights(run.model), expected)
    assert {p.dtype for p in run.model.parameters()} == {precision.parameter_dtype}
    assert run.losses[-1] < run.losses[0] - 0.2


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", [*NAMES, *CURES], ids=str)
def test_every_precision_learns_and_leaves_the_model_that_it_was_given(precision, device):
    given = model()
    before = weights(given)
    run = train(
        given, data(), precision=precision, steps=60, batch_size=16, learning_rate=0.01,
        device=device,
    )  # fmt: skip
    assert same(weights(given), before) and given[0].weight.dtype == torch.float32
    assert run.loss < 0.6 * run.losses[0]
    assert run.steps == len(run.gradient_norms) == len(run.loss_scales) == 60
    assert run.skipped_steps == []


def test_a_seed_repeats_a_run_and_another_seed_does_not():
    options = dict(precision="bf16-mixed", steps=8, batch_size=16)
    first, second = (train(model(0.2), data(), seed=1, **options) for _ in range(2))
    other = train(model(0.2), data(), seed=2, **options)
    assert first.losses == second.losses and same(weights(first.model), weights(second.model))
    assert first.losses != other.losses


def test_training_leaves_the_global_random_state_alone():
    given = model(0.5)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(given, data(), precision="32-true", steps=2)
    assert torch.equal(torch.rand(3), expected)


def test_the_batches_follow_the_seed():
    options = dict(precision="32-true", steps=3, batch_size=16)
    first, second = (train(model(), data(), seed=seed, **options) for seed in (1, 2))
    assert first.losses != second.losses


class OneBatch(Examples):
    """Examples of which every batch is the first few."""

    def sample(self, batch_size, generator):
        return self.inputs[:batch_size], self.targets[:batch_size]


def test_stochastic_rounding_follows_the_seed():
    examples = OneBatch(data().inputs, data().targets)
    options = dict(precision=CURES[1], steps=3, batch_size=16)
    first, again, other = (train(model(), examples, seed=s, **options).model for s in (1, 1, 2))
    assert same(weights(first), weights(again)) and not same(weights(first), weights(other))


def test_dropout_follows_the_seed_and_not_the_global_state():
    runs = []
    for state in (1, 2):
        given = model(0.5)
        torch.manual_seed(state)
        runs.append(train(given, data(), precision="32-true", steps=3, seed=9).losses)
    assert runs[0] == runs[1]


def test_a_model_in_eval_mode_is_trained_in_training_mode():
    options = dict(precision="32-true", steps=3, batch_size=16)
    given = model(0.5).eval()
    assert train(given, data(), **options).losses == train(model(0.5), data(), **options).losses
    assert not given.training


def test_a_corpus_trains_a_gpt_and_counts_tokens():
    text = torch.arange(4000, dtype=torch.uint8) % 7
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(context=16, width=32))
    run = train(
        gpt, ByteCorpus(text, 16), precision="bf16-mixed", steps=30, batch_size=8,
        learning_rate=3e-3,
    )  # fmt: skip
    assert run.loss < 2.5 and run.losses[0] > 5 and run.validation_loss < 2.5
    assert run.config["item"] == "token"
    assert run.items_per_second == pytest.approx(29 * 8 * 16 / run.seconds)


def test_the_loss_function_sees_float32_outputs_outside_autocast():
    seen = []

    def loss(outputs, targets):
        seen.append((outputs.dtype, torch.is_autocast_enabled("cpu"), targets.dtype))
        return cross_entropy(outputs, targets)

    for name in NAMES:
        train(model(), data(), precision=name, steps=1, loss=loss, device="cpu")
    assert set(seen) == {(torch.float32, False, torch.int64)}


def test_the_model_sees_inputs_in_the_dtype_of_its_parameters():
    seen = []

    class Spy(nn.Linear):
        def forward(self, inputs):
            seen.append((inputs.dtype, self.weight.dtype))
            return super().forward(inputs)

    for name in NAMES:
        train(Spy(12, 3), data(), precision=name, steps=1, device="cpu")
    assert {inputs for inputs, _ in seen} == {torch.float32, torch.bfloat16}
    assert all(inputs == parameters for inputs, parameters in seen)


def test_the_gradients_of_every_parameter_group_count():
    def make(parameters):
        return torch.optim.SGD([{"params": [p]} for p in parameters], lr=0.1)

    options = dict(precision="16-mixed", steps=4, batch_size=16, clip_norm=0.5)
    grouped = train(model(), data(), optimizer=make, **options)
    plain = train(model(), data(), optimizer="sgd", learning_rate=0.1, **options)
    assert grouped.gradient_norms == plain.gradient_norms and grouped.losses == plain.losses


class Spare(nn.Linear):
    """A layer with a parameter that its output does not depend on."""

    def __init__(self):
        super().__init__(12, 3)
        self.spare = nn.Parameter(torch.ones(2))


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", CURES[0]], ids=str)
def test_a_parameter_without_a_gradient_stays_as_it_is(precision):
    run = train(Spare(), data(), precision=precision, steps=2, clip_norm=1.0)
    assert run.model.spare.tolist() == [1, 1] and run.skipped_steps == []


def test_a_function_may_build_the_optimizer_and_bring_its_rate():
    rates = []

    class Spy(torch.optim.SGD):
        def step(self, closure=None):
            rates.append([group["lr"] for group in self.param_groups])
            super().step(closure)

    def make(parameters):
        groups = [{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.5}]
        return Spy(groups, lr=0.25)

    run = train(model(), data(), precision="32-true", steps=3, optimizer=make, warmup_steps=2)
    assert rates == [[0.125, 0.25], [0.25, 0.5], [0.25, 0.5]]
    assert "make" in run.config["settings"]["optimizer"]


# --- skipping, clipping, stopping ----------------------------------------------------------------


def test_a_step_whose_gradients_overflow_is_skipped_and_noted():
    huge = replace(PRECISIONS["16-mixed"], loss_scale=2.0**40)
    given = model()
    run = train(given, data(), precision=huge, steps=3, batch_size=16)
    assert run.skipped_steps == [0, 1, 2]
    assert same(weights(run.model), weights(given))
    assert not any(map(math.isfinite, run.gradient_norms))
    assert all(map(math.isfinite, run.losses))


def test_a_static_scale_outlasts_its_overflows():
    huge = replace(PRECISIONS["16-mixed"], loss_scale=2.0**40)
    run = train(model(), data(), precision=huge, steps=3, batch_size=16)
    assert run.loss_scales == [2.0**40] * 3


def test_the_dynamic_scale_is_halved_by_every_overflow():
    def loud(outputs, targets):
        return 1024 * cross_entropy(outputs, targets)

    run = train(model(), data(), precision="16-mixed", steps=12, batch_size=16, loss=loud)
    skipped = len(run.skipped_steps)
    assert 1 < skipped < 12 and run.skipped_steps == list(range(skipped))
    assert run.loss_scales == [2.0 ** (16 - min(step, skipped)) for step in range(12)]


def test_the_dynamic_scale_grows_after_its_interval():
    run = train(
        model(), data(), precision="16-mixed", steps=7, batch_size=16, loss_scale_growth_interval=3
    )
    assert run.loss_scales == [2.0**16] * 3 + [2.0**17] * 3 + [2.0**18]


def test_gradients_are_clipped_after_they_are_unscaled():
    options = dict(steps=1, optimizer="sgd", learning_rate=1.0, clip_norm=0.1, batch_size=16)
    for precision in ("32-true", replace(PRECISIONS["16-mixed"], loss_scale=512.0), CURES[0]):
        given = model()
        run = train(given, data(), precision=precision, **options)
        moved = [a - b.float() for a, b in zip(weights(given), weights(run.model), strict=True)]
        length = torch.cat([m.flatten() for m in moved]).norm().item()
        tolerance = 0.05 if precision is CURES[0] else 1e-4  # bfloat16 weights are coarse
        assert length == pytest.approx(0.1, rel=tolerance)
        assert run.gradient_norms[0] > 0.3  # the norm before clipping


def test_native_float16_adamw_is_nan_after_one_step_and_the_run_stops_when_asked():
    options = dict(precision="16-true", batch_size=16, steps=10)
    run = train(model(), data(), stop_on_nan=True, **options)
    assert run.stopped_on_nan and run.steps == 2 and math.isnan(run.losses[-1])
    assert run.validation_losses == []
    assert "stopped on NaN" in repr(run)
    assert train(model(), data(), **options).steps == 10


def test_a_run_stops_at_an_infinite_loss_too_when_asked():
    def infinite(outputs, targets):
        return math.inf * cross_entropy(outputs, targets)

    run = train(model(), data(), precision="32-true", steps=3, loss=infinite, stop_on_nan=True)
    assert run.stopped_on_nan and run.losses == [math.inf]


@pytest.mark.parametrize("device", DEVICES)
def test_a_clipped_run_with_overflows_equals_grad_scaler_bit_for_bit(device):
    def loud(outputs, targets):
        return 1024 * cross_entropy(outputs, targets)

    options = dict(batch_size=16, clip_norm=0.5, optimizer="sgd", learning_rate=0.1)
    run = train(
        model(), data(), precision="16-mixed", steps=25, loss=loud, device=device,
        loss_scale_growth_interval=4, **options,
    )  # fmt: skip
    net, examples = model().to(device), data().to(torch.device(device))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler(device, growth_interval=4)
    generator, losses, scales = torch.Generator().manual_seed(0), [], []
    for _ in range(25):
        x, y = examples.sample(16, generator)
        with matmul_emulation(torch.float16, torch.device(device)):
            with torch.autocast(device, dtype=torch.float16):
                logits = net(x)
            loss = loud(logits.float(), y)
            optimizer.zero_grad()
            scales.append(scaler.get_scale())
            scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        # One tensor after the other, as `train`: foreach kernels round their sum differently.
        nn.utils.clip_grad_norm_(net.parameters(), 0.5, foreach=False)
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert run.losses == losses and run.loss_scales == scales
    assert same(weights(run.model), weights(net))
    assert 0 < len(run.skipped_steps) < 20


SCALED = Precision("a static scale", compute_dtype=torch.float16, loss_scale=1024.0)


# --- validation, memory, time --------------------------------------------------------------------


def test_validation_is_the_mean_over_all_held_out_examples_in_eval_mode():
    run = train(
        model(0.5), data(), precision="32-true", steps=5, batch_size=11, validate_every=2
    )  # 16 held-out examples: batches of 11 and 5
    assert [step for step, _ in run.validation_losses] == [2, 4, 5]
    held_out = data()
    logits = run.model.eval()(held_out.validation_inputs)
    expected = nn.functional.cross_entropy(logits, held_out.validation_targets).item()
    assert run.validation_loss == pytest.approx(expected, rel=1e-5)


def test_validation_keeps_no_graph():
    graphs = []

    def loss(outputs, targets):
        graphs.append(outputs.requires_grad)
        return cross_entropy(outputs, targets)

    train(model(), data(), precision="32-true", steps=2, loss=loss)
    assert graphs == [True, True, False]


def test_validation_does_not_change_the_run():
    options = dict(precision="bf16-mixed", steps=6, batch_size=16)
    often = train(model(0.5), data(), validate_every=1, **options)
    once = train(model(0.5), data(), **options)
    assert often.losses == once.losses and often.model.training


def test_data_without_a_held_out_part_has_no_validation_loss():
    bare = Examples(data().inputs, data().targets)
    run = train(model(), bare, precision="32-true", steps=2)
    assert run.validation_losses == [] and math.isnan(run.validation_loss)


@pytest.mark.parametrize("name", NAMES)
def test_memory_is_what_the_formula_says(name):
    sizes, batch = (12, 16, 3), 16
    run = train(MLP(*sizes), data(), precision=name, steps=2, batch_size=batch, device="cpu")
    count = 12 * 16 + 16 + 16 * 3 + 3
    stored = 2 if name == "bf16-true" else 4
    assert run.memory.parameters == run.memory.gradients == stored * count
    step_counters = 4 * 4  # AdamW keeps a float32 step for each of the four parameters
    assert run.memory.optimizer_state == 2 * stored * count + step_counters
    assert run.memory.master_copies == 0
    assert run.peak_memory_bytes == run.memory.total


def test_16_bit_activations_take_half_the_memory_of_float32_ones():
    torch.manual_seed(0)
    net, options = MLP(12, 64, 64, 3), dict(steps=1, batch_size=64, device="cpu")
    full = train(net, data(), precision="32-true", **options).memory
    half = train(net, data(), precision="bf16-true", **options).memory
    mixed = train(net, data(), precision="bf16-mixed", **options).memory
    loss = 4 * (64 * 3 + 64) + 8 * 64  # the loss works in float32 in all of them
    assert half.saved_for_backward - loss < 0.55 * (full.saved_for_backward - loss) + 600
    assert half.saved_for_backward < mixed.saved_for_backward < full.saved_for_backward


def test_a_skipped_first_step_does_not_hide_the_optimizers_state():
    half = Precision("p", compute_dtype=torch.float16, loss_scale="dynamic")
    options = dict(steps=30, batch_size=16, device="cpu", optimizer="adam")
    huge = Examples(data().inputs * 3000, data().targets)  # overflows at the first scales
    run = train(model(), huge, precision=half, **options)
    assert run.skipped_steps[:1] == [0] and len(run.skipped_steps) < 30
    full = train(model(), data(), precision="32-true", **options)
    assert run.memory.optimizer_state == full.memory.optimizer_state > 0


@pytest.mark.parametrize(("precision", "moves"), [("bf16-true", False), (CURES[0], True)], ids=str)
def test_a_master_copy_lives_from_step_to_step(precision, moves):
    given = nn.Linear(12, 3)
    nn.init.constant_(given.weight, 1.0)
    run = train(given, data(), precision=precision, steps=20, learning_rate=1e-3)
    changed = run.model.weight != 1  # Adam moves by 1/1000 a step, bfloat16 below 1 by 1/256
    assert bool(changed.any()) == moves


@pytest.mark.parametrize(("precision", "kept"), zip(CURES, [4, 0, 2, 4], strict=True), ids=str)
def test_what_is_kept_beside_16_bit_weights_is_counted(precision, kept):
    net = model()
    count = sum(p.numel() for p in net.parameters())
    memory = train(net, data(), precision=precision, steps=2, device="cpu").memory
    assert memory.parameters == memory.gradients == 2 * count
    assert memory.master_copies == kept * count
    assert memory.optimizer_state == 8 * count + 4 * 4  # and a step counter for each parameter


def test_the_float32_gradients_of_a_skipped_first_step_are_not_counted():
    huge = replace(CURES[3], loss_scale=2.0**40)
    run = train(model(), data(), precision=huge, steps=1, device="cpu")
    assert run.skipped_steps == [0] and run.memory.gradients == run.memory.parameters


# --- lost updates --------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_lost_updates_are_counted_every_so_many_steps(device):
    options = dict(steps=7, batch_size=16, optimizer="sgd", learning_rate=1e-3, device=device)
    found = {}
    for precision in ("32-true", "bf16-mixed", "bf16-true", CURES[0]):
        run = train(model(), data(), precision=precision, count_lost_updates_every=3, **options)
        assert [step for step, _ in run.updates_lost] == [0, 3, 6]
        found[run.precision.name] = [fraction for _, fraction in run.updates_lost]
        assert train(model(), data(), precision=precision, **options).updates_lost == []
    assert min(found.pop("bf16-true")) > 0.5
    assert list(found.values()) == [[0, 0, 0]] * 3


@pytest.mark.parametrize("precision", [*NAMES, *CURES], ids=str)
def test_counting_lost_updates_does_not_change_a_run(precision):
    options = dict(precision=precision, steps=5, batch_size=16, device="cpu")
    watched = train(model(0.2), data(), count_lost_updates_every=1, **options)
    alone = train(model(0.2), data(), **options)
    assert watched.losses == alone.losses and same(weights(watched.model), weights(alone.model))
    assert watched.memory == alone.memory and len(watched.updates_lost) == 5


def test_a_skipped_step_has_no_lost_updates():
    huge = replace(PRECISIONS["16-mixed"], loss_scale=2.0**40)
    run = train(model(), data(), precision=huge, steps=2, count_lost_updates_every=1)
    assert run.skipped_steps == [0, 1] and run.updates_lost == []


def test_a_step_without_any_update_has_no_fraction():
    def flat(outputs, targets):
        return 0 * cross_entropy(outputs, targets)

    options = dict(optimizer="sgd", count_lost_updates_every=1, loss=flat)
    assert train(model(), data(), precision="bf16-true", steps=2, **options).updates_lost == []


def test_a_compiled_loss_is_called_and_its_model_not_hooked(monkeypatch):
    calls = []

    def compile(function, **options):
        return lambda *arguments: calls.append(len(arguments[-1])) or function(*arguments)

    monkeypatch.setattr(torch, "compile", compile)
    options = dict(precision="32-true", steps=2, batch_size=16, device="cpu")
    run = train(model(), data(), compile=True, **options)
    assert calls == [16, 16, 16]  # the last one validates
    assert run.losses == train(model(), data(), **options).losses
    assert run.memory.saved_for_backward == 0


def test_a_run_of_one_step_has_no_throughput():
    assert math.isnan(train(model(), data(), precision="32-true", steps=1).items_per_second)


def test_the_clock_leaves_out_the_first_step_and_validation(monkeypatch):
    events = []

    class Clock(loop.Stopwatch):
        def start(self):
            events.append("start")

        def stop(self):
            events.append("stop")
            self.seconds = 2.0
            return 2.0

    original_step, original_validate = loop.training_step, loop._validate
    monkeypatch.setattr(loop, "Stopwatch", Clock)
    monkeypatch.setattr(
        loop, "training_step", lambda *a: events.append("step") or original_step(*a)
    )
    monkeypatch.setattr(
        loop, "_validate", lambda *a: events.append("validate") or original_validate(*a)
    )
    run = train(model(), data(), precision="32-true", steps=4, batch_size=10, validate_every=2)
    expected = ["step", "start", "step", "stop", "validate", "start", "step", "step", "stop"]
    assert events == [*expected, "validate"]
    assert run.seconds == 2.0 and run.items_per_second == 3 * 10 / 2.0


# --- what a run says -----------------------------------------------------------------------------


def test_a_run_prints_as_one_line():
    run = train(model(), data(), precision="16-mixed", steps=3, device="cpu")
    text = repr(run)
    assert "\n" not in text and text.startswith("Run(16-mixed, Sequential of 259 parameters, 3 st")
    for part in ("loss ", "validation ", "0 skipped", " s, ", " examples/s", " MB)"):
        assert part in text


def test_the_loss_of_a_run_is_the_mean_of_its_last_tenth():
    run = train(model(), data(), precision="32-true", steps=2)
    run.losses = [100.0] * 18 + [1.0, 2.0]
    assert run.loss == 1.5
    run.losses = [7.0, 3.0]
    assert run.loss == 3.0
    run.losses = [9.0] * 14 + [2.0]
    assert run.loss == 2.0


def test_the_config_says_everything_and_is_plain_json():
    run = train(model(), data(), precision="bf16-mixed", steps=2, clip_norm=0.5, seed=4)
    config = json.loads(json.dumps(run.config))
    assert config["model"] == "Sequential" and config["parameters"] == 259
    assert config["data"] == "made up" and config["torch"] == torch.__version__
    assert config["precision"]["compute_dtype"] == "torch.bfloat16"
    settings = config["settings"]
    assert (settings["steps"], settings["clip_norm"], settings["seed"]) == (2, 0.5, 4)
    assert settings["loss"] == "mpbook.training.settings.cross_entropy"
    assert config["optimizer"]["kind"] == "torch.optim.adamw.AdamW"
    assert config["optimizer"]["group 0: betas"] == "tuple(0.9, 0.95)" and not config["compile"]


def test_a_run_plots_its_loss_norm_and_loss_scale():
    run = train(model(), data(), precision="16-mixed", steps=4)
    titles = [axis.get_title() for axis in run.plot().axes]
    assert titles == ["loss", "gradient norm", "loss scale"]
    drawn = [axis.get_lines()[0].get_ydata().tolist() for axis in run.plot().axes]
    assert drawn == [run.losses, run.gradient_norms, run.loss_scales]
    assert [axis.get_yscale() for axis in run.plot().axes] == ["linear", "linear", "log"]
    static = replace(PRECISIONS["16-mixed"], loss_scale=8.0)
    assert len(train(model(), data(), precision=static, steps=2).plot().axes) == 3
    assert len(train(model(), data(), precision="32-true", steps=2).plot().axes) == 2


def test_memory_is_a_plain_record():
    assert train(model(), data(), precision="32-true", steps=1).memory != Memory()


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(precision="bf16"), ValueError, "ambiguous"),
        (dict(precision="fp12"), ValueError, "expected one of 32-true"),
        (dict(steps=0), ValueError, "steps=0"),
        (dict(batch_size=0), ValueError, "batch_size=0"),
        (dict(validate_every=0), ValueError, "validate_every=0"),
        (dict(count_lost_updates_every=0), ValueError, "count_lost_updates_every=0"),
        (dict(learning_rate=0.0), ValueError, "learning_rate=0.0"),
        (dict(learning_rate=math.nan), ValueError, "learning_rate=nan"),
        (dict(learning_rate=math.inf), ValueError, "learning_rate=inf"),
        (dict(clip_norm=0.0), ValueError, "clip_norm=0.0"),
        (dict(clip_norm=math.nan), ValueError, "clip_norm=nan"),
        (dict(warmup_steps=-1), ValueError, "warmup_steps=-1"),
        (dict(decay="exp"), ValueError, "decay='exp'"),
        (dict(optimizer="adagrad"), ValueError, 'optimizer="adagrad"'),
        (dict(save_every=5), ValueError, "save_every=5: expected at least 1, and save_to"),
        (dict(save_every=0, save_to="x"), ValueError, "save_every=0"),
        (dict(save_every=0), ValueError, "save_every=0"),
        (dict(device="tpu"), ValueError, "tpu"),
        (dict(device="meta"), ValueError, 'expected "cpu" or "cuda"'),
        (dict(learning_rat=0.1), TypeError, "learning_rat"),
    ],
)
def test_bad_arguments_are_named(options, error, message):
    with pytest.raises(error, match=message):
        train(model(), data(), **{"precision": "32-true", "steps": 1, **options})


def test_a_model_with_nothing_to_train_is_refused():
    frozen = copy.deepcopy(model()).requires_grad_(False)
    for net in (frozen, nn.ReLU()):
        with pytest.raises(ValueError, match="no trainable parameters"):
            train(net, data(), precision="32-true", steps=1)


def test_frozen_parameters_stay_as_they_are():
    net = model()
    net[0].requires_grad_(False)
    run = train(net, data(), precision="16-mixed", steps=3, learning_rate=0.1)
    assert torch.equal(run.model[0].weight, net[0].weight)
    assert not torch.equal(run.model[3].weight, net[3].weight)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_cuda_is_refused():
    with pytest.raises(RuntimeError, match='use device="cpu"'):
        train(model(), data(), precision="32-true", steps=1, device="cuda")


# --- Batches, outputs and weights of other kinds ------------------------------------------------


@dataclasses.dataclass
class Fields:
    logits: torch.Tensor
    scale: torch.Tensor


class Takes(nn.Module):
    """Takes two tensors, and gives what a function makes of the logits."""

    def __init__(self, gives):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.gives = nn.Linear(12, 3), gives

    def forward(self, x, factor):
        return self.gives(self.layer(x) * factor)


INPUTS = {
    "tuple": lambda x, f: (x, f),
    "list": lambda x, f: [x, f],
    "dict": lambda x, f: {"factor": f, "x": x},
    "OrderedDict": lambda x, f: OrderedDict(x=x, factor=f),
}
OUTPUTS = {
    "tensor": (lambda y: y, lambda out: out),
    "tuple": (lambda y: (y, None), lambda out: out[0]),
    "dict": (lambda y: {"logits": y}, lambda out: out["logits"]),
    "dataclass": (lambda y: Fields(y, y), lambda out: out.logits),
}


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-true"])
@pytest.mark.parametrize("inputs", INPUTS.values(), ids=INPUTS)
@pytest.mark.parametrize("outputs", OUTPUTS.values(), ids=OUTPUTS)
def test_batches_and_outputs_may_be_nests(inputs, outputs, precision):
    gives, read = outputs
    plain = data()
    seen = []

    def loss(out, targets):
        seen.append(read(out).dtype)
        return nn.functional.cross_entropy(read(out), targets)

    def examples(x):
        return inputs(x, torch.full((len(x), 1), 0.5))

    nested = Examples(
        examples(plain.inputs), plain.targets,
        examples(plain.validation_inputs), plain.validation_targets,
    )  # fmt: skip
    options = dict(precision=precision, steps=3, batch_size=8, accumulation_steps=2, device="cpu")
    run = train(Takes(gives), nested, loss=loss, **options)
    assert run.steps == 3 and math.isfinite(run.validation_loss)
    assert set(seen) == {torch.float32}
    again = train(Takes(lambda y: y), nested, **options)
    assert run.losses == again.losses


def test_an_output_that_the_loss_does_not_take_is_named():
    with pytest.raises(TypeError, match="takes tensors, and the outputs are a dict of logits"):
        train(
            nn.Sequential(nn.Linear(12, 3), Puts(lambda y: {"logits": y})),
            data(), precision="32-true", steps=1, device="cpu",
        )  # fmt: skip


class Puts(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("wrong", [(torch.ones(2), torch.ones(2)), {"x": torch.ones(2)}, None])
def test_data_without_its_methods_is_refused(wrong):
    with pytest.raises(TypeError, match=r"data: a .*no to\(\); expected mpbook.data.Examples"):
        train(model(), wrong, precision="32-true", steps=1, device="cpu")


def test_a_sample_that_is_no_pair_is_refused():
    class Dicts:
        name, items_per_example = "dicts", 1

        def to(self, device):
            return self

        def sample(self, size, generator):
            return {"x": torch.ones(size, 12), "labels": torch.zeros(size), "ids": torch.ones(size)}

        def validation(self, size):
            return iter(())

    with pytest.raises(TypeError, match=r"sample\(\) gives a dict of x, labels, ids, exp"):
        train(model(), Dicts(), precision="32-true", steps=1, device="cpu")


class Filter(nn.Module):
    """A learned filter of frequencies: complex weights."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.spectrum = nn.Parameter(torch.randn(7, dtype=torch.complex64))
        self.out = nn.Linear(12, 3)

    def forward(self, x):
        return self.out(torch.fft.irfft(torch.fft.rfft(x.float()) * self.spectrum).to(x.dtype))


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-true"])
def test_complex_weights_stay_complex_and_train(precision):
    start = Filter()
    run = train(start, data(), precision=precision, steps=3, clip_norm=1.0, device="cpu")
    assert run.model.spectrum.dtype == torch.complex64
    assert not torch.equal(run.model.spectrum, start.spectrum)
    assert (run.model.spectrum.imag != 0).all()
    assert all(map(math.isfinite, run.gradient_norms))


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
def test_sparse_gradients_train_as_dense_ones(precision):
    runs = []
    for sparse in (True, False):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Embedding(20, 4, sparse=sparse), nn.Flatten(), nn.Linear(12, 3))
        words = torch.randint(20, (64, 3), generator=torch.Generator().manual_seed(0))
        options = dict(precision=precision, steps=4, optimizer="sgd", clip_norm=0.1, device="cpu")
        runs.append(train(net, Examples(words, words[:, 0] % 3), **options))
    assert runs[0].losses == pytest.approx(runs[1].losses, rel=1e-3)
    assert runs[0].gradient_norms == pytest.approx(runs[1].gradient_norms, rel=1e-2)
    assert runs[0].memory.gradients > 0
