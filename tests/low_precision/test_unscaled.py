"""Eight bits without a scale: the loss falls, and the layers between stand still."""

import pytest
import torch

from mpbook.data import standard_library
from mpbook.low_precision import QuantizedLinear
from mpbook.models import GPT, GPTConfig
from mpbook.training import train
from mpbook.training.settings import cross_entropy


@pytest.mark.parametrize("seed", range(3))
def test_without_scales_most_of_each_gradient_is_zero_and_the_loss_falls_all_the_same(seed):
    text = standard_library(sequence_length=32, megabytes=0.5)
    torch.manual_seed(seed)
    run = train(
        GPT(GPTConfig(layers=1, width=32, context=32)),
        text,
        precision="unscaled_e4m3-mixed",
        seed=seed,
        steps=60,
        batch_size=128,
        learning_rate=5e-3,
        warmup_steps=10,
        device="cpu",
        progress=False,
    )
    inputs, targets = next(iter(text.validation(128)))
    with torch.autocast("cpu", torch.bfloat16):
        logits = run.model(inputs)
    cross_entropy(logits.float(), targets).backward()
    layers = [m for m in run.model.modules() if isinstance(m, QuantizedLinear)]
    zeros = [(layer.weight.grad == 0).float().mean().item() for layer in layers]
    assert run.loss < 0.75 * run.losses[0]
    assert len(layers) == 4 and min(zeros) > 0.5
