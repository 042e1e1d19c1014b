"""Plans for any module, from steps of two batch sizes: against steps of the size asked for."""

import dataclasses

import pytest
import torch
from torch import nn

from mpbook.cost.gpt_plan import plan_gpt
from mpbook.cost.live_memory import LiveMemory
from mpbook.cost.measure import count_bytes
from mpbook.cost.measured_plan import measure_memory
from mpbook.cost.memory_plan import plan_memory
from mpbook.cost.own_step import prepare_step
from mpbook.data import Examples
from mpbook.models import GPT, MLP, GPTConfig
from mpbook.optimizers import BUILT_BY_TORCH
from mpbook.precision import CURES, PRECISIONS, Precision
from mpbook.training import train
from mpbook.training.settings import cross_entropy

CONFIG = GPTConfig(vocabulary=300, context=16, layers=2, width=32)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.out = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x):
        return self.out(self.lstm(x)[0][:, -1])


@dataclasses.dataclass
class Output:
    logits: torch.Tensor


class TakesTwo(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 32), nn.Linear(32, 4)

    def forward(self, x, mask):
        return Output(self.b(self.a(x).relu() * mask))


def images() -> nn.Module:
    convolutions = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)]
    return nn.Sequential(*convolutions, nn.ReLU(), nn.Flatten(), nn.Linear(8 * 144, 4))


def labels(classes: int = 4) -> torch.Tensor:
    return torch.arange(8) % classes


MODELS = {
    "MLP": (lambda: MLP(6, 64, 4), torch.randn(8, 6), labels(), cross_entropy),
    "CNN": (images, torch.randn(8, 3, 16, 16), labels(), cross_entropy),
    "LSTM": (Recurrent, torch.randn(8, 5, 6), labels(), cross_entropy),
    "GPT": (lambda: GPT(CONFIG), torch.randint(300, (8, 16)), torch.randint(300, (8, 16)),
            cross_entropy),
    "dict and dataclass": (
        TakesTwo, {"x": torch.randn(8, 6), "mask": torch.ones(8, 1)}, labels(),
        lambda out, y: cross_entropy(out.logits, y),
    ),
}  # fmt: skip


def there_is_an_lstm_for(precision):
    """oneDNN held to AVX2 has none under autocast in bfloat16, where the CPU itself has more."""
    model, x = Recurrent(), torch.randn(2, 5, 6)
    try:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            model(x)
    except RuntimeError as error:
        return "could not create a primitive" not in str(error)
    return True


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("name", MODELS)
def test_an_extrapolated_plan_is_what_a_step_of_that_size_holds(name, precision):
    if name == "LSTM" and not there_is_an_lstm_for(precision):
        pytest.skip("oneDNN has no LSTM for this precision here")
    make, inputs, targets, loss = MODELS[name]
    torch.manual_seed(0)
    model, batch = make(), (inputs, targets)
    told = measure_memory(model, batch, loss, precision=precision).at(48)
    seen = measure_memory(model, batch, loss, precision=precision, sizes=(24, 48)).at(48)
    assert (told.found, seen.found) == ("extrapolated", "measured")
    # Exact where kernels go one way at all sizes; oneDNN's workspace of an LSTM grows in steps.
    assert told.peak == pytest.approx(seen.peak, rel=0.15 if name == "LSTM" else 0.05)
    assert told.kept == seen.kept and told.gradients == seen.gradients
    assert sum(told.at_peak.values()) == told.peak


def test_the_peak_is_what_live_memory_counts():
    """Counted once more, by hand: what is kept, and the most that a step adds."""
    make, inputs, targets, loss = MODELS["CNN"]
    torch.manual_seed(0)
    model = make()
    step = prepare_step(
        model, (inputs, targets), loss, batch_size=8, precision=PRECISIONS["32-true"]
    )
    step.forward().backward()
    step.optimizer.step()
    step.optimizer.zero_grad()
    kept = sum(count_bytes(tensors) for tensors in step.kept().values())
    with LiveMemory() as live:
        step.forward().backward()
        step.optimizer.step()
    plan = plan_memory(model, batch=(inputs, targets), loss=loss, batch_size=8, precision="32-true")
    assert plan.peak == kept + live.peak
    stored = sum(tensor.nbytes for tensor in model.state_dict().values())  # a BatchNorm's buffers
    assert count_bytes(step.kept()["parameters"]) == stored


def test_a_plan_is_of_training_whatever_the_model_did_before():
    net = nn.Sequential(nn.Linear(6, 64), nn.Dropout(), nn.Linear(64, 4))
    batch, state = (torch.randn(8, 6), labels()), torch.get_rng_state()
    plans = [
        measure_memory(net.train(mode), batch, cross_entropy, precision="32-true").at(100)
        for mode in (True, False)
    ]
    assert plans[0] == plans[1] and not net.training
    assert torch.equal(torch.get_rng_state(), state)


def test_a_further_example_takes_the_bytes_that_it_says():
    batch = torch.randn(8, 6), labels()
    measured = measure_memory(MLP(6, 64, 4), batch, cross_entropy, precision="32-true")
    few, many = measured.at(100_000), measured.at(101_000)
    assert many.peak - few.peak == pytest.approx(1000 * few.bytes_per_example, rel=1e-3)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_the_formula_and_the_measurement_of_a_gpt_agree(precision):
    torch.manual_seed(0)
    tokens = torch.randint(300, (8, 16))
    measured = measure_memory(GPT(CONFIG), (tokens, tokens), cross_entropy, precision=precision)
    for batch in (8, 64):
        planned = plan_gpt(CONFIG, batch_size=batch, precision=precision, update_loop="for-loop")
        assert measured.at(batch).peak == pytest.approx(planned.peak, rel=0.02)


@pytest.mark.parametrize("name", ["MLP", "CNN", "GPT"])
@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-true"])
def test_the_categories_are_those_that_train_counts(name, precision):
    make, inputs, targets, _ = MODELS[name]
    torch.manual_seed(0)
    model = make()
    plan = measure_memory(model, (inputs, targets), cross_entropy, precision=precision).at(8)
    data = Examples(inputs, targets)
    memory = train(
        model, data, precision=precision, steps=3, batch_size=8, device="cpu", progress=False
    ).memory
    buffers = sum(b.nbytes for b in model.buffers())
    assert plan.kept["parameters"] == pytest.approx(memory.parameters, abs=buffers)
    assert plan.gradients == memory.gradients
    # `train` keeps its inputs as the batch, and so they are among what is saved.
    own = plan.kept["batch"] + 64
    assert abs(plan.saved_for_backward - memory.saved_for_backward) <= own


@pytest.mark.parametrize("optimizer", BUILT_BY_TORCH)
def test_every_optimizer_has_its_state(optimizer):
    model = MLP(6, 16, 16, 4)
    batch = torch.randn(8, 6), labels()
    plan = measure_memory(model, batch, cross_entropy, precision="32-true", optimizer=optimizer)
    own = train(
        model, Examples(*batch), precision="32-true", steps=2, optimizer=optimizer, device="cpu"
    )
    assert plan.at(8).kept["optimizer state"] == own.memory.optimizer_state


@pytest.mark.parametrize("cure", CURES)
def test_every_cure_has_its_copies(cure):
    precision = Precision(cure, torch.bfloat16, torch.bfloat16, weight_update=cure)
    model = MLP(6, 16, 4)
    batch = torch.randn(8, 6), labels()
    plan = measure_memory(model, batch, cross_entropy, precision=precision).at(8)
    count = sum(p.numel() for p in model.parameters())
    assert plan.kept["master copies"] == CURES[cure].kept_bytes * count


def test_the_model_stays_as_it_is():
    model = images()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    measure_memory(model, (torch.randn(8, 3, 16, 16), labels()), cross_entropy, precision="32-true")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert model.training
    torch.set_rng_state(state)


def test_the_largest_batch_fits_and_one_more_does_not():
    batch = torch.randn(8, 6), labels()
    measured = measure_memory(MLP(6, 64, 4), batch, cross_entropy, precision="32-true")
    budget = measured.at(100).peak
    largest = measured.largest_batch(budget)
    assert largest >= 100
    assert measured.at(largest).peak <= budget < measured.at(largest + 1).peak
    assert measured.largest_batch(10) == 0
    assert all(measured.at(1).fits_on().values())


def test_a_module_without_a_batch_is_told_what_is_missing():
    with pytest.raises(TypeError, match=r"has no formula and is measured.*batch, loss"):
        plan_memory(images(), batch_size=8, precision="32-true")
    with pytest.raises(TypeError, match="a dict, expected a GPTConfig, a Decoder"):
        plan_memory({}, batch_size=8, precision="32-true")
    with pytest.raises(TypeError, match=r"batch: a Tensor, expected a pair"):
        plan_memory(
            images(), batch=torch.ones(2), loss=cross_entropy, batch_size=8, precision="32-true"
        )


def test_a_gpt_needs_no_batch():
    plan = plan_memory(GPT(CONFIG), batch_size=8, precision="bf16-mixed")
    assert plan.peak == plan_gpt(CONFIG, batch_size=8, precision="bf16-mixed").peak


@pytest.mark.parametrize("sizes", [(4, 4), (0, 4), (8, 4)])
def test_bad_sizes_are_refused(sizes):
    batch = torch.randn(8, 6), labels()
    with pytest.raises(ValueError, match=r"expected two batch sizes, the smaller one first"):
        measure_memory(MLP(6, 4), batch, cross_entropy, precision="32-true", sizes=sizes)


def test_the_table_says_how_it_is_known():
    batch = torch.randn(8, 6), labels()
    measured = measure_memory(MLP(6, 64, 4), batch, cross_entropy, precision="32-true")
    assert measured.at(8).table().caption == "A batch of 8, measured"
    expected = "A batch of 100, extrapolated from batches of 4 and 8"
    assert measured.at(100).table().caption == expected
