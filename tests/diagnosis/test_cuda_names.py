"""Parts that a model wrote for "cuda", on the CPU tensors of a diagnosis."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mpbook.autocast.policy import autocast_set
from mpbook.diagnosis import diagnose
from mpbook.diagnosis.cuda_names import cuda_means_cpu

FAST: dict[str, Any] = {"loss": F.cross_entropy, "steps": 1, "rescue": False}


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return 1000 * torch.randn(16, 8, generator=generator), torch.arange(16) % 3


def gram(h: Tensor) -> Tensor:
    """Beyond float16, unless it is computed in float32."""
    h = h.float()
    return (h @ h.mT)[:, :3] / 1e6


def in_a_region(h: Tensor) -> Tensor:
    with torch.autocast("cuda", enabled=False):
        return gram(h)


def in_a_region_by_keyword(h: Tensor) -> Tensor:
    with torch.autocast(device_type="cuda", enabled=False):
        return gram(h)


def in_an_old_region(h: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        region = torch.cuda.amp.autocast(enabled=False)
    with region:
        return gram(h)


class _Gram(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda", cast_inputs=torch.float32)
    def forward(ctx: Any, h: Tensor) -> Tensor:
        ctx.save_for_backward(h)
        return gram(h)

    @staticmethod
    @torch.amp.custom_bwd(device_type="cuda")
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (h,) = ctx.saved_tensors
        wide = F.pad(grad, (0, len(h) - 3))
        return (wide + wide.mT) @ h / 1e6


in_a_decorator = torch.autocast("cuda", enabled=False)(gram)


class Island(nn.Module):
    def __init__(self, part: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.part = nn.Linear(8, 16), nn.Linear(16, 3), part

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(h / 1000) + self.part(h)


@pytest.mark.parametrize(
    "part",
    [in_a_region, in_a_region_by_keyword, in_an_old_region, in_a_decorator, _Gram.apply],
)
def test_a_part_in_float32_that_names_cuda_is_in_float32(part: Any) -> None:
    assert diagnose(Island(part), batch(), **FAST).survives("float16") == "yes"
    assert diagnose(Island(gram), batch(), **FAST).survives("float16") == "no"


@pytest.mark.parametrize("given", [{}, {"device_type": "cuda"}], ids=["by place", "by keyword"])
def test_what_is_asked_of_cuda_is_answered_and_is_torchs_own_again(given: Any) -> None:
    before = torch.is_autocast_enabled, torch.autocast.__init__
    device = () if given else ("cuda",)
    with cuda_means_cpu(), torch.autocast(*device, **given, dtype=torch.bfloat16):
        assert torch.is_autocast_enabled() and torch.is_autocast_enabled("cpu")
        assert torch.get_autocast_dtype("cuda") == torch.bfloat16
        assert torch.get_autocast_gpu_dtype() == torch.bfloat16
    assert (torch.is_autocast_enabled, torch.autocast.__init__) == before
    assert not torch.is_autocast_enabled("cpu")


def test_what_is_set_for_cuda_is_set_for_the_cpu() -> None:
    before = torch.get_autocast_dtype("cpu"), torch.get_autocast_dtype("cuda")
    with autocast_set("cpu", before[0], enabled=False), cuda_means_cpu():
        torch.set_autocast_enabled(True)  # as before torch 2.4, of CUDA
        torch.set_autocast_dtype("cuda", torch.float16)
        assert torch.is_autocast_enabled("cpu")
        assert torch.get_autocast_dtype("cpu") == torch.float16
        torch.set_autocast_enabled("cuda", False)
        assert not torch.is_autocast_enabled("cpu")
    assert (torch.get_autocast_dtype("cpu"), torch.get_autocast_dtype("cuda")) == before
    assert not torch.is_autocast_enabled("cuda")


def test_a_checkpoint_runs_its_forward_pass_again_by_the_same_rules() -> None:
    def recomputed(h: Tensor) -> Tensor:
        return checkpoint(lambda x: torch.exp(x - x), h, use_reentrant=False)[:, :3]

    found = diagnose(Island(recomputed), batch(), **FAST)
    assert found.survives("float16") == found.survives("bfloat16") == "yes"
