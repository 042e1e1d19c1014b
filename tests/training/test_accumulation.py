"""Gradient accumulation: `train` against a plain loop with torch's GradScaler, bit for bit."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from training_cases import CURES, DEVICES, NAMES, data, model, same, weights

from mpbook.data import Examples
from mpbook.device import matmul_emulation
from mpbook.precision import PRECISIONS
from mpbook.training import Settings, cross_entropy, prepare, train, training_step


def loud(outputs, targets):
    return 1024 * cross_entropy(outputs, targets)


def by_hand(name, parts, *, steps, device, loss=cross_entropy, clip=0.5):
    """What torch's AMP examples say: divide, scale each, unscale once, step and update once."""
    precision = PRECISIONS[name]
    net = model().to(device, precision.parameter_dtype)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler(device, growth_interval=4, enabled=name == "16-mixed")
    generator, examples = torch.Generator().manual_seed(0), data().to(torch.device(device))
    mixed = dict(dtype=precision.compute_dtype, enabled=precision.is_mixed)
    losses, scales = [], []
    for _ in range(steps):
        x, y = examples.sample(4 * parts, generator)
        x = x.to(precision.parameter_dtype)
        optimizer.zero_grad()
        scales.append(scaler.get_scale())
        total = 0.0
        for part in range(parts):
            rows = slice(4 * part, 4 * part + 4)
            with matmul_emulation(precision.compute_dtype, torch.device(device)):
                with torch.autocast(device, **mixed):
                    logits = net(x[rows])
                one = loss(logits.float(), y[rows]) / parts
                scaler.scale(one).backward()
            total = total + one.detach()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(net.parameters(), clip, foreach=False)  # as `train` does
        scaler.step(optimizer)
        scaler.update()
        losses.append(total.item())
    return losses, scales, weights(net)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("parts", [1, 2, 3, 8])
@pytest.mark.parametrize("name", ["32-true", "16-mixed", "bf16-mixed"])
def test_accumulation_equals_a_plain_loop_with_grad_scaler_bit_for_bit(name, parts, device):
    losses, scales, expected = by_hand(name, parts, steps=20, device=device, loss=loud)
    run = train(
        model(), data(), precision=name, steps=20, batch_size=4, accumulation_steps=parts,
        learning_rate=0.1, optimizer="sgd", clip_norm=0.5, loss=loud, device=device,
        loss_scale_growth_interval=4,
    )  # fmt: skip
    assert run.losses == losses and run.loss_scales == scales
    assert same(weights(run.model), expected)
    assert bool(run.skipped_steps) == (name == "16-mixed")


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
def test_micro_batches_add_up_to_one_large_batch(precision):
    options = dict(precision=precision, steps=10, optimizer="sgd", learning_rate=0.1, device="cpu")
    whole = train(model(), data(), batch_size=32, **options)
    parts = train(model(), data(), batch_size=4, accumulation_steps=8, **options)
    tolerance = 1e-5 if precision == "32-true" else 3e-3
    assert parts.losses == pytest.approx(whole.losses, rel=tolerance)
    assert parts.gradient_norms == pytest.approx(whole.gradient_norms, rel=30 * tolerance)


class Marked(Examples):
    """Examples of which every batch has one that overflows, in a place of choice."""

    place = 0

    def sample(self, batch_size, generator):
        x, y = super().sample(batch_size, generator)
        x[self.place] = 1e30
        return x, y

    def to(self, device):
        return self


@pytest.mark.parametrize("place", [0, 9, 15])
def test_an_infinity_in_any_micro_batch_skips_the_step(place):
    examples = Marked(data().inputs, data().targets)
    object.__setattr__(examples, "place", place)
    given = model()
    run = train(
        given, examples, precision="16-mixed", steps=2, batch_size=4, accumulation_steps=4,
        device="cpu",
    )  # fmt: skip
    assert run.skipped_steps == [0, 1] and run.loss_scales == [2.0**16, 2.0**15]
    assert same(weights(run.model), weights(given))


@pytest.mark.parametrize("precision", [*NAMES, *CURES], ids=str)
def test_a_resumed_run_with_accumulation_equals_one_that_was_never_stopped(precision, tmp_path):
    path = tmp_path / "run.pt"
    options = dict(
        precision=precision, batch_size=4, accumulation_steps=3, learning_rate=0.01, clip_norm=1.0,
        loss_scale_growth_interval=2, validate_every=2, device="cpu",
    )  # fmt: skip
    whole = train(model(0.2), data(), steps=6, **options)
    train(model(0.2), data(), steps=4, save_to=path, **options)
    resumed = train(model(0.2), data(), steps=6, resume_from=path, **options)
    assert resumed.losses == whole.losses and same(weights(resumed.model), weights(whole.model))
    with pytest.raises(ValueError, match="another settings: accumulation_steps was 3, is 2"):
        train(model(0.2), data(), steps=6, resume_from=path, **options | {"accumulation_steps": 2})


def test_validation_goes_by_micro_batches_and_is_not_divided():
    options = dict(precision="32-true", steps=1, batch_size=4, device="cpu")
    run = train(model(), data(), accumulation_steps=4, **options)
    held_out = data()
    logits = run.model.eval()(held_out.validation_inputs)
    expected = nn.functional.cross_entropy(logits, held_out.validation_targets).item()
    assert run.validation_loss == pytest.approx(expected, rel=1e-6)


def test_throughput_counts_all_micro_batches():
    run = train(
        model(), data(), precision="32-true", steps=5, batch_size=4, accumulation_steps=3,
        device="cpu",
    )  # fmt: skip
    assert run.items_per_second == pytest.approx(4 * 12 / run.seconds)


@pytest.mark.parametrize("name", ["32-true", "bf16-mixed", "16-mixed"])
def test_memory_is_that_of_one_micro_batch_and_one_set_of_gradients(name):
    options = dict(precision=name, steps=1, batch_size=4, device="cpu")
    alone = train(model(), data(), **options).memory
    for parts in (2, 8):
        several = train(model(), data(), accumulation_steps=parts, **options).memory
        # the micro-batch is a view into the inputs of the whole step, and so are its targets
        views = (parts - 1) * 4 * (12 * 4 + 8)
        saved = several.saved_for_backward
        assert alone.saved_for_backward <= saved <= alone.saved_for_backward + views + 64
        assert replace(several, saved_for_backward=0) == replace(alone, saved_for_backward=0)


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("bf16-mixed", torch.float32), ("bf16-true", torch.bfloat16), (CURES[0], torch.bfloat16)],
    ids=str,
)
def test_gradients_add_up_in_the_parameters_dtype(precision, dtype):
    settings = Settings(steps=1, batch_size=4, accumulation_steps=2)
    found = PRECISIONS.get(precision, precision)
    trainer = prepare(model(), found, settings, torch.device("cpu"))
    inputs, targets = data().sample(8, trainer.generator)
    training_step(trainer, inputs, targets)
    assert {p.grad.dtype for p in trainer.model.parameters()} == {dtype}


def test_a_batch_that_does_not_divide_is_refused():
    settings = Settings(steps=1, accumulation_steps=3)
    trainer = prepare(model(), PRECISIONS["32-true"], settings, torch.device("cpu"))
    inputs, targets = data().sample(8, trainer.generator)
    with pytest.raises(ValueError, match="accumulation_steps=3: a batch of 8 does not divide"):
        training_step(trainer, inputs, targets)
    with pytest.raises(ValueError, match="accumulation_steps=0: expected at least 1"):
        Settings(steps=1, accumulation_steps=0)
    assert math.isfinite(sum(p.sum().item() for p in trainer.model.parameters()))


def test_a_compiled_loss_sees_one_micro_batch_at_a_time(monkeypatch):
    sizes = []

    def compile(function, **options):
        return lambda *arguments: sizes.append(len(arguments[-1])) or function(*arguments)

    monkeypatch.setattr(torch, "compile", compile)
    options = dict(precision="32-true", steps=2, batch_size=4, accumulation_steps=2, device="cpu")
    train(model(), data(), compile=True, **options)
    assert sizes == [4] * 4 + [4] * 4
