"""`torch.amp` and sharded training: what is cast, what is kept, what is deprecated."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mpbook.evidence.versions.base import Probe, UnavailableError, in_fresh_process


def _rms_norm_rule() -> str:
    ruled = torch._C._dispatch_get_registrations_for_dispatch_key("AutocastCUDA")
    return "yes" if "aten::rms_norm" in ruled else "no"


def _cache_under_no_grad() -> str:
    layer, x = nn.Linear(4, 4), torch.ones(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            layer(x)
        return "has a graph" if layer(x).requires_grad else "has none"


def _compiled_inside_a_region() -> str:
    """The dtype in which the backward pass of a compiled layer with autocast off multiplies."""
    layer, thirds = nn.Linear(4, 4), torch.full((2, 4), 1 / 3)

    def island(x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return layer(x)

    with torch.autocast("cpu", torch.bfloat16):
        out = torch.compile(island, backend="aot_eager")(thirds)
    out.sum().backward()  # outside, as in every loop
    gradient = layer.weight.grad
    assert gradient is not None
    return "bfloat16" if torch.equal(gradient, gradient.bfloat16().float()) else "float32"


def _default_dtypes() -> str:
    of = {name: str(torch.get_autocast_dtype(name)) for name in ("cuda", "cpu")}
    return f"{of['cuda']}, {of['cpu']}".replace("torch.", "")


def _warning(use: Callable[[], Any]) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        use()
    said = [w.category.__name__ for w in caught if "deprecated" in str(w.message)]
    return said[0] if said else "silent"


def _cuda_amp_autocast() -> str:
    return _warning(lambda: torch.cuda.amp.autocast(enabled=False))


def _cuda_amp_grad_scaler() -> str:
    return _warning(lambda: torch.cuda.amp.GradScaler(enabled=False))


def _cuda_amp_custom() -> str:
    def decorate() -> None:
        torch.cuda.amp.custom_fwd(lambda ctx, x: x)
        torch.cuda.amp.custom_bwd(lambda ctx, x: x)

    return _warning(decorate)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(left, right)
        return left @ right

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        left, right = ctx.saved_tensors
        return gradient @ right.t(), left.t() @ gradient


def _without_custom_backward() -> str:
    left, right = torch.ones(4, 4, requires_grad=True), torch.ones(4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        product = _Product.apply(left, right)
    try:
        product.sum().backward()
    except RuntimeError:
        return "RuntimeError"
    return "runs"


def _scaler_defaults() -> str:
    of = inspect.signature(torch.amp.GradScaler.__init__).parameters
    return f"{of['init_scale'].default:g}, {of['growth_interval'].default}"


class _Seen(nn.Module):
    """A layer that keeps the dtype of every input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.dtypes = nn.Linear(4, 4), list[str]()

    def forward(self, x: Tensor) -> Tensor:
        """The layer itself."""
        self.dtypes.append(str(x.dtype).removeprefix("torch."))
        return self.layer(x)


def _checkpointed_and_sharded() -> str:
    """The dtypes of a sharded block's input in the forward pass and in its recomputation."""
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from torch.utils.checkpoint import CheckpointError, checkpoint

    store = distributed.HashStore()  # type: ignore[attr-defined]
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    block, mesh = _Seen(), init_device_mesh("cpu", (1,))
    fully_shard(block, mesh=mesh, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    x = torch.ones(2, 4, requires_grad=True)
    try:
        checkpoint(block, x, use_reentrant=False).float().sum().backward()
        end = ""
    except CheckpointError:
        end = ", CheckpointError"
    distributed.destroy_process_group()
    return block.dtypes[-1] + end


def _fsdp2_recompute() -> str:
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        raise UnavailableError("torch.distributed with gloo")
    return in_fresh_process(_checkpointed_and_sharded)


PROBES = (
    Probe(
        "autocast-rms-norm",
        "Does autocast on CUDA have a rule for `rms_norm`, as it has for `layer_norm`?",
        _rms_norm_rule,
        "Ask with `mpbook.autocast.measure_policy`; write float32 where it matters.",
        ("recipe/autocast", "reference/interview"),
    ),
    Probe(
        "autocast-cache-under-no-grad",
        "What has a forward pass after one under `no_grad`, in the same autocast region?",
        _cache_under_no_grad,
        "Open a region of its own for validation.",
        ("recipe/autocast_traps",),
    ),
    Probe(
        "compile-inside-autocast",
        "A compiled model, called inside autocast, has a layer with autocast off. In which dtype"
        " does that layer's backward pass multiply?",
        _compiled_inside_a_region,
        "Open the region inside what is compiled.",
        ("recipe/autocast_traps",),
    ),
    Probe(
        "autocast-default-dtype",
        "To which dtype does `torch.autocast` cast on CUDA and on a CPU, if none is given?",
        _default_dtypes,
        "Say the dtype.",
    ),
    Probe(
        "cuda-amp-autocast",
        "What does `torch.cuda.amp.autocast()` warn of?",
        _cuda_amp_autocast,
        '`torch.amp.autocast("cuda")`',
        ("recipe/autocast_traps", "reference/interview"),
    ),
    Probe(
        "cuda-amp-grad-scaler",
        "What does `torch.cuda.amp.GradScaler()` warn of?",
        _cuda_amp_grad_scaler,
        '`torch.amp.GradScaler("cuda")`',
    ),
    Probe(
        "cuda-amp-custom-fwd",
        "What do `torch.cuda.amp.custom_fwd` and `custom_bwd` warn of?",
        _cuda_amp_custom,
        '`torch.amp.custom_fwd(device_type="cuda")`',
    ),
    Probe(
        "without-custom-bwd",
        "What becomes of an autograd function's own product in backward, without `custom_bwd`?",
        _without_custom_backward,
        "Decorate both passes.",
    ),
    Probe(
        "grad-scaler-defaults",
        "Where does a `torch.amp.GradScaler` start, and after how many clean steps does it double?",
        _scaler_defaults,
        "Nothing.",
        ("recipe/loss_scaling",),
    ),
    Probe(
        "fsdp2-recompute",
        "In which dtype does a checkpointed block under FSDP2's bfloat16 policy run again?",
        _fsdp2_recompute,
        "Before: put the checkpoint inside, `fully_shard` around it.",
        ("recipe/autocast_traps",),
    ),
)
"""Mixed precision's own machinery."""
