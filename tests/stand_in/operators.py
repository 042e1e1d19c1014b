"""Runs an operator on stood-in tensors: checks what CUDA checks, then asks the CPU's kernel."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from stand_in.kernels import OWN, PRODUCTS, in_float32
from stand_in.tensors import CPU, CUDA, StoodIn

_ANY_DEVICE = {
    "aten::copy_", "aten::_to_copy", "aten::_copy_from", "aten::set_", "aten::_foreach_copy_",
    "aten::is_same_size", "aten::record_stream", "aten::_foreach_add_", "aten::lift_fresh",
    "aten::_local_scalar_dense", "aten::set_data", "aten::equal",
    # CTC's lengths lie on the CPU: torch makes lists of them, except for a subclass as ours.
    "aten::_use_cudnn_ctc_loss", "aten::_use_miopen_ctc_loss", "aten::_ctc_loss",
    "aten::_ctc_loss_backward",
}  # fmt: skip
_INDEXING = {
    "aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_",
    "aten::_unsafe_index",
}  # fmt: skip
_NO_SCALARS = {"aten::cat", "aten::stack", "aten::mm", "aten::addmm", "aten::bmm"}
_WAITS = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal",
    "aten::bincount", "aten::masked_select", "aten::_unique2", "aten::unique_consecutive",
}  # fmt: skip


class Random:
    """The state of the GPU's generator, and on which device each other generator claims to be."""

    state = torch.Generator().manual_seed(0).get_state()
    devices: ClassVar[dict[int, torch.device]] = {}


class Sync:
    """What `torch.cuda.set_sync_debug_mode` was set to."""

    mode = "default"


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operator; on the CPU's tensors alone, as it is."""
    name = func._schema.name
    flat, spec = tree_flatten((args, kwargs))
    device = kwargs.get("device")
    if device is None and "device" in [a.name for a in func._schema.arguments[: len(args)]]:
        raise NotImplementedError(f"stand-in: a positional device in {name}")
    has_cuda = any(isinstance(x, StoodIn) for x in flat)
    wanted = None if device is None else torch.device(device)
    if not has_cuda and (wanted is None or wanted.type != "cuda"):
        return func(*args, **kwargs)
    target = CUDA if wanted is None else wanted
    _check(name, func, flat, target, has_cuda)
    behind = {id(x.held): x for x in flat if isinstance(x, StoodIn)}
    plain = [x.held if isinstance(x, StoodIn) else x for x in flat]
    held_args, held_kwargs = tree_unflatten(plain, spec)
    if wanted is not None:
        held_kwargs["device"] = CPU if target.type == "cuda" else target
    result = _compute(func, plain, held_args, held_kwargs)
    return _stand_in_for(result, behind) if target.type == "cuda" else result


def _compute(func: Any, plain: list[Any], args: Any, kwargs: dict[str, Any]) -> Any:
    """The result on the CPU, by CUDA's own rule where there is one."""
    generators = any(isinstance(x, torch._C.Generator) for x in plain)
    random = torch.Tag.nondeterministic_seeded in func.tags and not generators
    half = any(isinstance(x, torch.Tensor) and x.dtype == torch.float16 for x in plain)
    with _cuda_random() if random else contextlib.nullcontext():
        if func in OWN:
            return OWN[func](func, *args, **kwargs)
        if func in PRODUCTS and half:
            return in_float32(func, args, kwargs)
        return func(*args, **kwargs)


def _stand_in_for(result: Any, behind: dict[int, StoodIn]) -> Any:
    """A result as tensors of the GPU; what was written in place stays the tensor that it was."""
    if isinstance(result, StoodIn):
        return result
    if isinstance(result, torch.Tensor):
        return behind[id(result)] if id(result) in behind else StoodIn(result)
    if isinstance(result, list | tuple):
        items = [_stand_in_for(x, behind) for x in result]
        return items if type(result) is list else tuple(items)
    return result


def _check(name: str, func: Any, flat: list[Any], target: torch.device, has_cuda: bool) -> None:
    """Raise where a GPU would: another device, another GPU, a generator's device, a wait."""
    _check_devices(name, func, flat)
    if target.type == "cuda" and (target.index or 0) != 0:
        raise RuntimeError("CUDA error: invalid device ordinal")
    moves = name == "aten::_to_copy" and has_cuda != (target.type == "cuda")
    moves |= name == "aten::copy_" and isinstance(flat[0], StoodIn) != isinstance(flat[1], StoodIn)
    if Sync.mode == "error" and (name in _WAITS or moves):
        raise RuntimeError(f"called a synchronizing CUDA operation ({name})")
    for generator in (x for x in flat if isinstance(x, torch._C.Generator)):
        where = Random.devices.get(generator._cdata, CPU)
        if where.type != target.type:
            raise RuntimeError(
                f"Expected a '{target.type}' device type for generator but found '{where.type}'"
            )


def _check_devices(name: str, func: Any, flat: list[Any]) -> None:
    here = [x for x in flat if isinstance(x, StoodIn)]
    cpu = [x for x in flat if isinstance(x, torch.Tensor) and not isinstance(x, StoodIn)]
    cpu = [x for x in cpu if x.device.type == "cpu"]
    indexed = name in _INDEXING and isinstance(flat[0], StoodIn)
    if not here or not cpu or name in _ANY_DEVICE or indexed:
        return
    arguments = zip(flat, func._schema.arguments, strict=False)
    written = [x for x, a in arguments if a.alias_info and a.alias_info.is_write]
    if name in _NO_SCALARS or any(x.dim() or any(x is w for w in written) for x in cpu):
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"cuda:0 and cpu! ({name})"
        )


@contextlib.contextmanager
def _cuda_random() -> Iterator[None]:
    """Draw from the GPU's state, and leave the CPU's as it was."""
    before = torch.get_rng_state()
    torch.default_generator.set_state(Random.state)
    try:
        yield
    finally:
        Random.state = torch.get_rng_state()
        torch.default_generator.set_state(before)
