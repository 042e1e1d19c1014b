"""The tensor that says it lies on cuda:0, and the count of what such tensors hold."""

from __future__ import annotations

import weakref
from typing import Any, ClassVar, NoReturn

import torch

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
BLOCK = 512
"""The allocator of CUDA gives out multiples of this many bytes."""


class Allocator:
    """Bytes of the storages behind stood-in tensors, now and at the peak."""

    now = peak = 0
    _known: ClassVar[dict[int, int]] = {}

    @classmethod
    def count(cls, held: torch.Tensor) -> None:
        """Count a storage that is new, until it is freed."""
        storage = held.untyped_storage()
        key = storage._cdata
        if key in cls._known:
            return
        size = -(-storage.nbytes() // BLOCK) * BLOCK
        cls._known[key] = size
        cls.now += size
        cls.peak = max(cls.peak, cls.now)
        weakref.finalize(storage, cls._forget, key, size).atexit = False

    @classmethod
    def _forget(cls, key: int, size: int) -> None:
        cls._known.pop(key, None)
        cls.now -= size


class OtherDeviceError(RuntimeError):
    """The data of one device was to become that of a tensor on another."""


class StoodIn(torch.Tensor):
    """A tensor of cuda:0 whose numbers are those of ``held``, which lies on the CPU."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> StoodIn:
        more = {}
        if held.layout == torch.strided:
            more = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        self = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), dtype=held.dtype, layout=held.layout, device=CUDA,
            requires_grad=False, **more,
        )  # fmt: skip
        self.held = held
        return self

    def __init__(self, held: torch.Tensor) -> None:
        if held.layout == torch.strided:
            Allocator.count(held)

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from stand_in.operators import run

        return run(func, args, kwargs or {})

    def untyped_storage(self) -> Any:
        return self.held.untyped_storage()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    @property
    def data(self) -> Any:
        return torch._C.TensorBase.data.__get__(self)

    @data.setter
    def data(self, new: Any) -> None:
        if not isinstance(new, StoodIn):
            raise OtherDeviceError("data of another device")
        torch._C.TensorBase.data.__set__(self, new)
        self.held = new.held

    def __deepcopy__(self, memo: dict[int, Any]) -> StoodIn:
        if not self.is_leaf:
            raise RuntimeError("only tensors that the user created can be copied deeply")
        if id(self) in memo:
            return memo[id(self)]
        with torch._C._DisableTorchDispatch(), torch.no_grad():
            new = StoodIn(self.held.clone())
        new.requires_grad_(self.requires_grad)
        if getattr(self, "_is_param", False):
            new._is_param = True
        if self.grad is not None:
            new.grad = self.grad.__deepcopy__(memo)
        own = {k: v for k, v in self.__dict__.items() if k not in ("held", "_is_param")}
        new.__dict__.update(own)
        memo[id(self)] = new
        return new

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.held.detach().requires_grad_(self.requires_grad).__reduce_ex__(protocol)

    def numpy(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor "
            "to host memory first."
        )

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        self.numpy()

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.dim() == 0 else object.__format__(self, spec)

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()


StoodIn.__name__ = "tensor"  # which is how torch prints it
