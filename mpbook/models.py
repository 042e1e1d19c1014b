"""The models that the chapters train: two MLPs, a small CNN, and a GPT up to GPT-2's size.

They are plain PyTorch: no dtype is written anywhere in them, because the dtype is what the
chapters change from outside.  Weights are drawn from torch's global generator, so seed it (or let
`mpbook.training.train` do so) before you build one.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


class MLP(nn.Sequential):
    """Linear layers with ReLU between them, He-initialised.

    Args:
        sizes: features of the input, of each hidden layer and of the output.

    Shape: (batch, sizes[0]) to (batch, sizes[-1]).

    Raises:
        ValueError: fewer than two sizes.
    """

    def __init__(self, *sizes: int):
        if len(sizes) < 2:
            raise ValueError(f"sizes={sizes}: expected the features of input and output at least")
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(sizes):
            linear = nn.Linear(inputs, outputs)
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.ReLU()]
        super().__init__(*layers[:-1])


class ResidualMLP(nn.Sequential):
    """Residual blocks without a norm between them, whose activations outgrow float16.

    Each block adds a He-initialised linear layer of the ReLU of its input, and so multiplies the
    activations by about the square root of 2.

    Args:
        depth: how many blocks; 40 pass float16's largest number.
        width: features of each block.
        inputs: features of the input.
        classes: how many to tell apart.

    Shape: (batch, inputs) to (batch, classes).

    Raises:
        ValueError: a size below 1.
    """

    def __init__(self, *, depth: int = 40, width: int = 128, inputs: int = 64, classes: int = 10):
        sizes = {"depth": depth, "width": width, "inputs": inputs, "classes": classes}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name}={size}: expected 1 or more")
        blocks = [_ResidualLayer(width) for _ in range(depth)]
        ends = nn.LayerNorm(width), nn.Linear(width, classes)
        super().__init__(nn.Linear(inputs, width), *blocks, *ends)


class _ResidualLayer(nn.Module):
    """x + W relu(x)."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = MLP(width, width)[0]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x.relu())


class CNN(nn.Sequential):
    """Two convolutions and a linear layer, for small one-channel images.

    Args:
        image_size: height and width, divisible by 4.
        channels: of the first convolution; the second has twice as many.
        classes: how many to tell apart.

    Shape: (batch, 1, image_size, image_size) to (batch, classes).

    Raises:
        ValueError: an image size that two poolings do not divide, or nothing left after them.
    """

    def __init__(self, *, image_size: int = 8, channels: int = 32, classes: int = 10):
        if image_size < 4 or image_size % 4:
            raise ValueError(f"image_size={image_size}: expected a multiple of 4, at least 4")
        super().__init__(
            nn.Conv2d(1, channels, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(channels, 2 * channels, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(2 * channels * (image_size // 4) ** 2, classes),
        )


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT.

    Raises:
        ValueError: a width that the heads do not divide, or a size below 1.
    """

    vocabulary: int = 256
    context: int = 64
    layers: int = 2
    heads: int = 4
    width: int = 64
    bias: bool = True

    def __post_init__(self) -> None:
        for name in ("vocabulary", "context", "layers", "heads", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if self.width % self.heads:
            raise ValueError(f"width={self.width}: expected a multiple of heads={self.heads}")


GPT2_124M = GPTConfig(vocabulary=50257, context=1024, layers=12, heads=12, width=768)
"""The smallest GPT-2: 124,439,808 parameters."""


class GPT(nn.Module):
    """A decoder-only transformer with GPT-2's architecture and initialisation.

    Learned positions, LayerNorm before each part, GELU, and one matrix shared by the embedding and
    the output.  Source: Radford et al. 2019, and the initialisation of its released code: normal
    with standard deviation 0.02, divided by sqrt(2 layers) where a block joins the residual.

    Shape: int64 (batch, time) to logits (batch, time, vocabulary), time at most the context.
    """

    def __init__(self, config: GPTConfig | None = None):
        super().__init__()
        self.config = config = config or GPTConfig()
        self.token_embedding = nn.Embedding(config.vocabulary, config.width)
        self.position_embedding = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.final_norm = nn.LayerNorm(config.width, bias=config.bias)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        self.head.weight = self.token_embedding.weight
        for name, parameter in self.named_parameters():
            _initialise(name, parameter, config)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits for the token after each token."""
        time = tokens.shape[1]
        if time > self.config.context:
            raise ValueError(f"tokens: {time} a sequence, expected at most {self.config.context}")
        positions = torch.arange(time, device=tokens.device)
        x = self.token_embedding(tokens) + self.position_embedding(positions)
        for block in self.blocks:
            x = block(x)
        return self.head(self.final_norm(x))


class Block(nn.Module):
    """Attention and a two-layer MLP, each added to the residual stream after its LayerNorm."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width, bias=config.bias)
        self.attention = Attention(config)
        self.mlp_norm = nn.LayerNorm(config.width, bias=config.bias)
        self.expand = nn.Linear(config.width, 4 * config.width, bias=config.bias)
        self.contract = nn.Linear(4 * config.width, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, time, width) to the same."""
        x = x + self.attention(self.attention_norm(x))
        hidden = functional.gelu(self.expand(self.mlp_norm(x)), approximate="tanh")
        return x + self.contract(hidden)


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.heads = config.heads
        self.query_key_value = nn.Linear(config.width, 3 * config.width, bias=config.bias)
        self.project = nn.Linear(config.width, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, time, width) to the same."""
        batch, time, width = x.shape
        shape = (batch, time, 3, self.heads, width // self.heads)
        query, key, value = self.query_key_value(x).view(shape).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.project(mixed.transpose(1, 2).reshape(batch, time, width))


def _initialise(name: str, parameter: nn.Parameter, config: GPTConfig) -> None:
    if name.endswith("bias"):
        nn.init.zeros_(parameter)
    elif parameter.dim() == 2:
        joins_residual = name.endswith(("project.weight", "contract.weight"))
        scale = math.sqrt(2 * config.layers) if joins_residual else 1.0
        nn.init.normal_(parameter, std=0.02 / scale)


def parameter_count(model: nn.Module) -> int:
    """How many numbers the model learns, shared ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())
