"""Models and losses that a copy does not take along: told, and left as they were."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mpbook.diagnosis import diagnose

ADAM = partial(torch.optim.AdamW, lr=1e-3)
X, Y = torch.randn(16, 8, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 3
FAST: dict[str, Any] = {"formats": ["float16"], "steps": 1, "rescue": False}


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 3))


class Remembers(nn.Module):
    """Runs by a function that was made with the model itself, in part or altogether."""

    def __init__(self, *, in_part: bool = False) -> None:
        super().__init__()
        self.net, self.last = mlp(), nn.Linear(3, 3) if in_part else nn.Identity()
        self.head = lambda x: self.net(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.head(x))


def with_gradients(model: nn.Module) -> list[Tensor]:
    """All that the model holds, its gradients included, which are ones."""
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    return held(model)


def held(model: nn.Module) -> list[Tensor]:
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    tensors = (*model.parameters(), *model.buffers(), *gradients)
    return [t.detach().clone() for t in tensors]


def are_equal(before: list[Tensor], after: list[Tensor]) -> bool:
    return all(torch.equal(*pair) for pair in zip(before, after, strict=True))


@pytest.mark.parametrize("in_part", [True, False])
def test_a_function_that_keeps_the_original_is_told_and_changes_nothing(in_part: bool) -> None:
    model = Remembers(in_part=in_part)
    before = with_gradients(model)
    with pytest.raises((ValueError, RuntimeError), match=r"model: .*the original and not the copy"):
        diagnose(model, (X, Y), loss=F.cross_entropy, optimizer=ADAM, **FAST)
    assert are_equal(before, held(model))


def test_a_loss_that_keeps_the_original_is_told_and_changes_nothing() -> None:
    model = mlp()
    before = with_gradients(model)

    def loss(_output: Tensor, given: Any) -> Tensor:
        return F.cross_entropy(model(given[0]), given[1])

    with pytest.raises(ValueError, match="or a loss that calls the model"):
        diagnose(model, (X, Y), loss=loss, **FAST)
    assert are_equal(before, held(model))


def test_a_buffer_that_was_nan_already_has_not_been_written_to() -> None:
    model = mlp()
    model.register_buffer("unused", torch.tensor([torch.nan, 1.0]))
    found = diagnose(model, (X, Y), loss=F.cross_entropy, optimizer=ADAM, **FAST)
    assert found.survives("float16") == "yes"


def test_a_scripts_copy_has_weights_and_an_optimizer_of_its_own() -> None:
    model: Any = torch.jit.script(mlp())
    before = with_gradients(model)
    found = diagnose(model, (X, Y), loss=F.cross_entropy, optimizer=ADAM)
    assert {found.survives(f) for f in ("float16", "bfloat16")} == {"yes"}
    assert found.of("bfloat16").total > 0
    assert {write.state for write in found.writes} >= {"weights", "exp_avg"}
    assert are_equal(before, held(model))


def test_an_optimizer_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="optimizer: has none of the model's parameters"):
        diagnose(mlp(), (X, Y), loss=F.cross_entropy, optimizer=ADAM(mlp().parameters()))


def test_a_copy_that_is_the_model_itself_is_refused() -> None:
    class Itself(nn.Sequential):
        def __deepcopy__(self, memo: dict[int, Any]) -> Itself:
            return self

    model = Itself(*mlp())
    before = with_gradients(model)
    with pytest.raises(ValueError, match="__deepcopy__ that gives what it is asked of"):
        diagnose(model, (X, Y), loss=F.cross_entropy, optimizer=ADAM)
    assert are_equal(before, held(model))


def test_inference_mode_is_left_for_as_long_as_a_diagnosis_takes() -> None:
    with torch.inference_mode():
        found = diagnose(mlp(), (X.clone(), Y), loss=F.cross_entropy, optimizer=ADAM, **FAST)
        assert torch.is_inference_mode_enabled()
    assert found.survives("float16") == "yes"


def test_what_cannot_be_copied_is_named() -> None:
    model = mlp()
    model.jobs = (one for one in [])  # type: ignore[assignment, var-annotated]
    with pytest.raises(ValueError, match="model: cannot be copied, because of its jobs"):
        diagnose(model, (X, Y), loss=F.cross_entropy)


def test_the_states_of_a_checkpoint_follow_its_weights() -> None:
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    F.cross_entropy(model(X), Y).backward()
    optimizer.step()
    found = diagnose(model, (X, Y), loss=F.cross_entropy, optimizer=optimizer,
                     formats=["bfloat16"])  # fmt: skip
    pure = found.formats["bfloat16"].pure
    assert pure is not None and pure.survives == "yes"
    assert {state["exp_avg"].dtype for state in optimizer.state.values()} == {torch.float32}


def test_an_error_in_an_update_is_the_optimizers() -> None:
    class Refuses(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            if self.param_groups[0]["params"][0].dtype == torch.float16:
                raise ValueError("no 16-bit weights")
            return super().step(closure)

    found = diagnose(mlp(), (X, Y), loss=F.cross_entropy, optimizer=Refuses, **FAST)
    pure = found.formats["float16"].pure
    assert pure is not None and pure.reason.startswith("(optimizer)")
