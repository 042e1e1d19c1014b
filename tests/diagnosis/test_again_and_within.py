"""Backward passes within forward passes, and forward passes within backward ones."""

from __future__ import annotations

import linecache
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mpbook.diagnosis import diagnose
from mpbook.diagnosis.operators_seen import Recorder

SGD = partial(torch.optim.SGD, lr=0.01)
FAST: dict[str, Any] = {"formats": ["float16"], "steps": 1, "rescue": False}


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(16, 8, generator=generator), torch.arange(16) % 3


class Recomputed(nn.Module):
    """Large activations behind a checkpoint, or not."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.middle, self.last = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 3)
        self.reentrant = reentrant

    def body(self, x: Tensor) -> Tensor:
        return self.middle((self.first(x) * 1e4).relu()) / 1e4  # the body

    def forward(self, x: Tensor) -> Any:
        if self.reentrant is None:
            return self.last(self.body(x))
        x = x.clone().requires_grad_()
        return self.last(checkpoint(self.body, x, use_reentrant=self.reentrant))


def _tiny(output: Tensor, target: Tensor) -> Tensor:
    return 1e-7 * F.cross_entropy(output, target)


@pytest.mark.parametrize("reentrant", [False, True])
def test_what_a_checkpoint_computes_again_is_no_gradient(reentrant: bool) -> None:
    plain, again = (diagnose(Recomputed(how), batch(), loss=_tiny, optimizer=SGD, **FAST)
                    for how in (None, reentrant))  # fmt: skip
    assert again.survives("float16") == "with a loss scale"
    assert again.of("float16").window == plain.of("float16").window
    assert again.of("float16").total < 0.1


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradients_behind_a_checkpoint_have_the_line_of_its_body(reentrant: bool) -> None:
    model = Recomputed(reentrant)
    recorder = Recorder(model)
    recorder.begin(0)
    with recorder.hooks(), recorder:
        loss = model(batch()[0]).sum()
        with recorder.backward(second_order=False):
            loss.backward()
    lines = [linecache.getline(s.key.place.file, s.key.place.line)
             for s in recorder.seen.values() if s.key.phase == "backward"]  # fmt: skip
    assert sum("# the body" in line for line in lines) > 4


class Penalised(nn.Module):
    """Its loss holds a gradient, ``size`` times as large as its weights'."""

    def __init__(self, size: float, tiny: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Sequential(nn.Linear(8, 32), nn.Softplus(), nn.Linear(32, 1))
        self.size, self.tiny = size, tiny

    def forward(self, x: Tensor) -> Any:
        x = x.detach().requires_grad_()
        value = self.inner(x) * self.size  # made larger
        (slope,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        slope = slope.float() / self.size
        return (((slope.norm(dim=1) - 1) ** 2).mean() + value.mean() / self.size) * self.tiny


def test_a_gradient_in_a_loss_is_not_reached_by_the_loss_scale() -> None:
    def window(size: float) -> Any:
        found = diagnose(Penalised(size, 1e-5), batch()[0], optimizer=SGD, **FAST).of("float16")
        assert found.survives == "with a loss scale" and found.total < 0.1
        return found.window[1]

    assert abs(window(1e3) - window(1.0)) < 3


def test_a_gradient_in_a_loss_that_overflows_has_its_own_line() -> None:
    found = diagnose(Penalised(1e6, 1.0), batch()[0], optimizer=SGD, steps=1, formats=["float16"])
    failure = found.of("float16").failure
    assert failure is not None and "# made larger" in linecache.getline(
        failure.key.place.file, failure.key.place.line
    )
    assert "in the backward pass of" in str(failure)
    assert found.of("float16").survives == "no"
    rescue = found.formats["float16"].rescue
    assert rescue is not None and rescue.holds
