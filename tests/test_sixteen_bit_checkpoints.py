"""What the book says of files with 16-bit weights: their size, and what loading makes of them."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from mpbook.models import GPT, MLP, GPTConfig, parameter_count

BF16 = torch.bfloat16


def bytes_each(state: dict, model: nn.Module) -> float:
    file = io.BytesIO()
    torch.save(state, file)
    return file.tell() / parameter_count(model)


def trained(dtype: torch.dtype, *, autocast: bool) -> tuple[nn.Module, torch.optim.AdamW]:
    model = MLP(256, 256, 256).to(dtype)
    optimizer = torch.optim.AdamW(model.parameters())
    with torch.autocast("cpu", dtype=BF16, enabled=autocast):
        model(torch.ones(2, 256, dtype=dtype)).sum().backward()
    optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (BF16, 2)])
def test_autocast_changes_neither_the_dtypes_nor_the_files(
    dtype: torch.dtype, size: int, autocast: bool
) -> None:
    model, optimizer = trained(dtype, autocast=autocast)
    state = [t for s in optimizer.state.values() for t in s.values() if t.dim()]
    assert {tensor.dtype for tensor in (*model.parameters(), *state)} == {dtype}
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {dtype}
    assert bytes_each(model.state_dict(), model) == pytest.approx(size, rel=0.1)
    assert bytes_each(optimizer.state_dict(), model) == pytest.approx(2 * size, rel=0.1)


def test_a_model_takes_its_own_dtype_from_a_file_unless_it_is_told_to_assign() -> None:
    saved = MLP(4, 4).to(BF16).state_dict()
    model = MLP(4, 4)
    model.load_state_dict(saved)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    model.load_state_dict(saved, assign=True)
    assert {p.dtype for p in model.parameters()} == {BF16}


def test_a_cast_copy_leaves_the_model_that_trains_alone_and_keeps_tied_weights_tied() -> None:
    gpt = GPT(GPTConfig(width=32, vocabulary=4096))
    small = copy.deepcopy(gpt).to(BF16)
    assert {p.dtype for p in gpt.parameters()} == {torch.float32}
    assert small.head.weight is small.token_embedding.weight
    assert bytes_each(small.state_dict(), gpt) == pytest.approx(2, rel=0.2)


def test_casting_entry_by_entry_writes_tied_weights_twice() -> None:
    gpt = GPT(GPTConfig(width=32, vocabulary=4096))
    entries = {name: tensor.to(BF16) for name, tensor in gpt.state_dict().items()}
    tied = 2 * gpt.head.weight.numel() / parameter_count(gpt)
    together = bytes_each(copy.deepcopy(gpt).to(BF16).state_dict(), gpt)
    assert bytes_each(entries, gpt) == pytest.approx(together + tied, rel=0.05)
