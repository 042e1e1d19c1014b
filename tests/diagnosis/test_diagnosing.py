"""`diagnose` on models of many kinds: what it says, and that it leaves everything as it was."""

from __future__ import annotations

import copy
import json
import random
import threading
from functools import partial
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import mpbook
from mpbook.device import compiled
from mpbook.diagnosis import Diagnosis, diagnose
from mpbook.diagnosis.advice import PASSED, STATES
from mpbook.diagnosis.zoo.healthy import VAE, LoRA
from mpbook.master_weights import MasterWeights

X, Y = torch.randn(16, 8, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 3
ADAM = partial(torch.optim.AdamW, lr=1e-3)


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


def topics(found: Diagnosis) -> set[str]:
    return {line.topic for line in found.lines()}


def state_of(model: nn.Module) -> list[Tensor]:
    return [t.detach().clone() for t in (*model.parameters(), *model.buffers())]


class Writes(nn.Module):
    """Changes its input in place."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.mul_(2))


def test_it_is_an_attribute_of_the_package() -> None:
    assert mpbook.diagnose is diagnose
    assert "diagnose" in dir(mpbook)
    with pytest.raises(AttributeError, match="no attribute 'diagnosis_of'"):
        _ = mpbook.diagnosis_of


def test_a_healthy_model_gets_every_section_and_is_left_alone() -> None:
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(X).sum().backward()
    model.eval()
    weights, gradients = state_of(model), [p.grad for p in model.parameters()]
    kept = [g.clone() for g in gradients if g is not None]
    randoms = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].copy()  # type: ignore[union-attr]
    found = diagnose(model, (X, Y), loss=F.cross_entropy, optimizer=optimizer)
    assert {found.survives(f) for f in ("float16", "bfloat16")} == {"yes"}
    assert {"survives", "headroom", "loss scale", "rounding", "memory", "not seen",
            "speed, predicted", "stands still in 16 bits"} <= topics(found)  # fmt: skip
    assert all(map(torch.equal, weights, state_of(model)))
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    assert all(torch.equal(g, k) for g, k in zip(gradients, kept, strict=True) if g is not None)
    assert not optimizer.state and not model.training and not model._forward_hooks
    assert torch.equal(randoms[0], torch.get_rng_state()) and randoms[1] == random.getstate()
    assert (numpy.random.get_state()[1] == randoms[2]).all()


def test_the_report_is_a_table_html_and_json() -> None:
    found = diagnose(mlp(), (1e5 * X, Y), loss=F.cross_entropy, optimizer=ADAM)
    assert "What to do" in repr(found) and "<pre>" in found._repr_html_()
    assert json.loads(json.dumps(found.as_dict()))["survives"]["float16"] == "no"
    assert all(line.finding for line in found.lines())


def test_the_figure_names_the_nearest_operators() -> None:
    pytest.importorskip("matplotlib")
    drawn = diagnose(mlp(), (X, Y), loss=F.cross_entropy).figure()
    assert len(drawn.axes[0].patches) == 3


def test_the_operator_that_overflows_is_foretold_and_met() -> None:
    found = diagnose(mlp(), (1e5 * X, Y), loss=F.cross_entropy)
    verdict = found.of("float16")
    assert verdict.survives == "no" and verdict.failure and verdict.forecast
    assert verdict.failure.key.place.module == verdict.forecast.key.place.module == "0"
    assert verdict.failure.operator == verdict.forecast.operator == "_to_copy"
    assert found.survives("bfloat16") == "yes"


def test_a_run_that_is_nan_in_float32_is_told_where_it_begins() -> None:
    found = diagnose(mlp(), (X, Y), loss=lambda o, _: (o - o).log().sum())
    for format in ("float16", "bfloat16"):
        assert found.survives(format) == "fails in float32 too"
        assert found.of(format).failure.operator == "log"  # type: ignore[union-attr]
    assert found.advice[0].what.startswith("mend the float32 run first")


def test_a_bias_before_a_norm_has_no_vote() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    found = diagnose(model, (X, Y), loss=F.cross_entropy, optimizer=ADAM)
    assert found.without_vote == ("0.bias",)
    assert not found.of("float16").loss_scale_needed


def test_a_loss_scale_is_needed_where_gradients_vanish_and_the_window_says_which() -> None:
    found = diagnose(mlp(), (X, Y), loss=lambda o, y: 1e-7 * F.cross_entropy(o, y))
    verdict = found.of("float16")
    assert verdict.survives == "with a loss scale"
    assert verdict.window is not None and verdict.window[0] > 0
    assert 2.0 ** verdict.window[0] <= verdict.loss_scale <= 2.0 ** verdict.window[1]
    assert any("GradScaler" in one.lines for one in found.advice)


def test_gradients_and_states_of_a_loop_of_ones_own() -> None:
    class Gan(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.generator, self.critic = nn.Linear(4, 8), nn.Linear(8, 1)

    def step(model: Any, optimizers: Any, batch: Any) -> None:
        noise, real = batch
        fake = model.generator(noise)
        optimizers["critic"].zero_grad()
        loss = F.softplus(-model.critic(real)) + F.softplus(model.critic(fake.detach()))
        loss.mean().backward()
        optimizers["critic"].step()
        optimizers["generator"].zero_grad()
        F.softplus(-model.critic(fake)).mean().backward()
        optimizers["generator"].step()

    model = Gan()
    optimizers = {name: ADAM(part.parameters()) for name, part in model.named_children()}
    before = state_of(model)
    found = diagnose(model, (torch.randn(16, 4), X), step=step, optimizer=optimizers)
    assert {found.survives(f) for f in ("float16", "bfloat16")} == {"yes"}
    assert {w.state for w in found.writes} >= {"weights", "exp_avg", "exp_avg_sq"}
    assert all(map(torch.equal, before, state_of(model)))
    inflated = diagnose(model, (torch.randn(16, 4), 1e6 * X), step=step, optimizer=optimizers)
    assert inflated.survives("float16") == "no"


def test_a_step_that_trains_the_model_it_closes_over_is_undone_and_told() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(_model: Any, _optimizer: Any, batch: Any) -> None:
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()

    before = state_of(model)
    with pytest.raises(RuntimeError, match="use its arguments, step"):
        diagnose(model, (X, Y), step=step, optimizer=optimizer)
    assert all(map(torch.equal, before, state_of(model)))
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("wrap", [MasterWeights, lambda optimizer: optimizer])
def test_a_model_in_16_bits_is_told_what_its_weights_swallow(wrap: Any) -> None:
    model = mlp().bfloat16()
    optimizer = wrap(torch.optim.SGD(model.parameters(), lr=1e-6))
    found = diagnose(model, (X.bfloat16(), Y), loss=F.cross_entropy, optimizer=optimizer)
    assert found.survives("bfloat16") == "yes"
    really = [w for w in found.writes if w.really_swallowed and w.state == "weights"]
    assert bool(really) == (wrap is not MasterWeights)


@pytest.mark.parametrize("foreach", [False, True])
def test_what_weights_in_16_bits_do_is_not_told_as_what_they_would_do(foreach: bool) -> None:
    adam = partial(torch.optim.AdamW, lr=1e-3, foreach=foreach)
    found = diagnose(mlp().bfloat16(), (X.bfloat16(), Y), loss=F.cross_entropy, optimizer=adam)
    said = found.to_do()
    assert f"{PASSED}: weight decay changes nothing" in said
    assert f"{PASSED}: keep Adam's second moment" in said
    assert STATES not in said and "Nothing to do" not in said
    wide = diagnose(mlp(), (X, Y), loss=F.cross_entropy, optimizer=adam)
    assert PASSED not in wide.to_do() and "Nothing to do" in wide.to_do()
    assert "most of these updates" not in wide.to_do()


def test_a_step_that_casts_to_the_16_bits_of_its_weights_hears_that_they_are_wide() -> None:
    def step(model: nn.Module, optimizer: Any, batch: Any) -> None:
        model(batch[0].bfloat16()).float().mean().backward()

    with pytest.raises(RuntimeError, match="dtype") as raised:
        diagnose(mlp().bfloat16(), (X,), step=step)
    assert "passed in 16 bits are in float32" in raised.value.__notes__[0]


def test_adam_over_float16_weights_is_not_finite_after_the_step() -> None:
    found = diagnose(mlp(), (X, Y), loss=lambda o, y: F.cross_entropy(o, y) / 50, optimizer=ADAM)
    pure = found.formats["float16"].pure
    assert pure is not None and pure.survives == "no" and pure.nonfinite_after
    assert found.survives("float16") in ("yes", "with a loss scale")


def test_a_schedulers_patch_does_not_reach_the_original() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    before = state_of(model)
    diagnose(model, (X, Y), loss=F.cross_entropy, optimizer=optimizer, rescue=False)
    assert all(map(torch.equal, before, state_of(model)))


def test_compiled_parts_run_as_written_and_are_named() -> None:
    model = mlp()
    model[0] = compiled(model[0])
    found = diagnose(model, (1e5 * X, Y), loss=F.cross_entropy)
    assert found.survives("float16") == "no"
    assert any("compiled" in what and where == "0" for what, where in found.unseen)


def test_what_was_not_seen_is_never_empty_and_names_what_there_is() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.spare = nn.Linear(8, 3), nn.Linear(2, 2)
            self.phase = nn.Parameter(torch.randn(5, dtype=torch.complex64))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(torch.fft.irfft(torch.fft.rfft(x) * self.phase, n=8))

    found = diagnose(Mixed(), (X, Y), loss=F.cross_entropy)
    told = " ".join(f"{what} {where}" for what, where in found.unseen)
    for word in ("spare", "complex parameters", "no optimizer was passed", "inside a kernel"):
        assert word in told
    assert found.survives("float16") == "yes"


def test_an_index_that_changes_is_a_tie() -> None:
    class Router(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.score, self.out = nn.Linear(32, 256), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            values, _ = self.score(x).topk(8)
            return self.out(values)

    torch.manual_seed(0)
    x = torch.randn(2048, 32)
    found = diagnose(Router(), (x, torch.zeros(2048).long()), loss=F.cross_entropy)
    flipped = {f: sum(one.share for one in found.formats[f].flipped) for f in found.formats}
    assert 0 < flipped["float16"] < flipped["bfloat16"] < 0.9


def test_choices_of_a_loop_are_one_line_of_the_report() -> None:
    class Best(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(32, 64)

        def forward(self, x: Tensor) -> Tensor:
            scores = self.layer(x)
            return torch.stack([part.max(-1).values for part in scores.split(64)])

    torch.manual_seed(0)
    found = diagnose(Best(), torch.randn(2048, 32), loss=lambda best: best.mean())
    for format, share in (("float16", 0.02), ("bfloat16", 0.2)):
        (line,) = (one for one in found.lines() if (one.topic, one.format) == ("ties", format))
        assert "max" in line.finding and 0 < found.formats[format].flipped[0].share < share


def test_whole_numbers_that_are_rounded_have_a_line() -> None:
    class Timed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 3)

        def forward(self, x: Tensor, time: Tensor) -> Tensor:
            return self.layer(x * time.to(torch.bfloat16).float().sin()[:, None])

    found = diagnose(Timed(), (X, 300 + torch.arange(16), Y), loss=F.cross_entropy)
    assert "whole numbers" in topics(found)


def test_frozen_weights_and_outputs_of_any_kind() -> None:
    model = nn.Sequential(LoRA(8), nn.Linear(8, 3))
    found = diagnose(model, (X, Y), loss=F.cross_entropy, optimizer=ADAM)
    assert found.survives("float16") == "yes"
    x = torch.randn(16, 16)
    found = diagnose(VAE(), (x, Y), loss=lambda o, b: F.mse_loss(o[0], b[0]) + o[1])
    assert found.survives("float16") == "yes"


def test_memory_is_measured_and_halves_with_the_bits() -> None:
    model = nn.Sequential(*[nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(6)])
    found = diagnose(model, torch.randn(64, 64), loss=lambda o: o.square().mean())
    full, half = found.memory_float32, found.formats["bfloat16"].memory
    assert full is not None and half is not None
    assert (half.for_each_example or 1e9) < 0.75 * (full.for_each_example or 0)
    assert full.predicted(128) == pytest.approx(2 * full.activations, rel=0.3)
    assert (found.formats["bfloat16"].speed or 0) > 0


@pytest.mark.parametrize("batch", [(X, Y), {"input": X, "labels": Y}], ids=["tuple", "mapping"])
def test_a_loss_that_is_a_module_says_what_its_function_says(batch: Any) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()

        def forward(self, input: Tensor) -> Tensor:
            return self.body(input)

    one, two = (
        diagnose(Named(), batch, loss=loss, optimizer=ADAM).as_dict()
        for loss in (F.cross_entropy, nn.CrossEntropyLoss())
    )
    assert one == two


def test_a_lock_in_a_model_is_no_hindrance() -> None:
    model = mlp()
    model.lock = threading.Lock()  # type: ignore[assignment]
    assert diagnose(model, (X, Y), loss=F.cross_entropy).survives("float16") == "yes"


def test_inputs_that_the_model_writes_to_are_as_they_were() -> None:
    x = X.clone()
    assert diagnose(Writes(), (x, Y), loss=F.cross_entropy).survives("float16") == "yes"
    assert torch.equal(x, X)


def test_an_interruption_leaves_everything_as_it_was() -> None:
    class Interrupted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.calls = nn.Linear(8, 3), 0

        def forward(self, x: Tensor) -> Tensor:
            if torch.is_autocast_enabled("cpu"):
                raise KeyboardInterrupt
            return self.layer(x)

    model, state = Interrupted(), torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        diagnose(model, (X, Y), loss=F.cross_entropy)
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.is_autocast_enabled("cpu") and not model._forward_pre_hooks
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.exp(torch.ones(2, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_out_of_memory_in_one_format_is_that_formats_verdict() -> None:
    class Hungry(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            if self.layer(x).dtype == torch.float16:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
            return self.layer(x)

    found = diagnose(Hungry(), (X, Y), loss=F.cross_entropy, rescue=False)
    assert "out of memory" in found.of("float16").reason
    assert found.survives("bfloat16") == "yes"


def test_a_step_that_is_not_repeatable_is_told() -> None:
    class Counting(nn.Module):
        count = 0

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            Counting.count += 1
            return self.layer(x) * (1 + 0.01 * Counting.count)

    found = diagnose(Counting(), (X, Y), loss=F.cross_entropy)
    assert "not repeatable" in topics(found)
    dropped = nn.Sequential(nn.Dropout(0.5), mlp())
    assert "not repeatable" not in topics(diagnose(dropped, (X, Y), loss=F.cross_entropy))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batches": []}, ValueError, "batches: has no batch"),
        ({"formats": ["fp16"]}, ValueError, r'did you mean \["float16"\]'),
        ({"formats": "float16"}, ValueError, "expected a list"),
        ({"formats": []}, ValueError, "at least one"),
        ({"optimizer": 3}, TypeError, "optimizer: a int; expected a torch.optim.Optimizer"),
        ({"optimizer": torch.optim.LBFGS}, ValueError, "needs a closure; pass step="),
        ({"model": 3}, TypeError, "model: a int; expected a torch.nn.Module"),
        ({"model": nn.LazyLinear(3)}, ValueError, "lazy layers"),
        ({"model": nn.Linear(8, 3, device="meta")}, ValueError, "meta device"),
        ({"target": "tpu"}, ValueError, 'target="tpu"'),
        ({"roof": "A99"}, ValueError, 'roof="A99": expected one of'),
        ({"step": lambda m, o, b: None}, ValueError, "loss, step"),
        ({"loss": lambda o, y: o}, ValueError, "expected a tensor with one element"),
    ],
)
def test_bad_input_is_told_with_what_would_work(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    given: dict[str, Any] = {"model": mlp(), "batches": (X, Y), "loss": F.cross_entropy}
    given |= options
    model, batches = given.pop("model"), given.pop("batches")
    with pytest.raises(error, match=message):
        diagnose(model, batches, **given)


def test_a_copy_says_the_same() -> None:
    model = mlp()
    one, two = (
        diagnose(m, (X, Y), loss=F.cross_entropy, optimizer=ADAM).as_dict()
        for m in (model, copy.deepcopy(model))
    )
    assert one == two


def test_a_row_that_is_masked_throughout_is_nan_by_its_mask() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            mask = torch.zeros(16, 16, dtype=torch.bool)
            mask[0] = True
            y = self.layer(x)
            return (y @ y.mT).masked_fill(mask, float("-inf")).softmax(-1) @ y

    found = diagnose(Masked(), X, loss=lambda o: o.square().mean())
    verdict = found.of("float16")
    assert verdict.survives == "fails in float32 too" and verdict.failure is not None
    assert verdict.failure.operator == "masked_fill" and "NaN first in _softmax" in verdict.reason


def test_a_penalty_on_gradients_runs_backward_inside_forward() -> None:
    class Critic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: Tensor) -> Tensor:
            x = x.clone().requires_grad_()
            out = self.net(x).sum()
            (slope,) = torch.autograd.grad(out, x, create_graph=True)
            return out + (slope.norm(dim=1) - 1).square().mean()

    found = diagnose(Critic(), X, optimizer=ADAM)
    assert {found.survives(f) for f in ("float16", "bfloat16")} == {"yes"}


def test_a_failure_at_a_later_step_is_foretold_for_that_step() -> None:
    descent = partial(torch.optim.SGD, lr=3e4)
    found = diagnose(mlp(), (X, Y), loss=F.cross_entropy, optimizer=descent)
    verdict = found.of("float16")
    assert verdict.survives == "no" and verdict.failure is not None and verdict.failure.step > 0
    assert verdict.forecast is not None and verdict.forecast.overflows_at == verdict.failure.step
