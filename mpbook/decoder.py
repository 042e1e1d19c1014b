"""`Decoder`: a language model as they are built today, in plain PyTorch.

What has changed since GPT-2 (`mpbook.models.GPT`): RMSNorm instead of LayerNorm, rotary positions
instead of learned ones, several heads of queries that share one of keys and values, a gated MLP, an
output matrix of its own, no biases, and in some a choice of experts instead of one MLP.  The shape
of Llama and, with experts, of Mixtral.  No dtype is written in it, as in all models of this book.

Sources: Touvron et al. 2023 (Llama 2), Grattafiori et al. 2024 (Llama 3), Jiang et al. 2024
(Mixtral).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class DecoderConfig:
    """The shape of a `Decoder`.

    Args:
        vocabulary, context, layers, heads, width: as for `mpbook.models.GPTConfig`.
        key_value_heads: heads of keys and values, each shared by as many of queries.
        hidden: width of the gated MLP, or of one expert.
        tied: whether embedding and output share one matrix.
        experts: MLPs to choose from; 1 for one that all tokens take.
        experts_per_token: of them, each token's.

    Raises:
        ValueError: a size below 1, or sizes that do not divide.
    """

    vocabulary: int = 256
    context: int = 64
    layers: int = 2
    heads: int = 4
    width: int = 64
    key_value_heads: int = 2
    hidden: int = 176
    tied: bool = False
    experts: int = 1
    experts_per_token: int = 1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not self.tied and value < 1:
                raise ValueError(f"{name}={value}: expected at least 1")
        if self.width % (2 * self.heads):
            raise ValueError(f"width={self.width}: expected a multiple of 2 x heads={self.heads}")
        if self.heads % self.key_value_heads:
            raise ValueError(
                f"key_value_heads={self.key_value_heads}: expected a divisor of heads={self.heads}"
            )
        if self.experts_per_token > self.experts:
            raise ValueError(
                f"experts_per_token={self.experts_per_token}: expected at most {self.experts}"
            )

    @property
    def head_width(self) -> int:
        """Numbers in a head."""
        return self.width // self.heads


LLAMA2_7B = DecoderConfig(32000, 4096, 32, 32, 4096, key_value_heads=32, hidden=11008)
LLAMA3_8B = DecoderConfig(128256, 8192, 32, 32, 4096, key_value_heads=8, hidden=14336)
MIXTRAL_8X7B = DecoderConfig(
    32000, 32768, 32, 32, 4096, key_value_heads=8, hidden=14336, experts=8, experts_per_token=2
)


class Decoder(nn.Module):
    """A decoder-only transformer with RMSNorm, rotary positions and gated MLPs.

    Shape: int64 (batch, time) to logits (batch, time, vocabulary), time at most the context.
    """

    def __init__(self, config: DecoderConfig | None = None):
        super().__init__()
        self.config = config = config or DecoderConfig()
        self.token_embedding = nn.Embedding(config.vocabulary, config.width)
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.layers))
        self.final_norm = RMSNorm(config.width)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
        if config.tied:
            self.head.weight = self.token_embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits for the token after each token."""
        time = tokens.shape[1]
        if time > self.config.context:
            raise ValueError(f"tokens: {time} a sequence, expected at most {self.config.context}")
        x = self.token_embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.final_norm(x))


class RMSNorm(nn.Module):
    """Each vector divided by the root of its mean square, times a learned scale."""

    def __init__(self, width: int, eps: float = 1e-5):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        """Shape (..., width) to the same."""
        return x * (x.pow(2).mean(-1, keepdim=True) + self.eps).rsqrt() * self.weight


class DecoderBlock(nn.Module):
    """Attention and an MLP, or experts, each added to the residual stream after its norm."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.attention_norm, self.mlp_norm = RMSNorm(config.width), RMSNorm(config.width)
        self.attention = GroupedAttention(config)
        self.mlp: nn.Module = Experts(config) if config.experts > 1 else GatedMLP(config)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, time, width) to the same."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class GroupedAttention(nn.Module):
    """Causal self-attention whose heads of queries share keys and values in groups."""

    cosines: Tensor
    sines: Tensor

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config, width = config, config.head_width
        self.query = nn.Linear(config.width, config.heads * width, bias=False)
        self.key = nn.Linear(config.width, config.key_value_heads * width, bias=False)
        self.value = nn.Linear(config.width, config.key_value_heads * width, bias=False)
        self.project = nn.Linear(config.width, config.width, bias=False)
        rates = 1e4 ** -(torch.arange(0, width, 2) / width)
        angles = torch.outer(torch.arange(config.context), torch.cat([rates, rates]))
        self.register_buffer("cosines", angles.cos(), persistent=False)
        self.register_buffer("sines", angles.sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, time, width) to the same."""
        batch, time, _ = x.shape
        heads = (batch, time, -1, self.config.head_width)
        query, key, value = (
            part(x).view(heads).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        cosines, sines = self.cosines[:time].to(query.dtype), self.sines[:time].to(query.dtype)
        query, key = (part * cosines + _turned(part) * sines for part in (query, key))
        mixed = functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=True
        )
        return self.project(mixed.transpose(1, 2).flatten(2))


def _turned(x: Tensor) -> Tensor:
    """Each pair of numbers, turned by a right angle."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


class GatedMLP(nn.Module):
    """Two matrices side by side, one of them through SiLU, and one back."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.gate = nn.Linear(config.width, config.hidden, bias=False)
        self.up = nn.Linear(config.width, config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (..., width) to the same."""
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class Experts(nn.Module):
    """Several MLPs, of which a router gives each token the few that score highest."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.per_token = config.experts_per_token
        self.router = nn.Linear(config.width, config.experts, bias=False)
        self.experts = nn.ModuleList(GatedMLP(config) for _ in range(config.experts))

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, time, width) to the same."""
        flat = x.flatten(0, 1)
        scores, chosen = self.router(flat).float().topk(self.per_token)
        shares = scores.softmax(-1)
        result = torch.zeros_like(flat)
        for index, expert in enumerate(self.experts):
            rows, slots = (chosen == index).nonzero(as_tuple=True)
            part = expert(flat[rows]) * shares[rows, slots, None].to(flat.dtype)
            result = result.index_add(0, rows, part.to(result.dtype))
        return result.view_as(x)
