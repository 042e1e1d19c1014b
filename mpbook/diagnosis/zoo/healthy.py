"""Models that train in both formats: one of each kind that people bring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

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
from mpbook.models import GPT, GPTConfig


def _cnn(norm: Any = nn.BatchNorm2d) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), norm(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1), norm(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip


class RMSNorm(nn.Module):
    """As Llama has it: in float32, then cast back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """``x`` over its root mean square."""
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * wide.to(x.dtype)


class LlamaBlock(nn.Module):
    """Attention with rotary positions in float32, and a gated MLP."""

    def __init__(self, width: int = 32, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = RMSNorm(width), RMSNorm(width)
        self.qkv, self.out = (nn.Linear(width, n, bias=False) for n in (3 * width, width))
        self.gate, self.up = (nn.Linear(width, 2 * width, bias=False) for _ in range(2))
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """One block."""
        batch, time, width = x.shape
        q, k, v = self.qkv(self.first(x)).view(batch, time, 3, self.heads, -1).unbind(2)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        angles = torch.arange(time)[:, None] / 100.0 ** torch.linspace(0, 1, q.shape[-1] // 2)
        cos, sin = (f(torch.cat([angles, angles], -1)).to(q.dtype) for f in (torch.cos, torch.sin))
        q, k = (t * cos + _half_turned(t) * sin for t in (q, k))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, time, width))
        y = self.second(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def _half_turned(x: Tensor) -> Tensor:
    left, right = x.chunk(2, -1)
    return torch.cat([-right, left], -1)


class Attention(nn.Module):
    """Attention written by hand; the scale comes before the product or after it."""

    def __init__(self, width: int = 16, *, first: bool = True, mask: str = "") -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.first, self.mask = first, mask

    def forward(self, x: Tensor) -> Tensor:
        """Every row attends to those before it, if a mask is asked for."""
        q, k, v = self.qkv(x).chunk(3, -1)
        scale = q.shape[-1] ** -0.5
        scores = (q * scale) @ k.mT if self.first else (q @ k.mT) * scale
        above = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        if self.mask == "inf":
            scores = scores.masked_fill(above, float("-inf"))
        elif self.mask == "-1e9":
            scores = scores.masked_fill(above, -1e9)
        elif self.mask == "added":
            scores = scores + above.to(scores.dtype) * -1e9
        elif self.mask == "finfo":
            scores = scores.masked_fill(above, torch.finfo(scores.dtype).min)
        return x + self.out(scores.softmax(-1) @ v)


def transformer(**options: Any) -> nn.Module:
    """Embedding, attention, head."""
    return nn.Sequential(
        nn.Embedding(32, 16), Attention(**options), nn.LayerNorm(16), nn.Linear(16, 32)
    )


class Experts(nn.Module):
    """Two of four experts for each row, chosen by a router."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.router = nn.Linear(width, 4)
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Weighted by the router's probabilities."""
        weights, chosen = self.router(x).softmax(-1).topk(2, dim=-1)
        result = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            share = (weights * (chosen == number)).sum(-1, keepdim=True)
            result = result + share * expert(x)
        return result


class VAE(nn.Module):
    """Reconstruction and divergence in one tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(16, 8), nn.Linear(4, 16)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The mean alone is decoded, so that nothing is random."""
        mean, log_variance = self.encoder(x).chunk(2, -1)
        divergence = -0.5 * (1 + log_variance - mean.pow(2) - log_variance.exp()).mean()
        return self.decoder(mean), divergence


class UNet(nn.Module):
    """Down, up, and a bridge between."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.middle = nn.Conv2d(1, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.up = nn.GroupNorm(2, 4), nn.ConvTranspose2d(4, 4, 2, 2)
        self.last = nn.Conv2d(5, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """A picture of the same size."""
        y = F.silu(self.norm(self.middle(F.silu(self.down(x)))))
        return self.last(torch.cat([x, self.up(y)], 1))


class Recurrent(nn.Module):
    """An LSTM or a GRU, and a head on its last state."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.cells, self.head = kind(16, 16, batch_first=True), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Classes of a sequence."""
        return self.head(self.cells(x)[0][:, -1])


class LoRA(nn.Module):
    """A frozen layer and a product of two thin ones."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.base = nn.Linear(width, width).requires_grad_(False)
        self.down, self.up = nn.Linear(width, 2, bias=False), nn.Linear(2, width, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Base and adapter."""
        return self.base(x) + self.up(self.down(x))


@dataclass
class Answer:
    """An output of one's own."""

    logits: Tensor
    loss: Tensor


class WithLoss(nn.Module):
    """Takes a mapping, returns a dataclass with its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()

    def forward(self, inputs: Tensor, labels: Tensor) -> Answer:
        """Logits and cross-entropy."""
        logits = self.body(inputs)
        return Answer(logits, F.cross_entropy(logits, labels))


class Spectral(nn.Module):
    """A Fourier transform in float32, with complex weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(9, dtype=torch.complex64))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """A filter, then a linear layer."""
        return self.head(torch.fft.irfft(torch.fft.rfft(x.float()) * self.weight, n=16))


class Checkpointed(nn.Module):
    """A layer whose activations are computed again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Classes."""
        again: Any = checkpoint(lambda y: torch.tanh(self.body(y)), x, use_reentrant=False)
        return self.head(again)


def _tied() -> nn.Module:
    table = nn.Embedding(32, 16)
    head = nn.Linear(16, 32, bias=False)
    head.weight = table.weight
    return nn.Sequential(table, nn.LayerNorm(16), head)


def _keyed() -> dict[str, Tensor]:
    inputs, labels = classes(8, 16)()
    return {"inputs": inputs, "labels": labels}


def _of_vae(output: Any, batch: Any) -> Tensor:
    return F.mse_loss(output[0], batch[0]) + 0.1 * output[1]


def _binary(output: Tensor, batch: Any) -> Tensor:
    return F.binary_cross_entropy_with_logits(output[:, 0], (batch[1] % 2).float())


_GPT = GPTConfig(vocabulary=32, context=8, layers=2, heads=2, width=16)

HEALTHY: tuple[Case, ...] = (
    Case("MLP", mlp, classes(16, 16), cross_entropy),
    Case("MLP with dropout", lambda: mlp(nn.ReLU(), nn.Dropout(0.1)), classes(16, 16),
         cross_entropy, adam()),
    Case("CNN with batch norm", _cnn, classes(8, 3, 8, 8), cross_entropy),
    Case("CNN with group norm", lambda: _cnn(lambda n: nn.GroupNorm(2, n)), classes(8, 3, 8, 8),
         cross_entropy),
    Case("GPT", lambda: GPT(_GPT), tokens(4, 8), cross_entropy, adam()),
    Case("Llama", lambda: nn.Sequential(nn.Embedding(32, 32), LlamaBlock(), RMSNorm(32),
                                        nn.Linear(32, 32)), tokens(4, 8), cross_entropy, adam()),
    Case("attention with a mask of -inf", lambda: transformer(mask="inf"), tokens(4, 8),
         cross_entropy, adam()),
    Case("attention with a mask of finfo.min", lambda: transformer(mask="finfo"), tokens(4, 8),
         cross_entropy, adam()),
    Case("encoder layer", lambda: nn.Sequential(nn.Embedding(32, 16), nn.TransformerEncoderLayer(
        16, 2, 32, dropout=0.0, batch_first=True), nn.Linear(16, 32)), tokens(4, 8),
         cross_entropy, adam()),
    Case("mixture of experts", lambda: nn.Sequential(nn.Linear(16, 16), Experts(),
                                                     nn.Linear(16, 5)), classes(16, 16),
         cross_entropy),
    Case("VAE", VAE, classes(16, 16), _of_vae, adam()),
    Case("UNet", UNet, classes(2, 1, 8, 8), to_itself),
    Case("LSTM", lambda: Recurrent(nn.LSTM), classes(8, 6, 16), cross_entropy, adam()),
    Case("GRU", lambda: Recurrent(nn.GRU), classes(8, 6, 16), cross_entropy, adam()),
    Case("LoRA", lambda: mlp(nn.ReLU(), LoRA(32)), classes(16, 16), cross_entropy, adam()),
    Case("weight norm", lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(
        nn.Linear(16, 16)), nn.ReLU(), nn.Linear(16, 5)), classes(16, 16), cross_entropy),
    Case("dict in, dataclass out", WithLoss, _keyed, None),
    Case("Fourier filter with complex weights", Spectral, classes(16, 16), cross_entropy, adam()),
    Case("sparse embedding", lambda: nn.Sequential(nn.Embedding(32, 16, sparse=True),
                                                   nn.Linear(16, 32)), tokens(4, 8),
         cross_entropy, lambda p: torch.optim.SGD(p, lr=0.1)),
    Case("checkpointing", Checkpointed, classes(16, 16), cross_entropy, adam()),
    Case("tied weights", _tied, tokens(4, 8), cross_entropy, adam()),
    Case("binary cross-entropy with logits", mlp, classes(16, 16), _binary, adam()),
    Case("contrast of normalised features", lambda: mlp(outputs=8), classes(16, 16),
         contrast(0.07, normalised=True), adam()),
    Case("reconstruction", lambda: mlp(nn.Tanh(), outputs=16), classes(16, 16), to_itself, sgd()),
    Case("sigmoids in a stack", lambda: mlp(nn.Sigmoid(), nn.Linear(32, 32), nn.Sigmoid()),
         classes(16, 16), cross_entropy, adam()),
    Case("a function as a layer", lambda: mlp(Lambda(torch.sin)), classes(16, 16), cross_entropy),
)  # fmt: skip
"""Whatever a loss scale is needed for is in `mpbook.diagnosis.zoo.failing`."""
