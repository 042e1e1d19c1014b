"""Which device trains, what it can do in each dtype, and how that was found out.

A device may multiply matrices of a dtype on units made for that (*native*), or on ordinary units
that take the dtype (*no tensor cores*); it may compute in another dtype behind your back
(*emulated*), or not have the dtype at all (*missing*).  Documentation, feature flags and what
really runs disagree more often than one would think: ``torch.cuda.is_bf16_supported()`` is True on
a T4, which has no bfloat16 units.  So each verdict here carries its evidence.

A CPU without float16 units multiplies float16 matrices at a hundredth of its float32 speed.
`matmul_emulation` computes them as a tensor core does, from float16 operands in float32 with one
rounding at the end, and says so.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mpbook.device_facts import FLOAT16_WITHOUT_TENSOR_CORES, TENSOR_CORES_SINCE
from mpbook.notebook import Table

Support = Literal["native", "no tensor cores", "emulated", "missing"]
T = TypeVar("T")


def pick(device: str | torch.device | None = None) -> torch.device:
    """The device to train on: the one named, else the GPU if there is one, else the CPU.

    Raises:
        RuntimeError: a CUDA device is asked for that is not there.
        ValueError: a device that is neither a CPU nor a CUDA GPU.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:  # a word that torch does not know
        chosen = torch.device("meta")
    if chosen.type not in ("cpu", "cuda"):
        raise ValueError(f'device="{device}": expected "cpu" or "cuda"')
    if chosen.type == "cuda":
        _check_gpu(chosen)
    return chosen


def sized(*, cpu: T, gpu: T, device: str | torch.device | None = None) -> T:
    """What fits the device: one value for a CPU, another for a GPU.

    A chapter that shrinks its model on a CPU takes its sizes through here, so that a rehearsal of a
    GPU on a CPU (`make rehearse`) can ask for the CPU's sizes everywhere: ``MPBOOK_SIZES=cpu``.

    Raises:
        ValueError: ``MPBOOK_SIZES`` says something else.

    >>> sized(cpu=8, gpu=32, device="cpu")
    8
    """
    asked = os.environ.get("MPBOOK_SIZES", "device")
    if asked not in ("device", "cpu"):
        raise ValueError(f'MPBOOK_SIZES={asked!r}: expected "device" or "cpu"')
    chosen = device if isinstance(device, torch.device) else pick(device)
    return gpu if asked == "device" and chosen.type == "cuda" else cpu


def _check_gpu(device: torch.device) -> None:
    if not torch.cuda.is_available():
        raise RuntimeError(f'device="{device}": torch sees no CUDA GPU here; use device="cpu"')
    if (device.index or 0) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise RuntimeError(f'device="{device}": the last CUDA GPU here is "cuda:{last}"')


def compiled(
    function: Callable[..., Any],
    *,
    fullgraph: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """`torch.compile`, with code from its cache only if it was made for this CPU's vectors.

    Inductor keeps the C++ that it generates (in ``TORCHINDUCTOR_CACHE_DIR``) under a key that has
    the settings in it and not the width of the vectors.  Where machines share that folder, one with
    AVX2 is given code for the 16 lanes of AVX-512: a cross-entropy of 6.69 once came
    out as 6.04 without a word, or the process dies.  Here the width is one of the settings.

    Args:
        function: a function or a module.
        fullgraph: raise where the function cannot be compiled as a whole.
        options: more of Inductor's settings, such as ``emulate_precision_casts``.
    """
    settings = {**_vector_width(), **(options or {})}
    return torch.compile(function, fullgraph=fullgraph, options=settings or None)


def _vector_width() -> dict[str, Any]:
    """The setting that names it; none where no C++ compiler makes any."""
    from torch._inductor.cpu_vec_isa import pick_vec_isa  # heavy: torch imports it as late
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        bits = pick_vec_isa().bit_width()
    except InvalidCxxCompiler:  # the first call says so, if it is for a CPU
        return {}
    return {"cpp.simdlen": bits} if bits else {}


@dataclass(frozen=True)
class Capability:
    """What a device does with matrix products in one format, and how that is known."""

    format: str
    support: Support
    evidence: str


def capabilities(device: str | torch.device | None = None) -> list[Capability]:
    """What the device does natively, emulates or lacks, for matrix products in each format.

    Raises:
        RuntimeError, ValueError: as `pick`.
    """
    chosen = pick(device)
    if chosen.type == "cuda":
        return gpu_capabilities(torch.cuda.get_device_capability(chosen))
    return cpu_capabilities(cpu_features())


def table(device: str | torch.device | None = None) -> Table:
    """`capabilities` as a table, captioned with the device's name."""
    rows = [(c.format, c.support, c.evidence) for c in capabilities(device)]
    return Table(["matrix products in", "are", "because"], rows, caption=name(device))


def name(device: str | torch.device | None = None) -> str:
    """What the device calls itself."""
    chosen = pick(device)
    if chosen.type == "cuda":
        return torch.cuda.get_device_name(chosen)
    return _cpu_name()


def native_16_bit(device: str | torch.device | None = None) -> torch.dtype:
    """The 16-bit dtype to train in: bfloat16, but float16 on a GPU without units for bfloat16.

    On a V100 or a T4 torch computes bfloat16 too, and more slowly than float32; its fused attention
    takes float32 and float16 alone there, so that bfloat16 attention stores every score.  A CPU has
    the fused attention in both, and bfloat16 needs no loss scale.

    Raises:
        RuntimeError, ValueError: as `pick`.
    """
    chosen = pick(device)
    if chosen.type == "cpu":
        return torch.bfloat16
    has_units = torch.cuda.get_device_capability(chosen) >= TENSOR_CORES_SINCE["bfloat16"]
    return torch.bfloat16 if has_units else torch.float16


def gpu_capabilities(compute_capability: tuple[int, int]) -> list[Capability]:
    """What an NVIDIA GPU of this compute capability does, by the tensor cores it has."""
    have = ".".join(map(str, compute_capability))
    rows = [Capability("float32", "native", "every CUDA GPU has float32 units")]
    for format, needed in TENSOR_CORES_SINCE.items():
        since = ".".join(map(str, needed))
        reason = f"compute capability {have}; tensor cores for it since {since}"
        if compute_capability >= needed:
            rows.append(Capability(format, "native", reason))
        elif format == "float16" and compute_capability in FLOAT16_WITHOUT_TENSOR_CORES:
            units = "ordinary units add and multiply it at twice the rate of float32"
            rows.append(Capability(format, "no tensor cores", f"{reason}; {units}"))
        else:
            rows.append(Capability(format, *_without_tensor_cores(format, reason)))
    return rows


def _without_tensor_cores(format: str, reason: str) -> tuple[Support, str]:
    if format == "float16":
        return "emulated", f"{reason}; float16 is stored, products run on float32 or slow units"
    if format == "bfloat16":
        return "emulated", f"{reason}; torch.cuda.is_bf16_supported() says True all the same"
    if format == "tfloat32":
        return "missing", f"{reason}; products run in full float32"
    return "missing", reason


def cpu_capabilities(features: frozenset[str]) -> list[Capability]:
    """What a CPU with these instruction sets does in each format."""
    rows = [Capability("float32", "native", "every CPU that torch supports has float32 units")]
    tf32 = "TF32 is a mode of NVIDIA's tensor cores; products run in full float32"
    rows.append(Capability("tfloat32", "missing", tf32))
    for format, wanted in _CPU_INSTRUCTIONS.items():
        found = sorted(features & wanted)
        if found:
            rows.append(Capability(format, "native", f"the CPU has {', '.join(found)}"))
        else:
            lacks = f"none of {', '.join(sorted(wanted))} in the CPU's features"
            rows.append(Capability(format, "emulated", f"{lacks}; computed by way of float32"))
    for format in ("float8_e4m3fn", "float8_e5m2"):
        how = "torch._scaled_mm and @ compute it by way of float32"
        rows.append(Capability(format, "emulated", how))
    rows.append(Capability("float4_e2m1fn", "missing", "torch has no CPU matrix product in it"))
    return rows


_CPU_INSTRUCTIONS: Mapping[str, frozenset[str]] = {
    "float16": frozenset({"avx512_fp16", "amx_fp16", "fphp", "asimdhp"}),
    "bfloat16": frozenset({"avx512_bf16", "amx_bf16", "bf16"}),
}


@functools.cache
def cpu_features() -> frozenset[str]:
    """The CPU's instruction sets, as torch and the operating system name them; may be empty."""
    found = {key for key, value in torch.cpu.get_capabilities().items() if value is True}
    for line in _cpuinfo():
        if line.startswith(("flags", "Features")):
            return frozenset(found | set(line.partition(":")[2].split()))
    return frozenset(found)


def _cpu_name() -> str:
    for line in _cpuinfo():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "CPU"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(errors="replace").splitlines() if path.exists() else []


# --- float16 products on a CPU that has no float16 units ---------------------------------------


def matmul_emulation(
    dtype: torch.dtype, device: torch.device, *, features: frozenset[str] | None = None
) -> AbstractContextManager[Any]:
    """A context in which products of ``dtype`` matrices run well on ``device``.

    It does nothing, unless ``dtype`` is float16 and the device a CPU without float16 units: there
    it is `Float32Accumulation`.
    """
    if dtype != torch.float16 or device.type != "cpu":
        return nullcontext()
    features = cpu_features() if features is None else features
    return nullcontext() if features & _CPU_INSTRUCTIONS["float16"] else Float32Accumulation()


@functools.cache
def _products() -> frozenset[Any]:
    aten = torch.ops.aten
    return frozenset(
        {
            aten.mm.default,
            aten.bmm.default,
            aten.addmm.default,
            aten.baddbmm.default,
            aten.addbmm.default,
            aten.mv.default,
            aten.addmv.default,
            aten.dot.default,
            aten.vdot.default,
            aten.convolution.default,
            aten.convolution_backward.default,
            aten._scaled_dot_product_flash_attention_for_cpu.default,
            aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
        }
    )


class Float32Accumulation(TorchDispatchMode):
    """Products of float16 tensors as a tensor core computes them.

    Inside this context every matrix product, convolution and attention, forward and backward,
    takes its float16 operands exactly, multiplies and adds in float32, and rounds its results to
    float16 once.  Everything else runs as it is, in-place and ``out=`` forms of products included.

    Torch's own float16 kernels on such a CPU accumulate in float32 too, so for products and
    convolutions only the order of the additions differs.  Its attention also rounds the
    probabilities to float16 on the way; here they stay in float32.
    """

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run one operator of torch."""
        kwargs = kwargs or {}
        if func not in _products():
            return self._run_as_it_is(func, args, kwargs)
        if not _any_half(args):
            return func(*args, **kwargs)
        widened = {name: _widen(value) for name, value in kwargs.items()}
        result = func(*map(_widen, args), **widened)
        if not isinstance(result, tuple):
            return _narrow(result)
        if func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default:
            return _narrow(result[0]), result[1]  # the log-sum-exp is float32 in any case
        return tuple(map(_narrow, result))

    def _run_as_it_is(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Under inference_mode linear and matmul arrive whole; their parts hold the products.
        if torch.is_inference_mode_enabled():
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return func(*args, **kwargs)


def _any_half(args: tuple[Any, ...]) -> bool:
    return any(isinstance(a, torch.Tensor) and a.dtype == torch.float16 for a in args)


def _widen(argument: Any) -> Any:
    is_half = isinstance(argument, torch.Tensor) and argument.dtype == torch.float16
    return argument.float() if is_half else argument


def _narrow(result: Any) -> Any:
    return result.half() if isinstance(result, torch.Tensor) else result
