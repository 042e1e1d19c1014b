"""Claims about what PyTorch does by default: asked of the torch that is installed."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from mpbook import tf32
from mpbook.autocast.operators import OPERATORS
from mpbook.autocast.policy import measure_policy
from mpbook.evidence.claims.base import (
    NOT_RECORDED,
    Claim,
    Finding,
    Verdict,
    by_share,
    exactly,
    live,
)


def _is_deprecated(call: Callable[[], Any]) -> bool:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return any("deprecated" in str(warning.message) for warning in caught)


def _cuda_amp() -> Finding:
    deprecated = [
        _is_deprecated(lambda: torch.cuda.amp.autocast(enabled=False)),
        _is_deprecated(lambda: torch.cuda.amp.GradScaler(enabled=False)),
    ]
    why = (
        f"{sum(deprecated)} of 2 warn that they are deprecated; write torch.amp.autocast(device) "
        "and torch.amp.GradScaler(device)."
    )
    return by_share([not each for each in deprecated]), why


def _old_autocast_takes_a_device_type() -> Finding:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.cuda.amp.autocast(device_type="cuda", enabled=False)  # type: ignore[call-arg]
    except TypeError:
        return "false", (
            "It raises TypeError: the old spelling has no such argument. "
            'Write torch.amp.autocast("cuda").'
        )
    return "holds", "It accepts the argument."


def _default_dtype() -> Finding:
    defaults = {kind: torch.get_autocast_dtype(kind) for kind in ("cuda", "cpu")}
    names = {kind: str(dtype).removeprefix("torch.") for kind, dtype in defaults.items()}
    why = f"The default is {names['cuda']} on CUDA and {names['cpu']} on a CPU."
    return by_share([dtype == torch.float16 for dtype in defaults.values()]), why


_COMPARED = ("matmul", "softmax", "layer_norm", "sum", "exp")


def _same_lists() -> Finding:
    # The rules of both are compiled into every torch, so neither device need be there.
    chosen = [operator for operator in OPERATORS if operator.name in _COMPARED]
    cpu, cuda = (
        measure_policy(kind, torch.bfloat16, tensors="fake", operators=chosen)
        for kind in ("cpu", "cuda")
    )
    alike = {name: cpu.of(name).category == cuda.of(name).category for name in _COMPARED}
    differing = [name for name, same in alike.items() if not same]
    fates = [
        ", ".join(sorted({policy.of(name).category.partition(" (")[0] for name in differing}))
        for policy in (cuda, cpu)
    ]
    why = (
        f"Of {', '.join(_COMPARED)}, these differ: {', '.join(differing) or 'none'} "
        f"(CUDA: {fates[0]}; CPU: {fates[1]})."
    )
    return by_share([not differing]), why


def _cross_entropy() -> Finding:
    chosen = [operator for operator in OPERATORS if operator.name == "cross_entropy"]
    seen = {
        kind: measure_policy(kind, torch.bfloat16, tensors="fake", operators=chosen)
        .of("cross_entropy")
        .on("bfloat16")
        .rounded_to
        for kind in ("cpu", "cuda")
    }
    why = (
        f"Of bfloat16 logits its kernels return {' and '.join(seen['cpu'])} on a CPU and "
        f"{' and '.join(seen['cuda'])} on CUDA, where the log-probabilities are rounded; "
        "write cross_entropy(logits.float(), targets)."
    )
    return by_share([rounded == ("float32",) for rounded in seen.values()]), why


def _tf32() -> Finding:
    products, convolutions = tf32.allowed()
    products &= os.environ.get(_TF32_OVERRIDE) != "1"  # no default: this environment switched it
    why = (
        f"For matrix products it is {_on(products)}, for cuDNN's convolutions {_on(convolutions)}."
        f" The environment variable {_TF32_OVERRIDE}=1 turns it on for products too; NVIDIA's "
        "containers set it."
    )
    return by_share([products, convolutions]), why


_TF32_OVERRIDE = "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"


def _on(switch: bool) -> str:
    return "on" if switch else "off"


def _grad_scaler() -> Finding:
    weight = torch.nn.Parameter(torch.ones(1))
    sgd, scaler = torch.optim.SGD([weight], lr=1e-3), torch.amp.GradScaler("cpu")

    def step(gradient: float) -> float:
        scaler.scale(weight.sum()).backward()
        weight.grad = torch.full_like(weight, gradient)
        scaler.step(sgd)
        scaler.update()
        return scaler.get_scale()

    start = scaler.get_scale()  # None so far: the scale is made at the first use
    after = [step(1.0) for _ in range(2000)]
    halved = step(float("inf"))
    grew_at = next((n for n, scale in enumerate(after, 1) if scale > start), 0)
    why = (
        f"It starts at {start:g}, is at {after[-1]:g} after {grew_at} clean steps and at "
        f"{halved:g} after an infinity."
    )
    return by_share([start == 65536 and grew_at == 2000 and halved == after[-1] / 2]), why


def _bf16_supported(device: torch.device) -> Finding:
    if device.type != "cuda":
        return NOT_RECORDED, "It takes a GPU older than Ampere, such as a T4."
    capability = torch.cuda.get_device_capability(device)
    says = torch.cuda.is_bf16_supported()
    return bf16_supported_on(capability, says=says)


def bf16_supported_on(capability: tuple[int, int], *, says: bool) -> Finding:
    """The finding on a GPU of this compute capability, by what ``is_bf16_supported()`` says."""
    have = ".".join(map(str, capability))
    if capability >= (8, 0):
        return NOT_RECORDED, f"This GPU ({have}) has the units; it takes one that has not."
    why = (
        f"It says {says} on compute capability {have}, which has no bfloat16 units; "
        "is_bf16_supported(including_emulation=False) does not count emulation."
    )
    return by_share([not says]), why


_ON_A_T4 = Verdict(
    *bf16_supported_on((7, 5), says=True),
    "reported: [output of a T4](https://github.com/MakazhanAlpamys/Soup/issues/387), "
    "[pytorch#148322](https://github.com/pytorch/pytorch/pull/148322)",
)


def _accumulation(device: torch.device) -> Finding:
    length = 2**14
    ones = {d: torch.ones(1, length, dtype=d, device=device) for d in _SIXTEEN_BIT}
    sums = [(x @ x.t()).item() for x in ones.values()]
    allowed = _reduced_precision_switches() if device.type == "cuda" else []
    return judge_sums(sums, ones=length, allowed=allowed)


def judge_sums(sums: Sequence[float], *, ones: int, allowed: Sequence[str]) -> Finding:
    """The finding from what products made of so many ones, and the switches that are on."""
    exact = all(total == ones for total in sums)
    said = " and ".join(f"{total:g}" for total in sums)
    why = f"{ones} ones summed by a product give {said} in float16 and bfloat16"
    if allowed:
        why += f"; {' and '.join(allowed)} still lets cuBLAS add partial sums in 16 bits"
    return by_share([exact, exact and not allowed]), f"{why}."


_SIXTEEN_BIT = (torch.float16, torch.bfloat16)


def _reduced_precision_switches() -> list[str]:
    """Which switches are on that let cuBLAS add partial sums in 16 bits."""
    names = [f"allow_{short}_reduced_precision_reduction" for short in ("fp16", "bf16")]
    return [name for name in names if getattr(torch.backends.cuda.matmul, name)]


_NOTES = "https://docs.pytorch.org/docs/stable/notes/cuda.html"

CLAIMS = (
    Claim(
        "use-torch-cuda-amp",
        "torch.cuda.amp.autocast and torch.cuda.amp.GradScaler are the calls to write.",
        "[PyTorch 2.2's documentation](https://pytorch.org/docs/2.2/amp.html)",
        exactly(_cuda_amp),
        "recipe/autocast_traps#torch-cuda-amp",
    ),
    Claim(
        "cuda-amp-autocast-takes-a-device-type",
        'from torch.cuda.amp import autocast; autocast(device_type="cuda").',
        "[javapedia](https://www.javapedia.net/PyTorch-Fundamentals-Interview-Questions/7421)",
        exactly(_old_autocast_takes_a_device_type),
        "recipe/autocast_traps#torch-cuda-amp",
    ),
    Claim(
        "autocast-means-float16",
        "autocast computes in float16 unless told otherwise.",
        "often said",
        exactly(_default_dtype),
        "recipe/autocast_traps#autocast-default-dtype",
    ),
    Claim(
        "autocast-treats-cpu-and-cuda-alike",
        "autocast treats an operator alike on a CPU and on CUDA.",
        "often taken for granted",
        exactly(_same_lists),
        "recipe/autocast#autocast-why",
    ),
    Claim(
        "autocast-runs-cross-entropy-in-float32",
        "Inside autocast, cross_entropy runs in float32.",
        "[PyTorch's list for CUDA](https://docs.pytorch.org/docs/stable/amp.html)",
        exactly(_cross_entropy),
        "recipe/autocast_traps#cuda-cross-entropy",
    ),
    Claim(
        "tf32-is-on-by-default",
        "On Ampere and later, PyTorch uses TF32 by default.",
        f"[PyTorch's notes]({_NOTES}), which say where",
        exactly(_tf32),
        "numbers/precision_formats#formats-tf32",
    ),
    Claim(
        "grad-scaler-65536-2000",
        "GradScaler starts at 65536, doubles after 2000 clean steps, and halves on an infinity.",
        "often said",
        exactly(_grad_scaler),
        "recipe/loss_scaling#ls-numbers",
    ),
    Claim(
        "16-bit-products-accumulate-in-float32",
        "A 16-bit matrix product accumulates in float32.",
        "often said",
        live(_accumulation),
        "numbers/rounding_and_sums#sums-matmul",
    ),
    Claim(
        "is-bf16-supported-means-native",
        "torch.cuda.is_bf16_supported() tells whether the GPU has bfloat16 units.",
        "often taken for granted",
        live(_bf16_supported, otherwise=_ON_A_T4),
        "formats_that_need_less/bf16_traps#bf16-supported",
    ),
)
