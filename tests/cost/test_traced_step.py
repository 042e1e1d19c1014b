"""The work of a step of any module, against the formula of a GPT and against torch's count."""

import pytest
import torch
from torch import nn

from mpbook.cost.measure import count_flops
from mpbook.cost.roofline import STATED, gpt_step
from mpbook.cost.traced_step import module_step
from mpbook.models import GPT, MLP, GPTConfig
from mpbook.training.settings import cross_entropy

CONFIG = GPTConfig(vocabulary=300, context=16, layers=3, width=32)


def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randint(300, (8, 16), generator=torch.Generator().manual_seed(0))
    return x, x


def mlp_batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(8, 16), torch.arange(8) % 4


@pytest.mark.parametrize(
    ("precision", "format"), [("32-true", "float32"), ("bf16-mixed", "bfloat16")]
)
def test_a_gpts_products_are_those_of_the_formula(precision, format):
    work = module_step(GPT(CONFIG), tokens(), cross_entropy, batch_size=8, precision=precision)
    planned = {part.name: part for part in gpt_step(CONFIG, batch=8, format=format)}
    linear = [w for w in work if w.product and "attention" not in w.name and "bmm" not in w.name]
    assert sum(w.flops for w in linear) == planned["linear layers"].flops + planned["logits"].flops
    moved = planned["linear layers"].bytes + planned["logits"].bytes
    assert sum(w.bytes for w in linear) == pytest.approx(moved, rel=0.05)  # and the biases
    if precision == "bf16-mixed":
        casts = next(w for w in work if w.name.startswith("casts"))
        assert casts.bytes == pytest.approx(planned["casts"].bytes, rel=0.1)


def test_the_operations_are_those_that_torch_counts():
    model, (x, y) = MLP(16, 32, 4), mlp_batch()
    work = module_step(model, (x, y), cross_entropy, batch_size=8, precision="32-true")
    counted = count_flops(lambda: cross_entropy(model(x), y).backward())
    assert sum(w.flops for w in work) == counted


def test_forward_and_backward_of_an_operator_are_one_part():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 4))
    batch = torch.ones(4, 1, 4, 4), torch.arange(4)
    work = module_step(model, batch, cross_entropy, batch_size=4, precision="32-true")
    found = {part.name: part.flops for part in work}
    assert not [name for name in found if name.endswith("_backward")]
    # Forward, and backward the gradient of the weight; the input needs none.
    assert found["convolution"] == 2 * (2 * 4 * 2 * 2 * 2 * 9)


@pytest.mark.parametrize("make", [lambda: MLP(16, 32, 4), lambda: nn.Linear(16, 4)])
def test_other_sizes_lie_on_the_line(make):
    model = make()
    told, seen = (
        module_step(
            model, mlp_batch(), cross_entropy, batch_size=32, precision="32-true", sizes=sizes
        )
        for sizes in ((2, 4), (16, 32))
    )
    assert {w.name.removesuffix(" (extrapolated)"): (w.flops, w.bytes) for w in told} == {
        w.name: (w.flops, w.bytes) for w in seen
    }
    assert all(w.name.endswith(" (extrapolated)") for w in told)


def test_a_roof_says_what_a_step_takes():
    work = module_step(
        MLP(16, 32, 4), mlp_batch(), cross_entropy, batch_size=8, precision="32-true"
    )
    roof = next(iter(STATED.values()))
    assert sum(roof.seconds(part, "float32") for part in work) > 0
    assert all(part.bytes > 0 for part in work)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="expected at least 1, and two sizes"):
        module_step(
            MLP(16, 4), mlp_batch(), cross_entropy, batch_size=8, precision="32-true", sizes=(4, 4)
        )
