"""The answers of the exercises on autocast, against `torch.autocast` itself."""

import pytest
import torch
from torch import Tensor, nn

from mpbook.autocast.trace import trace_dtypes
from mpbook.exercises import find


def solution(name: str, *arguments: object) -> object:
    return find(f"autocast.{name}").solution(*arguments)


def inputs(name: str) -> list[tuple[object, ...]]:
    return list(find(f"autocast.{name}").inputs())


class Repeated(nn.Module):
    """One square layer, used several times."""

    def __init__(self, uses: int):
        super().__init__()
        self.layer = nn.Linear(4, 4, bias=False)
        self.uses = uses

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.uses):
            x = self.layer(x)
        return x


@pytest.mark.parametrize("layers", [i[0] for i in inputs("cached_bytes")])
def test_the_bytes_are_those_that_a_trace_counts(layers: list[tuple[int, int, bool]]) -> None:
    model = nn.Sequential(*(nn.Linear(i, o).requires_grad_(t) for i, o, t in layers))
    batch = torch.ones(1, layers[0][0])
    trace = trace_dtypes(model, batch, "bf16-mixed", backward=False)
    assert solution("cached_bytes", layers) == trace.cache_bytes


@pytest.mark.parametrize(("uses", "regions", "trains"), inputs("weight_casts"))
def test_the_casts_are_those_that_a_trace_counts(uses: int, regions: int, trains: bool) -> None:
    model = Repeated(uses).requires_grad_(trains)
    trace = trace_dtypes(model, torch.ones(1, 4), "bf16-mixed", backward=False)
    casts = sum(cast.what == "weight" for cast in trace.casts)
    assert solution("weight_casts", uses, regions, trains) == regions * casts


@pytest.mark.parametrize(("left", "right"), inputs("sum_dtype"))
def test_a_sum_has_the_dtype_that_torch_gives_it(left: str, right: str) -> None:
    a, b = (torch.ones(2, dtype=getattr(torch, name)) for name in (left, right))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = a + b
    assert str(total.dtype) == f"torch.{solution('sum_dtype', left, right)}"


@pytest.mark.parametrize(("uses", "dtype", "cached"), inputs("shared_gradient"))
def test_a_shared_gradient_is_what_autograd_adds_up(uses: int, dtype: str, cached: bool) -> None:
    layer, one = nn.Linear(1, 1, bias=False), torch.ones(1, 1)
    lower = getattr(torch, dtype)
    with torch.autocast("cpu", dtype=lower, cache_enabled=cached):
        outputs = [layer(one).float() for _ in range(uses)]
    torch.stack(outputs).sum().backward()
    assert layer.weight.grad is not None
    assert solution("shared_gradient", uses, dtype, cached) == layer.weight.grad.item()


def test_no_input_is_asked_twice() -> None:
    for name in ("cached_bytes", "weight_casts", "sum_dtype", "shared_gradient"):
        asked = list(map(repr, inputs(name)))
        assert len(set(asked)) == len(asked)
