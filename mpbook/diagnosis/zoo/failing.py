"""Models that fail in a format by themselves: the failures of this book, one of each."""

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
    sgd,
    to_itself,
    tokens,
)
from mpbook.diagnosis.zoo.healthy import Attention, transformer


def _large_weight() -> nn.Module:
    model = mlp()
    with torch.no_grad():
        model[2].weight[0, 0] = 7e4  # type: ignore[index]
    return model


def _scaled_up(factor: float, layers: int = 3) -> nn.Module:
    """A decoder whose activations grow past float16's largest number, as SDXL's VAE."""
    body = [nn.Conv2d(1, 4, 3, padding=1), *(nn.Conv2d(4, 4, 3, padding=1) for _ in range(layers))]
    with torch.no_grad():
        for layer in body:
            layer.weight.mul_(factor)
    return nn.Sequential(*body, nn.GroupNorm(1, 4), nn.Conv2d(4, 1, 1))


def by_its_squares(x: Tensor) -> Tensor:
    """A norm written by hand, whose squares overflow."""
    return x / ((x * x).sum(-1, keepdim=True) + 1e-8).sqrt()


def _by_its_largest(x: Tensor) -> Tensor:
    x = F.relu(x)
    x = torch.cat([x[:1] * 0, x[1:]])  # a row of zeros, as padding makes one
    return x / (x.amax(-1, keepdim=True) + 1e-8)


def _variance_in_one_pass(x: Tensor) -> Tensor:
    x = x + 40.0
    variance = (x * x).mean(-1, keepdim=True) - x.mean(-1, keepdim=True) * x.mean(-1, keepdim=True)
    return (x - x.mean(-1, keepdim=True)) / (variance + 1e-5).sqrt()


def _softmax_by_hand(x: Tensor) -> Tensor:
    powers = 2.0 ** (8 * x)
    powers = powers.to(x.dtype)
    return powers / powers.sum(-1, keepdim=True)


class Positions(nn.Module):
    """Sines of positions, in the dtype of the embedding."""

    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.table, self.head = nn.Linear(8, 16), nn.Linear(16, 5)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """Positions from 60000 on, which 16 bits tell apart by 32 or by 256."""
        y = self.table(x)
        positions = 60000 + torch.arange(x.shape[1])
        phases = positions.to(self.dtype or y.dtype)
        waves = torch.sin(phases[:, None].float() * torch.linspace(0.1, 1, 16))
        return self.head((y * waves).mean(1))


def _log_of_a_probability(output: Tensor, batch: Any) -> Tensor:
    return -torch.log(1 - torch.sigmoid(output * 30)).mean()


def _focal_with_eps(output: Tensor, batch: Any) -> Tensor:
    p = torch.sigmoid(output * 40)
    return -(torch.log(p + 1e-8) + torch.log(1 - p + 1e-8)).mean()


def _dice_of_a_large_image(output: Tensor, batch: Any) -> Tensor:
    p = torch.sigmoid(output)
    ones = torch.ones(p.numel(), 1, dtype=p.dtype)
    total = (p.reshape(1, -1) @ ones).squeeze()
    return 1 - 2 * total / (total + total + 1e-6)


def _times(factor: float) -> Any:
    return lambda output, batch: cross_entropy(output, batch) * factor


def _large_error(output: Tensor, batch: Any) -> Tensor:
    error = output - 1000 * batch[0]
    return (error * error).mean()


def _of_probabilities(output: Tensor, batch: Any) -> Tensor:
    return F.binary_cross_entropy(torch.sigmoid(output[:, 0]), (batch[1] % 2).float())


def _fourth_power(output: Tensor, batch: Any) -> Tensor:
    return (output * output * output * output).mean() * 1e-6


def _root_of_zero(output: Tensor, batch: Any) -> Tensor:
    return (output - output.detach()).abs().sqrt().mean()


def _logsumexp_by_hand(output: Tensor, batch: Any) -> Tensor:
    return torch.log(torch.exp(100 * output).sum(-1)).mean()


def _half_inside(x: Tensor) -> Tensor:
    return (x.half() * 3000).float() / 3000


class _Gram(nn.Module):
    """Products of all pairs of feature maps, summed over the pixels: a loss of style."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Of shape ``(batch, channels, channels)``, as a mean over the pixels."""
        flat = self.features(x).relu().flatten(2)
        return flat @ flat.mT / flat.shape[-1]


class _Cube(torch.autograd.Function):
    """A function of one's own, with a derivative of one's own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """The third power."""
        ctx.save_for_backward(x)
        return x * x * x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Three squares."""
        (x,) = ctx.saved_tensors
        return gradients[0] * 3 * x * x


def _cubed(x: Tensor) -> Tensor:
    y: Tensor = _Cube.apply(x)
    return y


def _outlier() -> Any:
    x, y = classes(8, 3, 8, 8)()
    return x * 3e5, y


FAILING: tuple[Case, ...] = (
    Case("inputs of 1e5", mlp, classes(16, 16, scale=1e5), cross_entropy, adam()),
    Case("a weight of 7e4", _large_weight, classes(16, 16), cross_entropy, adam()),
    Case("scores before their scale", lambda: nn.Sequential(nn.Linear(16, 16), Attention(
        first=False), nn.Linear(16, 16), nn.Flatten(), nn.Linear(64, 5)),
         classes(4, 4, 16, scale=400), cross_entropy, adam()),
    Case("activations that grow", lambda: _scaled_up(40.0), classes(2, 1, 8, 8), to_itself,
         adam()),
    Case("a norm by x * x", lambda: mlp(Lambda(by_its_squares)), classes(16, 16, scale=2000),
         cross_entropy, adam()),
    Case("eps of 1e-8 under a row of zeros", lambda: mlp(Lambda(_by_its_largest)),
         classes(16, 16), cross_entropy, adam()),
    Case("variance in one pass", lambda: mlp(Lambda(_variance_in_one_pass)), classes(16, 16),
         cross_entropy, adam()),
    Case("softmax by powers of two", lambda: mlp(Lambda(_softmax_by_hand)),
         classes(16, 16, scale=6), cross_entropy, adam()),
    Case("positions in 16 bits", lambda: Positions(None), classes(8, 64, 8), cross_entropy,
         adam()),
    Case("log of 1 - sigmoid", mlp, classes(16, 16), _log_of_a_probability, adam()),
    Case("log with an eps of 1e-8", mlp, classes(16, 16), _focal_with_eps, adam()),
    Case("a sum as a product with ones", lambda: nn.Conv2d(1, 1, 3, padding=1),
         lambda: (torch.rand(2, 1, 300, 300), torch.zeros(2)), _dice_of_a_large_image, adam()),
    Case("a mask of -1e9, filled", lambda: transformer(mask="-1e9"), tokens(4, 8),
         cross_entropy, adam()),
    Case("a loss times 1e-6", mlp, classes(16, 16), _times(1e-6), sgd(5e4)),
    Case("a loss times 1e-6, with Adam", mlp, classes(16, 16), _times(1e-6), adam()),
    Case("a loss times 1e6", mlp, classes(16, 16), _times(1e6), adam()),
    Case("contrast of long features", lambda: mlp(outputs=8), classes(16, 16, scale=60),
         contrast(0.01, normalised=False), adam()),
    Case("squared errors of 1e6", lambda: mlp(outputs=16), classes(16, 16), _large_error, adam()),
    Case("binary_cross_entropy", mlp, classes(16, 16), _of_probabilities, adam()),
    Case("a fourth power by products", mlp, classes(16, 16, scale=100), _fourth_power, adam()),
    Case("Gram matrices of large images", _Gram, lambda: (3 * torch.randn(1, 3, 200, 200),
         torch.eye(8)), lambda output, batch: F.mse_loss(output[0], batch[1]), adam()),
    Case("a cube with a backward pass of its own", lambda: mlp(Lambda(_cubed)),
         classes(16, 16, scale=100), lambda output, batch: cross_entropy(output / 1e5, batch),
         adam()),
    Case("half() inside", lambda: mlp(Lambda(_half_inside)), classes(16, 16, scale=40),
         cross_entropy, adam()),
    Case("a batch norm's buffers", lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4),
         nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)), _outlier, cross_entropy),
    Case("a root of zero", mlp, classes(16, 16), _root_of_zero, adam()),
    Case("logsumexp by hand", mlp, classes(16, 16, scale=4), _logsumexp_by_hand, adam()),
    Case("a learning rate of 1e30", mlp, classes(16, 16), cross_entropy, sgd(1e30)),
)  # fmt: skip
