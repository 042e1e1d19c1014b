"""Models that look as if they failed and do not: the cures of the failures, and what is close."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mpbook.diagnosis.zoo.cases import (
    Case,
    Lambda,
    adam,
    classes,
    contrast,
    cross_entropy,
    mlp,
    tokens,
)
from mpbook.diagnosis.zoo.failing import Positions, by_its_squares
from mpbook.diagnosis.zoo.healthy import Attention, transformer


def _in_float32(function: Any) -> Any:
    def run(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return function(x.float())

    return run


def _by_its_norm(x: Tensor) -> Tensor:
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)


def _dice(output: Tensor, batch: Any) -> Tensor:
    p = torch.sigmoid(output)
    return 1 - 2 * (p * p).sum() / (p.sum() + p.sum() + 1e-6)


def _powers(x: Tensor) -> Tensor:
    return torch.exp(12 + x.tanh()) / 1e5


def _cumulated(x: Tensor) -> Tensor:
    return x.relu().cumsum(-1) / 32


def _exp_loss(output: Tensor, batch: Any) -> Tensor:
    return torch.log(torch.exp(10 * output).sum(-1)).mean()


def _tiny_part(output: Tensor, batch: Any) -> Tensor:
    return cross_entropy(output, batch) + 1e-9 * output.square().mean()


def _eps_in_float32(output: Tensor, batch: Any) -> Tensor:
    p = torch.softmax(output, -1)  # float32 under autocast
    return -torch.log(p + 1e-8).mean()


def _scaled_weight() -> nn.Module:
    model = mlp()
    with torch.no_grad():
        model[2].weight[0, 0] = 100.0  # type: ignore[index]
    return model


NEAR_MISSES: tuple[Case, ...] = (
    Case("inputs of 1e3", mlp, classes(16, 16, scale=1e3), cross_entropy, adam()),
    Case("a weight of 100", _scaled_weight, classes(16, 16), cross_entropy, adam()),
    Case("the scale before the scores", lambda: nn.Sequential(nn.Linear(16, 16), Attention(
        first=True), nn.Linear(16, 16), nn.Flatten(), nn.Linear(64, 5)),
         classes(4, 4, 16, scale=250), cross_entropy, adam()),
    Case("a norm by x * x in float32", lambda: mlp(Lambda(_in_float32(by_its_squares))),
         classes(16, 16, scale=2000), cross_entropy, adam()),
    Case("a norm by vector_norm", lambda: mlp(Lambda(_by_its_norm)),
         classes(16, 16, scale=2000), cross_entropy, adam()),
    Case("dice of a large image", lambda: nn.Conv2d(1, 1, 3, padding=1),
         lambda: (torch.rand(2, 1, 300, 300), torch.zeros(2)), _dice, adam()),
    Case("exp of 13", lambda: mlp(Lambda(_powers)), classes(16, 16), cross_entropy, adam()),
    Case("cumsum", lambda: mlp(Lambda(_cumulated)), classes(16, 16, scale=100), cross_entropy,
         adam()),
    Case("positions in float32", lambda: Positions(torch.float32), classes(8, 64, 8),
         cross_entropy, adam()),
    Case("logsumexp by hand, of 10", mlp, classes(16, 16), _exp_loss, adam()),
    Case("a small part of a loss", mlp, classes(16, 16), _tiny_part, adam()),
    Case("an eps of 1e-8 in float32", mlp, classes(16, 16), _eps_in_float32, adam()),
    Case("a mask of -1e9, added", lambda: transformer(mask="added"), tokens(4, 8),
         cross_entropy, adam()),
    Case("contrast of short features", lambda: mlp(outputs=8), classes(16, 16),
         contrast(0.5, normalised=False), adam()),
    Case("pow in float32", mlp, classes(16, 16, scale=30),
         lambda o, _: o.pow(4).mean() * 1e-6, adam()),
    Case("two binades below overflow", lambda: mlp(Lambda(lambda x: x * 3000 / 3000)),
         classes(16, 16, scale=2), cross_entropy, adam()),
    Case("mse of errors of 100", lambda: mlp(outputs=16), classes(16, 16),
         lambda o, b: F.mse_loss(o, 100 * b[0]), adam()),
)  # fmt: skip
