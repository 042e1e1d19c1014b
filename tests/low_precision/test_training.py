"""Quantised precisions through the one loop: `train`, `compare`, checkpoints, compilation."""

import copy
import math
from dataclasses import replace

import product_references as references
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from visits import needs_compiler

from mpbook.autocast import trace_dtypes
from mpbook.cost import plan_memory
from mpbook.data import Examples
from mpbook.device import compiled
from mpbook.low_precision import RECIPES, Delayed, QuantizedLinear, advance, convert
from mpbook.low_precision.linear import FORGETS_WHEN_COMPILED
from mpbook.models import GPT, MLP, GPTConfig
from mpbook.precision import QUANTISED, Precision, as_precision, side_by_side
from mpbook.training import Settings, compare, prepare, train, training_step
from mpbook.watch import Probe

CPU = torch.device("cpu")


def data() -> Examples:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(320, 128, generator=generator)
    y = (x @ torch.randn(128, 4, generator=generator)).argmax(-1)
    return Examples(x[:256], y[:256], x[256:], y[256:], name="made up")


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return MLP(128, 128, 128, 4)


OPTIONS = dict(batch_size=128, learning_rate=2e-3, device="cpu", progress=False)
LEARN = sorted(set(QUANTISED) - {"unscaled_e4m3-mixed"})


@pytest.mark.parametrize("precision", LEARN)
def test_every_recipe_trains(precision):
    run = train(model(), data(), precision=precision, steps=25, **OPTIONS)
    assert run.loss < 0.6 * run.losses[0]
    kinds = [type(m) for m in run.model.modules() if isinstance(m, nn.Linear)]
    assert kinds == [QuantizedLinear, QuantizedLinear, nn.Linear]
    recipe = as_precision(precision).recipe
    assert run.config["precision"]["recipe"] == recipe.name
    assert run.config["precision"]["recipe: wgrad x"] == repr(recipe.wgrad.right)


def test_what_is_not_quantised_computes_in_bfloat16_or_where_asked_in_float32():
    seen = []

    def note(module, inputs, output):
        seen.append(output.dtype)

    for dtype in (torch.bfloat16, torch.float32):
        net = model()
        for layer in net:
            layer.register_forward_hook(note)
        precision = Precision("mine", compute_dtype=dtype, recipe="mxfp8")
        train(net, data(), precision=precision, steps=1, **OPTIONS)
        assert set(seen) == {dtype}
        seen.clear()


def test_a_loss_that_is_nan_stops_the_run_and_an_infinite_input_gives_one():
    bad = data()
    bad.inputs[:] = math.inf
    run = train(model(), bad, precision="mxfp8-mixed", steps=5, stop_on_nan=True, **OPTIONS)
    assert run.stopped_on_nan and run.steps == 1


@pytest.mark.parametrize("precision", ["float8_delayed-mixed", "nvfp4-mixed"])
def test_a_resumed_run_equals_one_that_was_never_stopped(precision, tmp_path):
    options = OPTIONS | dict(precision=precision, validate_every=2, accumulation_steps=2)
    options |= dict(batch_size=64)
    whole = train(model(), data(), steps=6, **options)
    train(model(), data(), steps=3, save_to=tmp_path / "run.pt", **options)
    torch.manual_seed(99)
    resumed = train(model(7), data(), steps=6, resume_from=tmp_path / "run.pt", **options)
    assert resumed.losses == whole.losses
    states = (run.model.state_dict() for run in (whole, resumed))
    assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))


def test_a_run_of_another_recipe_is_not_gone_on_from(tmp_path):
    path = tmp_path / "run.pt"
    train(model(), data(), precision="mxfp8-mixed", steps=2, save_to=path, **OPTIONS)
    changed = replace(RECIPES["mxfp8"], stays_high=("0",))  # of the same name
    for other in ("nvfp4-mixed", replace(as_precision("mxfp8-mixed"), recipe=changed)):
        with pytest.raises(ValueError, match="saved with another precision: "):
            train(model(), data(), precision=other, steps=4, resume_from=path, **OPTIONS)


def test_delayed_scales_move_once_a_step_however_many_micro_batches():
    recipe = replace(RECIPES["float8_delayed"], scaling=Delayed(8))
    precision = replace(as_precision("float8_delayed-mixed"), recipe=recipe)
    options = OPTIONS | dict(batch_size=32, accumulation_steps=4)
    run = train(model(), data(), precision=precision, steps=3, **options)
    history = run.model[0].amax_history
    assert (history[1:4] > 0).all() and not history[4:].any() and not history[0].any()


def test_compare_and_the_probe_take_a_quantised_precision():
    found = compare(
        model, data(), ["bf16-mixed", "mxfp8-mixed"], seeds=2, steps=8, control="none", **OPTIONS
    )
    assert set(found.runs) == {"bf16-mixed", "mxfp8-mixed"}
    assert abs(found.difference("mxfp8-mixed").mean) < 0.1
    trainer = prepare(model(), as_precision("mxfp8-mixed"), Settings(steps=1), CPU)
    inputs, targets = data().sample(128, trainer.generator)
    with Probe(trainer.model) as probe:
        trainer.loss(inputs, targets).backward()
    assert probe


def test_the_model_that_is_passed_stays_as_it_is():
    given = model()
    before = copy.deepcopy(given.state_dict())
    train(given, data(), precision="mxfp8-mixed", steps=2, **OPTIONS)
    assert not any(isinstance(m, QuantizedLinear) for m in given.modules())
    assert all(torch.equal(before[key], given.state_dict()[key]) for key in before)


def test_unscaled_gradients_vanish_in_every_quantised_layer_and_the_loss_falls():
    precision = as_precision("unscaled_e4m3-mixed")
    torch.manual_seed(0)
    trainer = prepare(GPT(GPTConfig()), precision, Settings(steps=1), CPU)
    tokens = torch.randint(0, 64, (32, 65), generator=trainer.generator)
    losses = []
    for _ in range(4):
        loss, _, _ = training_step(trainer, tokens[:, :-1], tokens[:, 1:])
        losses.append(loss.item())
        modules = trainer.model.named_modules()
        layers = {n: m for n, m in modules if isinstance(m, QuantizedLinear)}
        zeros = {n: (m.weight.grad == 0).double().mean() for n, m in layers.items()}
        assert len(zeros) == 8 and min(zeros.values()) > 0.5
        assert min(z for n, z in zeros.items() if "query" in n or "expand" in n) > 0.99
    assert losses[-1] < losses[0]  # by the embedding, which is the last layer too, and the biases


# --- names and refusals ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("fp8-mixed", ["float8_tensorwise-mixed", "float8_rowwise-mixed", "mxfp8-mixed"]),
        ("fp8", ["float8_delayed-mixed", "float8_blockwise-mixed"]),
        ("fp4-mixed", ["mxfp4-mixed", "nvfp4-mixed"]),
    ],
)
def test_an_ambiguous_name_is_refused_with_those_that_it_may_mean(name, meant):
    with pytest.raises(ValueError, match=f'precision="{name}": ambiguous, use ') as refused:
        as_precision(name)
    assert all(f'"{precision}"' in str(refused.value) for precision in meant)


def test_the_name_of_a_recipe_is_no_precision_and_says_which_is():
    with pytest.raises(ValueError, match=r"expected one of .*mxfp8-mixed"):
        as_precision("mxfp8")
    with pytest.raises(ValueError, match="recipe='mxfp7': expected one of"):
        Precision("mine", recipe="mxfp7")


def test_a_table_of_precisions_says_how_linear_layers_compute():
    rows = {row[0]: row[1:] for row in side_by_side("bf16-mixed", "nvfp4-mixed").rows}
    assert list(rows["linear layers"]) == ["not quantised", "nvfp4"]
    assert "linear layers" not in {row[0] for row in side_by_side().rows}


def test_no_memory_is_planned_for_what_the_planner_has_not_counted():
    with pytest.raises(ValueError, match='precision="mxfp8-mixed": what quantised layers save'):
        plan_memory(GPTConfig(), batch_size=1, precision="mxfp8-mixed")
    with pytest.raises(ValueError, match='precision="mxfp8-mixed": a trace says what autocast cas'):
        trace_dtypes(model(), torch.ones(32, 128), precision="mxfp8-mixed")


# --- compiled -------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(32, 64)
        convert(self, RECIPES["float8_delayed"], filter=lambda module, name: True)

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=False)


@needs_compiler
def test_compiled_with_checkpointing_it_computes_and_notes_the_same():
    nets = [Net(), Net()]
    functions = [nets[0], compiled(nets[1], fullgraph=not FORGETS_WHEN_COMPILED)]
    for seed in range(2):
        x, _, dy = references.layer_data(tokens=16, inputs=32, outputs=64, seed=seed)
        for net, function in zip(nets, functions, strict=True):
            net.zero_grad()
            function(x.clone().requires_grad_()).backward(dy)
            advance(net)
        (a, b) = (net.inner for net in nets)
        assert torch.equal(a.amax_history, b.amax_history)
        assert torch.allclose(a.scale, b.scale, rtol=1e-6)
        assert (a.weight.grad - b.weight.grad).norm() < 1e-5 * a.weight.grad.norm()
