"""`train` against plain PyTorch loops, bit for bit; resuming; and what a `Run` says."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from mpbook import training
from mpbook.data import ByteCorpus, Examples
from mpbook.device import matmul_emulation
from mpbook.measure import Memory
from mpbook.models import GPT, MLP, GPTConfig
from mpbook.precision import PRECISIONS, Precision, as_precision
from mpbook.runs import Settings, cross_entropy
from mpbook.training import autocast, clip, gradient_norm, train

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
NAMES = ["32-true", "16-mixed", "bf16-mixed", "bf16-true"]
CURES = [
    Precision("bf16 master", torch.bfloat16, torch.bfloat16, master_copy=True),
    Precision("bf16 stochastic", torch.bfloat16, torch.bfloat16, update_rounding="stochastic"),
    Precision("fp16 master", torch.float16, torch.float16, loss_scale=1024.0, master_copy=True),
]


def data(seed: int = 0) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(96, 12, generator=generator)
    y = (x @ torch.randn(12, 3, generator=generator)).argmax(-1)
    return Examples(x[:80], y[:80], x[80:], y[80:], name="made up")


def model(dropout: float = 0.0, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Linear(12, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3)]
    return nn.Sequential(*layers)


def weights(module: nn.Module) -> list[torch.Tensor]:
    return [p.detach().cpu().clone() for p in module.parameters()]


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


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


# --- the loop ---------------------------------------------------------------------------------


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


def test_dropout_follows_the_seed_and_not_the_global_state():
    runs = []
    for state in (1, 2):
        given = model(0.5)
        torch.manual_seed(state)
        runs.append(train(given, data(), precision="32-true", steps=3, seed=9).losses)
    assert runs[0] == runs[1]


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


@pytest.mark.parametrize(
    ("options", "kind", "defaults"),
    [
        (dict(), torch.optim.AdamW, dict(lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)),
        (dict(optimizer="adam", weight_decay=0.1), torch.optim.Adam, dict(weight_decay=0.1)),
        (dict(optimizer="adamw", betas=(0.8, 0.9)), torch.optim.AdamW, dict(betas=(0.8, 0.9))),
        (
            dict(optimizer="sgd", momentum=0.7, learning_rate=0.2, weight_decay=0.3),
            torch.optim.SGD,
            dict(momentum=0.7, lr=0.2, weight_decay=0.3),
        ),
    ],
)
def test_the_named_optimizers_get_their_settings(options, kind, defaults):
    optimizer = Settings(steps=1, **options).make_optimizer(list(model().parameters()))
    assert type(optimizer) is kind
    assert {name: optimizer.defaults[name] for name in defaults} == defaults


def test_the_learning_rate_rises_stays_and_decays():
    flat = Settings(steps=10, warmup_steps=4)
    assert [flat.rate_factor(i) for i in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    linear = Settings(steps=6, warmup_steps=2, decay="linear")
    assert [linear.rate_factor(i) for i in range(6)] == [0.5, 1, 1, 0.75, 0.5, 0.25]
    cosine = Settings(steps=4, decay="cosine")
    expected = [0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(4)]
    assert [cosine.rate_factor(i) for i in range(4)] == pytest.approx(expected)


# --- skipping, clipping, stopping --------------------------------------------------------------


def test_a_step_whose_gradients_overflow_is_skipped_and_noted():
    huge = replace(PRECISIONS["16-mixed"], loss_scale=2.0**40)
    given = model()
    run = train(given, data(), precision=huge, steps=3, batch_size=16)
    assert run.skipped_steps == [0, 1, 2]
    assert same(weights(run.model), weights(given))
    assert not any(map(math.isfinite, run.gradient_norms))
    assert all(map(math.isfinite, run.losses))


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


def test_clipping_leaves_short_gradients_alone():
    gradients = [torch.tensor([3.0]), torch.tensor([4.0])]
    assert gradient_norm(gradients).item() == 5
    clip(gradients, gradient_norm(gradients), largest=6.0)
    assert [g.item() for g in gradients] == [3, 4]
    clip(gradients, gradient_norm(gradients), largest=1.0)
    assert [g.item() for g in gradients] == pytest.approx([0.6, 0.8])


def test_the_norm_of_16_bit_gradients_is_computed_in_float32():
    gradients = [torch.full((4,), 60000.0, dtype=torch.float16)]
    assert gradient_norm(gradients).item() == 120000
    assert gradient_norm([]).item() == 0


def test_native_float16_adamw_is_nan_after_one_step_and_the_run_stops_when_asked():
    options = dict(precision="16-true", batch_size=16, steps=10)
    run = train(model(), data(), stop_on_nan=True, **options)
    assert run.stopped_on_nan and run.steps == 2 and math.isnan(run.losses[-1])
    assert run.validation_losses == []
    assert "stopped on NaN" in repr(run)
    assert train(model(), data(), **options).steps == 10


# --- validation, memory, time -----------------------------------------------------------------


def test_validation_is_the_mean_over_all_held_out_examples_in_eval_mode():
    run = train(
        model(0.5), data(), precision="32-true", steps=5, batch_size=11, validate_every=2
    )  # 16 held-out examples: batches of 11 and 5
    assert [step for step, _ in run.validation_losses] == [2, 4, 5]
    held_out = data()
    logits = run.model.eval()(held_out.validation_inputs)
    expected = nn.functional.cross_entropy(logits, held_out.validation_targets).item()
    assert run.validation_loss == pytest.approx(expected, rel=1e-6)


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


def test_master_copies_are_counted():
    memory = train(model(), data(), precision=CURES[0], steps=1, device="cpu").memory
    assert memory.master_copies == 2 * memory.parameters
    assert memory.gradients == 2 * memory.parameters  # moved to the float32 copies
    assert memory.optimizer_state > 4 * memory.parameters


def test_the_clock_leaves_out_the_first_step_and_validation(monkeypatch):
    events = []

    class Clock(training.Stopwatch):
        def start(self):
            events.append("start")

        def stop(self):
            events.append("stop")
            self.seconds = 2.0
            return 2.0

    original_step, original_validate = training.training_step, training._validate
    monkeypatch.setattr(training, "Stopwatch", Clock)
    monkeypatch.setattr(
        training, "training_step", lambda *a: events.append("step") or original_step(*a)
    )
    monkeypatch.setattr(
        training, "_validate", lambda *a: events.append("validate") or original_validate(*a)
    )
    run = train(model(), data(), precision="32-true", steps=4, batch_size=10, validate_every=2)
    expected = ["step", "start", "step", "stop", "validate", "start", "step", "step", "stop"]
    assert events == [*expected, "validate"]
    assert run.seconds == 2.0 and run.items_per_second == 3 * 10 / 2.0


# --- saving and going on ----------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", [*NAMES, *CURES], ids=str)
def test_a_resumed_run_equals_one_that_was_never_stopped(precision, device, tmp_path):
    path = tmp_path / "run.pt"
    options = dict(
        precision=precision, batch_size=16, learning_rate=0.01, validate_every=3, clip_norm=1.0,
        loss_scale_growth_interval=2, seed=3, device=device,
    )  # fmt: skip
    whole = train(model(0.2), data(), steps=9, **options)
    train(model(0.2), data(), steps=5, save_to=path, **options)
    torch.manual_seed(99)
    resumed = train(model(0.2, seed=7), data(), steps=9, resume_from=path, **options)
    assert resumed.losses == whole.losses
    assert resumed.gradient_norms == whole.gradient_norms
    assert resumed.loss_scales == whole.loss_scales
    assert resumed.skipped_steps == whole.skipped_steps
    assert [v for v in resumed.validation_losses if v[0] != 5] == whole.validation_losses
    assert same(weights(resumed.model), weights(whole.model))


def test_a_run_killed_in_mid_run_goes_on_from_its_last_checkpoint(tmp_path):
    path = tmp_path / "run.pt"
    options = dict(precision="16-mixed", steps=12, decay="cosine", warmup_steps=2, batch_size=16)
    whole = train(model(), data(), **options)
    examples, calls = data(), 0

    class Killed(Examples):
        def sample(self, *arguments):
            nonlocal calls
            calls += 1
            if calls == 11:
                raise KeyboardInterrupt
            return examples.sample(*arguments)

        def to(self, device):
            return self

    with pytest.raises(KeyboardInterrupt):
        train(
            model(), Killed(examples.inputs, examples.targets, name="made up"), save_to=path,
            save_every=4, **options,
        )  # fmt: skip
    resumed = train(model(), data(), resume_from=path, **options)
    assert resumed.steps == 12 and resumed.losses == whole.losses
    assert same(weights(resumed.model), weights(whole.model))
    assert resumed.seconds > 0


def test_saving_does_not_change_the_run(tmp_path):
    options = dict(precision="bf16-true", steps=6, batch_size=16)
    saved = train(model(), data(), save_to=tmp_path / "a.pt", save_every=2, **options)
    assert saved.losses == train(model(), data(), **options).losses


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(model=MLP(12, 8, 3)), "another model: 0.bias was"),
        (dict(learning_rate=0.5), "another settings: learning_rate was 0.001, is 0.5"),
        (dict(batch_size=8), "another settings: batch_size was 16, is 8"),
        (dict(precision="bf16-mixed"), "another precision: compute_dtype was torch.float32"),
        (dict(steps=3), "has done 3 already"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(change, message, tmp_path):
    path = tmp_path / "run.pt"
    options = dict(model=model(), precision="32-true", steps=3, batch_size=16, data=data())
    train(**options, save_to=path)
    with pytest.raises(ValueError, match=message):
        train(**{**options, "steps": 6, **change}, resume_from=path)


def test_with_a_decay_the_number_of_steps_belongs_to_the_run(tmp_path):
    options = dict(precision="32-true", decay="linear", batch_size=16)
    train(model(), data(), steps=3, save_to=tmp_path / "run.pt", **options)
    with pytest.raises(ValueError, match="steps was 3, is 6"):
        train(model(), data(), steps=6, resume_from=tmp_path / "run.pt", **options)


def test_a_missing_or_torn_checkpoint_is_refused(tmp_path):
    path = tmp_path / "run.pt"
    with pytest.raises(RuntimeError, match="no such file"):
        train(model(), data(), precision="32-true", steps=2, resume_from=path)
    train(model(), data(), precision="32-true", steps=2, save_to=path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RuntimeError, match="torn"):
        train(model(), data(), precision="32-true", steps=4, resume_from=path)


# --- the environment --------------------------------------------------------------------------


def test_tf32_is_switched_on_for_its_run_alone():
    seen = []

    def loss(outputs, targets):
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        seen.append((matmul.allow_tf32, cudnn.allow_tf32))
        return cross_entropy(outputs, targets)

    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = (matmul.allow_tf32, cudnn.allow_tf32)
    options = dict(steps=1, loss=loss, device="cpu")
    with pytest.warns(UserWarning, match="a CPU has no TF32"):
        train(model(), data(), precision="tf32", **options)
    train(model(), data(), precision="32-true", **options)
    assert set(seen) == {(True, True), (False, False)} and seen[0] == (True, True)
    assert (matmul.allow_tf32, cudnn.allow_tf32) == before


def test_autocast_is_on_only_for_mixed_precision():
    cpu = torch.device("cpu")
    x = torch.ones(2, 2)
    for name, dtype in (("16-mixed", torch.float16), ("bf16-mixed", torch.bfloat16)):
        with autocast(as_precision(name), cpu):
            assert (x @ x).dtype == dtype
    for name in ("32-true", "bf16-true", "tf32"):
        with autocast(as_precision(name), cpu):
            assert (x @ x).dtype == torch.float32


# --- what a run says --------------------------------------------------------------------------


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


def test_the_config_says_everything_and_is_plain_json():
    run = train(model(), data(), precision="bf16-mixed", steps=2, clip_norm=0.5, seed=4)
    config = json.loads(json.dumps(run.config))
    assert config["model"] == "Sequential" and config["parameters"] == 259
    assert config["data"] == "made up" and config["torch"] == torch.__version__
    assert config["precision"]["compute_dtype"] == "torch.bfloat16"
    settings = config["settings"]
    assert (settings["steps"], settings["clip_norm"], settings["seed"]) == (2, 0.5, 4)
    assert settings["loss"] == "cross_entropy"


def test_a_run_plots_its_loss_norm_and_loss_scale():
    run = train(model(), data(), precision="16-mixed", steps=4)
    titles = [axis.get_title() for axis in run.plot().axes]
    assert titles == ["loss", "gradient norm", "loss scale"]
    drawn = [axis.get_lines()[0].get_ydata().tolist() for axis in run.plot().axes]
    assert drawn == [run.losses, run.gradient_norms, run.loss_scales]
    assert len(train(model(), data(), precision="32-true", steps=2).plot().axes) == 2


def test_memory_is_a_plain_record():
    assert train(model(), data(), precision="32-true", steps=1).memory != Memory()


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(precision="bf16"), ValueError, "ambiguous"),
        (dict(precision="fp12"), ValueError, "expected one of 32-true"),
        (dict(steps=0), ValueError, "steps=0"),
        (dict(batch_size=0), ValueError, "batch_size=0"),
        (dict(validate_every=0), ValueError, "validate_every=0"),
        (dict(learning_rate=0.0), ValueError, "learning_rate=0.0"),
        (dict(learning_rate=math.nan), ValueError, "learning_rate=nan"),
        (dict(clip_norm=0.0), ValueError, "clip_norm=0.0"),
        (dict(warmup_steps=-1), ValueError, "warmup_steps=-1"),
        (dict(decay="exp"), ValueError, "decay='exp'"),
        (dict(optimizer="adagrad"), ValueError, 'optimizer="adagrad"'),
        (dict(save_every=5), ValueError, "needs save_to"),
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
