"""`torch.compile` under autocast: what the page of traps says of recompilations and roundings."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from visits import needs_compiler

from mpbook.device import compiled
from mpbook.evidence.versions.base import order

PUTS_CASTS_BACK_ON_A_CPU = order(torch.__version__) >= (2, 13)


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


def under(dtype: torch.dtype | None, run: Callable[[], Tensor]) -> Tensor:
    enabled = dtype is not None
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=enabled):
        return run()


def test_each_state_of_autocast_is_compiled_once() -> None:
    graphs: list[Any] = []

    def count(graph: Any, example_inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    x, run = torch.ones(2, 4), torch.compile(nn.Linear(4, 4), backend=count)
    so_far = []
    for dtype in (torch.bfloat16, torch.bfloat16, torch.float16, None, torch.bfloat16):
        under(dtype, lambda: run(x))
        so_far.append(len(graphs))
    assert so_far == [1, 1, 2, 3, 3]


def gate(h: Tensor) -> Tensor:
    return h * torch.sigmoid(h) * h + h


@needs_compiler
def test_compiled_code_is_nearer_to_float64_and_can_be_given_eagers_roundings() -> None:
    torch.manual_seed(0)
    product, x = nn.Linear(64, 64), torch.randn(256, 64)

    def gated(x: Tensor) -> Tensor:
        return gate(product(x))

    def run(function: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.no_grad():
            return under(torch.bfloat16, lambda: function(x))

    exact = gate(run(product).double())
    emulated = run(compiled(gated, options={"emulate_precision_casts": True}))
    outputs = {"eager": run(gated), "compiled": run(compiled(gated))}
    errors = {name: (out - exact).norm() / exact.norm() for name, out in outputs.items()}
    assert errors["compiled"] < 0.85 * errors["eager"]  # measured: 0.69
    assert torch.equal(emulated, outputs["eager"]) == PUTS_CASTS_BACK_ON_A_CPU
