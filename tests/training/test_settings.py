"""Settings: what the named ones are, the learning rate, and how they are written down."""

import math
from dataclasses import fields
from functools import partial

import pytest
import torch
from torch import nn
from training_cases import model

from mpbook.training.settings import Settings, cross_entropy


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
    optimizer = Settings(steps=1, **options).make_optimizer(model())
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


@pytest.mark.parametrize("shape", [(), (5,), (2, 5)])
def test_cross_entropy_is_the_mean_over_all_positions(shape):
    logits, targets = torch.randn(*shape, 7), torch.randint(7, shape)
    pairs = zip(logits.view(-1, 7), targets.view(-1), strict=True)
    each = [-row.log_softmax(-1)[target] for row, target in pairs]
    torch.testing.assert_close(cross_entropy(logits, targets), torch.stack(each).mean())


def test_the_config_names_every_setting_and_functions_that_have_no_name():
    loss = partial(nn.functional.cross_entropy, label_smoothing=0.1)
    settings = Settings(steps=1, loss=loss).as_dict()
    assert set(settings) == {field.name for field in fields(Settings)}
    expected = "partial(torch.nn.functional.cross_entropy, label_smoothing=0.1)"
    assert settings["loss"] == expected and settings["momentum"] is None
