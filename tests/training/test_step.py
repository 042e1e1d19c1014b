"""One step: its scaler, its optimizer, its clipping."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from training_cases import CURES, data, model

from mpbook.loss_scaling import DynamicLossScaler, NoLossScaler, StaticLossScaler
from mpbook.master_weights import KahanSummation, MasterWeights, StochasticRounding
from mpbook.precision import PRECISIONS, Precision, as_precision
from mpbook.training import prepare, step, training_step
from mpbook.training.parallel import Ranks
from mpbook.training.settings import Settings
from mpbook.training.step import clip, gradient_norm


def test_clipping_leaves_short_gradients_alone():
    gradients = [torch.tensor([3.0]), torch.tensor([4.0])]
    assert gradient_norm(gradients).item() == 5
    clip(gradients, gradient_norm(gradients), largest=6.0)
    assert [g.item() for g in gradients] == [3, 4]
    clip(gradients, gradient_norm(gradients), largest=1.0)
    assert [g.item() for g in gradients] == pytest.approx([0.6, 0.8])


@pytest.mark.parametrize("largest", [1e-6, 0.5, 100.0])
@pytest.mark.parametrize("size", [0.0, 1e-6, 1.0])
def test_clipping_equals_torchs(size, largest):
    parameters = [nn.Parameter(torch.zeros(5)), nn.Parameter(torch.zeros(2, 3))]
    for parameter in parameters:
        parameter.grad = size * torch.arange(parameter.numel()).view_as(parameter).float()
    ours = [p.grad.clone() for p in parameters]
    clip(ours, gradient_norm(ours), largest)
    nn.utils.clip_grad_norm_(parameters, largest)
    for mine, parameter in zip(ours, parameters, strict=True):
        torch.testing.assert_close(mine, parameter.grad, rtol=1e-6, atol=0)


def test_sparse_gradients_with_a_place_twice_are_clipped_in_place():
    table = nn.Embedding(3, 1, sparse=True)
    (table(torch.tensor([1, 1])) * torch.tensor([[2.0], [1.0]])).sum().backward()
    gradient = table.weight.grad
    assert gradient_norm([gradient]).item() == 3 and not gradient.is_coalesced()
    clip([gradient], gradient_norm([gradient]), largest=1.5)
    assert gradient.to_dense().flatten().tolist() == pytest.approx([0, 1.5, 0])


def test_the_norm_of_16_bit_gradients_is_computed_in_float32():
    gradients = [torch.full((4,), 60000.0, dtype=torch.float16)]
    assert gradient_norm(gradients).item() == 120000
    assert gradient_norm([]).item() == 0


@pytest.mark.parametrize(("name", "waits"), [("16-mixed", 1), ("bf16-mixed", 0)])
def test_a_step_waits_for_the_device_only_to_decide_whether_to_skip(name, waits):
    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.count += function == torch.ops.aten._local_scalar_dense.default
            return function(*args, **kwargs or {})

    options, cpu = Settings(steps=1, optimizer="sgd", clip_norm=1.0), torch.device("cpu")
    trainer = prepare(model(), PRECISIONS[name], options, cpu)
    inputs, targets = data().sample(16, trainer.generator)
    with Reads() as reads:
        training_step(trainer, inputs, targets)
    assert reads.count == waits


SCALED = Precision("a static scale", compute_dtype=torch.float16, loss_scale=1024.0)


@pytest.mark.parametrize(
    ("precision", "kind"),
    [("32-true", NoLossScaler), ("16-mixed", DynamicLossScaler), (SCALED, StaticLossScaler)],
    ids=str,
)
def test_a_precision_has_its_own_scaler(precision, kind):
    cpu, settings = torch.device("cpu"), Settings(steps=1, loss_scale_growth_interval=7)
    trainer = prepare(model(), as_precision(precision), settings, cpu)
    assert type(trainer.scaler) is kind
    assert getattr(trainer.scaler, "growth_interval", 7) == 7


def test_a_loss_does_not_keep_the_graph_that_it_came_from():
    settings, cpu = Settings(steps=1), torch.device("cpu")
    trainer = prepare(model(), PRECISIONS["32-true"], settings, cpu)
    inputs, targets = data().sample(16, trainer.generator)
    loss, norm, _ = training_step(trainer, inputs, targets)
    assert not loss.requires_grad and not norm.requires_grad


def test_each_weight_update_has_its_optimizer():
    cpu = torch.device("cpu")
    for precision, kind in zip(
        CURES, [MasterWeights, StochasticRounding, KahanSummation], strict=False
    ):
        trainer = prepare(model(), precision, Settings(steps=1, seed=5), cpu)
        assert (
            type(trainer.optimizer) is kind
            and type(trainer.optimizer.optimizer) is torch.optim.AdamW
        )
    trainer = prepare(model(), PRECISIONS["bf16-true"], Settings(steps=1), cpu)
    assert type(trainer.optimizer) is torch.optim.AdamW


def test_stochastic_rounding_has_draws_of_its_own_beside_those_of_the_batches():
    for seed in range(3):
        trainer = prepare(model(), CURES[1], Settings(steps=1, seed=seed), torch.device("cpu"))
        of_rounding, of_batches = trainer.optimizer.generator, trainer.generator
        assert of_rounding.initial_seed() != of_batches.initial_seed()


def test_before_delayed_scales_move_all_ranks_agree_on_what_they_saw(monkeypatch):
    calls = []
    monkeypatch.setattr(Ranks, "agree_on_amax", lambda ranks, model: calls.append("agree"))
    monkeypatch.setattr(step, "advance", lambda model: calls.append("advance"))
    trainer = prepare(model(), PRECISIONS["32-true"], Settings(steps=1), torch.device("cpu"))
    training_step(trainer, *data().sample(16, trainer.generator))
    assert calls == ["agree", "advance"]


def test_gradients_travel_once_a_step_after_the_last_micro_batch(monkeypatch):
    lasts = []

    def accumulating(ranks, *, last):
        lasts.append(last)
        return nullcontext()

    monkeypatch.setattr(Ranks, "accumulating", accumulating)
    settings = Settings(steps=1, accumulation_steps=3, batch_size=4)
    trainer = prepare(model(), PRECISIONS["32-true"], settings, torch.device("cpu"))
    training_step(trainer, *data().sample(12, trainer.generator))
    assert lasts == [False, False, True]
