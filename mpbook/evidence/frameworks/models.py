"""A Llama of 80,000 random weights, on disk as Hugging Face keeps one, and data for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

VOCABULARY, LENGTH = 128, 16


def saved_llama(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write one, in this dtype, and return its folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=LENGTH,
    )  # fmt: skip
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder / "llama")
    return folder / "llama"


def token_data(examples: int = 64) -> list[dict[str, torch.Tensor]]:
    """Random token ids, which are their own labels."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(VOCABULARY, (examples, LENGTH), generator=generator)
    return [{"input_ids": row, "labels": row} for row in ids]


def loaded_llama(folder: Path, **options: Any) -> Any:
    """What `from_pretrained` makes of the folder."""
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(folder, **options)
