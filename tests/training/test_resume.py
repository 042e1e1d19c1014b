"""A run that goes on from a checkpoint equals one that was never stopped, or is refused."""

from dataclasses import replace
from functools import partial, partialmethod

import pytest
import torch
from torch import nn
from training_cases import CURES, DEVICES, NAMES, data, model, same, weights

from mpbook.cost.measure import Memory
from mpbook.data import Examples
from mpbook.models import MLP
from mpbook.precision import PRECISIONS
from mpbook.training import checkpoint_files, cross_entropy, loop, resume, train


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", [*NAMES, *CURES], ids=str)
def test_a_resumed_run_equals_one_that_was_never_stopped(precision, device, tmp_path):
    path = tmp_path / "run.pt"
    options = dict(
        precision=precision, batch_size=16, learning_rate=0.01, validate_every=3, clip_norm=1.0,
        loss_scale_growth_interval=2, seed=3, device=device, count_lost_updates_every=2,
    )  # fmt: skip
    whole = train(model(0.2), data(), steps=9, **options)
    train(model(0.2), data(), steps=5, save_to=path, **options)
    torch.manual_seed(99)
    resumed = train(model(0.2, seed=7), data(), steps=9, resume_from=path, **options)
    assert resumed.losses == whole.losses
    assert resumed.gradient_norms == whole.gradient_norms
    assert resumed.loss_scales == whole.loss_scales
    assert resumed.skipped_steps == whole.skipped_steps
    assert resumed.updates_lost == whole.updates_lost and len(whole.updates_lost) == 5
    assert [v for v in resumed.validation_losses if v[0] != 5] == whole.validation_losses
    assert same(weights(resumed.model), weights(whole.model))


def test_a_resumed_run_remembers_its_skipped_steps(tmp_path):
    huge = replace(PRECISIONS["16-mixed"], loss_scale=2.0**40)
    options = dict(precision=huge, batch_size=16)
    train(model(), data(), steps=2, save_to=tmp_path / "run.pt", **options)
    resumed = train(model(), data(), steps=4, resume_from=tmp_path / "run.pt", **options)
    assert resumed.skipped_steps == [0, 1, 2, 3]


def test_a_resumed_run_adds_its_time_and_counts_its_memory(tmp_path, monkeypatch):
    seconds = iter([2.0, 3.0])
    watches = []

    class Clock(loop.Stopwatch):
        def start(self):
            watches.append(self)

        def stop(self):
            return next(seconds)

    monkeypatch.setattr(loop, "Stopwatch", Clock)
    options = dict(precision="32-true", batch_size=10)
    first = train(model(), data(), steps=2, save_to=tmp_path / "run.pt", **options)
    resumed = train(model(), data(), steps=6, resume_from=tmp_path / "run.pt", **options)
    assert (first.seconds, resumed.seconds) == (2, 5) and len(watches) == 2
    assert resumed.items_per_second == 3 * 10 / 3.0  # without the first of its four steps
    assert resumed.memory == first.memory != Memory()


def test_progress_counts_the_steps(monkeypatch):
    made = []

    class Line(loop.Progress):
        def update(self, done, note=""):
            made.append((self.total, done))

    monkeypatch.setattr(loop, "Progress", Line)
    train(model(), data(), precision="32-true", steps=3, batch_size=16)
    assert made == [(3, 1), (3, 2), (3, 3)]


def test_progress_of_a_resumed_run_counts_the_steps_that_are_left(tmp_path, monkeypatch):
    path, options = tmp_path / "run.pt", dict(precision="32-true", batch_size=16)
    train(model(), data(), steps=3, save_to=path, **options)
    made = []

    class Line(loop.Progress):
        def update(self, done, note=""):
            made.append((self.total, done))

    monkeypatch.setattr(loop, "Progress", Line)
    train(model(), data(), steps=5, resume_from=path, **options)
    assert made == [(2, 1), (2, 2)]


@pytest.mark.parametrize(("every", "saved"), [(4, [4, 8, 10]), (5, [5, 10]), (None, [10])])
def test_a_checkpoint_is_kept_every_so_many_steps_and_at_the_end(every, saved, monkeypatch):
    steps = []
    monkeypatch.setattr(resume, "save", lambda path, trainer, run: steps.append(run.steps))
    options = dict(save_to="run.pt", save_every=every, batch_size=16)
    train(model(), data(), precision="32-true", steps=10, **options)
    assert steps == saved


def test_a_saved_run_holds_a_state_that_grad_scaler_can_load(tmp_path):
    path, options = tmp_path / "run.pt", dict(precision="16-mixed", batch_size=16)
    train(
        model(), data(), steps=7, loss_scale_growth_interval=3, save_to=path, device="cpu",
        **options,
    )  # fmt: skip
    scaler = torch.amp.GradScaler("cpu")
    scaler.load_state_dict(checkpoint_files.load(path)["scaler"])
    assert scaler.get_scale() == 2.0**18 and scaler.state_dict()["_growth_tracker"] == 1


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


def test_a_checkpoint_in_mid_run_holds_the_time_so_far(tmp_path, monkeypatch):
    class Clock(loop.Stopwatch):
        def start(self):
            pass

        def stop(self):
            self.seconds += 1.5
            return self.seconds

    saved = []
    monkeypatch.setattr(loop, "Stopwatch", Clock)
    monkeypatch.setattr(resume, "save", lambda path, trainer, run: saved.append(run.seconds))
    options = dict(save_to=tmp_path / "run.pt", save_every=2, batch_size=16)
    run = train(model(), data(), precision="32-true", steps=6, **options)
    assert saved == [1.5, 3.0, 4.5] and run.seconds == 4.5


def test_a_run_that_stops_on_nan_keeps_its_last_good_checkpoint(tmp_path):
    path = tmp_path / "run.pt"
    options = dict(precision="16-true", save_to=path, save_every=1, batch_size=16)
    run = train(model(), data(), steps=9, stop_on_nan=True, **options)
    assert run.steps == 2 and checkpoint_files.load(path)["run"]["losses"] == run.losses[:1]


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


def test_a_model_of_another_shape_and_the_same_size_is_refused(tmp_path):
    options, path = dict(precision="32-true", batch_size=16), tmp_path / "run.pt"
    train(
        nn.Sequential(nn.Linear(12, 3), nn.Linear(3, 12)), data(), steps=1, save_to=path, **options
    )
    other = nn.Sequential(nn.Linear(12, 3), nn.Linear(3, 12))
    other[1].weight = nn.Parameter(torch.zeros(6, 6))
    with pytest.raises(ValueError, match=r"another model: 1\.weight was"):
        train(other, data(), steps=2, resume_from=path, **options)


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


ADAMW = torch.optim.AdamW
OTHERS = {
    "the rate in a partial": (
        dict(optimizer=partial(ADAMW, lr=1e-3)),
        dict(optimizer=partial(ADAMW, lr=2e-3)),
        "another settings: optimizer was partial.*lr=0.001.*, is partial.*lr=0.002",
    ),
    "a closed-over rate": (
        dict(optimizer=(lambda lr: lambda p: ADAMW(p, lr=lr))(1e-3)),
        dict(optimizer=(lambda lr: lambda p: ADAMW(p, lr=lr))(2e-3)),
        "another settings: optimizer was .*lr=0.001.*, is .*lr=0.002",
    ),
    "the loss function": (
        dict(loss=cross_entropy),
        dict(loss=nn.CrossEntropyLoss(label_smoothing=0.1)),
        "another settings: loss was mpbook.training.settings.cross_entropy, is torch.nn.modules",
    ),
    "the growth interval": (
        dict(loss_scale_growth_interval=5),
        dict(loss_scale_growth_interval=6),
        "loss_scale_growth_interval was 5, is 6",
    ),
    "momentum": (dict(momentum=0.1), dict(momentum=0.2), "momentum was 0.1, is 0.2"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_run_with_other_arguments_of_a_function_is_refused(name, tmp_path):
    saved, other, message = OTHERS[name]
    path, options = tmp_path / "run.pt", dict(precision="32-true", batch_size=16, device="cpu")
    train(model(), data(), steps=2, save_to=path, **saved, **options)
    with pytest.raises(ValueError, match=message):
        train(model(), data(), steps=3, resume_from=path, **other, **options)
    assert train(model(), data(), steps=3, resume_from=path, **saved, **options).steps == 3


def test_an_optimizer_that_got_other_options_is_refused(tmp_path, monkeypatch):
    path, options = tmp_path / "run.pt", dict(precision="32-true", batch_size=16, device="cpu")
    train(model(), data(), steps=2, save_to=path, **options)
    original = torch.optim.AdamW.__init__
    monkeypatch.setattr(torch.optim.AdamW, "__init__", partialmethod(original, eps=1e-6))
    with pytest.raises(ValueError, match="another optimizer: group 0: eps was 1e-08, is 1e-06"):
        train(model(), data(), steps=3, resume_from=path, **options)


def test_a_run_that_is_compiled_is_not_one_that_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    path, options = tmp_path / "run.pt", dict(precision="32-true", batch_size=16, device="cpu")
    train(model(), data(), steps=2, save_to=path, **options)
    with pytest.raises(ValueError, match="another way to run: compile was False, is True"):
        train(model(), data(), steps=3, resume_from=path, compile=True, **options)


def test_what_cannot_be_described_is_not_taken_for_the_same(tmp_path):
    generator = torch.Generator()

    def loss(outputs, targets):
        return cross_entropy(outputs, targets) + 0 * generator.initial_seed()

    path, options = tmp_path / "run.pt", dict(precision="32-true", batch_size=16, loss=loss)
    train(model(), data(), steps=2, save_to=path, **options)
    with pytest.raises(ValueError, match=r"settings are the same cannot be known: loss"):
        train(model(), data(), steps=3, resume_from=path, **options)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", *CURES], ids=str)
def test_muon_trains_scales_and_resumes(precision, tmp_path):
    net = MLP(12, 16, 16, 3)
    path, options = tmp_path / "run.pt", dict(optimizer="muon", batch_size=16, device="cpu")
    options |= dict(precision=precision, learning_rate=0.02)
    whole = train(net, data(), steps=20, **options)
    train(net, data(), steps=12, save_to=path, **options)
    resumed = train(net, data(), steps=20, resume_from=path, **options)
    assert resumed.losses == whole.losses and same(weights(resumed.model), weights(whole.model))
    assert whole.losses[-1] < 0.8 * whole.losses[0]
    hidden, count = 16 * 16, sum(p.numel() for p in net.parameters())
    counters = 4 * 5  # a step count for each parameter but the hidden matrix
    assert whole.memory.optimizer_state == 4 * (2 * (count - hidden) + hidden) + counters
