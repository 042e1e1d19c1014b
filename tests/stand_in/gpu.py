"""Makes ``torch.cuda`` speak of one GPU, and catches what is created on it or brought to it."""

from __future__ import annotations

import contextlib
import functools
import time
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stand_in import kernels
from stand_in.kernels import CAPABILITY
from stand_in.operators import Random, Sync, run
from stand_in.tensors import CPU, CUDA, Allocator, OtherDeviceError, StoodIn

NAMES = {
    (7, 5): "Tesla T4", (8, 0): "NVIDIA A100-SXM4-80GB", (8, 9): "NVIDIA GeForce RTX 4090",
    (9, 0): "NVIDIA H100 80GB HBM3",
}  # fmt: skip
MEMORY = {(7, 5): 15 * 2**30, (8, 9): 24 * 2**30}.get(CAPABILITY, 80 * 2**30)


class OnTheGpu(TorchDispatchMode):
    """Catches what makes a tensor on the device, or brings one there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class Event:
    """A point in the queue of a device that has none: the clock when it was recorded."""

    def __init__(self, enable_timing: bool = False, **_: Any) -> None:
        self.at = 0.0

    def record(self, stream: Any = None) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: Event) -> float:
        return max((other.at - self.at) * 1000, 1e-6)


class Stream:
    """The one queue of a device that computes at once."""

    def wait_stream(self, stream: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass


class Properties:
    """What `torch.cuda.get_device_properties` returns."""

    name = NAMES.get(CAPABILITY, "A GPU")
    major, minor = CAPABILITY
    total_memory, multi_processor_count, uuid = MEMORY, 108, "GPU-0"


class Device(contextlib.AbstractContextManager[None]):
    """``torch.cuda.device``: there is one, and it is chosen."""

    def __init__(self, device: Any = None) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        return None


class _AnyGenerator(type(torch._C.Generator)):  # type: ignore[misc]  # the class of a C class
    def __instancecheck__(cls, x: object) -> bool:
        return isinstance(x, torch._C.Generator)


class Generator(torch._C.Generator, metaclass=_AnyGenerator):
    """A generator of the CPU that may claim to be the GPU's."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        chosen = torch.device(device)
        self = torch._C.Generator.__new__(cls, "cpu")
        Random.devices.pop(self._cdata, None)
        if chosen.type == "cuda":
            Random.devices[self._cdata] = torch.device("cuda", chosen.index or 0)
        return self

    @property
    def device(self) -> torch.device:
        return Random.devices.get(self._cdata, CPU)


def _seed(seed: int) -> None:
    Random.state = torch._C.Generator("cpu").manual_seed(int(seed)).get_state()


def _set_random_state(state: torch.Tensor, device: Any = None) -> None:
    Random.state = state.clone()


def _set_sync_mode(mode: int | str) -> None:
    Sync.mode = mode if isinstance(mode, str) else ("default", "warn", "error")[mode]


def _reset_peak(device: Any = None) -> None:
    Allocator.peak = Allocator.now


def _always(value: Any) -> Any:
    """A function of anything that returns the value."""
    return lambda *_, **__: value


def install() -> None:
    """Put the device in place, for the rest of this process."""
    kernels.register()
    _speak_of_one_gpu()
    _count_memory()
    _draw_numbers()
    _move_modules()
    torch.compile = lambda model=None, **_: (lambda f: f) if model is None else model
    torch.autograd.set_multithreading_enabled(False)
    torch.Tensor.cuda = lambda self, device=None, *_, **__: self.to(CUDA)
    torch.Tensor.is_cuda = property(lambda self: self.device.type == "cuda")
    torch._C._set_only_lift_cpu_tensors(True)  # for torch.tensor(..., device="cuda")
    OnTheGpu().__enter__()


def _speak_of_one_gpu() -> None:
    cuda = torch.cuda
    answers = {
        "_lazy_init": None, "init": None, "is_initialized": True, "_is_in_bad_fork": False,
        "is_available": True, "device_count": 1, "_device_count_nvml": 1, "current_device": 0,
        "set_device": None, "synchronize": None, "empty_cache": None,
        "get_device_name": Properties.name, "get_device_capability": CAPABILITY,
        "get_device_properties": Properties, "is_current_stream_capturing": False,
        "current_stream": Stream(), "stream": contextlib.nullcontext(),
    }  # fmt: skip
    for name, answer in answers.items():
        setattr(cuda, name, _always(answer))
    cuda.graphs.is_current_stream_capturing = _always(False)
    torch.accelerator.synchronize = _always(None)
    cuda.device, cuda.Event, cuda.set_sync_debug_mode = Device, Event, _set_sync_mode

    @functools.wraps(cuda.is_bf16_supported)
    def is_bf16_supported(including_emulation: bool = True) -> bool:
        return including_emulation or CAPABILITY >= (8, 0)

    cuda.is_bf16_supported = is_bf16_supported


def _count_memory() -> None:
    cuda = torch.cuda
    cuda.memory_allocated = lambda device=None: Allocator.now
    cuda.max_memory_allocated = lambda device=None: Allocator.peak
    cuda.reset_peak_memory_stats = _reset_peak
    cuda.mem_get_info = lambda device=None: (MEMORY - Allocator.now, MEMORY)
    cuda.memory_stats = lambda device=None: {
        "allocated_bytes.all.current": Allocator.now,
        "allocated_bytes.all.peak": Allocator.peak,
    }


def _draw_numbers() -> None:
    cuda = torch.cuda
    cuda.get_rng_state = lambda device="cuda": Random.state.clone()
    cuda.set_rng_state = _set_random_state
    for module in (cuda, cuda.random):
        module.manual_seed = module.manual_seed_all = _seed
    torch.Generator = Generator


def _move_modules() -> None:
    """A stood-in tensor cannot become the data of a plain one, so those swap places."""
    apply = torch.nn.Module._apply

    def swapping(self: torch.nn.Module, fn: Any, recurse: bool = True) -> torch.nn.Module:
        there = all(isinstance(p, StoodIn) for p in self.parameters())
        before = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(not there)
        try:
            return apply(self, fn, recurse)
        except OtherDeviceError:
            torch.__future__.set_swap_module_params_on_conversion(True)
            return apply(self, fn, recurse)
        finally:  # `load_state_dict` would swap too, and lose gradients
            torch.__future__.set_swap_module_params_on_conversion(before)

    torch.nn.Module._apply = swapping
    from torch.optim import optimizer
    from torch.utils import _foreach_utils

    for module in (_foreach_utils, optimizer):  # so that optimizers choose CUDA's foreach loops
        if StoodIn not in getattr(module, "_foreach_supported_types", [StoodIn]):
            module._foreach_supported_types.append(StoodIn)
